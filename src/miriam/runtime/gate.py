"""Who is let in: tasks with which all deadlines can be shown to hold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from miriam.device.base import Serving
from miriam.errors import AdmissionError, WorkloadError
from miriam.runtime.admission import Demand, Verdict, analyse
from miriam.task import Task

__all__ = ["Gate", "preempts"]

_MARGIN = 1.1  # of times alone, for what a median does not say


def preempts(policy: str) -> bool:
    """Whether a higher level interrupts a lower one under a policy."""
    return policy.partition(":")[0] not in ("multistream", "sequential")


class Gate:
    """Looks at each task that is to be loaded, beside those that are.

    A request is taken to need 1.1 times what its launches took when they were measured alone, and one command of the
    host; its longest launch is the longest part of it that a higher level may have to wait for.

    Parameters
    ----------
    admission
        ``off``, ``warn`` or ``refuse``: what is done where a deadline cannot be shown to hold.
    policy, device
        Names.

    Raises
    ------
    WorkloadError
        There is no such admission.
    """

    def __init__(self, admission: str, policy: str, device: str) -> None:
        if admission not in ("off", "warn", "refuse"):
            raise WorkloadError(f"admission {admission!r}: take off, warn or refuse")
        self._admission, self._policy, self._device = admission, policy.partition(":")[0], device
        self._warned: set[str] = set()

    def admit(self, task: Task, others: Sequence[Task], device: Serving) -> None:
        """Let a task in, or warn, or not.

        Raises
        ------
        AdmissionError
            A deadline, its own or that of another one, cannot be shown to hold.
        """
        tasks = [task, *others]
        if self._admission == "off" or all(one.deadline_us is None for one in tasks):
            return
        self._warned &= {other.name for other in others}
        for verdict in self._verdicts(tasks, device):
            if verdict.holds:
                self._warned.discard(verdict.name)
            elif self._admission == "refuse":
                response_us = math.inf if verdict.response_ns is None else verdict.response_ns / 1e3
                way_out = "lengthen it, or a period, lower a level, or load with admission='warn'"
                raise AdmissionError(
                    f"{_words(task, verdict)}; {way_out}", verdict.name, response_us, verdict.deadline_ns / 1e3
                )
            elif verdict.name not in self._warned:
                self._warned.add(verdict.name)
                warnings.warn(_words(task, verdict), RuntimeWarning, stacklevel=4)

    def _verdicts(self, tasks: Sequence[Task], device: Serving) -> list[Verdict]:
        # Stream priorities let what runs run on; only here do they interrupt it.
        if not preempts(self._policy) or (self._policy == "priority" and not self._device.startswith("cpu")):
            why = f"policy {self._policy} lets a lower level run beside a higher one, or before it"
            return [Verdict(t.name, None, _ns(t.deadline_us), why) for t in tasks if t.deadline_us is not None]
        return analyse([_demand(task, device) for task in tasks], device.depth)


def _demand(task: Task, device: Serving) -> Demand:
    times_us = device.launch_us(task.program)
    return Demand(
        task.name,
        task.criticality,
        cost_ns=math.ceil(1e3 * (_MARGIN * sum(times_us) + device.command_us)),
        step_ns=math.ceil(1e3 * _MARGIN * max(times_us, default=0.0)),
        deadline_ns=None if task.deadline_us is None else _ns(task.deadline_us),
        period_ns=None if task.period_us is None else _ns(task.period_us),
    )


def _ns(time_us: float) -> int:
    return math.floor(1e3 * time_us)


def _words(task: Task, verdict: Verdict) -> str:
    response = "there is no bound on how long a request may take"
    if verdict.response_ns is not None:
        response = f"a request may take {verdict.response_ns / 1e6:.4g} ms"
    return (
        f"with {task.name}, the deadline of {verdict.name}, {verdict.deadline_ns / 1e6:.4g} ms, cannot be shown "
        f"to hold: {response} ({verdict.why})"
    )
