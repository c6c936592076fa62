"""Small things that every chart needs: numbers, ticks, elements."""

from __future__ import annotations

import math
from html import escape

__all__ = ["caption", "element", "log_ticks", "number", "rate_text", "text", "ticks", "time_label", "time_text"]


def number(value: float) -> str:
    """A coordinate, two decimals at most."""
    shown = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if shown in ("-0", "") else shown


def element(name: str, content: str | None = None, **attributes: str | float | None) -> str:
    """An element around ``content``, which is markup.

    ``class_`` gives ``class``, other underlines hyphens; attributes that are None are left out.
    """
    parts = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{parts}/>" if content is None else f"<{name}{parts}>{content}</{name}>"


def caption(content: str) -> str:
    """What a screen reader says of the element that this stands first in."""
    return element("title", escape(content))


def text(x: float, y: float, content: str, class_: str = "", anchor: str | None = None) -> str:
    """A line of text."""
    return element("text", escape(content), x=x, y=y, class_=class_ or None, text_anchor=anchor)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round values (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``."""
    raw = (high - low) / max(count, 1)
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis, as many as have room."""
    if high / low < 2.5:
        return [t for t in ticks(low, high, 5) if t > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in decades for m in steps if low <= m * 10.0**e <= high]
        if len(found) <= 7:
            return found
    return found


def time_label(value_us: float, largest_us: float | None = None) -> str:
    """A time with its unit on an axis that reaches to ``largest_us``."""
    value, unit = _scaled(value_us, value_us if largest_us is None else largest_us)
    return f"{value:g} {unit}"


def time_text(value_us: float) -> str:
    """A measured time with its unit, three figures."""
    value, unit = _scaled(value_us, value_us)
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f} {unit}"


def rate_text(rate_per_s: float) -> str:
    """Requests by second, three figures or more."""
    return f"{rate_per_s:,.0f}" if rate_per_s >= 100 else f"{rate_per_s:.1f}"


def _scaled(value_us: float, largest_us: float) -> tuple[float, str]:
    if largest_us < 1e3:
        return round(value_us, 6), "µs"
    return (round(value_us / 1e3, 6), "ms") if largest_us < 1e6 else (round(value_us / 1e6, 6), "s")
