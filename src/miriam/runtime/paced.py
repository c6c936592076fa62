"""A simulated device on the wall clock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np

from miriam.device.base import Event, EventKind, Lane, Limit, Run, Usage
from miriam.device.sim.device import SimDevice
from miriam.errors import DeviceError
from miriam.program import Program, Tensor
from miriam.task import Request, Task

__all__ = ["Paced"]

_LOOK_S = 2e-4  # between two looks while something runs; times are those of the model all the same


class Paced:
    """A model of a GPU that takes the time which it says; implements :class:`miriam.device.base.Serving`.

    The model is let go on to what the clock shows, so nothing that comes later can come too late for it. What it
    computes is time: outputs are zeros.

    Parameters
    ----------
    device
        A fresh one.
    """

    depth = 2

    def __init__(self, device: SimDevice) -> None:
        self.name = device.name
        self.geometry = device.geometry
        self.command_us = device.command_us
        self._device = device
        self._zero_ns = perf_counter_ns()
        self._bell = threading.Condition()
        self._model = threading.Lock()  # costs are worked out for whoever asks first
        self._coming: deque[Request] = deque()
        self._ticks: deque[float] = deque()
        self._reached_us = 0.0
        self._open = 0  # requests that the model has and arrivals and runs of which are still to be told

    @property
    def now_us(self) -> float:
        """The clock. From any thread."""
        return (perf_counter_ns() - self._zero_ns) / 1e3

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its results has to know."""
        return (*self._device.notes, "a model of a GPU: it takes time, and its outputs are zeros")

    def prepare(self, task: Task, bound: Any = None) -> None:
        """Work out what the launches cost. From any thread.

        Raises
        ------
        DeviceError
            Something is to run by itself, and here nothing does.
        """
        if bound is not None:
            raise DeviceError(f"{self.name} runs programs only, and {task.name} brings something of its own")
        self.launch_us(task.program)

    def forget(self, task: Task) -> None:
        """Nothing is to be given back: what the model knows of a program another task may have too."""

    def offer(self, request: Request) -> None:
        """Let ``request`` arrive at once. From any thread."""
        with self._bell:
            self._coming.append(request)
            self._bell.notify()

    def wake(self, time_us: float) -> None:
        """Give a TICK at once, whatever the time. From any thread."""
        with self._bell:
            self._ticks.append(time_us)
            self._bell.notify()

    def open(self, lanes: Sequence[Lane], trace_us: tuple[float, float] | None = None) -> None:
        """Make the lanes; called once."""
        with self._model:
            self._device.open(lanes, trace_us)
        self._zero_ns = perf_counter_ns()

    def launch_us(self, program: Program) -> tuple[float, ...]:
        """Time of each launch of ``program`` alone. From any thread."""
        with self._model:
            return self._device.launch_us(program)

    def submit(self, command: Run | Limit) -> None:
        """Carry out a command, after the ones submitted before it."""
        with self._model:
            self._device.submit(command)
        if isinstance(command, Run):
            self._open += 1

    def events(self, until_us: float) -> Iterator[Event]:
        """Events in the order of time, up to ``until_us`` or until nothing is left to happen."""
        while (now_us := self.now_us) < until_us:
            while self._coming:
                self._offer(self._coming.popleft())
            if self._ticks:
                self._ticks.popleft()
                yield Event(EventKind.TICK, now_us)
                continue
            yield from self._go_on(now_us)
            if self._coming or self._ticks:
                continue
            if not self._open:
                return
            with self._bell:
                if not (self._coming or self._ticks):
                    self._bell.wait(_LOOK_S)

    def _offer(self, request: Request) -> None:
        request.arrival_us = max(request.arrival_us, self._reached_us)
        self._open += 1
        with self._model:
            self._device.offer(request)

    def _go_on(self, to_us: float) -> Iterator[Event]:
        """What happens in the model up to a time."""
        self._reached_us = max(self._reached_us, to_us)
        events = self._device.events(to_us)
        while True:
            with self._model:
                event = next(events, None)
            if event is None:
                return
            if event.kind in (EventKind.ARRIVED, EventKind.FINISHED):
                self._open -= 1
            request = event.request
            if event.kind is EventKind.FINISHED and request is not None and request.finish_us is not None:
                request.outputs = tuple(np.zeros(t.shape, _dtype(t)) for t in request.task.program.outputs)
            yield event

    def usage(self) -> Usage:
        """How full the device was so far."""
        return self._device.usage()

    def close(self) -> None:
        """Give everything back; allowed twice."""
        self._device.close()


def _dtype(tensor: Tensor) -> Any:
    """The type of a tensor's elements; of those that NumPy lacks, their bytes."""
    try:
        return np.dtype(tensor.dtype)
    except TypeError:
        return np.dtype(f"V{tensor.item_bytes}")
