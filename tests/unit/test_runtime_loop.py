"""The thread that runs the coordinator: ticks, hints, errands; a simulated device on the wall clock."""

import math
import queue
import threading
from collections import deque
from time import perf_counter

import numpy as np
import pytest
from runtime_support import ONE, PATIENCE_S, Held, Witness
from scripted import EDGE
from support import program

import miriam
from miriam import zoo
from miriam.device.base import Event, EventKind, Limit, Run
from miriam.device.sim.device import SimDevice
from miriam.errors import ClosedError, DeviceError
from miriam.policy import SERVING, Setting, create, create_serving
from miriam.policy.base import Joining
from miriam.policy.contract import Contract
from miriam.runtime.caller import Caller
from miriam.runtime.loop import Loop
from miriam.runtime.paced import Paced
from miriam.runtime.timer import Timer
from miriam.runtime.waiting import Waiting
from miriam.task import Request, Task

PROGRAM = program(launches=[(1, 32)])
TASK = Task("a", PROGRAM)


class Counter:
    """A device that hands on what it is offered, and does no more."""

    name, geometry, command_us, notes, depth = "counter", EDGE, 1.0, (), 1

    def __init__(self):
        self.there, self.asked = deque(), 0

    @property
    def now_us(self):
        return perf_counter() * 1e6

    def offer(self, request):
        self.there.append(Event(EventKind.ARRIVED, self.now_us, request))

    def wake(self, time_us):
        self.there.append(Event(EventKind.TICK, time_us))

    def events(self, until_us):
        self.asked += 1
        while self.there:
            yield self.there.popleft()

    def close(self):
        pass


class Running:
    """The events of a device that waits, from a thread of its own."""

    def __init__(self, react=lambda waiting, event: None):
        self.device = Counter()
        self.waiting = Waiting(self.device)
        self.seen = queue.Queue()
        self.react = react
        self.thread = threading.Thread(target=self.main)
        self.thread.start()

    def main(self):
        for event in self.waiting.events(math.inf):
            self.react(self.waiting, event)
            self.seen.put(event)

    def next(self):
        return self.seen.get(timeout=PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.waiting.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        assert self.seen.empty(), "nothing that nobody asked for"


class TestWaiting:
    def test_requests_wake_it_and_it_asks_the_device_no_more_than_it_has_to(self):
        with Running() as running:
            for number in range(5):
                running.waiting.offer(Request(TASK, number, 0.0))
                event = running.next()
                assert (event.kind, event.request.number) == (EventKind.ARRIVED, number)
        assert running.device.asked <= 2 * 5 + 2

    def test_a_tick_comes_at_its_time_though_nothing_else_happens(self):
        def react(waiting, event):
            if event.kind is EventKind.ARRIVED:
                now_us = perf_counter() * 1e6
                waiting.wake(now_us + 4e3)
                waiting.wake(now_us + 2e3)

        with Running(react) as running:
            running.waiting.offer(Request(TASK, 0, 0.0))
            arrived, first, second = running.next(), running.next(), running.next()
        assert (first.kind, second.kind) == (EventKind.TICK, EventKind.TICK)
        assert first.time_us - arrived.time_us >= 2e3
        assert second.time_us - arrived.time_us >= 4e3

    def test_a_tick_that_is_asked_for_holds_up_nothing(self):
        def react(waiting, event):
            if event.request is not None and event.request.number == 0:
                waiting.wake(perf_counter() * 1e6 + 1e12)

        with Running(react) as running:
            for number in range(3):
                running.device.there.append(Event(EventKind.ARRIVED, 0.0, Request(TASK, number, 0.0)))
            running.waiting.offer(Request(TASK, 3, 0.0))
            assert [running.next().request.number for _ in range(4)] == [0, 1, 2, 3]

    def test_the_end_of_a_hint_comes_after_the_requests_before_it(self):
        entered, go = threading.Semaphore(0), threading.Event()

        def react(waiting, event):
            if event.kind is EventKind.HINTED and event.level == 1:
                entered.release()
                assert go.wait(PATIENCE_S)

        with Running(react) as running:
            running.waiting.hint(1)
            assert entered.acquire(timeout=PATIENCE_S)
            running.waiting.offer(Request(TASK, 0, 0.0))
            running.waiting.hint(None)
            go.set()
            kinds = [(event.kind, event.level) for event in (running.next(), running.next(), running.next())]
        assert kinds == [(EventKind.HINTED, 1), (EventKind.ARRIVED, None), (EventKind.HINTED, None)]

    def test_errands_run_between_two_events_in_its_thread(self):
        names = queue.Queue()
        with Running() as running:
            running.waiting.run_errand(lambda: names.put(threading.current_thread()))
            assert names.get(timeout=PATIENCE_S) is running.thread


class TestLoop:
    def loop(self, **how):
        return Loop(
            Counter,
            lambda device: create("multistream", Setting([TASK], device.geometry, {})),
            settle=lambda request: None,
            failed=lambda error: None,
            **how,
        )

    def test_what_cannot_be_opened_is_said_to_who_asked(self):
        with pytest.raises(DeviceError, match="gone"):
            Loop(self.fail, None, None, None)

    def fail(self):
        raise DeviceError("gone")

    def test_calls_return_what_they_do_and_raise_what_they_raise(self, monkeypatch):
        monkeypatch.setattr(Counter, "open", lambda self, lanes, trace_us: None, raising=False)
        loop = self.loop()
        assert loop.call(lambda: (loop.inside, loop.call(lambda: 7))) == (True, 7)
        with pytest.raises(ZeroDivisionError):
            loop.call(lambda: 1 // 0)
        loop.stop()
        loop.stop()
        with pytest.raises(ClosedError):
            loop.call(lambda: 7)


class TestThreads:
    def test_a_timer_looks_when_the_first_is_due(self):
        due, looked = [0.0], queue.Queue()

        def look():
            looked.put(perf_counter())
            return math.inf

        timer = Timer(look, lambda: perf_counter() * 1e6)
        begun = perf_counter()
        for wait_us in (1e9, 3e3, 1e10):
            timer.at(begun * 1e6 + wait_us)
        assert looked.get(timeout=PATIENCE_S) - begun >= 3e-3
        timer.at(due[0])
        looked.get(timeout=PATIENCE_S)
        timer.close()
        timer.close()
        timer.at(0.0)
        assert looked.empty()

    def test_a_caller_that_is_closed_calls_what_is_left_and_then_at_once(self):
        caller, called = Caller(), []
        for i in range(100):
            caller(lambda i=i: called.append(i))
        caller.close()
        assert called == list(range(100))
        caller(lambda: called.append("late"))
        assert called[-1] == "late"
        caller.close()


class TestHints:
    @pytest.mark.parametrize(("policy", "sms"), [("resident", 0), ("resident:2", 2), ("contract:1.1", 0)])
    def test_lanes_below_are_limited_as_if_it_ran(self, policy, sms):
        witness = Witness()
        with miriam.Runtime("cpu", policy=policy, listeners=[witness]) as rt:
            task = rt.load(lambda x: x, ONE, criticality=2)

            def settle():  # what was said before two reports is known after them
                rt.report()
                rt.report()

            with task.hint():
                settle()
                task(ONE)
            settle()
            with task.hint():
                settle()
            settle()
        limits = [
            (event.level, [(c.lane, c.sms) for c in commands if isinstance(c, Limit)])
            for event, commands in witness.events
            if event.kind is EventKind.HINTED
        ]
        # Levels 3 to 0 are lanes 0 to 3. A pause to measure holds lanes by itself, whatever is said.
        if policy == "contract:1.1":
            assert [level for level, _ in limits] == [2, None, 2, None]
            assert limits[0] == (2, [(2, 0), (3, 0)])
        else:
            assert limits == [(2, [(2, sms), (3, sms)]), (None, [(2, None), (3, None)])] * 2

    def test_normal_work_stands_still_meanwhile_and_goes_on_after_it(self):
        model = Held()
        with miriam.Runtime("cpu") as rt:
            normal = rt.load([model, model], ONE, name="normal")
            critical = rt.load(lambda x: x, ONE, name="critical", criticality=1)
            model.hold()
            running = normal.submit(ONE)
            model.begun()
            with critical.hint(within_ms=1e9):
                waiting = normal.submit(ONE)
                model.go()  # the step ends, and with it what may run
                assert critical(ONE) == 1
            model.open()
            assert (running.result(PATIENCE_S), waiting.result(PATIENCE_S)) == (3, 3)

    def test_one_that_nothing_follows_ends_by_itself(self):
        with miriam.Runtime("cpu") as rt:
            normal = rt.load(lambda x: x, ONE, name="normal")
            critical = rt.load(lambda x: x, ONE, name="critical", criticality=1)
            with critical.hint(within_ms=1):
                assert normal(ONE) == 1, "what makes the input may ask another task"


class TestJoining:
    def test_those_that_serve(self):
        setting = Setting((), EDGE, {}, levels=(0, 1))
        assert SERVING == ("sequential", "multistream", "priority", "resident", "contract")
        assert [isinstance(create_serving(name, setting), Joining) for name in SERVING] == [False] * 3 + [True] * 2
        assert isinstance(create_serving("contract:1.3", setting), Contract)

    def test_a_contract_measures_what_joins_and_forgets_what_leaves(self):
        with miriam.Runtime("cpu", policy="contract:1.5") as rt:
            normal = rt.load(lambda x: x, ONE, name="normal")
            names = ["one", "two"]
            one, two = (rt.load(lambda x: x, ONE, name=name, criticality=n) for n, name in enumerate(names, 1))
            assert set(rt.report()) == {"solo_samples one", "solo_samples two"}
            for _ in range(2000):
                one(ONE)
                if "solo_p99_us one" in rt.report():
                    break
            assert rt.report()["solo_samples one"] >= 20
            assert normal(ONE) == two(ONE) == 1, "no pause lasts"
            two.submit(ONE, criticality=0).result(PATIENCE_S)
            rt.unload(one)
            assert set(rt.report()) == {"solo_samples"}
            assert normal(ONE) == two(ONE) == 1
            rt.unload(two)
            assert dict(rt.report()) == {}

    def test_a_pause_for_one_that_leaves_ends(self):
        contract = Contract(Setting((), EDGE, {}, levels=(0, 1)), 1.1)
        task = Task("camera", PROGRAM, 1)
        contract.join(task)
        commands = []
        for number in range(3):  # a gap between requests has to be known before a pause begins
            request = Request(task, number, 1e3 * number)
            commands += contract.decide(Event(EventKind.ARRIVED, 1e3 * number, request), None)
            commands += contract.decide(Event(EventKind.FINISHED, 1e3 * number + 9, request, commands[0]), None)
        assert [c.sms for c in commands if isinstance(c, Limit)] == [0]
        contract.leave(task)
        (limit,) = contract.decide(Event(EventKind.TICK, 1e9), None)
        assert (limit.lane, limit.sms) == (1, None)

    def test_a_request_that_failed_says_nothing_of_latencies(self):
        contract = Contract(Setting((), EDGE, {}, levels=(0, 1)), 1.1)
        task = Task("camera", PROGRAM, 1)
        contract.join(task)
        for number in range(50):
            request = Request(task, number, 1e3 * number)
            run, *_ = contract.decide(Event(EventKind.ARRIVED, 1e3 * number, request), None)
            assert isinstance(run, Run)
            request.error = ValueError("no")
            list(contract.decide(Event(EventKind.FINISHED, 1e3 * number + 9, request, run), None))
        assert dict(contract.report()) == {"solo_samples": 0.0}


class TestPaced:
    """A model of a GPU that takes the time that it says."""

    def test_requests_of_a_program_take_the_time_of_the_model(self):
        witness = Witness()
        with miriam.Runtime("sim:orin", listeners=[witness]) as rt:
            camera = rt.load("zoo:alexnet-b1", criticality="critical")
            other = rt.load("zoo:squeezenet-b1")
            x, y = ([np.zeros(s.shape, s.dtype) for s in task.inputs] for task in (camera, other))
            alone_us = sum(Paced(SimDevice("sim:orin", zoo.profiles())).launch_us(camera.task.program))
            background = [other.submit(*y) for _ in range(20)]
            for _ in range(5):
                outputs = camera(*x)
            assert not outputs.any()
            assert outputs.shape == camera.outputs[0].shape
            done = [one.result(PATIENCE_S) for one in background]
            assert len(done) == 20
            assert all(0.95 * alone_us < one < 3 * alone_us for one in computed_us(witness, "alexnet-b1"))
            assert other.statistics.preemptions >= 1
            assert any("a model of a GPU" in note for note in rt.notes)

    def test_only_programs_run(self):
        with miriam.Runtime("sim:orin") as rt, pytest.raises(DeviceError, match="runs programs only"):
            rt.load(lambda x: x, ONE)

    def test_each_request_has_outputs_of_its_own(self):
        with miriam.Runtime("sim:orin") as rt:
            task = rt.load("zoo:alexnet-b1")
            for _ in range(2):
                output = task(*(np.zeros(spec.shape, spec.dtype) for spec in task.inputs))
                assert not output.any()
                output += 1

    def test_a_request_that_says_it_came_before_what_is_over_comes_now(self):
        task = Task("a", zoo.load("alexnet-b1"))
        device = Paced(SimDevice("sim:orin", zoo.profiles()))
        device.prepare(task)
        policy = create_serving("resident", Setting((), device.geometry, {}, levels=(0,)))
        device.open(policy.lanes)
        first = Request(task, 0, 0.0)
        for number, request in enumerate((first, Request(task, 1, -5.0))):
            device.offer(request)
            for event in device.events(math.inf):
                for command in policy.decide(event, None):
                    device.submit(command)
            assert request.finish_us is not None
            assert request.arrival_us >= number * first.finish_us
        device.close()


def computed_us(witness, name):
    """What requests of a task took on the device, by its own clock."""
    requests = [event.request for event, _ in witness.events if event.kind is EventKind.FINISHED]
    return [one.finish_us - one.start_us for one in requests if one.task.name == name]
