"""The driver layer: errors with the name of the call, graphs read in order, handles given back."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_driver import CUresult, FakeDriver, KernelRun, MisuseError
from hypothesis import given
from hypothesis import strategies as st
from null_gpu import Green

from miriam.device.cuda.driver import Event, Gpu, Module, Stream, function_facts, unavailable
from miriam.errors import DeviceError

OUT_OF_MEMORY = CUresult.CUDA_ERROR_OUT_OF_MEMORY


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    fake.install(monkeypatch)
    return fake


class NoLibrary(ModuleType):
    """The bindings on a machine without libcuda: they can be imported, and every call fails."""

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            raise RuntimeError("Failed to dlopen libcuda.so.1")

        return call


def test_without_a_driver_everything_says_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=NoLibrary("driver")))
    assert "no CUDA driver on this machine (Failed to dlopen libcuda.so.1)" in unavailable()
    assert "use a sim device, or install the driver" in unavailable()
    with pytest.raises(DeviceError, match="no CUDA driver on this machine"):
        Gpu()


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="needs cuda-bindings")
def test_the_real_bindings_either_find_a_gpu_or_say_why_not() -> None:
    why = unavailable()
    if not why:
        pytest.skip("there is a GPU")
    assert "driver" in why
    with pytest.raises(DeviceError, match="driver"):
        Gpu()


def test_without_the_bindings_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert unavailable() == "the CUDA bindings are not installed: pip install 'cuda-bindings>=13.0,<14'"


def test_a_driver_without_gpus(cu: FakeDriver) -> None:
    cu.gpus = 0
    assert "CUDA_VISIBLE_DEVICES" in unavailable()
    with pytest.raises(DeviceError, match="there is no cuda:0, this machine has 0 GPUs"):
        Gpu()


def test_a_gpu_that_is_there(cu: FakeDriver) -> None:
    assert unavailable() == ""
    gpu = Gpu()
    assert (gpu.name, gpu.driver_version, gpu.l2_bytes) == ("NVIDIA H200", "13.0", 60 << 20)
    geometry = gpu.geometry
    assert (geometry.sms, geometry.threads_per_sm, geometry.blocks_per_sm) == (132, 2048, 32)
    assert geometry.shared_reserved_bytes == 1024


@pytest.mark.parametrize("ordinal", [-1, 1, 8])
def test_a_gpu_that_is_not_there_is_named(cu: FakeDriver, ordinal: int) -> None:
    with pytest.raises(DeviceError, match=f"there is no cuda:{ordinal}, this machine has 1 GPUs"):
        Gpu(ordinal)


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"])
def test_a_status_that_is_not_success_names_the_call(cu: FakeDriver, call: str) -> None:
    cu.fail[call] = OUT_OF_MEMORY
    with pytest.raises(DeviceError) as caught:
        Gpu()
    assert str(caught.value) == f"{call} failed: words about {OUT_OF_MEMORY.name} ({OUT_OF_MEMORY.name})"


def test_device_memory_holds_what_is_written(cu: FakeDriver) -> None:
    gpu = Gpu()
    address = gpu.allocate(8)
    gpu.write(address, b"abcdefgh")
    gpu.write(address + 2, b"")
    assert gpu.read(address, 8) == b"abcdefgh"
    assert gpu.read(address + 6, 2) == b"gh"
    assert gpu.read(address, 0) == b""
    gpu.free(address)
    assert cu.memory.device == {}
    assert gpu.allocate(0)  # the driver refuses an allocation of nothing


def test_too_little_memory(cu: FakeDriver) -> None:
    cu.fail["cuMemAlloc"] = OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cuMemAlloc failed"):
        Gpu().allocate(1 << 50)


def test_everything_may_be_closed_twice(cu: FakeDriver) -> None:
    gpu, stream = Gpu(), Stream()
    stream.begin_capture()
    graph = stream.end_capture()
    for made in (gpu.partition(16), gpu.host_memory(2), Event(), graph, stream, Module(b""), gpu):
        made.close()
        calls = len(cu.calls)
        made.close()
        assert len(cu.calls) == calls, type(made).__name__
    assert cu.leaks() == []


def test_the_fake_tells_what_is_left_open_and_refuses_what_is_closed(cu: FakeDriver) -> None:
    gpu, stream = Gpu(), Stream()
    address = gpu.allocate(4)
    assert [word.split()[0] for word in cu.leaks()] == ["stream", "context", "4"]
    handle = stream.handle
    stream.close()
    with pytest.raises(MisuseError, match="cuStreamDestroy of stream"):
        Stream(handle).close()
    gpu.free(address)
    with pytest.raises(MisuseError, match="freed already"):
        gpu.free(address)
    with pytest.raises(MisuseError, match="in no allocation"):
        gpu.read(address, 1)
    gpu.close()
    assert cu.leaks() == []


def test_a_gpu_may_be_opened_several_times(cu: FakeDriver) -> None:
    one, two = Gpu(), Gpu()
    one.close()
    Stream().close()  # the context of the other is this one's too
    two.close()
    with pytest.raises(DeviceError, match="INVALID_CONTEXT"):
        Stream()
    assert cu.leaks() == []


def test_a_partition_says_how_many_sms_it_really_has(cu: FakeDriver) -> None:
    partition = Gpu().partition(9)
    assert partition.sms == 16
    stream = partition.stream(-2)
    assert (stream.priority, stream.partition) == (-2, partition)
    assert "cuGreenCtxStreamCreate" in cu.names()


def test_a_partition_takes_its_streams_with_it(cu: FakeDriver) -> None:
    partition = Gpu().partition(8)
    streams = [partition.stream() for _ in range(3)]
    streams[0].close()
    partition.close()
    names = cu.names()
    assert names.count("cuStreamDestroy") == 3
    assert names[-1] == "cuGreenCtxDestroy"
    for stream in streams:
        stream.close()
    assert cu.names() == names


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_partitions_are_as_large_as_asked_for_and_disjoint_or_refused(counts: list[int]) -> None:
    rounded = [-(-count // 8) * 8 for count in counts]
    fake = FakeDriver()
    with pytest.MonkeyPatch.context() as patch:
        fake.install(patch)
        gpu = Gpu()
        if sum(rounded) > 128:
            with pytest.raises(DeviceError, match="it gives 16 groups of 8 SMs"):
                gpu.partitions(counts)
        else:
            made = gpu.partitions(counts)
            sets = [green.sms for green in fake.handles.values() if isinstance(green, Green)]
            assert [partition.sms for partition in made] == [len(sms) for sms in sets] == rounded
            assert len(frozenset().union(*sets)) == sum(rounded)
            for partition in made:
                partition.close()
        gpu.close()
    assert fake.leaks() == []


def test_partitions_that_cannot_be_completed_are_given_back(cu: FakeDriver) -> None:
    gpu = Gpu()
    cu.calls.clear()
    gpu.partitions([16, 32])[0].close()
    second = [i for i, name in enumerate(cu.names()) if name == "cuGreenCtxCreate"][1]
    cu.calls.clear()
    before = cu.leaks()
    cu.fail_at = second
    with pytest.raises(DeviceError, match="cuGreenCtxCreate failed"):
        gpu.partitions([16, 32])
    assert cu.leaks() == before


def test_the_range_of_priorities_and_the_one_that_a_stream_got(cu: FakeDriver) -> None:
    assert Gpu().priorities == (0, -5)
    assert [Stream(priority=p).priority for p in (-9, -5, -1, 0, 3)] == [-5, -5, -1, 0, 0]


# --- words that both see


def test_the_host_sees_what_a_kernel_wrote_and_a_kernel_what_the_host_wrote(cu: FakeDriver) -> None:
    memory, stream = Gpu().host_memory(3), Stream()
    assert list(memory.words) == [0, 0, 0]
    cu.effects["add"] = lambda gpu, at: gpu.set_word(at, gpu.word(at) + 1)
    memory.words[1] = 41
    cu.parameters["add"] = (8,)
    Module(b"").function("add").launch(
        stream, (1, 1, 1), (32, 1, 1), 0, [(memory.address + 4).to_bytes(8, "little")]
    )  # fmt: skip
    assert list(memory.words) == [0, 42, 0]
    words = memory.words
    memory.close()
    with pytest.raises(ValueError, match="released"):
        words[1]
    assert cu.memory.host == {}


def test_host_memory_that_the_gpu_cannot_see_is_given_back(cu: FakeDriver) -> None:
    gpu = Gpu()
    cu.fail["cuMemHostGetDevicePointer"] = OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cuMemHostGetDevicePointer failed"):
        gpu.host_memory(1)
    assert cu.memory.host == {}


@pytest.mark.parametrize("sms", [0, 133])
def test_a_partition_larger_than_the_gpu_is_refused(cu: FakeDriver, sms: int) -> None:
    with pytest.raises(DeviceError, match=f"a partition of {sms} SMs: the GPU has 132"):
        Gpu().partition(sms)
    assert "cuGreenCtxCreate" not in cu.names()


def test_code_that_is_refused_comes_with_the_words_of_the_compiler(cu: FakeDriver) -> None:
    cu.fail["cuLibraryLoadData"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(DeviceError, match=r"\(CUDA_ERROR_INVALID_VALUE\)$"):
        Module(b"garbage")
    cu.compiler_log = b"ptxas fatal: unexpected token\0"
    with pytest.raises(DeviceError, match=r"\(CUDA_ERROR_INVALID_VALUE\): ptxas fatal: unexpected token$"):
        Module(b"garbage")


@pytest.mark.parametrize(("shared", "asked"), [(0, False), (48 * 1024, False), (48 * 1024 + 1, True)])
def test_much_shared_memory_is_asked_for(cu: FakeDriver, shared: int, asked: bool) -> None:
    Module(b"").function("k", shared)
    assert ("cuFuncSetAttribute" in cu.names()) == asked


def test_the_bytes_of_each_parameter_reach_a_launch(cu: FakeDriver) -> None:
    Gpu()
    function = Module(b"").function("k")
    cu.parameters["k"] = (8, 4, 1)
    assert function.parameter_sizes == (8, 4, 1)
    function.launch(Stream(), (1, 2, 3), (4, 5, 6), 7, [b"12345678", b"\0\0\0\1", b"\xff"])
    assert cu.launches == [KernelRun("k", (1, 2, 3), (4, 5, 6), 7, (b"12345678", b"\0\0\0\1", b"\xff"))]


def test_an_early_launch_says_so(cu: FakeDriver) -> None:
    Gpu()
    Module(b"").function("k").launch(Stream(priority=-1), (1, 2, 3), (4, 5, 6), 7, [], early=True)
    assert cu.launches == [KernelRun("k", (1, 2, 3), (4, 5, 6), 7, (), priority=-1, early=True)]


def test_a_prepared_launch_is_one_call_each_time(cu: FakeDriver) -> None:
    Gpu()
    cu.parameters["k"] = (4,)
    prepared = Module(b"").function("k").prepare((9, 1, 1), (32, 1, 1), 0, [b"abcd"])
    streams = Stream(), Stream(priority=-3)
    cu.calls.clear()
    for stream in streams:
        prepared.enqueue(stream)
    assert cu.names() == ["cuLaunchKernel"] * 2
    assert cu.launches == [KernelRun("k", (9, 1, 1), (32, 1, 1), 0, (b"abcd",), p) for p in (0, -3)]
    cu.fail["cuLaunchKernel"] = OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cuLaunchKernel failed: words about CUDA_ERROR_OUT_OF_MEMORY"):
        prepared.enqueue(streams[0])


def test_facts_of_a_function(cu: FakeDriver) -> None:
    assert function_facts(77) == {"registers": 40, "shared_bytes": 16, "max_threads": 1024}
