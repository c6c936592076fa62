"""Inputs in the system's shared memory, for a server on this machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from miriam.errors import WorkloadError
from miriam.load.sender import Asked, Sender, UnansweredError
from miriam.serve.shared import FOLDER, Place
from miriam.serve.tensors import to_binary

__all__ = ["left"]

_ALIGNED = 64  # bytes at which tensors begin


@asynccontextmanager
async def left(own: Sender, asked: Asked) -> AsyncIterator[Asked]:
    """The request with its inputs in a region that the server knows, until the end of the block.

    The file has lost its name by then: it is gone when both sides are done with it, however they end.

    Raises
    ------
    WorkloadError
        There is no shared memory here, or none with the server.
    """
    key = f"miriam-load-{os.getpid()}-{secrets.token_hex(4)}"
    places: dict[str, Place] = {}
    end = 0
    try:
        file = os.open(f"{FOLDER}/{key}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise WorkloadError(f"no shared memory can be had in {FOLDER}: {error.strerror}") from error
    try:
        with os.fdopen(file, "wb") as opened:
            for name, (_, array) in asked.tensors.items():
                data = to_binary(array)
                places[name] = Place(key, len(data), end)
                opened.seek(end)
                opened.write(data)
                end += -(-len(data) // _ALIGNED) * _ALIGNED
            opened.truncate(max(end, 1))
        await own.register(key, max(end, 1))
    except OSError as error:
        raise WorkloadError(f"inputs of {asked.model} do not fit into {FOLDER}: {error.strerror}") from error
    except UnansweredError as error:
        raise WorkloadError(f"no shared memory with the server: {error} ({error.reason})") from error
    finally:
        os.unlink(f"{FOLDER}/{key}")
    try:
        yield replace(asked, places=places)
    finally:
        await own.unregister(key)
