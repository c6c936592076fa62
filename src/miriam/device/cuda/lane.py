"""A lane on a GPU: its stream, its limit, and the word by which the host hears of it."""

from __future__ import annotations

from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING

from miriam.device.base import Lane, Run
from miriam.device.cuda.driver import Event, HostMemory, Stream
from miriam.device.cuda.place import Place
from miriam.elastic.pauses import Pauses
from miriam.elastic.state import ALL, LANE_BYTES, LIMITER_BYTES, SM_TABLE_BYTES, Limiter, ranks
from miriam.elastic.state import Lane as Record

if TYPE_CHECKING:
    from miriam.device.cuda.work import Plan, Work

__all__ = ["WORDS", "CudaLane"]

ROW_BYTES = 16
WORDS = 2  # of host memory for each lane: runs that have ended, whether the last one was complete


class CudaLane:
    """One lane of an open device.

    Attributes
    ----------
    lane
        As the policy asked for it.
    place
        The SMs of its stream.
    stream
        Where its work is enqueued.
    record, limiter, table, counter
        Device addresses: of the words that elastic workers look at, of what decides the limit among
        them, of a table with both for this lane alone, and of the number of runs that have ended.
    words
        Device address of the lane's words in host memory; the host reads them at ``word``.
    plans
        How runs of whole launches are run, once they have been.
    flying, begun
        Runs that were submitted and have not ended, in their order; how many of them, from the first on,
        have been enqueued.
    passing, in_pass
        Whose inference is under way where the host enqueues each pass of it; whether a pass is enqueued.
    held
        Limits that runs in flight on other lanes hold on this one, in SMs.
    pauses
        When they did.
    padded, idle
        The limit while there are such runs, and while there are none, in SMs.
    blunt
        Elastic runs in flight that know no limit but ``ALL`` and 0; while there are any, ``idle`` means one
        of these.
    idle_told
        What the GPU knows as the limit while nobody holds the lane.
    heard, ended
        Number of run ends that the host knows of; how many of them it has not told yet.
    fetching
        Runs in flight behind which outputs are copied, so that each ends twice.
    seen, seen_us
        That number when the host last looked for signs of life, and when it last found one or expected none.
    since_us
        When the first run in flight began at the earliest: its submission, or the end of the run before it.
    """

    def __init__(self, lane: Lane, place: Place, host: HostMemory, number: int, sm_ids: list[int]) -> None:
        self.lane = lane
        self.place = place
        self.stream: Stream = place.stream(lane.priority)
        self.word = WORDS * number
        self.words = host.address + 4 * self.word
        self.plans: dict[tuple[object, ...], Plan] = {}
        self.flying: deque[Run] = deque()
        self.begun = 0
        self.passing: Work | None = None
        self.in_pass = False
        self.held: list[int] = []
        self.pauses = Pauses()
        self.padded, self.idle, self.idle_told = 0, ALL, ALL
        self.blunt: set[Run] = set()
        self.fetching: set[Run] = set()
        self.heard = self.seen = self.ended = 0
        self.seen_us = 0.0
        self.since_us = 0.0
        self._marks: dict[Run, Event] = {}
        self._events: list[Event] = []
        self._memory = 0
        # A narrow lane keeps the SMs on which blocks are placed last: those of a small critical launch come first.
        start = Record().pack() + ranks(sm_ids[::-1]) + Limiter(padded=0).pack()
        try:
            self._memory = self.record = place.gpu.allocate(len(start) + ROW_BYTES + 4)
            self.limiter = self.record + LANE_BYTES + SM_TABLE_BYTES
            self.table = self.limiter + LIMITER_BYTES
            self.counter = self.table + ROW_BYTES
            place.gpu.write(self.record, start + self.row + bytes(4))
        except BaseException:
            self.close()
            raise

    @property
    def row(self) -> bytes:
        """What a table of lanes says of this one."""
        return self.record.to_bytes(8, "little") + self.limiter.to_bytes(8, "little")

    @property
    def limit(self) -> int:
        """The limit that is in force, as far as the host knows."""
        return min(self.padded, self.idle_now) if self.held else self.idle_now

    @property
    def idle_now(self) -> int:
        """The limit while nobody holds the lane, for what is in flight."""
        return ALL if self.idle and self.blunt else self.idle

    @property
    def narrow(self) -> bool:
        """Whether it has, or may soon have, a limit that leaves some of its SMs."""
        return 0 < self.padded < ALL or 0 < self.idle < ALL

    def width(self, sms: int | None) -> int:
        """A limit as the GPU knows it."""
        return ALL if sms is None or sms >= self.place.sms else sms

    def mark(self, run: Run) -> Event:
        """Give an event behind ``run``, or behind all that was enqueued since where nobody asked before."""
        if run not in self._marks:
            if not self._events:
                self.place.activate()
                self._events.append(Event(timed=False))
            self._events[-1].record(self.stream)
            self._marks[run] = self._events.pop()
        return self._marks[run]

    @cached_property
    def beside(self) -> Stream:
        """A stream like :attr:`stream`, for what may run beside it."""
        return self.stream.sibling()

    @property
    def done(self) -> bool:
        """Whether everything that was enqueued is done."""
        return self.stream.done and ("beside" not in self.__dict__ or self.beside.done)

    def forget(self, run: Run) -> None:
        """``run`` is over."""
        self.blunt.discard(run)
        self.fetching.discard(run)
        if run in self._marks:
            self._events.append(self._marks.pop(run))

    def close(self) -> None:
        """Destroy the stream and give the memory back; nothing may be in flight."""
        self.stream.close()
        if "beside" in self.__dict__:
            self.beside.close()
        for event in (*self._events, *self._marks.values()):
            event.close()
        if self._memory:
            self.place.gpu.free(self._memory)
            self._memory = 0
