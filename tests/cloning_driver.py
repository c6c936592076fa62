# ruff: noqa: N802, N803 - the names are those of the driver's calls
"""A driver whose captured graphs can be read, copied, thinned out and put into one another."""

from __future__ import annotations

import ctypes
import dataclasses
from types import SimpleNamespace
from typing import Any

from fake_driver import FakeDriver
from null_gpu import Graph, GraphNode

__all__ = ["Cloning"]


class Numbered(GraphNode):
    """A node with a number, as handles have."""

    def __int__(self) -> int:
        return id(self)

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Cloning(FakeDriver):
    """See above."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[str] = [""]  # a name for each number
        self.twins: dict[tuple[GraphNode, Graph], GraphNode] = {}
        self.CUkernelNodeAttrValue = type("CUkernelNodeAttrValue", (), {})

    def _cuGraphGetNodes(self, hGraph: Any, numNodes: int) -> tuple[Any, ...]:
        nodes = self._use(Graph, hGraph).nodes
        for node in nodes:
            node.__class__ = Numbered
        return nodes[:numNodes], len(nodes)

    def _cuGraphGetEdges(self, hGraph: Any, numEdges: int) -> tuple[Any, ...]:
        edges = [(before, node) for node in hGraph.nodes for before in node.before]
        return [a for a, _ in edges[:numEdges]], [b for _, b in edges[:numEdges]], None, len(edges)

    def _cuGraphNodeGetType(self, hNode: Any) -> Any:
        kind = "KERNEL" if hNode.kernel else "EMPTY" if hNode.label == "joint" else "MEMCPY"
        return (getattr(self.CUgraphNodeType, f"CU_GRAPH_NODE_TYPE_{kind}"),)

    def _cuGraphClone(self, originalGraph: Any) -> Any:
        clone, twins = self._made(Graph()), dict[GraphNode, GraphNode]()
        for node in self._use(Graph, originalGraph).nodes:
            twins[node] = dataclasses.replace(node, before=tuple(twins[before] for before in node.before))
            self.twins[node, clone] = twins[node]
        clone.nodes = list(twins.values())
        return (clone,)

    def _cuGraphNodeFindInClone(self, hOriginalNode: Any, hClonedGraph: Any) -> Any:
        return (self.twins[hOriginalNode, hClonedGraph],)

    def _cuGraphDestroyNode(self, hNode: Any) -> Any:
        (graph,) = {graph for (_, graph), twin in self.twins.items() if twin is hNode}
        graph.nodes.remove(hNode)
        for node in graph.nodes:
            node.before = tuple(before for before in node.before if before is not hNode)
        return ()

    def _cuGraphKernelNodeSetAttribute(self, hNode: Any, attr: Any, value: Any) -> Any:
        assert attr == "CU_LAUNCH_ATTRIBUTE_PRIORITY"
        begin, run = hNode.begin, dataclasses.replace(hNode.kernel, priority=value.priority)

        def again() -> Any:
            yield from begin()
            self.launches[-1] = run

        hNode.begin, hNode.kernel = again, run
        return ()

    def _cuGraphAddChildGraphNode(self, hGraph: Any, dependencies: Any, numDependencies: int, childGraph: Any) -> Any:
        (copy,) = self._cuGraphClone(self._use(Graph, childGraph))
        copy.alive = False  # it belongs to the graph around it
        node = GraphNode("child", lambda: self.play(copy), tuple(dependencies[:numDependencies]))
        hGraph.nodes.append(node)
        return (node,)

    def _cuGraphKernelNodeGetParams(self, hNode: Any) -> Any:
        run = hNode.kernel
        if run.name not in self.functions:
            self.functions.append(run.name)
        hNode.raw = [ctypes.create_string_buffer(raw, len(raw)) for raw in run.raw]
        hNode.table = (ctypes.c_void_p * max(len(run.raw), 1))(*[ctypes.addressof(raw) for raw in hNode.raw])
        names = [f"{kind}Dim{axis}" for kind in ("grid", "block") for axis in "XYZ"]
        sizes = dict(zip(names, (*run.grid, *run.block), strict=True))
        table = ctypes.addressof(hNode.table) if run.raw else 0
        func = self.functions.index(run.name)
        return (SimpleNamespace(func=func, sharedMemBytes=run.shared_bytes, kernelParams=table, **sizes),)

    def _cuFuncGetName(self, hfunc: int) -> Any:
        return (self.functions[hfunc].encode(),)

    def cuFuncGetParamInfo(self, function: Any, index: int) -> Any:
        return super().cuFuncGetParamInfo(self.functions[function] if isinstance(function, int) else function, index)
