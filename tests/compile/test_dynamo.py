"""torch.compile with the backend "miriam": graphs as tasks, on the cores of this machine."""

from __future__ import annotations

import gc
import importlib.metadata
import threading
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from miriam import MiriamError, Runtime  # noqa: E402
from miriam.errors import CompileError  # noqa: E402
from miriam.frontend import dynamo  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # of torch about itself


@pytest.fixture
def rt() -> Iterator[Runtime]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    with Runtime("cpu", admission="off") as runtime, torch.no_grad():
        yield runtime
    torch._dynamo.reset()


def compiled(model: Any, rt: Runtime, **options: Any) -> Any:
    return torch.compile(model, backend=dynamo.miriam, options={"runtime": rt, **options})


class Net(nn.Module):
    """Weights, buffers, a plain tensor, a result with a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.register_buffer("bias", torch.randn(3))
        self.scale = torch.randn(3)

    def forward(self, x: Any, y: Any = None) -> Any:
        z = self.inner(x) * self.scale + self.bias
        return {"z": z, "both": (z.sum(), x if y is None else x @ y), "rows": x.shape[0]}


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a["z"], b["z"])
    torch.testing.assert_close(a["both"], b["both"])
    assert a["rows"] == b["rows"]


def test_a_model_gives_what_it_gives_without_and_runs_as_a_task(rt: Runtime) -> None:
    net = Net().eval()
    fast = compiled(net, rt, criticality="critical", name="net", queue=3)
    for _ in range(3):
        x = torch.randn(4, 6)
        same(fast(x), net(x))
    (name,) = rt
    assert name.startswith("net-")
    assert rt[name].criticality == 1
    assert rt[name].statistics.answered == 3


def test_a_graph_that_breaks_becomes_several_tasks(rt: Runtime) -> None:
    seen: list[float] = []

    def broken(x: Any) -> Any:
        y = x.exp()
        torch._dynamo.graph_break()
        seen.append(1.0)
        return y.log1p() + len(seen)

    fast = compiled(broken, rt)
    x = torch.randn(5)
    torch.testing.assert_close(fast(x), x.exp().log1p() + 1)
    assert len(rt) == 2
    assert len(seen) == 1


def test_each_shape_is_a_task(rt: Runtime) -> None:
    net = Net().eval()
    fast = compiled(net, rt)
    tasks = []
    for _ in range(3):
        for rows in (2, 3, 4):  # sizes are left open from the second on
            x = torch.randn(rows, 6)
            same(fast(x), net(x))
        tasks.append(set(rt))
    assert len(tasks[0]) == 3
    assert tasks[1] == tasks[2]


def test_too_many_shapes_are_refused_and_those_that_were_there_go_on(rt: Runtime) -> None:
    fast = torch.compile(torch.exp, backend=dynamo.miriam, options={"runtime": rt, "shapes": 2}, dynamic=True)
    for rows in (3, 4, 3):
        fast(torch.ones(rows))
    with pytest.raises(CompileError, match="more than 2 shapes"):
        fast(torch.ones(5))
    assert torch.equal(fast(torch.zeros(4)), torch.ones(4))
    assert len(rt) == 2


def test_modules_that_share_a_graph_keep_their_own_weights(rt: Runtime) -> None:
    layers = [nn.Linear(4, 4).eval() for _ in range(3)]
    for layer in layers:
        layer.compile(backend=dynamo.miriam, options={"runtime": rt})
    x = torch.randn(2, 4)
    for layer in layers * 2:
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_it_is_found_by_its_name_and_has_a_runtime_of_the_process() -> None:
    points = importlib.metadata.entry_points(group="torch_dynamo_backends")
    if "miriam" not in points.names:
        pytest.skip("this copy of the package was not installed")
    with torch.no_grad():
        fast = torch.compile(lambda x: x * 2, backend="miriam")
        assert fast(torch.ones(2)).tolist() == [2.0, 2.0]
    runtime = dynamo.default_runtime("cpu")
    assert dynamo.default_runtime("cpu") is runtime
    assert len(runtime) == 1
    runtime.close()
    with torch.no_grad():
        assert fast(torch.ones(2)).tolist() == [2.0, 2.0]  # in a new one
    dynamo.default_runtime("cpu").close()


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.calls.add_(1)
        return x + self.calls


def changes(x: Any) -> Any:
    return x.mul_(2) + 1


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (Counts().eval(), {}, "calls_? in place"),
        (changes, {}, "x_ in place"),
        (nn.ReLU(), {"speed": 3}, "backend miriam has no speed: its options are criticality"),
        (nn.ReLU(), {"criticality": 17}, "criticality 17"),
    ],
)
def test_what_cannot_be_is_refused_in_words(rt: Runtime, model: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(Exception, match=text) as raised:
        compiled(model, rt, **options)(torch.ones(3))
    assert isinstance(raised.value, MiriamError) or "CompileError" in str(raised.value)
    assert len(rt) == 0


def test_gradients_are_refused_and_weights_that_could_have_some_are_not(rt: Runtime) -> None:
    layer = nn.Linear(3, 3).eval()
    fast = compiled(layer, rt)
    with torch.enable_grad():
        assert not fast(torch.ones(1, 3)).requires_grad
        with pytest.raises(CompileError, match="no_grad"):
            fast(torch.ones(1, 3, requires_grad=True))


def test_an_error_of_the_model_comes_out_of_its_call(rt: Runtime) -> None:
    table = nn.Embedding(4, 2).eval()
    fast = compiled(table, rt)
    assert fast(torch.tensor([1, 2])).shape == (2, 2)
    with pytest.raises(MiriamError, match="index out of range"):
        fast(torch.tensor([1, 9]))
    assert fast(torch.tensor([3, 0])).shape == (2, 2)


def test_a_task_that_was_unloaded_is_loaded_again_and_counts_once(rt: Runtime) -> None:
    linear, x = nn.Linear(3, 3).eval(), torch.ones(1, 3)
    fast = compiled(linear, rt, shapes=1)
    for _ in range(2):
        assert torch.equal(fast(x), linear(x))
        (name,) = rt
        rt.unload(name)


def test_tasks_go_with_their_graph(rt: Runtime) -> None:
    fast = compiled(nn.Linear(3, 3).eval(), rt)
    fast(torch.ones(1, 3))
    (name,) = rt
    task = rt[name]
    del fast
    torch._dynamo.reset()
    gc.collect()
    for _ in range(1000):
        if name not in rt:
            break
        threading.Event().wait(0.01)
    assert name not in rt
    with pytest.raises(MiriamError):
        task(torch.ones(1, 3))
