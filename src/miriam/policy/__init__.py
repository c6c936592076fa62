"""Policies: what each lane of a device runs next, and how wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from miriam.coordinator import Policy
from miriam.errors import PolicyError
from miriam.policy.barrier import Barrier
from miriam.policy.base import Setting
from miriam.policy.miriam import Miriam
from miriam.policy.multistream import Multistream
from miriam.policy.priority import Priority
from miriam.policy.sequential import Sequential

__all__ = ["NAMES", "Setting", "create"]

_POLICIES: Mapping[str, Callable[[Setting], Policy]] = {
    policy.name: policy for policy in (Sequential, Multistream, Priority, Barrier, Miriam)
}

NAMES = tuple(_POLICIES)
"""Names of the policies, the simplest first."""


def create(name: str, setting: Setting) -> Policy:
    """A fresh policy for one run.

    Raises
    ------
    PolicyError
        There is no policy of that name; the message lists those that there are.
    """
    if name not in _POLICIES:
        raise PolicyError(f"there is no policy {name!r}: take one of {', '.join(NAMES)}")
    return _POLICIES[name](setting)
