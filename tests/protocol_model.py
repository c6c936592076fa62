"""Every interleaving of small runs of the protocol by which elastic kernels pause and resume.

The search begins with fresh memory and takes, in every state, every step that a worker, the caller of
passes or a writer of limits could take next, until no new state is found. What is promised:

``once``
    No share runs twice in an inference, and none is left out of one that counts as complete.
``order``
    A share starts only when all shares of all launches before its own have ended.
``pause``
    Whoever writes a limit is heard: a worker starts a share only if the limit was the width of the pass
    when it looked last, and it looks again before each one. The width is above 0, and ALL in an exclusive pass,
    unless the gate of a resident inference tired of waiting for that. Opaque launches do not ask.
``width``
    Never more workers of a claimed pass are inside a share than the width of the pass. There is one on each SM,
    and it knows the rank of its SM.
``progress``
    A pass that is alone, under a limit that stays as its gate saw it, completes the inference, or its span where
    the inference is cut (``Setting.spans``); the limit must be ``ALL`` for an exclusive one, and above 0 for a
    claimed one. The gate of a resident inference waits for such a limit, but not if there is nothing to run;
    with one that may tire (``Setting.impatient``) the pass completes under any limit.

Workers of a launch may start as late as they like, and in any order; one that waits behind a stop and then leaves,
having written nothing, is no more than late. Passes follow one another forever, also when there is nothing left to
do. ``LINES`` names each line of the protocol and each condition that its caller keeps: a search without one of them
finds a broken promise, and a shortest way there. ``SPARE`` names what may be left out: it only saves time.

What is taken for granted: kernels of a lane run one after another, and each sees what those before it
wrote; one worker's accesses happen in program order. A lane's words need not be read at once
(``Setting.torn``): while a launch runs, only the limit and ``stop`` change. Between lanes, data travels
with ``done``: raising it has to be a release, behind a barrier of the worker, and comparing it an
acquire, before one.

``python tests/protocol_model.py`` searches what the tests search, and ``--large`` larger programs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol_programs import Access, Call, Programs
from protocol_settings import (
    ALL,
    CLAIMED,
    EXCLUSIVE,
    LARGE,
    LINES,
    NONE,
    RESIDENT,
    SETTINGS,
    SPARE,
    STEPPED,
    Setting,
)

__all__ = ["Broken", "Found", "search"]

Step = tuple[bytes, str, tuple[Any, ...]]  # the next state, the promise broken on the way, what happened


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that does not hold, and a shortest way to where it does not."""

    promise: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search saw: how many states, and a broken promise if there is one."""

    states: int
    seconds: float
    broken: Broken | None


LEFT = 0  # the point of a worker that has left, or never was


@dataclass(slots=True)
class Points:
    """Where programs can be, numbered: a call, and what its accesses have returned so far."""

    programs: Programs
    number: dict[tuple[Call, tuple[Any, ...]], int] = field(default_factory=dict)
    keys: list[tuple[Call, tuple[Any, ...]]] = field(default_factory=lambda: [((), ())])
    access: list[Access] = field(default_factory=lambda: [("left",)])
    after: list[dict[Any, int]] = field(default_factory=lambda: [{}])

    def start(self, call: Call) -> int:
        """The first access of a program."""
        return self._numbered(call, ())

    def next(self, point: int, result: Any) -> int:
        """The access behind that of ``point``, which returned ``result``."""
        if result not in self.after[point]:
            call, past = self.keys[point]
            self.after[point][result] = self._numbered(call, (*past, result))
        return self.after[point][result]

    def _numbered(self, call: Call, past: tuple[Any, ...]) -> int:
        if (call, past) not in self.number:
            self.number[call, past] = self._made(call, past)
        return self.number[call, past]

    def _made(self, call: Call, past: tuple[Any, ...]) -> int:
        program = getattr(self.programs, call[0])(*call[1:])
        try:
            access = next(program)
            for result in past:
                access = program.send(result)
        except StopIteration as end:
            return LEFT if end.value is None else self.start(end.value)
        self.keys.append((call, past))
        self.access.append(access)
        self.after.append({})
        return len(self.keys) - 1


class Model:
    """States of a setting and the steps between them.

    A state is a string of bytes: the words of memory, what ran, how often limits may still change,
    the span, for each lane what the caller knows, and for each of its workers where it is.
    """

    def __init__(self, setting: Setting, without: frozenset[str]):
        self.setting, self.without = setting, without
        programs = Programs(setting, without)
        self.points, self.words = Points(programs), programs.words
        self.launches, self.lanes = len(setting.shares), range(len(setting.ways))
        self.before = [sum(setting.shares[:i]) for i in range(self.launches + 1)]
        # A claim of nothing is like any other one, and so is a count that is too large.
        self.most = {self.words["claimed", i]: shares for i, shares in enumerate(setting.shares)}
        self.most |= {self.words["done", i]: shares + 1 for i, shares in enumerate(setting.shares)}
        self.copies = range(setting.copies)
        self.limits = {self.words["limit", lane, copy] for lane in self.lanes for copy in self.copies}
        self.ran = len(self.words)  # by share: 0 not yet, 1 running, 2 ended
        self.changes = self.ran + self.before[-1]
        self.span = self.changes + 1  # the one that passes are over, from 1 on; 0: no cut inference is under way
        self.writers = self.span + 1  # by lane, of two writers: a limit, and the copies that it has yet to reach
        self.caller = self.writers + 4 * len(
            self.lanes
        )  # by lane: kernel (0 none, 1 gate), way, whether others wait, whether alone
        workers = max(*setting.shares, *setting.workers) + ("stream: in order" in without)
        self.at = [self.caller + 4 * len(self.lanes) + 3 * workers * lane for lane in (*self.lanes, len(self.lanes))]

    def first(self) -> bytes:
        """Fresh memory."""
        state = bytearray(self.at[-1])  # by worker: point (2 bytes), whether it may start a share
        state[self.words["next",]] = self.launches
        state[self.words["last",]] = NONE
        state[self.words["wanted",]] = 1
        for lane in self.lanes:
            state[self.words["first", lane]] = NONE
            for copy in self.copies:
                state[self.words["limit", lane, copy]], state[self.words["stop", lane, copy]] = ALL, NONE
        state[self.changes] = self.setting.changes
        return bytes(state)

    def steps(self, state: bytes) -> Iterator[Step]:
        """All that can happen next."""
        flying = [lane for lane in self.lanes if state[self.caller + 4 * lane]]
        for lane in flying:
            past = b""
            for at in range(self.at[lane], self.at[lane + 1], 3):
                worker = state[at : at + 3]
                if worker != past and (worker[0] or worker[1]):  # equal workers do equal things
                    tires = self.points.access[worker[0] << 8 | worker[1]] == ("tires",)
                    for chosen in (False, True) if tires else (None,):
                        yield self._access(state, lane, at, chosen)
                past = worker
        yield from self._limits(state)
        yield from self._passes(state, flying)

    # Workers and gates

    def _access(self, state: bytes, lane: int, at: int, result: Any) -> Step:
        new, point, caller = bytearray(state), state[at] << 8 | state[at + 1], self.caller + 4 * lane
        access, broken = self.points.access[point], ""
        match access:
            case ("load", word):
                result = state[word]
            case ("store", word, value):
                new[word] = value
                if word in self.limits and state[word] != value:
                    broken = "pause"
            case ("add", word):
                result = state[word]
                new[word] = min(result + 1, self.most[word])
            case (("record" | "rest" | "limit") as part, _, copy):
                width = self.words["width", lane]
                limit, stop = state[self.words["limit", lane, copy]], state[self.words["stop", lane, copy]]
                rest = (*state[width : width + 3], stop)
                result = limit if part == "limit" else rest if part == "rest" else (limit, *rest)
                if state[caller] == 1 and state[caller + 1] == RESIDENT:
                    new[caller + 3] = not any(state[self.writers : self.caller])
                elif state[caller] == 1:
                    new[caller + 3] &= limit != 0 if state[caller + 1] & CLAIMED else limit == ALL
                elif part != "rest":
                    new[at + 2] = limit == state[width] and self._wide(state, lane)
            case ("begin", i, b, copy):
                broken = self._begin(state, new, lane, at, i, b, copy)
            case ("end", i, b):
                new[self.ran + self.before[i] + b] = 2
            case ("sleep",):
                nothing = state[self.ran : self.changes].count(2) == self.before[-1]
                if nothing and state[self.words["begun",]] == state[self.words["wanted",]]:
                    broken = "progress"
            case ("fresh", word):
                new[word] += 1
                if state[word] and state[self.ran : self.changes].count(2) != self.before[-1]:
                    broken = "once"
                new[self.ran : self.changes] = bytes(self.before[-1])
        after = self.points.next(point, result)
        new[at : at + 3] = (after >> 8, after & 255, new[at + 2] if after else 0)
        here = slice(self.at[lane], self.at[lane + 1])
        new[here] = b"".join(sorted([new[k : k + 3] for k in range(here.start, here.stop, 3)]))
        if after == LEFT:
            broken = broken or self._leave(new, lane)
        return bytes(new), broken, (lane, state[caller], access, result)

    def _begin(self, state: bytes, new: bytearray, lane: int, at: int, i: int, b: int, copy: int) -> str:
        if b >= self.setting.shares[i] or state[self.ran + self.before[i] + b]:
            return "once"
        if state[self.ran : self.ran + self.before[i]].count(2) != self.before[i]:
            return "order"
        new[self.ran + self.before[i] + b] = 1
        if i in self.setting.opaque - self.setting.looked:
            return ""
        limit, width = state[self.words["limit", lane, copy]], state[self.words["width", lane]]
        new[at + 2] = 0
        if not state[at + 2] and not (limit == width and self._wide(state, lane)):
            return "pause"
        workers = (state[k] << 8 | state[k + 1] for k in range(self.at[lane], self.at[lane + 1], 3))
        inside = sum(self.points.access[point][0] == "end" for point in workers)
        return "width" if state[self.caller + 4 * lane + 1] & CLAIMED and inside >= width else ""

    def _wide(self, state: bytes, lane: int) -> bool:
        """Whether the width of a pass is one that lets it run."""
        width, way = state[self.words["width", lane]], state[self.caller + 4 * lane + 1]
        tired = self.setting.impatient and way == STEPPED | EXCLUSIVE
        return width > 0 if way & CLAIMED else width == ALL or tired

    def _leave(self, new: bytearray, lane: int) -> str:
        """Start the next kernel of the pass, or end the pass, if this was the last worker."""
        caller = self.caller + 4 * lane
        kernel, way, _, alone = new[caller : caller + 4]
        early = 3 * ("stream: in order" in self.without and 1 < kernel <= self.launches)
        if any(new[self.at[lane] : self.at[lane + 1] - early]):
            return ""
        if kernel == 1 and way == RESIDENT:
            new[caller + 1] = way = STEPPED | new[self.words["choice", lane]]
        span = self._span(new, way)
        following = span.start + 2 if kernel == 1 else kernel + 1  # kernel i + 2 is launch i
        if following == span.stop + 2 and way >= STEPPED:
            following = self.launches + 2
        if following < self.launches + 2 + (way >= STEPPED):
            new[caller] = following
            new[caller + 2] &= way != CLAIMED
            self._enter(new, lane, self._workers(lane, following - 2, way, span.stop))
            return ""
        new[caller : caller + 4] = bytes(4)
        through = new[self.words["next",]] >= span.stop
        if new[self.span] and way >= STEPPED and (through or "spans: one by one" in self.without):
            # One that found nothing to run is over at once.
            new[self.span] = (new[self.span] + 1) * (new[self.words["next",]] < self.launches > span.stop)
        if any(new[self.caller + 4 * other] for other in self.lanes):
            return ""
        if self._complete(new):
            return "" if new[self.ran : self.changes].count(2) == self.before[-1] else "once"
        return "progress" if alone and not (through and new[self.span]) else ""

    def _span(self, state: bytes | bytearray, way: int) -> range:
        """The launches that a pass is over."""
        if way < STEPPED or not state[self.span]:
            return range(self.launches)
        ends = (0, *self.setting.spans)
        return range(*ends[state[self.span] - 1 : state[self.span] + 1])

    def _workers(self, lane: int, i: int, way: int, end: int) -> list[Call]:
        """Who runs launch i of a pass; behind the last one comes the step."""
        setting = self.setting
        if i == self.launches:
            return [("step", lane, end)]
        if i in setting.looked:
            return [("look", lane, i)]
        form = "guarded" if i in setting.opaque else "looped" if way & CLAIMED else "direct"
        count = setting.workers[lane] if form == "looped" else setting.shares[i]
        return [(form, lane, i, which) for which in range(count)]

    def _enter(self, new: bytearray, lane: int, calls: list[Call]) -> None:
        low, high = self.at[lane], self.at[lane + 1]
        workers = [bytes((*divmod(self.points.start(call), 256), 0)) for call in calls]
        workers += [bytes(new[high - 3 : high])] if any(new[high - 3 : high]) else []
        new[low:high] = b"".join(sorted(workers)).rjust(high - low, b"\0")

    # Writers of limits, and the caller of passes

    def _limits(self, state: bytes) -> Iterator[Step]:
        for lane in self.lanes:
            mine = self.writers + 4 * lane
            words = [self.words["limit", lane, copy] for copy in self.copies]
            for writer in (mine, mine + 2):
                for copy, word in enumerate(words) if state[writer + 1] else ():
                    if state[writer + 1] & 1 << copy:
                        new = bytearray(state)
                        new[word] = state[writer]
                        new[writer + 1] ^= 1 << copy
                        new[writer] *= new[writer + 1] > 0
                        new[self.caller + 4 * lane + 3] = 0
                        yield bytes(new), "", (f"limit {state[writer]} reaches copy {copy} of lane {lane}",)
            if not state[self.changes]:
                continue
            writer = mine + 2 * ("caller: one writer" in self.without and state[mine + 1] > 0)
            for limit in self.setting.limits if not state[writer + 1] else ():
                if any(state[word] != limit for word in words):
                    new = bytearray(state)
                    new[self.changes] -= 1
                    if len(words) > 1:
                        new[writer], new[writer + 1] = limit, (1 << len(words)) - 1
                    else:
                        new[words[0]] = limit
                        new[self.caller + 4 * lane + 3] = 0
                    yield bytes(new), "", (f"somebody sets the limit of lane {lane} to {limit}",)

    def _complete(self, state: bytes | bytearray) -> bool:
        """The rule by which a caller knows, when no pass is in flight, that the inference is complete."""
        words = self.words
        if state[words["next",]] >= self.launches and "caller: next tells" not in self.without:
            return True
        if state[words["mode",]] == CLAIMED:
            return state[words["done", self.launches - 1]] == self.setting.shares[-1]
        last = state[words["last",]]
        return last != NONE and state[words["stop", last, 0]] == NONE != state[words["first", last]]

    def _passes(self, state: bytes, flying: list[int]) -> Iterator[Step]:
        complete, begun, wanted = self._complete(state), state[self.words["begun",]], state[self.words["wanted",]]
        patient = "caller: want alone" not in self.without
        if complete and begun == wanted < self.setting.inferences and not (flying and patient):
            new = bytearray(state)
            new[self.words["wanted",]] += 1
            yield bytes(new), "", ("another inference is wanted",)
        for lane in set(self.lanes).difference(flying):
            others = ((0, NONE), (0, 0), (NONE, NONE)) if self.setting.borrowed else ((0, NONE),)
            for first, stop in others if self.setting.borrowed or "caller: own lane" in self.without else ():
                new = bytearray(state)
                new[self.words["first", lane]] = first
                for copy in self.copies:
                    new[self.words["stop", lane, copy]] = stop
                yield bytes(new), "", (f"another program has a pass in lane {lane}",)
            for way in self.setting.ways[lane]:
                if self._may_begin(state, way, flying, complete):
                    new, caller = bytearray(state), self.caller + 4 * lane
                    if self.setting.spans and way >= STEPPED:
                        new[self.span] = state[self.span] or 1
                    switch = state[self.words["mode",]] == EXCLUSIVE or (complete and begun != wanted)
                    new[caller : caller + 4] = (
                        1,
                        way,
                        way != CLAIMED or switch,
                        not flying and not any(state[self.writers : self.caller]),
                    )
                    for other in flying:
                        new[self.caller + 4 * other + 3] = 0
                    self._enter(new, lane, [("gate", lane, way if way == RESIDENT else way & CLAIMED)])
                    kind = "a resident" if way == RESIDENT else "a claimed" if way & CLAIMED else "an exclusive"
                    yield bytes(new), "", (f"lane {lane} begins {kind} pass",)

    def _may_begin(self, state: bytes, way: int, flying: list[int], complete: bool) -> bool:
        if way & CLAIMED and self.setting.opaque and "caller: opaque exclusive" not in self.without:
            return False
        if way < STEPPED and state[self.span] and "caller: cut to the last" not in self.without:
            return False
        first = self.setting.spans and way >= STEPPED and not state[self.span]
        if first and not complete and "caller: cut from the first" not in self.without:
            return False
        if way != CLAIMED:
            return not flying or "caller: exclusive alone" in self.without
        for lane in flying:
            _, other, wait, _ = state[self.caller + 4 * lane : self.caller + 4 * lane + 4]
            line = "caller: switch first" if other == CLAIMED else "caller: claimed waits"
            if wait and line not in self.without:
                return False
        return True

    def told(self, what: tuple[Any, ...]) -> str:
        """A step in words."""
        if len(what) == 1:
            return str(what[0])
        lane, kernel, (kind, *rest), result = what
        if kind in ("load", "store", "add", "fresh"):
            rest[0] = next(" ".join(map(str, name)) for name, number in self.words.items() if number == rest[0])
        where = "gate" if kernel == 1 else f"launch {kernel - 2}" if kernel < self.launches + 2 else "step"
        return " ".join(map(str, (f"lane {lane} {where}:", kind, *rest, *(() if result is None else ("->", result)))))


def search(setting: Setting, without: frozenset[str] = frozenset()) -> Found:
    """Come to every state of ``setting``, or to the first broken promise.

    Parameters
    ----------
    setting
        What is searched.
    without
        Lines of ``LINES`` and ``SPARE`` that are left out.
    """
    if unknown := without - LINES.keys() - SPARE.keys():
        raise KeyError(*unknown)
    began, model = time.perf_counter(), Model(setting, without)
    level = [model.first()]
    seen: dict[bytes, bytes | None] = {level[0]: None}
    while level:
        following = []
        for state in level:
            for new, promise, what in model.steps(state):
                if promise:
                    steps = (*_way(model, seen, state), model.told(what))
                    return Found(len(seen), time.perf_counter() - began, Broken(promise, steps))
                if new not in seen:
                    seen[new] = state
                    following.append(new)
        level = following
    return Found(len(seen), time.perf_counter() - began, None)


def _way(model: Model, seen: Mapping[bytes, bytes | None], state: bytes) -> Iterator[str]:
    before = seen[state]
    if before is not None:
        yield from _way(model, seen, before)
        yield next(model.told(what) for new, _, what in model.steps(before) if new == state)


def main(arguments: list[str]) -> int:
    """Search, and print what was found."""
    for name, setting in (LARGE if arguments == ["--large"] else SETTINGS).items():
        found = search(setting)
        print(f"{name}: {found.states:,} states, {found.seconds:.1f} s, {'broken' if found.broken else 'holds'}")
        if found.broken:
            print(found.broken.promise, *found.broken.steps, sep="\n  ")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
