"""The CUDA driver: the only file that touches its bindings.

Every call goes through :func:`check`, which turns a driver error into a :class:`DeviceError` with the
name of the call. Handles are owned by small classes with ``close``; closing twice is allowed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from types import ModuleType
from typing import Any, cast

from miriam.device.base import Geometry
from miriam.errors import DeviceError

__all__ = [
    "Event",
    "Function",
    "Gpu",
    "Graph",
    "GraphNode",
    "Module",
    "Partition",
    "Stream",
    "function_facts",
    "graph_nodes",
    "profiled",
    "unavailable",
]


def _cu() -> ModuleType:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError("the CUDA bindings are not installed: pip install 'cuda-bindings>=13.0,<14'") from error
    return cast(ModuleType, driver)


def check(call: str, *args: Any) -> Any:
    """Call the driver function ``call`` and give back what it returns besides its status.

    Raises
    ------
    DeviceError
        The status was not success, or there is no driver on this machine.
    """
    cu = _cu()
    try:
        status, *values = getattr(cu, call)(*args)
    except RuntimeError as error:  # the bindings raise it when libcuda cannot be opened
        raise DeviceError(
            f"no CUDA driver on this machine ({error}): use a sim device, or install the driver"
        ) from None
    if status != cu.CUresult.CUDA_SUCCESS:
        _, text = cu.cuGetErrorString(status)
        what = text.decode() if text else str(status)
        raise DeviceError(f"{call} failed: {what} ({status.name})")
    return values[0] if len(values) == 1 else tuple(values) if values else None


def unavailable() -> str:
    """Why no CUDA device can be used here, with the way out; empty if one can."""
    try:
        check("cuInit", 0)
        if check("cuDeviceGetCount") == 0:
            return "the driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"
    except DeviceError as error:
        return str(error)
    return ""


class Gpu:
    """One GPU and its primary context, which is current in this thread from now on."""

    def __init__(self, ordinal: int = 0) -> None:
        check("cuInit", 0)
        count = check("cuDeviceGetCount")
        if not 0 <= ordinal < count:
            raise DeviceError(f"there is no cuda:{ordinal}, this machine has {count} GPUs: see 'miriam devices'")
        self.ordinal = ordinal
        self._device = check("cuDeviceGet", ordinal)
        self._context = check("cuDevicePrimaryCtxRetain", self._device)
        check("cuCtxSetCurrent", self._context)
        self._open = True

    @property
    def name(self) -> str:
        """Name as the driver gives it, for example ``NVIDIA H200``."""
        return str(check("cuDeviceGetName", 96, self._device).split(b"\0")[0].decode())

    @property
    def driver_version(self) -> str:
        """Newest CUDA version that the driver supports."""
        version = check("cuDriverGetVersion")
        return f"{version // 1000}.{version % 1000 // 10}"

    def attribute(self, name: str) -> int:
        """A device attribute by the end of its name, for example ``MULTIPROCESSOR_COUNT``."""
        return int(
            check("cuDeviceGetAttribute", _enum("CUdevice_attribute", f"CU_DEVICE_ATTRIBUTE_{name}"), self._device)
        )

    @property
    def geometry(self) -> Geometry:
        """Counts that decide where blocks fit."""
        return Geometry(
            sms=self.attribute("MULTIPROCESSOR_COUNT"),
            threads_per_sm=self.attribute("MAX_THREADS_PER_MULTIPROCESSOR"),
            blocks_per_sm=self.attribute("MAX_BLOCKS_PER_MULTIPROCESSOR"),
            registers_per_sm=self.attribute("MAX_REGISTERS_PER_MULTIPROCESSOR"),
            shared_per_sm_bytes=self.attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
            shared_per_block_bytes=self.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            shared_reserved_bytes=self.attribute("RESERVED_SHARED_MEMORY_PER_BLOCK"),
        )

    @property
    def l2_bytes(self) -> int:
        """Size of the L2 cache."""
        return self.attribute("L2_CACHE_SIZE")

    def activate(self) -> None:
        """Make the primary context current in this thread."""
        check("cuCtxSetCurrent", self._context)

    def partition(self, sms: int) -> Partition:
        """A green context with about ``sms`` SMs (the driver rounds up to what it can split off)."""
        return Partition(self, sms)

    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory."""
        return int(check("cuMemAlloc", max(size_bytes, 1)))

    def free(self, address: int) -> None:
        """Give memory back."""
        check("cuMemFree", address)

    def write(self, address: int, data: bytes) -> None:
        """Copy host bytes to device memory and wait."""
        if data:
            check("cuMemcpyHtoD", address, data, len(data))

    def read(self, address: int, size_bytes: int) -> bytes:
        """Copy device memory to the host and wait."""
        host = ctypes.create_string_buffer(max(size_bytes, 1))
        check("cuMemcpyDtoH", ctypes.addressof(host), address, size_bytes)
        return host.raw[:size_bytes]

    def synchronize(self) -> None:
        """Wait for everything in the current context."""
        check("cuCtxSynchronize")

    def close(self) -> None:
        """Release the primary context."""
        if self._open:
            self._open = False
            check("cuDevicePrimaryCtxRelease", self._device)


class Partition:
    """A green context: a fixed set of SMs. ``sms`` is how many it really has."""

    def __init__(self, gpu: Gpu, sms: int) -> None:
        cu = _cu()
        if not 1 <= sms <= gpu.attribute("MULTIPROCESSOR_COUNT"):
            raise DeviceError(f"a partition of {sms} SMs: the GPU has {gpu.attribute('MULTIPROCESSOR_COUNT')}")
        kind = cu.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        whole = check("cuDeviceGetDevResource", gpu._device, kind)
        groups, count, _rest = check("cuDevSmResourceSplitByCount", 1, whole, 0, sms)
        if count < 1:
            raise DeviceError(f"the driver cannot split off {sms} SMs of {gpu.name}")
        self.sms = int(groups[0].sm.smCount)
        self._gpu = gpu
        description = check("cuDevResourceGenerateDesc", [groups[0]], 1)
        flags = cu.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        self._green: Any = check("cuGreenCtxCreate", description, gpu._device, flags)
        self._context = check("cuCtxFromGreenCtx", self._green)

    def activate(self) -> None:
        """Make this partition the current context of the thread."""
        check("cuCtxSetCurrent", self._context)

    def stream(self, priority: int = 0) -> Stream:
        """A stream whose work stays on these SMs."""
        flags = _enum("CUstream_flags", "CU_STREAM_NON_BLOCKING")
        return Stream(check("cuGreenCtxStreamCreate", self._green, flags, priority))

    def close(self) -> None:
        """Destroy the green context; its streams must be closed before."""
        if self._green is not None:
            self._gpu.activate()
            check("cuGreenCtxDestroy", self._green)
            self._green = None


class Stream:
    """A stream. Without a handle a new non-blocking one is made in the current context."""

    def __init__(self, handle: Any = None, *, priority: int = 0) -> None:
        flags = _enum("CUstream_flags", "CU_STREAM_NON_BLOCKING")
        self.handle: Any = check("cuStreamCreateWithPriority", flags, priority) if handle is None else handle

    def synchronize(self) -> None:
        """Wait until everything in the stream is done."""
        check("cuStreamSynchronize", self.handle)

    def copy(self, destination: int, source: int, size_bytes: int) -> None:
        """Enqueue a copy between two places in device memory."""
        check("cuMemcpyDtoDAsync", destination, source, size_bytes, self.handle)

    def fill(self, destination: int, value: int, width: int, count: int) -> None:
        """Enqueue a fill of ``count`` values of ``width`` bytes (1, 2 or 4)."""
        call = {1: "cuMemsetD8Async", 2: "cuMemsetD16Async", 4: "cuMemsetD32Async"}[width]
        check(call, destination, value, count, self.handle)

    def fill_rows(self, destination: int, pitch: int, value: int, rows: int) -> None:
        """Enqueue a fill of ``rows`` words of 4 bytes that lie ``pitch`` bytes apart."""
        check("cuMemsetD2D32Async", destination, pitch, value, 1, rows, self.handle)

    def begin_capture(self) -> None:
        """Collect what follows into a graph instead of running it."""
        check("cuStreamBeginCapture", self.handle, _enum("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"))

    def end_capture(self) -> Graph:
        """End the capture and instantiate what was collected."""
        return Graph(check("cuStreamEndCapture", self.handle))

    def close(self) -> None:
        """Destroy the stream."""
        if self.handle is not None:
            check("cuStreamDestroy", self.handle)
            self.handle = None


class Event:
    """A point in a stream, with a time stamp."""

    def __init__(self) -> None:
        self._handle: Any = check("cuEventCreate", 0)

    def record(self, stream: Stream) -> None:
        """Mark the end of what is in ``stream`` so far."""
        check("cuEventRecord", self._handle, stream.handle)

    def record_in_graph(self, stream: Stream) -> None:
        """Make a node of the graph that ``stream`` is capturing; each launch of the graph marks it anew."""
        check(
            "cuEventRecordWithFlags",
            self._handle,
            stream.handle,
            _enum("CUevent_record_flags", "CU_EVENT_RECORD_EXTERNAL"),
        )

    def since_us(self, earlier: Event) -> float:
        """Wait for this event and give the time since ``earlier`` in us."""
        check("cuEventSynchronize", self._handle)
        return float(check("cuEventElapsedTime", earlier._handle, self._handle)) * 1e3

    def close(self) -> None:
        """Destroy the event."""
        if self._handle is not None:
            check("cuEventDestroy", self._handle)
            self._handle = None


class Graph:
    """An instantiated CUDA graph."""

    def __init__(self, graph: Any) -> None:
        self._graph: Any = graph
        self._exec: Any = check("cuGraphInstantiate", graph, 0)

    def launch(self, stream: Stream) -> None:
        """Enqueue the whole graph."""
        check("cuGraphLaunch", self._exec, stream.handle)

    def close(self) -> None:
        """Destroy the graph."""
        if self._graph is not None:
            check("cuGraphExecDestroy", self._exec)
            check("cuGraphDestroy", self._graph)
            self._graph = None


class Module:
    """Loaded device code, usable in every context of the GPU (a CUDA library)."""

    def __init__(self, code: bytes) -> None:
        # The driver may compile as late as when a kernel is asked for, and writes its words here even then; the
        # bindings take nothing but bytes for it.
        self._log = bytes(4096)
        options = [_enum("CUjit_option", f"CU_JIT_{n}") for n in ("ERROR_LOG_BUFFER", "ERROR_LOG_BUFFER_SIZE_BYTES")]
        values = [self._log, len(self._log)]
        self._library: Any = self._check("cuLibraryLoadData", code, options, values, len(options), [], [], 0)

    def _check(self, call: str, *args: Any) -> Any:
        """Call the driver; to an error add what the compiler says."""
        try:
            return check(call, *args)
        except DeviceError as error:
            detail = self._log.split(b"\0")[0].decode(errors="replace").strip()
            raise DeviceError(f"{error}{': ' + detail if detail else ''}") from None

    def function(self, name: str, dynamic_shared_bytes: int = 0) -> Function:
        """Kernel ``name`` for the current context, allowed to use that much dynamic shared memory."""
        kernel = self._check("cuLibraryGetKernel", self._library, name.encode())
        function = self._check("cuKernelGetFunction", kernel)
        if dynamic_shared_bytes > 48 * 1024:
            attribute = _enum("CUfunction_attribute", "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES")
            check("cuFuncSetAttribute", function, attribute, dynamic_shared_bytes)
        return Function(function)

    def close(self) -> None:
        """Unload; functions of it must not be used any more."""
        if self._library is not None:
            check("cuLibraryUnload", self._library)
            self._library = None


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel that can be launched in the context in which it was got."""

    handle: Any

    @property
    def parameter_sizes(self) -> tuple[int, ...]:
        """Bytes of each parameter."""
        return tuple(size for _, size in _parameters(self.handle))

    def launch(self, stream: Stream, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int,
               args: Sequence[bytes], *, early: bool = False) -> None:  # fmt: skip
        """Enqueue a launch; ``args`` are the bytes of each parameter.

        An ``early`` one may be brought to the SMs before the kernel in front of it has ended
        (programmatic dependent launch): its code must wait for that by itself.
        """
        held = [ctypes.create_string_buffer(raw, len(raw)) for raw in args]
        pointers = (ctypes.c_void_p * max(len(held), 1))(*[ctypes.addressof(raw) for raw in held])
        at = ctypes.addressof(pointers)
        if not early:
            check("cuLaunchKernel", self.handle, *grid, *block, shared_bytes, stream.handle, at, 0)
            return
        cu = _cu()
        config, attribute = cu.CUlaunchConfig(), cu.CUlaunchAttribute()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes, config.hStream = shared_bytes, stream.handle
        attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [attribute], 1
        check("cuLaunchKernelEx", config, self.handle, at, 0)

    def blocks_per_sm(self, threads: int, dynamic_shared_bytes: int) -> int:
        """Resident blocks of this kernel on one SM, as the driver computes them."""
        return int(check("cuOccupancyMaxActiveBlocksPerMultiprocessor", self.handle, threads, dynamic_shared_bytes))


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node of a captured graph.

    Attributes
    ----------
    kind
        ``kernel``, ``copy``, ``fill``, ``empty`` or the driver's name of another type.
    function
        Driver handle of the kernel, 0 for other kinds.
    name
        Of the kernel.
    grid, block, shared_bytes
        Of the launch.
    parameters
        Bytes of each kernel parameter, or None where they cannot be read. A copy has (destination,
        source, bytes), a fill (destination, value, width, count), as 8-byte little-endian numbers.
    """

    kind: str
    function: int = 0
    name: str = ""
    grid: tuple[int, int, int] = (1, 1, 1)
    block: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    parameters: tuple[bytes, ...] | None = None


def graph_nodes(graph: int) -> list[GraphNode]:
    """The nodes of a captured graph (a CUgraph as a number) in an order that respects its edges."""
    cu = _cu()
    handle = cu.CUgraph(init_value=graph)
    _, count = check("cuGraphGetNodes", handle, 0)
    nodes, _ = check("cuGraphGetNodes", handle, count) if count else ([], 0)
    before: dict[int, set[int]] = {int(node): set() for node in nodes}
    _, _, _, edges = check("cuGraphGetEdges", handle, 0)
    if edges:
        froms, tos, _, _ = check("cuGraphGetEdges", handle, edges)
        for earlier, later in zip(froms, tos, strict=True):
            before[int(later)].add(int(earlier))
    order = TopologicalSorter(before).static_order()
    by_handle = {int(node): node for node in nodes}
    return [_node(cu, by_handle[handle]) for handle in order]


def _node(cu: ModuleType, node: Any) -> GraphNode:
    kind = check("cuGraphNodeGetType", node)
    types = cu.CUgraphNodeType
    if kind == types.CU_GRAPH_NODE_TYPE_KERNEL:
        params = check("cuGraphKernelNodeGetParams", node)
        function = params.func
        if int(function) == 0:
            function = check("cuKernelGetFunction", params.kern)
        name = check("cuFuncGetName", function)
        return GraphNode(
            "kernel", int(function), name.decode() if isinstance(name, bytes) else str(name),
            (params.gridDimX, params.gridDimY, params.gridDimZ),
            (params.blockDimX, params.blockDimY, params.blockDimZ),
            params.sharedMemBytes,
            _parameter_values(function, int(params.kernelParams)),
        )  # fmt: skip
    if kind == types.CU_GRAPH_NODE_TYPE_MEMCPY:
        copy = check("cuGraphMemcpyNodeGetParams", node)
        size = copy.WidthInBytes * max(copy.Height, 1) * max(copy.Depth, 1)
        flat = copy.Height <= 1 and copy.Depth <= 1 and int(copy.dstDevice) and int(copy.srcDevice)
        values = (int(copy.dstDevice) + copy.dstXInBytes, int(copy.srcDevice) + copy.srcXInBytes, size)
        return GraphNode("copy", name="memcpy", parameters=_numbers(*values) if flat else None)
    if kind == types.CU_GRAPH_NODE_TYPE_MEMSET:
        fill = check("cuGraphMemsetNodeGetParams", node)
        facts = _numbers(int(fill.dst), fill.value, fill.elementSize, fill.width)
        return GraphNode("fill", name="memset", parameters=facts if fill.height <= 1 else None)
    return GraphNode("empty" if kind == types.CU_GRAPH_NODE_TYPE_EMPTY else kind.name)


def _numbers(*values: int) -> tuple[bytes, ...]:
    return tuple(int(v).to_bytes(8, "little") for v in values)


def _parameters(function: Any) -> list[tuple[int, int]]:
    cu = _cu()
    found: list[tuple[int, int]] = []
    while True:  # the driver has no count: it answers INVALID_VALUE behind the last parameter
        status, offset, size = cu.cuFuncGetParamInfo(function, len(found))
        if status != cu.CUresult.CUDA_SUCCESS:
            return found
        found.append((offset, size))


def _parameter_values(function: Any, pointers: int) -> tuple[bytes, ...] | None:
    if not pointers:
        return None
    sizes = [size for _, size in _parameters(function)]
    table = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
    return tuple(ctypes.string_at(table[i], size) for i, size in enumerate(sizes))


def function_facts(function: int) -> dict[str, int]:
    """Registers, static shared memory and block limit of a kernel given by its driver handle."""
    handle = _cu().CUfunction(init_value=function)
    names = {"registers": "NUM_REGS", "shared_bytes": "SHARED_SIZE_BYTES", "max_threads": "MAX_THREADS_PER_BLOCK"}
    return {
        key: int(check("cuFuncGetAttribute", _enum("CUfunction_attribute", f"CU_FUNC_ATTRIBUTE_{name}"), handle))
        for key, name in names.items()
    }


@contextmanager
def profiled() -> Iterator[None]:
    """Let an attached profiler collect what is launched inside."""
    check("cuProfilerStart")
    try:
        yield
    finally:
        check("cuProfilerStop")


def _enum(kind: str, name: str) -> Any:
    return getattr(getattr(_cu(), kind), name)
