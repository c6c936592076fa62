# ruff: noqa: E402 - what is imported below may be missing
"""Networks compiled on a GPU: the program from its file computes what the compiled module computes, to the bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu_support import LENIENT, bits, need_gpu, run

need_gpu(torch=True)

import torch
from torch import nn

from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.instance import Code, Instance
from miriam.errors import CompileError, DeviceError
from miriam.frontend.torch import Captured, capture
from miriam.program import Program, Role, Source
from miriam.zoo.models import cifarnet

pytestmark = LENIENT


class Gru(nn.Module):
    """A GRU of 128 units over three steps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.recur = nn.Linear(64, 384), nn.Linear(128, 384)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 128)
        for step in range(x.shape[1]):
            (ar, az, an), (br, bz, bn) = self.inner(x[:, step]).chunk(3, 1), self.recur(h).chunk(3, 1)
            z = torch.sigmoid(az + bz)
            h = (1 - z) * torch.tanh(an + torch.sigmoid(ar + br) * bn) + z * h
        return h


def convolutions() -> nn.Module:
    """Convolutions of several kinds, a residual sum, pooling and a linear layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
            self.depth = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.Hardswish())
            self.point = nn.Conv2d(32, 32, 1)
            self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

        def forward(self, x):
            x = self.first(x)
            return self.last(torch.relu(x + self.point(self.depth(x))))

    return Net()


NETWORKS = {"cifarnet": (cifarnet, (2, 3, 32, 32)), "convolutions": (convolutions, (1, 3, 64, 64)),
            "gru": (Gru, (1, 3, 64))}  # fmt: skip


class Compiled:
    """A network, what was captured of it, the program from its file, and inputs with the outputs wanted."""

    def __init__(self, name: str, folder: Path) -> None:
        make, shape = NETWORKS[name]
        torch.manual_seed(0)
        self.module = make().eval().cuda().half()
        self.captured: Captured = capture(self.module, [torch.randn(*shape, device="cuda").half()], name=name)
        self.captured.program.save(folder / f"{name}.miriam")
        self.program = Program.load(folder / f"{name}.miriam")

    def wanted(self, seed: int) -> tuple[list[bytes], list[bytes]]:
        """Inputs and the outputs of the captured graph for them."""
        (held,), outputs = self.captured.inputs, self.captured.outputs
        generator = torch.Generator("cuda").manual_seed(seed)
        held.copy_(torch.randn(held.shape, generator=generator, device="cuda"))
        self.captured.replay()
        torch.cuda.synchronize()
        return [bits(held)], [bits(y) for y in outputs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def made() -> dict[str, Compiled]:
    return {}


@pytest.fixture(params=NETWORKS)
def compiled(request: pytest.FixtureRequest, made: dict[str, Compiled], folder: Path) -> Compiled:
    if request.param not in made:
        made[request.param] = Compiled(request.param, folder)
    return made[request.param]


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    gpu = Gpu(torch.cuda.current_device())
    yield gpu
    gpu.close()


def test_every_kernel_is_tritons_and_the_program_can_run(compiled: Compiled) -> None:
    program = compiled.program
    assert {k.source for k in program.kernels} <= {Source.TRITON, Source.COPY, Source.FILL}
    assert program.runnable
    assert program.target.startswith("sm_")
    for kernel in program.kernels:
        if kernel.source is Source.TRITON:
            assert kernel.ttir
            assert kernel.registers > 0
            assert not {".loc", ".file"} & set(kernel.ptx.split())  # nothing that names this machine
    assert all(b.data is not None for b in program.buffers if b.role is Role.WEIGHT)


def test_the_file_holds_the_program(compiled: Compiled) -> None:
    assert compiled.program == compiled.captured.program
    assert compiled.program.digest == compiled.captured.program.digest


def test_the_program_from_its_file_gives_the_modules_output_to_the_bit(compiled: Compiled, gpu: Gpu) -> None:
    instance, stream = Instance(gpu, compiled.program), Stream()
    for seed in range(3):
        inputs, outputs = compiled.wanted(seed)
        assert run(instance, stream, inputs, [len(y) for y in outputs]) == outputs
    stream.close()
    instance.close()


def test_the_program_as_a_graph_gives_the_same(compiled: Compiled, gpu: Gpu) -> None:
    inputs, outputs = compiled.wanted(7)
    instance, stream = Instance(gpu, compiled.program), Stream()
    graph = instance.graph(stream)
    for tensor, data in zip(compiled.program.inputs, inputs, strict=True):
        instance.write(tensor, data)
    for _ in range(3):
        graph.launch(stream)
    stream.synchronize()
    sizes = [len(y) for y in outputs]
    assert [instance.read(t, n) for t, n in zip(compiled.program.outputs, sizes, strict=True)] == outputs
    for thing in (graph, stream, instance):
        thing.close()


def test_the_output_is_close_to_that_of_the_module_in_fp32(compiled: Compiled) -> None:
    compiled.wanted(11)
    (x,), (y,) = compiled.captured.inputs, compiled.captured.outputs
    module = NETWORKS[compiled.program.name][0]().eval().cuda()
    module.load_state_dict({name: tensor.float() for name, tensor in compiled.module.state_dict().items()})
    with torch.no_grad():
        exact = module(x.float())
    assert (y.float() - exact).norm() < 0.01 * exact.norm()


def test_two_instances_side_by_side_do_not_share_memory(compiled: Compiled, gpu: Gpu) -> None:
    wanted = [compiled.wanted(seed) for seed in (21, 22)]
    code = Code(compiled.program)
    instances = [Instance(gpu, compiled.program, code) for _ in wanted]
    streams = [Stream() for _ in wanted]
    for instance, (inputs, _) in zip(instances, wanted, strict=True):
        for tensor, data in zip(compiled.program.inputs, inputs, strict=True):
            instance.write(tensor, data)
    for _ in range(20):
        for instance, stream in zip(instances, streams, strict=True):
            instance.enqueue(stream)
    for instance, stream, (_, outputs) in zip(instances, streams, wanted, strict=True):
        stream.synchronize()
        found = [instance.read(t, len(y)) for t, y in zip(compiled.program.outputs, outputs, strict=True)]
        assert found == outputs
    for thing in (*streams, *instances, code):
        thing.close()


def test_weights_may_be_left_out(compiled: Compiled, gpu: Gpu, tmp_path: Path) -> None:
    bare = compiled.program.without_weights()
    bare.save(tmp_path / "bare.miriam")
    assert (tmp_path / "bare.miriam").stat().st_size < (1 << 20)
    instance, stream = Instance(gpu, Program.load(tmp_path / "bare.miriam")), Stream()
    instance.fill()
    instance.enqueue(stream)
    stream.synchronize()
    stream.close()
    instance.close()


def test_what_triton_has_no_template_for_is_opaque_and_replays_all_the_same(gpu: Gpu, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 32, 3, padding=2, dilation=2), nn.ReLU()).eval().cuda().half()
    x = torch.randn(1, 16, 32, 32, device="cuda").half()
    captured = capture(module, [x], name="dilated")
    captured.replay()
    torch.cuda.synchronize()
    with torch.no_grad():
        exact = module.float()(captured.inputs[0].float())
    assert (captured.outputs[0].float() - exact).norm() < 0.01 * exact.norm()
    captured.program.save(tmp_path / "dilated.miriam")
    program = Program.load(tmp_path / "dilated.miriam")
    opaque = [kernel for kernel in program.kernels if kernel.source is Source.LIBRARY]
    assert opaque
    assert all("library" in kernel.opaque for kernel in opaque)
    assert not program.runnable
    with pytest.raises(DeviceError, match=r"dilated cannot run from its file: the code of .* is not in it"):
        Instance(gpu, program)
    Instance(gpu, program, partial=True).close()


def test_a_model_that_cannot_be_traced_is_refused_by_name() -> None:
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(CompileError, match="branching cannot be compiled"):
        capture(Branching().eval(), [torch.ones(4, device="cuda")], name="branching")


def test_an_input_that_is_not_on_the_gpu_is_refused() -> None:
    with pytest.raises(CompileError, match="not on the GPU"):
        capture(nn.ReLU().eval(), [torch.ones(4)], name="relu")
