"""Cases of the CUDA C++ corpus: atomics, warps, numbers of 16 and 64 bits."""

from __future__ import annotations

import numpy as np
from cuda_cases import Case, Numbers, Out, case, tiles


@case()
def histogram(numbers: Numbers, large: bool) -> Case:
    n, blocks, block = (4_000_000, 1000, 256) if large else (500, 4, 32)
    x, start = numbers.ints(n, high=300), numbers.ints(64)
    bins = start + np.bincount(x & 63, minlength=64)
    return Case("atomics.cu", blocks, block, {"x": x, "bins": Out(bins.astype(np.int32), start), "n": n})


@case()
def reduction(numbers: Numbers, large: bool) -> Case:
    n, blocks, block = (4_000_000, 1500, 256) if large else (700, 4, 64)
    x = numbers.floats(n)
    padded = np.pad(x, (0, -n % (blocks * block)))
    y = padded.reshape(-1, blocks, block).sum((0, 2)).astype(np.float32)
    return Case("atomics.cu", blocks, block, {"x": x, "y": Out(y), "n": n})


@case()
def compaction(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(20000 if large else 4, 64)
    y = np.full_like(x, -1)
    start = y.copy()
    for row, found in zip(y, x, strict=True):
        odd = found[found % 2 == 1]
        row[: len(odd)] = odd
    counts = (x % 2).sum(1).astype(np.int32)
    return Case("atomics.cu", len(x), 64, {"x": x, "y": Out(y, start), "counts": Out(counts)})


@case()
def in_place(numbers: Numbers, large: bool) -> Case:
    n, block = (3_000_001, 256) if large else (299, 64)
    x, y = numbers.floats(n), numbers.floats(n)
    return Case("atomics.cu", tiles(n, block), block, {"x": x, "y": Out(x + y, y), "n": n})


@case()
def tickets(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(5000 if large else 5, 32)
    found = (x * 100 + np.arange(len(x))[:, None])[x % 3 == 0]
    y = np.full(x.size, -1, np.int32)
    start = y.copy()
    y[: len(found)] = found
    count = np.array([len(found)], np.int32)
    arguments = {"x": x, "next": Out(count, np.zeros_like(count)), "y": Out(y, start)}
    return Case("atomics.cu", len(x), 32, arguments, compare="sorted")


@case()
def greatest(numbers: Numbers, large: bool) -> Case:
    x = np.abs(numbers.floats(20000 if large else 4, 32)) * 8 + np.arange(32, dtype=np.float32)
    start = np.zeros(4, np.float32)
    return Case("atomics.cu", len(x), 32, {"x": x, "y": Out(x.reshape(-1, 8, 4).max((0, 1)), start)})


@case()
def last_block_sums(numbers: Numbers, large: bool) -> Case:
    x = numbers.ints(5000 if large else 6, 32)
    zero = np.zeros(1, np.uint32)
    arguments = {
        "x": x, "parts": Out(x.sum(1, dtype=np.int32), scratch=True), "done": Out(zero, zero, scratch=True),
        "y": Out(x.sum(dtype=np.int32).reshape(1)),
    }  # fmt: skip
    return Case("atomics.cu", len(x), 32, arguments)


@case()
def work_queue(numbers: Numbers, large: bool) -> Case:
    items, blocks = (20000, 500) if large else (7, 3)
    x = numbers.ints(items, 32)
    taken = np.array([items + blocks], np.uint32)
    y = x * 3 + np.arange(items, dtype=np.int32)[:, None]
    arguments = {"x": x, "y": Out(y), "next": Out(taken, np.zeros_like(taken), scratch=True), "items": items}
    return Case("atomics.cu", blocks, 32, arguments, doubtful="its loop asks a counter in memory whether to go on")


@case(large=False)
def float_atomics(numbers: Numbers, large: bool) -> Case:
    x = numbers.floats(20000 if large else 4, 32)
    y = np.append(x.reshape(-1, 8).sum(0), np.int32(x.size - 1).view(np.float32)).astype(np.float32)
    return Case("atomics.cu", len(x), 32, {"x": x, "y": Out(y, np.zeros(9, np.float32))})


@case()
def half_pairs(numbers: Numbers, large: bool) -> Case:
    n, block = (1_000_001, 256) if large else (150, 64)
    x, y = (numbers.floats(n, 2).astype(np.float16) for _ in range(2))
    arguments = {"x": x, "y": Out(x * np.float16(2) + y, y), "a": np.float16(2), "n": n}
    return Case("halves.cu", tiles(n, block), block, arguments)


@case()
def vectors(numbers: Numbers, large: bool) -> Case:
    n, block = (1_000_001, 256) if large else (150, 64)
    x = numbers.floats(n, 4)
    y, sums = x[:, ::-1] + np.arange(4, dtype=np.float32), x.sum(1).astype(np.float64)
    return Case("halves.cu", tiles(n, block), block, {"x": x, "y": Out(y), "sums": Out(sums), "n": n})


@case()
def tensor_cores(numbers: Numbers, large: bool) -> Case:
    m, n, k = (2000, 1600, 64) if large else (32, 48, 32)
    a, b = numbers.floats(m, k), numbers.floats(k, n)
    arguments = {"a": a.astype(np.float16), "b": b.astype(np.float16), "c": Out(a @ b), "n": n, "k": k}
    return Case("halves.cu", (n // 16, m // 16), 32, arguments)
