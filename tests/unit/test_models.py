"""What a user gives, on each kind of device: what runs, its names, and the structure of what comes back."""

from __future__ import annotations

import gc
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_serving_support import affine, computes
from fake_driver import FakeDriver
from null_kernels import EFFECTS
from strict_driver import Strict
from support import Profiles

from miriam import zoo
from miriam.device.cpu import CpuDevice
from miriam.device.cuda.serving import ServingCuda
from miriam.errors import CompileError, DeviceError, InputError, ModelError, ProgramError
from miriam.frontend.chain import Chain
from miriam.policy import SERVING
from miriam.program import Role
from miriam.runtime import Loaded, Runtime, Spec
from miriam.runtime.models import Adopted, adopt, load_program
from miriam.store import ProfileStore

with_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = Strict()
    fake.effects.update(EFFECTS)
    fake.install(monkeypatch)
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)
    return fake


def on_cpu(model: Any, example: Any = X, **more: Any) -> Adopted:
    return adopt(model, example, CpuDevice(), "model", **more)


def run(adopted: Adopted, *inputs: Any) -> Any:
    """One request, by hand."""
    chain = adopted.bound
    state = chain.begin(adopted.unwrap(inputs))
    for step in chain.steps:
        step(state)
    return adopted.wrap(chain.end(state), inputs)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (lambda x: 2 * x, 2 * X),
        ([lambda x: (x, x + 1), lambda a, b: a * b], X * (X + 1)),
        (Chain.of(np.exp, X, name="chain"), np.exp(X)),
    ],
    ids=["function", "functions", "chain"],
)
def test_what_can_be_called_becomes_a_chain_on_the_cores(model: Any, wanted: np.ndarray) -> None:
    adopted = on_cpu(model)
    assert adopted.inputs == (Spec("input0", "float32", (2, 3)),)
    assert adopted.program is adopted.bound.program
    np.testing.assert_allclose(run(adopted, X), wanted)


def test_tensors_have_the_names_that_are_asked_for() -> None:
    adopted = on_cpu(lambda a, b: (a + b, a - b), [X, X], inputs=["left", "right"], outputs=["sum", "rest"])
    assert [spec.name for spec in adopted.inputs] == ["left", "right"]
    assert [spec.name for spec in adopted.outputs] == ["sum", "rest"]
    with pytest.raises(CompileError, match="model has 2 inputs, and the names given are left"):
        on_cpu(lambda a, b: a + b, [X, X], inputs=["left"])


@with_torch
def test_a_module_gives_what_it_gives_and_tensors_for_tensors() -> None:
    import torch

    class Net(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return {"double": 2 * x, "parts": [x.sum(), (x.half(),)]}

    adopted = on_cpu(Net().eval(), torch.from_numpy(X))
    for x in (torch.randn(2, 3), X):
        y = run(adopted, x)
        assert set(y) == {"double", "parts"}
        assert type(y["double"]) is type(x)
        np.testing.assert_allclose(np.asarray(y["double"]), 2 * np.asarray(x))
        assert y["parts"][1][0].shape == (2, 3)
    exported = torch.export.export(Net().eval(), (torch.from_numpy(X),))
    np.testing.assert_allclose(run(on_cpu(exported, None), X)["double"], 2 * X)


@with_torch
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int64", "bool", "float8_e4m3fn"])
def test_outputs_are_of_the_kind_of_the_inputs(dtype: str) -> None:
    """A GPU without ml_dtypes gives bits, with it arrays of its types."""
    import torch

    tensor = torch.tensor([[0.0, 1.0, 2.0]]).to(getattr(torch, dtype))
    size = tensor.element_size()
    bits = tensor.view(getattr(torch, f"int{8 * size}") if size > 1 else torch.uint8).numpy()
    known = dtype in ("float16", "int64", "bool")
    array = tensor.numpy() if known else bits
    adopted = Adopted(affine("net"), (), (Spec("y", dtype, (1, 3)),))
    back = adopted.wrap([array], [tensor])
    assert back.dtype == tensor.dtype
    assert torch.equal(back.float(), tensor.float())
    if known:
        assert adopted.wrap([array], [X]) is array
    else:
        with pytest.raises(ModelError, match="need ml_dtypes"):
            adopted.wrap([array], [X])


@with_torch
@pytest.mark.parametrize("values", [[[-2.0, 0.5, 300.0]], 1.5], ids=["matrix", "number"])
def test_outputs_of_bfloat16_are_tensors_or_arrays_of_it(values: Any) -> None:
    """NumPy counts the types of ml_dtypes as its own, torch does not know them."""
    import torch

    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    array = np.asarray(values, bfloat16)
    adopted = Adopted(affine("net"), (), (Spec("y", "bfloat16", array.shape),))
    back = adopted.wrap([array], [torch.ones(1)])
    assert (back.dtype, tuple(back.shape)) == (torch.bfloat16, array.shape)
    assert back.tolist() == values
    assert adopted.wrap([array], [X]) is array
    assert adopted.wrap([back], [X]).dtype == bfloat16


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        ("somewhere.miriam", DeviceError, "holds code for a GPU, and cpu has none: load the module"),
        (affine("net"), DeviceError, "net holds code for a GPU"),
        (3, CompileError, "model is a int: give a module of PyTorch, something that can be called"),
    ],
)
def test_what_the_cores_do_not_run_is_refused(model: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        on_cpu(model)


def test_a_program_is_found_by_its_path_and_in_the_zoo(tmp_path: Path) -> None:
    affine("net").save(tmp_path / "net.miriam")
    for path in (tmp_path / "net.miriam", str(tmp_path / "net.miriam")):
        assert load_program(path) == affine("net")
    assert load_program("zoo:alexnet-b1") is zoo.load("alexnet-b1")
    with pytest.raises(ProgramError, match="there is no program file"):
        load_program(tmp_path / "other.miriam")


def test_a_simulated_gpu_runs_programs_and_nothing_else() -> None:
    with Runtime("sim:orin", admission="off") as rt:
        alexnet = rt.load("zoo:alexnet-b1")
        (x,) = alexnet.inputs
        y = alexnet(np.ones(x.shape, x.dtype))
        assert y.shape == alexnet.outputs[0].shape
        assert not y.any()
        with pytest.raises(DeviceError, match="runs programs only, and double is a function"):
            rt.load(lambda x: 2 * x, X, name="double")


@pytest.mark.parametrize("device", ["cuda:0", "cuda:0/16"])
def test_a_program_file_is_asked_on_a_gpu(cu: FakeDriver, tmp_path: Path, device: str) -> None:
    """From the file to the answer, with everything but the GPU itself in between."""
    for name, factor in (("net", 3), ("other", 5)):
        computes(cu, name, factor)
        affine(name, 8, factor).save(tmp_path / f"{name}.miriam")
    with ProfileStore(tmp_path / "profiles.db") as store, Runtime(device, store=store, admission="off") as rt:
        net = rt.load(tmp_path / "net.miriam", criticality="critical", outputs=["tripled"])
        other = rt.load(tmp_path / "other.miriam")
        assert net.outputs == (Spec("tripled", "float32", (1, 8)),)
        x = np.arange(8, dtype=np.float32)[None]
        answers = [(task.submit(x + i), factor, x + i) for i in range(4) for task, factor in ((net, 3), (other, 5))]
        for response, factor, given in answers:
            assert np.array_equal(response.result(30.0), factor * given)
        assert np.array_equal(net.submit(x, raw=True).result(30.0)[0], 3 * x)
        assert np.array_equal(net.submit(x, criticality=3).result(30.0), 3 * x)
        with pytest.raises(InputError, match="input x of net is float64"):
            net(x.astype(np.float64))
        rt.unload(other)
        late = net.submit(x)
        assert rt.notes
    assert np.array_equal(late.result(30.0), 3 * x)
    assert cu.leaks() == []


@pytest.mark.parametrize("policy", [*SERVING, "resident:16"])
def test_under_every_policy_each_thread_gets_its_own_answers(cu: FakeDriver, policy: str) -> None:
    wrong: list[str] = []

    def ask(task: Loaded, factor: int, seed: int) -> None:
        for turn in range(10):
            x = np.full(task.inputs[0].shape, 100 * seed + turn, np.float32)
            if not np.array_equal(task.submit(x).result(30.0), factor * x):
                wrong.append(f"{task.name}, turn {turn}")

    with Runtime("cuda:0", policy=policy, store=Profiles(), admission="off") as rt:
        threads = []
        for name, count, factor, level in (("high", 8, 2, 2), ("critical", 8, 3, 1), ("normal", 40_000, 5, 0)):
            computes(cu, name, factor)
            task = rt.load(affine(name, count, factor), criticality=level)
            threads += [threading.Thread(target=ask, args=(task, factor, seed)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        counted = {name: found.answered for name, found in rt.statistics().items()}
    assert wrong == []
    assert counted == {"high": 20, "critical": 20, "normal": 20}
    gc.collect()
    assert cu.leaks() == []


@with_torch
def test_tensors_of_the_host_go_through_a_gpu(cu: FakeDriver) -> None:
    import torch

    computes(cu, "net", 3)
    with Runtime("cuda:0", store=Profiles(), admission="off") as rt:
        net = rt.load(affine("net", 8, 3))
        x = torch.arange(8.0)[None]
        y = net(x)
        assert isinstance(y, torch.Tensor)
        assert torch.equal(y, 3 * x)
    assert cu.leaks() == []


def test_weights_that_are_not_there_are_said_so(cu: FakeDriver) -> None:
    device = ServingCuda("cuda:0", Profiles())
    alexnet = zoo.load("alexnet-b1")
    assert any(b.role is Role.WEIGHT for b in alexnet.buffers)
    with pytest.raises(ProgramError, match="alexnet-b1 carries no weights"):
        adopt(alexnet, None, device, "net")
    (note,) = adopt("zoo:alexnet-b1", None, device, "net").notes
    assert "outputs mean nothing" in note
    device.close()


@with_torch
@pytest.mark.parametrize("model", ["module", "function", "no model"])
def test_without_a_pytorch_for_the_gpu_models_are_refused(cu: FakeDriver, model: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this PyTorch sees a GPU")
    device = ServingCuda("cuda:0", Profiles())
    given = {"module": torch.nn.ReLU().eval(), "function": torch.exp, "no model": 3}[model]
    with pytest.raises(CompileError, match="needs a PyTorch that sees the GPU"):
        adopt(given, X, device, "net")
    device.close()


class Compilers:
    """A PyTorch whose GPU is the host, with a compiler and captures that only note what they are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        from miriam.frontend import cache, live
        from miriam.frontend import torch as compiler

        self.compiled: list[Any] = []
        self.lives: list[Any] = []
        self.kept: dict[str, Any] = {}
        self.refuses = ""
        self.runnable = True
        monkeypatch.setattr("miriam.runtime._gpu_models._KIND", "cpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device", lambda ordinal: nullcontext())
        monkeypatch.setattr(compiler, "capture", self.capture)
        monkeypatch.setattr(live, "Live", self.live)
        monkeypatch.setattr(cache, "kept", self.kept.get)
        monkeypatch.setattr(cache, "keep", self.kept.__setitem__)
        self.loading = False
        self.device: Any = SimpleNamespace(
            name="cuda:0", ordinal=0, stream=lambda: "a stream", stage=None, loads=self.loads
        )

    @contextmanager
    def loads(self) -> Iterator[None]:
        self.loading = True
        try:
            yield
        finally:
            self.loading = False

    def capture(self, module: Any, inputs: Any, *, name: str, progress: Any) -> Any:
        assert self.loading
        if self.refuses:
            raise CompileError(self.refuses)
        self.compiled.append(module)
        program = affine(name)
        if not self.runnable:
            kernel = replace(program.kernels[0], ptx=None, opaque="of a library", digest="")
            program = replace(program, kernels=(kernel, program.kernels[1]))
        return SimpleNamespace(program=program, close=lambda: None)

    def live(self, call: Any, inputs: Any, *, name: str, stream: Any) -> Any:
        assert self.loading
        made = SimpleNamespace(program=affine(name), stream=stream, outputs=call(*inputs), closed=False)
        made.close = lambda: setattr(made, "closed", True)
        self.lives.append(made)
        return made

    def adopt(self, model: Any, example: Any) -> Adopted:
        return adopt(model, example, self.device, "net")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Compilers:
    return Compilers(monkeypatch)


@with_torch
def test_a_module_is_compiled_once_for_a_gpu(gpu: Compilers) -> None:
    import torch

    module = torch.nn.Linear(3, 2).eval()
    first = gpu.adopt(module, torch.ones(1, 3))
    assert gpu.compiled == [module]
    assert first.bound is None
    assert first.notes == ()
    assert gpu.adopt(module, np.ones((1, 3), np.float32)).program is first.program
    with torch.no_grad():
        module.weight += 1
    gpu.adopt(module, torch.ones(1, 3))
    assert len(gpu.compiled) == 2
    gpu.adopt(torch.export.export(torch.nn.ReLU().eval(), (torch.ones(1, 3),)), None)
    assert len(gpu.compiled) == 3
    assert not gpu.lives


@with_torch
@pytest.mark.parametrize("why", ["refused", "a library"])
def test_what_cannot_be_compiled_alone_runs_as_it_is(gpu: Compilers, why: str) -> None:
    import torch

    gpu.refuses, gpu.runnable = ("it uses a loop" if why == "refused" else ""), False
    adopted = gpu.adopt(torch.nn.ReLU().eval(), torch.tensor([-1.0, 2.0]))
    (live,) = gpu.lives
    assert adopted.bound is live
    assert live.stream == "a stream"
    assert live.outputs.tolist() == [0.0, 2.0]
    (note,) = adopted.notes
    assert ("it uses a loop" if why == "refused" else "the code of net_times is not to be had") in note
    assert gpu.kept == {}
    adopted.close()
    assert live.closed


@with_torch
def test_functions_and_sequences_of_them_are_captured(gpu: Compilers) -> None:
    import torch

    adopted = gpu.adopt([lambda x: (x, x + 1), lambda a, b: {"product": a * b}], torch.full((1,), 2.0))
    (live,) = gpu.lives
    assert live.outputs["product"].tolist() == [6.0]
    assert adopted.wrap([torch.ones(1)], [torch.ones(1)]) == {"product": torch.ones(1)}
    for model, example, text in (
        (torch.nn.ReLU().train(), torch.ones(1), "in training mode"),
        (torch.exp, None, "needs an example"),
        (3, torch.ones(1), "net is a int: give a module"),
        (lambda x: x[7], torch.ones(1), "fails on its example: IndexError"),
    ):
        with pytest.raises(CompileError, match=text):
            gpu.adopt(model, example)


@with_torch
def test_functions_get_and_give_the_kind_that_they_are_written_for_and_that_was_given() -> None:
    import torch

    for function, example in (
        (torch.relu, torch.from_numpy(X)),
        (lambda x: np.maximum(x, 0), X),
        (lambda x: x.clip(0).sum(), X),
    ):
        adopted = on_cpu(function, example)
        for x in (X, torch.from_numpy(X)):
            y = run(adopted, x)
            assert isinstance(y, torch.Tensor) is isinstance(x, torch.Tensor)
            np.testing.assert_allclose(np.asarray(y), np.asarray(run(adopted, X)))
