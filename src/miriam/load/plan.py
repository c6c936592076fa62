"""What a load is: who asks a server for what, when, and for how long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from miriam.bench.arrivals import Arrivals
from miriam.bench.workload import Entry, Workload
from miriam.errors import WorkloadError
from miriam.load.server import Server
from miriam.task import Criticality

__all__ = ["Caller", "Plan"]

_WARM_UP, _WARM_UP_S = 0.05, 0.5  # share of a run, and the least


@dataclass(frozen=True, slots=True)
class Caller:
    """One client: it asks for one model, with the same input each time.

    Attributes
    ----------
    name
        Of the task in the report, unique in its plan.
    arrivals
        When its requests are to be sent.
    model
        Empty: the one that is called as the task.
    criticality
        How the report sees it; None: as the server's configuration of the model says, else normal.
    deadline_us
        Time that an answer may take, for the report; None: none, or the period of a periodic critical task.
    priority, timeout_us
        Parameters of every request; None: not sent. 1 is the highest priority.
    shapes
        Of inputs whose shape the model leaves open, by name.
    inputs, expected
        Files of NumPy (``.npz``) with arrays by name: what is sent instead of random numbers, and what the
        answers are compared with instead of the first one.
    shared_memory
        Whether inputs are left in memory that the server reads, on the same machine, instead of being sent.
    """

    name: str
    arrivals: Arrivals
    model: str = ""
    criticality: int | None = None
    deadline_us: float | None = None
    priority: int | None = None
    timeout_us: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Path | None = None
    expected: Path | None = None
    shared_memory: bool = False

    @property
    def asks_for(self) -> str:
        """Name of the model."""
        return self.model or self.name

    def entry(self, criticality: int | None = None) -> Entry:
        """As it stands in a results document; ``criticality`` is what the server says."""
        level = self.criticality if self.criticality is not None else criticality
        own = Criticality.NORMAL if level is None else level
        return Entry(self.name, self.asks_for, int(own), self.arrivals, self.deadline_us).settled()


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole load.

    Attributes
    ----------
    server, callers
        Who is asked, and by whom.
    duration_s, warm_up_s
        Length of every run, and how much of its begin does not count; a twentieth, half a second at least,
        for None.
    repeats
        Turns: each has every caller alone, and all together.
    seed
        Turn ``i`` has the arrivals of ``seed + i``; inputs follow from it, too.
    solo
        Whether each caller is measured alone first, which is what slowdowns are against.
    verify
        Whether every answer is compared.
    patience_s
        After so long without an answer a request counts as lost.
    title
        One line for people.
    """

    server: Server
    callers: Sequence[Caller]
    duration_s: float = 10.0
    warm_up_s: float | None = None
    repeats: int = 1
    seed: int = 0
    solo: bool = True
    verify: bool = False
    patience_s: float = 10.0
    title: str = ""

    def __post_init__(self) -> None:
        if not self.callers:
            raise WorkloadError("nobody asks: name at least one model with its arrivals")
        if not (0 < self.duration_s < math.inf):
            raise WorkloadError(f"a duration of {self.duration_s} s: a number above zero is needed")
        if not 0 <= self.warm_up < self.duration_s:
            raise WorkloadError(
                f"a duration of {self.duration_s:g} s with a warm-up of {self.warm_up:g} s: nothing is left that counts"
            )
        if not (0 < self.patience_s < math.inf):
            raise WorkloadError(f"a patience of {self.patience_s} s: a number above zero is needed")
        if self.repeats < 1:
            raise WorkloadError(f"{self.repeats} repeats: at least one is needed")
        if self.seed < 0:
            raise WorkloadError(f"seed {self.seed}: a whole number, zero or above, is needed")
        self.workload({})

    @property
    def warm_up(self) -> float:
        """Seconds at the begin of every run that do not count."""
        return max(_WARM_UP * self.duration_s, _WARM_UP_S) if self.warm_up_s is None else self.warm_up_s

    def workload(self, criticality: Mapping[str, int | None]) -> Workload:
        """As it stands in a results document; ``criticality`` is what the server says, by caller."""
        entries = tuple(caller.entry(criticality.get(caller.name)) for caller in self.callers)
        title = self.title or " beside ".join(e.name for e in entries)
        return Workload("load", title, tuple(sorted(entries, key=lambda e: -e.criticality)))
