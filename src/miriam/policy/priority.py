"""A stream for each criticality, with stream priorities."""

from __future__ import annotations

from miriam.policy.base import Setting, lane_of_level, levels
from miriam.policy.multistream import Multistream

__all__ = ["Priority"]


class Priority(Multistream):
    """As :class:`~miriam.policy.multistream.Multistream`, with a higher lane priority for a higher level.

    Pending blocks of the higher lane are placed first. A block that runs is never evicted, so a
    critical launch still waits for normal blocks to end and shares every SM with those that stay.
    Free on any GPU, and therefore what everything else has to beat.

    Cost: one command for each request, no waiting of the host.
    """

    name = "priority"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        order = levels(setting)
        # Ranks, since a device has few priorities and a level may be any integer.
        self.lanes = tuple(lane_of_level(level, len(order) - 1 - rank) for rank, level in enumerate(order))
        self._why = "whole and at once; its blocks go before those of lanes below"
