"""What one thread waits for, and others ring."""

from __future__ import annotations

import math
import threading
from contextlib import suppress

__all__ = ["Bell"]


class Bell:
    """Wakes a thread that waits, or lets it not begin to.

    Ringing is a single operation, so a signal that raises an exception in the middle of a program, as Ctrl-C does,
    finds it done or not done. A :class:`threading.Condition` can be left with a waiter that takes the next
    notification with it.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake whoever waits, or will next. From any thread."""
        if self._lock.locked():  # or it has been rung, and nobody has come yet
            with suppress(RuntimeError):  # another thread was faster
                self._lock.release()

    def wait(self, time_us: float = math.inf) -> None:
        """Wait until it is rung, or so many us; from one thread at a time."""
        if time_us == math.inf:
            self._lock.acquire()
        elif time_us > 0:
            self._lock.acquire(timeout=min(time_us / 1e6, threading.TIMEOUT_MAX))
