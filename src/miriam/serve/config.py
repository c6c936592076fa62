"""The configuration file of the server, checked: each error with the file, the line and the key."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, field_validator

from miriam._yaml import Document, Loc
from miriam.errors import MiriamError
from miriam.task import Criticality

__all__ = ["ConfigError", "Limits", "ModelConfig", "Ports", "Security", "ServerConfig", "Tls", "Trace", "load_config"]


class ConfigError(MiriamError):
    """A configuration file cannot be read, or says something impossible."""


def _level(value: object) -> object:
    if isinstance(value, str) and value.upper() in Criticality.__members__:
        return int(Criticality[value.upper()])
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("write normal, critical, or a whole number from 0")
    return value


Level = Annotated[int, BeforeValidator(_level), Field(ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Port = Annotated[int, Field(strict=True, ge=0, le=65535)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """One model."""

    program: str | None = Field(default=None, description="A program file, beside this one. This or `factory`.")
    factory: str | None = Field(
        default=None,
        description="`file.py:function`, beside this one, or `package.module:function`. It takes nothing and gives an "
        "`nn.Module` in eval mode, a callable, or a sequence of callables.",
    )
    example: list[list[Count]] | None = Field(
        default=None, description="The shape of each input; a factory's model needs it, a program knows it."
    )
    dtype: str | list[str] = Field(default="float32", description="Of the inputs: one for all, or one for each.")
    inputs: list[str] | None = Field(
        default=None, description="Names of the inputs; `input0`, `input1`, ... if left out."
    )
    outputs: list[str] | None = Field(default=None, description="Names of the outputs; `output0`, ... if left out.")
    criticality: Level = Field(
        default=int(Criticality.NORMAL), description="`normal` (0), `critical` (1), or a level above."
    )
    priority: tuple[Level, Level] | None = Field(
        default=None,
        description="The lowest and the highest level that a request may choose by its priority; none if left out.",
    )
    deadline_ms: Milliseconds | None = Field(default=None, description="Time that an answer may take from its arrival.")
    period_ms: Milliseconds | None = Field(default=None, description="Time between two requests, for admission.")
    queue: Count = Field(default=64, description="Requests that may wait; more are refused.")
    timeout_ms: Milliseconds | None = Field(
        default=None, description="Time that a request may wait before it is refused; for ever if left out."
    )

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str | list[str]) -> str | list[str]:
        known = ("bool", *(f"{u}int{n}" for u in ("u", "") for n in (8, 16, 32, 64)), "float16", "float32", "float64",
                 "bfloat16")  # fmt: skip
        for name in [value] if isinstance(value, str) else value:
            if name not in known:
                raise ValueError(f"{name!r} is unknown: write one of {', '.join(known)}")
        return value


class Ports(_Section):
    """Where to listen; 0 lets the system choose."""

    http: Port = Field(default=8000, description="HTTP, and the live page.")
    grpc: Port = Field(default=8001, description="gRPC.")
    metrics: Port = Field(default=8002, description="`/metrics` for Prometheus.")


class Limits(_Section):
    """What a client may ask for."""

    body_bytes: ByteSize = Field(default=ByteSize(64 << 20), gt=0, description="Of one request; 413 beyond.")
    json_bytes: ByteSize = Field(default=ByteSize(16 << 20), gt=0, description="Of the JSON in it.")
    json_values: Count = Field(default=2_000_000, description="Values in that JSON.")
    total_bytes: ByteSize = Field(
        default=ByteSize(1 << 30), gt=0, description="Of all requests that are held; 429 beyond."
    )
    tensor_elements: Count = Field(default=1 << 26, description="Of one tensor.")
    header_bytes: ByteSize = Field(
        default=ByteSize(32 << 10), gt=0, description="Of all headers of a request; 431 beyond."
    )
    connections: Count = Field(default=256, description="Open at a time, for each protocol; more are closed at once.")
    request_s: Seconds = Field(
        default=30.0, description="Time that a client may take to send a request, or to take an answer."
    )
    idle_s: Seconds = Field(default=75.0, description="Time that a connection may be open without a request.")
    shared_regions: Count = Field(default=256, description="Regions of shared memory that are registered at a time.")
    shared_bytes: ByteSize = Field(default=ByteSize(4 << 30), gt=0, description="Of all of them.")


class Tls(_Section):
    """Encryption; PEM files."""

    certificate: Path = Field(description="The server's certificate, with what leads to its root.")
    key: Path = Field(description="Its private key.")
    clients: Path | None = Field(
        default=None, description="Roots of clients' certificates; clients without one are refused."
    )


class Security(_Section):
    """Who may ask."""

    token_file: Path | None = Field(
        default=None, description="Holds the token that clients send as `Authorization: Bearer`."
    )
    tls: Tls | None = Field(default=None, description="Encryption, and clients' certificates.")
    hosts: list[str] = Field(
        default=[],
        description="Names of this server in a `Host` header, beside its address; all if a token is asked for.",
    )


class Trace(_Section):
    """What is kept of requests."""

    keep: Count = Field(default=1000, description="Requests whose traces are kept.")
    otlp: str | None = Field(
        default=None, description="Address of an OpenTelemetry collector, OTLP over HTTP; none if left out."
    )


class ServerConfig(_Section):
    """All of it."""

    device: str | None = Field(default=None, description="`cuda:0`, `cpu`, `cpu/2`, ...; a GPU if there is one.")
    policy: str = Field(default="resident", description="Who may run when, and how wide.")
    levels: list[Level] = Field(default=[0, 1, 2, 3], min_length=1, description="Criticality levels that there are.")
    admission: Literal["off", "warn", "refuse"] = Field(
        default="warn", description="What to do with models whose deadlines cannot be held."
    )
    host: str = Field(
        default="127.0.0.1", description="Address to listen on. Beyond this machine only with a token or `clients`."
    )
    ports: Ports = Field(default=Ports(), description="Where to listen.")
    shared_memory: bool | None = Field(
        default=None,
        strict=True,
        description="Whether clients on this machine may leave tensors in shared memory; if left out, where only this "
        "machine can reach the server.",
    )
    drain_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=10.0, description="Time to answer what is open, once asked to end."
    )
    models: dict[str, ModelConfig] = Field(description="By the name that clients use.")
    limits: Limits = Field(default=Limits(), description="What a client may ask for.")
    security: Security = Field(default=Security(), description="Who may ask.")
    trace: Trace = Field(default=Trace(), description="What is kept of requests.")

    @property
    def shares(self) -> bool:
        """Whether clients may leave tensors in shared memory."""
        return self.local if self.shared_memory is None else self.shared_memory

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> ServerConfig:
    """Read a configuration file.

    Parameters
    ----------
    overrides
        Values by dotted key, which take the place of the file's: ``{"ports.http": 0}``.

    Raises
    ------
    ConfigError
        It cannot be read, is no YAML, or says something impossible: all that is wrong, one line for each,
        ``serve.yaml:12: models.detector.criticality: ...``.
    """
    document = Document.read(path, ConfigError)
    for key, value in (overrides or {}).items():
        _override(document.data, key.split("."), value)
    config = _beside(document.checked(ServerConfig, ConfigError), path.parent)
    problems = list(_contradictions(config))
    if problems:
        raise ConfigError(document.told(problems))
    return config


def _override(data: dict[str, Any], keys: Sequence[str], value: object) -> None:
    for key in keys[:-1]:
        inner = data.get(key)
        if not isinstance(inner, dict):
            inner = data[key] = {}
        data = inner
    data[keys[-1]] = value


def _beside(config: ServerConfig, folder: Path) -> ServerConfig:
    """The same with paths that lead from ``folder``."""

    def full(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    security, tls = config.security, config.security.tls
    if tls is not None:
        names = {name: full(getattr(tls, name)) for name in ("certificate", "key", "clients")}
        tls = tls.model_copy(update=names)
    security = security.model_copy(update={"token_file": full(security.token_file), "tls": tls})
    models = {
        name: model.model_copy(
            update={
                "program": model.program and _path(model.program, folder),
                "factory": model.factory and _path(model.factory, folder),
            }
        )
        for name, model in config.models.items()
    }
    return config.model_copy(update={"security": security, "models": models})


def _path(spec: str, folder: Path) -> str:
    where = spec.partition(":")
    if where[0].endswith(".py") or not where[1]:
        return str(folder / Path(where[0]).expanduser()) + where[1] + where[2]
    return spec


def _contradictions(config: ServerConfig) -> Iterator[tuple[Loc, str]]:
    """What is wrong although every key alone is right."""
    levels = sorted(set(config.levels))
    if not config.local and config.security.token_file is None and (
        config.security.tls is None or config.security.tls.clients is None
    ):  # fmt: skip
        yield (
            ("host",),
            (
                f"{config.host} can be reached from other machines: set security.token_file or security.tls.clients, "
                "or listen on 127.0.0.1"
            ),
        )
    ports = [port for port in (config.ports.http, config.ports.grpc, config.ports.metrics) if port]
    if len(set(ports)) != len(ports):
        yield ("ports",), "two of them are the same"
    if not config.models:
        yield ("models",), "name at least one"
    for name, model in config.models.items():
        at = ("models", name)
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", name):
            yield at, "a model's name is made of letters, digits, '_', '-' and '.'"
        if (model.program is None) == (model.factory is None):
            yield at, "give one of 'program' and 'factory'"
        if model.factory is not None:
            if not re.fullmatch(r"[^:]+:[^:]+", model.factory):
                yield (*at, "factory"), "write file.py:function or package.module:function"
            if model.example is None:
                yield at, "a factory's model needs 'example', the shapes of its inputs"
        if isinstance(model.dtype, list) and len(model.dtype) != len(model.example or ()):
            yield (*at, "dtype"), f"{len(model.dtype)} for {len(model.example or ())} inputs"
        if model.inputs is not None and model.example is not None and len(model.inputs) != len(model.example):
            yield (*at, "inputs"), f"{len(model.inputs)} names for {len(model.example)} inputs"
        for key in ("inputs", "outputs"):
            names = getattr(model, key)
            if names is not None and len(set(names)) != len(names):
                yield (*at, key), "two have one name"
        if model.criticality not in levels:
            yield (*at, "criticality"), f"{model.criticality} is none of the levels {levels}"
        if model.priority is not None and not model.priority[0] <= model.criticality <= model.priority[1]:
            yield (*at, "priority"), f"criticality {model.criticality} is not within {list(model.priority)}"
