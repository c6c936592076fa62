"""While the driver loads code, nothing on the GPU waits for the host; in front of a GPU without a processor."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from fake_driver import CUresult, FakeDriver
from null_kernels import EFFECTS
from strict_driver import Strict
from support import Profiles, program

from miriam.device.base import Lane, Limit, Run
from miriam.device.cuda.serving import ServingCuda
from miriam.elastic.state import ALL
from miriam.elastic.state import Lane as Record
from miriam.errors import DeviceError
from miriam.program import Pointer
from miriam.task import Request, Task

FAST = Task("fast", program("fast"), 1)
SLOW = Task("slow", program("slow", launches=((300, 128), (64, 128), (500, 64))), 0)
SOON_US = 3e3


class Open:
    """A device with a critical lane and one for elastic runs; both tasks have run there before."""

    def __init__(self, cu: FakeDriver, name: str) -> None:
        self.cu = cu
        self.device = ServingCuda(name, Profiles(FAST.program, SLOW.program))
        self.device.open((Lane("critical", 1), Lane("normal")))
        self.numbers = iter(range(1 << 20))

    def critical(self) -> Run:
        run = Run(Request(FAST, next(self.numbers), 0.0), 0, limits={1: 0})
        self.device.submit(run)
        return run

    def elastic(self) -> Run:
        run = Run(Request(SLOW, next(self.numbers), 0.0), 1, workers=8)
        self.device.submit(run)
        return run

    def warm(self) -> None:
        for one in (self.critical, self.elastic):
            assert self.ended(one())

    @property
    def limit(self) -> int:
        """What elastic runs may have now."""
        return Record.unpack(self.cu.memory.read(self.device._lanes[1].record, 16)).limit

    def ended(self, run: Run) -> bool:
        """Whether a run ends soon."""
        self.cu.run()
        return any(event.run is run for event in self.device.events(self.device.now_us + SOON_US))

    @contextmanager
    def limits(self, *calls: str) -> Iterator[dict[str, list[int]]]:
        """What elastic runs may have whenever the driver is called so."""
        found: dict[str, list[int]] = {call: [] for call in calls}

        def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def note(cu: FakeDriver, *args: Any) -> Any:
                found[name].append(self.limit)
                return call(cu, *args)

            return note

        with pytest.MonkeyPatch.context() as patch:
            for name in calls:
                patch.setattr(Strict, name, noted(name, getattr(Strict, name)))
            yield found

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """A block in which another thread loads."""
        begun, over = threading.Event(), threading.Event()
        errors: list[BaseException] = []

        def load() -> None:
            try:
                with self.device.loads():
                    begun.set()
                    assert over.wait(30.0)
            except BaseException as error:
                errors.append(error)
                begun.set()

        thread = threading.Thread(target=load)
        thread.start()
        assert begun.wait(30.0)
        try:
            yield
        finally:
            over.set()
            thread.join(30.0)
        assert errors == []


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = Strict()
    fake.effects.update(EFFECTS)
    fake.install(monkeypatch)
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)  # the driver assembles
    return fake


@pytest.fixture(params=["cuda:0", "cuda:0/16"])
def on(request: pytest.FixtureRequest, cu: FakeDriver) -> Iterator[Open]:
    made = Open(cu, request.param)
    made.warm()
    yield made
    made.device.close()
    gc.collect()
    assert cu.leaks() == []


whole = pytest.mark.parametrize("on", ["cuda:0"], indirect=True)  # in a partition the host enqueues each pass


@whole
def test_who_is_paused_goes_on_while_somebody_loads(on: Open) -> None:
    on.device.submit(Limit(1, 0))
    run = on.elastic()
    assert not on.ended(run)
    with on.elsewhere():
        assert on.limit == ALL
        assert on.ended(run)
        assert on.ended(on.elastic())
    assert on.limit == 0
    later = on.elastic()
    assert not on.ended(later)
    on.device.submit(Limit(1, None))
    assert on.ended(later)


def test_a_limit_that_is_set_while_somebody_loads_counts_behind_it(on: Open) -> None:
    with on.elsewhere():
        on.device.submit(Limit(1, 0))
        assert on.limit == ALL
    assert on.limit == 0
    with on.elsewhere():
        on.device.submit(Limit(1, None))
    assert on.limit == ALL


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
def test_the_other_thread_may_be_the_first_that_says_anything_to_a_lane(cu: FakeDriver, name: str) -> None:
    new = Open(cu, name)
    with new.elsewhere():
        new.device.submit(Limit(1, 8))
    assert new.limit == 8
    new.device.close()


def test_the_last_one_to_end_brings_limits_back(on: Open) -> None:
    on.device.submit(Limit(1, 0))
    with on.device.loads():
        with on.elsewhere():
            with on.device.loads(), on.elsewhere():
                assert on.limit == ALL
            assert on.limit == ALL
        assert on.limit == ALL
    assert on.limit == 0


def test_nobody_has_to_be_there_yet(cu: FakeDriver) -> None:
    device = ServingCuda("cuda:0", Profiles())
    before = len(cu.calls)
    with device.loads(), device.loads():
        pass
    assert len(cu.calls) == before
    device.close()


def test_loading_asks_nothing_of_the_driver_if_nobody_is_paused(on: Open) -> None:
    before = len(on.cu.calls)
    with on.elsewhere():
        pass
    assert len(on.cu.calls) == before


def test_loading_that_cannot_begin_pauses_nobody_for_good(on: Open) -> None:
    on.device.submit(Limit(1, 0))
    on.cu.fail["cuLaunchKernel"] = CUresult.CUDA_ERROR_ILLEGAL_STATE
    with pytest.raises(DeviceError, match="cuLaunchKernel failed"), on.device.loads():
        pass
    on.cu.fail.clear()
    with on.elsewhere():
        assert on.limit == ALL
    assert on.limit == 0


def test_a_block_that_fails_ends_all_the_same(on: Open) -> None:
    on.device.submit(Limit(1, 0))
    with pytest.raises(KeyError), on.device.loads():
        raise KeyError
    assert on.limit == 0


def calls(on: Open, runs: int) -> list[str]:
    """What critical runs ask of the driver, each but the first behind another one."""
    before = len(on.cu.calls)
    last = [on.critical() for _ in range(runs)][-1]
    after = len(on.cu.calls)
    assert on.ended(last)
    return on.cu.names()[before:after]


def test_a_critical_run_behind_another_one_takes_hold_inside_its_graph_while_somebody_loads(on: Open) -> None:
    seen: list[int] = []
    on.cu.effects["fast_0"] = lambda *_: seen.append(on.limit)
    for _ in range(2):
        assert calls(on, 2) == ["cuGraphLaunch", "cuLaunchKernel", "cuGraphLaunch"]
        with on.elsewhere():
            assert calls(on, 2) == ["cuGraphLaunch"] * 2
            assert on.limit == ALL
    assert seen == [0] * 8
    assert on.limit == ALL


def test_what_a_run_needs_is_made_while_nobody_is_paused(on: Open) -> None:
    on.device.submit(Limit(1, 0))
    ran: list[int] = []
    on.cu.effects["other_0"] = lambda *_: ran.append(on.limit)
    other = program("other")
    reading = [replace(launch, args=(Pointer(1), launch.args[1])) for launch in other.launches]
    task = Task("other", replace(other, launches=tuple(reading)), 1)
    streams = "_cuGreenCtxStreamCreate" if on.device.geometry.sms == 16 else "_cuStreamCreateWithPriority"
    with on.limits("_cuLibraryLoadData", "_cuMemAlloc", "_cuGraphInstantiate", streams) as made:
        for number, workers in enumerate((None, None, 8, 8)):
            run = Run(Request(task, number, 0.0), 0, workers=workers, limits={1: 0})
            on.device.submit(run)
            assert on.ended(run)
    assert all(made.values())
    assert {limit for limits in made.values() for limit in limits} == {ALL}
    assert ran == [0, 0]
    assert sum(run.name == "warm" for run in on.cu.launches) == 2


def test_what_has_run_before_lets_nobody_go_on(on: Open) -> None:
    on.device.submit(Limit(1, 0))
    runs = [on.elastic(), on.elastic()]
    assert on.ended(on.critical())
    assert not on.ended(runs[0])
    on.device.submit(Limit(1, None))
    assert on.ended(runs[1])


def test_loading_cannot_begin_between_hold_and_launch(on: Open) -> None:
    """Or the driver would wait for a lane that is held until the host can launch, which waits for the driver."""
    order: list[str] = []
    began = threading.Event()

    def load() -> None:
        with on.device.loads():
            order.append("loads")
            began.set()

    loader = threading.Thread(target=load)

    def hold(gpu: Any, *args: int) -> None:
        EFFECTS["miriam_hold"](gpu, *args)
        order.append("held")
        if args[2] == 1 and not loader.ident:
            loader.start()
            assert not began.wait(0.3)

    on.critical()  # the host takes hold for the one behind it
    on.cu.effects |= {"miriam_hold": hold, "fast_0": lambda *_: order.append("runs")}
    before = len(on.cu.calls)
    run = on.critical()
    assert on.cu.names()[before : before + 2] == ["cuLaunchKernel", "cuGraphLaunch"]
    loader.join(30.0)
    assert began.is_set()
    assert order == ["held", "runs", "loads"]
    assert on.ended(run)


def test_tasks_come_and_go_while_nobody_is_paused(on: Open) -> None:
    on.device.submit(Limit(1, 0))
    guest = Task("guest", program("guest"), 1)
    with on.limits("_cuLibraryLoadData", "_cuLibraryUnload", "_cuMemAlloc", "_cuMemFree") as made:
        on.device.prepare(guest)
        on.device.forget(guest)
    assert all(made.values())
    assert {limit for limits in made.values() for limit in limits} == {ALL}
    assert on.limit == 0
