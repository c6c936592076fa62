"""Run a benchmark: every workload, each of its tasks alone and under every policy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miriam.bench import outside
from miriam.bench.asked import check_device, check_models, fitting, make_folder, policy_names, times
from miriam.bench.children import ending_in_order
from miriam.bench.made import machine, versions
from miriam.bench.mps import Mps
from miriam.bench.point import Job, Outcome, Sources, simulated, unloaded
from miriam.bench.pool import Progress, named, processors, run_one, side_by_side
from miriam.bench.relate import relate
from miriam.bench.results import ALONE, Made, Results
from miriam.bench.stock import check_stock, stock_rates
from miriam.bench.suites import select, suite
from miriam.bench.workload import Workload, check_load
from miriam.device.base import Device
from miriam.errors import WorkloadError
from miriam.profile import ProfileSource
from miriam.program import Program

__all__ = ["run", "run_mdtb"]

_REHEARSAL_S = 0.25


@unloaded()
def run(
    benchmark: str = "mdtb",
    workloads: str | Iterable[str | Workload] | None = None,
    policies: str | Iterable[str] | None = None,
    device: str = "sim:xavier",
    duration_s: float | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    *,
    repeats: int | None = None,
    critical_load: float | None = None,
    depth: int | None = None,
    kernels: str = "tuned",
    verify: bool = False,
    stock: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    profiles: Callable[[], ProfileSource] | None = None,
    programs: Callable[[str], Program] | None = None,
    open_device: Callable[[str, ProfileSource], Device] | None = None,
) -> Results:
    """Run workloads on a device: first each task alone, then all of them under each policy, in turns.

    On a simulated device points run side by side in processes of their own, so a script that calls this
    needs the usual ``if __name__ == "__main__":``, unless ``jobs`` is 1. On a GPU they run one after
    another in this process: one turn is every task alone and every policy once.

    Parameters
    ----------
    benchmark
        ``mdtb``, ``disb`` or ``pair``: where names of workloads are looked up.
    workloads
        Names (``"A,B"`` or a list), or workloads of your own; None: the usual ones of the benchmark.
    policies
        Names; None: all that the device can have, but those of the driver (:mod:`miriam.bench.outside`),
        which a GPU takes too: ``timeslice``, ``mps``, ``mps:50``.
    device
        Name of a device, for example ``sim:xavier`` or ``cuda:0``.
    duration_s
        Length of every run in the time of the device; None: 1 s if it is simulated, 5 s on a GPU. Its
        first 5 % do not count; on a GPU its first half second at least.
    seed
        Same seed, same arrivals; on a simulated device, same results. Turn ``i`` has those of ``seed + i``.
    out
        Folder for the report, the results document and the trace; None: write nothing.
    repeats
        Turns; None: 1 if simulated, 3 on a GPU.
    critical_load
        Scale the rates of every workload so that its critical task alone would be busy this share
        of the time; None: rates as written. See :meth:`miriam.bench.workload.Workload.scaled`.
    depth
        Requests that a normal closed loop keeps outstanding; None: as the workload has it.
    kernels
        Which kernels the zoo's networks are made of: ``tuned``, or ``naive`` (:func:`miriam.zoo.load`).
    verify
        Have a GPU compare every output with that of the unmodified kernels.
    stock
        On a GPU, measure in every turn what the normal models do alone in plain PyTorch.
    jobs
        Processes, on a simulated device; None: one for each processor that this process may use.
    progress
        Called with (points done, points in all, label of the point that was done).
    profiles, programs
        Where profiles and programs come from: functions that can be pickled. None: the zoo.
    open_device
        Makes a device of its name and the profiles, a function that can be pickled. None: the
        simulated device or the GPU of that name.

    Raises
    ------
    WorkloadError, PolicyError, DeviceError
        A workload, policy or device is unknown, or an option makes no sense.
    MiriamError
        A point failed; the message begins with its name.
    """
    began = time.monotonic()
    among = suite(benchmark)
    chosen = select(workloads, among)
    model = simulated(device)
    names = policy_names(policies, model)
    duration_s, warm_up_s, repeats = times(duration_s, repeats, model)
    if jobs is not None and (jobs < 1 or (jobs > 1 and not model)):
        raise WorkloadError(f"{jobs} jobs: " + ("at least one is needed" if jobs < 1 else "a GPU is measured by one"))
    if seed < 0:
        raise WorkloadError(f"seed {seed}: a whole number, zero or above, is needed")
    if critical_load is not None:
        check_load(critical_load)
    if depth is not None:
        chosen = tuple(w.deepened(depth) for w in chosen)
    if verify and model:
        raise WorkloadError("outputs can be verified on a GPU only: a simulated device computes none")
    if stock:
        check_stock(device)
    where = machine() if open_device is not None else machine() | check_device(device)
    if programs is None:
        check_models(chosen, kernels)
    sources = Sources.usual(programs, profiles, open_device, kernels=kernels, verify=verify)
    if out is not None:
        make_folder(Path(out))
    if critical_load is not None:
        chosen = tuple(_scaled(w, critical_load, device, sources) for w in chosen)
    chosen = tuple(replace(w, entries=tuple(e.settled() for e in w.entries)) for w in chosen)
    left_out: tuple[str, ...] = ()
    if policies is None or not model:
        names, left_out = fitting(names, chosen, device, sources, asked=policies is not None)
    todo = [
        Job(workload, policy, alone, repeat, device, duration_s, warm_up_s, seed, repeat == 0, sources)
        for repeat in range(repeats)
        for workload in chosen
        for policy, alone in _order(workload, names)
    ]

    def document(outcomes: Sequence[Outcome]) -> Results:
        own = () if kernels == "tuned" else (f"{kernels} kernels in place of tuned ones",)
        notes = (*among.notes, *own, *left_out, *(note for o in outcomes for note in o.notes))
        return Results(
            made=Made(
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                wall_s=round(time.monotonic() - began, 3),
                machine=where,
                versions=versions(),
            ),
            suite=among.name,
            device=device,
            simulated=model,
            notes=tuple(dict.fromkeys(notes)),
            duration_s=duration_s,
            warm_up_s=warm_up_s,
            seed=seed,
            critical_load=critical_load,
            repeats=1 + max(o.point.repeat for o in outcomes),
            kernels=kernels,
            policies=names,
            workloads=chosen,
            programs={model: steps for o in outcomes for model, steps in o.programs.items()},
            points=relate(o.point for o in outcomes),
        )

    progress = progress or (lambda done, total, label: None)
    if model:
        results = document(side_by_side(todo, jobs or processors(), progress))
    else:
        outcomes: list[Outcome] = []
        with closing(_measured(todo, stock=stock)) as measured:  # whatever comes, its daemon ends here
            for outcome in measured:
                outcomes.append(outcome)
                results = document(outcomes)
                if out is not None:  # what was measured stays, too
                    results.save(Path(out) / "results.json")
                progress(len(outcomes), len(todo), todo[len(outcomes) - 1].label)
    if out is not None:
        from miriam.bench.report import write

        write(results, Path(out))
    return results


def run_mdtb(
    workloads: str | Iterable[str | Workload] | None = None,
    policies: str | Iterable[str] | None = None,
    device: str = "sim:xavier",
    duration_s: float | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Results:
    """Run MDTB: :func:`run` with the benchmark ``mdtb``."""
    return run("mdtb", workloads, policies, device, duration_s, seed, out, **options)


def _order(workload: Workload, policies: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """Policy and task alone of every point of a turn: by regime, first each task alone under it."""
    regimes: dict[str, list[str]] = {name: [] for name in (ALONE, *outside.NAMES)}
    for policy in policies:
        found = outside.regime(policy)
        regimes[ALONE if found is None else found.name].append(policy)
    for name, own in regimes.items():
        if own or name == ALONE:
            yield from ((name, e.name) for e in workload.entries)
            yield from ((policy, None) for policy in own)


def _measured(todo: Sequence[Job], *, stock: bool) -> Generator[Outcome]:
    """One point after another, in turns, with what normal models do in plain PyTorch before each turn if ``stock``."""
    rates: dict[int, dict[str, float]] = {}
    with ending_in_order(), Mps() as mps:
        _rehearse(todo, mps)
        for job in todo:
            if stock and job.repeat not in rates:
                rates[job.repeat] = _stock(todo)
            yield _with_stock(job, run_one(job, mps), rates.get(job.repeat, {}))


def _rehearse(todo: Sequence[Job], mps: Mps) -> None:
    """Run the points of the first turn that are measured in this process for a moment, uncounted.

    Launches last longer, by about a third of a microsecond each, once a process has opened a few devices, whatever runs
    on them (seen on an H200). What is measured first, each task alone, must not be the only one that is spared that.
    """
    here = [job for job in todo if job.repeat == 0 and outside.regime(job.policy) is None]
    for job in here if len(todo) > 1 else ():
        run_one(replace(job, duration_s=_REHEARSAL_S, warm_up_s=0.0, traced=False), mps)


def _stock(jobs: Sequence[Job]) -> dict[str, float]:
    with named("plain PyTorch"):
        return stock_rates((e.model for job in jobs for e in job.workload.entries if not e.critical), jobs[0].device)


def _with_stock(job: Job, outcome: Outcome, rates: Mapping[str, float]) -> Outcome:
    """The outcome with the rates of plain PyTorch on its normal tasks."""
    models = {e.name: e.model for e in job.workload.entries if not e.critical}
    tasks = tuple(replace(t, stock_per_s=rates.get(models.get(t.name, ""))) for t in outcome.point.tasks)
    return replace(outcome, point=replace(outcome.point, tasks=tasks))


def _scaled(workload: Workload, load: float, device: str, sources: Sources) -> Workload:
    """The workload with the rates that keep its critical task alone busy for this share of the time."""
    if workload.rated is None:
        return workload
    with named(workload.name):
        opened = sources.open(device)
        try:
            return workload.scaled(load, sum(opened.launch_us(sources.programs(workload.rated.model))))
        finally:
            opened.close()
