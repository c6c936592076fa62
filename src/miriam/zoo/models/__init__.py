"""The networks of the zoo, as published, with random weights.

Only shapes decide how long a kernel takes, so nothing is downloaded. Each function gives a fresh
``nn.Module``; :data:`MODELS` lists them with their input shapes and batch sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from miriam.zoo.models.attention import attention
from miriam.zoo.models.densenet import densenet201
from miriam.zoo.models.distilbert import VOCABULARY, distilbert
from miriam.zoo.models.inception import inceptionv3

__all__ = ["MODELS", "Model"]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def alexnet() -> nn.Module:
    """AlexNet in its one-tower form (Krizhevsky, arXiv 1404.5997)."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride, padding, pool in (
        (3, 64, 11, 4, 2, True), (64, 192, 5, 1, 2, True), (192, 384, 3, 1, 1, False), (384, 256, 3, 1, 1, False),
        (256, 256, 3, 1, 1, True),
    ):  # fmt: skip
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if pool else []
    head = [nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, *head)


def vgg19() -> nn.Module:
    """VGG-19 without batch norm (Simonyan and Zisserman, arXiv 1409.1556, column E)."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            conv = nn.Conv2d(inputs, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # or little of the image would reach the end
            layers += [conv, nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, *head)


def cifarnet() -> nn.Module:
    """CifarNet: three convolutions and two linear layers on 32 x 32 images (cuda-convnet's layers-80sec)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, 1),
        nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10),
    )  # fmt: skip


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


class _Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.one = nn.Conv2d(squeeze, expand, 1)
        self.three = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), _pool(), _Fire(64, 16, 64), _Fire(128, 16, 64), _pool(),
        _Fire(128, 32, 128), _Fire(256, 32, 128), _pool(), _Fire(256, 48, 192), _Fire(384, 48, 192),
        _Fire(384, 64, 256), _Fire(512, 64, 256), nn.Conv2d(512, 1000, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        if bottleneck:
            body = [_conv(inputs, width, 1), _conv(width, width, 3, stride), nn.Conv2d(width, outputs, 1, bias=False)]
        else:
            body = [_conv(inputs, width, 3, stride), nn.Conv2d(width, outputs, 3, padding=1, bias=False)]
        self.body = nn.Sequential(*body, nn.BatchNorm2d(outputs))
        straight = stride == 1 and inputs == outputs
        conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.skip = nn.Identity() if straight else nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def _resnet(blocks: tuple[int, ...], bottleneck: bool) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate(blocks):
        for i in range(count):
            width = 64 << stage
            layers.append(_Residual(inputs, width, 2 if stage and i == 0 else 1, bottleneck))
            inputs = width * 4 if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def resnet18() -> nn.Module:
    """ResNet-18 (He et al., arXiv 1512.03385)."""
    return _resnet((2, 2, 2, 2), bottleneck=False)


def resnet34() -> nn.Module:
    """ResNet-34 (He et al., arXiv 1512.03385)."""
    return _resnet((3, 4, 6, 3), bottleneck=False)


def resnet50() -> nn.Module:
    """ResNet-50 with the stride in the 3 x 3 convolution (He et al., arXiv 1512.03385)."""
    return _resnet((3, 4, 6, 3), bottleneck=True)


def resnet152() -> nn.Module:
    """ResNet-152 with the stride in the 3 x 3 convolution (He et al., arXiv 1512.03385)."""
    return _resnet((3, 8, 36, 3), bottleneck=True)


class _Recurrent(nn.Module):
    """A recurrent layer written out step by step, and a linear layer on its last state.

    Input: (batch, steps, features). ``gates`` is 4 for an LSTM and 3 for a GRU, in the equations of
    ``torch.nn.LSTMCell`` and ``torch.nn.GRUCell``.
    """

    def __init__(self, gates: int, features: int = 256, hidden: int = 1024, classes: int = 100) -> None:
        super().__init__()
        self.gates, self.hidden = gates, hidden
        self.inner = nn.Linear(features, gates * hidden)
        self.recur = nn.Linear(hidden, gates * hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden)
        c = torch.zeros_like(h)
        for step in range(x.shape[1]):
            a, b = self.inner(x[:, step]), self.recur(h)
            if self.gates == 4:
                i, f, g, o = (a + b).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
                z = torch.sigmoid(az + bz)
                h = (1 - z) * torch.tanh(an + torch.sigmoid(ar + br) * bn) + z * h
        return self.head(h)  # type: ignore[no-any-return]


def gru() -> nn.Module:
    """A GRU layer of 1024 units over 16 steps (Cho et al., arXiv 1406.1078)."""
    return _Recurrent(3)


def lstm() -> nn.Module:
    """An LSTM layer of 1024 units over 16 steps (Hochreiter and Schmidhuber 1997)."""
    return _Recurrent(4)


class _Inverted(nn.Module):
    def __init__(self, inputs: int, kernel: int, middle: int, outputs: int, excite: bool, hard: bool, stride: int):
        super().__init__()
        act: Callable[[], nn.Module] = nn.Hardswish if hard else nn.ReLU

        def conv(i: int, o: int, k: int, s: int = 1, groups: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]

        self.widen = nn.Sequential(*conv(inputs, middle, 1), act()) if middle != inputs else nn.Identity()
        self.depth = nn.Sequential(*conv(middle, middle, kernel, stride, middle), act())
        squeezed = max(8, (middle // 4 + 4) // 8 * 8)
        gate = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(middle, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, middle, 1)]
        self.gate = nn.Sequential(*gate, nn.Hardsigmoid()) if excite else None
        self.narrow = nn.Sequential(*conv(middle, outputs, 1))
        self.straight = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.widen(x))
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.narrow(y)
        return torch.add(x, y) if self.straight else torch.as_tensor(y)


def mobilenetv3() -> nn.Module:
    """MobileNetV3-Large (Howard et al., arXiv 1905.02244, table 1)."""
    rows = (
        (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
        (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
        (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2),
        (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
    )  # fmt: skip
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()]
    inputs = 16
    for kernel, middle, outputs, excite, hard, stride in rows:
        layers.append(_Inverted(inputs, kernel, middle, outputs, bool(excite), bool(hard), stride))
        inputs = outputs
    layers += [nn.Conv2d(160, 960, 1, bias=False), nn.BatchNorm2d(960), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(960, 1280), nn.Hardswish(), nn.Linear(1280, 1000))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class _VisionTransformer(nn.Module):
    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16, tokens: int = 196) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.place = nn.Parameter(torch.randn(1, tokens + 1, width) * 0.02)
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


def vit_b16() -> nn.Module:
    """ViT-B/16 (Dosovitskiy et al., arXiv 2010.11929)."""
    return _VisionTransformer()


@dataclass(frozen=True, slots=True)
class Model:
    """A network of the zoo.

    Attributes
    ----------
    make
        Its factory.
    shape
        Of one input, without the batch.
    batches
        Batch sizes that are kept.
    vocabulary
        Inputs are token ids below this number (int64); 0: numbers.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batches: tuple[int, ...]
    vocabulary: int = 0

    def inputs(self, batch: int, device: str = "cpu") -> Tensor:
        """Random inputs, as fp16 numbers or as token ids."""
        if self.vocabulary:
            return torch.randint(self.vocabulary, (batch, *self.shape), device=device)
        return torch.randn(batch, *self.shape, device=device).half()


_IMAGE = (3, 224, 224)

MODELS = {
    "alexnet": Model(alexnet, _IMAGE, (1, 16)),
    "cifarnet": Model(cifarnet, (3, 32, 32), (1, 64)),
    "squeezenet": Model(squeezenet, _IMAGE, (1, 16)),
    "resnet18": Model(resnet18, _IMAGE, (1, 32)),
    "resnet34": Model(resnet34, _IMAGE, (1, 16)),
    "resnet50": Model(resnet50, _IMAGE, (1, 16)),
    "gru": Model(gru, (16, 256), (1,)),
    "lstm": Model(lstm, (16, 256), (1,)),
    "mobilenetv3": Model(mobilenetv3, _IMAGE, (1, 16)),
    "vit-b16": Model(vit_b16, _IMAGE, (1, 8)),
    "vgg19": Model(vgg19, _IMAGE, (1,)),
    "resnet152": Model(resnet152, _IMAGE, (1,)),
    "densenet201": Model(densenet201, _IMAGE, (1,)),
    "inceptionv3": Model(inceptionv3, (3, 299, 299), (1,)),
    "distilbert": Model(distilbert, (128,), (1,), VOCABULARY),
}
