"""Policies and profiles made by hand for the tests of the model of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from miriam.coordinator import View, coordinate
from miriam.device.base import Command, Event, EventKind, Lane, Run
from miriam.device.sim.device import SimDevice
from miriam.profile import Counters, LaunchKey, LaunchProfile, ProfileSource, ProgramProfile, launch_key
from miriam.program import Program
from miriam.task import Request, Task

QUIET = Counters(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Counters of a launch that loads nothing: its blocks neither slow others down nor are slowed down."""

MEASURED_SMS = (8, 16, 32, 64, 132)


class HandMade:
    """Profiles of single launches, by program and index; residency, times and counters as given."""

    def __init__(self) -> None:
        self._launches: dict[LaunchKey, LaunchProfile] = {}

    def add(self, program: Program, index: int, profile: LaunchProfile) -> None:
        step = program.launches[index]
        self._launches[launch_key(program.kernels[step.kernel], step)] = profile

    def times_us(self, program: Program, index: int) -> Mapping[int, float]:
        step = program.launches[index]
        return self._launches[launch_key(program.kernels[step.kernel], step)].times_us

    def launch(self, device: str, key: LaunchKey) -> LaunchProfile | None:
        return self._launches.get(key) if device == "h200" else None

    def program(self, device: str, program: Program) -> ProgramProfile | None:
        return None


class Scripted:
    """A policy of one function: event, view -> commands; lanes, or their priorities. Remembers what it heard."""

    name = "scripted"

    def __init__(self, lanes: Sequence[int | Lane], decide: Callable[[Event, View], Iterable[Command]]) -> None:
        self.lanes = tuple(lane if isinstance(lane, Lane) else Lane(f"lane{i}", lane) for i, lane in enumerate(lanes))
        self.heard: list[Event] = []
        self._decide = decide

    def decide(self, event: Event, view: View) -> Iterable[Command]:
        self.heard.append(event)
        return self._decide(event, view)

    def report(self) -> Mapping[str, float]:
        return {}


class Arrivals:
    """Requests at given times, (task, arrival in us)."""

    def __init__(self, *arrivals: tuple[Task, float]) -> None:
        self.requests = [Request(task, i, at) for i, (task, at) in enumerate(arrivals)]

    def start(self) -> Iterable[Request]:
        return self.requests

    def after(self, finished: Request) -> Request | None:
        return None


def whole_runs(lane_of: Mapping[str, int], **form: int) -> Callable[[Event, View], Iterable[Command]]:
    """Every request at once as one run on the lane of its task."""

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            yield Run(event.request, lane_of[event.request.task.name], **form)

    return decide


def serve(
    name: str,
    profiles: ProfileSource,
    policy: Scripted,
    *arrivals: tuple[Task, float],
    until_us: float = 1e9,
    trace_us: tuple[float, float] | None = (0.0, 1e12),
) -> tuple[SimDevice, list[Request]]:
    """Run a policy on a device; the device and the finished requests."""
    device = SimDevice(name, profiles)
    return device, coordinate(device, policy, Arrivals(*arrivals), until_us, trace_us)


def alone(name: str, profiles: ProfileSource, program: Program, **form: int) -> float:
    """Time of the launches of one request of ``program`` with nothing beside it, host and start of a run left out."""
    device, (request,) = serve(name, profiles, Scripted([0], whole_runs({"alone": 0}, **form)),
                               (Task("alone", program), 0.0))  # fmt: skip
    assert request.finish_us is not None
    spec, launches = device.spec, len(program.launches)
    host_us = spec.host_event_us + launches * spec.host_step_us + spec.run_cost_us(launches)
    around_us = spec.run_us + (spec.elastic_run_us if "workers" in form else 0.0)
    return request.finish_us - host_us - around_us
