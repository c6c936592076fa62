"""The stock reference: what it makes of the times that it is given, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miriam.errors import CompileError
from miriam.frontend import stock

with_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


class Clock:
    """A GPU whose inferences take ``each_s``, and ``slow_s`` more for every tenth of those that run alone."""

    def __init__(self, each_s: float, slow_s: float = 0.0) -> None:
        self.each_s, self.slow_s = each_s, slow_s
        self.spent_s = 0.0
        self.runs = self.alone = 0

    def __call__(self, count: int) -> float:
        self.runs, self.alone = self.runs + 1, self.alone + (count == 1)
        late = self.slow_s if count == 1 and self.alone % 10 == 0 else 0.0
        self.spent_s += count * self.each_s + late
        return count * self.each_s + late


@given(st.floats(1e-4, 0.02), st.floats(0.5, 5))
def test_the_rate_is_that_of_the_gpu_and_the_time_is_kept(each_s: float, seconds: float) -> None:
    clock = Clock(each_s)
    found = stock.summary("net-b1", clock, seconds)
    assert found.name == "net-b1"
    assert found.batches_per_s == pytest.approx(1 / each_s)
    assert found.p50_us == found.p99_us == pytest.approx(each_s * 1e6)
    assert found.inferences >= 100
    assert seconds * 0.99 <= clock.spent_s <= seconds + 110 * each_s  # a hundred for the p99, and rounding up


def test_slow_inferences_are_seen_in_the_p99_alone() -> None:
    found = stock.summary("net-b1", Clock(1e-3, 5e-3), 2.0)
    assert (found.p50_us, found.p99_us) == (pytest.approx(1000), pytest.approx(6000))
    assert found.batches_per_s == pytest.approx(1000)


def test_a_window_that_is_disturbed_does_not_count() -> None:
    clock = Clock(1e-3)

    def disturbed(count: int) -> float:
        return clock(count) * (3 if clock.runs == 5 else 1)

    assert stock.summary("net-b1", disturbed, 2.0).batches_per_s == pytest.approx(1000)


@with_torch
@pytest.mark.parametrize("name", ["", "resnet18", "resnet18-b0", "resnet18-b-1", "resnet18-bx", "resnet9-b1", "b1"])
def test_a_network_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(CompileError, match=rf"no network '{name}': name one of alexnet, .* as resnet18-b32"):
        stock.stock_per_s(name)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(CompileError, match="are no time to measure in: give a number above zero"):
        stock.measure("resnet18-b32", seconds)


@with_torch
def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert stock.main(["resnet18-b32", "--seconds", "1"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "miriam: plain PyTorch is measured on a CUDA GPU, and torch sees none" in shown.err


def test_without_torch_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CompileError, match=r"needs torch: pip install torch"):
        stock.stock_per_s("resnet18-b32")


def test_the_command_prints_one_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    wanted = stock.Stock("gru-b1", 100.0, 9000.0, 9500.0, 300)
    monkeypatch.setattr(stock, "measure", lambda name, seconds: wanted if (name, seconds) == ("gru-b1", 2.0) else None)
    assert stock.main(["gru-b1", "--seconds", "2"]) == 0
    assert stock.Stock(**json.loads(capsys.readouterr().out)) == wanted


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "miriam.frontend.stock", "net-b1", "--seconds", "0"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "miriam: 0.0 seconds are no time to measure in: give a number above zero\n"
