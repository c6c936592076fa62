"""Who waits behind a stop, on the PTX machine: the first worker of the next launch, for as long as the limit is 0."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from elastic_chain import Chain, Link
from elastic_machine import Elastic, Patch
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_machine import Launch, Scheduler
from ptx_memory import MachineError, Memory

from miriam.elastic.rewrite import Form
from miriam.elastic.state import ALL, LOOKS, MAX_LAUNCHES, NONE, Lane

LINKS = (Link(block=7), Link("shared"), Link(block=5, columns=3), Link("whole"))
FORMS = pytest.mark.parametrize("form", [Form.DIRECT, Form.STRIDED])
TIRED = Lane(limit=0, width=0, first=1, epoch=1)  # one that a gate began after it had waited in vain
EMPTY = Lane(limit=0, width=0, first=MAX_LAUNCHES, epoch=1)  # a pass that runs nothing


def stopped(at: int, limit: int = 0, width: int = ALL) -> Lane:
    """A pass that has stopped there."""
    return Lane(limit=limit, width=width, first=0, epoch=1, stop=at)


class Behind:
    """Launch ``index`` of a chain in a lane with the words of ``record``."""

    def __init__(
        self, record: Lane, index: int, form: Form, *, stays: bool = True, patch: Patch = str, seed: int = 0
    ) -> None:
        self.memory = Memory()
        steps, _ = Chain(40, LINKS).build(self.memory)
        self.lane = Elastic(self.memory, steps, patch=patch).lane()
        self.memory.write(self.lane.address, replace(record, stays=int(stays)).pack())
        self.image = self.memory.image()
        self.launch = self.lane.launch(index, form, 3)
        self.scheduler = Scheduler(Random(seed), self.launch)

    def leaves(self) -> int:
        """Run it to its end; the instructions it takes."""
        steps = self.scheduler.run(steps=100_000)
        assert self.memory.image() == self.image, "it wrote something"
        return steps

    def stays(self) -> list[int]:
        """The blocks that are left after a while."""
        for _ in range(1000):
            if self.launch.done:
                break
            self.scheduler.turn()
        assert self.memory.image() == self.image, "it wrote something"
        return [block.index for block in self.launch.resident]

    def write(self, limit: int) -> None:
        """Set the limit."""
        self.lane.write(limit)
        self.image = self.memory.image()


def one_stays(record: Lane, index: int, form: Form, limit: int, patch: Patch = str) -> None:
    for seed in range(2):
        behind = Behind(record, index, form, patch=patch, seed=seed)
        assert behind.stays() == [0]
        behind.write(limit)
        behind.leaves()


@FORMS
@pytest.mark.parametrize(("record", "index"), [(stopped(0), 1), (stopped(1), 2), (EMPTY, 0)])
@pytest.mark.parametrize("limit", [1, ALL])
def test_the_first_worker_of_the_next_launch_stays_until_there_is_a_limit(
    record: Lane, index: int, form: Form, limit: int
) -> None:
    one_stays(record, index, form, limit)


@FORMS
@pytest.mark.parametrize(
    ("record", "index", "stays"),
    [
        (stopped(0), 1, False),
        (EMPTY, 0, False),
        (stopped(0), 2, True),
        (EMPTY, 1, True),
        (Lane(limit=0, width=ALL, first=2, epoch=1, stop=2), 1, True),  # complete before
        (stopped(0, limit=1), 1, True),
        (stopped(0, limit=ALL, width=0), 1, True),
        (Lane(limit=3, width=3, first=MAX_LAUNCHES, epoch=1), 0, True),
        (TIRED, 0, True),
    ],
)
def test_others_leave_at_once(record: Lane, index: int, stays: bool, form: Form) -> None:
    Behind(record, index, form, stays=stays).leaves()


@pytest.mark.parametrize(("index", "form"), [(1, Form.LOOPED), (3, Form.GUARDED)])
def test_launches_of_other_forms_leave_at_once(index: int, form: Form) -> None:
    Behind(stopped(index - 1), index, form).leaves()


def patience(looks: int) -> Patch:
    """So many looks, and then nobody waits any longer."""
    return lambda text: text.replace(f"mov.u32 %miriamc, {LOOKS};", f"mov.u32 %miriamc, {looks};")


@FORMS
def test_who_waits_looks_so_many_times(form: Form) -> None:
    waited = [Behind(stopped(0), 1, form, patch=patience(looks)).leaves() for looks in (0, 10, 20)]
    assert waited[2] - waited[1] == waited[1] - waited[0] > 10  # instructions


@settings(max_examples=30)
@given(st.integers(1, 33), st.integers(0, 3000), st.sampled_from([1, ALL]), st.booleans(), st.integers(0, 1 << 32))
def test_launches_behind_the_next_one_come_when_it_leaves(
    when: int, held: int, limit: int, strided: bool, seed: int
) -> None:
    memory, chain = Memory(), Chain(40, (*LINKS[:3], Link()))
    steps, at = chain.build(memory)
    lane, scheduler = Elastic(memory, steps).lane(), Scheduler(Random(seed))
    memory.write(lane.address, Lane(limit=ALL, width=ALL, first=0, epoch=1, stays=1).pack())
    launches: list[Launch] = []
    for i in range(4):
        launch = lane.launch(i, Form.STRIDED if strided else Form.DIRECT)
        launches.append(scheduler.add(launch, launches[-1] if launches else None))

    def ran() -> list[int]:
        return [int(memory.array(at[i], "<u4", 40).sum()) for i in chain.ran]

    def limits() -> Iterator[None]:
        while ran()[0] < when:
            yield
        lane.write(0)
        while (stop := lane.record.stop) == NONE:  # until somebody hears of it
            yield
        for _ in range(held):
            yield
        assert not launches[stop + 1].done
        assert not launches[stop + 2].resident
        lane.write(limit)

    between = limits()
    scheduler.run(between=lambda: next(between, None))
    assert next(between, "over") == "over"
    assert ran()[2:] == [0, 0]


LINES = {
    "of the next launch": (r"setp\.ne\.u32 %~p, %~c, %~i;", "mov.pred %~p, 0;"),
    "the first": (r"setp\.ne\.or\.u32 %~p, %~a, 0, %~p;", ""),
    "where it is wanted": (r"setp\.eq\.u32 %~p, %~b, 0;", "mov.pred %~p, 0;"),
    "of a pass that runs something not the first": (r"or\.pred %~p, %~p, %~out;", ""),
    "until there is a limit": (r"setp\.ne\.u32 %~p, %~limit, 0;", "mov.pred %~p, 0;"),
    "a new one": (r"(\$~wait:\s+)ld\.[^;]*;", r"\1mov.u32 %~limit, 0;"),
    "for so long": (r"setp\.eq\.or\.u32 %~p, %~c, 0, %~p;", ""),
    "look by look": (r"sub\.u32 %~c, %~c, 1;", ""),
}


def holds(form: Form, patch: Patch) -> None:
    one_stays(stopped(0), 1, form, ALL, patch)
    Behind(stopped(0), 2, form, patch=patch).leaves()
    Behind(stopped(0), 1, form, stays=False, patch=patch).leaves()
    Behind(TIRED, 0, form, patch=patch).leaves()
    Behind(stopped(0), 1, form, patch=lambda text: patch(patience(3)(text))).leaves()


@FORMS
@pytest.mark.parametrize("line", LINES)
def test_without_a_line_something_breaks(line: str, form: Form) -> None:
    pattern, instead = (part.replace("~", "miriam") for part in LINES[line])
    holds(form, str)
    with pytest.raises((AssertionError, MachineError)):
        holds(form, partial(re.sub, pattern, instead))
