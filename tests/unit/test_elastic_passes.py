"""Passes of elastic kernels on the PTX machine: however they are interrupted, the numbers are those of the original.

Each scenario compares all buffers to the bit, counts how often every element ran, and what of the
launch before had ended by then. A line left out of the forms or of the gates breaks one of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from elastic_chain import Chain, Link, Scenario, play, scenarios
from elastic_machine import Elastic, ElasticLane, Step
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from ptx_machine import Scheduler
from ptx_memory import MachineError, Memory
from ptx_support import entry, u64

from miriam.elastic.rewrite import ELASTIC, Form
from miriam.elastic.state import ALL, EPOCHS, MAX_LAUNCHES, NONE, TAKEN_BYTES

EXCLUSIVE = ("exclusive",)
CLAIMED = ("claimed", "together")
SEARCH = settings(
    max_examples=400,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@settings(max_examples=100)
@given(scenarios())
def test_passes_of_all_kinds(scenario: Scenario) -> None:
    play(scenario)


@settings(max_examples=60)
@given(scenarios(EXCLUSIVE))
def test_exclusive_passes(scenario: Scenario) -> None:
    play(scenario)


@settings(max_examples=60)
@given(scenarios(CLAIMED))
def test_claimed_passes_of_two_lanes(scenario: Scenario) -> None:
    play(scenario)


@settings(max_examples=60)
@given(scenarios(EXCLUSIVE, ("leaves", "shared", "whole", "whole")))
def test_launches_that_run_whole_run_once_too(scenario: Scenario) -> None:
    play(scenario)


# By what is left out: where it stands, what is put in its place, and the passes that need it. ``~`` is the prefix.
LINES = {
    "taken is stored": (r"st\.relaxed\.gpu\.global\.u16 \[%~at\], %~h;", "", EXCLUSIVE),
    "taken is looked at": (r"(setp\.eq\.u32 %~p), %~b, %~e;", r"\1, 0, 1;", EXCLUSIVE),
    "the stop is said": (r"st\.relaxed\.gpu\.global\.u32 \[%~lane\+\d+\], %~i;", "", EXCLUSIVE),
    "the stop is said everywhere": (r"st\.relaxed\.gpu\.global\.u32 \[%~lane\+(?!12\])\d+\], %~i;", "", EXCLUSIVE),
    "complete launches are left out": (r"setp\.lt\.u32 %~out, %~i, %~f;", "mov.pred %~out, 0;", EXCLUSIVE),
    "launches behind the stop are left out": (r"setp\.gt\.or\.u32 %~out, %~i, %~stop, %~out;", "", EXCLUSIVE),
    "the blocks of a share wait for each other": (r"(@!%~p ret;\s+)bar(rier)?\.sync 0;", r"\1", EXCLUSIVE),
    "a share waits for its threads": (r"(\$~end:\s+)bar(rier)?\.sync 0;", r"\1", CLAIMED),
    "the launch before is done": (r"setp\.ne\.u32 %~leave, %~done, %~shares;", "", CLAIMED),
    "a share is counted": (r"red\.release\.gpu\.global\.add\.u32 \[%~count\+4\], 1;", "", CLAIMED),
    "a claimed share is stored": (r"st\.relaxed\.gpu\.global\.u16 \[%~at\], %~h;", "", ("exclusive", "claimed")),
    "a claimed share is looked at": (r"(setp\.ne\.u32 %~p), %~c, %~e;", r"\1, 0, 1;", ("exclusive", "claimed")),
    "gate: a new number": (r"add\.u32 %epoch, %epoch, 1;", "", ("exclusive", "claimed")),
    "gate: from the first launch on": (r"mov\.u32 %next, 0;", "", EXCLUSIVE),
    "gate: the stop is cleared": (r"st\.relaxed\.gpu\.global\.u32 \[%at\+12\], \d+;", "", EXCLUSIVE),
    "gate: from the stop on": (r"selp\.u32 %next, %launches, %stop, %p;", "mov.u32 %next, %launches;", EXCLUSIVE),
    "gate: counters are cleared": (r"st\.relaxed\.gpu\.global\.u32 \[%at(\+4)?\], 0;", "", CLAIMED),
    "gate: what is taken is counted": (r"red\.relaxed.*%n;", "", ("exclusive", "claimed")),
}


@pytest.mark.parametrize("line", LINES)
def test_without_a_line_something_breaks(line: str) -> None:
    pattern, instead, kinds = LINES[line]
    patch = partial(re.sub, pattern.replace("~", "miriam"), instead.replace("~", "miriam"))

    def breaks(scenario: Scenario) -> bool:
        try:
            play(scenario, patch)
        except (AssertionError, MachineError):
            return True
        return False

    find(scenarios(kinds), breaks, settings=SEARCH)  # raises if there is none


# One thing at a time.


class Running:
    """A chain with two lanes."""

    def __init__(self, *links: Link, count: int = 40, wanted: int = ALL, epoch: int = 0) -> None:
        self.chain, self.memory = Chain(count, links), Memory()
        self.steps, self.at = self.chain.build(self.memory)
        self.elastic = Elastic(self.memory, self.steps, [link.each for link in links], wanted=wanted, epoch=epoch)
        self.lanes = [self.elastic.lane(), self.elastic.lane()]

    @property
    def runs(self) -> list[list[int]]:
        """How often each element of each launch ran."""
        return [self.memory.array(self.at[i], "<u4", self.chain.count).tolist() for i in self.chain.ran]

    @property
    def ran(self) -> list[int]:
        """How many elements ran of each launch."""
        return [sum(runs) for runs in self.runs]

    def all_ran(self, times: int) -> bool:
        return self.runs == [[times] * self.chain.count] * len(self.chain.links)

    def go(
        self,
        workers: int | None,
        lane: ElasticLane | None = None,
        between: Callable[[Scheduler], None] | None = None,
        seed: int = 0,
    ) -> None:
        """One pass."""
        scheduler = Scheduler(Random(seed))
        (lane or self.lanes[0]).enqueue(scheduler, workers)
        scheduler.run(between=None if between is None else lambda: between(scheduler))


LINKS = (Link(block=7), Link("shared", each=2), Link(block=5, columns=3))
KINDS = pytest.mark.parametrize("workers", [None, 3])


@KINDS
def test_an_inference_begins_only_when_it_is_wanted(workers: int | None) -> None:
    running = Running(*LINKS, wanted=2)
    for begun in (1, 2, 2, 2):
        running.go(workers)
        assert running.elastic.progress.begun == begun
        assert running.all_ran(begun)
    running.elastic.want(3)
    running.go(workers)
    assert running.all_ran(3)


@pytest.mark.parametrize("kinds", [(None,), (3,), (None, 2), (2, None)])
def test_the_numbers_of_inferences_begin_again_from_one(kinds: tuple[int | None, ...]) -> None:
    running = Running(*LINKS, epoch=EPOCHS - 1)
    for times, epoch in enumerate((EPOCHS, 1, 2, 3), 1):
        running.go(kinds[times % len(kinds)])
        elastic = running.elastic
        assert elastic.progress.epoch == epoch
        for at, shares in zip(elastic.taken, elastic.shares, strict=True):
            assert running.memory.read(at, shares * TAKEN_BYTES) == epoch.to_bytes(TAKEN_BYTES, "little") * shares
        assert running.all_ran(times)


@pytest.mark.parametrize(("workers", "limit"), [(None, 0), (None, 7), (3, 0)])
def test_under_a_limit_that_lets_nobody_work_nothing_runs(workers: int | None, limit: int) -> None:
    running = Running(*LINKS)
    before = running.chain.found(running.memory, running.at)
    running.lanes[0].write(limit)
    for _ in range(2):
        running.go(workers)
        assert running.lanes[0].record.first == MAX_LAUNCHES
        assert not running.elastic.complete
        assert running.chain.found(running.memory, running.at) == before
    running.lanes[0].write(ALL)
    running.go(workers)
    assert running.elastic.complete
    assert running.all_ran(1)


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_launch_that_runs_whole_is_skipped_when_it_is_complete(stopped: int) -> None:
    running = Running(Link(), Link("whole"), Link(each=2))
    lane = running.lanes[0]

    def stop(_: Scheduler) -> None:
        if running.ran[stopped] and lane.record.limit:
            lane.write(0)

    running.go(None, between=stop)
    assert lane.record.stop == stopped
    assert not running.elastic.complete
    count = running.chain.count
    assert running.ran[1] == (count if stopped else 0)
    assert 0 < running.ran[stopped] < count
    lane.write(ALL)
    running.go(None)
    assert running.elastic.complete
    assert lane.record.stop == NONE
    assert running.all_ran(1)


@pytest.mark.parametrize(("each", "workers"), [(1, None), (3, None), (1, 5), (3, 5)])
@settings(max_examples=10)
@given(st.integers(1, 200), st.integers(0, 1 << 32))
def test_who_writes_a_limit_is_heard_at_the_next_share(each: int, workers: int | None, when: int, seed: int) -> None:
    running, ran = Running(Link(block=4, each=each), count=300), None
    lane = running.lanes[0]

    def stop(_: Scheduler) -> None:
        nonlocal ran
        if ran is None and running.ran[0] >= when:
            ran = running.ran[0]
            lane.write(0)

    running.go(workers, between=stop, seed=seed)
    assert ran is not None
    assert running.ran[0] - ran <= 3 * each * 4  # three blocks at a time fit the machine
    assert not running.elastic.complete


@settings(max_examples=30)
@given(st.integers(0, 119), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1 << 32))
def test_work_moves_to_another_lane_in_mid_flight(when: int, here: int, there: int, seed: int) -> None:
    running = Running(*LINKS, wanted=1)
    moved = False

    def move(scheduler: Scheduler) -> None:
        nonlocal moved
        if not moved and sum(running.ran) >= when and running.lanes[0].record.width:  # its gate is done
            moved = True
            running.lanes[0].write(0)
            running.lanes[1].enqueue(scheduler, there)

    running.go(here, between=move, seed=seed)
    assert moved
    for _ in range(2):
        running.go(there, running.lanes[1], seed=seed)
    assert running.elastic.complete
    assert running.all_ran(1)


PLACE = entry("""
    ld.param.u64 %d0, [p0]; mov.u32 %r1, %ctaid.x; mad.wide.u32 %d1, %r1, 4, %d0; mov.u32 %r2, 4711;
    st.global.u32 [%d1], %r2;""")


@pytest.mark.parametrize(
    ("order", "limit", "kept"),
    [((0, 1, 2), 1, {0}), ((2, 0, 1), 2, {0, 2}), ((1, 2), 1, {1}), ((1,), 9, {1}), ((1,), ALL, {0, 1, 2})],
)
def test_workers_stay_on_the_sms_that_the_limit_leaves_them(order: tuple[int, ...], limit: int, kept: set[int]) -> None:
    seen: set[int] = set()
    for seed in range(10):
        memory = Memory()
        at = memory.alloc(4 * 40)
        step = Step(PLACE, "k", (40, 1, 1), (1, 1, 1), (u64(at), u64(0)))
        elastic = Elastic(memory, [step], patch=lambda text: text.replace("4711", "%smid"))  # which no kernel may ask
        lane, scheduler = elastic.lane(order=order), Scheduler(Random(seed))
        lane.write(limit)
        lane.enqueue(scheduler, 9, slots=(0, 1, 1, 2, 2))
        scheduler.run()
        assert elastic.complete
        seen |= set(memory.array(at, "<u4", 40).tolist())
    assert seen == kept


def test_all_forms_of_a_chain_were_made() -> None:
    running = Running(*LINKS, Link("whole"))
    forms = [step.made.forms["k"] for step in running.steps]
    assert forms == [ELASTIC] * 3 + [(Form.GUARDED,)]
