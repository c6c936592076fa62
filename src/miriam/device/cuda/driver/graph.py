"""Graphs that can be launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miriam.device.cuda.driver.calls import bindings, check, constant, failure

if TYPE_CHECKING:
    from miriam.device.cuda.driver.stream import Stream

__all__ = ["Graph"]


class Graph:
    """An instantiated CUDA graph, which owns the graph that it was made from.

    Each kernel keeps the priority of the stream on which it was captured: without the flag for it, the
    priority of the stream of the launch would count.
    """

    def __init__(self, graph: Any) -> None:
        self._graph: Any = graph
        try:
            flags = constant("CUgraphInstantiate_flags", "CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY")
            self._exec: Any = check("cuGraphInstantiate", graph, flags)
        except BaseException:
            self._graph = None
            check("cuGraphDestroy", graph)
            raise
        self._launch = bindings().cuGraphLaunch

    def launch(self, stream: Stream) -> None:
        """Enqueue the whole graph."""
        (status,) = self._launch(self._exec, stream.handle)
        if status:
            raise failure("cuGraphLaunch", status)

    def upload(self, stream: Stream) -> None:
        """Bring the graph to the GPU ahead of its first launch."""
        check("cuGraphUpload", self._exec, stream.handle)

    def close(self) -> None:
        """Destroy the graph."""
        if self._graph is not None:
            graph, made, self._graph, self._exec = self._graph, self._exec, None, None
            check("cuGraphExecDestroy", made)
            check("cuGraphDestroy", graph)
