"""The pause-and-resume protocol holds in every interleaving, and in none of them without a line that it needs."""

import limiter_model
import pytest
from protocol_model import search
from protocol_settings import LINES, SETTINGS, SPARE, Setting

SLOW = ("two lanes go on", "two equal lanes", "cut in two lanes")

# By line: where its loss shows, and what it breaks.
BREAKS = {
    "direct: before first": ("direct", "pause"),
    "direct: behind stop": ("direct", "order"),
    "direct: pass before limit": ("direct", "order"),
    "direct: taken": ("direct", "once"),
    "direct: limit": ("direct", "pause"),
    "direct: width": ("impatient", "pause"),
    "direct: stop": ("direct", "once"),
    "direct: stop everywhere": ("copies", "order"),
    "direct: take": ("direct", "once"),
    "looped: width": ("either", "width"),
    "looped: done": ("claims of two", "order"),
    "looped: done not of first": ("either", "progress"),
    "looped: behind stop": ("claims of two", "order"),
    "looped: limit": ("either", "pause"),
    "looped: limit each time": ("either", "pause"),
    "looped: limit before claim": ("either", "progress"),
    "looped: atomic claim": ("claims of two", "once"),
    "looped: end": ("claims of two", "once"),
    "looped: taken": ("either", "once"),
    "looped: take": ("either", "once"),
    "looped: count": ("claims of two", "progress"),
    "looped: count behind": ("claims of two", "order"),
    "looped: atomic count": ("claims of two", "progress"),
    "gate: epoch": ("claims of two", "progress"),
    "gate: next of new": ("direct", "once"),
    "gate: stop": ("direct", "once"),
    "gate: empty pass": ("direct", "once"),
    "gate: last lane": ("two equal lanes", "once"),
    "gate: scan": ("either", "once"),
    "gate: scan from next": ("either", "once"),
    "gate: mode": ("claims of two", "once"),
    "gate: width": ("direct", "pause"),
    "gate: one limit": ("direct", "pause"),
    "gate: limit left alone": ("direct", "pause"),
    "gate: first": ("direct", "progress"),
    "gate: none under 0": ("direct", "pause"),
    "gate: clear stop": ("direct", "progress"),
    "gate: clear of new": ("either", "once"),
    "gate: clear": ("either", "progress"),
    "gate: count taken": ("either", "progress"),
    "resident: wait": ("resident", "progress"),
    "resident: nothing to run": ("resident", "progress"),
    "resident: way": ("resident", "pause"),
    "resident: one limit": ("resident", "pause"),
    "resident: tired": ("impatient", "progress"),
    "step: next": ("resident", "progress"),
    "step: forget": ("resident", "once"),
    "step: until": ("cut", "once"),
    "spans: one by one": ("cut", "order"),
    "look: before first": ("resident looks", "once"),
    "look: behind stop": ("resident looks", "order"),
    "look: limit": ("resident looks", "pause"),
    "look: stop": ("resident looks", "order"),
    "look: stop everywhere": ("resident looks", "order"),
    "caller: exclusive alone": ("two lanes", "once"),
    "caller: claimed waits": ("two lanes", "once"),
    "caller: switch first": ("claims of two", "once"),
    "caller: want alone": ("two equal lanes", "once"),
    "caller: own lane": ("direct", "once"),
    "caller: opaque exclusive": ("opaque", "progress"),
    "caller: cut from the first": ("cut and others", "once"),
    "caller: cut to the last": ("cut and others", "order"),
    "caller: next tells": ("direct", "progress"),
    "caller: one writer": ("copies", "progress"),
    "stream: in order": ("direct", "order"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_promise_holds_in_every_interleaving(name: str) -> None:
    found = search(SETTINGS[name])
    assert found.broken is None
    assert found.states > 2000


def test_every_line_is_tried() -> None:
    assert BREAKS.keys() == LINES.keys()


@pytest.mark.parametrize("line", BREAKS)
def test_without_a_line_a_promise_breaks(line: str) -> None:
    name, promise = BREAKS[line]
    broken = search(SETTINGS[name], frozenset({line})).broken
    assert broken is not None
    assert broken.promise == promise


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in SLOW])
def test_nothing_breaks_without_all_lines_that_only_save_time(name: str) -> None:
    assert search(SETTINGS[name], frozenset(SPARE)).broken is None


def test_the_way_to_a_broken_promise_is_told() -> None:
    # A worker that looks at the limit first marks a launch that is not the pass's any more; the next
    # pass begins there, and leaves out what is before it.
    broken = search(SETTINGS["direct"], frozenset({"direct: pass before limit"})).broken
    assert broken is not None
    assert broken.steps[0] == "lane 0 begins an exclusive pass"
    marks = [step for step in broken.steps if step.startswith("lane 0 launch") and "store stop" in step]
    assert marks[-1] == "lane 0 launch 1: store stop 0 0 1"
    assert broken.steps[-1] == "lane 0 launch 1: begin 1 0 0"


def test_pauses_happen_while_blocks_run() -> None:
    still = search(Setting((2, 1), changes=0)).states
    assert search(Setting((2, 1), changes=1)).states > 10 * still


def test_an_unknown_line_is_refused() -> None:
    with pytest.raises(KeyError, match="no such line"):
        search(Setting(), frozenset({"no such line"}))


@pytest.mark.parametrize("name", limiter_model.SETTINGS)
def test_a_limit_is_right_when_all_that_hold_it_are_gone(name: str) -> None:
    states, wrong = limiter_model.search(name)
    assert wrong is None
    assert states > 900


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("fence: change", "two criticals"),
        ("fence: look", "two criticals"),
        ("again", "two criticals"),
        ("count", "held by another stream"),
        ("hold behind a word", "another width"),
    ],
)
def test_without_a_line_a_limit_may_stay_wrong(line: str, name: str) -> None:
    assert line in limiter_model.LINES
    assert limiter_model.search(name, frozenset({line}))[1] is not None


def test_a_line_of_limits_that_is_unknown_is_refused() -> None:
    with pytest.raises(KeyError, match="no such line"):
        limiter_model.search("two criticals", frozenset({"no such line"}))
