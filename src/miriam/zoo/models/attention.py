"""Attention, as a kernel of Triton's where a model is compiled and as the libraries' where it is not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from torch.nn.attention.flex_attention import flex_attention

__all__ = ["attention"]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention; (batch, heads, tokens, features) each.

    The fused attention of the libraries stays a library call in a compiled model, and ``flex_attention`` is
    slow in one that is not.
    """
    if not torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v)
    y = flex_attention(q, k, v)
    assert isinstance(y, Tensor)
    return y
