"""Captured graphs, read node by node."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from graphlib import TopologicalSorter
from types import ModuleType
from typing import Any

from miriam.device.cuda.driver.calls import bindings, check
from miriam.device.cuda.driver.module import parameters

__all__ = ["GraphNode", "graph_nodes", "node_handles"]


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
    cu = bindings()
    return [_node(cu, node) for node in node_handles(graph)]


def node_handles(graph: int) -> list[Any]:
    """The driver's handles of these nodes, in the same order."""
    cu = bindings()
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
    return [by_handle[handle] for handle in order]


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


def _parameter_values(function: Any, pointers: int) -> tuple[bytes, ...] | None:
    if not pointers:
        return None
    sizes = [size for _, size in parameters(function)]
    table = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
    return tuple(ctypes.string_at(table[i], size) for i, size in enumerate(sizes))
