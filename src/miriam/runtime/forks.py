"""What is told that the process was forked, in the new one, which has none of the other's threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from weakref import WeakMethod

__all__ = ["tell"]

_told: list[WeakMethod[Callable[[], None]]] = []


def tell(method: Callable[[], None]) -> None:
    """Call a method in every process that is forked from this one, for as long as its object is there."""
    _told[:] = [*(other for other in _told if other() is not None), WeakMethod(method)]


def _forked() -> None:
    for method in tuple(_told):
        if (call := method()) is not None:
            call()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
