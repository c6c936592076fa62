"""What becomes of an interrupted run, by how often its lane is held down: it walks, it stays, it is cut into spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_support import QUIET, Scripted, serve
from support import Profiles, program

from miriam.coordinator import View
from miriam.device.base import Command, Event, EventKind, Lane, Run, Span
from miriam.device.sim.device import SimDevice
from miriam.device.sim.spec import parse
from miriam.elastic.pauses import SPAN, spans
from miriam.program import Program
from miriam.task import Request, Task

SPEC = parse("sim:h200")
GAP_US, BLOCK_US = 0.52, 10.0
WHOLE, PART = "sim:h200", "sim:h200/131"
CRITICAL = program("critical", [(8, 128)] * 3)
SLOW = program("slow", [(132 * 3000, 64)] + [(8, 64)] * 20)


def alike(name: str, launches: int, blocks: int) -> Program:
    """A program of the same launch again and again."""
    one = program(name, [(blocks, 64)])
    return replace(one, launches=one.launches * launches)


LONG = alike("long", 3 * SPAN, 8)


def both(
    name: str, normal: Program, begins: Sequence[float], interrupts: Sequence[float], until_us: float = 1e9,
    lanes: Sequence[int | Lane] = (0, 1),
) -> tuple[SimDevice, list[Request], Scripted]:  # fmt: skip
    """Elastic requests in lane 0, and critical ones beside them that leave it no SMs."""

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            if event.request.task.critical:
                yield Run(event.request, 1, limits={0: 0})
            else:
                yield Run(event.request, 0, workers=132)

    profiles = Profiles(normal, CRITICAL, block_us=BLOCK_US, gap_us=GAP_US, residency=1, counters=QUIET)
    lower, upper = Task(normal.name, normal), Task("critical", CRITICAL, 1)
    arrivals = [(lower, at) for at in begins] + [(upper, at) for at in interrupts]
    policy = Scripted(lanes, decide)
    return *serve(name, profiles, policy, *arrivals, until_us=until_us), policy


def waits(device: SimDevice) -> list[float]:
    """How long the second launch of each critical request waited behind the first."""
    return [late.begin_us - early.end_us for early, late in pairs(device)]


def pairs(device: SimDevice) -> list[tuple[Span, Span]]:
    own = [span for span in device.usage().spans if span.run.lane == 1]
    return list(zip(own[::3], own[1::3], strict=True))


def ends(done: Iterable[Request]) -> list[float]:
    """When critical requests were over."""
    return [r.finish_us for r in done if r.task.critical and r.finish_us is not None]


def back_us(device: SimDevice, after_us: float) -> float:
    """When lane 0 has blocks again."""
    return next(at for at, threads in device.usage().samples if at > after_us - 1e-6 and threads[0])


@pytest.mark.parametrize("name", [WHOLE, "sim:xavier", "sim:rtx2060"])
def test_beside_rare_requests_who_is_interrupted_stays_and_walks_when_they_are_over(name: str) -> None:
    spec = parse(name)
    device, done, _ = both(name, SLOW, [0.0], [10_000.0, 20_000.0, 25_000.0], 29_000.0)
    walk_us = 20 * spec.skip_us
    first, second, third = waits(device)
    assert first > second + BLOCK_US
    assert second == pytest.approx(third)
    first, second, third = (back_us(device, end_us) - end_us for end_us in ends(done))
    assert second - first == pytest.approx(walk_us)
    assert third - first == pytest.approx(walk_us)


@pytest.mark.parametrize(("name", "lanes"), [(PART, (0, 1)), (WHOLE, (Lane("part", 0, sms=100), Lane("critical", 1)))])
def test_in_a_partition_nobody_stays(name: str, lanes: Sequence[int | Lane]) -> None:
    device, done, _ = both(name, SLOW, [0.0], [10_000.0, 20_000.0, 25_000.0], 29_000.0, lanes)
    assert min(waits(device)) > 20 * SPEC.skip_us - BLOCK_US * 2
    for end_us in ends(done):
        assert back_us(device, end_us) - end_us == pytest.approx(GAP_US)


def test_beside_frequent_requests_a_long_run_walks_only_within_its_span() -> None:
    begins, interrupts = [0.0, 5000.0], [500.0, 1000.0, 5950.0]
    device, done, policy = both(WHOLE, LONG, begins, interrupts)
    left_us = [e.time_us - SPEC.host_notice_us for e in policy.heard if e.kind is EventKind.YIELDED][-1]
    after = [s for s in device.usage().spans if s.run.lane == 0 and s.run.request.arrival_us == 5000.0]
    at = sum(s.end_us < left_us for s in after)
    span = next(span for span in spans(len(LONG.launches)) if at in span)
    assert span.start not in (0, at)
    assert span.stop < len(LONG.launches)
    first, second = pairs(device)[-1]
    walked_us = left_us + (span.stop - at - 1) * SPEC.skip_us
    assert walked_us > first.end_us
    assert second.begin_us == pytest.approx(walked_us + GAP_US)
    (*_, end_us) = ends(done)
    assert back_us(device, end_us) - end_us == pytest.approx((at - span.start) * SPEC.skip_us + GAP_US)


def test_a_run_that_is_cut_takes_a_gate_and_a_step_for_each_span() -> None:
    def took_us(name: str) -> tuple[float, float]:
        _, done, _ = both(name, LONG, [0.0, 2200.0, 10_000.0], [2500.0])
        before, after = (r for r in done if not r.task.critical and r.arrival_us != 2200.0)
        return before.finish_us - before.start_us, after.finish_us - after.start_us

    before_us, after_us = took_us(WHOLE)
    assert after_us - before_us == pytest.approx((len(spans(len(LONG.launches))) - 1) * SPEC.span_us)
    before_us, after_us = took_us(PART)
    assert after_us == pytest.approx(before_us)


def test_a_span_that_has_not_begun_walks_over_nothing() -> None:
    # Cut by then, the last request comes to the device just when its lane is held.
    begins, interrupts = [0.0, 5000.0], [500.0, 5050.0]
    device, _, policy = both(WHOLE, LONG, begins, interrupts)
    assert [event.kind for event in policy.heard].count(EventKind.YIELDED) == 2
    assert waits(device)[-1] == pytest.approx(GAP_US)
    device, _, _ = both(PART, LONG, begins, interrupts)
    assert waits(device)[-1] > 100 * SPEC.skip_us


@pytest.mark.parametrize(("apart_us", "least"), [(400.0, 1.5), (1500.0, 1.0)])
def test_beside_frequent_requests_a_long_program_gets_more_done_when_it_is_cut(apart_us: float, least: float) -> None:
    until_us = 100_000.0
    interrupts = [apart_us * i for i in range(1, int(until_us / apart_us))]

    def count(name: str) -> tuple[int, float]:
        _, done, _ = both(name, LONG, [1500.0 * i for i in range(66)], interrupts, until_us)
        slowest_us = max(r.finish_us - r.arrival_us for r in done if r.task.critical)
        return sum(not r.task.critical for r in done), slowest_us

    (cut, cut_us), (uncut, uncut_us) = count(WHOLE), count(PART)
    assert cut >= least * uncut
    assert cut_us < uncut_us


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from([WHOLE, PART, "sim:xavier", "sim:orin"]),
    launches=st.integers(1, 4 * SPAN),
    interrupts=st.lists(st.floats(0.0, 20_000.0), max_size=30),
)
def test_whatever_is_interrupted_runs_once_and_the_same_again_to_the_bit(
    name: str, launches: int, interrupts: list[float]
) -> None:
    normal = alike("normal", launches, 40)

    def once() -> object:
        device, done, policy = both(name, normal, [0.0, 100.0, 5000.0], interrupts)
        assert len(done) == 3 + len(interrupts)
        usage = device.usage()
        assert usage.blocks == 3 * 40 * launches + 3 * 8 * len(interrupts)
        assert len(usage.spans) == 3 * launches + 3 * len(interrupts)
        return [(event.kind, event.time_us) for event in policy.heard], usage.samples, usage.busy_us

    assert once() == once()
