"""What waits, in which order it goes, and that each request has one end: without threads or time."""

import math
import threading
from collections import Counter
from concurrent.futures import CancelledError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from runtime_support import PATIENCE_S
from support import program

from miriam.errors import ClosedError, ModelError, QueueFullError
from miriam.runtime.caller import Caller
from miriam.runtime.desk import Desk, Entry
from miriam.runtime.queue import Queue
from miriam.runtime.response import Response, host_us
from miriam.task import Task

PROGRAM = program(launches=[(1, 32)])
CALLER = Caller()


def response(name="a", level=0, number=0, deadline_us=math.inf, withdraw=lambda _: False):
    return Response(
        Task(name, PROGRAM, level), number, (), deadline_us=deadline_us, expires_us=math.inf, submitted_us=host_us(),
        wrap=tuple, withdraw=withdraw, caller=CALLER,
    )  # fmt: skip


WAITING = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.sampled_from([1.0, 2.0, 3.0, math.inf])))


@given(WAITING)
def test_levels_go_in_their_order_and_inside_a_level_deadlines_do(waiting):
    queue = Queue()
    for number, (name, level, deadline_us) in enumerate(waiting):
        queue.push(response(name, level, number, deadline_us), most=100)
    assert len(queue) == len(waiting)
    taken = []
    while (one := queue.take(lambda level: True, ())) is not None:
        taken.append((-one.criticality, one.deadline_us, one.number))
    assert taken == sorted((-n, d, i) for i, (_, n, d) in enumerate(waiting))
    assert len(queue) == 0


@given(WAITING, st.sets(st.integers(0, 3)), st.sets(st.sampled_from("abc")))
def test_what_goes_is_the_first_that_may(waiting, full, busy):
    queue = Queue()
    for number, (name, level, deadline_us) in enumerate(waiting):
        queue.push(response(name, level, number, deadline_us), most=100)
    may = [(-n, d, i) for i, (name, n, d) in enumerate(waiting) if n not in full and name not in busy]
    one = queue.take(lambda level: level not in full, busy)
    assert (None if one is None else one.number) == (min(may)[2] if may else None)


def test_each_task_has_a_queue_of_its_own_length():
    queue = Queue()
    for number in range(3):
        queue.push(response("a", number % 2, number), most=3)
    with pytest.raises(QueueFullError, match="3 requests of a wait already"):
        queue.push(response("a", 1, 3), most=3)
    queue.push(response("b", 0, 4), most=1)
    assert (queue.depth("a"), queue.depth("b")) == (3, 1)


class Device:
    """Where a desk sends requests, which end when a test says so."""

    def __init__(self):
        self.there, self.hints = [], []
        self.came = threading.Semaphore(0)

    def offer(self, request):
        self.there.append(request)
        self.came.release()

    def hint(self, level):
        self.hints.append(level)


class Ends(RuleBasedStateMachine):
    """Requests come, run, fail, are given up, and all of it ends, in any order."""

    given = Bundle("given")

    def __init__(self):
        super().__init__()
        self.device, self.told = Device(), Counter()
        self.depth = 1
        self.desk = Desk(self.device, host_us, self.depth, preempts=True, witnesses=[self])
        self.entries = {name: Entry(name, 0, most=3, keep=10) for name in "abc"}
        for entry in self.entries.values():
            self.desk.admit(entry)
        self.all, self.submitted, self.rejected = [], Counter(), Counter()
        self.over = False

    def answered(self, response):
        assert response.done()
        self.told[response] += 1

    @rule(
        target=given, name=st.sampled_from("abc"), level=st.integers(0, 3),
        deadline_us=st.sampled_from([5.0, 9.0, math.inf]),
    )  # fmt: skip
    def submit(self, name, level, deadline_us):
        one = response(name, level, len(self.all), deadline_us, self.desk.withdraw)
        try:
            self.desk.submit(self.entries[name], one)
        except QueueFullError:
            self.rejected[name] += 1
            self.submitted[name] += 1
            assert self.desk.statistics(self.entries[name]).queue_depth == 3
        except ClosedError:
            assert self.over
        else:
            self.submitted[name] += 1
            self.all.append(one)
        return one

    @rule(one=consumes(given))
    def cancel(self, one):
        waited = one in self.all and not one.done() and not one.running()
        assert one.cancel() is waited
        assert not one.cancel() or waited

    @precondition(lambda self: self.device.there)
    @rule(data=st.data(), fails=st.booleans())
    def end(self, data, fails):
        request = data.draw(st.sampled_from(self.device.there))
        self.device.there.remove(request)
        request.outputs, request.error = ((request.number,), None) if not fails else (None, ValueError("no"))
        self.desk.settle(request)

    @rule(wait=st.sampled_from([True, False, False, False]))
    def fail(self, wait):
        if wait:
            self.desk.fail(OSError("the device is gone"))
            self.device.there.clear()
            self.over = True

    @invariant()
    def nothing_waits_behind_a_lower_level(self):
        running = [one for one in self.all if one.running()]
        assert sorted(one.number for one in running) == sorted(r.number for r in self.device.there)
        levels, busy = Counter(one.criticality for one in running), {one.name for one in running}
        for one in self.all:
            if not one.done() and not one.running():
                assert levels[one.criticality] == self.depth or one.name in busy

    @invariant()
    def every_request_has_one_end_and_is_counted_once(self):
        assert {one: 1 for one in self.all if one.done()} == self.told
        for name, entry in self.entries.items():
            s = self.desk.statistics(entry)
            ends = s.answered + s.failed + s.timed_out + s.cancelled + s.rejected
            assert s.submitted == self.submitted[name] == ends + s.queue_depth + s.running
            assert s.rejected == self.rejected[name]

    def teardown(self):
        while self.device.there:
            request = self.device.there.pop(0)
            request.outputs = (request.number,)
            self.desk.settle(request)
        self.desk.close(drain=True)
        for one in self.all:
            if not one.cancelled():
                error = one.exception(0)
                assert (one.result(0) == (one.number,)) if error is None else isinstance(error, ModelError | OSError)
            else:
                with pytest.raises(CancelledError):
                    one.result(0)
        self.every_request_has_one_end_and_is_counted_once()


TestEnds = Ends.TestCase
TestEnds.settings = settings(max_examples=40, stateful_step_count=30)


class TestHints:
    def desk(self):
        device = Device()
        desk = Desk(device, host_us, 1, preempts=True)
        entries = [Entry(name, level, 9, 9) for name, level in (("low", 0), ("mid", 1), ("high", 2))]
        for entry in entries:
            desk.admit(entry)
        return device, desk, entries

    def give(self, desk, entry, number):
        one = response(entry.name, entry.criticality, number, withdraw=desk.withdraw)
        desk.submit(entry, one)
        return one

    def test_lower_levels_wait_until_the_request_is_there(self):
        device, desk, (low, mid, high) = self.desk()
        desk.hint(mid, host_us() + 1e9)
        self.give(desk, low, 0)
        assert device.there == []
        self.give(desk, high, 1)
        assert [r.number for r in device.there] == [1]
        self.give(desk, mid, 2)
        assert [r.number for r in device.there] == [1, 2, 0]
        assert device.hints == [1, None]
        desk.close(drain=False) if not device.there else desk.fail(OSError())

    def test_the_highest_of_several_counts_and_each_ends_by_itself(self):
        device, desk, (_, mid, high) = self.desk()
        first, second = desk.hint(high, host_us() + 1e9), desk.hint(mid, host_us() + 1e9)
        desk.unhint(first, first)
        desk.unhint(second)
        assert device.hints == [2, 1, None]
        desk.close(drain=True)

    def test_it_is_over_after_its_time(self):
        device, desk, (low, _, high) = self.desk()
        one = response("low", 0, 0, withdraw=desk.withdraw)
        desk.hint(high, host_us() + 1e3)
        desk.submit(low, one)
        assert device.came.acquire(timeout=PATIENCE_S)
        desk.settle(device.there.pop())
        assert one.result(60) == ()
        assert device.hints == [2, None]
        desk.close(drain=True)
