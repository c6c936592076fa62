"""What the CPU device keeps of lanes and of requests."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from threading import current_thread, main_thread

from miriam.device.base import Run
from miriam.errors import ModelError, RequestError
from miriam.frontend.chain import Chain, State
from miriam.task import Request

__all__ = ["Job", "Queue"]


@dataclass(slots=True)
class Job:
    """What a request has computed, and how many steps that took.

    Attributes
    ----------
    chain
        Its model.
    done
        Steps that were computed.
    state
        Of the chain, once the first step has begun.
    """

    chain: Chain
    done: int = 0
    state: State = None

    def step(self, request: Request, threads: int | None) -> None:
        """Compute the next step; the request has its outputs after the last, or the error that ended it."""
        try:
            self._step(request, threads)
        except RequestError as error:
            request.error = error
        except BaseException as error:  # whatever a model raises is its own affair, even a wish to exit
            if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
                raise  # it comes from outside
            request.error = ModelError(f"{request.task.name} failed: {type(error).__name__}: {error}")
            request.error.__cause__ = error

    def _step(self, request: Request, threads: int | None) -> None:
        if not self.done:
            if threads is not None:
                self.chain.threads(threads)
            self.state = self.chain.begin(request.inputs)
        self.chain.steps[self.done](self.state)
        self.done += 1
        if self.done == len(self.chain.steps) and request.inputs is not None:
            request.outputs = self.chain.end(self.state)


@dataclass(slots=True)
class Queue:
    """Runs of a lane.

    Attributes
    ----------
    priority
        Of the lane.
    runs
        In the order of their submission.
    at
        The next step of the first run; None if it has not begun.
    paused
        Whether a limit keeps it from going on.
    turn
        When it went last, counted in steps of the device.
    """

    priority: int
    runs: deque[Run] = field(default_factory=deque)
    at: int | None = None
    paused: bool = False
    turn: int = -1

    def drop(self, request: Request) -> list[Run]:
        """Forget the runs of a request that has failed; which they were."""
        dropped = [run for run in self.runs if run.request is request]
        if dropped and dropped[0] is self.runs[0]:
            self.at = None
        for run in dropped:
            self.runs.remove(run)
        return dropped
