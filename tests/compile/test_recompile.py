# ruff: noqa: E402 - what is imported below may be missing
"""Kernels compiled again for fewer warps: what comes out, what is refused, and what is said of the last bits."""

from dataclasses import replace
from pathlib import Path

import pytest
from compile_support import need_torch_and_triton
from support import program as toy

need_torch_and_triton()

from miriam.elastic.ptxas import assemble
from miriam.elastic.variants import doubt, recompile, stages_of, thinner
from miriam.errors import CompileError
from miriam.frontend.captured import pointer_parameters
from miriam.program import Kernel, Program, Source
from miriam.zoo import load

CORPUS = Path(__file__).parents[1] / "corpus" / "triton"
TARGET = "sm_90a"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def kernel(name: str) -> Kernel:
    return Program.load(CORPUS / f"{name}.miriam").kernels[0]


def test_a_variant_has_the_same_parameters_and_a_thinner_block() -> None:
    original = kernel("matmul-w8")
    for warps in thinner(original):
        variant = recompile(original, warps, TARGET)
        assert variant.name == original.name
        assert variant.block == (32 * warps, 1, 1)
        assert variant.ttir == original.ttir
        assert variant.digest != original.digest
        assert pointer_parameters(variant.ptx or "") == pointer_parameters(original.ptx or "")
        needs = assemble(variant.ptx or "", TARGET).entries[variant.name]
        assert (variant.registers, variant.shared_bytes - variant.dynamic_shared_bytes) == (
            needs.registers,
            needs.shared_bytes,
        )
        assert f".reqntid {32 * warps}\n" in (variant.ptx or "")
    assert thinner(original) == [4, 2, 1]
    assert thinner(kernel("matmul-w1")) == []


@pytest.mark.parametrize(("name", "stages"), [("matmul-w1", 2), ("matmul-w4-36", 3), ("matmul-w8-wide", 4)])
def test_the_depth_of_pipelines_is_found_by_the_shared_memory(name: str, stages: int) -> None:
    assert stages_of(kernel(name), TARGET) == stages


def test_a_kernel_of_the_zoo_gets_thinner() -> None:
    template = next(k for k in load("resnet50-b16").kernels if k.dynamic_shared_bytes == 49152 and k.threads == 256)
    stages = stages_of(template, TARGET)
    variant = recompile(template, 4, TARGET, stages=stages)
    assert variant.threads == 128
    assert variant.dynamic_shared_bytes <= template.dynamic_shared_bytes
    assert doubt(template, variant) == ""


@pytest.mark.parametrize(
    ("name", "warps", "reason"),
    [
        ("softmax", 2, "a reduce by arith.addf"),
        ("scan", 1, "a scan by arith.addf and arith.mulf"),
        ("matmul-w4", 2, "not the same instructions: mma, wgmma"),
        ("split-k-float", 2, "by atomics"),
        ("matmul-w8", 4, ""),
        ("matmul-w2", 1, ""),
        ("full-reduce", 1, ""),  # whole numbers and a maximum
        ("transpose", 1, ""),
        ("batch-norm", 1, ""),
        ("split-k-int", 2, ""),
    ],
)
def test_doubt_names_what_depends_on_the_order_of_threads(name: str, warps: int, reason: str) -> None:
    original = kernel(name)
    found = doubt(original, recompile(original, warps, TARGET))
    assert found.startswith(reason) if reason.startswith(("a ", "not")) else reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize("warps", [0, 3, 4, 8])
def test_only_fewer_warps_can_be_had(warps: int) -> None:
    with pytest.raises(CompileError, match=f"has 4 warps and cannot get {warps}: 2, 1"):
        recompile(kernel("transpose"), warps, TARGET)


@pytest.mark.parametrize(
    ("original", "reason"),
    [
        (kernel("matmul-cluster"), "clusters"),
        (kernel("matmul-specialized"), "different kinds"),
        (replace(kernel("softmax"), ttir=None), "no TTIR"),
        (replace(kernel("softmax"), source=Source.CUDA), "no TTIR"),
        (replace(kernel("softmax"), block=(96, 1, 1)), "not one that Triton makes"),
        (replace(kernel("softmax"), block=(64, 2, 1)), "not one that Triton makes"),
    ],
)
def test_what_cannot_be_compiled_again_is_refused_with_the_reason(original: Kernel, reason: str) -> None:
    assert thinner(original) == []
    with pytest.raises(CompileError, match=reason):
        recompile(original, 1, TARGET)
    with pytest.raises(CompileError, match=reason):
        stages_of(original, TARGET)


def test_a_depth_that_matters_and_cannot_be_found_is_an_error() -> None:
    with pytest.raises(CompileError, match="12345 bytes of shared memory, compiled again for 8192, 16384, 24576"):
        recompile(replace(kernel("matmul-w4"), dynamic_shared_bytes=12345), 2, TARGET)


@pytest.mark.parametrize("name", ["layer-norm", "softmax"])  # loops that are not pipelined, and no loop at all
def test_a_depth_that_does_not_matter_needs_not_be_found(name: str) -> None:
    assert stages_of(replace(kernel(name), dynamic_shared_bytes=12345), TARGET) == stages_of(kernel(name), TARGET)


def test_broken_ttir_and_unknown_targets_are_named() -> None:
    original = replace(kernel("transpose"), ttir="module { tt.func public @transpose() }")
    with pytest.raises(CompileError, match="cannot compile this TTIR for sm_90a with 4 warps"):
        recompile(original, 2, TARGET, stages=3)
    with pytest.raises(CompileError, match="'gfx942' is none"):
        recompile(kernel("transpose"), 2, "gfx942", stages=3)
    with pytest.raises(CompileError, match="holds no function of its name"):
        stages_of(toy().kernels[0], TARGET)
