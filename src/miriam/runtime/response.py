"""The answer to a request, which may be still to come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from time import perf_counter_ns
from typing import Any

from miriam.runtime.caller import Caller
from miriam.task import Task

__all__ = ["Response", "host_us"]


def host_us() -> float:
    """Time of the host in us: that of :func:`time.perf_counter`."""
    return perf_counter_ns() / 1e3


class Response(Future[Any]):
    """A request's answer, as a future.

    What is given to :meth:`add_done_callback` runs in a thread of its own, one after another, so that nothing of it
    stands in the way of the next request. :meth:`result` puts the outputs into the form of the inputs, in the
    thread that asks for them.

    Attributes
    ----------
    name, number
        Of the task; of the request, rising.
    task
        What runs, with the request's criticality.
    criticality
        Of this request.
    submitted_us, started_us, finished_us
        When it was given, when its first step began, when its last one ended or it failed; by
        :func:`time.perf_counter`, in us. None until then.
    deadline_us, expires_us
        When it should have been answered; when it is given up if it still waits. Infinite: never.
    """

    def __init__(
        self,
        task: Task,
        number: int,
        inputs: Sequence[Any],
        *,
        deadline_us: float,
        expires_us: float,
        submitted_us: float,
        wrap: Callable[[Sequence[Any]], Any],
        withdraw: Callable[[Response], None],
        caller: Caller,
    ) -> None:
        super().__init__()
        self.task = task
        self.number = number
        self.submitted_us = submitted_us
        self.started_us: float | None = None
        self.finished_us: float | None = None
        self.deadline_us = deadline_us
        self.expires_us = expires_us
        self.met = False  # whether others were there while it waited or ran
        self.inputs: Sequence[Any] | None = inputs
        self._wrap: Callable[[Sequence[Any]], Any] | None = wrap
        self._withdraw = withdraw
        self._caller = caller

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def criticality(self) -> int:
        """Of this request."""
        return self.task.criticality

    @property
    def queue_us(self) -> float | None:
        """From being given to its first step."""
        return None if self.started_us is None else self.started_us - self.submitted_us

    @property
    def compute_us(self) -> float | None:
        """From its first step to its end, pauses included."""
        return None if self.started_us is None or self.finished_us is None else self.finished_us - self.started_us

    @property
    def latency_us(self) -> float | None:
        """From being given to its end."""
        return None if self.finished_us is None else self.finished_us - self.submitted_us

    def cancel(self) -> bool:
        """Give it up, if it has not gone to the device; whether it is given up."""
        self._withdraw(self)
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """The outputs.

        Raises
        ------
        RequestError
            It could not be answered.
        CancelledError, TimeoutError
            It was cancelled; it has no answer after ``timeout`` seconds.
        """
        outputs = super().result(timeout)
        wrap = self._wrap
        if wrap is not None:
            self._wrapped = wrap(outputs)
            self._wrap = None  # after that, for another thread may ask meanwhile
        return self._wrapped

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Have ``fn`` called with this once there is an answer, in a thread that is there for that."""
        super().add_done_callback(lambda future: self._caller(partial(fn, future)))

    async def answered(self) -> Any:
        """The outputs, once they are there; a task that is cancelled meanwhile gives the request up."""
        loop = asyncio.get_running_loop()
        there = loop.create_future()

        def tell(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the event loop may be closed by now
                loop.call_soon_threadsafe(_tell, there)

        super().add_done_callback(tell)  # no turn through another thread: it only writes a byte
        try:
            await there
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self.result()


def _tell(there: asyncio.Future[None]) -> None:
    if not there.done():  # nobody waits any more
        there.set_result(None)
