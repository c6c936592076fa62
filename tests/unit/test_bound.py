"""Programs whose graph and memory belong to somebody else: cut into parts, embedded, run where they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from cloning_driver import Cloning
from fake_driver import CUresult
from hypothesis import given
from hypothesis import strategies as st
from null_gpu import Graph
from null_kernels import EFFECTS
from support import Profiles, program

from miriam.device.base import Lane, Run
from miriam.device.cuda.bound import Parts
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.driver import Event, Gpu, Module, Stream
from miriam.device.cuda.instance import Instance
from miriam.errors import DeviceError
from miriam.program import Buffer, Kernel, Launch, Pointer, Program, Role, Source, Tensor
from miriam.task import Request, Task


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> Cloning:
    return fake(monkeypatch)


def fake(monkeypatch: pytest.MonkeyPatch) -> Cloning:
    driver = Cloning()
    driver.install(monkeypatch)
    return driver


class Foreign:
    """What somebody else captured: kernels of his libraries, and one of ours, that he loaded himself."""

    def __init__(self, cu: Cloning, names: Sequence[str]) -> None:
        self.gpu = Gpu()
        self.addresses = [self.gpu.allocate(64), self.gpu.allocate(64)]
        self.gpu.write(self.addresses[0], bytes(range(64)))
        self.module, self.stream = Module(b""), Stream(priority=-1)
        with self.stream.capture() as capture:
            for name in names:
                self.module.function(name).launch(self.stream, (1, 1, 1), (32, 1, 1), 0, [])
        self.captured = capture.graph
        (self.whole,) = [handle for handle in cu.handles.values() if isinstance(handle, Graph)]
        self.parts = Parts(int(self.whole))
        kernels = [Kernel(name, Source.LIBRARY, (32, 1, 1), 8, opaque="a library kernel") for name in names]
        inputs = (Tensor("input0", "float16", (4, 8), (8, 1), Pointer(0)),)
        self.program = Program(
            "live", "sm_90a", tuple(kernels), tuple(Launch(i, (1, 1, 1)) for i in range(len(names))),
            (Buffer("input0", 64, Role.INPUT), Buffer("arena1", 64, Role.INTERMEDIATE)), inputs,
        )  # fmt: skip
        self.graph = self.parts.graph

    def close(self) -> None:
        for thing in (self.parts, self.captured, self.stream, self.module):
            thing.close()
        for address in self.addresses:
            self.gpu.free(address)
        self.gpu.close()


NAMES = ["a", "b", "c", "d", "e"]


def ran(cu: Cloning) -> list[tuple[str, int]]:
    found = [(run.name, run.priority) for run in cu.launches]
    cu.launches.clear()
    return found


def test_a_bound_program_is_embedded_unmodified_with_the_priority_of_the_stream(cu: Cloning) -> None:
    live = Foreign(cu, NAMES)
    instance, stream = Instance(live.gpu, live.program, bound=live), Stream(priority=-4)
    with stream.capture() as capture:
        live.module.function("before").launch(stream, (1, 1, 1), (32, 1, 1), 0, [])
        instance.enqueue(stream)
        live.module.function("behind").launch(stream, (1, 1, 1), (32, 1, 1), 0, [])
    assert cu.launches == []
    capture.graph.launch(stream)
    assert ran(cu) == [(name, -4) for name in ["before", *NAMES, "behind"]]
    live.captured.launch(stream)
    assert ran(cu) == [(name, -1) for name in NAMES]  # what was captured stays as it is
    for thing in (capture.graph, stream, instance, live):
        thing.close()
    assert cu.leaks() == []


@given(st.lists(st.integers(0, 4), max_size=8))
def test_any_launches_run_in_the_order_that_is_asked_for(launches: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        cu = fake(patch)
        live = Foreign(cu, NAMES)
        instance, stream = Instance(live.gpu, live.program, bound=live), Stream()
        wanted = [NAMES[i] for i in launches]
        for _ in range(2):
            instance.enqueue(stream, launches)
            assert [name for name, _ in ran(cu)] == wanted
        with stream.capture() as capture:
            instance.enqueue(stream, launches)
        capture.graph.launch(stream)
        assert [name for name, _ in ran(cu)] == wanted
        for thing in (capture.graph, stream, instance, live):
            thing.close()
        assert cu.leaks() == []


def test_branches_stay_branches(cu: Cloning) -> None:
    gpu, module, stream = Gpu(), Module(b""), Stream()
    side, fork, joint = stream.sibling(), Event(timed=False), Event(timed=False)
    with stream.capture() as capture:
        fork.record(stream)
        side.wait(fork)
        module.function("side").launch(side, (1, 1, 1), (32, 1, 1), 0, [])
        joint.record(side)
        module.function("main").launch(stream, (1, 1, 1), (32, 1, 1), 0, [])
        stream.wait(joint)
    (whole,) = [handle for handle in cu.handles.values() if isinstance(handle, Graph)]
    parts = Parts(int(whole))
    part = cu.handles[parts.graph()]
    assert [node.before for node in part.nodes] == [(), ()]
    assert parts.graph() == int(part)  # made once
    assert parts.graph(priority=-2) != int(part)
    for thing in (parts, capture.graph, joint, fork, side, stream, module, gpu):
        thing.close()
    assert cu.leaks() == []


def test_nodes_that_do_nothing_are_no_launches_and_keep_the_order(cu: Cloning) -> None:
    live = Foreign(cu, NAMES)
    live.whole.nodes[2].kernel, live.whole.nodes[2].label = None, "joint"
    parts = Parts(int(live.whole))
    part = cu.handles[parts.graph(1, 3)]
    assert [node.label for node in part.nodes] == ["b", "joint", "d"]
    assert part.nodes[2].before == (part.nodes[1],)
    with pytest.raises(DeviceError, match="there are no launches 0 to 4: the graph has 4"):
        parts.graph(0, 5)
    parts.close()
    live.close()


@pytest.mark.parametrize("part", [(-1, 2), (2, 2), (3, 1), (0, 6)])
def test_launches_that_are_not_there(cu: Cloning, part: tuple[int, int]) -> None:
    live = Foreign(cu, NAMES)
    with pytest.raises(DeviceError, match=f"there are no launches {part[0]} to {part[1] - 1}: the graph has 5"):
        live.graph(*part)
    live.close()


def test_memory_stays_where_and_as_it_is(cu: Cloning) -> None:
    live = Foreign(cu, NAMES)
    instance = Instance(live.gpu, live.program, bound=live)
    assert instance.address(Pointer(0, 6)) == live.addresses[0] + 6
    instance.fill(3)
    assert instance.read(live.program.inputs[0], 64) == bytes(range(64))
    assert instance.every() == [0, 1, 2, 3, 4]
    instance.close()
    assert live.gpu.read(live.addresses[0], 64) == bytes(range(64))
    live.close()
    assert cu.leaks() == []


def test_a_program_of_somebody_else_is_refused(cu: Cloning) -> None:
    live = Foreign(cu, NAMES)
    with pytest.raises(DeviceError, match="other is not the program of what it is bound to, live"):
        Instance(live.gpu, dataclasses.replace(live.program, name="other"), bound=live)
    with pytest.raises(DeviceError, match="live cannot run from its file"):
        Instance(live.gpu, live.program)
    live.close()


def test_a_live_program_is_one_task(cu: Cloning) -> None:
    cu.effects.update(EFFECTS)
    live = Foreign(cu, NAMES)
    on = CudaDevice("cuda:0", Profiles(program("p")), bound=[live])
    on.open((Lane("critical", 1), Lane("normal")))
    on.submit(run := Run(Request(Task("one", live.program, 1), 0, 0.0), 0))
    with pytest.raises(DeviceError, match=r"two and one are one live program, live, .*: make one for each task"):
        on.submit(Run(Request(Task("two", live.program), 0, 0.0), 1))
    assert [event.run for event in on.events(1e7)] == [run]
    on.close()
    live.close()
    assert cu.leaks() == []


def test_what_the_driver_refuses_leaves_nothing_behind(cu: Cloning) -> None:
    live = Foreign(cu, NAMES)
    cu.fail["cuGraphNodeFindInClone"] = CUresult.CUDA_ERROR_INVALID_VALUE
    for _ in range(2):
        with pytest.raises(DeviceError, match="cuGraphNodeFindInClone failed"):
            live.graph(0, 2)
    del cu.fail["cuGraphNodeFindInClone"]
    assert [node.label for node in cu.handles[live.graph(0, 2)].nodes] == ["a", "b"]
    live.close()
    assert cu.leaks() == []
