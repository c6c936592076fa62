"""The page itself: what stands where, and the files that are written with it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from miriam.bench.report.latency import Row, latency_chart
from miriam.bench.report.plane import Mark, plane_chart
from miriam.bench.report.strip import Strip, strip
from miriam.bench.report.svg import rate_text, time_text
from miriam.bench.results import BASELINE, Point, Results, Step
from miriam.bench.summary import Spread, Summary, summaries, task_rows
from miriam.bench.trace import trace_json
from miriam.bench.workload import Workload
from miriam.errors import WorkloadError

__all__ = ["render", "write"]

_STYLES = ("sequential", "multistream", "priority", "barrier", "miriam")
_SPARE_STYLES = 5


def write(results: Results, out: Path | str) -> Path:
    """Write ``index.html``, ``results.json`` and, but for a server, ``trace.json`` into the folder ``out``.

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
        if not results.served:
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
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.0f} %"
    environment.filters["range"] = _range
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


def _range(spread: Spread | None, text: str) -> str:
    """The least and the most of several turns, each written with a format; empty if they do not differ."""
    if spread is None or spread.low == spread.high:
        return ""
    return f"{text.format(spread.low)}–{text.format(spread.high)}"


def _asset(name: str) -> str:
    return resources.files("miriam.bench.report").joinpath(name).read_text("utf-8")


def _style(policy: str, policies: Sequence[str]) -> str:
    """CSS class of a policy: its own, or one of the spare ones."""
    if policy in _STYLES:
        return policy
    others = [p for p in policies if p not in _STYLES]
    return f"other{others.index(policy) % _SPARE_STYLES}"


def _glance(results: Results) -> list[dict[str, Any]]:
    """Each policy over all workloads: geometric means, and the worst slowdown."""
    every = {(w.name, row.policy): row for w in results.workloads for row in summaries(results, w) if not row.alone}
    found: list[dict[str, Any]] = []
    for policy in results.policies:
        rows = {w.name: row for w in results.workloads if (row := every.get((w.name, policy))) is not None}
        slow = {name: row.slowdown.median for name, row in rows.items() if row.slowdown is not None}
        starved = [name for name, row in rows.items() if row.starved]
        ratios = [row.overall_vs_sequential for row in rows.values() if row.overall_vs_sequential]
        occupied = [row.occupancy for row in rows.values() if row.occupancy is not None]
        found.append(
            {
                "policy": policy,
                "style": _style(policy, results.policies),
                "slowdown": None if starved else _geometric_mean(list(slow.values())),
                "worst": None if starved else max(slow.values(), default=None),
                "worst_in": starved[0] if starved else max(slow, key=lambda w: slow[w], default=""),
                "starved": bool(starved),
                "behind": any(row.behind for row in rows.values()),
                "ratio": _geometric_mean(ratios),
                "occupancy": sum(occupied) / len(occupied) if occupied else None,
            }
        )
    longest = {
        key: max((f[key] for f in found if f[key] is not None), default=1.0) for key in ("slowdown", "ratio")
    }  # fmt: skip
    for entry in found:
        for key, largest in longest.items():
            entry[f"{key}_bar"] = 100 * (entry[key] or 0) / largest
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
    rows = summaries(results, workload)
    styles = {row.label: "alone" if row.alone else _style(row.policy, results.policies) for row in rows}
    name = f"workload {workload.name}"
    strips = _strips(results, workload, rows, styles)
    return {
        "key": workload.name,
        "workload": workload,
        "rows": rows,
        "styles": styles,
        "widest": max((r.slowdown.median for r in rows if r.slowdown), default=1.0),
        "most": max((r.overall_vs_sequential for r in rows if r.overall_vs_sequential), default=1.0),
        "stock": any(r.normal_vs_stock is not None for r in rows),
        "latency": _latency(rows, styles, f"Response times of the critical task, {name}"),
        "each": task_rows(results, workload) if results.served else (),
        "plane": _plane(rows, styles, f"Throughput and slowdown of each policy, {name}"),
        "strips": strips,
        "reports": [(r.policy, r.points[0].report) for r in rows if not r.alone and r.points[0].report],
        "data": {
            "tasks": [e.name for e in workload.entries],
            "bars": {s["policy"]: s["bars"] for s in strips},
        },
        "window_us": strips[0]["length_us"] if strips else 0.0,
    }


def _typical(row: Summary) -> Point:
    """Of several turns the one whose p99 of the critical task is in the middle."""

    def p99_us(point: Point) -> float:
        return point.critical.response.p99_us if point.critical and point.critical.response else math.inf

    return sorted(row.points, key=p99_us)[(len(row.points) - 1) // 2]


def _latency(rows: Sequence[Summary], styles: dict[str, str], title: str) -> str:
    drawn = []
    for row in rows:
        task = _typical(row).critical
        if task is not None and task.response is not None:
            drawn.append(
                Row(row.label, styles[row.label], task.response, row.slowdown.median if row.slowdown else None)
            )
    return latency_chart(drawn, title) if drawn else ""


def _plane(rows: Sequence[Summary], styles: dict[str, str], title: str) -> str:
    marks = [
        Mark(row.policy, styles[row.label], row.overall_vs_sequential, row.slowdown.median)
        for row in rows
        if row.overall_vs_sequential and row.slowdown is not None
    ]
    return plane_chart(marks, title) if marks else ""


def _strips(
    results: Results, workload: Workload, rows: Sequence[Summary], styles: dict[str, str]
) -> list[dict[str, Any]]:
    models = {e.name: e for e in workload.entries}

    def critical(task: str) -> bool:
        return models[task].critical

    def steps(task: str) -> Sequence[Step]:
        return results.programs[models[task].model]

    names = [row.policy for row in rows if not row.alone]
    shown = {"multistream", "miriam"} if {"multistream", "miriam"} <= set(names) else set(names[:2])
    found = []
    for row in rows:
        timeline = next((p.timeline for p in row.points if p.timeline is not None), None)
        if timeline is None:
            continue
        drawn: Strip = strip(timeline, critical, steps, f"What the device did under {row.label}, {workload.name}")
        found.append(
            {
                "policy": row.label,
                "style": styles[row.label],
                "shown": row.label in shown,
                "svg": drawn.svg,
                "bars": drawn.bars,
                "slowdown": row.slowdown.median if row.slowdown else None,
                "ratio": row.overall_vs_sequential,
                "length_us": timeline.length_us,
            }
        )
    return found
