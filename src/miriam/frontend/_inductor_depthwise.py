"""Depthwise convolutions as pointwise kernels (private names of Inductor, as in ``_inductor``).

The convolution template has one output channel for each input channel here, so it fills a tensor-core
tile with one useful column: MobileNetV3 (batch 16) took 23 times as long as with cuDNN. Written as a sum over the
taps, a depthwise convolution is one pointwise kernel, which Inductor fuses with what follows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch._inductor.lowering import lowerings, to_dtype

__all__ = ["depthwise_as_pointwise"]

aten = torch.ops.aten
_OVERLOADS = (aten.convolution, aten.convolution.default)


def _convolution(otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def convolution(
        x: Any, weight: Any, bias: Any, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
        transposed: bool, output_padding: Sequence[int], groups: int,
    ) -> Any:  # fmt: skip
        sizes = [x.get_size(), weight.get_size()]
        static = all(getattr(size, "is_number", True) for size in (*sizes[0], *sizes[1]))
        depthwise = static and len(sizes[0]) == 4 and 1 < groups == sizes[0][1] == sizes[1][0] and sizes[1][1] == 1
        if not depthwise or transposed:
            return otherwise(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
        return _taps(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation))

    return convolution


def _taps(x: Any, weight: Any, bias: Any, stride: tuple[int, ...], padding: tuple[int, ...],
          dilation: tuple[int, ...]) -> Any:  # fmt: skip
    """Sum over the taps in fp32; x (N, C, H, W), weight (C, 1, kh, kw), bias (C,) or None."""
    dtype, channels = x.get_dtype(), int(weight.get_size()[0])
    taps = [int(size) for size in weight.get_size()[2:]]
    outs = [
        (int(size) + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(x.get_size()[2:], padding, dilation, taps, stride, strict=True)
    ]
    x.realize()  # or every tap would compute the input anew
    padded = lowerings[aten.constant_pad_nd](x, [padding[1], padding[1], padding[0], padding[0]], 0.0)
    total: Any = None
    for tap in range(math.prod(taps)):
        part = padded
        for axis, at in enumerate(divmod(tap, taps[1])):
            begin = at * dilation[axis]
            end = begin + stride[axis] * (outs[axis] - 1) + 1
            part = lowerings[aten.slice](part, 2 + axis, begin, end, stride[axis])
        factor = lowerings[aten.select](lowerings[aten.view](weight, [channels, math.prod(taps)]), 1, tap)
        factor = lowerings[aten.view](factor, [1, channels, 1, 1])
        term = lowerings[aten.mul](to_dtype(part, torch.float32), to_dtype(factor, torch.float32))
        total = term if total is None else lowerings[aten.add](total, term)
    if bias is not None:
        total = lowerings[aten.add](total, to_dtype(lowerings[aten.view](bias, [1, channels, 1, 1]), torch.float32))
    return to_dtype(total, dtype)


@contextmanager
def depthwise_as_pointwise() -> Iterator[None]:
    """Lower depthwise convolutions this way inside."""
    before = {overload: lowerings[overload] for overload in _OVERLOADS}
    for overload, lowering in before.items():
        lowerings[overload] = _convolution(lowering)
    try:
        yield
    finally:
        lowerings.update(cast(Any, before))
