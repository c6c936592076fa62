"""Device memory for the PTX machine: allocations with nothing in between, and what can go wrong."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

# The generic address space: one window for what every block, thread or launch has of its own, then device memory.
SHARED, LOCAL, PARAM, GLOBAL = 1 << 44, 2 << 44, 3 << 44, 4 << 44
FENCE = 256


class MachineError(Exception):
    """A kernel did what a device may not forgive."""


class Unsupported(MachineError):  # noqa: N818
    """The kernel holds what the machine cannot run; raised before anything runs."""


class Fault(MachineError):  # noqa: N818
    """An access outside of any allocation, a register without a value, an impossible launch."""


class Deadlock(MachineError):  # noqa: N818
    """The threads of a block wait for each other."""


class Hang(MachineError):  # noqa: N818
    """More instructions than the step bound."""


class Race(MachineError):  # noqa: N818
    """Two threads touched one byte with nothing that orders them."""


class Undefined:
    """What a register holds before its definition, and what is computed from that.

    Compilers let lanes compute with what they never loaded and drop the result. So only its use outside of the
    registers is an error: an address, what is stored, where to jump, whether to execute.
    """

    def _raise(self, *_: object) -> Any:
        raise Fault("what a register holds follows from one that never had a value")

    def _same(self, *_: object) -> Any:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __xor__ = __rxor__ = _same
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __neg__ = __invert__ = _same
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = bit_length = bit_count = _same
    __bool__ = __index__ = __int__ = __float__ = to_bytes = _raise
    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: object) -> Any:
        return self if other is self or other else other

    def __or__(self, other: object) -> Any:
        return True if other is True else self

    __rand__, __ror__ = __and__, __or__

    def __repr__(self) -> str:
        return "undefined"


UNDEFINED = Undefined()


def lenient(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, undefined where one of its arguments is."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception:
            if any(a is UNDEFINED for a in args):
                return UNDEFINED
            raise

    return call


class Memory:
    """A flat 64-bit address space; nothing outside of an allocation can be touched."""

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._data: list[bytearray] = []
        self._writable: list[bool] = []
        self._names: list[str] = []
        self._end = GLOBAL + (1 << 32)

    def alloc(
        self, content: int | bytes | np.ndarray, align: int = 256, *, name: str = "", writable: bool = True
    ) -> int:
        """Place a number of zero bytes, or given bytes, or an array; the address."""
        data = bytearray(content if isinstance(content, int) else bytes(content))
        base = -(-self._end // align) * align
        self._end = base + len(data) + FENCE
        self._bases.append(base)
        self._data.append(data)
        self._writable.append(writable)
        self._names.append(name or f"allocation {len(self._bases) - 1}")
        return base

    def read(self, address: int, size: int) -> bytes:
        data, at, _ = self._find(address, size)
        return bytes(data[at : at + size])

    def write(self, address: int, content: bytes | np.ndarray) -> None:
        content = bytes(content)
        data, at, _ = self._find(address, len(content))
        data[at : at + len(content)] = content

    def array(self, address: int, dtype: DTypeLike, count: int) -> np.ndarray:
        """A copy of ``count`` elements."""
        return np.frombuffer(self.read(address, np.dtype(dtype).itemsize * count), dtype)

    def image(self) -> bytes:
        """Everything that can be written, for comparing two runs."""
        return b"".join(bytes(d) for d, w in zip(self._data, self._writable, strict=True) if w)

    def load(self, address: int, size: int) -> int:
        """What a kernel reads: little-endian, naturally aligned."""
        data, at, _ = self._find(address, size)
        if address % size:
            raise Fault(f"{size} bytes at {address:#x} are not aligned")
        return int.from_bytes(data[at : at + size], "little")

    def store(self, address: int, size: int, value: int) -> None:
        data, at, which = self._find(address, size)
        if address % size:
            raise Fault(f"{size} bytes at {address:#x} are not aligned")
        if not self._writable[which]:
            raise Fault(f"a write to {self._names[which]}, which is constant")
        data[at : at + size] = value.to_bytes(size, "little")

    def constant(self, address: int) -> bool:
        """Whether an address lies in an allocation that kernels cannot write."""
        which = bisect_right(self._bases, address) - 1
        return which >= 0 and not self._writable[which] and address < self._bases[which] + len(self._data[which])

    def _find(self, address: int, size: int) -> tuple[bytearray, int, int]:
        which = bisect_right(self._bases, address) - 1
        if which >= 0:
            data = self._data[which]
            at = address - self._bases[which]
            if at + size <= len(data):
                return data, at, which
        near = f"; the nearest below is {self._names[which]}, {at} bytes before, {len(data)} long" if which >= 0 else ""
        raise Fault(f"{size} bytes at {address:#x} lie in no allocation{near}")
