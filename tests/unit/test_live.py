"""Live modules: captured once, known kernel by kernel, run as they were captured; and what is refused."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cloning_driver import Cloning
from cuda_serving_support import served
from fake_driver import CUresult
from support import PTX

import miriam.frontend
from miriam.device.cuda.driver import Gpu, Module, Stream
from miriam.device.cuda.instance import Instance
from miriam.errors import CompileError, DeviceError
from miriam.frontend.live import Live
from miriam.program import Pointer, Role, Scalar, Source
from miriam.task import Task

with_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
POOL = (0, 1)


class FakeTensor:
    """A tensor of fp16 at an address."""

    dtype, is_cuda = "torch.float16", True

    def __init__(self, address: int, *shape: int) -> None:
        self.address, self.shape = address, shape

    def data_ptr(self) -> int:
        return self.address

    def stride(self) -> tuple[int, ...]:
        return (self.shape[1], 1)

    def untyped_storage(self) -> Any:
        return SimpleNamespace(data_ptr=self.data_ptr, nbytes=lambda: 2 * self.shape[0] * self.shape[1])


class FakeTorch:
    """As much of torch as captures need, in front of a driver without a GPU."""

    def __init__(self, cu: Cloning) -> None:
        self.cu = cu
        self.gpu = Gpu()
        self.__version__, self.version = "2.13.0", SimpleNamespace(cuda="13.0")
        self.Tensor, self.no_grad = FakeTensor, nullcontext
        self.nn = SimpleNamespace(Module=FakeModule)
        self.utils = SimpleNamespace(_pytree=SimpleNamespace(tree_flatten=lambda result: (list(result), None)))
        self.segments: list[dict[str, Any]] = []
        self.current: Any = SimpleNamespace(handle=0)
        self.default_generators = [FakeGenerator()]
        self.cuda = SimpleNamespace(  # no synchronize(): others may be serving on this GPU
            is_available=lambda: True, init=lambda: None, current_device=lambda: 0, set_stream=self.set_stream,
            get_device_capability=lambda: (9, 0), get_device_name=lambda: "NVIDIA H200", Stream=FakeSide,
            current_stream=lambda: self.current, stream=self.on, default_generators=self.default_generators,
            ExternalStream=lambda handle: Stream(cu.handles[handle]), CUDAGraph=FakeGraph, graph=self.capture,
            memory_snapshot=lambda: self.segments,
        )  # fmt: skip

    def memory(self, size: int, pool: tuple[int, int] = (0, 0)) -> int:
        address = self.gpu.allocate(size)
        block = {"address": address, "size": size, "state": "active_allocated"}
        self.segments.append({"address": address, "total_size": size, "segment_pool_id": pool, "blocks": [block]})
        return address

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.current, before = stream, self.current
        try:
            yield
        finally:
            self.current = before

    def set_stream(self, stream: Any) -> None:
        self.current = stream

    @contextmanager
    def capture(self, graph: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        """As torch does: nothing is put right if the capture cannot be ended."""
        assert capture_error_mode == "thread_local"  # or what other threads do would end it
        self.current, before, ended = stream, self.current, True
        self.default_generators[0].capturing = True
        try:
            with stream.capture() as made:
                yield
            graph.made = made.graph
        except DeviceError:
            ended = False
            raise
        finally:
            if ended:
                self.current, self.default_generators[0].capturing = before, False

    def close(self) -> None:
        for segment in self.segments:
            self.gpu.free(segment["address"])
        self.gpu.close()


class FakeSide:
    """A stream of torch, for warming up."""

    handle = None

    def wait_stream(self, other: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakeGenerator:
    """A generator of random numbers, which refuses to draw if it takes itself to be captured."""

    capturing = False

    def clone_state(self) -> FakeGenerator:
        return FakeGenerator()

    def graphsafe_set_state(self, state: FakeGenerator) -> None:
        self.capturing = state.capturing


class FakeGraph:
    """torch's CUDAGraph: keeps what was captured, is launched once it is instantiated."""

    def __init__(self, keep_graph: bool) -> None:
        assert keep_graph
        self.made: Any = None
        self.instantiated = False

    def raw_cuda_graph(self) -> int:
        return int(self.made._graph)

    def instantiate(self) -> None:
        self.instantiated = True

    def pool(self) -> tuple[int, int]:
        return POOL

    def reset(self) -> None:
        self.made.close()


class FakeModule:
    """Two kernels, of Triton and of a library, behind each other: x -> arena -> y."""

    training = False

    def __init__(self, torch: FakeTorch, code: Module, x: FakeTensor) -> None:
        self.torch, self.code, self.calls = torch, code, 0
        self.weight = FakeTensor(torch.memory(256), 8, 16)
        self.x, self.arena = x, FakeTensor(torch.memory(1024, POOL), 1, 512)
        self.y = FakeTensor(self.arena.address + 512, 2, 8)

    def state_dict(self, keep_vars: bool) -> dict[str, Any]:
        assert keep_vars
        return {"extra": 3}

    def __call__(self, x: FakeTensor) -> tuple[FakeTensor, ...]:
        self.calls += 1
        stream = self.torch.current
        if isinstance(stream, Stream):  # not the one for warming up
            raw = [address.to_bytes(8, "little") for address in (x.address, self.arena.address)]
            for name in ("fused", "gemm"):
                function = self.code.function(name)
                function.launch(stream, (4, 1, 1), (128, 1, 1), 64, [raw[0], (7).to_bytes(4, "little")])
        return (self.y,)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorch]:
    cu = Cloning()
    cu.install(monkeypatch)
    cu.parameters = {"fused": (8, 4), "gemm": (8, 4)}
    fake = FakeTorch(cu)
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(miriam.frontend, "_inductor_launcher", SimpleNamespace(through_triton=nullcontext), False)

    @contextmanager
    def loaded() -> Iterator[dict[int, Any]]:
        text = {"ptx": PTX.format(name="fused", salt=""), "ttir": "module {}"}
        yield {1: SimpleNamespace(name="fused", text=text.__getitem__)}

    known = SimpleNamespace(check_versions=lambda: None, loaded_kernels=loaded)
    monkeypatch.setattr(miriam.frontend, "_inductor", known, False)
    yield fake
    fake.close()
    assert cu.leaks() == []


def made(torch: FakeTorch, x: FakeTensor | None = None) -> tuple[Live, FakeModule]:
    module = FakeModule(torch, Module(b""), x or FakeTensor(torch.memory(64), 4, 8))
    return Live(module, [module.x], name="net"), module


def test_the_program_shows_what_triton_loaded_and_takes_the_rest_as_opaque(torch: FakeTorch) -> None:
    live, module = made(torch)
    program = live.program
    assert [(k.name, k.source, bool(k.opaque)) for k in program.kernels] == [
        ("fused", Source.TRITON, False), ("gemm", Source.LIBRARY, True),
    ]  # fmt: skip
    assert [step.grid for step in program.launches] == [(4, 1, 1)] * 2
    assert program.launches[0].args == (Pointer(0), Scalar((7).to_bytes(4, "little")))
    assert [(b.role, b.data) for b in program.buffers] == [(Role.INPUT, None), (Role.INTERMEDIATE, None)]
    assert live.addresses == (module.x.address, module.arena.address)
    assert (program.name, program.target, program.meta["torch"]) == ("net", "sm_90a", "2.13.0")
    (x,), (y,) = program.inputs, program.outputs
    assert (x.dtype, x.shape, x.strides, x.at) == ("float16", (4, 8), (8, 1), Pointer(0))
    assert (y.shape, y.at) == ((2, 8), Pointer(1, 512))
    assert (live.inputs, live.outputs) == ([module.x], [module.y])
    live.close()
    module.code.close()


def test_the_module_is_warmed_up_elsewhere_and_captured_once(torch: FakeTorch) -> None:
    live, module = made(torch)
    assert module.calls == 3
    assert torch.cu.launches == []
    live.close()
    module.code.close()


def test_it_runs_as_captured_in_its_own_memory(torch: FakeTorch) -> None:
    live, module = made(torch)
    gpu, stream = Gpu(), Stream(priority=-5)
    instance = Instance(gpu, live.program, bound=live)
    instance.write(live.program.inputs[0], bytes(64))
    assert gpu.read(module.x.address, 64) == bytes(64)
    with stream.capture() as capture:
        instance.enqueue(stream)
        instance.enqueue(stream, [1])
    capture.graph.launch(stream)
    assert [(run.name, run.priority) for run in torch.cu.launches] == [("fused", -5), ("gemm", -5), ("gemm", -5)]
    assert torch.cu.launches[0].args == (module.x.address, 7)
    for thing in (capture.graph, stream, instance, gpu, live, module.code):
        thing.close()
    live.close()


@pytest.mark.parametrize("level", [2, 0], ids=["as it is", "elastic"])
def test_as_a_task_it_is_asked_like_any_other(torch: FakeTorch, monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)  # the driver assembles
    live, module = made(torch)
    torch.cu.effects["gemm"] = lambda gpu, x, _: gpu.memory.write(module.y.address, gpu.memory.read(x, 32)[::-1])
    task = Task("live", live.program, level)
    with served() as on:
        on.device.prepare(task, live)
        with pytest.raises(DeviceError, match="are one live program"):
            on.device.prepare(Task("twin", live.program, level), live)
        for value in range(3):
            x = np.arange(32, dtype=np.float16).reshape(4, 8) + np.float16(value)
            (y,) = on.ask(task, x).outputs
            assert y.tobytes() == x.tobytes()[:32][::-1]
        before = len(torch.cu.launches)
        assert len(on.device.launch_us(live.program)) == 2
        assert len(torch.cu.launches) == before  # it was measured when nobody could be disturbed
        on.device.forget(task)
        on.device.prepare(task, live)  # and again
        assert on.ask(task, x).error is None
    live.close()
    module.code.close()


def test_it_is_captured_on_the_stream_that_is_given(torch: FakeTorch) -> None:
    partition = torch.gpu.partition(16)
    stream = partition.stream()
    module = FakeModule(torch, Module(b""), FakeTensor(torch.memory(64), 4, 8))
    live = Live(module, [module.x], name="net", stream=stream)
    begun = [arguments[0] for name, arguments in torch.cu.calls if name == "cuStreamBeginCapture"]
    assert begun == [torch.cu.handles[int(stream.handle)]]
    for thing in (live, module.code, partition):
        thing.close()
    assert stream.handle is None


def test_memory_that_torch_does_not_manage_is_known_by_its_inputs(torch: FakeTorch) -> None:
    address = torch.gpu.allocate(64)
    live, module = made(torch, FakeTensor(address, 4, 8))
    assert live.addresses[0] == address
    assert (live.program.buffers[0].name, live.program.buffers[0].size_bytes) == ("input0", 64)
    live.close()
    module.code.close()
    torch.gpu.free(address)


def test_without_triton_everything_is_opaque(torch: FakeTorch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise CompileError("another pair")

    monkeypatch.setattr(miriam.frontend, "_inductor", SimpleNamespace(check_versions=refuse))
    live, module = made(torch)
    assert all("library" in kernel.opaque for kernel in live.program.kernels)
    live.close()
    module.code.close()


def test_a_module_that_cannot_be_captured_is_named_and_leaves_nothing(torch: FakeTorch) -> None:
    def broken(x: FakeTensor) -> None:
        raise ValueError("no such branch")

    with pytest.raises(CompileError, match="net cannot be captured: ValueError: no such branch"):
        Live(broken, [FakeTensor(torch.memory(64), 4, 8)], name="net")
    with pytest.raises(CompileError, match="gives something that is not a tensor on the GPU"):
        Live(lambda x: [3], [FakeTensor(torch.memory(64), 4, 8)], name="net")


@pytest.mark.parametrize("ends", [True, False], ids=["it ends", "it cannot be ended"])
def test_a_capture_that_fails_leaves_torch_as_it_was(torch: FakeTorch, ends: bool) -> None:
    def refused(x: FakeTensor) -> tuple[FakeTensor, ...]:
        if isinstance(torch.current, Stream):
            raise ValueError("not in a capture")
        return (x,)

    here, x = torch.current, FakeTensor(torch.memory(64), 4, 8)
    if not ends:
        torch.cu.fail["cuStreamEndCapture"] = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    with pytest.raises(CompileError, match="net cannot be captured: "):
        Live(refused if ends else lambda x: (x,), [x], name="net")
    torch.cu.fail.clear()
    assert torch.current is here
    assert not torch.default_generators[0].capturing
    live, module = made(torch, x)  # and another one can be
    assert torch.current is here
    for thing in (live, module.code):
        thing.close()


def test_what_cannot_be_live_is_refused(torch: FakeTorch) -> None:
    module = FakeModule(torch, Module(b""), FakeTensor(torch.memory(64), 4, 8))
    module.training = True
    with pytest.raises(CompileError, match=r"net is in training mode: call \.eval\(\) on it"):
        Live(module, [module.x], name="net")
    module.training, module.x.is_cuda = False, False
    with pytest.raises(CompileError, match=r"an input of net is not on the GPU: move it with \.cuda\(\)"):
        Live(module, [module.x], name="net")
    torch.cuda.is_available = lambda: False
    with pytest.raises(CompileError, match="a live module needs a CUDA GPU, and torch sees none"):
        Live(module, [module.x], name="net")
    module.code.close()


def test_without_torch_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CompileError, match="needs torch: pip install torch"):
        Live(lambda x: x, [], name="net")


@with_torch
def test_kernels_compiled_inside_are_loaded_by_triton() -> None:
    from torch._inductor import config

    from miriam.frontend._inductor_launcher import through_triton

    before = config.use_static_cuda_launcher
    with through_triton():
        assert config.use_static_cuda_launcher is False
    assert config.use_static_cuda_launcher is before
