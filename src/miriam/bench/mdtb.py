"""Run a mixed-critical benchmark: every workload, each of its tasks alone and under every policy."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path

from miriam.bench.arrivals import Closed, SeededTraffic
from miriam.bench.metrics import measure
from miriam.bench.results import Made, Point, Results, Step, relate
from miriam.bench.timeline import excerpt
from miriam.bench.workload import Workload, check_load, select
from miriam.coordinator import Policy, coordinate
from miriam.device.base import Device
from miriam.errors import DeviceError, MiriamError, PolicyError, WorkloadError
from miriam.policy.base import Setting
from miriam.profile import ProfileSource
from miriam.program import Program
from miriam.task import Task

__all__ = ["DEFAULT_DURATION_S", "DEFAULT_WORKLOADS", "run"]

DEFAULT_DURATION_S = 1.0
DEFAULT_WORKLOADS = ("A", "B", "C", "D")

_WARM_UP = 0.05
_ALONE = "multistream"  # with one task it does nothing but hand its requests to the device


@dataclass(frozen=True, slots=True)
class _Job:
    """One point, as it travels to the process that runs it."""

    workload: Workload
    policy: str
    alone: str | None
    device: str
    duration_s: float
    seed: int
    critical_load: float | None
    programs: Callable[[str], Program] | None
    profiles: Callable[[], ProfileSource] | None

    @property
    def label(self) -> str:
        return f"{self.workload.name}, {self.policy if self.alone is None else f'{self.alone} alone'}"


@dataclass(frozen=True, slots=True)
class _Outcome:
    point: Point
    workload: Workload
    programs: dict[str, tuple[Step, ...]]
    notes: tuple[str, ...]


def run(
    workloads: str | Iterable[str | Workload] = DEFAULT_WORKLOADS,
    policies: str | Iterable[str] | None = None,
    device: str = "sim:xavier",
    duration_s: float = DEFAULT_DURATION_S,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    *,
    critical_load: float | None = None,
    kernels: str = "tuned",
    jobs: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    profiles: Callable[[], ProfileSource] | None = None,
    programs: Callable[[str], Program] | None = None,
) -> Results:
    """Run workloads on a device: first each task alone, then all of them under each policy.

    Points run side by side in processes of their own, so a script that calls this needs the usual
    ``if __name__ == "__main__":``, unless ``jobs`` is 1.

    Parameters
    ----------
    workloads
        Names (``"A,B"`` or a list), or workloads of your own.
    policies
        Names; None: all that there are.
    device
        Name of a device, for example ``sim:xavier``.
    duration_s
        Length of every run in the time of the device; its first 5 % do not count.
    seed
        Same seed, same arrivals; on a simulated device, same results.
    out
        Folder for the report, the results document and the trace; None: write nothing.
    critical_load
        Scale the rates of every workload so that its critical task alone would be busy this share
        of the time; None: rates as written. See :meth:`miriam.bench.workload.Workload.scaled`.
    kernels
        Which kernels the zoo's networks are made of: ``tuned``, or ``naive`` (:func:`miriam.zoo.load`).
    jobs
        Processes; None: one for each processor that this process may use.
    progress
        Called with (points done, points in all, label of the point that was done).
    profiles, programs
        Where profiles and programs come from: functions that can be pickled. None: the zoo.

    Raises
    ------
    WorkloadError, PolicyError, DeviceError
        A workload, policy or device is unknown, or an option makes no sense.
    MiriamError
        A point failed; the message begins with its name.
    """
    began = time.monotonic()
    chosen = select(workloads)
    names = _policies(policies)
    if not 0 < duration_s < float("inf"):
        raise WorkloadError(f"a duration of {duration_s} s: a number above zero is needed")
    if jobs is not None and jobs < 1:
        raise WorkloadError(f"{jobs} jobs: at least one is needed")
    if seed < 0:
        raise WorkloadError(f"seed {seed}: a whole number, zero or above, is needed")
    if critical_load is not None:
        check_load(critical_load)
    _check_device(device)
    notes = []
    if programs is None and kernels != "tuned":
        programs = _zoo_programs(kernels)
        notes.append(f"{kernels} kernels in place of tuned ones")
    if out is not None:
        _make(Path(out))
    todo = [
        _Job(workload, policy, alone, device, duration_s, seed, critical_load, programs, profiles)
        for workload in chosen
        for policy, alone in [*((_ALONE, e.name) for e in workload.entries), *((name, None) for name in names)]
    ]
    outcomes = _run_all(todo, jobs or _processors(), progress or (lambda done, total, label: None))
    results = Results(
        made=Made(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_s=round(time.monotonic() - began, 3),
            machine=_machine(),
            versions=_versions(),
        ),
        device=device,
        simulated=_simulated(device),
        notes=tuple(dict.fromkeys([*notes, *(note for o in outcomes for note in o.notes)])),
        duration_s=duration_s,
        warm_up_s=duration_s * _WARM_UP,
        seed=seed,
        critical_load=critical_load,
        policies=names,
        workloads=tuple({o.workload.name: o.workload for o in outcomes}.values()),
        programs={model: steps for o in outcomes for model, steps in o.programs.items()},
        points=relate(o.point for o in outcomes),
    )
    if out is not None:
        from miriam.bench.report import write

        write(results, Path(out))
    return results


def _make(folder: Path) -> None:
    """Make the folder of the report, so that one that cannot be written is found before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkloadError(f"cannot write the report into {folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise WorkloadError(f"cannot write the report into {folder}: it may not be written")


def _run_all(todo: list[_Job], jobs: int, progress: Callable[[int, int, str], None]) -> list[_Outcome]:
    """Outcomes in the order of ``todo``."""
    if min(jobs, len(todo)) == 1:
        outcomes = []
        for i, job in enumerate(todo):
            with _named(job):
                outcomes.append(_measure(job))
            progress(i + 1, len(todo), job.label)
        return outcomes
    with _pool(min(jobs, len(todo))) as pool:
        pending: dict[Future[_Outcome], int] = {pool.submit(_measure, job): i for i, job in enumerate(todo)}
        done: dict[int, _Outcome] = {}
        for future in as_completed(pending):
            i = pending[future]
            with _named(todo[i]):
                done[i] = future.result()
            progress(len(done), len(todo), todo[i].label)
        return [done[i] for i in range(len(todo))]


@contextmanager
def _pool(jobs: int) -> Iterator[Executor]:
    """Worker processes that end with the block, at once if it ends in an error."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_quiet_interrupt)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet_interrupt() -> None:
    """Let Ctrl-C end a worker without a traceback of its own."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _named(job: _Job) -> Iterator[None]:
    """Put the name of the point before the message of an error."""
    try:
        yield
    except BrokenProcessPool as error:
        raise MiriamError(
            f"{job.label}: a worker process died: try again with fewer jobs if memory is short, and put what a script "
            "does under 'if __name__ == \"__main__\":'"
        ) from error
    except MiriamError as error:
        raise type(error)(f"{job.label}: {error}") from error
    except Exception as error:
        raise MiriamError(f"{job.label}: {type(error).__name__}: {error}") from error


def _measure(job: _Job) -> _Outcome:
    """Run one point."""
    device = _device(job.device, job.profiles)
    load = job.programs or _zoo_program
    models = {e.model: load(e.model) for e in job.workload.entries}
    workload = job.workload
    if job.critical_load is not None and (rated := workload.rated) is not None:
        workload = workload.scaled(job.critical_load, sum(device.launch_us(models[rated.model])))
    workload = replace(workload, entries=tuple(e.settled() for e in workload.entries))
    entries = [e for e in workload.entries if job.alone in (None, e.name)]
    tasks = [e.task(models[e.model]) for e in entries]
    launch_us = {task.name: device.launch_us(task.program) for task in tasks}
    policy = _policy(job.policy, Setting(tasks, device.geometry, launch_us, device.command_us))
    until_us = job.duration_s * 1e6
    traffic = SeededTraffic([(t, e.arrivals) for t, e in zip(tasks, entries, strict=True)], until_us, job.seed)
    solo_us = {e.name: sum(device.launch_us(models[e.model])) for e in workload.entries}
    window_us = _window(workload, tasks, traffic, solo_us, until_us)
    try:
        coordinate(device, policy, traffic, until_us, window_us)
        usage = device.usage()
    finally:
        device.close()
    begin_us = until_us * _WARM_UP
    point = Point(
        workload=workload.name,
        policy=job.policy,
        alone=job.alone,
        tasks=tuple(measure(task, traffic.requests, begin_us, until_us) for task in tasks),
        busy=usage.busy_us / until_us,
        occupancy=usage.occupancy,
        sm_active=usage.sm_active,
        blocks=usage.blocks,
        report={key: float(value) for key, value in policy.report().items() if math.isfinite(value)},
        timeline=excerpt(usage, window_us, device.geometry, policy.lanes, tasks, traffic.requests)
        if window_us
        else None,
    )
    return _Outcome(point, workload, {m: _steps(p) for m, p in models.items()}, tuple(device.notes))


def _window(
    workload: Workload, tasks: list[Task], traffic: SeededTraffic, solo_us: dict[str, float], until_us: float
) -> tuple[float, float] | None:
    """What to keep for the timeline: a critical request of the second half, and what is around it.

    Long enough for a critical request that has to wait for a normal one, the same for all policies;
    none where a normal task is alone.
    """
    critical = max((t for t in tasks if t.critical), key=lambda t: t.criticality, default=None)
    if critical is None:
        return None
    others = max((solo_us[e.name] for e in workload.entries if not e.critical), default=0.0)
    length_us = min(2.0 * solo_us[critical.name] + others, until_us / 2)
    arrivals = next(e.arrivals for e in workload.entries if e.name == critical.name)
    begin_us = until_us / 2
    if not isinstance(arrivals, Closed):
        times = traffic.times_us(critical.name)
        later = times[(times >= until_us / 2) & (times < until_us - length_us)]
        begin_us = float(later[0] if later.size else begin_us) - 0.15 * length_us
    return begin_us, begin_us + length_us


def _steps(program: Program) -> tuple[Step, ...]:
    return tuple(
        Step(program.kernel_of(i).name, launch.blocks, program.kernel_of(i).threads)
        for i, launch in enumerate(program.launches)
    )


@lru_cache
def _zoo_program(model: str) -> Program:
    from miriam import zoo

    return zoo.load(model)


def _zoo_programs(kernels: str) -> Callable[[str], Program]:
    from miriam import zoo

    if kernels not in zoo.KERNELS:
        raise WorkloadError(f"there are no kernels {kernels!r}: choose from {', '.join(zoo.KERNELS)}")
    return partial(zoo.load, kernels=kernels)


def _simulated(name: str) -> bool:
    return name.startswith("sim:")


def _check_device(name: str) -> None:
    if not _simulated(name):
        raise DeviceError(f"the benchmark cannot run on device {name!r}: choose a simulated one, such as sim:xavier")
    from miriam.device.sim.spec import parse

    parse(name)


def _device(name: str, profiles: Callable[[], ProfileSource] | None) -> Device:
    from miriam.device.sim.device import SimDevice

    if profiles is None:
        from miriam import zoo

        profiles = zoo.profiles
    return SimDevice(name, profiles())


def _policy(name: str, setting: Setting) -> Policy:
    from miriam.policy import create

    return create(name, setting)


def _policies(names: str | Iterable[str] | None) -> tuple[str, ...]:
    from miriam.policy import NAMES

    if names is None:
        return tuple(NAMES)
    chosen = tuple(dict.fromkeys(n.strip() for n in (names.split(",") if isinstance(names, str) else names)))
    for name in chosen:
        if name not in NAMES:
            raise PolicyError(f"there is no policy {name!r}: choose from {', '.join(NAMES)}")
    if not chosen:
        raise PolicyError(f"no policy was named: choose from {', '.join(NAMES)}")
    return chosen


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> dict[str, str]:
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass  # not Linux: the general name has to do
    return {"processor": processor, "cores": str(_processors()), "system": platform.platform()}


def _versions() -> dict[str, str]:
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {name: metadata.version(name) for name in ("miriam", "numpy", "numba")}
