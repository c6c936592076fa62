"""When requests come: closed loop, uniform and Poisson, the same for a seed whatever serves them."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from miriam.errors import WorkloadError
from miriam.task import Request, Task

__all__ = ["Arrivals", "Closed", "Poisson", "SeededTraffic", "Uniform", "arrivals_from_json"]

_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Closed:
    """So many requests at a time: the next one arrives in the moment in which one of them finishes.

    Attributes
    ----------
    depth
        Requests that the client keeps outstanding. With one, a device that is told of each request by
        its host idles from an answer to the next request; with two it does not.
    """

    depth: int = 1
    kind: ClassVar[str] = "closed"

    def __post_init__(self) -> None:
        if not isinstance(self.depth, int) or self.depth < 1:
            raise WorkloadError(f"a closed loop with {self.depth} requests at a time: at least one is needed")

    def scaled(self, factor: float) -> Closed:
        """Itself: a closed loop has no rate."""
        return self

    def to_json(self) -> dict[str, str | float]:
        """As it stands in a results document."""
        return {"kind": self.kind, "depth": self.depth}

    def __str__(self) -> str:
        return "closed loop" if self.depth == 1 else f"closed loop, {self.depth} at a time"


@dataclass(frozen=True, slots=True)
class _Rated:
    rate_per_s: float
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if not (self.rate_per_s > 0 and math.isfinite(self.rate_per_s)):
            raise WorkloadError(f"{self.rate_per_s} requests/s: a rate has to be a number above zero")

    @property
    def gap_us(self) -> float:
        """Mean time between two arrivals."""
        return 1e6 / self.rate_per_s

    def to_json(self) -> dict[str, str | float]:
        """As it stands in a results document."""
        return {"kind": self.kind, "rate_per_s": self.rate_per_s}

    def __str__(self) -> str:
        name = "Poisson" if self.kind == "poisson" else self.kind
        return f"{name} {self.rate_per_s:.4g}/s"


@dataclass(frozen=True, slots=True)
class Uniform(_Rated):
    """Periodic: equal gaps, the first arrival at a random moment of the first period."""

    kind: ClassVar[str] = "uniform"

    def scaled(self, factor: float) -> Uniform:
        """The same at ``factor`` times the rate."""
        return Uniform(self.rate_per_s * factor)

    def times_us(self, until_us: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """All arrivals before ``until_us``, rising, shape (arrivals,)."""
        phase_us = rng.random() * self.gap_us
        count = max(0, math.ceil((until_us - phase_us) / self.gap_us))
        times = phase_us + self.gap_us * np.arange(count, dtype=np.float64)
        return times[times < until_us]


@dataclass(frozen=True, slots=True)
class Poisson(_Rated):
    """Independent exponential gaps."""

    kind: ClassVar[str] = "poisson"

    def scaled(self, factor: float) -> Poisson:
        """The same at ``factor`` times the rate."""
        return Poisson(self.rate_per_s * factor)

    def times_us(self, until_us: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """All arrivals before ``until_us``, rising, shape (arrivals,)."""
        chunks, last_us = [np.empty(0)], 0.0
        while last_us < until_us:
            chunks.append(last_us + np.cumsum(rng.exponential(self.gap_us, _CHUNK)))
            last_us = float(chunks[-1][-1])
        times = np.concatenate(chunks)
        return times[times < until_us]


Arrivals: TypeAlias = Closed | Uniform | Poisson


def arrivals_from_json(raw: dict[str, str | float]) -> Arrivals:
    """The arrivals that :meth:`to_json` described."""
    if raw["kind"] == Closed.kind:
        return Closed(int(raw["depth"]))
    for kind in (Uniform, Poisson):
        if raw["kind"] == kind.kind:
            return kind(float(raw["rate_per_s"]))
    raise WorkloadError(f"arrivals of kind {raw['kind']!r}: closed, uniform and poisson are known")


class SeededTraffic:
    """Requests of several tasks; a :class:`miriam.coordinator.Traffic`.

    The open arrivals of a task follow from the seed, its name and its rate alone: they do not
    change with the policy, the device, the other tasks, or (up to the earlier end) the duration.

    Parameters
    ----------
    tasks
        Each with its arrivals; names must differ.
    until_us
        No request arrives at or after this time.
    seed
        A whole number, zero or above.

    Attributes
    ----------
    requests
        Every request so far, in the order of creation.
    """

    def __init__(self, tasks: Sequence[tuple[Task, Arrivals]], until_us: float, seed: int) -> None:
        names = [task.name for task, _ in tasks]
        if len(set(names)) < len(names):
            raise WorkloadError(f"two tasks have one name ({', '.join(names)}): give each a name of its own")
        if seed < 0:
            raise WorkloadError(f"seed {seed}: a whole number, zero or above, is needed")
        self.requests: list[Request] = []
        self._tasks = tasks
        self._until_us = until_us
        self._seed = seed
        self._closed = {task.name for task, arrivals in tasks if isinstance(arrivals, Closed)}
        self._numbers = itertools.count()

    def times_us(self, name: str) -> NDArray[np.float64]:
        """Arrivals of the task ``name`` that are known from the start, shape (arrivals,)."""
        arrivals = next(arrivals for task, arrivals in self._tasks if task.name == name)
        if isinstance(arrivals, Closed):
            return np.zeros(arrivals.depth if self._until_us > 0 else 0)
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        return arrivals.times_us(self._until_us, rng)

    def start(self) -> Iterable[Request]:
        """All requests of open arrivals and the first ones of every closed loop, by time of arrival."""
        first = [(float(t), i, task) for i, (task, _) in enumerate(self._tasks) for t in self.times_us(task.name)]
        return [self._request(task, t) for t, _, task in sorted(first, key=lambda entry: entry[:2])]

    def after(self, finished: Request) -> Request | None:
        """The next turn of a closed loop."""
        now_us = finished.finish_us
        if finished.task.name not in self._closed or now_us is None or now_us >= self._until_us:
            return None
        return self._request(finished.task, now_us)

    def _request(self, task: Task, arrival_us: float) -> Request:
        request = Request(task, next(self._numbers), arrival_us)
        self.requests.append(request)
        return request
