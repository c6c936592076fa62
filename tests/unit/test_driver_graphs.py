"""Graphs with loops and choices: their calls, what they run, and what an error leaves behind."""

import contextlib
import inspect
import struct
from collections.abc import Iterator

import pytest
from fake_driver import CUresult, FakeDriver, MisuseError
from null_gpu import Exec, GraphNode, NullGpu

from miriam.device.cuda.driver import Event, Function, Gpu, Graph, Module, Stream
from miriam.elastic import resident
from miriam.elastic.state import ALL, Lane, Limiter
from miriam.errors import DeviceError

ONE = (1, 1, 1)


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def gpu(cu: FakeDriver) -> Iterator[Gpu]:
    gpu = Gpu()
    yield gpu
    gpu.close()


class Kernels:
    """Kernels that have any name, and take numbers of 8 bytes."""

    def __init__(self, cu: FakeDriver) -> None:
        self._cu = cu
        self.module = Module(b"")

    def __call__(self, stream: Stream, name: str, *args: int) -> None:
        self._cu.parameters[name] = (8,) * len(args)
        function: Function = self.module.function(name)
        function.launch(stream, ONE, ONE, 0, [arg.to_bytes(8, "little") for arg in args])


@pytest.fixture
def kernels(cu: FakeDriver, gpu: Gpu) -> Iterator[Kernels]:
    kernels = Kernels(cu)
    yield kernels
    kernels.module.close()


def ran(cu: FakeDriver) -> list[str]:
    return [run.name for run in cu.launches]


def nodes(cu: FakeDriver) -> dict[str, GraphNode]:
    """The kernels of the last graph by their name."""
    last = [handle for handle in cu.handles.values() if isinstance(handle, Exec)][-1]
    return {node.label: node for node in last.graph.every()}


def follow(later: Stream, earlier: Stream) -> None:
    """Let what comes in one stream wait for what is in the other."""
    with contextlib.closing(Event(timed=False)) as event:
        event.record(earlier)
        later.wait(event)


# --- captures


def test_what_is_enqueued_in_the_block_runs_when_the_graph_is_launched(
    cu: FakeDriver, gpu: Gpu, kernels: Kernels
) -> None:
    stream, other = Stream(priority=-2), Stream()
    cu.calls.clear()
    with stream.capture() as capture:
        assert capture.stream is stream
        kernels(stream, "a")
        stream.fill(gpu.allocate(4), 7, 4, 1)
    assert [name for name in cu.names() if "Kernel" not in name and "Mem" not in name] == [
        "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate",
    ]  # fmt: skip
    assert cu.calls[-1][1][1] == "CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY"
    assert cu.launches == []
    cu.calls.clear()
    capture.graph.upload(other)
    capture.graph.launch(other)
    capture.graph.launch(stream)
    assert cu.names() == ["cuGraphUpload", "cuGraphLaunch", "cuGraphLaunch"]
    assert [run.priority for run in cu.launches] == [-2, -2]  # of the capture, not of the launch
    (address,) = cu.memory.device
    assert gpu.read(address, 4) == b"\7\0\0\0"


def test_the_graph_is_there_after_the_block_and_a_body_has_none(cu: FakeDriver, gpu: Gpu) -> None:
    with Stream().capture() as capture:
        with pytest.raises(DeviceError, match="when its block has ended"):
            _ = capture.graph
        with capture.when(capture.condition()) as body:
            pass
    with pytest.raises(DeviceError, match="the body of a node has none"):
        _ = body.graph
    assert isinstance(capture.graph, Graph)


def test_a_loop_runs_as_long_as_its_handle_is_set(cu: FakeDriver, kernels: Kernels) -> None:
    rounds = iter([1, 1, 0, 0])
    cu.effects["step"] = lambda gpu, handle: gpu.conditions.__setitem__(handle, next(rounds))
    stream = Stream()
    with stream.capture() as capture:
        kernels(stream, "before")
        loop = capture.condition(default=1)
        with capture.loop(loop) as body:
            assert body.stream is not stream
            kernels(body.stream, "work")
            kernels(body.stream, "step", loop)
        kernels(stream, "after")
    capture.graph.launch(stream)
    assert ran(cu) == ["before", *["work", "step"] * 3, "after"]
    capture.graph.launch(stream)  # which begins with the default again
    assert ran(cu)[8:] == ["before", "work", "step", "after"]


def test_the_calls_of_a_loop(cu: FakeDriver, gpu: Gpu) -> None:
    stream = Stream(priority=-3)
    with stream.capture() as capture:
        handle = capture.condition()
        cu.calls.clear()
        with capture.loop(handle) as body:
            assert body.stream.priority == -3
    assert cu.names() == [
        "cuStreamGetCtx", "cuStreamGetCaptureInfo", "cuGraphAddNode", "cuStreamUpdateCaptureDependencies",
        "cuStreamGetPriority", "cuStreamGetCtx", "cuCtxPushCurrent", "cuStreamCreateWithPriority", "cuCtxPopCurrent",
        "cuStreamBeginCaptureToGraph", "cuStreamGetPriority", "cuStreamEndCapture", "cuStreamDestroy",
        "cuStreamEndCapture", "cuGraphInstantiate",
    ]  # fmt: skip
    params = cu.calls[2][1][4]
    assert (params.conditional.handle, params.conditional.size) == (handle, 1)
    assert params.conditional.ctx is stream.handle.context


@pytest.mark.parametrize(("choice", "runs"), [(0, ["zero"]), (1, ["one", "maybe"]), (2, []), (7, [])])
def test_a_choice_runs_the_body_that_the_handle_names(
    cu: FakeDriver, kernels: Kernels, choice: int, runs: list[str]
) -> None:
    stream = Stream()
    with stream.capture() as capture:
        zero, one, two = capture.choose(capture.condition(choice), 3)
        with zero as body:
            kernels(body.stream, "zero")
        with one as body:
            kernels(body.stream, "one")
            with body.when(body.condition(1)) as inner:
                kernels(inner.stream, "maybe")
            with body.when(body.condition(0)) as inner:
                kernels(inner.stream, "never")
        with two:
            pass
    capture.graph.launch(stream)
    assert ran(cu) == runs


def test_a_choice_may_be_made_anew_in_each_round_of_a_loop(cu: FakeDriver, kernels: Kernels) -> None:
    turns = iter([0, 1, 1, 0])
    left = iter([1, 1, 1, 0])
    cu.effects["gate"] = lambda gpu, choice: gpu.conditions.__setitem__(choice, next(turns))
    cu.effects["step"] = lambda gpu, loop: gpu.conditions.__setitem__(loop, next(left))
    stream = Stream()
    with stream.capture() as capture:
        loop = capture.condition(1)
        with capture.loop(loop) as body:
            choice = body.condition()
            kernels(body.stream, "gate", choice)
            for name, way in zip(("whole", "part"), body.choose(choice, 2), strict=True):
                with way as inner:
                    kernels(inner.stream, name)
            kernels(body.stream, "step", loop)
    capture.graph.launch(stream)
    assert [name for name in ran(cu) if name in ("whole", "part")] == ["whole", "part", "part", "whole"]


def test_a_handle_belongs_to_the_graph_of_its_body(cu: FakeDriver, gpu: Gpu) -> None:
    stream = Stream()
    with stream.capture() as capture:
        outer = capture.condition(1)
        with capture.when(outer) as body:
            inner = body.condition(5)
            with body.when(inner):
                pass
    graph = next(handle.graph for handle in cu.handles.values() if isinstance(handle, Exec))
    assert graph.conditions == {outer: 1}
    (below,) = (node.bodies[0] for node in graph.nodes)
    assert below.conditions == {inner: 5}
    with pytest.raises(DeviceError, match="cuGraphAddNode failed"), stream.capture() as capture:
        capture.when(inner)  # of another graph


def test_a_condition_without_a_node_is_refused(cu: FakeDriver, gpu: Gpu) -> None:
    stream, before = Stream(), cu.leaks()
    with pytest.raises(DeviceError, match="cuGraphInstantiate failed"), stream.capture() as capture:
        capture.condition()
    assert cu.leaks() == before


def test_a_partition_has_no_conditions(cu: FakeDriver, gpu: Gpu, kernels: Kernels) -> None:
    stream = gpu.partition(16).stream()
    with stream.capture() as capture:
        with pytest.raises(DeviceError, match="refuses conditions in graphs on a partition"):
            capture.condition()
        sibling = stream.sibling()
        assert sibling.handle.context is stream.handle.context
        sibling.close()
        kernels(stream, "all the same")
    capture.graph.launch(stream)
    assert ran(cu) == ["all the same"]


def test_what_is_collected_comes_in_one_line_at_the_priority_of_the_stream(cu: FakeDriver, kernels: Kernels) -> None:
    stream = Stream(priority=-3)
    with stream.capture() as capture:
        kernels(stream, "first")
        with capture.when(capture.condition(1)) as body:
            kernels(body.stream, "inner")
            kernels(body.stream, "innermost")
        kernels(stream, "last")
    (made,) = (handle for handle in cu.handles.values() if isinstance(handle, Exec))
    first, condition, last = made.graph.nodes
    assert [first.before, condition.before, last.before] == [(), (first,), (condition,)]
    assert {node.kernel.priority for node in made.graph.every() if node.kernel} == {-3}
    capture.graph.launch(stream)
    assert ran(cu) == ["first", "inner", "innermost", "last"]
    capture.graph.close()
    stream.close()
    assert [word for word in cu.leaks() if "library" not in word and "context" not in word] == []


def test_what_comes_behind_a_branch_waits_for_it(cu: FakeDriver, kernels: Kernels) -> None:
    stream, side = Stream(priority=-1), Stream(priority=-5)
    with stream.capture() as capture:
        kernels(stream, "first")
        follow(side, stream)
        kernels(side, "side")
        kernels(stream, "main")
        follow(stream, side)
        with capture.when(capture.condition(1)) as body:
            kernels(body.stream, "last")
    found = nodes(cu)
    assert [node.label for name in ("side", "main") for node in found[name].before] == ["first", "first"]
    (condition,) = (node for node in found.values() if node.bodies)
    assert {node.label for node in condition.before} == {"main", "side"}
    assert [node.kernel.priority for node in found.values() if node.kernel] == [-1, -5, -1, -1]
    capture.graph.launch(stream)
    assert sorted(ran(cu)[1:3]) == ["main", "side"]
    assert ran(cu)[0::3] == ["first", "last"]


def test_a_branch_that_nobody_waits_for_is_an_error(cu: FakeDriver, kernels: Kernels) -> None:
    stream, side = Stream(), Stream()

    def fork() -> None:
        with stream.capture():
            follow(side, stream)
            kernels(side, "side")

    with pytest.raises(DeviceError, match="cuStreamEndCapture failed"):
        fork()


# --- errors


def everything(cu: FakeDriver, stream: Stream, kernels: Kernels) -> Graph:
    with stream.capture() as capture:
        kernels(stream, "main")
        loop = capture.condition(1)
        with capture.loop(loop) as body:
            for way in body.choose(body.condition(), 2):
                with way as inner:
                    kernels(inner.stream, "way")
        kernels(stream, "last")
    return capture.graph


def test_an_error_in_any_call_leaves_nothing_behind(cu: FakeDriver, kernels: Kernels) -> None:
    stream = Stream()
    cu.calls.clear()
    everything(cu, stream, kernels).close()
    calls, before = cu.names(), cu.leaks()
    gone = [i for i, name in enumerate(calls) if "Destroy" in name or name == "cuCtxPopCurrent"]
    for number in set(range(len(calls))) - set(gone):
        cu.calls.clear()
        cu.fail_at = number
        with pytest.raises(DeviceError, match=f"{calls[number]} failed"):
            everything(cu, stream, kernels)
        assert cu.leaks() == before, calls[number]
        cu.fail_at = None
        cu.calls.clear()
        everything(cu, stream, kernels).close()  # the stream is as good as before
        assert cu.names() == calls


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_exception_in_a_block_ends_every_capture_around_it(cu: FakeDriver, kernels: Kernels, depth: int) -> None:
    stream = Stream()

    def fail() -> None:
        with contextlib.ExitStack() as stack:
            capture = stack.enter_context(stream.capture())
            kernels(stream, "before")
            for _ in range(depth):
                capture = stack.enter_context(capture.when(capture.condition()))
            raise KeyError("mine")

    before = cu.leaks()
    with pytest.raises(KeyError, match="mine"):
        fail()
    assert cu.leaks() == before
    kernels(stream, "after")
    assert ran(cu) == ["after"]


def test_errors_of_a_launch_name_the_call(cu: FakeDriver, gpu: Gpu) -> None:
    stream = Stream()
    with stream.capture() as capture:
        pass
    cu.fail["cuGraphLaunch"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cuGraphLaunch failed: words about CUDA_ERROR_OUT_OF_MEMORY"):
        capture.graph.launch(stream)


# --- streams and events


def test_streams_and_events_say_when_they_are_done(cu: FakeDriver, gpu: Gpu, kernels: Kernels) -> None:
    one, two, event = Stream(), Stream(), Event(timed=False)
    assert (one.done, event.done) == (True, True)
    cu.auto = False
    kernels(one, "first")
    event.record(one)
    two.wait(event)
    kernels(two, "second")
    assert (one.done, two.done, event.done, ran(cu)) == (False, False, False, [])
    cu.run()
    assert (one.done, two.done, event.done, ran(cu)) == (True, True, True, ["first", "second"])
    cu.fail["cuStreamQuery"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cuStreamQuery failed"):
        _ = one.done


def test_events_that_are_not_timed_have_no_time(cu: FakeDriver, gpu: Gpu) -> None:
    assert Event().since_us(Event()) == 250.0
    with pytest.raises(DeviceError, match="cuEventElapsedTime failed"):
        Event().since_us(Event(timed=False))


def test_a_kernel_that_waits_holds_its_stream_alone(cu: FakeDriver, gpu: Gpu, kernels: Kernels) -> None:
    memory, one, two = gpu.host_memory(1), Stream(), Stream()

    def wait(null: NullGpu, address: int) -> Iterator[None]:
        while not null.word(address):
            yield

    cu.effects["wait"] = wait
    kernels(one, "wait", memory.address)
    kernels(one, "behind")
    kernels(two, "beside")
    assert ran(cu) == ["wait", "beside"]
    with pytest.raises(MisuseError, match="cuStreamSynchronize would wait for ever"):
        one.synchronize()
    memory.words[0] = 1
    one.synchronize()
    assert ran(cu) == ["wait", "beside", "behind"]


def test_launches_of_one_graph_come_one_after_the_other(cu: FakeDriver, gpu: Gpu, kernels: Kernels) -> None:
    memory, one, two = gpu.host_memory(1), Stream(), Stream()
    cu.effects["wait"] = lambda null, at: iter(lambda: null.word(at), 1)
    with one.capture() as capture:
        kernels(one, "wait", memory.address)
        kernels(one, "end")
    capture.graph.launch(one)
    capture.graph.launch(two)
    assert ran(cu) == ["wait"]
    memory.words[0] = 1
    gpu.synchronize()
    assert ran(cu) == ["wait", "end", "wait", "end"]


def test_a_loop_that_does_not_end_is_an_error_of_the_test(cu: FakeDriver, kernels: Kernels) -> None:
    stream = Stream()
    with stream.capture() as capture, capture.loop(capture.condition(1)) as body:
        kernels(body.stream, "work")
    with pytest.raises(MisuseError, match="does not end"):
        capture.graph.launch(stream)


# --- the kernels that the package brings


def test_a_resident_inference_waits_for_its_limit_and_tells_the_host(cu: FakeDriver, gpu: Gpu) -> None:
    """The kernels of ``miriam.elastic.resident`` by name, with the sizes that their code declares."""
    module = Module(resident.RESIDENT.encode() + b"\0")
    host, lane, control = gpu.host_memory(2), Stream(), Stream()

    def place(data: bytes) -> int:
        address = gpu.allocate(len(data))
        gpu.write(address, data)
        return address

    inference, record, counter = place(struct.pack("<4I", 0, 1, 0, 3)), place(Lane().pack()), place(bytes(4))
    table = place(struct.pack("<2Q", record, place(Limiter(padded=0).pack())))

    def launch(stream: Stream, name: str, *args: int) -> None:
        function = module.function(name)
        raw = [arg.to_bytes(size, "little") for arg, size in zip(args, function.parameter_sizes, strict=True)]
        function.launch(stream, ONE, (resident.THREADS[name], 1, 1), 0, raw)

    with lane.capture() as capture:
        loop = capture.condition(1)
        with capture.loop(loop) as body:
            choice = body.condition()
            launch(body.stream, resident.GATE, inference, record, choice)
            for way in body.choose(choice, 2):
                with way as inner:
                    inner.stream.fill(counter, 0, 4, 1)
            launch(body.stream, resident.STEP, inference, record, loop, 3)
        launch(lane, resident.NOTIFY, inference, counter, host.address)
    launch(control, resident.HOLD, table, 1, 1)
    assert cu.word(record) == 0
    capture.graph.launch(lane)
    assert (lane.done, list(host.words)) == (False, [0, 0])
    launch(control, resident.RELEASE, table, 1, counter, host.address)
    assert cu.word(record) == ALL
    lane.synchronize()
    assert list(host.words) == [1, 1]


# --- the fake itself


def test_the_fake_takes_as_many_arguments_as_the_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    calls = [name[1:] for name, member in inspect.getmembers(FakeDriver) if name.startswith("_cu") and callable(member)]
    assert len(calls) > 50
    for name in calls:
        arguments = list(inspect.signature(getattr(FakeDriver, f"_{name}")).parameters.values())[1:]
        required = [argument for argument in arguments if argument.default is argument.empty]
        declared = getattr(real, name).__doc__.splitlines()[0].partition("(")[2].rpartition(")")[0]
        depth, commas = 0, 0
        for letter in declared:
            depth += (letter in "[(") - (letter in "])")
            commas += letter == "," and not depth
        assert len(required) == (commas + 1 if declared else 0), name
