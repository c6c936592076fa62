"""Waiting for a word of the GPU, or of another thread, while other threads run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numba
import numba.extending
from llvmlite import ir

__all__ = ["Watch"]

_F = TypeVar("_F", bound=Callable[..., Any])
_TURNS = 20_000  # about 20 us, after which the interpreter is asked for again
_SIGNATURE = "void(uint64, int64, uint64, int64, uint64, uint32, int64)"
_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "no_cfunc_wrapper": True}
_numba: Any = numba  # typed or not, as its version has it


def _compiled(function: _F) -> _F:
    compiled: _F = _numba.njit(_SIGNATURE, **_OPTIONS)(function)
    return compiled


def _load(context: Any, address: Any) -> Any:
    """The word that lies there now: the compiler must not remember an earlier one."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(32).as_pointer())
        return builder.load_atomic(place, ordering="acquire", align=4)

    return _numba.uint32(_numba.uint64), code


_word: Any = _numba.extending.intrinsic(_load)


@_compiled
def _wait(words: int, step: int, heard: int, count: int, bell: int, rung: int, turns: int) -> None:
    """Until one of ``count`` words is another than the one heard of, or the bell has rung."""
    for _ in range(turns):
        if _word(bell) != rung:
            return
        for i in range(count):
            if _word(words + step * i) != _word(heard + 4 * i):
                return


class Watch:
    """Looks at words in memory without holding the interpreter, which a loop in Python would do for ms.

    Parameters
    ----------
    address
        Of the first word, in memory of the host.
    step
        Bytes from one to the next.
    count
        How many there are.
    """

    def __init__(self, address: int, step: int, count: int) -> None:
        self._words = address, step
        self._heard = (ctypes.c_uint32 * count)()
        self._bell = ctypes.c_uint32()
        self._rung = 0

    def ring(self) -> None:
        """Let whoever waits look around, or not begin to wait. From any thread."""
        self._bell.value += 1

    def wait(self, heard: Iterable[int]) -> None:
        """Wait for about 20 us, or less: until a word is not the one ``heard`` of, or the bell has rung since."""
        self._heard[:] = list(heard)
        bell = ctypes.addressof(self._bell)
        _wait(*self._words, ctypes.addressof(self._heard), len(self._heard), bell, self._rung, _TURNS)
        self._rung = self._bell.value
