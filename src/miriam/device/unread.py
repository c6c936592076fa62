"""Inputs that are not in this process's memory yet: each is read to where the device wants it, and copied once."""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

import numpy as np

__all__ = ["Unread", "is_unread", "read"]


class Unread(Protocol):
    """One of them.

    Attributes
    ----------
    dtype, shape
        As an array has them.
    """

    @property
    def dtype(self) -> np.dtype[Any]:
        """See above."""

    @property
    def shape(self) -> tuple[int, ...]:
        """See above."""

    def read_into(self, target: np.ndarray[Any, Any]) -> None:
        """Fill an array of this type and shape, contiguous in C order. In any thread; raises what it likes."""


def is_unread(given: Any) -> TypeGuard[Unread]:
    """Whether an input is not in memory yet."""
    return hasattr(given, "read_into")


def read(given: Any) -> Any:
    """An input as it is, or in an array of its own if it was not in memory yet."""
    if not is_unread(given):
        return given
    array: np.ndarray[Any, Any] = np.empty(given.shape, given.dtype)
    given.read_into(array)
    return array
