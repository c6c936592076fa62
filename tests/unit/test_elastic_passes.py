"""Passes of elastic kernels on the PTX machine: however they are interrupted, the numbers are those of the original.

Each scenario compares all buffers to the bit, counts how often every element ran, and what of the
launch before had ended by then. A line left out of the forms or of the gates breaks one of these.
"""

from __future__ import annotations

import re

import pytest
from elastic_chain import Scenario, play, scenarios
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.errors import NoSuchExample
from ptx_memory import MachineError

EXCLUSIVE = ("exclusive",)
CLAIMED = ("claimed", "together")
SEARCH = settings(
    max_examples=400,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@settings(max_examples=100)
@given(scenarios())
def test_passes_of_all_kinds(scenario: Scenario) -> None:
    play(scenario)


@settings(max_examples=60)
@given(scenarios(EXCLUSIVE))
def test_exclusive_passes(scenario: Scenario) -> None:
    play(scenario)


@settings(max_examples=60)
@given(scenarios(CLAIMED))
def test_claimed_passes_of_two_lanes(scenario: Scenario) -> None:
    play(scenario)


@settings(max_examples=60)
@given(scenarios(EXCLUSIVE, ("leaves", "shared", "whole", "whole")))
def test_launches_that_run_whole_run_once_too(scenario: Scenario) -> None:
    play(scenario)


# By what is left out: where it stands, what is put in its place, and the passes that need it. ``~`` is the prefix.
LINES = {
    "taken is stored": (r"st\.relaxed\.gpu\.global\.u16 \[%~at\], %~h;", "", EXCLUSIVE),
    "taken is looked at": (r"(setp\.eq\.u32 %~p), %~b, %~e;", r"\1, 0, 1;", EXCLUSIVE),
    "the stop is said": (r"st\.relaxed\.gpu\.global\.u32 \[%~lane\+\d+\], %~i;", "", EXCLUSIVE),
    "the stop is said everywhere": (r"st\.relaxed\.gpu\.global\.u32 \[%~lane\+(?!12\])\d+\], %~i;", "", EXCLUSIVE),
    "complete launches are left out": (r"setp\.lt\.u32 %~out, %~i, %~f;", "mov.pred %~out, 0;", EXCLUSIVE),
    "launches behind the stop are left out": (r"setp\.gt\.or\.u32 %~out, %~i, %~stop, %~out;", "", EXCLUSIVE),
    "a share waits for its threads": (r"(\$~end:\s+)bar(rier)?\.sync 0;", r"\1", CLAIMED),
    "the launch before is done": (r"setp\.ne\.u32 %~leave, %~done, %~shares;", "", CLAIMED),
    "a share is counted": (r"red\.release\.gpu\.global\.add\.u32 \[%~count\+4\], 1;", "", CLAIMED),
    "a claimed share is stored": (r"st\.relaxed\.gpu\.global\.u16 \[%~at\], %~h;", "", ("exclusive", "claimed")),
    "a claimed share is looked at": (r"(setp\.ne\.u32 %~p), %~c, %~e;", r"\1, 0, 1;", ("exclusive", "claimed")),
    "gate: a new number": (r"add\.u32 %epoch, %epoch, 1;", "", ("exclusive", "claimed", "together")),
    "gate: from the first launch on": (r"mov\.u32 %next, 0;", "", EXCLUSIVE),
    "gate: the stop is cleared": (r"st\.relaxed\.gpu\.global\.u32 \[%at\+12\], \d+;", "", EXCLUSIVE),
    "gate: from the stop on": (r"selp\.u32 %next, %launches, %stop, %p;", "mov.u32 %next, %launches;", EXCLUSIVE),
    "gate: counters are cleared": (r"st\.relaxed\.gpu\.global\.u32 \[%at(\+4)?\], 0;", "", CLAIMED),
    "gate: what is taken is counted": (r"red\.relaxed.*%count;", "", ("exclusive", "claimed")),
}


@pytest.mark.parametrize("line", LINES)
def test_without_a_line_something_breaks(line: str) -> None:
    pattern, instead, kinds = LINES[line]
    there = 0

    def patch(text: str) -> str:
        nonlocal there
        made, count = re.subn(pattern.replace("~", "miriam"), instead.replace("~", "miriam"), text)
        there += count
        return made

    def breaks(scenario: Scenario) -> bool:
        try:
            play(scenario, patch)
        except (AssertionError, MachineError):
            return True
        return False

    find(scenarios(kinds), breaks, settings=SEARCH)
    assert there
