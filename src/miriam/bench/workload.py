"""Workloads: which models share a device, how critical they are, and when their requests come."""

from __future__ import annotations

from dataclasses import dataclass, replace

from miriam.bench.arrivals import Arrivals, Closed, Uniform
from miriam.errors import WorkloadError
from miriam.program import Program
from miriam.task import Criticality, Task

__all__ = ["Entry", "Workload", "check_load"]


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

    def deepened(self, depth: int) -> Workload:
        """The same workload whose normal closed loops keep ``depth`` requests outstanding."""
        loop = Closed(depth)
        loops = [not e.critical and isinstance(e.arrivals, Closed) for e in self.entries]
        entries = zip(self.entries, loops, strict=True)
        return replace(self, entries=tuple(replace(e, arrivals=loop) if own else e for e, own in entries))


def check_load(load: float) -> None:
    """Raise :class:`WorkloadError` if ``load`` is no share of the time."""
    if not 0 < load <= 1:
        raise WorkloadError(f"critical load {load}: a share of the time is needed, above 0 and at most 1")
