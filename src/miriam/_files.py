"""Files that are written in one step: a reader sees the old file or the whole new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from miriam.errors import MiriamError

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str], error: type[MiriamError]) -> Iterator[Path]:
    """Give a path to write to; what is there at the end of the block takes the place of ``path``.

    Raises
    ------
    MiriamError
        The file cannot be written; an ``error``, with the reason. Nothing is left behind.
    """
    path = Path(path)
    if not path.name or os.path.isdir(path):
        raise error(f"cannot write {path}: it is a folder, a file is needed")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as why:
        raise error(f"cannot write {path}: {why.strerror or why}") from why
    finally:
        with suppress(OSError):  # where the folder is none there is no scrap either
            part.unlink()
