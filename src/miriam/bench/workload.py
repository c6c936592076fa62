"""Workloads: which models share a device, how critical they are, and when their requests come.

MDTB is the mixed-critical benchmark of the Miriam paper (SenSys'23, arXiv 2307.04339). The
definitions here are the paper's benchmark as we know it; the paper's own kernels are far slower than
ours, so the rates as written leave a tuned device nearly idle: see :meth:`Workload.scaled`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from miriam.bench.arrivals import Arrivals, Closed, Poisson, Uniform
from miriam.errors import WorkloadError
from miriam.program import Program
from miriam.task import Criticality, Task

__all__ = ["MDTB", "Entry", "Workload", "check_load", "select"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One task of a workload.

    Attributes
    ----------
    name
        Name of the task, unique within its workload.
    model
        Name of its program: in the zoo, or where the benchmark is told to take programs from.
    criticality
        A level; higher goes first.
    arrivals
        When its requests come.
    deadline_us
        Time that a request may take from its arrival. None: the period of a periodic critical
        task (it has to be ready before the next one), and no deadline for everything else.
    """

    name: str
    model: str
    criticality: int
    arrivals: Arrivals
    deadline_us: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.criticality, int):
            raise WorkloadError(
                f"task {self.name!r} has the criticality {self.criticality!r}: a whole number is needed"
            )
        if self.deadline_us is not None and not self.deadline_us > 0:
            raise WorkloadError(
                f"task {self.name!r} has a deadline of {self.deadline_us} us: a time above zero is needed"
            )

    @property
    def critical(self) -> bool:
        """Whether it is above the normal level."""
        return self.criticality > Criticality.NORMAL

    @property
    def period_us(self) -> float | None:
        """Time between two requests of a periodic task."""
        return self.arrivals.gap_us if isinstance(self.arrivals, Uniform) else None

    def settled(self) -> Entry:
        """The same with its deadline written out."""
        implied = self.period_us if self.critical else None
        return replace(self, deadline_us=implied if self.deadline_us is None else self.deadline_us)

    def task(self, program: Program) -> Task:
        """The task that runs ``program`` for this entry."""
        return Task(self.name, program, self.criticality, self.settled().deadline_us, self.period_us)


@dataclass(frozen=True, slots=True)
class Workload:
    """Tasks that share a device.

    Attributes
    ----------
    name
        Short, as the user writes it.
    title
        One line for people.
    entries
        The tasks, critical ones first.
    """

    name: str
    title: str
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        if not names or len(set(names)) < len(names):
            raise WorkloadError(f"workload {self.name!r} needs tasks with different names, it has: {', '.join(names)}")

    @property
    def critical(self) -> Entry | None:
        """The most critical entry, of equal ones the first; None if all are normal."""
        return max((e for e in self.entries if e.critical), key=lambda e: e.criticality, default=None)

    @property
    def rated(self) -> Entry | None:
        """The most critical entry that has a rate: the one that :meth:`scaled` looks at."""
        rated = [e for e in self.entries if e.critical and not isinstance(e.arrivals, Closed)]
        return max(rated, key=lambda e: e.criticality, default=None)

    def scaled(self, load: float, alone_us: float) -> Workload:
        """The same workload with rates such that its critical task alone is busy a share of the time.

        Every rate is multiplied by one factor, so their ratio stays; closed loops stay as they are,
        and so does a workload whose critical tasks are all closed loops.

        Parameters
        ----------
        load
            Share of the time, above 0 and at most 1.
        alone_us
            What one request of :attr:`rated` takes alone.
        """
        check_load(load)
        entry = self.rated
        if entry is None or isinstance(entry.arrivals, Closed):
            return self
        factor = load * 1e6 / alone_us / entry.arrivals.rate_per_s
        return replace(self, entries=tuple(replace(e, arrivals=e.arrivals.scaled(factor)) for e in self.entries))


def _pair(name: str, title: str, critical: tuple[str, str, Arrivals], normal: tuple[str, str, Arrivals]) -> Workload:
    return Workload(name, title, (Entry(critical[0], critical[1], Criticality.CRITICAL, critical[2]),
                                  Entry(normal[0], normal[1], Criticality.NORMAL, normal[2])))  # fmt: skip


MDTB: Mapping[str, Workload] = MappingProxyType(
    {
        w.name: w
        for w in (
            _pair(
                "A", "AlexNet beside CifarNet, both without a pause",
                ("AlexNet", "alexnet-b1", Closed()), ("CifarNet", "cifarnet-b1", Closed()),
            ),
            _pair(
                "B", "SqueezeNet at a fixed rate beside AlexNet without a pause",
                ("SqueezeNet", "squeezenet-b1", Uniform(10)), ("AlexNet", "alexnet-b1", Closed()),
            ),
            _pair(
                "C", "GRU at random moments beside ResNet-50 without a pause",
                ("GRU", "gru-b1", Poisson(10)), ("ResNet-50", "resnet50-b1", Closed()),
            ),
            _pair(
                "D", "LSTM at a fixed rate beside SqueezeNet without a pause",
                ("LSTM", "lstm-b1", Uniform(10)), ("SqueezeNet", "squeezenet-b1", Closed()),
            ),
            _pair(
                "driving", "Obstacle detection at 10 Hz beside pose estimation at 12.5 Hz",
                ("ResNet-50", "resnet50-b1", Uniform(10)), ("SqueezeNet", "squeezenet-b1", Uniform(12.5)),
            ),
        )
    }
)  # fmt: skip
"""Workloads A to D and the driving case, by name."""


def check_load(load: float) -> None:
    """Raise :class:`WorkloadError` if ``load`` is no share of the time."""
    if not 0 < load <= 1:
        raise WorkloadError(f"critical load {load}: a share of the time is needed, above 0 and at most 1")


def select(names: str | Iterable[str | Workload]) -> tuple[Workload, ...]:
    """Workloads by name (``"A,B"`` or a list); workloads pass through, repeats are dropped.

    Raises
    ------
    WorkloadError
        A name is unknown, or nothing is left.
    """
    found: dict[str, Workload] = {}
    for name in names.split(",") if isinstance(names, str) else names:
        if isinstance(name, Workload):
            found.setdefault(name.name, name)
            continue
        key = name.strip()
        match = next((w for w in MDTB.values() if w.name.lower() == key.lower()), None)
        if match is None:
            raise WorkloadError(f"there is no workload {key!r}: choose from {', '.join(MDTB)}")
        found.setdefault(match.name, match)
    if not found:
        raise WorkloadError(f"no workload was named: choose from {', '.join(MDTB)}")
    return tuple(found.values())
