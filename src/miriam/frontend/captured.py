"""A captured CUDA graph -> a program."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from miriam.device.cuda.driver import GraphNode
from miriam.errors import CompileError
from miriam.program import Argument, Buffer, Kernel, Launch, Pointer, Program, Role, Scalar, Source, Tensor

__all__ = ["Code", "Memory", "Region", "to_program"]

_MEMORY_NODES = {"copy": Source.COPY, "fill": Source.FILL}


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of device memory that the graph may point into."""

    address: int
    size_bytes: int
    role: Role
    name: str


@dataclass(frozen=True, slots=True)
class Code:
    """What is known of a kernel besides its launch: text, and registers and static shared memory."""

    registers: int
    shared_bytes: int
    ptx: str | None = None
    ttir: str | None = None


class Memory:
    """Regions, found by address; those that something points into become buffers."""

    def __init__(self, regions: Sequence[Region], read: Callable[[int, int], bytes] | None) -> None:
        self._regions = sorted(regions, key=lambda region: region.address)
        self._starts = [region.address for region in self._regions]
        self._read = read
        self._index: dict[Region, int] = {}

    def point(self, address: int) -> Pointer | None:
        """The buffer and offset of an address, or None if it lies in no region."""
        i = bisect.bisect_right(self._starts, address) - 1
        if i < 0 or address > self._regions[i].address + self._regions[i].size_bytes:
            return None
        region = self._regions[i]
        return Pointer(self._index.setdefault(region, len(self._index)), address - region.address)

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the buffers lie."""
        return tuple(region.address for region in self._index)

    def buffers(self) -> tuple[Buffer, ...]:
        """The buffers that were pointed into; weights with their contents."""

        def contents(region: Region) -> bytes | None:
            if region.role is not Role.WEIGHT or self._read is None:
                return None
            return self._read(region.address, region.size_bytes)

        return tuple(Buffer(r.name, r.size_bytes, r.role, contents(r)) for r in self._index)


def to_program(
    name: str,
    target: str,
    nodes: Sequence[GraphNode],
    code: Callable[[GraphNode], Code],
    memory: Memory,
    inputs: Mapping[str, tuple[int, str, tuple[int, ...], tuple[int, ...]]],
    outputs: Mapping[str, tuple[int, str, tuple[int, ...], tuple[int, ...]]],
    meta: Mapping[str, str],
    *,
    live: bool = False,
) -> Program:
    """Build a program from the nodes of a graph, in their order.

    Parameters
    ----------
    code
        What is known of a node's kernel; without PTX the kernel becomes opaque.
    inputs, outputs
        By name: address, dtype, shape, strides in elements.
    live
        The graph itself will run what has no code, so a node that cannot be read is opaque, and no error.

    Raises
    ------
    CompileError
        A pointer of a kernel whose code is known lies in no known memory, or the graph holds
        something that is neither a kernel nor a copy nor a fill.
    """
    read = _live_step if live else _step
    kernels: dict[str, Kernel] = {}
    launches = []
    for node in nodes:
        if node.kind == "empty":
            continue
        kernel, args = read(node, code, memory)
        kernels.setdefault(kernel.digest, kernel)
        launches.append(Launch(list(kernels).index(kernel.digest), node.grid, args))

    def tensors(found: Mapping[str, tuple[int, str, tuple[int, ...], tuple[int, ...]]]) -> tuple[Tensor, ...]:
        made = []
        for label, (address, dtype, shape, strides) in found.items():
            at = memory.point(address)
            if at is None:
                raise CompileError(
                    f"{label} of {name} lies in memory that torch does not manage; give a plain CUDA tensor"
                )
            made.append(Tensor(label, dtype, shape, strides, at))
        return tuple(made)

    ins, outs = tensors(inputs), tensors(outputs)
    return Program(name, target, tuple(kernels.values()), tuple(launches), memory.buffers(), ins, outs, dict(meta))


def _step(node: GraphNode, code: Callable[[GraphNode], Code], memory: Memory) -> tuple[Kernel, tuple[Argument, ...]]:
    if node.kind in _MEMORY_NODES:
        if node.parameters is None:
            why = f"a {node.kind} that is not flat in device memory"
            return Kernel(node.name, Source.LIBRARY, (1, 1, 1), 0, opaque=why), ()
        why = f"a {node.kind} of memory has no code"
        sizes = [int.from_bytes(raw, "little") for raw in node.parameters[2:]]
        label = f"{node.name} {math.prod(sizes)} bytes"  # its duration, and so its profile, goes with its size
        kernel = Kernel(label, _MEMORY_NODES[node.kind], (1, 1, 1), 0, opaque=why)
        pointers = 2 if node.kind == "copy" else 1
        args = tuple(_argument(raw, i < pointers, node.name, memory) for i, raw in enumerate(node.parameters))
        return kernel, args
    if node.kind != "kernel":
        raise CompileError(f"the graph holds a {node.kind}; only kernels, copies and fills can be captured")
    facts = code(node)
    known = facts.ptx is not None
    kernel = Kernel(
        name=node.name,
        source=Source.TRITON if known else Source.LIBRARY,
        block=node.block,
        registers=facts.registers,
        shared_bytes=facts.shared_bytes + node.shared_bytes,
        dynamic_shared_bytes=node.shared_bytes,
        ptx=facts.ptx,
        ttir=facts.ttir,
        opaque="" if known else "a library kernel: its code is not there in a form that can be read",
    )
    if facts.ptx is None or node.parameters is None:
        return kernel, ()
    pointers_at = pointer_parameters(facts.ptx)
    if len(pointers_at) != len(node.parameters):
        raise CompileError(
            f"{node.name} has {len(pointers_at)} parameters in PTX and {len(node.parameters)} in the graph"
        )
    return kernel, tuple(
        _argument(raw, pointer, node.name, memory) for raw, pointer in zip(node.parameters, pointers_at, strict=True)
    )


def _live_step(
    node: GraphNode, code: Callable[[GraphNode], Code], memory: Memory
) -> tuple[Kernel, tuple[Argument, ...]]:
    try:
        return _step(node, code, memory)
    except CompileError as error:
        facts = code(node) if node.kind == "kernel" else Code(0, 0)
        shared = facts.shared_bytes + node.shared_bytes
        name = node.name or node.kind
        return Kernel(
            name, Source.LIBRARY, node.block, facts.registers, shared, node.shared_bytes, opaque=str(error)
        ), ()  # fmt: skip


def _argument(raw: bytes, pointer: bool, kernel: str, memory: Memory) -> Argument:
    address = int.from_bytes(raw, "little")
    if not pointer or address == 0:
        return Scalar(raw)
    at = memory.point(address)
    if at is None:
        raise CompileError(f"{kernel} points to {address:#x}, which lies in no memory that torch manages")
    return at


def pointer_parameters(ptx: str) -> list[bool]:
    """For each parameter of the first entry, whether it is a pointer (``.ptr``, as LLVM marks them)."""
    head = ptx[ptx.index(".entry") :]
    head = head[head.index("(") + 1 : head.index(")")]
    return [".ptr" in line for line in head.split(",") if ".param" in line]
