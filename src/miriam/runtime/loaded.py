"""A task that is loaded: what its user calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from miriam.errors import InputError, RequestError, WorkloadError
from miriam.runtime.caller import Caller
from miriam.runtime.desk import Desk, Entry
from miriam.runtime.periodic import Stopper
from miriam.runtime.response import Response, host_us
from miriam.runtime.spec import Spec, check
from miriam.runtime.statistics import TaskStatistics
from miriam.task import Task

if TYPE_CHECKING:
    from miriam.runtime.models import Adopted

__all__ = ["Loaded", "Office"]


@dataclass(frozen=True, slots=True)
class Office:
    """What tasks have of their runtime.

    Attributes
    ----------
    desk, caller, numbers, levels
        Where requests go, what calls functions of users, numbers of requests, levels that they may have.
    inside
        Whether this is the thread that computes.
    unload
        Lets go of a task.
    """

    desk: Desk
    caller: Caller
    numbers: Iterator[int]
    levels: Sequence[int]
    inside: Callable[[], bool]
    unload: Callable[[Loaded], None]


class Loaded:
    """A task that can be asked; made by :meth:`miriam.Runtime.load`. From any thread.

    Attributes
    ----------
    name, task, criticality
        Of the task.
    inputs, outputs
        What goes in and comes out.
    """

    def __init__(
        self, office: Office, task: Task, adopted: Adopted, entry: Entry, timeout_us: float = math.inf
    ) -> None:
        self.task = task
        self.inputs: tuple[Spec, ...] = tuple(adopted.inputs)
        self.outputs: tuple[Spec, ...] = tuple(adopted.outputs)
        self._office, self._adopted, self._entry, self._timeout_us = office, adopted, entry, timeout_us
        self._tasks = {task.criticality: task}

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def criticality(self) -> int:
        """Of the task."""
        return self.task.criticality

    @property
    def closed(self) -> bool:
        """Whether no more requests are taken in: it was unloaded, or another one took its place."""
        return self._entry.closed

    @property
    def statistics(self) -> TaskStatistics:
        """What is known now."""
        return self._office.desk.statistics(self._entry)

    def __call__(self, *inputs: Any) -> Any:
        """Ask, and wait for the answer.

        Raises
        ------
        RequestError
            There is none: :class:`~miriam.errors.InputError`, :class:`~miriam.errors.QueueFullError`,
            :class:`~miriam.errors.RequestTimeoutError`, :class:`~miriam.errors.ModelError`,
            :class:`~miriam.errors.ClosedError`.
        MiriamError
            The device or the policy failed, and with it the runtime.
        """
        return self.submit(*inputs).result()

    def submit(
        self,
        *inputs: Any,
        criticality: int | None = None,
        deadline_ms: float | None = None,
        timeout_ms: float | None = None,
        raw: bool = False,
    ) -> Response:
        """Ask, and go on. What was given must not be changed until there is an answer.

        Parameters
        ----------
        criticality
            Of this request; None: that of the task.
        deadline_ms
            Time from now in which it should be answered: of two requests of a level the one with the earlier
            deadline goes first. None: that of the task.
        timeout_ms
            Time from now after which it is given up if it still waits. None: that of the task.
        raw
            Inputs and outputs are sequences of NumPy arrays, one for each of :attr:`inputs` and :attr:`outputs`,
            whatever the model itself takes and gives. An input may be :class:`miriam.device.unread.Unread`.

        Raises
        ------
        InputError, QueueFullError, ClosedError
            It cannot be taken in.
        """
        if self._office.inside():
            raise RequestError(
                f"{self.name} was asked from inside of a model, which could wait for itself: put one behind the other"
            )
        given: Sequence[Any] = inputs if raw else self._adopted.unwrap(inputs)
        check(self.name, self.inputs, given)
        wrap: Callable[[Sequence[Any]], Any] = _arrays
        if not raw:
            adopted = self._adopted
            wrap = lambda outputs: adopted.wrap(outputs, inputs)  # noqa: E731
        submitted_us = host_us()
        limit_us = _time_us("deadline_ms", deadline_ms, self.task.deadline_us)
        response = Response(
            self._of_level(criticality),
            next(self._office.numbers),
            self._adopted.stage(self.task, given),
            submitted_us=submitted_us,
            deadline_us=submitted_us + limit_us,
            expires_us=submitted_us + _time_us("timeout_ms", timeout_ms, self._timeout_us),
            wrap=wrap,
            withdraw=self._office.desk.withdraw,
            caller=self._office.caller,
        )
        self._office.desk.submit(self._entry, response)
        return response

    async def async_(
        self,
        *inputs: Any,
        criticality: int | None = None,
        deadline_ms: float | None = None,
        timeout_ms: float | None = None,
        raw: bool = False,
    ) -> Any:
        """As :meth:`submit`, and wait for the answer in asyncio; whoever is cancelled meanwhile gives it up."""
        return await self.submit(
            *inputs, criticality=criticality, deadline_ms=deadline_ms, timeout_ms=timeout_ms, raw=raw
        ).answered()

    @contextmanager
    def hint(self, within_ms: float = 100.0) -> Iterator[None]:
        """Say that a request is on its way, until the next one is submitted, or the block ends.

        Meanwhile no request of a lower level begins, and a policy that limits lower levels beside a request of this
        one does so now. Best around the making of the input, if that is short.

        Parameters
        ----------
        within_ms
            Time after which it is over in any case.
        """
        desk = self._office.desk
        hint = desk.hint(self._entry, host_us() + _time_us("within_ms", within_ms, None))
        try:
            yield
        finally:
            desk.unhint(hint)

    def every(self, make_input: Callable[[], Any], answered: Callable[[Future[Any]], object] | None = None) -> Stopper:
        """Ask by itself, once a period, until it is stopped.

        Parameters
        ----------
        make_input
            Called once a period: the input, or a tuple of all.
        answered
            Called with each :class:`Response` that has an answer.

        Raises
        ------
        WorkloadError
            The task was loaded without a period.
        """
        if self.task.period_us is None:
            raise WorkloadError(f"{self.name} has no period: load it with period_ms")

        def submit() -> Response:
            with self.hint():
                made = make_input()
                return self.submit(*(made if isinstance(made, tuple) else (made,)))

        return Stopper(submit, self.task.period_us, answered, self.name)

    def unload(self) -> None:
        """Answer what waits, and let go of it."""
        self._office.unload(self)

    def __repr__(self) -> str:
        ways = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"<{self.name}, criticality {self.criticality}: {' -> '.join(ways)}>"

    def _of_level(self, criticality: int | None) -> Task:
        """The task at another level."""
        level = self.task.criticality if criticality is None else criticality
        if level not in self._tasks:
            if level not in self._office.levels:
                named = ", ".join(map(str, self._office.levels))
                raise InputError(f"criticality {criticality!r}: this runtime has the levels {named}")
            self._tasks[level] = replace(self.task, criticality=int(level))
        return self._tasks[level]


def _arrays(outputs: Sequence[Any]) -> tuple[Any, ...]:
    import numpy as np

    from miriam.frontend.chain import as_array

    return tuple(np.asarray(as_array(output)) for output in outputs)


def _time_us(what: str, given_ms: float | None, usual_us: float | None) -> float:
    """A time that may be given; infinite if it is not and there is none else."""
    if given_ms is None:
        return math.inf if usual_us is None else usual_us
    if not given_ms > 0:
        raise InputError(f"{what} is {given_ms}: give milliseconds above zero")
    return 1e3 * given_ms
