"""Cases of the CUDA C++ corpus: a kernel with its grid, its data, and the results that NumPy computes.

Every number in the data is whole and small, so sums are the same in any order, to the bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["LARGE", "Case", "Numbers", "Out", "case", "case_names", "make_case", "tiles"]

LARGE = "-large"


@dataclass(frozen=True)
class Out:
    """An array that the kernel writes.

    Attributes
    ----------
    expected
        What it holds afterwards; its dtype and shape. Places that are never written hold ``start``.
    start
        What it holds before; nothing in particular where all of it is written.
    scratch
        Whether it is no output: counters, partial results.
    """

    expected: np.ndarray
    start: np.ndarray | None = None
    scratch: bool = False


@dataclass(frozen=True)
class Case:
    """A kernel with everything that it is compiled and run with.

    Attributes
    ----------
    source
        Name of its file in ``cuda/``.
    arguments
        By name, in the kernel's order: arrays to read, ``Out``, numbers, bytes of a structure.
    compare
        ``bits``, or ``sorted`` where the order of what is written depends on the order of blocks.
    opaque
        Why it cannot be elastic, if it cannot.
    doubtful
        Why it may be refused although it could be elastic.
    """

    source: str
    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    arguments: Mapping[str, Any]
    shared: int = 0
    options: Sequence[str] = field(default=())
    target: str = "sm_90"
    compare: str = "bits"
    opaque: str = ""
    doubtful: str = ""


Maker = Callable[["Numbers", bool], Case]
_CASES: dict[str, Maker] = {}
_SMALL_ONLY: set[str] = set()


class Numbers:
    """Whole numbers that follow from a name."""

    def __init__(self, name: str) -> None:
        self._random = np.random.default_rng(zlib.crc32(name.encode()))

    def ints(self, *shape: int, low: int = 0, high: int = 100) -> np.ndarray:
        return self._random.integers(low, high, shape, dtype=np.int32)

    def floats(self, *shape: int) -> np.ndarray:
        return self._random.integers(-8, 9, shape).astype(np.float32)


def case(large: bool = True) -> Callable[[Maker], Maker]:
    """Register what makes a case from numbers and whether it is the large one."""

    def register(make: Maker) -> Maker:
        _CASES[make.__name__] = make
        if not large:
            _SMALL_ONLY.add(make.__name__)
        return make

    return register


def case_names() -> list[str]:
    """Names of all cases, large ones behind their small ones."""
    return [name + end for name in _CASES for end in ("", LARGE) if not end or name not in _SMALL_ONLY]


def make_case(name: str) -> Case:
    """A case by its name."""
    return _CASES[name.removesuffix(LARGE)](Numbers(name), name.endswith(LARGE))


def tiles(extent: int, tile: int) -> int:
    """How many tiles cover an extent."""
    return -(-extent // tile)


def _matmul(numbers: Numbers, large: bool, dynamic: bool) -> Case:
    m, n, k, tile = (1000, 1500, 200, 16) if large else (20, 12, 18, 8)
    a, b = numbers.floats(m, k), numbers.floats(k, n)
    arguments = {"a": a, "b": b, "c": Out(a @ b), "m": m, "n": n, "k": k}
    grid, block = (tiles(n, tile), tiles(m, tile)), (tile, tile)
    shared = tile * tile * 8 if dynamic else 0
    return Case("tiles.cu", grid, block, arguments, shared, () if dynamic else (f"-DTILE={tile}",))


@case()
def matmul_static(numbers: Numbers, large: bool) -> Case:
    return _matmul(numbers, large, dynamic=False)


@case()
def matmul_dynamic(numbers: Numbers, large: bool) -> Case:
    return _matmul(numbers, large, dynamic=True)


@case()
def stencil(numbers: Numbers, large: bool) -> Case:
    height, width, tile = (1500, 1000, 16) if large else (13, 20, 8)
    x = numbers.floats(height, width)
    p = np.pad(x, 1)
    y = 4 * x - p[:-2, 1:-1] - p[2:, 1:-1] - p[1:-1, :-2] - p[1:-1, 2:]
    arguments = {"x": x, "y": Out(y), "height": height, "width": width}
    grid = (tiles(width, tile), tiles(height, tile))
    return Case("tiles.cu", grid, (tile, tile), arguments, options=(f"-DTILE={tile}",))


@case()
def reverse_in_block(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 5, 64)
    return Case("tiles.cu", len(x), 64, {"x": x, "y": Out(x[:, ::-1])})


@case()
def pipelined(numbers: Numbers, large: bool) -> Case:
    blocks, steps = (3000, 20) if large else (4, 3)
    x = numbers.floats(blocks, steps, 128)
    y = np.einsum("bst,s->bt", x[..., :32], np.arange(1, steps + 1)) + x[..., :95:-1].sum(1)
    return Case("tiles.cu", blocks, 32, {"x": x, "y": Out(y.astype(np.float32)), "steps": steps})


@case()
def copies_left_behind(numbers: Numbers, large: bool) -> Case:
    blocks = 20000 if large else 6
    x = numbers.ints(blocks, 128)
    y = np.where(np.arange(blocks)[:, None] % 2, x[:, 31::-1], x[:, ::4] + 1)
    return Case("tiles.cu", blocks, 32, {"x": x, "y": Out(y), "never": numbers.ints(128, low=1000, high=2000)})


@case()
def barrier_object(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 3, 64)
    return Case("tiles.cu", len(x), 64, {"x": x, "y": Out(np.stack([x[:, ::-1], x[:, ::-1] + 1]))})


@case()
def bulk_copy(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 4, 128)
    return Case("tiles.cu", len(x), 32, {"x": x, "y": Out(x[:, ::-1] * 2)})


@case(large=False)
def barrier_object_left_behind(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(4, 128)
    arguments = {"x": x, "y": Out(x[:, ::-1] * 2)}
    return Case("tiles.cu", len(x), 32, arguments, doubtful="leaves an mbarrier behind")


@case()
def named_barriers(numbers: Numbers, large: bool) -> Case:
    blocks, steps = (5000, 8) if large else (3, 3)
    x = numbers.ints(blocks, steps, 32)
    y = np.zeros((blocks, 32), np.int32)
    for s in range(steps):
        y = y * 3 + x[:, s, ::-1]
    return Case("tiles.cu", blocks, 64, {"x": x, "y": Out(y), "steps": steps}, doubtful="some threads meet alone")


@case()
def guarded(numbers: Numbers, large: bool) -> Case:
    n, block = (3_000_001, 256) if large else (299, 64)
    x = numbers.floats(n)
    return Case("exits.cu", tiles(n, block), block, {"x": x, "y": Out(x * 2 + 1), "n": n})


@case()
def skipped_blocks(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(50000 if large else 8, 32)
    wanted = numbers.ints(len(x), high=2)
    y = np.where(wanted[:, None] == 1, x[:, np.arange(32) ^ 5], -1).astype(np.int32)
    arguments = {"wanted": wanted, "x": x, "y": Out(y, np.full_like(y, -1))}
    return Case("exits.cu", len(x), 32, arguments)


@case()
def out_of_a_loop(numbers: Numbers, large: bool) -> Case:
    blocks, turns = (5000, 100) if large else (4, 20)
    x = numbers.ints(blocks, 32, low=1)
    y, value = np.full_like(x, -1), x.copy()
    for turn in range(turns):
        y[(value == 1) & (y < 0)] = turn
        value = np.where(value % 2, 3 * value + 1, value // 2)
    return Case("exits.cu", blocks, 32, {"x": x, "y": Out(y), "n": turns})


@case()
def some_leave_before_a_barrier(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 5, 64)
    y = np.full_like(x, -1)
    start = y.copy()
    y[:, :48] = x[:, 47::-1]
    return Case("exits.cu", len(x), 64, {"x": x, "y": Out(y, start)}, doubtful="threads are done while others meet")


@case()
def a_warp_leaves_between_barriers(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 4, 96)
    back = x[:, ::-1]
    leaves = np.arange(96) // 32 == np.arange(len(x))[:, None] % 3
    y = np.where(leaves, back, back[:, np.arange(96) ^ 1] + 1000)
    return Case("exits.cu", len(x), 96, {"x": x, "y": Out(y)}, doubtful="a warp is done while others meet")


@case()
def exit_instruction(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 4, 64, low=-50, high=50)
    y = np.where(x < 0, -1, x + 7)
    return Case("exits.cu", len(x), 64, {"x": x, "y": Out(y, np.full_like(y, -1))})


@case()
def exit_in_a_function(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 4, 64, low=-50, high=50)
    y = np.where(x < 0, -1, x * 3)
    arguments = {"x": x, "y": Out(y, np.full_like(y, -1))}
    return Case("exits.cu", len(x), 64, arguments, doubtful="a function ends the kernel")


@case()
def asserted(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 4, 32)
    return Case("exits.cu", len(x), 32, {"x": x, "y": Out(x - 1), "n": x.size})


@case()
def coordinates(numbers: Numbers, large: bool) -> Case:
    grid, block = ((70, 30, 11), (4, 8, 3)) if large else ((3, 2, 2), (4, 2, 3))
    at = np.indices((*grid[::-1], *block[::-1]), dtype=np.int32).reshape(6, -1)[[2, 1, 0, 5, 4, 3]]
    y = at.T * 100 + np.array([*grid, *block], np.int32)
    return Case("geometry.cu", grid, block, {"y": Out(y)})


@case()
def grid_stride(numbers: Numbers, large: bool) -> Case:
    n, blocks = (5_000_000, 1234) if large else (500, 5)
    x = numbers.floats(n)
    return Case("geometry.cu", blocks, 128 if large else 32, {"x": x, "y": Out(x * x), "n": n})


@case()
def backwards(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 6, 32)
    y = x * 10 + np.roll(x, -1, 0)[:, :1]
    return Case("geometry.cu", len(x), 32, {"x": x, "y": Out(y[::-1])})


@case()
def called(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(200 if large else 2, 100 if large else 3, 32)
    where = np.arange(x.shape[0] * x.shape[1], dtype=np.int32).reshape(*x.shape[:2], 1)
    arguments, why = {"x": x, "y": Out(x + where * 1000)}, "a function that is not inlined reads the block's index"
    return Case("geometry.cu", x.shape[1::-1], 32, arguments, doubtful=why)


@case()
def barriers_in_a_function(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(5000 if large else 4, 32)
    y = x.astype(np.int64)
    for turn in range(3):
        more = (y @ np.arange(1, 33)) % 1009
        y = np.where(turn <= np.arange(len(x))[:, None] % 3, y + more[:, None], y)
    arguments = {"x": x, "y": Out(y.astype(np.int32))}
    return Case("geometry.cu", len(x), 32, arguments, doubtful="its threads meet in a function")


@case(large=False)
def recursion(numbers: Numbers, large: bool) -> Case:
    n, block = 120, 32
    after = np.maximum(np.arange(n) // 2, 0).astype(np.int32)
    y = np.array([int(i).bit_length() for i in range(n)], np.int32) + np.arange(n, dtype=np.int32) // block * 100
    return Case("geometry.cu", tiles(n, block), block, {"next": after, "y": Out(y), "n": n})


@case()
def jump_table(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 4, 64)
    value, out = x.copy(), np.zeros(x.shape, bool)
    block = np.arange(len(x), dtype=np.int32)[:, None]
    for _ in range(2):
        which = np.where(out, 3, (value ^ block) & 3)
        out |= which == 2
        value = np.select([which == 0, which == 1], [value * 3 + block, value + 11], value)
    return Case("geometry.cu", len(x), 64, {"x": x, "y": Out(np.where(out, value, value + 1000).astype(np.int32))})


@case()
def tables(numbers: Numbers, large: bool) -> Case:
    x = numbers.floats(20000 if large else 4, 64)
    weights, offsets = np.array([1, -2, 0.5, 4], np.float32), np.array([3, 1, 2, 0])
    block, thread = np.arange(len(x))[:, None], np.arange(64)[None, :]
    own = np.zeros((*x.shape, 4), np.float32)
    for j in range(4):
        np.put_along_axis(
            own, np.broadcast_to(offsets[(j + block) & 3], x.shape)[..., None], (x * weights[j])[..., None], 2
        )
    first = np.take_along_axis(own, ((thread + block) & 3)[..., None], 2)
    second = np.take_along_axis(own, np.broadcast_to(block & 1, x.shape)[..., None], 2)
    return Case("geometry.cu", len(x), 64, {"x": x, "y": Out((first + second)[..., 0])})


@case()
def structure(numbers: Numbers, large: bool) -> Case:
    blocks, extents = 20000 if large else 4, np.array([3, -1, 4, 10], np.int32)
    i = np.arange(blocks * 32)
    y = (extents[(i + i // 32) & 3] * 2.5 + 7).astype(np.float32)
    shape = extents.tobytes() + np.float32(2.5).tobytes() + np.int16(7).tobytes() + bytes(2)
    return Case("geometry.cu", blocks, 32, {"shape": shape, "y": Out(y)})


@case()
def in_assembly(numbers: Numbers, large: bool) -> Case:
    blocks = 20000 if large else 5
    block, thread = np.arange(blocks)[:, None], np.arange(32)[None, :]
    y = (block * 100 + block) * 1000 + blocks * 100 + thread
    return Case("geometry.cu", blocks, 32, {"y": Out(y.astype(np.int32))})


@case()
def widest(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(3000 if large else 2, 1024)
    return Case("geometry.cu", len(x), 1024, {"x": x, "y": Out(x[:, (np.arange(1024) * 5 + 3) % 1024])})


# each of them registers its cases, and takes from here what they are made of
import cuda_atomics  # noqa: E402, F401
import cuda_refused  # noqa: E402, F401
