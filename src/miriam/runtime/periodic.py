"""A task that gives itself requests, period by period."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from miriam.errors import QueueFullError
from miriam.runtime.response import Response, host_us

__all__ = ["Stopper"]


class Stopper:
    """Releases a request at the begin of every period, until it is stopped; also as a context manager.

    A release is skipped while the request before it has no answer, and when its time has passed by more than a
    period. What makes the input runs in a thread of its own, with a hint that a request is on its way.

    Attributes
    ----------
    released, skipped
        How many there were.
    error
        What ended it before it was stopped: an exception of what makes the input, or that of the runtime.
    """

    def __init__(
        self,
        submit: Callable[[], Response],
        period_us: float,
        answered: Callable[[Future[Any]], object] | None,
        name: str,
    ) -> None:
        self.released = self.skipped = 0
        self.error: BaseException | None = None
        self._submit, self._period_us, self._answered = submit, period_us, answered
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"miriam-{name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Release no more; the last request is still answered. Allowed twice."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _main(self) -> None:
        last: Response | None = None
        next_us = host_us()
        while not self._stopped.wait(max(0.0, next_us - host_us()) / 1e6):
            if last is not None and not last.done():
                self.skipped += 1
            else:
                try:
                    last = self._release()
                except QueueFullError:
                    self.skipped += 1
                except Exception as error:
                    self.error = error
                    return
            next_us += self._period_us
            passed = int(max(0.0, host_us() - next_us) // self._period_us)
            self.skipped += passed
            next_us += passed * self._period_us

    def _release(self) -> Response:
        response = self._submit()
        self.released += 1
        if self._answered is not None:
            response.add_done_callback(self._answered)
        return response

    def __enter__(self) -> Stopper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
