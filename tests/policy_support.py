"""Loads made by hand for tests of policies on the model of a GPU: how wide others may be is known."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from support import Profiles, program

from miriam import zoo
from miriam.coordinator import Policy, coordinate
from miriam.device.base import Limit, Run, Usage
from miriam.device.sim.device import SimDevice
from miriam.policy import Setting, create
from miriam.profile import Counters, LaunchKey, LaunchProfile, ProfileSource, ProgramProfile
from miriam.program import Program
from miriam.task import Criticality, Request, Task

# Half of 16 SMs, half of 8: a critical launch finds SMs of its own as long as others stay on the rest.
CAMERA = Task("camera", program("camera", [(8, 128)] * 30), Criticality.CRITICAL)
SMALL_CAMERA = Task("camera", program("small", [(4, 128)] * 15), Criticality.CRITICAL)
HEAVY = Task("heavy", program("heavy", [(480, 256)] * 4))
LIGHT = Task("light", program("light", [(480, 224)] * 4))
LONG = Task("long", program("long", [(128, 256)] * 4))
"""Its blocks last so long that a critical request is late even if everybody leaves at once."""


class Several:
    """Profiles from several sources."""

    def __init__(self, *sources: ProfileSource) -> None:
        self._sources = sources

    def launch(self, device: str, key: LaunchKey) -> LaunchProfile | None:
        found = (source.launch(device, key) for source in self._sources)
        return next((profile for profile in found if profile is not None), None)

    def program(self, device: str, program: Program) -> ProgramProfile | None:
        return None


def _profiles(task: Task, busy: float, block_us: float = 10.0) -> Profiles:
    counters = Counters(0.0, 0.0, 0.0, 0.0, busy, busy)
    return Profiles(task.program, block_us=block_us, residency=4, counters=counters)


PROFILES = Several(
    _profiles(CAMERA, 0.3), _profiles(SMALL_CAMERA, 0.3), _profiles(HEAVY, 0.9), _profiles(LIGHT, 0.05),
    _profiles(LONG, 0.5, block_us=200.0), zoo.profiles(),
)  # fmt: skip


class Traffic:
    """A critical task that asks at times, and one normal request after another.

    ``normal``: (begin in us, task); from then on the loop is of that task.
    """

    def __init__(self, critical: Task | None, normal: Sequence[tuple[float, Task]], times_us: Sequence[float]) -> None:
        self._made, self._normal = 0, normal
        self._first = [self._request(critical, at) for at in times_us] if critical is not None else []
        self._first += [self._request(normal[0][1], 0.0)] if normal else []

    def start(self) -> Sequence[Request]:
        return self._first

    def after(self, finished: Request) -> Request | None:
        if finished.task.critical or finished.finish_us is None:
            return None
        at_us = finished.finish_us
        return self._request([task for begin_us, task in self._normal if begin_us <= at_us][-1], at_us)

    def _request(self, task: Task, at_us: float) -> Request:
        self._made += 1
        return Request(task, self._made, at_us)


class Listening(SimDevice):
    """Remembers what it is told to do, and at which event."""

    def __init__(self, name: str) -> None:
        super().__init__(name, PROFILES)
        self.commands: list[tuple[float, Run | Limit]] = []

    def submit(self, command: Run | Limit) -> None:
        self.commands.append((self._heard_us, command))
        super().submit(command)


@dataclass
class Served:
    """A run: finished requests, the policy, and what the device did."""

    done: list[Request]
    policy: Policy
    usage: Usage
    commands: list[tuple[float, Run | Limit]]

    def latencies_us(self, begin_us: float = 0.0, end_us: float = math.inf) -> list[float]:
        """Latencies of critical requests that arrived in a window."""
        return [r.latency_us for r in self.done if r.task.critical and begin_us <= r.arrival_us < end_us]

    def normal(self, begin_us: float = 0.0, end_us: float = math.inf) -> int:
        """Normal requests that finished in a window."""
        return sum(not r.task.critical and begin_us <= (r.finish_us or 0.0) < end_us for r in self.done)


def serve_on(
    device: str, policy: str, critical: Task | None, *normal: tuple[float, Task], until_us: float = 5e6,
    gap_us: float = 5000.0, last_us: float = math.inf, pairs: bool = False,
) -> Served:  # fmt: skip
    """Serve :class:`Traffic` on a simulated device; the critical task asks nearly every ``gap_us``, or twice then."""
    machine, rng = Listening(device), random.Random(0)
    tasks = list({t.name: t for t in [critical, *(task for _, task in normal)] if t is not None}.values())
    alone_us = {task.name: machine.launch_us(task.program) for task in tasks}
    made = create(policy, Setting(tasks, machine.geometry, alone_us, machine.command_us))
    times_us = [gap_us * (i + 0.4 * rng.random()) for i in range(1, int(min(until_us, last_us) / gap_us))]
    times_us += [at + 100.0 for at in times_us] if pairs else []
    done = coordinate(machine, made, Traffic(critical, normal, times_us), until_us)
    return Served(done, made, machine.usage(), machine.commands)


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]
