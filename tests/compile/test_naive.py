"""Networks of plain kernels against the modules whose shapes they have, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from compile_support import TORCH_WARNS
from cuda_on_cpu import COMPILER, CpuKernels

from miriam import MiriamError, ProgramError, Role
from miriam.zoo import naive

torch = pytest.importorskip("torch")
pytestmark = [TORCH_WARNS, pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")]

SIZES = {"resnet50": 64, "squeezenet": 63}  # images that are large enough; the others take only their own

KERNELS = (
    "add", "average_pool", "batch_norm", "convolution", "gru_step", "linear", "lstm_step", "max_pool",
)  # fmt: skip


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    source = (files("miriam.zoo") / "naive.cu").read_text("utf-8")
    return CpuKernels(source, KERNELS, tmp_path_factory.mktemp("naive"))


def built(name: str, **options: Any):
    try:
        return naive.program(name, **options)
    except MiriamError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise


def module_of(name: str):
    from miriam.zoo.models import MODELS

    torch.manual_seed(0)
    module = MODELS[name].make().eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(part.running_mean, 0, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 2)
            torch.nn.init.uniform_(part.weight, 0.3, 0.7)
            torch.nn.init.normal_(part.bias, 0, 0.1)
    return module


def weights_of(module) -> Iterator[np.ndarray]:
    """Weights in the order of the layers; a batch norm as what it does to a trained network."""
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            scale = part.weight / torch.sqrt(part.running_var + part.eps)
            yield from (scale.detach().numpy(), (part.bias - part.running_mean * scale).detach().numpy())
        elif isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            yield from (p.detach().numpy() for p in (part.weight, part.bias) if p is not None)


@pytest.mark.parametrize("name", naive.NETWORKS)
def test_a_network_gives_what_its_module_gives(name, cpu):
    module = module_of(name)
    left = weights_of(module)
    program = built(name, size=SIZES.get(name), weights=left)
    assert next(left, None) is None
    torch.manual_seed(1)
    (x,) = program.inputs
    image = torch.randn(x.shape)
    with torch.no_grad():
        wanted = module(image).numpy()
    found = cpu.run(program, {"x": image.numpy()})["y"]
    assert found.shape == wanted.shape
    assert np.linalg.norm(found - wanted) < 1e-4 * np.linalg.norm(wanted)
    assert np.linalg.norm(wanted - wanted.mean()) > 1e-3 * np.linalg.norm(wanted)


def test_blocks_are_as_the_suite_had_them():
    """AlexNet: four tiles of 55 x 55, then whole channels; a thread for each output of a linear layer."""
    program = built("alexnet")
    geometry = [(step.blocks, program.kernel_of(i).threads) for i, step in enumerate(program.launches)]
    assert geometry[:6] == [(64, 1024), (64, 736), (64, 736), (64, 529), (64, 729), (192, 729)]
    assert geometry[-3:] == [(4096, 1), (4096, 1), (1000, 1)]


def test_weights_have_sizes_and_no_contents():
    program = built("resnet50")
    weights = [buffer for buffer in program.buffers if buffer.role is Role.WEIGHT]
    assert {buffer.data for buffer in weights} == {None}
    assert sum(buffer.size_bytes for buffer in weights) // 4 == 25_557_032  # parameters of ResNet-50


def test_maps_that_are_done_with_are_used_again():
    program = built("resnet50")
    maps = sum(buffer.size_bytes for buffer in program.buffers if buffer.role is Role.INTERMEDIATE)
    assert maps < 4 * 256 * 56 * 56 * 4


def test_a_network_that_is_not_there():
    with pytest.raises(ProgramError, match="alexnet"):
        naive.program("nonesuch")


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ProgramError, match=r"weight 1 .* \(3,\), not \(32, 3, 5, 5\)"):
        built("cifarnet", weights=iter([np.zeros(3, np.float32)]))
