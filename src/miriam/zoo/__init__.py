"""Programs that come with the package: real networks, compiled and measured on one H200.

They carry no weights. ``models`` beside this file holds the networks they were compiled from, ``naive.py``
those that are there a second time in plain kernels, as benchmarks of the first hour had them.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from miriam.errors import ProgramError
from miriam.program import Program

if TYPE_CHECKING:
    from miriam.store import ExportedProfiles

__all__ = ["KERNELS", "load", "names", "profiles"]

KERNELS = ("tuned", "naive")
"""The sets of kernels."""

_FOLDER = files(__package__) / "programs"


def names(kernels: str = "tuned") -> tuple[str, ...]:
    """Names of the programs, in order.

    Parameters
    ----------
    kernels
        Which set: ``tuned``, compiled by Inductor and Triton and measured, or ``naive``, plain CUDA C++.

    Raises
    ------
    ProgramError
        There is no such set.
    """
    _check(kernels)
    found = sorted(f.name.removesuffix(".miriam") for f in _FOLDER.iterdir() if f.name.endswith(".miriam"))
    return tuple(name for name in found if ("-naive-" in name) == (kernels == "naive"))


@cache
def load(name: str, kernels: str = "tuned") -> Program:
    """Give a program of the zoo.

    Parameters
    ----------
    name
        Of a program in any set.
    kernels
        ``naive``: the same network in plain kernels, so ``alexnet-naive-b1`` for ``alexnet-b1``.

    Raises
    ------
    ProgramError
        There is none of that name, or no such set.
    """
    _check(kernels)
    if kernels == "naive":
        label, _, batch = name.rpartition("-b")
        name = f"{label}-naive-b{batch}"
    there = names("naive") if "-naive-" in name else names()
    if name not in there:
        raise ProgramError(f"the zoo has no {name!r}; it has {', '.join(there)}")
    return Program.load(str(_FOLDER / f"{name}.miriam"))


@cache
def profiles() -> ExportedProfiles:
    """Give what was measured of these programs."""
    from miriam.store import ExportedProfiles

    return ExportedProfiles(str(files(__package__) / "profiles" / "h200.json.xz"))


def _check(kernels: str) -> None:
    if kernels not in KERNELS:
        raise ProgramError(f"there are no kernels {kernels!r}: choose from {', '.join(KERNELS)}")
