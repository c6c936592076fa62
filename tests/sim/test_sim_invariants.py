from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_support import MEASURED_SMS, Arrivals, HandMade, Scripted
from support import program

from miriam.coordinator import View, coordinate
from miriam.device.base import Command, Event, EventKind, Limit, Run
from miriam.device.sim.costs import CostModel
from miriam.device.sim.device import SimDevice
from miriam.profile import Counters, LaunchProfile
from miriam.program import Program
from miriam.task import Task

DEVICES = ["sim:h200/5", "sim:xavier", "sim:rtx2060", "sim:orin"]


def toys_with_profiles(data: st.DataObject, count: int) -> tuple[list[Program], HandMade]:
    """Programs of one launch each, as different as kernels can be."""
    profiles, toys = HandMade(), []
    for i in range(count):
        blocks, threads = data.draw(st.integers(1, 300)), data.draw(st.sampled_from([32, 160, 256, 1024]))
        toys.append(
            program(f"toy{i}", [(blocks, threads)], registers=data.draw(st.sampled_from([16, 40, 128, 255])),
                    shared_bytes=data.draw(st.sampled_from([0, 1000, 40_000, 200_000])))
        )  # fmt: skip
        times = {s: 2.0 + 6.0 * -(-blocks // (2 * s)) for s in MEASURED_SMS}
        some = Counters(
            data.draw(st.floats(0, 5e7)), 0.0, 6e7, data.draw(st.floats(0, 5e7)), 0.1, data.draw(st.floats(0, 1))
        )
        profiles.add(toys[-1], 0, LaunchProfile(times, data.draw(st.integers(1, 32)), some, measured=True))
    return toys, profiles


class Restless:
    """Random runs, shards and limits; checks the device at every event."""

    def __init__(self, data: st.DataObject, toys: list[Program], device: SimDevice, profiles: HandMade) -> None:
        self.data, self.device, self.log = data, device, []
        self.forms = [data.draw(st.none() | st.integers(1, 40)) for _ in toys]
        self.threads = [data.draw(st.none() | st.sampled_from([16, 32])) for _ in toys]
        self.cuts = [
            data.draw(st.lists(st.integers(1, max(1, toy.launches[0].blocks - 1)), max_size=3)) for toy in toys
        ]
        model = CostModel(device.spec, profiles)
        self.needs = [model.program(toy, n)[0].footprint for toy, n in zip(toys, self.threads, strict=True)]
        self.limits = data.draw(
            st.lists(st.tuples(st.integers(0, len(toys) - 1), st.none() | st.integers(0, 20)), max_size=8)
        )
        self.limits += [(lane, None) for lane in range(len(toys))]

    def __call__(self, event: Event, view: View) -> Iterable[Command]:
        self.check()
        self.log.append((event.kind, event.time_us, event.request.number if event.request else None))
        if event.kind is EventKind.ARRIVED and event.request is not None:
            yield from self.runs(event, int(event.request.task.name))
            if event.request.number == 0:
                for i in range(len(self.limits)):
                    self.device.wake(30.0 * (i + 1))
        elif event.kind is EventKind.TICK:
            yield Limit(*self.limits.pop(0))

    def runs(self, event: Event, lane: int) -> Iterable[Command]:
        assert event.request is not None
        blocks = event.request.task.program.launches[0].blocks
        edges = sorted({0, *(cut for cut in self.cuts[lane] if cut < blocks), blocks})
        for begin, end in itertools.pairwise(edges):
            yield Run(event.request, lane, blocks=(begin, end), workers=self.forms[lane], threads=self.threads[lane])

    def check(self) -> None:
        held, geometry = self.device.resident(), self.device.geometry
        assert (held >= 0).all()
        assert (held.sum(axis=1) <= geometry.blocks_per_sm).all()
        for of_block, of_sm in (
            ([need.threads for need in self.needs], geometry.threads_per_sm),
            ([need.registers for need in self.needs], geometry.registers_per_sm),
            ([need.shared_bytes for need in self.needs], geometry.shared_per_sm_bytes),
        ):
            assert (held @ np.array(of_block) <= of_sm).all()
        for lane, form in enumerate(self.forms):
            assert form is None or held[:, lane].sum() <= form


@settings(max_examples=80)
@given(data=st.data(), name=st.sampled_from(DEVICES), lanes=st.integers(1, 4))
def test_whatever_is_asked_every_block_runs_once_and_no_sm_is_overfull(
    data: st.DataObject, name: str, lanes: int
) -> None:
    toys, profiles = toys_with_profiles(data, lanes)
    priorities = [data.draw(st.integers(0, 2)) for _ in toys]
    times = data.draw(st.lists(st.floats(0.0, 200.0), min_size=lanes, max_size=2 * lanes))
    tasks = [Task(str(i), toy) for i, toy in enumerate(toys)]
    arrivals = [(tasks[i % lanes], at) for i, at in enumerate(times)]
    device = SimDevice(name, profiles)
    policy = Restless(data, toys, device, profiles)
    done = coordinate(device, Scripted(priorities, policy), Arrivals(*arrivals), 1e9, (0.0, 1e12))
    policy.check()

    usage = device.usage()
    total = sum(task.program.launches[0].blocks for task, _ in arrivals)
    assert len(done) == len(arrivals)
    assert usage.blocks == total == sum(span.blocks for span in usage.spans)
    assert not device.resident().any()
    assert usage.samples[-1][1] == (0,) * lanes
    assert 0 < usage.occupancy <= 1
    assert 0 < usage.sm_active <= 1
    assert [at for at, _ in usage.samples] == sorted(at for at, _ in usage.samples)
    assert [at for _, at, _ in policy.log] == sorted(at for _, at, _ in policy.log)
    for request in done:
        assert request.start_us is not None
        assert request.finish_us is not None
        assert request.arrival_us <= request.start_us < request.finish_us


@settings(max_examples=20)
@given(data=st.data(), name=st.sampled_from(DEVICES))
def test_the_same_again_to_the_bit(data: st.DataObject, name: str) -> None:
    toys, profiles = toys_with_profiles(data, 3)
    tasks = [Task(str(i), toy) for i, toy in enumerate(toys)]
    arrivals = [(tasks[i % 3], at) for i, at in enumerate(data.draw(st.lists(st.floats(0.0, 99.0), min_size=3)))]
    forms = [data.draw(st.none() | st.integers(1, 40)) for _ in toys]

    def once() -> object:
        def decide(event: Event, view: View) -> Iterable[Command]:
            if event.kind is EventKind.ARRIVED and event.request is not None:
                lane = int(event.request.task.name)
                yield Run(event.request, lane, workers=forms[lane], limits={(lane + 1) % 3: lane})

        device, policy = SimDevice(name, profiles), Scripted([0, 1, 0], decide)
        coordinate(device, policy, Arrivals(*arrivals), 1e9, (0.0, 1e12))
        usage = device.usage()
        heard = [(event.kind, event.time_us, event.request and event.request.number) for event in policy.heard]
        spans = [(span.run.lane, span.launch, span.blocks, span.begin_us, span.end_us) for span in usage.spans]
        return heard, spans, usage.samples, usage.busy_us, usage.occupancy, usage.sm_active, usage.blocks

    assert once() == once()
