"""Where requests are taken in, sent to the device, and answered."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Protocol

from miriam.errors import ClosedError, ModelError, QueueFullError, RequestError, RequestTimeoutError
from miriam.runtime.queue import Queue
from miriam.runtime.response import Response, host_us
from miriam.runtime.statistics import Tally, TaskStatistics
from miriam.runtime.timer import Timer
from miriam.task import Request

__all__ = ["Desk", "Entry", "Hint", "Outlet"]

_LOG = logging.getLogger("miriam")


class Outlet(Protocol):
    """Where requests go."""

    def offer(self, request: Request) -> None:
        """Let a request arrive."""

    def hint(self, level: int | None) -> None:
        """Say that a request of a level is on its way; None: no more."""


class Entry:
    """What is known of a task here.

    Parameters
    ----------
    most
        How many of its requests may wait.
    """

    def __init__(self, name: str, criticality: int, most: int, keep: int) -> None:
        self.name, self.criticality, self.most = name, criticality, most
        self.tally = Tally(name, criticality, keep)
        self.hints: list[Hint] = []
        self.closed = False


class Hint:
    """A request of a task is on its way. Compared by identity."""

    def __init__(self, entry: Entry, until_us: float) -> None:
        self.entry, self.until_us = entry, until_us


class Desk:
    """Takes requests in, keeps those that cannot go yet, and answers each exactly once.

    Whoever takes a request out of the queue, or of those that are on the device, gives it its end: an answer,
    a timeout, a cancellation, the end of all. That happens under one lock, the rest without.

    Parameters
    ----------
    outlet
        Where requests go.
    now_us
        The clock of the device.
    depth
        Requests of a level that go to the device at a time.
    preempts
        Whether requests of a higher level interrupt those of a lower one.
    witnesses
        Are told of each request by their methods ``queued(response)``, ``offered(response, request)`` and
        ``answered(response)``, those that they have; in any thread, quickly, and without a call to the runtime.
    """

    def __init__(
        self,
        outlet: Outlet,
        now_us: Callable[[], float],
        depth: int,
        *,
        preempts: bool,
        witnesses: Iterable[object] = (),
    ) -> None:
        self._outlet, self._now_us, self._depth, self._preempts = outlet, now_us, depth, preempts
        self._queued, self._offered, self._answered = (
            [told for one in witnesses if (told := getattr(one, name, None)) is not None]
            for name in ("queued", "offered", "answered")
        )
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue = Queue()
        self._running: dict[int, tuple[Response, Entry]] = {}
        self._levels: Counter[int] = Counter()  # requests on the device
        self._entries: dict[str, Entry] = {}
        self._hints: dict[Hint, None] = {}
        self._hinted: int | None = None
        self._timer = Timer(self._look, host_us)
        self._closed: str = ""

    def admit(self, entry: Entry) -> None:
        """Take requests of a task from now on."""
        with self._lock:
            entry.closed = False
            self._entries[entry.name] = entry

    def submit(self, entry: Entry, response: Response) -> None:
        """Take in a request.

        Raises
        ------
        ClosedError
            Of the task, or of any, no more requests are taken in.
        QueueFullError
            So many wait already as may.
        """
        with self._lock:
            if self._closed or entry.closed:
                raise ClosedError(self._closed or f"{entry.name} is unloaded: load it again")
            counts = entry.tally.counts
            counts["submitted"] += 1
            try:
                self._queue.push(response, entry.most)
            except QueueFullError:
                counts["rejected"] += 1
                raise
            response.met = bool(self._running) or len(self._queue) > 1
            _tell(self._queued, response)
        if response.expires_us < math.inf:
            self._timer.at(response.expires_us)
        self._send()
        if entry.hints:
            self.unhint(*entry.hints[:1])

    def settle(self, request: Request) -> None:
        """Answer a request that the device has ended; the next one goes there first."""
        now_us, error = self._now_us(), request.error
        offset_us = host_us() - now_us
        finish_us = now_us if request.finish_us is None else request.finish_us
        with self._lock:
            found = self._running.pop(request.number, None)
            if found is None:
                return
            response, entry = found
            self._levels[response.criticality] -= 1
            response.finished_us = offset_us + finish_us
            response.started_us = offset_us + (finish_us if request.start_us is None else request.start_us)
            if error is None:
                entry.tally.answered(response)
            else:
                entry.tally.counts["failed"] += 1
        self._send()
        if error is None:
            response.set_result(() if request.outputs is None else request.outputs)
            self._ended(response)
        else:
            self._end(response, error if isinstance(error, RequestError) else _of_model(request, error))

    def withdraw(self, response: Response) -> None:
        """Take a request that somebody gives up out of the queue, if it is there."""
        with self._lock:
            if not self._queue.remove(response):
                return
            self._entries[response.name].tally.counts["cancelled"] += 1
        Future.cancel(response)
        response.set_running_or_notify_cancel()  # those that wait for several futures hear of it
        self._ended(response)

    def hint(self, entry: Entry, until_us: float) -> Hint:
        """A request of a task is on its way: send none of a lower level meanwhile."""
        hint = Hint(entry, until_us)
        with self._lock:
            entry.hints.append(hint)
            self._hints[hint] = None
            self._say()
        self._timer.at(until_us)
        return hint

    def unhint(self, *hints: Hint) -> None:
        """It has come, or does not; allowed twice."""
        with self._lock:
            for hint in hints:
                if hint in self._hints:
                    del self._hints[hint]
                    hint.entry.hints.remove(hint)
            self._say()
        self._send()

    def statistics(self, entry: Entry) -> TaskStatistics:
        """What is known of a task now."""
        with self._lock:
            running = sum(1 for _, other in self._running.values() if other is entry)
            return entry.tally.snapshot(self._queue.depth(entry.name), running)

    def dismiss(self, entry: Entry, *, drain: bool) -> None:
        """Take no more requests of a task, and wait until those that are there have their ends.

        Parameters
        ----------
        drain
            Answer those that wait, too.
        """
        with self._lock:
            entry.closed = True
            left = [] if drain else self._queue.take_all(lambda response: response.name == entry.name)
            entry.tally.counts["failed"] += len(left)
        self._end_all(left, ClosedError(f"{entry.name} was unloaded while this waited: load it again"))
        self._send()  # a signal may have kept who submitted from it
        with self._lock:
            self._changed.wait_for(lambda: not self._has(entry))
            if self._entries.get(entry.name) is entry:
                del self._entries[entry.name]

    def close(self, *, drain: bool) -> None:
        """Take no more requests, and wait until those that are there have their ends; allowed twice."""
        with self._lock:
            self._closed = self._closed or "the runtime is closed: make another one"
            left = [] if drain else self._take_queue()
        self._end_all(left, ClosedError("the runtime was closed while this waited"))
        self._send()
        with self._lock:
            self._changed.wait_for(lambda: not (self._running or len(self._queue)))
        self._timer.close()

    def fail(self, error: BaseException) -> None:
        """Nothing runs any more: everything that is there ends with an error."""
        with self._lock:
            self._closed = f"the runtime has ended ({type(error).__name__}: {error}): make another one"
            left = [response for response, _ in self._running.values()]
            for _, entry in self._running.values():
                entry.tally.counts["failed"] += 1
            self._running.clear()
            left += self._take_queue()
        self._end_all(left, error)

    def abandon(self) -> None:
        """Forget everything: this process was forked, and the threads that would answer are those of the other one."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue = Queue()
        self._running.clear()
        self._closed = "the runtime belongs to the process from which this one was forked: make another one here"

    @property
    def closed(self) -> bool:
        """Whether no more requests are taken in."""
        return bool(self._closed)

    def _take_queue(self) -> list[Response]:
        left = self._queue.take_all(lambda response: True)
        for response in left:
            self._entries[response.name].tally.counts["failed"] += 1
        return left

    def _has(self, entry: Entry) -> bool:
        return bool(self._queue.depth(entry.name)) or any(other is entry for _, other in self._running.values())

    def _send(self) -> None:
        """Send to the device what may go."""
        while len(self._queue):  # whoever puts one in comes here after that
            response = None
            try:
                with self._lock:
                    response = self._queue.take(self._room, {other.name for other, _ in self._running.values()})
                    if response is None:
                        return
                    self._begin(response)
                task, inputs, response.inputs = response.task, response.inputs, None
                request = Request(task, response.number, self._now_us(), inputs=inputs)
                _tell(self._offered, response, request)
                self._outlet.offer(request)
            except BaseException as error:  # a signal: nobody knows whether the device has it, or will answer
                if response is not None:
                    self._give_up(response, error)
                raise

    def _room(self, level: int) -> bool:
        return self._levels[level] < self._depth and (self._hinted is None or level >= self._hinted)

    def _begin(self, response: Response) -> None:
        """Book a request that goes to the device."""
        level = response.criticality
        for other, entry in self._running.values():
            other.met = response.met = True
            entry.tally.counts["preemptions"] += self._preempts and other.criticality < level
        self._running[response.number] = response, self._entries[response.name]
        self._levels[level] += 1
        response.set_running_or_notify_cancel()

    def _say(self) -> None:
        """Tell the device the level that hints speak of, if it has changed."""
        level = max((hint.entry.criticality for hint in self._hints), default=None)
        if level != self._hinted:
            self._hinted = level
            self._outlet.hint(level)

    def _look(self) -> float:
        """End what has waited too long, and say when to look again."""
        now_us = host_us()
        with self._lock:
            late = self._queue.take_all(lambda response: response.expires_us <= now_us)
            for response in late:
                self._entries[response.name].tally.counts["timed_out"] += 1
            over = [hint for hint in self._hints if hint.until_us <= now_us]
        for response in late:
            waited_ms = (now_us - response.submitted_us) / 1e3
            text = (
                f"a request of {response.name} waited {waited_ms:.1f} ms, longer than it may: send fewer, or allow more"
            )
            self._end(response, RequestTimeoutError(text))
        if over:
            self.unhint(*over)
        with self._lock:
            return min(self._queue.expiry_us, min((hint.until_us for hint in self._hints), default=math.inf))

    def _give_up(self, response: Response, error: BaseException) -> None:
        """End a request that went to the device as if it had failed."""
        with self._lock:
            found = self._running.pop(response.number, None)
            if found is None:
                return
            self._levels[response.criticality] -= 1
            found[1].tally.counts["failed"] += 1
        failed = RequestError(f"a request of {response.name} was interrupted ({type(error).__name__}): give it again")
        failed.__cause__ = error
        self._end(response, failed)

    def _end_all(self, responses: Sequence[Response], error: BaseException) -> None:
        for response in responses:
            self._end(response, error)

    def _end(self, response: Response, error: BaseException) -> None:
        response.set_exception(error)
        self._ended(response)

    def _ended(self, response: Response) -> None:
        """A request has its end."""
        _tell(self._answered, response)
        with self._lock:
            self._changed.notify_all()


def _tell(witnesses: list[Callable[..., object]], *what: object) -> None:
    """Tell witnesses; one that raises is told no more, for requests can do without."""
    for told in tuple(witnesses):
        try:
            told(*what)
        except Exception:
            _LOG.exception("a listener raised, and is told no more")
            with suppress(ValueError):  # another thread may have been faster
                witnesses.remove(told)


def _of_model(request: Request, error: BaseException) -> ModelError:
    failed = ModelError(f"{request.task.name} failed: {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed
