# ruff: noqa: N802, N815 - the names are those of the driver's calls
"""Stands in for the bindings of the CUDA driver: memory that holds bytes, and a list of all calls."""

from __future__ import annotations

import ctypes
import sys
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2


class CUgraphNodeType(IntEnum):
    CU_GRAPH_NODE_TYPE_KERNEL = 0
    CU_GRAPH_NODE_TYPE_MEMCPY = 1
    CU_GRAPH_NODE_TYPE_MEMSET = 2
    CU_GRAPH_NODE_TYPE_HOST = 3
    CU_GRAPH_NODE_TYPE_EMPTY = 5


class _Names:
    """Every enumeration that nobody looks at: a member is its own name."""

    def __getattr__(self, name: str) -> str:
        return name


ATTRIBUTES = {
    "MULTIPROCESSOR_COUNT": 132, "MAX_THREADS_PER_MULTIPROCESSOR": 2048, "MAX_BLOCKS_PER_MULTIPROCESSOR": 32,
    "MAX_REGISTERS_PER_MULTIPROCESSOR": 65536, "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": 233472,
    "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 232448, "RESERVED_SHARED_MEMORY_PER_BLOCK": 1024, "L2_CACHE_SIZE": 62914560,
}  # fmt: skip


class FakeDriver:
    """What tests look at: ``calls`` (name and arguments), ``memory`` (address to bytes), ``launches``.

    ``fail[call]`` is the status that a call gives from now on, ``nodes`` and ``edges`` are the graph
    that is read, ``parameters`` the sizes of a kernel's parameters by function.
    """

    CUresult = CUresult
    CUgraphNodeType = CUgraphNodeType

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fail: dict[str, CUresult] = {}
        self.memory: dict[int, bytearray] = {}
        self.launches: list[tuple[Any, ...]] = []
        self.nodes: list[Any] = []
        self.edges: list[tuple[int, int]] = []
        self.parameters: dict[int, tuple[int, ...]] = {}
        self.gpus = 1
        self.compiler_log = b""
        self._next = 0x10000

    def __getattr__(self, name: str) -> Any:
        if name.startswith("CU"):
            return _Names()
        if not name.startswith("cu"):
            raise AttributeError(name)
        answer = getattr(self, f"_{name}", lambda *args: (f"{name}-{len(self.calls)}",))

        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append((name, args))
            status = self.fail.get(name, CUresult.CUDA_SUCCESS)
            if status is CUresult.CUDA_SUCCESS:
                return (status, *answer(*args))
            if name == "cuLibraryLoadData":
                ctypes.memmove(args[2][0], self.compiler_log, len(self.compiler_log))  # as the bindings do
            return (status,)

        return call

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the bindings."""
        patch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=self))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def CUgraph(self, init_value: int) -> int:
        return init_value

    CUfunction = CUgraph

    def cuGetErrorString(self, status: CUresult) -> tuple[CUresult, bytes]:
        return CUresult.CUDA_SUCCESS, f"words about {status.name}".encode()

    def cuFuncGetParamInfo(self, function: int, index: int) -> tuple[Any, ...]:
        sizes = self.parameters.get(function, ())
        if index >= len(sizes):
            return CUresult.CUDA_ERROR_INVALID_VALUE, None, None
        return CUresult.CUDA_SUCCESS, sum(sizes[:index]), sizes[index]

    def _cuDeviceGetCount(self) -> tuple[int]:
        return (self.gpus,)

    def _cuDeviceGetName(self, size: int, device: Any) -> tuple[bytes]:
        return (b"NVIDIA H200".ljust(size, b"\0"),)

    def _cuDriverGetVersion(self) -> tuple[int]:
        return (13000,)

    def _cuDeviceGetAttribute(self, name: str, device: Any) -> tuple[int]:
        return (ATTRIBUTES[name.removeprefix("CU_DEVICE_ATTRIBUTE_")],)

    def _cuMemAlloc(self, size: int) -> tuple[int]:
        address, self._next = self._next, self._next + (size + 255) // 256 * 256
        self.memory[address] = bytearray(size)
        return (address,)

    def _cuMemFree(self, address: int) -> tuple[()]:
        del self.memory[address]
        return ()

    def _place(self, address: int) -> tuple[bytearray, int]:
        start = max(base for base in self.memory if base <= address)
        return self.memory[start], address - start

    def _cuMemcpyHtoD(self, address: int, data: bytes, size: int) -> tuple[()]:
        held, offset = self._place(address)
        held[offset : offset + size] = data[:size]
        return ()

    def _cuMemcpyDtoH(self, host: int, address: int, size: int) -> tuple[()]:
        held, offset = self._place(address)
        ctypes.memmove(host, bytes(held[offset : offset + size]), size)
        return ()

    def _cuMemcpyDtoDAsync(self, destination: int, source: int, size: int, stream: Any) -> tuple[()]:
        held, offset = self._place(source)
        return self._cuMemcpyHtoD(destination, bytes(held[offset : offset + size]), size)

    def _cuLibraryLoadData(self, code: bytes, *rest: Any) -> tuple[str]:
        return (f"library {len(code)}",)

    def _cuLibraryGetKernel(self, library: Any, name: bytes) -> tuple[str]:
        return (name.decode(),)

    def _cuKernelGetFunction(self, kernel: Any) -> tuple[Any]:
        return (kernel,)

    def _cuLaunchKernel(self, function: Any, *rest: Any) -> tuple[()]:
        *shape, _stream, parameters, _extra = rest
        sizes = self.parameters.get(function, ())
        table = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        raw = tuple(ctypes.string_at(table[i], size) for i, size in enumerate(sizes))
        self.launches.append((function, tuple(shape[:3]), tuple(shape[3:6]), shape[6], raw))
        return ()

    def _cuGraphLaunch(self, graph: Any, stream: Any) -> tuple[()]:
        return ()

    def _cuEventElapsedTime(self, start: Any, end: Any) -> tuple[float]:
        return (0.25,)

    def _cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function: Any, threads: int, shared: int) -> tuple[int]:
        return (2048 // threads,)

    def _cuDevSmResourceSplitByCount(self, groups: int, whole: Any, flags: int, sms: int) -> tuple[Any, ...]:
        return [SimpleNamespace(sm=SimpleNamespace(smCount=-(-sms // 8) * 8))], groups, "rest"

    def _cuGraphGetNodes(self, graph: Any, count: int) -> tuple[Any, ...]:
        return self.nodes[:count], len(self.nodes)

    def _cuGraphGetEdges(self, graph: Any, count: int) -> tuple[Any, ...]:
        froms, tos = [a for a, _ in self.edges[:count]], [b for _, b in self.edges[:count]]
        return froms, tos, None, len(self.edges)

    def _cuGraphNodeGetType(self, node: Any) -> tuple[CUgraphNodeType]:
        return (node.kind,)

    def _cuGraphKernelNodeGetParams(self, node: Any) -> tuple[Any]:
        return (node.params,)

    _cuGraphMemcpyNodeGetParams = _cuGraphMemsetNodeGetParams = _cuGraphKernelNodeGetParams

    def _cuFuncGetName(self, function: int) -> tuple[bytes]:
        return (f"kernel{function}".encode(),)

    def _cuFuncGetAttribute(self, name: str, function: int) -> tuple[int]:
        known = {"NUM_REGS": 40, "SHARED_SIZE_BYTES": 16, "MAX_THREADS_PER_BLOCK": 1024}
        return (known[name.removeprefix("CU_FUNC_ATTRIBUTE_")],)


class Node:
    """A node of a graph: a number, a kind, and what the driver says of it."""

    def __init__(self, number: int, kind: str = "EMPTY", **params: Any) -> None:
        self._number = number
        self.kind = CUgraphNodeType[f"CU_GRAPH_NODE_TYPE_{kind}"]
        self.params = SimpleNamespace(**params)

    def __int__(self) -> int:
        return self._number
