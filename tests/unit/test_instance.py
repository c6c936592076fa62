"""A program on a device: its memory, its code, its launches."""

import pytest
from fake_driver import CUresult, FakeDriver, KernelRun
from support import program

from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.instance import Code, Instance
from miriam.errors import DeviceError
from miriam.program import Kernel, Launch, Pointer, Program, Scalar, Source, Tensor


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    fake.install(monkeypatch)
    return fake


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
        "cuLibraryLoadData", "cuMemAlloc", "cuMemAlloc", "cuMemAlloc", "cuMemcpyHtoD", "cuStreamSynchronize",
        "cuLibraryGetKernel", "cuKernelGetFunction", "cuFuncSetAttribute",
    ]  # fmt: skip
    _, w, arena = cu.memory.device
    assert bytes(cu.memory.device[w]) == toy.buffers[1].data
    cu.parameters["mixed_0"] = (8, 4)
    stream = Stream()
    cu.calls.clear()
    instance.enqueue(stream)
    assert cu.names() == ["cuLaunchKernel", "cuMemcpyDtoDAsync", "cuMemsetD32Async"]
    raw = (arena.to_bytes(8, "little"), bytes(4))
    assert cu.launches == [KernelRun("mixed_0", (64, 1, 1), (128, 1, 1), 64 * 1024, raw)]
    assert cu.calls[1][1] == (arena + 256, w + 16, 64, stream.handle)
    assert cu.calls[2][1] == (arena, 5, 16, stream.handle)
    cu.calls.clear()
    instance.close()
    instance.close()
    assert cu.names() == ["cuMemFree", "cuMemFree", "cuMemFree", "cuLibraryUnload"]
    assert cu.memory.device == {}


def test_inputs_go_in_and_outputs_come_out(cu: FakeDriver) -> None:
    toy = program()
    instance = Instance(Gpu(), toy)
    instance.write(toy.inputs[0], b"input".ljust(256))
    for size in (0, 255, 257):  # what lies behind the input belongs to others
        with pytest.raises(DeviceError, match=f"x of toy has 256 bytes, what was given {size}"):
            instance.write(toy.inputs[0], bytes(size))
    x, _, arena = cu.memory.device
    assert bytes(cu.memory.device[x][:5]) == b"input"
    cu.memory.device[arena][128:134] = b"output"
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
    x, w, arena = cu.memory.device
    assert bytes(cu.memory.device[w]) == toy.buffers[1].data
    assert any(cu.memory.device[x])
    assert any(cu.memory.device[arena][-16:])
    first = bytes(cu.memory.device[arena])
    instance.fill()
    assert bytes(cu.memory.device[arena]) == first


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
    assert cu.memory.device == {}


def test_a_part_of_a_program_runs_without_its_opaque_launches(cu: FakeDriver) -> None:
    instance = Instance(Gpu(), opaque(), partial=True)
    assert instance.every() == [0]
    assert [instance.runnable(i) for i in (0, 1)] == [True, False]
    assert [instance.blocks_per_sm(i) for i in (0, 1)] == [16, 1]
    instance.enqueue(Stream())
    assert [launch.name for launch in cu.launches] == ["dilated_0"]


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
