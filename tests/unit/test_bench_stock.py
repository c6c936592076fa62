"""The stock reference of the benchmark: who is measured, and what becomes of it."""

import json
import re
import runpy
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

import jsonschema
import pytest
from bench_support import STEADY, Clockwork, toy_profiles, toy_program
from rich.console import Console

from miriam.bench import print_table, run_mdtb
from miriam.bench.report import render
from miriam.bench.results import schema
from miriam.bench.stock import stock_rates
from miriam.errors import CompileError, WorkloadError


def test_normal_tasks_carry_what_plain_pytorch_does_in_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[set[str], str]] = []

    def rates(models: Iterable[str], device: str) -> dict[str, float]:
        asked.append((set(models), device))
        return {"long": 1000.0 * len(asked)}

    monkeypatch.setattr("miriam.bench.runner.stock_rates", rates)
    found = run_mdtb(
        [STEADY], "multistream", "cuda:0", 0.6, repeats=2, stock=True, programs=toy_program, profiles=toy_profiles,
        open_device=Clockwork,
    )  # fmt: skip
    assert asked == [({"long"}, "cuda:0")] * 2
    jsonschema.validate(json.loads(json.dumps(found.to_json())), schema())
    for turn in (0, 1):
        shared, alone = found.point("S", "multistream", turn), found.alone("S", "quick", repeat=turn)
        assert shared is not None
        assert alone is not None
        assert [t.stock_per_s for t in shared.tasks] == [None, 1000.0 * (turn + 1)]
        assert shared.normal_vs_stock == pytest.approx(shared.normal_per_s / 1000 / (turn + 1))
        quick = alone.tasks[0]
        assert quick.service is not None
        busy = quick.throughput_per_s * quick.service.mean_us / 1e6
        assert 0 < busy < 1
        assert shared.normal_vs_free == pytest.approx(shared.normal_vs_stock / (1 - busy))
    console = Console(record=True, width=120, file=StringIO())
    print_table(found, console)
    text = console.export_text()
    assert re.search(r"of +of\b", text)
    assert "plain PyTorch alone" in text
    assert "Of stock" in render(found)
    table = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "tables.py"))["mdtb"](found)
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0][2:-1]] == [
        "policy", "critical p50", "critical p99", "slowdown p99", "normal requests/s", "of stock", "of free",
        "requests/s, all",
    ]  # fmt: skip
    assert [row[2].strip() for row in rows[2:]] == ["alone", "`multistream`"]
    assert "--repeats 2 --policy multistream" in table


def test_where_plain_pytorch_cannot_be_measured() -> None:
    for device in ("sim:h200", "cuda:0/16"):
        with pytest.raises(WorkloadError, match=f"on a whole GPU, such as cuda:0: leave out --stock on {device}"):
            run_mdtb([STEADY], device=device, stock=True)


def test_models_that_are_no_modules_of_the_zoo_have_no_rate() -> None:
    torch = pytest.importorskip("torch")
    assert stock_rates(["toy-b1"], "cuda:0") == {}
    if not torch.cuda.is_available():
        with pytest.raises(CompileError, match=r"stock: .*CUDA GPU"):
            stock_rates(["toy-b1", "resnet18-b32"], "cuda:0")
