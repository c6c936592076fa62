"""A runtime whose tasks are replaced, whose device has no room, and whose normal models fail beside a critical one."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from runtime_support import ONE, PATIENCE_S, Held, Witness

import miriam
from miriam.device.cpu import CpuDevice
from miriam.errors import (
    AdmissionError,
    ClosedError,
    CompileError,
    DeviceError,
    ModelError,
    QueueFullError,
    RequestError,
    WorkloadError,
)


@pytest.fixture
def rt() -> Iterator[miriam.Runtime]:
    with miriam.Runtime("cpu") as rt:
        yield rt


def times(factor: float) -> Any:
    return lambda x: factor * x


class TestReplacing:
    """A new model under an old name."""

    def test_what_was_asked_before_is_answered_by_the_old_one(self, rt: miriam.Runtime) -> None:
        gate = Held()
        old = rt.load(gate, ONE, name="task")
        gate.hold()
        responses = [old.submit(3 * ONE) for _ in range(3)]
        gate.begun()
        with ThreadPoolExecutor(1) as pool:
            replacing = pool.submit(rt.load, times(10), ONE, name="task", replace=True)
            while not old.closed:
                assert not replacing.done()
            with pytest.raises(WorkloadError, match="there is a task 'task' already"):
                rt.load(times(7), ONE, name="task", replace=True)
            with pytest.raises(ClosedError, match="task is unloaded"):
                old.submit(ONE)
            gate.open()
            new = replacing.result(PATIENCE_S)
        assert [response.result(0)[0] for response in responses] == [4, 4, 4]
        assert (new(3 * ONE)[0], new.closed, list(rt)) == (30, False, ["task"])
        assert rt["task"] is new

    def test_one_that_is_not_there_is_loaded(self, rt: miriam.Runtime) -> None:
        assert rt.load(times(2), ONE, name="task", replace=True)(ONE)[0] == 2
        with pytest.raises(WorkloadError, match="there is a task 'task' already"):
            rt.load(times(3), ONE, name="task")

    def test_one_that_fails_on_its_example_leaves_the_old_one(self, rt: miriam.Runtime) -> None:
        old = rt.load(times(2), ONE, name="task")
        with pytest.raises(CompileError):
            rt.load(lambda x: x + undefined, ONE, name="task", replace=True)  # type: ignore[name-defined]  # noqa: F821
        assert (old(ONE)[0], rt["task"] is old, old.closed) == (2, True, False)

    @pytest.mark.parametrize("why", ["no room", "not admitted", "out of memory"])
    def test_one_that_has_no_room_leaves_the_old_one(self, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with miriam.Runtime("cpu", admission="refuse") as rt:
            old = rt.load(times(2), ONE, name="task")
            other = rt.load(times(5), ONE, name="other")
            error: type[BaseException] = AdmissionError
            if why != "not admitted":
                error = DeviceError if why == "no room" else MemoryError
                prepare = CpuDevice.prepare

                def full(self: CpuDevice, task: Any, bound: Any = None) -> None:
                    if task is not old.task:
                        raise error("there is no room")
                    prepare(self, task, bound)

                monkeypatch.setattr(CpuDevice, "prepare", full)
            deadline_ms = 1e-6 if why == "not admitted" else None
            for _ in range(3):
                with pytest.raises(error):
                    rt.load(times(3), ONE, name="task", deadline_ms=deadline_ms, replace=True)
            assert (old(ONE)[0], other(ONE)[0], sorted(rt)) == (2, 5, ["other", "task"])
            assert (rt["task"] is old, old.closed) == (True, False)
            assert old.statistics.answered == 1

    def test_of_many_at_a_time_one_is_there_in_the_end_and_every_request_has_an_end(self) -> None:
        witness = Witness()
        with miriam.Runtime("cpu", listeners=[witness]) as rt:
            rt.load(times(1), ONE, name="task")
            done, stop, problems = [0, 0], threading.Event(), []

            def ask() -> None:
                while not stop.is_set():
                    try:
                        if rt["task"](ONE)[0] not in range(1, 40):
                            problems.append("a wrong answer")
                        done[0] += 1
                    except (KeyError, ClosedError):
                        done[1] += 1

            def replace(first: int) -> None:
                for factor in range(first, first + 15):
                    try:
                        rt.load(times(factor), ONE, name="task", replace=True)
                        if factor % 5 == 0:
                            rt.unload("task")
                    except (WorkloadError, KeyError):
                        pass

            with ThreadPoolExecutor(4) as pool:
                asking = [pool.submit(ask) for _ in range(2)]
                for one in [pool.submit(replace, first) for first in (1, 20)]:
                    one.result(PATIENCE_S)
                rt.load(times(39), ONE, name="task", replace=True)
                stop.set()
                for one in asking:
                    one.result(PATIENCE_S)
            assert (problems, rt["task"](ONE)[0], list(rt)) == ([], 39, ["task"])
        assert set(witness.ends.values()) == {1}

    def test_a_model_cannot_replace_itself(self, rt: miriam.Runtime) -> None:
        def itself(x: Any) -> Any:
            if x[0] > 1:
                rt.load(times(2), ONE, name="itself", replace=True)
            return x

        task = rt.load(itself, ONE, name="itself")
        with pytest.raises(RequestError, match="from another thread"):
            task(2 * ONE)
        assert task(ONE)[0] == 1


class TestCriticalBesideFaults:
    """What goes wrong with normal ones is no critical one's affair."""

    def test_it_goes_before_all_that_is_about_to_fail(self, rt: miriam.Runtime) -> None:
        order: list[str] = []
        gate = Held()

        def fail(x: np.ndarray[Any, Any]) -> Any:
            if x[0] > 2:  # one more than in the example
                order.append("failed")
                raise MemoryError("there is no room")
            return x

        normal = rt.load([gate, fail], ONE, name="normal", queue=8)
        urgent = rt.load(lambda x: order.append("urgent") or x, ONE, name="urgent", criticality="critical")
        order.clear()
        gate.hold()
        failing = [normal.submit(9 * ONE) for _ in range(9 - 1)]
        gate.begun()
        failing += [normal.submit(9 * ONE)]
        with pytest.raises(QueueFullError):
            normal.submit(ONE)
        answers = [urgent.submit(ONE) for _ in range(3)]
        gate.open()
        assert [answer.result(PATIENCE_S)[0] for answer in answers] == [1, 1, 1]
        for response in failing:
            with pytest.raises(ModelError, match="MemoryError: there is no room"):
                response.result(PATIENCE_S)
        assert order == ["urgent"] * 3 + ["failed"] * 9
        found = normal.statistics
        assert (found.failed, found.rejected, found.answered, found.submitted) == (9, 1, 0, 10)

    @pytest.mark.parametrize("criticality", [0, 1])
    def test_a_model_that_keeps_failing_takes_nothing_from_others(self, rt: miriam.Runtime, criticality: int) -> None:
        calls: list[float] = []

        def fail(x: np.ndarray[Any, Any]) -> Any:
            calls.append(float(x[0]))
            if x[0] > 1:
                raise ValueError("never")
            return x

        failing = rt.load(fail, ONE, name="failing", criticality=criticality, queue=100)
        urgent = rt.load(times(2), ONE, name="urgent", criticality="critical")
        responses = [failing.submit(2 * ONE) for _ in range(100)]
        assert [urgent(ONE)[0] for _ in range(20)] == [2] * 20
        assert all(isinstance(response.exception(PATIENCE_S), ModelError) for response in responses)
        assert calls.count(2.0) == 100
        assert (urgent.statistics.answered, urgent.statistics.failed, failing.statistics.failed) == (20, 0, 100)
        assert failing(ONE)[0] == 1

    def test_one_whose_task_is_being_unloaded_holds_up_nobody(self, rt: miriam.Runtime) -> None:
        gate = Held()
        leaving = rt.load([gate, times(1)], ONE, name="leaving")
        urgent = rt.load(times(2), ONE, name="urgent", criticality="critical")
        gate.hold()
        last = leaving.submit(ONE)
        gate.begun()
        with ThreadPoolExecutor(1) as pool:
            unloading = pool.submit(rt.unload, "leaving")
            while not leaving.closed:
                pass
            answer = urgent.submit(ONE)
            gate.go()
            assert answer.result(PATIENCE_S)[0] == 2
            gate.open()
            unloading.result(PATIENCE_S)
        assert last.result(0)[0] == 2
