# ruff: noqa: E402 - what is imported below may be missing
"""Triton kernels beside themselves with fewer warps: which of them give the same bits on this GPU.

Each kernel of the corpus runs with its data and each kernel of the zoo with random numbers, as a program of
one launch. What :func:`miriam.elastic.variants.doubt` finds nothing against must be equal to the bit, and
everything must be equal up to rounding. Triton may refuse only what another version of it wrote. Where
``MIRIAM_RECORDS`` names a folder, ``variants-corpus.json`` and ``variants-zoo.json`` are left there with a row
for each variant.
"""

import datetime
import json
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from gpu_support import LENIENT, need_gpu

need_gpu(torch=True)

import torch
import triton

sys.path.insert(0, str(Path(__file__).parents[1] / "corpus"))

from make_triton import FOLDER, close

from miriam import zoo
from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.instance import Instance
from miriam.elastic.variants import doubt, recompile, thinner
from miriam.errors import CompileError
from miriam.program import Kernel, Launch, Pointer, Program, Tensor

pytestmark = LENIENT

_SEEDS = (0, 1)
_ROUNDING = 4e-3  # four units in the last place of fp16, of the largest number that a kernel writes
_TYPES = {"f16": torch.float16, "f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """A variant beside its original.

    ``difference`` is the largest of all numbers written, relative to the largest of them; None: not compared.
    """

    program: str
    kernel: str
    digest: str
    warps: int
    of_warps: int
    registers: int
    of_registers: int
    doubt: str
    equal: bool
    difference: float | None
    failed: str = ""


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    gpu = Gpu()
    yield gpu
    gpu.close()


@pytest.fixture(scope="module")
def stream(gpu: Gpu) -> Iterator[Stream]:
    stream = Stream()
    yield stream
    stream.close()


def corpus() -> dict[str, Program]:
    return {path.stem: Program.load(path) for path in sorted(FOLDER.glob("*.miriam"))}


def single_launches() -> dict[str, Program]:
    """Every kernel of the zoo that has thinner variants, once, as a program of its first launch."""
    found: dict[str, Program] = {}
    for name in zoo.names():
        program = zoo.load(name)
        for launch in program.launches:
            kernel = program.kernels[launch.kernel]
            if thinner(kernel) and kernel.digest not in found:
                found[kernel.digest] = _alone(program, kernel, launch)
    return found


def _alone(program: Program, kernel: Kernel, launch: Launch) -> Program:
    used = sorted({argument.buffer for argument in launch.args if isinstance(argument, Pointer)})
    args = tuple(
        Pointer(used.index(argument.buffer), argument.offset_bytes) if isinstance(argument, Pointer) else argument
        for argument in launch.args
    )
    buffers = tuple(replace(program.buffers[i], data=None) for i in used)
    return Program(program.name, program.target, (kernel,), (replace(launch, kernel=0, args=args),), buffers)


def with_variants(programs: dict[str, Program]) -> list[tuple[str, Program, int, Kernel | CompileError]]:
    """Every program with every variant of its kernel, compiled on all cores."""
    wanted = [(name, p, warps) for name, p in programs.items() for warps in thinner(p.kernels[0])]
    made: list[tuple[str, Program, int, Kernel | CompileError]] = []
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(recompile, p.kernels[0], warps, p.target) for _, p, warps in wanted]
        for (name, p, warps), future in zip(wanted, pending, strict=True):
            error = future.exception()
            if error is not None and not isinstance(error, CompileError):
                raise error
            made.append((name, p, warps, error or future.result()))
    return made


def refused(name: str, program: Program, warps: int, error: CompileError) -> Row:
    """A row for a variant that could not be made: a Triton may refuse what one of another version wrote.

    TTIR is no exchange format. What 3.7 writes for a barrier, for example, 3.6 cannot read.
    """
    made, here = (v.split(".")[:2] for v in (program.meta.get("triton", triton.__version__), triton.__version__))
    if made == here:
        pytest.fail(f"{name} at {warps} warps: {error}")
    kernel = program.kernels[0]
    return Row(
        name, kernel.name, kernel.digest, warps, kernel.threads // 32, 0, kernel.registers,
        f"made by Triton {'.'.join(made)}, not compiled: {error}", False, None,
    )  # fmt: skip


class Memory:
    """Device memory of the driver as torch sees it."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": (size_bytes,), "typestr": "|u1", "version": 3,
        }  # fmt: skip


def ran(gpu: Gpu, stream: Stream, program: Program, seed: int, launches: tuple[int, ...] = (0,)) -> list[torch.Tensor]:
    """The contents of all buffers after one run; with no launches, before it."""
    instance = Instance(gpu, program)
    try:
        instance.fill(seed)
        gpu.synchronize()  # copies from the host may still be on their way, and this stream does not wait for them
        instance.enqueue(stream, launches)
        stream.synchronize()
        return [
            torch.as_tensor(Memory(instance.address(Pointer(i)), buffer.size_bytes), device="cuda").clone()
            for i, buffer in enumerate(program.buffers)
        ]
    finally:
        torch.cuda.synchronize()
        instance.close()


def apart(one: list[torch.Tensor], other: list[torch.Tensor], kind: torch.dtype) -> Iterator[tuple[torch.Tensor, ...]]:
    """The numbers in which two memories differ, buffer by buffer."""
    for a, b in zip(one, other, strict=True):
        at = torch.unique(torch.nonzero(a != b).flatten() // kind.itemsize)
        if len(at):
            yield a.view(kind)[at].double(), b.view(kind)[at].double()


def difference(
    kernel: Kernel, start: list[torch.Tensor], one: list[torch.Tensor], other: list[torch.Tensor]
) -> float | None:
    """Largest difference of two results, relative to the largest number written; None if types are mixed."""
    stored = set(re.findall(r"tt\.store .*tt\.ptr<(\w+)", kernel.ttir or ""))
    kind = _TYPES.get(stored.pop()) if len(stored) == 1 else None
    if kind is None:
        return None
    largest = max((float(written.nan_to_num().abs().max()) for _, written in apart(start, one, kind)), default=1.0)
    off = [torch.where(a.isnan() & b.isnan(), 0, a - b).nan_to_num(nan=torch.inf) for a, b in apart(one, other, kind)]
    most = max((float(x.abs().max()) for x in off), default=0.0)
    return most / largest if largest else most and math.inf


def compare(name: str, program: Program, variant: Kernel, runs: list[tuple[list[torch.Tensor], ...]]) -> Row:
    """A row from runs of the original and the variant, each with what was there before."""
    kernel = program.kernels[0]
    shown = sorted({tensor.at.buffer for tensor in program.outputs}) or range(len(program.buffers))
    runs = [tuple([memory[i] for i in shown] for memory in run) for run in runs]
    found = [difference(kernel, *run) for run in runs]
    equal = all(torch.equal(a, b) for _, one, other in runs for a, b in zip(one, other, strict=True))
    why = doubt(kernel, variant)
    worst = None if None in found else max(found)
    wrong = "wrong numbers" if worst is not None and worst > _ROUNDING else ""
    return Row(
        name, kernel.name, kernel.digest, variant.threads // 32, kernel.threads // 32, variant.registers,
        kernel.registers, why, equal, worst, wrong or ("" if equal or why else "not equal"),
    )  # fmt: skip


def left(rows: list[Row], what: str) -> None:
    """Say how many are equal, and leave the rows where they are wanted."""
    equal, sure = sum(row.equal for row in rows), sum(not row.doubt for row in rows)
    print(f"\n{what}: {equal} of {len(rows)} variants equal to the bit, {sure} were expected to be")
    for row in rows:
        if row.equal == bool(row.doubt) or row.failed:
            said = row.failed or ("equal" if row.equal else "not equal")
            print(
                f"  {row.program} {row.kernel} {row.of_warps} -> {row.warps} warps: {said}, {row.doubt or 'no doubt'}"
            )
    if folder := os.environ.get("MIRIAM_RECORDS"):
        record = {
            "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "device": torch.cuda.get_device_name(),
            "torch": torch.__version__, "triton": triton.__version__, "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        Path(folder, f"variants-{what}.json").write_text(json.dumps(record, indent=1))


def outputs(program: Program, contents: list[torch.Tensor]) -> dict[str, np.ndarray]:
    def array(tensor: Tensor) -> np.ndarray:
        data = contents[tensor.at.buffer][tensor.at.offset_bytes :].cpu().numpy()
        return data.view(tensor.dtype)[: np.prod(tensor.shape)].reshape(tensor.shape)

    return {tensor.name: array(tensor) for tensor in program.outputs}


_WRONG = pytest.mark.xfail(
    strict=True, reason="Triton 3.6 gives other numbers for it on Hopper, in its own launch, too"
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=_WRONG) if name == "matmul-specialized" else name for name in sorted(corpus())]
)
def test_a_kernel_of_the_corpus_computes_what_numpy_computes(name: str, gpu: Gpu, stream: Stream) -> None:
    program = Program.load(FOLDER / f"{name}.miriam")
    assert close(name, outputs(program, ran(gpu, stream, program, 0)))


def test_variants_of_the_corpus(gpu: Gpu, stream: Stream) -> None:
    rows = []
    for name, program, warps, variant in with_variants(corpus()):
        if isinstance(variant, CompileError):
            rows.append(refused(name, program, warps, variant))
            continue
        thin = replace(program, kernels=(variant,))
        start, before, after = ran(gpu, stream, program, 0, ()), ran(gpu, stream, program, 0), ran(gpu, stream, thin, 0)
        row = compare(name, program, variant, [(start, before, after)])
        rows.append(row if close(name, outputs(thin, after)) else replace(row, failed="wrong numbers"))
    left(rows, "corpus")
    assert not [row for row in rows if row.failed]


def test_variants_of_the_zoo(gpu: Gpu, stream: Stream) -> None:
    rows = []
    known: dict[str, list[tuple[list[torch.Tensor], ...]]] = {}
    for digest, program, warps, variant in with_variants(single_launches()):
        if isinstance(variant, CompileError):
            rows.append(refused(program.name, program, warps, variant))
            continue
        if digest not in known:
            known = {digest: [(ran(gpu, stream, program, s, ()), ran(gpu, stream, program, s)) for s in _SEEDS]}
        thin = replace(program, kernels=(variant,))
        runs = [(*both, ran(gpu, stream, thin, seed)) for seed, both in zip(_SEEDS, known[digest], strict=True)]
        rows.append(compare(program.name, program, variant, runs))
    left(rows, "zoo")
    assert not [row for row in rows if row.failed]
