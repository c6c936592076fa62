"""The GPU as a device of lanes, in front of a GPU without a processor."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from gc import collect
from time import sleep
from typing import Any
from weakref import ref

import pytest
from cuda_device_support import (
    FAST,
    LANES,
    SLOW,
    WEIGHTY,
    Whole,
    device,
    ended,
    limits,
    opened,
    record,
    request,
    serve,
    until,
)
from fake_driver import CUresult, FakeDriver
from null_kernels import EFFECTS
from strict_driver import Strict
from support import Profiles

from miriam.device.base import Lane, Limit, Run
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.driver import HostMemory
from miriam.device.cuda.lane import CudaLane
from miriam.device.cuda.place import Place
from miriam.device.cuda.work import Codes
from miriam.elastic.state import ALL
from miriam.errors import DeviceError
from miriam.program import Kernel, Launch, Pointer, Scalar, Source
from miriam.task import Request, Task

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


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
@pytest.mark.parametrize("sms", [None, 0, 8])
def test_every_request_is_served_and_nothing_is_left_behind(cu: FakeDriver, name: str, sms: int | None) -> None:
    done = serve(device(name), Whole(sms))
    assert done["fast"] >= 9
    assert done["slow"] > 0
    assert cu.leaks() == []


def test_a_kind_of_run_has_one_graph(cu: FakeDriver) -> None:
    on = opened()
    for graphs, sms in ((1, {}), (3, {1: 0}), (3, {1: 24})):  # with limits one that takes hold by itself, too
        for number in range(3):
            on.submit(Run(request(FAST, number), 0, limits=sms))
        assert cu.names().count("cuGraphInstantiate") == graphs
    on.close()


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


@pytest.mark.parametrize("name", ["cuda:0", "cuda:0/16"])
def test_a_shard_that_is_not_launched_holds_nobody(cu: FakeDriver, name: str) -> None:
    on = opened(name=name)
    shard = Run(request(FAST), 0, blocks=(0, 1), limits={1: 0})
    on.submit(shard)  # its code is loaded, and the lane's limit is known
    assert ended(on) == [shard]
    cu.fail["cuLaunchKernel"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cuLaunchKernel failed"):
        on.submit(Run(request(FAST, 1), 0, blocks=(0, 1), limits={1: 0}))
    del cu.fail["cuLaunchKernel"]
    on.submit(slow := Run(request(SLOW), 1, workers=100))
    assert ended(on) == [slow]
    on.submit(last := Run(request(FAST, 2), 0, blocks=(0, 1), limits={1: 0}))
    assert ended(on) == [last]
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
