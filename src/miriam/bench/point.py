"""One run of a benchmark: a workload under a policy on a device, or one of its tasks alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from miriam.bench.arrivals import Closed, SeededTraffic
from miriam.bench.metrics import TaskMetrics, measure
from miriam.bench.results import Point, Step, label
from miriam.bench.timeline import excerpt
from miriam.bench.workload import Workload
from miriam.coordinator import coordinate
from miriam.device.base import Device
from miriam.errors import DeviceError
from miriam.policy import create
from miriam.policy.base import Setting
from miriam.profile import ProfileSource
from miriam.program import Program
from miriam.task import Task

if TYPE_CHECKING:
    from miriam.device.cuda.work import Codes

__all__ = ["Job", "Outcome", "Sources", "checks", "run_point", "simulated", "steps_of", "unloaded", "with_checks"]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where programs, profiles and devices come from, as it travels to other processes.

    Attributes
    ----------
    programs, profiles
        Functions that can be pickled.
    device
        Makes a device of its name and the profiles.
    """

    programs: Callable[[str], Program]
    profiles: Callable[[], ProfileSource]
    device: Callable[[str, ProfileSource], Device]

    @staticmethod
    def usual(
        programs: Callable[[str], Program] | None,
        profiles: Callable[[], ProfileSource] | None,
        device: Callable[[str, ProfileSource], Device] | None,
        *,
        kernels: str,
        verify: bool,
    ) -> Sources:
        """What is given; for the rest the zoo, and the devices that there are."""
        return Sources(
            programs or partial(_zoo_program, kernels=kernels), profiles or _zoo_profiles,
            device or partial(_device, verify=verify),
        )  # fmt: skip

    def open(self, name: str) -> Device:
        """A fresh device of that name."""
        return self.device(name, self.profiles())


@dataclass(frozen=True, slots=True)
class Job:
    """One point that is to be measured, as it travels to the process that runs it.

    Attributes
    ----------
    workload
        Its rates are those that are used.
    policy, alone, repeat
        As in the :class:`Point` that comes of it.
    device
        Name of the device.
    duration_s, warm_up_s
        Length of the run, and how much of its begin does not count.
    seed
        Of the first turn.
    traced
        Whether a timeline is wanted.
    """

    workload: Workload
    policy: str
    alone: str | None
    repeat: int
    device: str
    duration_s: float
    warm_up_s: float
    seed: int
    traced: bool
    sources: Sources

    @property
    def label(self) -> str:
        """For people."""
        turn = f", turn {self.repeat + 1}" if self.repeat else ""
        return f"{self.workload.name}, {label(self.policy, self.alone)}{turn}"

    @property
    def until_us(self) -> float:
        """End of the run."""
        return self.duration_s * 1e6

    @property
    def begin_us(self) -> float:
        """End of the warm-up."""
        return self.warm_up_s * 1e6

    def programs(self) -> dict[str, Program]:
        """By model: the program of every task of the workload."""
        return {e.model: self.sources.programs(e.model) for e in self.workload.entries}

    def tasks(self, programs: Mapping[str, Program]) -> list[Task]:
        """The tasks that run: all, or the one that is alone."""
        return [e.task(programs[e.model]) for e in self.workload.entries if self.alone in (None, e.name)]

    def traffic(self, tasks: list[Task]) -> SeededTraffic:
        """The arrivals of these tasks in this turn."""
        arrivals = {e.name: e.arrivals for e in self.workload.entries}
        return SeededTraffic([(t, arrivals[t.name]) for t in tasks], self.until_us, self.seed + self.repeat)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job: the point, the launches of its programs, what the device says of itself."""

    point: Point
    programs: Mapping[str, tuple[Step, ...]]
    notes: tuple[str, ...]


def run_point(job: Job) -> Outcome:
    """Run one point in this process."""
    programs = job.programs()
    device = job.sources.open(job.device)
    try:
        tasks = job.tasks(programs)
        traffic = job.traffic(tasks)
        launch_us = {model: device.launch_us(program) for model, program in programs.items()}
        own_us = {e.name: launch_us[e.model] for e in job.workload.entries}
        policy = create(job.policy, Setting(tasks, device.geometry, own_us, device.command_us))
        solo_us = {name: sum(times_us) for name, times_us in own_us.items()}
        window_us = _window(job, tasks, traffic, solo_us) if job.traced else None
        coordinate(device, policy, traffic, job.until_us, window_us)
        usage = device.usage()
        found = checks(device)
    finally:
        device.close()
    point = Point(
        workload=job.workload.name,
        policy=job.policy,
        alone=job.alone,
        repeat=job.repeat,
        tasks=tuple(with_checks(measure(t, traffic.requests, job.begin_us, job.until_us), found) for t in tasks),
        busy=min(usage.busy_us / job.until_us, 1.0),
        occupancy=usage.occupancy,
        sm_active=usage.sm_active,
        blocks=usage.blocks,
        report={key: float(value) for key, value in policy.report().items() if math.isfinite(value)},
        timeline=excerpt(usage, window_us, device.geometry, policy.lanes, tasks, traffic.requests)
        if window_us and usage.spans
        else None,
    )
    return Outcome(point, {m: steps_of(p) for m, p in programs.items()}, tuple(device.notes))


def checks(device: Device) -> Mapping[str, tuple[int, int]]:
    """By task: inferences whose outputs a device compared, and wrong words in them; empty if it does not compare."""
    outputs = getattr(device, "outputs", None)
    return outputs() if outputs is not None else {}


def with_checks(metrics: TaskMetrics, found: Mapping[str, tuple[int, int]]) -> TaskMetrics:
    """Metrics with the outputs that were compared."""
    if metrics.name not in found:
        return metrics
    count, wrong = found[metrics.name]
    return replace(metrics, checked=count, wrong=wrong)


def steps_of(program: Program) -> tuple[Step, ...]:
    """The launches of a program, for captions."""
    return tuple(
        Step(program.kernel_of(i).name, launch.blocks, program.kernel_of(i).threads)
        for i, launch in enumerate(program.launches)
    )


def simulated(device: str) -> bool:
    """Whether a device of that name is a model of one."""
    return device.startswith("sim:")


def _window(
    job: Job, tasks: list[Task], traffic: SeededTraffic, solo_us: Mapping[str, float]
) -> tuple[float, float] | None:
    """What to keep for the timeline: a critical request of the second half, and what is around it.

    Long enough for a critical request that has to wait for a normal one, the same for all policies;
    none where a normal task is alone.
    """
    critical = max((t for t in tasks if t.critical), key=lambda t: t.criticality, default=None)
    if critical is None:
        return None
    others = max((solo_us[e.name] for e in job.workload.entries if not e.critical), default=0.0)
    length_us = min(2.0 * solo_us[critical.name] + others, job.until_us / 2)
    arrivals = next(e.arrivals for e in job.workload.entries if e.name == critical.name)
    begin_us = job.until_us / 2
    if not isinstance(arrivals, Closed):
        times = traffic.times_us(critical.name)
        later = times[(times >= job.until_us / 2) & (times < job.until_us - length_us)]
        begin_us = float(later[0] if later.size else begin_us) - 0.15 * length_us
    return begin_us, begin_us + length_us


@cache
def _zoo_program(model: str, kernels: str) -> Program:
    from miriam import zoo

    return zoo.load(model) if kernels == "tuned" else zoo.load(model, kernels)


def _zoo_profiles() -> ProfileSource:
    from miriam import zoo

    return zoo.profiles()


def _device(name: str, profiles: ProfileSource, *, verify: bool) -> Device:
    if simulated(name):
        from miriam.device.sim.device import SimDevice

        return SimDevice(name, profiles)
    from miriam.device.cuda.device import CudaDevice
    from miriam.device.cuda.place import parse

    return CudaDevice(name, profiles, codes=_codes(parse(name)[0]), verify=verify)


_loaded: dict[int, Codes] = {}  # by the number of the GPU, for one device after another


def _codes(ordinal: int) -> Codes:
    from miriam.device.cuda.work import Codes

    if ordinal not in _loaded:
        _loaded[ordinal] = Codes(ordinal)
    return _loaded[ordinal]


@contextmanager
def unloaded() -> Iterator[None]:
    """A block behind which this process has no kernels loaded and holds no GPU.

    Unless a device has failed: one that hangs would hang here, too, so that is left to the end of the process.
    """
    failed = False
    try:
        yield
    except DeviceError:
        failed = True
        raise
    finally:
        while _loaded and not failed:
            _loaded.popitem()[1].close()
