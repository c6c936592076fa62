"""Conflicts between threads that nothing orders, for the PTX machine.

Shared memory: happens-before by vector clocks. A barrier, or an operation of a warp, joins the clocks of the
threads that took part; two accesses to one byte by two threads, one of them a write, must be ordered. A write that
changes nothing counts as none: compilers let several threads write the same.

Device memory: a byte that one block writes plainly, no other block may touch plainly, for as long as one object
of this class is used. Volatile, relaxed, acquire, release and atomic accesses are left out: they are how blocks
talk. So a logical block that runs twice, on two workers, is found by what it writes. Blocks that hand data to each
other, in the order of a lock or a counter, break this rule; for them device memory is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ptx_memory import Race

if TYPE_CHECKING:
    from ptx_runtime import Block, Thread


@dataclass(slots=True)
class _Byte:
    """The last write to a byte, and the reads since then: thread -> its time."""

    writer: int = -1
    written: int = 0
    reads: dict[int, int] = field(default_factory=dict)


class Races:
    """Give one to the launches that are checked against each other, and a new one to those after them."""

    def __init__(self, *, device: bool = True) -> None:
        self._device = device
        self._clocks: dict[Any, np.ndarray] = {}
        self._marks: dict[Any, dict[int, np.ndarray]] = {}
        self._bytes: dict[Any, dict[int, _Byte]] = {}
        self._writers: dict[int, tuple[int, int]] = {}
        self._readers: dict[int, set[tuple[int, int]]] = {}

    def shared(self, t: Thread, at: int, size: int, *, write: bool) -> None:
        """Thread t touches bytes of its block's shared memory."""
        me, clock = t.index, self._clock(t.block)[t.index]
        tracked = self._bytes.setdefault(t.block, {})
        for b in range(at, at + size):
            byte = tracked.setdefault(b, _Byte())
            before = {byte.writer: byte.written} if byte.writer >= 0 else {}
            for other, time in (before | byte.reads if write else before).items():
                if other != me and clock[other] < time:
                    raise Race(
                        f"byte {b} of shared memory, block {t.block.index}: threads {other} and {me}"
                        f" {'write' if write and other == byte.writer else 'read and write'} it unordered"
                    )
            if write:
                byte.writer, byte.written = me, int(clock[me])
                byte.reads.clear()
            else:
                byte.reads[me] = int(clock[me])

    def join(self, block: Block, threads: list[Thread]) -> None:
        """All that these threads did comes before all that they will do."""
        clocks, members = self._clock(block), [t.index for t in threads]
        clocks[members] = clocks[members].max(axis=0)
        clocks[members, members] += 1

    def release(self, t: Thread, address: int) -> None:
        """What the thread did comes before what those do who find its mark at an address."""
        clocks, mark = self._clock(t.block), self._marks.setdefault(t.block, {})
        mark[address] = np.maximum(mark.get(address, 0), clocks[t.index])
        clocks[t.index, t.index] += 1

    def acquire(self, t: Thread, address: int) -> None:
        """The thread has found the mark."""
        clocks, mark = self._clock(t.block), self._marks.get(t.block, {})
        clocks[t.index] = np.maximum(clocks[t.index], mark.get(address, 0))

    def device(self, block: Block, address: int, size: int, *, write: bool) -> None:
        """A block touches device memory plainly."""
        if not self._device:
            return
        me = (block.launch, block.index)
        for b in range(address, address + size):
            writer = self._writers.get(b, me)
            readers = self._readers.setdefault(b, set())
            if writer != me or (write and readers - {me}):
                other = writer if writer != me else next(iter(readers - {me}))
                raise Race(f"byte {b:#x} of device memory: blocks {other} and {me} (launch, block), one writes")
            if write:
                self._writers[b] = me
            else:
                readers.add(me)

    def forget(self, block: Block) -> None:
        """The block has left."""
        self._clocks.pop(block, None)
        self._marks.pop(block, None)
        self._bytes.pop(block, None)

    def _clock(self, block: Block) -> np.ndarray:
        if block not in self._clocks:
            self._clocks[block] = np.eye(len(block.threads), dtype=np.int64)
        return self._clocks[block]
