from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_support import HEAVY, SMALL_CAMERA, p99, serve_on
from scripted import Script, ScriptedDevice, serve
from support import Profiles, program

from miriam import zoo
from miriam.coordinator import coordinate
from miriam.device.base import Event, EventKind
from miriam.device.sim.device import SimDevice
from miriam.policy import Setting, create
from miriam.task import Request, Task

TOP = Task("top", program("top", [(30, 128), (8, 256)]), 2)
MIDDLE = Task("middle", program("middle", [(40, 64), (12, 256)] * 2), 1)
LOW = Task("low", program("low", [(200, 256), (33, 128)] * 2), 0)
TASKS = (TOP, MIDDLE, LOW)
PROFILES = Profiles(*(task.program for task in TASKS), block_us=5.0)


def test_the_highest_level_runs_as_it_is_and_limits_those_below():
    arrivals = [(0.0, LOW), (1.0, MIDDLE), (2.0, TOP), (3.0, TOP), (4.0, LOW)]
    _, device, policy = serve("resident:3", Script(arrivals))
    assert [(lane.name, lane.priority) for lane in policy.lanes] == [("level 2", 2), ("critical", 1), ("normal", 0)]
    assert [at for at, _ in device.submitted] == [0.0, 1.0, 2.0, 3.0, 4.0]  # nothing waits for the host
    forms = {run.request.task.name: (run.workers, dict(run.limits)) for _, run in device.submitted}
    assert forms == {"top": (None, {1: 3, 2: 3}), "middle": (64, {2: 3}), "low": (64, {})}


@given(arrivals=st.lists(st.tuples(st.floats(0, 50), st.sampled_from(TASKS)), min_size=1, max_size=12),
       name=st.sampled_from(["resident", "resident:2", "contract"]))  # fmt: skip
@settings(deadline=None)
def test_no_request_is_ever_enqueued_behind_one_of_a_lower_level(arrivals, name):
    _, device, policy = serve(name, Script(arrivals), ScriptedDevice())
    level_of_lane = {run.lane: run.request.task.criticality for _, run in device.submitted}
    for at, run in device.submitted:
        assert run.request.task.criticality == level_of_lane[run.lane]
        assert at == run.request.arrival_us
        assert run.after == ()
    by_priority = sorted(level_of_lane, key=lambda lane: policy.lanes[lane].priority)
    assert [level_of_lane[lane] for lane in by_priority] == sorted(level_of_lane.values())


@given(arrivals=st.lists(st.tuples(st.floats(0, 600), st.sampled_from(TASKS)), min_size=2, max_size=14))
@settings(deadline=None, max_examples=60)
def test_paused_lanes_make_no_progress_and_lose_nothing(arrivals):
    device = SimDevice("sim:h200/4", PROFILES)
    alone_us = {task.name: device.launch_us(task.program) for task in TASKS}
    policy = create("resident", Setting(TASKS, device.geometry, alone_us, device.command_us))
    script = Script(arrivals)
    done = coordinate(device, policy, script, 1e6, (0.0, 1e6))
    assert len(done) == len(script.requests)
    usage = device.usage()
    assert usage.blocks == sum(step.blocks for r in done for step in r.task.program.launches)
    for request in done:
        lane = 2 - request.task.criticality
        begin_us = request.start_us + 30.0  # those below have left by then
        inside = [threads for at, threads in usage.samples if begin_us <= at < request.finish_us]
        assert not any(any(threads[lane + 1 :]) for threads in inside)
    commands_us = device.command_us * len(arrivals)  # of all that may have come before it
    for before, behind in pairwise(s for s in usage.spans if s.run.lane == 0):
        if behind.run is not before.run and behind.run.request.arrival_us < before.end_us - commands_us:
            start_us = device.spec.run_us + 2 * device.spec.skip_us  # of a run, while those below leave
            assert behind.begin_us - before.end_us < 2.0 + start_us  # enqueued ahead: no turn of the host in between


def test_sms_left_to_others_are_work_done_at_a_bounded_slowdown():
    solo_us = p99(serve_on("sim:xavier", "multistream", SMALL_CAMERA, until_us=1e6).latencies_us())
    served = {name: serve_on("sim:xavier", name, SMALL_CAMERA, (0.0, HEAVY), until_us=2e6)
              for name in ("priority", "resident", "resident:4")}  # fmt: skip
    slowdown = {name: p99(one.latencies_us()) / solo_us for name, one in served.items()}
    assert 1.0 < slowdown["resident"] < slowdown["resident:4"] < 1.12 < slowdown["priority"]
    assert served["resident"].normal() * 1.03 < served["resident:4"].normal() < served["priority"].normal()


def test_who_has_been_away_since_the_last_request_takes_nothing_of_the_caches():
    # 122 MB of weights beside 50 MB of L2: only a request that was alone since the one before finds its own there.
    camera, archive = Task("camera", zoo.load("squeezenet-b1"), 1), Task("archive", zoo.load("alexnet-b1"))
    alone_us = p99(serve_on("sim:h200", "multistream", camera, until_us=2e5).latencies_us())
    one = serve_on("sim:h200", "contract", camera, (0.0, archive), until_us=2e5)
    assert len(one.latencies_us()) > 30
    assert one.policy.report()["solo_p99_us"] == pytest.approx(alone_us, rel=1e-3)
    assert p99(one.latencies_us()[25:]) > 1.02 * alone_us


def test_the_highest_level_that_there_is_runs_as_it_is_whatever_levels_there_may_be():
    policy = create("resident", Setting((), SimDevice("sim:h200/8", PROFILES).geometry, {}, levels=(0, 1, 2)))
    forms = {}

    def ask(task):
        [run] = policy.decide(Event(EventKind.ARRIVED, 0.0, Request(task, 0, 0.0)), None)
        forms.setdefault(task.name, []).append(run.workers is None)

    low, middle, top = (Task(name, LOW.program, level) for level, name in enumerate(("low", "middle", "top")))
    policy.join(low)
    ask(low)
    policy.join(middle)
    ask(low), ask(middle)
    policy.join(top)
    ask(middle), ask(top)
    policy.leave(top)
    ask(middle)
    ask(top)  # a request may be above all tasks: others give way to its like from then on
    ask(middle)
    assert forms == {"low": [True, False], "middle": [True, False, True, False], "top": [True, True]}
