# ruff: noqa: E402 - what is imported below may be missing
"""Convolutions of few channels: the numbers of torch's own, from kernels that waste little and can be interrupted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compile_support import TORCH_WARNS, need_torch_and_triton

need_torch_and_triton()

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from miriam.elastic.generator import elastic_kernel
from miriam.elastic.ptxas import assemble
from miriam.frontend import _inductor_flat, _inductor_stems
from miriam.frontend._inductor_lowering import Lowering, lower
from miriam.frontend._inductor_stems import _then_rewrite, few_channels
from miriam.program import Kernel, Source

pytestmark = TORCH_WARNS

# kernel, stride, padding, input channels, output channels, image
STEMS = {
    "resnet": (7, 2, 3, 3, 64, (2, 224, 224)),
    "alexnet": (11, 4, 2, 3, 64, (2, 224, 224)),
    "mobilenet": (3, 2, 1, 3, 16, (1, 224, 224)),
    "squeezenet": (3, 2, 0, 3, 64, (1, 224, 224)),
    "vgg": (3, 1, 1, 3, 64, (1, 224, 224)),
    "inception": (3, 2, 0, 3, 32, (1, 299, 299)),
    "cifarnet": (5, 1, 2, 3, 32, (1, 32, 32)),
}
SMALL = {
    "odd": (3, 2, 1, 3, 16, (2, 13, 17)),
    "a row": ((1, 7), (1, 2), (0, 3), 3, 20, (2, 9, 15)),
    "a column": ((5, 1), 1, (2, 0), 2, 16, (1, 11, 6)),
    "one channel": (5, 1, 2, 1, 6, (3, 12, 12)),
    "six channels": (3, (2, 1), (0, 1), 6, 40, (1, 10, 14)),
    "eight, nothing to pad": (2, 1, 0, 8, 16, (1, 7, 9)),
    "more outputs than a block": (4, 3, 2, 4, 150, (1, 19, 10)),
    "a full last step": (4, 1, 0, 4, 16, (2, 8, 8)),
}
PATCHES = {
    "vision transformer": (16, 16, 0, 3, 192, (2, 64, 48)),
    "a rest": (4, 4, 0, 3, 24, (2, 18, 23)),
    "unequal": ((2, 8), (2, 8), 0, 1, 16, (1, 8, 32)),
}
LEFT_ALONE = {
    "many channels": {"in_channels": 16, "kernel_size": 3},
    "one tap": {"in_channels": 3, "kernel_size": 1},
    "groups": {"in_channels": 4, "kernel_size": 3, "groups": 2},
    "dilation": {"in_channels": 3, "kernel_size": 3, "dilation": 2},
}


def make(case: tuple) -> tuple[nn.Module, torch.Tensor]:
    kernel, stride, padding, inputs, outputs, (batch, *image) = case
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()).eval()
    return module.half(), torch.randn(batch, inputs, *image).half()


def lowered(case: tuple) -> Lowering:
    module, x = make(case)
    return lower(module, [x])


def template(found: Lowering) -> str:
    """Source of the kernel that multiplies."""
    (source,) = (kernel.source for kernel in found.kernels if "_tem_" in kernel.name)
    return source


@pytest.mark.parametrize("name", STEMS)
def test_the_sum_of_a_stem_is_hardly_longer_than_it_has_to_be(name: str) -> None:
    found = lowered(STEMS[name])
    source = template(found)
    known = {key: int(value) for key, value in re.findall(r"    (\w+) : tl.constexpr = (\d+)\n", source)}
    taps = known["KERNEL_H"] * known["ROW"] // known["CHANNELS"]
    steps = -(-known["KERNEL_H"] * known["ROW"] // known["BLOCK_K"])
    assert (taps, known["CHANNELS"]) == (STEMS[name][0] ** 2, 4)
    assert steps * known["BLOCK_K"] < min(2 * 4 * taps, 16 * taps)
    assert [("_tem_" in kernel.name, kernel.warps) for kernel in found.kernels] == [(False, 4), (True, 4)]
    assert found.libraries == ()
    assert "cp.async" in found.kernels[1].ptx  # 8 bytes at once, and before they are needed
    assert not re.search(r"ld\.global\S*\.b16", found.kernels[1].ptx)


def test_inductors_own_templates_are_offered_too() -> None:
    found = lowered(STEMS["resnet"])
    assert 8 <= len(found.candidates) <= 12
    assert all(0 < candidate.warps <= 4 for candidate in found.candidates)


@pytest.mark.parametrize("name", PATCHES)
def test_patches_are_a_matrix_product(name: str) -> None:
    found = lowered(PATCHES[name])
    assert "tl.assume" in template(found) or "arg_A" in template(found)
    assert {candidate.operation for candidate in found.candidates} == {"addmm"}
    assert found.libraries == ()


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_convolutions_stay_what_they_are(name: str) -> None:
    module = nn.Conv2d(out_channels=32, **LEFT_ALONE[name]).half()
    found = lower(module, [torch.zeros(1, module.in_channels, 16, 16, dtype=torch.float16)])
    assert not any("ROW : tl.constexpr" in kernel.source for kernel in found.kernels)


@pytest.mark.parametrize("case", [STEMS["resnet"], STEMS["vgg"], PATCHES["vision transformer"]])
def test_the_kernels_are_elastic(case: tuple) -> None:
    for kernel in lowered(case).kernels:
        needs = assemble(kernel.ptx, "sm_90a").entries[kernel.name]
        code = Kernel(
            kernel.name, Source.TRITON, (32 * kernel.warps, 1, 1), needs.registers, needs.shared_bytes, ptx=kernel.ptx
        )
        made = elastic_kernel(code, "xy")
        assert (made.opaque, bool(made.elastic)) == ("", True)


@pytest.mark.parametrize("name", [*SMALL, *PATCHES])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_written_anew_gives_the_numbers_of_torch(name: str, bias: bool) -> None:
    kernel, stride, padding, inputs, outputs, (batch, *image) = (SMALL | PATCHES)[name]
    torch.manual_seed(0)
    x = torch.randn(batch, inputs, *image)
    module = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias).to(memory_format=torch.channels_last)
    with torch.no_grad():
        graph = make_fx(module)(x)
        from torch._inductor.compile_fx import fake_tensor_prop  # what it imports warns of torch itself

        _then_rewrite(lambda module, inputs: fake_tensor_prop(module, inputs, True))(graph, [x])
        found, wanted = graph(x), module(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    convolutions = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution.default)
    assert len(convolutions) == (name in SMALL)
    for node in convolutions:
        assert (node.args[4], max(node.args[3])) == ([0, 0], max(module.stride))


INTERPRET = """
import ast, sys
import torch

jobs = torch.load(sys.argv[1])
for number, (source, grid, tensors) in enumerate(jobs):
    tree = ast.parse(source)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    function.decorator_list = [d for d in function.decorator_list if ast.unparse(d) == "triton.jit"]
    heads = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    path = f"{sys.argv[1]}.{number}.py"
    with open(path, "w") as file:
        file.write(ast.unparse(ast.Module([*heads, function], [])))
    space = {}
    exec(compile(open(path).read(), path, "exec"), space)
    space[function.name][tuple(grid)](*tensors)
torch.save([tensors[-1] for _, _, tensors in jobs], sys.argv[1])
"""


def test_the_template_gives_the_numbers_of_torch(tmp_path: Path) -> None:
    """By Triton's interpreter, which has to be there from the start of a process."""
    jobs, wanted = [], []
    for name, case in SMALL.items():
        module, x = make(case)
        convolution = module[0]
        source = template(lowered(case))
        known = {key: int(value) for key, value in re.findall(r"    (\w+) : tl.constexpr = (\d+)\n", source)}
        more = known["CHANNELS"] - x.shape[1]
        down, right = convolution.padding
        last = torch.channels_last
        image = F.pad(x, [right, right, down, down, 0, more]).contiguous(memory_format=last)
        weight = F.pad(convolution.weight.detach(), [0, 0, 0, 0, 0, more]).contiguous(memory_format=last)
        with torch.no_grad():
            result = module.float()(x.float())
        batch, outputs, high, wide = result.shape
        grid = (-(-batch * high * wide // known["BLOCK_M"]), -(-outputs // known["BLOCK_N"]), 1)
        got = torch.full(result.shape, torch.nan).half()
        jobs.append((source, grid, [image, weight, convolution.bias.detach().half(), got]))
        wanted.append((name, result))
    at = tmp_path / "jobs"
    torch.save(jobs, at)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRET, at], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (name, result), got in zip(wanted, torch.load(at), strict=True):
        torch.testing.assert_close(got.float(), result, rtol=2e-3, atol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_where_it_cannot_be_done_the_old_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("an argument too many")

    with monkeypatch.context() as patch:
        patch.setattr(_inductor_flat, "flat_tiles", fail)
        with pytest.warns(RuntimeWarning, match="slow templates: TypeError"):
            found = lowered(STEMS["vgg"])
        assert "PADDING_H : tl.constexpr = 0" in template(found)
    with monkeypatch.context() as patch:
        patch.setattr(_inductor_stems._Rewriter, "rewrite", fail)
        with pytest.warns(RuntimeWarning, match="stays as it is: TypeError"):
            found = lowered(STEMS["vgg"])
        assert "PADDING_H : tl.constexpr = 1" in template(found)


def test_afterwards_nothing_is_patched() -> None:
    def state() -> list[object]:
        overloads = [_inductor_flat.lowerings[overload] for overload in _inductor_flat._OVERLOADS]
        return [
            torch._inductor.freezing.freezing_passes,
            torch._inductor.kernel.conv.autotune_select_algorithm,
            *overloads,
        ]

    before = state()
    with few_channels():
        assert sum(one is not other for one, other in zip(state(), before, strict=True)) == 3
    assert state() == before
