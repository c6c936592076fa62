"""The runtime as its users have it: load, ask, unload, close."""

import concurrent.futures
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
from runtime_support import ONE, PATIENCE_S, Held, Witness

import miriam
from miriam.device.cpu import CpuDevice
from miriam.errors import (
    ClosedError,
    CompileError,
    DeviceError,
    InputError,
    ModelError,
    PolicyError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    WorkloadError,
)


def double(x):
    return 2 * x


@pytest.fixture
def rt():
    with miriam.Runtime("cpu") as runtime:
        yield runtime


class TestAsking:
    def test_an_answer_is_what_the_model_gives(self, rt):
        task = rt.load(double, np.ones(3), criticality="critical", inputs=["x"], outputs=["y"])
        assert np.array_equal(task(np.arange(3.0)), [0, 2, 4])
        assert np.array_equal(task.submit(np.arange(3.0)).result(PATIENCE_S), [0, 2, 4])
        (raw,) = task.submit(np.arange(3.0), raw=True).result(PATIENCE_S)
        assert np.array_equal(raw, [0, 2, 4])
        assert (task.name, task.criticality, len(task.inputs), task.outputs[0].name) == ("double", 1, 1, "y")
        assert str(task.inputs[0]) == "x: float64 of shape 3"

    def test_several_inputs_and_outputs(self, rt):
        task = rt.load(lambda a, b: (a + b, a - b), [np.ones(2), np.ones(2)], name="both")
        plus, minus = task(np.array([3.0, 4.0]), np.array([1.0, 1.0]))
        assert (list(plus), list(minus)) == ([4, 5], [2, 3])

    @pytest.mark.parametrize(("given", "says"), [
        ((np.ones(4),), "input input0 of double is float64 of shape 4: give float64 of shape 3"),
        ((np.ones(3, np.float32),), "is float32 of shape 3: give float64"),
        (([1.0, 2.0, 3.0],), "is a list: give an array or a tensor, float64 of shape 3"),
        ((), "takes 1 inputs .*, and 0 were given"),
        ((np.ones(3), np.ones(3)), "and 2 were given"),
    ])  # fmt: skip
    @pytest.mark.parametrize("raw", [False, True])
    def test_what_does_not_fit_is_said_before_anything_is_queued(self, rt, given, says, raw):
        task = rt.load(double, np.ones(3))
        with pytest.raises(InputError, match=says):
            task.submit(*given, raw=raw)
        assert task.statistics.submitted == 0

    @pytest.mark.parametrize("option", [{"deadline_ms": 0}, {"timeout_ms": -1}, {"deadline_ms": math.nan}])
    def test_times_are_above_zero(self, rt, option):
        with pytest.raises(InputError, match="give milliseconds above zero"):
            rt.load(double, ONE).submit(ONE, **option)

    def test_an_exception_of_a_model_reaches_its_future_alone(self, rt):
        bad, good = Held(fails=True), Held()
        failing, working = rt.load(bad, ONE, name="bad"), rt.load(good, ONE, name="good")
        bad.hold()
        first, other = failing.submit(7 * ONE), working.submit(ONE)
        bad.begun()
        bad.go()
        with pytest.raises(ModelError, match="bad failed: ValueError: 7 is not to be had") as caught:
            first.result(PATIENCE_S)
        assert isinstance(caught.value.__cause__, ValueError)
        assert other.result(PATIENCE_S) == 2
        bad.open()
        assert working(ONE) == 2
        assert (failing.statistics.failed, working.statistics.failed) == (1, 0)

    def test_a_model_cannot_ask_the_runtime_that_runs_it(self, rt):
        inner = rt.load(double, ONE, name="inner")
        outer = rt.load(lambda x: inner(x) if x[0] > 1 else x, ONE, name="outer")
        with pytest.raises(RequestError, match="inner was asked from inside of a model"):
            outer(2 * ONE)

    def test_many_threads_ask_at_a_time(self, rt):
        tasks = [rt.load(lambda x, n=n: x + n, ONE, name=f"plus{n}", queue=1000, criticality=n % 4) for n in range(5)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [(i, pool.submit(tasks[i % 5], i * ONE)) for i in range(300)]
            assert all(future.result(PATIENCE_S) == i + i % 5 for i, future in asked)
        assert [task.statistics.answered for task in tasks] == [60] * 5


class TestOrder:
    def order(self, rt, submits):
        """What the device began, while one request held it until all of these were submitted."""
        model, gate = Held(), Held()
        holding = rt.load(gate, ONE, name="gate", criticality=3)
        tasks = [rt.load(model, ONE, name=f"t{i}") for i in range(len(submits))]
        model.hold()
        gate.hold()
        held = holding.submit(ONE)
        gate.begun()
        asked = [task.submit(i * ONE, **how) for i, (task, how) in enumerate(zip(tasks, submits, strict=True))]
        model.go(len(asked))
        gate.go()
        concurrent.futures.wait([held, *asked], PATIENCE_S)
        return [int(n) for n in model.seen]

    def test_higher_levels_go_first_whatever_waits(self, rt):
        assert self.order(rt, [{"criticality": n} for n in (0, 2, 1, 3)]) == [3, 1, 2, 0]

    def test_in_a_level_the_earliest_deadline_goes_first(self, rt):
        # The first one had gone to the device before the others came.
        submits = [{"deadline_ms": 9e6}, {"deadline_ms": 8e6}, {}, {"deadline_ms": 1e6}]
        assert self.order(rt, submits) == [0, 3, 1, 2]

    def test_a_critical_request_does_not_wait_for_normal_ones(self, rt):
        slow, gate = Held(), Held()
        normal = rt.load([slow, gate, slow], ONE, name="normal")
        critical = rt.load(double, ONE, name="critical", criticality="critical")
        gate.hold()
        asked = [normal.submit(ONE) for _ in range(3)]
        gate.begun()
        urgent = critical.submit(ONE)
        gate.go()
        assert urgent.result(PATIENCE_S) == 2
        gate.open()
        assert [a.result(PATIENCE_S) for a in asked] == [4, 4, 4]
        assert all(urgent.finished_us < a.finished_us for a in asked)
        assert normal.statistics.preemptions == 1

    def test_a_request_can_have_another_level_than_its_task(self, rt):
        task = rt.load(double, ONE)
        response = task.submit(ONE, criticality=2)
        assert (response.criticality, response.result(PATIENCE_S)) == (2, 2)
        with pytest.raises(InputError, match="this runtime has the levels 0, 1, 2, 3"):
            task.submit(ONE, criticality=7)
        assert {n: h.count for n, h in task.statistics.levels.items()} == {2: 1}


class TestWaiting:
    @pytest.fixture
    def held(self, rt):
        """A task whose first request is on the device, and stays."""
        gate = Held()
        task = rt.load(gate, ONE, name="held", queue=2)
        gate.hold()
        first = task.submit(ONE)
        gate.begun()
        yield task, first, gate
        gate.open()

    def test_a_queue_has_its_length(self, held):
        task, first, _ = held
        waiting = [task.submit(ONE) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests of held wait already"):
            task.submit(ONE)
        assert (task.statistics.queue_depth, task.statistics.running, task.statistics.rejected) == (2, 1, 1)
        assert not first.done()
        assert not any(one.done() for one in waiting)

    def test_what_waits_can_be_given_up_and_what_runs_cannot(self, held):
        task, first, gate = held
        waiting, called = task.submit(ONE), threading.Event()
        waiting.add_done_callback(lambda _: called.set())
        assert waiting.cancel()
        assert waiting.cancel()
        assert not first.cancel()
        assert called.wait(PATIENCE_S)
        done, _ = concurrent.futures.wait([waiting], PATIENCE_S)
        assert done == {waiting}
        with pytest.raises(CancelledError):
            waiting.result(PATIENCE_S)
        gate.open()
        assert first.result(PATIENCE_S) == 2
        assert (task.statistics.cancelled, task.statistics.answered) == (1, 1)

    def test_it_waits_no_longer_than_it_may_though_nothing_else_happens(self, held):
        task, first, _ = held
        with pytest.raises(RequestTimeoutError, match="a request of held waited"):
            task.submit(ONE, timeout_ms=1).result(PATIENCE_S)
        assert not first.done()
        assert task.statistics.timed_out == 1

    def test_the_one_that_may_wait_longer_waits(self, held):
        task, _, gate = held
        patient, hasty = task.submit(ONE, timeout_ms=1e6), task.submit(ONE, timeout_ms=1)
        with pytest.raises(RequestTimeoutError):
            hasty.result(PATIENCE_S)
        gate.open()
        assert patient.result(PATIENCE_S) == 2

    def test_lateness_is_counted_and_nothing_is_dropped(self, held):
        task, _, gate = held
        late, in_time = task.submit(ONE, deadline_ms=1e-3), task.submit(ONE, deadline_ms=1e7)
        gate.open()
        assert (late.result(PATIENCE_S), in_time.result(PATIENCE_S)) == (2, 2)
        assert task.statistics.deadline_missed == 1


class TestTimes:
    def test_a_response_says_when_what_happened(self, rt):
        before = time.perf_counter() * 1e6
        response = rt.load(double, ONE).submit(ONE)
        response.result(PATIENCE_S)
        after = time.perf_counter() * 1e6
        assert before <= response.submitted_us <= response.started_us <= response.finished_us <= after
        assert response.queue_us + response.compute_us == pytest.approx(response.latency_us)

    def test_before_it_has_an_answer_it_says_nothing(self, rt):
        gate = Held()
        task = rt.load(gate, ONE)
        gate.hold()
        response = task.submit(ONE)
        assert (response.queue_us, response.compute_us, response.latency_us) == (None, None, None)
        gate.open()

    def test_statistics_are_those_of_the_responses(self, rt):
        task = rt.load(double, ONE, criticality=2)
        responses = [task.submit(ONE) for _ in range(30)]
        for response in responses:
            response.result(PATIENCE_S)
        s = task.statistics
        assert (s.name, s.criticality, s.submitted, s.answered) == ("double", 2, 30, 30)
        assert s.latencies_us == tuple(r.latency_us for r in responses)
        assert s.latency_sum_us == pytest.approx(sum(s.latencies_us))
        assert s.histogram.counts[-1] == 30
        assert s.histogram == s.levels[2]
        assert s.p50_us <= s.p99_us <= max(s.latencies_us)
        assert s.last_us == pytest.approx(time.time() * 1e6, abs=60e6)
        assert dict(rt.statistics()) == {"double": s}

    def test_a_request_that_met_nobody_counts_as_alone(self, rt):
        gate = Held()
        one, other = rt.load(double, ONE, criticality=1), rt.load(gate, ONE, name="other")
        for _ in range(25):
            one(ONE)
        assert one.statistics.slowdown_p50 == one.statistics.slowdown_p99 == 1.0
        gate.hold()
        beside = other.submit(ONE)
        gate.begun()
        met = one.submit(ONE)
        gate.open()
        assert (met.result(PATIENCE_S), beside.result(PATIENCE_S)) == (2, 2)
        assert len(one.statistics.solo_latencies_us) == 25
        assert other.statistics.solo_us is None
        assert other.statistics.slowdown_p99 is None


class TestCallbacks:
    def test_they_run_outside_of_the_thread_that_computes(self, rt):
        task, slow = rt.load(double, ONE), threading.Event()
        names: list[str] = []

        def callback(response):
            assert slow.wait(PATIENCE_S)
            names.append(threading.current_thread().name)

        first = task.submit(ONE)
        first.add_done_callback(callback)
        assert task(ONE) == 2, "a callback that waits delays nobody"
        slow.set()
        rt.close()
        assert names == ["miriam-callbacks"]

    def test_one_that_raises_is_logged_and_the_next_is_called(self, rt, caplog):
        task, called = rt.load(double, ONE), threading.Event()
        response = task.submit(ONE)
        response.add_done_callback(lambda _: 1 / 0)
        response.add_done_callback(lambda _: called.set())
        assert called.wait(PATIENCE_S)
        assert "ZeroDivisionError" in caplog.text

    def test_a_listener_is_told_of_the_begin(self):
        class Told(Witness):
            def opened(self, *what):
                self.begin = what

        told, before_us = Told(), time.perf_counter() * 1e6
        with miriam.Runtime("cpu", levels=(0, 5), policy="priority", listeners=[told]):
            device, policy, lanes, zero_us = told.begin
        assert (device, policy, [lane.name for lane in lanes]) == ("cpu", "priority", ["level 5", "normal"])
        assert before_us <= zero_us <= time.perf_counter() * 1e6

    def test_listeners_hear_of_each_request_and_one_that_raises_is_told_no_more(self, caplog):
        class Bad:
            def heard(self, event, commands):
                raise OSError("no")

            def queued(self, response):
                raise OSError("no")

        witness = Witness()
        with miriam.Runtime("cpu", listeners=[Bad(), witness]) as rt:
            task = rt.load(double, ONE)
            assert [task(ONE), task(ONE)] == [2, 2]
        assert list(witness.ends.values()) == [1, 1]
        assert witness.offered_numbers == list(witness.ends)
        kinds = [event.kind.name for event, _ in witness.events]
        assert kinds == ["ARRIVED", "FINISHED"] * 2
        assert all(commands for event, commands in witness.events if event.kind.name == "ARRIVED")
        assert caplog.text.count("is told no more") == 2


class TestComingAndGoing:
    def test_tasks_have_names_of_their_own(self, rt):
        assert [rt.load(double, ONE).name, rt.load(double, ONE).name] == ["double", "double-2"]
        with pytest.raises(WorkloadError, match="there is a task 'double' already"):
            rt.load(double, ONE, name="double")
        assert (list(rt), len(rt), "double" in rt) == (["double", "double-2"], 2, True)
        assert rt["double-2"].name == "double-2"
        with pytest.raises(KeyError, match="no task 'other' is loaded; there are: double, double-2"):
            rt["other"]

    def test_one_is_loaded_and_unloaded_while_others_run(self, rt):
        gate = Held()
        running = rt.load([gate, gate], ONE, name="running")
        gate.hold()
        response = running.submit(ONE)
        gate.begun()
        other = rt.load(double, ONE, name="other", criticality=1)
        waiting = other.submit(ONE)
        gate.go()
        gate.begun()
        assert waiting.result(PATIENCE_S) == 2, "it came between two steps of the other"
        other.unload()
        assert list(rt) == ["running"]
        with pytest.raises(ClosedError, match="other is unloaded"):
            other(ONE)
        again = rt.load(lambda x: 3 * x, ONE, name="other")
        gate.open()
        assert (response.result(PATIENCE_S), again(ONE)) == (3, 3)
        assert again.statistics.submitted == 1

    @pytest.mark.parametrize("drain", [True, False])
    def test_unloading_ends_what_waits(self, rt, drain):
        gate, busy = Held(), threading.Event()
        task = rt.load(gate, ONE, name="task")
        gate.hold()
        first = task.submit(ONE)
        gate.begun()
        waiting = task.submit(ONE)
        waiting.add_done_callback(lambda _: busy.set())
        thread = threading.Thread(target=lambda: rt.unload("task", drain=drain))
        thread.start()
        if not drain:
            with pytest.raises(ClosedError, match="task was unloaded while this waited"):
                waiting.result(PATIENCE_S)
            assert not first.done()
        gate.open()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert first.result(PATIENCE_S) == 2
        if drain:
            assert waiting.result(PATIENCE_S) == 2
        assert "task" not in rt

    def test_a_model_that_cannot_be_loaded_leaves_nothing(self, rt):
        with pytest.raises(CompileError):
            rt.load(lambda x: x.nothing, ONE, name="broken")
        assert "broken" not in rt
        assert rt.load(double, ONE, name="broken")(ONE) == 2

    @pytest.mark.parametrize(("options", "says"), [
        ({"criticality": "urgent"}, "take normal, critical or a number"),
        ({"criticality": 9}, "this runtime has the levels 0, 1, 2, 3"),
        ({"queue": 0}, "at least one request"),
        ({"deadline_ms": -1}, "deadline_ms is -1"),
        ({"period_ms": math.inf}, "period_ms is inf"),
        ({"timeout_ms": math.nan}, "timeout_ms is nan"),
    ])  # fmt: skip
    def test_options_that_make_no_sense(self, rt, options, says):
        with pytest.raises(WorkloadError, match=says):
            rt.load(double, ONE, **options)
        assert len(rt) == 0

    def test_a_task_that_asks_itself(self, rt):
        enough, seen = threading.Event(), []

        def make():
            seen.append(len(seen))
            return len(seen) * ONE

        def answered(response):
            if response.result(0) == 6:
                enough.set()

        task = rt.load(double, ONE, period_ms=1)
        with task.every(make, answered) as asking:
            assert enough.wait(PATIENCE_S)
        assert asking.error is None
        assert asking.released == len(seen) >= 3
        with pytest.raises(WorkloadError, match="has no period"):
            rt.load(double, ONE, name="other").every(make)

    def test_a_release_is_skipped_while_the_one_before_runs(self, rt):
        gate, enough = Held(), threading.Event()
        task = rt.load(gate, ONE, period_ms=1)
        gate.hold()
        asking = task.every(lambda: ONE)
        gate.begun()
        for _ in range(60_000):
            if asking.skipped >= 3 or enough.wait(1e-3):
                break
        assert asking.skipped >= 3
        assert asking.released == 1
        gate.open()
        asking.stop()

    def test_an_input_that_cannot_be_made_ends_it(self, rt):
        task = rt.load(double, ONE, period_ms=1)
        asking = task.every(lambda: 1 / 0)
        asking._thread.join(PATIENCE_S)
        assert isinstance(asking.error, ZeroDivisionError)


class TestTheEnd:
    def test_a_process_that_forgets_to_close_ends_all_the_same(self):
        code = (
            "import miriam, numpy as np; rt = miriam.Runtime('cpu'); one = np.ones(1);"
            "task = rt.load(lambda x: 2 * x, one, timeout_ms=1e6, period_ms=1); print(task(one));"
            "asking = task.every(lambda: one)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[2.]", "")

    def test_a_model_cannot_close_what_runs_it(self):
        with miriam.Runtime("cpu") as rt:
            task = rt.load(lambda x: rt.close() or x if x[0] > 1 else x, ONE, name="last")
            with pytest.raises(RequestError, match="unload and close from another thread"):
                task(2 * ONE)
            assert task(ONE) == 1

    def test_what_is_loaded_while_it_is_closed_is_given_back(self, monkeypatch):
        rt, forgotten = miriam.Runtime("cpu"), []
        prepare, forget = CpuDevice.prepare, CpuDevice.forget

        def late(self, task, bound=None):
            prepare(self, task, bound)
            rt.close()

        monkeypatch.setattr(CpuDevice, "prepare", late)
        monkeypatch.setattr(CpuDevice, "forget", lambda self, task: (forgotten.append(task.name), forget(self, task)))
        with pytest.raises(ClosedError, match="closed while this was loaded"):
            rt.load(double, ONE)
        assert (forgotten, len(rt)) == (["double"], 0)

    @pytest.mark.parametrize("drain", [True, False])
    def test_closing_ends_all_that_waits(self, drain):
        rt, gate = miriam.Runtime("cpu"), Held()
        task = rt.load(gate, ONE)
        gate.hold()
        first = task.submit(ONE)
        gate.begun()
        waiting = [task.submit(ONE) for _ in range(3)]
        closing = threading.Thread(target=lambda: rt.close(drain=drain))
        closing.start()
        if not drain:
            for one in waiting:
                with pytest.raises(ClosedError, match="closed while this waited"):
                    one.result(PATIENCE_S)
        gate.open()
        closing.join(PATIENCE_S)
        assert first.result(0) == 2
        if drain:
            assert [one.result(0) for one in waiting] == [2, 2, 2]
        assert rt.closed
        rt.close()
        with pytest.raises(ClosedError, match="the runtime is closed"):
            task(ONE)
        with pytest.raises(ClosedError, match="the runtime is closed"):
            rt.load(double, ONE)

    def test_an_exception_inside_of_with_waits_for_nothing_that_waits(self):
        gate = Held()

        def ask():
            with miriam.Runtime("cpu") as rt:
                task = rt.load(gate, ONE)
                gate.hold()
                asked.extend((task.submit(ONE), task.submit(ONE)))
                gate.begun()
                gate.open()
                raise KeyError("own")

        asked: list[miriam.Response] = []
        with pytest.raises(KeyError, match="own"):
            ask()
        assert all(one.done() for one in asked)

    @pytest.mark.parametrize("where", ["policy", "device"])
    def test_an_error_of_the_policy_or_the_device_ends_all_and_says_so(self, where, monkeypatch):
        rt, gate = miriam.Runtime("cpu"), Held()
        task, other = rt.load(gate, ONE, name="task"), rt.load(double, ONE, name="other", criticality=1)
        gate.hold()
        asked = [task.submit(ONE), task.submit(ONE)]
        gate.begun()
        broken = "miriam.policy.resident.Resident.decide" if where == "policy" else "miriam.device.cpu.CpuDevice.submit"

        def fail(*_):
            raise DeviceError("it is broken")

        monkeypatch.setattr(broken, fail)
        asked.append(other.submit(ONE))
        gate.open()
        for one in asked[1:]:
            with pytest.raises(DeviceError, match="it is broken"):
                one.result(PATIENCE_S)
        assert asked[0].exception(PATIENCE_S) is None or isinstance(asked[0].exception(), DeviceError)
        assert rt.closed
        with pytest.raises(ClosedError, match="it is broken"):
            task(ONE)
        rt.close()

    def test_names_of_devices_and_policies(self):
        with pytest.raises(DeviceError, match="'tpu:0' is no device"):
            miriam.Runtime("tpu:0")
        with pytest.raises(PolicyError, match="there is no policy 'fair'"):
            miriam.Runtime("cpu", policy="fair")
        with pytest.raises(PolicyError, match="take one of sequential, multistream, priority, resident, contract"):
            miriam.Runtime("cpu", policy="barrier")
        with pytest.raises(WorkloadError, match="at least one"):
            miriam.Runtime("cpu", levels=())

    @pytest.mark.parametrize("policy", ["resident", "contract:1.5", "priority", "sequential", "multistream"])
    def test_every_policy_serves(self, policy):
        with miriam.Runtime("cpu", policy=policy) as rt:
            tasks = [rt.load([double, double], ONE, name=f"t{n}", criticality=n) for n in range(4)]
            asked = [task.submit(ONE, criticality=i % 4) for i in range(5) for task in tasks]
            with tasks[2].hint():
                asked.append(tasks[0].submit(ONE))
            assert {float(one.result(PATIENCE_S)[0]) for one in asked} == {4.0}
            assert isinstance(rt.report(), dict)
            rt.unload(tasks[1])
            assert tasks[3](ONE) == 4

    def test_the_best_device_is_one_of_this_machine(self):
        with miriam.Runtime() as rt:
            assert rt.device == "cpu" or rt.device.startswith("cuda:")
            assert repr(rt).startswith(f"<Runtime on {rt.device}, policy resident, tasks: none")


def test_who_holds_a_task_that_was_replaced_cannot_unload_the_new_one():
    with miriam.Runtime("cpu") as rt:
        old = rt.load(lambda x: x, ONE, name="model")
        new = rt.load(lambda x: x + 1, ONE, name="model", replace=True)
        with pytest.raises(KeyError, match="place"):
            old.unload()
        assert new(ONE) == 2
        new.unload()
        assert "model" not in rt
