# ruff: noqa: E402 - what is imported below may be missing
"""Elastic kernels on a GPU: the corpus and programs of the zoo, interrupted at random, equal to the bit."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_support import LENIENT, need_gpu

need_gpu()

for folder in (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks"):
    sys.path.insert(0, str(folder))

from corpus import load
from interrupting import Interrupter

from miriam import zoo
from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.elastic import ElasticCode, ElasticInstance
from miriam.device.cuda.instance import Instance
from miriam.elastic.generator import elastic_kernel, forms_of
from miriam.elastic.ptx import parse
from miriam.elastic.rewrite import Form
from miriam.elastic.state import ALL, NONE
from miriam.elastic.thin import thin, why_not_thin
from miriam.program import Pointer, Program

pytestmark = LENIENT

_TIMES = 12  # a corpus program runs its kernel so often: long enough to be interrupted
_ONCE = ("work-counter",)  # its counter would run out of the buffer
_INFERENCES = int(os.environ.get("MIRIAM_INFERENCES", "8"))


def _elastic(kind: str) -> list[str]:
    """Programs whose kernel is elastic and whose results do not depend on the order of its blocks."""
    return [
        name
        for name, program in load(kind).items()
        if not name.endswith("-large")
        and program.meta.get("compare") != "sorted"
        and Form.DIRECT in forms_of(elastic_kernel(program.kernels[0]))
    ]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Gpu]:
    gpu = Gpu(0)
    yield gpu
    gpu.close()


def _interrupt(gpu: Gpu, program: Program, inferences: int) -> None:
    interrupter = Interrupter(gpu, program, seed=len(program.name))
    for number in range(inferences):
        assert interrupter.inference(), f"inference {number}: {interrupter.counts}"
    interrupter.close()


@pytest.mark.parametrize("name", _elastic("cuda"))
def test_interrupted_cuda_kernels(gpu: Gpu, name: str) -> None:
    program = load("cuda")[name]
    _interrupt(gpu, replace(program, launches=program.launches * _TIMES), _INFERENCES)


@pytest.mark.parametrize("name", _elastic("triton"))
def test_interrupted_triton_kernels(gpu: Gpu, name: str) -> None:
    program = load("triton")[name]
    times = 1 if name in _ONCE else _TIMES
    _interrupt(gpu, replace(program, launches=program.launches * times), _INFERENCES)


@pytest.mark.parametrize("name", ["resnet18-b1", "gru-b1", "cifarnet-b64"])
def test_interrupted_networks(gpu: Gpu, name: str) -> None:
    _interrupt(gpu, zoo.load(name), _INFERENCES)


def test_a_paused_lane_runs_nothing_and_goes_on(gpu: Gpu) -> None:
    program = zoo.load("cifarnet-b1")
    code = ElasticCode(program)
    instance = Instance(gpu, program)
    instance.fill()
    elastic = ElasticInstance(gpu, instance, code)
    lane, stream = elastic.lane(), Stream()
    lane.limit(stream, 0)
    lane.enqueue(stream)
    stream.synchronize()
    assert not elastic.complete
    assert (elastic.progress.next, elastic.progress.begun) == (0, 1)
    lane.limit(stream, ALL)
    lane.enqueue(stream)
    stream.synchronize()
    assert elastic.complete
    assert lane.record.stop == NONE
    assert elastic.progress.begun == 1
    for thing in (stream, lane, elastic, instance, code):
        thing.close()


def _thinnable(kind: str) -> list[str]:
    found = []
    for name, program in load(kind).items():
        kernel = program.kernels[0]
        module = parse(kernel.ptx or "")
        entry = next(entry for entry in module.entries if entry.name == kernel.name)
        whole = not name.endswith("-large") and program.meta.get("compare") != "sorted"
        if whole and kernel.threads > 32 and not why_not_thin(module, entry):
            found.append(name)
    return found


def _left_behind(gpu: Gpu, program: Program) -> list[bytes]:
    instance, stream = Instance(gpu, program), Stream()
    instance.fill()
    instance.enqueue(stream)
    stream.synchronize()
    found = [instance.read(replace(t, at=Pointer(t.at.buffer)), program.buffers[t.at.buffer].size_bytes)
             for t in program.outputs]  # fmt: skip
    instance.close()
    stream.close()
    return found


@pytest.mark.parametrize("name", _thinnable("cuda"))
def test_thin_blocks(gpu: Gpu, name: str) -> None:
    program = load("cuda")[name]
    kernel = program.kernels[0]
    wanted = _left_behind(gpu, program)
    for threads in {32, (kernel.threads // 64) * 32 or 32}:
        if threads < kernel.threads:
            text = thin(parse(kernel.ptx or ""), kernel.name, threads, block=kernel.block)
            thinner = replace(kernel, ptx=text, block=(threads, 1, 1), digest="")
            assert _left_behind(gpu, replace(program, kernels=(thinner, *program.kernels[1:]))) == wanted
