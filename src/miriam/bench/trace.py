"""The timelines as a Chrome trace, which Perfetto opens (ui.perfetto.dev)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from miriam.bench.results import Point, Results, Step
from miriam.bench.timeline import Served, Timeline
from miriam.trace.perfetto import REQUESTS, life, named

__all__ = ["trace_json"]


def trace_json(results: Results) -> dict[str, Any]:
    """A document in the Trace Event Format.

    Each point is a process: a track for each lane with its launches and shards, a counter of the
    threads resident by lane, and a track of requests with an arrow from arrival to start.
    """
    events: list[dict[str, Any]] = []
    pid = 0
    for point in results.points:
        if point.timeline is None:
            continue
        pid += 1
        models = next({e.name: e.model for e in w.entries} for w in results.workloads if w.name == point.workload)
        steps = [results.programs[models[task]] for task in point.timeline.tasks]
        events += _process(pid, point, point.timeline, steps)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"device": results.device, "made": results.made.date, "notes": " ".join(results.notes)},
    }


def _process(pid: int, point: Point, timeline: Timeline, steps: Sequence[Sequence[Step]]) -> Iterator[dict[str, Any]]:
    yield named(pid, 0, "process_name", f"{point.workload}: {point.label}")
    yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_sort_index", "args": {"sort_index": pid}}
    yield named(pid, REQUESTS, "thread_name", "requests")
    for lane, name in enumerate(timeline.lanes):
        yield named(pid, lane + 1, "thread_name", f"lane {name}")
    lane_of: dict[tuple[int, int], int] = {}
    for bar in timeline.bars:
        step = steps[bar.task][bar.launch]
        lane_of.setdefault((bar.task, bar.request), bar.lane + 1)
        yield {
            "ph": "X", "pid": pid, "tid": bar.lane + 1, "ts": bar.begin_us, "dur": round(bar.end_us - bar.begin_us, 3),
            "name": f"{timeline.tasks[bar.task]} {bar.launch}", "cat": "launch" if bar.workers is None else "shard",
            "args": {
                "kernel": step.kernel, "request": bar.request, "blocks": bar.blocks, "of": step.blocks,
                "first block": bar.first_block or 0, "workers": bar.workers, "threads": bar.threads or step.threads,
            },
        }  # fmt: skip
    for i, time_us in enumerate(timeline.time_us):
        held = {name: timeline.resident[lane][i] for lane, name in enumerate(timeline.lanes)}
        yield {"ph": "C", "pid": pid, "tid": 0, "ts": time_us, "name": "threads resident", "args": held}
    for served in timeline.requests:
        yield from _request(pid, timeline, served, lane_of.get((served.task, served.request)))


def _request(pid: int, timeline: Timeline, served: Served, lane: int | None) -> Iterator[dict[str, Any]]:
    """A request from arrival to finish, and an arrow from its arrival to its start."""
    end_us = timeline.length_us if served.finish_us is None else served.finish_us
    shown = lane if 0 <= served.arrival_us <= timeline.length_us else None
    name = f"{timeline.tasks[served.task]} request {served.request}"
    return life(pid, name, f"{pid}.{served.request}", served.arrival_us, end_us, served.start_us, shown)
