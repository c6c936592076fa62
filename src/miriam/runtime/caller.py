"""A thread that calls what others want called, so that no thread that serves has to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["Caller"]

_LOG = logging.getLogger("miriam")


class Caller:
    """Calls one function after another in a thread of its own, which begins with the first."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def __call__(self, call: Callable[[], object]) -> None:
        """Have it called soon; here and now if this has been closed. An exception is logged."""
        with self._lock:
            if not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._main, name="miriam-callbacks", daemon=True)
                    self._thread.start()
                self._calls.put(call)
                return
        _quietly(call)

    def close(self) -> None:
        """Call what is left; allowed twice."""
        with self._lock:
            thread, self._thread, self._closed = self._thread, None, True
        if thread is not None:
            self._calls.put(None)
            if thread is not threading.current_thread():
                thread.join()

    def _main(self) -> None:
        while (call := self._calls.get()) is not None:
            _quietly(call)


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:
        _LOG.exception("a function that was to be called with an answer raised")
