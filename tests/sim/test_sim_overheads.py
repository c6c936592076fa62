"""What a device and its host take beside blocks: runs, company, passes that walk, shared memory that is split."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from sim_support import QUIET, Scripted, serve, whole_runs
from support import Profiles, program

from miriam.coordinator import View
from miriam.device.base import Command, Event, EventKind, Run, Span
from miriam.device.sim.device import SimDevice
from miriam.device.sim.spec import parse
from miriam.program import Program
from miriam.task import Task

SPEC = parse("sim:h200/8")
GAP_US = 0.52


def constant(*programs: Program, residency: int = 1, block_us: float = 10.0) -> Profiles:
    return Profiles(*programs, block_us=block_us, gap_us=GAP_US, residency=residency, counters=QUIET)


def of(device: SimDevice, lane: int) -> list[Span]:
    return [span for span in device.usage().spans if span.run.lane == lane]


def test_a_run_takes_the_host_an_event_and_a_graph_and_the_device_a_little_more_than_its_launches() -> None:
    toy = program("toy", [(8, 64)] * 5)
    policy = Scripted([0], whole_runs({"toy": 0}))
    _, (request,) = serve("sim:h200/8", constant(toy), policy, (Task("toy", toy), 100.0))
    host_us = SPEC.host_event_us + 5 * SPEC.host_step_us + SPEC.host_graph_us + 5 * SPEC.host_node_us
    assert request.finish_us == pytest.approx(100 + host_us + SPEC.run_us + 5 * (GAP_US + 10))
    assert policy.heard[-1].time_us == pytest.approx(request.finish_us + SPEC.host_notice_us)


def test_an_end_that_the_host_books_delays_the_next_command() -> None:
    toy = program("toy", [(8, 64)])

    def decide(event: Event, view: View) -> Iterable[Command]:
        if view.pending and view.idle(0):
            yield Run(view.pending[0], 0)

    policy, task = Scripted([0], decide), Task("toy", toy)
    _, done = serve("sim:h200/8", constant(toy), policy, (task, 0.0), (task, 1.0))
    ends = [event.time_us for event in policy.heard if event.kind is EventKind.FINISHED]
    booked_us = SPEC.host_event_us + SPEC.host_step_us
    assert done[1].start_us == pytest.approx(ends[0] + booked_us + SPEC.host_launch_us + SPEC.run_us + GAP_US)


def test_an_elastic_run_takes_a_gate_and_a_step() -> None:
    toy = program("toy", [(8, 64)])
    starts = []
    for form in ({}, {"workers": 8}):
        _, (request,) = serve("sim:h200/8", constant(toy), Scripted([0], whole_runs({"toy": 0}, **form)),
                              (Task("toy", toy), 0.0))  # fmt: skip
        assert request.start_us is not None
        starts.append(request.start_us)
    assert starts[1] - starts[0] == pytest.approx(SPEC.elastic_run_us)


def test_launches_follow_each_other_later_in_company() -> None:
    one, other = program("one", [(4, 64)] * 3), program("other", [(4, 128)] * 9)
    policy = Scripted([0, 0], whole_runs({"one": 0, "other": 1}))
    device, _ = serve("sim:h200/8", constant(one, other), policy, (Task("one", one), 0.0), (Task("other", other), 0.0))
    first, second, _ = of(device, 0)
    assert second.begin_us - first.end_us == pytest.approx(GAP_US + SPEC.company_gap_us)
    *_, before, last = of(device, 1)  # the other has ended by then
    assert last.begin_us - before.end_us == pytest.approx(GAP_US)


def test_a_pass_that_was_left_walks_over_its_other_launches_and_others_wait_for_it() -> None:
    normal, critical = program("normal", [(800, 64)] + [(8, 64)] * 20), program("critical", [(8, 128)] * 3)

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            if event.request.task.critical:
                yield Run(event.request, 1, limits={0: 0})
            else:
                yield Run(event.request, 0, workers=99)

    policy = Scripted([0, 1], decide)
    device, done = serve("sim:h200/8", constant(normal, critical, residency=4), policy,
                         (Task("normal", normal), 0.0), (Task("critical", critical, 1), 50.0))  # fmt: skip
    assert [request.task.name for request in done] == ["critical", "normal"]
    first, second, third = of(device, 1)
    left_us = next(event.time_us for event in policy.heard if event.kind is EventKind.YIELDED) - SPEC.host_notice_us
    assert left_us < first.end_us
    assert second.begin_us == pytest.approx(left_us + 20 * SPEC.skip_us + GAP_US)
    assert third.begin_us - second.end_us == pytest.approx(GAP_US)


@pytest.mark.parametrize(("kib", "beside"), [(0, False), (90, True)])
def test_shared_memory_of_an_sm_is_split_as_its_first_block_wants_it(kib: int, beside: bool) -> None:
    # Ninety KiB leave room for a second block of that size in an SM split for two; none leave no such room.
    first = program("first", [(8, 64)], shared_bytes=kib * 1024)
    second = program("second", [(8, 128)], shared_bytes=90 * 1024)
    device, _ = serve("sim:h200/8", constant(first, second, residency=2, block_us=40.0),
                      Scripted([0, 0], whole_runs({"first": 0, "second": 1})),
                      (Task("first", first), 0.0), (Task("second", second), 0.1))  # fmt: skip
    (early,), (late,) = of(device, 0), of(device, 1)
    assert (late.begin_us < early.end_us - 1) is beside


def test_a_carveout_is_the_least_that_suffices() -> None:
    assert SPEC.carveout_bytes(0) == 0
    assert SPEC.carveout_bytes(20 * 1024) == 32 * 1024
    assert SPEC.carveout_bytes(228 * 1024) == SPEC.geometry.shared_per_sm_bytes
