"""A machine that runs PTX on the CPU, in any order that a device could choose.

    memory = Memory()
    x = memory.alloc(1024)
    launch = Machine(ptx, memory).launch("scale", (4, 1, 1), (64, 1, 1), [x.to_bytes(8, "little")])
    Scheduler(Random(seed), launch).run()
    memory.array(x, "<f4", 256)

Blocks of a launch become resident in order, as many at a time as the launch has slots. A turn runs one thread up to
one of its next accesses to what it shares with others; which thread, and how far, comes from the random numbers, so
one seed is one interleaving. Several launches may be under way, and a function called between turns may write
memory as another stream would.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import ptx_compile
import ptx_program
from ptx_compile import DYNAMIC
from ptx_memory import UNDEFINED, Deadlock, Fault, Hang, MachineError, Memory
from ptx_program import Program
from ptx_races import Races
from ptx_runtime import LEFT, SHARED_BASE, WARP, Block, Thread, Warp, progress

from miriam.elastic.ptx import Variable

Dim = tuple[int, int, int]


class Machine:
    """A module loaded into a memory.

    ``poison`` makes the use of a register that has no value an error; else such a register holds random bits.
    """

    def __init__(self, text: str, memory: Memory, *, poison: bool = True) -> None:
        self.text, self.memory, self.poison = text, memory, poison
        self.clock: Iterator[int] = itertools.count()
        self._symbols: dict[str, int] = {}
        self._launches = itertools.count()
        for item in ptx_compile.module(text).items:
            if isinstance(item, Variable) and item.space in ("global", "const") and ".extern" not in item.linkage:
                for i, declared in enumerate(item.names):
                    content = ptx_program.initial(text, item, i)
                    self._symbols[declared.name] = memory.alloc(
                        content, max(item.align, 16), name=declared.name, writable=item.space == "global"
                    )

    @staticmethod
    def supports(text: str, entry: str) -> bool:
        """Whether the machine can run an entry; ``ptx_compile.missing`` says what it cannot."""
        return not ptx_compile.missing(text, entry)

    def address(self, variable: str) -> int:
        """Where a global or constant variable of the module lies."""
        return self._symbols[variable]

    def launch(
        self,
        entry: str,
        grid: Dim,
        block: Dim,
        args: Sequence[bytes],
        dynamic_shared: int = 0,
        *,
        slots: Sequence[int] = (0, 1),
        races: Races | None = None,
    ) -> Launch:
        """Queue a grid; ``slots`` has the SM (``%smid``) of each block that may be resident at a time."""
        program = ptx_compile.compiled(self.text, entry)
        sizes = [size for _, _, size in program.parameters]
        if [len(a) for a in args] != sizes:
            raise Fault(f"{entry} takes arguments of {sizes} bytes, not of {[len(a) for a in args]}")
        if min(*grid, *block) < 1 or max(grid[1:]) > 65535 or math.prod(block) > 1024 or block[2] > 64 or not slots:
            raise Fault(f"a grid of {grid} blocks of {block} threads in {len(slots)} slots")
        if program.threads:
            bound, exact = program.threads
            if math.prod(block) > math.prod(bound) or (exact and block != (*bound, 1, 1)[:3]):
                raise Fault(f"{entry} wants {bound} threads, not {block}")
        end = max((offset + size for _, offset, size in program.parameters), default=0)
        parameters = bytearray(end)
        for (_, offset, size), content in zip(program.parameters, args, strict=True):
            parameters[offset : offset + size] = content
        symbols = {}
        for slot, name in program.presets:
            if name.startswith("symbol "):
                if name[7:] not in self._symbols:
                    raise Fault(f"{name} is external")
                symbols[slot] = self._symbols[name[7:]]
        return Launch(self, program, next(self._launches), grid, block, bytes(parameters), dynamic_shared, tuple(slots), symbols, races)  # fmt: skip  # noqa: E501


class Launch:
    """A grid under way; made by :meth:`Machine.launch`."""

    def __init__(
        self,
        machine: Machine,
        program: Program,
        number: int,
        grid: Dim,
        block: Dim,
        parameters: bytes,
        dynamic_shared: int,
        slots: tuple[int, ...],
        symbols: dict[int, int],
        races: Races | None,
    ) -> None:
        self.program, self.number, self.grid, self.block = program, number, grid, block
        self.steps = 0  # instructions of all threads
        self.resident: list[Block] = []
        self._machine, self._parameters, self._dynamic, self._races = machine, parameters, dynamic_shared, races
        self._symbols, self._sms = symbols, max(slots) + 1
        self._free = list(reversed(slots))
        self._places: dict[Block, int] = {}
        self._next, self._blocks = 0, math.prod(grid)

    @property
    def done(self) -> bool:
        return not self.resident and self._next == self._blocks

    def admit(self, random: Random) -> None:
        """Make blocks resident while slots are free; shared memory begins with random bytes."""
        while self._free and self._next < self._blocks:
            slot = self._free.pop()
            block = self._block(self._next, slot, random)
            self._places[block] = slot
            self.resident.append(block)
            self._next += 1

    def turn(self, block: Block, thread: int, accesses: int, bound: int) -> None:
        """Run the thread at a place of ``block.ready`` for some accesses, or until it waits or leaves."""
        t = block.ready[thread]
        if t.copies or t.groups or block.under_way:
            progress(t)
        segments, sizes, visible = self.program.segments, self.program.sizes, self.program.visible
        pc, registers, steps, stop = t.pc, t.registers, 0, bound - self.steps
        try:
            while True:
                steps += sizes[pc]
                t.pc = pc
                pc = segments[pc](t, registers)
                if pc < 0:
                    break
                if visible[pc]:
                    accesses -= 1
                    if accesses <= 0:
                        break
                if steps > stop:
                    raise Hang(f"{self.program.name} runs for more than {bound} instructions; {self.where()}")
        except Hang:
            raise
        except Exception as wrong:
            raise self._explain(t, wrong) from wrong
        self.steps += steps
        if pc >= 0:
            t.pc = pc
            return
        block.ready[thread] = block.ready[-1]
        block.ready.pop()
        if pc == LEFT and not block.live:
            self.resident.remove(block)
            self._free.append(self._places.pop(block))
            if self._races:
                self._races.forget(block)
        elif not block.ready:
            raise Deadlock(f"{self.program.name}: every thread of block {block.index} waits; {self.where()}")

    def where(self) -> str:
        """Where the threads stand."""
        at = Counter(
            (b.index, self.program.starts[t.pc], t in b.ready) for b in self.resident for t in b.threads if _lives(t)
        )
        return "; ".join(
            f"block {b}: {n} threads {'before' if ready else 'waiting, to go on with'} {text}"
            for (b, text, ready), n in at.most_common(8)
        )

    def _block(self, index: int, sm: int, random: Random) -> Block:
        machine, program = self._machine, self.program
        count = math.prod(self.block)
        dynamic = -(-(SHARED_BASE + program.shared_bytes) // program.dynamic_align) * program.dynamic_align
        shared = random.randbytes(dynamic + self._dynamic - SHARED_BASE)
        block = Block(self.number, index, machine.memory, bytearray(shared), self._parameters, random, machine.clock, self._races)  # fmt: skip  # noqa: E501
        x, y, _ = self.grid
        common = {
            **_axes("ctaid", (index % x, index // x % y, index // (x * y))), **_axes("nctaid", self.grid),
            **_axes("clusterid", (index % x, index // x % y, index // (x * y))), **_axes("nclusterid", self.grid),
            **_axes("cluster_ctaid", (0, 0, 0)), **_axes("cluster_nctaid", (1, 1, 1)), **_axes("ntid", self.block),
            "%cluster_ctarank": 0, "%cluster_nctarank": 1, "%is_explicit_cluster": False, "%smid": sm,
            "%nsmid": self._sms, "%gridid": self.number, "%nwarpid": -(-count // WARP), DYNAMIC: dynamic,
            "%dynamic_smem_size": self._dynamic, "%total_smem_size": len(shared), "%aggr_smem_size": len(shared),
        }  # fmt: skip
        empty: list[Any] = [UNDEFINED] * len(program.widths)
        for slot, name in program.presets:
            empty[slot] = self._symbols[slot] if name.startswith("symbol ") else common.get(name, UNDEFINED)
        own = [(slot, name) for slot, name in program.presets if empty[slot] is UNDEFINED]
        warps = [Warp(i) for i in range(-(-count // WARP))]
        for i in range(count):
            registers: list[Any] = list(empty)
            for slot, name in own:
                registers[slot] = _own(name, i, self.block)
            if not machine.poison:
                for slot, bits in enumerate(program.widths):
                    if registers[slot] is UNDEFINED:
                        registers[slot] = random.getrandbits(bits) if bits > 1 else random.random() < 0.5
            thread = Thread(block, warps[i // WARP], i, registers, bytearray(random.randbytes(program.local_bytes)))
            thread.warp.live |= 1 << thread.lane
            block.threads.append(thread)
        block.ready = list(block.threads)
        block.live = count
        return block

    def _explain(self, t: Thread, wrong: Exception) -> Exception:
        """The error with the instruction and the thread; its own kind if it is one of the machine's."""
        lines, trace = "", wrong.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == f"<{self.program.name}>":
                lines = self.program.lines.get(trace.tb_lineno, "")
            trace = trace.tb_next
        kind = type(wrong) if isinstance(wrong, MachineError) else Fault
        what = str(wrong) if isinstance(wrong, MachineError) else f"{type(wrong).__name__}: {wrong}"
        return kind(f"{self.program.name}, block {t.block.index}, thread {t.index}, {lines}: {what}")


class Scheduler:
    """Chooses, turn by turn, who runs: a launch, a block of it for a burst of turns, a thread, how far.

    Lengths are powers of two, so that one thread or block may run far ahead, or all in lockstep.
    """

    def __init__(self, random: Random, *launches: Launch) -> None:
        self.turns = 0
        self._draw = random.random
        self._random = Random(random.getrandbits(64))  # for contents, so that a kernel's need leaves the order alone
        self._live: list[Launch] = []
        self._waiting: list[tuple[Launch, Launch]] = []
        self._burst = 0
        self._at: tuple[Launch, Block] | None = None
        self._finished = 0
        for launch in launches:
            self.add(launch)

    def add(self, launch: Launch, after: Launch | None = None) -> Launch:
        """Let a launch take part, at once or, as in one stream, when another is done."""
        if after is not None and not after.done:
            self._waiting.append((launch, after))
        else:
            launch.admit(self._random)
            self._live.append(launch)
        return launch

    @property
    def done(self) -> bool:
        return not self._live and not self._waiting

    @property
    def steps(self) -> int:
        return self._finished + sum(launch.steps for launch in self._live)

    def turn(self, bound: int = 1 << 62) -> None:
        """One turn of one thread; ``bound`` is for all instructions of its launch."""
        draw = self._draw
        if self._burst <= 0 or self._at is None:
            launch = self._live[int(draw() * len(self._live))]
            block = launch.resident[int(draw() * len(launch.resident))]
            self._at = launch, block
            self._burst = block.warps << int(draw() * 8)  # a large block is no slower than a small one
        launch, block = self._at
        self._burst -= 1
        self.turns += 1
        launch.turn(block, int(draw() * len(block.ready)), 1 << int(draw() * 7), bound)
        if not block.live:
            self._at = None
            launch.admit(self._random)
            if launch.done:
                self._live.remove(launch)
                self._finished += launch.steps
                for pair in [p for p in self._waiting if p[1].done]:
                    self._waiting.remove(pair)
                    self.add(pair[0])

    def run(self, *, steps: int = 10_000_000, between: Callable[[], None] | None = None) -> int:
        """Run until all is done; ``between`` is called after each turn and may add launches. The instructions run.

        A launch that takes more than ``steps`` instructions raises Hang.
        """
        while not self.done:
            self.turn(steps)
            if between is not None:
                between()
        return self.steps


def run(*launches: Launch, seed: int = 0, steps: int = 10_000_000, between: Callable[[], None] | None = None) -> int:
    """Run launches side by side to their end."""
    return Scheduler(Random(seed), *launches).run(steps=steps, between=between)


def _axes(name: str, of: Dim) -> dict[str, int]:
    return {f"%{name}.{axis}": n for axis, n in zip("xyz", of, strict=True)}


@functools.cache
def _own(name: str, index: int, block: Dim) -> Any:
    """A special register that the threads of a block see differently."""
    x, y, _ = block
    bit = 1 << (lane := index % WARP)
    table = {
        **_axes("tid", (index % x, index // x % y, index // (x * y))), "%laneid": lane, "%warpid": index // WARP,
        "%lanemask_eq": bit, "%lanemask_lt": bit - 1, "%lanemask_le": 2 * bit - 1,
        "%lanemask_gt": (1 << WARP) - 2 * bit, "%lanemask_ge": (1 << WARP) - bit,
    }  # fmt: skip
    return table.get(name, UNDEFINED)


def _lives(t: Thread) -> bool:
    return bool(t.warp.live >> t.lane & 1)
