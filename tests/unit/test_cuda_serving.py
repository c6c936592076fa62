"""A GPU that serves: inputs and outputs, tasks that come and go, threads; in front of a GPU without a processor."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_serving_support import Served, affine, computes, served
from fake_driver import CUresult, FakeDriver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from null_kernels import EFFECTS
from strict_driver import Strict
from support import Profiles

import miriam
from miriam.device.base import Lane, Run
from miriam.device.cuda.clock import HostClock
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.dlpack import View
from miriam.device.cuda.driver import Gpu, Stream
from miriam.device.cuda.instance import Instance
from miriam.device.cuda.serving import ServingCuda
from miriam.device.cuda.transfer import Staged, Transfer
from miriam.device.cuda.watch import Watch
from miriam.errors import ClosedError, DeviceError, InputError
from miriam.program import Buffer, Pointer, Program, Role, Tensor
from miriam.task import Request, Task

FAST, SLOW = affine("fast", 8, 2), affine("slow", 40_000, 3)  # whose outputs are large
CRITICAL, NORMAL = Task("critical", FAST, 2), Task("normal", SLOW, 0)


def gpu() -> FakeDriver:
    fake = Strict()
    fake.effects.update(EFFECTS)
    for name, factor in (("fast", 2), ("slow", 3)):
        computes(fake, name, factor)
    return fake


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = gpu()
    fake.install(monkeypatch)
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)  # the driver assembles
    return fake


@pytest.fixture(params=["cuda:0", "cuda:0/16"])
def on(request: pytest.FixtureRequest, cu: FakeDriver) -> Iterator[Served]:
    with served(request.param) as device:
        for task in (CRITICAL, NORMAL):
            device.device.prepare(task)
        yield device
    gc.collect()
    assert cu.leaks() == []


def given_for(task: Task, value: float = 1.0) -> np.ndarray:
    (x,) = task.program.inputs
    return np.arange(x.shape[1], dtype=np.float32).reshape(x.shape) + np.float32(value)


def factor(task: Task) -> int:
    return 2 if task.program is FAST else 3


@pytest.mark.parametrize("stage", [True, False])
def test_each_request_gets_the_outputs_of_its_own_inputs(on: Served, stage: bool) -> None:
    for value in range(3):
        for task in (CRITICAL, NORMAL):
            x = given_for(task, value)
            (y,) = on.ask(task, x, stage=stage).outputs
            assert y.dtype == np.float32
            assert np.array_equal(y, factor(task) * x)


def test_what_was_staged_may_be_changed_by_its_owner(on: Served) -> None:
    x = given_for(CRITICAL)
    staged = on.device.stage(CRITICAL, [x])
    wanted = 2 * x
    x[:] = 0
    (y,) = (
        on.ask(CRITICAL, *staged, stage=False).outputs
        if False
        else on.answer(on.offer(CRITICAL, staged, stage=False)).outputs
    )
    assert np.array_equal(y, wanted)


def test_outputs_stay_what_they_were_whatever_runs_later(on: Served) -> None:
    answers = [(x, on.ask(NORMAL, x)) for x in (given_for(NORMAL, value) for value in range(4))]
    for x, request in answers:
        assert np.array_equal(request.outputs[0], 3 * x)
        assert not np.shares_memory(request.outputs[0], answers[-1][0])


def test_large_outputs_are_copied_by_who_looks_at_them(cu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, copy = [], Staged.results

    def results(staged: Staged) -> list[Any]:
        copied.append(threading.current_thread())
        return copy(staged)

    monkeypatch.setattr(Staged, "results", results)
    with miriam.Runtime("cuda:0", store=Profiles(), admission="off") as rt:
        slow = rt.load(SLOW, name="slow")
        x = given_for(NORMAL)
        assert np.array_equal(slow(x), 3 * x)
    assert set(copied) == {threading.current_thread()}


def test_outputs_outlive_their_task(on: Served) -> None:
    x = given_for(NORMAL)
    request = on.ask(NORMAL, x)
    on.device.forget(NORMAL)
    assert np.array_equal(request.outputs[0], 3 * x)
    with pytest.raises(ClosedError):
        on.device.stage(NORMAL, [x])
    on.device.prepare(NORMAL)


WRONG: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "shape": (lambda: [np.zeros((1, 9), np.float32)], "input x of fast is float32 of shape 1x9: give float32 of"),
    "dtype": (lambda: [np.zeros((1, 8), np.float64)], "input x of fast is float64 of shape 1x8"),
    "none": (list, "fast takes 1 inputs, and 0 were given"),
    "two": (lambda: [given_for(CRITICAL)] * 2, "takes 1 inputs, and 2"),
    "list": (lambda: [[0.0] * 8], "a list is no tensor"),
    "objects": (lambda: [np.array([[None] * 8])], "object"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_inputs_fail_alone(on: Served, kind: str) -> None:
    make, text = WRONG[kind]
    with pytest.raises(InputError, match=text):
        on.device.stage(CRITICAL, make())
    before = on.offer(CRITICAL, [given_for(CRITICAL, 5)])
    wrong = on.offer(CRITICAL, make(), stage=False)
    beside = on.offer(NORMAL, [given_for(NORMAL, 7)])
    assert isinstance(on.answer(wrong).error, InputError)
    assert wrong.outputs is None
    for request in (before, beside, on.ask(CRITICAL, given_for(CRITICAL, 9))):
        assert on.answer(request).error is None
        assert request.outputs is not None
    assert np.array_equal(before.outputs[0], 2 * given_for(CRITICAL, 5))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.data())
def test_any_layout_of_the_host_arrives_as_it_is(cu: FakeDriver, data: st.DataObject) -> None:
    """Strided, of another order, of the other byte order, read-only; into a program with strides of its own."""
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    kind = data.draw(st.sampled_from(["float16", "float32", "int64", "uint8", "bool"]))
    axes = data.draw(st.permutations(range(len(shape))))
    array = data.draw(arrays.arrays(kind, shape))
    steps = np.empty([shape[i] for i in axes], kind).transpose(np.argsort(axes)).strides
    strides = tuple(step // array.itemsize for step in steps)
    tensors = [Tensor(name, kind, shape, strides, Pointer(0, 32)) for name in ("x", "y")]
    size = 32 + tensors[0].span_bytes
    program = Program("net", "sm_90a", (), (), (Buffer("x", size, Role.INPUT),), (tensors[0],), (tensors[1],))
    wide = np.empty((*shape[:-1], 2 * shape[-1]), kind)
    wide[..., ::2] = array
    swapped = array.astype(array.dtype.newbyteorder())
    given_array = data.draw(st.sampled_from([array, np.asfortranarray(array), wide[..., ::2], swapped]))
    given_array.flags.writeable = False
    device = Gpu()
    transfer, instance, stream = Transfer(device, program), Instance(device, program), Stream()
    staged = transfer.stage([given_array])
    staged.feed(instance, stream)
    staged.fetch(instance, stream)
    (y,) = staged.done()
    assert y.flags.c_contiguous
    assert np.array_equal(y, array, equal_nan=array.dtype.kind == "f")
    for thing in (transfer, stream, instance, device):
        thing.close()
    assert cu.leaks() == []


class OnGpu(View):
    """A tensor of PyTorch on the null GPU."""

    gpu: Any
    made: list[int]

    def detach(self) -> OnGpu:
        return self

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def data_ptr(self) -> int:
        return self.address

    def new_empty_strided(self, shape: Any, strides: Any, dtype: str = "float32") -> OnGpu:
        return on_gpu(self.gpu, np.zeros(shape, dtype))

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> object:
        assert stream in self.gpu.handles  # it is told who waits
        return View.__dlpack__(self)


def on_gpu(cu: FakeDriver, array: np.ndarray) -> OnGpu:
    address = cu.memory.allocate(array.nbytes)
    cu.memory.write(address, array.tobytes())
    strides = tuple(step // array.itemsize for step in array.strides)
    made = OnGpu(address, array.dtype.name, array.shape, strides)
    object.__setattr__(made, "gpu", cu)
    return made


def test_tensors_on_the_gpu_stay_there(on: Served, cu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(float32="float32"))
    x = given_for(CRITICAL)
    tensor = on_gpu(cu, x)
    before = len(cu.calls)
    (y,) = on.ask(CRITICAL, tensor).outputs
    assert isinstance(y, OnGpu)
    assert cu.memory.read(y.address, x.nbytes) == (2 * x).tobytes()
    assert {"cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoH"}.isdisjoint(cu.names()[before:])
    for one in (tensor, y):
        cu.memory.free(one.address)


@pytest.mark.parametrize("goes_on", [True, False], ids=["serving", "benchmark"])
def test_lanes_on_parts_of_the_gpu_bring_inputs_and_outputs_there(cu: FakeDriver, goes_on: bool) -> None:
    device = (ServingCuda if goes_on else CudaDevice)("cuda:0", Profiles())
    device.open((Lane("critical", 1, sms=64), Lane("normal", sms=64)))
    requests = [Request(task, i, 0.0, inputs=[given_for(task, i)]) for i, task in enumerate([CRITICAL, NORMAL] * 3)]
    for request in requests:
        device.submit(Run(request, int(request.task is NORMAL), workers=64 if request.number > 3 else None))
    ends = [event.run.request for event in device.events(float("inf")) if event.run is not None]
    assert sorted(request.number for request in ends) == list(range(6))
    for request in requests:
        assert np.array_equal(request.outputs[0], factor(request.task) * given_for(request.task, request.number))
    device.close()
    gc.collect()
    assert cu.leaks() == []


def test_a_request_with_inputs_runs_in_whole_launches(cu: FakeDriver) -> None:
    """Parts of the program one after another are fine, blocks of one launch are not."""
    device = CudaDevice("cuda:0", Profiles())
    device.open((Lane("one"),))
    request = Request(CRITICAL, 0, 0.0, inputs=[given_for(CRITICAL)])
    for launch in range(2):
        device.submit(Run(request, 0, first=launch, last=launch + 1))
    ends = [event.run.first for event in device.events(float("inf")) if event.run is not None]
    assert ends == [0, 1]
    assert np.array_equal(request.outputs[0], 2 * given_for(CRITICAL))
    with pytest.raises(DeviceError, match="a shard of critical"):
        device.submit(Run(Request(CRITICAL, 1, 0.0, inputs=[given_for(CRITICAL)]), 0, blocks=(0, 2)))
    device.close()
    assert cu.leaks() == []


def test_threads_on_several_tasks_get_their_own_answers(on: Served, cu: FakeDriver) -> None:
    tasks = [Task(f"{name}-{i}", program, i % 3) for i, (name, program) in enumerate([("f", FAST), ("s", SLOW)] * 2)]
    wrong: list[object] = []

    def client(task: Task, seed: int) -> None:
        for turn in range(8):
            x = given_for(task, 100 * seed + turn)
            request = on.ask(task, x)
            if request.error or not np.array_equal(request.outputs[0], factor(task) * x):
                wrong.append((task.name, turn, request.error))

    for task in tasks:
        on.device.prepare(task)
    threads = [threading.Thread(target=client, args=(task, seed)) for seed, task in enumerate(tasks * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert wrong == []
    assert on.error is None


def test_tasks_come_and_go_while_others_run_and_leave_nothing_behind(on: Served, cu: FakeDriver) -> None:
    stop, answered = threading.Event(), [0]

    def client() -> None:
        while not stop.is_set():
            on.ask(CRITICAL, given_for(CRITICAL))
            answered[0] += 1

    thread = threading.Thread(target=client)
    thread.start()
    held: set[int] = set()
    for turn in range(6):
        computes(cu, "guest", 5)
        guest = Task("guest", affine("guest", 16, 5), turn % 3)
        on.device.prepare(guest)
        x = given_for(guest, turn)
        assert np.array_equal(on.ask(guest, x).outputs[0], 5 * x)
        on.device.forget(guest)
        if turn % 3 == 2:  # every level has been there
            held.add(sum(map(len, cu.memory.device.values())))
    stop.set()
    thread.join(60.0)
    assert answered[0] > 0
    assert len(held) == 1
    alive = [handle for handle in cu.handles.values() if handle.alive and b"guest" in getattr(handle, "code", b"")]
    assert alive == []


def test_a_name_that_is_taken_is_refused_and_its_owner_runs_on(on: Served) -> None:
    with pytest.raises(DeviceError, match="two tasks have the name 'critical'"):
        on.device.prepare(Task("critical", SLOW, 2))
    assert on.ask(CRITICAL, given_for(CRITICAL)).error is None


def test_a_task_that_cannot_be_loaded_leaves_nothing_behind(on: Served, cu: FakeDriver) -> None:
    on.ask(CRITICAL, given_for(CRITICAL))
    before = len(cu.leaks())
    guest = Task("guest", affine("guest", 16, 5))
    cu.fail["cuLibraryLoadData"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(DeviceError, match="cuLibraryLoadData failed"):
        on.device.prepare(guest)
    del cu.fail["cuLibraryLoadData"]
    assert len(cu.leaks()) == before
    assert on.ask(CRITICAL, given_for(CRITICAL)).error is None
    with pytest.raises(ClosedError):
        on.device.stage(guest, [given_for(guest)])


def test_launches_are_measured_once(on: Served, cu: FakeDriver) -> None:
    times = on.device.launch_us(FAST)
    before = len(cu.launches)
    assert on.device.launch_us(FAST) == times
    assert len(cu.launches) == before


def test_what_still_runs_cannot_be_forgotten(cu: FakeDriver) -> None:
    with served() as on:
        on.device.prepare(CRITICAL)
        on.ask(CRITICAL, given_for(CRITICAL))
        cu.auto = False
        request = on.offer(CRITICAL, [given_for(CRITICAL)])
        while not any(lane.flying for lane in on.device._lanes):
            pass
        with pytest.raises(DeviceError, match="critical still runs"):
            on.device.forget(CRITICAL)
        cu.auto = True
        cu.run()
        on.answer(request)
        on.device.forget(CRITICAL)
    assert cu.leaks() == []


def test_a_fault_of_the_device_ends_everything(cu: FakeDriver) -> None:
    on = Served()
    on.device.prepare(CRITICAL)
    on.start()
    on.ask(CRITICAL, given_for(CRITICAL))
    cu.fail["cuGraphLaunch"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(DeviceError, match="cuGraphLaunch failed"):
        on.ask(CRITICAL, given_for(CRITICAL))
    del cu.fail["cuGraphLaunch"]
    on.stop()
    gc.collect()
    assert cu.leaks() == []


class Later(HostClock):
    """The clock of a host, which may be put forward."""

    ahead_us = 0.0

    @property
    def now_us(self) -> float:
        return super().now_us + self.ahead_us


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Later:
    made = Later()
    monkeypatch.setattr("miriam.device.cuda.serving.HostClock", lambda: made)
    return made


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
@pytest.mark.parametrize("away_s", [11.0, 25.0, 3600.0])
def test_who_had_nothing_to_do_for_long_does_not_hang(cu: FakeDriver, clock: Later, name: str, away_s: float) -> None:
    on = Served(name)
    on.device.prepare(CRITICAL)

    def within(us: float) -> list[Request]:
        on.device.wake(clock.now_us + us)  # so that it looks for signs of life, whatever there is to do
        return list(on.coordinator.run(clock.now_us + us))

    def ends() -> list[Request]:
        """What has ended when something has, however slow this machine is."""
        return next((done for _ in range(2000) if (done := within(5e3))), [])

    for _ in range(3):
        first = on.offer(CRITICAL, [given_for(CRITICAL)])
        assert ends() == [first]
        clock.ahead_us += 1e6 * away_s
        cu.auto = False
        late = on.offer(CRITICAL, [given_for(CRITICAL, 3)])
        assert within(5e3) == []
        cu.auto = True
        cu.run()
        assert ends() == [late]
        assert np.array_equal(late.outputs[0], 2 * given_for(CRITICAL, 3))
        clock.ahead_us += 1e6 * away_s
    on.stop()


@pytest.mark.parametrize("away_s", [0.0, 25.0])
def test_what_hangs_is_found_also_after_a_long_rest(cu: FakeDriver, clock: Later, away_s: float) -> None:
    on = Served()
    on.device.prepare(CRITICAL)
    on.offer(CRITICAL, [given_for(CRITICAL)])
    assert len(list(on.coordinator.run(float("inf")))) == 1
    clock.ahead_us += 1e6 * away_s
    cu.auto = False
    on.offer(CRITICAL, [given_for(CRITICAL)])
    begun_us = clock.now_us

    def wait() -> None:
        for _ in range(10):
            assert list(on.coordinator.run(clock.now_us + 1e3)) == []
            clock.ahead_us += 4e6

    with pytest.raises(DeviceError, match="lane level 2: nothing has ended for 20 s; fast hangs"):
        wait()
    assert 20e6 < clock.now_us - begun_us < 30e6
    cu.auto = True
    cu.run()
    on.stop()


def _everything(cu: FakeDriver, name: str) -> int:
    """Requests with inputs in both lanes, in an order without time; the calls before the device is closed."""
    on = Served(name)
    try:
        for task in (CRITICAL, NORMAL):
            on.device.prepare(task)
        requests = [on.offer(task, [given_for(task)]) for task in (NORMAL, CRITICAL, NORMAL)]
        assert len(list(on.coordinator.run(float("inf")))) == 3
        assert all(np.array_equal(r.outputs[0], factor(r.task) * given_for(r.task)) for r in requests)
        on.device.forget(NORMAL)
    finally:
        calls = len(cu.calls)
        on.device.close()
    return calls


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
def test_whatever_call_fails_the_error_names_it_and_nothing_leaks(cu: FakeDriver, name: str) -> None:
    calls = _everything(cu, name)
    gc.collect()
    assert cu.leaks() == []
    moves = ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemHostAlloc", "cuGraphLaunch")
    found = {move: [at for at, call in enumerate(cu.names()[:calls]) if call == move] for move in moves}
    for at, call in [(at, call) for call, places in found.items() for at in {*places[:2], *places[-2:]}]:
        again = gpu()
        with pytest.MonkeyPatch.context() as patch:
            again.install(patch)
            again.fail_at = at
            with pytest.raises(DeviceError, match=f"{call} failed"):
                _everything(again, name)
            gc.collect()
        assert again.leaks() == [], f"call {at}, {call}"


def test_requests_without_inputs_copy_nothing(on: Served, cu: FakeDriver) -> None:
    on.answer(on.offer(CRITICAL, None))
    before = len(cu.calls)
    request = on.answer(on.offer(CRITICAL, None))
    assert request.outputs is None
    assert not [name for name in cu.names()[before:] if "Memcpy" in name]
    on.ask(CRITICAL, given_for(CRITICAL))


@pytest.fixture
def _greedy() -> Iterator[None]:
    """The interpreter goes to another thread only if the one that has it lets go."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e3)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_greedy")
def test_who_waits_for_a_word_lets_others_run() -> None:
    words = (ctypes.c_uint32 * 4)()
    watch = Watch(ctypes.addressof(words), 8, 2)
    asked = threading.Event()

    def other() -> None:
        asked.wait()
        words[2] = 7

    thread = threading.Thread(target=other)
    thread.start()
    asked.set()
    for _ in range(100_000):
        watch.wait([0, 0])
        if words[2]:
            break
    thread.join()
    assert words[2] == 7
    watch.ring()
    watch.wait([0, 7])  # it has rung: no waiting, whatever the words are


@pytest.mark.usefixtures("_greedy")
def test_while_the_gpu_works_other_threads_run(cu: FakeDriver) -> None:
    with served() as on:
        on.device.prepare(CRITICAL)
        on.ask(CRITICAL, given_for(CRITICAL))
        cu.auto = False
        request = on.offer(CRITICAL, [given_for(CRITICAL, 3)])
        while not any(lane.flying for lane in on.device._lanes):
            on.device.wake(0.0)
            threading.Event().wait(0.001)
        cu.auto = True  # this thread would never come here if the other one kept the interpreter
        cu.run()
        assert np.array_equal(on.answer(request).outputs[0], 2 * given_for(CRITICAL, 3))
