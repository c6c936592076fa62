"""A convolution template that sums over taps and channels at once (private names of Inductor, as in ``_inductor``).

Inductor's own template takes at least 16 channels in each step and makes a step for each tap. With 3 channels
a 7 x 7 convolution is 49 steps with 13 of 16 products wasted; here the 7 x 7 x 4 = 196 products, channels
padded to 4 so that 8 bytes are read at once, are 7 steps of 32. The image is padded before: no edge is tested.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast
from unittest.mock import patch

import torch
from torch._inductor.lowering import lowerings
from torch._inductor.select_algorithm import SymbolicGridFn, TritonTemplate, autotune_select_algorithm
from torch._inductor.utils import use_triton_template

from miriam.frontend._inductor_tiles import flat_tiles

__all__ = ["CHANNELS", "flat_choices"]

CHANNELS = (2, 4, 8)
"""Input channels that the template takes: half or less of what a step of Inductor's own template takes at least."""

aten = torch.ops.aten
_OVERLOADS = (aten.convolution, aten.convolution.default)
_select: Any = autotune_select_algorithm

_SOURCE = r"""
{{def_kernel("X", "W")}}
    OUT_C = {{size(None, 1)}}
    OUT_H = {{size(None, 2)}}
    OUT_W = {{size(None, 3)}}
    PIXELS = {{size(None, 0)}} * OUT_H * OUT_W
    stride_xn = {{stride("X", 0)}}
    stride_xh = {{stride("X", 2)}}

    pixel = tl.program_id(0).to(INDEX_DTYPE) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1).to(INDEX_DTYPE) * BLOCK_N + tl.arange(0, BLOCK_N)
    idx_w = pixel % OUT_W
    idx_nh = pixel // OUT_W
    idx_h = idx_nh % OUT_H
    idx_n = idx_nh // OUT_H

    # Beyond the last pixel or channel the last one is read, and nothing is stored.
    inside = tl.minimum(pixel, PIXELS - 1)
    from_w = inside % OUT_W
    from_nh = inside // OUT_W
    from_h = from_nh % OUT_H
    from_n = from_nh // OUT_H
    x_base = X + (from_n * stride_xn + from_h * (STRIDE_H * stride_xh) + from_w * (STRIDE_W * CHANNELS))[:, None]
    w_base = W + (tl.minimum(channel, OUT_C - 1) * (ROW * KERNEL_H))[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, ROW * KERNEL_H, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at = k + (k // ROW) * (stride_xh - ROW)
{% if ROW * KERNEL_H % BLOCK_K %}
        there = k < ROW * KERNEL_H
        matrix_x = tl.load(x_base + at[None, :], mask=there[None, :], other=0.0)
        matrix_w = tl.load(w_base + k[:, None], mask=there[:, None], other=0.0)
{% else %}
        matrix_x = tl.load(x_base + at[None, :])
        matrix_w = tl.load(w_base + k[:, None])
{% endif %}
        acc += tl.dot(matrix_x, matrix_w, allow_tf32=ALLOW_TF32)

    idx_n = idx_n[:, None]
    idx_c = channel[None, :]
    idx_h = idx_h[:, None]
    idx_w = idx_w[:, None]
    mask = (pixel < PIXELS)[:, None] & (channel < OUT_C)[None, :]

    {{store_output(("idx_n", "idx_c", "idx_h", "idx_w"), "acc", "mask", val_shape=("BLOCK_M", "BLOCK_N"))}}
"""


@SymbolicGridFn
def _grid(n: Any, c: Any, h: Any, w: Any, meta: Any, *, cdiv: Any) -> tuple[Any, Any, int]:
    return cdiv(n * h * w, meta["BLOCK_M"]), cdiv(c, meta["BLOCK_N"]), 1


_template = TritonTemplate(name="miriam_flat_convolution", grid=_grid, source=_SOURCE)


def _choices(x: Any, weight: Any, layout: Any, stride: Sequence[int]) -> list[Any]:
    """What the template offers for this convolution: nothing if it cannot do it."""
    sizes = [list(x.get_size()), list(weight.get_size()), list(layout.size)]
    if not all(getattr(size, "is_number", True) for some in sizes for size in some) or not use_triton_template(layout):
        return []
    (_, channels, _, _), (outputs, _, high, wide), (batch, _, rows, columns) = [list(map(int, some)) for some in sizes]
    row = wide * channels
    x_strides, w_strides = (list(map(int, buffer.get_layout().stride)) for buffer in (x, weight))
    if (x_strides[1], x_strides[3]) != (1, channels) or w_strides != [high * row, 1, row, channels]:
        return []
    choices: list[Any] = []
    for block_m, block_n, block_k, stages, warps in flat_tiles(batch * rows * columns, outputs, high * row):
        _template.maybe_append_choice(
            choices, input_nodes=(x, weight), layout=layout, num_stages=stages, num_warps=warps, BLOCK_M=block_m,
            BLOCK_N=block_n, BLOCK_K=block_k, CHANNELS=channels, KERNEL_H=high, ROW=row, STRIDE_H=stride[0],
            STRIDE_W=stride[1], ALLOW_TF32=torch.backends.cudnn.allow_tf32,
        )  # fmt: skip
    return choices


def _convolution(otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def convolution(
        x: Any, weight: Any, bias: Any, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
        transposed: bool, output_padding: Sequence[int], groups: int,
    ) -> Any:  # fmt: skip
        sizes = weight.get_size()
        few = len(sizes) == 4 and sizes[1] in CHANNELS and groups == 1 and math.prod(sizes[2:]) > 1
        plain = not transposed and not any(padding) and all(d == 1 for d in dilation)

        def selecting(
            name: str, choices: list[Any], inputs: Sequence[Any], layout: Any, *args: Any, **more: Any
        ) -> Any:
            try:
                choices[:0] = _choices(inputs[0], inputs[1], layout, tuple(stride) * (2 // len(stride)))
            except Exception as error:  # Inductor's own choices are there
                warnings.warn(f"{name} stays with slow templates: {error!r}", RuntimeWarning, stacklevel=2)
            return _select(name, choices, inputs, layout, *args, **more)

        ours = patch("torch._inductor.kernel.conv.autotune_select_algorithm", selecting)
        with ours if few and plain else nullcontext():
            return otherwise(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)

    return convolution


@contextmanager
def flat_choices() -> Iterator[None]:
    """Offer the template inside, wherever it fits, beside Inductor's own."""
    before = {overload: lowerings[overload] for overload in _OVERLOADS}
    for overload, lowering in before.items():
        lowerings[overload] = _convolution(lowering)
    try:
        yield
    finally:
        lowerings.update(cast(Any, before))
