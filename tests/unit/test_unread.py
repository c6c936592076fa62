"""Inputs that are read to where the device wants them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from cuda_serving_support import Served, affine, computes, served
from fake_driver import FakeDriver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from null_kernels import EFFECTS
from strict_driver import Strict

import miriam
from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.instance import Instance
from miriam.device.cuda.transfer import Transfer
from miriam.device.unread import read
from miriam.errors import ClosedError, InputError
from miriam.program import Buffer, Pointer, Program, Role, Tensor
from miriam.task import Task

TASK = Task("task", affine("fast", 8, 2), 2)
X = np.arange(8, dtype=np.float32).reshape(1, 8)


@dataclass
class Elsewhere:
    """An input that somebody has to fetch."""

    array: np.ndarray
    error: Exception | None = None
    targets: list[np.ndarray] = field(default_factory=list)
    during: Callable[[], object] = bool

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read_into(self, target: np.ndarray) -> None:
        if self.error is not None:
            raise self.error
        self.during()
        assert target.flags.c_contiguous
        assert (target.shape, target.dtype) == (self.shape, self.dtype)
        self.targets.append(target)
        target[...] = self.array


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = Strict()
    fake.effects.update(EFFECTS)
    computes(fake, "fast", 2)
    fake.install(monkeypatch)
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)  # the driver assembles
    return fake


@pytest.fixture
def on(cu: FakeDriver) -> Iterator[Served]:
    with served() as device:
        device.device.prepare(TASK)
        yield device
    gc.collect()
    assert cu.leaks() == []


def test_it_is_read_once_to_where_the_gpu_fetches_it(on: Served, cu: FakeDriver) -> None:
    there = Elsewhere(X)
    request = on.ask(TASK, there)
    assert request.error is None
    assert np.array_equal(request.outputs[0], 2 * X)
    (target,) = there.targets
    assert cu.memory.view(target.ctypes.data, target.nbytes)  # memory that the device sees


def test_one_that_cannot_be_read_fails_alone_and_its_memory_comes_back(on: Served, cu: FakeDriver) -> None:
    before = cu.leaks()
    for _ in range(3):
        with pytest.raises(OSError, match="gone"):
            on.device.stage(TASK, [Elsewhere(X, OSError("gone"))])
    gc.collect()
    assert np.array_equal(on.ask(TASK, Elsewhere(X)).outputs[0], 2 * X)
    assert [leak for leak in cu.leaks() if "host" in leak] == [leak for leak in before if "host" in leak]


def test_a_task_that_goes_waits_for_what_is_being_read(on: Served, cu: FakeDriver) -> None:
    going = threading.Thread(target=on.device.forget, args=(TASK,), daemon=True)

    def go() -> None:
        going.start()
        going.join(0.2)
        assert [leak for leak in cu.leaks() if "host" in leak] == before  # or what follows ends the process

    before = [leak for leak in cu.leaks() if "host" in leak]
    there = Elsewhere(X, during=go)
    on.device.stage(TASK, [there])
    going.join(30.0)
    assert not going.is_alive()
    assert len(there.targets) == 1
    assert [leak for leak in cu.leaks() if "host" in leak] != before
    with pytest.raises(ClosedError):
        on.device.stage(TASK, [Elsewhere(X)])


@pytest.mark.parametrize("wrong", [X.astype(np.float64), X[:, :4]], ids=["type", "shape"])
def test_another_one_is_refused_before_it_is_read(on: Served, wrong: np.ndarray) -> None:
    there = Elsewhere(wrong)
    with pytest.raises(InputError, match=r"give float32 of shape 1x8"):
        on.device.stage(TASK, [there])
    assert there.targets == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.data())
def test_a_program_with_strides_of_its_own_gets_it_too(cu: FakeDriver, data: st.DataObject) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    kind = data.draw(st.sampled_from(["float16", "int64", "uint8", "bfloat16"]))
    axes = data.draw(st.permutations(range(len(shape))))
    array = data.draw(arrays.arrays("uint16" if kind == "bfloat16" else kind, shape))
    array = array.view(miriam_dtype(kind))
    steps = np.empty([shape[i] for i in axes], array.dtype).transpose(np.argsort(axes)).strides
    strides = tuple(step // array.itemsize for step in steps)
    tensors = [Tensor(name, kind, shape, strides, Pointer(0, 0)) for name in ("x", "y")]
    program = Program(
        "net", "sm_90a", (), (), (Buffer("x", tensors[0].span_bytes, Role.INPUT),), (tensors[0],), (tensors[1],)
    )
    device = Gpu()
    transfer, instance, stream = Transfer(device, program), Instance(device, program), Stream()
    staged = transfer.stage([Elsewhere(array)])
    staged.feed(instance, stream)
    staged.fetch(instance, stream)
    (y,) = staged.done()
    assert np.ascontiguousarray(y).tobytes() == np.ascontiguousarray(array).tobytes()
    for thing in (transfer, stream, instance, device):
        thing.close()
    assert cu.leaks() == []


def miriam_dtype(kind: str) -> np.dtype:
    """The type of that name, with those that NumPy has by way of ml_dtypes."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if kind == "bfloat16" else np.dtype(kind)


def test_devices_without_memory_of_their_own_find_an_array() -> None:
    there = Elsewhere(X)
    with miriam.Runtime("cpu") as rt:
        double = rt.load(lambda x: 2 * x, X, name="double")
        assert np.array_equal(double.submit(there, raw=True).result()[0], 2 * X)
    assert len(there.targets) == 1
    assert read(X) is X
