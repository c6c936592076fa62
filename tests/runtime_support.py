"""Models that wait until they are let go, and a device and its queue in whole numbers."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miriam.runtime.admission import Demand

ONE = np.ones(1)
PATIENCE_S = 60.0  # bounds every wait; nothing that goes well takes it


class Held:
    """A step that, from :meth:`hold` on, waits each time until it is let go, and remembers what it was given."""

    def __init__(self, fails: bool = False) -> None:
        self._held = False
        self._fails = fails
        self._begun, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self.seen: list[float] = []

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        if self._held:
            self.seen.append(float(x[0]))
            self._begun.release()
            assert self._go.acquire(timeout=PATIENCE_S)
            if self._fails:
                raise ValueError(f"{x[0]:g} is not to be had")
        return x + 1

    def hold(self) -> Held:
        self._held = True
        return self

    def begun(self) -> None:
        """Wait until one is in it."""
        assert self._begun.acquire(timeout=PATIENCE_S)

    def go(self, times: int = 1) -> None:
        """Let so many through."""
        for _ in range(times):
            self._go.release()

    def open(self) -> None:
        """Let everything through."""
        self._held = False
        self.go(1000)


@dataclass
class Witness:
    """Is told of everything, and counts the ends of each request."""

    ends: dict[int, int] = field(default_factory=dict)
    offered_numbers: list[int] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def heard(self, event: Any, commands: Sequence[Any]) -> None:
        self.events.append((event, commands))

    def queued(self, response: Any) -> None:
        assert response.number not in self.ends
        self.ends[response.number] = 0

    def offered(self, response: Any, request: Any) -> None:
        assert response.number == request.number
        self.offered_numbers.append(request.number)

    def answered(self, response: Any) -> None:
        assert response.done()
        self.ends[response.number] += 1


@dataclass
class Job:
    """A request in whole units of time."""

    demand: Demand
    release: int
    steps: list[int]
    end: int = -1

    @property
    def key(self) -> tuple[float, int]:
        deadline = self.demand.deadline_ns
        return (self.release + deadline if deadline is not None else float("inf"), self.release)


def serve(
    demands: Sequence[Demand], steps: dict[str, list[int]], depth: int, until: int, rng: random.Random
) -> list[Job]:
    """Serve releases as random as they may be, on a device that runs step by step; the jobs that have ended.

    A level takes the earliest deadline out of its queue while fewer than ``depth`` of it are on the device, and at
    most one of a task; what it has taken runs in that order. Between two steps the highest level goes on. A task with
    neither a deadline nor a period asks again as soon as it has an answer.
    """
    coming: list[Job] = []
    for demand in demands:
        at = rng.choice([0, 0, rng.randrange(20)])
        while demand.gap_ns is not None and at < until:
            coming.append(Job(demand, at, list(steps[demand.name])))
            at += demand.gap_ns + rng.choice([0, 0, 0, rng.randrange(10)])
        if demand.gap_ns is None:
            coming.append(Job(demand, at, list(steps[demand.name])))
    waiting: list[Job] = []
    lanes: dict[int, list[Job]] = {demand.level: [] for demand in demands}
    done: list[Job] = []
    now = 0
    while now < until:
        for job in [job for job in coming if job.release <= now]:
            coming.remove(job)
            waiting.append(job)
        for level, lane in lanes.items():
            while len(lane) < depth:
                busy = {job.demand.name for job in lane}
                free = [job for job in waiting if job.demand.level == level and job.demand.name not in busy]
                if not free:
                    break
                lane.append(min(free, key=lambda job: job.key))
                waiting.remove(lane[-1])
        lane = next((lanes[level] for level in sorted(lanes, reverse=True) if lanes[level]), [])
        if not lane:
            now = min((job.release for job in coming), default=until)
            continue
        job = lane[0]
        now += job.steps.pop(0)
        if not job.steps:
            job.end = now
            done.append(lane.pop(0))
            if job.demand.gap_ns is None:
                coming.append(Job(job.demand, now, list(steps[job.demand.name])))
    return done
