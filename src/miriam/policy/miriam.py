"""Elastic shards of normal work beside critical kernels: the paper's coordinator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter

from miriam.coordinator import View
from miriam.device.base import Command, Event, EventKind, Lane, Run
from miriam.elastic.shards import ShadedTree
from miriam.policy.base import Setting, lane_of_level, levels
from miriam.policy.padding import Fits, Padding
from miriam.task import Criticality, Request

__all__ = ["Miriam"]

_AHEAD = 2  # runs of normal work in flight in normal mode
_LONG = 4  # turns of the host; work that lasts longer has nothing queued behind it in normal mode


class Miriam:
    """Critical kernels at once and untouched; shards of normal kernels in the space that they leave.

    After Zhao, Ling, Guan and Xing, "Miriam: Exploiting Elastic Kernels for Real-time Multi-DNN
    Inference on Edge GPU", SenSys'23. *Critical mode* lasts while a critical kernel is in flight: the
    launch at the head of the normal queue goes out in shards, each the best of the kept candidates
    (:class:`~miriam.policy.padding.Padding`) that still fits beside the critical kernel of the moment
    and that the launch's shaded tree can give; the rest is carried over to the next critical kernel.
    In *normal mode* launches go in their original shape, and what is left of a sharded one in its
    largest unshaded subtrees.

    Reconstruction, since the paper's text was not at hand:

    * A critical request is enqueued whole on the lane of its level, in several runs, so that it never
      waits for the host and the coordinator still sees which kernel runs. Launches shorter than a turn
      of the host share a run, and count as the longest of them: nobody could react to them one by
      one, and a command for each would make the critical request wait for commands. Of several levels
      the highest that is busy counts.
    * Shards overlap because each has a normal lane to itself. Those of the next launch may follow
      before this one has ended; the device keeps their order.
    * What is left of a launch and smaller than every kept shard goes out as it is; it fits where they do.
    * An opaque launch has one shard, itself. Whatever fits beside no critical kernel waits for normal
      mode, and does not run while critical requests overlap without a gap.
    * A launch that lasts no longer than two commands cost is not cut: that would take longer than the
      launch. It goes out whole, with the short ones after it, also beside a critical kernel.
    * Normal mode keeps two runs in flight, each a turn of the host or longer, which hides that turn;
      nothing waits behind work so long that a pause of one turn hardly counts. More would be in the
      way of a critical request that arrives: the design has no preemption, so what was enqueued
      before it goes on beside it in its original shape.

    Cost: one command for each run and each shard. A critical request waits for no turn of the host,
    only, when it arrives, for the commands of the decision in progress: as many as there are normal
    lanes at most.

    Parameters
    ----------
    fits
        Reading of the room beside a critical kernel, ``figure`` or ``strict``.
    normal_lanes
        Shards in flight at most.
    turn_us
        A turn of the host: from the end of a run, over the notice of it, to the start of the next.
    limit_us
        For OScore: the most that the shards of one launch may cost the host together. The paper's
        bound is not known.
    """

    name = "miriam"

    def __init__(
        self,
        setting: Setting,
        *,
        fits: Fits = "figure",
        normal_lanes: int = 4,
        turn_us: float = 25.0,
        limit_us: float = 1000.0,
    ) -> None:
        critical = [level for level in levels(setting) if level > Criticality.NORMAL]
        above = (lane_of_level(level, len(critical) - rank) for rank, level in enumerate(critical))
        self.lanes: tuple[Lane, ...] = (*above, *(Lane(f"normal {i}") for i in range(normal_lanes)))
        self._critical = {level: lane for lane, level in enumerate(critical)}
        self._normal = range(len(critical), len(self.lanes))
        self._padding = Padding(setting, fits, setting.command_us, limit_us)
        self._times_us = setting.launch_us
        self._turn_us = turn_us
        self._short_us = 2 * setting.command_us
        self._queue: list[Request] = []
        self._head: _Head | None = None
        self._shards = self._requests = 0
        self._host_us = 0.0

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """A critical request at once; then shards or launches until nothing more fits."""
        commands = self._decide(event, view)
        while True:
            begin = perf_counter()
            command = next(commands, None)
            self._host_us += 1e6 * (perf_counter() - begin)
            if command is None:
                return
            yield command

    def _decide(self, event: Event, view: View) -> Iterator[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            self._requests += 1
            if event.request.task.critical:
                yield from self._urgent(event.request)
            else:
                self._queue.append(event.request)
                self._queue.sort(key=lambda request: -request.task.criticality)
        running = next((view.flying(lane)[0] for lane in self._critical.values() if not view.idle(lane)), None)
        while (run := self._fill(view) if running is None else self._pad(running, view)) is not None:
            yield run

    def _urgent(self, request: Request) -> Iterator[Run]:
        lane, first = self._critical[request.task.criticality], 0
        while first < len(request.task.program.launches):
            last = self._together(request, first)
            yield Run(request, lane, first, last)
            first = last

    def _pad(self, critical: Run, view: View) -> Run | None:
        """Critical mode: the best shard that fits beside what ``critical`` runs, or short launches in whole."""
        lane = next((lane for lane in self._normal if view.idle(lane)), None)
        head = self._open() if lane is not None else None
        if lane is None or head is None:
            return None
        flying = self._flying(view)
        last = self._together(head.request, head.launch, self._short_us) if head.tree.untouched else head.launch
        if last > head.launch:
            return self._whole(head, lane, last, flying)
        busy = sum(_blocks(run) for run in flying)
        longest = max(critical.launches, key=self._times_us[critical.request.task.name].__getitem__)
        beside = self._padding.beside((critical.request.task.name, longest), (head.request.task.name, head.launch))
        for shard in beside:
            size = min(shard.blocks, head.tree.largest)
            if busy + size <= shard.room and (blocks := head.tree.take(size)) is not None:
                return self._part(head, lane, blocks, shard.threads, flying)
        return None

    def _fill(self, view: View) -> Run | None:
        """Normal mode: launches in their original shape, or the largest part of one that was sharded."""
        flying = self._flying(view)
        if flying and (len(flying) >= _AHEAD or sum(map(self._time_us, flying)) >= _LONG * self._turn_us):
            return None
        head = self._open()
        if head is None:
            return None
        if not head.tree.untouched:
            lane = min(self._normal, key=lambda lane: len(view.flying(lane)))
            blocks = head.tree.take_largest()
            return None if blocks is None else self._part(head, lane, blocks, None, flying)
        return self._whole(head, self._normal[0], self._together(head.request, head.launch), flying)

    def _open(self) -> _Head | None:
        """What is to be dispatched next: the rest of a launch, the launch after it, or the next request."""
        head = self._head
        if head is not None and not head.tree.left:
            head = _head(head.request, head.launch + 1)
        if head is None and self._queue:
            head = _head(self._queue.pop(0), 0)
        self._head = head
        return head

    def _together(self, request: Request, first: int, longest_us: float = math.inf) -> int:
        """End of the launches from ``first`` on that go out as one run: none too long, together a turn of the host."""
        times_us = self._times_us[request.task.name]
        last, sum_us = first, 0.0
        while last < len(times_us) and times_us[last] <= longest_us and (last == first or sum_us < self._turn_us):
            sum_us += times_us[last]
            last += 1
        return last

    def _whole(self, head: _Head, lane: int, last: int, flying: list[Run]) -> Run:
        """The launches from the head to ``last`` in their original shape, after all that is in flight."""
        self._head = _head(head.request, last)
        return Run(head.request, lane, head.launch, last, after=tuple(run for run in flying if run.lane != lane))

    def _part(self, head: _Head, lane: int, blocks: tuple[int, int], threads: int | None, flying: list[Run]) -> Run:
        """Blocks of the head on a lane, after all that is in flight of the launches before it."""
        own = (head.request, head.launch)
        after = tuple(run for run in flying if run.lane != lane and (run.request, run.first) != own)
        if blocks == (0, head.tree.blocks) and threads is None:
            return Run(head.request, lane, head.launch, head.launch + 1, after=after)
        self._shards += 1
        workers = blocks[1] - blocks[0]
        return Run(head.request, lane, head.launch, blocks=blocks, workers=workers, threads=threads, after=after)

    def _flying(self, view: View) -> list[Run]:
        return [run for lane in self._normal for run in view.flying(lane)]

    def _time_us(self, run: Run) -> float:
        """Time of a run alone; a shard counts as its share of the launch."""
        times_us = self._times_us[run.request.task.name]
        if run.blocks is None:
            return sum(times_us[launch] for launch in run.launches)
        return times_us[run.first] * _blocks(run) / run.request.task.program.launches[run.first].blocks

    def report(self) -> Mapping[str, float]:
        """Sizes of the design space, shards dispatched, and what deciding cost the host.

        ``host_us_per_request`` is a measurement of the machine that runs the coordinator: it differs
        from run to run, everything else does not.
        """
        host_us = self._host_us / self._requests if self._requests else 0.0
        return {**self._padding.report(), "shards": self._shards, "host_us_per_request": host_us}


@dataclass(frozen=True, slots=True)
class _Head:
    """A launch of normal work that is not dispatched, or not in whole."""

    request: Request
    launch: int
    tree: ShadedTree


def _head(request: Request, launch: int) -> _Head | None:
    """Launch number ``launch`` of a request; None past the last."""
    launches = request.task.program.launches
    return _Head(request, launch, ShadedTree(launches[launch].blocks)) if launch < len(launches) else None


def _blocks(run: Run) -> int:
    """Most blocks that a run has at a time."""
    if run.blocks is not None:
        return run.blocks[1] - run.blocks[0]
    return max(run.request.task.program.launches[launch].blocks for launch in run.launches)
