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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from ptx_machine import Dim, Launch, Machine, Scheduler
from ptx_memory import Memory
from ptx_races import Races

from miriam import Pointer, Program
from miriam.elastic.gate import CLAIMED, CLAIMED_THREADS, EXCLUSIVE, EXCLUSIVE_THREADS, GATES
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
    TAKEN_BYTES,
    SMS,
    WANTED_AT,
    Argument,
    Counter,
    Inference,
    Lane,
    ranks,
    shares,
)

__all__ = ["Elastic", "ElasticLane", "Patch", "Step", "run_original", "steps_of"]

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
        machines = {text: Machine(patch(text), memory) for text in dict.fromkeys(s.made.ptx for s in steps)}
        self.machines = [machines[s.made.ptx] for s in steps]
        self._lanes: dict[int, ElasticLane] = {}

    def lane(self, workers: int = 64, order: Sequence[int] = range(SMS)) -> ElasticLane:
        """A lane for launches of at most so many workers, which keeps SMs in that order."""
        lane = ElasticLane(self, workers, order)
        self._lanes[lane.address] = lane
        return lane

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
        last = self._lanes[progress.last].record
        return last.first != MAX_LAUNCHES and last.stop == NONE

    @property
    def loopable(self) -> bool:
        """Whether every launch may be part of a claimed pass."""
        return all(Form.LOOPED in s.made.forms[s.entry] for s in self.steps)


class ElasticLane:
    """A lane and its stream."""

    def __init__(self, elastic: Elastic, workers: int, order: Sequence[int]) -> None:
        self._elastic, self._memory = elastic, elastic.memory
        self.address = self._memory.alloc(Lane().pack() + ranks(order), name="lane")
        self._slots = self._memory.alloc(workers * SLOT_BYTES, name="slots")
        self._tail: Launch | None = None

    @property
    def record(self) -> Lane:
        return Lane.unpack(self._memory.read(self.address, LANE_BYTES))

    def writes(self, limit: int) -> Iterator[None]:
        """Set the limit, one copy a step: as a device does that fills memory."""
        for copy in range(COPIES):
            self._memory.write(self.address + COPY_BYTES * copy, limit.to_bytes(4, "little"))
            yield

    def write(self, limit: int) -> None:
        """Set the limit at once."""
        for _ in self.writes(limit):
            pass

    def enqueue(
        self,
        scheduler: Scheduler,
        workers: int | None = None,
        *,
        forms: Sequence[Form] | None = None,
        slots: Sequence[int] = (0, 1, 2),
        after: Launch | None = None,
    ) -> Launch:
        """Enqueue a pass; its gate.

        ``workers`` is for a claimed pass; ``forms`` chooses between direct and strided in an exclusive one;
        ``after`` keeps the gate back until another launch has ended.
        """
        elastic = self._elastic
        name, threads = (EXCLUSIVE, EXCLUSIVE_THREADS) if workers is None else (CLAIMED, CLAIMED_THREADS)
        addresses = [elastic.inference.to_bytes(8, "little"), self.address.to_bytes(8, "little")]
        gate = elastic.gates.launch(name, (1, 1, 1), (threads, 1, 1), addresses)
        assert after is None or self._tail is None or self._tail.done
        self._tail = scheduler.add(gate, after or self._tail)
        for i in range(len(elastic.steps)):
            form = Form.LOOPED if workers is not None else forms[i] if forms else Form.DIRECT
            self._tail = scheduler.add(self._launch(i, form, workers or 0, slots), self._tail)
        return gate

    def _launch(self, i: int, form: Form, workers: int, slots: Sequence[int]) -> Launch:
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
