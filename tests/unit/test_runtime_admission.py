"""What is admitted holds: against a simulation of the device and its queue in whole numbers."""

import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from runtime_support import serve

import miriam
from miriam.errors import AdmissionError, WorkloadError
from miriam.runtime.admission import Demand, analyse

TASK = st.tuples(
    st.sampled_from([0, 0, 1, 1, 2]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.none() | st.integers(3, 60),
    st.none() | st.integers(8, 60),
)


# In a level where one is late, another one's deadline need not be at the end of the time that is the worst for it.
LATE = [(0, [3], None, None), (2, [4, 1, 1], 7, None), (2, [4], 19, 57)]
LATE_TOO = [
    (0, [3, 3, 1], 15, None), (0, [2, 2, 2], 43, None), (0, [2, 1], None, 23), (0, [2, 1, 3], None, None),
    (0, [4], 12, 38),
]  # fmt: skip


@example(LATE, 1, 0)
@example(LATE_TOO, 1, 87)
@given(st.lists(TASK, min_size=1, max_size=5), st.sampled_from([1, 2]), st.integers(0, 2**32))
def test_no_admitted_task_takes_longer_than_was_said_in_simulation(tasks, depth, seed):
    demands = [Demand(f"t{i}", n, sum(steps), max(steps), d, t) for i, (n, steps, d, t) in enumerate(tasks)]
    steps = {f"t{i}": steps for i, (_, steps, _, _) in enumerate(tasks)}
    verdicts = {verdict.name: verdict for verdict in analyse(demands, depth)}
    assert verdicts.keys() == {demand.name for demand in demands if demand.deadline_ns is not None}
    if any(verdict.holds for verdict in verdicts.values()):
        for turn in range(5):
            for job in serve(demands, steps, depth, 250, random.Random(seed + turn)):
                verdict = verdicts.get(job.demand.name)
                if verdict is not None and verdict.holds:
                    assert job.end - job.release <= verdict.response_ns <= verdict.deadline_ns


def test_a_task_alone_takes_what_it_takes():
    assert [v.response_ns for v in analyse([Demand("a", 1, 7, 2, 10, 20)])] == [7]


def test_one_below_waits_for_those_above_and_a_critical_one_for_a_step():
    # 3 every 10 above 5 every 20, of which 2 cannot be interrupted: 2 + 3, and 3 + 5.
    high, low = analyse([Demand("high", 1, 3, 1, 10, 10), Demand("low", 0, 5, 2, 20, 20)])
    assert (high.response_ns, low.response_ns) == (5, 8)
    assert "a step of a lower level" in high.why
    assert "levels above" in low.why


def test_in_a_level_the_longest_request_that_was_begun_counts():
    short, long = analyse([Demand("short", 1, 2, 1, 5, 40), Demand("long", 1, 6, 1, 40, 40)])
    assert (short.holds, short.response_ns) == (False, 8)
    assert long.holds
    assert all(v.holds for v in analyse([Demand("short", 1, 2, 1, 8, 40), Demand("long", 1, 6, 1, 40, 40)]))


def test_more_than_all_of_the_time_has_no_bound():
    verdicts = analyse([Demand("a", 1, 6, 1, 10, 10), Demand("b", 1, 6, 1, 10, 10), Demand("c", 0, 1, 1, 900, 900)])
    assert [v.response_ns for v in verdicts] == [None, None, None]
    assert not any(v.holds for v in verdicts)


def test_below_a_task_without_period_or_deadline_nothing_can_be_promised():
    above, below = analyse([Demand("busy", 1, 1, 1), Demand("own", 1, 1, 1, 10), Demand("low", 0, 1, 1, 10)])
    assert above.holds
    assert below.response_ns is None
    assert "busy, above it, has neither" in below.why


def longest(x):
    total = x
    for _ in range(400):
        total = total + x
    return total


def test_a_set_that_cannot_hold_is_refused_and_the_task_is_not_there():
    x = np.ones(1000)
    with miriam.Runtime("cpu", admission="refuse") as rt:
        rt.load(longest, x, name="camera", criticality="critical", deadline_ms=5000, period_ms=10_000)
        with pytest.raises(AdmissionError, match=r"with lidar, the deadline of lidar, 0\.001 ms, cannot be") as caught:
            rt.load(longest, x, name="lidar", criticality="critical", deadline_ms=0.001, period_ms=10_000)
        assert caught.value.task == "lidar"
        assert caught.value.response_us > caught.value.deadline_us == 1.0
        assert list(rt) == ["camera"]
        rt.load(longest, x, name="lidar", criticality="critical", deadline_ms=5000, period_ms=10_000)


def test_a_warning_comes_once_for_each_task_and_nothing_is_asked_where_it_is_off():
    x = np.ones(10)
    with miriam.Runtime("cpu") as rt:
        with pytest.warns(RuntimeWarning, match="the deadline of tight") as said:
            rt.load(longest, x, name="tight", deadline_ms=0.001)
        assert [one.filename for one in said] == [__file__], "where it was loaded"
        rt.load(longest, x, name="other")
    with miriam.Runtime("cpu", admission="off") as rt:
        rt.load(longest, x, name="tight", deadline_ms=0.001)


@pytest.mark.parametrize("policy", ["sequential", "multistream"])
def test_a_policy_that_interrupts_nobody_promises_nothing(policy):
    with miriam.Runtime("cpu", policy=policy, admission="refuse") as rt, pytest.raises(AdmissionError, match=policy):
        rt.load(longest, np.ones(10), name="camera", deadline_ms=5000)


def test_there_are_three_kinds_of_admission():
    with pytest.raises(WorkloadError, match="off, warn or refuse"):
        miriam.Runtime("cpu", admission="perhaps")  # type: ignore[arg-type]
