"""The control of a width by what it does: as wide as a share of late requests allows."""

from __future__ import annotations

import math

__all__ = ["Width"]

_LATE = 0.008  # share of requests that may be late; a little under 1 %, the rest is for trying all SMs
_GAIN = 0.6  # how far a late request narrows, in logarithms: to a little more than half
_FAST = 8.0  # how much faster it widens on the way back to where it was
_NEAR = 20  # requests within which a second late one is no accident
_TRY = 500  # requests in time after which all SMs are tried
_LEAST = math.log(0.05)  # a pause, from which it takes a while to come back


class Width:
    """SMs that may be left to others, steered by which requests were late.

    Stochastic quantile tracking (Robbins and Monro, "A Stochastic Approximation Method", 1951) of the
    logarithm of the width: a request in time widens by ``late * gain``, a late one narrows by
    ``(1 - late) * gain``, so that the width comes to rest where the share ``late`` of requests is late.
    Two late ones close together are no accident: the width goes to zero, and back fast, as far as half of
    where it was.

    More SMs do not always do more harm: work that is packed on few SMs slows these down more than the
    same work on all of them. So all SMs are tried at the start, and again from time to time; the
    first late request ends that, and counts for nothing else.

    Parameters
    ----------
    most
        SMs of the device.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._all = math.log(most)
        self._log = self._all
        self._back: float | None = _LEAST  # where to go if all SMs are too many; None: nothing is being tried
        self._fast_to = self._all - math.log(2.0)
        self._in_time = 0
        self._since_late = _NEAR

    @property
    def sms(self) -> int:
        """The width for the next request, 0 to all."""
        return self._sms(self._log)

    @property
    def proven_sms(self) -> int:
        """The same without what is only being tried."""
        return self._sms(self._log if self._back is None else self._back)

    def _sms(self, log: float) -> int:
        return min(round(math.exp(log)), self._most)

    def told(self, late: bool) -> None:
        """Whether a request that ran at this width was late."""
        self._in_time = 0 if late else self._in_time + 1
        self._since_late += 1
        if self._back is not None:
            if late:
                self._log = self._back
            if late or self._in_time >= _NEAR:
                self._back = None
        elif late:
            if self._since_late <= _NEAR:
                self._fast_to, self._log = self._log - math.log(2.0), _LEAST
            else:
                self._log = max(self._log - (1.0 - _LATE) * _GAIN, _LEAST)
                self._fast_to = min(self._fast_to, self._log)
            self._since_late = 0
        elif self._in_time >= _TRY and self.sms < self._most:
            self._in_time, self._back, self._log = 0, self._log, self._all
        else:
            step = _LATE * _GAIN * (_FAST if self._log < self._fast_to else 1.0)
            self._log = min(self._log + step, self._all)
