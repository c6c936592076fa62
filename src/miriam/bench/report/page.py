"""The page itself: what stands where, and the files that are written with it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from miriam.bench.report.latency import Row, latency_chart
from miriam.bench.report.plane import Mark, plane_chart
from miriam.bench.report.strip import Strip, strip
from miriam.bench.report.svg import rate_text, time_text
from miriam.bench.results import BASELINE, Point, Results, Step
from miriam.bench.trace import trace_json
from miriam.bench.workload import Workload
from miriam.errors import WorkloadError

__all__ = ["render", "write"]

_STYLES = ("sequential", "multistream", "priority", "barrier", "miriam")
_SPARE_STYLES = 3
_FEW = 100  # with fewer requests p99 is the largest latency


def write(results: Results, out: Path | str) -> Path:
    """Write ``index.html``, ``results.json`` and ``trace.json`` into the folder ``out``.

    Returns
    -------
    Path
        Of the page.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        page = out / "index.html"
        page.write_text(render(results), "utf-8")
        (out / "trace.json").write_text(json.dumps(trace_json(results), separators=(",", ":")), "utf-8")
    except OSError as error:
        raise WorkloadError(f"cannot write the report into {out}: {error.strerror or error}") from error
    results.save(out / "results.json")
    return page


def render(results: Results) -> str:
    """The report as one HTML page that needs nothing else."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["time"] = lambda value: "–" if value is None else time_text(value)
    environment.filters["rate"] = rate_text
    environment.filters["times"] = lambda value: "–" if value is None else f"{value:.2f}×"
    environment.filters["percent"] = lambda value: f"{100 * value:.0f} %"
    sections = [_section(results, w) for w in results.workloads]
    return environment.get_template("page.html.j2").render(
        r=results,
        style=_asset("style.css"),
        script=_asset("script.js"),
        glance=_glance(results),
        lead=_lead(results),
        sections=sections,
        few=any(row.few for s in sections for row in s["rows"]),
        behind=any(row.behind for s in sections for row in s["rows"]),
        # "</" would end the script element; in JSON "<\/" means the same
        data=json.dumps({s["key"]: s["data"] for s in sections}, separators=(",", ":")).replace("</", "<\\/"),
    )


def _asset(name: str) -> str:
    return resources.files("miriam.bench.report").joinpath(name).read_text("utf-8")


def _style(policy: str, policies: Sequence[str]) -> str:
    """CSS class of a policy: its own, or one of the spare ones."""
    if policy in _STYLES:
        return policy
    others = [p for p in policies if p not in _STYLES]
    return f"other{others.index(policy) % _SPARE_STYLES}"


@dataclass(frozen=True, slots=True)
class _TableRow:
    label: str
    style: str
    p50_us: float | None
    p99_us: float | None
    slowdown: float | None
    few: bool
    behind: bool
    normal_per_s: float | None
    of_alone: float | None
    overall_per_s: float
    ratio: float | None
    missed: int | None
    occupancy: float


def _row(point: Point, style: str, reference: float | None) -> _TableRow:
    task = point.critical
    response = task.response if task else None
    return _TableRow(
        label=point.label if point.alone is None else "alone",
        style=style,
        p50_us=response.p50_us if response else None,
        p99_us=response.p99_us if response else None,
        slowdown=reference,
        few=response is not None and response.count < _FEW,
        behind=response is not None and task is not None and task.behind,
        normal_per_s=point.normal_per_s if point.alone is None else None,
        of_alone=point.normal_vs_alone,
        overall_per_s=point.overall_per_s,
        ratio=point.overall_vs_sequential,
        missed=point.missed,
        occupancy=point.occupancy,
    )


def _slowdown(point: Point) -> float | None:
    task = point.critical
    return task.slowdown.p99 if task and task.slowdown else None


def _glance(results: Results) -> list[dict[str, Any]]:
    """Each policy over all workloads: geometric means, and the worst slowdown."""
    found: list[dict[str, Any]] = []
    for policy in results.policies:
        points = [p for w in results.workloads if (p := results.point(w.name, policy)) is not None]
        slow = {p.workload: s for p in points if (s := _slowdown(p)) is not None}
        starved = [p.workload for p in points if p.critical and p.critical.arrived and p.critical.response is None]
        ratios = [p.overall_vs_sequential for p in points if p.overall_vs_sequential]
        found.append(
            {
                "policy": policy,
                "style": _style(policy, results.policies),
                "slowdown": None if starved else _geometric_mean(list(slow.values())),
                "worst": None if starved else max(slow.values(), default=None),
                "worst_in": starved[0] if starved else max(slow, key=lambda w: slow[w], default=""),
                "starved": bool(starved),
                "behind": any(p.critical.behind for p in points if p.critical),
                "ratio": _geometric_mean(ratios),
                "occupancy": sum(p.occupancy for p in points) / len(points) if points else 0.0,
            }
        )
    longest = {
        key: max((f[key] for f in found if f[key] is not None), default=1.0) for key in ("slowdown", "ratio")
    }  # fmt: skip
    for row in found:
        for key, largest in longest.items():
            row[f"{key}_bar"] = 100 * (row[key] or 0) / largest
    return found


def _geometric_mean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def _lead(results: Results) -> str:
    """One sentence with the main result of the most protective policy that we call ours."""
    row = next((g for g in _glance(results) if g["policy"] == "miriam"), None)
    if row is None or row["slowdown"] is None:
        return ""
    several = len(results.workloads) > 1
    least = "at least " if row["behind"] else ""
    text = f"Under miriam the critical task's p99 is {least}{row['slowdown']:.2f} times what it is alone"
    text += f" (geometric mean; worst {row['worst']:.2f} times, in {row['worst_in']})" if several else ""
    if row["ratio"] is None:
        return text + "."
    change = round(100 * (row["ratio"] - 1))
    served = f"{abs(change)} % {'more' if change > 0 else 'fewer'} requests than" if change else "as many requests as"
    return f"{text}, and the device serves {served} under {BASELINE}."


def _section(results: Results, workload: Workload) -> dict[str, Any]:
    """Everything that the page says of one workload."""
    alone = results.alone(workload.name, workload.critical.name) if workload.critical else None
    shared = [p for name in results.policies if (p := results.point(workload.name, name)) is not None]
    styles = {p.policy: _style(p.policy, results.policies) for p in shared}
    rows = [_row(alone, "alone", None)] if alone else []
    rows += [_row(p, styles[p.policy], _slowdown(p)) for p in shared]
    name = f"workload {workload.name}"
    strips = _strips(results, workload, [*([alone] if alone else []), *shared], styles)
    return {
        "key": workload.name,
        "workload": workload,
        "rows": rows,
        "widest": max((r.slowdown for r in rows if r.slowdown), default=1.0),
        "most": max((r.ratio for r in rows if r.ratio), default=1.0),
        "latency": _latency(alone, shared, styles, f"Response times of the critical task, {name}"),
        "plane": _plane(shared, styles, f"Throughput and slowdown of each policy, {name}"),
        "strips": strips,
        "reports": [(p.policy, p.report) for p in shared if p.report],
        "data": {
            "tasks": [e.name for e in workload.entries],
            "bars": {s["policy"]: s["bars"] for s in strips},
        },
        "window_us": strips[0]["length_us"] if strips else 0.0,
    }


def _latency(alone: Point | None, shared: Sequence[Point], styles: dict[str, str], title: str) -> str:
    rows = []
    for point in [*([alone] if alone else []), *shared]:
        task = point.critical
        if task is not None and task.response is not None:
            label, style = ("alone", "alone") if point.alone else (point.policy, styles[point.policy])
            rows.append(Row(label, style, task.response, None if point.alone else _slowdown(point)))
    return latency_chart(rows, title) if rows else ""


def _plane(shared: Sequence[Point], styles: dict[str, str], title: str) -> str:
    marks = [
        Mark(p.policy, styles[p.policy], p.overall_vs_sequential, slower)
        for p in shared
        if p.overall_vs_sequential and (slower := _slowdown(p)) is not None
    ]
    return plane_chart(marks, title) if marks else ""


def _strips(
    results: Results, workload: Workload, points: Sequence[Point], styles: dict[str, str]
) -> list[dict[str, Any]]:
    models = {e.name: e for e in workload.entries}

    def critical(task: str) -> bool:
        return models[task].critical

    def steps(task: str) -> Sequence[Step]:
        return results.programs[models[task].model]

    names = [p.policy for p in points if p.alone is None]
    shown = {"multistream", "miriam"} if {"multistream", "miriam"} <= set(names) else set(names[:2])
    found = []
    for point in points:
        if point.timeline is None:
            continue
        label = point.policy if point.alone is None else "alone"
        drawn: Strip = strip(point.timeline, critical, steps, f"What the device did under {label}, {workload.name}")
        found.append(
            {
                "policy": label,
                "style": styles[point.policy] if point.alone is None else "alone",
                "shown": label in shown,
                "svg": drawn.svg,
                "bars": drawn.bars,
                "slowdown": _slowdown(point),
                "ratio": point.overall_vs_sequential,
                "length_us": point.timeline.length_us,
            }
        )
    return found
