"""A lane on a GPU: its stream, its limit, and the word by which the host hears of it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from miriam.device.base import Lane, Run
from miriam.device.cuda.driver import Event, HostMemory, Stream
from miriam.device.cuda.place import Place
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
        Runs in flight, on other lanes, that hold a limit on this one.
    padded, idle
        The limit while there are such runs, and while there are none, in SMs.
    heard
        Number of run ends that the host knows of.
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
        self.held = 0
        self.padded, self.idle = 0, ALL
        self.heard = self.seen = 0
        self.seen_us = 0.0
        self.since_us = 0.0
        self._event: Event | None = None
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
        return min(self.padded, self.idle) if self.held else self.idle

    def mark(self) -> Event:
        """An event behind what is in the stream now."""
        if self._event is None:
            self._event = Event(timed=False)
        self._event.record(self.stream)
        return self._event

    def close(self) -> None:
        """Destroy the stream and give the memory back; nothing may be in flight."""
        self.stream.close()
        if self._event is not None:
            self._event.close()
        if self._memory:
            self.place.gpu.free(self._memory)
            self._memory = 0
