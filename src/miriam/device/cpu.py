"""The cores of this machine as a device that runs lanes: chains of steps, one step at a time."""

from __future__ import annotations

import heapq
import itertools
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter_ns

from miriam.bell import Bell
from miriam.device._cpu_work import Job, Queue
from miriam.device.base import (
    Command,
    Event,
    EventKind,
    Geometry,
    Lane,
    Limit,
    Run,
    Span,
    Usage,
    Wake,
    check_lanes,
    check_limit,
    check_run,
)
from miriam.errors import DeviceError
from miriam.frontend.chain import Chain
from miriam.program import Program
from miriam.task import Request, Task

__all__ = ["CpuDevice", "cores"]

_COMMAND_US = 5.0  # of the host for a command, as a policy may reckon


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CpuDevice:
    """Runs lanes on the cores of this machine.

    Whoever asks for events computes: between two events one step of the request at the head of the lane with the
    highest priority that has work and is not paused. A step uses all cores that the device has. So a request of a
    higher lane has them all after one step at most, no two teams of threads fight for them, and lanes of equal
    priority take turns step by step. Time is that of the host since :meth:`open`.

    Limits above zero mean nothing here, nor do the numbers of workers and threads.

    Parameters
    ----------
    name
        ``cpu``, or ``cpu/2`` for two threads.
    bound
        Chains whose programs tasks may have; more can be brought by :meth:`prepare`.

    Raises
    ------
    DeviceError
        There are not so many cores.
    """

    def __init__(self, name: str = "cpu", *, bound: Iterable[Chain] = ()) -> None:
        self.name = name
        self._limit = _parse(name)
        sms = self._limit or cores()
        self.geometry = Geometry(
            sms, threads_per_sm=32, blocks_per_sm=1, registers_per_sm=1024, shared_per_sm_bytes=0,
            shared_per_block_bytes=0, partition_sms=sms,
        )  # fmt: skip
        self.command_us = _COMMAND_US
        self.depth = 1  # the end of a request is known at once
        self.notes: tuple[str, ...] = ()
        self._zero_ns = perf_counter_ns()
        self._bell, self._lock = Bell(), threading.Lock()
        self._chains: dict[int, Chain] = {}
        self._users: dict[int, set[str]] = {}
        for chain in bound:
            self._bind(chain)
        self._due: list[tuple[float, int, Request | None]] = []
        self._count = itertools.count()
        self._lanes: list[Queue] = []
        self._flying: set[Run] = set()
        self._jobs: dict[Request, Job] = {}
        self._told: deque[Event] = deque()
        self._busy_us = 0.0
        self._steps = 0
        self._spans: list[Span] = []
        self._trace_us: tuple[float, float] | None = None
        self._closed = False

    @property
    def now_us(self) -> float:
        """What the clock of the device shows. From any thread."""
        return (perf_counter_ns() - self._zero_ns) / 1e3

    def prepare(self, task: Task, bound: Chain | None = None) -> None:
        """Make ready for requests of a task. From any thread.

        Parameters
        ----------
        bound
            The chain whose program the task has; None: one that the device was given before.

        Raises
        ------
        DeviceError
            There is no such chain.
        """
        if bound is not None:
            if bound.program is not task.program:
                raise DeviceError(f"task {task.name} has another program than chain {bound.name}: give it that one")
            self._bind(bound)
        self._chain(task.program)
        with self._lock:
            self._users.setdefault(id(task.program), set()).add(task.name)

    def forget(self, task: Task) -> None:
        """Let go of a task of which no more requests come, and of its chain if no other has it. From any thread."""
        with self._lock:
            users = self._users.get(id(task.program), set())
            users.discard(task.name)
            if not users:
                self._users.pop(id(task.program), None)
                self._chains.pop(id(task.program), None)

    def open(self, lanes: Sequence[Lane], trace_us: tuple[float, float] | None = None) -> None:
        """Make the lanes; called once. ``trace_us``: the window whose spans are kept."""
        if self._lanes or self._closed:
            raise DeviceError(f"{self.name} was opened before: one device object serves one run")
        check_lanes(lanes, self.geometry.sms)
        if any(lane.sms is not None for lane in lanes):
            raise DeviceError(f"{self.name} has no partitions: every step uses all of its threads")
        self._lanes = [Queue(lane.priority) for lane in lanes]
        self._trace_us = trace_us
        self._zero_ns = perf_counter_ns()

    def offer(self, request: Request) -> None:
        """Let ``request`` arrive at its ``arrival_us``, or at once if that has passed. From any thread."""
        self._push(request.arrival_us, request)

    def wake(self, time_us: float) -> None:
        """Give a TICK at that time. From any thread."""
        self._push(time_us, None)

    def launch_us(self, program: Program) -> tuple[float, ...]:
        """What each step took when the chain was made."""
        return self._chain(program).step_us

    def submit(self, command: Command) -> None:
        """Carry out a command, after the ones submitted before it.

        Raises
        ------
        DeviceError
            It makes no sense here.
        """
        if isinstance(command, Wake):
            self.wake(command.time_us)
        elif isinstance(command, Limit):
            check_limit(command, len(self._lanes))
            self._lanes[command.lane].paused = command.sms == 0
        else:
            check_run(command, len(self._lanes))
            if command in self._flying:
                raise DeviceError("a run was submitted twice: make a new Run for every submission")
            if command.request not in self._jobs:
                self._jobs[command.request] = Job(self._chain(command.request.task.program))
            self._lanes[command.lane].runs.append(command)
            self._flying.add(command)

    def events(self, until_us: float) -> Iterator[Event]:
        """Events in the order of time, up to ``until_us`` or until nothing is left to happen."""
        if not self._lanes:
            raise DeviceError(f"{self.name} has not been opened: call open() with the policy's lanes first")
        while not self._closed and (now_us := self.now_us) < until_us:
            if self._told:
                yield self._told.popleft()
            elif self._due and self._due[0][0] <= now_us:
                request = heapq.heappop(self._due)[2]
                yield Event(EventKind.ARRIVED if request else EventKind.TICK, now_us, request)
            elif (lane := self._next()) is not None:
                self._step(lane)
            elif not self._wait(until_us):
                return

    def usage(self) -> Usage:
        """How long there was something to compute."""
        return Usage(self._busy_us, None, None, self._steps, spans=tuple(self._spans))

    def close(self) -> None:
        """Give everything back; allowed twice."""
        self._closed = True
        self._bell.ring()
        self._chains.clear()

    def _bind(self, chain: Chain) -> None:
        with self._lock:
            self._chains[id(chain.program)] = chain
            self.notes += tuple(note for note in chain.notes if note not in self.notes)

    def _chain(self, program: Program) -> Chain:
        if id(program) not in self._chains:
            raise DeviceError(
                f"{self.name} has no chain of {program.name}: make one of a module or functions with "
                "miriam.frontend.chain.Chain.of; what is compiled for a GPU needs that, or a simulated one"
            )
        return self._chains[id(program)]

    def _push(self, time_us: float, request: Request | None) -> None:
        heapq.heappush(self._due, (time_us, next(self._count), request))
        self._bell.ring()

    def _wait(self, until_us: float) -> bool:
        """Wait for what is due; whether something is."""
        if not self._due:
            return False
        if not self._closed:
            self._bell.wait(min(self._due[0][0], until_us) - self.now_us)
        return True

    def _next(self) -> Queue | None:
        """The lane that goes on: the highest that may, of equal ones the one that has waited longest."""
        held: set[int] = set()
        for lane in self._lanes:
            if lane.at is not None:
                held.update(number for number, sms in lane.runs[0].limits.items() if sms == 0)
        ready = [
            lane
            for number, lane in enumerate(self._lanes)
            if lane.runs and not lane.paused and number not in held and self._flying.isdisjoint(lane.runs[0].after)
        ]
        return min(ready, key=lambda lane: (-lane.priority, lane.turn), default=None)

    def _step(self, lane: Queue) -> None:
        """Compute one step of the run at the head of a lane."""
        run = lane.runs[0]
        request, job = run.request, self._jobs[run.request]
        step = run.launches.start if lane.at is None else lane.at
        if job.done != step:
            raise DeviceError(
                f"step {step} of {request.task.name} would run after {job.done} others: submit its runs to one lane in "
                "their order, or name them in Run.after"
            )
        lane.turn = next(self._count)
        begin_us = self.now_us
        if not step:
            request.start_us = begin_us
        job.step(request, self._limit)
        lane.at, end_us = step + 1, self.now_us
        self._busy_us += end_us - begin_us
        self._steps += 1
        if self._trace_us is not None and self._trace_us[0] <= end_us <= self._trace_us[1]:
            self._spans.append(Span(run, step, 1, begin_us, end_us))
        if request.error is not None or job.done == len(job.chain.steps):
            request.finish_us = end_us
            del self._jobs[request]
        if request.error is not None:
            for other in self._lanes:
                self._flying.difference_update(other.drop(request))
        elif lane.at == run.launches.stop:
            lane.runs.popleft()
            lane.at = None
            self._flying.discard(run)
        else:
            return
        self._told.append(Event(EventKind.FINISHED, end_us, request, run))


def _parse(name: str) -> int | None:
    """Threads that the name of a device asks for."""
    found = re.fullmatch(r"cpu(?:/(\d+))?", name, re.ASCII)
    if found is None:
        raise DeviceError(f"{name!r} is no device: the cores of this machine are cpu, two threads of them cpu/2")
    if found[1] is None:
        return None
    if not 1 <= int(found[1]) <= cores():
        raise DeviceError(f"{name!r} asks for {found[1]} threads: this machine has 1 to {cores()} for them")
    return int(found[1])
