"""What the live page shows, as one small document."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from miriam.serve.repository import in_thread
from miriam.trace.intervals import Intervals
from miriam.trace.perfetto import told
from miriam.trace.recording import Traced, level_name

if TYPE_CHECKING:
    from miriam.runtime.statistics import TaskStatistics
    from miriam.serve.service import Service
    from miriam.trace.recorder import Recorder

__all__ = ["Snapshots"]

_POINTS = 80  # of a distribution
_MOST = 600  # requests in one document
_PIECE = 40
_DECISIONS = 60
_FRESH_US = 4e5  # distributions are not worked out again for so long: several people may look at one server
_COUNTS = ("submitted", "answered", "failed", "timed_out", "cancelled", "rejected", "queue_depth", "running",
           "preemptions", "deadline_missed")  # fmt: skip
_PATIENCE_S = 0.2
_FLOOR = 20  # latencies alone, below which nothing is said of a slowdown


class Snapshots:
    """Makes the documents of the live page.

    It runs beside requests, in the process that serves them, so it is short: what has not changed is not sent again,
    and what is costly is kept for a moment.
    """

    def __init__(self, service: Service, recorder: Recorder) -> None:
        self._service, self._recorder = service, recorder
        self._begin_us = recorder.clock()
        self._tasks: list[dict[str, Any]] = []
        self._report: dict[str, float] = {}
        self._asked: asyncio.Task[Mapping[str, float]] | None = None
        self._known_us = -math.inf

    async def take(self, since_us: float) -> dict[str, Any]:
        """Everything about tasks, and the requests and decisions since a time."""
        if self._recorder.clock() - self._known_us > _FRESH_US:
            self._known_us = self._recorder.clock()
            self._tasks, self._report = self._all_tasks(), await self._ask_policy()
        recording = self._recorder.recording(since_us=since_us, most=_MOST)
        begin_us = min((request.submitted_us for request in recording.requests), default=since_us)
        # What paused a request may have ended long before it did.
        intervals = Intervals(self._recorder.recording(since_us=min(begin_us, since_us)))
        rows = []
        for count, request in enumerate(recording.requests, 1):
            rows.append(_row(request, intervals))
            if not count % _PIECE:
                await asyncio.sleep(0)  # let the thread that runs the models have its turn
        runtime = self._service.runtime
        return {
            "now_us": round(recording.now_us, 1),
            "since_us": _complete_since(recording.requests),
            "unix_ms": round((recording.unix_us + recording.now_us) / 1e3),
            "up_s": round((recording.now_us - self._begin_us) / 1e6, 1),
            "device": runtime.device,
            "policy": runtime.policy,
            "notes": list(runtime.notes),
            "ready": self._service.ready(),
            "lanes": [
                {"name": name, "priority": priority}
                for name, priority in zip(recording.lanes, recording.priorities, strict=True)
            ],
            "tasks": self._tasks,
            "report": self._report,
            "requests": rows,
            "decisions": [
                [
                    round(one.time_us, 1),
                    one.event,
                    one.task,
                    one.number,
                    [told(done, recording) for done in one.commands],
                ]
                for one in recording.decisions[-_DECISIONS:]
                if one.commands
            ],
        }

    async def _ask_policy(self) -> dict[str, float]:
        """What the policy says about itself. It answers between two steps of the device, which may take long."""
        if self._asked is None:
            self._asked = asyncio.create_task(in_thread(self._service.runtime.report))
        if not (await asyncio.wait((self._asked,), timeout=_PATIENCE_S))[0]:
            return self._report  # and look again next time
        asked, self._asked = self._asked, None
        if asked.exception() is not None:
            return {}  # the runtime has ended
        return {key: value for key, value in asked.result().items() if math.isfinite(value)}

    def _all_tasks(self) -> list[dict[str, Any]]:
        counted = self._service.statistics()
        found = [
            {"name": one["name"], "state": one["state"], "reason": one["reason"]} | _numbers(counted.get(one["name"]))
            for one in self._service.index()
        ]
        return sorted(found, key=lambda task: (-task.get("level", -1), task["name"]))


def _complete_since(requests: Sequence[Traced]) -> float | None:
    """From when on no request is missing, because there were too many for one document; None: none is."""
    ended = [request.finished_us for request in requests if request.finished_us is not None]
    return round(ended[0], 1) if len(ended) == _MOST else None


def _numbers(known: TaskStatistics | None) -> dict[str, Any]:
    """What is known of a task; nothing of one that is not loaded."""
    if known is None:
        return {}
    last, alone = sorted(known.latencies_us), sorted(known.solo_latencies_us)
    enough = len(alone) >= _FLOOR
    return {
        "level": known.criticality,
        "level_name": level_name(known.criticality),
        **{name: getattr(known, name) for name in _COUNTS},
        "p50_us": _quantile(last, 0.5),
        "p99_us": _quantile(last, 0.99),
        "max_us": last[-1] if last else None,
        "alone_p50_us": _quantile(alone, 0.5),
        "alone_p99_us": _quantile(alone, 0.99),
        "alone_count": len(alone),
        "count": len(last),
        "slowdown_p50": _quantile(last, 0.5) / _quantile(alone, 0.5) if last and enough else None,
        "slowdown_p99": _quantile(last, 0.99) / _quantile(alone, 0.99) if last and enough else None,
        "curve_us": _curve(last),
        "alone_curve_us": _curve(alone),
    }


def _quantile(ordered: Sequence[float], share: float) -> Any:
    """The smallest value that so many of them do not pass, None of nothing."""
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 1) if ordered else None


def _curve(ordered: Sequence[float]) -> list[float]:
    """Quantiles at even distances: the form of a distribution, however many values it has."""
    if len(ordered) <= _POINTS:
        return [round(value, 1) for value in ordered]
    return [round(ordered[int((i + 0.5) / _POINTS * len(ordered))], 1) for i in range(_POINTS)]


def _row(request: Traced, intervals: Intervals) -> list[Any]:
    """A request as the page takes it: numbers in a fixed order."""
    started_us = None if request.started_us is None else round(request.started_us, 1)
    finished_us = None if request.finished_us is None else round(request.finished_us, 1)
    pauses = [[round(begin_us, 1), round(end_us, 1)] for begin_us, end_us in intervals.pauses(request)]
    return [
        request.number, request.task, request.level, request.lane, round(request.submitted_us, 1), started_us,
        finished_us, request.outcome, pauses, int(request.alone),
    ]  # fmt: skip
