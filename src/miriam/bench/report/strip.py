"""Chart: a few milliseconds of the device, critical launches above, shards below, threads between."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from miriam.bench.report.area import areas
from miriam.bench.report.svg import caption, element, number, text, ticks, time_label
from miriam.bench.results import Step
from miriam.bench.timeline import Bar, Served, Timeline

__all__ = ["Strip", "kernel_label", "strip"]

_WIDTH, _LEFT, _RIGHT = 1140, 104, 52
_PLOT = _WIDTH - _LEFT - _RIGHT
_TOP, _QUEUE, _UPPER, _AREA, _LOWER = 2.0, 20, 20, 132, 17
_MAX_ROWS = 6

_WORDS = (
    ("convolution", "conv"), ("addmm", "matmul"), ("bmm", "matmul"), ("mm", "matmul"), ("max_pool", "pool"),
    ("avg_pool", "pool"), ("mean", "mean"), ("softmax", "softmax"), ("layer_norm", "norm"), ("batch_norm", "norm"),
    ("attention", "attention"), ("tanh", "gates"), ("sigmoid", "gates"), ("cat", "cat"), ("relu", "relu"),
    ("add", "add"), ("copy", "copy"), ("fill", "fill"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Strip:
    """A drawn timeline: the picture, and the rows that tooltips are made of."""

    svg: str
    bars: list[list[object]]


def kernel_label(kernel: str) -> str:
    """A short word for what a kernel does, from its name."""
    name = kernel.lower()
    for part, word in _WORDS:
        if re.search(rf"(^|[^a-z]){part}", name):
            return word
    return re.sub(r"^triton_[a-z]+_fused_+|_\d+$", "", name)[:10] or name[:10]


def strip(
    timeline: Timeline, critical: Callable[[str], bool], steps: Callable[[str], Sequence[Step]], title: str
) -> Strip:
    """Draw a timeline.

    Parameters
    ----------
    critical
        Whether the task of a name is above the normal level.
    steps
        The launches of the program of a task.
    """
    urgent = [critical(name) for name in timeline.tasks]
    length_us = timeline.length_us

    def kind_of(bar: Bar) -> str:
        return "c" if urgent[bar.task] else "n" if bar.workers is None else "e"

    def x(time_us: float) -> float:
        return time_us * _PLOT / length_us

    upper = [b for b in timeline.bars if urgent[b.task]]
    lower = [b for b in timeline.bars if not urgent[b.task]]
    upper_rows, lower_rows = _pack(upper), _pack(lower)
    upper_y = _TOP + _QUEUE
    area_y = upper_y + _UPPER * max(1, _count(upper_rows)) + 6
    lower_y = area_y + _AREA + 6
    foot = lower_y + _LOWER * max(1, _count(lower_rows)) + 4

    moving = [areas(timeline, kind_of, x, area_y, _AREA)]
    for bars, rows, y, height in ((upper, upper_rows, upper_y, _UPPER), (lower, lower_rows, lower_y, _LOWER)):
        moving += [
            _bar(bar, kind_of(bar), x, y + height * row, height - 3) for bar, row in zip(bars, rows, strict=True)
        ]
    waits, markers = _queue(timeline, urgent, x)
    view = element(
        "svg",
        element("g", "".join(moving) + waits, class_="zoom") + _names(upper, upper_rows, timeline, steps, x) + markers,
        x=_LEFT, y=0, width=_PLOT, height=foot, viewBox=f"0 0 {_PLOT} {number(foot)}", class_="view",
    )  # fmt: skip
    svg = element(
        "svg",
        caption(title)
        + _frame(upper_y, area_y, lower_y)
        + view
        + _scale(area_y, foot)
        + element("g", "".join(_tick(t, x, foot, length_us) for t in ticks(0, length_us, 8)),
                  class_="ticks", data_y=number(foot))
        + element("line", y1=_TOP, y2=foot, class_="cursor", visibility="hidden"),
        viewBox=f"0 0 {_WIDTH} {number(foot + 24)}", role="img", class_="strip", data_length=number(length_us),
    )  # fmt: skip
    return Strip(svg, [_hint(bar, timeline, steps) for bar in upper + lower])


def _frame(upper_y: float, area_y: float, lower_y: float) -> str:
    """What does not move: the empty device and the names of the rows."""
    edge, middle = _LEFT - 10, area_y + _AREA / 2
    return (
        element("rect", x=_LEFT, y=area_y, width=_PLOT, height=_AREA, class_="free")
        + text(edge, _TOP + 13, "requests", "tick", "end")
        + text(edge, upper_y + 13, "critical", "label c", "end")
        + text(edge, middle - 4, "threads of", "label", "end")
        + text(edge, middle + 12, "the device", "label", "end")
        + text(edge, lower_y + 12, "normal", "label n", "end")
    )


def _scale(area_y: float, foot: float) -> str:
    right = _LEFT + _PLOT
    parts = [element("line", x1=_LEFT, x2=right, y1=foot, y2=foot, class_="rule")]
    for share in (1.0, 0.5, 0.0):
        y = area_y + _AREA * (1 - share)
        parts.append(text(right + 6, y + 4, f"{100 * share:.0f} %", "tick"))
        if share:
            parts.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
    return "".join(parts)


def _tick(time_us: float, x: Callable[[float], float], foot: float, length_us: float) -> str:
    mark = element("line", y1=0, y2=5, class_="rule") + text(0, 18, time_label(time_us, length_us), "tick", "middle")
    return element("g", mark, transform=f"translate({number(_LEFT + x(time_us))} {number(foot)})")


def _bar(bar: Bar, kind: str, x: Callable[[float], float], y: float, height: float) -> str:
    width = max(x(bar.end_us - bar.begin_us), 0.3)
    return element("rect", x=x(bar.begin_us), y=y, width=width, height=height, class_=f"bar {kind}")


def _pack(bars: Sequence[Bar]) -> list[int]:
    """A row for each bar such that bars of one row do not overlap, as far as there are rows."""
    ends: list[float] = []
    rows = []
    for bar in bars:
        row = next((i for i, end in enumerate(ends) if end <= bar.begin_us + 1e-3), len(ends))
        if row == len(ends) and row < _MAX_ROWS:
            ends.append(bar.end_us)
        else:
            row = min(row, _MAX_ROWS - 1)
            ends[row] = max(ends[row], bar.end_us)
        rows.append(row)
    return rows


def _count(rows: Sequence[int]) -> int:
    return max(rows, default=-1) + 1


def _hint(bar: Bar, timeline: Timeline, steps: Callable[[str], Sequence[Step]]) -> list[object]:
    """What a tooltip shows: task, request, launch, kernel, begin, length, blocks, workers, threads."""
    name = timeline.tasks[bar.task]
    step = steps(name)[bar.launch]
    blocks = f"all {step.blocks} blocks"
    if bar.first_block is not None:
        blocks = f"blocks {bar.first_block} to {bar.first_block + bar.blocks - 1} of {step.blocks}"
    return [
        bar.task, bar.request, bar.launch, kernel_label(step.kernel), round(bar.begin_us, 1),
        round(bar.end_us - bar.begin_us, 1), blocks, bar.workers, bar.threads or step.threads,
    ]  # fmt: skip


def _queue(timeline: Timeline, urgent: Sequence[bool], x: Callable[[float], float]) -> tuple[str, str]:
    """Critical requests: a dotted line while one waits, a solid one while it runs; markers on top."""
    lines, markers = [], []
    y = _TOP + 10
    for served in timeline.requests:
        if not urgent[served.task]:
            continue
        begin, start, finish = _clipped(served, timeline.length_us)
        lines.append(element("line", x1=x(begin), x2=x(start), y1=y, y2=y, class_="wait"))
        lines.append(element("line", x1=x(start), x2=x(finish), y1=y, y2=y, class_="serve"))
        if 0 <= served.arrival_us <= timeline.length_us:
            markers.append(_marker(served.arrival_us, x, y - 9, "M-4.5 0h9L0 8z"))
        if served.finish_us is not None and served.finish_us <= timeline.length_us:
            markers.append(_marker(served.finish_us, x, y - 5, "M-1 0h2v10h-2z"))
    return "".join(lines), element("g", "".join(markers), class_="markers")


def _marker(time_us: float, x: Callable[[float], float], y: float, shape: str) -> str:
    place = f"translate({number(x(time_us))} {number(y)})"
    return element("path", d=shape, transform=place, data_t=number(time_us), data_y=number(y))


def _clipped(served: Served, length_us: float) -> tuple[float, float, float]:
    start = length_us if served.start_us is None else min(max(served.start_us, 0.0), length_us)
    finish = length_us if served.finish_us is None else min(served.finish_us, length_us)
    return max(served.arrival_us, 0.0), start, finish


def _names(
    bars: Sequence[Bar],
    rows: Sequence[int],
    timeline: Timeline,
    steps: Callable[[str], Sequence[Step]],
    x: Callable[[float], float],
) -> str:
    """Labels of critical launches; those that do not fit wait, hidden, for a closer look."""
    parts = []
    for bar, row in zip(bars, rows, strict=True):
        label = f"{bar.launch} {kernel_label(steps(timeline.tasks[bar.task])[bar.launch].kernel)}"
        length_us = bar.end_us - bar.begin_us
        hidden = None if x(length_us) > 6.2 * len(label) + 6 else "hidden"
        y = _TOP + _QUEUE + _UPPER * row + 12.5
        parts.append(
            element("text", escape(label), x=x(bar.begin_us) + 4, y=y, class_="name", visibility=hidden,
                    data_t=number(bar.begin_us), data_d=number(length_us))
        )  # fmt: skip
    return element("g", "".join(parts), class_="names")
