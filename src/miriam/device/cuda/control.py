"""The small kernels around the work: limits that hold while a run lasts, gates, steps, words for the host."""

from __future__ import annotations

from miriam.device.cuda.driver import Function, Module, Partition, Prepared, Stream
from miriam.elastic import resident

__all__ = ["Control"]


class Control:
    """The kernels of :mod:`miriam.elastic.resident`, loaded for one GPU."""

    def __init__(self) -> None:
        self._module = Module(resident.RESIDENT.encode() + b"\0")
        self._functions: dict[tuple[str, Partition | None], Function] = {}

    def _launch(self, name: str, stream: Stream, *words: int | bytes, blocks: int = 1) -> None:
        """Enqueue a kernel; the context of ``stream`` is the current one."""
        args = [word if isinstance(word, bytes) else word.to_bytes(8, "little") for word in words]
        self._function(name, stream).launch(stream, (blocks, 1, 1), (resident.THREADS[name], 1, 1), 0, args)

    def _function(self, name: str, stream: Stream) -> Function:
        key = name, stream.partition
        if key not in self._functions:
            self._functions[key] = self._module.function(name)
        return self._functions[key]

    def forget(self, partition: Partition) -> None:
        """A partition is about to be closed, and what was loaded for it goes with it."""
        self._functions = {key: function for key, function in self._functions.items() if key[1] is not partition}

    def hold(self, stream: Stream, table: int, lanes: int, count: int = 1) -> None:
        """Enqueue: ``count`` more runs hold limits on the lanes of ``table``, -1: one less."""
        self.holding(stream, table, lanes, count).enqueue(stream)

    def holding(self, stream: Stream, table: int, lanes: int, count: int) -> Prepared:
        """Give :meth:`hold` as a launch to be enqueued on ``stream`` again and again."""
        function = self._function(resident.HOLD, stream)
        args = [table.to_bytes(8, "little"), _half(lanes), _half(count & 0xFFFFFFFF)]
        return function.prepare((1, 1, 1), (resident.THREADS[resident.HOLD], 1, 1), 0, args)

    def release(self, stream: Stream, table: int, lanes: int, counter: int, words: int) -> None:
        """Enqueue: a run is over, with its limits if it had any; the host is told."""
        self._launch(resident.RELEASE, stream, table, _half(lanes), counter, words)

    def gate(self, stream: Stream, inference: int, lane: int, choice: int) -> None:
        """Enqueue the gate that waits for a limit under which the pass may run."""
        self._launch(resident.GATE, stream, inference, lane, choice)

    def step(self, stream: Stream, inference: int, lane: int, loop: int, until: int) -> None:
        """Enqueue the end of a pass over the launches below ``until``."""
        self._launch(resident.STEP, stream, inference, lane, loop, _half(until))

    def notify(self, stream: Stream, inference: int, counter: int, words: int) -> None:
        """Enqueue: the host is told that a pass, or what ``inference`` 0 stands for, is over."""
        self._launch(resident.NOTIFY, stream, inference, counter, words)

    def notifying(self, stream: Stream, counter: int, words: int) -> Prepared:
        """Give :meth:`notify` of what is no inference as a launch to be enqueued on ``stream`` again and again."""
        function = self._function(resident.NOTIFY, stream)
        args = [word.to_bytes(8, "little") for word in (0, counter, words)]
        return function.prepare((1, 1, 1), (resident.THREADS[resident.NOTIFY], 1, 1), 0, args)

    def look(self, stream: Stream, lane: int, index: int, handle: int) -> None:
        """Enqueue the question whether this pass runs a launch that only runs whole."""
        self._launch(resident.LOOK, stream, lane, _half(index), handle)

    def feed(self, stream: Stream, turn: int, pair: tuple[int, int], destination: int, size_bytes: int) -> None:
        """Enqueue a copy of the first or second of ``pair``, as ``turn`` is even or odd."""
        self._launch(resident.FEED, stream, turn, *pair, destination, size_bytes, blocks=_blocks(size_bytes))

    def compare(
        self, stream: Stream, turn: int, output: int, pair: tuple[int, int], size_bytes: int, wrong: int
    ) -> None:
        """Enqueue a comparison with the first or second of ``pair``, as ``turn`` is even or odd."""
        self._launch(resident.COMPARE, stream, turn, output, *pair, size_bytes, wrong, blocks=_blocks(size_bytes))

    def close(self) -> None:
        """Unload."""
        self._module.close()


def _half(word: int) -> bytes:
    return word.to_bytes(4, "little")


def _blocks(size_bytes: int) -> int:
    return max(1, min(256, size_bytes // (16 * resident.THREADS[resident.FEED])))
