"""Listens to a coordinator and to the runtime around it, and keeps what it heard last."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from miriam.device.base import Command, Event, EventKind, Lane, Limit, Run
from miriam.task import Request
from miriam.trace.recording import Decision, Done, Outcome, Recording, Traced

if TYPE_CHECKING:
    from miriam.runtime.response import Response

__all__ = ["Recorder"]

_T = TypeVar("_T")
# Rows of tuples: objects that cannot be changed take several times as long to make.
_Done: TypeAlias = tuple[str, int | None, int | None, int | None, Mapping[int, int | None], str]
_Decision: TypeAlias = tuple[float, EventKind, int | None, str, list[_Done]]
_NONE: Mapping[int, int | None] = {}
_ALONE = 200  # latencies of a task alone that are kept


class Recorder:
    """Keeps the last requests and decisions of a runtime, in bounded memory.

    It is told of everything in the path of requests, where a few microseconds are all that it may take: it copies
    what is short, keeps no input and no output, takes no lock, and works nothing out before it is asked. Each of
    its methods may be called from any thread.

    Parameters
    ----------
    keep
        Requests, and decisions, that are kept.
    clock
        Time in us: that of the responses.
    """

    def __init__(self, keep: int = 1000, *, clock: Callable[[], float] = lambda: perf_counter_ns() / 1e3) -> None:
        self.clock = clock
        self._device, self._policy = "", ""
        self._lanes: Sequence[Lane] = ()
        self._zero_us = 0.0
        self._requests: deque[Traced] = deque(maxlen=keep)
        self._decisions: deque[_Decision] = deque(maxlen=keep)
        self._open: dict[int, Traced] = {}
        self._alone: dict[str, deque[float]] = {}
        self._ended = 0

    def opened(self, device: str, policy: str, lanes: Sequence[Lane], zero_us: float = 0.0) -> None:
        """A device was opened for a policy, both by name. ``zero_us``: what :attr:`clock` showed at its 0."""
        self._device, self._policy, self._lanes, self._zero_us = device, policy, tuple(lanes), zero_us

    def queued(self, response: Response) -> None:
        """A request was handed in."""
        task, submitted_us = response.task, response.submitted_us
        limit_us = response.deadline_us - submitted_us
        self._open[response.number] = Traced(
            response.number, task.name, task.criticality, submitted_us, None if limit_us == math.inf else limit_us
        )

    def offered(self, response: Response, request: Request) -> None:
        """A request left the queue for the device."""
        traced = self._open.get(response.number)
        if traced is not None:
            traced.offered_us = self.clock()
            self._zero_us = traced.offered_us - request.arrival_us  # looked at anew: that of a GPU may stand still

    def heard(self, event: Event, commands: Sequence[Command]) -> None:
        """An event, and the commands with which it was answered."""
        number, name, request = None, "", event.request
        if request is not None:
            number, name = request.number, request.task.name
            if event.kind is EventKind.ARRIVED and number not in self._open:  # there is no runtime around
                self._arrived(request)
        if commands or event.kind is not EventKind.FINISHED:
            done = [self._done(command) for command in commands]
            self._decisions.append((self._zero_us + event.time_us, event.kind, number, name, done))
        if event.kind is EventKind.FINISHED and request is not None and number in self._open:
            self._finished(request)

    def answered(self, response: Response) -> None:
        """A request has ended, in whatever way."""
        traced = self._open.pop(response.number, None)
        if traced is None:
            return
        traced.started_us = response.started_us
        traced.finished_us = self.clock() if response.finished_us is None else response.finished_us
        if response.cancelled():
            traced.outcome = Outcome.CANCELLED
        elif (error := response.exception(0)) is not None:
            traced.outcome, traced.error = Outcome.FAILED, f"{type(error).__name__}: {error}"[:300]
        else:
            traced.outcome, traced.alone = Outcome.ANSWERED, not response.met
        self._end(traced)

    def recording(self, *, since_us: float = -math.inf, most: int | None = None) -> Recording:
        """What it holds.

        Requests and decisions are those themselves: they are not to be changed, and what has not ended goes on.

        Parameters
        ----------
        since_us
            Leave out requests that had ended, and decisions taken, before.
        most
            Of the requests that ended since then, and of the decisions, the last so many only.
        """
        ended = _last(self._requests, lambda one: (one.finished_us or 0.0) >= since_us, most)
        decisions = _last(self._decisions, lambda one: one[0] >= since_us, most)
        pending = sorted(_copied(self._open.values), key=lambda one: one.submitted_us)
        now_us = self.clock()
        return Recording(
            device=self._device,
            policy=self._policy,
            lanes=tuple(lane.name for lane in self._lanes),
            priorities=tuple(lane.priority for lane in self._lanes),
            alone_us={name: _median(_copied(last.copy)) for name, last in _copied(self._alone.items)},
            now_us=now_us,
            unix_us=time_ns() / 1e3 - now_us,
            requests=(*ended, *pending),
            decisions=tuple(map(_decision, decisions)),
            lost=self._ended - len(self._requests),
        )

    def _arrived(self, request: Request) -> None:
        task, arrival_us = request.task, self._zero_us + request.arrival_us
        traced = Traced(request.number, task.name, task.criticality, arrival_us, task.deadline_us, arrival_us)
        self._open[request.number] = traced

    def _done(self, command: Command) -> _Done:
        if isinstance(command, Run):
            request = command.request
            traced = self._open.get(request.number)
            if traced is not None and traced.lane is None:
                traced.lane, traced.workers = command.lane, command.workers
                traced.limits, traced.why = command.limits, command.why
            return "run", command.lane, request.number, None, command.limits, command.why
        if isinstance(command, Limit):
            return "limit", command.lane, None, command.sms, _NONE, command.why
        return "wake", None, None, None, _NONE, ""

    def _finished(self, request: Request) -> None:
        """Without a runtime: a run has ended, and with it the request, where it says so."""
        if request.finish_us is None:
            return
        traced = self._open.pop(request.number)
        traced.finished_us = self._zero_us + request.finish_us
        if request.start_us is not None:
            traced.started_us = self._zero_us + request.start_us
        if request.error is None:
            traced.outcome = Outcome.ANSWERED
        else:
            traced.outcome, traced.error = Outcome.FAILED, f"{type(request.error).__name__}: {request.error}"[:300]
        self._end(traced)

    def _end(self, traced: Traced) -> None:
        if traced.alone and traced.finished_us is not None:
            last = self._alone.get(traced.task)
            if last is None:
                last = self._alone[traced.task] = deque(maxlen=_ALONE)
            last.append(traced.finished_us - traced.submitted_us)
        self._requests.append(traced)
        self._ended += 1


def _median(values: list[float]) -> float:
    """The smallest value that half of them do not pass."""
    return sorted(values)[(len(values) - 1) // 2]


def _decision(row: _Decision) -> Decision:
    time_us, kind, number, name, done = row
    return Decision(time_us, kind.name.lower(), number, name, tuple(Done(*one) for one in done))


def _last(rows: deque[_T], wanted: Callable[[_T], bool], most: int | None) -> list[_T]:
    """From the end of a ring back to the first that is not wanted: rings may be long, what is new in them is short."""
    found: list[_T] = []
    for row in reversed(_copied(rows.copy)):
        if not wanted(row) or len(found) == most:
            break
        found.append(row)
    return found[::-1]


def _copied(of: Callable[[], Iterable[_T]]) -> list[_T]:
    """A list of what others may be adding to meanwhile, which Python notices and refuses to go on with."""
    while True:
        try:
            return list(of())
        except RuntimeError:
            continue
