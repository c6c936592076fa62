"""When an inference is cut into spans and when it stays where it stopped, by how often its lane is held down."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miriam.elastic.pauses import PASSING_US, SPAN, Pauses, spans
from miriam.elastic.state import MAX_LAUNCHES

LAUNCHES = st.integers(1, 1000)
ROUNDS = 80  # by when a mean over about eight is there


class Held:
    """A lane that is held down again and again, for 100 us each time, while a program of so many launches is in it."""

    def __init__(self, launches: int) -> None:
        self.pauses, self.launches = Pauses(), launches
        self.now_us = 0.0

    def after(self, *free_us: float) -> list[tuple[bool, bool]]:
        """What it decides behind each pause, which begin so long after the end of the ones before."""
        found = []
        for gap_us in free_us:
            self.now_us += gap_us
            self.pauses.begin(self.now_us)
            self.now_us += 100.0
            self.pauses.end(self.now_us, self.launches)
            found.append((self.pauses.cut, self.pauses.stays))
        return found


def changes(values: Iterable[bool]) -> int:
    """How often it is another one, from False on."""
    return sum(a != b for a, b in itertools.pairwise([False, *values]))


@given(st.integers(1, MAX_LAUNCHES))
def test_spans_are_the_launches_in_their_order_and_about_equal(launches: int) -> None:
    found = spans(launches)
    assert [i for span in found for i in span] == list(range(launches))
    lengths = [len(span) for span in found]
    assert max(lengths) <= 1.5 * SPAN
    assert max(lengths) - min(lengths) <= 1
    assert len(found) == 1 or min(lengths) >= 0.5 * SPAN


@given(LAUNCHES, st.floats(0.0, 3.0))
def test_often_interrupted_is_cut_and_rarely_is_not_whatever_was_before(launches: int, often: float) -> None:
    """As a share of the time for which a lane has to be free for an inference not to be cut: in between it stays so."""
    bound_us = 10 * PASSING_US * launches
    for before in (0.0, 100.0):
        held = Held(launches)
        first = held.after(*[before * bound_us] * ROUNDS)[-1][0]
        cut = held.after(*[often * bound_us] * ROUNDS)[-1][0]
        several = len(spans(launches)) > 1
        assert first is (several and before == 0.0)
        if often < 0.99 or often > 2.01:
            assert cut is (several and often < 1)
        elif 1.01 < often < 1.99:
            assert cut is first


@given(LAUNCHES, st.floats(0.0, 3.0), st.booleans())
def test_what_stays_costs_little_of_the_time_between_two_pauses(launches: int, often: float, cut: bool) -> None:
    """A twentieth for launches that are passed over, or a tenth if it did before."""
    held = Held(launches)
    longest = max(map(len, spans(launches)))
    passed_us = PASSING_US * (longest if cut else launches)
    free_us = 20 * often * passed_us
    is_cut, stays = held.after(*[free_us] * ROUNDS)[-1]
    if is_cut is not (cut and longest < launches):
        return  # it is not what this asks about
    if abs(often - 1) > 0.01 and (often < 0.49 or often > 1 or is_cut == (longest < launches)):
        assert stays is (often > 1)  # in between it is as it was, which may have been cut
    if stays:
        assert passed_us <= 0.101 * free_us


@given(LAUNCHES, st.floats(0.5, 2.0), st.booleans(), st.lists(st.floats(1.0, 1.9), min_size=1, max_size=9))
def test_whoever_is_at_a_bound_does_not_go_to_and_fro(
    launches: int, at: float, cut: bool, factors: list[float]
) -> None:
    """A load that is never twice what it was, about the bound for cutting or the one for staying: it decides once."""
    bound_us = PASSING_US * (10 * launches if cut else 20 * max(map(len, spans(launches))))
    steady = [at * bound_us * factor / 1.4 for factor in (*factors, 1.0, 1.9) for _ in range(20)]
    found = Held(launches).after(*steady)
    assert changes(cut for cut, _ in found) <= 2
    assert changes(stays for _, stays in found) <= 1


def test_one_long_rest_is_soon_forgotten() -> None:
    held = Held(200)
    assert held.after(*[2500.0] * ROUNDS)[-1] == (True, True)
    assert held.after(1e9) == [(False, True)]
    assert held.after(*[2500.0] * 40)[-1] == (True, True)
    held.after(1e9)
    assert held.after(*[100.0] * 40)[-1] == (True, False)


def test_while_nothing_is_in_the_lane_nothing_is_decided() -> None:
    held = Held(0)
    assert held.after(*[1.0] * 9, *[1e6] * 9) == [(False, False)] * 18
    held.launches = 200
    assert held.after(1e6) == [(False, True)]
    held.launches = 0
    assert held.after(*[1.0] * 99)[-1] == (False, True)
    held.launches = 200
    assert held.after(1.0) == [(True, False)]


@pytest.mark.parametrize(("launches", "count"), [(1, 1), (95, 1), (96, 2), (159, 2), (160, 2), (161, 3), (1000, 16)])
def test_a_program_has_as_many_spans_as_it_is_long(launches: int, count: int) -> None:
    assert len(spans(launches)) == count
