"""Policies: what each lane of a device runs next, and how wide."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from miriam.coordinator import Policy
from miriam.errors import PolicyError
from miriam.policy.base import Option, Setting

__all__ = ["NAMES", "SERVING", "Setting", "check", "create", "create_serving"]


@dataclass(frozen=True, slots=True)
class _Kind:
    option: Option | None = None
    serves: bool = False  # whether tasks may come and go


# Each is a class of its name, in a module of its name, which is imported when it is asked for: together they take long.
_KINDS: Mapping[str, _Kind] = {
    "sequential": _Kind(serves=True),
    "multistream": _Kind(serves=True),
    "priority": _Kind(serves=True),
    "barrier": _Kind(),
    "partition": _Kind(Option("number of SMs", whole=True, least=1)),
    "miriam": _Kind(),
    "resident": _Kind(Option("number of SMs", whole=True, least=0), serves=True),
    "contract": _Kind(Option("slowdown", whole=False, least=1), serves=True),
}

NAMES = tuple(_KINDS)
"""Names of the policies, the simplest first."""

SERVING = tuple(name for name, kind in _KINDS.items() if kind.serves)
"""Those that need not know all tasks from the start."""


def check(name: str) -> None:
    """Raise what :func:`create` would raise for a name, as far as that needs no setting.

    Raises
    ------
    PolicyError
        There is no policy of that name, or it has no such option; the message says what there is.
    """
    _read(name)


def create(name: str, setting: Setting) -> Policy:
    """A fresh policy for one run.

    Parameters
    ----------
    name
        One of :data:`NAMES`, for some of them with a number behind a colon: ``resident:32``.

    Raises
    ------
    PolicyError
        There is no policy of that name, it has no such option, or the device cannot do it; the message
        says what is possible.
    """
    _, options = _read(name)
    plain = name.partition(":")[0]
    policy: Policy = getattr(importlib.import_module(f"miriam.policy.{plain}"), plain.capitalize())(setting, *options)
    policy.name = name
    return policy


def create_serving(name: str, setting: Setting) -> Policy:
    """A fresh policy for tasks that come and go; it may be a :class:`~miriam.policy.base.Joining` one.

    Raises
    ------
    PolicyError
        As :func:`create` does; or the policy has to know all tasks from the start.
    """
    if not _read(name)[0].serves:
        raise PolicyError(
            f"policy {name} has to know all tasks from the start, and here they come and go: "
            f"take one of {', '.join(SERVING)}"
        )
    return create(name, setting)


def _read(name: str) -> tuple[_Kind, tuple[float, ...]]:
    """The kind of policy that a name asks for, and its option where it has one."""
    plain, colon, text = name.partition(":")
    if plain not in _KINDS:
        raise PolicyError(f"there is no policy {plain!r}: take one of {', '.join(NAMES)}")
    kind = _KINDS[plain]
    if not colon:
        return kind, ()
    if kind.option is None:
        having = ", ".join(other for other, one in _KINDS.items() if one.option is not None)
        raise PolicyError(f"policy {plain} has no option, so {text!r} means nothing: options have {having}")
    return kind, (kind.option.read(plain, text),)
