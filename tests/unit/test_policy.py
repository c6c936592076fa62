import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import EDGE, Script, ScriptedDevice, serve, setting_of
from support import program

from miriam.errors import PolicyError
from miriam.policy import NAMES, check, create
from miriam.task import Criticality, Request, Task

CRITICAL = Task("c", program("c", [(4, 32), (8, 32)]), Criticality.CRITICAL)
NORMAL = Task("n", program("n", [(16, 32), (8, 32)]))
URGENT = Task("u", program("u", [(4, 32)]), criticality=7)


def starts(done: list[Request]) -> dict[str, list[float | None]]:
    by_task: dict[str, list[float | None]] = {}
    for request in sorted(done, key=lambda r: r.number):
        by_task.setdefault(request.task.name, []).append(request.start_us)
    return by_task


def test_names_and_unknown_names():
    assert NAMES == ("sequential", "multistream", "priority", "barrier", "partition", "miriam", "resident", "contract")
    setting = setting_of([CRITICAL, NORMAL], ScriptedDevice())
    for name in NAMES:
        policy = create(name, setting)
        assert policy.name == name
        assert policy is not create(name, setting)
        assert all(isinstance(value, float | int) for value in policy.report().values())
    with pytest.raises(PolicyError, match="no policy 'fifo': take one of sequential, multistream"):
        create("fifo", setting)


@pytest.mark.parametrize(("name", "words"), [
    ("fifo", "no policy 'fifo': take one of sequential"),
    ("fifo:3", "no policy 'fifo'"),
    ("priority:3", "policy priority has no option, so '3' means nothing: options have partition, resident, contract"),
    ("resident:", "policy resident: '' is no number of SMs: take a whole number from 0 on"),
    ("resident:-1", "policy resident: '-1' is no number of SMs"),
    ("resident:1.5", "policy resident: '1.5' is no number of SMs"),
    ("contract:0.9", "policy contract: '0.9' is no slowdown: take a number from 1 on"),
    ("contract:inf", "policy contract: 'inf' is no slowdown"),
    ("contract:nan", "policy contract: 'nan' is no slowdown"),
    ("partition:0", "policy partition: '0' is no number of SMs: take a whole number from 1 on"),
])  # fmt: skip
def test_names_and_options_that_make_no_sense(name, words):
    setting = setting_of([CRITICAL, NORMAL], ScriptedDevice())
    with pytest.raises(PolicyError, match=words):
        check(name)
    with pytest.raises(PolicyError, match=words):
        create(name, setting)


def test_options_reach_the_policy_and_its_name():
    setting = setting_of([CRITICAL, NORMAL], ScriptedDevice())
    for name in ("resident:0", "resident:4", "contract:1", "contract:1.05", "partition:2"):
        check(name)
        assert create(name, setting).name == name
    with pytest.raises(PolicyError, match="5 SMs left to lower lanes, and the device has 4"):
        create("resident:5", setting)


def parts(sms: int, step: int, name: str = "partition") -> list[int | None]:
    geometry = replace(EDGE, sms=sms, partition_sms=step)
    setting = setting_of([CRITICAL, NORMAL], ScriptedDevice(geometry))
    return [lane.sms for lane in create(name, setting).lanes]


def test_partitions_are_half_each_or_as_asked_for():
    assert parts(132, 8) == [64, 68]
    assert parts(132, 8, "partition:104") == [104, 28]
    assert parts(16, 8) == [8, 8]
    assert parts(8, 2) == [4, 4]
    assert parts(30, 2, "partition:28") == [28, 2]
    with pytest.raises(
        PolicyError, match=r"a device of 15 SMs cannot be divided: .* multiple of 8 there, so it takes 16"
    ):
        parts(15, 8)
    for asked in (100, 128, 200):
        with pytest.raises(
            PolicyError, match=rf"{asked} SMs is impossible: take a multiple of 8 from 8 to 120, of 132"
        ):
            parts(132, 8, f"partition:{asked}")


def test_partition_serves_each_part_by_urgency_with_two_runs_on_the_device():
    arrivals = [(0.0, CRITICAL), (0.1, CRITICAL), (0.2, CRITICAL), (0.3, URGENT), (0.4, NORMAL), (0.5, NORMAL)]
    done, device, _ = serve("partition", Script(arrivals))
    assert [r.task.name for r in done if r.task.critical] == ["c", "c", "u", "c"]
    assert all(run.workers is None and not run.limits for _, run in device.submitted)
    assert [at for at, run in device.submitted if run.lane == 0] == [0.0, 0.1, 3.0, 6.0]


def test_sequential_serves_the_queues_in_turn_and_one_inference_at_a_time():
    arrivals = [(0.0, NORMAL), (0.5, NORMAL), (1.0, CRITICAL), (1.5, CRITICAL), (2.0, URGENT)]
    done, device, policy = serve("sequential", Script(arrivals))
    assert [r.task.name for r in done] == ["n", "u", "n", "c", "c"]
    assert len(policy.lanes) == 1
    assert [d.begin_us for d in device.log] == [0.0, 6.0, 7.0, 13.0, 16.0]
    assert all(d.run.launches == range(len(d.request.task.program.launches)) for d in device.log)


def test_multistream_enqueues_whole_inferences_on_arrival():
    done, device, policy = serve("multistream", Script([(0.0, NORMAL), (1.0, CRITICAL), (2.0, URGENT), (3.0, NORMAL)]))
    assert [lane.name for lane in policy.lanes] == ["level 7", "critical", "normal"]
    assert {lane.priority for lane in policy.lanes} == {0}
    assert [time_us for time_us, _ in device.submitted] == [0.0, 1.0, 2.0, 3.0]
    assert starts(done) == {"n": [0.0, 6.0], "c": [1.0], "u": [2.0]}


def test_priority_is_multistream_with_a_higher_lane_for_a_higher_level():
    script = Script([(0.0, NORMAL), (1.0, CRITICAL), (2.0, URGENT)])
    done, _, policy = serve("priority", script)
    assert [(lane.name, lane.priority) for lane in policy.lanes] == [("level 7", 2), ("critical", 1), ("normal", 0)]
    assert starts(done) == {"n": [0.0], "c": [1.0], "u": [2.0]}


def tasks_of(data: st.DataObject) -> list[Task]:
    grids = st.lists(st.tuples(st.sampled_from([1, 2, 6, 8, 12, 27, 64]), st.sampled_from([32, 96, 256])), min_size=1,
                     max_size=6)  # fmt: skip
    levels = data.draw(st.lists(st.sampled_from([-1, 0, 0, 1, 1, 5]), min_size=1, max_size=4))
    return [Task(f"t{i}", program(f"t{i}", data.draw(grids)), level) for i, level in enumerate(levels)]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_whatever_comes_is_served_once_in_order_and_no_level_waits_in_the_lane_of_another(name, data):
    tasks = tasks_of(data)
    times = st.floats(0, 40, allow_nan=False)
    arrivals = [(data.draw(times), task) for task in tasks for _ in range(data.draw(st.integers(1, 3)))]
    closed = {task.name: 3 for task in tasks if data.draw(st.booleans())}
    done, device, _ = serve(name, Script(arrivals, closed))  # the device checks order and coverage

    levels: dict[int, set[bool]] = {}
    for _, run in device.submitted:
        levels.setdefault(run.lane, set()).add(run.request.task.critical)
    if name != "sequential":
        assert all(len(kinds) == 1 for kinds in levels.values())
    for task in tasks:  # requests of one task share its buffers: they never overlap, the oldest goes first
        spans = [(r.start_us, r.finish_us) for r in sorted(done, key=lambda r: (r.arrival_us, r.number))
                 if r.task is task]  # fmt: skip
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_script_gives_the_same_run(name):
    def once() -> list[tuple[str, float | None, float | None]]:
        rng = random.Random(3)
        tasks = [CRITICAL, NORMAL, URGENT, Task("m", program("m", [(27, 64), (32, 96)]))]
        script = Script([(rng.uniform(0, 50), rng.choice(tasks)) for _ in range(30)], closed={"n": 5, "c": 5})
        done, _, _ = serve(name, script)
        return [(r.task.name, r.start_us, r.finish_us) for r in done]

    assert once() == once()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", [CRITICAL, NORMAL])
def test_a_task_alone_takes_the_time_that_it_takes_alone(name, task):
    device = ScriptedDevice(EDGE)
    (request,), _, _ = serve(name, Script([(0.0, task)]), device)
    assert request.latency_us == sum(device.launch_us(task.program))
