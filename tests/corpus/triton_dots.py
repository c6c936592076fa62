"""Cases that multiply matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton_kernels as kernels
from numpy.lib.stride_tricks import as_strided
from triton_cases import Case, Out, case, normal


def matrix(rng: np.random.Generator, rows: int, columns: int, stride: int = 16) -> np.ndarray:
    """Half-precision numbers around zero, rows ``stride`` apart and so on top of one another."""
    flat = rng.normal(0.0, 1.0, (rows - 1) * stride + columns).astype(np.float16)
    return as_strided(flat, (rows, columns), (stride * 2, 2))


def _product(of: SimpleNamespace) -> np.ndarray:
    return of.a.astype(np.float32) @ of.b.astype(np.float32).T


def _mm(m: int, n: int, k: int, a: np.ndarray, b: np.ndarray, between: Mapping[str, Any] | None = None,
        out: Out | None = None) -> dict[str, Any]:  # fmt: skip
    sizes = {"m": m, "n": n, "k": k, "stride_am": a.strides[0] // a.itemsize, "stride_bn": b.strides[0] // b.itemsize}
    return {"a": a, "b": b, **(between or {}), "c": out or Out("float16", (m, n)), **sizes}


@case(("-w1", (32, 32, 32, 1, 2)), ("-w2", (32, 64, 32, 2, 3)), ("-w4", (64, 64, 32, 4, 3)),
      ("-w8", (128, 64, 64, 8, 3)), ("-w8-wide", (64, 128, 64, 8, 4)))  # fmt: skip
def matmul(bm: int, bn: int, bk: int, warps: int, stages: int, rng: np.random.Generator) -> Case:
    m, n, k = 6 * bm, 6 * bn, 256
    return Case(
        kernels.matmul, (6, 6, 1), _mm(m, n, k, matrix(rng, m, k), matrix(rng, n, k)),
        lambda of: {"c": _product(of)}, {"BM": bm, "BN": bn, "BK": bk}, warps, {"num_stages": stages}, 2e-3,
    )  # fmt: skip


@case()
def matmul_tf32(rng: np.random.Generator) -> Case:
    m, n, k = 256, 256, 64
    a, b = (as_strided(normal(rng, (m - 1) * 16 + k), (m, k), (64, 4)) for _ in range(2))
    return Case(
        kernels.matmul, (m // 32, n // 32, 1), _mm(m, n, k, a, b, out=Out("float32", (m, n))),
        lambda of: {"c": _product(of)}, {"BM": 32, "BN": 32, "BK": 32}, tolerance=2e-3,
    )  # fmt: skip


@case()
def matmul_cluster(rng: np.random.Generator) -> Case:
    m, n, k = 512, 512, 128
    return Case(
        kernels.matmul, (m // 128, n // 128, 1), _mm(m, n, k, matrix(rng, m, k), matrix(rng, n, k)),
        lambda of: {"c": _product(of)}, {"BM": 128, "BN": 128, "BK": 32}, 4, {"num_ctas": 2}, 2e-3,
    )  # fmt: skip


@case()
def matmul_epilogue(rng: np.random.Generator) -> Case:
    m, n, k = 500, 440, 200
    rows = {name: rng.normal(0.0, 1.0, n).astype(np.float16) for name in ("bias", "shift")}

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        x = _product(of) + of.bias.astype(np.float32)
        erf = np.vectorize(math.erf)(x.astype(np.float64) / math.sqrt(2))
        return {"c": 0.5 * x * (1 + erf) + of.shift.astype(np.float32)}

    return Case(
        kernels.matmul_epilogue, (8 * 7, 1, 1), _mm(m, n, k, matrix(rng, m, k), matrix(rng, n, k), rows), expected,
        {"BM": 64, "BN": 64, "BK": 32, "GROUP": 4}, tolerance=2e-3,
    )  # fmt: skip


@case()
def matmul_persistent(rng: np.random.Generator) -> Case:
    m, n, k = 384, 384, 128
    return Case(
        kernels.matmul_persistent, (20, 1, 1), _mm(m, n, k, matrix(rng, m, k), matrix(rng, n, k)),
        lambda of: {"c": _product(of)}, {"BM": 64, "BN": 64, "BK": 64}, tolerance=2e-3,
    )  # fmt: skip


@case(("-float", (np.float16, 5, "float32")), ("-int", (np.int8, 100, "int32")))
def split_k(kind: type, limit: int, out: str, rng: np.random.Generator) -> Case:
    """Whole numbers in both: sums of them are exact, so the order of the atomics does not show."""
    m, n, k = 64, 96, 512
    size = np.dtype(kind).itemsize
    a, b = (
        as_strided(rng.integers(-limit, limit + 1, (rows - 1) * 16 + k).astype(kind), (rows, k), (16 * size, size))
        for rows in (m, n)
    )
    return Case(
        kernels.matmul_split_k, (1, 3, 8), _mm(m, n, k, a, b, out=Out(out, (m, n), 0)),
        lambda of: {"c": _product(of).astype(out)}, {"BM": 64, "BN": 32, "BK": 64},
    )  # fmt: skip


@case()
def matmul_specialized(rng: np.random.Generator) -> Case:
    m, n, k = 768, 256, 256
    return Case(
        kernels.matmul_specialized, (m // 128, n // 64, 1), _mm(m, n, k, matrix(rng, m, k), matrix(rng, n, k)),
        lambda of: {"c": _product(of)}, {"BM": 128, "BN": 64, "BK": 64}, tolerance=2e-3,
    )  # fmt: skip


@case()
def matmul_tma(rng: np.random.Generator) -> Case:
    m, n, k = 256, 256, 64
    return Case(
        kernels.matmul_tma, (m // 64, n // 32, 1), _mm(m, n, k, matrix(rng, m, k), matrix(rng, n, k)),
        lambda of: {"c": _product(of)}, {"BM": 64, "BN": 32, "BK": 32}, tolerance=2e-3,
    )  # fmt: skip


@case()
def conv(rng: np.random.Generator) -> Case:
    images, size, channels, filters = 6, 10, 16, 64
    x = rng.normal(0.0, 1.0, (images, size, size, channels)).astype(np.float16)
    w = rng.normal(0.0, 1.0, (9, channels, filters)).astype(np.float16)
    inner = size - 2

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        taps = [of.x[:, i // 3 : i // 3 + inner, i % 3 : i % 3 + inner].astype(np.float32) for i in range(9)]
        return {"y": sum(tap @ of.w[i].astype(np.float32) for i, tap in enumerate(taps))}

    sizes = {"height": size, "width": size, "out_height": inner, "out_width": inner, "channels": channels,
             "filters": filters}  # fmt: skip
    return Case(
        kernels.conv, (images * inner * inner // 32, filters // 32, 1),
        {"x": x, "w": w, "y": Out("float16", (images, inner, inner, filters)), **sizes},
        expected, {"BM": 32, "BN": 32, "BK": 16}, tolerance=2e-3,
    )  # fmt: skip


@case(("-w4", (64, 64, 4)), ("-w8", (128, 32, 8)))
def attention(bm: int, bn: int, warps: int, rng: np.random.Generator) -> Case:
    heads, length, wide, row, head = 12, 256, 64, 16, 128
    scale = math.log2(math.e) / math.sqrt(wide)

    def given() -> np.ndarray:
        flat = rng.normal(0.0, 1.0, (heads - 1) * head + (length - 1) * row + wide).astype(np.float16)
        return as_strided(flat, (heads, length, wide), (head * 2, row * 2, 2))

    def expected(of: SimpleNamespace) -> dict[str, np.ndarray]:
        q, k, v = (x.astype(np.float32) for x in (of.q, of.k, of.v))
        scores = np.where(np.tri(length, dtype=bool), q @ k.swapaxes(1, 2) * scale, -np.inf)
        weights = np.exp2(scores - scores.max(2, keepdims=True))
        return {"out": weights / weights.sum(2, keepdims=True) @ v}

    return Case(
        kernels.attention, (length // bm, heads, 1),
        {"q": given(), "k": given(), "v": given(), "out": Out("float16", (heads, length, wide)), "length": length,
         "stride_head": head, "stride_row": row, "scale": scale},
        expected, {"BM": bm, "BN": bn, "D": wide}, warps, tolerance=3e-3,
    )  # fmt: skip
