"""A task on a GPU: its memory, its code, and the graphs that run it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from functools import cached_property

from miriam.device.cuda.bound import Bound
from miriam.device.cuda.check import Check
from miriam.device.cuda.control import Control
from miriam.device.cuda.driver import Capture, Gpu, Graph, Partition
from miriam.device.cuda.elastic import ElasticCode, ElasticInstance, ElasticLane
from miriam.device.cuda.instance import Code, Instance
from miriam.device.cuda.lane import CudaLane
from miriam.device.cuda.place import Place
from miriam.device.cuda.shards import ShardCode
from miriam.device.cuda.transfer import Transfer
from miriam.device.cuda.warm import Warmer
from miriam.elastic.pauses import spans
from miriam.elastic.rewrite import Form
from miriam.errors import DeviceError
from miriam.program import Program

__all__ = ["Codes", "Holds", "Plan", "Work"]


class Codes:
    """The kernels of programs, loaded once for a GPU; devices on it may share them, one after another.

    Parameters
    ----------
    ordinal
        Number of the GPU.
    """

    def __init__(self, ordinal: int = 0) -> None:
        with ExitStack() as made:
            self.gpu = Gpu(ordinal)
            made.callback(self.gpu.close)
            self.control = Control()
            made.pop_all()
        self._plain: dict[str, Code] = {}
        self._elastic: dict[str, ElasticCode] = {}
        self._shards: dict[tuple[str, bool], ShardCode] = {}

    def plain(self, program: Program) -> Code:
        """The unmodified kernels."""
        if program.digest not in self._plain:
            self._plain[program.digest] = Code(program)
        return self._plain[program.digest]

    def elastic(self, program: Program) -> ElasticCode:
        """The elastic ones."""
        if program.digest not in self._elastic:
            self._elastic[program.digest] = ElasticCode(program)
        return self._elastic[program.digest]

    def shards(self, program: Program, *, thinner: bool) -> ShardCode:
        """Those that run a shard."""
        key = program.digest, thinner
        if key not in self._shards:
            self._shards[key] = ShardCode(program, thinner=thinner)
        return self._shards[key]

    def drop(self, program: Program) -> None:
        """Unload what no task needs any more."""
        digest = program.digest
        for plain in (self._plain.pop(digest, None), self._elastic.pop(digest, None)):
            if plain is not None:
                plain.close()
        for thinner in (False, True):
            if (shards := self._shards.pop((digest, thinner), None)) is not None:
                shards.close()

    def forget(self, partition: Partition) -> None:
        """A partition is about to be closed, and what was loaded for it goes with it."""
        self.control.forget(partition)
        for shards in self._shards.values():
            shards.forget(partition)

    def close(self) -> None:
        """Unload everything and release the GPU; nothing may be in flight."""
        for plain in self._plain.values():
            plain.close()
        for elastic in self._elastic.values():
            elastic.close()
        for shards in self._shards.values():
            shards.close()
        self._plain, self._elastic, self._shards = {}, {}, {}
        self.control.close()
        self.gpu.close()


@dataclass(frozen=True, slots=True)
class Holds:
    """Lanes that a run holds limits on while it lasts.

    Attributes
    ----------
    table
        Device address of what :meth:`Control.hold` takes; 0 if there are none.
    lanes
        The lanes.
    """

    table: int = 0
    lanes: tuple[CudaLane, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run of whole launches is run, again and again.

    Attributes
    ----------
    graph
        What is enqueued.
    holds
        The lanes that it lets go.
    warmer
        What is to be asked for beside it.
    """

    graph: Graph
    holds: Holds
    warmer: Warmer | None = None


class Work:
    """One task in one place.

    Attributes
    ----------
    blocks
        Logical blocks of all launches before each one, and of all.
    made
        What has been made for it; kept by those who do that when it is first needed.

    Parameters
    ----------
    each
        For each launch the most logical blocks of a share, when it runs elastic.
    seed
        Of the numbers in buffers that the program brings no contents for.
    verify
        Compare the outputs of every inference that ends with a graph of whole launches.
    bound
        Where the program is there already, with its contents.
    """

    def __init__(
        self, codes: Codes, place: Place, program: Program, each: Iterable[int], *, seed: int, verify: bool,
        bound: Bound | None = None,
    ) -> None:  # fmt: skip
        self.program = program
        self.blocks = tuple(itertools.accumulate((step.blocks for step in program.launches), initial=0))
        self.made: set[tuple[object, ...]] = set()
        self._codes = codes
        self._place = place
        self._each = tuple(each)
        self._graphs: dict[tuple[object, ...], Graph] = {}
        self._elastic: ElasticInstance | None = None
        self._warmer: Warmer | None = None
        self._lanes: dict[CudaLane, ElasticLane] = {}
        self.check: Check | None = None
        place.activate()
        with ExitStack() as made:
            self.instance = Instance(codes.gpu, program, codes.plain(program), bound=bound)
            made.callback(self.instance.close)
            if bound is None:
                self.instance.fill(seed)
            if verify:
                with closing(place.stream()) as stream:
                    self.check = Check(codes.gpu, codes.control, self.instance, stream, seed)
                made.callback(self.check.close)
            self._made = made.pop_all()  # closed backwards

    @cached_property
    def transfer(self) -> Transfer:
        """The way of inputs and outputs."""
        transfer = Transfer(self._codes.gpu, self.program)
        self._made.callback(transfer.close)
        return transfer

    def load(self, *, warm: bool) -> None:
        """Make now whatever takes long and needs no lane; ``warm``: other lanes will be limited by its runs, too."""
        self.transfer.ready()
        self._elastic_instance()
        if warm:
            self.warmed()

    def original(self, lane: CudaLane, launches: range, holds: Holds, *, hold: bool) -> Graph:
        """Whole launches as they are, while limits hold; without ``hold`` somebody else sees to the beginning."""
        hold = hold and bool(holds.lanes)
        key = (lane, launches, holds.table, hold)
        if key not in self._graphs:
            with self._capture(lane) as capture:
                self._hold(capture, holds, hold)
                self.instance.enqueue(capture.stream, launches)
                self._checked(capture, launches)
                self._release(capture, lane, holds)
            self._graphs[key] = self._ready(capture, lane)
        return self._graphs[key]

    def resident(self, lane: CudaLane, holds: Holds, *, hold: bool, narrow: bool, cut: bool) -> Graph:
        """A whole inference that pauses and goes on by itself.

        Parameters
        ----------
        narrow
            Under a limit above 0 it goes on, too.
        cut
            In spans (:mod:`miriam.elastic.pauses`), each of which takes it that those in front of it are complete: no
            inference may be under way that something else began.
        """
        hold = hold and bool(holds.lanes)
        key = (lane, "resident", narrow, cut, holds.table, hold)
        if key not in self._graphs:
            elastic, own = self._elastic_lane(lane)
            every = range(len(self.program.launches))
            with self._capture(lane) as capture:
                self._hold(capture, holds, hold)
                for span in spans(len(every)) if cut else (every,):
                    self._loop(capture, elastic, own, lane, span, narrow=narrow)
                self._checked(capture, every)
                self._release(capture, lane, holds)
            self._graphs[key] = self._ready(capture, lane)
        return self._graphs[key]

    def _loop(
        self, capture: Capture, elastic: ElasticInstance, own: ElasticLane, lane: CudaLane, span: range, *, narrow: bool
    ) -> None:
        """Pass after pass over a span, until it is complete.

        The first pass stands in front of the loop, since most are never interrupted and a condition takes a
        few microseconds.
        """
        control = self._codes.control
        own.gate(capture.stream)
        self._exclusive(capture, own, lane, span)
        loop = capture.condition()
        control.step(capture.stream, elastic.record, lane.record, loop, span.stop)
        with capture.loop(loop) as body:
            if narrow:
                choice = body.condition()
                control.gate(body.stream, elastic.record, lane.record, choice)
                wide, tight = body.choose(choice, 2)
                with wide:
                    self._exclusive(wide, own, lane, span)
                with tight:
                    self._looped(tight, own, span)
            else:
                control.gate(body.stream, elastic.record, lane.record, 0)
                self._exclusive(body, own, lane, span)
            control.step(body.stream, elastic.record, lane.record, loop, span.stop)

    def single(self, lane: CudaLane, *, narrow: bool) -> Graph:
        """One pass, full width or narrow, behind which the host hears whether the inference is complete."""
        key = (lane, "pass", narrow)
        if key not in self._graphs:
            elastic, own = self._elastic_lane(lane)
            control, every = self._codes.control, range(len(self.program.launches))
            with self._capture(lane) as capture:
                own.gate(capture.stream, looped=narrow)
                if narrow:
                    self._looped(capture, own, every)
                else:
                    self._exclusive(capture, own, lane, every)
                control.step(capture.stream, elastic.record, lane.record, 0, every.stop)
                control.notify(capture.stream, elastic.record, lane.counter, lane.words)
            self._graphs[key] = self._ready(capture, lane)
        return self._graphs[key]

    def shard(self, lane: CudaLane, index: int, blocks: tuple[int, int], threads: int | None) -> None:
        """Enqueue a shard, of blocks as they are where the kernel has no thinner ones.

        One that is the whole of an opaque launch runs as it is.
        """
        self._place.activate()
        kernel = self.program.kernel_of(index)
        thinner = threads is not None and self._codes.shards(self.program, thinner=True).has(kernel)
        code = self._codes.shards(self.program, thinner=thinner)
        if code.has(kernel):
            code.enqueue(lane.stream, self.instance, index, blocks, threads if thinner else None)
        elif blocks == (0, self.program.launches[index].blocks):
            self.instance.enqueue(lane.stream, [index])
        else:
            why = kernel.opaque or "it is a copy or a fill, which is one block"
            raise DeviceError(f"a shard of launch {index} of {self.program.name}, {kernel.name}: {why}")
        self._codes.control.notify(lane.stream, 0, lane.counter, lane.words)

    def warmed(self) -> Warmer | None:
        """What brings the weights into the L2, beside the launches that read them; None where there are none."""
        if self._warmer is None:
            self._place.activate()
            self._warmer = Warmer(self._codes.gpu, self.instance)
            self._made.callback(self._warmer.close)
        return self._warmer if self._warmer.bytes else None

    @cached_property
    def resizable(self) -> bool:
        """Whether every launch has a form for any number of workers, so that an inference can be narrowed."""
        code = self._codes.elastic(self.program)
        return all(code.has(self.program.kernel_of(i), Form.LOOPED) for i in range(len(self.program.launches)))

    @cached_property
    def opaque(self) -> dict[str, str]:
        """Kernels that run whole, and why."""
        code = self._codes.elastic(self.program)
        return {k.name: why for k in self.program.kernels if (why := code.opaque(k))}

    def settle(self, lane: CudaLane) -> None:
        """Do what belongs behind an inference that ran in passes of :meth:`single`."""
        if self.check is not None:
            self._place.activate()
            self.check.enqueue(lane.stream)
            lane.stream.synchronize()  # the next inference may be on another lane

    def _hold(self, capture: Capture, holds: Holds, hold: bool) -> None:
        """Take hold of lanes, in the one line of the graph: the driver is quicker with one that has no branches."""
        if hold:
            self._codes.control.hold(capture.stream, holds.table, len(holds.lanes))

    def _release(self, capture: Capture, lane: CudaLane, holds: Holds) -> None:
        """Let go, and tell the host."""
        self._codes.control.release(capture.stream, holds.table, len(holds.lanes), lane.counter, lane.words)

    def _exclusive(self, capture: Capture, own: ElasticLane, lane: CudaLane, launches: range) -> None:
        code = self._codes.elastic(self.program)
        for i in launches:
            if code.opaque(self.program.kernel_of(i)):
                run = capture.condition()
                self._codes.control.look(capture.stream, lane.record, i, run)
                with capture.when(run) as whole:
                    self.instance.enqueue(whole.stream, [i])
            else:
                own.launch(capture.stream, i)

    def _looped(self, capture: Capture, own: ElasticLane, launches: range) -> None:
        for i in launches:
            own.launch(capture.stream, i, own.full(i))

    def _elastic_lane(self, lane: CudaLane) -> tuple[ElasticInstance, ElasticLane]:
        self._place.activate()
        elastic = self._elastic_instance()
        if lane not in self._lanes:
            self._lanes[lane] = elastic.lane(sms=self._place.sms, record=lane.record)
            self._made.callback(self._lanes[lane].close)
        return elastic, self._lanes[lane]

    def _elastic_instance(self) -> ElasticInstance:
        if self._elastic is None:
            self._place.activate()
            code = self._codes.elastic(self.program)
            self._elastic = ElasticInstance(self._codes.gpu, self.instance, code, self._each)
            self._made.callback(self._elastic.close)
        return self._elastic

    def _checked(self, capture: Capture, launches: range) -> None:
        if self.check is not None and launches.stop == len(self.program.launches):
            self.check.enqueue(capture.stream)

    def _capture(self, lane: CudaLane) -> AbstractContextManager[Capture]:
        self._place.activate()
        return lane.stream.capture()

    def _ready(self, capture: Capture, lane: CudaLane) -> Graph:
        self._made.callback(capture.graph.close)
        capture.graph.upload(lane.stream)
        return capture.graph

    def close(self) -> None:
        """Give everything back; nothing may be in flight."""
        self._made.close()
