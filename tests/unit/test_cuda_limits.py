"""Limits of lanes, in front of a GPU without a processor: who is held, by whom, and what that makes of inferences."""

from collections.abc import Callable, Mapping

import pytest
from cuda_device_support import (
    FAST,
    LONG,
    OTHER,
    SLOW,
    THREE,
    WEIGHTY,
    ended,
    limiter,
    limits,
    opened,
    record,
    request,
    until,
)
from fake_driver import CUresult, FakeDriver
from null_gpu import Exec
from null_kernels import EFFECTS
from strict_driver import Strict

from miriam.device.base import Limit, Run
from miriam.device.cuda.clock import HostClock
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.work import Work
from miriam.elastic.pauses import spans
from miriam.elastic.state import ALL, STAYS_AT, Limiter
from miriam.errors import DeviceError
from miriam.task import Task

SPANS = [(len(span), span.stop) for span in spans(len(LONG.program.launches))]
BOUND_US = 10 * 1.5 * len(LONG.program.launches)


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = Strict()
    fake.install(monkeypatch)
    fake.effects.update(EFFECTS)
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)  # the driver assembles
    return fake


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
@pytest.mark.parametrize("task", [FAST, WEIGHTY], ids=["no weights", "weights"])
def test_a_critical_request_costs_one_call_of_the_driver_and_one_for_its_weights(
    cu: FakeDriver, name: str, task: Task
) -> None:
    on = opened(name=name)
    on.submit(Run(request(task), 0, limits={1: 0}))  # makes the graphs
    ended(on)
    cu.launches.clear()
    for number, calls in enumerate((["cuGraphLaunch"], ["cuLaunchKernel", "cuGraphLaunch"]), 1):  # the second is behind
        before = len(cu.calls)
        on.submit(Run(request(task, number), 0, limits={1: 0}))
        assert cu.names()[before:] == calls + ["cuLaunchKernel"] * (task is WEIGHTY)
    assert len(ended(on)) == 2
    assert sum(run.name == "warm" for run in cu.launches) == 2 * (task is WEIGHTY)
    on.close()
    assert cu.leaks() == []


def test_weights_are_asked_for_beside_the_launches_and_hold_up_nothing_but_the_end(
    cu: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miriam.device.cuda.device._HUNG_US", 2e3)
    on, over = opened(), set[str]()
    cu.effects["warm"] = until(lambda: "warm" in over)
    for number in range(2):
        on.submit(run := Run(request(WEIGHTY, number), 0, limits={1: 0}))
        assert next(on.events(1e7)).run is run
        assert limits(cu, record(cu)) == ALL
    assert [run.name for run in cu.launches].count("warm") == 1  # the other one is behind it
    with pytest.raises(DeviceError, match="lane critical of cuda:0 does not end"):
        on.outputs()
    over.add("warm")
    cu.run()
    on.close()
    assert cu.leaks() == []


def test_a_lane_is_held_while_a_critical_run_lasts(cu: FakeDriver) -> None:
    on = opened()
    cu.effects["fast_0"] = lambda gpu, *_: seen.append(limits(gpu, record(gpu)))
    for sms in (0, 24):
        seen: list[int] = []
        on.submit(Run(request(FAST, sms), 0, limits={1: sms}))
        ended(on)
        assert seen == [sms]
        assert limits(cu, record(cu)) == ALL
    on.close()


class Told(HostClock):
    """A clock that shows what it is told."""

    now_us = 0.0  # type: ignore[assignment]


@pytest.mark.parametrize(("name", "stays"), [("cuda:0", [0, 1, 1, 0]), ("cuda:0/16", [0, 0, 0, 0])])
def test_what_is_interrupted_stays_where_critical_runs_are_far_apart(
    cu: FakeDriver, name: str, stays: list[int]
) -> None:
    clock = Told()
    on = opened(name=name, clock=clock)
    needed_us = 20 * 1.5 * len(SLOW.program.launches)
    found = []
    for share in (0.5, 1.2, 0.8, 0.3):
        if share == 0.3:
            clock.now_us += 5e6  # a rest
        for _ in range(40):
            clock.now_us += share * needed_us
            on.submit(Run(request(SLOW), 1, workers=8))
            on.submit(Run(request(FAST), 0, limits={1: 0}))
            ended(on)
        found.append(int.from_bytes(cu.memory.read(record(cu) + STAYS_AT, 4), "little"))
    assert found == stays
    on.close()


def company(on: CudaDevice, clock: Told, free_us: float, times: int = 40) -> None:
    """Critical runs, so far apart, beside inferences of a long program."""
    for _ in range(times):
        clock.now_us += free_us
        on.submit(Run(request(LONG), 1, workers=8))
        on.submit(Run(request(FAST), 0, limits={1: 0}))
        assert len(ended(on)) == 2


def launched(cu: FakeDriver) -> dict[Exec, int]:
    """How often each graph was."""
    return {each: each.launched for each in cu.handles.values() if isinstance(each, Exec)}


def loops(cu: FakeDriver, before: Mapping[Exec, int]) -> list[int]:
    """How many launches of the long program are in each loop of the graph that was launched since then."""
    (graph,) = [each.graph for each, count in launched(cu).items() if count > before.get(each, 0)]
    bodies = [node.bodies[0] for node in graph.nodes if node.bodies]
    return [sum(node.label.startswith("long_") for node in body.every()) for body in bodies]


def passed(cu: FakeDriver) -> list[tuple[int, int]]:
    """Of each pass, how many launches of the long program there were, and up to which one."""
    found, launches = [], 0
    for run in cu.launches:
        launches += run.name.startswith("long_")
        if run.name == "miriam_step":
            found.append((launches, run.args[3]))
            launches = 0
    cu.launches.clear()
    return found


@pytest.mark.parametrize(
    ("name", "often", "cut"), [("cuda:0", 0.3, True), ("cuda:0", 3.0, False), ("cuda:0/16", 0.3, False)]
)
def test_a_long_inference_is_cut_where_critical_runs_are_frequent(
    cu: FakeDriver, name: str, often: float, cut: bool
) -> None:
    clock = Told()
    on = opened(name=name, clock=clock)
    company(on, clock, 1e6, times=1)
    made = launched(cu).keys()
    company(on, clock, often * BOUND_US)
    cu.launches.clear()
    before = launched(cu)
    on.submit(Run(request(LONG), 1, workers=8))
    assert len(ended(on)) == 1
    assert len(SPANS) > 2
    assert passed(cu) == (SPANS if cut else [(200, 200)])
    assert loops(cu, before) == ([count for count, _ in SPANS] if cut else [] if name == "cuda:0/16" else [200])
    company(on, clock, 3.0 * BOUND_US)
    cu.launches.clear()
    on.submit(Run(request(LONG), 1, workers=8))
    assert len(ended(on)) == 1
    assert passed(cu) == [(200, 200)]
    assert launched(cu).keys() == made  # both graphs were made at once
    on.close()
    assert cu.leaks() == []


@pytest.mark.parametrize("at", range(len(SPANS)))
def test_who_is_interrupted_in_a_span_passes_over_its_launches_alone(cu: FakeDriver, at: int) -> None:
    clock = Told()
    on = opened(clock=clock)
    company(on, clock, 0.3 * BOUND_US)
    lane, steps = record(cu), 0

    def step(gpu: FakeDriver, *args: int) -> None:
        nonlocal steps
        EFFECTS["miriam_step"](gpu, *args)
        steps += 1
        if steps == at:
            gpu.set_word(lane, 0)

    cu.effects["miriam_step"] = step
    cu.set_word(lane, ALL if at else 0)
    cu.launches.clear()
    on.submit(Run(request(LONG), 1, workers=8))
    assert cu.launches[-1].name == "miriam_gate_resident"
    cu.set_word(lane, ALL)
    cu.run()
    assert len(ended(on)) == 1
    assert passed(cu) == [*SPANS[: at + 1], *SPANS[at:]]
    on.close()


def test_a_narrow_lane_is_cut_as_well(cu: FakeDriver) -> None:
    clock = Told()
    on = opened(clock=clock)
    company(on, clock, 0.3 * BOUND_US)
    on.submit(Limit(1, 8))
    cu.launches.clear()
    before = launched(cu)
    on.submit(Run(request(LONG), 1, workers=8))
    assert len(ended(on)) == 1
    assert passed(cu) == [span for span in SPANS for _ in range(2)]  # one at full width, in vain
    assert loops(cu, before) == [2 * count for count, _ in SPANS]
    on.close()


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_critical_run_takes_hold_once_and_between_two_the_lane_is_not_let_go(
    cu: FakeDriver, name: str, count: int
) -> None:
    on = opened(name=name)
    on.submit(Run(request(FAST), 0, limits={1: 0}))
    ended(on)
    seen: list[tuple[str, int]] = []

    def noted(name: str) -> Callable[..., None]:
        def effect(gpu: FakeDriver, *args: int) -> None:
            if name in EFFECTS:
                EFFECTS[name](gpu, *args)
            seen.append((name, limits(gpu, record(gpu))))

        return effect

    cu.effects |= {each: noted(each) for each in ("miriam_hold", "fast_0", "fast_1", "miriam_release")}
    for _ in range(2):
        cu.auto, before = False, len(cu.calls)
        runs = [Run(request(FAST, number), 0, limits={1: 0}) for number in range(count)]
        for run in runs:
            on.submit(run)
        assert cu.names()[before:] == ["cuGraphLaunch", *["cuLaunchKernel", "cuGraphLaunch"] * (count - 1)]
        cu.run()
        cu.auto = True
        assert ended(on) == runs
        kinds = [kind for kind, _ in seen]
        assert [kinds.count(kind) for kind in ("miriam_hold", "fast_0", "miriam_release")] == [count] * 3
        assert kinds.index("miriam_hold") == 0
        assert seen.pop() == ("miriam_release", ALL)
        assert {limit for _, limit in seen} == {0}
        seen.clear()
        assert limiter(cu) == Limiter(0, 0, ALL)
    on.close()


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
def test_a_paused_lane_waits_until_its_limit_rises(cu: FakeDriver, name: str) -> None:
    on = opened(name=name)
    on.submit(Limit(1, 0))
    on.submit(Run(request(SLOW), 1, workers=100))
    assert [event.run for event in on.events(2_000.0)] == []
    on.submit(Limit(1, None))
    cu.run()
    assert [run.request.task for run in ended(on)] == [SLOW]
    on.close()
    assert cu.leaks() == []


@pytest.mark.parametrize("queued", [False, True])
def test_a_critical_graph_that_is_not_launched_holds_nobody(cu: FakeDriver, queued: bool) -> None:
    on = opened()
    cu.auto = False
    runs = [Run(request(FAST, number), 0, limits={1: 0}) for number in range(3)]
    for run in runs[: 1 + queued]:
        on.submit(run)  # the graphs are made, and the lane is busy
    if not queued:
        cu.run()
        ended(on)
    cu.fail["cuGraphLaunch"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cuGraphLaunch failed"):
        on.submit(runs[2])
    del cu.fail["cuGraphLaunch"]
    cu.auto = True
    cu.run()
    ended(on)
    on.submit(slow := Run(request(SLOW), 1, workers=100))
    assert ended(on) == [slow]  # and is not held for ever
    on.close()
    assert cu.leaks() == []


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
@pytest.mark.parametrize("call", ["cuMemsetD32Async", "cuLaunchKernel"])
@pytest.mark.parametrize("last", [0, 8])
def test_a_critical_run_whose_limit_cannot_be_said_holds_nobody(
    cu: FakeDriver, name: str, call: str, last: int
) -> None:
    on = opened(name=name)
    for number, sms in enumerate((8, 0, 8)):
        on.submit(Run(request(FAST, number), 0, limits={1: sms}))
        ended(on)
    cu.fail[call] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceError, match=f"{call} failed"):
        on.submit(Run(request(FAST, 3), 0, limits={1: 0}))
    del cu.fail[call]
    on.submit(slow := Run(request(SLOW), 1, workers=8))
    assert ended(on) == [slow]
    on.submit(Run(request(FAST, 4), 0, limits={1: last}))
    ended(on)
    assert limiter(cu) == Limiter(0, last, ALL)
    on.close()
    assert cu.leaks() == []


def test_of_two_limits_that_hold_at_a_time_the_lower_counts(cu: FakeDriver) -> None:
    on, over = opened(THREE), set[str]()
    cu.effects["other_0"] = until(lambda: "upper" in over)
    cu.effects["fast_0"] = until(lambda: "middle" in over)
    on.submit(upper := Run(request(OTHER), 0, limits={2: 0}))
    assert limits(cu, record(cu)) == 0
    on.submit(middle := Run(request(FAST), 1, limits={2: 24}))
    assert limits(cu, record(cu)) == 0
    for run, limit in ((upper, 24), (middle, ALL)):
        over.add(on_lane := THREE[run.lane].name)
        cu.run()
        assert next(on.events(1e7)).run is run, on_lane
        assert limits(cu, record(cu)) == limit
    on.close()


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
def test_elastic_runs_hold_those_below_them_too(cu: FakeDriver, name: str) -> None:
    on = opened(THREE, name)
    on.submit(Limit(2, 8))
    below, seen = record(cu), []

    def step(gpu: FakeDriver, *args: int) -> None:
        EFFECTS["miriam_step"](gpu, *args)
        seen.append(limits(gpu, below))

    cu.effects["miriam_step"] = step
    on.submit(Limit(1, 0))  # it waits, and those below it too
    on.submit(run := Run(request(FAST), 1, workers=8, limits={2: 0}))
    assert limits(cu, below) == 0
    on.submit(slow := Run(request(SLOW), 2, workers=8))
    on.submit(Limit(1, None))
    cu.run()
    assert ended(on) == [run, slow]
    assert seen[0] == 0
    assert limits(cu, below) == 8
    on.close()
    assert cu.leaks() == []


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
@pytest.mark.parametrize("resizable", [True, False])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_lane_that_is_narrow_for_good_gets_on(
    cu: FakeDriver, monkeypatch: pytest.MonkeyPatch, name: str, resizable: bool, when: str
) -> None:
    monkeypatch.setattr(Work, "resizable", resizable)
    on = opened(name=name)
    on.submit(Limit(1, 8 if when == "before" else 0))
    on.submit(Run(request(SLOW), 1, workers=8))
    on.submit(Limit(1, 8))
    cu.run()
    assert len(ended(on)) == 1
    assert limits(cu, record(cu)) == 8
    on.close()


def test_a_limit_of_all_sms_is_none(cu: FakeDriver) -> None:
    on = opened(name="cuda:0/16")
    on.submit(Limit(1, 0))
    for sms, limit in ((15, 15), (16, ALL), (0, 0), (132, ALL)):
        on.submit(Limit(1, sms))
        assert limits(cu, record(cu)) == limit
    on.close()


def test_a_run_never_holds_one_that_it_follows(cu: FakeDriver) -> None:
    on, over = opened(), set[str]()
    cu.effects["fast_0"] = until(lambda: "first" in over)
    on.submit(Run(request(FAST), 0, limits={1: 0}))
    on.submit(slow := Run(request(SLOW), 1, workers=8))
    on.submit(Run(request(FAST, 1), 0, limits={1: 0}, after=(slow,)))
    on.submit(Run(request(FAST, 2), 0, limits={1: 0}))
    over.add("first")
    cu.run()
    assert len(ended(on)) == 4
    assert limits(cu, record(cu)) == ALL
    on.close()
