"""What every command needs: errors in what the user gave, progress, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miriam.errors import MiriamError

if TYPE_CHECKING:
    from miriam.progress import Progress

__all__ = ["BadInputError", "Json", "bad_input", "print_json", "progress_bar"]

Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, and nothing else.")]


class BadInputError(MiriamError):
    """What the user gave cannot be used."""


@contextmanager
def bad_input(kinds: type[MiriamError] | tuple[type[MiriamError], ...] = MiriamError) -> Iterator[None]:
    """Let an error (of these kinds) end with the exit code of bad usage: it is in what the user gave."""
    try:
        yield
    except kinds as error:
        raise BadInputError(str(error)) from error


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def print_json(value: object) -> None:
    """Write a document to standard output."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
