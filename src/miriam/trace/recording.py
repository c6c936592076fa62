"""What was recorded: requests and decisions, as a document that can be written, sent and read again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from miriam.errors import TraceError
from miriam.task import Criticality

__all__ = ["VERSION", "Decision", "Done", "Outcome", "Recording", "Traced", "level_name", "read", "rows_text"]

VERSION = 1
"""Of the form of a document."""

_Row = TypeVar("_Row")
_ROWS = ("requests", "decisions")
_SHORT = (",", ":")
_PIECE = 40  # rows


class Outcome:
    """How a request ended; empty while it has not."""

    OPEN = ""
    ANSWERED = "answered"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False)
class Traced:
    """The life of one request. Holds nothing of its inputs and outputs.

    Attributes
    ----------
    number
        As its response has it; unique in a runtime.
    task, level
        Whose it is, and how critical.
    submitted_us
        When it was handed in.
    offered_us
        When it left the queue for the device; None: not yet, or never.
    started_us, finished_us
        When its first block or step began, and when it ended, in whatever way.
    deadline_us
        Time that it may take, or None.
    lane
        Of the device; None before the policy gave it one.
    workers
        Of its elastic form; None: in its original form.
    limits
        By lane, how many SMs that lane might keep while this request ran; None: all.
    why
        What the policy said when it gave it its lane.
    outcome, error
        How it ended, and with what error.
    alone
        Whether no other request was there from its begin to its end.
    """

    number: int
    task: str
    level: int
    submitted_us: float
    deadline_us: float | None = None
    offered_us: float | None = None
    started_us: float | None = None
    finished_us: float | None = None
    lane: int | None = None
    workers: int | None = None
    limits: Mapping[int, int | None] = field(default_factory=dict)
    why: str = ""
    outcome: str = Outcome.OPEN
    error: str = ""
    alone: bool = False

    @property
    def name(self) -> str:
        """Task and number."""
        return f"{self.task} #{self.number}"


@dataclass(frozen=True, slots=True)
class Done:
    """A command, without what it holds of a request.

    Attributes
    ----------
    kind
        ``run``, ``limit`` or ``wake``.
    lane
        On which, or whose limit; None of ``wake``.
    number
        Of the request that runs.
    sms
        The limit; None: all.
    limits
        Of other lanes while it runs.
    why
        In the policy's words.
    """

    kind: str
    lane: int | None = None
    number: int | None = None
    sms: int | None = None
    limits: Mapping[int, int | None] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """An event, and what was done about it.

    Attributes
    ----------
    time_us
        When the coordinator noticed the event.
    event
        ``arrived``, ``finished``, ``yielded`` or ``tick``.
    number, task
        Of the request that it was about, if any.
    commands
        In their order.
    """

    time_us: float
    event: str
    number: int | None = None
    task: str = ""
    commands: Sequence[Done] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """What a recorder held at a moment.

    All times are of one clock, which runs evenly and begins nowhere in particular.

    Attributes
    ----------
    device, policy
        Their names.
    lanes, priorities
        Names of the lanes, and their priorities.
    alone_us
        By task: median latency of requests that met nobody; only tasks of which there were some.
    now_us
        When the recording was taken.
    unix_us
        The time of day, in us since 1970, at which the clock stood at 0.
    requests, decisions
        By time; the oldest may be gone.
    lost
        Requests that are gone.
    """

    device: str
    policy: str
    lanes: Sequence[str]
    priorities: Sequence[int]
    alone_us: Mapping[str, float]
    now_us: float
    unix_us: float
    requests: Sequence[Traced]
    decisions: Sequence[Decision]
    lost: int = 0

    @property
    def turns(self) -> bool:
        """Whether the device runs one step at a time, of the highest lane that has work."""
        return self.device.partition("/")[0] == "cpu"

    def find(self, number: int) -> Traced:
        """The request with this number.

        Raises
        ------
        TraceError
            It is not here.
        """
        for request in self.requests:
            if request.number == number:
                return request
        raise TraceError(f"request {number} is not in this trace, which {self._span()}")

    def lane_name(self, lane: int) -> str:
        """Its name, or its number where nobody told."""
        return self.lanes[lane] if lane < len(self.lanes) else str(lane)

    def to_json(self) -> dict[str, Any]:
        """As a document."""
        return self._head() | {name: list(map(_plain, getattr(self, name))) for name in _ROWS}

    def text(self) -> Iterator[str]:
        """The document as JSON, in pieces that are made one after another."""
        yield json.dumps(self._head(), separators=_SHORT)[:-1]
        for name in _ROWS:
            yield f',"{name}":['
            yield from rows_text(map(_plain, getattr(self, name)))
            yield "]"
        yield "}"

    def _head(self) -> dict[str, Any]:
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ROWS}
        return {"version": VERSION} | named | {"lanes": list(self.lanes), "priorities": list(self.priorities)}

    @staticmethod
    def from_json(raw: Any) -> Recording:
        """What :meth:`to_json` wrote.

        Raises
        ------
        TraceError
            It is something else.
        """
        if not isinstance(raw, dict) or "requests" not in raw or "decisions" not in raw:
            raise TraceError(
                "this is no trace of a runtime: give what 'miriam trace' wrote, or the address of a server"
            )
        if raw.get("version") != VERSION:
            raise TraceError(
                f"this trace has version {raw.get('version')}, and this is version {VERSION} of the reader"
            )
        try:
            parts = {key: value for key, value in raw.items() if key != "version"}
            parts["requests"] = tuple(_row(Traced, _laned(one)) for one in raw["requests"])
            parts["decisions"] = tuple(
                _row(Decision, one | {"commands": tuple(_row(Done, _laned(done)) for done in one["commands"])})
                for one in raw["decisions"]
            )
            return _row(Recording, parts)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise TraceError(f"this trace is broken: {error}") from error

    def _span(self) -> str:
        if not self.requests:
            return "has none: it was made before anybody asked for something, or recording is off"
        numbers = [request.number for request in self.requests]
        return f"holds {min(numbers)} to {max(numbers)}; {self.lost:,} older ones are gone"


_DEFAULTS = {
    kind: tuple((f.name, f.default_factory() if f.default_factory is not MISSING else f.default) for f in fields(kind))
    for kind in (Traced, Decision, Done)
}
_SCALARS: Mapping[type, Sequence[tuple[str, Any]]] = {
    kind: tuple(
        (name, hint | int if hint in (float, float | None) else hint)
        for name, hint in get_type_hints(kind).items()
        if hint in (str, int, float, bool, int | None, float | None)
    )
    for kind in (Traced, Decision, Done, Recording)
}
_OUTCOMES = (Outcome.OPEN, Outcome.ANSWERED, Outcome.FAILED, Outcome.CANCELLED)


def level_name(level: int) -> str:
    """As people call it."""
    named = level in (Criticality.NORMAL, Criticality.CRITICAL)
    return Criticality(level).name.lower() if named else f"level {level}"


def rows_text(rows: Iterable[Any]) -> Iterator[str]:
    """The inside of a JSON list, in pieces of a few rows: to write all of it at once would hold up every thread."""
    rest, comma = iter(rows), ""
    while piece := list(islice(rest, _PIECE)):
        yield comma + json.dumps(piece, separators=_SHORT)[1:-1]
        comma = ","


def read(path: Path | str) -> Recording:
    """The recording in a file that ``miriam trace`` wrote.

    Raises
    ------
    TraceError
        The file cannot be read, or holds something else.
    """
    try:
        raw = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise TraceError(f"{path} is no JSON: {error}") from error
    return Recording.from_json(raw.get("recording", raw) if isinstance(raw, dict) else raw)


def _row(kind: type[_Row], raw: Mapping[str, Any]) -> _Row:
    """What a document says, where its numbers are numbers and its texts are texts."""
    row = kind(**raw)
    for name, allowed in _SCALARS[kind]:
        if not isinstance(value := getattr(row, name), allowed):
            raise TypeError(f"{name} is {value!r:.40}")
    if isinstance(row, Traced) and row.outcome not in _OUTCOMES:
        raise ValueError(f"outcome is {row.outcome!r:.40}")
    return row


def _plain(row: Traced | Decision | Done) -> dict[str, Any]:
    """A row of a document: what is as it is anyway is left out. Rows are many, and a server has little time."""
    found = {}
    for name, default in _DEFAULTS[type(row)]:
        value = getattr(row, name)
        if value != default:
            found[name] = value if name != "limits" else {str(lane): sms for lane, sms in value.items()}
    if isinstance(row, Decision):
        found["commands"] = [_plain(done) for done in row.commands]
    return found


def _laned(raw: dict[str, Any]) -> dict[str, Any]:
    """A row whose limits have numbers as keys again, which JSON knows as text only."""
    return raw | {"limits": {int(lane): sms for lane, sms in raw.get("limits", {}).items()}}
