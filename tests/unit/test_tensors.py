"""Tensors of a program wrapped by other libraries, and theirs written into it, without going through bytes."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_driver import FakeDriver
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from miriam.device.cuda.dlpack import CPU, View
from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.instance import Instance
from miriam.errors import DeviceError
from miriam.program import Buffer, Pointer, Program, Role, Tensor

DTYPES = ("float16", "float32", "float64", "int8", "int64", "uint8", "uint32", "complex64", "bool")
with_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    fake.install(monkeypatch)
    return fake


def of_host(array: np.ndarray, dtype: str = "") -> View:
    """A view of an array's memory, as a device would give one of its own."""
    strides = tuple(step // array.itemsize for step in array.strides)
    return View(array.ctypes.data, dtype or array.dtype.name, array.shape, strides, (CPU, 0))


def instance(gpu: Gpu, shape=(2, 3), strides=(3, 1), dtype: str = "float16") -> Instance:
    tensor = Tensor("input0", dtype, shape, strides, Pointer(0, 16))
    size = 16 + tensor.span_bytes
    return Instance(gpu, Program("net", "sm_90a", (), (), (Buffer("input0", size, Role.INPUT),), (tensor,)))


@given(
    st.sampled_from(DTYPES).flatmap(lambda d: arrays.arrays(d, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0)))
)
def test_another_library_sees_the_same_elements_in_the_same_memory(array: np.ndarray) -> None:
    for given_array in (array, array.T, array[..., ::2] if array.ndim else array):
        seen = np.from_dlpack(of_host(given_array))
        assert seen.dtype == array.dtype
        assert seen.shape == given_array.shape
        assert np.array_equal(seen, given_array, equal_nan=array.dtype.kind in "fc")
        if given_array.size:
            assert np.shares_memory(seen, given_array)


@with_torch
def test_torch_wraps_and_writes_a_view() -> None:
    import torch

    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    seen = torch.from_dlpack(of_host(array, "bfloat16"))
    assert seen.dtype is torch.bfloat16
    assert seen.shape == (2, 3)
    seen.fill_(1.0)
    assert (array == 0x3F80).all()
    del seen, array
    gc.collect()


def test_views_that_nobody_takes_and_that_somebody_keeps_are_given_back() -> None:
    array = np.arange(6.0)
    for _ in range(3):
        of_host(array).__dlpack__()
    kept = [np.from_dlpack(of_host(array)) for _ in range(100)]
    gc.collect()
    assert all(np.array_equal(one, array) for one in kept)


def test_a_view_is_shared_and_not_copied_or_moved() -> None:
    view = of_host(np.zeros(4))
    for asked in ({"copy": True}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError, match="can be shared where it is and not be copied"):
            view.__dlpack__(**asked)
    assert view.__dlpack__(dl_device=(CPU, 0), copy=False, max_version=(1, 0), stream=None)
    with pytest.raises(BufferError, match="float8_e4m3fn has no number in DLPack"):
        View(0, "float8_e4m3fn", (1,), (1,)).__dlpack__()


def test_a_tensor_of_a_program_says_where_it_lies(cu: FakeDriver) -> None:
    gpu = Gpu()
    net = instance(gpu, strides=(1, 2))
    tensor = net.program.inputs[0]
    view = net.tensor(tensor)
    assert view.__dlpack_device__() == (2, 0)
    facts = view.__cuda_array_interface__
    assert facts["data"] == (net.address(tensor.at), False)
    assert (facts["shape"], facts["typestr"], facts["strides"], facts["version"]) == ((2, 3), "<f2", (2, 4), 3)
    assert not hasattr(View(0, "bfloat16", (1,), (1,)), "__cuda_array_interface__")
    assert not hasattr(of_host(np.zeros(4)), "__cuda_array_interface__")
    net.close()
    gpu.close()


class Array:
    """An array on a GPU of another library, which knows one protocol."""

    def __init__(self, view: View, interface: bool = False, **facts: Any) -> None:
        self.view, self.streams = view, []
        if interface:
            self.__cuda_array_interface__ = view.__cuda_array_interface__ | facts
        else:
            self.__dlpack__, self.__dlpack_device__ = self.give, view.__dlpack_device__

    def give(self, stream: int | None = None) -> object:
        self.streams.append(stream)
        return self.view.__dlpack__()


@pytest.mark.parametrize("interface", [False, True])
def test_a_tensor_on_the_gpu_is_copied_there(cu: FakeDriver, interface: bool) -> None:
    gpu = Gpu()
    net, other = instance(gpu), instance(gpu)
    (tensor,) = net.program.inputs
    other.write(tensor, bytes(range(12)))
    cu.calls.clear()
    given = Array(other.tensor(tensor), interface)
    net.write(tensor, given)
    assert net.read(tensor, 12) == bytes(range(12))
    assert net.read(Tensor("", "uint8", (16,), (1,), Pointer(0)), 16) == b"\xa5" * 16  # what lies in front of it
    assert not {"cuMemcpyHtoD", "cuMemAlloc"} & set(cu.names())
    assert cu.names().index("cuStreamSynchronize") > cu.names().index("cuMemcpyDtoDAsync")
    if not interface:  # the other library was told which stream waits for it
        ((_, arguments),) = [call for call in cu.calls if call[0] == "cuMemcpyDtoDAsync"]
        assert given.streams == [int(arguments[-1])]
    for thing in (net, other, gpu):
        thing.close()
    assert cu.leaks() == []


def test_with_a_stream_nothing_is_waited_for(cu: FakeDriver) -> None:
    gpu, stream = Gpu(), Stream()
    net, other = instance(gpu), instance(gpu)
    (tensor,) = net.program.inputs
    other.write(tensor, bytes(range(12)))
    cu.auto = False
    given = Array(other.tensor(tensor))
    net.write(tensor, given, stream)
    assert given.streams == [int(stream.handle)]
    assert net.read(tensor, 12) != bytes(range(12))
    stream.synchronize()
    assert net.read(tensor, 12) == bytes(range(12))
    for thing in (stream, net, other, gpu):
        thing.close()
    assert cu.leaks() == []


def test_a_stream_that_the_interface_names_is_waited_for(cu: FakeDriver) -> None:
    gpu, stream = Gpu(), Stream()
    net, other = instance(gpu), instance(gpu)
    (tensor,) = net.program.inputs
    other.write(tensor, bytes(range(12)))
    cu.calls.clear()
    net.write(tensor, Array(other.tensor(tensor), interface=True, stream=stream.handle))
    waited = [arguments[0] for name, arguments in cu.calls if name == "cuStreamSynchronize"]
    assert waited[0] is stream.handle
    assert cu.names().index("cuStreamSynchronize") < cu.names().index("cuMemcpyDtoDAsync")
    for thing in (stream, net, other, gpu):
        thing.close()


def test_an_array_of_the_host_is_written(cu: FakeDriver) -> None:
    gpu = Gpu()
    net = instance(gpu, shape=(1, 2, 3), strides=(99, 1, 2))  # the stride of a single element does not matter
    (tensor,) = net.program.inputs
    array = np.arange(6, dtype=np.float16).reshape(1, 3, 2).transpose(0, 2, 1)
    net.write(tensor, array)
    assert net.read(tensor, 12) == np.arange(6, dtype=np.float16).tobytes()
    net.close()
    gpu.close()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 3), np.float32), r"float32 \(2, 3\) with strides \(3, 1\)"),
        (np.zeros((3, 2), np.float16), r"float16 \(3, 2\) with strides \(2, 1\)"),
        (np.zeros((3, 2), np.float16).T, r"float16 \(2, 3\) with strides \(1, 2\)"),
        (np.zeros((2, 6), np.float16)[:, ::2], r"float16 \(2, 3\) with strides \(6, 2\)"),
        (np.zeros(6, np.float16), r"float16 \(6,\) with strides \(1,\)"),
    ],
)
def test_another_layout_is_refused_and_nothing_is_written(cu: FakeDriver, array: np.ndarray, said: str) -> None:
    gpu = Gpu()
    net = instance(gpu)
    (tensor,) = net.program.inputs
    before = net.read(tensor, 12)
    wanted = rf"input0 of net is float16 \(2, 3\) with strides \(3, 1\), what was given is {said}: make it alike"
    with pytest.raises(DeviceError, match=wanted):
        net.write(tensor, array)
    assert net.read(tensor, 12) == before
    net.close()
    gpu.close()


@pytest.mark.parametrize("thing", [None, [1, 2], "text", 3])
def test_what_is_no_tensor_is_refused(cu: FakeDriver, thing: object) -> None:
    gpu = Gpu()
    net = instance(gpu)
    with pytest.raises(DeviceError, match=f"a {type(thing).__name__} is no tensor: give bytes, or what has __dlpack__"):
        net.write(net.program.inputs[0], thing)
    net.close()
    gpu.close()
    assert cu.leaks() == []


def test_what_its_own_library_refuses_to_hand_over_is_refused(cu: FakeDriver) -> None:
    gpu = Gpu()
    net = instance(gpu)
    for array in (np.zeros((2, 3), ">f2"), np.frombuffer(bytes(12), np.float16).reshape(2, 3)):
        with pytest.raises(DeviceError, match=r"this ndarray cannot be handed over .*: give a plain copy"):
            net.write(net.program.inputs[0], array)
    net.close()
    gpu.close()
    assert cu.leaks() == []


def test_another_gpu_and_other_devices_are_refused(cu: FakeDriver) -> None:
    gpu = Gpu()
    net = instance(gpu)
    (tensor,) = net.program.inputs
    with pytest.raises(DeviceError, match="input0 was given on GPU 1, not 0: move it"):
        net.write(tensor, View(net.address(tensor.at), "float16", (2, 3), (3, 1), (2, 1)))
    with pytest.raises(DeviceError, match="on a device of kind 10"):
        net.write(tensor, View(net.address(tensor.at), "float16", (2, 3), (3, 1), (10, 0)))
    net.close()
    gpu.close()


def test_types_that_are_not_known_are_refused(cu: FakeDriver) -> None:
    gpu = Gpu()
    net = instance(gpu)

    def odd() -> object:
        capsule = view.__dlpack__()
        pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", ctypes.pythonapi)
        )(capsule, b"dltensor")
        ctypes.c_uint8.from_address(pointer + 8 + 4 + 4 + 4).value = 17
        return capsule

    array = np.zeros((2, 3), np.float16)
    view = of_host(array)
    with pytest.raises(DeviceError, match="a tensor of a type that DLPack numbers 17 is not known here"):
        net.write(net.program.inputs[0], SimpleNamespace(__dlpack__=odd, __dlpack_device__=lambda: (1, 0)))
    net.close()
    gpu.close()
