# ruff: noqa: N802, N803, N815 - the names are those of the driver's calls
"""Calls of a driver that is not there: written down, made to fail; handles, contexts, partitions, memory."""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from null_gpu import Context, Graph, Green, Handle, MisuseError, NullGpu, Stream

__all__ = ["ATTRIBUTES", "CUgraphNodeType", "CUresult", "FakeCalls"]

H = TypeVar("H", bound=Handle)


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_STATE = 401
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_MERGE = 902
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904
    CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION = 914


class CUgraphNodeType(IntEnum):
    CU_GRAPH_NODE_TYPE_KERNEL = 0
    CU_GRAPH_NODE_TYPE_MEMCPY = 1
    CU_GRAPH_NODE_TYPE_MEMSET = 2
    CU_GRAPH_NODE_TYPE_HOST = 3
    CU_GRAPH_NODE_TYPE_EMPTY = 5
    CU_GRAPH_NODE_TYPE_CONDITIONAL = 13


class _Names:
    """Every enumeration that nobody looks at: a member is its own name."""

    def __getattr__(self, name: str) -> str:
        return name


class _Struct(SimpleNamespace):
    """A structure whose fields are what is put there."""


class _Attribute(_Struct):
    def __init__(self) -> None:
        super().__init__(value=_Struct())


class _NodeParams(_Struct):
    def __init__(self) -> None:
        super().__init__(conditional=_Struct())


ATTRIBUTES = {
    "MULTIPROCESSOR_COUNT": 132, "MAX_THREADS_PER_MULTIPROCESSOR": 2048, "MAX_BLOCKS_PER_MULTIPROCESSOR": 32,
    "MAX_REGISTERS_PER_MULTIPROCESSOR": 65536, "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": 233472,
    "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 232448, "RESERVED_SHARED_MEMORY_PER_BLOCK": 1024, "L2_CACHE_SIZE": 62914560,
    "COMPUTE_CAPABILITY_MAJOR": 9,
}  # fmt: skip
_LEAST, _GREATEST = 0, -5  # priorities
_GROUP = 8  # SMs that cannot be split


class FakeCalls(NullGpu):
    """The part of :class:`fake_driver.FakeDriver` that is no stream and no graph."""

    CUresult = CUresult
    CUgraphNodeType = CUgraphNodeType
    CUlaunchConfig = _Struct
    CUlaunchAttribute = _Attribute
    CUgraphNodeParams = _NodeParams
    CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTALLOC_DEVICEMAP, CU_GRAPH_COND_ASSIGN_DEFAULT = 1, 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fail: dict[str, CUresult] = {}
        self.fail_at: int | None = None
        self.nodes: list[Any] = []
        self.edges: list[tuple[int, int]] = []
        self.parameters: dict[Any, tuple[int, ...]] = {}
        self.gpus = 1
        self.compiler_log = b""
        self.handles: dict[int, Handle] = {}
        self._numbers = itertools.count(0x100, 0x10)
        self._primary: dict[int, Context] = {}
        self._threads = threading.local()
        self._lock = threading.RLock()  # the driver can be called from any thread

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the bindings."""
        patch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=self))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("CU"):
            return _Names()
        if name.startswith("_") or not name.startswith("cu"):
            raise AttributeError(name)
        answer = getattr(type(self), f"_{name}", None)
        if answer is None:
            raise AttributeError(f"the fake driver has no {name}")

        def call(*args: Any) -> tuple[Any, ...]:
            with self._lock:
                return act(*args)

        def act(*args: Any) -> tuple[Any, ...]:
            status = self.fail.get(name, CUresult.CUDA_SUCCESS)
            if self.fail_at == len(self.calls):
                status = CUresult.CUDA_ERROR_OUT_OF_MEMORY
            self.calls.append((name, args))
            if status is CUresult.CUDA_SUCCESS:
                values = answer(self, *args)
                return (values,) if isinstance(values, CUresult) else (status, *values)
            if name == "cuLibraryLoadData":
                ctypes.memmove(args[2][0], self.compiler_log, len(self.compiler_log))  # as the bindings do
            if name == "cuStreamEndCapture":
                self._give_up(args[0])
            return (status,)

        return call

    def names(self) -> list[str]:
        """The calls in order."""
        return [name for name, _ in self.calls]

    def leaks(self) -> list[str]:
        """What was made and not closed."""
        bodies = {body for handle in self.handles.values() if isinstance(handle, Graph) for body in handle.bodies()}
        owned = [*self._primary.values(), *(h.context for h in self.handles.values() if isinstance(h, Green)), *bodies]
        left = [repr(handle) for handle in self.handles.values() if handle.alive and handle not in owned]
        left += [repr(context) for context in self._primary.values() if context.users]
        left += [f"{len(held)} bytes at {at:#x}" for at, held in self.memory.device.items()]
        return left + [f"{len(held)} bytes of the host at {at:#x}" for at, held in self.memory.host.items()]

    # --- handles

    def _made(self, handle: H) -> H:
        handle.number = next(self._numbers)
        self.handles[handle.number] = handle
        return handle

    def _use(self, kind: type[H], handle: Any) -> H:
        if not isinstance(handle, kind) or not handle.alive:
            raise MisuseError(f"{self.calls[-1][0]} of {handle!r}, which is no {kind.__name__.lower()} or closed")
        return handle

    def _close(self, kind: type[H], handle: Any) -> H:
        self._use(kind, handle).alive = False
        return handle

    def CUgraph(self, init_value: Any) -> Any:
        return self.handles.get(int(init_value), init_value)

    def CUfunction(self, init_value: int) -> int:
        return init_value

    CUgraphConditionalHandle = CUfunction

    def cuGetErrorString(self, status: CUresult) -> tuple[CUresult, bytes]:
        return CUresult.CUDA_SUCCESS, f"words about {status.name}".encode()

    # --- the GPU and its contexts

    def _cuInit(self, flags: int) -> tuple[()]:
        return ()

    def _cuCtxSynchronize(self) -> tuple[()]:
        return self._wait(lambda: any(stream.work for stream in self.streams))

    _cuProfilerStart = _cuProfilerStop = _cuCtxSynchronize

    def _cuDeviceGetCount(self) -> tuple[int]:
        return (self.gpus,)

    def _cuDeviceGet(self, ordinal: int) -> tuple[int]:
        return (ordinal,)

    def _cuDeviceGetName(self, len: int, dev: Any) -> tuple[bytes]:
        return (b"NVIDIA H200".ljust(len, b"\0"),)

    def _cuDriverGetVersion(self) -> tuple[int]:
        return (13000,)

    def _cuDeviceGetAttribute(self, attrib: str, dev: Any) -> tuple[int]:
        return (ATTRIBUTES[attrib.removeprefix("CU_DEVICE_ATTRIBUTE_")],)

    def _cuDevicePrimaryCtxRetain(self, dev: int) -> tuple[Context]:
        context = self._primary.get(dev)
        if context is None or not context.alive:
            context = self._primary[dev] = self._made(Context())
        context.users += 1
        return (context,)

    def _cuDevicePrimaryCtxRelease(self, dev: int) -> tuple[()]:
        context = self._use(Context, self._primary.get(dev))
        context.users -= 1
        context.alive = context.users > 0
        return ()

    def _cuDevicePrimaryCtxGetState(self, dev: int) -> tuple[int, int]:
        context = self._primary.get(dev)
        return 0, int(context is not None and context.users > 0)

    @property
    def _current(self) -> list[Context | None]:
        """The contexts of this thread."""
        try:
            return self._threads.contexts
        except AttributeError:
            self._threads.contexts = [None]
            return self._threads.contexts

    def _cuCtxGetCurrent(self) -> tuple[Any]:
        return (self._current[-1],)

    def _cuCtxSetCurrent(self, ctx: Any) -> tuple[()]:
        self._current[-1] = None if ctx is None else self._use(Context, ctx)
        return ()

    def _cuCtxPushCurrent(self, ctx: Any) -> tuple[()]:
        self._current.append(self._use(Context, ctx))
        return ()

    def _cuCtxPopCurrent(self) -> tuple[Any]:
        return (self._current.pop(),)

    def _cuCtxGetStreamPriorityRange(self) -> tuple[int, int]:
        return _LEAST, _GREATEST

    def _wait(self, busy: Callable[[], bool]) -> tuple[()]:
        self.run()
        if busy():
            raise MisuseError(f"{self.calls[-1][0]} would wait for ever")
        return ()

    def _stream(self, context: Any, priority: int) -> tuple[Stream]:
        stream = self._made(Stream(context, max(min(priority, _LEAST), _GREATEST)))
        self.streams.append(stream)
        return (stream,)

    def _here(self) -> bool:
        current = self._current[-1]
        return current is not None and current.alive

    # --- parts of it

    def _cuDeviceGetDevResource(self, device: Any, typename: Any) -> tuple[Any]:
        return (self._resource(range(ATTRIBUTES["MULTIPROCESSOR_COUNT"]), None),)

    @staticmethod
    def _resource(sms: range, split: object) -> Any:
        return _Struct(sm=_Struct(smCount=len(sms)), sms=sms, split=split)

    def _cuDevSmResourceSplitByCount(self, nbGroups: int, input_: Any, useFlags: int, minCount: int) -> Any:
        size = max(-(-minCount // _GROUP), 1) * _GROUP
        sms, split = input_.sms, object()
        count = min(nbGroups, len(sms) // size)
        if not count:
            return CUresult.CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION
        groups = [self._resource(sms[size * i : size * (i + 1)], split) for i in range(count)]
        nothing = [self._resource(sms[:0], None) for _ in range(nbGroups - count)]
        return groups + nothing, count, self._resource(sms[size * count :], split)

    def _cuDevResourceGenerateDesc(self, resources: list[Any], nbResources: int) -> Any:
        if len({id(resource.split) for resource in resources}) != 1:
            return CUresult.CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION
        return (frozenset(sm for resource in resources[:nbResources] for sm in resource.sms),)

    def _cuGreenCtxCreate(self, desc: Any, dev: Any, flags: Any) -> tuple[Green]:
        green = self._made(Green(desc))
        green.context = self._made(Context(green))
        return (green,)

    def _cuCtxFromGreenCtx(self, hCtx: Any) -> tuple[Any]:
        return (self._use(Green, hCtx).context,)

    def _cuGreenCtxStreamCreate(self, greenCtx: Any, flags: Any, priority: int) -> tuple[Stream]:
        return self._stream(self._use(Green, greenCtx).context, priority)

    def _cuGreenCtxDestroy(self, hCtx: Any) -> tuple[()]:
        context = self._close(Green, hCtx).context
        for stream in self.streams:
            if stream.context is context:
                raise MisuseError(f"{hCtx!r} is destroyed before its {stream!r}")
        context.alive = False
        return ()

    # --- memory

    def _cuMemAlloc(self, bytesize: int) -> tuple[int]:
        return (self.memory.allocate(bytesize),)

    def _cuMemFree(self, dptr: int) -> tuple[()]:
        self.memory.free(dptr)
        return ()

    def _cuMemHostAlloc(self, bytesize: int, Flags: int) -> Any:
        if not bytesize:
            return CUresult.CUDA_ERROR_INVALID_VALUE
        held = ctypes.create_string_buffer(b"\xa5" * bytesize, bytesize)
        self.memory.host[ctypes.addressof(held)] = held
        return (ctypes.addressof(held),)

    def _cuMemHostGetDevicePointer(self, p: int, Flags: int) -> tuple[int]:
        self.memory.view(p, 1)
        return (p,)

    def _cuMemFreeHost(self, p: int) -> tuple[()]:
        if self.memory.host.pop(p, None) is None:
            raise MisuseError(f"{p:#x} is no allocation of the host, or freed already")
        return ()

    def _cuMemcpyHtoD(self, dstDevice: int, srcHost: bytes, ByteCount: int) -> tuple[()]:
        self.memory.write(dstDevice, srcHost[:ByteCount])
        return ()

    def _cuMemcpyDtoH(self, dstHost: int, srcDevice: int, ByteCount: int) -> tuple[()]:
        ctypes.memmove(dstHost, self.memory.read(srcDevice, ByteCount), ByteCount)
        return ()

    def _cuMemcpyDtoDAsync(self, dstDevice: int, srcDevice: int, ByteCount: int, hStream: Any) -> tuple[()]:
        return self._do(hStream, "copy", lambda: self.memory.write(dstDevice, self.memory.read(srcDevice, ByteCount)))

    def _cuMemcpyHtoDAsync(self, dstDevice: int, srcHost: int, ByteCount: int, hStream: Any) -> tuple[()]:
        self._locked(srcHost)
        return self._do(hStream, "upload", lambda: self.memory.write(dstDevice, self.memory.read(srcHost, ByteCount)))

    def _cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: int, ByteCount: int, hStream: Any) -> tuple[()]:
        self._locked(dstHost)
        return self._do(hStream, "download", lambda: self.memory.write(dstHost, self.memory.read(srcDevice, ByteCount)))

    def _locked(self, address: int) -> None:
        """Memory that is not page-locked would make the host wait for the stream."""
        if not any(at <= address < at + len(held) for at, held in self.memory.host.items()):
            raise MisuseError(f"{address:#x} is no page-locked memory")

    def _cuMemsetD8Async(self, dstDevice: int, uc: int, N: int, hStream: Any, width: int = 1) -> tuple[()]:
        raw = uc.to_bytes(width, "little") * N
        return self._do(hStream, "fill", lambda: self.memory.write(dstDevice, raw))

    def _cuMemsetD16Async(self, dstDevice: int, us: int, N: int, hStream: Any) -> tuple[()]:
        return self._cuMemsetD8Async(dstDevice, us, N, hStream, 2)

    def _cuMemsetD32Async(self, dstDevice: int, ui: int, N: int, hStream: Any) -> tuple[()]:
        return self._cuMemsetD8Async(dstDevice, ui, N, hStream, 4)

    def _cuMemsetD2D32Async(
        self, dstDevice: int, dstPitch: int, ui: int, Width: int, Height: int, hStream: Any
    ) -> tuple[()]:
        raw = ui.to_bytes(4, "little") * Width

        def fill() -> None:
            for row in range(Height):
                self.memory.write(dstDevice + row * dstPitch, raw)

        return self._do(hStream, "fill", fill)
