"""What needs several runs of a turn: how a task does beside others, against what it does alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from miriam.bench.metrics import TaskMetrics, slowdown
from miriam.bench.results import ALONE, BASELINE, Point

__all__ = ["relate"]


def relate(points: Iterable[Point]) -> tuple[Point, ...]:
    """Fill in what needs several runs of a turn: slowdowns against alone, throughput against what there is.

    A task was alone under the same regime if there is such a run: for ``mps:50`` one of the policy ``mps``,
    else one of :data:`ALONE`.
    """
    points = tuple(points)
    alone = {(p.workload, p.repeat, p.policy, p.alone): p.tasks[0] for p in points if p.alone is not None}
    base = {(p.workload, p.repeat): p.overall_per_s for p in points if p.alone is None and p.policy == BASELINE}

    def related(point: Point) -> Point:
        if point.alone is not None:
            return point
        turn = point.workload, point.repeat
        regime = point.policy.partition(":")[0]
        own = {t.name: alone.get((*turn, regime, t.name)) or alone.get((*turn, ALONE, t.name)) for t in point.tasks}
        sequential = base.get(turn)
        normal = [t for t in point.tasks if not t.critical]
        alone_per_s = {name: a.throughput_per_s for name, a in own.items() if a is not None}
        stock = _mean([t.throughput_per_s / t.stock_per_s for t in normal if t.stock_per_s])
        left = _left([own[t.name] for t in point.tasks if t.critical])
        return replace(
            point,
            tasks=tuple(
                replace(t, slowdown=slowdown(t.response, a.response if (a := own[t.name]) else None))
                for t in point.tasks
            ),
            overall_vs_sequential=point.overall_per_s / sequential if sequential else None,
            normal_vs_alone=_mean(
                [t.throughput_per_s / own_per_s for t in normal if (own_per_s := alone_per_s.get(t.name))]
            ),
            normal_vs_stock=stock,
            normal_vs_free=stock / left if stock is not None and left is not None else None,
        )

    return tuple(map(related, points))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _left(critical: Sequence[TaskMetrics | None]) -> float | None:
    """Share of the time that critical tasks, which ran alone, leave to others; None if none or not known."""
    busy = 0.0
    for task in critical:
        if task is None or task.service is None:
            return None
        busy += task.throughput_per_s * task.service.mean_us * 1e-6
    return 1 - busy if busy < 1 else None
