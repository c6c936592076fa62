"""Arrivals: their distributions, and what they must not depend on."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import program

from miriam.bench.arrivals import Arrivals, Closed, Poisson, SeededTraffic, Uniform, arrivals_from_json
from miriam.errors import WorkloadError
from miriam.task import Request, Task

rates = st.floats(0.5, 1e5)
durations = st.floats(1, 1e6)
seeds = st.integers(0, 2**63)


def task(name: str = "t") -> Task:
    return Task(name, program(name))


def known(arrivals: Arrivals, until_us: float, seed: int) -> Any:
    """Arrivals without the requests, of which there may be a hundred thousand."""
    return SeededTraffic([(task(), arrivals)], until_us, seed).times_us("t")


def arrivals_of(arrivals: Arrivals, until_us: float, seed: int, name: str = "t", *others: Any) -> list[float]:
    traffic = SeededTraffic([(task(name), arrivals), *others], until_us, seed)
    return [r.arrival_us for r in traffic.start() if r.task.name == name]


@given(rates, durations, seeds)
def test_uniform_arrivals_are_one_gap_apart_and_fill_the_time(rate: float, until_us: float, seed: int) -> None:
    times = known(Uniform(rate), until_us, seed)
    gap_us = 1e6 / rate
    assert (times < until_us).all()
    np.testing.assert_allclose(np.diff(times), gap_us, rtol=1e-6)
    if times.size:
        assert 0 <= times[0] <= gap_us
        assert times[-1] + gap_us >= until_us * (1 - 1e-12)
    else:
        assert until_us <= gap_us


@given(rates, durations, seeds)
def test_poisson_arrivals_rise_and_stay_inside(rate: float, until_us: float, seed: int) -> None:
    times = known(Poisson(rate), until_us, seed)
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < until_us)).all()


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(arrivals_of(Poisson(1000), 2e7, 5))
    assert gaps.mean() == pytest.approx(1000, rel=0.03)
    assert gaps.std() == pytest.approx(1000, rel=0.05)
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("kind", [Uniform, Poisson])
def test_a_longer_run_begins_with_the_arrivals_of_a_shorter_one(kind: Any) -> None:
    short, long = (arrivals_of(kind(700), until_us, 3) for until_us in (5e5, 5e6))
    assert long[: len(short)] == short
    assert len(long) > 5 * len(short)


@pytest.mark.parametrize("kind", [Uniform, Poisson])
def test_arrivals_do_not_depend_on_other_tasks(kind: Any) -> None:
    alone = arrivals_of(kind(300), 1e6, 11)
    beside = arrivals_of(kind(300), 1e6, 11, "t", (task("other"), Poisson(900)), (task("third"), Closed()))
    assert beside == alone


@pytest.mark.parametrize("kind", [Uniform, Poisson])
def test_seed_and_name_decide(kind: Any) -> None:
    one = arrivals_of(kind(300), 1e6, 1)
    assert arrivals_of(kind(300), 1e6, 1) == one
    assert arrivals_of(kind(300), 1e6, 2) != one
    assert arrivals_of(kind(300), 1e6, 1, "another") != one


def test_all_requests_are_offered_by_time_with_rising_unique_numbers() -> None:
    traffic = SeededTraffic([(task("a"), Poisson(500)), (task("b"), Uniform(400)), (task("c"), Closed())], 1e5, 0)
    first = list(traffic.start())
    assert [r.arrival_us for r in first] == sorted(r.arrival_us for r in first)
    for name in "abc":
        assert [r.arrival_us for r in first if r.task.name == name] == traffic.times_us(name).tolist()
    loop = next(r for r in first if r.task.name == "c")
    loop.finish_us = 10.0
    again = traffic.after(loop)
    assert again is not None
    assert traffic.requests == [*first, again]
    assert [r.number for r in traffic.requests] == list(range(len(first) + 1))


def test_a_closed_loop_asks_again_in_the_moment_it_is_answered_until_the_end() -> None:
    traffic = SeededTraffic([(task(), Closed())], 100.0, 0)
    (request,) = traffic.start()
    assert request.arrival_us == 0
    arrivals = []
    for _ in itertools.count():
        request.start_us, request.finish_us = request.arrival_us, request.arrival_us + 30
        following = traffic.after(request)
        if following is None:
            break
        arrivals.append(following.arrival_us)
        request = following
    assert arrivals == [30, 60, 90]


def test_a_deep_closed_loop_keeps_so_many_requests_outstanding() -> None:
    traffic = SeededTraffic([(task(), Closed(3))], 100.0, 0)
    first = list(traffic.start())
    assert [r.arrival_us for r in first] == [0, 0, 0]
    assert len({r.number for r in first}) == 3
    first[1].finish_us = 40.0
    following = traffic.after(first[1])
    assert following is not None
    assert following.arrival_us == 40.0
    assert str(Closed(3)) == "closed loop, 3 at a time"


@pytest.mark.parametrize("depth", [0, -1, 1.5])
def test_a_closed_loop_has_a_request_at_least(depth: Any) -> None:
    with pytest.raises(WorkloadError, match="at least one"):
        Closed(depth)


def test_open_arrivals_have_no_next_turn() -> None:
    traffic = SeededTraffic([(task(), Uniform(100))], 1e6, 0)
    first: Request = next(iter(traffic.start()))
    first.finish_us = 5.0
    assert traffic.after(first) is None


@given(st.one_of(st.integers(1, 9).map(Closed), rates.map(Uniform), rates.map(Poisson)))
def test_json_and_back(arrivals: Arrivals) -> None:
    assert arrivals_from_json(arrivals.to_json()) == arrivals


@given(rates, st.floats(0.01, 100))
def test_scaling_changes_the_rate_alone(rate: float, factor: float) -> None:
    assert Uniform(rate).scaled(factor) == Uniform(rate * factor)
    assert Poisson(rate).scaled(factor) == Poisson(rate * factor)
    assert Closed().scaled(factor) == Closed()


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("kind", [Uniform, Poisson])
def test_a_rate_has_to_be_a_number_above_zero(kind: Any, rate: float) -> None:
    with pytest.raises(WorkloadError, match="above zero"):
        kind(rate)


def test_unusable_traffic_is_refused() -> None:
    with pytest.raises(WorkloadError, match="two tasks have one name"):
        SeededTraffic([(task(), Closed()), (task(), Closed())], 1e6, 0)
    with pytest.raises(WorkloadError, match="seed -1"):
        SeededTraffic([(task(), Closed())], 1e6, -1)
    with pytest.raises(WorkloadError, match="'burst'"):
        arrivals_from_json({"kind": "burst"})
