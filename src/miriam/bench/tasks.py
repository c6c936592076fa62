"""The results of every task as a table in the terminal: what each did alone and beside the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from miriam.bench.arrivals import Closed
from miriam.bench.metrics import TaskMetrics
from miriam.bench.report.svg import rate_text, time_text
from miriam.bench.results import Results
from miriam.bench.summary import Spread
from miriam.bench.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_tasks"]

_WIDTH = 110
_NONE = "–"
_HEADS = ("", "requests", "", "/s", "p50", "p99", "p99 vs\nalone", "missed", "failed")


def print_tasks(results: Results, console: Console | None = None) -> None:
    """Print a table: for each task a row alone and a row for each policy, medians over the turns.

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
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, head in enumerate(_HEADS):
        table.add_column(head, justify="left" if i < 3 else "right", no_wrap=i != 1)
    failed: Counter[tuple[str, str]] = Counter()
    for workload in results.workloads:
        for entry in workload.entries:
            for i, (label, own) in enumerate(_runs(results, workload, entry.name)):
                name, what = ("", "") if i else (entry.name, str(entry.arrivals))
                level = " (critical)" if entry.criticality == 1 else f" ({entry.criticality})" if entry.critical else ""
                depth = entry.arrivals.depth if isinstance(entry.arrivals, Closed) else 0
                style = "dim" if label == "alone" else None
                table.add_row(name and name + level, what, label, *_cells(own, depth), style=style)
                for task in own:
                    failed.update({(entry.name, why): count for why, count in (task.failed or {}).items()})
            table.add_section()
    console.print(table)
    for (name, why), count in failed.items():
        console.print(f"{name}: {count:,} requests failed: {why}.", highlight=False, markup=False)


def _runs(results: Results, workload: Workload, name: str) -> list[tuple[str, Sequence[TaskMetrics]]]:
    """By label: the task in the runs of all turns."""
    found: dict[str, list[TaskMetrics]] = {}
    for point in results.points:
        if point.workload == workload.name and point.alone in (None, name):
            own = [task for task in point.tasks if task.name == name]
            found.setdefault("alone" if point.alone else point.policy, []).extend(own)
    return list(found.items())


def _cells(tasks: Sequence[TaskMetrics], depth: int) -> tuple[str, ...]:
    """The figures of a row; of a loop, ``depth`` requests are always under way at the end, which says nothing."""

    def median(value: Callable[[TaskMetrics], float | None], text: Callable[[float], str]) -> str:
        found = Spread.of(map(value, tasks))
        return _NONE if found is None else text(found.median)

    under_way = [replace(task, unfinished=max(0, task.unfinished - depth)) for task in tasks]
    behind = "> " if any(task.behind for task in under_way) else ""
    missed = [task.missed for task in tasks if task.missed is not None]
    failed = sum(sum((task.failed or {}).values()) for task in tasks)
    return (
        median(lambda t: t.throughput_per_s, rate_text),
        median(lambda t: t.response.p50_us if t.response else None, time_text),
        median(lambda t: t.response.p99_us if t.response else None, lambda us: behind + time_text(us)),
        median(lambda t: t.slowdown.p99 if t.slowdown else None, lambda times: f"{behind}{times:.2f}×"),
        str(sum(missed)) if missed else _NONE,
        f"{failed:,}",
    )
