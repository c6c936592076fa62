"""What elastic kernels keep in device memory, and what each launch of one is told.

An *inference* is one run of a program; a *lane* is a stream in which *passes* over the program's
launches are enqueued, each behind a gate. All progress lies in these records, so a pass may stop
between any two logical blocks and another pass, in this lane or another, goes on from there.

``docs/elastic.md`` tells the protocol; ``tests/protocol_model.py`` searches all its interleavings.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = [
    "ALL",
    "ARGUMENT_ALIGN",
    "ARGUMENT_BYTES",
    "COUNTER_BYTES",
    "EPOCHS",
    "INFERENCE_BYTES",
    "LANE_BYTES",
    "MAX_LAUNCHES",
    "NONE",
    "SLOT_BYTES",
    "TAKEN_BYTES",
    "Argument",
    "Counter",
    "Inference",
    "Lane",
]

ALL = 0xFFFFFFFF  # a limit that holds nobody back
NONE = 0xFFFFFFFF  # no launch: a pass that has not stopped
EPOCHS = 0xFFFF  # inferences are numbered 1 to 65535 and from 1 again
MAX_LAUNCHES = 0xFFFF  # of a program: ``first`` shares its word with the number of the inference

TAKEN_BYTES = 2  # for each logical block: the number of the inference that took it last
SLOT_BYTES = 8  # for each worker of a looped launch: one past the block it runs, and the end of its claim


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane: 16 bytes that a worker loads at once.

    Attributes
    ----------
    limit
        Workers wished for from now on; whoever wants may write it at any time.
    width
        The limit that the gate of the running pass saw. A pass whose limit is no longer its width
        stops.
    first
        The first launch that this pass runs; those before it are complete. ``MAX_LAUNCHES``: none.
    epoch
        Number of the inference.
    stop
        The launch at which the pass stopped, or ``NONE``.
    """

    limit: int = ALL
    width: int = 0
    first: int = MAX_LAUNCHES
    epoch: int = 0
    stop: int = NONE

    def pack(self) -> bytes:
        """As it lies in memory."""
        return struct.pack("<IIHHI", self.limit, self.width, self.first, self.epoch, self.stop)

    @staticmethod
    def unpack(raw: bytes) -> Lane:
        """The record in ``raw``."""
        return Lane(*struct.unpack("<IIHHI", raw))


LANE_BYTES = len(Lane().pack())


@dataclass(frozen=True, slots=True)
class Counter:
    """Claims of one launch, of use in passes that several lanes may share.

    Attributes
    ----------
    claimed, done
        Logical blocks handed out (it runs past ``blocks``), and logical blocks that have ended.
    blocks
        Logical blocks that there are.
    """

    claimed: int
    done: int
    blocks: int

    def pack(self) -> bytes:
        """As it lies in memory."""
        return struct.pack("<IIII", self.claimed, self.done, self.blocks, 0)


COUNTER_BYTES = len(Counter(0, 0, 0).pack())


@dataclass(frozen=True, slots=True)
class Inference:
    """The progress of an inference, which only gates write, but for ``wanted``.

    Attributes
    ----------
    launches
        Launches of the program.
    taken, counters
        Addresses: of a table with the address of each launch's ``taken`` array, and of the first counter.
    next
        The first launch not known to be complete; ``launches`` when nothing is in progress.
    epoch
        Number of the inference, never 0 once one began.
    claimed
        Whether the last pass was a claimed one.
    begun, wanted
        Inferences begun so far, and how many are to be begun: a gate begins another one only below
        that. ``ALL``: whenever a pass comes.
    last
        Address of the lane of the last exclusive pass; 0 before the first one.
    """

    launches: int
    taken: int
    counters: int
    next: int
    epoch: int = 0
    claimed: int = 0
    begun: int = 0
    wanted: int = ALL
    last: int = 0

    def pack(self) -> bytes:
        """As it lies in memory."""
        words = (self.next, self.epoch, self.claimed, self.launches, self.begun, self.wanted)
        return struct.pack("<IIIIIIQQQ", *words, self.taken, self.counters, self.last)

    @staticmethod
    def unpack(raw: bytes) -> Inference:
        """The record in ``raw``."""
        following, epoch, claimed, launches, begun, wanted, taken, counters, last = struct.unpack("<IIIIIIQQQ", raw)
        return Inference(launches, taken, counters, following, epoch, claimed, begun, wanted, last)


INFERENCE_BYTES = len(Inference(0, 0, 0, 0).pack())


@dataclass(frozen=True, slots=True)
class Argument:
    """The parameter that an elastic entry has behind those of the original.

    Attributes
    ----------
    lane, taken, counter, slots
        Addresses: of the lane, of this launch's first ``taken`` word, of its counter, and of the
        lane's first slot.
    index
        Which launch of the program this is.
    grid
        The logical grid.
    chunk
        Logical blocks that a worker of a looped launch claims at once.
    """

    lane: int
    taken: int
    counter: int
    slots: int
    index: int
    grid: tuple[int, int, int]
    chunk: int = 1

    def pack(self) -> bytes:
        """As the kernel receives it."""
        x, y, z = self.grid
        addresses = (self.lane, self.taken, self.counter, self.slots)
        return struct.pack("<QQQQIIIIII", *addresses, self.index, x * y * z, x, y, z, self.chunk)


ARGUMENT_BYTES = len(Argument(0, 0, 0, 0, 0, (1, 1, 1)).pack())
ARGUMENT_ALIGN = 8
