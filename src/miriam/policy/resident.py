"""Whole programs that run on the device by themselves, and leave SMs when a critical one comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from miriam.coordinator import View
from miriam.device.base import Command, Event, EventKind, Lane, Limit, Run
from miriam.errors import PolicyError
from miriam.policy.base import Setting, lane_of_level, levels
from miriam.task import Request, Task

__all__ = ["Resident", "why_of"]


class Resident:
    """Every request whole and at once; lower levels are elastic, and limited while a higher one runs.

    Lanes and priorities are those of :class:`~miriam.policy.priority.Priority`. Requests of the highest
    level that a task has run in their original form. Those below are elastic, with as many workers as fit, so
    that one that is limited leaves SMs at the end of a share and loses nothing. Each run limits all lanes
    below its own, from its start to its end, ordered by the device: the host takes no turn when a
    critical request starts or ends, and all that have arrived are enqueued, so no gap lies between two.
    While a request of some level is said to be on its way, the lanes below are limited as if it ran.

    Cost: one command for each request, no waiting of the host. Normal work pays for elastic kernels, and
    for leaving and coming back.

    Parameters
    ----------
    sms
        SMs that lower lanes may keep while a request above them runs; 0: none, they are paused.

    Raises
    ------
    PolicyError
        The device does not have so many.
    """

    name = "resident"

    def __init__(self, setting: Setting, sms: int = 0) -> None:
        if sms > setting.geometry.sms:
            raise PolicyError(
                f"policy resident: {sms} SMs left to lower lanes, and the device has {setting.geometry.sms}"
            )
        order = levels(setting)
        self.lanes: tuple[Lane, ...] = tuple(
            lane_of_level(level, len(order) - 1 - rank) for rank, level in enumerate(order)
        )
        self._lane = {level: lane for lane, level in enumerate(order)}
        self._workers = setting.geometry.sms * setting.geometry.blocks_per_sm
        self._present = [task.criticality for task in setting.tasks]
        self._top = self._highest()
        self._sms = sms
        self._expected = len(order)  # the lane of a request that is on its way, or one behind the last
        self._limits = [dict.fromkeys(range(lane + 1, len(order)), sms) for lane in range(len(order))]
        self._why = [why_of(lane, len(order), sms, setting.geometry.sms) for lane in range(len(order))]

    def join(self, task: Task) -> None:
        """A task comes; if none is above it, it runs in its original form, and what did so before runs elastic."""
        self._present.append(task.criticality)
        self._top = min(self._top, self._lane[task.criticality]) if len(self._present) > 1 else self._highest()

    def leave(self, task: Task) -> None:
        """A task goes."""
        self._present.remove(task.criticality)
        self._top = self._highest()

    def _highest(self) -> int:
        """The lane of the most critical task."""
        return self._lane[max(self._present)] if self._present else 0

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """The whole inference that has arrived."""
        if event.kind is EventKind.ARRIVED and event.request is not None:
            lane = self._lane[event.request.task.criticality]
            yield self._run(event.request, lane, self._limits[lane], self._why[lane])
        elif event.kind is EventKind.HINTED:
            yield from self._expect(event.level)

    def _expect(self, level: int | None) -> Iterator[Command]:
        """A request of a level is on its way, or of none any more."""
        before = [self._rest(lane) for lane in range(len(self.lanes))]
        self._expected = len(self.lanes) if level is None else self._lane[level]
        why = (
            "none is on its way any more"
            if level is None
            else f"a request of {self.lanes[self._expected].name} is on its way"
        )
        for lane, sms in enumerate(before):
            if self._rest(lane) != sms:
                yield Limit(lane, self._rest(lane), why)

    def _rest(self, lane: int) -> int | None:
        """The limit of a lane while no run limits it."""
        return self._expecting() if lane > self._expected else None

    def _expecting(self) -> int | None:
        """What lanes keep below one of which a request is on its way."""
        return self._sms

    def _run(self, request: Request, lane: int, limits: Mapping[int, int | None], why: str) -> Run:
        self._top = min(self._top, lane)  # a request may be above all tasks; others have to give way to its like
        return Run(request, lane, workers=self._workers if lane > self._top else None, limits=limits, why=why)

    def report(self) -> Mapping[str, float]:
        """Nothing."""
        return {}


@lru_cache(1024)  # critical requests wait for it
def why_of(lane: int, lanes: int, sms: int, of: int) -> str:
    """In words: a whole run on a lane, beside which those below it keep so many SMs."""
    if lane == lanes - 1:
        return "whole and at once" + (", giving way to lanes above" if lane else "")
    below = "are paused" if sms == 0 else "keep all SMs" if sms == of else f"keep {sms} of {of} SMs"
    return f"whole and at once; lanes below {below} until it ends"
