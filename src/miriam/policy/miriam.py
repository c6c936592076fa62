"""Elastic shards of normal work beside critical kernels: the paper's coordinator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import perf_counter

from miriam.coordinator import View
from miriam.device.base import Command, Event, EventKind, Lane, Run
from miriam.elastic.shards import ShadedTree
from miriam.policy.base import Setting, lane_of_level, levels
from miriam.policy.padding import Fits, Padding
from miriam.task import Criticality, Request

__all__ = ["Miriam"]


class Miriam:
    """Critical kernels at once and untouched; shards of normal kernels in the space that they leave.

    After Zhao, Ling, Guan and Xing, "Miriam: Exploiting Elastic Kernels for Real-time Multi-DNN
    Inference on Edge GPU", SenSys'23. *Critical mode* lasts while a critical kernel is in flight:
    the launch at the head of the normal queue is dispatched in shards, each the best of the kept
    candidates (:class:`~miriam.policy.padding.Padding`) that still fits beside the critical kernel
    of the moment and that the launch's shaded tree can give; what does not fit waits for the next
    critical kernel. Otherwise *normal mode*: launches go in their original shape, and what is left
    of a sharded one in its largest unshaded subtrees.

    Reconstruction (the paper's text was not at hand): the order and the bounds of dispatching, and
    the following. A critical request is enqueued whole on the lane of its level, a run for each
    launch, so that it never waits for the host and the coordinator still sees which kernel runs;
    with several levels the highest busy one counts. Shards overlap because each has a normal lane to
    itself. A launch is opened when all shards of the one before it are done. An opaque launch has
    one shard, itself; like anything that never fits it waits for normal mode, so while critical
    requests follow each other without a gap it does not run at all. Shards leave on their own: the
    design has no preemption, so an arriving critical request finds in the way whatever was enqueued
    before it. For that reason normal mode enqueues launches ahead only until ``ahead_us`` of work is
    in flight, enough to hide the host's turn and no more.

    Cost: one command for each critical launch, each shard and each normal launch; critical requests
    never wait for the host, normal ones do between launches in critical mode and every ``ahead_us``
    in normal mode.

    Parameters
    ----------
    fits
        Reading of the room beside a critical kernel, ``figure`` or ``strict``.
    normal_lanes
        Shards that may overlap.
    ahead_us
        Normal work that is kept in flight when no critical request is there, estimated alone.
    launch_us, limit_us
        For OScore: what a launch costs the host, and the most that the shards of one launch may cost
        together. The paper's bound is not known.
    """

    name = "miriam"

    def __init__(
        self,
        setting: Setting,
        *,
        fits: Fits = "figure",
        normal_lanes: int = 4,
        ahead_us: float = 50.0,
        launch_us: float = 4.0,
        limit_us: float = 1000.0,
    ) -> None:
        critical = [level for level in levels(setting) if level > Criticality.NORMAL]
        above = (lane_of_level(level, len(critical) - rank) for rank, level in enumerate(critical))
        self.lanes: tuple[Lane, ...] = (*above, *(Lane(f"normal {i}") for i in range(normal_lanes)))
        self._critical = {level: lane for lane, level in enumerate(critical)}
        self._normal = range(len(critical), len(self.lanes))
        self._padding = Padding(setting, fits, launch_us, limit_us)
        self._times_us = setting.launch_us
        self._ahead_us = ahead_us
        self._queue: list[Request] = []
        self._head: _Head | None = None
        self._shards = self._requests = 0
        self._host_us = 0.0

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """Critical launches first, then shards or launches until nothing more fits."""
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
            request = event.request
            if request.task.critical:
                lane = self._critical[request.task.criticality]
                for launch in range(len(request.task.program.launches)):
                    yield Run(request, lane, launch, launch + 1)
            else:
                self._queue.append(request)
                self._queue.sort(key=lambda request: -request.task.criticality)
        running = next((view.flying(lane)[0] for lane in self._critical.values() if not view.idle(lane)), None)
        while (run := self._fill(view) if running is None else self._pad(running, view)) is not None:
            yield run

    def _pad(self, critical: Run, view: View) -> Run | None:
        """Critical mode: the best shard that fits beside the launch that ``critical`` runs."""
        lane = next((lane for lane in self._normal if view.idle(lane)), None)
        if lane is None:
            return None
        flying = self._flying(view)
        head = self._open(ahead=not flying)
        if head is None:
            return None
        busy = sum(_blocks(run) for run in flying)
        beside = (critical.request.task.name, critical.first)
        for shard in self._padding.beside(beside, (head.request.task.name, head.launch)):
            if busy + shard.blocks <= shard.room and (blocks := head.tree.take(shard.blocks)) is not None:
                return self._run(head, lane, blocks, shard.threads, flying)
        return None

    def _fill(self, view: View) -> Run | None:
        """Normal mode: a launch in its original shape, or the largest part of one that was sharded."""
        flying = self._flying(view)
        if flying and sum(self._time_us(run) for run in flying) >= self._ahead_us:
            return None
        head = self._open(ahead=True)
        if head is None:
            return None
        # Whole launches share a lane, whose order is free; parts of a launch spread out and overlap.
        lane = self._normal[0] if head.tree.untouched else min(self._normal, key=lambda i: len(view.flying(i)))
        blocks = head.tree.take_largest()
        return None if blocks is None else self._run(head, lane, blocks, None, flying)

    def _open(self, ahead: bool) -> _Head | None:
        """The launch that is being dispatched; once it is, the next one if ``ahead`` allows that."""
        head = self._head
        if head is not None and head.tree.left:
            return head
        if not ahead:
            return None
        if head is not None and head.launch + 1 < len(head.request.task.program.launches):
            self._head = _Head(head.request, head.launch + 1)
        elif self._queue:
            self._head = _Head(self._queue.pop(0), 0)
        else:
            return None
        return self._head

    def _run(self, head: _Head, lane: int, blocks: tuple[int, int], threads: int | None, flying: list[Run]) -> Run:
        """Blocks of the head on a lane, after what is in flight of the launches before it."""
        own = (head.request, head.launch)
        after = tuple(run for run in flying if run.lane != lane and (run.request, run.first) != own)
        size = blocks[1] - blocks[0]
        if size == head.tree.blocks and threads is None:
            return Run(head.request, lane, head.launch, head.launch + 1, after=after)
        self._shards += 1
        return Run(head.request, lane, head.launch, blocks=blocks, workers=size, threads=threads, after=after)

    def _flying(self, view: View) -> list[Run]:
        return [run for lane in self._normal for run in view.flying(lane)]

    def _time_us(self, run: Run) -> float:
        share = _blocks(run) / run.request.task.program.launches[run.first].blocks
        return share * self._times_us[run.request.task.name][run.first]

    def report(self) -> Mapping[str, float]:
        """Sizes of the design space, shards dispatched, and time that deciding took on this host.

        The last one is a measurement of the machine that runs the coordinator: unlike everything
        else it differs from run to run.
        """
        return {
            **self._padding.report(),
            "shards": self._shards,
            "host_us_per_request": self._host_us / self._requests if self._requests else 0.0,
        }


class _Head:
    """The launch that is being dispatched."""

    __slots__ = ("launch", "request", "tree")

    def __init__(self, request: Request, launch: int) -> None:
        self.request = request
        self.launch = launch
        self.tree = ShadedTree(request.task.program.launches[launch].blocks)


def _blocks(run: Run) -> int:
    """Blocks of a run of one launch."""
    if run.blocks is None:
        return run.request.task.program.launches[run.first].blocks
    return run.blocks[1] - run.blocks[0]
