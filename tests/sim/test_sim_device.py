from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_support import MEASURED_SMS, QUIET, Arrivals, HandMade, Scripted, alone, serve, whole_runs
from support import Profiles, program

from miriam.coordinator import View, coordinate
from miriam.device.base import Command, Event, EventKind, Lane, Limit, Run
from miriam.device.sim.device import SimDevice
from miriam.device.sim.spec import Spec, parse
from miriam.errors import DeviceError, ProfileError
from miriam.profile import Counters, LaunchProfile
from miriam.program import Buffer, Kernel, Launch, Program, Role, Source
from miriam.task import Request, Task

LAUNCH_US, GRAPH_US, NOTICE_US, GAP_US = 4.2, 4.0, 4.0, 0.52
EXTRA_US = (
    "host_node_us", "host_event_us", "host_step_us", "run_us", "elastic_run_us", "company_gap_us"
)  # fmt: skip
BUSY = Counters(2e6, 1e6, 4e6, 6e6, 0.3, 0.5)


def constant(*programs: Program, block_us: float = 10.0, residency: int = 1, counters: Counters = QUIET) -> Profiles:
    return Profiles(*programs, block_us=block_us, gap_us=GAP_US, residency=residency, counters=counters)


pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices that take no time beside blocks, gaps and commands: where and when blocks go can be counted."""

    def lean(name: str) -> Spec:
        without = dict.fromkeys(EXTRA_US, 0.0)
        return replace(parse(name), host_graph_us=GRAPH_US, host_notice_us=NOTICE_US, **without)

    monkeypatch.setattr("miriam.device.sim.device.parse", lean)


# Alone


@settings(max_examples=30)
@given(
    launches=st.lists(st.tuples(st.integers(1, 3000), st.sampled_from([32, 96, 256])), min_size=1, max_size=8),
    loads=st.tuples(*[st.floats(0.0, 1.0)] * 4),
    uneven=st.lists(st.floats(1.0, 1.5), min_size=5, max_size=5),
    sms=st.sampled_from(MEASURED_SMS),
)
def test_a_program_alone_takes_the_sum_of_its_launches(
    launches: list[tuple[int, int]], loads: tuple[float, ...], uneven: list[float], sms: int
) -> None:
    toy, profiles = program("toy", launches), HandMade()
    for i, (blocks, _) in enumerate(launches):
        times = {s: 3.0 + u * 7.0 * -(-blocks // (5 * s)) for s, u in zip(MEASURED_SMS, uneven, strict=True)}
        some = Counters(*(load * times[132] * 4.8e6 for load in loads), 0.0, loads[0])
        profiles.add(toy, i, LaunchProfile(times, 5, some, measured=True))
    total_us = sum(
        profiles.launch("h200", (k.digest, s.grid)).times_us[sms]
        for k, s in zip(toy.kernels, toy.launches, strict=False)
    )
    assert alone(f"sim:h200/{sms}", profiles, toy) == pytest.approx(total_us, rel=0.01)


def test_launch_times_are_known_before_the_device_is_opened() -> None:
    toy = program("toy", [(264, 128), (10, 64)])
    assert SimDevice("sim:h200", constant(toy)).launch_us(toy) == pytest.approx((2 * 10 + GAP_US, 10 + GAP_US))


# Company


def test_a_load_that_does_not_meet_does_not_slow_down() -> None:
    latency, memory = program("latency", [(132, 128)]), program("memory", [(132, 256)])
    profiles = HandMade()
    profiles.add(latency, 0, _taking_100_us(Counters(0, 0, 0, 1e6, 0.05, 0.05)))
    profiles.add(memory, 0, _taking_100_us(_streaming(0.9)))
    a, b = Task("a", latency), Task("b", memory)
    _, done = serve("sim:h200", profiles, Scripted([0, 0], whole_runs({"a": 0, "b": 1})), (a, 0.0), (b, 0.0))
    assert all(_took(request) < 1.05 * 100 for request in done)


def test_two_that_need_the_whole_bandwidth_share_it() -> None:
    first, second = program("first", [(132, 128)]), program("second", [(132, 256)])
    profiles = HandMade()
    for toy in (first, second):
        profiles.add(toy, 0, _taking_100_us(_streaming(0.95)))
    a, b = Task("a", first), Task("b", second)
    _, done = serve("sim:h200", profiles, Scripted([0, 0], whole_runs({"a": 0, "b": 1})), (a, 0.0), (b, 0.0))
    assert len(done) == 2
    assert all(1.7 * 100 < _took(request) < 2.0 * 100 for request in done)


@settings(max_examples=40)
@given(data=st.data())
def test_company_never_makes_faster(data: st.DataObject) -> None:
    shape = st.lists(st.tuples(st.integers(1, 400), st.sampled_from([32, 64, 256])), min_size=1, max_size=4)
    ours, theirs = program("ours", data.draw(shape)), program("theirs", data.draw(shape))
    some = st.builds(Counters, *[st.floats(0.0, 3e7)] * 4, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
    profiles = HandMade()
    for toy in (ours, theirs):
        for i, step in enumerate(toy.launches):
            times = {s: 1.06 + 5.0 * -(-step.blocks // (4 * s)) for s in MEASURED_SMS}
            profiles.add(toy, i, LaunchProfile(times, 4, data.draw(some), measured=True))
    solo_us = alone("sim:h200/8", profiles, ours)
    a, b = Task("a", ours), Task("b", theirs)
    priorities = data.draw(st.sampled_from([(0, 0), (1, 0), (0, 1)]))
    begin_us = data.draw(st.floats(0.0, 60.0))
    _, done = serve("sim:h200/8", profiles, Scripted(priorities, whole_runs({"a": 0, "b": 1})), (b, 0.0), (a, begin_us))
    (request,) = (request for request in done if request.task is a)
    assert request.latency_us >= 0.995 * solo_us


@pytest.mark.parametrize(("other_bytes", "slower"), [(10 << 20, False), (200 << 20, True)])
def test_what_ran_in_between_leaves_cold_caches(other_bytes: int, slower: bool) -> None:
    ours, theirs = program("ours", [(132, 128)]), program("theirs", [(132, 256)])
    weights = replace(ours.buffers[2], role=Role.WEIGHT, size_bytes=15 << 20)  # what the launch is given
    ours = replace(ours, buffers=(*ours.buffers[:2], weights))
    theirs = replace(theirs, buffers=(*theirs.buffers, Buffer("more", other_bytes, Role.INTERMEDIATE)))
    profiles = HandMade()
    profiles.add(ours, 0, _taking_100_us(Counters(0, 0, 2e7, 6e7, 0.1, 0.1)))
    profiles.add(theirs, 0, _taking_100_us(QUIET))
    a, b = Task("a", ours), Task("b", theirs)
    _, done = serve("sim:h200", profiles, Scripted([0, 0], whole_runs({"a": 0, "b": 1})),
                    (a, 0.0), (a, 1000.0), (b, 2000.0), (a, 3000.0), (a, 4000.0))  # fmt: skip
    first, again, _, behind, warm = (_took(request) for request in done)
    assert first == pytest.approx(100, rel=3e-3)  # a change of load of less than 0.5 % is not passed on
    assert again == pytest.approx(first)
    assert warm == pytest.approx(first)
    assert (behind > 105) if slower else (behind == pytest.approx(first))
    assert behind < 130


# Priorities and order


def test_higher_priority_places_first_and_nothing_running_is_evicted() -> None:
    low, high = program("low", [(8 * 4, 128)]), program("high", [(8, 64)])
    profiles = constant(low, high, residency=1)
    low_task, high_task = Task("low", low), Task("high", high, 1)
    device, _ = serve("sim:h200/8", profiles, Scripted([0, 1], whole_runs({"low": 0, "high": 1})),
                      (low_task, 0.0), (high_task, 12.0))  # fmt: skip
    spans = {span.run.request.task.name: span for span in device.usage().spans}
    # The wave of eight that runs when the high lane is ready ends first; the high wave comes next, then the rest.
    start = LAUNCH_US + GAP_US
    assert spans["high"].begin_us == pytest.approx(start + 20)
    assert spans["high"].end_us == pytest.approx(start + 30)
    assert spans["low"].end_us == pytest.approx(start + 50)


def test_a_lower_lane_waits_while_a_higher_one_has_blocks_that_do_not_fit() -> None:
    wide, thin = program("wide", [(9, 1024)], registers=64), program("thin", [(1, 32)], registers=16)
    profiles = HandMade()
    for toy, us in ((wide, 11.06), (thin, 3.06)):
        profiles.add(toy, 0, LaunchProfile(dict.fromkeys(MEASURED_SMS, us), 32, QUIET, measured=True))
    tasks = Task("wide", wide), Task("thin", thin)
    policy = Scripted([1, 0], whole_runs({"wide": 0, "thin": 1}))
    device, _ = serve("sim:h200/8", profiles, policy, (tasks[0], 0.0), (tasks[1], 0.0))
    spans = {span.run.request.task.name: span for span in device.usage().spans}
    # A register file full of wide blocks would still hold the thin one if wide blocks were spread
    # over all SMs: it has to wait until the ninth of them, which does not fit, has been placed.
    first_wave = LAUNCH_US + GAP_US + _took_of(device, wide)
    assert spans["thin"].begin_us == pytest.approx(first_wave)


def test_equal_priorities_go_in_the_order_in_which_they_became_ready() -> None:
    first, second = program("first", [(20, 128)]), program("second", [(20, 64)])
    profiles = constant(first, second)
    policy = Scripted([0, 0], whole_runs({"second": 0, "first": 1}))
    device, _ = serve("sim:h200/8", profiles, policy, (Task("first", first), 0.0), (Task("second", second), 0.1))
    spans = {span.run.request.task.name: span for span in device.usage().spans}
    last_wave = LAUNCH_US + GAP_US + 2 * 10
    assert spans["second"].begin_us == pytest.approx(last_wave)  # beside the last four of the first
    assert spans["first"].end_us == pytest.approx(last_wave + 10)


def test_a_lane_runs_its_runs_in_order_and_launches_one_after_another() -> None:
    toy = program("toy", [(8, 64), (16, 64), (4, 128)])
    task = Task("toy", toy)
    device, done = serve("sim:h200/8", constant(toy), Scripted([0], whole_runs({"toy": 0})), (task, 0.0), (task, 1.0))
    assert [request.number for request in done] == [0, 1]
    spans = device.usage().spans
    assert [(span.run.request.number, span.launch, span.blocks) for span in spans] == [
        (0, 0, 8), (0, 1, 16), (0, 2, 4), (1, 0, 8), (1, 1, 16), (1, 2, 4),
    ]  # fmt: skip
    for before, behind in itertools.pairwise(spans):
        assert behind.begin_us == pytest.approx(before.end_us + GAP_US)


def test_after_is_ordered_by_the_device() -> None:
    toy = program("toy", [(8, 64)])
    runs: list[Run] = []

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            runs.append(Run(event.request, len(runs), after=tuple(runs)))
            yield runs[-1]

    task = Task("toy", toy)
    device, done = serve(
        "sim:h200/8", constant(toy), Scripted([0, 5, 9], decide), (task, 0.0), (task, 0.0), (task, 0.0)
    )
    spans = {span.run.request.number: span for span in device.usage().spans}
    assert spans[1].begin_us == pytest.approx(spans[0].end_us + GAP_US)
    assert spans[2].begin_us == pytest.approx(spans[1].end_us + GAP_US)
    assert len(done) == 3


def test_after_a_run_that_has_finished_starts_at_once() -> None:
    toy = program("toy", [(8, 64)])
    first: list[Run] = []

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            run = Run(event.request, 0, after=tuple(first))
            first.append(run)
            yield run

    task = Task("toy", toy)
    _, done = serve("sim:h200/8", constant(toy), Scripted([0], decide), (task, 0.0), (task, 1000.0))
    assert done[1].latency_us == pytest.approx(done[0].latency_us)


# Workers and limits


def test_workers_keep_their_places_and_take_blocks_one_after_another() -> None:
    toy = program("toy", [(60, 64)])
    device, _ = serve("sim:h200/8", constant(toy, residency=4), Scripted([0], whole_runs({"toy": 0}, workers=6)),
                      (Task("toy", toy), 0.0))  # fmt: skip
    (span,) = device.usage().spans
    block_us = 10 * device.spec.elastic_overhead
    assert span.end_us - span.begin_us == pytest.approx(10 * block_us)
    assert max(threads for _, (threads,) in device.usage().samples) == 6 * 64
    assert device.usage().blocks == 60


def test_a_limit_holds_from_the_next_block_boundary_and_until_it_is_raised() -> None:
    toy = program("toy", [(160, 64)])
    commands = {1: Limit(0, 3), 2: Limit(0, None)}

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            yield Run(event.request, 0, workers=99)
        elif event.kind is EventKind.TICK and event.time_us in (12.0, 40.0):
            yield commands.pop(min(commands))
        elif event.kind is EventKind.TICK:
            held.append(list(device.resident()[:, 0]))

    held: list[list[int]] = []
    device = SimDevice("sim:h200/8", constant(toy, residency=2))
    policy, arrivals = Scripted([0], decide), Arrivals((Task("toy", toy), 0.0))
    _at(device, [10.0, 12.0, 36.0, 40.0, 50.0])
    coordinate(device, policy, arrivals, 1e9, (0.0, 1e12))
    assert held == [[2] * 8, [2] * 3 + [0] * 5, [2] * 8]
    block_us = 10 * device.spec.elastic_overhead
    first_us = LAUNCH_US + GAP_US
    threads = [(at, n // 64) for at, (n,) in device.usage().samples]
    narrow = [n for at, n in threads if first_us + 2 * block_us - 1 < at < 40.0 + LAUNCH_US]
    assert set(narrow) == {6}
    assert (pytest.approx(40.0 + LAUNCH_US), 16) in threads
    assert device.usage().blocks == 160


def test_workers_that_had_to_leave_come_back_where_they_may_stay() -> None:
    toy = program("toy", [(80, 64)])

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            yield Run(event.request, 0, workers=8)
        elif event.kind is EventKind.TICK and event.time_us == 12.0:
            yield Limit(0, 3)
        elif event.kind is EventKind.TICK:
            held.append(list(device.resident()[:, 0]))

    held: list[list[int]] = []
    device = SimDevice("sim:h200/8", constant(toy, residency=3))
    _at(device, [10.0, 12.0, 36.0])
    coordinate(device, Scripted([0], decide), Arrivals((Task("toy", toy), 0.0)), 1e9)
    assert held == [[1] * 8, [3, 3, 2] + [0] * 5]


def test_who_finds_no_room_under_a_limit_keeps_nobody_waiting() -> None:
    first, second = program("first", [(200, 64)]), program("second", [(8, 64)])

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            workers = 99 if event.request.task.name == "first" else None
            yield Run(event.request, int(workers is None), workers=workers)
            if workers:
                yield Limit(0, 2)

    _, done = serve("sim:h200/8", constant(first, second, residency=2), Scripted([1, 0], decide),
                    (Task("first", first), 0.0), (Task("second", second), 30.0))  # fmt: skip
    assert done[0].task.name == "second"
    assert done[0].latency_us == pytest.approx(LAUNCH_US + GAP_US + 10)


def test_a_lane_with_a_partition_uses_its_own_sms_and_others_use_all() -> None:
    toys = [program(f"toy{i}", [(80, 64)]) for i in range(3)]

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            lane = int(event.request.task.name)
            yield Run(event.request, lane, workers=99 if lane == 1 else None)
        elif event.kind is EventKind.TICK:
            held.append(device.resident().T.tolist())
            yield Limit(1, 1)

    held: list[list[list[int]]] = []
    device = SimDevice("sim:h200/8", constant(*toys, residency=2))
    policy = Scripted([Lane("a", 1, 3), Lane("b", 1, 2), Lane("c")], decide)
    _at(device, [17.0, 41.0, 1010.0])
    arrivals = Arrivals(*((Task(str(i), toy), 1000.0 * (i > 1)) for i, toy in enumerate(toys)))
    coordinate(device, policy, arrivals, 1e9)
    (a, b, _), (_, narrow, _), (_, _, c) = held
    assert a == [0, 0, 0, 0, 0, 2, 2, 2]
    assert b == [0, 0, 0, 2, 2, 0, 0, 0]
    assert c == [2] * 8
    assert narrow == [0, 0, 0, 2, 0, 0, 0, 0]


def test_a_limit_of_zero_yields_once_and_the_run_goes_on_when_it_rises() -> None:
    toy = program("toy", [(80, 64), (8, 64)])
    commands = {1: Limit(0, 0), 2: Limit(0, 0), 3: Limit(0, 8)}

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            yield Run(event.request, 0, workers=8)
        elif event.kind is EventKind.TICK:
            yield commands.pop(min(commands))

    policy = Scripted([0], decide)
    device, (request,) = _ticking("sim:h200/8", constant(toy), policy, [12.0, 50.0, 200.0], (Task("toy", toy), 0.0))
    kinds = [event.kind for event in policy.heard]
    assert kinds.count(EventKind.YIELDED) == 1
    yielded = next(event for event in policy.heard if event.kind is EventKind.YIELDED)
    block_us = 10 * device.spec.elastic_overhead
    assert yielded.time_us == pytest.approx(GRAPH_US + GAP_US + 2 * block_us + NOTICE_US)
    assert yielded.run is not None
    assert yielded.run.request is request
    assert request.finish_us is not None
    assert request.finish_us == pytest.approx(200 + LAUNCH_US + GAP_US + 8 * block_us + GAP_US + block_us)
    assert device.usage().blocks == 88


def test_limits_of_a_run_hold_from_its_start_to_its_end() -> None:
    normal, critical = program("normal", [(400, 64)]), program("critical", [(8, 128), (8, 128)])

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            if event.request.task.critical:
                yield Run(event.request, 1, limits={0: 2})
            else:
                yield Run(event.request, 0, workers=99)

    policy = Scripted([0, 1], decide)
    device, _ = serve("sim:h200/8", constant(normal, critical, residency=4), policy,
                      (Task("normal", normal), 0.0), (Task("critical", critical, 1), 50.0))  # fmt: skip
    spans = [span for span in device.usage().spans if span.run.lane == 1]
    begin_us, end_us = spans[0].begin_us - GAP_US, spans[-1].end_us
    during = {n[0] // 64 for at, n in device.usage().samples if begin_us + 11 < at < end_us - 1e-3}
    behind = {n[0] // 64 for at, n in device.usage().samples if end_us <= at < end_us + 5}
    assert during == {8}  # four on each of two SMs
    assert behind == {32}


def test_what_only_runs_whole_ignores_workers_and_waits_for_a_pause_to_end() -> None:
    plain = program("plain", [(64, 64), (64, 128)])
    library = Kernel("library", Source.LIBRARY, (128, 1, 1), 32, opaque="closed library")
    mixed = Program(
        "mixed", "sm_90a", (plain.kernels[0], library), (plain.launches[0], Launch(1, (64, 1, 1))), plain.buffers
    )
    commands = {1: Limit(0, 0), 2: Limit(0, None)}

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            yield Run(event.request, 0, workers=8)
        elif event.kind is EventKind.TICK:
            yield commands.pop(min(commands))

    policy = Scripted([0], decide)
    device, _ = _ticking("sim:h200/8", constant(mixed, residency=8), policy, [80.0, 300.0], (Task("mixed", mixed), 0.0))
    elastic, whole = device.usage().spans
    # It was launched again and passed the first launch, which was complete.
    assert whole.begin_us == pytest.approx(300 + LAUNCH_US + device.spec.skip_us + GAP_US)
    assert whole.end_us - whole.begin_us == pytest.approx(10)  # all 64 at once, no worker's overhead
    assert elastic.end_us < 300


# The host


def test_host_costs_and_times_of_a_request() -> None:
    toy = program("toy", [(8, 64), (8, 64)])
    policy = Scripted([0], whole_runs({"toy": 0}))
    task = Task("toy", toy)
    _, done = serve("sim:h200/8", constant(toy), policy, (task, 100.0), (task, 100.0))
    assert policy.heard[0].time_us == 100.0
    assert policy.heard[1].time_us == pytest.approx(100 + GRAPH_US)  # the host is busy with the first
    assert done[0].start_us == pytest.approx(100 + GRAPH_US + GAP_US)
    assert done[0].finish_us == pytest.approx(100 + GRAPH_US + 2 * (GAP_US + 10))
    finished = next(event for event in policy.heard if event.kind is EventKind.FINISHED)
    assert finished.time_us == pytest.approx(done[0].finish_us + NOTICE_US)


def test_shards_finish_a_request_when_the_last_of_them_ends() -> None:
    toy = program("toy", [(8, 64), (16, 64)])

    def decide(event: Event, view: View) -> Iterable[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            first = Run(event.request, 0, first=0, last=1)
            yield first
            yield Run(event.request, 0, first=1, blocks=(0, 4), after=(first,))
            yield Run(event.request, 1, first=1, blocks=(4, 16), after=(first,))

    device, (request,) = serve("sim:h200/8", constant(toy), Scripted([0, 0], decide), (Task("toy", toy), 0.0))
    spans = device.usage().spans
    assert sorted((span.launch, span.blocks) for span in spans) == [(0, 8), (1, 4), (1, 12)]
    assert request.finish_us == max(span.end_us for span in spans)
    assert request.start_us == min(span.begin_us for span in spans)


def test_the_end_of_a_run_of_the_coordinator_cuts_off() -> None:
    toy = program("toy", [(8, 64)])
    policy = Scripted([0], whole_runs({"toy": 0}))
    device, done = serve("sim:h200/8", constant(toy), policy, (Task("toy", toy), 0.0), until_us=10.0)
    assert done == []
    assert 0 < device.usage().busy_us < 10


# Usage


def test_usage_of_one_full_wave() -> None:
    toy = program("toy", [(16, 64)])
    device, _ = serve("sim:h200/8", constant(toy, residency=2), Scripted([0], whole_runs({"toy": 0})),
                      (Task("toy", toy), 0.0))  # fmt: skip
    usage = device.usage()
    assert usage.busy_us == pytest.approx(10)
    assert usage.sm_active == pytest.approx(1)
    assert usage.occupancy == pytest.approx(2 * 2 / 64)
    assert usage.blocks == 16
    begin_us = LAUNCH_US + GAP_US
    assert usage.samples == ((pytest.approx(begin_us), (16 * 64,)), (pytest.approx(begin_us + 10), (0,)))


def test_occupancy_counts_sms_that_work() -> None:
    toy = program("toy", [(2, 1024)])
    device, _ = serve("sim:h200/8", constant(toy), Scripted([0], whole_runs({"toy": 0})), (Task("toy", toy), 0.0))
    assert device.usage().sm_active == pytest.approx(2 / 8)
    assert device.usage().occupancy == pytest.approx(0.5)


def test_the_trace_window_bounds_spans_and_samples() -> None:
    toy = program("toy", [(8, 64)])
    task = Task("toy", toy)
    device, _ = serve("sim:h200/8", constant(toy), Scripted([0], whole_runs({"toy": 0})),
                      *((task, 100.0 * i) for i in range(10)), trace_us=(250.0, 450.0))  # fmt: skip
    assert [span.run.request.number for span in device.usage().spans] == [3, 4]
    assert all(250 <= at <= 450 for at, _ in device.usage().samples)
    untraced, _ = serve("sim:h200/8", constant(toy), Scripted([0], whole_runs({"toy": 0})), (task, 0.0), trace_us=None)
    assert untraced.usage().spans == untraced.usage().samples == ()


def test_many_spans_and_samples_are_all_kept() -> None:
    toy = program("toy", [(1, 32)] * 60)
    task = Task("toy", toy)
    device, _ = serve("sim:h200/8", constant(toy), Scripted([0], whole_runs({"toy": 0})), *[(task, 0.0)] * 200)
    assert len(device.usage().spans) == 60 * 200
    assert len(device.usage().samples) == 2 * 60 * 200


# Errors


@pytest.mark.parametrize(("change", "words"), [
    ({"lane": 2}, "lane 2"),
    ({"lane": 0, "first": 2}, "launches"),
    ({"lane": 0, "workers": 0}, "workers"),
    ({"lane": 0, "blocks": (0, 99)}, "blocks"),
    ({"lane": 0, "limits": {7: 1}}, "lane 7"),
    ({"lane": 0, "limits": {1: -1}}, "-1 SMs"),
    ({"lane": 0, "limits": {0: 1}}, "own lane"),
])  # fmt: skip
def test_runs_that_make_no_sense(change: dict[str, object], words: str) -> None:
    toy = program("toy", [(8, 64), (8, 64)])
    device = SimDevice("sim:h200/8", constant(toy))
    device.open([Lane("a"), Lane("b")])
    with pytest.raises(DeviceError, match=words):
        device.submit(Run(Request(Task("toy", toy), 0, 0.0), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [Limit(2, 1), Limit(-1, 1), Limit(0, -3)])
def test_limits_that_make_no_sense(limit: Limit) -> None:
    device = SimDevice("sim:h200/8", Profiles())
    device.open([Lane("a"), Lane("b")])
    with pytest.raises(DeviceError):
        device.submit(limit)


def test_a_run_is_submitted_once() -> None:
    toy = program("toy")
    device = SimDevice("sim:h200/8", constant(toy))
    device.open([Lane("a")])
    run = Run(Request(Task("toy", toy), 0, 0.0), 0)
    device.submit(run)
    with pytest.raises(DeviceError, match="twice"):
        device.submit(run)


def test_a_shard_of_what_only_runs_whole() -> None:
    library = Kernel("library", Source.LIBRARY, (128, 1, 1), 32, opaque="closed library")
    toy = Program("toy", "sm_90a", (library,), (Launch(0, (8, 1, 1)),))
    device = SimDevice("sim:h200/8", constant(toy))
    device.open([Lane("a")])
    request = Request(Task("toy", toy), 0, 0.0)
    device.submit(Run(request, 0, blocks=(0, 8)))
    with pytest.raises(DeviceError, match="closed library"):
        device.submit(Run(request, 0, blocks=(0, 4)))


def test_what_was_not_measured_is_refused() -> None:
    toy = program("toy")
    device = SimDevice("sim:h200", HandMade())
    device.open([Lane("a")])
    with pytest.raises(ProfileError, match="miriam profile"):
        device.submit(Run(Request(Task("toy", toy), 0, 0.0), 0))


def test_a_device_is_opened_once_and_before_use() -> None:
    device = SimDevice("sim:h200", Profiles())
    for use in (
        device.usage,
        lambda: device.wake(1.0),
        lambda: device.submit(Limit(0, 1)),
        lambda: next(device.events(1)),
    ):
        with pytest.raises(DeviceError, match="open"):
            use()
    with pytest.raises(DeviceError, match="lane"):
        device.open([])
    with pytest.raises(DeviceError, match=r"'a' 100, 'b' 33.*has 132"):
        device.open([Lane("a", sms=100), Lane("b", sms=33), Lane("c")])
    with pytest.raises(DeviceError, match="'a' has a partition of 0"):
        device.open([Lane("a", sms=0)])
    device.open([Lane("a")])
    with pytest.raises(DeviceError, match="before"):
        device.open([Lane("a")])
    device.close()
    device.close()


def test_an_arrival_in_the_past_is_refused() -> None:
    toy = program("toy")
    late = Request(Task("toy", toy), 1, 5.0)

    def decide(event: Event, view: View) -> Iterable[Command]:
        device.offer(late)
        return ()

    device = SimDevice("sim:h200", constant(toy))
    with pytest.raises(DeviceError, match="before they arrive"):
        coordinate(device, Scripted([0], decide), Arrivals((Task("toy", toy), 50.0)), 1e6)


# Helpers


def _took(request: Request) -> float:
    assert request.finish_us is not None
    assert request.start_us is not None
    return request.finish_us - request.start_us


def _took_of(device: SimDevice, toy: Program) -> float:
    (span,) = [span for span in device.usage().spans if span.run.request.task.program is toy]
    return 0.5 * (span.end_us - span.begin_us)


def _taking_100_us(counters: Counters) -> LaunchProfile:
    return LaunchProfile({132: 100 + GAP_US}, 16, counters, measured=True)


def _streaming(share: float) -> Counters:
    """Counters of 100 us at a share of the bandwidth."""
    moved = share * 4.8e6 * 100
    return Counters(moved, 0, moved, moved, 0.1, 0.1)


def _ticking(name: str, profiles: Profiles, policy: Scripted, ticks: list[float], *arrivals: tuple[Task, float]
             ) -> tuple[SimDevice, list[Request]]:  # fmt: skip
    device = SimDevice(name, profiles)
    _at(device, ticks)
    return device, coordinate(device, policy, Arrivals(*arrivals), 1e9, (0.0, 1e12))


def _at(device: SimDevice, ticks: list[float]) -> None:
    """Let the device give ticks at these times once it is open."""
    open_ = device.open

    def opened(*args: object) -> None:
        open_(*args)  # type: ignore[arg-type]
        for at in ticks:
            device.wake(at)

    device.open = opened  # type: ignore[assignment, method-assign]
