"""The GPU as a device of lanes, in front of a GPU without a processor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from gc import collect
from time import sleep
from typing import Any
from weakref import ref

import pytest
from fake_driver import CUresult, FakeDriver
from null_gpu import Exec
from null_kernels import EFFECTS
from strict_driver import Strict
from support import Profiles, program

from miriam.bench.arrivals import Closed, SeededTraffic, Uniform
from miriam.coordinator import View, coordinate
from miriam.device.base import Command, Event, EventKind, Lane, Limit, Run
from miriam.device.cuda.clock import HostClock
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.driver import HostMemory
from miriam.device.cuda.lane import CudaLane
from miriam.device.cuda.place import Place
from miriam.device.cuda.work import Codes, Work
from miriam.elastic.pauses import spans
from miriam.elastic.state import ALL, STAYS_AT, Limiter
from miriam.elastic.state import Lane as Record
from miriam.errors import DeviceError
from miriam.program import Kernel, Launch, Pointer, Scalar, Source
from miriam.task import Request, Task

FAST = Task("fast", program("fast"), 1)
SLOW = Task("slow", program("slow", launches=((300, 128), (64, 128), (500, 64))), 0)
LANES = (Lane("critical", 1), Lane("normal"))
_READING = replace(FAST.program.launches[0], args=(Pointer(1), Scalar(bytes(4))))
WEIGHTY = Task("weighty", replace(FAST.program, name="weighty", launches=(_READING,)), 1)
_PAIR = program("long", launches=((300, 128), (64, 128)))
LONG = Task("long", replace(_PAIR, launches=_PAIR.launches * 100), 0)
CLOSING = (
    "cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphExecDestroy", "cuGraphDestroy",
    "cuGreenCtxDestroy", "cuLibraryUnload", "cuDevicePrimaryCtxRelease", "cuCtxPopCurrent",
)  # fmt: skip
TRIED = ("cuDevSmResourceSplitByCount",)  # there is another way


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = Strict()
    fake.install(monkeypatch)
    fake.effects.update(EFFECTS)
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)  # the driver assembles
    return fake


def device(name: str = "cuda:0", **options: Any) -> CudaDevice:
    return CudaDevice(name, Profiles(FAST.program, SLOW.program), **options)


class Whole:
    """Every request at once; normal ones elastic, and held to ``sms`` SMs by critical ones."""

    name = "whole"

    def __init__(self, sms: int | None = None, lanes: Sequence[Lane] = LANES) -> None:
        self.lanes = tuple(lanes)
        self.limits: Mapping[int, int] = {} if sms is None else {1: sms}

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            if event.request.task.critical:
                yield Run(event.request, 0, limits=self.limits)
            else:
                yield Run(event.request, 1, workers=4096 if self.limits else None)

    def report(self) -> Mapping[str, float]:
        return {}


def serve(on: CudaDevice, policy: Whole) -> dict[str, int]:
    """How many requests of each task finished, of those that came in 20 ms."""
    traffic = SeededTraffic([(FAST, Uniform(500.0)), (SLOW, Closed(2))], 20_000.0, 0)
    try:
        done = coordinate(on, policy, traffic, 1e7)
    finally:
        on.close()
    assert all(r.start_us is not None and r.arrival_us <= r.start_us <= r.finish_us for r in done if r.finish_us)
    return {task.name: sum(r.task is task for r in done) for task in (FAST, SLOW)}


def opened(lanes: Sequence[Lane] = LANES, name: str = "cuda:0", **options: Any) -> CudaDevice:
    on = device(name, **options)
    on.open(lanes)
    return on


def request(task: Task, number: int = 0) -> Request:
    return Request(task, number, 0.0)


def ended(on: CudaDevice) -> list[Run]:
    """Runs of which the host hears until nothing is left to hear."""
    return [event.run for event in on.events(1e7) if event.run is not None]


def limits(cu: FakeDriver, at: int) -> int:
    return Record.unpack(cu.memory.read(at, 16)).limit


def record(cu: FakeDriver) -> int:
    """Where the words of the second lane lie: what the last hold named first."""
    table = [run for run in cu.launches if run.name == "miriam_hold"][-1].args[0]
    return int.from_bytes(cu.memory.read(table, 8), "little")


def limiter(cu: FakeDriver) -> Limiter:
    """What decides the limit of that lane."""
    table = [run for run in cu.launches if run.name == "miriam_hold"][-1].args[0]
    return Limiter.unpack(cu.memory.read(int.from_bytes(cu.memory.read(table + 8, 8), "little"), 16))


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
@pytest.mark.parametrize("sms", [None, 0, 8])
def test_every_request_is_served_and_nothing_is_left_behind(cu: FakeDriver, name: str, sms: int | None) -> None:
    done = serve(device(name), Whole(sms))
    assert done["fast"] >= 9
    assert done["slow"] > 0
    assert cu.leaks() == []


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


def test_a_kind_of_run_has_one_graph(cu: FakeDriver) -> None:
    on = opened()
    for graphs, sms in ((1, {}), (3, {1: 0}), (3, {1: 24})):  # with limits one that takes hold by itself, too
        for number in range(3):
            on.submit(Run(request(FAST, number), 0, limits=sms))
        assert cu.names().count("cuGraphInstantiate") == graphs
    on.close()


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


SPANS = [(len(span), span.stop) for span in spans(len(LONG.program.launches))]
BOUND_US = 10 * 1.5 * len(LONG.program.launches)


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


def test_in_a_partition_a_pass_that_stopped_is_followed_by_another(cu: FakeDriver) -> None:
    """Three passes until the step finds the inference complete; no graph there has a condition."""
    left = [3]

    def step(gpu: FakeDriver, inference: int, lane: int, loop: int, until: int) -> None:
        left[0] -= 1
        gpu.set_word(inference, until if left[0] == 0 else 1)

    cu.effects["miriam_step"] = step
    on = opened(name="cuda:0/16")
    on.submit(Run(request(SLOW), 1, workers=100))
    assert len(ended(on)) == 1
    assert sum(run.name == "miriam_step" for run in cu.launches) == 3
    assert "cuGraphConditionalHandleCreate" not in cu.names()
    on.close()


@pytest.mark.parametrize("sms", [64, 68])  # 132 are 16 groups of 8, and 4
def test_lanes_with_partitions_have_sms_of_their_own(cu: FakeDriver, sms: int) -> None:
    lanes = (Lane("critical", 1, sms=64), Lane("normal", sms=sms))
    assert serve(device(), Whole(lanes=lanes))["fast"] >= 9
    assert cu.names().count("cuGreenCtxCreate") == 2
    assert cu.leaks() == []
    with pytest.raises(DeviceError, match=r"partitions of 164 SMs"):
        opened((Lane("a", sms=100), Lane("b", sms=64)))


def test_outputs_are_compared_and_a_wrong_word_is_found(cu: FakeDriver) -> None:
    outputs = [0]

    def write(gpu: FakeDriver, at: int, *_: int) -> None:
        outputs[0] += 1
        gpu.memory.write(at + 64, bytes([outputs[0] % 2 if outputs[0] < 6 else 7]) * 4)

    on = opened(verify=True)
    cu.effects["fast_1"] = write  # a kernel that is wrong from the sixth inference on
    for number in range(8):
        on.submit(Run(request(FAST, number), 0))
        ended(on)
    found = on.outputs()
    on.close()
    assert found["fast"][0] == 8
    assert found["fast"][1] > 0


def test_programs_with_equal_kernels_share_their_code(cu: FakeDriver) -> None:
    codes = Codes()
    for _ in range(2):
        assert serve(CudaDevice("cuda:0", Profiles(FAST.program, SLOW.program), codes=codes), Whole())["fast"]
    loaded = [bytes(args[0]) for name, args in cu.calls if name == "cuLibraryLoadData"]
    assert sum(b"entry fast_0" in code for code in loaded) == 1
    codes.close()
    assert cu.leaks() == []


def test_equal_kernels_may_have_several_names(cu: FakeDriver) -> None:
    named = [
        replace(kernel, name=f"other_{i}", ptx=(kernel.ptx or "").replace(kernel.name, f"other_{i}"))
        for i, kernel in enumerate(FAST.program.kernels)
    ]
    other = Task("other", replace(FAST.program, name="other", kernels=tuple(named)))
    both = Task("both", replace(FAST.program, name="both", kernels=(named[0], FAST.program.kernels[0])))
    on = opened()
    for task in (FAST, other, both):
        on.submit(Run(request(task), 0))
        on.submit(Run(request(task), 1, workers=8))
    assert len(ended(on)) == 6
    on.close()
    assert cu.leaks() == []


def test_launches_that_were_never_measured_are_measured_now(cu: FakeDriver) -> None:
    on = CudaDevice("cuda:0", Profiles())
    times = on.launch_us(FAST.program)
    assert len(times) == 2
    assert min(times) > 0
    on.close()
    assert cu.leaks() == []


def _everything(cu: FakeDriver, name: str, lanes: Sequence[Lane]) -> int:
    """Every kind of command, in an order that does not depend on the time; the calls before the device is closed."""
    on = device(name, verify=True)
    try:
        on.open(lanes)
        on.submit(Limit(1, 0))
        on.submit(slow := Run(request(SLOW), 1, workers=100))
        on.submit(Run(request(FAST), 0, limits={1: 0}))
        on.submit(Run(request(FAST, 1), 0, limits={1: 24}))
        on.submit(Run(request(WEIGHTY), 0, limits={1: 0}))
        on.submit(Limit(1, None))
        ended(on)
        on.submit(whole := Run(request(SLOW, 1), 1, after=(slow,)))
        on.submit(Run(request(FAST, 2), 0, limits={1: None}, after=(whole,)))
        ended(on)
        for note in on.notes:  # what is not worth an error
            if " failed" in note:
                raise DeviceError(note)
    finally:
        calls = len(cu.calls)
        on.close()
    return calls


@pytest.mark.parametrize(
    ("name", "lanes"),
    [("cuda:0", LANES), ("cuda:0/16", LANES), ("cuda:0", (Lane("critical", sms=64), Lane("normal", sms=64)))],
    ids=["whole", "partition", "partitions"],
)
def test_whatever_call_fails_the_error_names_it_and_nothing_leaks(
    cu: FakeDriver, name: str, lanes: Sequence[Lane]
) -> None:
    calls = _everything(cu, name, lanes)
    assert cu.leaks() == []
    for at, call in enumerate(cu.names()[:calls]):
        if call in CLOSING:
            continue  # what cannot be given back stays
        again = Strict()
        again.effects.update(cu.effects)
        with pytest.MonkeyPatch.context() as patch:
            again.install(patch)
            again.fail_at = at
            with suppress(DeviceError) if call in TRIED else pytest.raises(DeviceError, match=f"{call} failed"):
                _everything(again, name, lanes)
        assert again.leaks() == [], f"call {at} of {calls}, {call}"


def test_a_program_without_code_is_refused_and_the_device_goes_on(cu: FakeDriver) -> None:
    kernel = replace(FAST.program.kernels[1], ptx=None, opaque="its code could not be read")
    closed = Task("closed", replace(FAST.program, name="closed", kernels=(FAST.program.kernels[0], kernel)))
    on = opened()
    first = Run(request(FAST), 0)
    on.submit(first)
    for run in (Run(request(closed), 0), Run(request(SLOW), 0, first=1, workers=8)):
        with pytest.raises(DeviceError, match=r"cannot run from its file|an elastic run is a whole program"):
            on.submit(run)
    on.submit(last := Run(request(FAST, 1), 0))
    assert ended(on) == [first, last]
    on.close()
    assert cu.leaks() == []


def test_tasks_with_one_name_are_refused_whatever_they_are(cu: FakeDriver) -> None:
    on = opened()
    on.submit(first := Run(request(FAST), 0))
    for lane in (0, 1):
        with pytest.raises(DeviceError, match="two tasks have the name 'fast'"):
            on.submit(Run(request(Task("fast", SLOW.program)), lane))
    assert ended(on) == [first]
    on.close()
    assert cu.leaks() == []


def test_two_tasks_of_one_program_have_memory_of_their_own(cu: FakeDriver) -> None:
    on = opened()
    runs = [Run(request(FAST), 0), Run(request(Task("other", FAST.program)), 1)]
    for run in runs:
        on.submit(run)
    assert set(ended(on)) == set(runs)
    inputs = [run.args[0] for run in cu.launches if run.name == FAST.program.kernels[0].name]
    assert len(set(inputs)) == len(inputs) == 2
    on.close()


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


def test_a_run_whose_graph_cannot_be_made_is_as_if_it_had_never_been(cu: FakeDriver) -> None:
    for name in ("cuda:0", "cuda:0/16"):
        on = opened(name=name)
        cu.fail["cuGraphInstantiate"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
        for run in (Run(request(FAST), 0, limits={1: 0}), Run(request(SLOW), 1, workers=8)):
            with pytest.raises(DeviceError, match="cuGraphInstantiate failed"):
                on.submit(run)
        del cu.fail["cuGraphInstantiate"]
        runs = [Run(request(FAST), 0, limits={1: 0}), Run(request(SLOW), 1, workers=8), Run(request(SLOW, 1), 1)]
        for run in runs:
            on.submit(run)
        assert ended(on) == runs
        assert limits(cu, record(cu)) == ALL
        on.close()
        assert cu.leaks() == []


def test_several_ends_at_once_are_told_one_by_one_even_by_who_asks_later(cu: FakeDriver) -> None:
    on = opened()
    runs = [Run(request(task, number), lane) for number in range(3) for lane, task in enumerate((FAST, SLOW))]
    for run in runs:
        on.submit(run)
    told = [next(on.events(1e7)).run for _ in runs]
    assert told[:3] == runs[::2]  # those of the lane with the higher priority come first
    assert told[3:] == runs[1::2]
    assert ended(on) == []
    assert all(run.request.finish_us is not None for run in runs)
    on.close()


def test_the_count_of_ends_may_begin_again(cu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(CudaLane):
        def __init__(self, lane: Lane, place: Place, host: HostMemory, number: int, sm_ids: list[int]) -> None:
            super().__init__(lane, place, host, number, sm_ids)
            self.heard = host.words[self.word] = 2**32 - 2
            place.gpu.write(self.counter, self.heard.to_bytes(4, "little"))

    monkeypatch.setattr("miriam.device.cuda.device.CudaLane", Old)
    on = opened()
    runs = [Run(request(FAST, number), 0) for number in range(4)]
    for run in runs[:3]:
        on.submit(run)
    assert ended(on) == runs[:3]
    on.submit(runs[3])
    assert ended(on) == runs[3:]
    on.close()


def test_nothing_is_told_after_the_end_however_much_there_is(cu: FakeDriver) -> None:
    on = opened()
    for number in range(10**5):
        on.offer(Request(FAST, number, 0.0))
    times = [0.0, *(event.time_us for event in on.events(5_000.0))]
    assert times == sorted(times)
    assert times[-1] < 5_000.0
    assert len(times) < 10**5
    sleep(5e-3)
    later = on.events(1e9)
    assert next(later).time_us >= times[-1]
    later.close()
    on.close()


def test_what_is_under_way_counts_as_busy(cu: FakeDriver) -> None:
    on = opened()
    cu.auto = False
    on.submit(Run(request(FAST), 0))
    assert list(on.events(2_000.0)) == []
    assert on.usage().busy_us >= 2_000.0
    cu.run()
    cu.auto = True
    assert len(ended(on)) == 1
    busy_us = on.usage().busy_us
    assert list(on.events(10_000.0)) == []
    assert on.usage().busy_us == busy_us
    assert on.usage().blocks == sum(step.blocks for step in FAST.program.launches)
    on.close()


def test_a_paused_lane_does_not_hang(cu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miriam.device.cuda.device._HUNG_US", 2e3)
    on = opened()
    on.submit(Limit(1, 0))
    on.submit(Run(request(SLOW), 1, workers=8))
    assert list(on.events(5_000.0)) == []
    cu.auto = False
    on.submit(Limit(1, None))
    assert list(on.events(6_000.0)) == []
    cu.auto = True
    cu.run()
    assert len(ended(on)) == 1
    on.close()


def test_a_gpu_that_fails_is_not_waited_for(cu: FakeDriver) -> None:
    on = opened()
    cu.auto = False
    on.submit(Run(request(FAST), 0))
    cu.fail["cuStreamQuery"] = CUresult.CUDA_ERROR_ILLEGAL_STATE
    with pytest.raises(DeviceError, match="cuStreamQuery failed"):
        ended(on)


def test_a_lane_that_hangs_is_named(cu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miriam.device.cuda.device._HUNG_US", 2e3)
    on = opened()
    cu.auto = False
    on.submit(Run(request(FAST), 0))
    with pytest.raises(DeviceError, match=r"lane critical: nothing has ended for .* fast hangs"):
        ended(on)
    with pytest.raises(DeviceError, match="lane critical of cuda:0 does not end"):
        on.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:x", "there is no GPU 'cuda:x': write cuda:0"),
        ("cuda:0/", "there is no GPU 'cuda:0/'"),
        ("cuda:0/0", "there is no GPU 'cuda:0/0'"),
        ("cuda:3", "there is no cuda:3, this machine has 1 GPUs"),
        ("cuda:0/200", "'cuda:0/200' asks for 200 SMs: NVIDIA H200 has 132"),
    ],
)
def test_a_device_that_is_not_there_is_named(cu: FakeDriver, name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        device(name)
    assert cu.leaks() == []


def test_commands_that_a_gpu_cannot_carry_out_are_refused(cu: FakeDriver) -> None:
    on = opened()
    with pytest.raises(DeviceError, match="an elastic run is a whole program, or a shard of one launch"):
        on.submit(Run(request(SLOW), 1, first=1, workers=8))
    with pytest.raises(DeviceError, match="one device object serves one run"):
        on.open(LANES)
    with pytest.raises(DeviceError, match="limit on lane 2, the device was opened with 2"):
        on.submit(Limit(2, 0))
    with pytest.raises(DeviceError, match="a limit of -1 SMs"):
        on.submit(Limit(1, -1))
    on.close()
    on.close()
    with pytest.raises(DeviceError, match="one device object serves one run"):
        on.open(LANES)
    with pytest.raises(DeviceError, match="has not been opened"):
        next(device().events(1.0))


def test_an_out_of_memory_error_leaves_what_was_there(cu: FakeDriver) -> None:
    on = opened()
    cu.fail["cuMemAlloc"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cuMemAlloc failed"):
        on.submit(Run(request(SLOW), 1))
    del cu.fail["cuMemAlloc"]
    on.submit(Run(request(FAST), 0))
    assert [run.request.task for run in ended(on)] == [FAST]
    on.close()
    assert cu.leaks() == []


OTHER = Task("other", program("other"), 2)
THREE = (Lane("upper", 2), Lane("middle", 1), Lane("normal"))


def until(released: Callable[[], bool]) -> Callable[..., Iterator[None]]:
    """A kernel that ends when it may."""

    def effect(*_: object) -> Iterator[None]:
        while not released():
            yield

    return effect


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


def test_runs_that_follow_the_same_ones_do_not_wait_for_each_other(cu: FakeDriver) -> None:
    """Two stages of two requests; the second ones meet on the GPU, or they would not end."""
    on = opened()
    both = [request(FAST), request(SLOW)]
    for name, other in (("fast_1", "slow_1"), ("slow_1", "fast_1")):
        cu.effects[name] = until(lambda other=other: any(run.name == other for run in cu.launches))
    cu.auto = False
    first = tuple(Run(each, lane, 0, 1) for lane, each in enumerate(both))
    second = tuple(Run(each, lane, 1, 2, after=first) for lane, each in enumerate(both))
    for run in (*first, *second):
        on.submit(run)
    cu.run()
    cu.auto = True
    told = ended(on)
    assert set(told[:2]) == set(first)  # the end of what comes first is told first
    assert set(told[2:]) == set(second)
    on.close()
    assert cu.leaks() == []


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
def test_a_run_follows_one_that_has_not_begun(cu: FakeDriver, name: str) -> None:
    on = opened(name=name)
    for lane, task in ((0, FAST), (1, SLOW)):  # nobody is paused while something is made
        on.submit(Run(request(task, 9), lane, workers=8 if lane else None))
        ended(on)
    on.submit(Limit(1, 0))
    cu.launches.clear()
    runs = [Run(request(SLOW, number), 1, workers=8) for number in range(2)]
    for run in runs:
        on.submit(run)
    for after in runs[::-1]:
        on.submit(follower := Run(request(FAST, len(runs)), 0, after=(after,)))
        runs.append(follower)
    assert list(on.events(2_000.0)) == []
    assert not any(run.name == "fast_0" for run in cu.launches)
    on.submit(Limit(1, None))
    cu.run()
    told = ended(on)
    assert sorted(map(runs.index, told)) == [0, 1, 2, 3]
    assert told.index(runs[2]) > told.index(runs[1])
    assert told.index(runs[3]) > told.index(runs[0])
    done = [run.name for run in cu.launches if run.name in ("fast_1", "miriam_step")]
    assert done == ["miriam_step"] * done.count("miriam_step") + ["fast_1"] * 2
    on.close()
    assert cu.leaks() == []


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


@pytest.mark.parametrize("lanes", [LANES, (Lane("critical", sms=64), Lane("normal", sms=64))], ids=["one", "two"])
def test_shards_of_a_launch_make_a_request(cu: FakeDriver, lanes: Sequence[Lane]) -> None:
    on = opened(lanes)
    own = request(SLOW)
    first = [Run(own, 1, blocks=(begin, begin + 100), workers=100) for begin in (0, 100, 200)]
    rest = Run(own, 1, first=1)
    for run in (*first, rest):
        on.submit(run)
    on.submit(Run(request(FAST), 0, blocks=(0, 64), workers=64, limits={1: 0}))
    assert len(ended(on)) == 5
    assert own.finish_us is not None
    assert limits(cu, record(cu)) == ALL
    on.close()
    assert cu.leaks() == []


def test_nothing_is_kept_of_partitions_that_are_closed(cu: FakeDriver) -> None:
    codes, partitions = Codes(), list[Any]()
    for _ in range(2):
        on = opened(name="cuda:0/16", codes=codes)
        on.submit(Run(request(SLOW), 1, blocks=(0, 100), workers=100, limits={0: 0}))
        assert len(ended(on)) == 1
        place = on._place
        assert place.partition is not None
        partitions.append(ref(place.partition))
        on.close()
    del on, place
    collect()
    assert [partition() for partition in partitions] == [None, None]
    codes.close()
    assert cu.leaks() == []


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
def test_copies_and_fills_run_in_any_way(cu: FakeDriver, name: str) -> None:
    sources = (Source.COPY, Source.FILL)
    memory = [Kernel(str(source), source, (1, 1, 1), 0, opaque="no code") for source in sources]
    eight = [Scalar((4 * 2**i).to_bytes(8, "little")) for i in range(4)]
    launches = (
        Launch(2, (1, 1, 1), (Pointer(2), eight[0])),
        Launch(0, (1, 1, 1), (Pointer(2), Pointer(1), eight[1])),
        Launch(1, (1, 1, 1), (Pointer(2), eight[0], Scalar((1).to_bytes(8, "little")), eight[2])),
    )
    mixed = replace(FAST.program, name="mixed", kernels=(*memory, FAST.program.kernels[0]), launches=launches)
    on = opened(name=name, verify=True)
    for number, workers in enumerate((None, 8, None)):
        on.submit(Run(request(Task("mixed", mixed), number), 1, workers=workers))
    assert len(ended(on)) == 3
    assert on.outputs() == {"mixed": (3, 0)}
    on.close()
    assert cu.leaks() == []


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
def test_nothing_is_kept_of_runs_that_are_over(cu: FakeDriver, name: str) -> None:
    on = opened(name=name)
    kept = []
    for number in range(5):
        slow = Run(request(SLOW, number), 1, workers=8 if number % 2 else None)
        runs = [slow, Run(request(FAST, number), 0, limits={1: 0}, after=(slow,))]
        kept += [ref(run) for run in runs]
        for run in runs:
            on.submit(run)
        assert len(ended(on)) == 2
    del run, runs, slow
    collect()
    assert not any(each() for each in kept)
    on.close()


def test_the_end_of_what_comes_first_is_told_first_whatever_is_heard_at_once(cu: FakeDriver) -> None:
    """Stages of two tasks that wait for each other; the host is away until all of them are over."""
    on = opened((Lane("a", 1), Lane("b")))
    requests = request(SLOW), request(replace(SLOW, name="other"))
    cu.auto = False
    before: tuple[Run, ...] = ()
    for stage in range(3):
        before = tuple(Run(one, lane, stage, stage + 1, after=before) for lane, one in enumerate(requests))
        for run in before:
            on.submit(run)
    cu.run()
    cu.auto = True
    told = [run.first for run in ended(on)]
    assert told == [0, 0, 1, 1, 2, 2]
    assert all(one.finish_us is not None for one in requests)
    on.close()
