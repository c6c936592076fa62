"""What a benchmark is asked for: whether it can be done, found out before the work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from miriam.bench import outside
from miriam.bench.mps import control_program
from miriam.bench.point import Sources, simulated
from miriam.bench.pool import named
from miriam.bench.workload import Workload
from miriam.errors import DeviceError, PolicyError, WorkloadError
from miriam.policy import NAMES, check, create
from miriam.policy.base import Setting

__all__ = ["check_device", "check_models", "fitting", "make_folder", "policy_names", "times"]

_WARM_UP = 0.05
_REAL_WARM_UP_S = 0.5  # until clocks, caches and the paths of the host have settled


def times(duration_s: float | None, repeats: int | None, model: bool) -> tuple[float, float, int]:
    """Length of every run, its warm-up, and the number of turns."""
    if duration_s is None:
        duration_s = 1.0 if model else 5.0
    if not 0 < duration_s < float("inf"):
        raise WorkloadError(f"a duration of {duration_s} s: a number above zero is needed")
    warm_up_s = duration_s * _WARM_UP if model else max(duration_s * _WARM_UP, _REAL_WARM_UP_S)
    if warm_up_s >= duration_s:
        raise WorkloadError(
            f"a duration of {duration_s} s: the first {_REAL_WARM_UP_S} s on a GPU do not count, take a few seconds"
        )
    if repeats is None:
        repeats = 1 if model else 3
    if repeats < 1:
        raise WorkloadError(f"{repeats} repeats: at least one is needed")
    return duration_s, warm_up_s, repeats


def check_models(workloads: tuple[Workload, ...], kernels: str) -> None:
    """Say before the work which networks the zoo lacks, and how to get them."""
    from miriam import zoo

    if kernels not in zoo.KERNELS:
        raise WorkloadError(f"there are no kernels {kernels!r}: choose from {', '.join(zoo.KERNELS)}")
    there = zoo.names() if kernels == "tuned" else [n.replace("-naive-", "-") for n in zoo.names(kernels)]
    lacking = sorted({e.model for w in workloads for e in w.entries} - set(there))
    if lacking:
        only = " ".join(dict.fromkeys(model.rpartition("-b")[0] for model in lacking))
        way = (
            f"compile them on a GPU with 'python benchmarks/make_zoo.py --out src/miriam/zoo/programs --only {only}', "
            "and measure them for the simulator with benchmarks/profile_zoo.py"
            if kernels == "tuned"
            else "take the tuned ones"
        )
        raise WorkloadError(f"the zoo has no {kernels} kernels of {', '.join(lacking)}: {way}")


def check_device(name: str) -> dict[str, str]:
    """Refuse a device that is not there; facts about one that is a GPU."""
    if simulated(name):
        from miriam.device.sim.spec import parse

        parse(name)
        return {}
    from miriam.device import devices

    base = name.partition("/")[0]
    if not base.startswith("cuda:"):
        raise DeviceError(f"the benchmark cannot run on device {name!r}: choose one of 'miriam devices'")
    found = next((d for d in devices() if d.name == base), None)
    if found is None or found.unusable:
        raise DeviceError(f"{name} cannot be used: {found.unusable if found else 'see miriam devices'}")
    return {"gpu": found.title}


def policy_names(names: str | Iterable[str] | None, model: bool) -> tuple[str, ...]:
    """Policies by name, all of ours for None, after a look whether they exist; repeats are dropped."""
    if names is None:
        return tuple(NAMES)
    chosen = tuple(dict.fromkeys(n.strip() for n in (names.split(",") if isinstance(names, str) else names)))
    if not chosen:
        raise PolicyError(f"no policy was named: choose from {', '.join(NAMES)}")
    for name in chosen:
        if outside.regime(name) is None:
            check(name)
        elif model:
            raise PolicyError(f"the policy {name!r} is one of the driver of a GPU: leave it out on a simulated device")
    return chosen


def make_folder(folder: Path) -> None:
    """Make the folder of the report, so that one that cannot be written is found before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkloadError(f"cannot write the report into {folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise WorkloadError(f"cannot write the report into {folder}: it may not be written")


def fitting(
    policies: Sequence[str], workloads: Iterable[Workload], device: str, sources: Sources, *, asked: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find out which policies a device can have, before minutes of measurement are spent.

    Returns
    -------
    Those that it can have, and a note on each of the others; one that was ``asked`` for is an error instead.
    """
    lacking: dict[str, str] = {}
    if any(found is not None and found.mps for found in map(outside.regime, policies)):
        control_program()
    for workload in workloads:
        with named(workload.name):
            opened = sources.open(device)
            try:
                tasks = [e.task(sources.programs(e.model)) for e in workload.entries]
                launch_us = {task.name: opened.launch_us(task.program) for task in tasks}
                for name in policies:
                    if outside.regime(name) is None:
                        try:
                            create(name, Setting(tasks, opened.geometry, launch_us, opened.command_us))
                        except PolicyError as error:
                            if asked:
                                raise
                            lacking.setdefault(name, f"left out: {error}")
            finally:
                opened.close()
    return tuple(name for name in policies if name not in lacking), tuple(lacking.values())
