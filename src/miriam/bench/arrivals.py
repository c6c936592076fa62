"""When requests come: closed loop, uniform, Poisson and as recorded, the same for a seed whatever serves them."""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from miriam.errors import WorkloadError
from miriam.task import Request, Task

__all__ = [
    "Arrivals",
    "Closed",
    "Poisson",
    "Recorded",
    "SeededTraffic",
    "Uniform",
    "arrivals_from_json",
    "seeded_times_us",
]

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

    def to_json(self) -> dict[str, Any]:
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

    def to_json(self) -> dict[str, Any]:
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


@dataclass(frozen=True, slots=True)
class Recorded:
    """Arrivals at moments that were recorded somewhere. After the last of them nothing comes.

    Attributes
    ----------
    at_s
        Seconds after the begin of the run, rising.
    """

    at_s: tuple[float, ...]
    kind: ClassVar[str] = "recorded"

    def __post_init__(self) -> None:
        at_s = np.asarray(self.at_s, dtype=np.float64)
        if not at_s.size or not np.isfinite(at_s).all() or at_s[0] < 0 or at_s[-1] <= 0 or (np.diff(at_s) < 0).any():
            raise WorkloadError(
                "recorded arrivals have to be rising times in seconds, from zero on, at least one above it"
            )

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Recorded:
        """The times in a text file: the first column of each line, in seconds; ``#`` begins a comment.

        Raises
        ------
        WorkloadError
            The file cannot be read, or a line holds no time or an earlier one than the line before.
        """
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise WorkloadError(f"cannot read the arrivals {path}: {error}") from error
        at_s: list[float] = []
        for number, line in enumerate(lines, 1):
            first = line.partition("#")[0].replace(",", " ").split()
            if not first:
                continue
            try:
                time_s = float(first[0])
            except ValueError:
                time_s = math.nan
            if not (math.isfinite(time_s) and time_s >= (at_s[-1] if at_s else 0.0)):
                raise WorkloadError(f"{path}:{number}: {first[0]!r} is no time in seconds that follows the one before")
            at_s.append(time_s)
        if not at_s or at_s[-1] <= 0:
            raise WorkloadError(f"{path} holds no arrivals: a time in seconds on each line is needed")
        return Recorded(tuple(at_s))

    @property
    def rate_per_s(self) -> float:
        """Mean rate up to the last arrival."""
        return len(self.at_s) / self.at_s[-1]

    def scaled(self, factor: float) -> Recorded:
        """The same at ``factor`` times the speed."""
        return Recorded(tuple(time_s / factor for time_s in self.at_s))

    def times_us(self, until_us: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """All arrivals before ``until_us``, rising, shape (arrivals,)."""
        times = np.asarray(self.at_s, dtype=np.float64) * 1e6
        return times[times < until_us]

    def to_json(self) -> dict[str, Any]:
        """As it stands in a results document."""
        return {"kind": self.kind, "at_s": list(self.at_s)}

    def __str__(self) -> str:
        return f"recorded, {len(self.at_s)} arrivals, {self.rate_per_s:.4g}/s"


Arrivals: TypeAlias = Closed | Uniform | Poisson | Recorded


def arrivals_from_json(raw: dict[str, Any]) -> Arrivals:
    """The arrivals that :meth:`to_json` described."""
    if raw["kind"] == Closed.kind:
        return Closed(int(raw["depth"]))
    if raw["kind"] == Recorded.kind:
        return Recorded(tuple(map(float, raw["at_s"])))
    for kind in (Uniform, Poisson):
        if raw["kind"] == kind.kind:
            return kind(float(raw["rate_per_s"]))
    raise WorkloadError(f"arrivals of kind {raw['kind']!r}: closed, uniform, poisson and recorded are known")


def seeded_times_us(name: str, arrivals: Arrivals, until_us: float, seed: int) -> NDArray[np.float64]:
    """Arrivals of the task ``name`` that are known from the start, rising, shape (arrivals,).

    They follow from these arguments alone. Of a closed loop they are the first ``depth``, all at once.
    """
    if isinstance(arrivals, Closed):
        return np.zeros(arrivals.depth if until_us > 0 else 0)
    return arrivals.times_us(until_us, np.random.default_rng([seed, zlib.crc32(name.encode())]))


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
        return seeded_times_us(name, arrivals, self._until_us, self._seed)

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
