"""Convolutions of few channels, written anew for tensor cores (private names of Inductor, as in ``_inductor``).

Most are the first of a network. Where the squares that one reads lie side by side, as the patches of a vision
transformer, it is one matrix product. Elsewhere image and weights get zeros for channels until these are 2, 4 or
8, and the image its margin of zeros, so that the template of ``_inductor_flat`` takes it. This happens once the
weights are constants with batch norm in them: theirs are padded before the first run, and the image where it is
laid out anyway.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from miriam.frontend._inductor_flat import CHANNELS, flat_choices

__all__ = ["few_channels"]

aten = torch.ops.aten
_ALIGNED = 16  # elements: rows of a matrix that are a multiple of it long are read 16 bytes at once


class _Rewriter:
    """Writes a convolution anew, in its place in the graph."""

    def __init__(self, node: torch.fx.Node) -> None:
        self._node = node
        self._args: Any = node.args
        self._notes = {key: note for key, note in node.meta.items() if key not in ("val", "tensor_meta")}

    def __call__(self, op: Any, *args: Any, **more: Any) -> torch.fx.Node:
        new = self._node.graph.call_function(op, args, more)
        new.meta.update(self._notes)  # kernels are named after them
        return new

    def rewrite(self) -> None:
        x, weight, _, stride, padding, dilation, transposed, _, groups = self._args
        if weight.op != "get_attr" or transposed or groups != 1 or any(d != 1 for d in dilation):
            return
        image, kernel = x.meta["val"].shape, weight.meta["val"].shape
        if len(image) != 4 or len(kernel) != 4 or kernel[1] > max(CHANNELS) or math.prod(kernel[2:]) == 1:
            return
        if not all(isinstance(size, int) for size in (*image, *kernel)):
            return
        with self._node.graph.inserting_before(self._node):
            if tuple(stride) == tuple(kernel[2:]) and not any(padding) and math.prod(kernel[1:]) % _ALIGNED == 0:
                new = self._product(image, kernel)
            elif weight.meta["val"].is_contiguous(memory_format=torch.channels_last):
                new = self._padded(kernel)
            else:
                return
        self._node.replace_all_uses_with(new)
        self._node.graph.erase_node(self._node)

    def _product(self, image: Sequence[int], kernel: Sequence[int]) -> torch.fx.Node:
        x, weight, bias, *_ = self._args
        (batch, channels, *sides), (outputs, _, *taps) = image, kernel
        high, wide = (side // tap for side, tap in zip(sides, taps, strict=True))
        for axis, (tap, count) in enumerate(zip(taps, (high, wide), strict=True), 2):
            if image[axis] != tap * count:
                x = self(aten.slice.Tensor, x, axis, 0, tap * count)
        x = self(aten.reshape.default, x, [batch, channels, high, taps[0], wide, taps[1]])
        rows = self._matrix(x, [0, 2, 4, 3, 5, 1], batch * high * wide)
        columns = self(aten.permute.default, self._matrix(weight, [0, 2, 3, 1], outputs), [1, 0])
        operands = (rows, columns) if bias is None else (bias, rows, columns)
        product = self(aten.mm.default if bias is None else aten.addmm.default, *operands)
        return self(aten.permute.default, self(aten.reshape.default, product, [batch, high, wide, outputs]),
                    [0, 3, 1, 2])  # fmt: skip

    def _matrix(self, x: Any, order: Sequence[int], rows: int) -> torch.fx.Node:
        dense = self(aten.clone.default, self(aten.permute.default, x, order), memory_format=torch.contiguous_format)
        return self(aten.reshape.default, dense, [rows, -1])

    def _padded(self, kernel: Sequence[int]) -> torch.fx.Node:
        x, weight, bias, stride, padding, *rest = self._args
        missing = min(size for size in CHANNELS if size >= kernel[1]) - kernel[1]
        down, right = padding if len(padding) == 2 else padding * 2
        if missing or down or right:
            x = self(aten.constant_pad_nd.default, x, [right, right, down, down, 0, missing])
        if missing:
            weight = self(aten.constant_pad_nd.default, weight, [0, 0, 0, 0, 0, missing])
            weight = self(aten.clone.default, weight, memory_format=torch.channels_last)
        return self(aten.convolution.default, x, weight, bias, stride, [0, 0], *rest)


def _then_rewrite(passes: Callable[..., None]) -> Callable[..., None]:
    def run(module: torch.fx.GraphModule, inputs: Any) -> None:
        passes(module, inputs)
        for node in module.graph.find_nodes(op="call_function", target=aten.convolution.default):
            try:
                _Rewriter(node).rewrite()
            except Exception as error:  # a convolution that is slow is better than none
                warnings.warn(f"{node.name} stays as it is: {error!r}", RuntimeWarning, stacklevel=2)
        module.recompile()

    return run


@contextmanager
def few_channels() -> Iterator[None]:
    """Compile convolutions of few channels this way inside."""
    from torch._inductor.fx_passes.freezing_patterns import freezing_passes  # what it imports warns of torch itself

    with patch("torch._inductor.freezing.freezing_passes", _then_rewrite(freezing_passes)), flat_choices():
        yield
