"""The networks of MDTB a second time, in plain CUDA kernels of our own, as the suite that the paper took had them.

The paper's benchmark is built from Tango (arXiv 1901.04987): direct convolutions in fp32, a block for each
channel and a thread for each output, one thread for each output of a fully connected layer, nothing in
shared memory. Networks and shapes here are those of :mod:`miriam.zoo.models`; batch norms, activations
of a sum and pools are launches of their own. The kernels are in ``naive.cu`` beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from miriam.errors import ProgramError
from miriam.frontend.builder import Builder
from miriam.frontend.cuda_source import compile_source
from miriam.program import Kernel, Pointer, Program, Tensor

__all__ = ["NETWORKS", "program"]

_TILE = 32  # a block has at most 1024 threads
_UNITS = 128  # of a recurrent layer in a block
_FLOAT = "float32"


def program(
    name: str, *, size: int | None = None, weights: Iterator[Any] | None = None, target: str = "sm_90"
) -> Program:
    """Build a network of plain kernels, batch 1.

    Parameters
    ----------
    name
        One of :data:`NETWORKS`.
    size
        Height and width of the image, where the network takes others than its own.
    weights
        Arrays in the order in which the network uses them: weight and bias of a layer, scale and
        shift of a batch norm. None: weights without contents.
    target
        Architecture to compile for.

    Raises
    ------
    ProgramError
        There is no such network, or a weight has another shape than the layer.
    CompileError
        NVRTC is missing.
    """
    if name not in NETWORKS:
        raise ProgramError(f"there is no network {name!r} of plain kernels: choose from {', '.join(NETWORKS)}")
    make, shape = NETWORKS[name]
    if size is not None:
        shape = (shape[0], size, size)
    net = _Network(f"{name}-naive-b1", weights, target)
    make(net, net.build.input("x", _FLOAT, (1, *shape)))
    return net.build.program({"compiler": net.code.compiler})


@dataclass(frozen=True, slots=True)
class _Map:
    """Channels of an image, somewhere in memory."""

    at: Pointer
    channels: int
    height: int
    width: int

    @property
    def values(self) -> int:
        return self.channels * self.height * self.width

    def part(self, first: int, channels: int) -> _Map:
        """Some of its channels."""
        offset = self.at.offset_bytes + first * self.height * self.width * 4
        return _Map(Pointer(self.at.buffer, offset), channels, self.height, self.width)


class _Network:
    """A program in the making: layers append their launches."""

    def __init__(self, name: str, weights: Iterator[Any] | None, target: str) -> None:
        self.build = Builder(name, target)
        source = files(__package__) / "naive.cu"
        self.code = compile_source(source.read_text("utf-8"), target=target, name=source.name)
        self._weights = weights
        self._kernels: dict[str, Kernel] = {}
        self._made = 0
        self._free: list[Tensor] = []
        self._taken: dict[int, Tensor] = {}

    def kernel(self, name: str, block: tuple[int, int]) -> Kernel:
        if name not in self._kernels:
            self._kernels[name] = self.code.kernel(name, block)
        return replace(self._kernels[name], block=(*block, 1), digest="")

    def weight(self, *shape: int) -> Tensor:
        self._made += 1
        data = None if self._weights is None else next(self._weights)
        if data is not None and data.shape != shape:
            raise ProgramError(f"weight {self._made} of {self.build.name} has the shape {data.shape}, not {shape}")
        return self.build.weight(f"weight {self._made}", _FLOAT, shape, data=data)

    def take(self, channels: int, height: int, width: int) -> _Map:
        """Memory for a map, of one that is used no more if it is large enough."""
        needed = channels * height * width
        fitting = [tensor for tensor in self._free if tensor.shape[0] >= needed]
        if fitting:
            tensor = min(fitting, key=lambda tensor: tensor.shape[0])
            self._free.remove(tensor)
        else:
            tensor = self.build.scratch(f"map {len(self._taken) + len(self._free) + 1}", _FLOAT, (needed,))
        self._taken[tensor.at.buffer] = tensor
        return _Map(tensor.at, channels, height, width)

    def give(self, x: _Map) -> None:
        """Say that a map is used no more; the program's input is left alone."""
        if (tensor := self._taken.pop(x.at.buffer, None)) is not None:
            self._free.append(tensor)

    def tiled(self, name: str, y: _Map, *args: Any, relu: bool) -> None:
        """Launch a kernel that does one tile of ``y``, until all of it is done."""
        for top in range(0, y.height, _TILE):
            for left in range(0, y.width, _TILE):
                block = min(_TILE, y.width - left), min(_TILE, y.height - top)
                self.build.launch(self.kernel(name, block), y.channels, *args, y.height, y.width, top, left, relu)

    def conv(
        self, x: _Map, channels: int, kernel: int, stride: int = 1, padding: int = 0, *, relu: bool = True,
        bias: bool = True, into: _Map | None = None,
    ) -> _Map:  # fmt: skip
        height, width = ((n + 2 * padding - kernel) // stride + 1 for n in (x.height, x.width))
        y = into or self.take(channels, height, width)
        weight = self.weight(channels, x.channels, kernel, kernel)
        shift = self.weight(channels) if bias else None
        args = (x.at, weight, shift, y.at, x.channels, x.height, x.width, kernel, stride, padding)
        self.tiled("convolution", y, *args, relu=relu)
        return y

    def pool(
        self, kind: str, x: _Map, kernel: int, stride: int, padding: int = 0, *, ceil: bool = False,
        relu: bool = False, into: Tensor | None = None,
    ) -> _Map:  # fmt: skip
        height, width = ((n + 2 * padding - kernel + ceil * (stride - 1)) // stride + 1 for n in (x.height, x.width))
        y = self.take(x.channels, height, width) if into is None else _Map(into.at, x.channels, height, width)
        self.tiled(kind, y, x.at, y.at, x.height, x.width, kernel, stride, padding, relu=relu)
        self.give(x)
        return y

    def batch_norm(self, y: _Map, relu: bool) -> None:
        self.tiled("batch_norm", y, y.at, self.weight(y.channels), self.weight(y.channels), relu=relu)

    def linear(self, x: _Map, outputs: int, *, relu: bool = False, last: bool = False) -> _Map:
        y = self.answer(outputs) if last else self.take(outputs, 1, 1)
        weight, bias = self.weight(outputs, x.values), self.weight(outputs)
        self.build.launch(self.kernel("linear", (1, 1)), outputs, x.at, weight, bias, y.at, x.values, relu)
        self.give(x)
        return y

    def answer(self, classes: int) -> _Map:
        return _Map(self.build.output("y", _FLOAT, (1, classes)).at, classes, 1, 1)


def _image(x: Tensor) -> _Map:
    _, channels, height, width = x.shape
    return _Map(x.at, channels, height, width)


def _alexnet(net: _Network, image: Tensor) -> None:
    x = _image(image)
    for channels, kernel, stride, padding, pool in (
        (64, 11, 4, 2, True), (192, 5, 1, 2, True), (384, 3, 1, 1, False), (256, 3, 1, 1, False), (256, 3, 1, 1, True),
    ):  # fmt: skip
        y = net.conv(x, channels, kernel, stride, padding)
        net.give(x)
        x = net.pool("max_pool", y, 3, 2) if pool else y
    net.linear(net.linear(net.linear(x, 4096, relu=True), 4096, relu=True), 1000, last=True)


def _cifarnet(net: _Network, image: Tensor) -> None:
    x = _image(image)
    y = net.conv(x, 32, 5, padding=2, relu=False)
    x = net.pool("max_pool", y, 3, 2, 1, relu=True)
    for channels in (32, 64):
        y = net.conv(x, channels, 5, padding=2)
        net.give(x)
        x = net.pool("average_pool", y, 3, 2, 1)
    net.linear(net.linear(x, 64), 10, last=True)


def _squeezenet(net: _Network, image: Tensor) -> None:
    x = net.pool("max_pool", net.conv(_image(image), 64, 3, 2), 3, 2, ceil=True)
    for squeeze, expand, pool in (
        (16, 64, False), (16, 64, True), (32, 128, False), (32, 128, True), (48, 192, False), (48, 192, False),
        (64, 256, False), (64, 256, False),
    ):  # fmt: skip
        narrow = net.conv(x, squeeze, 1)
        net.give(x)
        x = net.take(2 * expand, narrow.height, narrow.width)
        net.conv(narrow, expand, 1, into=x.part(0, expand))
        net.conv(narrow, expand, 3, padding=1, into=x.part(expand, expand))
        net.give(narrow)
        if pool:
            x = net.pool("max_pool", x, 3, 2, ceil=True)
    y = net.conv(x, 1000, 1)
    net.give(x)
    net.pool("average_pool", y, y.height, 1, into=net.build.output("y", _FLOAT, (1, 1000)))


def _resnet50(net: _Network, image: Tensor) -> None:
    x = net.conv(_image(image), 64, 7, 2, 3, relu=False, bias=False)
    net.batch_norm(x, relu=True)
    x = net.pool("max_pool", x, 3, 2, 1)
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for i in range(count):
            stride, kept = (2 if stage and i == 0 else 1), x
            y = x
            for channels, kernel, step in ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1)):
                before, y = y, net.conv(y, channels, kernel, step, kernel // 2, relu=False, bias=False)
                net.batch_norm(y, relu=channels == width)
                if before is not kept:
                    net.give(before)
            if i == 0:
                x = net.conv(kept, 4 * width, 1, stride, relu=False, bias=False)
                net.batch_norm(x, relu=False)
                net.give(kept)
            net.tiled("add", y, x.at, y.at, relu=True)
            net.give(x)
            x = y
    net.linear(net.pool("average_pool", x, x.height, 1), 1000, last=True)


def _recurrent(net: _Network, x: Tensor, gates: int, hidden: int = 1024, classes: int = 100) -> None:
    _, steps, features = x.shape
    weights = [net.weight(gates * hidden, n) if n else net.weight(gates * hidden) for n in (features, 0, hidden, 0)]
    states = [net.take(hidden, 1, 1), net.take(hidden, 1, 1)]
    cell = [net.take(hidden, 1, 1).at] if gates == 4 else []
    kernel = net.kernel("lstm_step" if gates == 4 else "gru_step", (_UNITS, 1))
    for step in range(steps):
        at = Pointer(x.at.buffer, x.at.offset_bytes + step * features * 4)
        before, after = states[step % 2].at, states[1 - step % 2].at
        net.build.launch(
            kernel, -(-hidden // _UNITS), at, before, after, *cell, *weights, features, hidden, step == 0
        )  # fmt: skip
    net.linear(states[steps % 2], classes, last=True)


def _gru(net: _Network, x: Tensor) -> None:
    _recurrent(net, x, 3)


def _lstm(net: _Network, x: Tensor) -> None:
    _recurrent(net, x, 4)


NETWORKS: dict[str, tuple[Callable[[_Network, Tensor], None], tuple[int, ...]]] = {
    "alexnet": (_alexnet, (3, 224, 224)),
    "cifarnet": (_cifarnet, (3, 32, 32)),
    "gru": (_gru, (16, 256)),
    "lstm": (_lstm, (16, 256)),
    "resnet50": (_resnet50, (3, 224, 224)),
    "squeezenet": (_squeezenet, (3, 224, 224)),
}
"""By name: what appends the layers, and the shape of one input."""
