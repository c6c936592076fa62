"""Reading and writing JSON where it holds nobody up.

A JSON parser holds Python's lock until it is done, in whatever thread it runs: a body of some megabytes would stop the
event loop and the coordinator. So what is large goes to a process of its own, one for each criticality level.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from miriam.serve.errors import ServiceError, Status

__all__ = ["Aside"]

_NICENESS = 5  # below what computes


class Aside:
    """A process that calls functions, one at a time; it begins with the first and ends with this one."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module; what it raises is raised here.

        Raises
        ------
        ServiceError
            The process died of it.
        """
        done, value = await asyncio.shield(self._exchange(pickle.dumps((function, arguments), 5)))
        if not done:
            raise value
        return value

    async def close(self) -> None:
        """End the process."""
        async with self._lock:
            await self._end()

    async def _exchange(self, message: bytes) -> tuple[bool, Any]:
        async with self._lock:
            process = self._process
            if process is None or process.returncode is not None:
                process = await self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(len(message).to_bytes(8, "little"))
                process.stdin.write(message)
                await process.stdin.drain()
                size = int.from_bytes(await process.stdout.readexactly(8), "little")
                answer = await process.stdout.readexactly(size)
            except (OSError, RuntimeError, asyncio.IncompleteReadError) as error:  # uvloop raises RuntimeError
                await self._end()
                raise ServiceError(Status.INTERNAL, "the process that reads large bodies died of this one") from error
        return pickle.loads(answer)  # type: ignore[no-any-return]

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", __name__, stdin=pipe, stdout=pipe, limit=1 << 20, start_new_session=True
        )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


def main(given: BinaryIO, taken: BinaryIO) -> None:
    """Serve until the input ends, which it does when the server ends, however that ends."""
    os.nice(_NICENESS)
    while head := given.read(8):
        function, arguments = pickle.loads(given.read(int.from_bytes(head, "little")))
        try:
            answer = (True, function(*arguments))
        except Exception as error:
            answer = (False, error)
        data = pickle.dumps(answer, 5)
        taken.write(len(data).to_bytes(8, "little"))
        taken.write(data)
        taken.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(sys.stdin.buffer, sys.stdout.buffer)
