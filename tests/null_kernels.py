"""What the small kernels around the work do, for a GPU that runs no code.

The launches of a pass do nothing there, so that a pass that was begun is complete when it is settled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from null_gpu import NullGpu

from miriam.elastic import resident
from miriam.elastic.gate import CLAIMED, EXCLUSIVE
from miriam.elastic.state import ALL, COPIES, COPY_BYTES, MAX_LAUNCHES

__all__ = ["EFFECTS"]

_LAUNCHES = 12  # bytes from an inference's record to the number of its launches
_FIRST = 8  # bytes from a lane's words to the first launch of the pass


def _limits(gpu: NullGpu, table: int, lanes: int, count: int) -> None:
    for at in range(table, table + 16 * lanes, 16):
        lane, limiter = (int.from_bytes(gpu.memory.read(at + offset, 8), "little") for offset in (0, 8))
        gpu.set_word(limiter, gpu.word(limiter) + count)
        pending, padded, idle = (gpu.word(limiter + 4 * i) for i in range(3))
        limit = min(padded, idle) if 0 < pending < 1 << 31 else idle
        for copy in range(COPIES):
            gpu.set_word(lane + COPY_BYTES * copy, limit)


def _tell(gpu: NullGpu, counter: int, words: int, complete: bool) -> None:
    gpu.set_word(counter, gpu.word(counter) + 1)
    gpu.set_word(words + 4, int(complete))
    gpu.set_word(words, gpu.word(counter))


def _notify(gpu: NullGpu, inference: int, counter: int, words: int) -> None:
    _tell(gpu, counter, words, not inference or gpu.word(inference) >= gpu.word(inference + _LAUNCHES))


def _release(gpu: NullGpu, table: int, lanes: int, counter: int, words: int) -> None:
    _limits(gpu, table, lanes, -1)
    _tell(gpu, counter, words, True)


def _begin(gpu: NullGpu, inference: int, lane: int) -> None:
    """The next inference, if the last one is over, and a pass that runs everything."""
    if gpu.word(inference) >= gpu.word(inference + _LAUNCHES):
        gpu.set_word(inference, 0)
    gpu.set_word(lane + _FIRST, 0)


def _exclusive(gpu: NullGpu, inference: int, lane: int) -> None:
    _begin(gpu, inference, lane)
    if gpu.word(lane) != ALL:
        gpu.set_word(lane + _FIRST, MAX_LAUNCHES)  # the pass runs nothing


def _gate(gpu: NullGpu, inference: int, lane: int, choice: int) -> Iterator[None]:
    _begin(gpu, inference, lane)
    while gpu.word(inference) < gpu.word(inference + _LAUNCHES) and (
        gpu.word(lane) != ALL if not choice else gpu.word(lane) == 0
    ):
        yield
    if choice:
        gpu.conditions[choice] = int(gpu.word(lane) != ALL)


def _step(gpu: NullGpu, inference: int, lane: int, loop: int, until: int) -> None:
    complete = gpu.word(lane + _FIRST) != MAX_LAUNCHES
    if complete:
        gpu.set_word(inference, until)
    if loop:
        gpu.conditions[loop] = int(not complete)


def _look(gpu: NullGpu, lane: int, index: int, handle: int) -> None:
    gpu.conditions[handle] = 1


def _feed(gpu: NullGpu, counter: int, a: int, b: int, destination: int, size: int) -> None:
    gpu.memory.write(destination, gpu.memory.read(b if gpu.word(counter) % 2 else a, size))


def _compare(gpu: NullGpu, counter: int, output: int, a: int, b: int, size: int, wrong: int) -> None:
    got, want = (gpu.memory.read(at, size) for at in (output, b if gpu.word(counter) % 2 else a))
    gpu.set_word(wrong, gpu.word(wrong) + sum(got[i : i + 4] != want[i : i + 4] for i in range(0, size, 4)))


def _sms(gpu: NullGpu, seen: int) -> None:
    """Two blocks on every SM."""
    for block in range(gpu.launches[-1].grid[0]):
        gpu.set_word(seen + 4 * block, block // 2)


EFFECTS: dict[str, Callable[..., Any]] = {
    EXCLUSIVE: _exclusive,
    CLAIMED: _begin,
    resident.NOTIFY: _notify,
    resident.HOLD: _limits,
    resident.RELEASE: _release,
    resident.GATE: _gate,
    resident.STEP: _step,
    resident.LOOK: _look,
    resident.FEED: _feed,
    resident.COMPARE: _compare,
    "sms": _sms,
}
