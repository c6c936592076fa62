"""Simulated against measured figures."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_support import PERIODIC, RANDOM, toy_profiles, toy_program

from miriam.bench import Point, Results, run_mdtb
from miriam.errors import WorkloadError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "model_check.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def measured() -> Results:
    """Two turns that a model gave, called those of a GPU."""
    results = run_mdtb(
        [PERIODIC, RANDOM], "multistream,miriam", "sim:h200/16", 0.02, 3, repeats=2, jobs=1, programs=toy_program,
        profiles=toy_profiles,
    )  # fmt: skip
    return replace(results, device="cuda:0/16", simulated=False)


def checked(script: dict[str, Any], measured: Results, **options: Any) -> dict[str, Any]:
    device = script["model_of"](measured.device)
    record: dict[str, Any] = script["check"](
        measured, device, jobs=1, programs=toy_program, profiles=toy_profiles, **options
    )
    return record


def test_what_the_model_gave_it_gives_again(script: dict[str, Any], measured: Results) -> None:
    record = checked(script, measured)
    assert record["simulated_on"] == "sim:h200/16"
    assert record["turns"] == 2
    # two workloads: two tasks alone, and two tasks under two policies; three figures each
    assert len(record["rows"]) == 2 * (2 + 2 * 2) * 3
    assert {row["error"] for row in record["rows"]} == {0.0}
    assert [(s["figure"], s["alone"], s["rows"]) for s in record["summary"]] == [
        (figure, alone, 4 if alone else 8) for figure in script["FIGURES"] for alone in (True, False)
    ]
    assert all(s["median"] == s["p90"] == 0 for s in record["summary"])


def test_an_error_is_found_and_named(script: dict[str, Any], measured: Results) -> None:
    def faster(point: Point) -> Point:
        if (point.workload, point.policy, point.alone) != ("Y", "miriam", None):
            return point
        quick, big = point.tasks
        assert quick.response is not None
        return replace(
            point, tasks=(replace(quick, response=replace(quick.response, p99_us=quick.response.p99_us / 2)), big)
        )

    outside = replace(measured.points[-1], policy="mps:50")
    record = checked(script, replace(measured, points=(*map(faster, measured.points), outside)), turns=1)
    assert record["turns"] == 1
    (together,) = [s for s in record["summary"] if s["figure"] == "p99_us" and not s["alone"]]
    assert together["largest"] == pytest.approx(1.0, abs=0.01)
    assert together["largest_in"] == "Y, miriam, quick"
    assert together["median"] == 0
    assert together["p90"] == pytest.approx(1.0, abs=0.01)  # of eight rows the largest
    assert not any(row["policy"] == "mps:50" for row in record["rows"])


def test_nothing_to_simulate(script: dict[str, Any], measured: Results) -> None:
    with pytest.raises(WorkloadError, match="no point in the document"):
        checked(script, replace(measured, points=()))


def test_the_command_writes_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = run_mdtb("A", "multistream", "sim:h200/16", 0.02, jobs=1)
    replace(real, device="cuda:0/16", simulated=False).save(tmp_path / "results.json")
    out = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["model_check.py", str(tmp_path / "results.json"), "--out", str(out)])
    monkeypatch.setattr("miriam.bench.pool.processors", lambda: 1)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    record = json.loads(out.read_text())
    assert len(record["rows"]) == 12
    assert {row["error"] for row in record["rows"]} == {0.0}
    assert "p99_us             together" in capsys.readouterr().out
