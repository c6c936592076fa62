"""Load for a server of the Open Inference Protocol: several models at a time, on one clock.

>>> from miriam import bench, load
>>> callers = [
...     load.Caller("detector", bench.Poisson(100), criticality=1, deadline_us=20_000),
...     load.Caller("caption", bench.Closed(4)),
... ]
>>> results = load.run(load.Plan(load.Server.of("grpc://127.0.0.1:8001"), callers))  # doctest: +SKIP
>>> bench.print_table(results)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miriam.load.plan import Caller, Plan
    from miriam.load.reading import read
    from miriam.load.runner import run
    from miriam.load.server import Server

_PUBLIC = {
    "Caller": ("plan", "Caller"),
    "Plan": ("plan", "Plan"),
    "Server": ("server", "Server"),
    "read": ("reading", "read"),
    "run": ("runner", "run"),
}

__all__ = ["Caller", "Plan", "Server", "read", "run"]


def __getattr__(name: str) -> Any:
    """Import on first use: ``miriam --help`` must not wait for NumPy or gRPC."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
