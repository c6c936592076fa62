"""The results document: its schema, its way to disk and back, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from bench_support import toy_results

from miriam.bench import Results
from miriam.bench.metrics import PROBABILITIES, TaskMetrics, latency
from miriam.bench.relate import relate
from miriam.bench.results import Point, schema
from miriam.errors import WorkloadError


@pytest.fixture(scope="module")
def results() -> Results:
    return toy_results()


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_documents_follow_the_schema(results: Results) -> None:
    jsonschema.validate(json.loads(json.dumps(results.to_json())), schema())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw.update(version=1),
        lambda raw: raw.pop("seed"),
        lambda raw: raw["points"][0].update(surprise=1),
        lambda raw: raw["points"][2]["tasks"][0].update(response={"count": 0}),
        lambda raw: raw["points"][2]["timeline"]["bars"][0].append(1),
        lambda raw: raw["workloads"][0]["tasks"][0].update(arrivals={"kind": "uniform"}),
    ],
)
def test_the_schema_notices(results: Results, spoil: Callable[[Any], None]) -> None:
    raw = json.loads(json.dumps(results.to_json()))
    spoil(raw)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, schema())


def test_every_field_is_described_in_the_documentation() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "results-schema.md").read_text("utf-8")

    def names(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(names, node))
        if not isinstance(node, dict):
            return set()
        return set(node.get("properties", {})) | set().union(*map(names, node.values()))

    assert {name for name in names(schema()) if f"`{name}`" not in page} == set()


def test_saved_and_loaded_it_is_the_same(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "r.json")
    assert Results.load(tmp_path / "r.json") == results
    assert [f.name for f in tmp_path.iterdir()] == ["r.json"]


def test_curves_and_probabilities_go_together(results: Results) -> None:
    raw = results.to_json()
    assert raw["probabilities"] == list(PROBABILITIES)
    curves = [t["response"]["curve_us"] for p in raw["points"] for t in p["tasks"] if t["response"]]
    assert curves
    assert {len(c) for c in curves} == {len(PROBABILITIES)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no results document or is damaged"),
        ('{"format": "miriam.results", "vers', "no results document or is damaged"),
        ("[1, 2]", "no results document of Miriam"),
        ('{"format": "other", "version": 1}', "no results document of Miriam"),
        ('{"format": "miriam.results", "version": 7}', "version 7, this Miriam reads 2"),
        ('{"format": "miriam.results", "version": 2}', "damaged results document"),
    ],
)
def test_other_files_are_refused_with_a_way_out(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(content)
    with pytest.raises(WorkloadError, match=message) as error:
        Results.load(file)
    assert str(file) in str(error.value)
    assert "run the benchmark again" in str(error.value)


def test_a_document_with_a_lost_field_is_refused(results: Results, tmp_path: Path) -> None:
    raw = json.loads(json.dumps(results.to_json()))
    del raw["points"][1]["tasks"][0]["response"]["p99_us"]
    (tmp_path / "r.json").write_text(json.dumps(raw))
    with pytest.raises(WorkloadError, match="damaged"):
        Results.load(tmp_path / "r.json")


@pytest.mark.parametrize("field", ["made", "device", "workloads", "programs", "points"])
@pytest.mark.parametrize("value", [[1], {"a": 1}, "no", 3, None])
def test_a_document_with_a_field_of_another_kind_is_refused(
    results: Results, tmp_path: Path, field: str, value: object
) -> None:
    (tmp_path / "r.json").write_text(json.dumps(results.to_json() | {field: value}))
    with pytest.raises(WorkloadError, match="damaged"):
        Results.load(tmp_path / "r.json")


def test_a_document_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[" * 100_000)
    with pytest.raises(WorkloadError, match="damaged"):
        Results.load(tmp_path / "r.json")


def test_missing_files_and_folders(results: Results, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot read"):
        Results.load(tmp_path / "none.json")
    with pytest.raises(WorkloadError, match="cannot write"):
        results.save(tmp_path / "none" / "r.json")


def point(policy: str, alone: str | None, *tasks: TaskMetrics) -> Point:
    return Point("W", policy, alone, tasks, 0.5, 0.5, 0.5, 1, {})


def task(name: str, criticality: int, per_s: float, *latencies_us: float) -> TaskMetrics:
    found = latency(latencies_us)
    return TaskMetrics(name, criticality, len(latencies_us), 0, None, per_s, found, found)


def test_points_are_related_to_alone_and_to_sequential() -> None:
    points = relate(
        [
            point("multistream", "c", task("c", 1, 10, 100.0)),
            point("multistream", "n", task("n", 0, 40, 20.0)),
            point("sequential", None, task("c", 1, 10, 150.0), task("n", 0, 10, 30.0)),
            point("miriam", None, task("c", 1, 10, 110.0), task("n", 0, 30, 60.0)),
        ]
    )
    assert [p.overall_vs_sequential for p in points] == [None, None, 1.0, 2.0]
    assert [p.normal_vs_alone for p in points] == [None, None, 0.25, 0.75]
    assert [[t.slowdown.p99 if t.slowdown else None for t in p.tasks] for p in points] == [
        [None], [None], [1.5, 1.5], [1.1, 3.0],
    ]  # fmt: skip
    assert [(p.critical_per_s, p.normal_per_s, p.overall_per_s) for p in points[2:]] == [(10, 10, 20), (10, 30, 40)]


def test_a_turn_and_a_regime_are_compared_with_their_own() -> None:
    def both(policy: str, repeat: int, slower: float) -> Point:
        return replace(point(policy, None, task("c", 1, 10, slower), task("n", 0, 20, 20.0)), repeat=repeat)

    def alone(policy: str, repeat: int, own: float) -> Point:
        return replace(point(policy, "c", task("c", 1, 10, own)), repeat=repeat)

    points = relate(
        [
            alone("multistream", 0, 100.0), alone("multistream", 1, 200.0), alone("mps", 0, 50.0),
            both("miriam", 0, 120.0), both("miriam", 1, 240.0), both("mps", 0, 75.0), both("mps:50", 0, 60.0),
            both("mps", 1, 260.0),
        ]
    )  # fmt: skip
    found = [p.critical.slowdown.p99 for p in points[3:] if p.critical and p.critical.slowdown]
    assert found == pytest.approx([1.2, 1.2, 1.5, 1.2, 1.3])
    assert [p.label for p in points[1:3]] == ["c alone", "c alone, mps"]


def test_normal_work_against_stock_and_what_is_left_of_the_time() -> None:
    def shared(per_s: float, stock_per_s: float | None) -> Point:
        return point(
            "miriam", None, task("c", 1, 200, 900.0), replace(task("n", 0, per_s, 20.0), stock_per_s=stock_per_s)
        )

    alone = point("multistream", "c", task("c", 1, 200, 1000.0))  # 200/s, 1 ms each: busy 20 % of the time
    _, known, unknown = relate([alone, shared(600, 1000), shared(600, None)])
    assert (known.normal_vs_stock, known.normal_vs_free) == pytest.approx((0.6, 0.75))
    assert (unknown.normal_vs_stock, unknown.normal_vs_free) == (None, None)
    closed = point("multistream", "c", task("c", 1, 1001, 1000.0))
    assert relate([closed, shared(600, 1000)])[1].normal_vs_free is None
    assert relate([shared(600, 1000)])[0].normal_vs_free is None


def test_of_equally_critical_tasks_the_one_that_suffers_most_counts() -> None:
    names = ("first", "second", "above")
    alone = [point("multistream", name, task(name, 1, 10, 100.0)) for name in names]
    shared = point(
        "miriam", None, task("first", 1, 10, 110.0), task("second", 1, 10, 150.0), task("above", 2, 10, 120.0),
        task("n", 0, 30, 60.0),
    )  # fmt: skip
    assert relate([*alone, shared])[-1].critical_slowdown == pytest.approx(1.2)
    assert relate([*alone[:2], shared])[-1].critical_slowdown is None
    equal = replace(shared, tasks=(*shared.tasks[:2], shared.tasks[3]))
    found = relate([*alone, equal])[-1]
    assert found.critical_slowdown == pytest.approx(1.5)
    assert [t.name for t in found.leading] == ["first", "second"]
    assert relate([*alone, replace(shared, tasks=shared.tasks[3:])])[-1].critical_slowdown is None


def test_without_what_to_compare_with_there_is_no_comparison() -> None:
    (only,) = relate([point("miriam", None, task("c", 1, 10, 110.0), task("n", 0, 30, 60.0))])
    assert (only.overall_vs_sequential, only.normal_vs_alone) == (None, None)
    assert all(t.slowdown is None for t in only.tasks)
    (_, idle) = relate([point("sequential", None, task("c", 1, 0)), point("miriam", None, task("c", 1, 0))])
    assert idle.overall_vs_sequential is None


def test_what_a_point_says_of_itself(results: Results) -> None:
    shared = results.point("X", "miriam")
    alone = results.alone("X", "quick")
    assert shared is not None
    assert alone is not None
    assert (shared.label, alone.label) == ("miriam", "quick alone")
    assert shared.critical is shared.tasks[0]
    assert results.point("X", "nobody") is None
    assert results.alone("X", "nobody") is None
    counted = replace(shared, tasks=tuple(replace(t, missed=m) for t, m in zip(shared.tasks, (3, None), strict=True)))
    assert (counted.missed, shared.missed) == (3, None)
