# ruff: noqa: E402 - what is imported below may be missing
"""Networks lowered to PTX with Inductor's and our own options, templates and search, with no GPU."""

import re
import subprocess
from pathlib import Path

import pytest
from compile_support import PAIRS, TORCH_WARNS, need_torch_and_triton

need_torch_and_triton()

import torch
import triton
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from miriam.errors import CompileError
from miriam.frontend import _inductor
from miriam.frontend._inductor_lowering import ARCHITECTURES, Lowering, lower
from miriam.frontend.captured import pointer_parameters
from miriam.zoo import models
from miriam.zoo.models.attention import attention

pytestmark = TORCH_WARNS


class Fire(nn.Module):
    """The module of SqueezeNet: two convolutions side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(64, 16, 1)
        self.one, self.three = nn.Conv2d(16, 64, 1), nn.Conv2d(16, 64, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class GruStep(nn.Module):
    """A step of a GRU, from its first state on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.recur = nn.Linear(32, 192), nn.Linear(64, 192)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 64)
        (ar, az, an), (br, bz, bn) = self.inner(x[:, 0]).chunk(3, 1), self.recur(h).chunk(3, 1)
        z = torch.sigmoid(az + bz)
        return (1 - z) * torch.tanh(an + torch.sigmoid(ar + br) * bn) + z * h


class Attention(nn.Module):
    """Attention as the zoo writes it, which Inductor compiles and takes from no library."""

    def forward(self, x):
        return attention(x, x, x)


IMAGE = (1, 16, 32, 32)
ALL_TRITON = {
    "conv-bn-relu": (lambda: nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()), IMAGE),
    "conv of few channels": (lambda: nn.Conv2d(3, 8, 5, 2), (1, 3, 32, 32)),
    "conv 1x1": (lambda: nn.Conv2d(16, 32, 1), IMAGE),
    "conv 1x1 with stride": (lambda: nn.Conv2d(16, 32, 1, 2), IMAGE),
    "grouped conv": (lambda: nn.Conv2d(16, 32, 3, groups=2), IMAGE),
    "depthwise conv": (lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16), IMAGE),
    "linear": (lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU()), (8, 64)),
    "linear of one row": (lambda: nn.Linear(64, 128), (1, 64)),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), IMAGE),
    "average pool": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGE),
    "layer norm": (lambda: nn.LayerNorm(64), (8, 64)),
    "softmax": (lambda: nn.Softmax(-1), (8, 64)),
    "cifarnet": (models.cifarnet, (1, 3, 32, 32)),
    "fire": (Fire, (1, 64, 14, 14)),
    "gru step": (GruStep, (1, 1, 32)),
    "attention": (Attention, (1, 2, 17, 32)),
}
LIBRARY = {
    "dilated conv": (lambda: nn.Conv2d(16, 32, 3, padding=2, dilation=2), IMAGE, "convolution"),
    "transposed conv": (lambda: nn.ConvTranspose2d(16, 32, 2, 2), IMAGE, "convolution"),
    "conv in one dimension": (lambda: nn.Conv1d(16, 32, 3), (1, 16, 64), "convolution"),
}


def lowered(make, shape, capability: int = 90) -> Lowering:
    return lower(make().half(), [torch.zeros(*shape, dtype=torch.float16)], capability)


def ptxas(ptx: str, architecture: str, out: Path) -> subprocess.CompletedProcess:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    (out / "kernel.ptx").write_text(ptx)
    return subprocess.run(
        [tool, f"--gpu-name={architecture}", "kernel.ptx", "-o", "kernel.cubin"],
        cwd=out, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def check_kernels(found: Lowering, target: str) -> None:
    assert len({kernel.name for kernel in found.kernels}) == len(found.kernels)
    for kernel in found.kernels:
        pointers = pointer_parameters(kernel.ptx)
        assert f".entry {kernel.name}(" in kernel.ptx
        assert len(pointers) == len(re.findall(r"\.param \.\w+ .*_param_\d+[,\n]", kernel.ptx))
        assert pointers[-2:] == [True, True]  # scratch memory, which Triton passes to every kernel
        assert sum(pointers) > 2
        assert f".target {target}\n" in kernel.ptx
        assert f".reqntid {32 * kernel.warps}\n" in kernel.ptx
        assert f"@{kernel.name}(" in kernel.ttir
        for text in (kernel.ptx, kernel.ttir):  # nothing that names this machine, or differs between two of them
            assert not re.search(r"\.loc\b|\.file\b|\.py\b|/tmp|/home|/root", text)


@pytest.mark.parametrize("name", ALL_TRITON)
def test_a_network_becomes_triton_kernels_alone(name: str) -> None:
    found = lowered(*ALL_TRITON[name])
    assert found.kernels
    assert found.libraries == ()
    check_kernels(found, "sm_90a")
    assert all(candidate.warps for candidate in found.candidates)  # templates, wherever there is one


@pytest.mark.parametrize("name", LIBRARY)
def test_what_no_template_can_do_becomes_a_call_of_a_library(name: str) -> None:
    make, shape, call = LIBRARY[name]
    found = lowered(make, shape)
    assert found.libraries == (call,)
    check_kernels(found, "sm_90a")


@pytest.mark.parametrize(
    ("shape", "capability"), [(IMAGE, 75), (IMAGE, 87), (IMAGE, 90), ((1, 512, 7, 7), 90), ((16, 256, 28, 28), 90)]
)
def test_the_search_for_convolutions_is_small_and_keeps_to_four_warps(shape, capability: int) -> None:
    """More warps give wrong numbers (triton-lang/triton issue 1254)."""
    found = lowered(lambda: nn.Conv2d(shape[1], 512, 3, padding=1), shape, capability)
    offered = [candidate.warps for candidate in found.candidates if candidate.operation == "convolution"]
    assert 2 <= len(offered) <= 6
    assert max(offered) <= 4
    assert [k.warps for k in found.kernels if "_tem_" in k.name] == offered[:1]


def test_the_search_for_matrix_products_is_small() -> None:
    found = lowered(lambda: nn.Linear(2048, 1000), (16, 2048))
    assert {candidate.operation for candidate in found.candidates} == {"addmm"}
    assert 2 <= len(found.candidates) <= 8


@pytest.mark.parametrize("capability", [capability for capability in ARCHITECTURES if capability != 90])
@pytest.mark.parametrize("name", ["conv-bn-relu", "linear", "layer norm"])
def test_small_gpus_get_the_same_templates(name: str, capability: int) -> None:
    found = lowered(*ALL_TRITON[name], capability)
    assert found.libraries == ()
    check_kernels(found, f"sm_{capability}")


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_the_assembler_takes_the_code(capability: int, tmp_path: Path) -> None:
    found = lowered(*ALL_TRITON["conv-bn-relu"], capability)
    template = next(kernel for kernel in found.kernels if "_tem_" in kernel.name)
    done = ptxas(template.ptx, f"sm_{capability}{'a' if capability >= 90 else ''}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "kernel.cubin").read_bytes().startswith(b"\x7fELF")


def test_batch_norm_and_relu_go_into_the_convolution() -> None:
    found = lowered(*ALL_TRITON["conv-bn-relu"])
    assert sum("relu" in kernel.name for kernel in found.kernels) == 1
    assert not any("sqrt" in kernel.ptx for kernel in found.kernels)  # the norm was folded into the weights


def test_weights_of_equal_shape_stay_two() -> None:
    scale_and_shift = 2
    pointers = pointer_parameters(lowered(*ALL_TRITON["layer norm"]).kernels[0].ptx)
    assert sum(pointers) >= scale_and_shift + len(("input", "output", "scratch", "scratch"))


def test_lowering_again_gives_the_same() -> None:
    assert lowered(*ALL_TRITON["fire"]) == lowered(*ALL_TRITON["fire"])


def test_afterwards_nothing_is_patched_and_the_module_is_as_it_was() -> None:
    def state() -> list[object]:
        return [
            *(getattr(torch.cuda, name) for name in sorted(vars(torch.cuda)) if not name.startswith("__")),
            *vars(torch._dynamo.device_interface.CudaInterface).values(),
            *vars(torch._inductor.async_compile.AsyncCompile).values(),
            torch.Tensor.copy_, torch.accelerator.is_available, triton.runtime.driver._active,
            torch.utils._triton.has_triton(), _inductor.GraphLowering.compile_to_module,
        ]  # fmt: skip

    before = state()
    module = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32)).train()
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    lower(module, [torch.zeros(IMAGE)])
    assert state() == before
    assert module.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_an_architecture_that_is_not_known_is_named() -> None:
    with pytest.raises(CompileError, match="61 is not known here: take one of 75, 87, 90"):
        lower(nn.ReLU(), [torch.zeros(8)], 61)


def test_an_error_of_the_model_comes_through() -> None:
    with pytest.raises(Exception, match="same reduction dim"):
        lowered(lambda: nn.Linear(3, 4), (1, 5))


def test_versions_are_a_known_pair() -> None:
    assert set(_inductor.PAIRS) == PAIRS
    _inductor.check_versions()
    assert _inductor.versions() == {
        "torch": torch.__version__, "triton": triton.__version__, "cuda": str(torch.version.cuda),
    }  # fmt: skip


def test_another_pair_of_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    with pytest.raises(CompileError, match=r"with triton 3\.5 is not supported: install torch 2\.11 with triton 3\.6"):
        _inductor.check_versions()
    with pytest.raises(CompileError, match="is not supported"):
        lower(nn.ReLU(), [torch.zeros(8)])
