"""Load a server: each caller alone, then all together, on one clock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from miriam.bench.asked import make_folder
from miriam.bench.children import Call, Children, ending_in_order
from miriam.bench.made import machine, versions
from miriam.bench.relate import relate
from miriam.bench.results import LOAD, Made, Point, Results
from miriam.load.client import Phase, Record, live
from miriam.load.measure import TOGETHER, notes, point
from miriam.load.plan import Plan
from miriam.load.sender import Described
from miriam.progress import Progress, silent

__all__ = ["run"]

_READY_S = 60.0  # for processes to begin and the first answers to come
_LEAD_NS = 100_000_000  # between the word and the begin of a phase: all have heard it then


def run(plan: Plan, out: str | os.PathLike[str] | None = None, *, progress: Progress = silent) -> Results:
    """Load a server as planned and measure it.

    Every caller has a process of its own, so that what one of them does delays no other; their clock is that of
    the machine, and a run begins for all in one moment. A script that calls this needs the usual
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    out
        Folder for the report and the results document; None: write nothing.
    progress
        Told of every run.

    Raises
    ------
    WorkloadError
        The plan cannot be done: a model or the server is not there, or an input does not fit.
    DeviceError
        A process of the load generator died.
    """
    began = time.monotonic()
    if out is not None:
        make_folder(Path(out))
    runs = [
        (repeat, alone)
        for repeat in range(plan.repeats)
        for alone in (*((c.name for c in plan.callers) if plan.solo and len(plan.callers) > 1 else ()), None)
    ]
    phases: list[tuple[int, str | None, Mapping[str, Record]]] = []
    calls = {caller.name: Call({}, live, (plan, caller)) for caller in plan.callers}
    with ending_in_order(), Children(calls) as callers:
        described: Mapping[str, Described] = callers.answers(_READY_S + plan.patience_s)
        for done, (repeat, alone) in enumerate(runs):
            progress("loading", done, len(runs))
            callers.tell(Phase(alone, time.monotonic_ns() + _LEAD_NS, plan.seed + repeat))
            records = callers.answers(plan.duration_s + plan.patience_s + _READY_S)
            phases.append((repeat, alone, {name: r for name, r in records.items() if r is not None}))
        progress("loading", len(runs), len(runs))
        callers.tell(None)
    workload = plan.workload({name: d.criticality for name, d in described.items()})
    begin_us, end_us = plan.warm_up * 1e6, plan.duration_s * 1e6
    points: list[Point] = [point(workload, r, alone, repeat, begin_us, end_us) for repeat, alone, r in phases]
    results = Results(
        made=Made(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_s=round(time.monotonic() - began, 3),
            machine=machine(),
            versions=versions(),
        ),
        suite=LOAD,
        device=str(plan.server),
        simulated=False,
        notes=(*_shared(plan), *notes(points, [r for _, _, r in phases], end_us)),
        duration_s=plan.duration_s,
        warm_up_s=plan.warm_up,
        seed=plan.seed,
        critical_load=None,
        repeats=plan.repeats,
        kernels="",
        policies=(TOGETHER,),
        workloads=(workload,),
        programs={},
        points=relate(points),
    )
    if out is not None:
        from miriam.bench.report import write

        write(results, Path(out))
    return results


def _shared(plan: Plan) -> Iterator[str]:
    """Whose inputs were not sent."""
    names = [caller.name for caller in plan.callers if caller.shared_memory]
    if names:
        yield f"Inputs of {', '.join(names)} were in shared memory."
