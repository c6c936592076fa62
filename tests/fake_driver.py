# ruff: noqa: N802, N803, N815 - the names are those of the driver's calls
"""Stands in for the bindings of the CUDA driver, in front of a GPU without a processor.

Every call is written down, every handle has a lifetime, and any call can be made to fail.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fake_calls import ATTRIBUTES, CUgraphNodeType, CUresult, FakeCalls
from null_gpu import Event, Exec, Function, Graph, GraphNode, KernelRun, Library, MisuseError, Stream, Work
from null_kernels import EFFECTS

__all__ = ["ATTRIBUTES", "CUresult", "FakeDriver", "KernelRun", "MisuseError", "Node"]

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)")
_PARAMETER = re.compile(r"\.param\b[^,]*?\.[usbf](\d+)\s+\w+\s*(?:\[(\d+)\])?")


class _Edge:
    """Data of an edge, at an address that it may have."""

    def getPtr(self) -> int:
        return id(self)


class FakeDriver(FakeCalls):
    """What tests look at besides the GPU: ``calls`` (name and arguments), ``leaks()``.

    ``fail[call]`` is the status that a call gives from now on; the call of number ``fail_at`` fails once.
    ``nodes`` and ``edges`` are the graph that is read node by node, ``parameters`` the sizes of a kernel's
    parameters by its name, if its code does not tell them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.effects = dict(EFFECTS)

    # --- streams and events

    def _do(self, stream: Any, label: str, act: Callable[[], None]) -> tuple[()]:
        def work() -> Work:
            act()
            yield from ()

        self.enqueue(self._use(Stream, stream), label, work)
        return ()

    def _cuStreamCreateWithPriority(self, flags: Any, priority: int) -> Any:
        return self._stream(self._current[-1], priority) if self._here() else CUresult.CUDA_ERROR_INVALID_CONTEXT

    def _cuStreamGetPriority(self, hStream: Any) -> tuple[int]:
        return (self._use(Stream, hStream).priority,)

    def _cuStreamGetCtx(self, hStream: Any) -> tuple[Any]:
        return (self._use(Stream, hStream).context,)

    def _cuStreamSynchronize(self, hStream: Any) -> Any:
        if hStream == 0:  # the stream of copies without one, which are done at once
            return ()
        if self._use(Stream, hStream).capturing:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        return self._wait(lambda: bool(hStream.work))

    def _cuStreamQuery(self, hStream: Any) -> Any:
        if self._use(Stream, hStream).capturing:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        return CUresult.CUDA_ERROR_NOT_READY if hStream.work else ()

    def _cuStreamDestroy(self, hStream: Any) -> tuple[()]:
        if self._use(Stream, hStream).capturing:
            raise MisuseError(f"{hStream!r} is destroyed while it takes part in a capture")
        hStream.alive = False
        self.streams.remove(hStream)
        return ()

    def _cuStreamWaitEvent(self, hStream: Any, hEvent: Any, Flags: int) -> Any:
        stream, event = self._use(Stream, hStream), self._use(Event, hEvent)
        if event.captured is not None:
            graph, last = event.captured
            if stream.capturing not in (None, graph):
                return CUresult.CUDA_ERROR_STREAM_CAPTURE_MERGE
            stream.capturing, stream.last = graph, (*stream.last, *(n for n in last if n not in stream.last))
            return ()
        turn = event.recorded

        def work() -> Work:
            while event.reached < turn:
                yield False

        self.enqueue(stream, "wait", work)
        return ()

    def _cuEventCreate(self, Flags: Any) -> Any:
        return (self._made(Event(timed=Flags == 0)),) if self._here() else CUresult.CUDA_ERROR_INVALID_CONTEXT

    def _cuEventRecord(self, hEvent: Any, hStream: Any) -> tuple[()]:
        event, stream = self._use(Event, hEvent), self._use(Stream, hStream)
        if stream.capturing is not None:
            event.captured = (stream.capturing, stream.last)
            return ()
        event.captured = None
        return self._cuEventRecordWithFlags(event, stream, None)

    def _cuEventRecordWithFlags(self, hEvent: Any, hStream: Any, flags: Any) -> tuple[()]:
        event = self._use(Event, hEvent)
        turn = event.recorded = event.recorded + 1

        def reach() -> None:
            event.reached = max(event.reached, turn)

        return self._do(hStream, "event", reach)

    def _cuEventQuery(self, hEvent: Any) -> Any:
        event = self._use(Event, hEvent)
        return () if event.reached >= event.recorded else CUresult.CUDA_ERROR_NOT_READY

    def _cuEventSynchronize(self, hEvent: Any) -> tuple[()]:
        event = self._use(Event, hEvent)
        return self._wait(lambda: event.reached < event.recorded)

    def _cuEventElapsedTime(self, hStart: Any, hEnd: Any) -> Any:
        timed = self._use(Event, hStart).timed and self._use(Event, hEnd).timed
        return (0.25,) if timed else CUresult.CUDA_ERROR_INVALID_VALUE

    def _cuEventDestroy(self, hEvent: Any) -> tuple[()]:
        self._close(Event, hEvent)
        return ()

    # --- captures

    def _cuStreamBeginCapture(self, hStream: Any, mode: Any) -> Any:
        return self._begin(hStream, self._made(Graph()))

    def _cuStreamBeginCaptureToGraph(
        self, hStream: Any, hGraph: Any, dependencies: Any, dependencyData: Any, numDependencies: int, mode: Any
    ) -> Any:
        return self._begin(hStream, self._use(Graph, hGraph))

    def _begin(self, stream: Any, graph: Graph) -> Any:
        if self._use(Stream, stream).capturing is not None:
            return CUresult.CUDA_ERROR_ILLEGAL_STATE
        stream.capturing, stream.origin, stream.last = graph, True, ()
        return ()

    def _cuStreamGetCaptureInfo(self, hStream: Any) -> Any:
        graph, last = self._use(Stream, hStream).capturing, hStream.last
        return graph is not None, graph and graph.number, graph, list(last), [_Edge() for _ in last], len(last)

    def _cuStreamUpdateCaptureDependencies(
        self, hStream: Any, dependencies: list[Any], dependencyData: Any, numDependencies: int, flags: Any
    ) -> Any:
        if self._use(Stream, hStream).capturing is None:
            return CUresult.CUDA_ERROR_ILLEGAL_STATE
        hStream.last = tuple(dependencies)
        return ()

    def _leave(self, stream: Any) -> Graph | None:
        """End the capture that began on a stream; tells the graph if all branches of it are joined."""
        if not self._use(Stream, stream).origin:
            return None
        graph, joined = stream.capturing, set[GraphNode]()
        todo = list(stream.last)
        while todo:
            node = todo.pop()
            todo += [before for before in node.before if before not in joined]
            joined.add(node)
        taking = [each for each in self.streams if each.capturing is graph]
        open_bodies = {each.capturing for each in self.streams} & set(graph.bodies())
        complete = not open_bodies and all(joined.issuperset(each.last) for each in taking)
        for each in taking:
            each.capturing, each.origin, each.last = None, False, ()
        return graph if complete else self._drop(graph)

    def _drop(self, graph: Graph) -> None:
        if graph.around is None:
            for each in (graph, *graph.bodies()):
                each.alive = False

    def _give_up(self, stream: Any) -> None:
        """A capture that cannot be ended is over all the same."""
        graph = self._leave(stream)
        if graph is not None:
            self._drop(graph)

    def _cuStreamEndCapture(self, hStream: Any) -> Any:
        if self._use(Stream, hStream).capturing is None:
            return CUresult.CUDA_ERROR_ILLEGAL_STATE
        graph = self._leave(hStream)
        return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNJOINED if graph is None else (graph,)

    # --- graphs

    def _cuGraphConditionalHandleCreate(self, hGraph: Any, ctx: Any, defaultLaunchValue: int, flags: int) -> Any:
        if ctx.green is not None:
            return CUresult.CUDA_ERROR_INVALID_VALUE
        handle = next(self._numbers) << 32
        self._use(Graph, hGraph).conditions[handle] = defaultLaunchValue
        return (handle,)

    def _cuGraphAddNode(
        self, hGraph: Any, dependencies: Any, dependencyData: Any, numDependencies: int, nodeParams: Any
    ) -> Any:
        graph, params = self._use(Graph, hGraph), nodeParams.conditional
        around: Graph | None = graph
        while around is not None and params.handle not in around.conditions:
            around = around.around
        if around is None or any(node.label == f"condition {params.handle:#x}" for node in around.every()):
            return CUresult.CUDA_ERROR_INVALID_VALUE  # no handle of this graph, or that of another node
        kind = params.type.removeprefix("CU_GRAPH_COND_TYPE_")
        params.phGraph_out = [self._made(Graph(around=graph)) for _ in range(params.size)]
        bodies = tuple(params.phGraph_out)
        work = lambda: self.choose(kind, params.handle, bodies)  # noqa: E731
        node = GraphNode(f"condition {params.handle:#x}", work, tuple(dependencies), bodies)
        graph.nodes.append(node)
        return (node,)

    def _cuGraphInstantiate(self, hGraph: Any, flags: Any) -> Any:
        graph = self._use(Graph, hGraph)
        used = {node.label for node in graph.every()}
        for each in (graph, *graph.bodies()):
            if any(f"condition {handle:#x}" not in used for handle in each.conditions):
                return CUresult.CUDA_ERROR_INVALID_VALUE
        return (self._made(Exec(graph, flags)),)

    def _cuGraphUpload(self, hGraphExec: Any, hStream: Any) -> tuple[()]:
        self._use(Exec, hGraphExec)
        return self._do(hStream, "upload", lambda: None)

    def _cuGraphLaunch(self, hGraphExec: Any, hStream: Any) -> tuple[()]:
        graph, stream = self._use(Exec, hGraphExec), self._use(Stream, hStream)
        turn, graph.launched = graph.launched, graph.launched + 1
        self.enqueue(stream, "graph", lambda: self.launch(graph, turn))
        return ()

    def _cuGraphExecDestroy(self, hGraphExec: Any) -> tuple[()]:
        self._close(Exec, hGraphExec)
        return ()

    def _cuGraphDestroy(self, graph: Any) -> tuple[()]:
        if self._use(Graph, graph).around is not None:
            raise MisuseError(f"{graph!r} is the body of a node: it goes with the graph around it")
        self._drop(graph)
        return ()

    # --- code

    def _cuLibraryLoadData(
        self, code: bytes, jitOptions: Any, jitOptionsValues: Any, numJitOptions: int, libraryOptions: Any,
        libraryOptionValues: Any, numLibraryOptions: int,
    ) -> tuple[Library]:  # fmt: skip
        return (self._made(Library(code)),)

    def _cuLibraryGetKernel(self, library: Any, name: bytes) -> Any:
        entries = dict(_ENTRY.findall(self._use(Library, library).code.decode(errors="replace")))
        if entries and name.decode() not in entries:
            return CUresult.CUDA_ERROR_NOT_FOUND
        found = _PARAMETER.findall(entries.get(name.decode(), ""))
        return (Function(name.decode(), library, tuple(int(bits) // 8 * int(many or 1) for bits, many in found)),)

    def _cuLibraryUnload(self, library: Any) -> tuple[()]:
        self._close(Library, library)
        return ()

    def _cuKernelGetFunction(self, kernel: Any) -> tuple[Any]:
        return (kernel,)

    def _cuFuncSetAttribute(self, hfunc: Any, attrib: Any, value: int) -> tuple[()]:
        return ()

    def _sizes(self, function: Any) -> tuple[int, ...]:
        if not isinstance(function, Function):
            return self.parameters.get(function, ())
        return self.parameters.get(function.name, function.sizes)

    def cuFuncGetParamInfo(self, function: Any, index: int) -> tuple[Any, ...]:
        sizes = self._sizes(function)
        if index >= len(sizes):
            return CUresult.CUDA_ERROR_INVALID_VALUE, None, None
        return CUresult.CUDA_SUCCESS, sum(sizes[:index]), sizes[index]

    def _cuLaunchKernel(
        self, f: Any, gridDimX: int, gridDimY: int, gridDimZ: int, blockDimX: int, blockDimY: int, blockDimZ: int,
        sharedMemBytes: int, hStream: Any, kernelParams: int, extra: int, early: bool = False,
    ) -> tuple[()]:  # fmt: skip
        stream, sizes = self._use(Stream, hStream), self._sizes(f)
        self._use(Library, f.library)
        table = ctypes.cast(kernelParams, ctypes.POINTER(ctypes.c_void_p))
        raw = tuple(ctypes.string_at(table[i], size) for i, size in enumerate(sizes))
        grid, block = (gridDimX, gridDimY, gridDimZ), (blockDimX, blockDimY, blockDimZ)
        run = KernelRun(f.name, grid, block, sharedMemBytes, raw, stream.priority, early)
        self.enqueue(stream, f.name, lambda: self.kernel(run, f.library), run)
        return ()

    def _cuLaunchKernelEx(self, config: Any, f: Any, kernelParams: int, extra: int) -> tuple[()]:
        grid = config.gridDimX, config.gridDimY, config.gridDimZ
        block = config.blockDimX, config.blockDimY, config.blockDimZ
        early = any(a.value.programmaticStreamSerializationAllowed for a in config.attrs[: config.numAttrs])
        return self._cuLaunchKernel(
            f, *grid, *block, config.sharedMemBytes, config.hStream, kernelParams, extra, early
        )  # fmt: skip

    def _cuOccupancyMaxActiveBlocksPerMultiprocessor(
        self, func: Any, blockSize: int, dynamicSMemSize: int
    ) -> tuple[int]:
        return (2048 // blockSize,)

    def _cuFuncGetName(self, hfunc: int) -> tuple[bytes]:
        return (f"kernel{hfunc}".encode(),)

    def _cuFuncGetAttribute(self, attrib: str, hfunc: int) -> tuple[int]:
        known = {"NUM_REGS": 40, "SHARED_SIZE_BYTES": 16, "MAX_THREADS_PER_BLOCK": 1024}
        return (known[attrib.removeprefix("CU_FUNC_ATTRIBUTE_")],)

    # --- a graph that is read node by node

    def _cuGraphGetNodes(self, hGraph: Any, numNodes: int) -> tuple[Any, ...]:
        return self.nodes[:numNodes], len(self.nodes)

    def _cuGraphGetEdges(self, hGraph: Any, numEdges: int) -> tuple[Any, ...]:
        froms, tos = [a for a, _ in self.edges[:numEdges]], [b for _, b in self.edges[:numEdges]]
        return froms, tos, None, len(self.edges)

    def _cuGraphNodeGetType(self, hNode: Any) -> tuple[CUgraphNodeType]:
        return (hNode.kind,)

    def _cuGraphKernelNodeGetParams(self, hNode: Any) -> tuple[Any]:
        return (hNode.params,)

    _cuGraphMemcpyNodeGetParams = _cuGraphMemsetNodeGetParams = _cuGraphKernelNodeGetParams


class Node:
    """A node of a graph: a number, a kind, and what the driver says of it."""

    def __init__(self, number: int, kind: str = "EMPTY", **params: Any) -> None:
        self._number = number
        self.kind = CUgraphNodeType[f"CU_GRAPH_NODE_TYPE_{kind}"]
        self.params = SimpleNamespace(**params)

    def __int__(self) -> int:
        return self._number
