"""A program on a GPU: its memory, its loaded kernels, and its launches."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from miriam.device.cuda.bound import Bound, embed, launchable
from miriam.device.cuda.dlpack import CPU, CUDA, View, viewed
from miriam.device.cuda.driver import Function, Gpu, Graph, Module, Stream, check
from miriam.errors import DeviceError
from miriam.program import Kernel, Pointer, Program, Source, Tensor

__all__ = ["Code", "Instance"]


class Code:
    """The kernels of a program, loaded for one GPU; instances in any of its contexts share them."""

    def __init__(self, program: Program) -> None:
        self._modules: dict[str, tuple[Module, str]] = {}  # equal kernels may have several names
        try:
            for kernel in program.kernels:
                if kernel.ptx is not None and kernel.digest not in self._modules:
                    self._modules[kernel.digest] = Module(kernel.ptx.encode() + b"\0"), kernel.name
        except BaseException:
            self.close()
            raise

    def function(self, kernel: Kernel) -> Function:
        """``kernel`` for the current context."""
        module, name = self._modules[kernel.digest]
        return module.function(name, kernel.dynamic_shared_bytes)

    def close(self) -> None:
        """Unload everything."""
        for module, _ in self._modules.values():
            module.close()
        self._modules = {}


class Instance:
    """One instance of a program: buffers of its own, kernels for the current context.

    Parameters
    ----------
    gpu
        Where.
    program
        Every launch of it must carry its code (``program.runnable``), unless ``partial``.
    code
        Loaded kernels, to be shared among instances; by default loaded here and owned.
    partial
        Accept opaque launches; they are left out when the program runs.
    bound
        Where the program is there already: its memory is used as it is, and launches run from its graph.

    Raises
    ------
    DeviceError
        A launch is opaque, the driver refuses the code or the memory, or ``bound`` is of another program.
    """

    def __init__(
        self, gpu: Gpu, program: Program, code: Code | None = None, *, partial: bool = False,
        bound: Bound | None = None,
    ) -> None:  # fmt: skip
        if bound is not None and bound.program != program:
            raise DeviceError(f"{program.name} is not the program of what it is bound to, {bound.program.name}")
        if not program.runnable and not partial and bound is None:
            names = sorted({k.name for k in program.kernels if k.opaque and k.ptx is None})
            raise DeviceError(
                f"{program.name} cannot run from its file: the code of {', '.join(names)} is not in it; "
                "run the model it was compiled from"
            )
        self.program = program
        self._gpu = gpu
        self._code = code or Code(program)
        self._owned = code is None
        self._bound = bound
        self._memory: list[int] = [] if bound is None else list(bound.addresses)
        self._parts: dict[tuple[int, int], Graph] = {}
        self._stream: Stream | None = None
        try:
            for buffer in program.buffers if bound is None else ():
                self._memory.append(gpu.allocate(buffer.size_bytes))
            for address, buffer in zip(self._memory, program.buffers, strict=True):
                if buffer.data is not None and bound is None:
                    gpu.write(address, buffer.data)
            self._functions = {
                i: self._code.function(kernel) for i, kernel in enumerate(program.kernels) if kernel.ptx is not None
            }
        except BaseException:
            self.close()
            raise

    def address(self, at: Pointer) -> int:
        """Device address of a place in a buffer."""
        return self._memory[at.buffer] + at.offset_bytes

    def tensor(self, tensor: Tensor) -> View:
        """Give an input or output where it lies: ``torch.from_dlpack`` and its like wrap it without a copy.

        It is valid until :meth:`close`; whoever reads or writes it keeps clear of runs of the program.
        """
        return View(self.address(tensor.at), tensor.dtype, tensor.shape, tensor.strides, (CUDA, self._gpu.ordinal))

    def write(self, tensor: Tensor, data: object, stream: Stream | None = None) -> None:
        """Set an input.

        Parameters
        ----------
        data
            All bytes from the first element to the last, or a tensor of any library, on the GPU or the
            host, with ``__dlpack__`` or ``__cuda_array_interface__``.
        stream
            Where a tensor on the GPU is copied; it must stay until that is done. By default the copy is
            waited for.

        Raises
        ------
        DeviceError
            ``data`` is neither, lies on another GPU, or its length, dtype, shape or strides are not those of
            the input.
        """
        if isinstance(data, bytes | bytearray | memoryview):
            given_bytes = memoryview(data).nbytes
            if given_bytes != tensor.span_bytes:
                raise DeviceError(
                    f"{tensor.name} of {self.program.name} has {tensor.span_bytes} bytes, what was given {given_bytes}"
                )
            self._gpu.write(self.address(tensor.at), bytes(data))
            return
        if self._stream is None:
            self._stream = Stream()
        on = stream or self._stream
        given, held, pending = viewed(data, int(on.handle), self._gpu.ordinal)
        if not given.alike(self.tensor(tensor)):
            raise DeviceError(
                f"{tensor.name} of {self.program.name} is {self.tensor(tensor)}, what was given is {given}: "
                "make it alike, with .to() and .contiguous(), or copy it into tensor(...)"
            )
        if given.device[0] == CPU:
            self._gpu.write(self.address(tensor.at), ctypes.string_at(given.address, tensor.span_bytes))
            return
        if given.device[1] != self._gpu.ordinal:
            raise DeviceError(f"{tensor.name} was given on GPU {given.device[1]}, not {self._gpu.ordinal}: move it")
        if pending is not None:
            check("cuStreamSynchronize", pending)
        on.copy(self.address(tensor.at), given.address, tensor.span_bytes)
        if stream is None:
            on.synchronize()
        del held

    def read(self, tensor: Tensor, size_bytes: int) -> bytes:
        """Bytes of an output, from its first element on."""
        return self._gpu.read(self.address(tensor.at), size_bytes)

    def fill(self, seed: int = 0) -> None:
        """Put small random numbers into everything that the program brings no contents for.

        Speed and power depend on the data: zeros run faster than a network's numbers. Floating point
        numbers are fp16; inputs of whole numbers, which may be places in a table, get 0 to 99. What is
        bound keeps its contents.
        """
        if self._bound is not None:
            return
        for i, buffer in enumerate(self.program.buffers):
            if buffer.data is None:
                self._scatter(Pointer(i), buffer.size_bytes, np.dtype(np.float16), seed)
        self.fill_inputs(seed)

    def fill_inputs(self, seed: int) -> None:
        """Put random numbers, as :meth:`fill` does, into the inputs alone, but for those that the program brings."""
        for tensor in self.program.inputs:
            if self.program.buffers[tensor.at.buffer].data is not None:
                continue
            whole = tensor.dtype.startswith(("int", "uint", "bool"))
            self._scatter(tensor.at, tensor.span_bytes, np.dtype(tensor.dtype if whole else np.float16), seed)

    def _scatter(self, at: Pointer, size_bytes: int, kind: np.dtype[Any], seed: int) -> None:
        random, count = np.random.default_rng(seed), min(-(-size_bytes // kind.itemsize), 1 << 19)
        some = random.normal(0.0, 0.1, count) if kind.kind == "f" else random.integers(0, 100, count)
        numbers = some.astype(kind).tobytes()
        for offset in range(0, size_bytes, len(numbers)):
            self._gpu.write(self.address(at) + offset, numbers[: size_bytes - offset])

    def runnable(self, launch: int) -> bool:
        """Whether launch number ``launch`` can run: from what the program carries, or because it is bound."""
        kernel = self.program.kernel_of(launch)
        return self._bound is not None or kernel.ptx is not None or kernel.source in (Source.COPY, Source.FILL)

    def every(self) -> list[int]:
        """All launches that can run, in order."""
        return [i for i in range(len(self.program.launches)) if self.runnable(i)]

    def enqueue(self, stream: Stream, launches: Iterable[int] | None = None) -> None:
        """Enqueue launches in order; all that can run by default."""
        wanted = self.every() if launches is None else launches
        if self._bound is not None:
            for part in _runs(wanted):
                if embed(stream, self._bound, *part):
                    continue
                if part not in self._parts:
                    self._parts[part] = launchable(self._bound, *part)
                self._parts[part].launch(stream)
            return
        for i in wanted:
            self._enqueue(stream, i)

    def _enqueue(self, stream: Stream, index: int) -> None:
        launch = self.program.launches[index]
        kernel = self.program.kernels[launch.kernel]
        raw = [self.address(a).to_bytes(8, "little") if isinstance(a, Pointer) else a.raw for a in launch.args]
        if kernel.source is Source.COPY:
            stream.copy(*(int.from_bytes(r, "little") for r in raw))
        elif kernel.source is Source.FILL:
            stream.fill(*(int.from_bytes(r, "little") for r in raw))
        else:
            function = self._functions[launch.kernel]
            function.launch(stream, launch.grid, kernel.block, kernel.dynamic_shared_bytes, raw)

    def blocks_per_sm(self, launch: int) -> int:
        """Resident blocks of a launch on one SM, as the driver computes them; 1 for copies and fills."""
        kernel = self.program.kernel_of(launch)
        if kernel.ptx is None:
            return 1
        function = self._functions[self.program.launches[launch].kernel]
        return function.blocks_per_sm(kernel.threads, kernel.dynamic_shared_bytes)

    def graph(self, stream: Stream, launches: Iterable[int] | None = None) -> Graph:
        """Give a CUDA graph of the launches, captured on ``stream``."""
        stream.begin_capture()
        self.enqueue(stream, launches)
        return stream.end_capture()

    def close(self) -> None:
        """Give the memory back, and the code if it was loaded here."""
        for part in self._parts.values():
            part.close()
        if self._stream is not None:
            self._stream.close()
        for address in self._memory if self._bound is None else ():
            self._gpu.free(address)
        self._memory, self._parts, self._stream = [], {}, None
        if self._owned:
            self._code.close()


def _runs(launches: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and one past the last of launches that follow one another."""
    first = last = -1
    for i in launches:
        if i != last:
            if last > first:
                yield first, last
            first = i
        last = i + 1
    if last > first:
        yield first, last
