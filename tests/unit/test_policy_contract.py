"""The policy that holds a slowdown. It learns from requests, so that time is counted in gaps between these."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_support import CAMERA, HEAVY, LIGHT, LONG, SMALL_CAMERA, Served, p99, serve_on
from scripted import Script, serve

from miriam.device.base import Limit, Run
from miriam.policy import NAMES
from miriam.task import Task

GAP_US = 2000.0
CASES = [("sim:h200/16", CAMERA), ("sim:xavier", SMALL_CAMERA)]


def slowdown(served: Served, device: str, camera: Task, begin_us: float, end_us: float) -> float:
    alone_us = p99(serve_on(device, "multistream", camera, until_us=200 * GAP_US, gap_us=GAP_US).latencies_us())
    return p99(served.latencies_us(begin_us, end_us)) / alone_us


def pauses(served: Served, until_us: float) -> list[tuple[float, float]]:
    """When the normal lane was paused for measurements."""
    times = [(at, command.sms) for at, command in served.commands if isinstance(command, Limit)]
    assert [sms for _, sms in times] == [0, None] * (len(times) // 2) + [0] * (len(times) % 2)
    ends = [at for at, sms in times if sms is None] + [until_us]
    return list(zip((at for at, sms in times if sms == 0), ends, strict=False))


@pytest.mark.parametrize(("device", "camera", "normal"), [(*CASES[0], HEAVY), (*CASES[1], HEAVY), (*CASES[1], LIGHT)])
def test_within_four_hundred_requests_the_slowdown_is_held_and_others_get_more_than_paused(device, camera, normal):
    begin_us, end_us = 400 * GAP_US, 1000 * GAP_US
    one = serve_on(device, "contract:1.2", camera, (0.0, normal), until_us=end_us, gap_us=GAP_US)
    assert 1.0 < slowdown(one, device, camera, begin_us, end_us) <= 1.22
    report = one.policy.report()
    assert report["held"] == report["paused_holds"] == 1.0
    assert 1.0 < report["width_sms"] < 12
    paused = serve_on(device, "resident", camera, (0.0, normal), until_us=end_us, gap_us=GAP_US)
    assert one.normal(begin_us, end_us) > 1.03 * paused.normal(begin_us, end_us)


@pytest.mark.parametrize(("device", "camera", "first", "then"), [
    (*CASES[0], LIGHT, HEAVY), (*CASES[1], LIGHT, HEAVY), (*CASES[1], HEAVY, LIGHT),
])  # fmt: skip
def test_it_holds_through_a_step_of_the_load(device, camera, first, then):
    step_us, end_us = 800 * GAP_US, 1600 * GAP_US
    one = serve_on(device, "contract:1.1", camera, (0.0, first), (step_us, then), until_us=end_us, gap_us=GAP_US)
    assert slowdown(one, device, camera, 400 * GAP_US, step_us) <= 1.12
    assert slowdown(one, device, camera, step_us, end_us) <= 1.12
    assert one.policy.report()["held"] == 1.0


@pytest.mark.parametrize(("device", "camera"), CASES)
def test_it_says_so_where_even_a_pause_does_not_hold(device, camera):
    begin_us, end_us = 400 * GAP_US, 800 * GAP_US
    one = serve_on(device, "contract", camera, (0.0, LONG), until_us=end_us, gap_us=GAP_US)
    assert slowdown(one, device, camera, begin_us, end_us) > 1.3
    report = one.policy.report()
    assert (report["held"], report["paused_holds"]) == (0.0, 0.0)
    assert report["slowdown_p99"] > 1.3
    assert report["width_sms"] < 0.5
    assert all(isinstance(value, float) for value in report.values())


def test_latency_alone_is_measured_in_two_per_cent_of_the_time():
    start_us, later_us, end_us = 2e5, 4e5, 2e6
    one = serve_on("sim:xavier", "contract", SMALL_CAMERA, (0.0, LIGHT), until_us=end_us, gap_us=GAP_US)
    spans = pauses(one, end_us)
    assert sum(end - begin for begin, end in spans) <= start_us + 0.02 * end_us
    late = [(begin, end) for begin, end in spans if begin > later_us]
    assert len(late) > 5
    assert sum(end - begin for begin, end in late) <= 0.02 * (end_us - later_us) + 3 * GAP_US
    report = one.policy.report()
    alone = serve_on("sim:xavier", "multistream", SMALL_CAMERA, until_us=200 * GAP_US, gap_us=GAP_US)
    assert report["solo_p99_us"] == pytest.approx(p99(alone.latencies_us()), rel=1e-3)
    assert report["solo_samples"] > 25


def test_a_task_that_seldom_asks_is_protected_by_pauses():
    end_us, gap_us = 2.4e6, 1e5  # three gaps have to be allowed; 0.2 s and 2 % of the time are
    one = serve_on("sim:xavier", "contract", SMALL_CAMERA, (0.0, LIGHT), gap_us=gap_us, until_us=end_us)
    assert pauses(one, end_us) == []
    runs = [command for _, command in one.commands if isinstance(command, Run) and command.request.task.critical]
    assert [dict(run.limits) for run in runs] == [{1: 0}] * len(runs)
    assert len(runs) > 20
    assert one.policy.report() == {"solo_samples": 0.0}


def test_others_come_back_when_a_critical_task_falls_silent():
    one = serve_on("sim:xavier", "contract", SMALL_CAMERA, (0.0, LIGHT), until_us=8e5, last_us=3e4)
    assert len(pauses(one, 8e5)) == 1
    assert one.normal(4e5, 8e5) > 400


def test_a_queue_of_critical_requests_does_not_count_as_the_work_of_others():
    # Every second request arrives behind another: late against the clock, not against what width can change.
    end_us = 600 * GAP_US
    one = serve_on("sim:xavier", "contract:1.1", SMALL_CAMERA, (0.0, LIGHT), until_us=end_us, gap_us=GAP_US, pairs=True)
    assert one.policy.report()["held"] == 1.0
    assert one.policy.report()["width_sms"] > 1.0


LEVELS = st.lists(st.sampled_from([-1, 0, 1, 1, 3]), min_size=1, max_size=4)


@given(levels=LEVELS, data=st.data())
@settings(deadline=None, max_examples=50)
def test_any_number_of_tasks_and_levels(levels, data):
    assert "contract" in NAMES
    tasks = [Task(f"t{i}", SMALL_CAMERA.program, level) for i, level in enumerate(levels)]
    times = data.draw(st.lists(st.floats(0, 5e5), min_size=len(tasks), max_size=30))
    script = Script([(at, tasks[i % len(tasks)]) for i, at in enumerate(times)])
    _, device, policy = serve("contract", script)  # every request is served
    keys = {f"solo_samples {task.name}" for task in tasks if task.critical}
    assert set(policy.report()) >= (keys if len(keys) > 1 else {"solo_samples"} if keys else set())
    paused: dict[int, int | None] = {}
    for _, limit in device.limits:
        paused[limit.lane] = limit.sms
    assert set(paused.values()) <= {None}  # whoever was paused for a measurement was set free
