"""What a policy is told before the first event, and what most of them need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from miriam.device.base import Geometry, Lane
from miriam.errors import PolicyError
from miriam.task import Criticality, Request, Task

__all__ = ["Joining", "Option", "Setting", "lane_of_level", "levels", "most_urgent"]


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
    command_us
        What one command costs the host.
    levels
        Criticality levels that tasks may have which come later, besides those of ``tasks``.
    """

    tasks: Sequence[Task]
    geometry: Geometry
    launch_us: Mapping[str, Sequence[float]]
    command_us: float = 5.0
    levels: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """The number that may stand behind a policy's name, after a colon.

    Attributes
    ----------
    what
        What it is, for people.
    whole
        Whether it is a whole number.
    least
        The lowest that makes sense on any device.
    """

    what: str
    whole: bool
    least: float

    def read(self, policy: str, text: str) -> float:
        """The number in ``text``; :class:`PolicyError` if there is none that makes sense."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = -math.inf
        if not self.least <= value < math.inf:
            kind = "a whole number" if self.whole else "a number"
            raise PolicyError(f"policy {policy}: {text!r} is no {self.what}: take {kind} from {self.least:g} on")
        return value


@runtime_checkable
class Joining(Protocol):
    """A policy that has to know which tasks come and go while it works."""

    def join(self, task: Task) -> None:
        """A task comes; none of its requests has."""

    def leave(self, task: Task) -> None:
        """A task goes; all of its requests have ended."""


def levels(setting: Setting) -> tuple[int, ...]:
    """The criticality levels of the tasks, present and to come, the most critical first."""
    return tuple(sorted({task.criticality for task in setting.tasks} | set(setting.levels), reverse=True))


def lane_of_level(level: int, priority: int = 0) -> Lane:
    """A lane for the tasks of one level, named after it."""
    named = level in (Criticality.NORMAL, Criticality.CRITICAL)
    return Lane(Criticality(level).name.lower() if named else f"level {level}", priority)


def most_urgent(requests: Sequence[Request]) -> Request:
    """Of requests in the order of their arrival: the most critical, of equal ones the oldest."""
    return max(requests, key=lambda request: request.task.criticality)
