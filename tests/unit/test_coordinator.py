import itertools
from collections.abc import Callable, Iterable
from functools import partial
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import EDGE, Script, ScriptedDevice
from support import Profiles, program

from miriam.coordinator import View, coordinate
from miriam.device.base import Command, Event, EventKind, Lane, Run, Wake
from miriam.device.sim.device import SimDevice
from miriam.errors import DeviceError, PolicyError
from miriam.task import Criticality, Request, Task

CRITICAL = Task("c", program("c", [(4, 32), (8, 32)]), Criticality.CRITICAL)
NORMAL = Task("n", program("n", [(16, 32)]))


class Hand:
    """A policy made of one function."""

    name = "hand"
    lanes = (Lane("a"), Lane("b", 1))

    def __init__(self, decide: Callable[[Event, View], Iterable[Command]]) -> None:
        self._decide = decide

    def decide(self, event: Event, view: View) -> Iterable[Command]:
        return self._decide(event, view)

    def report(self) -> dict[str, float]:
        return {}


class Unchecked(ScriptedDevice):
    def _check(self, run: Run) -> None:
        pass


def whole(event: Event, view: View) -> Iterable[Command]:
    return [Run(event.request, 0)] if event.kind is EventKind.ARRIVED else []


def test_requests_are_served_and_given_back_in_the_order_of_their_ends():
    script = Script([(0.0, NORMAL), (1.0, CRITICAL), (2.0, NORMAL)])
    done = coordinate(ScriptedDevice(), Hand(whole), script, 1e9)
    assert [r.number for r in done] == [0, 1, 2]
    assert [r.latency_us for r in done] == [4.0, 6.0, 9.0]


def test_a_closed_loop_asks_again_when_it_is_served():
    script = Script([(0.0, NORMAL)], closed={"n": 3})
    done = coordinate(ScriptedDevice(), Hand(whole), script, 1e9)
    assert [r.arrival_us for r in done] == [0.0, 4.0, 8.0, 12.0]


def test_a_policy_is_woken_when_it_asks_for_it():
    heard = []

    def decide(event: Event, view: View) -> Iterable[Command]:
        heard.append((event.kind, event.time_us))
        if event.kind is EventKind.ARRIVED:
            yield Wake(2.5)
            yield Run(event.request, 0)

    coordinate(ScriptedDevice(), Hand(decide), Script([(0.0, NORMAL)]), 1e9)
    assert heard == [(EventKind.ARRIVED, 0.0), (EventKind.TICK, 2.5), (EventKind.FINISHED, 4.0)]


def test_what_runs_at_the_end_is_left_out():
    done = coordinate(ScriptedDevice(), Hand(whole), Script([(0.0, NORMAL), (1.0, NORMAL)]), until_us=5.0)
    assert [r.number for r in done] == [0]


def test_the_view_holds_the_event_and_every_command_before_the_next_is_asked_for():
    seen = []

    def decide(event: Event, view: View) -> Iterable[Command]:
        seen.append((event.kind.name, view.now_us, len(view.pending), view.idle(0), view.idle(1)))
        if event.kind is EventKind.ARRIVED:
            assert event.request is view.pending[-1]
            first = Run(event.request, 0, 0, 1)
            yield first
            assert list(view.flying(0)) == [first]
            assert (view.launch_of(event.request), view.left(event.request, 1)) == (0, 8)
            yield Run(event.request, 1, 1, 2, after=(first,))
            assert not view.idle(1)
        elif view.pending:
            assert view.launch_of(event.request) == 1

    coordinate(ScriptedDevice(), Hand(decide), Script([(3.0, CRITICAL)]), 1e9)
    assert seen == [
        ("ARRIVED", 3.0, 1, True, True),
        ("FINISHED", 4.0, 1, True, False),
        ("FINISHED", 6.0, 0, True, True),
    ]


def test_the_view_counts_blocks_that_are_left():
    view = View(EDGE, Hand(whole).lanes)
    request = Request(CRITICAL, 0, 0.0)
    view._arrived(request)
    assert view.waiting(critical=True) == [request]
    assert view.waiting(critical=False) == []
    assert (view.left(request, 0), view.left(request, 1), view.launch_of(request)) == (4, 8, 0)
    parts = (Run(request, 0, 0, 1), *(Run(request, 0, 1, blocks=blocks) for blocks in ((4, 8), (0, 2), (2, 4))))
    for run, left in zip(parts, (8, 4, 2, 0), strict=True):
        view._submitted(run)
        assert view._finished(run) is (left == 0)
        if left:
            assert (view.left(request, 1), view.launch_of(request)) == (left, 1)
    assert view.pending == []


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_view_knows_what_is_left_before_between_and_after_parts(blocks: list[int], random: Random):
    """Whole launches in a row, or a launch in shards, in any order of its shards; a request beside it is untouched."""
    task = Task("t", program("t", [(count, 32) for count in blocks]))
    view = View(EDGE, Hand(whole).lanes)
    request, other = Request(task, 0, 0.0), Request(task, 1, 0.0)
    for each in (request, other):
        view._arrived(each)
    left, launch = list(blocks), 0

    def check():
        assert [view.left(request, i) for i in range(len(blocks))] == left
        assert view.launch_of(request) == next(i for i, count in enumerate(left) if count)
        assert [view.left(other, i) for i in range(len(blocks))] == blocks
        assert view.launch_of(other) == 0

    while launch < len(blocks):
        last = random.randint(launch, len(blocks))
        if last > launch:
            parts = [Run(request, 0, launch, last)]
        else:
            cuts = sorted({0, blocks[launch], *random.choices(range(blocks[launch]), k=2)})
            parts = [Run(request, 0, launch, blocks=pair) for pair in itertools.pairwise(cuts)]
            random.shuffle(parts)
        for run in parts:
            view._submitted(run)
        for run in parts:
            check()
            over = view._finished(run)
            for i in run.launches:
                left[i] -= blocks[i] if run.blocks is None else run.blocks[1] - run.blocks[0]
            assert over is not any(left)
        launch = parts[-1].launches.stop
    assert view.pending == [other]
    run = Run(other, 0)
    view._submitted(run)
    assert view._finished(run)
    assert view.pending == []


def test_what_is_left_of_the_whole_stays_until_its_run_ends():
    view = View(EDGE, Hand(whole).lanes)
    request = Request(CRITICAL, 0, 0.0)
    view._arrived(request)
    view._submitted(Run(request, 0))
    assert (view.left(request, 0), view.left(request, 1), view.launch_of(request)) == (4, 8, 0)


@pytest.mark.parametrize("first", [Run, partial(Run, first=1), partial(Run, blocks=(0, 4))])
def test_what_ran_whole_cannot_run_again_in_parts(first: Callable[..., Run]):
    view = View(EDGE, Hand(whole).lanes)
    request = Request(CRITICAL, 0, 0.0)
    view._arrived(request)
    runs = [Run(request, 0), first(request, 1)]
    for run in runs:
        view._submitted(run)
    assert view._finished(runs[0])
    with pytest.raises(PolicyError, match=r"blocks of launch [01] of c ran twice"):
        view._finished(runs[1])


@pytest.mark.parametrize("parts", [(), ((0, 4),), ((0, 2), (2, 4))])
def test_a_request_that_fails_is_forgotten_whatever_of_it_has_run(parts: tuple[tuple[int, int], ...]):
    view = View(EDGE, Hand(whole).lanes)
    request = Request(CRITICAL, 0, 0.0)
    view._arrived(request)
    runs = [*(Run(request, 0, blocks=blocks) for blocks in parts), Run(request, 1, 1), Run(request, 0, 1)]
    for run in runs:
        view._submitted(run)
    for run in runs[: len(parts)]:
        assert not view._finished(run)
    request.error = DeviceError("it is broken")
    assert view._finished(runs[-2])
    assert (view.idle(0), view.idle(1), view.pending) == (True, True, [])


def test_a_finished_run_lets_go_of_those_before_it():
    runs = []

    def chain(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED:
            for i in range(2):
                runs.append(Run(event.request, i, i, i + 1, after=tuple(runs)))
                yield runs[-1]
            assert runs[1].after == (runs[0],)

    coordinate(ScriptedDevice(), Hand(chain), Script([(0.0, CRITICAL)]), 1e9)
    assert [run.after for run in runs] == [(), ()]


def test_blocks_that_run_twice_are_an_error():
    def twice(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED:
            yield Run(event.request, 0, 0, blocks=(0, 3))
            yield Run(event.request, 0, 0, blocks=(1, 4))

    with pytest.raises(PolicyError, match="blocks of launch 0 of c ran twice"):
        coordinate(Unchecked(), Hand(twice), Script([(0.0, CRITICAL)]), 1e9)


@pytest.mark.parametrize("runs", [((0, 0), (1, 0)), ((0, 0), (1, 1))])
def test_a_request_that_runs_twice_on_two_lanes_is_an_error(runs: tuple[tuple[int, int], ...]):
    def twice(event: Event, view: View) -> Iterable[Command]:
        return [Run(event.request, *run) for run in runs] if event.kind is EventKind.ARRIVED else []

    for device in (Unchecked(), SimDevice("sim:h200/8", Profiles(CRITICAL.program))):
        with pytest.raises(PolicyError, match="launch"):
            coordinate(device, Hand(twice), Script([(0.0, CRITICAL)]), 1e6)


def test_a_launch_that_overtakes_the_one_before_it_is_an_error():
    def overtaking(event: Event, view: View) -> Iterable[Command]:
        return [Run(event.request, 0, 0, 1), Run(event.request, 1, 1)] if event.kind is EventKind.ARRIVED else []

    short = Task("s", program("s", [(64, 32), (4, 32)]))
    with pytest.raises(PolicyError, match=r"launch 1 of s ended before launch 0: .*Run\.after"):
        coordinate(Unchecked(), Hand(overtaking), Script([(0.0, short)]), 1e9)


@pytest.mark.parametrize("lane", [-1, 2])
def test_a_lane_that_is_not_there_is_an_error(lane: int):
    def astray(event: Event, view: View) -> Iterable[Command]:
        return [Run(event.request, lane)]

    with pytest.raises(DeviceError, match=f"lane {lane}, the device was opened with 2"):
        coordinate(ScriptedDevice(), Hand(astray), Script([(0.0, NORMAL)]), 1e9)


def test_a_request_that_has_finished_cannot_run_again():
    def again(event: Event, view: View) -> Iterable[Command]:
        return [Run(event.request, 0)]

    with pytest.raises(PolicyError, match="request 0 of n has finished or never arrived"):
        coordinate(ScriptedDevice(), Hand(again), Script([(0.0, NORMAL)]), 1e9)


def test_a_run_may_only_wait_for_runs_that_were_submitted():
    def waiting_for_nothing(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED:
            never = Run(event.request, 0, 0, 1)
            yield Run(event.request, 1, after=(never,))

    with pytest.raises(PolicyError, match="a run of n waits for one that was not submitted"):
        coordinate(ScriptedDevice(), Hand(waiting_for_nothing), Script([(0.0, NORMAL)]), 1e9)
