"""Outputs of a task compared with what its unmodified kernels compute, on the GPU, inference by inference."""

from __future__ import annotations

from miriam.device.cuda.control import Control
from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.instance import Instance

__all__ = ["Check"]


class Check:
    """Two sets of inputs that take turns, and the outputs that belong to them.

    Inputs differ from one inference to the next, so what an inference left behind is not right for
    the following one.

    Parameters
    ----------
    stream
        Where the unmodified program is run, once for each set of inputs.
    """

    def __init__(self, gpu: Gpu, control: Control, instance: Instance, stream: Stream, seed: int) -> None:
        self._gpu = gpu
        self._control = control
        self._memory: list[int] = []
        program = instance.program
        self._inputs = [(instance.address(tensor.at), tensor.span_bytes) for tensor in program.inputs]
        self._outputs = [(instance.address(tensor.at), tensor.span_bytes) for tensor in program.outputs]
        fed: list[list[int]] = []
        expected: list[list[int]] = []
        try:
            words = self._allocate(16)
            gpu.write(words, bytes(16))
            self._turn, self._wrong, self._unheard = words, words + 4, words + 8
            for turn in (1, 0):  # the inputs of the first inference stay in place
                instance.fill_inputs(seed + turn)
                fed.insert(0, self._kept(self._inputs))
                instance.enqueue(stream)
                stream.synchronize()
                expected.insert(0, self._kept(self._outputs))
        except BaseException:
            self.close()
            raise
        self._fed = list(zip(*fed, strict=True))
        self._expected = list(zip(*expected, strict=True))

    def _allocate(self, size_bytes: int) -> int:
        self._memory.append(self._gpu.allocate(size_bytes))
        return self._memory[-1]

    def _kept(self, places: list[tuple[int, int]]) -> list[int]:
        copies = []
        for at, size in places:
            copies.append(self._allocate(size))
            self._gpu.write(copies[-1], self._gpu.read(at, size))
        return copies

    def enqueue(self, stream: Stream) -> None:
        """Enqueue what belongs behind an inference: the comparison, and the inputs of the next one."""
        for (at, size), pair in zip(self._outputs, self._expected, strict=True):
            self._control.compare(stream, self._turn, at, pair, size, self._wrong)
        for (at, size), pair in zip(self._inputs, self._fed, strict=True):
            self._control.feed(stream, self._turn, (pair[1], pair[0]), at, size)
        self._control.notify(stream, 0, self._turn, self._unheard)

    @property
    def found(self) -> tuple[int, int]:
        """Inferences compared, and words of 4 bytes that were not equal; read while none is in flight."""
        raw = self._gpu.read(self._turn, 8)
        return int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")

    def close(self) -> None:
        """Give the memory back."""
        for address in self._memory:
            self._gpu.free(address)
        self._memory = []
