"""What a task's latency is alone, measured while others are there too."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["FLOOR", "Allowance", "Latencies", "p99"]

FLOOR = 20
"""Latencies below which nothing is said of their p99."""


def p99(values: Iterable[float]) -> float:
    """The 99th percentile of latencies; of fewer than 200 the last but one, for one may be an accident."""
    ordered = sorted(values)
    return ordered[int(0.99 * (len(ordered) - 1))]


class Latencies:
    """The last latencies of one kind, and their p99."""

    def __init__(self, most: int = 200) -> None:
        self._last: deque[float] = deque(maxlen=most)
        self._p99_us: float | None = None  # worked out when it is asked for, which is far more often than it changes

    def __len__(self) -> int:
        return len(self._last)

    def add(self, latency_us: float) -> None:
        """One more."""
        self._last.append(latency_us)
        self._p99_us = None

    @property
    def p99_us(self) -> float | None:
        """None while there are fewer than :data:`FLOOR`."""
        if self._p99_us is None and len(self._last) >= FLOOR:
            self._p99_us = p99(self._last)
        return self._p99_us


class Allowance:
    """How long others may be kept away to measure: a share of the time, and something once at the start.

    Parameters
    ----------
    share
        Of the time since the start.
    once_us
        For the start, until :meth:`settle`.
    now_us
        When that is.
    """

    def __init__(self, share: float, once_us: float, now_us: float = 0.0) -> None:
        self._share, self._free_us = share, once_us - share * now_us

    def left_us(self, now_us: float) -> float:
        """What may be spent."""
        return self._share * now_us + self._free_us

    def spend(self, time_us: float) -> None:
        """So much was spent."""
        self._free_us -= time_us

    def share(self, share: float, now_us: float) -> None:
        """From now on it is another share of the time."""
        self._free_us += (self._share - share) * now_us
        self._share = share

    def settle(self, now_us: float) -> None:
        """The start is over: what was spent until now is forgotten, and what is left of it too."""
        self._free_us = -self._share * now_us
