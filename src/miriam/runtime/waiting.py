"""A device that waits for what comes, between a serving device and the coordinator."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from miriam.bell import Bell
from miriam.device.base import Event, EventKind, Lane, Limit, Run, Serving, Usage
from miriam.program import Program
from miriam.task import Request

__all__ = ["Waiting"]


class Waiting:
    """A :class:`~miriam.device.base.Device` whose events end only when it is told to stop.

    It keeps the times at which the policy wants to be asked, waits while the device has nothing to do, and brings
    hints and errands of other threads between two events.

    Parameters
    ----------
    device
        It takes no more part in waiting than to say that there is nothing to do.
    """

    def __init__(self, device: Serving) -> None:
        self.name = device.name
        self.geometry = device.geometry
        self.command_us = device.command_us
        self._device = device
        self._bell = Bell()
        self._coming: set[Request] = set()
        self._errands: deque[Callable[[], None]] = deque()
        self._hint: int | None = None
        self._hinted: int | None = None  # what the policy knows of
        self._ticks: list[float] = []
        self._stopped = False

    # From any thread

    def offer(self, request: Request) -> None:
        """Let ``request`` arrive at once."""
        try:
            self._coming.add(request)
            self._device.offer(request)
        except BaseException:  # a signal: nobody knows whether the device has it
            self._coming.discard(request)
            raise
        finally:
            self._bell.ring()

    def hint(self, level: int | None) -> None:
        """Say that a request of a level is on its way; None: no more.

        The policy hears the end of a hint after the requests that were offered before it.
        """
        self._hint = level
        self._interrupt()

    def run_errand(self, errand: Callable[[], None]) -> None:
        """Have something called between two events."""
        self._errands.append(errand)
        self._interrupt()

    def stop(self) -> None:
        """Let the events end."""
        self._stopped = True
        self._interrupt()

    def _interrupt(self) -> None:
        self._device.wake(self._device.now_us)
        self._bell.ring()

    # From the thread of the coordinator

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its results has to know."""
        return self._device.notes

    def open(self, lanes: Sequence[Lane], trace_us: tuple[float, float] | None = None) -> None:
        """Make the lanes."""
        self._device.open(lanes, trace_us)

    def wake(self, time_us: float) -> None:
        """Give a TICK at that time."""
        heapq.heappush(self._ticks, time_us)

    def launch_us(self, program: Program) -> tuple[float, ...]:
        """Time of each launch of ``program`` alone."""
        return self._device.launch_us(program)

    def submit(self, command: Run | Limit) -> None:
        """Carry out a command."""
        self._device.submit(command)

    def events(self, until_us: float) -> Iterator[Event]:
        """Events, whatever time passes between them, until :meth:`stop`."""
        while not self._stopped:
            yield from self._news()
            stop_us = self._tick_us
            for event in self._device.events(stop_us):
                while self._errands:  # the policy may have to know of a task before its first request
                    self._errands.popleft()()
                if event.kind is not EventKind.TICK:  # those are interruptions: ticks of the policy are kept here
                    if event.kind is EventKind.ARRIVED and event.request is not None:
                        self._coming.discard(event.request)
                    yield event
                if self._errands or self._hint != self._hinted:
                    yield from self._news()
                if self._stopped or self._tick_us < stop_us:
                    break  # and ask again: it may have more to do
            else:
                now_us = self._device.now_us
                if self._tick_us <= now_us:
                    heapq.heappop(self._ticks)
                    yield Event(EventKind.TICK, now_us)
                else:
                    self._bell.wait(self._tick_us - now_us)

    @property
    def _tick_us(self) -> float:
        return self._ticks[0] if self._ticks else math.inf

    def _news(self) -> Iterator[Event]:
        """What other threads want, besides requests."""
        while True:
            level = self._hint
            if level != self._hinted and (_above(level, self._hinted) or not self._coming):
                self._hinted = level
                yield Event(EventKind.HINTED, self._device.now_us, level=level)
            if not self._errands:
                return
            self._errands.popleft()()

    def usage(self) -> Usage:
        """How full the device was so far."""
        return self._device.usage()

    def close(self) -> None:
        """Give everything back."""
        self._device.close()


def _above(level: int | None, other: int | None) -> bool:
    return level is not None and (other is None or level > other)
