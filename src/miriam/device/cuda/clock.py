"""The clock of a device: that of the host, but for time that does not count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter_ns

__all__ = ["Clock", "HostClock"]

_LONG_NS = 100_000  # making a graph takes more, looking one up less


class Clock:
    """Time in us, which never goes back, and stands still unless somebody lets it run."""

    def __init__(self) -> None:
        self._zero_ns = self._stopped_ns = perf_counter_ns()

    @property
    def now_us(self) -> float:
        """What it shows."""
        return ((self._stopped_ns or perf_counter_ns()) - self._zero_ns) / 1e3

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let it run."""
        self._zero_ns += perf_counter_ns() - self._stopped_ns
        self._stopped_ns = 0
        try:
            yield
        finally:
            self._stopped_ns = perf_counter_ns()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Do something that takes long, once: it does not count, but for what is as short as anything else."""
        begin_ns = perf_counter_ns()
        try:
            yield
        finally:
            spent_ns = perf_counter_ns() - begin_ns
            if not self._stopped_ns and spent_ns > _LONG_NS:
                self._zero_ns += spent_ns


class HostClock:
    """Time in us since it was made, by the host's :func:`time.perf_counter`; it never stands still."""

    def __init__(self) -> None:
        self._zero_ns = perf_counter_ns()

    @property
    def now_us(self) -> float:
        """What it shows."""
        return (perf_counter_ns() - self._zero_ns) / 1e3

    def running(self) -> AbstractContextManager[None]:
        """It runs anyway."""
        return nullcontext()

    standing_still = running
