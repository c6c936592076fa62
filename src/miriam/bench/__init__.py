"""Benchmarks: workloads, arrivals, metrics, and the report that comes out.

>>> from miriam import bench
>>> results = bench.run_mdtb("A", device="sim:xavier", jobs=1)  # doctest: +SKIP
>>> bench.print_table(results)  # doctest: +SKIP
>>> bench.write(results, "report")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miriam.bench.arrivals import Closed, Poisson, SeededTraffic, Uniform
    from miriam.bench.report import write
    from miriam.bench.results import Point, Results
    from miriam.bench.runner import run, run_mdtb
    from miriam.bench.suites import MDTB, SUITES
    from miriam.bench.table import print_table
    from miriam.bench.workload import Entry, Workload

_PUBLIC = {
    "MDTB": ("suites", "MDTB"),
    "SUITES": ("suites", "SUITES"),
    "Closed": ("arrivals", "Closed"),
    "Entry": ("workload", "Entry"),
    "Point": ("results", "Point"),
    "Poisson": ("arrivals", "Poisson"),
    "Results": ("results", "Results"),
    "SeededTraffic": ("arrivals", "SeededTraffic"),
    "Uniform": ("arrivals", "Uniform"),
    "Workload": ("workload", "Workload"),
    "print_table": ("table", "print_table"),
    "run": ("runner", "run"),
    "run_mdtb": ("runner", "run_mdtb"),
    "write": ("report", "write"),
}

__all__ = [
    "MDTB",
    "SUITES",
    "Closed",
    "Entry",
    "Point",
    "Poisson",
    "Results",
    "SeededTraffic",
    "Uniform",
    "Workload",
    "print_table",
    "run",
    "run_mdtb",
    "write",
]


def __getattr__(name: str) -> Any:
    """Import on first use: most of what is here needs NumPy, and ``miriam --help`` must not wait for it."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
