"""Chart: how the response times of the critical task are distributed, a row for each policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from miriam.bench.metrics import PROBABILITIES, Latency
from miriam.bench.report.svg import caption, element, log_ticks, number, text, time_label, time_text

__all__ = ["Row", "latency_chart"]

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BOTTOM = 560, 112, 84, 30, 46, 40
_SMOOTHING = 0.012  # of the axis; only the shape is smoothed, the ticks stand at exact quantiles


@dataclass(frozen=True, slots=True)
class Row:
    """One distribution: its label, CSS class, data, and p99 against alone."""

    label: str
    style: str
    data: Latency
    slower: float | None


def latency_chart(rows: list[Row], title: str) -> str:
    """Smoothed densities over a logarithmic time axis, with exact p50 and p99."""
    low = min(r.data.curve_us[0] for r in rows)
    high = max(r.data.max_us for r in rows)
    middle, half = math.sqrt(low * high), max(math.sqrt(high / low), 1.25) * 1.06
    low, high = middle / half, middle * half
    plot = _WIDTH - _LEFT - _RIGHT
    height = _TOP + _ROW * len(rows) + _BOTTOM
    foot = _TOP + _ROW * len(rows)

    def x(value_us: float) -> float:
        return _LEFT + plot * math.log(value_us / low) / math.log(high / low)

    marks = log_ticks(low, high)
    parts = [
        element("line", x1=x(t), x2=x(t), y1=_TOP - 6, y2=foot, class_="grid")
        + text(x(t), foot + 17, time_label(t, high), "tick", "middle")
        for t in marks
    ]
    parts.append(text(_LEFT + plot / 2, height - 4, "response time, arrival to finish (log scale)", "axis", "middle"))
    parts.append(text(_WIDTH - 4, 14, "p99 against alone", "axis", "end"))
    alone = next((r for r in rows if r.style == "alone"), None)
    if alone is not None:
        at = x(alone.data.p99_us)
        parts.append(element("line", x1=at, x2=at, y1=_TOP - 8, y2=foot, class_="reference"))
        parts.append(text(at, _TOP - 14, "p99 alone", "tick", "middle"))
    for i, row in enumerate(rows):
        base = _TOP + _ROW * (i + 1) - 8
        parts.append(_row(row, base, x, low, high, plot))
    return element("svg", caption(title) + "".join(parts), viewBox=f"0 0 {_WIDTH} {height}", role="img")


def _row(row: Row, base: float, x: Callable[[float], float], low: float, high: float, plot: float) -> str:
    d = row.data
    shape = _density(d, low, high)
    points = " ".join(
        f"{number(_LEFT + plot * i / (shape.size - 1))},{number(base - (_ROW - 16) * v)}" for i, v in enumerate(shape)
    )
    hint = (
        f"{row.label}: p50 {time_text(d.p50_us)}, p95 {time_text(d.p95_us)}, p99 {time_text(d.p99_us)}, "
        f"p99.9 {time_text(d.p999_us)}, max {time_text(d.max_us)} of {d.count:,} requests"
    )
    body = [
        caption(hint),
        element("rect", x=0, y=base - _ROW + 8, width=_WIDTH, height=_ROW, class_="hit"),
        element("line", x1=_LEFT, x2=_LEFT + plot, y1=base, y2=base, class_="rule"),
        element("polygon", points=f"{_LEFT},{number(base)} {points} {_LEFT + plot},{number(base)}", class_="shape"),
        element("line", x1=x(d.p50_us), x2=x(d.p50_us), y1=base, y2=base - 12, class_="p50"),
        element("line", x1=x(d.p99_us), x2=x(d.p99_us), y1=base + 4, y2=base - 20, class_="p99"),
        element("circle", cx=x(d.max_us), cy=base, r=2.4, class_="max"),
        text(_LEFT - 10, base - 4, row.label, "label", "end"),
        text(
            _WIDTH - 4,
            base - 4,
            f"{row.slower:.2f}×" if row.slower is not None else time_text(d.p99_us),
            "value",
            "end",
        ),
    ]
    return element("g", "".join(body), class_=f"row p-{row.style}", data_tip=hint)


def _density(data: Latency, low: float, high: float) -> NDArray[np.float64]:
    """Density over the logarithm of the latency, largest value 1, shape (200,)."""
    probabilities = np.array(PROBABILITIES)
    weights = np.diff(np.concatenate(([0.0], (probabilities[1:] + probabilities[:-1]) / 2, [1.0])))
    at = np.log(np.array(data.curve_us) / low) / math.log(high / low)
    grid = np.linspace(0, 1, 240)
    density = np.exp(-0.5 * ((grid[:, None] - at[None, :]) / _SMOOTHING) ** 2) @ weights
    shaped: NDArray[np.float64] = density / density.max()
    return shaped
