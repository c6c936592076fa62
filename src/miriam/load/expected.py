"""What answers are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from miriam.load.plan import Caller
from miriam.load.sample import arrays
from miriam.load.sender import Sender
from miriam.serve.tensors import to_binary

__all__ = ["Expected"]


@dataclass(slots=True)
class Expected:
    """What answers are compared with.

    Attributes
    ----------
    tensors
        Contents of the outputs, by name.
    same
        A whole answer that holds them, so that most are compared at once.
    """

    tensors: Mapping[str, bytes]
    same: bytes | None = None
    checked: int = field(default=0, init=False)
    wrong: int = field(default=0, init=False)

    @staticmethod
    def of(own: Sender, answer: bytes, caller: Caller) -> Expected:
        """The outputs in the caller's file, or those of an answer."""
        if caller.expected is None:
            return Expected(dict(own.outputs(answer)), answer)
        return Expected({name: bytes(to_binary(array)) for name, array in arrays(caller.expected).items()})

    def check(self, own: Sender, answer: bytes) -> None:
        """Compare an answer."""
        self.checked += 1
        if answer != self.same:
            found = dict(own.outputs(answer))
            wrong = sum(_differing(found.get(name, b""), contents) for name, contents in self.tensors.items())
            self.wrong += wrong
            if not wrong:
                self.same = answer


def _differing(found: bytes, wanted: bytes) -> int:
    """Words of 4 bytes that differ; all where the lengths do."""
    if len(found) != len(wanted):
        return -(-max(len(found), len(wanted)) // 4)
    one, other = (np.frombuffer(raw + bytes(-len(raw) % 4), np.uint32) for raw in (found, wanted))
    return int(np.count_nonzero(one != other))
