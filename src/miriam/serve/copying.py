"""Copying what is large where it holds nobody up: in threads, which leave Python's lock to others meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Copying"]

_T = TypeVar("_T")
_INLINE_BYTES = 512 << 10  # copied in less time than it takes to have a thread do it
_THREADS = 4  # of a level, begun when they are wanted


class Copying:
    """Threads that copy; a level has its own, so that none waits for what a lower one copies."""

    def __init__(self) -> None:
        self._threads: dict[int, ThreadPoolExecutor] = {}

    async def call(
        self, level: int, size: int, function: Callable[[], _T], undo: Callable[[_T], object] = lambda found: None
    ) -> _T:
        """Call something that copies so many bytes: in a thread if there are many.

        Parameters
        ----------
        undo
            Is called with what the function gave if nobody is there any more to take it.
        """
        if size <= _INLINE_BYTES:
            return function()
        if level not in self._threads:
            self._threads[level] = ThreadPoolExecutor(_THREADS, f"miriam-copies-{level}")
        copied = asyncio.get_running_loop().run_in_executor(self._threads[level], function)
        try:
            return await asyncio.shield(copied)
        except asyncio.CancelledError:
            copied.add_done_callback(lambda done: done.cancelled() or done.exception() or undo(done.result()))
            raise

    def close(self) -> None:
        """Begin nothing more."""
        for threads in self._threads.values():
            threads.shutdown(wait=False)
