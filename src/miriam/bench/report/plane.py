"""Chart: what a policy costs the critical task against what it brings for the device as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

from miriam.bench.report.svg import caption, element, log_ticks, number, text, ticks

__all__ = ["Mark", "plane_chart"]

HEADLINE_THROUGHPUT, HEADLINE_SLOWDOWN = 1.92, 1.10
"""Of the abstract of arXiv 2307.04339: throughput +92 %, latency overhead below 10 %."""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 346, 58, 18, 22, 48
_SHAPES = {
    "sequential": "M-5-5h10v10h-10z",
    "multistream": "M0-6.5L6.5 5h-13z",
    "priority": "M0 6.5L6.5-5h-13z",
    "barrier": "M0-7L7 0 0 7-7 0z",
}
_CIRCLE = "M-6.5 0a6.5 6.5 0 1 0 13 0a6.5 6.5 0 1 0-13 0z"


@dataclass(frozen=True, slots=True)
class Mark:
    """One policy: overall throughput against ``sequential``, p99 of the critical task against alone."""

    policy: str
    style: str
    throughput: float
    slowdown: float


def plane_chart(marks: list[Mark], title: str) -> str:
    """All policies in one plane; right is more work done, down is less harm."""
    left = min(0.95, *(m.throughput for m in marks)) - 0.15
    right = max(2.15, *(m.throughput for m in marks)) * 1.06
    top = max(1.35, *(m.slowdown for m in marks)) * 1.08
    bottom = min(0.98, *(m.slowdown for m in marks)) * 0.99
    logarithmic = top > 2
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + wide * (value - left) / (right - left)

    def y(value: float) -> float:
        share = math.log(value / bottom) / math.log(top / bottom) if logarithmic else (value - bottom) / (top - bottom)
        return _TOP + high * (1 - share)

    foot = _TOP + high
    parts = []
    for t in ticks(left, right, 6):
        parts.append(element("line", x1=x(t), x2=x(t), y1=_TOP, y2=foot, class_="grid"))
        parts.append(text(x(t), foot + 17, f"{t:.3g}×", "tick", "middle"))
    for t in log_ticks(bottom, top) if logarithmic else ticks(bottom, top, 5):
        parts.append(element("line", x1=_LEFT, x2=_LEFT + wide, y1=y(t), y2=y(t), class_="grid"))
        parts.append(text(_LEFT - 8, y(t) + 4, f"{t:.3g}×", "tick", "end"))
    edge = x(HEADLINE_THROUGHPUT)
    parts.append(
        element(
            "rect",
            x=edge,
            y=y(HEADLINE_SLOWDOWN),
            width=_LEFT + wide - edge,
            height=foot - y(HEADLINE_SLOWDOWN),
            class_="headline",
        )
    )
    parts.append(text(_LEFT + wide - 6, y(HEADLINE_SLOWDOWN) - 7, "the paper's headline: +92 %, < 10 %", "tick", "end"))
    parts.append(element("line", x1=_LEFT, x2=_LEFT + wide, y1=y(1), y2=y(1), class_="reference"))
    across = "overall throughput against sequential → more is better"
    upwards = "critical p99 against alone → less is better"
    turned = f"translate(14 {number(_TOP + high / 2)}) rotate(-90)"
    parts.append(text(_LEFT + wide / 2, _HEIGHT - 6, across, "axis", "middle"))
    parts.append(element("text", upwards, class_="axis", text_anchor="middle", transform=turned))
    taken = [_box(x(m.throughput) - 7, y(m.slowdown), 14) for m in marks]
    taken.append(_box(_LEFT + wide - 210, y(HEADLINE_SLOWDOWN) - 11, 204))
    for mark in sorted(marks, key=lambda m: m.slowdown):
        parts.append(_mark(mark, x(mark.throughput), y(mark.slowdown), taken))
    return element("svg", caption(title) + "".join(parts), viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img")


def _box(left: float, middle: float, width: float) -> tuple[float, float, float, float]:
    return left, middle - 8, left + width, middle + 8


def _mark(mark: Mark, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> str:
    """A shape and its label, where it covers as little as can be of the boxes in ``taken``."""
    width = 7.6 * len(mark.policy)
    places = [
        (left, y + up)
        for up in (0, -17, 17, -34, 34)
        for left in (x + 12, x - 12 - width, x - width / 2)
        if (up or left != x - width / 2) and _LEFT <= left <= _WIDTH - width
    ]
    left, middle = min(places, key=lambda place: sum(_overlap(_box(place[0], place[1], width), box) for box in taken))
    taken.append(_box(left, middle, width))
    hint = f"{mark.policy}: throughput {mark.throughput:.2f}×, critical p99 {mark.slowdown:.2f}×"
    shape = element("path", d=_SHAPES.get(mark.policy, _CIRCLE), transform=f"translate({number(x)} {number(y)})")
    return element(
        "g",
        caption(hint) + shape + text(left, middle + 4.5, mark.policy, "label"),
        class_=f"mark p-{mark.style}",
        data_tip=hint,
    )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Area that two boxes (left, top, right, bottom) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
