"""A device that does what the seam says and nothing else, and checks what a policy asks of it."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from miriam.coordinator import Policy, coordinate
from miriam.device.base import Event, EventKind, Geometry, Lane, Limit, Run, Usage, check_limit, check_run
from miriam.policy import Setting, create
from miriam.program import Program
from miriam.task import Request, Task

EDGE = Geometry(
    sms=4, threads_per_sm=1024, blocks_per_sm=16, registers_per_sm=65536,
    shared_per_sm_bytes=65536, shared_per_block_bytes=49152, partition_sms=2,
)  # fmt: skip


@dataclass
class Done:
    """A run as it happened."""

    run: Run
    begin_us: float
    end_us: float

    @property
    def request(self) -> Request:
        return self.run.request


class ScriptedDevice:
    """Lanes that run their heads side by side without disturbing each other.

    A run takes ``block_us`` for each of its blocks divided by the SMs, whatever its form and its limits.
    Every run is checked when it starts: blocks run once, and a launch only after the one before it.
    """

    name = "scripted"
    notes: tuple[str, ...] = ()

    def __init__(self, geometry: Geometry = EDGE, block_us: float = 1.0, command_us: float = 0.0) -> None:
        self.geometry = geometry
        self.command_us = command_us  # told to the policy; commands take no time here
        self.block_us = block_us
        self.log: list[Done] = []
        self.submitted: list[tuple[float, Run]] = []
        self.limits: list[tuple[float, Limit]] = []
        self._events: list[tuple[float, int, Event]] = []
        self._count = itertools.count()
        self._lanes: list[list[Run]] = []
        self._begun: dict[Run, float] = {}
        self._finished: set[Run] = set()
        self._blocks: dict[Request, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        self._complete: dict[Request, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._now_us = 0.0

    def open(self, lanes: Sequence[Lane], trace_us: tuple[float, float] | None = None) -> None:
        self.lanes = lanes
        self._lanes = [[] for _ in lanes]

    def offer(self, request: Request) -> None:
        assert request.arrival_us >= self._now_us
        self._push(request.arrival_us, Event(EventKind.ARRIVED, request.arrival_us, request))

    def wake(self, time_us: float) -> None:
        self._push(time_us, Event(EventKind.TICK, time_us))

    def launch_us(self, program: Program) -> tuple[float, ...]:
        return tuple(self.block_us * step.blocks / self.geometry.sms for step in program.launches)

    def submit(self, command: Run | Limit) -> None:
        if isinstance(command, Limit):
            check_limit(command, len(self._lanes))
            self.limits.append((self._now_us, command))
            return
        check_run(command, len(self._lanes))
        self.submitted.append((self._now_us, command))
        self._lanes[command.lane].append(command)
        self._start()

    def events(self, until_us: float) -> Iterator[Event]:
        while self._events and self._events[0][0] <= until_us:
            self._now_us, _, event = heapq.heappop(self._events)
            run = event.run
            if run is not None:
                self._finish(run)
            yield event
            self._start()

    def usage(self) -> Usage:
        return Usage(0.0, 0.0, 0.0, 0)

    def close(self) -> None:
        pass

    def _push(self, time_us: float, event: Event) -> None:
        heapq.heappush(self._events, (time_us, next(self._count), event))

    def _start(self) -> None:
        for lane in self._lanes:
            if lane and lane[0] not in self._begun and self._finished.issuperset(lane[0].after):
                run = lane[0]
                self._check(run)
                self._begun[run] = self._now_us
                if run.request.start_us is None:
                    run.request.start_us = self._now_us
                end_us = self._now_us + self.block_us * sum(len(r) for r in blocks_of(run).values()) / self.geometry.sms
                self._push(end_us, Event(EventKind.FINISHED, end_us, run.request, run))

    def _check(self, run: Run) -> None:
        first, launches = run.launches.start, run.request.task.program.launches
        if first:
            assert self._complete[run.request][first - 1] == launches[first - 1].blocks, "started before its turn"
        for launch, blocks in blocks_of(run).items():
            seen = self._blocks[run.request][launch]
            assert seen.isdisjoint(blocks), "blocks ran twice"
            seen.update(blocks)

    def _finish(self, run: Run) -> None:
        assert self._lanes[run.lane].pop(0) is run
        self._finished.add(run)
        self.log.append(Done(run, self._begun[run], self._now_us))
        complete = self._complete[run.request]
        for launch, blocks in blocks_of(run).items():
            complete[launch] += len(blocks)
        steps = run.request.task.program.launches
        if all(complete[i] == step.blocks for i, step in enumerate(steps)):
            run.request.finish_us = self._now_us


@dataclass
class Script:
    """Traffic by hand: (arrival, task) in any order, and tasks that ask again when they are served."""

    arrivals: Sequence[tuple[float, Task]]
    closed: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.requests: list[Request] = []
        self._left = dict(self.closed)

    def start(self) -> list[Request]:
        for arrival_us, task in self.arrivals:
            self.requests.append(Request(task, len(self.requests), arrival_us))
        return list(self.requests)

    def after(self, finished: Request) -> Request | None:
        name = finished.task.name
        if not self._left.get(name) or finished.finish_us is None:
            return None
        self._left[name] -= 1
        self.requests.append(Request(finished.task, len(self.requests), finished.finish_us))
        return self.requests[-1]


def blocks_of(run: Run) -> dict[int, range]:
    """Logical blocks of each launch of a run."""
    if run.blocks is not None:
        return {run.first: range(*run.blocks)}
    return {i: range(run.request.task.program.launches[i].blocks) for i in run.launches}


def setting_of(tasks: Sequence[Task], device: ScriptedDevice) -> Setting:
    """What a policy is told before it serves ``tasks`` on ``device``."""
    alone_us = {task.name: device.launch_us(task.program) for task in tasks}
    return Setting(tasks, device.geometry, alone_us, device.command_us)


def serve(
    policy: str | Callable[[Setting], Policy],
    script: Script,
    device: ScriptedDevice | None = None,
) -> tuple[list[Request], ScriptedDevice, Policy]:
    """Serve a script to its end; every request has to be served, exactly once."""
    device = device or ScriptedDevice()
    setting = setting_of(list({task.name: task for _, task in script.arrivals}.values()), device)
    made = create(policy, setting) if isinstance(policy, str) else policy(setting)
    done = coordinate(device, made, script, until_us=1e9)
    assert sorted(r.number for r in done) == [r.number for r in script.requests]
    return done, device, made
