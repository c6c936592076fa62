# ruff: noqa: E402 - what is imported below may be missing
"""The driver layer on a GPU, with a kernel written by hand; needs no torch."""

import struct
from collections.abc import Iterator

import pytest
from gpu_support import need_gpu

need_gpu()

from miriam.device.cuda.driver import Event, Gpu, Module, Stream, check, function_facts, graph_nodes, profiled
from miriam.errors import DeviceError

# out[block] = number + block, by the first thread of each block
PTX = b""".version 7.0
.target sm_52
.address_size 64
.visible .entry number(.param .u64 out, .param .u32 number)
{
    .reg .pred %p<2>;
    .reg .b32 %r<5>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [out];
    ld.param.u32 %r1, [number];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r2, %tid.x;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra done;
    mov.u32 %r3, %ctaid.x;
    add.u32 %r4, %r1, %r3;
    mul.wide.u32 %rd3, %r3, 4;
    add.u64 %rd4, %rd2, %rd3;
    st.global.u32 [%rd4], %r4;
done:
    ret;
}
\0"""
BLOCKS = 1000


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    gpu = Gpu()
    yield gpu
    gpu.close()


@pytest.fixture
def out(gpu: Gpu) -> Iterator[int]:
    address = gpu.allocate(4 * BLOCKS)
    gpu.write(address, bytes(4 * BLOCKS))
    yield address
    gpu.free(address)


def arguments(out: int, number: int) -> list[bytes]:
    return [struct.pack("<Q", out), struct.pack("<I", number)]


def numbers(gpu: Gpu, out: int) -> list[int]:
    return list(struct.unpack(f"<{BLOCKS}I", gpu.read(out, 4 * BLOCKS)))


def test_what_the_gpu_says_of_itself(gpu: Gpu) -> None:
    geometry = gpu.geometry
    assert gpu.name
    assert geometry.sms >= 1
    assert geometry.threads_per_sm >= 1024
    assert geometry.shared_per_block_bytes <= geometry.shared_per_sm_bytes
    assert int(gpu.driver_version.split(".")[0]) >= 12


def test_memory_holds_what_is_written(gpu: Gpu, out: int) -> None:
    data = bytes(range(256)) * 10
    gpu.write(out, data)
    assert gpu.read(out, len(data)) == data
    assert gpu.read(out + 100, 3) == b"\x64\x65\x66"


def test_a_launch_gets_its_arguments(gpu: Gpu, out: int) -> None:
    module, stream = Module(PTX), Stream()
    function = module.function("number")
    assert function.parameter_sizes == (8, 4)
    assert function.blocks_per_sm(128, 0) >= 8
    function.launch(stream, (BLOCKS, 1, 1), (128, 1, 1), 0, arguments(out, 7))
    stream.synchronize()
    assert numbers(gpu, out) == list(range(7, 7 + BLOCKS))
    stream.close()
    module.close()


def test_code_that_does_not_compile_comes_with_the_words_of_the_compiler(gpu: Gpu) -> None:
    with pytest.raises(DeviceError, match=r"failed.*: .*ptxas"):
        Module(PTX.replace(b"add.u32", b"odd.u32")).function("number")


def test_a_graph_can_be_launched_again_and_read_node_by_node(gpu: Gpu, out: int) -> None:
    module, stream = Module(PTX), Stream()
    function = module.function("number")
    stream.begin_capture()
    stream.fill(out, 3, 4, 8)
    function.launch(stream, (4, 1, 1), (64, 1, 1), 0, arguments(out, 100))
    stream.copy(out + 64, out, 16)
    graph = check("cuStreamEndCapture", stream.handle)
    fill, kernel, copy = graph_nodes(int(graph))
    assert [node.kind for node in (fill, kernel, copy)] == ["fill", "kernel", "copy"]
    assert (kernel.name, kernel.grid, kernel.block) == ("number", (4, 1, 1), (64, 1, 1))
    assert kernel.parameters == tuple(arguments(out, 100))
    assert [int.from_bytes(raw, "little") for raw in fill.parameters] == [out, 3, 4, 8]
    assert [int.from_bytes(raw, "little") for raw in copy.parameters] == [out + 64, out, 16]
    assert function_facts(kernel.function)["registers"] > 0
    check("cuGraphDestroy", graph)
    stream.close()
    module.close()


def test_a_captured_graph_runs_each_time_it_is_launched(gpu: Gpu, out: int) -> None:
    module, stream = Module(PTX), Stream()
    function = module.function("number")
    stream.begin_capture()
    function.launch(stream, (BLOCKS, 1, 1), (32, 1, 1), 0, arguments(out, 5))
    graph = stream.end_capture()
    stream.synchronize()
    assert numbers(gpu, out) == [0] * BLOCKS  # captured, not run
    for _ in range(2):
        gpu.write(out, bytes(4 * BLOCKS))
        graph.launch(stream)
        stream.synchronize()
        assert numbers(gpu, out) == list(range(5, 5 + BLOCKS))
    graph.close()
    stream.close()
    module.close()


def test_a_partition_has_some_sms_and_runs_kernels(gpu: Gpu, out: int) -> None:
    whole = gpu.geometry.sms
    partition = gpu.partition(min(8, whole))
    try:
        assert min(8, whole) <= partition.sms <= whole
        partition.activate()
        module, stream = Module(PTX), partition.stream()
        module.function("number").launch(stream, (BLOCKS, 1, 1), (32, 1, 1), 0, arguments(out, 1))
        stream.synchronize()
        stream.close()
        module.close()
    finally:
        partition.close()
    assert numbers(gpu, out) == list(range(1, 1 + BLOCKS))


def test_events_mark_points_in_a_stream(gpu: Gpu, out: int) -> None:
    stream, start, end = Stream(), Event(), Event()
    start.record(stream)
    stream.fill(out, 1, 4, BLOCKS)
    end.record(stream)
    assert end.since_us(start) >= 0
    for made in (start, end, stream):
        made.close()


def test_a_profiler_may_be_told_to_begin_and_to_end(gpu: Gpu) -> None:
    with profiled():
        gpu.synchronize()


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(DeviceError, match="there is no cuda:99, this machine has"):
        Gpu(99)
