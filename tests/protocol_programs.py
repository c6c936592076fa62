"""The programs of gates and workers, access by access, with a name for every line that can be left out.

A program is a generator: it yields one access of memory at a time and is sent what a load returned.
What it returns is the call that goes on for it, or None when it leaves. ``state.py`` has the words
that are named here; ``protocol_model.py`` runs the programs in every order.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from protocol_settings import ALL, CLAIMED, EXCLUSIVE, NONE, RESIDENT, Setting

__all__ = ["Access", "Call", "Programs"]

Access = tuple[Any, ...]
Call = tuple[Any, ...]
Program = Generator[Access, Any, Call | None]
Part = Generator[Access, Any, int]
Record = Generator[Access, Any, tuple[int, int, int, int, int]]


class Programs:
    """The programs for a setting, without some lines, over a memory of numbered words."""

    def __init__(self, setting: Setting, without: frozenset[str]):
        self.shares, self.launches = setting.shares, len(setting.shares)
        self.copies, self.torn, self.without = setting.copies, setting.torn, without
        self.narrow, self.patient = not setting.opaque, not setting.impatient
        names: list[tuple[Any, ...]] = [(name,) for name in ("next", "epoch", "mode", "last", "begun", "wanted")]
        for lane in range(len(setting.ways)):
            # Of width, first and epoch all copies are equal while anybody looks: gates write them, alone in a lane.
            names += [(name, lane) for name in ("width", "first", "epoch", "choice")]
            names += [(name, lane, copy) for name in ("limit", "stop") for copy in range(setting.copies)]
        for i, shares in enumerate(setting.shares):
            names += [("claimed", i), ("done", i), *(("taken", i, b) for b in range(shares))]
        self.words = {name: number for number, name in enumerate(names)}

    def has(self, line: str) -> bool:
        return line not in self.without

    def load(self, *name: Any) -> Access:
        return ("load", self.words[name])

    def store(self, value: int, *name: Any) -> Access:
        return ("store", self.words[name], value)

    def add(self, *name: Any) -> Access:
        return ("add", self.words[name])

    def record(self, lane: int, copy: int) -> Record:
        """Limit, width, first, epoch and stop of a lane."""
        if not self.torn:
            limit, width, first, epoch, stop = yield ("record", lane, copy)
            return limit, width, first, epoch, stop
        limit = (yield ("limit", lane, copy)) if self.torn == "limit" else 0
        width, first, epoch, stop = yield ("rest", lane, copy)
        return limit if self.torn == "limit" else (yield ("limit", lane, copy)), width, first, epoch, stop

    def stop(self, lane: int, at: int, form: str, copy: int) -> Generator[Access, Any, None]:
        for other in range(self.copies) if self.has(f"{form}: stop everywhere") else (copy,):
            yield self.store(at, "stop", lane, other)

    def leave(self, lane: int, i: int, form: str, copy: int) -> Program:
        """Leave for the limit."""
        if self.has(f"{form}: stop"):
            yield from self.stop(lane, i, form, copy)
        return None

    def run(self, i: int, b: int, epoch: int, form: str, copy: int) -> Program:
        take, before = self.has(f"{form}: take"), self.has(f"{form}: take before")
        if take and before:
            yield self.store(epoch, "taken", i, b)
        yield ("begin", i, b, copy)
        yield ("end", i, b)
        if take and not before:
            yield self.store(epoch, "taken", i, b)
        return None

    # Workers

    def direct(self, lane: int, i: int, b: int) -> Program:
        copy = b % self.copies
        limit, width, first, epoch, stop = yield from self.record(lane, copy)
        leave = limit != (width if self.has("direct: width") else ALL) and self.has("direct: limit")
        if leave and not self.has("direct: pass before limit"):
            return ("leave", lane, i, "direct", copy)
        if (i < first and self.has("direct: before first")) or (i > stop and self.has("direct: behind stop")):
            return None
        if leave and not self.has("direct: taken before limit"):
            return ("leave", lane, i, "direct", copy)
        if i == first or not self.has("direct: taken of first only"):
            return ("untaken", lane, i, b, epoch, leave)
        return ("leave", lane, i, "direct", copy) if leave else ("run", i, b, epoch, "direct", copy)

    def untaken(self, lane: int, i: int, b: int, epoch: int, leave: bool) -> Program:
        if (yield self.load("taken", i, b)) == epoch and self.has("direct: taken"):
            return None
        copy = b % self.copies
        return ("leave", lane, i, "direct", copy) if leave else ("run", i, b, epoch, "direct", copy)

    def guarded(self, lane: int, i: int, b: int) -> Program:
        _, _, first, _, stop = yield from self.record(lane, b % self.copies)
        return None if i < first or i > stop else ("whole", i, b)

    def whole(self, i: int, b: int) -> Program:
        yield ("begin", i, b, 0)
        yield ("end", i, b)
        return None

    def look(self, lane: int, i: int) -> Program:
        limit, width, first, _, stop = yield from self.record(lane, 0)
        if (i < first and self.has("look: before first")) or (i > stop and self.has("look: behind stop")):
            return None
        if limit != width and self.has("look: limit"):
            return ("leave", lane, i, "look", 0)
        return ("whole", i, 0)

    def looped(self, lane: int, i: int, w: int) -> Program:
        _, _, first, _, stop = yield from self.record(lane, w % self.copies)
        if i < first or i > stop or (i == first and self.has("looped: done not of first")) or i == 0:
            return ("top", lane, i, w)
        return ("behind", lane, i, w) if self.has("looped: done") else ("top", lane, i, w)

    def behind(self, lane: int, i: int, w: int) -> Program:
        if (yield self.load("done", i - 1)) != self.shares[i - 1]:
            yield from self.stop(lane, i - 1, "looped", w % self.copies)
        return ("top", lane, i, w)

    def top(self, lane: int, i: int, w: int) -> Program:
        limit, width, first, epoch, stop = yield from self.record(lane, w % self.copies)
        if (i < first and self.has("looped: before first")) or (i > stop and self.has("looped: behind stop")):
            return None
        if w >= width and self.has("looped: width"):
            return None
        return ("claim", lane, i, w % self.copies, limit == width, epoch)

    def again(self, lane: int, i: int, copy: int, epoch: int) -> Program:
        """As at the top; the width has not changed since."""
        if not self.has("looped: limit each time"):
            return ("claim", lane, i, copy, True, epoch)
        limit, width, _, epoch, stop = yield from self.record(lane, copy)
        if i > stop and self.has("looped: behind stop again"):
            return None
        return ("claim", lane, i, copy, limit == width, epoch)

    def claim(self, lane: int, i: int, copy: int, same: bool, epoch: int) -> Program:
        leave = not same and self.has("looped: limit")
        if leave and self.has("looped: limit before claim"):
            return ("leave", lane, i, "looped", copy)
        if self.has("looped: atomic claim"):
            b = yield self.add("claimed", i)
        else:
            b = yield self.load("claimed", i)
            yield self.store(min(b + 1, self.shares[i]), "claimed", i)
        if b >= self.shares[i]:
            if not self.has("looped: end"):
                yield ("begin", i, b, copy)
            return None
        if leave:
            return ("leave", lane, i, "looped", copy)
        return ("claimed", lane, i, b, copy, epoch)

    def claimed(self, lane: int, i: int, b: int, copy: int, epoch: int) -> Program:
        if (yield self.load("taken", i, b)) != epoch or not self.has("looped: taken"):
            return ("share", lane, i, b, copy, epoch)
        if not self.has("looped: limit of next"):
            return ("claim", lane, i, copy, True, epoch)
        width = yield self.load("width", lane)
        return ("claim", lane, i, copy, (yield ("limit", lane, copy)) == width, epoch)

    def share(self, lane: int, i: int, b: int, copy: int, epoch: int) -> Program:
        count = self.has("looped: count")
        if count and not self.has("looped: count behind"):
            yield self.add("done", i)
        yield from self.run(i, b, epoch, "looped", copy)
        if count and self.has("looped: count behind"):
            if self.has("looped: atomic count"):
                yield self.add("done", i)
            else:
                done = yield self.load("done", i)
                yield self.store(done + 1, "done", i)
        return ("again", lane, i, copy, epoch)

    # Gates

    def gate(self, lane: int, way: int) -> Program:
        mode = yield self.load("mode")
        after = yield self.load("next")
        if mode == EXCLUSIVE:
            after = yield from self.stopped(lane, after)
        elif self.has("gate: scan"):
            after = yield from self.scan(after, self.launches)
        if after >= self.launches and (yield self.load("begun")) != (yield self.load("wanted")):
            return ("fresh", lane, way, mode, after)
        if way == RESIDENT:
            return ("wait", lane, mode, after, False)
        return ("latch", lane, way, way == CLAIMED and mode == EXCLUSIVE, after, False)

    def scan(self, after: int, end: int) -> Part:
        """The first launch below ``end`` that is not complete, after a claimed pass."""
        if not self.has("gate: scan from next"):
            after = 0
        while after < end and (yield self.load("done", after)) == self.shares[after]:
            after += 1
        return after

    def stopped(self, lane: int, after: int) -> Part:
        """The first launch that is not complete, after an exclusive pass."""
        last = yield self.load("last")
        if last == NONE:
            return after
        return (yield from self.ended(last if self.has("gate: last lane") else lane, after, self.launches))

    def ended(self, lane: int, after: int, end: int) -> Part:
        first = yield self.load("first", lane)
        stop: int = yield self.load("stop", lane, 0)
        if (first == NONE and self.has("gate: empty pass")) or not self.has("gate: stop"):
            return after
        return end if stop == NONE else stop

    def fresh(self, lane: int, way: int, mode: int, after: int) -> Program:
        yield ("fresh", self.words["begun",])
        if self.has("gate: epoch"):
            # Two numbers are enough: when an inference begins, every share holds that of the one before.
            epoch = yield self.load("epoch")
            yield self.store(epoch % 2 + 1, "epoch")
        after = 0 if self.has("gate: next of new") else after
        return (
            ("wait", lane, mode, after, True) if way == RESIDENT else ("latch", lane, way, way == CLAIMED, after, True)
        )

    def wait(self, lane: int, mode: int, after: int, new: bool) -> Program:
        """The gate of a resident inference; its way is known when the limit lets it run, or it has waited for long."""
        limit = yield ("limit", lane, 0)
        closed = limit == 0 or (limit != ALL and not self.narrow)
        idle = after >= self.launches
        if closed and self.has("resident: wait") and not (idle and self.has("resident: nothing to run")):
            if self.patient or not (yield ("tires",)):
                yield ("sleep",)
                return ("wait", lane, mode, after, new)
            limit = yield ("limit", lane, 0)
            way = EXCLUSIVE if self.has("resident: tired") else CLAIMED
        else:
            way = CLAIMED if limit != ALL and self.narrow and not idle and self.has("resident: way") else EXCLUSIVE
        width = limit if self.has("resident: one limit") else (yield ("limit", lane, 0))
        yield self.store(way, "choice", lane)
        nothing = way == CLAIMED and limit == 0
        return ("begins", lane, way, way == CLAIMED and (new or mode == EXCLUSIVE), after, nothing, width, new)

    def latch(self, lane: int, way: int, switch: bool, after: int, new: bool) -> Program:
        limit = yield ("limit", lane, 0)
        width = limit if self.has("gate: one limit") else (yield ("limit", lane, 0))
        nothing = limit == 0 if way == CLAIMED else limit != ALL
        return ("begins", lane, way, switch, after, nothing, width, new)

    def begins(self, lane: int, way: int, switch: bool, after: int, nothing: bool, width: int, new: bool) -> Program:
        yield self.store(after, "next")
        if self.has("gate: mode"):
            yield self.store(way, "mode")
        yield self.store(lane if way == EXCLUSIVE else NONE, "last")
        if switch:
            return ("clear", lane, after, nothing, width, new)
        return ("publish", lane, after, nothing, width)

    def clear(self, lane: int, after: int, nothing: bool, width: int, new: bool) -> Program:
        if self.has("gate: clear of new" if new else "gate: clear"):
            for i in range(after, self.launches):
                yield self.store(0, "claimed", i)
                yield self.store(0, "done", i)
        if after < self.launches and self.has("gate: count taken"):
            epoch = yield self.load("epoch")
            for b in range(self.shares[after]):
                if (yield self.load("taken", after, b)) == epoch:
                    yield self.add("done", after)
        return ("publish", lane, after, nothing, width)

    def publish(self, lane: int, after: int, nothing: bool, width: int) -> Program:
        nothing = (nothing and self.has("gate: none under 0")) or after >= self.launches
        yield self.store((yield self.load("epoch")), "epoch", lane)
        if not self.has("gate: limit left alone"):
            yield from (self.store(width, "limit", lane, copy) for copy in range(self.copies))
        if self.has("gate: width"):
            yield self.store(width, "width", lane)
        if self.has("gate: first"):
            yield self.store(NONE if nothing else after, "first", lane)
        if self.has("gate: clear stop"):
            yield from (self.store(NONE, "stop", lane, copy) for copy in range(self.copies))
        return None

    def step(self, lane: int, until: int) -> Program:
        """Behind a pass over the launches below ``until``, in the same lane."""
        after = yield self.load("next")
        if (yield self.load("mode")) == CLAIMED:
            after = yield from self.scan(after, until if self.has("step: scan until") else self.launches)
        elif (yield self.load("last")) == lane:
            after = yield from self.ended(lane, after, until if self.has("step: until") else self.launches)
        if self.has("step: next"):
            yield self.store(after, "next")
        if self.has("step: forget"):
            yield self.store(NONE, "last")
        return None
