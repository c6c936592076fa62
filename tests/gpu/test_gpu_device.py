# ruff: noqa: E402 - what is imported below may be missing
"""The device under every policy, with every output compared with those of the unmodified kernels; needs no torch."""

import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu_support import LENIENT, need_gpu

need_gpu()

from soak import CRITICAL, NORMAL, soak

from miriam import zoo
from miriam.bench.arrivals import Closed, SeededTraffic, Uniform
from miriam.coordinator import coordinate
from miriam.device.base import Lane, Limit, Run
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.work import Codes
from miriam.policy import NAMES, create
from miriam.policy.base import Setting
from miriam.task import Request, Task

pytestmark = LENIENT

_SECONDS = 0.5
_POLICIES = (*NAMES, "resident:8", "contract:1.3")
_DEVICES = ("cuda:0", "cuda:0/16")
_LANES = (Lane("critical", 2), Lane("middle", 1), Lane("normal"))
_FAST, _SLOW = Task("fast", zoo.load(CRITICAL), 1), Task("slow", zoo.load(NORMAL), 0)


@pytest.fixture(scope="module")
def codes() -> Iterator[Codes]:
    codes = Codes()
    yield codes
    codes.close()


@pytest.fixture(params=_DEVICES)
def on(request: pytest.FixtureRequest, codes: Codes) -> Iterator[CudaDevice]:
    device = CudaDevice(request.param, zoo.profiles(), codes=codes, verify=True)
    yield device
    device.close()


def _ended(on: CudaDevice) -> list[Run]:
    """Runs that end until none is left."""
    return [event.run for event in on.events(math.inf) if event.run is not None]


def _ended_within(on: CudaDevice, seconds: float) -> list[Run]:
    runs, begun = [], False
    on.wake(0.0)
    for event in on.events(math.inf):
        if event.run is not None:
            runs.append(event.run)
        elif begun:
            break
        else:
            begun = True
            on.wake(event.time_us + 1e6 * seconds)
    return runs


def _wrong(on: CudaDevice) -> dict[str, int]:
    found = on.outputs()
    assert all(compared for compared, _ in found.values())
    return {name: wrong for name, (_, wrong) in found.items()}


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("policy", _POLICIES)
def test_outputs_are_right_under_every_policy(codes: Codes, policy: str, device: str) -> None:
    for name, (served, compared, wrong) in soak(_SECONDS, policy, device, codes=codes).items():
        assert served, name
        assert compared, name
        assert not wrong, name


def test_outputs_of_a_long_inference_that_is_cut_are_right(codes: Codes) -> None:
    long = Task("long", zoo.load("resnet152-b1"), 0)
    on = CudaDevice("cuda:0", zoo.profiles(), codes=codes, verify=True)
    try:
        tasks = [_FAST, long]
        policy = create("resident", Setting(tasks, on.geometry, {t.name: on.launch_us(t.program) for t in tasks}))
        traffic = SeededTraffic([(_FAST, Uniform(1500.0)), (long, Closed(2))], 1e6, 0)
        served = {request.task.name for request in coordinate(on, policy, traffic, 1e6)}
        assert served == {"fast", "long"}
        assert on._lanes[1].pauses.cut
        assert not any(_wrong(on).values())
    finally:
        on.close()


def test_outputs_are_right_however_a_task_is_run(on: CudaDevice) -> None:
    """Whole, in parts on several lanes, elastic, in shards, while limits come and go."""
    on.open(_LANES)
    rng, last, sent = random.Random(0), (), []
    launches = _SLOW.program.launches
    for number in range(150):
        fast = Run(Request(_FAST, number, 0.0), 0, limits=rng.choice(({}, {1: 0, 2: 0}, {2: 8}, {1: 3, 2: None})))
        request = Request(_SLOW, number, 0.0)
        way, lane, other = rng.choice(("whole", "parts", "elastic", "shards")), rng.choice((1, 2)), rng.choice((1, 2))
        if way == "whole":
            runs = [Run(request, lane, after=last)]
        elif way == "elastic":
            runs = [Run(request, lane, workers=4096, limits={2: 0} if lane == 1 else {}, after=last)]
        elif way == "parts":
            cut = rng.randrange(1, len(launches))
            runs = [Run(request, lane, 0, cut, after=last)]
            runs.append(Run(request, other, cut, after=tuple(runs)))
        else:
            half = launches[0].blocks // 2
            blocks = ((0, half), (half, launches[0].blocks)) if half else ((0, launches[0].blocks),)
            runs = [
                Run(request, 1 + i, blocks=part, workers=part[1] - part[0], after=last) for i, part in enumerate(blocks)
            ]
            runs.append(Run(request, lane, 1, after=tuple(runs)))
        for command in (fast, *runs):
            on.submit(command)
            sent.append(command)
        last = (runs[-1],)
        if rng.random() < 0.3:
            on.submit(Limit(rng.choice((1, 2)), rng.choice((0, 5, None))))
            on.submit(Limit(1, None))
            on.submit(Limit(2, None))
        if number % 10 == 9:
            assert set(_ended(on)) == set(sent)
            sent, last = [], ()
    assert _wrong(on) == {"fast": 0, "slow": 0}


def test_a_paused_lane_makes_no_progress_and_goes_on(on: CudaDevice) -> None:
    on.open(_LANES)
    on.submit(Run(Request(_FAST, 0, 0.0), 0))  # what is made when it is first needed lets nobody be paused meanwhile
    assert len(_ended(on)) == 1
    runs = [Run(Request(_SLOW, number, 0.0), 2, workers=4096) for number in range(500)]
    for run in runs:
        on.submit(run)
    some = next(event.run for event in on.events(1e9))
    on.submit(Limit(2, 0))
    before = [some, *_ended_within(on, 0.05)]  # two that were nearly done may still end
    done = on.usage().blocks
    assert len(before) < len(runs)
    assert _ended_within(on, 0.1) == []
    assert on.usage().blocks == done
    on.submit(Run(Request(_FAST, 0, 0.0), 0))
    assert [run.request.task for run in _ended_within(on, 0.1)] == [_FAST]
    on.submit(Limit(2, None))
    assert [*before, *_ended(on)] == runs
    assert _wrong(on) == {"fast": 0, "slow": 0}


def test_a_narrow_lane_goes_on_and_a_paused_one_is_let_go_by_close(on: CudaDevice) -> None:
    on.open(_LANES)
    on.submit(Limit(2, 5))
    for number in range(5):
        on.submit(Run(Request(_SLOW, number, 0.0), 2, workers=4096))
    assert len(_ended(on)) == 5
    assert _wrong(on) == {"slow": 0}


@pytest.mark.parametrize("name", _DEVICES)
def test_what_is_paused_is_let_go_by_close(codes: Codes, name: str) -> None:
    for _ in range(2):
        device = CudaDevice(name, zoo.profiles(), codes=codes)
        device.open(_LANES)
        device.submit(Limit(2, 0))
        for number in range(3):
            device.submit(Run(Request(_SLOW, number, 0.0), 2, workers=4096))
        assert _ended_within(device, 0.05) == []
        device.close()


def test_lanes_with_sms_of_their_own(codes: Codes) -> None:
    lanes = (Lane("critical", 1, sms=64), Lane("normal", sms=64))
    device = CudaDevice("cuda:0", zoo.profiles(), codes=codes, verify=True)
    try:
        device.open(lanes)
        device.submit(Limit(1, 8))
        for number in range(20):
            slow = Run(Request(_SLOW, number, 0.0), 1, workers=4096 if number % 2 else None)
            device.submit(slow)
            device.submit(
                Run(Request(_FAST, number, 0.0), 0, limits={1: number % 3}, after=(slow,) if number % 5 else ())
            )
        assert len(_ended(device)) == 40
        assert _wrong(device) == {"fast": 0, "slow": 0}
    finally:
        device.close()


def _first_runs_beside_a_paused_one() -> None:
    """What is loaded and made while a gate waits on the GPU must not wait for that."""
    device = CudaDevice("cuda:0", zoo.profiles())
    device.open(_LANES)
    device.submit(Limit(2, 0))
    device.submit(Run(Request(_FAST, 0, 0.0), 2, workers=4096))
    assert _ended_within(device, 0.01) == []
    other = Task("other", zoo.load("gru-b1"), 1)
    device.submit(Run(Request(other, 0, 0.0), 0, limits={1: 0}))
    device.submit(Run(Request(other, 1, 0.0), 1, workers=4096))
    ended = _ended_within(device, 1.0)  # the paused one perhaps, since nobody is paused while something is loaded
    assert {run.lane for run in ended} >= {0, 1}
    device.submit(Limit(2, None))
    assert len(ended) + len(_ended(device)) == 3
    device.close()
    print("served")


def test_the_first_run_of_a_task_does_not_wait_for_a_paused_lane() -> None:
    code = "import test_gpu_device; test_gpu_device._first_runs_beside_a_paused_one()"
    there = Path(__file__).parent
    made = subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        cwd=there,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )  # a process of its own: one that waits in the driver cannot be woken
    assert "served" in made.stdout, made.stderr
