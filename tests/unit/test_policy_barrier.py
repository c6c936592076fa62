import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import EDGE, Script, ScriptedDevice, serve, setting_of
from support import program

from miriam.policy.barrier import Barrier
from miriam.policy.stages import Demand, search
from miriam.task import Criticality, Task

LONG = Task("long", program("long", [(16, 32)] * 8))
SHORT = Task("short", program("short", [(8, 32)] * 4), Criticality.CRITICAL)


def demand(times: list[int], share: float = 1.0) -> Demand:
    sums = list(itertools.accumulate(times, initial=0))
    return Demand(sums, [round(share * t) for t in sums])


def latency(a: Demand, b: Demand, cuts: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
    stages = zip(*([0, *ends] for ends in cuts), strict=True)
    total = 0
    for (i, k), (j, m) in itertools.pairwise(stages):
        work = a.work_ns[j] - a.work_ns[i] + b.work_ns[m] - b.work_ns[k]
        total += max(a.time_ns[j] - a.time_ns[i], b.time_ns[m] - b.time_ns[k], work)
    return total


launches = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=7)


def demand_of(steps: list[tuple[int, float]]) -> Demand:
    times = itertools.accumulate((t for t, _ in steps), initial=0)
    works = itertools.accumulate((round(t * share) for t, share in steps), initial=0)
    return Demand(list(times), list(works))


@given(launches, launches, st.integers(1, 4), st.integers(0, 5))
def test_cuts_are_stages_of_both_and_no_single_cut_can_be_moved_to_gain(a, b, stages, seed):
    one, two = demand_of(a), demand_of(b)
    cuts = search(one, two, stages, random.Random(seed))
    assert cuts == search(one, two, stages, random.Random(seed))
    assert len(cuts[0]) == len(cuts[1]) == min(stages, len(a), len(b))
    for ends, steps in zip(cuts, (a, b), strict=True):
        assert ends[-1] == len(steps)
        assert all(x < y for x, y in itertools.pairwise((0, *ends)))
    best = latency(one, two, cuts)
    for side, s in itertools.product((0, 1), range(len(cuts[0]) - 1)):
        ends = cuts[side]
        for cut in range((0, *ends)[s] + 1, ends[s + 1]):
            moved = (*ends[:s], cut, *ends[s + 1 :])
            assert latency(one, two, (moved, cuts[1]) if side == 0 else (cuts[0], moved)) >= best


def test_work_that_fits_side_by_side_is_put_side_by_side():
    # Each program fills the device in one half and hardly in the other: wide goes with narrow.
    wide_first = demand_of([(10, 1.0), (10, 0.0)])
    cuts = search(wide_first, demand_of([(2, 0.0), (8, 0.0), (2, 1.0), (8, 1.0)]), 2, random.Random(0))
    assert cuts == ((1, 2), (2, 4))


def test_of_equal_sums_the_sides_that_are_alike_win():
    # Two programs that fill the device take as long together however they are cut.
    cuts = search(demand([10] * 8), demand([10] * 8), 4, random.Random(0))
    assert cuts[0] == cuts[1]


def test_demand_counts_blocks_that_fit_at_once():
    # 4 SMs hold 16 blocks of 256 threads at 64 registers: 4 blocks fill a quarter of the device.
    task = Task("t", program("t", [(4, 256), (16, 256), (32, 256)], registers=64))
    setting = setting_of([task], ScriptedDevice(EDGE))
    assert Demand.of(task, setting) == Demand((0, 1000, 5000, 13000), (0, 250, 4250, 12250))


def test_both_lanes_wait_for_both_ends():
    done, device, policy = serve("barrier", Script([(0.0, SHORT), (0.0, LONG)]))
    stages = [[d for d in device.log if d.run.lane == lane] for lane in (0, 1)]
    assert [len(lane) for lane in stages] == [4, 4]
    assert [lane.name for lane in policy.lanes] == ["critical", "normal"]
    for one, two in itertools.pairwise(zip(*stages, strict=True)):
        assert min(d.begin_us for d in two) == max(d.end_us for d in one)
    assert {r.task.name for r in done} == {"short", "long"}


def test_no_turn_of_the_host_lies_inside_a_pair():
    _, device, _ = serve("barrier", Script([(0.0, SHORT), (0.0, LONG)]))
    first = next(d.end_us for d in device.log if d.run.lane == 1)
    assert [time_us for time_us, _ in device.submitted] == [0.0, 0.0] + [first] * 6


def test_who_comes_later_starts_at_once_and_meets_the_other_at_the_next_barrier():
    _, device, _ = serve("barrier", Script([(0.0, LONG), (9.0, SHORT)]))
    short = [d for d in device.log if d.request.task is SHORT]
    long = [d for d in device.log if d.request.task is LONG]
    assert short[0].begin_us == 9.0
    assert long[1].begin_us == 8.0
    assert short[1].begin_us == long[2].begin_us == max(short[0].end_us, long[1].end_us)


def test_without_anybody_to_meet_a_request_runs_whole():
    _, device, _ = serve("barrier", Script([(0.0, LONG), (1.0, LONG)]))
    assert [d.run.launches for d in device.log] == [range(8), range(8)]


@given(
    st.lists(st.tuples(st.floats(0, 60), st.booleans()), max_size=6),
    st.dictionaries(st.sampled_from(["short", "long"]), st.integers(1, 4)),
)
def test_only_the_first_stage_of_a_request_starts_beside_one_that_runs(arrivals, closed):
    tasks = [(0.0, SHORT), (0.0, LONG), *((time_us, SHORT if short else LONG) for time_us, short in arrivals)]
    _, device, _ = serve("barrier", Script(tasks, closed))
    for d in device.log:
        if d.run.first:
            others = (o for o in device.log if o.run.lane != d.run.lane)
            assert not any(o.begin_us < d.begin_us < o.end_us for o in others)


@pytest.mark.parametrize("stages", [1, 3, 8])
def test_the_number_of_stages_is_a_choice(stages):
    _, device, _ = serve(lambda s: Barrier(s, stages=stages), Script([(0.0, SHORT), (0.0, LONG)]))
    assert len(device.log) == 2 * min(stages, 4)
