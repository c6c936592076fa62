"""What elastic kernels keep in device memory, and what each launch of one is told.

The blocks of a launch are dealt out in *shares*: share s of S holds the logical blocks s, s + S,
s + 2 S, and so on. A worker takes a whole share, and asks between two shares whether it may go on.
With as many shares as blocks that is between any two blocks.

An *inference* is one run of a program; a *lane* is a stream in which *passes* over the program's
launches are enqueued, each behind a gate. All progress lies in these records, so a pass may stop
between any two shares and another pass, in this lane or another, goes on from there.

``docs/elastic.md`` tells the protocol; ``tests/protocol_model.py`` searches all its interleavings.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from miriam.errors import DeviceError

__all__ = [
    "ALL",
    "ARGUMENT_ALIGN",
    "ARGUMENT_BYTES",
    "BEGIN_AT",
    "COPIES",
    "COPY_BYTES",
    "COUNTER_BYTES",
    "EPOCHS",
    "IDLE_AT",
    "INFERENCE_BYTES",
    "LANE_BYTES",
    "LIMITER_BYTES",
    "LOOKS",
    "LOOK_NS",
    "MAX_LAUNCHES",
    "NONE",
    "PADDED_AT",
    "SLOT_BYTES",
    "SMS",
    "SM_TABLE_BYTES",
    "STAYS_AT",
    "TAKEN_BYTES",
    "WANTED_AT",
    "Argument",
    "Counter",
    "Inference",
    "Lane",
    "Limiter",
    "Piece",
    "ranks",
    "shares",
]

ALL = 0xFFFFFFFF  # a limit that holds nobody back
NONE = 0xFFFFFFFF  # no launch: a pass that has not stopped
EPOCHS = 0xFFFF  # inferences are numbered 1 to 65535 and from 1 again
MAX_LAUNCHES = 0xFFFF  # of a program: ``first`` shares its word with the number of the inference

COPIES = 16  # of a lane's words: a thousand workers that begin together would queue for a single one
COPY_BYTES = 128  # apart: a line of the cache each

TAKEN_BYTES = 2  # for each share: the number of the inference that took it last
SLOT_BYTES = 4  # for each worker of a looped launch: one past the share it runs, or 0


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane: 16 bytes that a worker loads at once and 4 that few ask for, of which there are ``COPIES``.

    Attributes
    ----------
    limit
        SMs that the lane's workers may be on from now on: those of a rank below it (:func:`ranks`). It may
        be written at any time, by one stream at a time or by a :class:`Limiter`: copies that disagree
        stop the lane.
    width
        The limit that the gate of the running pass saw. A pass whose limit is no longer its width
        stops. An exclusive pass runs at the width ``ALL``, or at the limit that a gate waited for in vain.
    first
        The first launch that this pass runs; those before it are complete. ``MAX_LAUNCHES``: none.
    epoch
        Number of the inference.
    stop
        The launch at which the pass stopped, or ``NONE``.
    stays
        Whether, under a limit of 0, a worker of the next launch stays until there is another limit (for a second at
        most), so that the launches behind it come and go when nobody wants the GPU for himself. Of the
        first copy; may be written at any time.
    """

    limit: int = ALL
    width: int = 0
    first: int = MAX_LAUNCHES
    epoch: int = 0
    stop: int = NONE
    stays: int = 0

    def pack(self) -> bytes:
        """All copies as they lie in memory."""
        words = struct.pack("<IIHHII", self.limit, self.width, self.first, self.epoch, self.stop, self.stays)
        return words.ljust(COPY_BYTES, b"\0") * COPIES

    @staticmethod
    def unpack(raw: bytes) -> Lane:
        """The first copy in ``raw``, as a worker loads it: without ``stays``."""
        return Lane(*struct.unpack_from("<IIHHI", raw))


LANE_BYTES = len(Lane().pack())
STAYS_AT = 16  # where its words have ``stays``

SMS = 256  # that a table of ranks has room for
SM_TABLE_BYTES = 4 * SMS  # it lies behind the lane's words


def ranks(sms: Sequence[int]) -> bytes:
    """The table that lies behind a lane's words: by ``%smid`` the place of an SM in the lane's order.

    Parameters
    ----------
    sms
        SMs of the lane, those that a narrow lane keeps first. One that is not named is left under any
        limit but ``ALL``.

    Raises
    ------
    DeviceError
        An SM is named twice, or the table has no room for it.

    Examples
    --------
    >>> struct.unpack_from("<4I", ranks([2, 0]))
    (1, 4294967294, 0, 4294967294)
    """
    table = [last := ALL - 1] * SMS
    for rank, sm in enumerate(sms):
        if not 0 <= sm < SMS or table[sm] != last:
            raise DeviceError(f"SM {sm} in the order of a lane: name each of 0 to {SMS - 1} once")
        table[sm] = rank
    return struct.pack(f"<{SMS}I", *table)


@dataclass(frozen=True, slots=True)
class Limiter:
    """What decides a lane's limit, while several streams hold it down and let it go.

    The limit is ``idle``, and not more than ``padded`` while anybody is ``pending``. The kernels
    ``miriam_hold`` and ``miriam_release`` keep it so (:mod:`miriam.elastic.resident`). Whoever writes
    ``padded`` or ``idle`` enqueues a hold of nothing behind that.

    Attributes
    ----------
    pending
        Runs that hold the lane down; counted by the kernels. It may be below 0 for a moment.
    padded
        The limit while any of them is there.
    idle
        The limit while none is.
    """

    pending: int = 0
    padded: int = ALL
    idle: int = ALL

    def pack(self) -> bytes:
        """As it lies in memory."""
        return struct.pack("<iIII", self.pending, self.padded, self.idle, 0)

    @staticmethod
    def unpack(raw: bytes) -> Limiter:
        """The record in ``raw``."""
        return Limiter(*struct.unpack_from("<iII", raw))

    @property
    def limit(self) -> int:
        """The limit that the lane is to have."""
        return min(self.padded, self.idle) if self.pending > 0 else self.idle


LIMITER_BYTES = len(Limiter().pack())
PADDED_AT, IDLE_AT = 4, 8  # where it has the words that the host writes


@dataclass(frozen=True, slots=True)
class Counter:
    """Claims of one launch, of use in passes that several lanes may share.

    Attributes
    ----------
    claimed, done
        Shares handed out (it runs past ``shares``), and shares whose blocks have all ended.
    shares
        Shares that there are.
    """

    claimed: int
    done: int
    shares: int

    def pack(self) -> bytes:
        """As it lies in memory."""
        return struct.pack("<IIII", self.claimed, self.done, self.shares, 0)


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


WANTED_AT = 20  # where an inference's record has ``wanted``
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
    shares
        Shares of this launch.
    grid
        The logical grid.
    """

    lane: int
    taken: int
    counter: int
    slots: int
    index: int
    shares: int
    grid: tuple[int, int, int]

    def pack(self) -> bytes:
        """As the kernel receives it."""
        x, y, z = self.grid
        addresses = (self.lane, self.taken, self.counter, self.slots)
        return struct.pack("<QQQQIIIIII", *addresses, self.index, x * y * z, self.shares, x, y, z)


ARGUMENT_BYTES = len(Argument(0, 0, 0, 0, 0, 1, (1, 1, 1)).pack())
ARGUMENT_ALIGN = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """The parameter in the place of :class:`Argument` for a launch that runs some blocks in a row.

    Attributes
    ----------
    begin
        The first of its logical blocks; it has as many as the launch has physical ones.
    grid
        The logical grid.
    """

    begin: int
    grid: tuple[int, int, int]

    def pack(self) -> bytes:
        """As the kernel receives it."""
        return Argument(0, 0, 0, 0, self.begin, 0, self.grid).pack()


BEGIN_AT = 32  # where that has ``begin``
LOOK_NS, LOOKS = 500, 1_000_000  # how often who waits for a limit looks at it, and how many times at most


def shares(blocks: int, each: int) -> int:
    """Shares of a launch so that each holds at most ``each`` blocks.

    >>> shares(1000, 4), shares(1000, 1)
    (250, 1000)
    """
    return -(-blocks // each)
