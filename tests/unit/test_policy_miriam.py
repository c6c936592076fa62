"""The coordinator of the paper; M1 to M9 are the statements of its conformance list."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import EDGE, Script, ScriptedDevice, serve, setting_of
from support import program

from miriam.coordinator import View
from miriam.device.base import Command, Event, Run
from miriam.elastic.shards import slices
from miriam.errors import PolicyError
from miriam.policy import Setting
from miriam.policy.miriam import Miriam
from miriam.task import Criticality, Task

TURN_US = 25.0


@dataclass
class Seen:
    """A command, and what was in flight before it."""

    time_us: float
    run: Run
    critical: Run | None
    normal: list[Run]

    @property
    def elastic(self) -> bool:
        return self.run.workers is not None

    @property
    def busy(self) -> int:
        """Blocks of normal runs in flight, this one included."""
        return sum(blocks(run) for run in [*self.normal, self.run])


def blocks(run: Run) -> int:
    if run.blocks is not None:
        return run.blocks[1] - run.blocks[0]
    return max(run.request.task.program.launches[i].blocks for i in run.launches)


class Watched:
    """Miriam with its commands written down."""

    name = "watched"

    def __init__(self, setting: Setting, **options) -> None:
        self.policy = Miriam(setting, **options)
        self.lanes = self.policy.lanes
        self.seen: list[Seen] = []
        self._critical = [i for i, lane in enumerate(self.lanes) if not lane.name.startswith("normal")]
        self._normal = [i for i, lane in enumerate(self.lanes) if lane.name.startswith("normal")]

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        for run in self.policy.decide(event, view):
            critical = next((view.flying(lane)[0] for lane in self._critical if view.flying(lane)), None)
            normal = [run for lane in self._normal for run in view.flying(lane)]
            self.seen.append(Seen(view.now_us, run, critical, normal))
            yield run

    def report(self) -> Mapping[str, float]:
        return self.policy.report()

    @property
    def shards(self) -> list[Seen]:
        """What was dispatched in critical mode."""
        return [s for s in self.seen if s.critical is not None and not s.run.request.task.critical]


def watch(script: Script, device: ScriptedDevice | None = None, **options) -> tuple[Watched, ScriptedDevice]:
    _, device, policy = serve(lambda setting: Watched(setting, **options), script, device)
    assert isinstance(policy, Watched)
    return policy, device


def task(name: str, *launches: tuple[int, int], critical: bool = False, **more) -> Task:
    return Task(name, program(name, launches, **more), Criticality.CRITICAL if critical else Criticality.NORMAL)


GRIDS = st.sampled_from([1, 2, 4, 6, 8, 12, 27, 48, 64])
LAUNCHES = st.lists(st.tuples(GRIDS, st.sampled_from([32, 96, 256, 512, 1024])), min_size=1, max_size=5)
SETS = st.tuples(
    st.lists(st.tuples(st.sampled_from([1, 1, 3]), LAUNCHES), min_size=1, max_size=2),
    st.lists(st.tuples(st.just(0), LAUNCHES), min_size=1, max_size=2),
    st.lists(st.tuples(st.floats(0, 60), st.integers(0, 3)), max_size=8),
    st.booleans(),
    st.sampled_from(["figure", "strict"]),
    st.sampled_from([0.0, 4.0, TURN_US]),
)


@given(SETS)
@settings(deadline=None, max_examples=150)
def test_whatever_comes(drawn):
    critical, normal, times, loop, fits, turn_us = drawn
    tasks = [Task(f"t{i}", program(f"t{i}", steps), level) for i, (level, steps) in enumerate(critical + normal)]
    arrivals = [(0.0, t) for t in tasks] + [(time_us, tasks[i % len(tasks)]) for time_us, i in times]
    policy, _ = watch(Script(arrivals, {tasks[-1].name: 3} if loop else {}), fits=fits, turn_us=turn_us)

    touched = set()
    for s in policy.seen:
        run, kernel = s.run, s.run.request.task.program.kernel_of(s.run.first)
        part = (run.request, run.first)
        if run.request.task.critical:  # M1: only normal kernels are transformed
            assert (run.blocks, run.workers, run.threads) == (None, None, None)
            assert s.time_us == run.request.arrival_us  # M5: without waiting
            assert run.after == ()
            assert policy.lanes[run.lane].priority > 0
            continue
        assert policy.lanes[run.lane].priority == 0
        if s.critical is None:  # M6: original form, or the rest of a launch that was sharded
            assert run.threads is None
            assert (part in touched) == s.elastic
            assert len(s.normal) < 2
        else:
            beside = s.critical.request.task.program.launches
            times_us = ScriptedDevice().launch_us(s.critical.request.task.program)
            longest = max(s.critical.launches, key=times_us.__getitem__)
            last_wave = beside[longest].blocks % EDGE.sms
            threads = run.threads or kernel.threads
            assert blocks(run) <= EDGE.sms - last_wave  # M4: limits (a)
            assert threads <= EDGE.threads_per_sm - s.critical.request.task.program.kernel_of(longest).threads
            full = last_wave or EDGE.sms
            stacked = full + (EDGE.sms - full) * EDGE.residency(kernel, threads)
            assert s.busy <= (stacked if fits == "figure" else EDGE.sms - last_wave)
            assert all(other.lane != run.lane for other in s.normal)
        if run.blocks is not None:  # M2
            size = run.blocks[1] - run.blocks[0]
            assert size in slices(run.request.task.program.launches[run.first].blocks)
            assert run.workers == size
            touched.add(part)


FIGURE_CRITICAL = task("critical", (6, 672), (6, 672), critical=True)
FIGURE_NORMAL = task("normal", (64, 256), (8, 256))


def test_the_overview_figure():
    """M7: four SMs, a critical kernel of six blocks; padding beside its blocks and on the idle SMs."""
    script = Script([(0.0, FIGURE_CRITICAL), (0.0, FIGURE_NORMAL)])
    policy, device = watch(script, turn_us=0.0)
    assert {blocks(s.run) for s in policy.shards} == {2}
    assert max(s.busy for s in policy.shards) == 8  # 2 beside the last wave, and stacked on the 2 other SMs
    first = [s for s in policy.shards if s.critical.first == 0]
    assert len(first) > 4
    # After the critical request the rest goes in its largest subtrees, and the next launch as it was.
    rest = [s for s in policy.seen if s.critical is None]
    assert [s.run.workers for s in rest if s.elastic] == sorted(
        (s.run.workers for s in rest if s.elastic), reverse=True
    )
    assert rest[-1].run.launches == range(1, 2)
    assert not rest[-1].elastic
    assert device.log[-1].run is rest[-1].run


def test_strict_never_has_more_in_flight_than_one_shard_may_have():
    script = Script([(0.0, FIGURE_CRITICAL), (0.0, FIGURE_NORMAL)])
    policy, _ = watch(script, fits="strict", turn_us=0.0)
    assert policy.shards
    assert max(s.busy for s in policy.shards) == 2


def test_blocks_are_thinner_where_only_that_fits():
    script = Script([(0.0, task("critical", (6, 896), critical=True)), (0.0, FIGURE_NORMAL)])
    policy, _ = watch(script)
    assert {s.run.threads for s in policy.shards} == {128}


def test_a_kernel_that_does_not_fit_waits_for_normal_mode():
    tall = task("critical", (6, 1024), critical=True)
    policy, _ = watch(Script([(0.0, tall), (0.0, FIGURE_NORMAL), (0.1, FIGURE_NORMAL)]))
    assert policy.shards == []
    assert not any(s.elastic for s in policy.seen)


def test_unfinished_shards_are_carried_over_to_the_next_critical_kernel():
    # The second launch leaves one SM idle in its last wave, the first three.
    critical = task("critical", (9, 512), (11, 512), critical=True)
    policy, _ = watch(Script([(0.0, critical), (0.0, task("normal", (64, 512)))]), turn_us=0.0)
    sizes = {launch: {blocks(s.run) for s in policy.shards if s.critical.first == launch} for launch in (0, 1)}
    assert sizes == {0: {2}, 1: {1}}
    ends = sorted(s.run.blocks for s in policy.seen if s.run.blocks)
    assert ends[0][0] == 0
    assert ends[-1][1] == 64


def opaque(task_: Task, *launches: int) -> Task:
    kernels = list(task_.program.kernels)
    for i in launches:
        kernels[i] = replace(kernels[i], ptx=None, opaque="part of a library", digest="")
    return replace(task_, program=replace(task_.program, kernels=tuple(kernels)))


def test_opaque_kernels_run_whole_beside_a_critical_one_if_they_fit_and_else_alone():
    normal = opaque(task("normal", (2, 128), (16, 128), (2, 128)), 0, 1)
    policy, _ = watch(Script([(0.0, FIGURE_CRITICAL), (0.0, normal)]))
    assert [(s.run.launches, s.critical is not None, s.elastic) for s in policy.seen[1:]] == [
        (range(1), True, False), (range(1, 3), False, False),
    ]  # fmt: skip


def test_critical_launches_are_enqueued_at_once_and_short_ones_together():
    critical = task("critical", (40, 256), (4, 256), (8, 256), (120, 256), (4, 256), critical=True)  # 10 1 2 30 1 us
    policy, device = watch(Script([(3.0, critical), (4.0, critical)]))
    assert [s.run.launches for s in policy.seen] == [range(4), range(4, 5)] * 2
    assert {s.time_us for s in policy.seen} == {3.0, 4.0}
    assert [d.end_us for d in device.log] == [46.0, 47.0, 90.0, 91.0]


def test_a_higher_level_has_a_higher_lane_and_the_padding_follows_it():
    low = Task("low", program("low", [(6, 672)] * 4), criticality=1)
    high = Task("high", program("high", [(6, 928)] * 2), criticality=5)
    policy, _ = watch(Script([(0.0, low), (0.0, FIGURE_NORMAL), (1.0, high)]), turn_us=0.0)
    assert [(lane.name, lane.priority) for lane in policy.lanes[:2]] == [("level 5", 2), ("critical", 1)]
    assert {lane.priority for lane in policy.lanes[2:]} == {0}
    beside_high = [s for s in policy.shards if s.critical.request.task is high]
    assert beside_high
    assert {s.run.threads for s in beside_high} == {96}


def test_normal_mode_keeps_two_runs_in_flight_and_nothing_behind_long_ones():
    short = task("short", *[(40, 256)] * 9)  # 10 us each
    policy, device = watch(Script([(0.0, short)]))
    assert [s.run.launches for s in policy.seen] == [range(3), range(3, 6), range(6, 9)]
    assert [s.time_us for s in policy.seen] == [0.0, 0.0, 30.0]
    assert device.log[-1].end_us == 90.0
    policy, device = watch(Script([(0.0, task("long", (480, 256), (4, 256)))]))  # 120 and 1 us
    assert [s.time_us for s in policy.seen] == [0.0, 120.0]


def test_requests_of_a_higher_normal_level_go_first_and_one_that_began_goes_on():
    low, high = task("low", (400, 256), (400, 256)), task("high", (4, 256))
    script = Script([(0.0, replace(low, criticality=-1)), (1.0, replace(low, criticality=-1)), (2.0, high)])
    _, device = watch(script)
    assert [d.request.number for d in device.log] == [0, 0, 2, 1, 1]


def test_the_design_space_and_the_cost_of_deciding_are_reported():
    device = ScriptedDevice(EDGE)
    policy, _ = watch(Script([(0.0, FIGURE_CRITICAL), (0.0, FIGURE_NORMAL)]), device)
    report = policy.report()
    # Two critical launches times two normal ones: 7 x 8 and 4 x 8 candidates, 2 x 8 of them feasible.
    assert {name: report[name] for name in ("pairs", "candidates", "feasible", "kept")} == {
        "pairs": 4, "candidates": 2 * (56 + 32), "feasible": 4 * 16, "kept": 4 * 4,
    }  # fmt: skip
    assert report["pruned_share"] == pytest.approx((1 - 4 / 56 + 1 - 4 / 32) / 2)
    assert report["shards"] == sum(s.elastic for s in policy.seen)
    assert report["host_us_per_request"] > 0  # M9
    assert all(isinstance(value, int | float) for value in report.values())


def test_launches_that_would_cost_too_much_are_not_sharded():
    script = Script([(0.0, FIGURE_CRITICAL), (0.0, FIGURE_NORMAL)])
    policy, _ = watch(script, ScriptedDevice(command_us=5.0), limit_us=5.0 * 31)  # 64 blocks in pairs are 32 launches
    assert policy.shards == []


def test_launches_shorter_than_two_commands_are_not_cut():
    critical = task("critical", (200, 256), critical=True)  # 50 us, and a full last wave
    normal = task("normal", (16, 256), (24, 256), (64, 256), (8, 256))  # 4 6 16 2 us
    policy, _ = watch(Script([(0.0, critical), (0.0, normal)]), ScriptedDevice(command_us=4.0))
    whole = [s.run.launches for s in policy.shards if not s.elastic]
    assert whole == [range(2), range(3, 4)]
    assert {s.run.first for s in policy.shards if s.elastic} == {2}


def test_an_unknown_reading_of_the_room_is_an_error():
    with pytest.raises(PolicyError, match="'figure' or 'strict'"):
        Miriam(setting_of([FIGURE_NORMAL], ScriptedDevice()), fits="loose")
