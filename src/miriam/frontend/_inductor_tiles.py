"""Tiles for the templates, and how well the grid of a tile fills the GPU."""

from __future__ import annotations

import math

import torch

__all__ = ["CONV_WARPS", "TILES", "Tile", "flat_tiles", "misfit"]

Tile = tuple[int, int, int, int, int]
"""(BLOCK_M, BLOCK_N, BLOCK_K, stages, warps). In a convolution M counts output pixels, N output channels."""

TILES: tuple[Tile, ...] = (
    (16, 32, 128, 4, 2), (16, 64, 64, 4, 2), (32, 32, 64, 4, 2), (32, 32, 128, 3, 4), (32, 64, 64, 4, 4),
    (64, 32, 64, 4, 4), (64, 64, 32, 4, 4), (64, 64, 64, 4, 4), (64, 128, 64, 4, 4), (128, 64, 64, 4, 4),
    (128, 64, 32, 3, 4), (128, 128, 32, 3, 4), (128, 128, 64, 3, 4), (128, 128, 64, 3, 8), (128, 256, 64, 3, 8),
)  # fmt: skip

CONV_WARPS = 4  # conv templates with a loop over taps are miscompiled at 8 warps (triton-lang/triton issue 1254)


def flat_tiles(m: int, n: int, k: int) -> list[Tile]:
    """Tiles of a convolution as one product of ``m`` pixels, ``n`` output channels and ``k`` products each.

    All output channels lie in one block where they are at most 128, since each further block would read
    the image again; steps along ``k`` are those that do at most a quarter more than the best of them.
    """
    wide = min(128, max(16, _power_of_two(n)))
    tall = sorted((32, 64, 128), key=lambda rows: misfit(m, n, (rows, wide, 0, 0, 0)))[:2]
    padded = {step: math.ceil(k / step) * step for step in (16, 32, 64)}
    steps = [step for step, size in padded.items() if 4 * size <= 5 * min(padded.values())]
    return [(rows, wide, step, 4 if step == 16 else 3, CONV_WARPS) for rows in tall for step in reversed(steps)]


def misfit(m: int, n: int, tile: Tile) -> float:
    """How far the grid of a tile is from one and a half waves of one block on each SM, in octaves."""
    blocks = math.ceil(m / tile[0]) * math.ceil(n / tile[1])
    return abs(math.log2(blocks / (1.5 * _sms())))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _sms() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
