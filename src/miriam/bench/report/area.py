"""Part of a chart: the threads that tasks hold, as filled step curves stacked on one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from miriam.bench.report.svg import element, number
from miriam.bench.timeline import Bar, Timeline

__all__ = ["KINDS", "areas", "shares"]

KINDS = "cen"
"""From the bottom up: critical, normal in elastic form, normal in original form."""

_VISIBLE = 5e-4  # of the height


def areas(
    timeline: Timeline, kind_of: Callable[[Bar], str], x: Callable[[float], float], top: float, height: float
) -> str:
    """Filled step curves, one for each kind of bar, of the share of the device's threads."""
    edges = np.append(timeline.time_us, timeline.length_us)
    floor = np.zeros(len(timeline.time_us))
    parts = []
    for kind, share in zip(KINDS, shares(timeline, kind_of), strict=True):
        path = _path(edges, floor, floor + share, x, lambda s: number(round(top + height * (1 - min(s, 1.0)), 1)))
        if path:
            parts.append(element("path", d=path, class_=f"area {kind}"))
        floor = floor + share
    return "".join(parts)


def shares(timeline: Timeline, kind_of: Callable[[Bar], str]) -> NDArray[np.float64]:
    """Shares of the device's threads by kind, shape (kinds, steps).

    The runs of a lane follow one another, so its threads at a moment belong to the bar that began
    last before it.
    """
    times = np.array(timeline.time_us)
    found = np.zeros((len(KINDS), times.size))
    for lane, resident in enumerate(timeline.resident):
        bars = [b for b in timeline.bars if b.lane == lane]
        if not bars:
            continue
        begins = np.array([b.begin_us for b in bars])
        kinds = np.array([KINDS.index(kind_of(b)) for b in bars])
        covering = np.maximum(np.searchsorted(begins, times + 1e-3, side="right") - 1, 0)
        np.add.at(found, (kinds[covering], np.arange(times.size)), np.array(resident) / timeline.capacity)
    return found


def _path(
    edges: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    x: Callable[[float], float],
    y: Callable[[float], str],
) -> str:
    """Outlines of the space between two step functions, where there is any."""
    there = np.flatnonzero(np.diff(np.concatenate(([False], high - low >= _VISIBLE, [False]))))
    return "".join(
        _outline(edges[i : j + 1], low[i:j], high[i:j], x, y) for i, j in zip(there[::2], there[1::2], strict=True)
    )


def _outline(
    edges: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    x: Callable[[float], float],
    y: Callable[[float], str],
) -> str:
    last = high.size - 1
    forth = _stairs(edges[1:-1], [y(v) for v in high], x)
    back = _stairs(edges[-2:0:-1], [y(v) for v in low[::-1]], x)
    begin, end = number(x(edges[0])), number(x(edges[last + 1]))
    return f"M{begin} {y(high[0])}{forth}H{end}V{y(low[last])}{back}H{begin}Z"


def _stairs(turns: NDArray[np.float64], heights: Sequence[str], x: Callable[[float], float]) -> str:
    return "".join(
        f"H{number(x(turns[k]))}V{heights[k + 1]}" for k in range(len(turns)) if heights[k + 1] != heights[k]
    )
