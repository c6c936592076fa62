"""As resident, with the width that a stated slowdown allows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from miriam.coordinator import View
from miriam.device.base import Command, Event, EventKind, Limit, Wake
from miriam.policy.base import Setting
from miriam.policy.resident import Resident, why_of
from miriam.policy.solo import FLOOR, Allowance, Latencies, p99
from miriam.policy.width import Width
from miriam.task import Request, Task

__all__ = ["Contract"]

_SHARE, _ONCE_US = 0.02, 2e5  # what may be spent on measurements alone: of all time, and at the start
_LONG = 3.0  # a pause has to be allowed to last so many gaps between requests before one begins
_TOLERANCE = 0.02  # of the slowdown, within which it counts as held
_UNKNOWN, _ALLOWED = ": its latency alone is not known yet", ": as much as the contract allows"


class Contract(Resident):
    """The user says how slow critical requests may get; the others get all SMs that this allows.

    As :class:`~miriam.policy.resident.Resident`, but the limit is moved, for each critical task by
    itself, such that p99 of its latency becomes ``slowdown_p99`` times what it is alone
    (:class:`~miriam.policy.width.Width`). The latency of a request that waited behind another one of its
    level is counted from the end of that one; one that met a request of a higher level does not count,
    for no width could change that.

    Latency alone is measured all the time: the lanes below are paused when a critical request arrives,
    stay so when it ends, and the next request of the same task, if it comes after that end and before
    all others of its level and above, runs alone. A pause begins once three mean gaps between requests
    of the task are allowed, and ends when no more are, or when the allowance is used up, or after six mean gaps
    (0.2 s if that is longer), for an allowance grows while nobody asks. All tasks
    together are allowed 2 % of the time, and 0.2 s at the start, until 20 requests of a task ran alone.
    Until then the lanes below are paused whenever one of its requests runs, with few requests a second for
    minutes.

    Cost: one command for each request, two for each lane below and each pause. The host takes no turn in the
    path of a critical request.

    Parameters
    ----------
    slowdown_p99
        p99 of critical latency over that alone.
    """

    name = "contract"

    def __init__(self, setting: Setting, slowdown_p99: float = 1.05) -> None:
        super().__init__(setting)
        self._slowdown = slowdown_p99
        self._most = setting.geometry.sms
        self._watches: dict[str, _Watch] = {}
        self._seen: dict[Request, _Seen] = {}
        self._end_us = [0.0] * len(self.lanes)  # of the last request of each lane
        self._pause: _Pause | None = None
        self._now_us = 0.0
        critical = [task.name for task in setting.tasks if task.critical]
        for name in critical:
            self._watches[name] = self._watch(len(critical))

    def join(self, task: Task) -> None:
        """A task comes; if it is critical, its latency alone has to be measured first."""
        super().join(task)
        if task.critical:
            self._watches[task.name] = self._watch(len(self._watches) + 1)
            self._share()

    def leave(self, task: Task) -> None:
        """A task goes; a pause that was begun for it ends in its time."""
        super().leave(task)
        if self._watches.pop(task.name, None) is not None:
            self._share()

    def _watch(self, watches: int) -> _Watch:
        return _Watch(Width(self._most), Allowance(_SHARE / watches, _ONCE_US / watches, self._now_us))

    def _share(self) -> None:
        for watch in self._watches.values():
            watch.allowance.share(_SHARE / len(self._watches), self._now_us)

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """A request that arrives at once; pauses, and what follows from latencies, after that."""
        request, now_us = event.request, event.time_us
        self._now_us = now_us
        if event.kind is EventKind.TICK and self._pause is not None and now_us >= self._pause.until_us:
            yield from self._resume(now_us)
        elif request is None or not request.task.critical or request.task.name not in self._watches:
            yield from super().decide(event, view)
        elif event.kind is EventKind.ARRIVED:
            yield from self._arrived(request, now_us)
        elif event.kind is EventKind.FINISHED:
            yield from self._finished(request, now_us)

    def _arrived(self, request: Request, now_us: float) -> Iterator[Command]:
        task, watch = request.task, self._watches[request.task.name]
        lane, pause = self._lane[task.criticality], self._pause
        sms = watch.sms(behind=any(other.lane == lane for other in self._seen.values()))
        below = range(lane + 1, len(self.lanes))
        limits = self._limits[lane] if sms == 0 else dict.fromkeys(below, None if sms == self._most else sms)
        why = why_of(lane, len(self.lanes), sms, self._most)
        if below:
            why += _UNKNOWN if watch.solo.p99_us is None else _ALLOWED
        yield self._run(request, lane, limits, why)
        # All the rest is done behind the launch, in nobody's way.
        seen = self._seen[request] = _Seen(lane, 0 if pause else sms, steers=pause is None and sms == watch.width.sms)
        watch.came(now_us)
        seen.alone = pause is not None and lane == pause.lane and task.name == pause.last
        for other in self._seen.values():
            if other is not seen:
                seen.met |= other.lane < lane
                other.met |= lane < other.lane
                seen.alone &= other.lane > lane
        if pause is None:
            left_us = watch.allowance.left_us(now_us)
            if below and left_us >= _LONG * watch.gap_us:
                until_us = now_us + min(left_us, max(_ONCE_US, 2.0 * _LONG * watch.gap_us))
                self._pause = _Pause(lane, task.name, task.name, now_us, until_us)
                seen.sms = 0
                for other in self._seen.values():
                    other.steers = False
                for paused in below:
                    yield Limit(paused, 0, f"a pause, to measure {task.name} alone")
                yield Wake(self._pause.until_us)
        elif lane <= pause.lane:
            pause.last = task.name
        else:
            seen.met = True  # it waits for the end of the pause

    def _finished(self, request: Request, now_us: float) -> Iterator[Command]:
        seen, watch, pause = self._seen.pop(request), self._watches[request.task.name], self._pause
        finish_us = now_us if request.finish_us is None else request.finish_us
        if not seen.met and request.error is None:
            watch.book(seen, finish_us - max(request.arrival_us, self._end_us[seen.lane]), self._slowdown)
        self._end_us[seen.lane] = finish_us
        if pause is not None and seen.alone and pause.owner == request.task.name:
            begun = len(watch.solo) == FLOOR
            if begun or pause.until_us - now_us < _LONG * watch.gap_us:
                yield from self._resume(now_us)
            if begun:
                watch.allowance.settle(now_us)

    def _resume(self, now_us: float) -> Iterator[Command]:
        pause, self._pause = self._pause, None
        if pause is not None:
            if (owner := self._watches.get(pause.owner)) is not None:
                owner.allowance.spend(now_us - pause.since_us)
            for lane in range(pause.lane + 1, len(self.lanes)):
                yield Limit(lane, self._rest(lane), f"the pause to measure {pause.owner} is over")

    def _rest(self, lane: int) -> int | None:
        if self._pause is not None and lane > self._pause.lane:
            return 0
        return super()._rest(lane)

    def _expecting(self) -> int | None:
        sms = min((watch.sms(behind=True) for watch in self._watches.values()), default=0)
        return None if sms == self._most else sms

    def report(self) -> Mapping[str, float]:
        """For each critical task, what is known of its last requests that met none of a higher level.

        ``width_sms``, the mean width; ``slowdown_p99``, against ``solo_p99_us``; ``held``, 1 if that is
        within 0.02 of what was asked for; ``paused_holds``, 1 if it is where the lanes below were
        paused. With several critical tasks the name of the task stands behind each.
        """
        report = {}
        for name, watch in self._watches.items():
            behind = f" {name}" if len(self._watches) > 1 else ""
            report.update({key + behind: value for key, value in watch.report(self._slowdown).items()})
        return report


@dataclass(slots=True)
class _Pause:
    """The lanes below ``lane`` are paused for measurements; ``last``: the task that ran last meanwhile."""

    lane: int
    owner: str
    last: str
    since_us: float
    until_us: float


@dataclass(slots=True)
class _Seen:
    """A critical request in flight; whether it runs alone, or met one of a higher level."""

    lane: int
    sms: int
    steers: bool
    alone: bool = False
    met: bool = False


@dataclass(slots=True)
class _Watch:
    """What is known of a critical task."""

    width: Width
    allowance: Allowance
    solo: Latencies = field(default_factory=Latencies)
    paused: Latencies = field(default_factory=Latencies)
    last: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=1000))
    gap_us: float = math.inf
    last_us: float = math.nan

    def sms(self, *, behind: bool) -> int:
        """The width for a request; nothing is tried with one that waits behind another."""
        if self.solo.p99_us is None:
            return 0
        return self.width.proven_sms if behind else self.width.sms

    def came(self, now_us: float) -> None:
        """A request arrived."""
        gap_us = now_us - self.last_us
        if math.isinf(self.gap_us) and not math.isnan(gap_us):
            self.gap_us = gap_us
        elif not math.isnan(gap_us):
            self.gap_us += 0.1 * (gap_us - self.gap_us)
        self.last_us = now_us

    def book(self, seen: _Seen, latency_us: float, slowdown: float) -> None:
        """A request ended that had met none of a higher level."""
        solo_us = self.solo.p99_us
        if seen.alone:
            self.solo.add(latency_us)
            return
        if seen.sms == 0:
            self.paused.add(latency_us)
        if solo_us is not None:
            self.last.append((latency_us, seen.sms))
            if seen.steers:
                self.width.told(latency_us > slowdown * solo_us)

    def report(self, slowdown: float) -> dict[str, float]:
        """What is known."""
        report = {"solo_samples": float(len(self.solo))}
        solo_us = self.solo.p99_us
        if solo_us is not None:
            report["solo_p99_us"] = solo_us
            if len(self.last) >= FLOOR:
                report["width_sms"] = sum(sms for _, sms in self.last) / len(self.last)
                report["slowdown_p99"] = p99(latency_us for latency_us, _ in self.last) / solo_us
                report["held"] = float(report["slowdown_p99"] <= slowdown + _TOLERANCE)
            if self.paused.p99_us is not None:
                report["paused_holds"] = float(self.paused.p99_us / solo_us <= slowdown + _TOLERANCE)
        return report
