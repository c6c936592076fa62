"""The results as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miriam.bench.report.svg import rate_text, time_text
from miriam.bench.results import Point, Results

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_table"]

_FEW = 100
_WIDTH = 100


def print_table(results: Results, console: Console | None = None) -> None:
    """Print a table: for each workload the critical task alone, then each policy.

    Parameters
    ----------
    console
        Where to; None: standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)  # a file or a pipe has room
    table = Table(
        title=_title(results), title_justify="left", title_style="bold", caption_justify="left",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for name in ("p50", "p99", "p99 vs\nalone", "normal\n/s", "all\n/s", "all vs\nseq.", "missed", "occ."):
        table.add_column(name, justify="right", no_wrap=True)
    few = behind = False
    for workload in results.workloads:
        alone = results.alone(workload.name, workload.critical.name) if workload.critical else None
        points = [p for name in results.policies if (p := results.point(workload.name, name)) is not None]
        for i, point in enumerate([*([alone] if alone else []), *points]):
            cells = _cells(point)
            few |= cells[1].endswith("*")
            behind |= cells[1].startswith(">")
            style = "dim" if point.alone else "bold" if point.policy == "miriam" else None
            table.add_row(
                workload.name if i == 0 else "", "alone" if point.alone else point.policy, *cells, style=style
            )
        table.add_section()
    console.print(table)
    console.print("p50, p99: response time of the critical task. all vs seq.: against the policy sequential.")
    if few:
        console.print("* fewer than 100 requests: the longest of them.", markup=False)
    if behind:
        console.print("> more than 1 % of the requests did not finish in the run: p99 is longer.", markup=False)
    for note in results.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)


def _title(results: Results) -> str:
    scaled = "" if results.critical_load is None else f", critical load {results.critical_load:g}"
    kind = "simulated" if results.simulated else "measured"
    return f"{results.device} ({kind}), {results.duration_s:g} s a run, seed {results.seed}{scaled}"


def _cells(point: Point) -> list[str]:
    task = point.critical
    response = task.response if task else None
    slower = task.slowdown if task else None
    ratio = point.overall_vs_sequential
    bound = "> " if task and task.behind else ""
    return [
        time_text(response.p50_us) if response else "–",
        bound + time_text(response.p99_us) + ("*" if response.count < _FEW else "") if response else "–",
        f"{bound}{slower.p99:.2f}×" if slower else "–",
        rate_text(point.normal_per_s) if point.alone is None else "–",
        rate_text(point.overall_per_s),
        f"{ratio:.2f}×" if ratio is not None else "–",
        "–" if point.missed is None else str(point.missed),
        f"{100 * point.occupancy:.0f} %",
    ]
