"""The programs of gates and workers, access by access, with a name for every line that can be left out.

A program is a generator: it yields one access of memory at a time and is sent what a load returned.
What it returns is the call that goes on for it, or None when it leaves. ``state.py`` has the words
that are named here; ``protocol_model.py`` runs the programs in every order.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

__all__ = ["ALL", "CLAIMED", "EXCLUSIVE", "LINES", "NONE", "SPARE", "Access", "Call", "Programs", "Setting"]

NONE = 255  # of ``first``, ``stop`` and ``last``
ALL = 99  # a limit that holds nobody back
EXCLUSIVE, CLAIMED = 0, 1  # ways of a pass

LINES = {
    # direct: one worker for each logical block
    "direct: before first": "i < first: leave",
    "direct: behind stop": "i > stop: leave",
    "direct: pass before limit": "a launch that the pass does not run leaves before it looks at the limit",
    "direct: taken": "taken[b] == epoch: leave",
    "direct: limit": "limit != width: leave",
    "direct: stop": "stop = i, when it leaves for the limit",
    "direct: take": "taken[b] = epoch",
    # looped: any number of workers
    "looped: width": "w >= width: leave",
    "looped: done": "done[i-1] != blocks[i-1]: leave",
    "looped: done not of first": "only i > first looks at the launch before",
    "looped: limit": "limit != width: leave",
    "looped: limit each time": "the lane is loaded again before each claim",
    "looped: limit before claim": "the limit is looked at before the claim, not behind it",
    "looped: whole claim": "what was claimed is run to its end, whatever becomes of the limit",
    "looped: atomic claim": "claimed[i] is loaded and raised in one step",
    "looped: end": "b >= blocks[i]: leave",
    "looped: taken": "taken[b] == epoch: the next one",
    "looped: take": "taken[b] = epoch",
    "looped: count": "done[i] += 1",
    "looped: count behind": "done[i] is raised behind the block, not before",
    "looped: atomic count": "done[i] is loaded and raised in one step",
    # gates
    "gate: epoch": "a new inference has a new epoch",
    "gate: next of new": "a new inference begins at launch 0",
    "gate: stop": "after an exclusive pass, next is where it stopped, or behind the last launch",
    "gate: empty pass": "an exclusive pass with first == NONE leaves next as it was",
    "gate: last lane": "the stop is that of the lane of the last exclusive pass, not of the gate's own",
    "gate: scan": "after a claimed pass, next is the first launch with done != blocks",
    "gate: scan from next": "the scan begins at next, not at launch 0",
    "gate: mode": "the mode is written",
    "gate: width": "width = limit",
    "gate: one limit": "width and first come from one load of the limit",
    "gate: limit left alone": "a gate does not write the limit",
    "gate: first": "first = next",
    "gate: none under 0": "first = NONE if the limit is 0",
    "gate: clear stop": "stop = NONE",
    "gate: clear of new": "a claimed gate that begins an inference clears claimed and done",
    "gate: clear": "a claimed gate behind an exclusive pass clears claimed and done from next on",
    "gate: count taken": "done[next] = number of taken blocks of launch next",
    # the caller of passes, and the stream
    "caller: exclusive alone": "an exclusive pass begins when no pass of the inference is in flight",
    "caller: claimed waits": "a claimed pass begins when no exclusive one is in flight",
    "caller: switch first": "the gate that switches or begins has ended before another lane's pass begins",
    "caller: want alone": "with several lanes, the next inference is wanted only when no pass is in flight",
    "caller: own lane": "no other program uses the lane of an exclusive pass before the next gate",
    "caller: opaque exclusive": "a program with an opaque launch has exclusive passes only",
    "caller: next tells": "an inference with next behind its last launch is complete, whatever the last pass did",
    "stream: in order": "a kernel starts when all workers of the one before have left",
}
SPARE = {
    "direct: taken of first only": "only i == first looks at taken",
    "direct: taken before limit": "taken is looked at before the limit",
    "direct: take before": "taken[b] is stored before the block, not behind it",
    "looped: before first": "i < first: leave",
    "looped: behind stop": "i > stop: leave",
    "looped: stop": "stop = i, when it leaves for the limit or for the launch before",
    "looped: take before": "taken[b] is stored before the block, not behind it",
}

Access = tuple[Any, ...]
Call = tuple[Any, ...]
Program = Generator[Access, Any, Call | None]
Part = Generator[Access, Any, int]
Record = Generator[Access, Any, tuple[int, int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is searched.

    Attributes
    ----------
    blocks
        Logical blocks of each launch.
    opaque
        Launches that run whole or not at all.
    ways
        By lane, the ways of the passes that it may have.
    workers
        By lane, workers of a looped launch.
    chunk
        Blocks that a worker claims at once.
    limits
        Values that a limit may take; each begins as ``ALL``.
    changes
        How often limits change, in all.
    inferences
        How many, one after the other.
    torn
        Which part of a lane's record is loaded first; "" if all is loaded at once.
    """

    blocks: tuple[int, ...] = (2, 1)
    opaque: frozenset[int] = frozenset()
    ways: tuple[tuple[int, ...], ...] = ((EXCLUSIVE,),)
    workers: tuple[int, ...] = (1,)
    chunk: int = 1
    limits: tuple[int, ...] = (0, 1, 2, ALL)
    changes: int = 1
    inferences: int = 1
    torn: str = ""


class Programs:
    """The programs for a setting, without some lines, over a memory of numbered words."""

    def __init__(self, setting: Setting, without: frozenset[str]):
        self.blocks, self.launches = setting.blocks, len(setting.blocks)
        self.chunk, self.torn, self.without = setting.chunk, setting.torn, without
        names: list[tuple[Any, ...]] = [(name,) for name in ("next", "epoch", "mode", "last", "begun", "wanted")]
        for lane in range(len(setting.ways)):
            names += [(name, lane) for name in ("limit", "width", "first", "epoch", "stop")]
        for i, blocks in enumerate(setting.blocks):
            names += [("claimed", i), ("done", i), *(("taken", i, b) for b in range(blocks))]
        self.words = {name: number for number, name in enumerate(names)}

    def has(self, line: str) -> bool:
        return line not in self.without

    def load(self, *name: Any) -> Access:
        return ("load", self.words[name])

    def store(self, value: int, *name: Any) -> Access:
        return ("store", self.words[name], value)

    def add(self, amount: int, *name: Any) -> Access:
        return ("add", self.words[name], amount)

    def record(self, lane: int) -> Record:
        """Limit, width, first, epoch and stop of a lane."""
        if not self.torn:
            limit, width, first, epoch, stop = yield ("record", lane)
            return limit, width, first, epoch, stop
        limit = (yield ("limit", lane)) if self.torn == "limit" else 0
        width, first, epoch, stop = yield ("rest", lane)
        return limit if self.torn == "limit" else (yield ("limit", lane)), width, first, epoch, stop

    def leave(self, lane: int, i: int, form: str) -> Program:
        """Leave for the limit, or for the launch before."""
        if self.has(f"{form}: stop"):
            yield self.store(i, "stop", lane)
        return None

    def run(self, i: int, b: int, epoch: int, form: str) -> Program:
        take, before = self.has(f"{form}: take"), self.has(f"{form}: take before")
        if take and before:
            yield self.store(epoch, "taken", i, b)
        yield ("begin", i, b)
        yield ("end", i, b)
        if take and not before:
            yield self.store(epoch, "taken", i, b)
        return None

    # Workers

    def direct(self, lane: int, i: int, b: int) -> Program:
        limit, width, first, epoch, stop = yield from self.record(lane)
        leave = limit != width and self.has("direct: limit")
        if leave and not self.has("direct: pass before limit"):
            return ("leave", lane, i, "direct")
        if (i < first and self.has("direct: before first")) or (i > stop and self.has("direct: behind stop")):
            return None
        if leave and not self.has("direct: taken before limit"):
            return ("leave", lane, i, "direct")
        if i == first or not self.has("direct: taken of first only"):
            return ("untaken", lane, i, b, epoch, leave)
        return ("leave", lane, i, "direct") if leave else ("run", i, b, epoch, "direct")

    def untaken(self, lane: int, i: int, b: int, epoch: int, leave: bool) -> Program:
        if (yield self.load("taken", i, b)) == epoch and self.has("direct: taken"):
            return None
        return ("leave", lane, i, "direct") if leave else ("run", i, b, epoch, "direct")

    def guarded(self, lane: int, i: int, b: int) -> Program:
        _, _, first, _, stop = yield from self.record(lane)
        return None if i < first or i > stop else ("whole", i, b)

    def whole(self, i: int, b: int) -> Program:
        yield ("begin", i, b)
        yield ("end", i, b)
        return None

    def looped(self, lane: int, i: int, w: int) -> Program:
        limit, width, first, epoch, stop = yield from self.record(lane)
        if (i < first and self.has("looped: before first")) or (i > stop and self.has("looped: behind stop")):
            return None
        if w >= width and self.has("looped: width"):
            return None
        looks = i > first or (i > 0 and not self.has("looped: done not of first"))
        return ("behind" if looks and self.has("looped: done") else "claim", lane, i, limit == width, epoch)

    def behind(self, lane: int, i: int, same: bool, epoch: int) -> Program:
        if (yield self.load("done", i - 1)) != self.blocks[i - 1]:
            return ("leave", lane, i, "looped")
        return ("claim", lane, i, same, epoch)

    def again(self, lane: int, i: int, epoch: int) -> Program:
        if not self.has("looped: limit each time"):
            return ("claim", lane, i, True, epoch)
        limit, width, _, epoch, _ = yield from self.record(lane)
        return ("claim", lane, i, limit == width, epoch)

    def claim(self, lane: int, i: int, same: bool, epoch: int) -> Program:
        leave = not same and self.has("looped: limit")
        if leave and self.has("looped: limit before claim"):
            return ("leave", lane, i, "looped")
        if self.has("looped: atomic claim"):
            b = yield self.add(self.chunk, "claimed", i)
        else:
            b = yield self.load("claimed", i)
            yield self.store(min(b + self.chunk, self.blocks[i]), "claimed", i)
        if b >= self.blocks[i]:
            if not self.has("looped: end"):
                yield ("begin", i, b)
            return None
        if leave:
            return ("leave", lane, i, "looped")
        return ("claimed", lane, i, b, min(b + self.chunk, self.blocks[i]), epoch)

    def claimed(self, lane: int, i: int, b: int, end: int, epoch: int) -> Program:
        if (yield self.load("taken", i, b)) != epoch or not self.has("looped: taken"):
            return ("block", lane, i, b, end, epoch)
        return ("claimed", lane, i, b + 1, end, epoch) if b + 1 < end else ("again", lane, i, epoch)

    def block(self, lane: int, i: int, b: int, end: int, epoch: int) -> Program:
        count = self.has("looped: count")
        if count and not self.has("looped: count behind"):
            yield self.add(1, "done", i)
        yield from self.run(i, b, epoch, "looped")
        if count and self.has("looped: count behind"):
            if self.has("looped: atomic count"):
                yield self.add(1, "done", i)
            else:
                done = yield self.load("done", i)
                yield self.store(done + 1, "done", i)
        if b + 1 >= end:
            return ("again", lane, i, epoch)
        return ("claimed" if self.has("looped: whole claim") else "between", lane, i, b + 1, end, epoch)

    def between(self, lane: int, i: int, b: int, end: int, epoch: int) -> Program:
        limit, width, _, _, _ = yield from self.record(lane)
        return ("claimed", lane, i, b, end, epoch) if limit == width else ("leave", lane, i, "looped")

    # Gates

    def gate(self, lane: int, way: int) -> Program:
        mode = yield self.load("mode")
        after = yield self.load("next")
        if mode == EXCLUSIVE:
            after = yield from self.stopped(lane, after)
        elif self.has("gate: scan"):
            after = yield from self.scan(after)
        if after >= self.launches and (yield self.load("begun")) != (yield self.load("wanted")):
            return ("fresh", lane, way, mode, after)
        return ("latch", lane, way, way == CLAIMED and mode == EXCLUSIVE, after, False)

    def scan(self, after: int) -> Part:
        """The first launch that is not complete, after a claimed pass."""
        if not self.has("gate: scan from next"):
            after = 0
        while after < self.launches and (yield self.load("done", after)) == self.blocks[after]:
            after += 1
        return after

    def stopped(self, lane: int, after: int) -> Part:
        """The first launch that is not complete, after an exclusive pass."""
        last = yield self.load("last")
        if last == NONE:
            return after
        if not self.has("gate: last lane"):
            last = lane
        first = yield self.load("first", last)
        stop: int = yield self.load("stop", last)
        if (first == NONE and self.has("gate: empty pass")) or not self.has("gate: stop"):
            return after
        return min(stop, self.launches)

    def fresh(self, lane: int, way: int, mode: int, after: int) -> Program:
        yield ("fresh", self.words["begun",])
        if self.has("gate: epoch"):
            # Two numbers are enough: when an inference begins, every block holds that of the one before.
            epoch = yield self.load("epoch")
            yield self.store(epoch % 2 + 1, "epoch")
        return ("latch", lane, way, way == CLAIMED, 0 if self.has("gate: next of new") else after, True)

    def latch(self, lane: int, way: int, switch: bool, after: int, new: bool) -> Program:
        limit = yield ("limit", lane)
        width = limit if self.has("gate: one limit") else (yield ("limit", lane))
        yield self.store(after, "next")
        if self.has("gate: mode"):
            yield self.store(way, "mode")
        yield self.store(lane if way == EXCLUSIVE else NONE, "last")
        return ("clear" if switch else "publish", lane, after, limit, width, new)

    def clear(self, lane: int, after: int, limit: int, width: int, new: bool) -> Program:
        if self.has("gate: clear of new" if new else "gate: clear"):
            for i in range(after, self.launches):
                yield self.store(0, "claimed", i)
                yield self.store(0, "done", i)
        if after < self.launches and self.has("gate: count taken"):
            epoch = yield self.load("epoch")
            for b in range(self.blocks[after]):
                if (yield self.load("taken", after, b)) == epoch:
                    yield self.add(1, "done", after)
        return ("publish", lane, after, limit, width, new)

    def publish(self, lane: int, after: int, limit: int, width: int, _new: bool) -> Program:
        nothing = (limit == 0 and self.has("gate: none under 0")) or after >= self.launches
        yield self.store((yield self.load("epoch")), "epoch", lane)
        if not self.has("gate: limit left alone"):
            yield self.store(limit, "limit", lane)
        if self.has("gate: width"):
            yield self.store(width, "width", lane)
        if self.has("gate: first"):
            yield self.store(NONE if nothing else after, "first", lane)
        if self.has("gate: clear stop"):
            yield self.store(NONE, "stop", lane)
        return None
