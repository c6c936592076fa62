"""Cases of the Triton corpus: a kernel with its grid, its data, and the results that NumPy computes.

Inputs are drawn from the name of a case. Matrices overlap themselves (their rows are closer than they are
long), which keeps files small and grids large.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from miriam.program import Role


@dataclass(frozen=True)
class Out:
    """An array that the kernel writes; ``start`` is what every element holds before, if that matters."""

    dtype: str
    shape: tuple[int, ...]
    start: float | None = None
    role: Role = Role.OUTPUT


@dataclass(frozen=True)
class Case:
    """A kernel with everything that it is compiled and run with.

    Attributes
    ----------
    arguments
        By the kernel's own names, in order: arrays and views of arrays to read, ``Out``, numbers.
    expected
        The outputs that NumPy computes, from an object that holds every argument under its name.
    tolerance
        How far they may be off, relative to the largest number in them; zero: not at all.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    expected: Callable[[SimpleNamespace], dict[str, np.ndarray]]
    constants: Mapping[str, int] = field(default_factory=dict)
    warps: int = 4
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0


_CASES: dict[str, Callable[[np.random.Generator], Case]] = {}


def case(*variants: tuple[str, tuple[Any, ...]]) -> Any:
    """Register what makes a case: under its own name, or once for each (suffix, arguments)."""

    def register(make: Callable[..., Case]) -> Callable[..., Case]:
        name = make.__name__.replace("_", "-")
        for suffix, arguments in variants or (("", ()),):
            _CASES[name + suffix] = functools.partial(make, *arguments)
        return make

    return register


def case_names() -> list[str]:
    """Every kernel of the corpus."""
    return sorted(_CASES)


def make_case(name: str) -> Case:
    """The case of this name."""
    return _CASES[name](rng=np.random.default_rng(zlib.crc32(name.encode())))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers around zero."""
    return rng.normal(0.0, 1.0, shape).astype(np.float32)
