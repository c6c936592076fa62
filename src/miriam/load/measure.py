"""From records of callers to a point of a results document, and what the load generator says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from miriam.bench.arrivals import Closed
from miriam.bench.metrics import TaskMetrics, latency, measure_times
from miriam.bench.results import Point
from miriam.bench.workload import Entry, Workload
from miriam.load.client import Record

__all__ = ["TOGETHER", "metrics", "notes", "point"]

TOGETHER = "together"
"""Stands where a benchmark names the policy: that of a server is its own affair."""

_LATE = 0.1  # share of the median response that sending may be late before the report says so
_BUSY = 0.8  # share of a core


def point(
    workload: Workload,
    records: Mapping[str, Record],
    alone: str | None,
    repeat: int,
    begin_us: float,
    end_us: float,
) -> Point:
    """One run, with the window from ``begin_us`` to ``end_us``."""
    entries = [e for e in workload.entries if e.name in records]
    return Point(
        workload=workload.name,
        policy=TOGETHER,
        alone=alone,
        tasks=tuple(metrics(e, records[e.name], begin_us, end_us) for e in entries),
        busy=None,
        occupancy=None,
        sm_active=None,
        blocks=None,
        report={key: value for e in entries for key, value in _own(e, records[e.name], begin_us, end_us)},
        repeat=repeat,
    )


def metrics(entry: Entry, record: Record, begin_us: float, end_us: float) -> TaskMetrics:
    """What a benchmark would say of the requests of a caller."""
    found = measure_times(
        entry.name, entry.criticality, entry.deadline_us, record.arrival_us, record.sent_us, record.finish_us,
        begin_us, end_us,
    )  # fmt: skip
    inside = (begin_us <= record.arrival_us) & (record.arrival_us < end_us)
    failed = {why: int(np.count_nonzero(inside[list(which)])) for why, which in record.reasons.items()}
    return replace(
        found,
        unfinished=found.unfinished - sum(failed.values()),
        checked=record.checked,
        wrong=record.wrong,
        failed={why: count for why, count in failed.items() if count},
    )


def _own(entry: Entry, record: Record, begin_us: float, end_us: float) -> Iterator[tuple[str, float]]:
    """Figures of the load generator; lateness is of what arrived inside the window and is sent by the clock."""
    yield f"{entry.name}_client_us", record.cpu_us / max(1, record.arrival_us.size)
    if isinstance(entry.arrivals, Closed):
        return
    inside = (begin_us <= record.arrival_us) & (record.arrival_us < end_us) & np.isfinite(record.sent_us)
    late = latency((record.sent_us - record.arrival_us)[inside])
    if late is not None:
        yield f"{entry.name}_late_p50_us", late.p50_us
        yield f"{entry.name}_late_p99_us", late.p99_us
        yield f"{entry.name}_late_max_us", late.max_us


def notes(points: Iterable[Point], records: Iterable[Mapping[str, Record]], duration_us: float) -> tuple[str, ...]:
    """What a reader has to know: where the load generator itself was slow, and why requests failed."""
    late: dict[str, float] = {}
    busy: dict[str, float] = {}
    said: dict[tuple[str, str], str] = {}
    for run, by_name in zip(points, records, strict=True):
        for task in run.tasks:
            name, record = task.name, by_name[task.name]
            late_us = run.report.get(f"{name}_late_p99_us", 0.0)
            if task.response is not None and late_us > _LATE * task.response.p50_us:
                late[name] = max(late.get(name, 0.0), late_us)
            share = record.cpu_us / max(duration_us, record.end_us)
            if share > _BUSY:
                busy[name] = max(busy.get(name, 0.0), share)
            for why, text in record.said.items():
                said.setdefault((name, why), text)
    return (
        *(f"requests of {n} were sent late (p99 {us:,.0f} us), which their latencies hold" for n, us in late.items()),
        *(
            f"the client of {n} was busy {s:.0%} of the time: the server may be able to do more"
            for n, s in busy.items()
        ),
        *(f"requests of {n} failed ({why}), the first with: {text:.200}" for (n, why), text in said.items()),
    )
