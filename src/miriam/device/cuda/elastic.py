"""Elastic programs on a GPU: progress in device memory, lanes with limits, passes that stop and go on."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence

from miriam.device.cuda.driver import Function, Gpu, Graph, Module, Stream
from miriam.device.cuda.instance import Instance
from miriam.elastic.forms import WAIT
from miriam.elastic.gate import CLAIMED, CLAIMED_THREADS, EXCLUSIVE, EXCLUSIVE_THREADS, GATES
from miriam.elastic.generator import assembled, forms_of, make_elastic
from miriam.elastic.memory import COPY, FILL, MEMORY, MEMORY_THREADS, memory_grid
from miriam.elastic.ptxas import Assembled, find_ptxas
from miriam.elastic.rewrite import ELASTIC, Form, rewrite
from miriam.elastic.state import (
    ALL,
    COPIES,
    COPY_BYTES,
    COUNTER_BYTES,
    INFERENCE_BYTES,
    LANE_BYTES,
    MAX_LAUNCHES,
    NONE,
    SLOT_BYTES,
    SM_TABLE_BYTES,
    SMS,
    TAKEN_BYTES,
    WANTED_AT,
    Argument,
    Counter,
    Inference,
    Lane,
    ranks,
    shares,
)
from miriam.errors import DeviceError
from miriam.program import Kernel, Launch, Pointer, Program, Source

__all__ = ["ElasticCode", "ElasticInstance", "ElasticLane"]


class ElasticCode:
    """The elastic forms of a program's kernels, loaded for one GPU; its instances share them.

    Raises
    ------
    DeviceError
        The driver or the assembler refuses the code of a kernel.
    """

    def __init__(self, program: Program) -> None:
        elastic = make_elastic(program)
        kernels = {kernel.digest: kernel for kernel in elastic.kernels if kernel.elastic is not None}
        self._kernels = kernels
        self._opaque = {
            k.digest: k.opaque
            for k in elastic.kernels
            if k.digest not in kernels and k.source not in (Source.COPY, Source.FILL)
        }
        self._modules: dict[str, Module] = {}
        self._spilled: set[str] = set()
        self._own: list[Module] = []
        texts = [kernel.elastic or "" for kernel in kernels.values()]
        ready = assembled(kernels.values(), program.target) if find_ptxas() else texts  # the driver assembles, too
        try:
            for kernel, code in zip(kernels.values(), ready, strict=True):
                if isinstance(code, str):
                    self._modules[kernel.digest] = Module(code.encode() + b"\0")
                    continue
                if not isinstance(code, Assembled):
                    raise DeviceError(f"the elastic form of {kernel.name} cannot be assembled: {code}")
                self._modules[kernel.digest] = Module(code.cubin)
                spills = {form: code.entries[form.of(kernel.name)].spill_stores for form in forms_of(kernel)}
                if spills.get(Form.DIRECT, 0) > spills.get(Form.STRIDED, 0):
                    self._spilled.add(kernel.digest)
            for text in (rewrite(MEMORY).ptx, GATES):
                self._own.append(Module(text.encode() + b"\0"))
        except BaseException:
            self.close()
            raise

    def opaque(self, kernel: Kernel) -> str:
        """Why ``kernel`` has no elastic form and runs whole; empty if it has."""
        return self._opaque.get(kernel.digest, "")

    def has(self, kernel: Kernel, form: Form) -> bool:
        """Whether ``kernel`` has that form."""
        if self.opaque(kernel):
            return False
        return form in (ELASTIC if kernel.ptx is None else forms_of(self._kernels[kernel.digest]))

    def spills(self, kernel: Kernel) -> bool:
        """Whether the direct form of ``kernel`` spills registers that the strided one does not."""
        return kernel.digest in self._spilled

    def function(self, kernel: Kernel, form: Form) -> Function:
        """A form of ``kernel`` for the current context."""
        if kernel.ptx is None:
            return self._own[0].function(form.of(COPY if kernel.source is Source.COPY else FILL))
        name = form.of(self._kernels[kernel.digest].name)
        return self._modules[kernel.digest].function(name, kernel.dynamic_shared_bytes)

    def early(self, kernel: Kernel) -> bool:
        """Whether the forms of ``kernel`` wait by themselves for the launch in front of them."""
        return kernel.ptx is not None and WAIT in (self._kernels[kernel.digest].elastic or "")

    def gate(self, name: str) -> Function:
        """A gate for the current context."""
        return self._own[1].function(name)

    def close(self) -> None:
        """Unload everything."""
        for module in (*self._modules.values(), *self._own):
            module.close()
        self._modules, self._own = {}, []


class ElasticInstance:
    """The progress of one instance of a program.

    Parameters
    ----------
    gpu
        Where.
    instance
        The buffers; closed by its owner, after this.
    code
        The elastic kernels.
    each
        For each launch the most logical blocks of a share; one by default.

    Raises
    ------
    DeviceError
        A launch cannot run from the program's file, or there are more launches than a lane counts.
    """

    def __init__(self, gpu: Gpu, instance: Instance, code: ElasticCode, each: Sequence[int] | None = None) -> None:
        program = instance.program
        if len(program.launches) >= MAX_LAUNCHES:
            raise DeviceError(f"{program.name} has {len(program.launches)} launches, a lane counts to {MAX_LAUNCHES}")
        if not all(map(instance.runnable, range(len(program.launches)))):
            raise DeviceError(f"{program.name} cannot run from its file: the code of some launches is not in it")
        self.instance = instance
        self.code = code
        self._gpu = gpu
        self._memory: list[int] = []
        self.grids = [self._grid(step) for step in program.launches]
        blocks = [x * y * z for x, y, z in self.grids]
        self.shares = [shares(n, c) for n, c in zip(blocks, each or [1] * len(blocks), strict=True)]
        starts = [0, *itertools.accumulate(-(-n * TAKEN_BYTES // 16) * 16 for n in self.shares)]
        try:
            taken = self._allocate(starts[-1])
            self._taken = [taken + start for start in starts[:-1]]
            self._counters = self._allocate(len(blocks) * COUNTER_BYTES)
            table = self._allocate(len(blocks) * 8)
            self._inference = self._allocate(INFERENCE_BYTES)
            gpu.write(taken, bytes(starts[-1]))
            gpu.write(self._counters, b"".join(Counter(0, 0, n).pack() for n in self.shares))
            gpu.write(table, struct.pack(f"<{len(blocks)}Q", *self._taken))
            start = Inference(len(blocks), table, self._counters, next=len(blocks))
            gpu.write(self._inference, start.pack())
        except BaseException:
            self.close()
            raise

    def _allocate(self, size_bytes: int) -> int:
        self._memory.append(self._gpu.allocate(size_bytes))
        return self._memory[-1]

    def _grid(self, step: Launch) -> tuple[int, int, int]:
        kernel = self.instance.program.kernels[step.kernel]
        if kernel.source not in (Source.COPY, Source.FILL):
            return step.grid
        return (memory_grid(_number(step, 3) * _number(step, 2) if kernel.source is Source.FILL else _number(step, 2)),
                1, 1)  # fmt: skip

    def lane(self, workers: int = 8192, sms: int | None = None, record: int | None = None) -> ElasticLane:
        """A lane of this instance.

        Parameters
        ----------
        workers
            The most that a looped launch in it may have.
        sms
            SMs that its streams have; all by default. Decides which form a launch takes.
        record
            Address of the lane's words and its table of SMs, where several programs take turns in one lane
            (each pass then ends with a step); by default the lane has words of its own.
        """
        return ElasticLane(self._gpu, self, workers, sms or self._gpu.geometry.sms, record)

    @property
    def record(self) -> int:
        """Address of the progress, as gates and steps take it."""
        return self._inference

    @property
    def progress(self) -> Inference:
        """The record that the gates keep; read while no pass is in flight."""
        return Inference.unpack(self._gpu.read(self._inference, INFERENCE_BYTES))

    def want(self, inferences: int = ALL) -> None:
        """Say how many inferences gates may begin in all; by default whenever a pass comes.

        With several lanes in flight it has to be counted, or one begins the next while another ends the last.
        """
        self._gpu.write(self._inference + WANTED_AT, inferences.to_bytes(4, "little"))

    @property
    def complete(self) -> bool:
        """Whether nothing is left of the inference that began last; asked while no pass is in flight."""
        progress = self.progress
        if progress.next >= progress.launches:
            return True
        if progress.claimed:
            return self.done[-1] == self.shares[-1]
        if not progress.last:  # a step has settled it
            return False
        last = Lane.unpack(self._gpu.read(progress.last, LANE_BYTES))
        return last.first != MAX_LAUNCHES and last.stop == NONE

    @property
    def done(self) -> list[int]:
        """Shares that have ended, by launch, as claimed passes count them."""
        raw = self._gpu.read(self._counters, len(self.grids) * COUNTER_BYTES)
        return [done for _, done, _, _ in struct.iter_unpack("<IIII", raw)]

    def close(self) -> None:
        """Give the memory back; lanes are closed before."""
        for address in self._memory:
            self._gpu.free(address)
        self._memory = []


class ElasticLane:
    """A lane: its limit, and the passes that run under it.

    Attributes
    ----------
    early
        Whether launches that wait by themselves for the one in front of them are brought to the SMs ahead.
    """

    early = True

    def __init__(self, gpu: Gpu, elastic: ElasticInstance, workers: int, sms: int, record: int | None = None) -> None:
        self.workers = workers
        self.sms = sms
        self._gpu = gpu
        self._elastic = elastic
        self._memory: list[int] = []
        try:
            self._memory.append(gpu.allocate(workers * SLOT_BYTES))
            self._slots = self._memory[0]
            if record is None:
                record = gpu.allocate(LANE_BYTES + SM_TABLE_BYTES)
                self._memory.append(record)
                gpu.write(record, Lane().pack() + ranks(range(SMS)))
            self._record = record
        except BaseException:
            self.close()
            raise

    @property
    def record(self) -> Lane:
        """What the lane's words say now."""
        return Lane.unpack(self._gpu.read(self._record, LANE_BYTES))

    def limit(self, stream: Stream, workers: int = ALL) -> None:
        """Enqueue a change of the limit."""
        stream.fill_rows(self._record, COPY_BYTES, workers, COPIES)

    def enqueue(self, stream: Stream, *, workers: int | None = None, launches: Iterable[int] | None = None) -> None:
        """Enqueue a pass: the gate and the launches.

        Parameters
        ----------
        workers
            Of each launch, for a pass of looped launches that other lanes may share; None for an
            exclusive pass, at full width.
        launches
            Some of them, in order; those behind one that is left out compute with what was not made.

        Raises
        ------
        DeviceError
            More workers than the lane was made for; or a looped pass over a launch that runs whole.
        """
        elastic = self._elastic
        if workers is not None and not 1 <= workers <= self.workers:
            raise DeviceError(f"{workers} workers: this lane was made for 1 to {self.workers}")
        self.gate(stream, looped=workers is not None)
        for i in range(len(elastic.grids)) if launches is None else launches:
            self.launch(stream, i, workers)

    def gate(self, stream: Stream, *, looped: bool = False) -> None:
        """Enqueue the gate of an exclusive pass, or of one of looped launches."""
        gate = self._elastic.code.gate(CLAIMED if looped else EXCLUSIVE)
        threads = CLAIMED_THREADS if looped else EXCLUSIVE_THREADS
        addresses = [self._elastic.record.to_bytes(8, "little"), self._record.to_bytes(8, "little")]
        gate.launch(stream, (1, 1, 1), (threads, 1, 1), 0, addresses)

    def form(self, index: int) -> tuple[Form, int]:
        """The form that a launch takes in an exclusive pass, and its workers."""
        elastic = self._elastic
        kernel = elastic.instance.program.kernel_of(index)
        x, y, z = elastic.grids[index]
        blocks, count = x * y * z, elastic.shares[index]
        if not elastic.code.has(kernel, Form.DIRECT):
            return Form.GUARDED, blocks
        # What runs ahead in the direct form takes registers: fine, as long as all blocks find room at once.
        if count == blocks <= self._room(kernel, Form.DIRECT) and not elastic.code.spills(kernel):
            return Form.DIRECT, blocks
        return Form.STRIDED, count

    def full(self, index: int) -> int:
        """Workers of a looped launch that fill the lane's SMs."""
        kernel = self._elastic.instance.program.kernel_of(index)
        return min(self.workers, self._room(kernel, Form.LOOPED))

    def _room(self, kernel: Kernel, form: Form) -> int:
        threads = MEMORY_THREADS if kernel.ptx is None else kernel.threads
        function = self._elastic.code.function(kernel, form)
        return function.blocks_per_sm(threads, kernel.dynamic_shared_bytes) * self.sms

    def launch(self, stream: Stream, index: int, workers: int | None = None) -> None:
        """Enqueue one launch of a pass, behind its gate; see :meth:`enqueue`."""
        elastic, instance = self._elastic, self._elastic.instance
        step = instance.program.launches[index]
        kernel = instance.program.kernels[step.kernel]
        form, width = self.form(index) if workers is None else (Form.LOOPED, workers)
        if not elastic.code.has(kernel, form):
            why = elastic.code.opaque(kernel) or "it has no form for any number of workers"
            raise DeviceError(f"launch {index}, {kernel.name}, runs whole ({why}): it has no place in such a pass")
        grid, count = elastic.grids[index], elastic.shares[index]
        counter = elastic._counters + index * COUNTER_BYTES
        told = Argument(self._record, elastic._taken[index], counter, self._slots, index, count, grid)
        args = [instance.address(a).to_bytes(8, "little") if isinstance(a, Pointer) else a.raw for a in step.args]
        whole = form in (Form.DIRECT, Form.GUARDED)
        # Workers of a looped launch go by the SM that they are on: with few of them there might be none on one that
        # the limit leaves to the lane.
        physical = grid if whole else (width if form is Form.LOOPED else min(width, count), 1, 1)
        block = (MEMORY_THREADS, 1, 1) if kernel.ptx is None else kernel.block
        function = elastic.code.function(kernel, form)
        shared, early = kernel.dynamic_shared_bytes, self.early and elastic.code.early(kernel)
        function.launch(stream, physical, block, shared, [*args, told.pack()], early=early)

    def graph(self, stream: Stream, *, workers: int | None = None, launches: Iterable[int] | None = None) -> Graph:
        """Give a CUDA graph of a pass, captured on ``stream``; see :meth:`enqueue`."""
        stream.begin_capture()
        try:
            self.enqueue(stream, workers=workers, launches=launches)
        except BaseException:
            stream.end_capture().close()  # or it would go on for ever
            raise
        return stream.end_capture()

    def close(self) -> None:
        """Give the memory back; nothing of the lane may be in flight."""
        for address in self._memory:
            self._gpu.free(address)
        self._memory = []


def _number(step: Launch, argument: int) -> int:
    raw = step.args[argument]
    assert not isinstance(raw, Pointer)
    return int.from_bytes(raw.raw, "little")
