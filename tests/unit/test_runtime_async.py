"""The runtime in asyncio, and every request's one end whatever many threads do."""

import asyncio
import concurrent.futures
import contextlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_support import ONE, PATIENCE_S, Held, Witness

import miriam
from miriam.errors import InputError, MiriamError, QueueFullError


def double(x):
    return 2 * x


@pytest.fixture
def rt():
    with miriam.Runtime("cpu") as runtime:
        yield runtime


def test_many_are_awaited_at_a_time(rt):
    task = rt.load(double, ONE, queue=100)

    async def main():
        return await asyncio.gather(*(task.async_(i * ONE) for i in range(50)))

    assert asyncio.run(main()) == [2 * i for i in range(50)]


def test_the_event_loop_goes_on_while_one_is_awaited(rt):
    gate = Held()
    task = rt.load(gate, ONE)
    gate.hold()

    async def main():
        asked = asyncio.create_task(task.async_(ONE))
        await asyncio.to_thread(gate.begun)
        assert not asked.done()
        gate.open()
        return await asked

    assert asyncio.run(main()) == 2


def test_a_response_can_be_wrapped(rt):
    task = rt.load(double, ONE)

    async def main():
        return await asyncio.wrap_future(task.submit(ONE))

    assert asyncio.run(main()) == 2


def test_whoever_is_cancelled_gives_up_what_waits(rt):
    gate = Held()
    task = rt.load(gate, ONE)
    gate.hold()

    async def main():
        first = asyncio.create_task(task.async_(ONE))
        await asyncio.to_thread(gate.begun)
        waiting = asyncio.create_task(task.async_(ONE))
        await asyncio.sleep(0)
        assert task.statistics.queue_depth == 1
        for one in (first, waiting):
            one.cancel()
        await asyncio.wait([first, waiting])
        assert first.cancelled()
        assert waiting.cancelled()

    asyncio.run(main())
    s = task.statistics
    assert (s.queue_depth, s.running, s.cancelled) == (0, 1, 1), "what runs goes on to its end"
    gate.open()
    rt.unload(task)


def test_errors_are_raised_where_they_are_awaited(rt):
    task = rt.load(double, ONE)

    async def main():
        with pytest.raises(InputError):
            await task.async_(1.0)
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0):
                await task.async_(ONE)
        return await task.async_(ONE)

    assert asyncio.run(main()) == 2


def test_an_answer_that_comes_after_the_event_loop_has_ended_disturbs_nobody(rt, caplog):
    gate = Held()
    task = rt.load(gate, ONE)
    gate.hold()
    asked = []

    async def main():
        asked.append(task.submit(ONE))
        waiting = asyncio.create_task(asked[0].answered())
        await asyncio.to_thread(gate.begun)
        waiting.cancel()

    asyncio.run(main())
    gate.open()
    assert asked[0].result(PATIENCE_S) == 2
    assert caplog.text == ""


ACTS = st.tuples(
    st.sampled_from(["ask", "ask", "ask", "fail", "hurry", "cancel", "unload", "load", "hint"]), st.integers(0, 2),
    st.integers(0, 3),
)  # fmt: skip


@settings(max_examples=25)
@given(st.lists(st.lists(ACTS, max_size=12), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_every_request_has_one_end_whatever_threads_do(scripts, held, drain):
    def model(x):
        if x[0] < 0:
            raise ValueError("below zero")
        return x

    witness, gate, asked = Witness(), Held(), []
    rt = miriam.Runtime("cpu", listeners=[witness])
    holding = rt.load(gate, ONE, name="gate", criticality=3)
    for i in range(3):
        rt.load([model, model], ONE, name=f"t{i}", criticality=i, queue=4)
    if held:
        gate.hold()
        asked.append(holding.submit(ONE))
        gate.begun()

    def act(what, name, level):
        if what == "load":
            rt.load(model, ONE, name=name, criticality=level, queue=4)
        elif what == "unload":
            rt.unload(name, drain=False) if held else rt.unload(name, drain=drain)
        elif what == "cancel":
            if asked:
                asked[level % len(asked)].cancel()
        elif what == "hint":
            with rt[name].hint():
                asked.append(rt[name].submit(ONE))
        else:
            x = -ONE if what == "fail" else ONE
            asked.append(rt[name].submit(x, criticality=level, timeout_ms=0.01 if what == "hurry" else None))

    def run(script):
        for what, number, level in script:
            # Full, or not there, or there already: as it comes.
            with contextlib.suppress(MiriamError, KeyError):
                act(what, f"t{number}", level)

    threads = [threading.Thread(target=run, args=(script,)) for script in scripts]
    for thread in threads:
        thread.start()
    if not held:
        for thread in threads:
            thread.join(PATIENCE_S)
    gate.open()
    for thread in threads:
        thread.join(PATIENCE_S)
    rt.close(drain=drain)
    concurrent.futures.wait(asked, PATIENCE_S)
    assert all(one.done() for one in asked)
    assert {one.number for one in asked} == witness.ends.keys()
    assert set(witness.ends.values()) <= {1}
    for one in asked:
        if one.cancelled():
            continue
        error = one.exception(0)
        assert isinstance(error, MiriamError) if error is not None else one.result(0) in (1, 2)


def test_a_full_queue_is_refused_in_every_thread(rt):
    gate, full = Held(), []
    task = rt.load(gate, ONE, queue=3)
    gate.hold()
    first = task.submit(ONE)
    gate.begun()

    def ask(_):
        try:
            return task.submit(ONE)
        except QueueFullError as error:
            full.append(error)
            return None

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [one for one in pool.map(ask, range(40)) if one is not None]
    assert (len(waiting), len(full)) == (3, 37)
    gate.open()
    assert [one.result(PATIENCE_S) for one in (first, *waiting)] == [2] * 4
