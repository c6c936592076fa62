"""What a reader sees of a benchmark: for each workload a row alone and a row for each policy, over all turns."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from miriam.bench.arrivals import Closed
from miriam.bench.metrics import TaskMetrics
from miriam.bench.results import ALONE, Point, Results
from miriam.bench.workload import Entry, Workload

__all__ = ["Spread", "Summary", "TaskRow", "summaries", "task_rows"]

_FEW = 100  # with fewer requests p99 is the largest latency


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over all turns: its median, the smallest and the largest."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float | None]) -> Spread | None:
        """Of the turns in which the figure is known; None if there are none."""
        found = [v for v in values if v is not None]
        return Spread(statistics.median(found), min(found), max(found)) if found else None


@dataclass(frozen=True, slots=True)
class Summary:
    """A row: a workload under a policy, or its tasks alone; medians over the turns where nothing else is said.

    Attributes
    ----------
    label, policy
        ``alone`` or the policy, and the policy that served it.
    alone
        Whether each task had the device for itself.
    points
        The runs of the critical task, one for each turn.
    p50_us, p99_us
        Response time of the most critical task, of equal ones the first.
    slowdown
        Its p99 against alone; of several equally critical tasks that of the one that suffers most.
    few, behind
        Whether in some turn p99 is the largest of less than 100 latencies, or better than it looks.
    starved
        Whether in some turn no critical request finished although some arrived.
    normal_per_s
        Throughput of the normal tasks.
    normal_vs_alone, normal_vs_stock, normal_vs_free, overall_per_s, overall_vs_sequential, occupancy
        As in :class:`miriam.bench.results.Point`.
    missed
        Deadline misses of all turns.
    """

    label: str
    policy: str
    alone: bool
    points: tuple[Point, ...]
    p50_us: float | None
    p99_us: float | None
    slowdown: Spread | None
    few: bool
    behind: bool
    starved: bool
    normal_per_s: Spread | None
    normal_vs_alone: float | None
    normal_vs_stock: float | None
    normal_vs_free: float | None
    overall_per_s: float
    overall_vs_sequential: float | None
    missed: int | None
    occupancy: float | None


def summaries(results: Results, workload: Workload) -> tuple[Summary, ...]:
    """The rows of a workload: the critical task alone, by itself and under other regimes, then each policy."""
    rows = []
    if workload.critical is not None:
        found = dict.fromkeys(p.policy for p in results.points if p.alone is not None)
        regimes = sorted(found, key=lambda regime: regime != ALONE)
        for regime in regimes:
            points = results.turns(workload.name, regime, workload.critical.name)
            if points:
                label = "alone" if regime == regimes[0] else f"alone, {regime}"
                rows.append(_summary(label, points, _normal_alone(results, workload, regime)))
    for policy in results.policies:
        points = results.turns(workload.name, policy)
        if points:
            rows.append(_summary(policy, points, Spread.of(p.normal_per_s for p in points)))
    return tuple(rows)


def _normal_alone(results: Results, workload: Workload, regime: str) -> Spread | None:
    """Throughput alone of the normal task, where there is one."""
    normal = [e for e in workload.entries if not e.critical]
    if len(normal) != 1:
        return None
    return Spread.of(p.normal_per_s for p in results.turns(workload.name, regime, normal[0].name))


def _summary(label: str, points: Sequence[Point], normal: Spread | None) -> Summary:
    tasks = [p.critical for p in points]
    responses = [t.response for t in tasks if t is not None and t.response is not None]

    def median(value: Callable[[Point], float | None]) -> float | None:
        found = Spread.of(map(value, points))
        return found.median if found else None

    missed = [p.missed for p in points if p.missed is not None]
    return Summary(
        label=label,
        policy=points[0].policy,
        alone=points[0].alone is not None,
        points=tuple(points),
        p50_us=statistics.median(r.p50_us for r in responses) if responses else None,
        p99_us=statistics.median(r.p99_us for r in responses) if responses else None,
        slowdown=Spread.of(p.critical_slowdown for p in points),
        few=any(r.count < _FEW for r in responses),
        behind=any(t.behind for p in points for t in p.leading if t.response is not None),
        starved=any(t.arrived and t.response is None for p in points for t in p.leading),
        normal_per_s=normal,
        normal_vs_alone=median(lambda p: p.normal_vs_alone),
        normal_vs_stock=median(lambda p: p.normal_vs_stock),
        normal_vs_free=median(lambda p: p.normal_vs_free),
        overall_per_s=statistics.median(p.overall_per_s for p in points),
        overall_vs_sequential=median(lambda p: p.overall_vs_sequential),
        missed=sum(missed) if missed else None,
        occupancy=median(lambda p: p.occupancy),
    )


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task alone or under a policy; medians over the turns where nothing else is said.

    Attributes
    ----------
    entry
        Which task.
    label, alone
        ``alone`` or the policy.
    per_s, p50_us, p99_us, slowdown
        Throughput, response time, and its p99 against alone; None where nothing finished or was measured.
    missed, failed
        Deadline misses and failed requests by reason, of all turns.
    behind
        Whether in some turn p99 is better than it looks. Requests of a loop that are under way at its end
        do not count: they always are.
    """

    entry: Entry
    label: str
    alone: bool
    per_s: float
    p50_us: float | None
    p99_us: float | None
    slowdown: float | None
    missed: int | None
    failed: Mapping[str, int]
    behind: bool


def task_rows(results: Results, workload: Workload) -> tuple[TaskRow, ...]:
    """For each task of a workload: a row alone, where it was, and one for each policy."""
    rows = []
    for entry in workload.entries:
        runs: dict[tuple[str, bool], list[TaskMetrics]] = {}
        for point in results.points:
            if point.workload == workload.name and point.alone in (None, entry.name):
                own = [task for task in point.tasks if task.name == entry.name]
                runs.setdefault(("alone" if point.alone else point.policy, point.alone is not None), []).extend(own)
        rows += [_row(entry, label, alone, tasks) for (label, alone), tasks in runs.items()]
    return tuple(rows)


def _row(entry: Entry, label: str, alone: bool, tasks: Sequence[TaskMetrics]) -> TaskRow:
    def median(value: Callable[[TaskMetrics], float | None]) -> float | None:
        found = Spread.of(map(value, tasks))
        return None if found is None else found.median

    depth = entry.arrivals.depth if isinstance(entry.arrivals, Closed) else 0
    missed = [task.missed for task in tasks if task.missed is not None]
    failed: Counter[str] = Counter()
    for task in tasks:
        failed.update(task.failed or {})
    return TaskRow(
        entry,
        label,
        alone,
        per_s=median(lambda t: t.throughput_per_s) or 0.0,
        p50_us=median(lambda t: t.response.p50_us if t.response else None),
        p99_us=median(lambda t: t.response.p99_us if t.response else None),
        slowdown=median(lambda t: t.slowdown.p99 if t.slowdown else None),
        missed=sum(missed) if missed else None,
        failed=failed,
        behind=any(replace(t, unfinished=max(0, t.unfinished - depth)).behind for t in tasks),
    )
