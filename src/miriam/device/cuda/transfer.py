"""What goes into a program and what comes out, on its way between its user and the GPU."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate
from typing import Any, overload
from weakref import WeakSet

import numpy as np

from miriam.device.cuda.dlpack import CPU, HOSTS, View, viewed
from miriam.device.cuda.driver import Event, Gpu, HostMemory, Stream, check
from miriam.device.cuda.instance import Instance
from miriam.device.unread import Unread, is_unread, read
from miriam.errors import ClosedError, DeviceError, InputError
from miriam.program import Pointer, Program, Tensor

__all__ = ["Staged", "Transfer", "host_type"]

_ALIGN = 256
# What is copied at a time: copies of one direction follow one another whosever they are, so that is the most that
# a critical request waits for a normal one's.
_CHUNK_BYTES = 2 << 20
_SMALL_BYTES = 64 << 10  # outputs that are copied out at once, which takes a few us


@lru_cache(64)  # NumPy takes microseconds to find a type, and to spell one
def host_type(dtype: str) -> np.dtype[Any]:
    """NumPy's type of that name, or ml_dtypes'; where that is not there, bits of the same size."""
    with suppress(TypeError):
        return np.dtype(dtype)
    with suppress(ImportError, TypeError):
        import ml_dtypes  # noqa: F401 - it makes its types known to NumPy

        return np.dtype(dtype)
    return np.dtype(f"uint{8 * Tensor('', dtype, (), (), Pointer(0)).item_bytes}")


@lru_cache(64)
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name


class Transfer:
    """Brings inputs to where the GPU can fetch them at once, and outputs to where their user finds them.

    What may take long is done in the threads of those who ask; the thread that looks after the GPU only
    enqueues copies, from and to memory for which no copy makes it wait.

    Parameters
    ----------
    gpu
        Whose memory it is.
    program
        Whose inputs and outputs.
    """

    def __init__(self, gpu: Gpu, program: Program) -> None:
        self.gpu = gpu
        self.program = program
        sizes = [-(-tensor.span_bytes // _ALIGN) * _ALIGN for tensor in (*program.inputs, *program.outputs)]
        self.offsets = tuple(accumulate(sizes, initial=0))
        self.lock = threading.RLock()  # a request that nobody wants comes back whenever it is collected
        self._free: list[HostMemory] = []
        self._staged: WeakSet[Staged] = WeakSet()
        self._stream: Stream | None = None
        self._taking = 0  # threads that write to memory of requests
        self._taken = threading.Condition(self.lock)
        self._open = True

    def stage(self, given: Sequence[Any]) -> Staged:
        """Take the inputs of a request. From any thread.

        Arrays and tensors of the host are copied, and may be changed when this returns. Tensors on the GPU
        stay where they are, to be left alone until the request is over; the GPU waits for what is pending in
        their streams.

        Raises
        ------
        InputError
            What was given is not what the program takes.
        DeviceError
            The driver refuses.
        """
        wanted, name = self.program.inputs, self.program.name
        if len(given) != len(wanted):
            raise InputError(f"{name} takes {len(wanted)} inputs, and {len(given)} were given")
        with self.lock:
            self._taking += 1
        try:
            return self._take(given)
        finally:
            with self.lock:
                self._taking -= 1
                self._taken.notify_all()

    def _take(self, given: Sequence[Any]) -> Staged:
        staged = Staged(self)
        try:
            for tensor, thing in zip(self.program.inputs, given, strict=True):
                try:
                    staged.take(tensor, thing)
                except InputError as error:
                    raise InputError(
                        f"input {tensor.name} of {self.program.name} is {error}: "
                        f"give {_words(tensor.dtype, tensor.shape)}"
                    ) from error
        except BaseException:
            staged.close()  # at once, not when nobody looks at the error any more
            raise
        return staged

    def ready(self) -> None:
        """Have memory for a request."""
        with self.lock:
            self._free.append(self._memory())

    def _memory(self) -> HostMemory:
        """Page-locked memory for one request; making some holds up all work of the GPU, so it is kept."""
        if self._free:
            return self._free.pop()
        with self.gpu.visited():
            return self.gpu.host_memory(max(self.offsets[-1] // 4, 1))

    def pending(self) -> Stream:
        """A stream that waits for what others' streams have to do."""
        with self.lock:
            if self._stream is None:
                self._stream = Stream()
            return self._stream

    def enter(self, staged: Staged) -> HostMemory:
        """Give memory to a request."""
        with self.lock:
            if not self._open:
                raise ClosedError(f"{self.program.name} is closed")
            memory = self._memory()
            self._staged.add(staged)
            return memory

    def leave(self, staged: Staged, memory: HostMemory, event: Event | None) -> None:
        """Take it back."""
        with self.lock:
            self._staged.discard(staged)
            if self._open:
                self._free.append(memory)
            if event is None and self._open:
                return
            with self.gpu.visited():
                if event is not None:
                    event.close()
                if not self._open:
                    memory.close()

    def close(self) -> None:
        """Give all memory back, once nobody writes to it; outputs that nobody has looked at yet are put elsewhere."""
        with self.lock:
            self._open = False
            self._taken.wait_for(lambda: not self._taking)
            for staged in list(self._staged):
                staged.part()
            with self.gpu.visited():
                for memory in self._free:
                    memory.close()
                if self._stream is not None:
                    self._stream.close()
            self._free, self._stream = [], None


class Staged(Sequence[View]):
    """The inputs of a request where the GPU finds them, and a place for its outputs; see :meth:`Transfer.stage`."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._views: list[View] = []
        self._held: list[object] = []  # what must stay until the request is over
        self._event: Event | None = None
        self._there: list[Any] = []  # outputs on the GPU
        self._results: list[Any] | None = None
        self._done = False
        self._memory: HostMemory | None = transfer.enter(self)

    def __len__(self) -> int:
        return len(self._views)

    @overload
    def __getitem__(self, index: int) -> View: ...
    @overload
    def __getitem__(self, index: slice) -> list[View]: ...
    def __getitem__(self, index: int | slice) -> View | list[View]:
        return self._views[index]

    def take(self, tensor: Tensor, thing: Any) -> None:
        """Take the next input.

        Raises
        ------
        InputError
            It is another one; the message says what it is.
        """
        thing = thing.detach() if hasattr(thing, "detach") else thing
        if isinstance(thing, np.ndarray | np.generic):
            self._write(tensor, np.asarray(thing), _name(thing.dtype))
        elif is_unread(thing):
            self._read(tensor, thing)
        elif hasattr(thing, "__dlpack_device__") and int(thing.__dlpack_device__()[0]) in HOSTS:
            view, held = _seen(thing, 0, 0)
            self._write(tensor, _array(view), view.dtype)
            del held
        else:
            with self._transfer.gpu.visited():
                self._point(tensor, thing)

    def _write(self, tensor: Tensor, array: np.ndarray[Any, Any], dtype: str) -> None:
        """Copy an input of the host."""
        target = self._target(tensor, dtype, array.shape)
        np.copyto(target, array if _name(array.dtype) == _name(target.dtype) else array.view(target.dtype))

    def _read(self, tensor: Tensor, thing: Unread) -> None:
        """Read an input to where the GPU fetches it."""
        target = self._target(tensor, _name(thing.dtype), thing.shape)
        if target.flags.c_contiguous and target.dtype == thing.dtype:
            thing.read_into(target)
        else:
            np.copyto(target, read(thing).view(target.dtype))

    def _target(self, tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The place of the next input, if that is what it has to be."""
        if (dtype, shape) != (tensor.dtype, tensor.shape):
            raise InputError(_words(dtype, shape))
        self._views.append(self._place(tensor, len(self._views)))
        return _array(self._views[-1])

    def _point(self, tensor: Tensor, thing: Any) -> None:
        """Leave an input of the GPU where it is, and make room for outputs beside it."""
        transfer = self._transfer
        pending = transfer.pending()
        if hasattr(thing, "new_empty_strided"):  # a tensor of PyTorch
            if tuple(thing.shape) == tensor.shape and thing.stride() != tensor.strides:
                thing = thing.new_empty_strided(tensor.shape, tensor.strides).copy_(thing)
            if not self._there:
                types = vars(sys.modules["torch"])
                self._there = [
                    thing.new_empty_strided(out.shape, out.strides, dtype=types[out.dtype])
                    for out in transfer.program.outputs
                ]
        view, held = _seen(thing, int(pending.handle), transfer.gpu.ordinal)
        if (view.dtype, view.shape) != (tensor.dtype, tensor.shape):
            raise InputError(_words(view.dtype, view.shape))
        if not view.alike(View(0, tensor.dtype, tensor.shape, tensor.strides)):
            raise InputError(f"one with strides {view.strides}, not {tensor.strides}")
        if view.device[1] != transfer.gpu.ordinal:
            raise InputError(f"on GPU {view.device[1]}, not {transfer.gpu.ordinal}")
        if self._event is None:
            self._event = Event(timed=False)
        self._event.record(pending)
        self._held += [thing, held]
        self._views.append(view)

    def _place(self, tensor: Tensor, number: int) -> View:
        """Where a tensor lies in the memory of this request; outputs are counted behind inputs."""
        if self._memory is None:
            raise ClosedError(f"{self._transfer.program.name} is closed")
        at = self._memory.host + self._transfer.offsets[number]
        return View(at, tensor.dtype, tensor.shape, tensor.strides, (CPU, 0))

    @property
    def _out(self) -> list[View]:
        """Where outputs of the host lie."""
        program = self._transfer.program
        return [self._place(tensor, len(program.inputs) + i) for i, tensor in enumerate(program.outputs)]

    def feed(self, instance: Instance, stream: Stream) -> None:
        """Enqueue the inputs."""
        if self._event is not None:
            stream.wait(self._event)
        for tensor, view in zip(self._transfer.program.inputs, self._views, strict=True):
            to = instance.address(tensor.at)
            if view.device[0] != CPU:
                stream.copy(to, view.address, tensor.span_bytes)
                continue
            for at, size in _chunks(tensor.span_bytes):
                stream.upload(to + at, view.address + at, size)

    def fetch(self, instance: Instance, stream: Stream) -> None:
        """Enqueue the outputs."""
        outputs = self._transfer.program.outputs
        for tensor, there in zip(outputs, self._there, strict=False):
            stream.copy(there.data_ptr(), instance.address(tensor.at), tensor.span_bytes)
        for tensor, view in zip(outputs, () if self._there else self._out, strict=False):
            for at, size in _chunks(tensor.span_bytes):
                stream.download(view.address + at, instance.address(tensor.at) + at, size)

    def done(self) -> Sequence[Any]:
        """Give the outputs, now that they are there: tensors on the GPU where inputs were, or arrays.

        Where those are large they are copied out of this memory when somebody looks at them.
        """
        self._held, self._done = [], True
        if sum(tensor.span_bytes for tensor in self._transfer.program.outputs) > _SMALL_BYTES:
            return Outputs(self)
        return self.results()

    def results(self) -> list[Any]:
        """The outputs in memory of their own. From any thread."""
        with self._transfer.lock:
            if self._results is None:
                self._results = self._there or [_array(view).copy() for view in self._out]
                self.close()
        return self._results

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return len(self._transfer.program.outputs)

    def part(self) -> None:
        """Let go of the memory, but not of outputs."""
        if self._done:
            self.results()
        self.close()

    def close(self) -> None:
        """Give the memory back; allowed twice."""
        with self._transfer.lock:
            memory, event, self._memory, self._event = self._memory, self._event, None, None
            self._held = []
            if memory is not None:
                self._transfer.leave(self, memory, event)

    def __del__(self) -> None:
        if hasattr(self, "_memory"):  # or there was none to be had
            self.close()


class Outputs(Sequence[Any]):
    """Arrays that are copied out of memory for requests when somebody looks at them."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged

    def __len__(self) -> int:
        return self._staged.outputs

    def __getitem__(self, index: Any) -> Any:
        return self._staged.results()[index]


def _seen(thing: Any, stream: int, ordinal: int) -> tuple[View, object]:
    """A tensor where it lies, and what keeps it there."""
    try:
        view, held, pending = viewed(thing, stream, ordinal)
    except DeviceError as error:
        raise InputError(str(error)) from error
    if pending is not None:
        check("cuStreamSynchronize", pending)
    return view, held


def _array(view: View) -> np.ndarray[Any, Any]:
    """Memory of the host as an array."""
    kind = host_type(view.dtype)
    strides = [stride * kind.itemsize for stride in view.strides]
    span = (
        0
        if 0 in view.shape
        else kind.itemsize + sum((size - 1) * step for size, step in zip(view.shape, strides, strict=True))
    )
    memory: Any = (ctypes.c_char * span).from_address(view.address)
    return np.ndarray(view.shape, kind, memory, strides=strides)


def _chunks(size_bytes: int) -> Iterable[tuple[int, int]]:
    """First byte and size of the pieces in which so many bytes are copied."""
    return ((at, min(_CHUNK_BYTES, size_bytes - at)) for at in range(0, size_bytes, _CHUNK_BYTES))


def _words(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype} of shape {'x'.join(map(str, shape)) or '()'}"
