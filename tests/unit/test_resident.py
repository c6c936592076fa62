"""Inferences that look after themselves, and limits that several streams hold, on the PTX machine."""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import elastic_machine
import pytest
from elastic_chain import Chain, Link
from elastic_machine import Elastic, ElasticLane, Patch, run_original
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from ptx_machine import Launch, Machine, Scheduler, run
from ptx_memory import MachineError, Memory
from ptx_support import u32, u64

from miriam.elastic.ptxas import find_ptxas
from miriam.elastic.resident import COMPARE, FEED, GATE, HOLD, NOTIFY, RELEASE, RESIDENT, STEP, THREADS
from miriam.elastic.rewrite import Form
from miriam.elastic.state import ALL, COPIES, COPY_BYTES, IDLE_AT, MAX_LAUNCHES, PADDED_AT, Lane, Limiter, ranks
from miriam.errors import DeviceError

SEEDS = st.integers(0, 1 << 32)
LIMITS = st.lists(
    st.tuples(st.sampled_from([0, 30, 300, 1000, 3000]), st.sampled_from([0, 0, 1, 2, 5, ALL])), max_size=6
)
SEARCH = settings(
    max_examples=300, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
COMPLETES = {
    "runs": st.lists(LIMITS, min_size=1, max_size=3),
    "workers": st.integers(1, 6),
    "strided": st.booleans(),
    "last": st.sampled_from([ALL, 2]),
    "seed": SEEDS,
}
WHOLE = {
    "runs": st.lists(LIMITS, min_size=1, max_size=3),
    "looked": st.sets(st.integers(0, 4)),
    "ends": st.sets(st.integers(1, 4), max_size=2),
    "seed": SEEDS,
}
TURNS = {
    "runs": st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), LIMITS), min_size=2, max_size=5),
    "seed": SEEDS,
}
GOES_ON = {
    "when": st.integers(0, 300),
    "then": st.integers(0, 300),
    "limit": st.sampled_from([1, 2]),
    "claimed": st.booleans(),
    "shared": st.booleans(),
    "seed": SEEDS,
}
IMPATIENT = {
    "runs": st.lists(LIMITS, min_size=1, max_size=3),
    "looks": st.sampled_from([0, 1, 30]),
    "workers": st.none() | st.integers(1, 6),
    "last": st.sampled_from([0, 2, ALL]),
    "seed": SEEDS,
}
HELD = {
    "streams": st.lists(
        st.lists(st.sampled_from(["critical", "again", "pad", "idle"]), max_size=3), min_size=1, max_size=3
    ),
    "lanes": st.integers(1, 5),
    "seed": SEEDS,
}
SPANNED = {
    "runs": st.lists(LIMITS, min_size=2, max_size=3),
    "ends": st.sets(st.integers(1, 5), min_size=1),
    "workers": st.none() | st.integers(1, 6),
    "stays": st.booleans(),
    "seed": SEEDS,
}
LINKS = (Link(block=7), Link("shared", each=2), Link(block=5, columns=3))
SIX = (*LINKS, Link(block=9, each=2), Link("shared", block=6), Link(block=4))


class Running:
    """A chain of launches and its progress."""

    def __init__(
        self, memory: Memory, links: Sequence[Link], count: int = 40, wanted: int = ALL, patch: Patch = str
    ) -> None:
        self.memory, self.chain = memory, Chain(count, tuple(links))
        self.steps, self.at = self.chain.build(memory)
        each = [link.each for link in links]
        self.elastic = Elastic(memory, self.steps, each, wanted=wanted, patch=patch, races=True)

    def right(self, inferences: int) -> bool:
        """Whether the buffers hold what so many inferences of the original launches leave there."""
        memory = Memory()
        steps, at = self.chain.build(memory)
        for _ in range(inferences):
            run_original(memory, steps)
        return self.chain.found(self.memory, self.at) == self.chain.found(memory, at)


def go(
    lane: ElasticLane,
    limits: Sequence[tuple[int, int]] = (),
    *,
    workers: int | None = 4,
    looked: Sequence[int] = (),
    forms: Sequence[Form] | None = None,
    seed: int = 0,
    last: int = ALL,
    stays: bool = True,
    spans: Sequence[range] | None = None,
) -> None:
    """One resident inference; limits, one copy at a time, some turns behind each other, ``last`` in the end."""
    scheduler = Scheduler(Random(seed))
    graph = lane.resident(scheduler, workers, forms=forms, slots=range(4), looked=looked, stays=stays, spans=spans)
    next(graph)
    writes = [(turns if not i else 1, limit) for turns, limit in (*limits, (50, last)) for i in range(COPIES)]
    under_way: Iterator[None] = iter(())
    turns = 0

    def between() -> None:
        nonlocal under_way, turns
        next(graph, None)
        turns += 1
        assert scheduler.turns < 100_000, "it goes on for ever"
        if writes and turns >= writes[0][0]:
            limit, turns = writes.pop(0)[1], 0
            if next(under_way, self := object()) is self:
                under_way = lane.writes(limit)
                next(under_way)

    scheduler.run(between=between)


@settings(max_examples=60)
@given(**COMPLETES)
def test_an_inference_completes_whatever_the_limits_do(
    runs: list[list[tuple[int, int]]], workers: int, strided: bool, last: int, seed: int
) -> None:
    running = Running(Memory(), LINKS)
    lane = running.elastic.lane(order=(2, 0, 3, 1))
    forms = [Form.STRIDED if strided else Form.DIRECT] * len(LINKS)
    for times, limits in enumerate(runs, 1):
        go(lane, limits, workers=workers, forms=forms, seed=seed, last=last)
        assert running.elastic.complete
        assert running.elastic.progress.begun == times
        assert running.right(times)


@settings(max_examples=40)
@given(**WHOLE)
def test_launches_that_run_whole(
    runs: list[list[tuple[int, int]]], looked: set[int], ends: set[int], seed: int
) -> None:
    running = Running(Memory(), (Link("whole"), Link(block=7), Link("whole", block=4), Link("shared"), Link("whole")))
    lane, spans = running.elastic.lane(), parted(ends, 5) if ends else None
    for times, limits in enumerate(runs, 1):
        go(lane, limits, workers=None, looked=sorted(looked - {1, 3}), spans=spans, seed=seed)
        assert running.elastic.complete
        assert running.right(times)


def parted(ends: Iterable[int], launches: int) -> list[range]:
    """Spans of so many launches, with an end at each of ``ends``."""
    return [range(*pair) for pair in itertools.pairwise(sorted({0, *ends, launches}))]


@settings(max_examples=80)
@given(**SPANNED)
def test_spans_come_one_after_the_other_whatever_the_limits_do(
    runs: list[list[tuple[int, int]]], ends: set[int], workers: int | None, stays: bool, seed: int
) -> None:
    running = Running(Memory(), SIX)
    lane = running.elastic.lane(order=(2, 0, 3, 1))
    spans = parted(ends, len(SIX))
    for times, limits in enumerate(runs, 1):
        lane.passes.clear()
        go(lane, limits, workers=workers, stays=stays, spans=spans, seed=seed)
        assert running.elastic.complete
        assert running.elastic.progress.begun == times
        assert running.right(times)
        # Whatever stopped a pass, those behind it pass over launches of its span alone, and of no complete span.
        assert all(one.begin in one.span for one in lane.passes)
        assert [span for span, _ in itertools.groupby(one.span for one in lane.passes)] == spans


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(("before", "behind"), [(2, ALL), (ALL, 2), (2, 5), (ALL, ALL)])
def test_a_span_may_run_in_another_way_than_the_one_before_it(before: int, behind: int, stays: bool) -> None:
    running = Running(Memory(), SIX)
    lane, spans = running.elastic.lane(), parted([3], len(SIX))
    for times in (1, 2):
        lane.passes.clear()
        lane.write(before)
        graph = lane.resident(scheduler := Scheduler(Random(times)), 4, slots=range(4), stays=stays, spans=spans)
        next(graph)

        def between(graph: Iterator[None] = graph) -> None:
            next(graph, None)
            if running.elastic.progress.next == 3 and lane.record.limit != behind:
                lane.write(behind)

        scheduler.run(between=between)
        assert next(graph, "over") == "over"
        assert running.right(times)
        ways = [[one.narrow for one in lane.passes if one.span == span] for span in spans]
        assert [way[-1] for way in ways] == [before != ALL, behind != ALL]
        assert [len(way) for way in ways] == [1 + (before != ALL), 1 + (behind != ALL)]  # one in front is for nothing


@settings(max_examples=40)
@given(**TURNS)
def test_two_programs_take_turns_in_two_lanes(runs: list[tuple[int, int, list[tuple[int, int]]]], seed: int) -> None:
    memory = Memory()
    programs = [Running(memory, LINKS), Running(memory, (Link("shared", each=3), Link(block=5)), count=30)]
    own = [programs[0].elastic.lane(order=(1, 0, 2, 3)) for _ in range(2)]
    lanes = [own, [lane.shared(programs[1].elastic) for lane in own]]
    times = [0, 0]
    for program, lane, limits in runs:
        times[program] += 1
        go(lanes[program][lane], limits, workers=None if program else 3, seed=seed)
        assert programs[program].right(times[program])


@settings(max_examples=40)
@given(**GOES_ON)
def test_passes_of_one_way_go_on_where_those_of_the_other_stopped(
    when: int, then: int, limit: int, claimed: bool, shared: bool, seed: int
) -> None:
    running, other = Running(memory := Memory(), LINKS, wanted=1), Running(memory, LINKS)
    lane = running.elastic.lane()
    borrowed = lane.shared(other.elastic)
    for workers, after in ((4, when), (3 if claimed else None, then)):
        scheduler, turns = Scheduler(Random(seed)), 0

        def stop(after: int = after) -> None:
            nonlocal turns
            turns += 1
            if turns == after:
                lane.write(0)

        lane.write(limit if workers else ALL)
        lane.enqueue(scheduler, workers)
        scheduler.run(between=stop)
        every = u32(len(LINKS))
        call(running.elastic.resident, STEP, u64(running.elastic.inference), u64(lane.address), u64(0), every)
        if shared:
            lane.write(ALL)
            go(borrowed)  # the words of the lane are another program's from here on
    go(lane)
    assert running.elastic.complete
    assert running.right(1)


def call(machine: Machine, name: str, *args: bytes, blocks: int = 1) -> None:
    """Run a kernel alone."""
    run(launch(machine, name, *args, blocks=blocks))


def launch(machine: Machine, name: str, *args: bytes, blocks: int = 1) -> Launch:
    return machine.launch(name, (blocks, 1, 1), (THREADS[name], 1, 1), list(args))


@pytest.mark.parametrize(("narrow", "first", "limit"), [(True, 0, ALL), (True, 0, 3), (False, 3, ALL)])
def test_the_gate_waits_while_it_may_not_run(narrow: bool, first: int, limit: int) -> None:
    running = Running(Memory(), LINKS)
    memory, lane = running.memory, running.elastic.lane()
    choice = memory.alloc(u32(7))
    lane.write(first)
    gate = launch(
        running.elastic.resident, GATE, u64(running.elastic.inference), u64(lane.address), u64(choice if narrow else 0)
    )
    scheduler, turns = Scheduler(Random(0), gate), 0

    def between() -> None:
        nonlocal turns
        turns += 1
        if turns == 2000:
            assert not gate.done
            assert lane.record.first == MAX_LAUNCHES
            lane.write(limit)

    scheduler.run(between=between)
    assert turns > 2000
    assert (lane.record.width, lane.record.first) == (limit, 0)
    assert memory.load(choice, 4) == (7 if not narrow else limit != ALL)


def patience(looks: int) -> Patch:
    """Gates and workers look at the limit so many times, and then wait no longer."""
    return lambda text: re.sub(r"(mov\.u32 %\w+), \d+;(?=\n\$\w*wait:)", rf"\1, {looks};", text)


@pytest.mark.parametrize(("narrow", "limit"), [(True, 0), (False, 0), (False, 3)])
def test_a_gate_that_has_waited_for_long_begins_a_pass(narrow: bool, limit: int) -> None:
    waited = []
    for looks in (0, 10, 20):
        running = Running(Memory(), LINKS, patch=patience(looks))
        lane, choice = running.elastic.lane(), running.memory.alloc(u32(7))
        lane.write(limit)
        addresses = [u64(at) for at in (running.elastic.inference, lane.address, choice if narrow else 0)]
        waited.append(run(launch(running.elastic.resident, GATE, *addresses), steps=100_000))
        assert (lane.record.width, lane.record.first) == (limit, 0)
        assert not running.elastic.progress.claimed
        assert running.memory.load(choice, 4) == (0 if narrow else 7)
    assert waited[2] - waited[1] == waited[1] - waited[0] > 10  # instructions


@settings(max_examples=60)
@given(**IMPATIENT)
def test_a_pass_that_nobody_allowed_runs_every_launch_once(
    runs: list[list[tuple[int, int]]], looks: int, workers: int | None, last: int, seed: int
) -> None:
    """Whatever the limits do before it, beside it and behind it."""
    running = Running(Memory(), LINKS, patch=patience(looks))
    lane = running.elastic.lane(order=(2, 0, 3, 1))
    for times, limits in enumerate(runs, 1):
        lane.write(0)
        go(lane, limits, workers=workers, seed=seed, last=last)
        assert running.elastic.complete
        assert running.elastic.progress.begun == times
        assert running.right(times)


@pytest.mark.parametrize("limit", [0, 3, ALL])
def test_nobody_waits_when_there_is_nothing_to_run(limit: int) -> None:
    running = Running(Memory(), LINKS, wanted=1)
    lane = running.elastic.lane()
    go(lane)
    lane.write(limit)
    scheduler = Scheduler(Random(0))
    graph = lane.resident(scheduler, 3)
    next(graph)
    scheduler.run(between=lambda: next(graph, None))
    assert next(graph, "over") == "over"
    assert running.right(1)


def test_the_host_hears_of_every_end() -> None:
    running = Running(Memory(), LINKS, wanted=1)
    memory, machine = running.memory, running.elastic.resident
    counter, words, lane = memory.alloc(u32(41)), memory.alloc(8), running.elastic.lane()
    lane.enqueue(scheduler := Scheduler(Random(0)))
    scheduler.run(between=lambda: lane.write(0))
    inference = u64(running.elastic.inference)
    call(machine, STEP, inference, u64(lane.address), u64(0), u32(len(LINKS)))
    call(machine, NOTIFY, inference, u64(counter), u64(words))
    assert memory.array(words, "<u4", 2).tolist() == [42, 0]
    lane.write(ALL)
    go(lane)
    call(machine, NOTIFY, inference, u64(counter), u64(words))
    assert memory.array(words, "<u4", 2).tolist() == [43, 1]
    call(machine, NOTIFY, u64(0), u64(counter), u64(words))
    assert memory.array(words, "<u4", 2).tolist() == [44, 1]


@settings(max_examples=100)
@given(**HELD)
def test_limits_are_right_whoever_comes_last(streams: list[list[str]], lanes: int, seed: int) -> None:
    random, memory = Random(seed), Memory()
    machine = Machine(elastic_machine.CONDITIONAL, memory)
    records = [memory.alloc(Lane(limit=5).pack()) for _ in range(lanes)]
    limiters = [memory.alloc(Limiter(padded=i, idle=7).pack()) for i in range(lanes)]
    table = memory.alloc(b"".join(struct.pack("<QQ", *pair) for pair in zip(records, limiters, strict=True)))
    scheduler, ended, turn = Scheduler(random), 0, 0
    later = []

    def settle(count: int) -> Launch:
        return launch(machine, HOLD, u64(table), u32(lanes), u32(count))

    for stream in streams:
        counter, words = memory.alloc(4), memory.alloc(8)
        release = [u64(table), u32(lanes), u64(counter), u64(words)]
        tail = scheduler.add(settle(0))
        for what in stream:
            if what in ("pad", "idle"):
                at, value = PADDED_AT if what == "pad" else IDLE_AT, random.choice([0, 1, 6, ALL])
                later.append((random.randrange(400), limiters[random.randrange(lanes)] + at, value))
                continue
            count = 1 if what == "critical" else 2
            tail = scheduler.add(settle(count), tail)
            for _ in range(count):
                tail = scheduler.add(launch(machine, RELEASE, *release), tail)
            ended += count

    def between() -> None:
        nonlocal turn
        turn += 1
        for item in [item for item in later if item[0] <= turn or scheduler.done]:
            later.remove(item)
            memory.write(item[1], u32(item[2]))
            scheduler.add(settle(0))

    while not scheduler.done:
        scheduler.run(between=between)
    assert not later
    for record, at in zip(records, limiters, strict=True):
        limiter = Limiter.unpack(memory.read(at, 16))
        assert limiter.pending == 0
        copies = [memory.load(record + COPY_BYTES * i, 4) for i in range(COPIES)]
        assert copies == [limiter.limit] * COPIES


@pytest.mark.parametrize(("padded", "idle", "held"), [(0, ALL, 0), (3, ALL, 3), (ALL, 0, 0), (5, 2, 2)])
def test_a_lane_is_held_down_while_anybody_needs_it(padded: int, idle: int, held: int) -> None:
    memory = Memory()
    machine, record = Machine(elastic_machine.CONDITIONAL, memory), memory.alloc(Lane().pack())
    limiter = memory.alloc(Limiter(padded=padded, idle=idle).pack())
    table, counter, words = memory.alloc(u64(record) + u64(limiter)), memory.alloc(4), memory.alloc(8)

    def limit() -> int:
        return Lane.unpack(memory.read(record, 16)).limit

    call(machine, HOLD, u64(table), u32(1), u32(2))
    assert limit() == held == Limiter.unpack(memory.read(limiter, 16)).limit
    for ended, then in ((1, held), (2, idle)):
        call(machine, RELEASE, u64(table), u32(1), u64(counter), u64(words))
        assert limit() == then
        assert memory.array(words, "<u4", 2).tolist() == [ended, 1]


@settings(max_examples=40)
@given(st.integers(1, 700), st.integers(0, 15), st.integers(0, 7), st.integers(1, 3))
def test_inputs_take_turns_and_outputs_are_compared(size: int, odd: int, count: int, blocks: int) -> None:
    memory, random = Memory(), Random(size)
    machine, pair = Machine(elastic_machine.CONDITIONAL, memory), [random.randbytes(size) for _ in "ab"]
    counter, wrong = memory.alloc(u32(count)), memory.alloc(u32(3))
    a, b = (memory.alloc(bytes(odd) + content) + odd for content in pair)
    to = memory.alloc(odd + size) + odd
    call(machine, FEED, u64(counter), u64(a), u64(b), u64(to), u64(size), blocks=blocks)
    assert memory.read(to, size) == pair[count % 2]
    for expected in (0, 1):
        call(machine, COMPARE, u64(counter), u64(to), u64(a), u64(b), u64(size), u64(wrong), blocks=blocks)
        assert memory.load(wrong, 4) == 3 + expected
        memory.write(to + size - 1, bytes([pair[count % 2][-1] ^ 1]))
    changed = set(random.sample(range(size), min(size, 9)))
    memory.write(to, bytes(x ^ (i in changed) for i, x in enumerate(pair[count % 2])))
    memory.write(wrong, u32(0))
    call(machine, COMPARE, u64(counter), u64(to), u64(a), u64(b), u64(size), u64(wrong), blocks=blocks)
    assert memory.load(wrong, 4) == len({i // 4 for i in changed})


@pytest.mark.parametrize("target", ["sm_75", "sm_90a", "sm_100a"])
def test_the_assembler_takes_the_kernels(target: str, tmp_path: Path) -> None:
    ptxas = find_ptxas()
    if ptxas is None:
        pytest.skip("there is no ptxas")
    (tmp_path / "resident.ptx").write_text(RESIDENT)
    options = ["-c", f"-arch={target}", str(tmp_path / "resident.ptx"), "-o", str(tmp_path / "resident.o")]
    made = subprocess.run([ptxas, *options], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")


@dataclass(frozen=True)
class Line:
    """What is left out of the kernels: where it stands, what is put in its place; and the test that needs it."""

    pattern: str
    instead: str
    test: Callable[..., None]
    arguments: Mapping[str, st.SearchStrategy[Any]]


def _lines(test: Callable[..., None], arguments: Mapping[str, st.SearchStrategy[Any]], **lines: str) -> dict[str, Line]:
    """By name, what is looked for and what is put in its place, with an arrow between."""
    parted = {name: text.partition(" -> ") for name, text in lines.items()}
    return {name: Line(pattern, instead, test, arguments) for name, (pattern, _, instead) in parted.items()}


LINES = (
    _lines(
        test_an_inference_completes_whatever_the_limits_do,
        COMPLETES,
        gate_sets_the_counters=r"selp\.u32 %t, 0, %i, %p; -> mov.u32 %t, 0;",
        gate_says_the_way=r"st\.[^;]*\[%inference\+8\], %i; -> ",
        step_settles_its_own_lane=r"(?s)(miriam_step.*?setp\.)ne(\.u64 %p, %last, %lane;) -> \1eq\2",
    )
    | _lines(
        test_spans_come_one_after_the_other_whatever_the_limits_do,
        SPANNED,
        step_ends_with_its_span=r"ld\.param\.u32 %launches, \[until\]; -> ",
    )
    | _lines(
        test_two_programs_take_turns_in_two_lanes,
        TURNS,
        step_says_the_next=r"st\.[^;]*\[%inference\], %next; -> ",
    )
    | _lines(
        test_passes_of_one_way_go_on_where_those_of_the_other_stopped,
        GOES_ON,
        step_forgets_the_lane=r"st\.[^;]*\[%inference\+40\], 0; -> ",
    )
    | _lines(
        test_a_pass_that_nobody_allowed_runs_every_launch_once,
        {**IMPATIENT, "last": st.just(0)},
        gate_waits_no_longer=r"setp\.eq\.or\.u32 %p, %n, 0, %p; -> ",
        gate_counts_its_looks=r"sub\.u32 %n, %n, 1; -> ",
    )
    | _lines(
        test_launches_that_run_whole,
        WHOLE,
        look_leaves_out_the_complete=r"setp\.lt\.u32 %p, %index, %first; -> mov.pred %p, 0;",
        look_leaves_out_what_is_behind_the_stop=r"setp\.gt\.or\.u32 %p, %index, %stop, %p; -> ",
        look_stops=r"st\.[^;]*, %index; -> ",
        look_stops_everywhere=r"st\.[^;]*\[%lane\+(?!12\])\d+\], %index; -> ",
    )
    | _lines(
        test_limits_are_right_whoever_comes_last,
        HELD,
        limits_are_looked_at_again=r"bra \$again; -> bra $next;",
    )
)


@pytest.mark.parametrize("name", LINES)
def test_without_a_line_something_breaks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = LINES[name]
    text, count = re.subn(line.pattern, line.instead, elastic_machine.CONDITIONAL)
    assert count
    monkeypatch.setattr(elastic_machine, "CONDITIONAL", text)

    def breaks(arguments: dict[str, Any]) -> bool:
        try:
            line.test.hypothesis.inner_test(**arguments)  # type: ignore[attr-defined]
        except (AssertionError, MachineError):
            return True
        return False

    find(st.fixed_dictionaries(line.arguments), breaks, settings=SEARCH)  # raises if there is none


def test_an_order_of_sms_names_each_once() -> None:
    for order in ([1, 1], [256], [-1]):
        with pytest.raises(DeviceError, match="once"):
            ranks(order)
