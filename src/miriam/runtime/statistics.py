"""What is known of a task's requests."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType

from miriam.runtime.response import Response

__all__ = ["BUCKETS_S", "Histogram", "Tally", "TaskStatistics"]

BUCKETS_S = (*(5e-5 * 2**n for n in range(19)), math.inf)
"""Upper bounds of the buckets of a histogram, in seconds: 50 us, twice that and so on to 13 s, and the rest."""

_FLOOR = 20  # latencies below which nothing is said of a slowdown


@dataclass(frozen=True, slots=True)
class Histogram:
    """Latencies by size.

    Attributes
    ----------
    counts
        For each of :data:`BUCKETS_S`: latencies up to it.
    sum_us
        Of all of them.
    """

    counts: tuple[int, ...] = (0,) * len(BUCKETS_S)
    sum_us: float = 0.0

    @property
    def count(self) -> int:
        """How many there are."""
        return self.counts[-1]

    def __add__(self, other: Histogram) -> Histogram:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(counts, self.sum_us + other.sum_us)


@dataclass(frozen=True, slots=True)
class TaskStatistics:
    """What has become of a task's requests since it was loaded.

    Attributes
    ----------
    name, criticality
        Of the task.
    submitted
        Requests that were given, those that were rejected among them.
    answered, failed, timed_out, cancelled, rejected
        What became of them: outputs; an exception of the model or the device, or the end of the runtime; it waited
        longer than it may; given up; no room in the queue. Each request is in one of these in the end.
    queue_depth, running
        Now: requests that wait, and that are on the device.
    latency_sum_us, queue_sum_us, compute_sum_us
        Of the answered requests: all of the time, the part before its first step, the part after.
    levels
        Latencies by the criticality of the request.
    latencies_us, solo_latencies_us
        The last ones, in their order; of these, those of requests that met no other one of any task while they
        waited or ran.
    preemptions
        How often a request of a higher level came while one was on the device.
    deadline_missed
        Answered requests that were late.
    last_us
        When the last one was answered, in us since 1970, or None.
    """

    name: str
    criticality: int
    submitted: int = 0
    answered: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    rejected: int = 0
    queue_depth: int = 0
    running: int = 0
    latency_sum_us: float = 0.0
    queue_sum_us: float = 0.0
    compute_sum_us: float = 0.0
    levels: Mapping[int, Histogram] = field(default_factory=lambda: MappingProxyType({}))
    latencies_us: tuple[float, ...] = field(default=(), repr=False)
    solo_latencies_us: tuple[float, ...] = field(default=(), repr=False)
    preemptions: int = 0
    deadline_missed: int = 0
    last_us: float | None = None

    @property
    def histogram(self) -> Histogram:
        """Latencies of all levels."""
        return sum(self.levels.values(), Histogram())

    @property
    def p50_us(self) -> float | None:
        """Median of the last latencies, or None."""
        return _quantile(self.latencies_us, 0.5)

    @property
    def p99_us(self) -> float | None:
        """99th percentile of the last latencies, or None."""
        return _quantile(self.latencies_us, 0.99)

    @property
    def solo_us(self) -> float | None:
        """Median latency of the last requests that met nobody, or None."""
        return _quantile(self.solo_latencies_us, 0.5)

    @property
    def solo_p99_us(self) -> float | None:
        """99th percentile of the same."""
        return _quantile(self.solo_latencies_us, 0.99)

    @property
    def slowdown_p50(self) -> float | None:
        """Median latency over that of requests that met nobody; None while there are fewer than 20 of these."""
        return self._slowdown(0.5)

    @property
    def slowdown_p99(self) -> float | None:
        """The same of the 99th percentiles."""
        return self._slowdown(0.99)

    def _slowdown(self, share: float) -> float | None:
        if len(self.solo_latencies_us) < _FLOOR:
            return None
        all_us, solo_us = _quantile(self.latencies_us, share), _quantile(self.solo_latencies_us, share)
        return all_us / solo_us if all_us is not None and solo_us else None


class Tally:
    """Counts what becomes of a task's requests. Not thread-safe by itself.

    Parameters
    ----------
    keep
        How many latencies are kept.
    """

    def __init__(self, name: str, criticality: int, keep: int) -> None:
        self._name, self._criticality = name, criticality
        self._last: deque[float] = deque(maxlen=keep)
        self._solo: deque[float] = deque(maxlen=keep)
        self._sizes: dict[int, list[int]] = {}
        self._sums_us: dict[int, float] = {}
        self._queue_us = self._compute_us = 0.0
        self._last_us: float | None = None
        self.counts: Counter[str] = Counter()

    def answered(self, response: Response) -> None:
        """One has outputs."""
        latency_us, level = response.latency_us or 0.0, response.criticality
        self.counts["answered"] += 1
        self.counts["deadline_missed"] += (response.finished_us or 0.0) > response.deadline_us
        self._last.append(latency_us)
        if not response.met:
            self._solo.append(latency_us)
        self._sizes.setdefault(level, [0] * len(BUCKETS_S))[bisect_left(BUCKETS_S, latency_us / 1e6)] += 1
        self._sums_us[level] = self._sums_us.get(level, 0.0) + latency_us
        self._queue_us += response.queue_us or 0.0
        self._compute_us += response.compute_us or 0.0
        self._last_us = time.time_ns() / 1e3

    def snapshot(self, queue_depth: int, running: int) -> TaskStatistics:
        """What is known now."""
        return TaskStatistics(
            self._name, self._criticality, queue_depth=queue_depth, running=running,
            latency_sum_us=sum(self._sums_us.values()), queue_sum_us=self._queue_us, compute_sum_us=self._compute_us,
            levels={n: Histogram(tuple(accumulate(sizes)), self._sums_us[n]) for n, sizes in self._sizes.items()},
            latencies_us=tuple(self._last), solo_latencies_us=tuple(self._solo), last_us=self._last_us, **self.counts,
        )  # fmt: skip


def _quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so many of them do not pass."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None
