# ruff: noqa: E402 - what is imported below may be missing
"""Live modules on a GPU: libraries' kernels run from their graph, whole and in parts; tensors without copies."""

from collections.abc import Iterator

import pytest
from gpu_support import LENIENT, bits, need_gpu

need_gpu(torch=True)

import torch
from torch import nn

from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.instance import Instance
from miriam.errors import CompileError
from miriam.frontend.live import Live
from miriam.frontend.stock import measure
from miriam.frontend.torch import capture
from miriam.program import Program, Source
from miriam.zoo.models import cifarnet

pytestmark = LENIENT


class Branches(nn.Module):
    """Two branches on two streams, and a matrix product behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 5, padding=2)
        self.head = nn.Linear(32, 10)
        self.side = torch.cuda.Stream()

    def forward(self, x):
        here = torch.cuda.current_stream()
        self.side.wait_stream(here)
        with torch.cuda.stream(self.side):
            right = self.right(x).relu()
        left = self.left(x).relu()
        here.wait_stream(self.side)
        return self.head(torch.cat([left, right], 1).mean((2, 3)))


MODULES = {"cifarnet": cifarnet, "branches": Branches}


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    gpu = Gpu(torch.cuda.current_device())
    yield gpu
    gpu.close()


@pytest.fixture(params=MODULES)
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    torch.manual_seed(0)
    module = MODULES[request.param]().eval().cuda().half().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32, device="cuda").half().to(memory_format=torch.channels_last)
    live = Live(module, [x], name=request.param)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        live.replay()
        torch.testing.assert_close(live.outputs[0], module(x), rtol=1e-2, atol=1e-2)
    yield live
    live.close()


def test_its_kernels_are_known_and_those_of_libraries_are_opaque(live: Live) -> None:
    program = live.program
    assert len(program.launches) >= 5
    assert {k.source for k in program.kernels} <= {Source.LIBRARY, Source.COPY, Source.FILL}
    assert all(k.registers > 0 and k.opaque for k in program.kernels if k.source is Source.LIBRARY)
    (x,), (y,) = program.inputs, program.outputs
    places = [live.addresses[t.at.buffer] + t.at.offset_bytes for t in (x, y)]
    assert places == [live.inputs[0].data_ptr(), live.outputs[0].data_ptr()]


@pytest.mark.parametrize("way", ["embedded", "launch by launch", "enqueued"])
def test_bound_to_an_instance_it_gives_the_same_to_the_bit(live: Live, gpu: Gpu, way: str) -> None:
    (x,), (y,) = live.inputs, live.outputs
    x.copy_(torch.randn_like(x))
    live.replay()
    torch.cuda.synchronize()
    wanted = bits(y)
    y.zero_()
    torch.cuda.synchronize()
    _, greatest = gpu.priorities
    instance, stream = Instance(gpu, live.program, bound=live), Stream(priority=greatest)
    if way == "enqueued":
        for _ in range(3):
            instance.enqueue(stream)
    else:
        with stream.capture() as captured:
            if way == "embedded":
                instance.enqueue(captured.stream)
            else:
                for i in range(len(live.program.launches)):
                    instance.enqueue(captured.stream, [i])
        for _ in range(3):
            captured.graph.launch(stream)
    stream.synchronize()
    assert bits(y) == wanted
    if way != "enqueued":
        captured.graph.close()
    for thing in (stream, instance):
        thing.close()


def test_a_part_in_a_condition_runs_when_it_holds(live: Live, gpu: Gpu) -> None:
    (y,) = live.outputs
    live.replay()
    torch.cuda.synchronize()
    wanted = bits(y)
    instance, stream = Instance(gpu, live.program, bound=live), Stream()
    with stream.capture() as captured:
        handle = captured.condition(1)
        with captured.when(handle) as body:
            instance.enqueue(body.stream)
    y.zero_()
    torch.cuda.synchronize()
    captured.graph.launch(stream)
    stream.synchronize()
    assert bits(y) == wanted
    for thing in (captured.graph, stream, instance):
        thing.close()


def test_a_compiled_module_shows_the_code_of_its_kernels(gpu: Gpu) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 64), nn.Softmax(-1)).eval().cuda().half()
    x = torch.randn(8, 256, device="cuda").half()
    live = Live(torch.compile(module), [x], name="compiled")
    sources = [live.program.kernel_of(i).source for i in range(len(live.program.launches))]
    assert {Source.TRITON, Source.LIBRARY} <= set(sources)
    live.replay()
    torch.cuda.synchronize()
    wanted = bits(live.outputs[0])
    live.outputs[0].zero_()
    torch.cuda.synchronize()
    instance, stream = Instance(gpu, live.program, bound=live), Stream()
    own = Instance(gpu, live.program, partial=True)
    assert own.every() == [i for i, source in enumerate(sources) if source is Source.TRITON]
    for i in range(len(sources)):
        instance.enqueue(stream, [i])
    stream.synchronize()
    assert bits(live.outputs[0]) == wanted
    for thing in (stream, own, instance, live):
        thing.close()


def test_two_live_modules_run_side_by_side_without_disturbing_each_other() -> None:
    """Libraries' workspaces among others belong to one graph alone."""
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2048)).eval().cuda() for _ in range(3)]
    lives = [Live(m, [torch.randn(16, 2048, device="cuda")], name="net") for m in modules for _ in range(12)]
    wanted = []
    for live in lives:
        live.replay()
        torch.cuda.synchronize()
        wanted.append(bits(live.outputs[0]))
    streams = [torch.cuda.Stream() for _ in lives]
    for _ in range(20):
        for live, stream in zip(lives, streams, strict=True):
            with torch.cuda.stream(stream):
                live.replay()
    torch.cuda.synchronize()
    assert [bits(live.outputs[0]) for live in lives] == wanted
    for live in lives:
        live.close()


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    return capture(cifarnet().eval().cuda().half(), [torch.randn(2, 3, 32, 32, device="cuda").half()], name="cifarnet")


def test_a_compiled_program_is_bound_to_its_own_module(compiled, gpu: Gpu) -> None:
    compiled.replay()
    torch.cuda.synchronize()
    wanted = bits(compiled.outputs[0])
    compiled.outputs[0].zero_()
    torch.cuda.synchronize()
    instance, stream = Instance(gpu, compiled.program, bound=compiled), Stream()
    instance.enqueue(stream)
    stream.synchronize()
    assert bits(compiled.outputs[0]) == wanted
    stream.close()
    instance.close()


def test_an_instances_tensors_are_torchs_without_a_copy(compiled, gpu: Gpu) -> None:
    program: Program = compiled.program
    instance, stream = Instance(gpu, program), Stream()
    x, y = (torch.from_dlpack(instance.tensor(t)) for t in (program.inputs[0], program.outputs[0]))
    again = torch.as_tensor(instance.tensor(program.inputs[0]), device="cuda")
    assert again.data_ptr() == x.data_ptr() == instance.address(program.inputs[0].at)
    given = compiled.inputs[0]
    assert (x.shape, x.stride(), x.dtype) == (given.shape, given.stride(), given.dtype)
    for seed in range(2):
        torch.manual_seed(seed)
        compiled.inputs[0].copy_(torch.randn_like(x))
        x.copy_(compiled.inputs[0])
        compiled.replay()
        torch.cuda.synchronize()
        instance.enqueue(stream)
        stream.synchronize()
        assert torch.equal(y, compiled.outputs[0])
    del x, y, again
    stream.close()
    instance.close()


def test_a_tensor_is_written_behind_the_work_that_makes_it(compiled, gpu: Gpu) -> None:
    program: Program = compiled.program
    instance, side = Instance(gpu, program), torch.cuda.Stream()
    (tensor,) = program.inputs
    with torch.cuda.stream(side):
        x = torch.randn(2, 3, 32, 32, device="cuda")
        for _ in range(200):
            torch.cuda._sleep(100_000)
        x = (x * 2).half()
        instance.write(tensor, x)
    assert instance.read(tensor, tensor.span_bytes) == bits(x)
    instance.write(tensor, torch.zeros_like(x).cpu())
    assert instance.read(tensor, tensor.span_bytes) == bytes(tensor.span_bytes)
    instance.close()


def test_what_cannot_be_captured_is_named() -> None:
    def branching(x):
        return x if x.sum().item() > 0 else -x

    with pytest.raises(CompileError, match="branching cannot be captured"):
        Live(branching, [torch.ones(4, device="cuda")], name="branching")
    torch.cuda.synchronize()


def test_the_stock_reference_is_measured() -> None:
    found = measure("cifarnet-b64", 0.5)
    assert found.inferences >= 100
    assert 0 < found.p50_us <= found.p99_us
    assert 0.5 < found.batches_per_s * found.p50_us / 1e6 < 4  # back to back gaps are shorter, if anything
