"""Every policy through the coordinator on the model of a GPU."""

import pytest
from scripted import Script
from support import Profiles, program

from miriam.coordinator import coordinate
from miriam.device.base import Span, Usage
from miriam.device.sim.device import SimDevice
from miriam.policy import NAMES, Setting, create
from miriam.task import Criticality, Request, Task

CRITICAL = Task("critical", program("critical", [(12, 256), (60, 128), (200, 256)] * 3), Criticality.CRITICAL)
URGENT = Task("urgent", program("urgent", [(40, 64), (8, 128)]), criticality=2)
NORMAL = Task("normal", program("normal", [(512, 256), (96, 128), (33, 256)] * 2))
OTHER = Task("other", program("other", [(64, 512), (7, 128)]))
TASKS = (CRITICAL, URGENT, NORMAL, OTHER)
PROFILES = Profiles(*(task.program for task in TASKS))


def run(name: str, device: str = "sim:h200/16") -> tuple[list[Request], Script, Usage, tuple[str, ...]]:
    machine = SimDevice(device, PROFILES)
    alone_us = {t.name: machine.launch_us(t.program) for t in TASKS}
    policy = create(name, Setting(TASKS, machine.geometry, alone_us, machine.command_us))
    arrivals = [(0.0, NORMAL), (0.0, OTHER), (40.0, CRITICAL), (300.0, URGENT), (1000.0, CRITICAL), (1010.0, CRITICAL)]
    script = Script(arrivals, closed={"normal": 5, "other": 5, "critical": 3})
    done = coordinate(machine, policy, script, until_us=1e6, trace_us=(0.0, 1e6))
    usage = machine.usage()
    machine.close()
    return done, script, usage, tuple(lane.name for lane in policy.lanes)


def interval(spans: list[Span]) -> tuple[float, float]:
    return min(s.begin_us for s in spans), max(s.end_us for s in spans)


@pytest.mark.parametrize("name", NAMES)
def test_every_request_is_served_and_every_block_runs_once(name):
    done, script, usage, _ = run(name)
    assert sorted(r.number for r in done) == [r.number for r in script.requests]
    work = sum(step.blocks for r in done for step in r.task.program.launches)
    assert usage.blocks == sum(span.blocks for span in usage.spans) == work
    for request in done:
        spans = [s for s in usage.spans if s.run.request is request]
        for i, step in enumerate(request.task.program.launches):
            own = [s for s in spans if s.launch == i]
            assert sum(s.blocks for s in own) == step.blocks
            if i:  # a launch begins when all of the one before it is done
                assert interval([s for s in spans if s.launch == i - 1])[1] <= interval(own)[0]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sequential"])
def test_no_critical_launch_shares_a_lane_with_a_normal_one(name):
    _, _, usage, lanes = run(name)
    for lane in range(len(lanes)):
        assert len({s.run.request.task.critical for s in usage.spans if s.run.lane == lane}) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_results_are_the_same_every_time(name):
    first, second = ([(r.task.name, r.start_us, r.finish_us) for r in run(name)[0]] for _ in range(2))
    assert first == second


def test_shards_run_beside_critical_kernels():
    _, _, usage, lanes = run("miriam")
    normal = [i for i, lane in enumerate(lanes) if lane.startswith("normal")]
    critical = [i for i, lane in enumerate(lanes) if not lane.startswith("normal")]
    both = [t for _, t in usage.samples if any(t[i] for i in critical) and any(t[i] for i in normal)]
    assert both
    assert any(sum(t[i] > 0 for i in normal) > 1 for t in both)  # and several of them at a time
    shards = [s for s in usage.spans if s.run.workers is not None]
    assert len({s.run.blocks for s in shards}) > 1


@pytest.mark.parametrize("device", ["sim:xavier", "sim:rtx2060", "sim:orin", "sim:h200"])
def test_miriam_serves_everything_on_every_device(device):
    done, script, _, _ = run("miriam", device)
    assert len(done) == len(script.requests)
