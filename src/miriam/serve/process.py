"""What `miriam serve` sets for its process, which is its own; a runtime in somebody's program sets none of it.

What each is good for is measured by ``benchmarks/process_settings.py``.
"""

from __future__ import annotations

import gc
import os
import sys

__all__ = ["begin", "spare"]

_SWITCH_S = 2e-4


def begin() -> None:
    """Set what has to be set before anything large is imported; what the environment says already is left."""
    # Nothing of gRPC is used after a fork, and it says so.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # Threads of OpenMP, PyTorch's among them, wait for their next operator in a loop by default. On a core that
    # somebody else wants they take that one's time, and the operator waits for whoever is off the processor.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # The thread that computes takes Python's lock once for each operator; the event loop, busy with other requests,
    # gives it up after this time, which is 5 ms otherwise.
    sys.setswitchinterval(_SWITCH_S)


def spare() -> None:
    """Collect garbage, and let later collections leave alone what is there now.

    A full collection looks at every object and holds Python's lock meanwhile: with PyTorch there are 400 000 of them,
    which is some tenths of a second in which nobody is answered. What is spared and turns out to be garbage stays,
    unless ``gc.unfreeze`` comes first.
    """
    gc.collect()
    gc.freeze()
