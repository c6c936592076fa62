"""The CUDA driver: the only place that touches its bindings.

Every call goes through :func:`check`, which turns a driver error into a
:class:`~miriam.errors.DeviceError` with the name of the call. Handles are owned by small classes with
``close``; closing twice is allowed.
"""

from miriam.device.cuda.driver.calls import check, profiled, unavailable
from miriam.device.cuda.driver.capture import CAPTURING, Capture
from miriam.device.cuda.driver.event import Event
from miriam.device.cuda.driver.gpu import Gpu, many_queues
from miriam.device.cuda.driver.graph import Graph
from miriam.device.cuda.driver.memory import HostMemory
from miriam.device.cuda.driver.module import Function, Module, Prepared, function_facts
from miriam.device.cuda.driver.nodes import GraphNode, graph_nodes, node_handles
from miriam.device.cuda.driver.partition import Partition
from miriam.device.cuda.driver.stream import Stream

__all__ = [
    "CAPTURING",
    "Capture",
    "Event",
    "Function",
    "Gpu",
    "Graph",
    "GraphNode",
    "HostMemory",
    "Module",
    "Partition",
    "Prepared",
    "Stream",
    "check",
    "function_facts",
    "graph_nodes",
    "many_queues",
    "node_handles",
    "profiled",
    "unavailable",
]
