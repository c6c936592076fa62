"""The recorder: what it keeps, what it lets go, and that nobody waits for it."""

import gc
import math
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from support import Profiles, program
from trace_support import Clock, Job, play, schedule

from miriam.coordinator import Coordinator
from miriam.device.base import Event, EventKind, Limit, Run, Wake
from miriam.device.sim.device import SimDevice
from miriam.errors import ModelError, TraceError
from miriam.policy import Setting, create
from miriam.runtime import Runtime
from miriam.task import Request, Task
from miriam.trace import Recorder, Recording
from miriam.trace.intervals import Intervals


def played(*jobs: Job, keep: int = 1000) -> Recorder:
    clock = Clock()
    recorder = Recorder(keep, clock=clock)
    schedule(jobs)
    play(recorder, clock, jobs)
    return recorder


def test_a_request_is_kept_with_its_times_and_its_lane() -> None:
    recorder = played(Job("caption", 0, 10, 100, deadline_us=500), Job("detector", 1, 50, 20))
    caption, detector = recorder.recording().find(1), recorder.recording().find(2)
    assert (caption.submitted_us, caption.started_us, caption.finished_us) == (10, 10, 130)
    assert (caption.lane, caption.deadline_us, caption.outcome, caption.alone) == (1, 500, "answered", False)
    assert (detector.lane, detector.limits, detector.deadline_us) == (0, {1: 0}, None)
    assert detector.why == "whole and at once"


def test_only_requests_that_met_nobody_say_what_a_task_takes_alone() -> None:
    jobs = [Job("caption", 0, 0, 100), Job("caption", 0, 1000, 120), Job("detector", 1, 1010, 30)]
    jobs += [Job("caption", 0, 2000, 140), Job("caption", 0, 3000, 160)]
    assert played(*jobs).recording().alone_us == {"caption": 140}  # the second was not alone


def test_a_failure_is_kept_with_its_text_and_a_limited_length() -> None:
    recorder = played(Job("caption", 0, 0, 100, fails=True))
    assert recorder.recording().find(1).outcome == "failed"
    assert recorder.recording().find(1).error == "ModelError: caption failed: ValueError: no"


def test_memory_is_bounded_and_what_is_lost_is_counted() -> None:
    recorder = played(*(Job("caption", 0, 100 * i, 50) for i in range(50)), keep=8)
    recording = recorder.recording()
    assert [request.number for request in recording.requests] == list(range(43, 51))
    assert (len(recording.decisions), recording.lost) == (8, 42)
    with pytest.raises(TraceError, match="request 3 is not in this trace, which holds 43 to 50; 42 older"):
        recording.find(3)


def test_news_are_what_ended_or_was_decided_since_and_what_has_not_ended() -> None:
    jobs = [Job("caption", 0, 100 * i, 50) for i in range(6)]
    recorder = played(*jobs)
    recorder.heard(Event(EventKind.ARRIVED, 900.0, Request(Task("late", program()), 99, 900.0)), [])
    recording = recorder.recording(since_us=350)
    assert [request.number for request in recording.requests] == [4, 5, 6, 99]
    assert all(decision.time_us >= 350 for decision in recording.decisions)
    assert [request.number for request in recorder.recording(since_us=0, most=2).requests] == [5, 6, 99]


def test_nothing_of_inputs_and_outputs_is_held() -> None:
    class Tensor:
        pass

    tensor = Tensor()
    gone = weakref.ref(tensor)
    recorder = Recorder()
    request = Request(Task("caption", program()), 1, 0.0, inputs=[tensor], outputs=[tensor])
    run = Run(request, 0)
    recorder.heard(Event(EventKind.ARRIVED, 0.0, request), [run, Limit(1, 0, "a pause"), Wake(5.0)])
    request.start_us, request.finish_us = 1.0, 2.0
    recorder.heard(Event(EventKind.FINISHED, 2.0, request, run), [])
    del request, run, tensor
    gc.collect()
    assert gone() is None
    assert [done.kind for done in recorder.recording().decisions[0].commands] == ["run", "limit", "wake"]


def test_a_coordinator_alone_is_recorded_by_the_clock_of_its_device() -> None:
    critical = Task("critical", program("critical", [(64, 128)]), 1)
    normal = Task("normal", program("normal", [(6000, 128)] * 3))
    device = SimDevice("sim:h200", Profiles(critical.program, normal.program))
    policy = create("resident", Setting((critical, normal), device.geometry, {}))
    recorder = Recorder(clock=lambda: 1e9)
    recorder.opened(device.name, policy.name, policy.lanes)
    requests = [Request(normal, 1, 0.0), Request(critical, 2, 60.0)]
    coordinator = Coordinator(device, policy, listener=recorder)
    for request in requests:
        device.offer(request)
    assert len(list(coordinator.run(1e9))) == 2
    recording = recorder.recording()
    for request in requests:
        traced = recording.find(request.number)
        assert (traced.submitted_us, traced.started_us) == (request.arrival_us, request.start_us)
        assert (traced.finished_us, traced.outcome) == (request.finish_us, "answered")
    [(begin_us, end_us)] = Intervals(recording).pauses(recording.find(1))
    assert (begin_us, end_us) == (requests[1].start_us, requests[1].finish_us)
    assert "yielded" in {decision.event for decision in recording.decisions}


def test_events_that_are_answered_with_nothing_leave_no_decision_when_a_run_has_ended() -> None:
    recording = played(Job("caption", 0, 0, 100)).recording()
    assert [(one.event, one.task, one.number) for one in recording.decisions] == [("arrived", "caption", 1)]


def test_it_can_be_read_while_it_is_written() -> None:
    recorder = Recorder(keep=50)
    stop = threading.Event()
    broken: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                Recording.from_json(recorder.recording().to_json())
        except BaseException as error:
            broken.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    task = Task("caption", program())
    for number in range(3000):
        request = Request(task, number, float(number))
        recorder.heard(Event(EventKind.ARRIVED, float(number), request), [Run(request, 0)])
        request.start_us = request.finish_us = float(number)
        recorder.heard(Event(EventKind.FINISHED, float(number), request), [])
    stop.set()
    for reader in readers:
        reader.join()
    assert not broken
    assert recorder.recording().lost == 2950


def test_a_runtime_tells_it_everything() -> None:
    recorder = Recorder()

    with Runtime("cpu", listeners=[recorder]) as runtime:
        x = np.ones(3)
        double = runtime.load(lambda x: 2 * x, x, name="double", criticality="critical", deadline_ms=1000)
        for _ in range(3):
            double(x)
        chain = runtime.load([lambda x: x + 1, lambda x: 3 * x], x, name="chain")
        chain(x)
        response = double.submit(x)
        response.result()
    recording = recorder.recording()
    assert (recording.device, recording.policy) == ("cpu", "resident")
    assert recording.lanes[-1] == "normal"
    assert [request.task for request in recording.requests] == ["double"] * 3 + ["chain", "double"]
    for request in recording.requests:
        assert request.outcome == "answered"
        assert request.started_us is not None
        assert request.finished_us is not None
        assert request.submitted_us <= request.started_us <= request.finished_us <= recording.now_us
        assert request.lane is not None
        assert recording.lane_name(request.lane) == ("critical" if request.task == "double" else "normal")
        assert request.why.startswith("whole and at once")
    last = recording.find(response.number)
    assert last.finished_us == response.finished_us
    assert last.deadline_us == pytest.approx(1e6)
    assert {request.alone for request in recording.requests} == {True}
    assert recording.alone_us.keys() == {"double", "chain"}


def test_a_runtime_tells_of_requests_that_never_ran_and_of_those_that_raised() -> None:
    recorder, entered, go = Recorder(), threading.Event(), threading.Event()

    def wait(x: Any) -> Any:
        if x[0] < 0:
            raise ValueError("negative")
        entered.set()
        go.wait(20)
        return x

    with Runtime("cpu", listeners=[recorder]) as runtime:
        go.set()  # it is tried out once when it is loaded
        model = runtime.load(wait, np.ones(1), name="model")
        go.clear()
        entered.clear()
        first = model.submit(np.ones(1))
        assert entered.wait(20)
        given_up, late = model.submit(np.ones(1)), model.submit(np.ones(1), timeout_ms=1)
        assert given_up.cancel()
        assert late.exception(20) is not None
        go.set()
        first.result(20)
        with pytest.raises(ModelError):
            model(np.full(1, -1.0))
    found = {request.number: request for request in recorder.recording().requests}
    assert found[given_up.number].outcome == "cancelled"
    assert found[late.number].outcome == "failed"
    assert found[late.number].error.startswith("RequestTimeoutError")
    assert found[late.number].started_us is None
    assert found[first.number].outcome == "answered"
    assert max(found.values(), key=lambda one: one.number).error.startswith("ModelError")
    assert all(one.finished_us is not None and not math.isnan(one.finished_us) for one in found.values())


@pytest.mark.parametrize("policy", ["resident", "contract:1.1", "priority", "sequential", "multistream"])
def test_every_policy_that_serves_says_why(policy: str) -> None:
    recorder = Recorder()
    with Runtime("cpu", policy=policy, listeners=[recorder]) as runtime:
        x = np.ones(3)
        tasks = [runtime.load(lambda x: 2 * x, x, name=name, criticality=name) for name in ("normal", "critical")]
        for task in tasks:
            task(x)
    recording = recorder.recording()
    assert [request.task for request in recording.requests] == ["normal", "critical"]
    assert all(request.why for request in recording.requests)
    assert all(done.why for one in recording.decisions for done in one.commands if done.kind != "wake")
