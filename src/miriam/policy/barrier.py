"""Two streams that meet at barriers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from miriam.coordinator import View
from miriam.device.base import Command, Event, EventKind, Lane, Run
from miriam.policy.base import Setting, most_urgent
from miriam.policy.stages import Demand, search
from miriam.task import Request, Task

__all__ = ["Barrier"]


class Barrier:
    """Stages of a critical and a normal inference side by side; both lanes wait for both ends.

    The *Inter-stream Barrier* baseline of Miriam (SenSys'23) after Yu et al., "Automated
    Runtime-Aware Scheduling for Multi-Tenant DNN Inference on GPU", ICCAD'21, arXiv 2111.14255.
    Offline, the two programs of a pair are cut into the same number of stages (:func:`miriam.policy.stages.search`).
    Online, stage s + 1 of either starts after stage s of both, ordered by the device with no turn
    of the host.

    Reconstruction: stage latencies are estimated, not measured in company; and since requests come
    when they like, a side without a partner goes on stage by stage. Whoever comes meanwhile starts
    its first stage at once, beside the one that runs, and the two meet at the next barrier. (Were a
    lone request run whole, a side that always has work would never meet anybody.) Within a side
    the more critical request goes first, then the older one.

    Cost: one command for each stage; the host takes a turn when a pair meets and after each stage
    that ran alone.

    Parameters
    ----------
    stages
        Stages of a program; fewer where one of a pair has fewer launches.
    seed
        Of the random starts of the search.
    """

    name = "barrier"

    def __init__(self, setting: Setting, stages: int = 4, seed: int = 0) -> None:
        self.lanes: tuple[Lane, ...] = (Lane("critical"), Lane("normal"))
        self._sides = tuple([task for task in setting.tasks if task.critical is critical] for critical in (True, False))
        self._cuts: dict[tuple[str, str], Sequence[int]] = {}
        demand = {task.name: Demand.of(task, setting) for task in setting.tasks}
        for a in self._sides[0]:
            for b in self._sides[1]:
                cuts = search(demand[a.name], demand[b.name], stages, random.Random(seed))
                self._cuts[a.name, b.name], self._cuts[b.name, a.name] = cuts
        self._current: list[Request | None] = [None, None]
        self._at = [0, 0]  # first launch of the current request that was not submitted

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """At a barrier all stages that a pair has in common; for a lone request its next stage."""
        run = event.run
        if event.kind is EventKind.FINISHED and run is not None and run.request not in view.pending:
            self._current[run.lane] = None
        for lane, critical in enumerate((True, False)):
            if self._current[lane] is None and (waiting := view.waiting(critical=critical)):
                self._current[lane], self._at[lane] = most_urgent(waiting), 0
        ready = [(i, r) for i, r in enumerate(self._current) if r is not None and view.idle(i) and self._left(i, r)]
        if view.idle(0) and view.idle(1):
            stage = self._stage(ready)
            yield from stage
            while len(stage) == 2 and all(self._left(lane, request) for lane, request in ready):
                stage = self._stage(ready, after=stage)
                yield from stage
        elif ready and self._at[ready[0][0]] == 0:
            yield from self._stage(ready)

    def _left(self, lane: int, request: Request) -> bool:
        return self._at[lane] < len(request.task.program.launches)

    def _stage(self, ready: Sequence[tuple[int, Request]], after: tuple[Run, ...] = ()) -> tuple[Run, ...]:
        """The next stage of each of these requests on its lane."""
        runs = []
        for lane, request in ready:
            first = self._at[lane]
            self._at[lane] = next(cut for cut in self._cuts_of(request.task, 1 - lane) if cut > first)
            runs.append(Run(request, lane, first, self._at[lane], after=after))
        return tuple(runs)

    def _cuts_of(self, task: Task, other_lane: int) -> Sequence[int]:
        """Cuts of ``task`` for the partner that it has, or else for the first that it may have."""
        other = self._current[other_lane]
        partner = other.task if other is not None else next(iter(self._sides[other_lane]), None)
        return (len(task.program.launches),) if partner is None else self._cuts[task.name, partner.name]

    def report(self) -> Mapping[str, float]:
        """Nothing."""
        return {}
