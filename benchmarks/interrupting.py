"""Interrupt an elastic program at random, and see whether its results stay the same."""

from __future__ import annotations

import random
import time
from collections import Counter

from miriam.device.cuda.driver import Gpu, Graph, Partition, Stream
from miriam.device.cuda.elastic import ElasticCode, ElasticInstance, ElasticLane
from miriam.device.cuda.instance import Code, Instance
from miriam.elastic.rewrite import Form
from miriam.elastic.state import ALL, NONE
from miriam.program import Program, Role

__all__ = ["Interrupter"]

_SMALL_BYTES = 8 << 20
_TURNS = 40  # of an inference; then it is let through


class Interrupter:
    """A program whose inferences run through passes of all kinds, under limits that change while they run.

    Passes use the whole GPU at full width, the whole GPU with one, a few, one a SM or as many workers
    as find room, or a partition; some run in two partitions at once, which share the work. What an
    inference leaves behind has to be what the unmodified kernels leave behind, to the bit.

    Attributes
    ----------
    counts
        Inferences, wrong ones, passes, passes that stopped, moves to another lane, passes that two lanes shared.
    """

    def __init__(self, gpu: Gpu, program: Program, seed: int) -> None:
        self.gpu, self.program = gpu, program
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._code, self._elastic_code = Code(program), ElasticCode(program)
        self._instance = Instance(gpu, program, self._code)
        each = [self.chance.choice((1, 1, 2, 3, 7)) for _ in program.launches]
        self._elastic = ElasticInstance(gpu, self._instance, self._elastic_code, each)
        self._control = Stream(priority=-5)
        self._partitions = [gpu.partition(16), gpu.partition(32)]
        self._lanes: list[tuple[ElasticLane, Stream, Graph, int | None]] = []
        self._add(None, None)
        if all(self._elastic_code.has(program.kernel_of(i), Form.LOOPED) for i in range(len(program.launches))):
            sms = gpu.geometry.sms
            for partition, width in ((None, 8 * sms), (None, sms), (None, 3), (None, 1)):
                self._add(partition, width)
            for partition in self._partitions:
                self._add(partition, 64)
        gpu.activate()
        self._backup()
        self._reset()
        start = time.perf_counter()
        self._instance.enqueue(self._control)
        self._control.synchronize()
        self._whole_s = time.perf_counter() - start
        self._wanted = self._outputs(), self._everything()

    def _add(self, partition: Partition | None, width: int | None) -> None:
        (partition or self.gpu).activate()
        stream = partition.stream() if partition else Stream()
        lane = self._elastic.lane(width or 1, partition.sms if partition else None)
        self._lanes.append((lane, stream, lane.graph(stream, workers=width), width))

    def _buffers(self) -> list[tuple[int, int, Role, bool]]:
        buffers = zip(self._instance._memory, self.program.buffers, strict=True)
        return [(address, b.size_bytes, b.role, b.data is None) for address, b in buffers]

    def _backup(self) -> None:
        """Remember what memory holds before an inference: what it writes, and has no contents for, is poisoned."""
        self._instance.fill()
        self._kept = []
        for address, size, role, bare in self._buffers():
            if bare and role in (Role.OUTPUT, Role.INTERMEDIATE) and size >= 4:
                self._control.fill(address, 0xFFFFFFFF, 4, size // 4)
            self._kept.append(self.gpu.allocate(size))
            self._control.copy(self._kept[-1], address, size)
        self._control.synchronize()

    def _reset(self) -> None:
        for (address, size, *_), kept in zip(self._buffers(), self._kept, strict=True):
            self._control.copy(address, kept, size)
        self._control.synchronize()

    def _everything(self) -> list[bytes]:
        written = (Role.OUTPUT, Role.INTERMEDIATE)
        return [self.gpu.read(a, size) for a, size, role, bare in self._buffers() if role in written or not bare]

    def _outputs(self) -> list[bytes]:
        if self.program.size_bytes <= _SMALL_BYTES:
            return self._everything()
        at = {tensor.at.buffer for tensor in self.program.outputs}
        buffers = self._buffers()
        return [self.gpu.read(*buffers[i][:2]) for i in sorted(at) if buffers[i][1] <= _SMALL_BYTES]

    def inference(self) -> bool:
        """Run one; whether its results are right.

        Raises
        ------
        RuntimeError
            It does not end.
        """
        chance = self.chance
        self._reset()
        self._elastic.want(self._elastic.progress.begun + 1)
        last = None
        for turn in range(10 * _TURNS):
            chosen = self._chosen() if turn < _TURNS else [self._lanes[0]]
            exclusive = chosen[0][3] is None
            changes = chance.randrange(0, 6) if turn < _TURNS else 0
            for lane, *_ in chosen:
                limits = (0, ALL, ALL, ALL) if exclusive else (0, 1, self.gpu.geometry.sms // 2, ALL, ALL)
                lane.limit(self._control, chance.choice(limits) if turn < _TURNS else ALL)
            self._control.synchronize()
            for _, stream, graph, _ in chosen:
                graph.launch(stream)
            for _ in range(changes):
                self._pause(chance.random() * 2.0 * self._whole_s / (changes + 1))
                lane = chance.choice(chosen)[0]
                lane.limit(self._control, chance.choice((0, 1, chance.randrange(1, 200), ALL)))
            for _, stream, _, _ in chosen:
                stream.synchronize()
            self._control.synchronize()
            records = [lane.record for lane, *_ in chosen]
            self.counts["passes"] += 1
            self.counts["stopped"] += any(record.stop != NONE for record in records)
            self.counts["moves"] += last is not None and last is not chosen[0]
            last = chosen[0]
            if self._elastic.complete:
                break
        else:
            raise RuntimeError(f"{self.program.name} does not end: {self._elastic.progress}, {self._elastic.done}")
        right = self._outputs() == self._wanted[0]
        if self.counts["inferences"] % 20 == 0:
            right = right and self._everything() == self._wanted[1]
        self.counts["inferences"] += 1
        self.counts["wrong"] += not right
        return right

    def _chosen(self) -> list[tuple[ElasticLane, Stream, Graph, int | None]]:
        if len(self._lanes) == 1 or self.chance.random() < 0.4:
            return [self._lanes[0]]
        if self.chance.random() < 0.5:
            return [self.chance.choice(self._lanes[1:])]
        two = self.chance.sample(self._lanes[1:], 2)
        # The gate that begins an inference, or follows an exclusive pass, comes before those of other lanes.
        lane, stream, graph, _ = two[0]
        lane.limit(self._control, 0)
        self._control.synchronize()
        graph.launch(stream)
        stream.synchronize()
        self.counts["shared"] += 1
        return two

    @staticmethod
    def _pause(seconds: float) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass

    def close(self) -> None:
        """Give everything back."""
        for lane, stream, graph, _ in self._lanes:
            graph.close()
            stream.close()
            lane.close()
        self._control.close()
        for address in self._kept:
            self.gpu.free(address)
        self._elastic.close()
        self._instance.close()
        self._elastic_code.close()
        self._code.close()
        for partition in self._partitions:
            partition.close()
