"""What both protocols have in common: a model as its server describes it, a request, and how it may end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from miriam.errors import MiriamError
from miriam.serve.shared import Place

__all__ = ["CONNECTION", "TIMEOUT", "Asked", "Described", "Sender", "UnansweredError"]

Array = np.ndarray[Any, np.dtype[Any]]

CONNECTION = "connection"
"""Reason of a request that could not be sent, or whose connection broke before the answer was complete."""
TIMEOUT = "timeout"
"""Reason of a request that this client gave up; a timeout of the server is a ``deadline``."""


class UnansweredError(MiriamError):
    """A request ended without an answer.

    Attributes
    ----------
    reason
        One word, such as those of :class:`miriam.serve.errors.Status`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Described:
    """A model as its server describes it.

    Attributes
    ----------
    inputs
        Datatype and shape by name; -1: any size.
    criticality
        The level in its configuration; None where the server does not say.
    """

    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    criticality: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request before it is serialised.

    Attributes
    ----------
    tensors
        Datatype and array of each input, by name.
    parameters
        Of the request, such as ``priority`` and ``timeout``.
    places
        Where inputs are that are in shared memory, by name.
    """

    model: str
    tensors: Mapping[str, tuple[str, Array]]
    parameters: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)


class Sender(Protocol):
    """Sends requests over one protocol. Every way may raise :class:`UnansweredError`."""

    async def describe(self, model: str) -> Described:
        """Ask what the model takes."""

    async def register(self, key: str, size: int) -> None:
        """Tell the server of shared memory, under its own name."""

    async def unregister(self, key: str) -> None:
        """Tell the server that it is no longer used, if that can be told."""

    def serialise(self, asked: Asked) -> Any:
        """The request as it goes over the wire, made once and sent often."""

    async def send(self, request: Any, patience_s: float, sending: Callable[[], None]) -> bytes:
        """Send a serialised request and wait for its answer; ``sending`` is called right before it leaves."""

    def outputs(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """Name and contents of each tensor of an answer."""

    async def close(self) -> None:
        """Give the connections back."""
