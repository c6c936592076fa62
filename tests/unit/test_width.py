import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miriam.policy.width import Width


@given(most=st.integers(1, 200), late=st.lists(st.booleans(), max_size=400))
def test_a_width_stays_on_the_device_and_a_late_request_never_widens(most, late):
    width = Width(most)
    assert (width.sms, width.proven_sms) == (most, 0)
    for one in late:
        before = width.proven_sms
        width.told(one)
        assert 0 <= width.proven_sms <= width.sms <= most
        if one:
            assert width.proven_sms <= before


def test_all_sms_are_kept_if_they_do_no_harm():
    width = Width(132)
    for _ in range(1000):
        width.told(False)
        assert width.sms == 132
    assert width.proven_sms == 132


def shares(width: Width, chance: object, requests: int) -> tuple[float, float]:
    """Share of late requests and mean width, where a request at a width is late with a chance."""
    rng, late, sms = random.Random(1), 0, 0
    for _ in range(requests):
        one = rng.random() < chance(width.sms)
        late, sms = late + one, sms + width.sms
        width.told(one)
    return late / requests, sms / requests


@pytest.mark.parametrize("allowed", [6, 20, 60, 110])
def test_it_comes_to_rest_just_below_where_requests_become_late(allowed):
    width = Width(132)
    shares(width, lambda sms: float(sms > allowed), 1000)
    late, mean = shares(width, lambda sms: float(sms > allowed), 5000)
    assert late <= 0.012
    assert 0.6 * allowed < mean < allowed


def test_the_share_of_late_requests_is_held_where_it_rises_slowly():
    width = Width(132)
    shares(width, lambda sms: sms / 1320, 2000)
    late, mean = shares(width, lambda sms: sms / 1320, 20000)
    assert 0.006 < late < 0.014
    assert 5 < mean < 20


def test_it_follows_a_change_of_the_load_within_1000_requests():
    width = Width(132)
    shares(width, lambda sms: float(sms > 100), 2000)
    late, mean = shares(width, lambda sms: float(sms > 8), 1000)
    assert late < 0.02
    assert 3 < mean < 10
    shares(width, lambda sms: 0.0, 1000)
    assert width.proven_sms == 132


def test_two_late_requests_close_together_pause_and_the_way_back_is_fast():
    width = Width(132)
    for _ in range(40):
        width.told(False)
    width.told(True)
    assert 60 < width.sms < 80
    width.told(True)
    assert width.sms == 0
    for _ in range(200):
        width.told(False)
    assert width.sms > 30


def test_nothing_is_wide_where_even_a_pause_is_too_much():
    _, mean = shares(Width(132), lambda sms: 0.5, 2000)
    assert mean < 1
