"""Elastic launches on the PTX machine, with the memory and the passes that a GPU gives them.

    elastic = Elastic(memory, steps, each=[2, 1])
    lane = elastic.lane()
    lane.enqueue(scheduler)              # the gate, then direct or strided launches
    scheduler.run(between=...)           # where lane.write may set the limit
    elastic.complete

A stream is a chain of launches, each of which starts when the one before has ended.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from random import Random

from ptx_machine import Dim, Launch, Machine, Scheduler
from ptx_memory import Memory
from ptx_races import Races

from miriam import Pointer, Program
from miriam.elastic.gate import CLAIMED, CLAIMED_THREADS, EXCLUSIVE, EXCLUSIVE_THREADS, GATES
from miriam.elastic.ptx import parse
from miriam.elastic.resident import GATE, LOOK, RESIDENT, SET_CONDITIONAL, STEP, THREADS
from miriam.elastic.rewrite import Form, Rewritten, rewrite
from miriam.elastic.state import (
    ALL,
    COPIES,
    COPY_BYTES,
    COUNTER_BYTES,
    INFERENCE_BYTES,
    LANE_BYTES,
    MAX_LAUNCHES,
    NONE,
    SLOT_BYTES,
    SMS,
    STAYS_AT,
    TAKEN_BYTES,
    WANTED_AT,
    Argument,
    Counter,
    Inference,
    Lane,
    Piece,
    ranks,
    shares,
)
from miriam.elastic.thin import thin

__all__ = ["CONDITIONAL", "Elastic", "ElasticLane", "Passed", "Patch", "Step", "run_original", "run_shards", "steps_of"]

CONDITIONAL = RESIDENT.replace(
    SET_CONDITIONAL,
    """.func cudaGraphSetConditional(.param .b64 handle, .param .b32 value) {
        .reg .b64 %at; .reg .b32 %v; ld.param.b64 %at, [handle]; ld.param.b32 %v, [value]; st.global.b32 [%at], %v; ret;
    }""",
)
"""The module of resident inferences, where a handle is the address of a word."""

Patch = Callable[[str], str]
"""What becomes of the text of the forms and of the gates: for tests of what their lines are good for."""


_rewritten = functools.lru_cache(maxsize=512)(rewrite)


@dataclass(frozen=True, slots=True)
class Step:
    """A launch of an original kernel."""

    text: str
    entry: str
    grid: Dim
    block: Dim
    args: tuple[bytes, ...]
    shared: int = 0

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)

    @property
    def made(self) -> Rewritten:
        """Its kernel's elastic forms, or the guarded one."""
        return _rewritten(self.text, (self.entry,), block=self.block)

    @property
    def sharded(self) -> Rewritten:
        """Its kernel in the form that runs some blocks in a row."""
        return _rewritten(self.text, (self.entry,), (Form.SHARD,), block=self.block)

    @property
    def thinner(self) -> Rewritten:
        """That form for blocks of fewer threads."""
        return _rewritten(thin(parse(self.text), self.entry, block=self.block), (self.entry,), (Form.SHARD,))


def steps_of(program: Program, memory: Memory) -> tuple[list[Step], list[int]]:
    """The launches of a program whose buffers are put into ``memory``, and where these are."""
    at = [memory.alloc(b.size_bytes if b.data is None else b.data, name=b.name) for b in program.buffers]
    steps = []
    for launch in program.launches:
        kernel = program.kernels[launch.kernel]
        args = tuple(
            (at[a.buffer] + a.offset_bytes).to_bytes(8, "little") if isinstance(a, Pointer) else a.raw
            for a in launch.args
        )
        text = kernel.ptx or ""
        steps.append(Step(text, kernel.name, launch.grid, kernel.block, args, kernel.dynamic_shared_bytes))
    return steps, at


def run_original(memory: Memory, steps: Iterable[Step], seed: int = 0, bound: int = 10_000_000) -> None:
    """Run the launches as they are, one after the other, each in at most ``bound`` instructions."""
    for step in steps:
        launch = Machine(step.text, memory).launch(step.entry, step.grid, step.block, step.args, step.shared)
        Scheduler(Random(seed), launch).run(steps=bound)


def run_shards(memory: Memory, steps: Iterable[Step], most: int, seed: int = 0, threads: int | None = None) -> None:
    """Run the launches one after the other, each in shards of up to so many blocks, all at a time.

    ``threads`` of a block, if not those that the kernel has.
    """
    random = Random(seed)
    for step in steps:
        made = step.sharded if threads is None else step.thinner
        machine, scheduler, begin = Machine(made.ptx, memory), Scheduler(random), 0
        block = step.block if threads is None else (threads, 1, 1)
        while begin < step.blocks:
            grid = min(random.randint(1, most), step.blocks - begin), 1, 1
            args = [*step.args, Piece(begin, step.grid).pack()]
            scheduler.add(machine.launch(Form.SHARD.of(step.entry), grid, block, args, step.shared))
            begin += grid[0]
        scheduler.run()


class Elastic:
    """The progress of one program in memory, and the machines that run its elastic kernels.

    ``each`` has the most blocks of a share by launch, ``epoch`` the number of the last inference.
    """

    def __init__(
        self,
        memory: Memory,
        steps: Sequence[Step],
        each: Sequence[int] | None = None,
        *,
        wanted: int = ALL,
        epoch: int = 0,
        patch: Patch = str,
        races: bool = False,
    ) -> None:
        self.memory, self.steps, self._races = memory, steps, races
        self.shares = [shares(s.blocks, n) for s, n in zip(steps, each or [1] * len(steps), strict=True)]
        self.taken = [memory.alloc(n * TAKEN_BYTES, 16, name=f"taken {i}") for i, n in enumerate(self.shares)]
        self.counters = memory.alloc(b"".join(Counter(0, 0, n).pack() for n in self.shares), name="counters")
        table = memory.alloc(struct.pack(f"<{len(steps)}Q", *self.taken), name="table")
        start = Inference(len(steps), table, self.counters, next=len(steps), epoch=epoch, wanted=wanted)
        self.inference = memory.alloc(start.pack(), name="inference")
        self.gates = Machine(patch(GATES), memory)
        self.resident = Machine(patch(CONDITIONAL), memory)
        machines = {text: Machine(patch(text), memory) for text in dict.fromkeys(s.made.ptx for s in steps)}
        self.machines = [machines[s.made.ptx] for s in steps]
        self.lanes: dict[int, ElasticLane] = {}

    def lane(self, workers: int = 64, order: Sequence[int] = range(SMS)) -> ElasticLane:
        """A lane for launches of at most so many workers, which keeps SMs in that order."""
        lane = ElasticLane(self, workers, order)
        self.lanes[lane.address] = lane
        return lane

    def original(self, i: int) -> Launch:
        """A launch as it is."""
        step = self.steps[i]
        return Machine(step.text, self.memory).launch(step.entry, step.grid, step.block, step.args, step.shared)

    def want(self, inferences: int) -> None:
        """Say how many inferences are to be begun in all."""
        self.memory.write(self.inference + WANTED_AT, inferences.to_bytes(4, "little"))

    @property
    def progress(self) -> Inference:
        return Inference.unpack(self.memory.read(self.inference, INFERENCE_BYTES))

    @property
    def counted(self) -> list[tuple[int, int, int]]:
        """Claimed, done and shares of each launch."""
        raw = self.memory.read(self.counters, len(self.steps) * COUNTER_BYTES)
        return [words[:3] for words in struct.iter_unpack("<IIII", raw)]

    @property
    def complete(self) -> bool:
        """Whether the inference that began last is complete; asked while no pass is in flight."""
        progress = self.progress
        if progress.next >= len(self.steps):
            return True
        if progress.claimed:
            _, done, shares = self.counted[-1]
            return done == shares
        if not progress.last:
            return False
        last = self.lanes[progress.last].record
        return last.first != MAX_LAUNCHES and last.stop == NONE

    @property
    def loopable(self) -> bool:
        """Whether every launch may be part of a claimed pass."""
        return all(Form.LOOPED in s.made.forms[s.entry] for s in self.steps)


@dataclass(frozen=True, slots=True)
class Passed:
    """A pass of a resident inference: over which launches, from which one on, and whether it was a claimed one."""

    span: range
    begin: int
    narrow: bool


class ElasticLane:
    """A lane and its stream; ``passes`` are those of its resident inferences."""

    def __init__(self, elastic: Elastic, workers: int, order: Sequence[int]) -> None:
        self._elastic, self._memory = elastic, elastic.memory
        self.address = self._memory.alloc(Lane().pack() + ranks(order), name="lane")
        self._slots = self._memory.alloc(workers * SLOT_BYTES, name="slots")
        self._tail: Launch | None = None
        self.passes: list[Passed] = []

    def shared(self, other: Elastic) -> ElasticLane:
        """The same lane for another program; one of them at a time has passes in it."""
        lane = copy(self)
        lane._elastic = other
        other.lanes[lane.address] = lane
        return lane

    @property
    def record(self) -> Lane:
        return Lane.unpack(self._memory.read(self.address, LANE_BYTES))

    def writes(self, limit: int) -> Iterator[None]:
        """Set the limit, one copy a step: as a device does that fills memory."""
        for i in range(COPIES):
            self._memory.write(self.address + COPY_BYTES * i, limit.to_bytes(4, "little"))
            yield

    def write(self, limit: int) -> None:
        """Set the limit at once."""
        for _ in self.writes(limit):
            pass

    def stay(self, stays: bool) -> None:
        """Say whether who comes behind a stop stays there."""
        self._memory.write(self.address + STAYS_AT, int(stays).to_bytes(4, "little"))

    def enqueue(
        self,
        scheduler: Scheduler,
        workers: int | None = None,
        *,
        forms: Sequence[Form] | None = None,
        slots: Sequence[int] = (0, 1, 2),
        after: Launch | None = None,
        stays: bool = False,
    ) -> Launch:
        """Enqueue a pass; its gate.

        ``workers`` is for a claimed pass; ``forms`` chooses between direct and strided in an exclusive one;
        ``after`` keeps the gate back until another launch has ended; ``stays`` is as in :class:`Lane`.
        """
        elastic = self._elastic
        self.stay(stays)
        name, threads = (EXCLUSIVE, EXCLUSIVE_THREADS) if workers is None else (CLAIMED, CLAIMED_THREADS)
        addresses = [elastic.inference.to_bytes(8, "little"), self.address.to_bytes(8, "little")]
        gate = elastic.gates.launch(name, (1, 1, 1), (threads, 1, 1), addresses)
        assert after is None or self._tail is None or self._tail.done
        self._tail = scheduler.add(gate, after or self._tail)
        for i in range(len(elastic.steps)):
            form = Form.LOOPED if workers is not None else forms[i] if forms else Form.DIRECT
            self._tail = scheduler.add(self.launch(i, form, workers or 0, slots), self._tail)
        return gate

    def resident(
        self,
        scheduler: Scheduler,
        workers: int | None = None,
        *,
        forms: Sequence[Form] | None = None,
        slots: Sequence[int] = (0, 1, 2),
        looked: Collection[int] = (),
        stays: bool = True,
        spans: Sequence[range] | None = None,
    ) -> Iterator[None]:
        """Do what the graph of a resident inference does: it goes on between turns until the inference is complete.

        ``workers`` None: there is no narrow form. Launches that are ``looked`` at run as they are, or not at all.
        ``spans``: one loop behind the other, each with an exclusive pass in front, as the device makes them;
        without, a single loop and nothing else. What each pass was comes into ``passes``.
        """
        elastic = self._elastic
        self.stay(stays)

        def ended(launch: Launch) -> Iterator[None]:
            self._tail = scheduler.add(launch, self._tail)
            while not launch.done:
                yield

        def asked(name: str, *args: bytes) -> Launch:
            return elastic.resident.launch(name, (1, 1, 1), (THREADS[name], 1, 1), list(args))

        inference, lane = elastic.inference.to_bytes(8, "little"), self.address.to_bytes(8, "little")
        choice, loop = (self._memory.alloc(4, name=name).to_bytes(8, "little") for name in ("choice", "loop"))

        def told(handle: bytes) -> int:
            return self._memory.load(int.from_bytes(handle, "little"), 4)

        for span in (range(len(elastic.steps)),) if spans is None else spans:
            ahead = spans is not None
            while True:
                if ahead:
                    gate = elastic.gates.launch(EXCLUSIVE, (1, 1, 1), (EXCLUSIVE_THREADS, 1, 1), [inference, lane])
                else:
                    gate = asked(GATE, inference, lane, choice if workers is not None else bytes(8))
                yield from ended(gate)
                narrow = not ahead and workers is not None and bool(told(choice))
                self.passes.append(Passed(span, elastic.progress.next, narrow))
                for i in span:
                    if i in looked:
                        yield from ended(asked(LOOK, lane, i.to_bytes(4, "little"), choice))
                        if told(choice):
                            yield from ended(elastic.original(i))
                    else:
                        form = Form.LOOPED if narrow else forms[i] if forms else Form.DIRECT
                        yield from ended(self.launch(i, form, workers or 0, slots))
                yield from ended(asked(STEP, inference, lane, loop, span.stop.to_bytes(4, "little")))
                if not told(loop):
                    break
                ahead = False

    def launch(self, i: int, form: Form, workers: int = 0, slots: Sequence[int] = (0, 1, 2)) -> Launch:
        """One launch of a pass, behind no gate."""
        elastic, step = self._elastic, self._elastic.steps[i]
        has, count = step.made.forms[step.entry], elastic.shares[i]
        if has == (Form.GUARDED,):
            form = Form.GUARDED
        elif form is Form.DIRECT and count < step.blocks:
            form = Form.STRIDED
        everywhere = max(workers, len(slots)), 1, 1  # on each SM, or a narrow lane might have none of its own
        grid = {Form.STRIDED: (count, 1, 1), Form.LOOPED: everywhere}.get(form, step.grid)
        counter = elastic.counters + COUNTER_BYTES * i
        told = Argument(self.address, elastic.taken[i], counter, self._slots, i, count, step.grid)
        races = Races(device=False) if elastic._races else None
        return elastic.machines[i].launch(
            form.of(step.entry), grid, step.block, [*step.args, told.pack()], step.shared, slots=slots, races=races
        )
