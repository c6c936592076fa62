# ruff: noqa: E402 - what is imported below may be missing
"""Loops, choices and branches of graphs, words of the host and partitions on a GPU; needs no torch."""

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from gpu_support import need_gpu

need_gpu()

from miriam.device.cuda.driver import Event, Function, Gpu, Module, Stream, check
from miriam.device.cuda.driver.calls import constant
from miriam.errors import DeviceError

_ENTRY = """
.visible .entry {name}({parameters})
{{
    .reg .pred %p;
    .reg .b32 %a, %b, %c;
    .reg .b64 %x, %y, %t, %u;
    mov.u32 %a, %tid.x;
    setp.ne.u32 %p, %a, 0;
    @%p ret;
{body}
    ret;
}}
"""
_SET = """    {
    .param .b64 handle_;
    .param .b32 value_;
    st.param.b64 [handle_], %y;
    st.param.b32 [value_], %a;
    call.uni cudaGraphSetConditional, (handle_, value_);
    }
"""
_X = "    ld.param.u64 %x, [x];\n"
_XY = _X + "    ld.param.u64 %y, [y];\n"
_BODIES = {
    # word at x += 1
    "add": (".param .u64 x", _X + "    red.relaxed.gpu.global.add.u32 [%x], 1;"),
    # word at x -= 1; handle y := whether anything is left
    "down": (
        ".param .u64 x, .param .u64 y",
        _XY + "    ld.global.u32 %a, [%x];\n    sub.u32 %a, %a, 1;\n    st.global.u32 [%x], %a;\n" + _SET,
    ),
    # handle y := word at x
    "choose": (".param .u64 x, .param .u64 y", _XY + "    ld.global.u32 %a, [%x];\n" + _SET),
    # word at x := 1 as the host sees it
    "tell": (".param .u64 x", _X + "    st.release.sys.global.u32 [%x], 1;"),
    # waits until the host has written to x, y ns at most
    "wait": (
        ".param .u64 x, .param .u64 y",
        _XY
        + """    mov.u64 %t, %globaltimer;
    add.u64 %t, %t, %y;
$again:
    ld.acquire.sys.global.u32 %a, [%x];
    setp.ne.u32 %p, %a, 0;
    @%p ret;
    mov.u64 %u, %globaltimer;
    setp.lt.u64 %p, %u, %t;
    @%p bra $again;""",
    ),
    # bit of this SM in the words at x
    "sm": (
        ".param .u64 x",
        _X
        + """    mov.u32 %a, %smid;
    shr.u32 %b, %a, 5;
    and.b32 %a, %a, 31;
    mov.u32 %c, 1;
    shl.b32 %c, %c, %a;
    mad.wide.u32 %x, %b, 4, %x;
    red.relaxed.gpu.global.or.b32 [%x], %c;""",
    ),
}
PTX = (
    ".version 7.0\n.target sm_75\n.address_size 64\n"
    ".extern .func cudaGraphSetConditional(.param .b64 handle, .param .b32 value);\n"
    + "".join(_ENTRY.format(name=name, parameters=p, body=body) for name, (p, body) in _BODIES.items())
)
SECOND_NS = 10**9
SM_WORDS = 16

Launch = Callable[..., None]


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    gpu = Gpu()
    yield gpu
    gpu.close()


@pytest.fixture
def stream(gpu: Gpu) -> Iterator[Stream]:
    stream = Stream()
    yield stream
    stream.close()


@pytest.fixture
def module(gpu: Gpu) -> Iterator[Module]:
    module = Module(PTX.encode() + b"\0")
    yield module
    module.close()


@pytest.fixture
def launch(module: Module) -> Launch:
    functions: dict[str, Function] = {name: module.function(name) for name in _BODIES}

    def launch(stream: Stream, name: str, *args: int, blocks: int = 1) -> None:
        functions[name].launch(stream, (blocks, 1, 1), (32, 1, 1), 0, [struct.pack("<Q", arg) for arg in args])

    return launch


def follow(later: Stream, earlier: Stream) -> None:
    """Let what comes in one stream wait for what is in the other."""
    with closing(Event(timed=False)) as event:
        event.record(earlier)
        later.wait(event)


@pytest.fixture
def words(gpu: Gpu) -> Iterator[int]:
    """Address of 4 zeros and of room for the SMs."""
    address = gpu.allocate(4 * (4 + SM_WORDS))
    gpu.write(address, bytes(4 * (4 + SM_WORDS)))
    yield address
    gpu.free(address)


def read(gpu: Gpu, words: int, count: int = 4) -> list[int]:
    return list(struct.unpack(f"<{count}I", gpu.read(words, 4 * count)))


@pytest.mark.parametrize("rounds", [1, 2, 1000])
def test_a_loop_runs_until_a_kernel_ends_it(gpu: Gpu, stream: Stream, launch: Launch, words: int, rounds: int) -> None:
    with stream.capture() as capture:
        launch(stream, "add", words + 4)
        loop = capture.condition(default=1)
        with capture.loop(loop) as body:
            launch(body.stream, "add", words + 8)
            launch(body.stream, "down", words, loop)
        launch(stream, "add", words + 12)
    for time_ in (1, 2):  # the condition has its default again
        gpu.write(words, struct.pack("<I", rounds))
        capture.graph.launch(stream)
        stream.synchronize()
        assert read(gpu, words) == [0, time_, time_ * rounds, time_]
    capture.graph.close()


@pytest.mark.parametrize("choice", [0, 1, 2, 3, 100])
def test_a_choice_runs_one_body_or_none(gpu: Gpu, stream: Stream, launch: Launch, words: int, choice: int) -> None:
    with stream.capture() as capture:
        handle = capture.condition()
        launch(stream, "choose", words, handle)
        for i, way in enumerate(capture.choose(handle, 3)):
            with way as body:
                launch(body.stream, "add", words + 4 + 4 * i)
    gpu.write(words, struct.pack("<I", choice))
    capture.graph.upload(stream)
    capture.graph.launch(stream)
    stream.synchronize()
    assert read(gpu, words) == [choice, *(int(i == choice) for i in range(3))]
    capture.graph.close()


@pytest.mark.parametrize("value", [0, 1, 7])
def test_a_condition_lets_a_body_run(gpu: Gpu, stream: Stream, launch: Launch, words: int, value: int) -> None:
    with stream.capture() as capture:
        handle = capture.condition(default=1)
        launch(stream, "choose", words, handle)
        with capture.when(handle) as body:
            body.stream.fill(words + 4, 9, 4, 1)
        launch(stream, "add", words + 8)
    gpu.write(words, struct.pack("<I", value))
    capture.graph.launch(stream)
    stream.synchronize()
    assert read(gpu, words)[1:3] == [9 if value else 0, 1]
    capture.graph.close()


def test_a_choice_and_a_condition_in_each_round_of_a_loop(gpu: Gpu, stream: Stream, launch: Launch, words: int) -> None:
    """As a resident inference: the words left are the choice, so that 3, 2 and 1 take ways 3, 2 and 1 of four."""
    rounds, low, high = words, words + 8, words + 12
    with stream.capture() as capture:
        loop = capture.condition(default=1)
        with capture.loop(loop) as body:
            choice = body.condition()
            launch(body.stream, "choose", rounds, choice)
            for i, way in enumerate(body.choose(choice, 4)):
                with way as inner:
                    if i == 1:
                        launch(inner.stream, "add", low)
                    elif i > 1:
                        with inner.when(inner.condition(default=int(i == 3))) as deep:
                            launch(deep.stream, "add", high)
            launch(body.stream, "down", rounds, loop)
    for turn in (1, 2):
        gpu.write(rounds, struct.pack("<I", 3))
        capture.graph.launch(stream)
        stream.synchronize()
        assert read(gpu, words) == [0, 0, turn, turn]
    capture.graph.close()


def test_a_handle_of_the_graph_around_may_be_that_of_a_body(
    gpu: Gpu, stream: Stream, launch: Launch, words: int
) -> None:
    with stream.capture() as capture:
        outer, inner = capture.condition(default=1), capture.condition(default=1)
        with capture.when(outer) as body, body.when(inner) as deep:
            launch(deep.stream, "add", words)
    capture.graph.launch(stream)
    stream.synchronize()
    assert read(gpu, words)[0] == 1
    capture.graph.close()


def test_a_node_may_come_behind_two_branches(gpu: Gpu, stream: Stream, launch: Launch, words: int) -> None:
    side = stream.sibling()
    with stream.capture() as capture:
        follow(side, stream)
        launch(side, "add", words)
        launch(stream, "add", words + 4)
        follow(stream, side)
        with capture.when(capture.condition(default=1)) as body:
            launch(body.stream, "add", words + 8)
    capture.graph.launch(stream)
    stream.synchronize()
    assert read(gpu, words)[:3] == [1, 1, 1]
    capture.graph.close()
    side.close()


def test_a_branch_runs_beside_and_the_graph_waits_for_it(gpu: Gpu, stream: Stream, launch: Launch, words: int) -> None:
    host, side = gpu.host_memory(2), Stream(priority=gpu.priorities[1])
    with stream.capture() as capture:
        follow(side, stream)
        launch(side, "wait", host.address, 10 * SECOND_NS)
        launch(stream, "tell", host.address + 4)
        follow(stream, side)
    capture.graph.launch(stream)
    deadline = time.monotonic() + 5
    while not host.words[1] and time.monotonic() < deadline:
        pass
    assert host.words[1] == 1  # while the branch still waits
    assert not stream.done
    host.words[0] = 1
    stream.synchronize()
    assert stream.done
    capture.graph.close()
    side.close()
    host.close()


def test_the_host_sees_what_a_kernel_wrote_while_the_stream_goes_on(gpu: Gpu, stream: Stream, launch: Launch) -> None:
    host, event = gpu.host_memory(2), Event(timed=False)
    assert list(host.words) == [0, 0]
    launch(stream, "tell", host.address + 4)
    launch(stream, "wait", host.address, 10 * SECOND_NS)
    event.record(stream)
    deadline = time.monotonic() + 5
    while not host.words[1] and time.monotonic() < deadline:
        pass
    assert (list(host.words), event.done, stream.done) == ([0, 1], False, False)
    host.words[0] = 1
    event.synchronize()
    assert event.done
    event.close()
    host.close()


def test_kernels_of_a_graph_keep_the_priority_of_their_stream(gpu: Gpu, launch: Launch, words: int) -> None:
    least, greatest = gpu.priorities
    assert greatest < least
    high = Stream(priority=greatest)
    assert high.priority == greatest
    sibling = high.sibling()
    assert sibling.priority == greatest
    sibling.close()
    high.begin_capture()
    launch(high, "add", words)
    graph = check("cuStreamEndCapture", high.handle)
    (node,), _ = check("cuGraphGetNodes", graph, 1)
    attribute = constant("CUkernelNodeAttrID", "CU_LAUNCH_ATTRIBUTE_PRIORITY")
    assert check("cuGraphKernelNodeGetAttribute", node, attribute).priority == greatest
    check("cuGraphDestroy", graph)
    high.close()


def test_partitions_have_no_sm_in_common(gpu: Gpu, launch: Launch, module: Module, words: int) -> None:
    whole = gpu.geometry.sms
    partitions = gpu.partitions([16, 8, 40])
    found = []
    for partition in partitions:
        partition.activate()
        stream, function = partition.stream(), module.function("sm")
        gpu.write(words, bytes(4 * SM_WORDS))
        function.launch(stream, (4096, 1, 1), (32, 1, 1), 0, [struct.pack("<Q", words)])
        stream.synchronize()
        masks = read(gpu, words, SM_WORDS)
        found.append({32 * i + bit for i, mask in enumerate(masks) for bit in range(32) if mask >> bit & 1})
        stream.close()
    for partition in partitions:
        partition.close()
    assert [partition.sms for partition in partitions] == [16, 8, 40]
    assert [len(sms) for sms in found] == [16, 8, 40]
    assert len(set().union(*found)) == 64 <= whole
    with pytest.raises(DeviceError, match="groups of 8 SMs"):
        gpu.partitions([whole, 8])


def test_a_partition_refuses_conditions_and_has_streams_beside_each_other(
    gpu: Gpu, launch: Launch, module: Module, words: int
) -> None:
    partition = gpu.partition(16)
    partition.activate()
    stream, function = partition.stream(), module.function("add")
    side = stream.sibling()
    with stream.capture() as capture:
        with pytest.raises(DeviceError, match="on a partition"):
            capture.condition()
        function.launch(stream, (1, 1, 1), (32, 1, 1), 0, [struct.pack("<Q", words + 4)])
    capture.graph.launch(stream)
    function.launch(side, (1, 1, 1), (32, 1, 1), 0, [struct.pack("<Q", words)])
    stream.synchronize()
    side.synchronize()
    assert read(gpu, words)[:2] == [1, 1]
    capture.graph.close()
    side.close()
    stream.close()
    partition.close()


def test_an_error_in_a_capture_leaves_the_stream_usable(gpu: Gpu, stream: Stream, launch: Launch, words: int) -> None:
    def fail() -> None:
        with stream.capture() as capture:
            launch(stream, "add", words)
            with capture.loop(capture.condition()) as body:
                launch(body.stream, "add", words)
                raise KeyError("mine")

    for _ in range(3):
        with pytest.raises(KeyError, match="mine"):
            fail()
    launch(stream, "add", words)
    stream.synchronize()
    assert read(gpu, words)[0] == 1


def test_a_prepared_launch_runs_each_time(gpu: Gpu, stream: Stream, module: Module, words: int) -> None:
    prepared = module.function("add").prepare((3, 1, 1), (32, 1, 1), 0, [struct.pack("<Q", words)])
    for _ in range(5):
        prepared.enqueue(stream)
    stream.synchronize()
    assert read(gpu, words)[0] == 15


def test_a_gpu_may_be_opened_several_times(gpu: Gpu, stream: Stream, launch: Launch, words: int) -> None:
    other = Gpu()
    other.close()
    launch(stream, "add", words)
    stream.synchronize()
    assert read(gpu, words)[0] == 1
