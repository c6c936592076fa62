"""The plain kernels of the zoo: their PTX on a machine, their place in the zoo and in the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from run_program import outputs
from support import Profiles

from miriam import ProfileError, ProgramError, Role, WorkloadError, zoo
from miriam.bench import MDTB, run_mdtb
from miriam.frontend.builder import Builder, Value

NAIVE = zoo.names("naive")
KERNELS = {kernel.name: kernel for name in NAIVE for kernel in zoo.load(name).kernels}


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def computed(kernel: str, block: tuple[int, int], launches: Callable[..., list[tuple[int, list[Value]]]],
             y: np.ndarray, **arrays: np.ndarray) -> np.ndarray:  # fmt: skip
    """What a kernel makes of ``y``; ``launches`` gives the blocks and the arguments of each launch."""
    build = Builder("one", "sm_90")
    held = [build.input(name, data=array) for name, array in arrays.items()]
    code = replace(KERNELS[kernel], block=(*block, 1), digest="")
    for grid, args in launches(build.output("y", data=y), *held):
        build.launch(code, grid, *args)
    return outputs(build.program(), seed=1)["y"]


def windows(x: np.ndarray, kernel: int, stride: int, padding: int, fill: float = 0) -> np.ndarray:
    """(channels, rows, columns, kernel, kernel)."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)), constant_values=fill)
    return sliding_window_view(padded, (kernel, kernel), (1, 2))[:, ::stride, ::stride]


def tiles(height: int, width: int, args: list[Value], relu: int) -> list[list[Value]]:
    """The arguments of the launches for tiles of 3 x 4 outputs."""
    return [[*args, height, width, top, left, relu] for top in range(0, height, 3) for left in range(0, width, 4)]


@pytest.mark.parametrize(("kernel", "stride", "padding", "relu", "bias"), [(3, 1, 1, 1, True), (2, 2, 0, 0, False)])
def test_convolution(kernel, stride, padding, relu, bias):
    x, weight, shift = numbers(3, 6, 8), numbers(5, 3, kernel, kernel), numbers(5)
    wanted = np.einsum("crsij,ocij->ors", windows(x, kernel, stride, padding), weight)
    wanted = wanted + shift[:, None, None] * bias
    wanted = np.maximum(wanted, 0) if relu else wanted
    height, width = wanted.shape[1:]

    def launches(y, x, weight, shift):
        args = [x, weight, shift if bias else None, y, 3, 6, 8, kernel, stride, padding]
        return [(5, args) for args in tiles(height, width, args, relu)]

    start = np.zeros_like(wanted, np.float32)
    found = computed("convolution", (4, 3), launches, start, x=x, weight=weight, shift=shift)
    assert np.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("name", "fill"), [("max_pool", -np.inf), ("average_pool", 0.0)])
@pytest.mark.parametrize("relu", [0, 1])
def test_pools(name, fill, relu):
    x = numbers(4, 5, 7)
    found = windows(x, 3, 2, 1, fill)
    wanted = found.max((3, 4)) if name == "max_pool" else found.mean((3, 4))
    wanted = np.maximum(wanted, 0) if relu else wanted

    def launches(y, x):
        return [(4, args) for args in tiles(3, 4, [x, y, 5, 7, 3, 2, 1], relu)]

    assert np.allclose(computed(name, (4, 3), launches, np.zeros_like(wanted), x=x), wanted, atol=1e-6)


def test_a_max_pool_that_hangs_over_the_edge_takes_what_is_there():
    x = -np.abs(numbers(2, 4, 4))
    wanted = np.stack([[[c[:3, :3].max(), c[:3, 2:].max()], [c[2:, :3].max(), c[2:, 2:].max()]] for c in x])
    found = computed(
        "max_pool",
        (2, 2),
        lambda y, x: [(2, [x, y, 4, 4, 3, 2, 0, 2, 2, 0, 0, 0])],
        np.zeros((2, 2, 2), np.float32),
        x=x,
    )
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("relu", [0, 1])
def test_batch_norm_and_add_work_in_place(relu):
    y, x, scale, shift = numbers(3, 6, 8), numbers(3, 6, 8) + 1, numbers(3), numbers(3) * 2
    plain = np.maximum if relu else np.fmax
    least = 0 if relu else -np.inf

    def norm(y, scale, shift):
        return [(3, args) for args in tiles(6, 8, [y, scale, shift], relu)]

    def add(y, x):
        return [(3, args) for args in tiles(6, 8, [x, y], relu)]

    wanted = plain(y * scale[:, None, None] + shift[:, None, None], least)
    assert np.allclose(computed("batch_norm", (4, 3), norm, y, scale=scale, shift=shift), wanted, atol=1e-6)
    assert np.allclose(computed("add", (4, 3), add, y, x=x), plain(x + y, least), atol=1e-6)


def test_linear():
    x, weight, bias = numbers(20), numbers(7, 20), numbers(7)
    found = computed(
        "linear", (1, 1), lambda y, x, w, b: [(7, [x, w, b, y, 20, 0])], np.zeros(7, np.float32), x=x, w=weight, b=bias
    )
    assert np.allclose(found, weight @ x + bias, atol=1e-5)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("gates", [3, 4])
def test_steps_of_recurrent_layers(gates):
    features, hidden, steps = 6, 10, 3
    x, w, wb = numbers(steps, features), numbers(gates * hidden, features), numbers(gates * hidden)
    r, rb = numbers(gates * hidden, hidden), numbers(gates * hidden) / 2
    h = c = np.zeros(hidden, np.float32)
    for now in x:
        a, b = (w @ now + wb).reshape(gates, hidden), (r @ h + rb).reshape(gates, hidden)
        if gates == 4:
            i, f, g, o = a + b
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            z = sigmoid(a[1] + b[1])
            h = (1 - z) * np.tanh(a[2] + sigmoid(a[0] + b[0]) * b[2]) + z * h

    def launches(y, *weights):
        # y: two states and a cell
        def part(tensor, at):
            return replace(tensor.at, offset_bytes=at * 4)

        cell = [part(y, 2 * hidden)] if gates == 4 else []
        return [
            (3, [part(weights[0], s * features), part(y, s % 2 * hidden), part(y, (1 - s % 2) * hidden), *cell,
                 *weights[1:], features, hidden, int(s == 0)])
            for s in range(steps)
        ]  # fmt: skip

    start = np.full((3, hidden), np.nan, np.float32)
    name = "lstm_step" if gates == 4 else "gru_step"
    found = computed(name, (4, 1), launches, start, x=x, w=w, wb=wb, r=r, rb=rb)
    assert np.allclose(found[steps % 2], h, atol=1e-5)


def test_each_network_of_the_benchmark_is_there_in_both_sets():
    for model in {entry.model for workload in MDTB.values() for entry in workload.entries}:
        tuned, naive = zoo.load(model), zoo.load(model, "naive")
        assert naive == zoo.load(naive.name)
        assert naive.name in NAIVE
        assert naive.name not in zoo.names()
        assert [t.shape for t in naive.inputs] == [t.shape for t in tuned.inputs]
        assert [t.shape for t in naive.outputs] == [t.shape for t in tuned.outputs]
        weights = [sum(b.size_bytes for b in p.buffers if b.role is Role.WEIGHT) for p in (tuned, naive)]
        assert weights[1] == pytest.approx(2 * weights[0], rel=0.1)  # fp32 in place of fp16


def test_a_set_that_is_not_there():
    for ask in (lambda: zoo.names("best"), lambda: zoo.load("gru-b1", "best")):
        with pytest.raises(ProgramError, match="'best': choose from tuned, naive"):
            ask()
    with pytest.raises(ProgramError, match="no 'vit-b16-naive-b1'; it has alexnet-naive-b1"):
        zoo.load("vit-b16-b1", "naive")


def naive_profiles() -> Profiles:
    return Profiles(*map(zoo.load, NAIVE))


def test_the_benchmark_takes_the_set_that_is_asked_for():
    results = run_mdtb(
        "A", "multistream", "sim:h200/16", 0.01, jobs=1, kernels="naive", profiles=naive_profiles
    )  # fmt: skip
    assert [step.kernel for step in results.programs["cifarnet-b1"]][-2:] == ["linear", "linear"]
    assert "naive kernels in place of tuned ones" in results.notes
    with pytest.raises(WorkloadError, match="'best'"):
        run_mdtb("A", kernels="best", jobs=1)


def test_what_was_not_measured_is_named():
    with pytest.raises(ProfileError, match=r"alexnet-naive-b1 \(convolution.*miriam profile"):
        run_mdtb("A", "multistream", "sim:h200/16", 0.01, jobs=1, kernels="naive", profiles=lambda: Profiles())
