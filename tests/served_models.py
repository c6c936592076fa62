"""Models of a server in tests: callables on NumPy arrays, and a gate that a test can shut."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

GATE = threading.Event()  # `gated` waits for it
GATE.set()
ENTERED = threading.Semaphore(0)  # released whenever `gated` begins


def double() -> Callable[[Array], Array]:
    return lambda x: 2 * x


def both() -> Callable[[Array, Array], tuple[Array, Array]]:
    return lambda a, b: (a + b, a - b)


def echo() -> Callable[..., tuple[Array, ...]]:
    return lambda *arrays: tuple(np.array(array) for array in arrays)


def in_place() -> Callable[[Array], Array]:
    def model(x: Array) -> Array:
        x *= 2
        return x

    return model


def raising() -> Callable[[Array], Array]:
    calls = []

    def model(x: Array) -> Array:
        calls.append(x)
        if x[0] < 0:
            raise ValueError("less than nothing")
        return x

    return model


def gated() -> Callable[[Array], Array]:
    def model(x: Array) -> Array:
        ENTERED.release()
        if not GATE.wait(30):
            raise TimeoutError("nobody opened the gate")
        return x

    return model


@contextmanager
def shut() -> Iterator[None]:
    """Within it, `gated` begins and does not end."""
    GATE.clear()
    while ENTERED.acquire(blocking=False):
        pass
    try:
        yield
    finally:
        GATE.set()
