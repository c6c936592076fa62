"""Whether tasks can hold their deadlines: response-time analysis of levels with EDF inside each.

What is assumed of the device: a request of a higher level interrupts those below at the end of the step that runs; in a
level one request runs after another, and so many are on the device at a time (its *depth*), which nobody of the level
overtakes. A task has its requests at least a period apart; one with a deadline and no period, at least that deadline.

For a level, ``H`` are the tasks above it and ``L`` its own; ``C``, ``T``, ``D`` and ``R`` a task's time alone, period,
deadline and longest response. Take a request of the level with its deadline at ``d``, and the last moment before its
end at which no request of the level with a deadline up to ``d`` was there. From then until its end there pass at most

    w = B + sum over L of dbf(t) + sum over H of ceil((w + R) / T) * C

``t``
    from that moment to ``d``; it is enough to look at the deadlines of requests that all come at once and then as often
    as they may (Baruah, Rosier and Howell, "Algorithms and complexity concerning the preemptive scheduling of periodic,
    real-time tasks on one processor", Real-Time Systems 2, 1990).
``dbf(t)``
    ``(floor((t - D) / T) + 1) * C``, the demand with deadlines up to ``t`` (the same).
``B``
    what was begun and cannot be interrupted: the longest step of a lower level, and as many requests of the level as
    are on the device at a time, of tasks with deadlines after ``t`` (Jeffay, Stanat and Martel, "On non-preemptive
    scheduling of periodic and sporadic tasks", RTSS 1991).
``ceil((w + R) / T) * C``
    the time that a task above takes, with what of it may be pending at that moment (Joseph and Pandya, "Finding
    response times in a real-time system", The Computer Journal 29, 1986; ``R`` in the place of the jitter of Audsley
    et al., "Applying new scheduling theory to static priority pre-emptive scheduling", 1993). A level of one task needs
    no ``R``, for it can begin with the higher ones.

The least ``w`` that satisfies this is found by iteration; the deadline holds where ``w <= t``. Where a level has more
than one request on the device at a time, each may let one of another task go before it, which counts as part of it.

It is sufficient, not necessary: what is refused may still hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Demand", "Verdict", "analyse"]

_POINTS = 10_000  # deadlines to look at; a set that needs more has next to nothing left over
_FULL = 0.999  # of the time asked for, beyond which it is taken for all


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task asks of the device, in whole nanoseconds.

    Attributes
    ----------
    name, level
        Of the task.
    cost_ns
        Time that a request takes alone.
    step_ns
        The longest part of it that cannot be interrupted.
    deadline_ns, period_ns
        Where it has them.
    """

    name: str
    level: int
    cost_ns: int
    step_ns: int
    deadline_ns: int | None = None
    period_ns: int | None = None

    @property
    def gap_ns(self) -> int | None:
        """Least time between two of its requests, if there is one."""
        return self.period_ns or self.deadline_ns


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found for a task with a deadline.

    Attributes
    ----------
    name
        Of the task.
    response_ns
        The longest that a request may take, or None: there is no bound.
    deadline_ns
        Of the task.
    why
        What the time goes into, for people.
    """

    name: str
    response_ns: int | None
    deadline_ns: int
    why: str

    @property
    def holds(self) -> bool:
        """Whether the deadline does."""
        return self.response_ns is not None and self.response_ns <= self.deadline_ns


def analyse(demands: Sequence[Demand], depth: int = 1) -> list[Verdict]:
    """What can be said of each task that has a deadline, the highest level first.

    Parameters
    ----------
    depth
        Requests of a level that are on the device at a time.
    """
    verdicts: list[Verdict] = []
    above: list[tuple[Demand, int]] = []  # with the longest response of each
    why = ""  # there is no bound, for all levels from there on
    for number in sorted({demand.level for demand in demands}, reverse=True):
        own = [demand for demand in demands if demand.level == number]
        step_ns = max((demand.step_ns for demand in demands if demand.level < number), default=0)
        level = _Level(own, above, step_ns, depth)
        found = level.verdicts(why)
        verdicts += found
        why = why or level.endless
        busy_ns = None if why else level.busy_ns(own)
        if busy_ns is None:
            why = why or _OVERLOADED
            continue
        response_ns = {verdict.name: verdict.response_ns or busy_ns for verdict in found}
        above += [(demand, response_ns.get(demand.name, busy_ns)) for demand in own]
    return verdicts


_OVERLOADED = "with what is above it, it asks for all of the time or more"


class _Level:
    """One level, with what is above it and the longest step below."""

    def __init__(self, own: Sequence[Demand], above: Sequence[tuple[Demand, int]], step_ns: int, depth: int) -> None:
        self._own, self._step_ns, self._depth = own, step_ns, depth
        self._timed = [demand for demand in own if demand.deadline_ns is not None]
        # With one task nothing of the level can be begun that it has to wait for, so it begins with the higher levels,
        # and nothing of these is pending then.
        self._above = [(demand, pending_ns if len(own) > 1 else 0) for demand, pending_ns in above]

    @property
    def endless(self) -> str:
        """Why there is no bound on what this level does; empty if there is one."""
        endless = next((demand.name for demand in self._own if demand.gap_ns is None), None)
        return f"{endless}, above it, has neither a period nor a deadline: nothing bounds its rate" if endless else ""

    def verdicts(self, why: str) -> list[Verdict]:
        """Of its tasks that have a deadline; there is no bound if there is a reason for that."""
        busy_ns = None if why else self.busy_ns(self._timed)
        points = None if busy_ns is None else self._points(busy_ns)
        if busy_ns is None or points is None:
            return [Verdict(d.name, None, d.deadline_ns or 0, why or _OVERLOADED) for d in self._timed]
        late = []
        for at_ns in points:
            work_ns = self._begun_ns(at_ns) + sum(self._due_ns(other, at_ns) for other in self._timed)
            late.append((self._settled_ns(work_ns) - at_ns, at_ns))
        return [self._verdict(demand, late, busy_ns) for demand in self._timed]

    def busy_ns(self, tasks: Sequence[Demand]) -> int | None:
        """The longest time in which requests of these tasks are there without a break; None: no bound."""
        share = sum(self._cost_ns(d) / (d.gap_ns or 1) for d in tasks)
        share += sum(d.cost_ns / (d.gap_ns or 1) for d, _ in self._above)
        if share >= _FULL:
            return None
        first_ns = min((d.deadline_ns or 0 for d in self._timed), default=None)
        # Of requests that were begun before, only those with a deadline after some other one have to be waited for.
        return self._settled_ns(self._step_ns if first_ns is None else self._begun_ns(first_ns), tasks)

    def _settled_ns(self, once_ns: int, tasks: Sequence[Demand] = ()) -> int:
        """The least time in which some work is done, and what comes of these tasks and of those above meanwhile."""
        last_ns, now_ns = -1, 1
        while now_ns != last_ns:
            last_ns = now_ns
            again_ns = sum(_times(last_ns, d) * self._cost_ns(d) for d in tasks)
            now_ns = max(1, once_ns + again_ns + self._above_ns(last_ns))
        return now_ns

    def _above_ns(self, time_ns: int) -> int:
        return sum(_times(time_ns + pending_ns, d) * d.cost_ns for d, pending_ns in self._above)

    def _points(self, until_ns: int) -> list[int] | None:
        """Deadlines up to a time, and the first of each task; None if there are too many."""
        number = sum((until_ns - (d.deadline_ns or 0)) // (d.gap_ns or 1) + 1 for d in self._timed)
        if number > _POINTS:
            return None
        points = {d.deadline_ns or 0 for d in self._timed}
        points.update(*(range(d.deadline_ns or 0, until_ns + 1, d.gap_ns or 1) for d in self._timed))
        return sorted(points)

    def _due_ns(self, demand: Demand, at_ns: int) -> int:
        """``dbf``."""
        return max(0, (at_ns - (demand.deadline_ns or 0)) // (demand.gap_ns or 1) + 1) * self._cost_ns(demand)

    def _cost_ns(self, demand: Demand) -> int:
        """Of a request, with those of others that may go before it for the depth of the device."""
        others = max((other.cost_ns for other in self._own if other is not demand), default=0)
        return demand.cost_ns + (self._depth - 1) * others

    def _begun_ns(self, at_ns: int) -> int:
        """``B``."""
        later = sorted((d.cost_ns for d in self._own if d.deadline_ns is None or d.deadline_ns > at_ns), reverse=True)
        return self._step_ns + sum(later[: self._depth])

    def _verdict(self, demand: Demand, late: Sequence[tuple[int, int]], busy_ns: int) -> Verdict:
        """Of one task, from how late the level is after which times: its deadline may be at any that is long enough."""
        deadline_ns = demand.deadline_ns or 0
        late_ns, at_ns = max((late_ns, at_ns) for late_ns, at_ns in late if at_ns >= deadline_ns)
        # Where nothing is late, a response is within the busy time.
        response_ns = deadline_ns + late_ns if late_ns > 0 else min(busy_ns, deadline_ns)
        begun_ns = self._begun_ns(at_ns) - self._step_ns
        others_ns = sum(self._due_ns(other, at_ns) for other in self._timed) - demand.cost_ns
        above_ns = self._above_ns(at_ns + late_ns)
        parts = {
            "its own": demand.cost_ns,
            "others of its level": begun_ns + others_ns,
            "a step of a lower level": self._step_ns,
            "levels above": above_ns,
        }
        why = ", ".join(f"{part_ns / 1e6:.3g} ms for {what}" for what, part_ns in parts.items() if part_ns)
        return Verdict(demand.name, response_ns, deadline_ns, why)


def _times(time_ns: int, demand: Demand) -> int:
    """Requests of a task that can come in a time."""
    return -(-time_ns // (demand.gap_ns or 1))
