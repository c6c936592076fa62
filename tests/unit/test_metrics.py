"""Metrics: each definition, on requests whose times are written down."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import program

from miriam.bench.metrics import PROBABILITIES, latency, measure, slowdown
from miriam.task import Criticality, Request, Task

PROGRAM = program()
values = st.lists(st.floats(0.001, 1e7), min_size=1, max_size=400)


def requests(task: Task, *times: tuple[float, float | None, float | None]) -> list[Request]:
    return [Request(task, i, *t) for i, t in enumerate(times)]


def smallest_that_holds(found: list[float], q: float) -> float:
    """The definition of a quantile, word by word."""
    return next(v for v in sorted(found) if sum(w <= v for w in found) >= q * len(found) * (1 - 1e-12))


@given(values)
def test_quantiles_are_the_smallest_latency_that_enough_requests_stayed_within(found: list[float]) -> None:
    summary = latency(found)
    assert summary is not None
    assert summary.count == len(found)
    for q, value in ((0.5, summary.p50_us), (0.95, summary.p95_us), (0.99, summary.p99_us), (0.999, summary.p999_us)):
        assert value == smallest_that_holds(found, q)
    assert summary.max_us == max(found)
    assert summary.mean_us == pytest.approx(math.fsum(found) / len(found))


@given(values)
def test_the_curve_rises_from_the_least_to_the_largest(found: list[float]) -> None:
    summary = latency(found)
    assert summary is not None
    curve = summary.curve_us
    assert len(curve) == len(PROBABILITIES)
    assert list(curve) == sorted(curve)
    assert (curve[0], curve[-1]) == (round(min(found), 3), round(max(found), 3))


def test_probabilities_rise_from_zero_to_one_without_repeats() -> None:
    assert (PROBABILITIES[0], PROBABILITIES[-1]) == (0.0, 1.0)
    assert all(a < b for a, b in itertools.pairwise(PROBABILITIES))


def test_with_few_requests_the_tail_is_the_largest() -> None:
    summary = latency([5.0, 1.0, 3.0])
    assert summary is not None
    assert (summary.p50_us, summary.p99_us, summary.p999_us) == (3.0, 5.0, 5.0)


def test_nothing_has_no_latency_and_no_slowdown() -> None:
    assert latency([]) is None
    assert slowdown(None, latency([1.0])) is None
    assert slowdown(latency([1.0]), None) is None


def test_slowdown_compares_each_quantile_with_the_same_one() -> None:
    found = slowdown(latency([2.0, 6.0, 40.0]), latency([1.0, 2.0, 4.0]))
    assert found is not None
    assert (found.p50, found.p99, found.max) == (3.0, 10.0, 10.0)
    assert found.mean == pytest.approx(48 / 7)


def test_the_warm_up_and_what_did_not_finish_are_left_out() -> None:
    task = Task("t", PROGRAM)
    found = measure(
        task,
        requests(
            task,
            (50.0, 60.0, 90.0),  # all in the warm-up
            (90.0, 95.0, 140.0),  # arrived in the warm-up, finished after it: throughput alone
            (100.0, 130.0, 150.0),
            (200.0, 210.0, 290.0),
            (250.0, 260.0, None),
        ),
        100.0,
        300.0,
    )
    assert (found.arrived, found.unfinished, found.missed) == (3, 1, None)
    assert found.throughput_per_s == pytest.approx(3 / 200e-6)
    assert found.response is not None
    assert found.service is not None
    assert (found.response.count, found.response.p50_us, found.response.max_us) == (2, 50.0, 90.0)
    assert (found.service.p50_us, found.service.max_us) == (20.0, 80.0)


def test_a_finish_after_the_end_does_not_count() -> None:
    task = Task("t", PROGRAM)
    found = measure(task, requests(task, (10.0, 20.0, 101.0)), 0.0, 100.0)
    assert (found.arrived, found.unfinished, found.throughput_per_s, found.response) == (1, 1, 0.0, None)


def test_deadlines_are_missed_by_late_and_by_overdue_requests() -> None:
    task = Task("t", PROGRAM, deadline_us=20.0)
    times = [
        (0.0, 1.0, 50.0),  # late, in the warm-up
        (10.0, 11.0, 30.0),  # just in time
        (30.0, 31.0, 50.1),  # late
        (60.0, 61.0, None),  # overdue at the end
        (90.0, 91.0, None),  # may still make it
    ]
    assert measure(task, requests(task, *times), 5.0, 100.0).missed == 2


def test_other_tasks_do_not_count() -> None:
    mine, other = Task("mine", PROGRAM, Criticality.CRITICAL), Task("other", PROGRAM)
    both = [*requests(mine, (1.0, 2.0, 3.0)), *requests(other, (1.0, 2.0, 9.0))]
    found = measure(mine, both, 0.0, 10.0)
    assert (found.arrived, found.critical) == (1, True)
    assert found.response is not None
    assert found.response.max_us == 2.0


def test_no_requests_at_all() -> None:
    task = Task("t", PROGRAM, deadline_us=5.0)
    found = measure(task, [], 0.0, 1e6)
    assert (found.arrived, found.unfinished, found.missed, found.throughput_per_s) == (0, 0, 0, 0.0)
    assert found.response is None
    assert found.service is None


@pytest.mark.parametrize(("late", "in_all", "behind"), [(0, 9, False), (1, 3, False), (2, 100, True), (2, 200, False)])
def test_a_task_is_behind_if_more_than_one_in_a_hundred_and_more_than_one_did_not_finish(
    late: int, in_all: int, behind: bool
) -> None:
    task = Task("t", PROGRAM)
    times = [(float(i), float(i), None if i < late else i + 1.0) for i in range(in_all)]
    assert measure(task, requests(task, *times), 0.0, 1e6).behind is behind
