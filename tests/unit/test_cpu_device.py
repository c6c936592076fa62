import math
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miriam.coordinator import Coordinator, View, coordinate
from miriam.device import devices
from miriam.device.base import Command, Event, EventKind, Lane, Limit, Run, Wake
from miriam.device.cpu import CpuDevice, cores
from miriam.errors import CompileError, DeviceError, InputError, ModelError, PolicyError
from miriam.frontend.chain import Chain
from miriam.policy import NAMES, Setting, create
from miriam.program import Program, Source
from miriam.task import Request, Task

EXAMPLE = np.arange(4.0)
POLICIES = [name for name in NAMES if name != "partition"]


class Steps:
    """A chain of functions that write down that they are called, and do to an array what cannot be undone."""

    def __init__(self, name: str, count: int, log: list[tuple[str, int]] | None = None) -> None:
        self.hook: Callable[[int], None] = lambda number: None
        self.log: list[tuple[str, int]] = []
        self.chain = Chain.of([self._step(name, i) for i in range(count)], EXAMPLE, name=name)
        self.task = Task(name, self.chain.program)
        self.log = [] if log is None else log

    def _step(self, name: str, number: int) -> Callable[[Any], Any]:
        def step(x: Any) -> Any:
            self.log.append((name, number))
            self.hook(number)
            return np.sin(x * (number + 2)) + number

        return step

    def asked(self, number: int = 0, at_us: float = 0.0) -> Request:
        return Request(self.task, number, at_us, inputs=[EXAMPLE + number])

    def expected(self, number: int) -> Any:
        x = EXAMPLE + number
        for i in range(len(self.chain.steps)):
            x = np.sin(x * (i + 2)) + i
        return x


class Script:
    """Requests that are there from the start."""

    def __init__(self, *requests: Request) -> None:
        self._requests = requests

    def start(self) -> Iterable[Request]:
        return self._requests

    def after(self, finished: Request) -> None:
        return None


class Hand:
    """A policy made of a function."""

    name = "by hand"

    def __init__(self, decide: Callable[[Event, View], Iterable[Command]], *lanes: Lane) -> None:
        self.decide, self.lanes = decide, lanes or (Lane("high", 1), Lane("low", 0))

    def report(self) -> dict[str, float]:
        return {}


def arriving(answer: Callable[[Request], Iterable[Command]], *lanes: Lane) -> Hand:
    """A policy that has something to say to arrivals only."""
    return Hand(lambda event, view: answer(event.request) if event.kind is EventKind.ARRIVED else (), *lanes)


def setting(device: CpuDevice, *tasks: Task) -> Setting:
    launch_us = {task.name: device.launch_us(task.program) for task in tasks}
    return Setting(tasks, device.geometry, launch_us, device.command_us)


# What runs


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40)
@given(
    tasks=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=4),
    requests=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300)), min_size=1, max_size=8),
)
def test_every_step_runs_once_and_in_order_and_gives_what_it_gives_alone(
    policy: str, tasks: list[tuple[int, int]], requests: list[tuple[int, int]]
) -> None:
    made = [Steps(f"task {i}", steps) for i, (_, steps) in enumerate(tasks)]
    for one, (level, _) in zip(made, tasks, strict=True):
        one.task = replace(one.task, criticality=level)
    device = CpuDevice(bound=[one.chain for one in made])
    of = [made[i % len(made)] for i, _ in requests]
    offered = [one.asked(n, float(at)) for n, (one, (_, at)) in enumerate(zip(of, requests, strict=True))]
    chosen = create(policy, setting(device, *(one.task for one in made)))
    done = coordinate(device, chosen, Script(*offered), math.inf)
    assert sorted(request.number for request in done) == list(range(len(requests)))
    for number, (one, request) in enumerate(zip(of, offered, strict=True)):
        assert request.outputs is not None
        np.testing.assert_array_equal(request.outputs[0], one.expected(number))  # each step once, and in order
        assert request.arrival_us <= request.start_us <= request.finish_us  # type: ignore[operator]
    for one in made:
        asked = of.count(one)
        assert sorted(one.log) == sorted((one.task.name, i) for i in range(len(one.chain.steps)) for _ in range(asked))
    assert device.usage().blocks == sum(len(one.chain.steps) for one in of)


@given(
    low=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    high=st.dictionaries(st.integers(0, 12), st.integers(1, 3), min_size=1, max_size=4),
)
def test_a_higher_lane_with_work_waits_for_one_step_at_most(low: list[int], high: dict[int, int]) -> None:
    """High requests come while a step of a low one runs: the next step of a low one is after their end."""
    log: list[tuple[str, int]] = []
    lows, highs = [Steps("low", count, log) for count in low], [Steps("high", count, log) for count in range(1, 4)]
    device = CpuDevice(bound=[one.chain for one in (*lows, *highs)])
    waiting = 0

    def on_low(number: int) -> None:
        nonlocal waiting
        assert waiting == 0, "a step of a low request ran while a high one was there"
        if steps := high.pop(sum(name == "low" for name, _ in log) - 1, 0):
            waiting += steps
            device.offer(highs[steps - 1].asked(len(log)))

    def on_high(number: int) -> None:
        nonlocal waiting
        waiting -= 1

    for hook, some in ((on_low, lows), (on_high, highs)):
        for one in some:
            one.hook = hook
    hand = arriving(lambda request: [Run(request, int(request.task.name == "low"))])
    coordinate(device, hand, Script(*(one.asked(-1 - i) for i, one in enumerate(lows))), math.inf)
    assert sum(name == "low" for name, _ in log) == sum(low)
    assert waiting == 0


def test_lanes_of_equal_priority_take_turns() -> None:
    a = Steps("a", 3)
    b = Steps("b", 3, a.log)
    hand = arriving(lambda request: [Run(request, int(request.task.name == "b"))], Lane("one"), Lane("other"))
    coordinate(CpuDevice(bound=[a.chain, b.chain]), hand, Script(a.asked(0), b.asked(1)), math.inf)
    assert [name for name, _ in a.log] == ["a", "b"] * 3


def test_runs_of_one_lane_go_one_after_another() -> None:
    one = Steps("one", 2)
    device = CpuDevice(bound=[one.chain])
    done = coordinate(device, arriving(lambda r: [Run(r, 0)]), Script(one.asked(0), one.asked(1)), math.inf)
    assert [request.number for request in done] == [0, 1]
    assert [number for _, number in one.log] == [0, 1, 0, 1]


def test_a_limit_of_zero_pauses_a_lane_and_no_other_number_does() -> None:
    one = Steps("one", 2)
    seen: list[str] = []

    def decide(event: Event, view: View) -> Iterable[Command]:
        seen.append(event.kind.name)
        if event.kind is EventKind.ARRIVED:
            yield Limit(0, 0)
            yield Run(event.request, 0)
            yield Wake(2000.0)
        elif event.kind is EventKind.TICK:
            assert not one.log
            yield Limit(0, 1)

    done = coordinate(CpuDevice(bound=[one.chain]), Hand(decide), Script(one.asked()), math.inf)
    assert seen == ["ARRIVED", "TICK", "FINISHED"]
    assert done[0].start_us >= 2000.0  # type: ignore[operator]


def test_a_request_is_paused_between_two_steps_and_goes_on_where_it_was() -> None:
    one = Steps("one", 3)
    device = CpuDevice(bound=[one.chain])
    one.hook = lambda number: device.submit(Limit(0, 0)) if number == 1 else None
    coordinator = Coordinator(device, arriving(lambda request: [Run(request, 0)]))
    device.offer(request := one.asked())
    assert list(coordinator.run(math.inf)) == []  # nothing happens without a command, so nobody waits for it
    assert [number for _, number in one.log] == [0, 1]
    device.submit(Limit(0, None))
    assert list(coordinator.run(math.inf)) == [request]
    assert [number for _, number in one.log] == [0, 1, 2]
    np.testing.assert_array_equal(request.outputs[0], one.expected(0))


def test_a_run_limits_other_lanes_from_its_start_to_its_end_whatever_their_priority() -> None:
    low = Steps("low", 3)
    high = Steps("high", 2, low.log)
    device = CpuDevice(bound=[low.chain, high.chain])
    low.hook = lambda number: device.offer(high.asked(1)) if number == 0 else None
    hand = arriving(lambda r: [Run(r, 1, limits={0: 0}) if r.task.name == "low" else Run(r, 0)])
    coordinate(device, hand, Script(low.asked()), math.inf)
    assert [name for name, _ in low.log] == ["low"] * 3 + ["high"] * 2


def test_a_run_starts_after_the_runs_that_it_waits_for() -> None:
    one = Steps("one", 4)

    def in_pieces(request: Request) -> Iterable[Command]:
        first = Run(request, 1, 0, 2)
        yield first
        second = Run(request, 0, 2, 3, after=(first,))
        yield second
        yield Run(request, 1, blocks=(0, 1), first=3, after=(second,))

    done = coordinate(CpuDevice(bound=[one.chain]), arriving(in_pieces), Script(one.asked(5)), math.inf)
    np.testing.assert_array_equal(done[0].outputs[0], one.expected(5))


def test_steps_that_would_run_out_of_their_order_are_an_error() -> None:
    one = Steps("one", 2)
    hand = arriving(lambda request: [Run(request, 1, 0, 1), Run(request, 0, 1, 2)])
    with pytest.raises(DeviceError, match=r"step 1 of one would run after 0 others: .* or name them in Run\.after"):
        coordinate(CpuDevice(bound=[one.chain]), hand, Script(one.asked()), math.inf)


def test_a_run_that_is_submitted_twice_is_an_error() -> None:
    one = Steps("one", 2)
    hand = arriving(lambda request: [Run(request, 0, 0, 1)] * 2)
    with pytest.raises(DeviceError, match="submitted twice"):
        coordinate(CpuDevice(bound=[one.chain]), hand, Script(one.asked()), math.inf)


# What fails


@pytest.mark.parametrize("error", [ValueError("no boxes"), SystemExit(3), MemoryError()])
def test_an_exception_reaches_its_request_and_no_other(error: BaseException) -> None:
    bad, good = Steps("bad", 3), Steps("good", 3)

    def failing(number: int) -> None:
        if number == 1:
            raise error

    bad.hook = failing
    events: list[tuple[str, str]] = []

    def decide(event: Event, view: View) -> Iterable[Command]:
        assert event.request is not None
        events.append((event.kind.name, event.request.task.name))
        if event.kind is EventKind.ARRIVED and event.request.task is bad.task:
            first = Run(event.request, 0, 0, 2)
            yield first
            yield Run(event.request, 1, 2, 3, after=(first,))
        elif event.kind is EventKind.ARRIVED:
            yield Run(event.request, 1)

    device = CpuDevice(bound=[bad.chain, good.chain])
    done = coordinate(device, Hand(decide), Script(bad.asked(0), good.asked(1), bad.asked(2)), math.inf)
    by_number = {request.number: request for request in done}
    for number in (0, 2):
        failed = by_number[number]
        assert isinstance(failed.error, ModelError)
        assert failed.error.__cause__ is error
        assert str(failed.error).startswith(f"bad failed: {type(error).__name__}")
        assert failed.outputs is None
        assert failed.finish_us is not None
    np.testing.assert_array_equal(by_number[1].outputs[0], good.expected(1))
    assert by_number[1].error is None
    assert events.count(("FINISHED", "bad")) == 2  # one for each, though two runs of each were there
    assert ("bad", 2) not in bad.log


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_go_on_after_a_request_that_failed(policy: str) -> None:
    bad, good = Steps("bad", 3), Steps("good", 3)
    bad.task = replace(bad.task, criticality=1)

    def failing(number: int) -> None:
        if number == 1:
            raise ValueError

    bad.hook = failing
    device = CpuDevice(bound=[bad.chain, good.chain])
    requests = [one.asked(i) for i, one in enumerate((bad, good, bad, good))]
    done = coordinate(device, create(policy, setting(device, bad.task, good.task)), Script(*requests), math.inf)
    assert {request.number: request.error is None for request in done} == {0: False, 1: True, 2: False, 3: True}


def test_an_error_about_the_input_stays_what_it_is() -> None:
    one, error = Steps("one", 1), InputError("input0 has no boxes")

    def refuse(number: int) -> None:
        raise error

    one.hook = refuse
    (done,) = coordinate(CpuDevice(bound=[one.chain]), arriving(lambda r: [Run(r, 0)]), Script(one.asked()), math.inf)
    assert done.error is error


def test_inputs_that_the_chain_cannot_take_fail_the_request() -> None:
    one = Steps("one", 1)
    request = Request(one.task, 0, 0.0, inputs=[EXAMPLE, EXAMPLE])
    (done,) = coordinate(CpuDevice(bound=[one.chain]), arriving(lambda r: [Run(r, 0)]), Script(request), math.inf)
    assert isinstance(done.error, ModelError)


def test_an_interrupt_of_the_user_is_nobody_s_error() -> None:
    one = Steps("one", 1)

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    one.hook = interrupt
    with pytest.raises(KeyboardInterrupt):
        coordinate(CpuDevice(bound=[one.chain]), arriving(lambda r: [Run(r, 0)]), Script(one.asked()), math.inf)


# Tasks, threads, names


def test_what_a_request_computed_is_let_go() -> None:
    one = Steps("one", 2)
    device = CpuDevice(bound=[one.chain])
    coordinator = Coordinator(device, arriving(lambda request: [Run(request, 0)]))
    device.offer(one.asked())
    (done,) = coordinator.run(math.inf)
    gone = weakref.ref(done.outputs[0])
    device.offer(one.asked())
    del done
    assert [request.number for request in coordinator.run(math.inf)] == [0]
    assert gone() is None


def test_a_request_without_inputs_runs_on_the_example_and_nobody_is_given_outputs() -> None:
    one = Steps("one", 2)
    request = Request(one.task, 0, 0.0)
    coordinate(CpuDevice(bound=[one.chain]), arriving(lambda r: [Run(r, 0)]), Script(request), math.inf)
    assert len(one.log) == 2
    assert request.finish_us is not None
    assert request.outputs is None


def test_an_offer_of_another_thread_is_heard_while_the_device_waits_for_a_time() -> None:
    one = Steps("one", 2)
    device = CpuDevice(bound=[one.chain])
    coordinator = Coordinator(device, arriving(lambda request: [Run(request, 0)]))
    device.wake(60e6)  # in a minute
    thread = threading.Thread(target=lambda: device.offer(one.asked(7)))
    thread.start()
    assert next(coordinator.run(math.inf)).number == 7
    assert device.now_us < 60e6
    thread.join()


def test_close_ends_the_wait_for_events() -> None:
    one = Steps("one", 2)
    device = CpuDevice(bound=[one.chain])
    coordinator = Coordinator(device, arriving(lambda request: []))
    device.wake(60e6)
    thread = threading.Thread(target=device.close)
    thread.start()
    assert list(coordinator.run(math.inf)) == []
    thread.join()
    device.close()


def test_events_end_at_the_time_that_was_given() -> None:
    one = Steps("one", 1)
    device = CpuDevice(bound=[one.chain])
    coordinator = Coordinator(device, arriving(lambda request: [Run(request, 0)]))
    device.offer(one.asked(0, at_us=1e9))
    assert list(coordinator.run(1000.0)) == []
    assert device.now_us >= 1000.0


def test_tasks_come_and_go() -> None:
    one = Steps("one", 1)
    device = CpuDevice()
    coordinator = Coordinator(device, arriving(lambda request: [Run(request, 0)]))
    with pytest.raises(DeviceError, match=r"cpu has no chain of one: .*Chain\.of"):
        device.prepare(one.task)
    other = Steps("other", 1)
    with pytest.raises(DeviceError, match="task other has another program than chain one"):
        device.prepare(other.task, one.chain)
    again = replace(one.task, name="again")
    device.prepare(one.task, one.chain)
    device.prepare(again)
    device.forget(one.task)
    device.offer(Request(again, 0, 0.0, inputs=[EXAMPLE]))
    assert [request.error for request in coordinator.run(math.inf)] == [None]
    device.forget(again)
    with pytest.raises(DeviceError, match="has no chain of one"):
        device.launch_us(one.task.program)


def test_steps_are_told_how_many_threads_they_may_use() -> None:
    told: list[int] = []
    one = Steps("one", 1)
    chain = replace(one.chain, threads=told.append)
    for name in ("cpu/1", "cpu"):
        coordinate(CpuDevice(name, bound=[chain]), arriving(lambda r: [Run(r, 0)]), Script(one.asked()), math.inf)
    assert told == [1]  # by default they are left alone


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cpu:0", "no device"), ("cpu/", "no device"), ("cpu/-1", "no device"), ("cpu/0", "asks for 0 threads"),
        (f"cpu/{cores() + 1}", f"1 to {cores()}"),
    ],
)  # fmt: skip
def test_a_name_that_makes_no_sense(name: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        CpuDevice(name)


def test_it_is_opened_once_and_has_no_partitions() -> None:
    one = Steps("one", 1)
    device = CpuDevice(bound=[one.chain])
    with pytest.raises(DeviceError, match="has not been opened"):
        next(device.events(math.inf))
    with pytest.raises(DeviceError, match="has no partitions"):
        device.open([Lane("part", sms=1)])
    device.open([Lane("all")])
    with pytest.raises(DeviceError, match="was opened before"):
        device.open([Lane("all")])
    with pytest.raises(PolicyError, match="cannot be divided"):
        create("partition", setting(device, one.task))


def test_what_happened_in_the_window_of_a_trace_is_kept() -> None:
    one = Steps("one", 3)
    device = CpuDevice(bound=[one.chain])
    coordinator = Coordinator(device, arriving(lambda r: [Run(r, 0)]), trace_us=(0.0, math.inf))
    device.offer(one.asked())
    (done,) = coordinator.run(math.inf)
    usage = device.usage()
    assert [(span.launch, span.blocks) for span in usage.spans] == [(0, 1), (1, 1), (2, 1)]
    times = [time for span in usage.spans for time in (span.begin_us, span.end_us)]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (done.start_us, done.finish_us)
    assert 0.0 < usage.busy_us <= done.finish_us - done.start_us + 1e-6  # type: ignore[operator]


def test_the_host_is_among_the_devices() -> None:
    (found,) = (device for device in devices() if device.name == "cpu")
    assert not found.unusable
    assert f"cores: {cores()}" in found.title


# Chains of functions


def test_a_chain_says_what_it_takes_and_gives(tmp_path: Path) -> None:
    def halves(x: Any) -> Any:
        return x[:2], x[2:].astype(np.float32)

    def product(a: Any, b: Any) -> Any:
        return np.outer(a, b), a > 1, b

    chain = Chain.of([halves, product], EXAMPLE, name="two", outputs=["table", "large", "rest"])
    tensors = (*chain.program.inputs, *chain.program.outputs)
    assert [(t.name, t.dtype, t.shape) for t in tensors] == [
        ("input0", "float64", (4,)), ("table", "float64", (2, 2)), ("large", "bool", (2,)), ("rest", "float32", (2,)),
    ]  # fmt: skip
    assert [kernel.source for kernel in chain.program.kernels] == [Source.HOST] * 2
    assert "halves" in chain.program.kernel_of(0).name
    assert len(chain.step_us) == len(chain.steps) == 2
    assert min(chain.step_us) > 0.0
    assert not chain.program.runnable
    chain.program.save(path := tmp_path / "two.miriam")
    assert Program.load(path) == chain.program
    state = chain.begin([EXAMPLE])
    for step in chain.steps:
        step(state)
    table, large, rest = chain.whole(chain.end(state))
    np.testing.assert_array_equal(table, [[0.0, 0.0], [2.0, 3.0]])
    assert (large.tolist(), rest.tolist()) == ([False, False], [2.0, 3.0])


def test_a_single_output_is_given_by_itself() -> None:
    assert Chain.of(np.sin, EXAMPLE, name="sine").whole((1,)) == 1


@pytest.mark.parametrize(
    ("model", "example", "said"),
    [
        (3, EXAMPLE, "is a int: give"),
        ([], EXAMPLE, "is a list: give"),
        ([np.sin, 3], EXAMPLE, "is a list: give"),
        (np.sin, None, "needs an example"),
        (lambda x: x / np.array([1.0, 2.0, 3.0]), EXAMPLE, "fails on its example: ValueError"),
        (lambda x: [x], EXAMPLE, "output 0 of m is a list"),
        (lambda x: None, EXAMPLE, "output 0 of m is a NoneType"),
        (lambda x: np.array([None]), EXAMPLE, "output 0 of m"),
        (lambda x: EXAMPLE, [3], "input 0 of m is a int"),
    ],
)
def test_what_cannot_be_a_chain(model: Any, example: Any, said: str) -> None:
    with pytest.raises(CompileError, match=said):
        Chain.of(model, example, name="m")


@pytest.mark.parametrize("names", [["a", "b"], ["a", "a"]])
def test_names_that_do_not_fit(names: list[str]) -> None:
    example = EXAMPLE if len(set(names)) == 2 else [EXAMPLE, EXAMPLE]
    with pytest.raises(CompileError, match="name each once"):
        Chain.of(lambda *x: x, example, name="m", inputs=names)
