"""Baselines of the driver: every task in a process of its own.

``timeslice``
    The driver gives the GPU to one process after another.
``mps``
    Under the Multi-Process Service kernels of all processes run at the same time.
``mps:50``
    The same; a normal process may use 50 % of the threads (``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE``).

Each process serves its own task alone, with its arrivals of the seed, as the policy ``multistream`` does in one
process. They load and rehearse first and begin together. A process goes on for a little while after the
end of the run, so that nobody has the GPU to itself before everybody's end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from miriam.bench.children import Call, Children
from miriam.bench.metrics import measure
from miriam.bench.mps import Mps
from miriam.bench.point import Job, Outcome, checks, steps_of, with_checks
from miriam.bench.results import ALONE, Point
from miriam.coordinator import coordinate
from miriam.device.base import Device
from miriam.errors import DeviceError, PolicyError
from miriam.policy import create
from miriam.policy.base import Setting
from miriam.task import Request, Task

__all__ = ["NAMES", "Regime", "regime", "run_outside"]

NAMES = ("timeslice", "mps")
"""Names without options; ``mps:50`` is one with."""

_READY_S = 300.0  # to load kernels, which a driver may have to compile
_GRACE_S = 60.0
_REHEARSAL_US = 60e6
_TAIL_S = 0.5  # more than one process needs longer for its first request than another
_SOON_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class Regime:
    """How processes share the GPU.

    Attributes
    ----------
    name
        Without options: tasks alone run under the same.
    mps
        Whether under MPS.
    percentage
        Of the threads that a normal process may use; None: all.
    """

    name: str
    mps: bool = False
    percentage: int | None = None


def regime(policy: str) -> Regime | None:
    """What a policy of this name is outside; None if it is none.

    Raises
    ------
    PolicyError
        The option makes no sense.
    """
    name, colon, option = policy.partition(":")
    if name not in NAMES:
        return None
    if not colon:
        return Regime(name, name == "mps")
    if name != "mps" or not option.isdecimal() or not 1 <= int(option) <= 100:
        raise PolicyError(
            f"{policy!r}: {name} takes " + ("a percentage, such as mps:50" if name == "mps" else "nothing")
        )
    return Regime(name, True, int(option))


def run_outside(job: Job, mps: Mps) -> Outcome:
    """Run one point with a process for each task; ``mps`` is started, or stopped, as the regime needs it."""
    found = regime(job.policy)
    assert found is not None
    if found.mps:
        mps.start()
    else:
        mps.stop()
    programs = job.programs()
    tasks = job.tasks(programs)
    bare = {t.name: replace(job, alone=t.name) for t in tasks}
    calls = {t.name: Call(_environment(found, t, mps), _serve, (bare[t.name],)) for t in tasks}
    try:
        with Children(calls) as children:
            children.answers(_READY_S)
            children.tell(time.monotonic_ns() + _SOON_NS)
            served: dict[str, _Served] = children.answers(job.duration_s + _TAIL_S + _GRACE_S)
    except DeviceError as error:
        said = mps.said()
        raise DeviceError(f"{error}{f'; MPS says: {said}' if said else ''}") from error
    metrics = (
        with_checks(measure(t, served[t.name].requests(t), job.begin_us, job.until_us), served[t.name].checks)
        for t in tasks
    )
    point = Point(
        workload=job.workload.name, policy=job.policy, alone=job.alone, repeat=job.repeat, tasks=tuple(metrics),
        busy=None, occupancy=None, sm_active=None, blocks=None, report={},
    )  # fmt: skip
    notes = tuple(dict.fromkeys(note for answer in served.values() for note in answer.notes))
    return Outcome(point, {model: steps_of(p) for model, p in programs.items()}, notes)


def _environment(found: Regime, task: Task, mps: Mps) -> dict[str, str]:
    limit = {} if found.percentage is None or task.critical else {
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(found.percentage)
    }  # fmt: skip
    return {**mps.environment, **limit}


@dataclass(frozen=True, slots=True)
class _Served:
    """What a process tells in the end: (arrival, start, finish) of each request, outputs compared, notes."""

    times_us: list[tuple[float, float | None, float | None]]
    checks: dict[str, tuple[int, int]]
    notes: tuple[str, ...]

    def requests(self, task: Task) -> list[Request]:
        return [Request(task, number, *times) for number, times in enumerate(self.times_us)]


def _serve(connection: Connection, job: Job) -> _Served:
    """In a process of its own: serve the one task of ``job``."""
    entry = next(e for e in job.workload.entries if e.name == job.alone)
    task = entry.task(job.sources.programs(entry.model))
    rehearsal = job.sources.open(job.device)
    try:
        _coordinate(rehearsal, task, _Once(task), _REHEARSAL_US)
    finally:
        rehearsal.close()
    longer = replace(job, duration_s=job.duration_s + _TAIL_S)
    traffic = longer.traffic([task])
    device = job.sources.open(job.device)
    try:
        device.launch_us(task.program)
        connection.send("ready")
        begin_ns: int = connection.recv()
        time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) * 1e-9))
        _coordinate(device, task, traffic, longer.until_us)
        found = dict(checks(device))
    finally:
        device.close()
    times_us = [(r.arrival_us, r.start_us, r.finish_us) for r in traffic.requests]
    return _Served(times_us, found, tuple(device.notes))


def _coordinate(device: Device, task: Task, traffic: Any, until_us: float) -> None:
    setting = Setting([task], device.geometry, {task.name: device.launch_us(task.program)}, device.command_us)
    coordinate(device, create(ALONE, setting), traffic, until_us)


class _Once:
    """One request, which loads what the first one needs."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def start(self) -> Iterable[Request]:
        return [Request(self._task, 0, 0.0)]

    def after(self, finished: Request) -> Request | None:
        return None
