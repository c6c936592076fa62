"""Limits of lanes, as far as the host has a hand in them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from miriam.device.cuda.control import Control
from miriam.device.cuda.driver import Prepared, Stream
from miriam.device.cuda.lane import CudaLane
from miriam.device.cuda.place import Place
from miriam.device.cuda.work import Holds
from miriam.elastic.state import ALL, IDLE_AT, PADDED_AT, STAYS_AT

__all__ = ["Limits"]

_NOTHING = Holds()
_UNKNOWN = ALL + 1  # no limit that anybody sets, so that the next one is written, whatever it is


class Limits:
    """What holds the lanes of an open device down.

    Graphs take hold of lanes and let them go by themselves; the host says how many SMs are left then, and
    how many while nobody holds a lane. It does so ahead of what it launches, on a stream of its own.

    Parameters
    ----------
    place, stream
        Of the device, not of a lane.
    control
        The small kernels that take hold.
    lanes
        All lanes, by their numbers.
    now_us
        Gives the time in us.

    Attributes
    ----------
    lock
        Held while nobody may begin to load.
    """

    def __init__(
        self, place: Place, control: Control, stream: Stream, lanes: Sequence[CudaLane], now_us: Callable[[], float]
    ) -> None:  # fmt: skip
        self._place = place
        self._control = control
        self._stream = stream
        self._lanes = lanes
        self._now_us = now_us
        self._tables: dict[tuple[int, ...], int] = {}
        self._holding: dict[tuple[int, int], Prepared] = {}
        self._memory: list[int] = []
        self.lock = threading.RLock()
        self._loaders = 0

    @property
    def loading(self) -> bool:
        """Whether somebody loads; asked under the lock."""
        return self._loaders > 0

    @contextmanager
    def load(self) -> Iterator[None]:
        """A block, in any thread, in which the driver may wait for all kernels to end.

        It does so when it loads code and when it gives memory back, and lets nobody else enqueue anything meanwhile.
        So no kernel may wait for the host: while nobody holds a lane it has no limit, and whoever takes hold of one
        has to let it go by the same call of the driver.
        """
        try:
            self._load(1)
            yield
        finally:
            self._load(-1)

    def _load(self, count: int) -> None:
        with self.lock:
            self._loaders += count
            changed = [lane for lane in self._lanes if lane.idle_told != self._idle(lane)]
            if changed:
                with self._place.gpu.visited():
                    self._place.activate()
                    for lane in changed:
                        self.rest(lane)

    def of(self, numbers: Mapping[int, int | None]) -> Holds:
        """The lanes that a run with such limits holds, for its graph."""
        key = tuple(numbers)
        if not key:
            return _NOTHING
        lanes = tuple(self._lanes[number] for number in key)
        if key not in self._tables:
            rows = b"".join(lane.row for lane in lanes)
            self._memory.append(self._place.gpu.allocate(len(rows)))
            self._place.gpu.write(self._memory[-1], rows)
            self._tables[key] = self._memory[-1]
        return Holds(self._tables[key], lanes)

    def book(self, limits: Mapping[int, int | None]) -> None:
        """A run with these limits is about to be launched; if the driver refuses what it takes, it is not booked."""
        booked = []
        try:
            for number, sms in limits.items():
                lane = self._lanes[number]
                if not lane.held:
                    lane.pauses.begin(self._now_us())
                lane.held.append(lane.width(sms))
                booked.append(lane)
                self._pad(lane)
        except BaseException:
            for lane in booked:
                lane.held.pop()
            raise

    def strike(self, limits: Mapping[int, int | None]) -> None:
        """Such a run is over."""
        for number, sms in limits.items():
            lane = self._lanes[number]
            lane.held.remove(lane.width(sms))
            self._pad(lane)
            if not lane.held:
                self._freed(lane)

    def hold(self, holds: Holds, count: int = 1) -> None:
        """Take hold now, in the place of a graph; or let go with a ``count`` of -1."""
        if holds.lanes:
            key = holds.table, count
            if key not in self._holding:
                self._holding[key] = self._control.holding(self._stream, holds.table, len(holds.lanes), count)
            self._holding[key].enqueue(self._stream)

    def rest(self, lane: CudaLane) -> None:
        """Let what a lane has while nobody holds it take effect."""
        with self.lock:
            idle = self._idle(lane)
            if lane.idle_told != idle:
                self._write(lane, IDLE_AT, idle)
                lane.idle_told = idle

    def _idle(self, lane: CudaLane) -> int:
        return ALL if self._loaders else lane.idle_now

    def lift(self, lane: CudaLane) -> None:
        """No limit any more, whoever holds the lane."""
        lane.padded = lane.idle = lane.idle_told = ALL
        self._write(lane, IDLE_AT, ALL)
        self._write(lane, PADDED_AT, ALL)

    def _pad(self, lane: CudaLane) -> None:
        """Of several limits the lowest counts; it stays when the last run is over, for the next is mostly like it."""
        if lane.held and min(lane.held) != lane.padded:
            lane.padded = _UNKNOWN
            self._write(lane, PADDED_AT, min(lane.held))
            lane.padded = min(lane.held)

    def _freed(self, lane: CudaLane) -> None:
        """Nobody holds a lane any more: time to think about what its pauses are like."""
        pauses, stayed = lane.pauses, lane.pauses.stays
        launches = max((len(run.launches) for run in lane.flying if run.workers is not None), default=0)
        pauses.end(self._now_us(), launches if lane.place.conditional else 0)
        if pauses.stays != stayed:
            self._stream.fill(lane.record + STAYS_AT, int(pauses.stays), 4, 1)

    def _write(self, lane: CudaLane, at: int, sms: int) -> None:
        self._stream.fill(lane.limiter + at, sms, 4, 1)
        self._control.hold(self._stream, lane.table, 1, 0)

    def synchronize(self) -> None:
        """Wait until what was said has taken effect."""
        self._stream.synchronize()

    def close(self) -> None:
        """Give tables and stream back."""
        self._stream.close()
        for address in self._memory:
            self._place.gpu.free(address)
        self._memory, self._tables = [], {}
