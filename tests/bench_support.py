"""A toy zoo whose programs and profiles can be asked for in another process, and results made from it."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from support import Profiles, program

from miriam.bench import Closed, Entry, Poisson, Results, Uniform, Workload, run_mdtb
from miriam.device.base import Command, Event, EventKind, Lane, Run, Usage
from miriam.device.sim.device import SimDevice
from miriam.profile import ProfileSource
from miriam.program import Program
from miriam.task import Criticality, Request

SHAPES = {
    "short": ((16, 128), (32, 256), (8, 64)),
    "long": ((64, 256), (128, 128), (64, 256), (32, 128)),
}

CLOSED = Workload(
    "X", "both without a pause",
    (Entry("quick", "short", Criticality.CRITICAL, Closed()), Entry("big", "long", Criticality.NORMAL, Closed())),
)  # fmt: skip
PERIODIC = Workload(
    "Y", "one at a fixed rate",
    (Entry("quick", "short", Criticality.CRITICAL, Uniform(4000)), Entry("big", "long", Criticality.NORMAL, Closed())),
)  # fmt: skip
STEADY = Workload(
    "S", "one at a low fixed rate",
    (Entry("quick", "short", Criticality.CRITICAL, Uniform(100)), Entry("big", "long", Criticality.NORMAL, Closed())),
)  # fmt: skip
RANDOM = Workload(
    "Z", "both with a rate",
    (
        Entry("quick", "short", Criticality.CRITICAL, Poisson(4000)),
        Entry("big", "long", Criticality.NORMAL, Uniform(5000)),
    ),
)  # fmt: skip


@cache
def toy_program(name: str) -> Program:
    return program(name, SHAPES[name])


@cache
def toy_profiles() -> ProfileSource:
    return Profiles(*map(toy_program, SHAPES))


@cache
def toy_results() -> Results:
    """Three workloads under three policies."""
    return run_mdtb(
        (CLOSED, PERIODIC, RANDOM), "sequential,multistream,miriam", "sim:h200/16", 0.02, jobs=1,
        programs=toy_program, profiles=toy_profiles,
    )  # fmt: skip


class Clockwork:
    """A device by the clock on the wall: each lane runs one run after another, fifty times as long as on the model."""

    def __init__(self, name: str, profiles: ProfileSource) -> None:
        self.name = name
        self._sim = SimDevice("sim:h200/16", profiles)
        self.geometry = self._sim.geometry
        self.command_us = 5.0
        self.notes = ("by the clock on the wall",)
        self._zero_ns = 0
        self._due: list[tuple[float, int, EventKind, Request | None, Run | None]] = []
        self._free_us: dict[int, float] = {}
        self._count = itertools.count()
        self._done: Counter[str] = Counter()

    def _now_us(self) -> float:
        return (time.perf_counter_ns() - self._zero_ns) * 1e-3

    def open(self, lanes: Sequence[Lane], trace_us: tuple[float, float] | None = None) -> None:
        self._zero_ns = time.perf_counter_ns()

    def offer(self, request: Request) -> None:
        heapq.heappush(self._due, (request.arrival_us, next(self._count), EventKind.ARRIVED, request, None))

    def wake(self, time_us: float) -> None:
        heapq.heappush(self._due, (time_us, next(self._count), EventKind.TICK, None, None))

    def launch_us(self, program: Program) -> tuple[float, ...]:
        return tuple(50 * time_us for time_us in self._sim.launch_us(program))

    def submit(self, command: Command) -> None:
        if isinstance(command, Run):
            begin_us = max(self._now_us(), self._free_us.get(command.lane, 0.0))
            command.request.start_us = command.request.start_us or begin_us
            end_us = begin_us + sum(self.launch_us(command.request.task.program)[i] for i in command.launches)
            self._free_us[command.lane] = end_us
            heapq.heappush(self._due, (end_us, next(self._count), EventKind.FINISHED, command.request, command))

    def events(self, until_us: float) -> Iterator[Event]:
        while self._due and self._due[0][0] < until_us:
            time_us, _, kind, request, run = heapq.heappop(self._due)
            time.sleep(max(0.0, time_us - self._now_us()) * 1e-6)
            if run is not None and run.launches.stop == len(run.request.task.program.launches):
                run.request.finish_us = self._now_us()
                self._done[run.request.task.name] += 1
            yield Event(kind, self._now_us(), request, run)

    def usage(self) -> Usage:
        return Usage(0.0, None, None, 0)

    def outputs(self) -> dict[str, tuple[int, int]]:
        return {name: (count, 1) for name, count in self._done.items()}

    def close(self) -> None: ...
