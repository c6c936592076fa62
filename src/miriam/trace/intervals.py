"""Who was on the device when, and so what a request waited for and who paused it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from miriam.trace.recording import Recording, Traced

__all__ = ["Hold", "Intervals", "covered_us", "merged"]


@dataclass(frozen=True, slots=True)
class Hold:
    """A time in which something kept a request.

    Attributes
    ----------
    begin_us, end_us
        Of the recording's clock.
    by
        The request that did; None: the policy, see ``why``.
    sms
        How many SMs were left to it meanwhile; 0: it was paused.
    why
        In the policy's words.
    """

    begin_us: float
    end_us: float
    by: Traced | None = None
    sms: int | None = None
    why: str = ""

    @property
    def length_us(self) -> float:
        """How long."""
        return self.end_us - self.begin_us


class Intervals:
    """The times of service in a recording, for questions about single requests.

    What paused a request follows from what the coordinator knows: the limits that runs of others brought for its
    lane, and limits by themselves. On a GPU blocks that run are not torn away, so a pause begins up to one block
    later than is said here. On a CPU it is exact to a step.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._served = sorted((r for r in recording.requests if r.started_us is not None), key=self._begin_us)
        self._begins_us = [self._begin_us(r) for r in self._served]
        self._longest_us = max((self.end_us(r) - self._begin_us(r) for r in self._served), default=0.0)
        self._pauses = dict(_limits(recording))

    def end_us(self, request: Traced) -> float:
        """When it ended, or now."""
        return self._recording.now_us if request.finished_us is None else request.finished_us

    def waited_until_us(self, request: Traced) -> float:
        """When it began, or ended without, or now."""
        return self.end_us(request) if request.started_us is None else request.started_us

    def before(self, request: Traced) -> list[Hold]:
        """Who was served while it waited, and stood in its way: its own task, its lane, its level and those above.

        One of those that another one of them paused is left out meanwhile, so a request may occur several times.
        """
        until_us = self.waited_until_us(request)
        found = [
            Hold(begin_us, end_us, other)
            for other, begin_us, end_us in self._with(request, request.submitted_us, until_us)
            if other.level >= request.level or other.lane == request.lane or other.task == request.task
        ]
        return self._ran(found) + self._limited(request, request.submitted_us, until_us)

    def beside(self, request: Traced) -> list[Hold]:
        """Who was served while it was, and left it no SMs, or some, or all (``sms`` None), in the order of time.

        Those that it paused are not among them.
        """
        if request.started_us is None:
            return []
        begin_us, end_us = request.started_us, self.end_us(request)
        found = [
            Hold(since_us, until_us, other, self._left(request.lane, other), other.why)
            for other, since_us, until_us in self._with(request, begin_us, end_us)
            if self._left(other.lane, request) != 0
        ]
        found += self._limited(request, begin_us, end_us)
        return sorted(found, key=lambda hold: hold.begin_us)

    def pauses(self, request: Traced) -> list[tuple[float, float]]:
        """When it stood still, as intervals that do not touch."""
        if request.started_us is None:
            return []
        begin_us, end_us = request.started_us, self.end_us(request)
        found = [
            Hold(since_us, until_us, other, 0)
            for other, since_us, until_us in self._with(request, begin_us, end_us)
            if self._left(request.lane, other) == 0
        ]
        return merged(found + self._limited(request, begin_us, end_us))

    def _left(self, lane: int | None, other: Traced) -> int | None:
        """SMs that the run of a request left to a lane; None: all."""
        if lane is None or other.lane is None:
            return None
        if lane in other.limits:
            return other.limits[lane]
        priorities = self._recording.priorities
        if self._recording.turns and max(lane, other.lane) < len(priorities):
            return 0 if priorities[other.lane] > priorities[lane] else None
        return None

    def _ran(self, holds: Sequence[Hold]) -> list[Hold]:
        """What is left of holds without the time in which others of them paused them."""
        found: list[Hold] = []
        for lane in {hold.by.lane for hold in holds if hold.by is not None}:
            above = merged([hold for hold in holds if hold.by is not None and self._left(lane, hold.by) == 0])
            for hold in holds:
                if hold.by is not None and hold.by.lane == lane:
                    found += _without(hold, above)
        return found

    def _with(self, request: Traced, begin_us: float, end_us: float) -> Iterator[tuple[Traced, float, float]]:
        first = bisect_left(self._begins_us, begin_us - self._longest_us)
        for other in self._served[first : bisect_right(self._begins_us, end_us)]:
            since_us, until_us = max(self._begin_us(other), begin_us), min(self.end_us(other), end_us)
            if other is not request and since_us < until_us:
                yield other, since_us, until_us

    def _limited(self, request: Traced, begin_us: float, end_us: float) -> list[Hold]:
        """When a limit of its lane was zero by itself."""
        held = self._pauses.get(-1 if request.lane is None else request.lane, ())
        return [
            Hold(max(one.begin_us, begin_us), min(one.end_us, end_us), None, 0, one.why)
            for one in held
            if one.begin_us < end_us and one.end_us > begin_us
        ]

    @staticmethod
    def _begin_us(request: Traced) -> float:
        assert request.started_us is not None
        return request.started_us


def merged(holds: Sequence[Hold]) -> list[tuple[float, float]]:
    """The time that they cover, as intervals that do not touch."""
    found: list[tuple[float, float]] = []
    for hold in sorted(holds, key=lambda one: one.begin_us):
        if found and hold.begin_us <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], hold.end_us))
        else:
            found.append((hold.begin_us, hold.end_us))
    return found


def covered_us(holds: Sequence[Hold]) -> float:
    """How long at least one of them lasted."""
    return sum(end_us - begin_us for begin_us, end_us in merged(holds))


def _without(hold: Hold, covered: Sequence[tuple[float, float]]) -> Iterator[Hold]:
    """The parts of a hold outside of intervals, which are in the order of time and do not touch."""
    begin_us = hold.begin_us
    for low_us, high_us in covered[max(bisect_right(covered, (begin_us, math.inf)) - 1, 0) :]:
        if low_us >= hold.end_us:
            break
        if low_us > begin_us:
            yield replace(hold, begin_us=begin_us, end_us=low_us)
        begin_us = max(begin_us, high_us)
    if begin_us < hold.end_us:
        yield replace(hold, begin_us=begin_us)


def _limits(recording: Recording) -> Iterator[tuple[int, list[Hold]]]:
    """By lane, when a command held its limit at zero."""
    changes: dict[int, list[tuple[float, int | None, str]]] = {}
    for decision in recording.decisions:
        for done in decision.commands:
            if done.kind == "limit" and done.lane is not None:
                changes.setdefault(done.lane, []).append((decision.time_us, done.sms, done.why))
    for lane, steps in changes.items():
        ends = [*(time_us for time_us, _, _ in steps[1:]), recording.now_us]
        yield lane, [Hold(at, end, None, 0, why) for (at, sms, why), end in zip(steps, ends, strict=True) if sms == 0]
