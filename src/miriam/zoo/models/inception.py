"""Inception: convolutions of several shapes side by side, their outputs joined."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["inceptionv3"]

_ROW, _COLUMN = (1, 7), (7, 1)


def _conv(inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True) -> nn.Module:
    """Convolution, batch norm, ReLU."""
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (rows // 2, columns // 2) if pad else 0
    conv = nn.Conv2d(inputs, outputs, (rows, columns), stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # or little of the image would reach the end
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=0.001), nn.ReLU())


def _chain(inputs: int, *steps: tuple[int, int | tuple[int, int]]) -> nn.Sequential:
    """Convolutions in a row, each given by its outputs and its kernel."""
    widths = [inputs, *(outputs for outputs, _ in steps)]
    return nn.Sequential(*[_conv(width, *step) for width, step in zip(widths, steps, strict=False)])


class _Beside(nn.Module):
    """Branches side by side on the same input, joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _pooled(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), _conv(inputs, outputs, 1))


def _wide(inputs: int, pooled: int) -> nn.Module:
    """Figure 5: 5 x 5, and 3 x 3 twice."""
    return _Beside(
        _conv(inputs, 64, 1), _chain(inputs, (48, 1), (64, 5)), _chain(inputs, (64, 1), (96, 3), (96, 3)),
        _pooled(inputs, pooled),
    )  # fmt: skip


def _factored(width: int) -> nn.Module:
    """Figure 6: 7 x 7 as rows and columns."""
    return _Beside(
        _conv(768, 192, 1), _chain(768, (width, 1), (width, _ROW), (192, _COLUMN)),
        _chain(768, (width, 1), (width, _COLUMN), (width, _ROW), (width, _COLUMN), (192, _ROW)), _pooled(768, 192),
    )  # fmt: skip


def _spread(inputs: int) -> nn.Module:
    """Figure 7: rows and columns side by side."""

    def ends(width: int) -> nn.Module:
        return _Beside(_conv(width, 384, (1, 3)), _conv(width, 384, (3, 1)))

    return _Beside(
        _conv(inputs, 320, 1), nn.Sequential(_conv(inputs, 384, 1), ends(384)),
        nn.Sequential(_chain(inputs, (448, 1), (384, 3)), ends(384)), _pooled(inputs, 192),
    )  # fmt: skip


def _smaller(*branches: nn.Sequential) -> nn.Module:
    """Half the width and height: the branches given, and a pool."""
    return _Beside(*branches, nn.MaxPool2d(3, 2))


def inceptionv3() -> nn.Module:
    """Inception v3 on 299 x 299, without the second head, which is for training (arXiv 1512.00567, table 1)."""
    stem = [
        _conv(3, 32, 3, 2, pad=False), _conv(32, 32, 3, pad=False), _conv(32, 64, 3), nn.MaxPool2d(3, 2),
        _conv(64, 80, 1), _conv(80, 192, 3, pad=False), nn.MaxPool2d(3, 2),
    ]  # fmt: skip
    first = _smaller(
        nn.Sequential(_conv(288, 384, 3, 2, pad=False)),
        nn.Sequential(_chain(288, (64, 1), (96, 3)), _conv(96, 96, 3, 2, pad=False)),
    )
    second = _smaller(
        nn.Sequential(_conv(768, 192, 1), _conv(192, 320, 3, 2, pad=False)),
        nn.Sequential(_chain(768, (192, 1), (192, _ROW), (192, _COLUMN)), _conv(192, 192, 3, 2, pad=False)),
    )
    return nn.Sequential(
        *stem, _wide(192, 32), _wide(256, 64), _wide(288, 64), first, _factored(128), _factored(160), _factored(160),
        _factored(192), second, _spread(1280), _spread(2048),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000),
    )  # fmt: skip
