"""A GPU without a processor: memory that holds bytes, streams in order, graphs that run, kernels that tests give.

Work runs as soon as it is enqueued, or, with ``auto`` off, when ``run`` is called. A kernel does what the
function of its name in ``effects`` does; one without does nothing. A function that waits is a generator:
it yields as long as what it waits for has not happened, and its stream waits with it.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Context", "Event", "Exec", "Function", "Graph", "Green", "Handle", "KernelRun", "Library", "Memory", "MisuseError",
    "NullGpu", "Stream", "Work",
]  # fmt: skip

Work = Iterator[bool]  # a step at a time: whether something happened in it
ROUNDS = 10_000  # of a loop, after which it counts as endless


class MisuseError(AssertionError):
    """What a driver does not promise to survive: a handle that is closed, memory that is not there."""


class Memory:
    """Device memory by its address, and host memory that the device sees too."""

    def __init__(self) -> None:
        self.device: dict[int, bytearray] = {}
        self.host: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self._next = 0x10000

    def allocate(self, size: int) -> int:
        address, self._next = self._next, self._next + (size + 511) // 256 * 256
        self.device[address] = bytearray(b"\xa5" * size)  # nobody may count on zeros
        return address

    def free(self, address: int) -> None:
        if self.device.pop(address, None) is None:
            raise MisuseError(f"{address:#x} is no allocation, or freed already")

    def view(self, address: int, size: int) -> memoryview:
        for base, held in [*self.device.items(), *self.host.items()]:
            if base <= address and address + size <= base + len(held):
                return memoryview(held).cast("B")[address - base : address - base + size]
        raise MisuseError(f"{size} bytes at {address:#x} are in no allocation")

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.view(address, size))

    def write(self, address: int, data: bytes) -> None:
        self.view(address, len(data))[:] = data


@dataclass(eq=False)
class Handle:
    """Something of the driver's that is made, used and closed."""

    number: int = field(default=0, init=False)
    alive: bool = field(default=True, init=False)

    def __int__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()} {self.number}"


@dataclass(eq=False, repr=False)
class Context(Handle):
    green: Green | None = None
    users: int = 0


@dataclass(eq=False, repr=False)
class Green(Handle):
    sms: frozenset[int]
    context: Context | None = None


@dataclass(eq=False, repr=False)
class Library(Handle):
    code: bytes


@dataclass(frozen=True)
class Function:
    """A kernel of a library."""

    name: str
    library: Library
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class KernelRun:
    """A kernel as it ran, with the priority that it had."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    raw: tuple[bytes, ...]
    priority: int = 0
    early: bool = False

    @property
    def args(self) -> tuple[int, ...]:
        return tuple(int.from_bytes(raw, "little") for raw in self.raw)


@dataclass(eq=False)
class GraphNode:
    """A node: what it does, behind which others, and the bodies of a conditional one."""

    label: str
    begin: Callable[[], Work]
    before: tuple[GraphNode, ...]
    bodies: tuple[Graph, ...] = ()
    kernel: KernelRun | None = None


@dataclass(eq=False, repr=False)
class Graph(Handle):
    """``around`` is the graph of the node whose body this is, ``conditions`` the default by handle."""

    around: Graph | None = None
    nodes: list[GraphNode] = field(default_factory=list)
    conditions: dict[int, int] = field(default_factory=dict)

    def every(self) -> Iterator[GraphNode]:
        """All nodes, also those of bodies."""
        for node in self.nodes:
            yield node
            for body in node.bodies:
                yield from body.every()

    def bodies(self) -> Iterator[Graph]:
        for node in self.every():
            yield from node.bodies


@dataclass(eq=False, repr=False)
class Exec(Handle):
    graph: Graph
    flags: Any
    launched: int = 0
    ended: int = 0


@dataclass(eq=False, repr=False)
class Event(Handle):
    timed: bool = True
    recorded: int = 0
    reached: int = 0
    captured: tuple[Graph, tuple[GraphNode, ...]] | None = None


@dataclass(eq=False, repr=False)
class Stream(Handle):
    """``capturing`` is the graph that it collects into, ``last`` the nodes that the next one comes behind."""

    context: Context | None
    priority: int = 0
    work: deque[Work] = field(default_factory=deque)
    capturing: Graph | None = None
    origin: bool = False
    last: tuple[GraphNode, ...] = ()


class NullGpu:
    """Runs what streams hold.

    Tests look at ``memory``, ``launches`` (kernels that ran, in order), ``conditions`` (the values of
    conditional handles), and give ``effects``: by a kernel's name a function of this GPU and of the
    kernel's arguments as numbers.
    """

    def __init__(self) -> None:
        self.memory = Memory()
        self.streams: list[Stream] = []
        self.launches: list[KernelRun] = []
        self.conditions: dict[int, int] = {}
        self.effects: dict[str, Callable[..., Any]] = {}
        self.auto = True
        self._running = False

    def word(self, address: int) -> int:
        """The word of 4 bytes that lies there."""
        return int.from_bytes(self.memory.read(address, 4), "little")

    def set_word(self, address: int, value: int) -> None:
        self.memory.write(address, (value & 0xFFFFFFFF).to_bytes(4, "little"))

    def enqueue(self, stream: Stream, label: str, begin: Callable[[], Work], kernel: KernelRun | None = None) -> None:
        """Put work at the end of a stream, or a node into the graph that it collects."""
        if stream.capturing is not None:
            node = GraphNode(label, begin, stream.last, kernel=kernel)
            stream.capturing.nodes.append(node)
            stream.last = (node,)
            return
        stream.work.append(begin())
        if self.auto:
            self.run()

    def run(self) -> None:
        """Go on until everything is done or waits."""
        if self._running:
            return
        self._running = True
        try:
            moved = True
            while moved:  # every stream gets its turn
                moved = sum(self._advance(stream) for stream in self.streams) > 0
        finally:
            self._running = False

    @staticmethod
    def _advance(stream: Stream) -> bool:
        if not stream.work:
            return False
        work = stream.work[0]
        try:
            return next(work)
        except StopIteration:
            stream.work.popleft()
            return True
        except BaseException:
            stream.work.popleft()
            raise

    def kernel(self, run: KernelRun, library: Library) -> Work:
        if not library.alive:
            raise MisuseError(f"{run.name} runs after its code was unloaded")
        self.launches.append(run)
        effect = self.effects.get(run.name)
        waits = effect(self, *run.args) if effect else None
        for _ in waits or ():
            yield False

    def play(self, graph: Graph) -> Work:
        """Run a graph: each node when those before it are done."""
        self.conditions |= graph.conditions
        todo, done = list(graph.nodes), set[GraphNode]()
        active: list[tuple[GraphNode, Work]] = []
        while todo or active:
            begun = [node for node in todo if done.issuperset(node.before)]
            todo = [node for node in todo if node not in begun]
            active += [(node, node.begin()) for node in begun]
            moved = bool(begun)
            for node, work in list(active):
                try:
                    moved |= next(work)
                except StopIteration:
                    active.remove((node, work))
                    done.add(node)
                    moved = True
            yield moved

    def launch(self, graph: Exec, turn: int) -> Work:
        """Run a graph behind its earlier launches."""
        while graph.ended != turn:
            yield False
        yield from self.play(graph.graph)
        graph.ended += 1

    def choose(self, kind: str, handle: int, bodies: tuple[Graph, ...]) -> Work:
        """Run a conditional node."""
        for _ in range(ROUNDS):
            value = self.conditions[handle]
            if kind == "SWITCH":
                value, index = int(value < len(bodies)), value
            else:
                index = 0
            if not value:
                return
            yield from self.play(bodies[index])
            if kind != "WHILE":
                return
        raise MisuseError(f"the loop over the condition {handle:#x} does not end")
