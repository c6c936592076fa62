"""A device that exists on paper: requests with known arrivals and lengths, and a recorder that hears of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from support import program

from miriam.device.base import Event, EventKind, Lane, Run
from miriam.errors import ModelError
from miriam.runtime.response import Response
from miriam.task import Request, Task
from miriam.trace import Recorder

LANES = (Lane("critical", 1), Lane("normal", 0))
PROGRAM = program()


@dataclass
class Job:
    """What is asked for: who, when, how long it takes alone; and what came of it."""

    task: str
    level: int
    arrival_us: float
    length_us: float
    deadline_us: float = math.inf
    fails: bool = False
    left_us: float = field(init=False)
    start_us: float | None = field(default=None, init=False)
    end_us: float = field(default=math.nan, init=False)
    paused_us: float = field(default=0.0, init=False)
    met: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.left_us = self.length_us


def schedule(jobs: Sequence[Job]) -> None:
    """Serve jobs one at a time: the highest level first, in a level the oldest; the others stand still meanwhile."""
    ready: list[Job] = []
    coming = sorted(jobs, key=lambda job: job.arrival_us)
    now_us = 0.0
    while coming or ready:
        if not ready:
            now_us = max(now_us, coming[0].arrival_us)
        while coming and coming[0].arrival_us <= now_us:
            ready.append(coming.pop(0))
        for job in ready:
            job.met |= len(ready) > 1
        job = max(ready, key=lambda one: (one.level, -one.arrival_us))
        if job.start_us is None:
            job.start_us = now_us
        until_us = min(now_us + job.left_us, coming[0].arrival_us if coming else math.inf)
        for other in ready:
            if other is not job and other.start_us is not None:
                other.paused_us += until_us - now_us
        job.left_us -= until_us - now_us
        now_us = until_us
        if job.left_us <= 1e-6:  # what is less is lost in the sum of large times
            job.end_us = now_us
            ready.remove(job)


class Clock:
    """Shows what it is told to show."""

    def __init__(self) -> None:
        self.us = 0.0

    def __call__(self) -> float:
        return self.us


def play(recorder: Recorder, clock: Clock, jobs: Sequence[Job], policy: str = "resident") -> list[Response]:
    """Let a recorder hear what a runtime on a CPU would tell it of jobs that were scheduled."""
    recorder.opened("cpu", policy, LANES)
    told: list[tuple[float, int, Any]] = []
    responses = []
    for number, job in enumerate(jobs, 1):
        response, request = _pair(job, number)
        responses.append(response)
        lane = 0 if job.level else 1
        run = Run(request, lane, limits={1: 0} if lane == 0 else {}, why="whole and at once")
        assert job.start_us is not None
        told += [
            (job.arrival_us, 0, ("queued", response)),
            (job.arrival_us, 1, ("offered", response, request)),
            (job.arrival_us, 2, ("heard", Event(EventKind.ARRIVED, job.arrival_us, request), [run])),
            (job.end_us, 3, ("ended", response, request, job)),
            (job.end_us, 4, ("heard", Event(EventKind.FINISHED, job.end_us, request, run), [])),
        ]
    for time_us, _, (what, *given) in sorted(told, key=lambda one: one[:2]):
        clock.us = time_us
        if what == "ended":
            _end(*given)
            recorder.answered(given[0])
        else:
            getattr(recorder, what)(*given)
    return responses


def _pair(job: Job, number: int) -> tuple[Response, Request]:
    limit_us = None if job.deadline_us == math.inf else job.deadline_us
    task = Task(job.task, PROGRAM, job.level, limit_us)
    response = Response(
        task, number, (), deadline_us=job.arrival_us + job.deadline_us, expires_us=math.inf,
        submitted_us=job.arrival_us, wrap=lambda outputs: outputs, withdraw=lambda response: False,
        caller=lambda call: call(),
    )  # fmt: skip
    return response, Request(task, number, job.arrival_us)


def _end(response: Response, request: Request, job: Job) -> None:
    response.started_us, response.finished_us, response.met = job.start_us, job.end_us, job.met
    request.start_us, request.finish_us = job.start_us, job.end_us
    if job.fails:
        response.set_exception(ModelError(f"{job.task} failed: ValueError: no"))
    else:
        response.set_result(())
