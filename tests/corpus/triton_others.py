"""Cases without matrix products: reductions, scans, data that moves, blocks that speak to each other."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import triton_kernels as kernels
from numpy.lib.stride_tricks import as_strided
from triton_cases import Case, Out, case, normal
from triton_dots import matrix

from miriam.program import Role


@case()
def softmax(rng: np.random.Generator) -> Case:
    rows, columns = 96, 777

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        powers = np.exp(of.x.astype(np.float32) - of.x.max(1, keepdims=True).astype(np.float32))
        return {"y": powers / powers.sum(1, keepdims=True)}

    return Case(
        kernels.softmax, (rows, 1, 1),
        {"x": matrix(rng, rows, columns, 64), "y": Out("float16", (rows, columns)), "columns": columns, "stride": 64},
        expected, {"BLOCK": 1024}, tolerance=2e-3,
    )  # fmt: skip


@case()
def layer_norm(rng: np.random.Generator) -> Case:
    rows, columns, stride = 64, 700, 36
    x = as_strided(normal(rng, (rows - 1) * stride + columns), (rows, columns), (stride * 4, 4))

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        mean, rstd = of.x.mean(1), 1 / np.sqrt(of.x.var(1) + of.eps)
        return {"y": (of.x - mean[:, None]) * rstd[:, None] * of.w + of.b, "mean_of": mean, "rstd_of": rstd}

    vectors = {"w": normal(rng, columns), "b": normal(rng, columns)}
    outs = {
        "y": Out("float32", (rows, columns)),
        "mean_of": Out("float32", (rows,)),
        "rstd_of": Out("float32", (rows,)),
    }
    return Case(
        kernels.layer_norm, (rows, 1, 1),
        {"x": x, **vectors, **outs, "columns": columns, "stride": stride, "eps": 1e-5},
        expected, {"BLOCK": 256}, tolerance=1e-5,
    )  # fmt: skip


@case(("", (4, 32, 4)), ("-tall", (32, 32, 8)))
def row_sum(high: int, wide: int, warps: int, rng: np.random.Generator) -> Case:
    rows, columns, stride = 40 * high - 3, 150, 4
    x = as_strided(normal(rng, (rows - 1) * stride + columns), (rows, columns), (stride * 4, 4))
    return Case(
        kernels.row_sum, (40, 1, 1),
        {"x": x, "y": Out("float32", (rows, 1)), "rows": rows, "columns": columns, "stride": stride},
        lambda of: {"y": (of.x.sum(1) * of.x.max(1))[:, None]}, {"BR": high, "BC": wide}, warps, tolerance=1e-5,
    )  # fmt: skip


@case()
def full_reduce(rng: np.random.Generator) -> Case:
    size = 5_000
    outs = {"count": Out("int32", (1,), 0), "top": Out("float32", (1,), -1e30)}
    return Case(
        kernels.full_reduce, (40, 1, 1), {"x": normal(rng, size), **outs, "size": size},
        lambda of: {"count": np.array([(of.x > 0).sum()], np.int32), "top": of.x.max(keepdims=True)}, {"BLOCK": 128},
    )  # fmt: skip


@case()
def last_block(rng: np.random.Generator) -> Case:
    size = 4_000
    outs = {"part": Out("float32", (32,)), "arrived": Out("int32", (1,), 0), "y": Out("float32", (1,))}
    return Case(
        kernels.last_block, (32, 1, 1), {"x": normal(rng, size), **outs, "size": size},
        lambda of: {"part": np.array([part.sum() for part in np.split(np.append(of.x, np.zeros(96, np.float32)), 32)]),
                    "arrived": np.array([32], np.int32), "y": of.x.sum(keepdims=True)},
        {"BLOCK": 128, "BLOCKS": 32}, tolerance=1e-4,
    )  # fmt: skip


@case()
def scan(rng: np.random.Generator) -> Case:
    rows, columns = 24, 140

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        states = np.zeros_like(of.x)
        for i in range(columns):
            states[:, i] = of.decay[:, i] * (states[:, i - 1] if i else 0) + of.x[:, i]
        return {"y": states, "z": of.x.cumsum(1)}

    decay = rng.uniform(0.5, 1.0, (rows, columns)).astype(np.float32)
    outs = {"y": Out("float32", (rows, columns)), "z": Out("float32", (rows, columns))}
    return Case(
        kernels.scan, (rows, 1, 1), {"decay": decay, "x": normal(rng, rows, columns), **outs, "columns": columns},
        expected, {"BLOCK": 256}, tolerance=1e-5,
    )  # fmt: skip


@case()
def gather_rows(rng: np.random.Generator) -> Case:
    width, rows, entries = 256, 64, 20

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        shuffle = (np.arange(width) * 5 + np.arange(rows)[:, None]) % width
        return {"y": np.take_along_axis(of.table[of.index], shuffle, 1)}

    index = rng.integers(0, entries, rows).astype(np.int32)
    return Case(
        kernels.gather_rows, (rows, 1, 1),
        {"table": normal(rng, entries, width), "index": index, "y": Out("float32", (rows, width)), "width": width},
        expected, {"BLOCK": width},
    )  # fmt: skip


@case()
def scatter(rng: np.random.Generator) -> Case:
    size = 3_000

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        y = np.empty_like(of.x)
        y[of.where] = of.x
        return {"y": y}

    where = rng.permutation(size).astype(np.int32)
    return Case(
        kernels.scatter, (24, 1, 1),
        {"x": normal(rng, size), "where": where, "y": Out("float32", (size,)), "size": size},
        expected, {"BLOCK": 128}, 2,
    )  # fmt: skip


@case()
def transpose(rng: np.random.Generator) -> Case:
    rows, columns = 100, 130
    return Case(
        kernels.transpose, (4, 5, 1),
        {"x": rng.normal(0.0, 1.0, (rows, columns)).astype(np.float16), "y": Out("float16", (columns, rows)),
         "rows": rows, "columns": columns},
        lambda of: {"y": of.x.T}, {"B": 32},
    )  # fmt: skip


@case()
def batch_norm(rng: np.random.Generator) -> Case:
    images, channels, plane = 6, 10, 121
    vectors = {name: normal(rng, channels) for name in ("mean", "rstd", "w", "b")}
    x = rng.normal(0.0, 1.0, (images, channels, plane)).astype(np.float16)

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        mean, rstd, w, b = (v[:, None] for v in (of.mean, of.rstd, of.w, of.b))
        return {"y": np.maximum((of.x - mean) * rstd * w + b, 0)}

    sizes = {"size": x.size, "plane": plane, "channels": channels}
    return Case(
        kernels.batch_norm, (math.ceil(x.size / 256), 1, 1), {"x": x, **vectors, "y": Out("float16", x.shape), **sizes},
        expected, {"BLOCK": 256}, 8, tolerance=1e-3,
    )  # fmt: skip


@case()
def grid_3d(rng: np.random.Generator) -> Case:
    grid, size = (5, 3, 4), 3_800

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        k, j, i = np.unravel_index(np.arange(size) // 64, grid[::-1])
        return {"y": (of.x * 1000 + i * 100 + j * 10 + k + math.prod(grid)).astype(np.int32)}

    return Case(
        kernels.grid_3d, grid,
        {"x": rng.integers(0, 1000, size).astype(np.int32), "y": Out("int32", (size,)), "size": size},
        expected, {"BLOCK": 64}, 2,
    )  # fmt: skip


@case()
def early_return(rng: np.random.Generator) -> Case:
    size, block, blocks = 2_600, 64, 48

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        rows = np.append(of.x, np.zeros(blocks * block - size, np.float32)).reshape(blocks, block)
        y = np.where(of.skip[:, None] != 0, -1, rows - rows.sum(1, keepdims=True))
        return {"y": y.reshape(-1)[:size]}

    return Case(
        kernels.early_return, (blocks, 1, 1),
        {"x": normal(rng, size), "skip": rng.integers(0, 2, blocks).astype(np.int32), "y": Out("float32", (size,), -1),
         "size": size},
        expected, {"BLOCK": block}, tolerance=1e-5,
    )  # fmt: skip


@case()
def histogram(rng: np.random.Generator) -> Case:
    size = 5_000
    return Case(
        kernels.histogram, (20, 1, 1),
        {"x": rng.integers(0, 64, size).astype(np.int32), "y": Out("int32", (64,), 0), "size": size},
        lambda of: {"y": np.bincount(of.x, minlength=64).astype(np.int32)}, {"BLOCK": 256, "BINS": 64},
    )  # fmt: skip


@case()
def barrier(rng: np.random.Generator) -> Case:
    block, blocks = 256, 24

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        values = of.x
        for step in range(4):
            values = values * 3 + np.roll(values, -37 - step, 1)
        return {"y": values}

    x = rng.integers(0, 1000, (blocks, block)).astype(np.int32)
    outs = {"scratch": Out("int32", x.shape, role=Role.INTERMEDIATE), "y": Out("int32", x.shape)}
    return Case(kernels.barrier, (blocks, 1, 1), {"x": x, **outs}, expected, {"BLOCK": block})


@case()
def work_counter(rng: np.random.Generator) -> Case:
    block, blocks = 128, 40
    outs = {"counter": Out("int32", (1,), 0), "y": Out("float32", (blocks, block))}

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        tickets = np.arange(blocks, dtype=np.float32)[:, None]
        return {"counter": np.array([blocks], np.int32), "y": of.x * 2 + tickets}

    return Case(
        kernels.work_counter, (blocks, 1, 1), {"x": normal(rng, blocks, block), **outs}, expected, {"BLOCK": block}
    )


@case()
def spin_wait(rng: np.random.Generator) -> Case:
    block, blocks = 128, 40
    outs = {
        "flags": Out("int32", (blocks,), 0), "sums": Out("int32", (blocks,), role=Role.INTERMEDIATE),
        "y": Out("int32", (blocks, block)),
    }  # fmt: skip
    return Case(
        kernels.spin_wait, (blocks, 1, 1), {"x": rng.integers(0, 9, (blocks, block)).astype(np.int32), **outs},
        lambda of: {"flags": np.ones(blocks, np.int32), "y": of.x.cumsum(dtype=np.int32).reshape(blocks, block)},
        {"BLOCK": block},
    )  # fmt: skip


@case()
def noise(rng: np.random.Generator) -> Case:
    size = 6_000

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        return {"y": np.where(_uniform(of.seed, size) > of.p, of.x / np.float32(1 - of.p), 0)}

    return Case(
        kernels.noise, (24, 1, 1),
        {"x": normal(rng, size), "y": Out("float32", (size,)), "size": size, "seed": 1234, "p": 0.3},
        expected, {"BLOCK": 256}, tolerance=1e-6,
    )  # fmt: skip


def _uniform(seed: int, size: int) -> np.ndarray:
    """The first words of Philox 4x32 with ten rounds (Salmon et al., 2011), from zero to one as ``tl.rand`` has it."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.arange(size, dtype=np.uint64), *(np.zeros(size, np.uint64) for _ in range(3))
    k0, k1 = np.uint64(seed), np.uint64(0)
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> np.uint64(32)) ^ c1 ^ k0, b & low, (a >> np.uint64(32)) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    word = c0.astype(np.uint32).view(np.int32)
    return np.where(word < 0, -word - 1, word).astype(np.float32) * np.float32(4.6566127342e-10)


@case()
def inline_asm(rng: np.random.Generator) -> Case:
    size = 5_000

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        bits = (of.x.view(np.uint32)[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
        backwards = (bits << np.arange(31, -1, -1, dtype=np.uint32)).sum(1, dtype=np.uint32)
        return {"y": (backwards + bits.sum(1, dtype=np.uint32)).view(np.int32)}

    x = rng.integers(-(2**31), 2**31, size).astype(np.int32)
    return Case(
        kernels.inline_asm, (40, 1, 1), {"x": x, "y": Out("int32", (size,)), "size": size}, expected, {"BLOCK": 128}
    )


@case()
def dependent_launch(rng: np.random.Generator) -> Case:
    size = 5_000
    return Case(
        kernels.dependent_launch, (20, 1, 1), {"x": normal(rng, size), "y": Out("float32", (size,)), "size": size},
        lambda of: {"y": of.x * of.x + 1}, {"BLOCK": 256}, tolerance=1e-6,
    )  # fmt: skip
