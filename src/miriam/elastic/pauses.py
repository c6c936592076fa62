"""How often a lane is held down, and how inferences in it are best run for that.

Passing over a launch without running it takes the GPU time, too, and a program may have hundreds: those behind the one
where it was interrupted, and, when it goes on, those in front of it. Two things help, and neither is free.

An inference can be *cut* into spans of some launches, each with a loop of its own: it passes over launches of one span
alone. A span takes about 11 us (H200), interrupted or not.

What is interrupted can *stay* where it stopped until nobody holds the lane (:attr:`miriam.elastic.state.Lane.stays`):
launches are passed over behind the critical request in place of meanwhile, where they are in nobody's way. But that
time is lost, and must be little of the time until the next request.
"""

from __future__ import annotations

import itertools
import math

__all__ = ["PASSING_US", "SPAN", "Pauses", "spans"]

SPAN = 64  # launches
PASSING_US = 1.5  # for a launch that is passed over, as measured: 1.1 us in its graph, and more beside others
_CUT = 10  # times as long as passing over all launches takes: what lies between two pauses where cutting pays
_STAY = 20  # the same for one span, where staying costs little


def spans(launches: int) -> tuple[range, ...]:
    """The launches of a program in spans of about equal length, of one and a half ``SPAN`` at most.

    >>> [len(span) for span in spans(95)], [len(span) for span in spans(100)]
    ([95], [50, 50])
    """
    count = max(1, round(launches / SPAN))
    ends = [round(launches * i / count) for i in range(count + 1)]
    return tuple(range(begin, end) for begin, end in itertools.pairwise(ends))


class Pauses:
    """When a lane was held down.

    Attributes
    ----------
    free_us
        For how long nobody held it, as a mean over the last times; infinite before the first one.
    cut
        Whether what begins from now on is cut into spans.
    stays
        Whether what is interrupted stays where it stopped.
    """

    def __init__(self) -> None:
        self.free_us = math.inf
        self.cut = self.stays = False
        self._freed_us = 0.0

    def begin(self, now_us: float) -> None:
        """Somebody takes hold, and nobody did before."""
        free_us = now_us - self._freed_us
        self.free_us = free_us if math.isinf(self.free_us) else self.free_us + (free_us - self.free_us) / 8

    def end(self, now_us: float, launches: int) -> None:
        """Nobody holds it any more; ``launches`` is the number of those of the longest program in it, 0: nothing is."""
        self._freed_us = now_us
        if not launches:
            return
        whole_us = launches * PASSING_US
        self.free_us = min(self.free_us, 4 * _STAY * whole_us)  # a long rest is soon forgotten
        # Whoever is at a bound keeps to what he does.
        self.cut = len(spans(launches)) > 1 and self.free_us < _CUT * whole_us * (2 if self.cut else 1)
        span_us = PASSING_US * (max(map(len, spans(launches))) if self.cut else launches)
        self.stays = self.free_us > _STAY * span_us / (2 if self.stays else 1)
