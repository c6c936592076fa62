"""Programs whose memory, and the graph that runs them, belong to somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from miriam.device.cuda.driver import Graph, Stream, check, node_handles
from miriam.device.cuda.driver.calls import bindings
from miriam.errors import DeviceError
from miriam.program import Program

__all__ = ["Bound", "Parts", "embed", "launchable"]


class Bound(Protocol):
    """A program that is there already, such as a live module of PyTorch.

    Attributes
    ----------
    program
        What is known of it, kernel by kernel; launches without code can run all the same.
    addresses
        Device address of each of the program's buffers.
    """

    @property
    def program(self) -> Program:
        """See above."""

    @property
    def addresses(self) -> Sequence[int]:
        """See above."""

    def graph(self, first: int = 0, last: int | None = None, priority: int = 0) -> int:
        """Give the launches from ``first`` to before ``last``, unmodified, as a CUgraph of the driver.

        It lives until :meth:`close`, and is for embedding into other graphs, which copy it.
        """

    def close(self) -> None:
        """Give everything back; graphs that it was embedded in must not run any more."""


class Parts:
    """A captured graph, and runs of its launches as graphs of their own.

    Parameters
    ----------
    graph
        A CUgraph as a number; it must outlive this.
    """

    def __init__(self, graph: int) -> None:
        kinds = bindings().CUgraphNodeType
        self._whole = bindings().CUgraph(init_value=graph)
        found = [(node, check("cuGraphNodeGetType", node)) for node in node_handles(graph)]
        self._launches = [(node, kind) for node, kind in found if kind != kinds.CU_GRAPH_NODE_TYPE_EMPTY]
        self._kernel = kinds.CU_GRAPH_NODE_TYPE_KERNEL
        self._made: dict[tuple[int, int, int], Any] = {}

    def graph(self, first: int = 0, last: int | None = None, priority: int = 0) -> int:
        """Give the launches from ``first`` to before ``last`` with this priority; see :meth:`Bound.graph`.

        Launches count in the order of the program, which respects all edges: what lies on a way from
        one of these to another is one of these, so nothing is lost with the others.
        """
        count = len(self._launches)
        last = count if last is None else last
        if not 0 <= first < last <= count:
            raise DeviceError(f"there are no launches {first} to {last - 1}: the graph has {count}")
        key = (first, last, priority)
        if key not in self._made:
            made = check("cuGraphClone", self._whole)
            try:
                self._thin_out(made, range(first, last), priority)
            except BaseException:
                check("cuGraphDestroy", made)
                raise
            self._made[key] = made
        return int(self._made[key])

    def _thin_out(self, made: Any, kept: range, priority: int) -> None:
        cu = bindings()
        value = cu.CUkernelNodeAttrValue()
        value.priority = priority
        name = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PRIORITY
        for number, (node, kind) in enumerate(self._launches):
            twin = check("cuGraphNodeFindInClone", node, made)
            if number not in kept:
                check("cuGraphDestroyNode", twin)
            elif kind == self._kernel:
                check("cuGraphKernelNodeSetAttribute", twin, name, value)

    def close(self) -> None:
        """Destroy the parts; the graph that they come from stays."""
        for made in self._made.values():
            check("cuGraphDestroy", made)
        self._made = {}


def embed(stream: Stream, bound: Bound, first: int, last: int) -> bool:
    """Make the launches from ``first`` to before ``last`` one node of the graph that ``stream`` collects.

    Returns
    -------
    False if it collects none.
    """
    status, _, around, before, _, size = check("cuStreamGetCaptureInfo", stream.handle)
    if int(status) != 1:  # CU_STREAM_CAPTURE_STATUS_ACTIVE
        return False
    part = bindings().CUgraph(init_value=bound.graph(first, last, stream.priority))
    added = check("cuGraphAddChildGraphNode", around, list(before)[:size], size, part)
    how = bindings().CUstreamUpdateCaptureDependencies_flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES
    check("cuStreamUpdateCaptureDependencies", stream.handle, [added], None, 1, how)
    return True


def launchable(bound: Bound, first: int, last: int) -> Graph:
    """Give the same as a graph by itself; the caller closes it."""
    return Graph(check("cuGraphClone", bindings().CUgraph(init_value=bound.graph(first, last))))
