"""A thread that looks at what is due."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from miriam.bell import Bell

__all__ = ["Timer"]


class Timer:
    """Calls a function when something is due, in a thread that begins with the first of it.

    Parameters
    ----------
    look
        Does what is due, and returns when the next of it is, infinite if there is none.
    now_us
        The clock.
    """

    def __init__(self, look: Callable[[], float], now_us: Callable[[], float]) -> None:
        self._look, self._now_us = look, now_us
        self._bell, self._lock = Bell(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._next_us = math.inf
        self._closed = False

    def at(self, time_us: float) -> None:
        """Something is due at a time. From any thread."""
        if time_us >= self._next_us:
            return
        with self._lock:
            if self._closed or time_us >= self._next_us:
                return
            self._next_us = time_us
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="miriam-timer", daemon=True)
                self._thread.start()
        self._bell.ring()

    def close(self) -> None:
        """End the thread; allowed twice."""
        with self._lock:
            thread, self._thread, self._closed = self._thread, None, True
        self._bell.ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _main(self) -> None:
        while True:
            while not self._closed and (left_us := self._next_us - self._now_us()) > 0:
                self._bell.wait(left_us)
            if self._closed:
                return
            with self._lock:
                self._next_us = math.inf  # what is told from here on may be sooner than what is found
            found_us = self._look()
            with self._lock:
                self._next_us = min(self._next_us, found_us)
