"""What the search of the protocol looks at: its lines, by name, and the settings of small and of larger runs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ALL",
    "CLAIMED",
    "EXCLUSIVE",
    "LARGE",
    "LINES",
    "NONE",
    "RESIDENT",
    "SETTINGS",
    "SPARE",
    "STEPPED",
    "Setting",
]

NONE = 255  # of ``first``, ``stop`` and ``last``
ALL = 99  # a limit that holds nobody back
EXCLUSIVE, CLAIMED = 0, 1  # ways of a pass
STEPPED = 2  # and a step behind it; nobody else has a pass of the inference meanwhile
RESIDENT = 4  # the gate chooses the way; it becomes a stepped one

LINES = {
    # direct and strided: one worker for each share
    "direct: before first": "i < first: leave",
    "direct: behind stop": "i > stop: leave",
    "direct: pass before limit": "a launch that the pass does not run leaves before it looks at the limit",
    "direct: taken": "taken[b] == epoch: leave",
    "direct: limit": "limit != width: leave",
    "direct: width": "it is the width that the limit is compared with, not ALL",
    "direct: stop": "stop = i, when it leaves for the limit",
    "direct: stop everywhere": "in all copies of the lane's words",
    "direct: take": "taken[b] = epoch",
    # looped: any number of workers
    "looped: width": "w >= width: leave",
    "looped: done": "done[i-1] != shares[i-1]: stop = i - 1",
    "looped: done not of first": "only i > first looks at the launch before",
    "looped: behind stop": "i > stop: leave; so does the worker that has just set it to i - 1",
    "looped: limit": "limit != width: leave",
    "looped: limit each time": "the lane is loaded again before each claim",
    "looped: limit before claim": "the limit is looked at before the claim, not behind it",
    "looped: atomic claim": "claimed[i] is loaded and raised in one step",
    "looped: end": "b >= shares[i]: leave",
    "looped: taken": "taken[b] == epoch: the next one",
    "looped: take": "taken[b] = epoch",
    "looped: count": "done[i] += 1",
    "looped: count behind": "done[i] is raised behind the share, not before",
    "looped: atomic count": "done[i] is loaded and raised in one step",
    # gates
    "gate: epoch": "a new inference has a new epoch",
    "gate: next of new": "a new inference begins at launch 0",
    "gate: stop": "after an exclusive pass, next is where it stopped, or behind the last launch",
    "gate: empty pass": "an exclusive pass with first == NONE leaves next as it was",
    "gate: last lane": "the stop is that of the lane of the last exclusive pass, not of the gate's own",
    "gate: scan": "after a claimed pass, next is the first launch with done != shares",
    "gate: scan from next": "the scan begins at next, not at launch 0",
    "gate: mode": "the mode is written",
    "gate: width": "width = limit",
    "gate: one limit": "width and first come from one load of the limit",
    "gate: limit left alone": "a gate does not write the limit",
    "gate: first": "first = next",
    "gate: none under 0": "first = NONE if the limit is 0, or is not ALL for an exclusive pass",
    "gate: clear stop": "stop = NONE",
    "gate: clear of new": "a claimed gate that begins an inference clears claimed and done",
    "gate: clear": "a claimed gate behind an exclusive pass clears claimed and done from next on",
    "gate: count taken": "done[next] = number of taken shares of launch next",
    # resident inferences
    "resident: wait": "a gate waits until the limit lets somebody run",
    "resident: nothing to run": "a gate that has nothing to run does not wait",
    "resident: way": "the pass is a claimed one unless the limit is ALL",
    "resident: one limit": "the limit that ended the wait is the width",
    "resident: tired": "a gate that has waited for long begins an exclusive pass, whatever the limit is",
    "step: next": "next is written",
    "step: forget": "last = NONE: no gate looks at the lane any more",
    "step: until": "a pass that did not stop has completed the launches of its span, not all",
    "spans: one by one": "passes are over the next span when the one before is complete, not earlier",
    "look: before first": "i < first: the launch does not run",
    "look: behind stop": "i > stop: the launch does not run",
    "look: limit": "limit != width: the launch does not run",
    "look: stop": "stop = i, when it does not run for the limit",
    "look: stop everywhere": "in all copies of the lane's words",
    # the caller of passes, writers of limits, and the stream
    "caller: exclusive alone": "an exclusive pass begins when no pass of the inference is in flight",
    "caller: claimed waits": "a claimed pass begins when no exclusive one is in flight",
    "caller: switch first": "the gate that switches or begins has ended before another lane's pass begins",
    "caller: want alone": "with several lanes, the next inference is wanted only when no pass is in flight",
    "caller: own lane": "no other program uses the lane of an exclusive pass before the next gate",
    "caller: opaque exclusive": "a program with an opaque launch has exclusive passes only",
    "caller: cut from the first": "passes over spans begin with the first span, of a new inference",
    "caller: cut to the last": "no pass is over all launches before the last span is complete",
    "caller: next tells": "an inference with next behind its last launch is complete, whatever the last pass did",
    "caller: one writer": "a change of a lane's limit has reached all copies before the next change of it begins",
    "stream: in order": "a kernel starts when all workers of the one before have left",
}
SPARE = {
    "direct: taken of first only": "only i == first looks at taken",
    "direct: taken before limit": "taken is looked at before the limit",
    "direct: take before": "taken[b] is stored before the share runs, not behind it",
    "looped: before first": "i < first: leave",
    "looped: stop": "stop = i, when it leaves for the limit",
    "looped: stop everywhere": "in all copies of the lane's words, and not in the worker's alone",
    "looped: behind stop again": "i > stop: leave, also after the first share",
    "looped: limit of next": "the limit is loaded again after a share that was taken before",
    "looped: take before": "taken[b] is stored before the share runs, not behind it",
    "step: scan until": "behind a claimed pass, the step does not look at launches behind the span",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is searched.

    Attributes
    ----------
    shares
        Shares of each launch.
    opaque
        Launches that run whole or not at all.
    looked
        Those of them whose first worker looks at the limit, and whose others do what it says: of one share.
    ways
        By lane, the ways of the passes that it may have.
    workers
        By lane, workers of a looped launch: one on each of so many SMs.
    copies
        Of a lane's words; worker w looks at copy w modulo ``copies``.
    limits
        Values that a limit may take; each begins as ``ALL``.
    changes
        How often limits change, in all.
    inferences
        How many, one after the other.
    borrowed
        Whether other programs have passes in the lanes, between those of this one.
    torn
        Which part of a lane's record is loaded first; "" if all is loaded at once.
    impatient
        Whether a gate that waits may tire of it at any time.
    spans
        Where spans end, if an inference is cut: each stepped pass is over one of them, and goes on with it until it
        is complete. Any way of a pass may come first.
    """

    shares: tuple[int, ...] = (2, 1)
    opaque: frozenset[int] = frozenset()
    looked: frozenset[int] = frozenset()
    ways: tuple[tuple[int, ...], ...] = ((EXCLUSIVE,),)
    workers: tuple[int, ...] = (1,)
    copies: int = 1
    limits: tuple[int, ...] = (0, 1, 2, ALL)
    changes: int = 1
    inferences: int = 1
    borrowed: bool = False
    torn: str = ""
    impatient: bool = False
    spans: tuple[int, ...] = ()


EITHER = (EXCLUSIVE, CLAIMED)
ALONE = (RESIDENT, STEPPED | EXCLUSIVE, STEPPED | CLAIMED)
LOOKED = frozenset({0, 2})

SETTINGS = {
    "direct": Setting((2, 1, 1), limits=(0, 1, ALL), changes=3, inferences=2),
    "opaque": Setting((2, 1, 1), frozenset({1}), ways=(EITHER,), limits=(0, ALL), changes=2, inferences=2),
    "either": Setting(ways=(EITHER,), workers=(2,), limits=(0, 1), changes=2, inferences=2),
    "either goes on": Setting(ways=(EITHER,), workers=(2,), limits=(0, 1, ALL), changes=2),
    "copies": Setting(copies=2, limits=(0, 1, ALL), changes=2),
    "copies of either": Setting(ways=(EITHER,), workers=(2,), copies=2, limits=(0, ALL), changes=2),
    "limit first": Setting(ways=(EITHER,), workers=(2,), torn="limit"),
    "limit last": Setting(ways=(EITHER,), workers=(2,), torn="rest"),
    "claims of two": Setting(ways=((CLAIMED,), (CLAIMED,)), workers=(2, 1), changes=0),
    "two lanes": Setting(ways=(EITHER, (CLAIMED,)), workers=(1, 1), limits=(0,)),
    "two lanes go on": Setting((1, 1), ways=(EITHER, (CLAIMED,)), workers=(1, 1), limits=(0, ALL), changes=2),
    "two equal lanes": Setting((1, 1), ways=(EITHER, EITHER), workers=(1, 1), limits=(0,), inferences=2),
    "resident": Setting(ways=(ALONE,), workers=(2,), limits=(0, 1, ALL), changes=2, inferences=2, borrowed=True),
    "resident copies": Setting((1, 1), ways=(ALONE,), copies=2, limits=(0, ALL), changes=2, borrowed=True),
    "resident looks": Setting((1, 2, 1), LOOKED, LOOKED, ((RESIDENT,),), copies=2, limits=(0, ALL), changes=2),
    "resident in two lanes": Setting((2, 1), ways=(ALONE, ALONE), workers=(1, 1), limits=(0,), borrowed=True),
    "resident and others": Setting(ways=((RESIDENT, *EITHER),), workers=(2,), limits=(0, 1, ALL), changes=2),
    "impatient": Setting(ways=(ALONE,), workers=(2,), limits=(0, 1, ALL), changes=2, borrowed=True, impatient=True),
    "impatient copies": Setting((1, 1), ways=(ALONE,), copies=2, limits=(0, 1, ALL), changes=2, impatient=True),
    "impatient looks": Setting(
        (1, 2, 1), LOOKED, LOOKED, ((RESIDENT,),), limits=(0, 1, ALL), changes=2, impatient=True
    ),
    "cut": Setting(
        (1, 2, 1),
        ways=(ALONE,),
        workers=(2,),
        limits=(0, 1, ALL),
        changes=2,
        inferences=2,
        borrowed=True,
        spans=(1, 3),
    ),
    "cut copies": Setting((1, 1, 1), ways=(ALONE,), copies=2, limits=(0, ALL), changes=2, borrowed=True, spans=(1, 3)),
    "cut looks": Setting(
        (1, 2, 1), LOOKED, LOOKED, (ALONE,), copies=2, limits=(0, ALL), changes=2, inferences=2, spans=(2, 3)
    ),
    "cut in two lanes": Setting((1, 1), ways=(ALONE, ALONE), workers=(1, 1), limits=(0,), borrowed=True, spans=(1, 2)),
    "cut and others": Setting(
        (1, 1, 2),
        ways=((RESIDENT, STEPPED | EXCLUSIVE, *EITHER),),
        limits=(0, 1, ALL),
        changes=2,
        inferences=2,
        spans=(1, 3),
    ),
    "cut, impatient": Setting(
        (1, 2), ways=(ALONE,), workers=(2,), limits=(0, 1, ALL), changes=2, borrowed=True, impatient=True, spans=(1, 2)
    ),
    "cut looks, impatient": Setting(
        (1, 2, 1), LOOKED, LOOKED, (ALONE,), limits=(0, 1, ALL), changes=2, impatient=True, spans=(1, 3)
    ),
}
LARGE = {
    "direct": Setting((3, 2, 3), changes=5, inferences=3),
    "opaque": Setting((2, 3, 2, 1), frozenset({1}), changes=5, inferences=3),
    "either": Setting((3, 2), ways=(EITHER,), workers=(3,), changes=3, inferences=2),
    "copies": Setting((3, 2), copies=2, changes=3, inferences=2),
    "copies of either": Setting((2, 2), ways=(EITHER,), workers=(2,), copies=2, changes=2, inferences=2),
    "limit first": Setting((2, 2), ways=(EITHER,), workers=(2,), changes=2, inferences=2, torn="limit"),
    "limit last": Setting((2, 2), ways=(EITHER,), workers=(2,), changes=2, inferences=2, torn="rest"),
    "claims of two": Setting((2, 2), ways=((CLAIMED,), (CLAIMED,)), workers=(2, 2), limits=(0, 1)),
    "claims of two, torn": Setting(ways=((CLAIMED,), (CLAIMED,)), workers=(2, 1), limits=(0,), torn="limit"),
    "claims of three": Setting((1, 1), ways=((CLAIMED,),) * 3, workers=(1, 1, 1), limits=(0,), changes=0),
    "two lanes": Setting(ways=(EITHER, (CLAIMED,)), workers=(2, 1), limits=(0, 1), changes=2),
    "two equal lanes": Setting(ways=(EITHER, EITHER), workers=(1, 1), limits=(0, 1), inferences=2),
    "resident": Setting((2, 2), ways=(ALONE,), workers=(3,), changes=3, inferences=2, borrowed=True),
    "resident copies": Setting(ways=(ALONE,), workers=(2,), copies=2, changes=2, inferences=2, borrowed=True),
    "resident looks": Setting((1, 3, 1), LOOKED, LOOKED, ((RESIDENT,),), copies=2, changes=3, inferences=2),
    "resident in two lanes": Setting(ways=(ALONE, ALONE), workers=(2, 1), changes=2, inferences=2, borrowed=True),
    "impatient": Setting((2, 2), ways=(ALONE,), workers=(2,), changes=3, inferences=2, borrowed=True, impatient=True),
    "impatient looks": Setting((1, 3, 1), LOOKED, LOOKED, ((RESIDENT,),), copies=2, changes=3, impatient=True),
    "resident, limit first": Setting(ways=(ALONE,), workers=(2,), changes=3, inferences=2, torn="limit"),
    "resident, limit last": Setting(ways=(ALONE,), workers=(2,), changes=3, inferences=2, torn="rest"),
    "cut": Setting((2, 1, 2), ways=(ALONE,), workers=(2,), changes=3, inferences=2, borrowed=True, spans=(1, 3)),
    "cut in three": Setting((1, 1, 1), ways=(ALONE,), changes=3, inferences=2, borrowed=True, spans=(1, 2, 3)),
    "cut looks": Setting((1, 3, 1, 1), LOOKED, LOOKED, (ALONE,), copies=2, changes=3, inferences=2, spans=(2, 4)),
    "cut and others": Setting(
        (1, 2, 1), ways=((*ALONE, *EITHER),), workers=(2,), changes=2, inferences=2, spans=(1, 3)
    ),
    "cut, impatient": Setting(
        (1, 2, 1), ways=(ALONE,), workers=(2,), changes=3, inferences=2, borrowed=True, impatient=True, spans=(1, 3)
    ),
    "cut, limit first": Setting((1, 2), ways=(ALONE,), workers=(2,), changes=3, torn="limit", spans=(1, 2)),
    "cut, limit last": Setting((1, 2), ways=(ALONE,), workers=(2,), changes=3, torn="rest", spans=(1, 2)),
}
