"""A recording as a Chrome trace, which Perfetto opens (ui.perfetto.dev), and what such traces are made of."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from miriam.trace.intervals import Intervals
from miriam.trace.recording import Decision, Done, Recording, Traced, level_name, rows_text

__all__ = ["REQUESTS", "document", "life", "named", "text", "told"]

REQUESTS = 1000
"""Number of the track with the requests, after every lane."""

_DECISIONS = REQUESTS + 1


def document(recording: Recording) -> dict[str, Any]:
    """A document in the Trace Event Format, with the recording itself beside the events.

    A track for each lane, with what ran and what stood still; one for requests, each with the time that it waited
    and an arrow to its start; one for decisions; and a counter of those that wait, by task.
    """
    return _head(recording) | {"traceEvents": list(_events(recording)), "recording": recording.to_json()}


def text(recording: Recording) -> Iterator[str]:
    """The document as JSON, in pieces that are made one after another."""
    yield json.dumps(_head(recording))[:-1] + ',"traceEvents":['
    yield from rows_text(_events(recording))
    yield '],"recording":'
    yield from recording.text()
    yield "}"


def _head(recording: Recording) -> dict[str, Any]:
    return {"displayTimeUnit": "ms", "otherData": {"device": recording.device, "policy": recording.policy}}


def named(pid: int, tid: int, kind: str, name: str) -> dict[str, Any]:
    """The event that gives a process or a track its name."""
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}}


def life(
    pid: int, name: str, key: str, begin_us: float, end_us: float, start_us: float | None, tid: int | None
) -> Iterator[dict[str, Any]]:
    """A request from its begin to its end, and an arrow to where it starts on track ``tid``, if it does.

    Parameters
    ----------
    key
        Unique among the requests of a document.
    """
    base = {"pid": pid, "tid": REQUESTS, "name": name, "cat": "request"}
    yield base | {"id": key, "ph": "b", "ts": begin_us}
    yield base | {"id": key, "ph": "e", "ts": end_us}
    if start_us is None or tid is None:
        return
    flow = base | {"cat": "start", "id": key}
    yield base | {"ph": "X", "ts": begin_us, "dur": 0.1}
    yield flow | {"ph": "s", "ts": begin_us}
    yield flow | {"ph": "f", "bp": "e", "tid": tid, "ts": start_us}


def _events(recording: Recording) -> Iterator[dict[str, Any]]:
    origin_us = min((request.submitted_us for request in recording.requests), default=recording.now_us)
    intervals = Intervals(recording)
    yield named(1, 0, "process_name", f"{recording.policy} on {recording.device}")
    for lane in sorted({r.lane for r in recording.requests if r.lane is not None} | set(range(len(recording.lanes)))):
        yield named(1, lane + 1, "thread_name", f"lane {recording.lane_name(lane)}")
    yield named(1, REQUESTS, "thread_name", "requests")
    yield named(1, _DECISIONS, "thread_name", "decisions")
    for request in recording.requests:
        tid = None if request.lane is None else request.lane + 1
        start_us = None if request.started_us is None else _round(request.started_us - origin_us)
        begin_us, end_us = request.submitted_us - origin_us, intervals.end_us(request) - origin_us
        yield from life(1, request.name, f"1.{request.number}", _round(begin_us), _round(end_us), start_us, tid)
        if tid is not None:
            yield from _service(request, intervals, tid, origin_us)
    yield from _waiting(recording.requests, intervals, origin_us)
    for decision in recording.decisions:
        yield _decision(decision, recording, origin_us)


def _service(request: Traced, intervals: Intervals, tid: int, origin_us: float) -> Iterator[dict[str, Any]]:
    """What a request did on its lane: it runs, and stands still in between."""
    if request.started_us is None:
        return
    pauses = intervals.pauses(request)
    edges = [request.started_us, *(edge for pause in pauses for edge in pause), intervals.end_us(request)]
    args = {
        "request": request.number, "task": request.task, "level": level_name(request.level), "why": request.why,
        "outcome": request.outcome or "not ended", "error": request.error,
    }  # fmt: skip
    for i, (begin_us, end_us) in enumerate(itertools.pairwise(edges)):
        if end_us > begin_us:
            kind = "paused" if i % 2 else "ran"
            yield {
                "ph": "X", "pid": 1, "tid": tid, "ts": _round(begin_us - origin_us), "dur": _round(end_us - begin_us),
                "name": f"{request.name} paused" if i % 2 else request.name, "cat": kind, "args": args,
            }  # fmt: skip


def _waiting(requests: Sequence[Traced], intervals: Intervals, origin_us: float) -> Iterator[dict[str, Any]]:
    """How many requests of each task wait, at every change."""
    changes = [(r.submitted_us, 1, r.task) for r in requests]
    changes += [(intervals.waited_until_us(r), -1, r.task) for r in requests]
    depth = Counter({request.task: 0 for request in requests})
    for time_us, change, task in sorted(changes, key=lambda one: (one[0], -one[1])):
        depth[task] += change
        yield {"ph": "C", "pid": 1, "tid": 0, "ts": _round(time_us - origin_us), "name": "waiting", "args": dict(depth)}


def _decision(decision: Decision, recording: Recording, origin_us: float) -> dict[str, Any]:
    about = f" {decision.task} #{decision.number}" if decision.number is not None else ""
    commands = {f"command {i}": told(done, recording) for i, done in enumerate(decision.commands, 1)}
    return {
        "ph": "i", "s": "t", "pid": 1, "tid": _DECISIONS, "ts": _round(decision.time_us - origin_us),
        "name": f"{decision.event}{about}", "cat": "decision", "args": commands,
    }  # fmt: skip


def told(done: Done, recording: Recording) -> str:
    """A command in words."""
    why = f": {done.why}" if done.why else ""
    if done.lane is None:
        return f"wake me later{why}"
    lane = recording.lane_name(done.lane)
    if done.kind == "limit":
        return f"lane {lane} may keep {'all' if done.sms is None else done.sms} SMs{why}"
    return f"run #{done.number} on lane {lane}{why}"


def _round(time_us: float) -> float:
    return round(time_us, 3)
