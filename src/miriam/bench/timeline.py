"""An excerpt of a run: a few milliseconds in which every launch and every resident thread is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miriam.device.base import Geometry, Lane, Span, Usage
from miriam.task import Request, Task

__all__ = ["Bar", "Served", "Timeline", "excerpt"]

_MAX_SAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Bar:
    """One launch, or one shard of it, on a lane.

    Attributes
    ----------
    lane, task
        Indices into :attr:`Timeline.lanes` and :attr:`Timeline.tasks`.
    request, launch
        Number of the request, index of the launch in its program.
    begin_us, end_us
        After the begin of the excerpt.
    blocks
        Logical blocks done.
    first_block
        Where a shard begins; None for a whole launch.
    workers, threads
        Workers of the elastic form, None for the original one; threads of a block if made thinner.
    """

    lane: int
    task: int
    request: int
    launch: int
    begin_us: float
    end_us: float
    blocks: int
    first_block: int | None
    workers: int | None
    threads: int | None


@dataclass(frozen=True, slots=True)
class Served:
    """A request that waited or ran inside the excerpt; times in us after its begin, None: later."""

    task: int
    request: int
    arrival_us: float
    start_us: float | None
    finish_us: float | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """The excerpt.

    Attributes
    ----------
    begin_us, end_us
        Of the excerpt, after the begin of the run.
    capacity
        Threads that the device holds at a time.
    lanes, tasks
        Their names.
    requests, bars
        What was served; launches and shards, by begin.
    time_us, resident
        From ``time_us[i]`` after the begin on, ``resident[lane][i]`` threads of a lane are resident.
        Time averages of short bins where a device reported more changes than a page can show.
    """

    begin_us: float
    end_us: float
    capacity: int
    lanes: tuple[str, ...]
    tasks: tuple[str, ...]
    requests: tuple[Served, ...]
    bars: tuple[Bar, ...]
    time_us: tuple[float, ...]
    resident: tuple[tuple[float, ...], ...]

    @property
    def length_us(self) -> float:
        """Of the excerpt."""
        return self.end_us - self.begin_us

    def to_json(self) -> dict[str, Any]:
        """As it stands in a results document: bars and requests as rows."""
        raw = {name: getattr(self, name) for name in ("begin_us", "end_us", "capacity", "lanes", "tasks")}
        return raw | {
            "requests": [astuple(r) for r in self.requests],
            "bars": [astuple(b) for b in self.bars],
            "time_us": self.time_us,
            "resident": self.resident,
        }

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Timeline:
        """The excerpt that :meth:`to_json` described."""
        return Timeline(
            begin_us=raw["begin_us"],
            end_us=raw["end_us"],
            capacity=raw["capacity"],
            lanes=tuple(raw["lanes"]),
            tasks=tuple(raw["tasks"]),
            requests=tuple(Served(*row) for row in raw["requests"]),
            bars=tuple(Bar(*row) for row in raw["bars"]),
            time_us=tuple(raw["time_us"]),
            resident=tuple(tuple(lane) for lane in raw["resident"]),
        )


def excerpt(
    usage: Usage,
    window_us: tuple[float, float],
    geometry: Geometry,
    lanes: Sequence[Lane],
    tasks: Sequence[Task],
    requests: Iterable[Request],
) -> Timeline:
    """Cut ``window_us`` out of what a device reported and make it small enough for a page."""
    begin_us, end_us = window_us
    index = {task.name: i for i, task in enumerate(tasks)}

    def relative(time_us: float | None) -> float | None:
        return None if time_us is None else round(time_us - begin_us, 3)

    def row(request: Request) -> Served:
        return Served(
            index[request.task.name], request.number, round(request.arrival_us - begin_us, 3),
            relative(request.start_us), relative(request.finish_us),
        )  # fmt: skip

    def bar(span: Span) -> Bar:
        run = span.run
        return Bar(
            run.lane, index[run.request.task.name], run.request.number, span.launch,
            round(max(span.begin_us - begin_us, 0.0), 3), round(min(span.end_us, end_us) - begin_us, 3),
            span.blocks, run.blocks[0] if run.blocks is not None else None, run.workers, run.threads,
        )  # fmt: skip

    inside = [span for span in usage.spans if span.end_us > begin_us and span.begin_us < end_us]
    shown = [r for r in requests if r.arrival_us < end_us and (r.finish_us is None or r.finish_us > begin_us)]
    time_us, resident = _resample(usage.samples, begin_us, end_us, len(lanes))
    return Timeline(
        begin_us=begin_us,
        end_us=end_us,
        capacity=geometry.sms * geometry.threads_per_sm,
        lanes=tuple(lane.name for lane in lanes),
        tasks=tuple(index),
        requests=tuple(row(r) for r in shown),
        bars=tuple(sorted(map(bar, inside), key=lambda b: (b.begin_us, b.lane, b.launch))),
        time_us=tuple(float(t) for t in time_us),
        resident=tuple(tuple(float(v) for v in lane) for lane in resident),
    )


def _resample(
    samples: Sequence[tuple[float, tuple[int, ...]]], begin_us: float, end_us: float, lanes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Step functions, shapes (steps,) and (lanes, steps), with at most ``_MAX_SAMPLES`` steps."""
    inside = [s for s in samples if begin_us <= s[0] < end_us]
    before = next((s for s in reversed(samples) if s[0] < begin_us), None)
    steps = [(begin_us, before[1] if before else (0,) * lanes), *inside]
    times = np.array([s[0] for s in steps]) - begin_us
    values = np.array([s[1] for s in steps], dtype=np.float64).reshape(len(steps), lanes).T
    if len(steps) > _MAX_SAMPLES:
        edges = np.append(times, end_us - begin_us)
        area = np.concatenate((np.zeros((lanes, 1)), np.cumsum(values * np.diff(edges), axis=1)), axis=1)
        bins = np.linspace(0, end_us - begin_us, _MAX_SAMPLES + 1)
        values = np.array([np.diff(np.interp(bins, edges, lane)) / np.diff(bins) for lane in area])
        times = bins[:-1]
    return np.round(times, 3), np.round(values.reshape(lanes, -1), 1)
