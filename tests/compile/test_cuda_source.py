"""CUDA C++ through NVRTC: kernels, what they take, and how mistakes are told."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from miriam import CompileError, ProgramError, Source
from miriam.elastic import ptxas
from miriam.frontend import cuda_source
from miriam.frontend.builder import Builder, parameters
from miriam.frontend.cuda_source import compile_source

nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
try:
    nvrtc.nvrtcVersion()
except RuntimeError:
    pytest.skip("needs NVRTC", allow_module_level=True)

SOURCE = """
template <typename T> __global__ void fill(T *p, T value) { p[blockIdx.x] = value; }

__device__ __noinline__ int twice(int a) { return a * 2 + blockIdx.x; }

extern "C" __global__ void __launch_bounds__(128) saxpy(const float *x, float *y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + twice(n);
}

extern "C" __global__ void turn(float *y) {
    __shared__ float held[64];
    extern __shared__ float more[];
    held[threadIdx.x] = more[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = held[63 - threadIdx.x] + more[threadIdx.x ^ 1];
}
"""


@pytest.fixture(scope="module")
def code():
    return compile_source(SOURCE, target="sm_90a", instances=["fill<float>", "fill<short>"])


@pytest.fixture
def no_ptxas(monkeypatch):
    monkeypatch.setattr(cuda_source, "find_ptxas", lambda: None)


@pytest.mark.parametrize("target", ["sm_75", "sm_87", "sm_90", "sm_90a"])
def test_targets_of_several_generations(target):
    made = compile_source(SOURCE, target=target)
    assert f".target {target}" in made.ptx
    assert set(made.entries) == {"saxpy", "turn"}
    assert made.kernel("saxpy", 128).registers > 0


def test_a_kernel_stands_alone_in_its_module(code):
    kernel = code.kernel("saxpy", 128)
    assert (kernel.name, kernel.source, kernel.block) == ("saxpy", Source.CUDA, (128, 1, 1))
    assert kernel.ptx.count(".entry") == 1
    assert "twice" in kernel.ptx
    assert [(p.kind, p.size_bytes) for p in parameters(kernel.ptx, "saxpy")] == [("u", 8), ("u", 8), ("f", 4), ("u", 4)]


def test_instances_of_templates_are_found_by_their_spelling(code):
    one, two = code.kernel("fill<float>", 1), code.kernel("fill<short>", 1)
    assert [parameters(k.ptx, k.name)[1].size_bytes for k in (one, two)] == [4, 2]


def test_shared_memory_is_static_and_asked_for(code):
    kernel = code.kernel("turn", 64, dynamic_shared_bytes=256)
    assert (kernel.shared_bytes, kernel.dynamic_shared_bytes) == (512, 256)


def test_without_ptxas_needs_are_estimated(code, no_ptxas):
    kernel = code.kernel("turn", 64)
    assert kernel.shared_bytes == 256
    assert kernel.registers % 8 == 0
    assert 8 <= kernel.registers <= 32


def test_the_estimate_grows_with_what_is_live(no_ptxas):
    def kernel(held: int):
        body = "".join(f"float v{i} = x[{i}];" for i in range(held)) + "__syncthreads();"
        body += "".join(f"x[{2 * held} - {i} * 2] = v{i};" for i in range(held))
        return compile_source(f'extern "C" __global__ void k(volatile float *x) {{ {body} }}').kernel("k", 64)

    few, many = kernel(8).registers, kernel(64).registers
    assert few < 32
    assert 64 <= many <= 96
    assert kernel(300).registers == 255


@pytest.mark.skipif(ptxas.find_ptxas() is None, reason="needs ptxas")
def test_the_estimate_is_near_to_what_ptxas_takes(code, monkeypatch):
    told = {name: code.kernel(name, 64).registers for name in code.entries}
    monkeypatch.setattr(cuda_source, "find_ptxas", lambda: None)
    for name, registers in told.items():
        assert registers / 2 <= code.kernel(name, 64).registers <= 2 * registers + 8


def test_a_program_of_it_can_be_saved(code, tmp_path):
    build = Builder("saxpy", code.target)
    x = build.input("x", data=np.ones(100, np.float32))
    y = build.output("y", "float32", (100,))
    build.launch(code.kernel("saxpy", 128), 1, x, y, 2.0, 100)
    program = build.program()
    program.save(tmp_path / "p.miriam")
    assert program.runnable
    assert type(program).load(tmp_path / "p.miriam") == program


def test_headers_of_cuda_and_of_the_user():
    text = '#include <cuda_fp16.h>\n#include "mine.h"\nextern "C" __global__ void k(__half *p) { *p = __half(MINE); }'
    made = compile_source(text, headers={"mine.h": "#define MINE 3.0f\n"})
    assert made.kernel("k", 1).registers > 0


def test_options_reach_the_compiler():
    made = compile_source('extern "C" __global__ void k(int *p) { *p = MINE; }', options=["-DMINE=4711"])
    assert "4711" in made.ptx


def test_a_mistake_is_told_with_its_line():
    with pytest.raises(ProgramError, match=r"(?s)net\.cu cannot.*net\.cu\(2\): error: identifier \"b\" is undefined"):
        compile_source("\n__global__ void k(int *a) { *a = b; }", name="net.cu")


def test_warnings_are_kept():
    made = compile_source('extern "C" __global__ void k(int *p) { int unused; *p = 1; }')
    assert "unused" in made.log
    assert compile_source('extern "C" __global__ void k(int *p) { *p = 1; }').log == ""


@pytest.mark.parametrize(("target", "options"), [("sm_12", ()), ("mi300", ()), ("sm_90", ("--frobnicate",))])
def test_what_the_compiler_does_not_know_is_named(target, options):
    with pytest.raises(CompileError, match=options[0] if options else target):
        compile_source("__global__ void k() {}", target=target, options=options)


def test_a_kernel_that_is_not_there(code):
    with pytest.raises(ProgramError, match=r"'spin'.*fill<float>.*saxpy.*turn"):
        code.kernel("spin", 32)


def test_launch_bounds_hold(code):
    with pytest.raises(ProgramError, match="256 threads"):
        code.kernel("saxpy", (16, 16))


def test_a_compiler_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.delattr("cuda.bindings.nvrtc")
    with pytest.raises(CompileError, match="nvidia-cuda-nvrtc"):
        compile_source("")


def test_bindings_without_their_library(monkeypatch):
    def missing():
        raise RuntimeError("Failure finding libnvrtc.so")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", missing)
    with pytest.raises(CompileError, match="nvidia-cuda-nvrtc"):
        compile_source("")


def test_the_compiler_writes_into_nothing_of_pythons():
    compile_source(SOURCE, target="sm_90a")
    assert bytes([32]) == b"\x20"
    assert b"a b".split(b" ") == [b"a", b"b"]
