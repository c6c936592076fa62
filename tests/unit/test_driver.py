"""The driver layer: errors with the name of the call, graphs read in order, handles given back."""

import ctypes
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_driver import CUresult, FakeDriver, Node
from hypothesis import given
from hypothesis import strategies as st
from support import program

from miriam.device.cuda.driver import Event, Gpu, Graph, Module, Stream, function_facts, graph_nodes, unavailable
from miriam.device.cuda.instance import Code, Instance
from miriam.errors import DeviceError
from miriam.program import Kernel, Launch, Pointer, Program, Scalar, Source, Tensor

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
    assert cu.memory == {}
    assert gpu.allocate(0)  # the driver refuses an allocation of nothing


def test_too_little_memory(cu: FakeDriver) -> None:
    cu.fail["cuMemAlloc"] = OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cuMemAlloc failed"):
        Gpu().allocate(1 << 50)


def test_everything_may_be_closed_twice(cu: FakeDriver) -> None:
    gpu = Gpu()
    for made in (gpu.partition(16), Stream(), Event(), Graph("graph"), Module(b""), gpu):
        made.close()
        calls = len(cu.calls)
        made.close()
        assert len(cu.calls) == calls, type(made).__name__
    names = cu.names()
    for destroy in ("cuGreenCtxDestroy", "cuStreamDestroy", "cuEventDestroy", "cuGraphExecDestroy", "cuGraphDestroy",
                    "cuLibraryUnload", "cuDevicePrimaryCtxRelease"):  # fmt: skip
        assert names.count(destroy) == 1


def test_a_partition_says_how_many_sms_it_really_has(cu: FakeDriver) -> None:
    partition = Gpu().partition(9)
    assert partition.sms == 16
    assert isinstance(partition.stream(), Stream)
    assert "cuGreenCtxStreamCreate" in cu.names()


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
    function = Module(b"").function("k")
    cu.parameters["k"] = (8, 4, 1)
    assert function.parameter_sizes == (8, 4, 1)
    function.launch(Stream(), (1, 2, 3), (4, 5, 6), 7, [b"12345678", b"\0\0\0\1", b"\xff"])
    assert cu.launches == [("k", (1, 2, 3), (4, 5, 6), 7, (b"12345678", b"\0\0\0\1", b"\xff"))]


def test_facts_of_a_function(cu: FakeDriver) -> None:
    assert function_facts(77) == {"registers": 40, "shared_bytes": 16, "max_threads": 1024}


# --- graphs


def kernel_node(number: int, parameters: int = 0, function: int = 0) -> Node:
    return Node(
        number, "KERNEL", func=function or number, kern=number, gridDimX=4, gridDimY=2, gridDimZ=1, blockDimX=128,
        blockDimY=1, blockDimZ=1, sharedMemBytes=512, kernelParams=parameters,
    )  # fmt: skip


def test_a_graph_without_nodes(cu: FakeDriver) -> None:
    assert graph_nodes(1) == []


def test_nodes_come_in_the_order_of_the_edges(cu: FakeDriver) -> None:
    cu.nodes = [kernel_node(n) for n in (30, 10, 20)]
    cu.edges = [(10, 20), (20, 30)]
    assert [node.name for node in graph_nodes(1)] == ["kernel10", "kernel20", "kernel30"]


@given(st.data())
def test_every_node_comes_once_and_after_those_before_it(data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(1, 1000), unique=True, max_size=12))
    fake = FakeDriver()
    pairs = [(a, b) for i, a in enumerate(numbers) for b in numbers[i + 1 :]]
    fake.edges = data.draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []
    fake.nodes = [kernel_node(n) for n in data.draw(st.permutations(numbers))]
    with pytest.MonkeyPatch.context() as patch:
        fake.install(patch)
        order = [node.function for node in graph_nodes(1)]
    assert sorted(order) == sorted(numbers)
    assert all(order.index(a) < order.index(b) for a, b in fake.edges)


def test_a_kernel_node_with_its_parameters(cu: FakeDriver) -> None:
    held = [ctypes.create_string_buffer(raw, len(raw)) for raw in (b"12345678", b"\1\2\3\4")]
    table = (ctypes.c_void_p * 2)(*[ctypes.addressof(raw) for raw in held])
    cu.parameters[5] = (8, 4)
    cu.nodes = [kernel_node(5, ctypes.addressof(table))]
    (node,) = graph_nodes(1)
    assert (node.kind, node.function, node.name) == ("kernel", 5, "kernel5")
    assert (node.grid, node.block, node.shared_bytes) == ((4, 2, 1), (128, 1, 1), 512)
    assert node.parameters == (b"12345678", b"\1\2\3\4")


def test_parameters_passed_in_another_way_cannot_be_read(cu: FakeDriver) -> None:
    cu.nodes = [kernel_node(5)]
    assert graph_nodes(1)[0].parameters is None


def test_a_node_that_holds_a_kernel_instead_of_a_function(cu: FakeDriver) -> None:
    node = kernel_node(5)
    node.params.func, node.params.kern = 0, 9
    cu.nodes = [node]
    assert graph_nodes(1)[0].name == "kernel9"


COPY = {
    "WidthInBytes": 64, "Height": 1, "Depth": 1, "dstDevice": 1000, "srcDevice": 2000, "dstXInBytes": 8,
    "srcXInBytes": 16,
}  # fmt: skip
FILL = {"dst": 1000, "value": 7, "elementSize": 4, "width": 16, "height": 1}


@pytest.mark.parametrize(
    ("kind", "params", "numbers"),
    [
        ("MEMCPY", COPY, (1008, 2016, 64)),
        ("MEMCPY", COPY | {"Height": 0, "Depth": 0}, (1008, 2016, 64)),
        ("MEMCPY", COPY | {"Height": 2}, None),
        ("MEMCPY", COPY | {"Depth": 2}, None),
        ("MEMCPY", COPY | {"srcDevice": 0}, None),  # from the host
        ("MEMSET", FILL, (1000, 7, 4, 16)),
        ("MEMSET", FILL | {"height": 3}, None),
    ],
)
def test_copies_and_fills_are_numbers_where_they_are_flat(cu: FakeDriver, kind, params, numbers) -> None:
    cu.nodes = [Node(1, kind, **params)]
    (node,) = graph_nodes(1)
    assert node.kind == {"MEMCPY": "copy", "MEMSET": "fill"}[kind]
    assert node.parameters == (numbers and tuple(n.to_bytes(8, "little") for n in numbers))


def test_nodes_of_other_kinds_keep_the_name_that_the_driver_gives_them(cu: FakeDriver) -> None:
    cu.nodes = [Node(1, "EMPTY"), Node(2, "HOST")]
    assert sorted(node.kind for node in graph_nodes(1)) == ["CU_GRAPH_NODE_TYPE_HOST", "empty"]


# --- a program on a device


def mixed() -> Program:
    """A kernel, a copy of its output, and a fill."""
    toy = program("mixed", [(64, 128)], shared_bytes=64 * 1024)
    memory = [Kernel(n, s, (1, 1, 1), 0, opaque="no code") for n, s in (("c", Source.COPY), ("f", Source.FILL))]
    number = [Scalar(n.to_bytes(8, "little")) for n in (64, 5, 4, 16)]
    return Program(
        "mixed", "sm_90a", (*toy.kernels, *memory),
        (*toy.launches, Launch(1, (1, 1, 1), (Pointer(2, 256), Pointer(1, 16), number[0])),
         Launch(2, (1, 1, 1), (Pointer(2, 0), *number[1:]))),
        toy.buffers, toy.inputs, toy.outputs,
    )  # fmt: skip


def test_an_instance_that_cannot_be_completed_gives_back_what_it_has(cu: FakeDriver) -> None:
    gpu = Gpu()
    cu.fail["cuKernelGetFunction"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(DeviceError, match="cuKernelGetFunction failed"):
        Instance(gpu, mixed())
    assert cu.names().count("cuMemFree") == cu.names().count("cuMemAlloc") > 0
    assert cu.names().count("cuLibraryUnload") == cu.names().count("cuLibraryLoadData") > 0


def test_an_instance_allocates_writes_loads_launches_and_gives_back(cu: FakeDriver) -> None:
    gpu = Gpu()
    toy = mixed()
    cu.calls.clear()
    instance = Instance(gpu, toy)
    assert cu.names() == [
        "cuLibraryLoadData", "cuMemAlloc", "cuMemAlloc", "cuMemAlloc", "cuMemcpyHtoD", "cuLibraryGetKernel",
        "cuKernelGetFunction", "cuFuncSetAttribute",
    ]  # fmt: skip
    _, w, arena = cu.memory
    assert bytes(cu.memory[w]) == toy.buffers[1].data
    cu.parameters["mixed_0"] = (8, 4)
    stream = Stream()
    cu.calls.clear()
    instance.enqueue(stream)
    assert cu.names() == ["cuLaunchKernel", "cuMemcpyDtoDAsync", "cuMemsetD32Async"]
    assert cu.launches == [("mixed_0", (64, 1, 1), (128, 1, 1), 64 * 1024, (arena.to_bytes(8, "little"), bytes(4)))]
    assert cu.calls[1][1] == (arena + 256, w + 16, 64, stream.handle)
    assert cu.calls[2][1] == (arena, 5, 16, stream.handle)
    cu.calls.clear()
    instance.close()
    instance.close()
    assert cu.names() == ["cuMemFree", "cuMemFree", "cuMemFree", "cuLibraryUnload"]
    assert cu.memory == {}


def test_inputs_go_in_and_outputs_come_out(cu: FakeDriver) -> None:
    toy = program()
    instance = Instance(Gpu(), toy)
    instance.write(toy.inputs[0], b"input")
    x, _, arena = cu.memory
    assert bytes(cu.memory[x][:5]) == b"input"
    cu.memory[arena][128:134] = b"output"
    assert instance.read(toy.outputs[0], 6) == b"output"


def test_two_instances_share_code_and_no_memory(cu: FakeDriver) -> None:
    gpu, toy = Gpu(), program()
    code = Code(toy)
    one, two = Instance(gpu, toy, code), Instance(gpu, toy, code)
    assert cu.names().count("cuLibraryLoadData") == len(toy.kernels)
    places = {i.address(Pointer(b)) for i in (one, two) for b in range(len(toy.buffers))}
    assert len(places) == 2 * len(toy.buffers)
    one.close()
    assert "cuLibraryUnload" not in cu.names()
    two.close()
    code.close()
    assert cu.names().count("cuLibraryUnload") == len(toy.kernels)


def test_filling_leaves_the_weights_alone(cu: FakeDriver) -> None:
    toy = program()
    instance = Instance(Gpu(), toy)
    instance.fill()
    x, w, arena = cu.memory
    assert bytes(cu.memory[w]) == toy.buffers[1].data
    assert any(cu.memory[x])
    assert any(cu.memory[arena][-16:])
    first = bytes(cu.memory[arena])
    instance.fill()
    assert bytes(cu.memory[arena]) == first


def opaque() -> Program:
    kernel = Kernel("cudnn_dilated", Source.LIBRARY, (256, 1, 1), 128, opaque="a library kernel")
    toy = program("dilated", [(64, 128)])
    return Program(
        "dilated", "sm_90a", (*toy.kernels, kernel), (*toy.launches, Launch(1, (8, 1, 1))), toy.buffers,
        outputs=(Tensor("y", "float16", (1,), (1,), Pointer(2)),),
    )  # fmt: skip


def test_an_opaque_launch_cannot_run_from_a_file(cu: FakeDriver) -> None:
    with pytest.raises(DeviceError, match="dilated cannot run from its file: the code of cudnn_dilated is not in it"):
        Instance(Gpu(), opaque())
    assert cu.memory == {}


def test_a_part_of_a_program_runs_without_its_opaque_launches(cu: FakeDriver) -> None:
    instance = Instance(Gpu(), opaque(), partial=True)
    assert instance.every() == [0]
    assert [instance.runnable(i) for i in (0, 1)] == [True, False]
    assert [instance.blocks_per_sm(i) for i in (0, 1)] == [16, 1]
    instance.enqueue(Stream())
    assert [launch[0] for launch in cu.launches] == ["dilated_0"]


def test_a_graph_of_a_program_is_captured_on_the_stream(cu: FakeDriver) -> None:
    instance, stream = Instance(Gpu(), program()), Stream()
    cu.calls.clear()
    graph = instance.graph(stream)
    assert cu.names() == [
        "cuStreamBeginCapture", "cuLaunchKernel", "cuLaunchKernel", "cuStreamEndCapture", "cuGraphInstantiate",
    ]  # fmt: skip
    graph.launch(stream)
    assert cu.names()[-1] == "cuGraphLaunch"


def test_weights_that_were_left_out_are_only_allocated(cu: FakeDriver) -> None:
    Instance(Gpu(), program().without_weights())
    assert cu.names().count("cuMemAlloc") == 3
    assert "cuMemcpyHtoD" not in cu.names()
