"""How far the simulated figures of a benchmark lie from those that were measured on a GPU.

    python benchmarks/model_check.py report/results.json [--device sim:h200/16] [--turns 1] [--share 0.5] [--out RECORD]
    python benchmarks/model_check.py --join RECORD RECORD... --out RECORD

Every point of the document is simulated with its workload, policy, seed, duration and warm-up, or a share of both,
but for those of the driver's own baselines, which the model has not. Figures are medians over the turns; an error
is simulated / measured - 1. Where a figure is not known on both sides, as the p99 of a task that finished nothing,
it is left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import miriam
from miriam.bench import Point, Results
from miriam.bench.outside import regime
from miriam.bench.point import Job, Sources
from miriam.bench.pool import processors, side_by_side
from miriam.errors import WorkloadError
from miriam.profile import ProfileSource
from miriam.program import Program

FIGURES = ("p50_us", "p99_us", "throughput_per_s")
Key = tuple[str, str, bool, str]
"""Workload, policy, whether the task was alone, name of the task."""


def check(
    measured: Results,
    device: str,
    *,
    turns: int | None = None,
    share: float = 1.0,
    jobs: int | None = None,
    programs: Callable[[str], Program] | None = None,
    profiles: Callable[[], ProfileSource] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> dict[str, Any]:
    """Give the record: rows of measured and simulated figures, and for each figure a summary.

    Parameters
    ----------
    device
        The simulated one.
    turns
        How many turns; None: all.
    share
        Of the time that was measured, from its begin on, that is simulated.
    jobs
        Processes; None: one for each processor.
    programs, profiles
        As in :func:`miriam.bench.run`.
    progress
        Called with (points done, points in all, label of the point that was done).
    """
    points = [p for p in measured.points if regime(p.policy) is None and (turns is None or p.repeat < turns)]
    if not points:
        raise WorkloadError(
            "no point in the document can be simulated: run one with policies that are not the driver's"
        )
    workloads = {w.name: w for w in measured.workloads}
    sources = Sources.usual(programs, profiles, None, kernels=measured.kernels, verify=False)
    todo = [
        Job(workloads[p.workload], p.policy, p.alone, p.repeat, device, share * measured.duration_s,
            share * measured.warm_up_s, measured.seed, False, sources)
        for p in points
    ]  # fmt: skip
    simulated = [outcome.point for outcome in side_by_side(todo, jobs or processors(), progress)]
    real, model = figures(points), figures(simulated)
    rows = [
        {"workload": workload, "policy": policy, "alone": alone, "task": task, "figure": figure,
         "measured": round(real[key][figure], 3), "simulated": round(model[key][figure], 3),
         "error": round(model[key][figure] / real[key][figure] - 1, 4)}
        for key in real
        for workload, policy, alone, task in (key,)
        for figure in FIGURES
        if figure in model[key] and real[key].get(figure)
    ]  # fmt: skip
    return {
        "what": "figures of a benchmark, simulated against measured",
        "measured_on": {"device": measured.device, "date": measured.made.date, **measured.made.machine},
        "simulated_on": device,
        "suite": measured.suite,
        "duration_s": measured.duration_s,
        "simulated_s": round(share * measured.duration_s, 6),
        "turns": len({p.repeat for p in points}),
        "miriam": miriam.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "summary": [
            summary(figure, alone, own)
            for figure in FIGURES
            for alone in (True, False)
            if (own := [r for r in rows if r["figure"] == figure and r["alone"] is alone])
        ],
        "rows": rows,
    }


def figures(points: Iterable[Point]) -> dict[Key, dict[str, float]]:
    """Give the median over the turns of each figure of each task."""
    found: dict[Key, dict[str, list[float]]] = {}
    for point in points:
        for task in point.tasks:
            own = found.setdefault((point.workload, point.policy, point.alone is not None, task.name), {})
            own.setdefault("throughput_per_s", []).append(task.throughput_per_s)
            if task.response is not None:
                own.setdefault("p50_us", []).append(task.response.p50_us)
                own.setdefault("p99_us", []).append(task.response.p99_us)
    return {key: {name: statistics.median(values) for name, values in own.items()} for key, own in found.items()}


def joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Give one record of several: the records, and for each figure a summary over all of them."""
    rows = [row for record in records for row in record["rows"]]
    return {
        "what": "figures of benchmarks, simulated against measured",
        "summary": [
            summary(figure, alone, own)
            for figure in FIGURES
            for alone in (True, False)
            if (own := [r for r in rows if r["figure"] == figure and r["alone"] is alone])
        ],
        "parts": records,
    }


def summary(figure: str, alone: bool, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Give median, 90th percentile and the largest of the errors, without their signs."""
    sizes = [abs(row["error"]) for row in rows]
    largest = max(rows, key=lambda row: abs(row["error"]))
    return {
        "figure": figure,
        "alone": alone,
        "rows": len(rows),
        "median": round(statistics.median(sizes), 4),
        "p90": round(float(np.quantile(sizes, 0.9, method="inverted_cdf")), 4),
        "largest": largest["error"],
        "largest_in": f"{largest['workload']}, {largest['policy']}, {largest['task']}",
    }


def model_of(device: str) -> str:
    """The simulated device for the H200 that a document was measured on: ``sim:h200/16`` for ``cuda:0/16``."""
    _, slash, sms = device.partition("/")
    return f"sim:h200{slash}{sms}"


def main() -> None:
    """Check a document, or join records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--join", action="store_true", help="make one record of several that were made before")
    parser.add_argument("--device", help="that of the document on a simulated H200, if left out")
    parser.add_argument("--turns", type=int, help="all if left out")
    parser.add_argument("--share", type=float, default=1.0, help="of the measured time, that is simulated (1)")
    parser.add_argument("--out", type=Path, help="model-check-SUITE-SMS.json among the records, if left out")
    args = parser.parse_args()
    if args.join or len(args.results) > 1:
        if not (args.join and args.out):
            parser.error("name one document, or join records with --join and --out")
        write(joined([json.loads(path.read_text("utf-8")) for path in args.results]), args.out)
        return
    measured = Results.load(args.results[0])
    device = args.device or model_of(measured.device)
    record = check(
        measured,
        device,
        turns=args.turns,
        share=args.share,
        progress=lambda done, total, label: print(f"{done}/{total} {label}"),
    )
    name = f"model-check-{measured.suite}-{device.removeprefix('sim:').replace('/', '-')}.json"
    write(record, args.out or Path(__file__).parent / "records" / name)


def write(record: dict[str, Any], out: Path) -> None:
    """Print a short table and write the record."""
    print(f"\n{'figure':18} {'':9} {'rows':>4} {'median':>7} {'p90':>7} {'largest':>8}")
    for row in record["summary"]:
        kind = "alone" if row["alone"] else "together"
        print(f"{row['figure']:18} {kind:9} {row['rows']:4} {row['median']:7.1%} {row['p90']:7.1%} "
              f"{row['largest']:+8.1%} {row['largest_in']}")  # fmt: skip
    out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(out)


if __name__ == "__main__":
    main()
