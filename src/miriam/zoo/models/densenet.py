"""DenseNet: each layer sees what all layers before it have computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["densenet201"]

_GROWTH = 32


def _step(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # or little of the image would reach the end
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


class _Layer(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_step(inputs, 4 * _GROWTH, 1), _step(4 * _GROWTH, _GROWTH, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet201() -> nn.Module:
    """DenseNet-201 with a growth of 32 (Huang et al., arXiv 1608.06993, table 1)."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    layers: list[nn.Module] = [*stem]
    width = 64
    for count in (6, 12, 48, 32):
        if width > 64:
            layers += [_step(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(count):
            layers.append(_Layer(width))
            width += _GROWTH
    last = [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)]
    return nn.Sequential(*layers, *last)
