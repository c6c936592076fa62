"""The GPU as a device of lanes, in front of a GPU without a processor."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from time import sleep

import pytest
from fake_driver import CUresult, FakeDriver
from null_kernels import EFFECTS
from support import Profiles, program

from miriam.bench.arrivals import Closed, SeededTraffic, Uniform
from miriam.coordinator import View, coordinate
from miriam.device.base import Command, Event, EventKind, Lane, Limit, Run
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.driver import HostMemory
from miriam.device.cuda.lane import CudaLane
from miriam.device.cuda.place import Place
from miriam.device.cuda.work import Codes
from miriam.elastic.state import ALL
from miriam.elastic.state import Lane as Record
from miriam.errors import DeviceError
from miriam.task import Request, Task

FAST = Task("fast", program("fast"), 1)
SLOW = Task("slow", program("slow", launches=((300, 128), (64, 128), (500, 64))), 0)
LANES = (Lane("critical", 1), Lane("normal"))
CLOSING = (
    "cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphExecDestroy", "cuGraphDestroy",
    "cuGreenCtxDestroy", "cuLibraryUnload", "cuDevicePrimaryCtxRelease", "cuCtxPopCurrent",
)  # fmt: skip
TRIED = ("cuDevSmResourceSplitByCount",)  # there is another way


def _sms(gpu: FakeDriver, seen: int) -> None:
    for block in range(gpu.launches[-1].grid[0]):
        gpu.set_word(seen + 4 * block, block // 2)


@pytest.fixture
def cu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    fake.install(monkeypatch)
    fake.effects.update(EFFECTS)
    fake.effects["sms"] = _sms
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)  # the driver assembles
    return fake


def device(name: str = "cuda:0", **options: bool) -> CudaDevice:
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


def opened(lanes: Sequence[Lane] = LANES, name: str = "cuda:0", **options: bool) -> CudaDevice:
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


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
@pytest.mark.parametrize("sms", [None, 0, 8])
def test_every_request_is_served_and_nothing_is_left_behind(cu: FakeDriver, name: str, sms: int | None) -> None:
    done = serve(device(name), Whole(sms))
    assert done["fast"] >= 9
    assert done["slow"] > 0
    assert cu.leaks() == []


def test_a_critical_request_costs_one_call_of_the_driver(cu: FakeDriver) -> None:
    on = opened()
    on.submit(Run(request(FAST), 0, limits={1: 0}))  # makes the graph
    ended(on)
    before = len(cu.calls)
    on.submit(Run(request(FAST, 1), 0, limits={1: 0}))
    assert cu.names()[before:] == ["cuGraphLaunch"]
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


def test_between_two_critical_runs_the_lane_is_not_let_go(cu: FakeDriver) -> None:
    on = opened()
    on.submit(Run(request(FAST), 0, limits={1: 0}))
    ended(on)
    words: list[int] = []

    def release(gpu: FakeDriver, *args: int) -> None:
        EFFECTS["miriam_release"](gpu, *args)
        words.append(limits(gpu, record(gpu)))

    cu.effects["miriam_release"] = release
    cu.auto = False
    on.submit(Run(request(FAST, 1), 0, limits={1: 0}))
    on.submit(Run(request(FAST, 2), 0, limits={1: 0}))
    cu.run()
    cu.auto = True
    assert len(ended(on)) == 2
    assert words == [0, ALL]
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

    def step(gpu: FakeDriver, inference: int, lane: int, loop: int) -> None:
        left[0] -= 1
        gpu.set_word(inference, 3 if left[0] == 0 else 1)

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
        on.submit(Limit(1, None))
        ended(on)
        on.submit(whole := Run(request(SLOW, 1), 1, after=(slow,)))
        on.submit(Run(request(FAST, 2), 0, limits={1: None}, after=(whole,)))
        ended(on)
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
        again = FakeDriver()
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
    for number in range(10**4):
        on.offer(Request(FAST, number, 0.0))
    times = [event.time_us for event in on.events(1_000.0)]
    assert times == sorted(times)
    assert times[-1] < 1_000.0
    assert len(times) < 10**4
    sleep(5e-3)
    more = [event.time_us for event in on.events(2_000.0)]  # the clock has waited
    assert more[0] >= times[-1]
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
