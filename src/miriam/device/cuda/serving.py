"""A GPU as a device for tasks that come and go, and for requests from any thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from miriam.device.base import Lane
from miriam.device.cuda.bound import Bound
from miriam.device.cuda.clock import HostClock
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.driver import Stream
from miriam.device.cuda.lane import WORDS
from miriam.device.cuda.transfer import Staged
from miriam.device.cuda.watch import Watch
from miriam.errors import DeviceError
from miriam.profile import ProfileSource
from miriam.program import Program
from miriam.task import Request, Task

__all__ = ["ServingCuda"]

_SOON_US = 50.0  # for which nobody else is let run


class ServingCuda(CudaDevice):
    """A GPU that serves (:class:`miriam.device.base.Serving`).

    Its clock goes on as that of the host does. Whoever asks for events keeps a
    core busy while something is under way, but lets other threads of the interpreter run meanwhile.

    A task that is being loaded, or given back, may hold up all that the GPU does: the driver waits for it when it
    gives memory back. A graph is made in the thread of the events, when a task first runs in a lane.

    Parameters
    ----------
    name, profiles
        See :class:`CudaDevice`.

    Attributes
    ----------
    depth
        Requests of one level that it is best given at a time.
    """

    _goes_on = True

    def __init__(self, name: str, profiles: ProfileSource) -> None:
        super().__init__(name, profiles, clock=HostClock())
        self.depth = 2  # or the GPU would wait for the host between two
        self._watch: Watch | None = None
        self._times: dict[int, tuple[Program, tuple[float, ...]]] = {}

    @property
    def now_us(self) -> float:
        """What its clock shows."""
        return self._clock.now_us

    def open(self, lanes: Sequence[Lane], trace_us: tuple[float, float] | None = None) -> None:
        """Make the lanes; called once."""
        super().open(lanes, trace_us)
        self._watch = Watch(self._host.host, 4 * WORDS, len(lanes))

    @property
    def ordinal(self) -> int:
        """Number of the GPU."""
        return self._codes.gpu.ordinal

    def stream(self) -> Stream:
        """A stream on the SMs of the device, to capture there what :meth:`prepare` is given; the caller closes it."""
        with self._codes.gpu.visited():
            return self._place.stream()

    @contextmanager
    def loads(self) -> Iterator[None]:
        """A block of any thread that loads code or gives memory back, itself or in a library.

        The driver waits for all kernels then, and in that time lanes that nobody holds have no limit.
        """
        if not self._lanes:
            yield
            return
        with self._limits.load():
            yield

    def prepare(self, task: Task, bound: Bound | None = None) -> None:
        """Load what a task needs. From any thread.

        Parameters
        ----------
        bound
            What the program of the task belongs to, if it is there already; its owner closes it when the task
            has been forgotten.

        Raises
        ------
        DeviceError
            There is no room, the driver refuses the code, or another task has the name or the live program.
        """
        with self.loads():
            self._works.prepare(task, self._place, bound)
            if bound is not None:  # measured later it would disturb requests in its memory
                try:
                    self.launch_us(task.program)
                except BaseException:
                    self._works.forget(task)
                    raise

    def forget(self, task: Task) -> None:
        """Give back what a task has. From any thread.

        Raises
        ------
        DeviceError
            It still runs.
        """
        if any(run.request.task.name == task.name for lane in self._lanes for run in tuple(lane.flying)):
            raise DeviceError(f"{task.name} still runs: let its requests end before it goes")
        with self.loads():
            gone = self._works.forget(task)
        self._times.pop(id(task.program), None)
        for lane in self._lanes:
            for key in [key for key in tuple(lane.plans) if key[0] in gone]:
                del lane.plans[key]

    def stage(self, task: Task, inputs: Sequence[Any]) -> Staged:
        """Take the inputs of a request, which is then given what this returns. From any thread.

        Without it, that is done in the thread of the events, in front of everything else that waits there.

        Raises
        ------
        InputError
            They are not what the task takes.
        ClosedError
            The task was never prepared, or is forgotten.
        """
        return self._works.stage(task, self._place, inputs)

    def offer(self, request: Request) -> None:
        """Let ``request`` arrive at its ``arrival_us``, or at once if that has passed. From any thread."""
        super().offer(request)
        self._ring()

    def wake(self, time_us: float) -> None:
        """Give a TICK at that time. From any thread."""
        super().wake(time_us)
        self._ring()

    def launch_us(self, program: Program) -> tuple[float, ...]:
        """Time of each launch of ``program``, launch gap included; alone, if nothing else ran when it was measured."""
        key = id(program)
        with self._works.making, self._codes.gpu.visited():
            if key not in self._times:
                self._times[key] = program, super().launch_us(program)
            return self._times[key][1]

    def _ring(self) -> None:
        if self._watch is not None:
            self._watch.ring()

    def _idle(self, now_us: float) -> None:
        if self._watch is not None and not (self._due and self._due[0][0] < now_us + _SOON_US):
            self._watch.wait(lane.heard for lane in self._lanes)
