"""Tasks and requests: who asks for what, and how urgent it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from miriam.program import Program

__all__ = ["Criticality", "Request", "Task"]


class Criticality(IntEnum):
    """An ordered level. These two names are what everybody uses; any integer above is more critical."""

    NORMAL = 0
    CRITICAL = 1


@dataclass(frozen=True, slots=True)
class Task:
    """A model being served with a criticality, and, where it has them, a period or a deadline.

    Attributes
    ----------
    name
        Unique among the tasks of a device.
    program
        What one request runs.
    criticality
        A level; higher goes first.
    deadline_us
        Time that a request may take from its arrival, or None.
    period_us
        Time between two requests of a periodic task, or None.
    """

    name: str
    program: Program
    criticality: int = Criticality.NORMAL
    deadline_us: float | None = None
    period_us: float | None = None

    @property
    def critical(self) -> bool:
        """Whether the task is above the normal level."""
        return self.criticality > Criticality.NORMAL


@dataclass(eq=False, slots=True)
class Request:
    """One inference of a task. Two requests are never equal.

    Attributes
    ----------
    task
        Whose inference it is.
    number
        Unique within a run of a device, rising with creation.
    arrival_us, start_us, finish_us
        When it came, when its first block began, when its last launch ended; None until it did.
    inputs, outputs
        What a device that computes is given and gives back, in the order of the program's tensors: arrays
        or tensors, on the host or on the device. None: the inputs are those that are there already, and
        nobody asks for outputs.
    error
        Why it failed, once it has finished without outputs.
    """

    task: Task
    number: int
    arrival_us: float
    start_us: float | None = None
    finish_us: float | None = None
    inputs: Sequence[Any] | None = field(default=None, repr=False)
    outputs: Sequence[Any] | None = field(default=None, repr=False)
    error: BaseException | None = None

    @property
    def latency_us(self) -> float:
        """Arrival to finish (response time)."""
        if self.finish_us is None:
            raise ValueError(f"request {self.number} of {self.task.name} has not finished")
        return self.finish_us - self.arrival_us
