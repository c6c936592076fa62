"""Chains of launches that show what was run when, and passes over them.

Each launch adds to one of two buffers what it finds in the other, at the other end and next door:

    to[i] = 3 * to[i] + from[count - 1 - i] + 1

A block that runs twice, or a launch that runs too early or too late, changes the numbers. Beside them
each element counts how often it ran, and how many elements of the launch before had ended by then.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from elastic_machine import Elastic, ElasticLane, Patch, Step, run_original
from hypothesis import strategies as st
from ptx_machine import Scheduler
from ptx_memory import Memory
from ptx_support import entry, u32, u64

from miriam.elastic.rewrite import Form
from miriam.elastic.state import ALL, EPOCHS

__all__ = ["Chain", "Link", "Pass", "Phase", "Scenario", "play", "scenarios"]

_START = """
    mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %nctaid.x; mov.u32 %r4, %ntid.x;
    mad.lo.u32 %r1, %r2, %r3, %r1; mad.lo.u32 %r2, %r1, %r4, %r0; ld.param.u32 %r5, [p6];
    ld.param.u64 %d0, [p0]; ld.param.u64 %d1, [p1]; ld.param.u64 %d2, [p2];
    ld.param.u64 %d3, [p3]; ld.param.u64 %d4, [p4]; ld.param.u64 %d5, [p5];
    setp.ge.u32 %p1, %r2, %r5;
    sub.u32 %r6, %r5, %r2; sub.u32 %r6, %r6, 1; mad.wide.u32 %d6, %r6, 4, %d1;
    mad.wide.u32 %d7, %r2, 4, %d0; mad.wide.u32 %d8, %r2, 4, %d2; mad.wide.u32 %d9, %r2, 4, %d3;
"""
_COUNT = """
    red.global.add.u32 [%d8], 1; ld.relaxed.gpu.global.u32 %r9, [%d5]; red.global.add.u32 [%d9], %r9;
    mad.lo.u32 %r8, %r8, 3, %r7; add.u32 %r8, %r8, 1; st.global.u32 [%d7], %r8;
    red.relaxed.gpu.global.add.u32 [%d4], 1;
"""
_LEAVES = f"@%p1 ret; ld.global.u32 %r8, [%d7]; ld.global.u32 %r7, [%d6]; {_COUNT}"
# What was found goes round the block through shared memory.
_SHARED = f"""
    .shared .align 4 .b8 pool[256]; mov.u32 %r20, pool; mad.lo.u32 %r21, %r0, 4, %r20; mov.u32 %r7, 0;
    @!%p1 ld.global.u32 %r8, [%d7]; @!%p1 ld.global.u32 %r7, [%d6]; st.shared.u32 [%r21], %r7;
    add.u32 %r22, %r0, 1; rem.u32 %r22, %r22, %r4; mad.lo.u32 %r22, %r22, 4, %r20;
    bar.sync 0; ld.shared.u32 %r7, [%r22];
    @%p1 bra LAST; {_COUNT} LAST:
"""
_PARAMETERS = ("u64",) * 6 + ("u32",)
_TEXTS = {
    "leaves": entry(_START + _LEAVES, _PARAMETERS),
    "shared": entry(_START + _SHARED, _PARAMETERS),
    "whole": entry(f"mov.u32 %r30, %smid; {_START} {_LEAVES}", _PARAMETERS),  # guarded: it names its SM
}


@dataclass(frozen=True, slots=True)
class Link:
    """One launch: what kernel, how many threads a block, how many blocks a row, how many blocks a share."""

    kernel: str = "leaves"
    block: int = 8
    columns: int = 100
    each: int = 1


@dataclass(frozen=True, slots=True)
class Chain:
    """Launches over two buffers of ``count`` elements, turn about."""

    count: int
    links: tuple[Link, ...]

    @property
    def loopable(self) -> bool:
        return all(link.kernel != "whole" for link in self.links)

    def build(self, memory: Memory) -> tuple[list[Step], list[int]]:
        """The launches, and where their buffers lie: the two, then runs and ends seen of each launch, then ends."""
        numbers, size = Random(self.count), 4 * self.count
        buffers = [memory.alloc(numbers.randbytes(size), name=name) for name in "xy"]
        seen = [memory.alloc(size, name=f"{what} {i}") for i in range(len(self.links)) for what in ("runs", "seen")]
        ended = memory.alloc(4 * len(self.links), name="ended")
        steps = []
        for i, link in enumerate(self.links):
            before = (i - 1) % len(self.links)
            at = (buffers[i % 2], buffers[1 - i % 2], *seen[2 * i : 2 * i + 2], ended + 4 * i, ended + 4 * before)
            blocks = -(-self.count // link.block)
            columns = min(link.columns, blocks)
            grid, args = (columns, -(-blocks // columns), 1), (*map(u64, at), u32(self.count))
            steps.append(Step(_TEXTS[link.kernel], "k", grid, (link.block, 1, 1), args))
        return steps, [*buffers, *seen, ended]

    def found(self, memory: Memory, at: list[int]) -> list[bytes]:
        """What the buffers hold."""
        return [memory.read(a, 4 * self.count) for a in at[:-1]] + [memory.read(at[-1], 4 * len(self.links))]

    @property
    def ran(self) -> list[int]:
        """Where in ``found`` the runs of each launch are."""
        return [2 + 2 * i for i in range(len(self.links))]


@functools.lru_cache(maxsize=256)
def _expected(chain: Chain, inferences: int) -> list[bytes]:
    memory = Memory()
    steps, at = chain.build(memory)
    for _ in range(inferences):
        run_original(memory, steps)
    found = chain.found(memory, at)
    assert all(found[i] == u32(inferences) * chain.count for i in chain.ran)
    return found


@dataclass(frozen=True, slots=True)
class Pass:
    """Passes of one lane, ``times`` in a row: exclusive if ``workers`` is 0. ``limit`` is what they begin under."""

    lane: int
    workers: int
    limit: int = ALL
    times: int = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """Passes side by side, and limits of lanes that change meanwhile: one copy every ``pace`` turns."""

    passes: tuple[Pass, ...]
    writes: tuple[tuple[int, int], ...] = ()
    delay: int = 0
    pace: int = 1
    strided: bool = False
    slots: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Phases, after which lane 0 alone completes what is wanted."""

    chain: Chain
    phases: tuple[Phase, ...]
    inferences: int = 1
    epoch: int = 0
    workers: int = 0
    order: tuple[int, ...] = (0, 1, 2, 3)  # of SMs, those first that a narrow lane keeps


@dataclass(slots=True)
class _Writer:
    """Changes of one lane's limit, one after the other."""

    lane: ElasticLane
    ahead: deque[int] = field(default_factory=deque)
    under_way: Iterator[None] = field(default_factory=lambda: iter(()))

    def step(self) -> bool:
        """Write one more copy, if there is one to be written."""
        while True:
            if next(self.under_way, self) is None:
                return True
            if not self.ahead:
                return False
            self.under_way = self.lane.writes(self.ahead.popleft())

    def write(self, limit: int) -> None:
        self.ahead.append(limit)
        while self.step():
            pass


def play(scenario: Scenario, patch: Patch = str) -> None:
    """Run a scenario; AssertionError or MachineError if it does not end as the original launches do."""
    chain, memory = scenario.chain, Memory()
    steps, at = chain.build(memory)
    each = [link.each for link in chain.links]
    elastic = Elastic(memory, steps, each, wanted=0, epoch=scenario.epoch, patch=patch, races=True)
    writers = [_Writer(elastic.lane(8, scenario.order)) for _ in range(2)]
    if all(len(phase.passes) == 1 for phase in scenario.phases):
        elastic.want(scenario.inferences)  # one lane at a time needs no patience
    last = Phase((Pass(0, scenario.workers),))
    for phase in [*scenario.phases, *[last] * (scenario.inferences + 1)]:
        quiet, begun = phase is last, elastic.progress.begun
        if elastic.complete:
            if begun == scenario.inferences and quiet:
                break
            elastic.want(min(max(begun + 1, elastic.progress.wanted), scenario.inferences))
        _run(elastic, writers, phase, quiet)
        assert elastic.complete or not quiet, "a pass that nobody disturbed has left something undone"
        if elastic.complete:
            assert chain.found(memory, at) == _expected(chain, elastic.progress.begun)
    assert elastic.complete
    assert elastic.progress.begun == scenario.inferences


def _run(elastic: Elastic, writers: list[_Writer], phase: Phase, quiet: bool) -> None:
    random = Random(phase.seed)
    scheduler = Scheduler(random)
    for writer in writers if quiet else ():
        writer.write(ALL)
    switch = not elastic.progress.claimed or elastic.complete
    first = None
    for part in phase.passes:
        lane = writers[part.lane].lane
        writers[part.lane].write(part.limit)
        for again in range(part.times):
            gate = lane.enqueue(
                scheduler,
                part.workers or None,
                forms=[Form.STRIDED if phase.strided else Form.DIRECT] * len(elastic.steps),
                slots=range(phase.slots),
                after=first if switch and not again else None,
            )
            first = first or gate
    for lane_index, limit in phase.writes:
        writers[lane_index].ahead.append(limit)
    turns = 0

    def between() -> None:
        nonlocal turns
        turns += 1
        if turns > phase.delay and turns % phase.pace == 0:
            writers[random.getrandbits(1)].step()

    scheduler.run(between=between)


# Strategies.

_LIMITS = st.sampled_from([0, 1, 2, 5, ALL])


def _chains(kernels: tuple[str, ...]) -> st.SearchStrategy[Chain]:
    """Chains of two to four launches."""
    links = st.builds(
        Link, st.sampled_from(kernels), st.sampled_from([4, 7, 8, 12]), st.integers(1, 4), st.integers(1, 4)
    )
    return st.builds(Chain, st.integers(9, 40), st.lists(links, min_size=2, max_size=4).map(tuple))


def _phases(kinds: tuple[str, ...]) -> st.SearchStrategy[Phase]:
    lane, times = st.integers(0, 1), st.sampled_from([1, 1, 2])
    exclusive = st.builds(Pass, lane, st.just(0), st.sampled_from([ALL, ALL, ALL, 4, 0]), times)
    claimed = st.builds(Pass, lane, st.integers(1, 6), st.sampled_from([ALL, ALL, 4, 2, 1, 0]), times)
    together = st.tuples(claimed, claimed).filter(lambda passes: passes[0].lane != passes[1].lane)
    of_kind = {"exclusive": st.tuples(exclusive), "claimed": st.tuples(claimed), "together": together}
    return st.builds(
        Phase,
        st.one_of([of_kind[kind] for kind in kinds]),
        st.lists(st.tuples(st.integers(0, 1), _LIMITS), max_size=3).map(tuple),
        delay=st.sampled_from([0, 30, 100, 300, 600]),
        pace=st.sampled_from([1, 3, 20]),
        strided=st.booleans(),
        slots=st.integers(1, 4),
        seed=st.integers(0, 1 << 32),
    )


def scenarios(
    kinds: tuple[str, ...] = ("exclusive", "claimed", "together"), kernels: tuple[str, ...] = ("leaves", "shared")
) -> st.SearchStrategy[Scenario]:
    """Scenarios whose phases are of these kinds."""
    return st.builds(
        Scenario,
        _chains(kernels),
        st.lists(_phases(kinds), min_size=1, max_size=4).map(tuple),
        inferences=st.integers(1, 3),
        epoch=st.sampled_from([0, 0, EPOCHS - 1, EPOCHS]),
        workers=st.just(0) if kinds == ("exclusive",) else st.integers(0, 6),
        order=st.permutations(range(4)).map(tuple),
    )
