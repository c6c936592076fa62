"""What a stream collects into a graph, with loops and choices."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from miriam.device.cuda.driver.calls import bindings, check, constant
from miriam.device.cuda.driver.graph import Graph
from miriam.errors import DeviceError

if TYPE_CHECKING:
    from types import TracebackType

    from miriam.device.cuda.driver.stream import Stream

__all__ = ["CAPTURING", "Capture", "begin_capture"]

CAPTURING = threading.RLock()
"""Held by whoever collects a graph: PyTorch waits for the whole GPU before it does, which ends what others collect."""


_PAGE = 4096  # bytes from address 0 where nothing lies


def begin_capture(stream: Stream, body: Any = None) -> None:
    """Let ``stream`` collect, into ``body`` if one is given.

    In the relaxed mode, since a body gets a stream while the graph around it is collected.
    """
    mode = constant("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_RELAXED")
    if body is None:
        check("cuStreamBeginCapture", stream.handle, mode)
    else:
        check("cuStreamBeginCaptureToGraph", stream.handle, body, None, None, 0, mode)


class Capture:
    """A graph in the making, or the body of a node of one; what is enqueued inside its block goes in.

    An error in the block ends the capture, and nothing of it remains.

    Attributes
    ----------
    stream
        Where to enqueue.
    """

    stream: Stream

    def __init__(self, stream: Stream, body: Any = None) -> None:
        self._around = stream
        self._body = body
        self._graph: Graph | None = None

    def __enter__(self) -> Capture:
        with ExitStack() as made:
            CAPTURING.acquire()
            made.callback(CAPTURING.release)
            self.stream = self._around if self._body is None else self._around.sibling()
            made.callback(self._close_stream)
            begin_capture(self.stream, self._body)
            made.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._abandon()
                return
            made = check("cuStreamEndCapture", self.stream.handle)
        finally:
            self._close_stream()  # no sooner: it takes part in the capture
            CAPTURING.release()
        if self._body is None:
            self._graph = Graph(made)

    @property
    def graph(self) -> Graph:
        """The graph, once its block is left; the caller closes it.

        Raises
        ------
        DeviceError
            The block has not ended, or this is the body of a node.
        """
        if self._graph is None:
            raise DeviceError("a capture has its graph when its block has ended, and the body of a node has none")
        return self._graph

    def condition(self, default: int = 0) -> int:
        """Give a handle for a node of this graph, or of a body in it.

        Kernels set it by ``cudaGraphSetConditional``; each run of the graph begins with ``default``.

        Raises
        ------
        DeviceError
            The stream belongs to a partition, where the driver refuses conditions.
        """
        if self.stream.partition is not None:
            raise DeviceError("the driver refuses conditions in graphs on a partition: launch each pass from the host")
        _, _, graph, *_ = check("cuStreamGetCaptureInfo", self.stream.handle)
        flags = bindings().CU_GRAPH_COND_ASSIGN_DEFAULT
        context = check("cuStreamGetCtx", self.stream.handle)
        return int(check("cuGraphConditionalHandleCreate", graph, context, default, flags))

    def loop(self, handle: int) -> Capture:
        """Give a body that runs as long as the handle is not 0, which is looked at before each time."""
        return self._node("WHILE", handle, 1)[0]

    def when(self, handle: int) -> Capture:
        """Give a body that runs once if the handle is not 0."""
        return self._node("IF", handle, 1)[0]

    def choose(self, handle: int, count: int) -> list[Capture]:
        """Give ``count`` bodies; the one whose place in the list the handle names runs, or none."""
        return self._node("SWITCH", handle, count)

    def _node(self, kind: str, handle: int, count: int) -> list[Capture]:
        """Put a node with ``count`` bodies behind what is here, and let what follows wait for it."""
        cu, at = bindings(), self.stream.handle
        params = cu.CUgraphNodeParams()
        params.type = cu.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
        node = params.conditional
        node.type = getattr(cu.CUgraphConditionalNodeType, f"CU_GRAPH_COND_TYPE_{kind}")
        node.handle, node.size, node.ctx = cu.CUgraphConditionalHandle(handle), count, check("cuStreamGetCtx", at)
        _, _, graph, before, edges, size = check("cuStreamGetCaptureInfo", at)
        added = check("cuGraphAddNode", graph, before, _known(edges), size, params)
        bodies = [Capture(self.stream, cu.CUgraph(int(body))) for body in params.conditional.phGraph_out]
        how = cu.CUstreamUpdateCaptureDependencies_flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES
        check("cuStreamUpdateCaptureDependencies", at, [added], None, 1, how)
        return bodies

    def _abandon(self) -> None:
        """End the capture whatever the driver says of it; a body goes with the graph around it."""
        with suppress(DeviceError):
            made = check("cuStreamEndCapture", self.stream.handle)
            if self._body is None:
                check("cuGraphDestroy", made)

    def _close_stream(self) -> None:
        if self._body is not None:
            self.stream.close()


def _known(edges: list[Any]) -> list[Any] | None:
    """Data of edges, None if the driver has none: the bindings then count addresses from 0."""
    return None if any(int(edge.getPtr()) < _PAGE for edge in edges) else edges
