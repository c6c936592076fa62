"""The design space of an elastic kernel beside a critical one, and how it is shrunk.

A candidate is a shard of ``blocks`` blocks with ``threads`` threads each. For every pair of a
critical launch and a normal launch the candidates are filtered by what the hardware leaves,
ranked, and the best fifth is kept; all of it before the first request comes.

The rules are those of Miriam (Zhao et al., SenSys'23) as they were reconstructed; the paper's own
text was not at hand. N_blk and S_blk are blocks and threads of a block, rt the critical launch, be
the shard, N_SM the SMs of the device, L the threads that one of them holds::

    (a)  N_blk_be <= N_SM - N_blk_rt mod N_SM              fits the SMs that the last wave leaves idle
         S_blk_be <= L - S_blk_rt                          fits beside one critical block
    (b)  WIScore = (N_blk_rt mod N_SM + N_blk_be) / N_SM * (S_blk_rt + S_blk_be) / L
    (c)  OScore  = 1 if the launches of all shards cost no more than a bound, else 0
    (d)  keep the top 20 % of what satisfies (a) by WIScore * OScore

They are geometry alone: a critical launch counts as one block on each SM, and a full last wave
reads as an empty device. Registers, shared memory and bandwidth do not appear.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from miriam.device.base import Geometry
from miriam.elastic.ptx import parse
from miriam.elastic.shards import slices
from miriam.elastic.thin import why_not_thin
from miriam.errors import PtxError
from miriam.program import Kernel, Source

__all__ = ["Candidate", "Shape", "Space", "block_sizes", "multiples", "o_score", "shrink", "wi_score"]

_WARP = 32
_KEEP_ONE_IN = 5  # rule (d)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the design space knows of a launch.

    Attributes
    ----------
    blocks, threads
        Its grid and its block: N_blk and S_blk.
    sizes
        Blocks that a shard of it may have.
    widths
        Threads that a block of it may have.
    """

    blocks: int
    threads: int
    sizes: tuple[int, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, kernel: Kernel, blocks: int) -> Shape:
        """The shape of ``blocks`` blocks of ``kernel``; an opaque kernel has itself as its only shard."""
        sizes = (blocks,) if kernel.opaque else slices(blocks)
        return cls(blocks, kernel.threads, sizes, block_sizes(kernel))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shard shape: blocks, threads of a block, and WIScore * OScore."""

    blocks: int
    threads: int
    score: float


@dataclass(frozen=True, slots=True)
class Space:
    """The shrunk design space of one pair.

    Attributes
    ----------
    candidates, feasible
        How many there were, and how many satisfy the hardware limits (a).
    kept
        What is left, best first.
    """

    candidates: int
    feasible: int
    kept: tuple[Candidate, ...]

    @property
    def pruned(self) -> float:
        """Share of the candidates that was pruned, 0 to 1."""
        return 1.0 - len(self.kept) / self.candidates


def multiples(threads: int) -> tuple[int, ...]:
    """Whole warps below ``threads``, and ``threads`` itself: N logical threads on 1 physical one.

    >>> multiples(169)
    (32, 64, 96, 128, 160, 169)
    """
    return (*range(_WARP, threads, _WARP), threads)


def block_sizes(kernel: Kernel) -> tuple[int, ...]:
    """Threads that a block of ``kernel`` may have, smallest first.

    A kernel whose threads know nothing of each other (:func:`miriam.elastic.thin.why_not_thin`) can run
    several logical threads on a physical one: whole warps below its size. A Triton kernel can be
    compiled again for half its warps, and half of those. Any other kernel has its own size alone.
    When in doubt the answer is the smaller set.
    """
    own = kernel.threads
    if kernel.opaque:
        return (own,)
    if not kernel.shared_bytes and _thin(kernel):
        return multiples(own)
    warps = own // _WARP
    if kernel.source is Source.TRITON and kernel.ttir and own == warps * _WARP and warps.bit_count() == 1:
        return tuple(_WARP << i for i in range(warps.bit_length()))
    return (own,)


@functools.lru_cache(maxsize=1024)
def _thin(kernel: Kernel) -> bool:
    try:
        module = parse(kernel.ptx or "", kernel.name)
    except PtxError:
        return False
    entry = next((entry for entry in module.entries if entry.name == kernel.name), None)
    return entry is not None and not why_not_thin(module, entry)


def wi_score(rt: Shape, blocks: int, threads: int, geometry: Geometry) -> float:
    """WIScore (b) of a shard of ``blocks`` x ``threads`` beside ``rt``: in (0, 1] if (a) holds."""
    filled = rt.blocks % geometry.sms + blocks
    return filled / geometry.sms * ((rt.threads + threads) / geometry.threads_per_sm)


def o_score(shards: int, launch_us: float, limit_us: float) -> int:
    """OScore (c): 1 if launching so many shards costs at most ``limit_us``, else 0.

    The bound is not known from the paper; it is a parameter here.
    """
    return int(shards * launch_us <= limit_us)


def shrink(rt: Shape, be: Shape, geometry: Geometry, launch_us: float = 0.0, limit_us: float = math.inf) -> Space:
    """Rules (a) to (d) for one pair.

    Of the feasible candidates a fifth is kept, rounded up; those that rule (c) scores zero
    never are. Equal scores: fewer launches first, then the wider block.

    Parameters
    ----------
    rt, be
        The critical and the normal launch.
    launch_us, limit_us
        Cost of one launch and the most that the shards of one launch may cost together (c).
    """
    room = geometry.sms - rt.blocks % geometry.sms
    beside = geometry.threads_per_sm - rt.threads
    sizes = [g for g in be.sizes if g <= room]
    widths = [b for b in be.widths if b <= beside]
    ranked = [
        Candidate(g, b, wi_score(rt, g, b, geometry))
        for g in sizes
        if o_score(be.blocks // g, launch_us, limit_us)
        for b in widths
    ]
    ranked.sort(key=lambda c: (c.score, c.blocks, c.threads), reverse=True)
    feasible = len(sizes) * len(widths)
    keep = -(-feasible // _KEEP_ONE_IN)
    return Space(len(be.sizes) * len(be.widths), feasible, tuple(ranked[:keep]))
