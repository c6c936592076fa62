"""What is measured of a run, each thing with one definition.

A run lasts ``duration``. Its first part, the *warm-up*, is cut off: the window that counts runs from
the end of the warm-up to the end of the run.

response time
    Arrival to finish. It holds the time in which a request waited. This is what a user of a task
    feels, and what "latency" means wherever nothing else is said.
service latency
    Start (first block placed) to finish. Waiting before the start is not in it. Of requests to a server,
    from the moment in which the client sent it.
quantile
    The smallest latency that at least the share q of the requests stayed within (the inverse of the
    empirical distribution, ``method="inverted_cdf"`` of NumPy): always a latency that did occur. With
    fewer than 1 / (1 - q) requests it is the largest one.
counted request
    Arrived inside the window and finished before the run's end. What arrived and did not finish is
    given as ``unfinished``, what a server refused or lost as ``failed``: more than 1 % of them mean that
    the device cannot keep up, and that the quantiles look better than they are; table and report mark
    such a p99 with ``>``.
slowdown
    A quantile of the response time over the same quantile of the same task alone, on the same device,
    with the same arrivals, in the same run of the benchmark.
throughput
    Requests that finished inside the window, over its length.
stock
    What a model does alone in plain PyTorch: requests by second, one CUDA graph of the eager module
    launched back to back, fp16, channels-last, cuDNN and cuBLAS. Our own kernels alone are a soft
    reference; this one is what a user has today.
deadline miss
    A request that arrived inside the window and took longer than its deadline, finished or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from miriam.task import Request, Task

__all__ = ["PROBABILITIES", "Latency", "Slowdown", "TaskMetrics", "latency", "measure", "measure_times", "slowdown"]

PROBABILITIES: tuple[float, ...] = tuple(
    float(round(q, 7)) for q in np.concatenate((np.arange(99) / 100, 1 - np.logspace(-2, -5, 100), [1.0]))
)
"""Where :attr:`Latency.curve_us` gives the quantile function: every percent, then denser towards 1."""


_TOLERATED = 0.01  # share of requests that p99 leaves out; one is always under way in a closed loop


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of many requests, as a summary.

    Attributes
    ----------
    count
        Requests behind it, at least one.
    mean_us, p50_us, p95_us, p99_us, p999_us, max_us
        Mean and quantiles.
    curve_us
        The quantile function at :data:`PROBABILITIES`.
    """

    count: int
    mean_us: float
    p50_us: float
    p95_us: float
    p99_us: float
    p999_us: float
    max_us: float
    curve_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Latency with company over latency alone, quantile by quantile. 1.0: no slowdown."""

    mean: float
    p50: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """One task in one run.

    Attributes
    ----------
    name, criticality
        Of the task.
    arrived, unfinished
        Requests that arrived inside the window, and how many of them did not finish in the run.
    missed
        Deadline misses, or None where the task has no deadline.
    throughput_per_s
        Requests finished inside the window, by second.
    response, service
        Response time and service latency of the counted requests, or None where there were none.
    slowdown
        Of the response time; None where the task did not run alone or nothing finished.
    stock_per_s
        What its model does alone in plain PyTorch, requests by second; None where that was not measured.
    checked, wrong
        Inferences whose outputs were compared with those of the unmodified kernels (from a server: with its
        first answer), and words of 4 bytes in them that differed; None where nobody looked.
    failed
        By reason: requests that arrived inside the window and were refused or lost. They are not among the
        unfinished ones. None where that cannot happen.
    """

    name: str
    criticality: int
    arrived: int
    unfinished: int
    missed: int | None
    throughput_per_s: float
    response: Latency | None
    service: Latency | None
    slowdown: Slowdown | None = None
    stock_per_s: float | None = None
    checked: int | None = None
    wrong: int | None = None
    failed: Mapping[str, int] | None = None

    @property
    def critical(self) -> bool:
        """Whether the task is above the normal level."""
        return self.criticality > 0

    @property
    def behind(self) -> bool:
        """Whether so many requests did not finish that the p99 of all is longer than that of the counted ones."""
        failed = sum(self.failed.values()) if self.failed else 0
        return self.unfinished + failed > max(1, _TOLERATED * self.arrived)


def latency(values_us: Sequence[float] | NDArray[np.float64]) -> Latency | None:
    """Summary of latencies in us, shape (requests,); None if there are none."""
    values = np.sort(np.asarray(values_us, dtype=np.float64))
    if values.size == 0:
        return None

    p50, p95, p99, p999 = (float(v) for v in np.quantile(values, (0.5, 0.95, 0.99, 0.999), method="inverted_cdf"))
    curve = tuple(float(round(v, 3)) for v in np.quantile(values, PROBABILITIES, method="inverted_cdf"))
    return Latency(values.size, float(values.mean()), p50, p95, p99, p999, float(values[-1]), curve)


def slowdown(shared: Latency | None, alone: Latency | None) -> Slowdown | None:
    """Each quantile of ``shared`` over the same of ``alone``; None if either is missing."""
    if shared is None or alone is None:
        return None
    return Slowdown(
        shared.mean_us / alone.mean_us,
        shared.p50_us / alone.p50_us,
        shared.p95_us / alone.p95_us,
        shared.p99_us / alone.p99_us,
        shared.p999_us / alone.p999_us,
        shared.max_us / alone.max_us,
    )


def measure(task: Task, requests: Iterable[Request], begin_us: float, end_us: float) -> TaskMetrics:
    """Metrics of ``task`` over the window from ``begin_us`` to ``end_us``.

    Parameters
    ----------
    requests
        Every request of the run, also of other tasks, finished or not. What finished after
        ``end_us`` counts as unfinished.
    """
    own = [(r.arrival_us, r.start_us, r.finish_us) for r in requests if r.task.name == task.name]
    times = np.array(own, dtype=np.float64).reshape(-1, 3)  # None becomes NaN
    arrival_us, start_us, finish_us = times.T
    return measure_times(
        task.name, task.criticality, task.deadline_us, arrival_us, start_us, finish_us, begin_us, end_us
    )


def measure_times(
    name: str,
    criticality: int,
    deadline_us: float | None,
    arrival_us: NDArray[np.float64],
    start_us: NDArray[np.float64],
    finish_us: NDArray[np.float64],
    begin_us: float,
    end_us: float,
) -> TaskMetrics:
    """The same of times, each of shape (requests,); NaN: it did not begin or not finish, infinite: it never will."""
    done = finish_us <= end_us
    arrived = (begin_us <= arrival_us) & (arrival_us < end_us)
    counted = arrived & done
    missed = None
    if deadline_us is not None:
        until_us = np.where(done | np.isposinf(finish_us), finish_us, end_us)
        missed = int(np.count_nonzero((until_us - arrival_us)[arrived] > deadline_us))
    in_window = np.count_nonzero(done & (finish_us >= begin_us))
    started = counted & ~np.isnan(start_us)
    return TaskMetrics(
        name=name,
        criticality=int(criticality),
        arrived=int(np.count_nonzero(arrived)),
        unfinished=int(np.count_nonzero(arrived & ~done)),
        missed=missed,
        throughput_per_s=in_window / ((end_us - begin_us) * 1e-6) if end_us > begin_us else 0.0,
        response=latency((finish_us - arrival_us)[counted]),
        service=latency((finish_us - start_us)[started]),
    )
