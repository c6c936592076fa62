"""Programs that come with the package: real networks, compiled and measured on one H200.

They carry no weights. ``models.py`` beside this file holds the networks they were compiled from.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from miriam.errors import ProgramError
from miriam.program import Program

if TYPE_CHECKING:
    from miriam.store import ExportedProfiles

__all__ = ["load", "names", "profiles"]

_FOLDER = files(__package__) / "programs"


def names() -> tuple[str, ...]:
    """Names of the programs, in order."""
    return tuple(sorted(f.name.removesuffix(".miriam") for f in _FOLDER.iterdir() if f.name.endswith(".miriam")))


@cache
def load(name: str) -> Program:
    """Give a program of the zoo.

    Raises
    ------
    ProgramError
        There is none of that name.
    """
    if name not in names():
        raise ProgramError(f"the zoo has no {name!r}; it has {', '.join(names())}")
    return Program.load(str(_FOLDER / f"{name}.miriam"))


@cache
def profiles() -> ExportedProfiles:
    """Give what was measured of these programs."""
    from miriam.store import ExportedProfiles

    return ExportedProfiles(str(files(__package__) / "profiles" / "h200.json.xz"))
