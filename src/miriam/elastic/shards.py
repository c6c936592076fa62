"""Shards of a launch: dichotomy slicing and the shaded binary tree.

A launch of M blocks may be cut into halves, the halves into halves, as long as the blocks divide
evenly. So every shard is a node of a binary tree whose root is the whole grid, and no remainder
shard exists. At run time a node is *shaded* when it has been handed out; the unshaded rest waits.
"""

from __future__ import annotations

from miriam.errors import PolicyError

__all__ = ["ShadedTree", "slices"]


def slices(blocks: int) -> tuple[int, ...]:
    """Sizes that the shards of a grid may have, smallest first (dichotomy slicing).

    ``S(K) = (M / 2^n, ..., M / 2, M)`` with the largest ``n`` for which ``2^n`` divides ``M``: Miriam
    (SenSys'23) as reconstructed. An odd grid cannot be cut.

    >>> slices(96)
    (3, 6, 12, 24, 48, 96)
    >>> slices(729)
    (729,)
    """
    if blocks < 1:
        raise PolicyError(f"a grid of {blocks} blocks cannot be cut: it needs at least one")
    halvings = (blocks & -blocks).bit_length() - 1
    return tuple(blocks >> i for i in range(halvings, -1, -1))


class ShadedTree:
    """The dynamic shaded kernel binary tree of one launch.

    Nodes are contiguous ranges of logical blocks. Shading splits a node by halving down to the size
    that is wanted and hands out its lower end; the upper halves stay behind as unshaded peers. Work
    that was handed out never comes back, so peers never merge, and the unshaded nodes whose parent
    is split say everything about the tree: it holds at most one of them for each halving and call.

    Parameters
    ----------
    blocks
        Logical blocks of the launch.
    """

    __slots__ = ("_nodes", "blocks", "left")

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.left = blocks
        self._nodes = [(0, blocks)]  # (offset, size) in the order of their offsets

    @property
    def untouched(self) -> bool:
        """Whether nothing was handed out yet."""
        return self.left == self.blocks

    @property
    def largest(self) -> int:
        """Blocks of the largest unshaded subtree; 0 when all is shaded."""
        return max((size for _, size in self._nodes), default=0)

    def take(self, size: int) -> tuple[int, int] | None:
        """Shade a node of ``size`` blocks, at the lowest offset there is.

        Returns
        -------
        tuple or None
            The blocks ``begin`` to ``end - 1``; None if no unshaded subtree is that large.

        Raises
        ------
        PolicyError
            ``size`` is not one of :func:`slices`.
        """
        if size < 1 or self.blocks % size or (self.blocks // size).bit_count() != 1:
            raise PolicyError(f"{size} blocks are no shard of {self.blocks}: take one of {slices(self.blocks)}")
        for i, (offset, whole) in enumerate(self._nodes):
            if whole >= size:
                peers = []
                peer = size
                while peer < whole:
                    peers.append((offset + peer, peer))
                    peer *= 2
                self._nodes[i : i + 1] = peers
                self.left -= size
                return offset, offset + size
        return None

    def take_largest(self) -> tuple[int, int] | None:
        """Shade the largest unshaded subtree, of several the lowest; None when all is shaded."""
        return self.take(self.largest) if self._nodes else None
