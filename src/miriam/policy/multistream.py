"""A stream for each criticality, and the block scheduler decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from miriam.coordinator import View
from miriam.device.base import Command, Event, EventKind, Lane, Run
from miriam.policy.base import Setting, lane_of_level, levels

__all__ = ["Multistream"]


class Multistream:
    """Every request is enqueued whole on the lane of its level as soon as it arrives.

    The *Multi-stream* baseline of Miriam (SenSys'23), and what most people do first. Lanes have
    equal priority: whoever's blocks are there first get the SMs. Requests of one level are served
    in the order of their arrival.

    Cost: one command for each request, no waiting of the host.
    """

    name = "multistream"

    def __init__(self, setting: Setting) -> None:
        self._lane = {level: lane for lane, level in enumerate(levels(setting))}
        self.lanes: tuple[Lane, ...] = tuple(lane_of_level(level) for level in self._lane)
        self._why = "whole and at once; the device decides who gets what"

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """The whole inference that has arrived."""
        if event.kind is EventKind.ARRIVED and event.request is not None:
            yield Run(event.request, self._lane[event.request.task.criticality], why=self._why)

    def report(self) -> Mapping[str, float]:
        """Nothing."""
        return {}
