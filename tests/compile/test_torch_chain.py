"""Modules of PyTorch on the CPU device."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from miriam.coordinator import coordinate  # noqa: E402
from miriam.device.cpu import CpuDevice  # noqa: E402
from miriam.errors import CompileError, InputError, ModelError  # noqa: E402
from miriam.frontend.chain import Chain  # noqa: E402
from miriam.policy import Setting, create  # noqa: E402
from miriam.task import Criticality, Request, Task  # noqa: E402

nn = torch.nn
F = torch.nn.functional


@pytest.fixture(autouse=True)
def _alike() -> Iterator[None]:
    """The same numbers every time; and one thread, since several wait for each other where other tests run too."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Residual(nn.Module):
    """Convolutions with batch norm, and a way around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        x = F.relu(x + self.body(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Block(nn.Module):
    """Attention and two linear layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Any, mask: Any) -> Any:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return {"features": x + self.mlp(x), "heads": 4, "first": [x[:, 0]]}


class Of(nn.Module):
    """A module made of a function."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *x: Any) -> Any:
        return self.call(*x)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.seen += 1
        return x + self.seen


def run(chain: Chain, *inputs: Any) -> Sequence[Any]:
    state = chain.begin(inputs)
    for step in chain.steps:
        step(state)
    return chain.end(state)


def of(module: Any, *example: Any, **options: Any) -> Chain:
    return Chain.of(module.eval(), example, name="net", **options)


def images(batch: int) -> Any:
    return torch.randn(batch, 3, 16, 16)


def same(a: Any, b: Any) -> bool:
    return torch.equal(torch.as_tensor(a), torch.as_tensor(b))


# What they give


def test_a_network_with_a_way_around_gives_what_the_module_gives_to_the_bit() -> None:
    module = Residual()
    chain = of(module, images(2))
    for _ in range(3):
        x = images(2)
        (found,) = run(chain, x)
        with torch.no_grad():
            assert same(found, module(x))
        assert not found.requires_grad
    operators = " + ".join(chain.program.kernel_of(i).name for i in range(len(chain.steps)))
    assert {"conv2d", "batch_norm", "relu", "add", "linear"} <= set(operators.split(" + "))
    assert [(t.name, t.dtype, t.shape) for t in (*chain.program.inputs, *chain.program.outputs)] == [
        ("input0", "float32", (2, 3, 16, 16)), ("output0", "float32", (2, 5)),
    ]  # fmt: skip
    assert chain.notes == ()


def test_a_transformer_block_gives_its_own_structure() -> None:
    module, mask = Block(), torch.zeros(2, 6).bool().logical_not()
    mask[1, 4:] = False
    chain = of(module, torch.randn(2, 6, 16), mask, inputs=["tokens", "mask"], outputs=["features", "first"])
    x = torch.randn(2, 6, 16)
    found = chain.whole(run(chain, x, mask))
    with torch.no_grad():
        wanted = module(x, mask)
    assert (found.keys(), found["heads"], len(found["first"])) == (wanted.keys(), 4, 1)
    assert same(found["features"], wanted["features"])
    assert same(found["first"][0], wanted["first"][0])
    assert [t.name for t in (*chain.program.inputs, *chain.program.outputs)] == ["tokens", "mask", "features", "first"]


def test_what_runs_in_company_is_equal_to_the_bit() -> None:
    """Normal requests, sliced, are interrupted by critical ones again and again, at other steps each time."""
    chains = {"critical": of(Residual(), images(1)), "normal": of(Residual(), images(6), rows=2)}
    given = {name: [torch.randn(chain.program.inputs[0].shape)] for name, chain in chains.items()}
    alone = {name: run(chain, *given[name])[0] for name, chain in chains.items()}
    tasks = {
        "critical": Task("critical", chains["critical"].program, Criticality.CRITICAL),
        "normal": Task("normal", chains["normal"].program),
    }
    device = CpuDevice(bound=chains.values())

    class Closed:
        """Each kind follows on itself; that the lengths differ moves one kind against the other."""

        left = 40

        def start(self) -> list[Request]:
            return [self._asked(name, 0.0) for name in ("normal", "normal", "critical")]

        def after(self, finished: Request) -> Request | None:
            self.left -= 1
            name = finished.task.name
            gap_us = 37.0 * self.left if name == "critical" else 0.0
            return self._asked(name, finished.finish_us + gap_us) if self.left > 0 else None

        def _asked(self, name: str, at_us: float) -> Request:
            return Request(tasks[name], self.left, at_us, inputs=given[name])

    launch_us = {name: chain.step_us for name, chain in chains.items()}
    policy = create("resident", Setting(list(tasks.values()), device.geometry, launch_us))
    done = coordinate(device, policy, Closed(), math.inf)
    assert {request.task.name for request in done} == {"critical", "normal"}
    for request in done:
        assert request.error is None
        assert same(request.outputs[0], alone[request.task.name])


# Slices


def test_slices_give_what_the_module_gives_for_each() -> None:
    module = Residual()
    chain = of(module, images(6), rows=2)
    assert chain.program.meta["rows of a slice"] == "2"
    assert chain.notes == ()
    x = images(6)
    (found,) = run(chain, x)
    with torch.no_grad():
        assert same(found, torch.cat([module(x[i : i + 2]) for i in (0, 2, 4)]))
        torch.testing.assert_close(found, module(x))


def test_rows_that_do_not_divide_the_batch_are_an_error() -> None:
    with pytest.raises(CompileError, match=r"slices of 4 rows.*6 rows"):
        of(Residual(), images(6), rows=4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: x - x.mean(0), "depend on each other"),
        (lambda x: x + 1e-6 * x.sum(), "depend on each other"),
        (lambda x: x.cumsum(0), "depend on each other"),
        (lambda x: x / len(x), "slices of its batch give something else"),
        (lambda x: x + torch.arange(6.0)[:, None], "slices of its batch give something else"),
    ],
)
@pytest.mark.parametrize("example", [torch.randn(6, 4), torch.zeros(6, 4), torch.ones(6, 4)])
def test_a_batch_that_is_more_than_its_rows_is_computed_as_a_whole(call: Any, said: str, example: Any) -> None:
    chain = of(Of(call), example, rows=2)
    assert chain.program.meta["rows of a slice"] == "all"
    assert any(said in note for note in chain.notes)
    x = torch.randn(6, 4)
    assert same(run(chain, x)[0], call(x))


@pytest.mark.parametrize("call", [lambda x: x.sum(), lambda x: x[:3], lambda x: x.t()])
def test_outputs_without_the_batch_are_computed_as_a_whole(call: Any) -> None:
    x = torch.randn(6, 4)
    chain = of(Of(call), x, rows=2)
    assert chain.program.meta["rows of a slice"] == "all"
    assert same(run(chain, x)[0], call(x))


def test_numbers_of_tokens_are_only_shuffled() -> None:
    table = nn.Embedding(7, 4)  # any other number than those of the example would be an error
    chain = of(nn.Sequential(table, nn.Flatten()), torch.randint(7, (4, 3)), rows=1)
    assert chain.program.meta["rows of a slice"] == "1"
    x = torch.randint(7, (4, 3))
    assert same(run(chain, x)[0], table(x).flatten(1))


# What cannot be exported


def test_a_module_that_cannot_be_exported_is_one_step() -> None:
    def call(x: Any) -> Any:
        return x * 2 if float(x.sum()) > 0 else x - 1

    chain = of(Of(call), torch.ones(2, 2))
    assert len(chain.steps) == 1
    assert any("one step, since it cannot be exported" in note for note in chain.notes)
    for x in (torch.ones(2, 2), -torch.ones(2, 2)):
        assert same(run(chain, x)[0], call(x))


def test_it_can_still_go_slice_by_slice() -> None:
    chain = of(Of(lambda x: torch.from_numpy(np.sin(x.numpy()))), torch.randn(6, 2), rows=2)
    assert len(chain.steps) == 3
    x = torch.randn(6, 2)
    torch.testing.assert_close(run(chain, x)[0], x.sin())


def test_a_module_that_keeps_something_is_one_step_and_is_left_as_it_was() -> None:
    module = Counting()
    chain = of(module, torch.zeros(4), rows=1)
    assert len(chain.steps) == 1
    assert any("keeps something" in note for note in chain.notes)
    module.seen.zero_()
    assert [float(run(chain, torch.zeros(4))[0][0]) for _ in range(2)] == [1.0, 2.0]


def test_preparing_changes_neither_the_example_nor_the_module() -> None:
    module = Counting()
    x = torch.ones(4)
    of(Of(lambda x: x.add_(1)), x)
    of(module, x)
    assert x.tolist() == [1.0] * 4
    assert float(module.seen) == 0.0


# Exported programs


def test_an_exported_program_brings_its_example() -> None:
    module, x = Residual().eval(), images(2)
    with torch.no_grad():
        exported = torch.export.export(module, (x,))
    chain = Chain.of(exported, name="net")
    y = images(2)
    with torch.no_grad():
        assert same(run(chain, y)[0], module(y))


def test_an_exported_program_of_any_batch_can_be_sliced_and_one_of_a_fixed_batch_stays_whole() -> None:
    module, x = nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1))).eval(), torch.randn(6, 4)
    batch = torch.export.Dim("batch", min=1, max=64)
    for dynamic, rows in (({0: batch}, "2"), (None, "all")):
        shapes = None if dynamic is None else ((dynamic,),)
        with torch.no_grad():
            exported = torch.export.export(Of(module), (x,), dynamic_shapes=shapes)
        chain = Chain.of(exported, x, name="net", rows=2)
        assert chain.program.meta["rows of a slice"] == rows
        torch.testing.assert_close(run(chain, x)[0], module(x).detach())


# What goes in and out


def test_arrays_give_arrays_and_may_be_read_only() -> None:
    module = Residual()
    chain = of(module, images(4).numpy(), rows=2)
    x = images(4).numpy()
    x.flags.writeable = False
    (found,) = run(chain, x)
    assert isinstance(found, np.ndarray)
    assert same(found, run(chain, torch.tensor(x))[0])
    (turned,) = run(chain, x[:, :, ::-1])
    assert same(turned, run(chain, torch.tensor(x).flip(2))[0])


def test_bfloat16_goes_in_and_out_as_arrays() -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16
    chain = of(Of(lambda x: x * 2), torch.ones(3, dtype=torch.bfloat16))
    assert chain.program.outputs[0].dtype == "bfloat16"
    (found,) = run(chain, np.array([1.5, -2.0, 0.25], dtype=kind))
    assert (found.dtype, found.tolist()) == (kind, [3.0, -4.0, 0.5])


def test_memory_order_of_the_example_is_kept() -> None:
    module = Residual().to(memory_format=torch.channels_last)
    chain = of(module, images(2).contiguous(memory_format=torch.channels_last))
    x = images(2)
    with torch.no_grad():
        assert same(run(chain, x)[0], module(x.contiguous(memory_format=torch.channels_last)))


def test_the_number_of_threads_holds_for_the_chain_only() -> None:
    seen: list[int] = []

    def call(x: Any) -> Any:
        seen.append(torch.get_num_threads())
        return torch.from_numpy(x.numpy() + 1)

    chain = of(Of(call), torch.ones(2), threads=2)
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1
    chain.threads(2)
    assert torch.get_num_threads() == 2


def test_an_exception_of_an_operator_reaches_its_request() -> None:
    table = nn.Embedding(7, 4)
    chain = of(table, torch.zeros(2, dtype=torch.int64))
    task = Task("table", chain.program)
    device = CpuDevice(bound=[chain])
    requests = [Request(task, i, 0.0, inputs=[torch.full((2,), number)]) for i, number in enumerate((3, 99, 6))]

    class Three:
        def start(self) -> list[Request]:
            return requests

        def after(self, finished: Request) -> None:
            return None

    policy = create("priority", Setting([task], device.geometry, {"table": chain.step_us}))
    coordinate(device, policy, Three(), math.inf)
    assert [request.error is None for request in requests] == [True, False, True]
    assert isinstance(requests[1].error, ModelError)
    assert isinstance(requests[1].error.__cause__, IndexError)


@pytest.mark.parametrize(
    ("module", "example", "said"),
    [
        (Residual().train(), images(1), "training mode"),
        (Residual().eval().to("meta"), images(1), r"not on the host: move it with \.cpu"),
        (Residual().eval(), None, "needs an example"),
        (Residual().eval(), torch.randn(1, 4, 8, 8), "fails on its example: RuntimeError"),
        (Of(lambda x: 3).eval(), torch.ones(1), "gives no tensor"),
    ],
)
def test_what_cannot_be_a_chain(module: Any, example: Any, said: str) -> None:
    with pytest.raises(CompileError, match=said):
        Chain.of(module, example, name="net")


def test_an_input_of_another_kind_is_the_request_s_own_error() -> None:
    chain = of(Residual(), images(1))
    with pytest.raises((InputError, TypeError, RuntimeError, ValueError)):
        run(chain, np.array(["no image"]))


@pytest.mark.parametrize("given", [torch.zeros(3), np.zeros(3, np.float32)], ids=["tensors", "arrays"])
def test_a_user_may_change_outputs_that_are_the_model_s_own(given: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.table = torch.arange(3.0)

        def forward(self, x: Any) -> Any:
            return x + self.weight, self.weight, self.table[1:], self.weight.view(1, 3)

    chain = of(Model(), torch.zeros(3))
    for _ in range(3):
        found = run(chain, given)
        assert [np.asarray(y).ravel().tolist() for y in found] == [[1, 1, 1], [1, 1, 1], [1, 2], [1, 1, 1]]
        for y in found:
            y += 7


def test_an_array_without_dimensions_stays_one() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Any, by: Any) -> Any:
            return x * by

    chain = of(Scaled(), np.ones(3, np.float32), np.array(2, np.float32))
    assert [tensor.shape for tensor in chain.program.inputs] == [(3,), ()]
    assert run(chain, np.ones(3, np.float32), np.array(3, np.float32))[0].tolist() == [3, 3, 3]
