"""One request in plain words and numbers: what happened to its latency, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any, TypeVar

from miriam.trace.intervals import Hold, Intervals, covered_us
from miriam.trace.recording import Outcome, Recording, Traced, level_name

__all__ = ["Part", "Story", "explain", "time_text"]

_K = TypeVar("_K")
_NAMED = 3  # who is named one by one where several did the same
_TASKS = 3
_COLUMNS = 110
_LITTLE = 0.05  # of the latency alone, more than which is worth a word


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a latency.

    Attributes
    ----------
    what
        ``waited``, ``paused`` or ``ran``.
    length_us
        How long, in all.
    share
        Of the latency.
    text
        Why, in words.
    """

    what: str
    length_us: float
    share: float
    text: str


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to a request. ``str()`` gives it as text.

    Attributes
    ----------
    number, task, level
        Which request.
    headline
        How long it took, and how long it would have taken alone.
    latency_us
        The first in numbers.
    alone_us
        The second; None where no request of the task was alone yet.
    parts
        Where the time went: together they are the latency.
    notes
        What else there is to know.
    """

    number: int
    task: str
    level: str
    headline: str
    latency_us: float
    alone_us: float | None
    parts: Sequence[Part]
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """As a document."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [self.headline, ""]
        width = max(len(time_text(part.length_us)) for part in self.parts)
        for part in self.parts:
            start = f"  {part.what:7}{time_text(part.length_us):>{width}}  {'█' * round(12 * part.share):12}  "
            lines.append(fill(part.text, _COLUMNS, initial_indent=start, subsequent_indent=" " * len(start)))
        notes = [fill(note, _COLUMNS, initial_indent="  ", subsequent_indent="  ") for note in self.notes]
        return "\n".join([*lines, *([""] if notes else []), *notes])


def explain(recording: Recording, number: int) -> Story:
    """Tell what happened to one request.

    Raises
    ------
    TraceError
        The recording does not hold it.
    """
    request = recording.find(number)
    intervals = Intervals(recording)
    latency_us = max(intervals.end_us(request) - request.submitted_us, 0.0)
    waited_us = max(intervals.waited_until_us(request) - request.submitted_us, 0.0)
    paused_us = sum(end_us - begin_us for begin_us, end_us in intervals.pauses(request))
    ran_us = latency_us - waited_us - paused_us
    before, beside = intervals.before(request), intervals.beside(request)
    times = {"waited": waited_us, "paused": paused_us, "ran": ran_us}
    texts = {
        "waited": _waiting(request, before, waited_us),
        "paused": _pausing([hold for hold in beside if hold.sms == 0], len(intervals.pauses(request))),
        "ran": _running([hold for hold in beside if hold.sms != 0], request),
    }
    parts = [Part(what, us, us / latency_us if latency_us else 0.0, texts[what]) for what, us in times.items()]
    alone_us = recording.alone_us.get(request.task)
    return Story(
        number, request.task, level_name(request.level), _headline(request, latency_us, alone_us), latency_us, alone_us,
        tuple(parts), tuple(_notes(request, recording, alone_us, times, any(hold.sms != 0 for hold in beside))),
    )  # fmt: skip


def time_text(value_us: float) -> str:
    """A time with its unit, three figures."""
    value, unit = (
        (value_us, "µs") if value_us < 1e3 else (value_us / 1e3, "ms") if value_us < 1e6 else (value_us / 1e6, "s")
    )
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(digits, 2)}f} {unit}"


def _headline(request: Traced, latency_us: float, alone_us: float | None) -> str:
    ends = {
        Outcome.OPEN: f"has been there for {time_text(latency_us)} and has not ended",
        Outcome.ANSWERED: f"took {time_text(latency_us)}",
        Outcome.FAILED: f"failed after {time_text(latency_us)}",
        Outcome.CANCELLED: f"was given up after {time_text(latency_us)}",
    }
    told = f"{request.name} ({level_name(request.level)}) {ends[request.outcome]}"
    if request.outcome == Outcome.ANSWERED and alone_us:
        told += f", {latency_us / alone_us:.2f} times the {time_text(alone_us)} that it takes alone"
    return told + "."


def _waiting(request: Traced, before: Sequence[Hold], waited_us: float) -> str:
    if request.started_us is None and request.outcome != Outcome.OPEN:
        end = "it never began"
    elif not before:
        queue_us = (
            waited_us if request.offered_us is None else min(request.offered_us - request.submitted_us, waited_us)
        )
        told = f"{time_text(queue_us)} in the queue, {time_text(waited_us - queue_us)} on the way to its first step"
        return f"nothing was before it: {told}"
    else:
        end = ""
    served = {hold.by.number: hold.by for hold in before if hold.by is not None}
    parts = [end] if end else []
    if served:
        parts.append(f"{_requests(len(served))} before it: {_by_whom(before)}")
        overtook = sum(other.submitted_us > request.submitted_us for other in served.values())
        if overtook:
            parts.append(f"{overtook} of them came later and went first, being more urgent")
    for why in dict.fromkeys(hold.why for hold in before if hold.by is None):
        held_us = sum(hold.length_us for hold in before if hold.by is None and hold.why == why)
        parts.append(f"{time_text(held_us)} of it its lane was held at zero: {why}")
    return "; ".join(parts)


def _pausing(holds: Sequence[Hold], times: int) -> str:
    if not holds:
        return "never"
    served = [hold for hold in holds if hold.by is not None]
    parts = [f"by {_by_whom(served)}"] if served else []
    for why in dict.fromkeys(hold.why for hold in holds if hold.by is None):
        held_us = sum(hold.length_us for hold in holds if hold.by is None and hold.why == why)
        parts.append(f"{time_text(held_us)} by the policy: {why}")
    return f"{'once' if times == 1 else f'{times} times'}: {'; '.join(parts)}"


def _running(holds: Sequence[Hold], request: Traced) -> str:
    if request.started_us is None:
        return "not at all"
    if not holds:
        return "with the device to itself"
    text = f"{time_text(covered_us(holds))} of it beside {_by_whom(holds)}"
    sms = sorted({hold.sms for hold in holds if hold.sms is not None})
    return text + (f", which left it {' or '.join(map(str, sms))} SMs" if sms else "")


def _notes(
    request: Traced, recording: Recording, alone_us: float | None, times: dict[str, float], company: bool
) -> list[str]:
    notes = []
    latency_us = sum(times.values())
    if request.lane is not None:
        why = f": {request.why}" if request.why else ""
        notes.append(f"{recording.policy or 'The policy'} put it on lane {recording.lane_name(request.lane)}{why}.")
    if request.error:
        notes.append(f"Its error: {request.error}")
    if alone_us is None:
        notes.append(f"No request of {request.task} was alone yet, so there is nothing to compare with.")
    elif request.outcome == Outcome.ANSWERED and (more_us := latency_us - alone_us) > _LITTLE * alone_us:
        slower = (
            "others beside it"
            if company
            else "the run itself, with nobody there: the rest of the machine, or its clocks"
        )
        found = {"waiting": times["waited"], "pauses": times["paused"], slower: times["ran"] - alone_us}
        most = max(found, key=lambda what: found[what])
        notes.append(f"Of the {time_text(more_us)} that it took longer than alone, most is {most}.")
    if request.deadline_us is not None and (late_us := latency_us - request.deadline_us) > 0:
        notes.append(f"It missed its deadline of {time_text(request.deadline_us)} by {time_text(late_us)}.")
    return notes


def _requests(count: int) -> str:
    return "1 request was" if count == 1 else f"{count} requests were"


def _by_whom(holds: Sequence[Hold]) -> str:
    """Who they were, the longest first: each by itself, or, where they are many, by task."""
    served: dict[int, list[Hold]] = {}
    tasks: dict[tuple[str, int], list[Hold]] = {}
    for hold in holds:
        if hold.by is not None:
            served.setdefault(hold.by.number, []).append(hold)
            tasks.setdefault((hold.by.task, hold.by.level), []).append(hold)
    if len(served) <= _NAMED:
        names = {
            number: f"{some[0].by.name} ({level_name(some[0].by.level)})"
            for number, some in served.items()
            if some[0].by
        }
        return ", ".join(f"{names[number]} {time_text(us)}" for number, us in _longest(served))
    counts = {key: len({hold.by.number for hold in some if hold.by}) for key, some in tasks.items()}
    told = [
        f"{counts[task, level]} of {task} ({level_name(level)}) {time_text(us)}"
        for (task, level), us in _longest(tasks)
    ]
    return ", ".join(told[:_TASKS]) + (f" and {len(told) - _TASKS} more" if len(told) > _TASKS else "")


def _longest(held: Mapping[_K, Sequence[Hold]]) -> list[tuple[_K, float]]:
    """How long each lasted, the longest first."""
    return sorted(((key, covered_us(some)) for key, some in held.items()), key=lambda one: -one[1])
