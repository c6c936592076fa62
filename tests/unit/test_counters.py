"""The pages of Nsight Compute are read as it prints them, and refused where they are something else."""

import shutil
import subprocess

import pytest
from support import program

from miriam.device.cuda import counters
from miriam.device.cuda.counters import parse, read
from miriam.errors import ProfileError
from miriam.profile import Counters

BYTES = "dram__bytes_read.sum"
ISSUE = "smsp__issue_active.avg.pct_of_peak_sustained_active"

PAGE = """==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "triton_poi_fused_relu_0" - 0: 0%....50%....100% - 1 pass
==PROF== Profiling "triton_tem_fused_mm_1" - 1: 0%....50%....100% - 1 pass
==PROF== Disconnected from process 4242
"ID","Process ID","Kernel Name","Block Size","Grid Size","dram__bytes_read.sum","smsp__issue_active.avg.pct_of_peak_sustained_active"
"","","","","","byte","%"
"0","4242","triton_poi_fused_relu_0","(128, 1, 1)","(64, 1, 1)","12,345,678","41.25"
"1","4242","triton_tem_fused_mm_1","(256, 1, 1)","(8, 8, 1)","0","1,000.5"
"""  # noqa: E501 - the tool writes lines of any length


def test_a_page_as_the_tool_prints_it() -> None:
    assert parse(PAGE, (BYTES, ISSUE)) == [{BYTES: 12345678.0, ISSUE: 41.25}, {BYTES: 0.0, ISSUE: 1000.5}]


def test_only_what_is_asked_for_is_given() -> None:
    assert parse(PAGE, (ISSUE,)) == [{ISSUE: 41.25}, {ISSUE: 1000.5}]


def test_messages_may_stand_anywhere() -> None:
    lines = PAGE.splitlines()
    mixed = "\n".join([*lines[4:7], "==WARNING== the clock is not locked", "", *lines[7:], *lines[:4]])
    assert parse(mixed, (BYTES,)) == parse(PAGE, (BYTES,))


def test_a_name_with_commas_and_quotes_stays_one_column() -> None:
    page = PAGE.replace('"triton_tem_fused_mm_1","(256', '"void f<int, 2>(""x"")","(256')
    assert parse(page, (BYTES,))[1] == {BYTES: 0.0}


@pytest.mark.parametrize("text", ["", "==PROF== No kernels were profiled.\n", "\n".join(PAGE.splitlines()[:6])])
def test_a_page_without_launches_has_none(text: str) -> None:
    assert parse(text, (BYTES,)) == []


@pytest.mark.parametrize("text", [PAGE.replace(BYTES, "dram__octets"), PAGE.replace('"12,345,678"', '"n/a"')])
def test_a_metric_that_is_missing_or_no_number_is_an_error_with_a_way_out(text: str) -> None:
    with pytest.raises(ProfileError, match=r"not what it was.*--no-counters"):
        parse(text, (BYTES,))


def test_a_line_that_was_cut_off_is_an_error() -> None:
    with pytest.raises(ProfileError, match="--no-counters"):
        parse(PAGE[: PAGE.rindex(',"1,000.5"')], (BYTES, ISSUE))


def page(metrics: dict[str, str], launches: int) -> str:
    rows = [["ID", *metrics], ["", *["unit"] * len(metrics)], *([str(i), *metrics.values()] for i in range(launches))]
    return "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)


VALUES = {
    "none": {"dram__bytes_read.sum": "1,000", "dram__bytes_write.sum": "200", "lts__t_bytes.sum": "4,000"},
    "all": {
        "dram__bytes_read.sum": "2,000",
        "lts__t_sectors_op_write.sum": "10",
        "smsp__issue_active.avg.pct_of_peak_sustained_active": "25.5",
        "sm__throughput.avg.pct_of_peak_sustained_elapsed": "100.5",
    },
}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    """Stand in for the tool: it answers for two launches, or as the test says."""
    answer = {"launches": 2, "returncode": 0, "error": None}

    def run(command, **kwargs):
        if answer["error"]:
            raise answer["error"]
        caches = command[command.index("--cache-control") + 1]
        assert command[command.index("--metrics") + 1] == ",".join(VALUES[caches])
        text = page(VALUES[caches], answer["launches"])
        return subprocess.CompletedProcess(command, answer["returncode"], text, "ERR_NVGPUCTRPERM")

    monkeypatch.setattr(shutil, "which", lambda name: "/opt/ncu" if name == "ncu" else None)
    monkeypatch.setattr(counters.subprocess, "run", run)
    return answer


def test_warm_and_cold_values_become_counters(tool) -> None:
    told = []
    found = read(program(), 0, lambda *what: told.append(what))
    one = Counters(
        dram_read_bytes=1000, dram_write_bytes=200, touched_bytes=2000 + 10 * 32, l2_bytes=4000,
        issue_utilization=0.255, pipe_utilization=1.0,
    )  # fmt: skip
    assert found == {0: one, 1: one}
    assert told == [("counters of toy", 0, 2), ("counters of toy", 1, 2)]


def test_another_number_of_launches_is_an_error(tool) -> None:
    tool["launches"] = 3
    with pytest.raises(ProfileError, match="saw 3 and 3 launches of toy, which has 2"):
        read(program(), 0, lambda *what: None)


def test_the_words_of_a_failing_tool_are_passed_on(tool) -> None:
    tool["returncode"] = 9
    with pytest.raises(ProfileError, match=r"ERR_NVGPUCTRPERM.*allow it to read counters, or do without"):
        read(program(), 0, lambda *what: None)


def test_a_tool_that_does_not_end_is_an_error(tool) -> None:
    tool["error"] = subprocess.TimeoutExpired("ncu", 300)
    with pytest.raises(ProfileError, match="more than 300 s: profile a smaller program"):
        read(program(), 0, lambda *what: None)


def test_without_the_tool_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ProfileError, match=r"ncu.*is not on the PATH: install it.*--no-counters"):
        read(program(), 0, lambda *what: None)
