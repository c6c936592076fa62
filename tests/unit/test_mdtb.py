"""The benchmark from end to end, on toys and the simulated device."""

import json
import multiprocessing
import os
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from bench_support import CLOSED, PERIODIC, RANDOM, SHAPES, STEADY, Clockwork, toy_profiles, toy_program, toy_results
from rich.console import Console
from support import Profiles

from miriam.bench import MDTB, Poisson, Results, Uniform, print_table, run_mdtb
from miriam.bench import run as run_benchmark
from miriam.bench.arrivals import Closed
from miriam.bench.report import render
from miriam.bench.report.svg import time_text
from miriam.bench.results import Made, Point
from miriam.bench.suites import SUITES, select
from miriam.bench.workload import Workload
from miriam.errors import DeviceError, MiriamError, PolicyError, ProgramError, WorkloadError
from miriam.policy import NAMES
from miriam.profile import ProfileSource
from miriam.program import Program
from miriam.task import Criticality

POLICIES = ("sequential", "multistream", "miriam")


def run(*workloads: Workload, policies: str = "multistream", seed: int = 0, jobs: int = 1, **options: float) -> Results:
    return run_mdtb(
        workloads, policies, "sim:h200/16", 0.01, seed, jobs=jobs, programs=toy_program, profiles=toy_profiles,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


def comparable(results: Results) -> Results:
    """Without what depends on the machine that ran it."""

    def point(p: Point) -> Point:
        return replace(p, report={k: v for k, v in p.report.items() if not k.startswith("host")})

    return replace(results, made=Made("", 0, {}, {}), points=tuple(map(point, results.points)))


@pytest.fixture(scope="module")
def results() -> Results:
    return toy_results()


def test_each_task_runs_alone_then_all_under_each_policy(results: Results) -> None:
    expected = [(w, label) for w in "XYZ" for label in ("quick alone", "big alone", *POLICIES)]
    assert [(p.workload, p.label) for p in results.points] == expected
    assert [len(p.tasks) for p in results.points] == [1, 1, 2, 2, 2] * 3
    assert results.simulated
    assert results.notes
    assert set(results.programs) == {"short", "long"}
    assert [(s.blocks, s.threads) for s in results.programs["short"]] == [(16, 128), (32, 256), (8, 64)]


def test_a_task_alone_in_a_closed_loop_keeps_the_device_to_itself(results: Results) -> None:
    alone = results.alone("X", "quick")
    shared = results.point("X", "multistream")
    assert alone is not None
    assert shared is not None
    assert alone.tasks[0].throughput_per_s > shared.tasks[0].throughput_per_s
    response = alone.tasks[0].response
    assert response is not None
    assert response.max_us == pytest.approx(response.p50_us, rel=0.01)
    slower = shared.tasks[0].slowdown
    assert slower is not None
    assert slower.p50 > 1


def test_open_arrivals_are_the_same_under_every_policy_and_alone(results: Results) -> None:
    for workload in ("Y", "Z"):
        counts = {p.tasks[0].arrived for p in results.points if p.workload == workload and p.tasks[0].name == "quick"}
        assert len(counts) == 1


def test_same_seed_same_results_whatever_the_number_of_processes() -> None:
    one, again, other = run(CLOSED, RANDOM), run(CLOSED, RANDOM, jobs=2), run(CLOSED, RANDOM, seed=1)
    assert comparable(one) == comparable(again)
    assert comparable(one).points != comparable(other).points
    assert comparable(one).points[:3] == comparable(other).points[:3]  # closed loops hold nothing random


def test_timelines_show_a_critical_request_of_the_second_half(results: Results) -> None:
    for point in results.points:
        if point.alone == "big":
            assert point.timeline is None
            continue
        timeline = point.timeline
        assert timeline is not None
        assert 0.5 * 0.02e6 * 0.8 < timeline.begin_us < timeline.end_us <= 0.02e6
        assert any(timeline.tasks[r.task] == "quick" and r.finish_us is not None for r in timeline.requests)
        assert timeline.bars
        assert all(0 <= b.begin_us <= b.end_us <= timeline.length_us for b in timeline.bars)
        assert list(timeline.time_us) == sorted(timeline.time_us)
        assert all(len(lane) == len(timeline.time_us) for lane in timeline.resident)
        totals = [sum(held) for held in zip(*timeline.resident, strict=True)]
        assert 0 < max(totals) <= timeline.capacity
    windows = {(p.timeline.begin_us, p.timeline.end_us) for p in results.points if p.workload == "Y" and p.timeline}
    assert len(windows) == 1


def test_shards_show_in_the_timeline_of_miriam() -> None:
    def slow() -> ProfileSource:  # launches that last longer than the host takes for a command
        return Profiles(*map(toy_program, SHAPES), block_us=60.0)

    found = run_mdtb([CLOSED], "miriam", "sim:h200/16", 0.05, jobs=1, programs=toy_program, profiles=slow)
    bars = [b for p in found.points if p.policy == "miriam" and p.timeline for b in p.timeline.bars]
    shards = [b for b in bars if b.workers is not None]
    assert shards
    assert all(b.first_block is not None and b.blocks <= 128 for b in shards)


@pytest.mark.parametrize("load", [0.1, 0.5])
def test_critical_load_is_how_busy_the_critical_task_alone_is(load: float) -> None:
    found = run_mdtb(
        [PERIODIC], "multistream", "sim:h200/16", 0.05, jobs=1, critical_load=load, programs=toy_program,
        profiles=toy_profiles,
    )  # fmt: skip
    alone = found.alone("Y", "quick")
    assert alone is not None
    assert alone.tasks[0].service is not None
    critical = found.workloads[0].entries[0]
    assert isinstance(critical.arrivals, Uniform)
    assert alone.tasks[0].service.p50_us * critical.arrivals.rate_per_s * 1e-6 == pytest.approx(load, rel=0.1)
    assert critical.deadline_us == critical.arrivals.gap_us


def test_scaling_keeps_ratios_and_leaves_closed_loops_alone() -> None:
    scaled = RANDOM.scaled(0.5, 100.0)
    assert [e.arrivals for e in scaled.entries] == [Poisson(5000.0), Uniform(6250.0)]
    assert CLOSED.scaled(0.5, 100.0) == CLOSED
    for load in (0, -1, 1.5):
        with pytest.raises(WorkloadError, match="above 0 and at most 1"):
            RANDOM.scaled(load, 100.0)


def test_progress_is_told_and_files_are_written(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    found = run_mdtb(
        [CLOSED], "sequential", "sim:h200/16", 0.005, out=tmp_path / "new" / "report", jobs=1,
        programs=toy_program, profiles=toy_profiles, progress=lambda *args: told.append(args),
    )  # fmt: skip
    assert told == [(1, 3, "X, quick alone"), (2, 3, "X, big alone"), (3, 3, "X, sequential")]
    folder = tmp_path / "new" / "report"
    assert sorted(f.name for f in folder.iterdir()) == ["index.html", "results.json", "trace.json"]
    assert Results.load(folder / "results.json") == found
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]


def test_a_run_too_short_for_a_single_request() -> None:
    slow = replace(RANDOM, entries=tuple(replace(e, arrivals=Uniform(0.1)) for e in RANDOM.entries))
    found = run(slow, policies="sequential,miriam")
    for point in found.points:
        assert all(t.response is None and t.throughput_per_s == 0 for t in point.tasks)
        assert point.overall_vs_sequential is None
    console = Console(record=True, width=120, file=StringIO())
    print_table(found, console)
    assert "–" in console.export_text()


def broken_program(name: str) -> Program:
    if name == "long":
        raise ProgramError("there is no such program: compile it")
    return toy_program(name)


def odd_program(name: str) -> Program:
    raise ZeroDivisionError("by zero")


def deadly_program(name: str) -> Program:
    os._exit(7)


@pytest.mark.parametrize("jobs", [1, 2])
def test_errors_carry_the_name_of_the_point(jobs: int) -> None:
    with pytest.raises(ProgramError, match=r"^X, (quick|big) alone: there is no such program"):
        run_mdtb([CLOSED], "sequential", "sim:h200/16", 0.01, jobs=jobs, programs=broken_program, profiles=toy_profiles)
    with pytest.raises(MiriamError, match=r"^X, (quick|big) alone: ZeroDivisionError: by zero"):
        run_mdtb([CLOSED], "sequential", "sim:h200/16", 0.01, jobs=jobs, programs=odd_program, profiles=toy_profiles)


def test_a_dead_worker_is_an_error_too() -> None:
    with pytest.raises(MiriamError, match=r"^X, .*: a worker process died"):
        run_mdtb([CLOSED], "sequential", "sim:h200/16", 0.01, jobs=2, programs=deadly_program, profiles=toy_profiles)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_ends_it_and_leaves_no_process_behind(jobs: int) -> None:
    before = set(multiprocessing.active_children())

    def interrupt(done: int, total: int, label: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_mdtb(
            [PERIODIC, CLOSED], "multistream", "sim:h200/16", 0.3, jobs=jobs, programs=toy_program,
            profiles=toy_profiles, progress=interrupt,
        )  # fmt: skip
    assert set(multiprocessing.active_children()) <= before


def test_what_cannot_be_run_is_refused_with_a_way_out() -> None:
    with pytest.raises(WorkloadError, match="mdtb has no workload 'E': choose from A, B, C, D, driving"):
        run_mdtb("A,E")
    with pytest.raises(WorkloadError, match="no workload was named"):
        run_mdtb([])
    with pytest.raises(PolicyError, match="no policy 'best': take one of sequential"):
        run_mdtb("A", "sequential,best")
    with pytest.raises(PolicyError, match="no policy was named"):
        run_mdtb("A", [])
    with pytest.raises(WorkloadError, match="duration of 0 s"):
        run_mdtb("A", duration_s=0)
    with pytest.raises(WorkloadError, match="0 repeats"):
        run_mdtb("A", repeats=0)
    with pytest.raises(WorkloadError, match="on a GPU only"):
        run_mdtb("A", verify=True)
    with pytest.raises(WorkloadError, match="no benchmark 'spec': choose from mdtb, disb, pair"):
        run_benchmark("spec")
    with pytest.raises(WorkloadError, match="0 jobs"):
        run_mdtb("A", jobs=0)
    with pytest.raises(WorkloadError, match="seed -4"):
        run_mdtb("A", seed=-4)
    with pytest.raises(WorkloadError, match=r"critical load 1\.5"):
        run_mdtb("A", critical_load=1.5)
    with pytest.raises(DeviceError, match="cannot run on device 'tpu:0'"):
        run_mdtb("A", device="tpu:0")
    with pytest.raises(DeviceError, match="sim:toaster"):
        run_mdtb("A", device="sim:toaster")


@pytest.mark.parametrize("bad", [{"deadline_us": -1.0}, {"deadline_us": 0.0}, {"deadline_us": float("nan")},
                                 {"criticality": 1.5}])  # fmt: skip
def test_a_task_that_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(WorkloadError, match="'quick' has"):
        replace(CLOSED.entries[0], **bad)  # type: ignore[arg-type]


def test_mdtb_as_we_know_it() -> None:
    closed = Closed()
    expected = {
        "A": (("alexnet-b1", closed), ("cifarnet-b1", closed)),
        "B": (("squeezenet-b1", Uniform(10)), ("alexnet-b1", closed)),
        "C": (("gru-b1", Poisson(10)), ("resnet50-b1", closed)),
        "D": (("lstm-b1", Uniform(10)), ("squeezenet-b1", closed)),
        "driving": (("resnet50-b1", Uniform(10)), ("squeezenet-b1", Uniform(12.5))),
    }
    assert {name: tuple((e.model, e.arrivals) for e in w.entries) for name, w in MDTB.items()} == expected
    for workload in MDTB.values():
        assert [e.criticality for e in workload.entries] == [Criticality.CRITICAL, Criticality.NORMAL]


def test_disb_as_published() -> None:
    closed = Closed()
    five = ("resnet152-b1", "densenet201-b1", "vgg19-b1", "inceptionv3-b1", "distilbert-b1")
    beside = tuple((model, closed) for model in five)
    expected = {
        "A": ((("vgg19-b1", Uniform(100)),), (("resnet152-b1", closed),)),
        "B": ((("vgg19-b1", closed),), (("resnet152-b1", closed),)),
        "C": ((("vgg19-b1", Uniform(100)),), beside),
        "D": (tuple((model, Uniform(20)) for model in five), beside),
        "E": (tuple((model, Poisson(20)) for model in five), beside),
    }
    found = {
        name: tuple(tuple((e.model, e.arrivals) for e in w.entries if e.critical is level) for level in (True, False))
        for name, w in SUITES["disb"].workloads.items()
    }
    assert found == expected
    assert any("RTX 3080" in note for note in SUITES["disb"].notes)


def test_the_pair() -> None:
    (workload,) = SUITES["pair"].workloads.values()
    assert [(e.model, e.critical, e.arrivals) for e in workload.entries] == [
        ("resnet34-b1", True, Poisson(200)), ("resnet18-b32", False, Closed(2)),
    ]  # fmt: skip


def test_depth_is_of_normal_closed_loops() -> None:
    assert [e.arrivals for e in CLOSED.deepened(3).entries] == [Closed(), Closed(3)]
    assert RANDOM.deepened(3) == RANDOM
    found = run(CLOSED, depth=2)
    assert [e.arrivals for e in found.workloads[0].entries] == [Closed(), Closed(2)]
    alone, deep = run(CLOSED).alone("X", "big"), found.alone("X", "big")
    assert alone is not None
    assert deep is not None
    assert alone.tasks[0].response is not None
    assert deep.tasks[0].response is not None
    assert deep.tasks[0].response.p50_us > 1.25 * alone.tasks[0].response.p50_us  # one waits for the other
    assert deep.tasks[0].throughput_per_s > alone.tasks[0].throughput_per_s


def test_networks_that_the_zoo_lacks_are_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"tuned": ("resnet152-b1",), "naive": ("vgg19-naive-b1",)}
    monkeypatch.setattr("miriam.zoo.names", lambda kernels="tuned": there[kernels])
    with pytest.raises(WorkloadError, match=r"no tuned kernels of vgg19-b1: .*make_zoo\.py .*--only vgg19'"):
        run_benchmark("disb", "A,B", jobs=1)
    with pytest.raises(WorkloadError, match="no naive kernels of resnet152-b1: take the tuned ones"):
        run_benchmark("disb", "A", kernels="naive", jobs=1)


def test_turns_hold_every_point_and_arrivals_of_their_own() -> None:
    both, first, second = run(RANDOM, repeats=2), run(RANDOM), run(RANDOM, seed=1)
    assert both.repeats == 2
    assert [(p.repeat, p.label) for p in both.points] == [
        (turn, label) for turn in (0, 1) for label in ("quick alone", "big alone", "multistream")
    ]
    for turn, other in ((0, first), (1, second)):
        own = tuple(replace(p, repeat=0) for p in both.points if p.repeat == turn)
        bare = tuple(replace(p, timeline=None) for p in comparable(other).points)
        assert tuple(replace(p, timeline=None) for p in comparable(replace(both, points=own)).points) == bare
    assert all(p.timeline is None for p in both.points if p.repeat == 1)


def test_table_and_report_give_the_median_and_the_spread_of_turns() -> None:
    found = run(RANDOM, repeats=3)
    slow = sorted(p.critical.slowdown.p99 for p in found.points if p.critical and p.critical.slowdown)
    assert len(set(slow)) == 3
    console = Console(record=True, width=110, file=StringIO())
    print_table(found, console)
    assert f"{slow[1]:.2f}× ({slow[0]:.2f}–{slow[2]:.2f})" in console.export_text()
    page = render(found)
    assert f"<b>{slow[1]:.2f}×</b>" in page
    assert f"<small>{slow[0]:.2f}–{slow[2]:.2f}</small>" in page
    assert "3 turns" in page


def test_a_device_that_is_no_model_is_measured_point_by_point_after_a_longer_warm_up() -> None:
    told: list[str] = []
    found = run_mdtb(
        [STEADY], "multistream", "cuda:0", 0.6, repeats=2, programs=toy_program, profiles=toy_profiles,
        open_device=Clockwork, progress=lambda done, total, label: told.append(label),
    )  # fmt: skip
    points = ["S, quick alone", "S, big alone", "S, multistream"]
    assert told == [*points, *(f"{label}, turn 2" for label in points)]
    assert (found.simulated, found.warm_up_s) == (False, 0.5)
    assert "by the clock on the wall" in found.notes
    shared = found.point("S", "multistream", 1)
    assert shared is not None
    assert (shared.occupancy, shared.sm_active, shared.timeline) == (None, None, None)
    quick = shared.tasks[0]
    assert quick.arrived == pytest.approx(10, abs=1)
    assert quick.checked is not None
    assert quick.checked > 40
    console = Console(record=True, width=110, file=StringIO())
    print_table(found, console)
    text = console.export_text()
    assert "cuda:0 (measured), 0.6 s a run, 2 turns" in text
    assert re.search(r"outputs were compared: [\d,]+, wrong words: 8\.", text)
    assert "occ." not in text
    assert "Measured on hardware" in render(found)


def test_what_a_gpu_cannot_do_is_refused() -> None:
    for options, says in (
        ({"duration_s": 0.4}, "the first 0.5 s on a GPU do not count"),
        ({"jobs": 2}, "a GPU is measured by one"),
    ):
        with pytest.raises(WorkloadError, match=says):
            run_mdtb([CLOSED], device="cuda:0", open_device=Clockwork, **options)  # type: ignore[arg-type]


def test_workloads_by_name() -> None:
    mdtb = SUITES["mdtb"]
    assert [w.name for w in select(" a, Driving ,A", mdtb)] == ["A", "driving"]
    assert select([MDTB["C"], "B", CLOSED], mdtb) == (MDTB["C"], MDTB["B"], CLOSED)
    assert [w.name for w in select(None, mdtb)] == ["A", "B", "C", "D"]


def test_a_periodic_critical_task_is_due_before_its_next_request() -> None:
    critical, normal = RANDOM.entries
    assert PERIODIC.entries[0].task(toy_program("short")).deadline_us == 250.0
    assert PERIODIC.entries[0].task(toy_program("short")).period_us == 250.0
    assert critical.task(toy_program("short")).deadline_us is None
    assert normal.task(toy_program("long")).deadline_us is None
    assert replace(normal, deadline_us=70.0).task(toy_program("long")).deadline_us == 70.0


def test_the_table_names_every_point(results: Results) -> None:
    console = Console(record=True, width=100, file=StringIO())
    print_table(results, console)
    text = console.export_text()
    for word in ("sim:h200/16 (simulated)", "alone", *POLICIES):
        assert word in text
    assert text.count("miriam") == 3
    assert "…" not in text


def test_a_policy_that_falls_behind_is_seen_in_table_and_report() -> None:
    overloaded = replace(
        RANDOM, entries=(replace(RANDOM.entries[0], arrivals=Poisson(200_000)), *RANDOM.entries[1:])
    )  # fmt: skip
    found = run(overloaded, policies="sequential")
    task = found.points[-1].critical
    assert task is not None
    assert task.behind
    for results, marked in ((found, True), (run(PERIODIC, policies="miriam"), False)):
        console = Console(record=True, width=100, file=StringIO())
        print_table(results, console)
        assert ("did not finish in the run" in console.export_text()) is marked
        assert ("did not finish in the run" in render(results)) is marked


def test_table_and_report_look_at_the_same_task_the_most_critical() -> None:
    first, other = CLOSED.entries
    workload = replace(
        CLOSED, entries=(first, replace(first, name="urgent", model="long", criticality=2), other)
    )  # fmt: skip
    assert workload.critical is workload.entries[1]
    found = run(workload)
    alone = found.alone(workload.name, "urgent")
    assert alone is not None
    assert alone.critical is not None
    assert alone.critical.response is not None
    console = Console(record=True, width=100, file=StringIO())
    print_table(found, console)
    row = next(line for line in console.export_text().splitlines() if line.split()[:2] == ["X", "alone"])
    assert time_text(alone.critical.response.p50_us) in row


def test_of_all_policies_those_that_a_device_cannot_have_are_left_out() -> None:
    def names(device: str) -> tuple[tuple[str, ...], str]:
        found = run_mdtb([CLOSED], None, device, 0.002, jobs=1, programs=toy_program, profiles=toy_profiles)
        assert {p.policy for p in found.points if p.alone is None} == set(found.policies)
        return found.policies, " ".join(found.notes)

    few, notes = names("sim:h200/8")
    assert few == tuple(name for name in NAMES if name != "partition")
    assert "left out: policy partition: a device of 8 SMs cannot be divided" in notes
    all_of_them, notes = names("sim:h200/16")
    assert all_of_them == NAMES
    assert "left out" not in notes
    with pytest.raises(PolicyError, match="8 SMs cannot be divided"):
        run_mdtb([CLOSED], "partition", "sim:h200/8", 0.002, jobs=1, programs=toy_program, profiles=toy_profiles)


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[str] = []
    for out in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(WorkloadError, match="cannot write the report into"):
            run_mdtb("A", out=out, jobs=1, progress=lambda done, total, label: told.append(label))
    assert told == []
