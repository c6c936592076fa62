"""The results as a table in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miriam.bench.report.svg import rate_text, time_text
from miriam.bench.results import Results
from miriam.bench.summary import Spread, Summary, TaskRow, summaries, task_rows
from miriam.bench.workload import Entry

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_table", "print_tasks"]

_WIDTH = 110
_NONE = "–"


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
    rows = [(w.name, i == 0, row) for w in results.workloads for i, row in enumerate(summaries(results, w))]
    columns = [c for c in _COLUMNS if c.always or any(c.cell(row) != _NONE for _, _, row in rows)]
    table.add_column("", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for column in columns:
        table.add_column(column.head, justify="right", no_wrap=True)
    for name, first, row in rows:
        if first and table.rows:
            table.add_section()
        style = "dim" if row.alone else "bold" if row.policy == "miriam" else None
        table.add_row(name if first else "", row.label, *(c.cell(row) for c in columns), style=style)
    console.print(table)
    for line in _legend(results, [row for _, _, row in rows], columns):
        console.print(line, highlight=False, markup=False)


def _title(results: Results) -> str:
    scaled = "" if results.critical_load is None else f", critical load {results.critical_load:g}"
    kind = "simulated" if results.simulated else "measured"
    turns = "" if results.repeats == 1 else f", {results.repeats} turns"
    return f"{results.device} ({kind}), {results.duration_s:g} s a run{turns}, seed {results.seed}{scaled}"


@dataclass(frozen=True, slots=True)
class _Column:
    """One column; those that are not always there are left out where no row has anything in them."""

    head: str
    cell: Callable[[Summary], str]
    about: str = ""
    always: bool = True


def _p99(row: Summary) -> str:
    if row.p99_us is None:
        return _NONE
    return ("> " if row.behind else "") + time_text(row.p99_us) + ("*" if row.few else "")


def _slowdown(row: Summary) -> str:
    if row.slowdown is None:
        return _NONE
    return ("> " if row.behind else "") + f"{row.slowdown.median:.2f}×" + _range(row.slowdown, "{:.2f}".format)


def _range(spread: Spread, text: Callable[[float], str]) -> str:
    return "" if spread.low == spread.high else f" ({text(spread.low)}–{text(spread.high)})"


def _normal(row: Summary) -> str:
    if row.normal_per_s is None:
        return _NONE
    return rate_text(row.normal_per_s.median) + _range(row.normal_per_s, rate_text)


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.0f} %"


_COLUMNS = (
    _Column("p50", lambda row: _NONE if row.p50_us is None else time_text(row.p50_us)),
    _Column("p99", _p99),
    _Column("p99 vs\nalone", _slowdown),
    _Column("normal\n/s", _normal),
    _Column("of\nstock", lambda row: _percent(row.normal_vs_stock),
            "of stock: normal work against plain PyTorch alone.", always=False),
    _Column("of\nfree", lambda row: _percent(row.normal_vs_free),
            "of free: the same, over the share of the time that critical requests leave.", always=False),
    _Column("all\n/s", lambda row: rate_text(row.overall_per_s)),
    _Column("all vs\nseq.", lambda row: _NONE if row.overall_vs_sequential is None
            else f"{row.overall_vs_sequential:.2f}×", "all vs seq.: against the policy sequential.", always=False),
    _Column("missed", lambda row: _NONE if row.missed is None else str(row.missed), always=False),
    _Column("occ.", lambda row: _percent(row.occupancy), always=False),
)  # fmt: skip


def _legend(results: Results, rows: Sequence[Summary], columns: Sequence[_Column]) -> Iterator[str]:
    """What a reader has to know."""
    about = " ".join(c.about for c in columns if c.about)
    yield f"p50, p99: response time of the critical task. {about}".rstrip()
    if any(sum(e.critical for e in w.entries) > 1 for w in results.workloads):
        yield "Several critical tasks: the first; p99 vs alone: of those of its level the one that suffers most."
    if results.repeats > 1:
        yield f"Medians of {results.repeats} turns, in brackets the least and the most."
    if any(row.few for row in rows):
        yield "* fewer than 100 requests: the longest of them."
    if any(row.behind for row in rows):
        yield "> more than 1 % of the requests did not finish in the run: p99 is longer."
    compared = [task for point in results.points for task in point.tasks if task.checked is not None]
    if compared:
        count, wrong = (sum(getattr(task, name) for task in compared) for name in ("checked", "wrong"))
        yield f"Inferences whose outputs were compared: {count:,}, wrong words: {wrong:,}."
    for note in results.notes:
        yield f"Note: {note}"


_HEADS = ("", "requests", "", "/s", "p50", "p99", "p99 vs\nalone", "missed", "failed")


def print_tasks(results: Results, console: Console | None = None) -> None:
    """Print a table: the rows of every task.

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
    rows = [row for workload in results.workloads for row in task_rows(results, workload)]
    before: Entry | None = None
    for row in rows:
        first = row.entry is not before
        if first and before is not None:
            table.add_section()
        before = row.entry
        table.add_row(
            _named(row.entry) if first else "", str(row.entry.arrivals) if first else "", row.label, *_cells(row),
            style="dim" if row.alone else None,
        )  # fmt: skip
    console.print(table)
    for row in rows:
        for why, count in row.failed.items():
            run = row.label if row.alone else f"({row.label})"
            console.print(f"{row.entry.name} {run}: {count:,} requests failed: {why}.", highlight=False, markup=False)


def _named(entry: Entry) -> str:
    level = "critical" if entry.criticality == 1 else f"level {entry.criticality}"
    return f"{entry.name} ({level})" if entry.critical else entry.name


def _cells(row: TaskRow) -> tuple[str, ...]:
    behind = "> " if row.behind else ""
    return (
        rate_text(row.per_s),
        _NONE if row.p50_us is None else time_text(row.p50_us),
        _NONE if row.p99_us is None else behind + time_text(row.p99_us),
        _NONE if row.slowdown is None else f"{behind}{row.slowdown:.2f}×",
        _NONE if row.missed is None else str(row.missed),
        f"{sum(row.failed.values()):,}",
    )
