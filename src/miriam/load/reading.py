"""The file that says what a load is, checked: each error with the file, the line and the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from miriam._yaml import Document
from miriam.bench.arrivals import Arrivals, Closed, Poisson, Recorded, Uniform
from miriam.errors import WorkloadError
from miriam.load.plan import Caller, Plan
from miriam.load.server import Server
from miriam.task import Criticality

__all__ = ["caller_of", "read"]

_ARRIVALS = ("closed", "uniform", "poisson", "recorded")


def _level(value: object) -> object:
    """A level of criticality as people write it: normal, critical, or a whole number from 0."""
    if isinstance(value, str) and value.upper() in Criticality.__members__:
        return int(Criticality[value.upper()])
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("write normal, critical, or a whole number from 0")
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, Field(strict=True, ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Model(_Section):
    closed: Size | None = None
    uniform: Positive | None = None
    poisson: Positive | None = None
    recorded: Path | None = None
    model: str = ""
    criticality: Annotated[int, BeforeValidator(_level)] | None = None
    deadline_ms: Positive | None = None
    priority: Annotated[int, Field(strict=True, ge=0)] | None = None
    timeout_ms: Positive | None = None
    shapes: dict[str, tuple[Size, ...]] = {}
    inputs: Path | None = None
    expected: Path | None = None
    shared_memory: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _one(self) -> _Model:
        if sum(getattr(self, key) is not None for key in _ARRIVALS) != 1:
            raise ValueError(f"say when requests come: one of {', '.join(_ARRIVALS)}")
        return self

    def caller(self, name: str, folder: Path) -> Caller:
        return Caller(
            name, self._arrivals(folder), self.model, self.criticality,
            None if self.deadline_ms is None else self.deadline_ms * 1e3,
            self.priority, None if self.timeout_ms is None else round(self.timeout_ms * 1e3), self.shapes,
            _beside(self.inputs, folder), _beside(self.expected, folder), self.shared_memory,
        )  # fmt: skip

    def _arrivals(self, folder: Path) -> Arrivals:
        if self.closed is not None:
            return Closed(self.closed)
        if self.uniform is not None:
            return Uniform(self.uniform)
        if self.poisson is not None:
            return Poisson(self.poisson)
        assert self.recorded is not None
        return Recorded.read(folder / self.recorded.expanduser())


class _File(_Section):
    server: str
    models: Annotated[dict[str, _Model], Field(min_length=1)]
    duration_s: Positive | None = None
    warm_up_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    repeats: Size | None = None
    seed: Annotated[int, Field(strict=True, ge=0)] | None = None
    solo: bool | None = None
    verify: bool | None = None
    patience_s: Positive | None = None
    title: str | None = None
    token_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def caller_of(name: str, keys: Mapping[str, Any], folder: Path) -> Caller:
    """The caller that the keys of a model in a file describe; files that it names lie in ``folder``.

    Raises
    ------
    WorkloadError
        They say something impossible.
    """
    try:
        return _Model.model_validate(keys).caller(name, folder)
    except ValidationError as error:
        found = error.errors()[0]
        key = ".".join(map(str, found["loc"]))
        what = str(found["msg"]).removeprefix("Value error, ")
        raise WorkloadError(f"model {name}: {key}{': ' if key else ''}{what}") from error


def read(path: Path, **overrides: Any) -> Plan:
    """The plan in a file; files that it names lie beside it.

    Parameters
    ----------
    overrides
        Attributes of the :class:`Plan` that take the place of the file's where they are not None.

    Raises
    ------
    WorkloadError
        It cannot be read, or says something impossible: ``load.yaml:12: models.detector.poisson: ...``.
    """
    found, folder = Document.read(path, WorkloadError).checked(_File, WorkloadError), path.parent
    own = ("duration_s", "warm_up_s", "repeats", "seed", "solo", "verify", "patience_s", "title")
    given = {name: getattr(found, name) for name in own} | {k: v for k, v in overrides.items() if v is not None}
    files = {name: _beside(getattr(found, name), folder) for name in ("token_file", "ca", "certificate", "key")}
    try:
        callers = tuple(model.caller(name, folder) for name, model in found.models.items())
        return Plan(
            given.pop("server", None) or Server.of(found.server, **files), callers,
            **{name: value for name, value in given.items() if value is not None},
        )  # fmt: skip
    except WorkloadError as error:
        raise WorkloadError(f"{path}: {error}") from error


def _beside(path: Path | None, folder: Path) -> Path | None:
    return None if path is None else folder / path.expanduser()
