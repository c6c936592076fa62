"""What a policy is told before the first event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from miriam.device.base import Geometry
from miriam.task import Task

__all__ = ["Setting"]


@dataclass(frozen=True, slots=True)
class Setting:
    """The stage on which a policy will work; its offline phase may use all of it.

    Attributes
    ----------
    tasks
        All tasks of the run.
    geometry
        Of the device.
    launch_us
        By task name: time of each launch of its program alone on the device.
    """

    tasks: Sequence[Task]
    geometry: Geometry
    launch_us: Mapping[str, Sequence[float]]
