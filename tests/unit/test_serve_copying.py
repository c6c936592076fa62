"""Large tensors are copied in threads, and small ones where they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from miriam.serve.copying import Copying

WAIT_S = 20
LARGE = 1 << 20


def run(do: Callable[[Copying], Any]) -> Any:
    async def within() -> Any:
        copying = Copying()
        try:
            return await asyncio.wait_for(do(copying), WAIT_S)
        finally:
            copying.close()

    return asyncio.run(within())


def test_what_is_large_is_copied_elsewhere() -> None:
    async def do(copying: Copying) -> list[int]:
        return [await copying.call(0, size, threading.get_ident) for size in (0, 1, LARGE)]

    *small, large = run(do)
    assert small == [threading.get_ident()] * 2
    assert large != threading.get_ident()


@pytest.mark.parametrize("size", [1, LARGE])
def test_an_error_is_that_of_the_caller(size: int) -> None:
    def fail() -> None:
        raise ValueError("no such tensor")

    with pytest.raises(ValueError, match="no such tensor"):
        run(lambda copying: copying.call(0, size, fail))


def test_no_level_waits_for_a_lower_one() -> None:
    gate = threading.Event()

    async def do(copying: Copying) -> bool:
        below = [asyncio.ensure_future(copying.call(0, LARGE, lambda: gate.wait(WAIT_S))) for _ in range(50)]
        await copying.call(1, LARGE, lambda: None)
        waited = not any(one.done() for one in below)
        gate.set()
        return waited and all(await asyncio.gather(*below))

    assert run(do)


@pytest.mark.parametrize("fails", [False, True])
def test_what_nobody_waits_for_any_more_is_undone(fails: bool) -> None:
    gate, begun = threading.Event(), threading.Event()

    def copy() -> str:
        begun.set()
        assert gate.wait(WAIT_S)
        if fails:
            raise ValueError("nobody hears this")
        return "made"

    async def do(copying: Copying) -> list[str]:
        undone: list[str] = []
        over = asyncio.Event()

        def undo(found: str) -> None:
            undone.append(found)
            over.set()

        asked = asyncio.ensure_future(copying.call(0, LARGE, copy, undo))
        await asyncio.to_thread(begun.wait, WAIT_S)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert not undone
        gate.set()
        if not fails:
            await over.wait()
        return undone

    assert run(do) == ([] if fails else ["made"])
