"""A toy zoo whose programs and profiles can be asked for in another process, and results made from it."""

from __future__ import annotations

from functools import cache

from support import Profiles, program

from miriam.bench import Closed, Entry, Poisson, Results, Uniform, Workload, run_mdtb
from miriam.profile import ProfileSource
from miriam.program import Program
from miriam.task import Criticality

SHAPES = {
    "short": ((16, 128), (32, 256), (8, 64)),
    "long": ((64, 256), (128, 128), (64, 256), (32, 128)),
}

CLOSED = Workload(
    "X", "both without a pause",
    (Entry("quick", "short", Criticality.CRITICAL, Closed()), Entry("big", "long", Criticality.NORMAL, Closed())),
)  # fmt: skip
PERIODIC = Workload(
    "Y", "one at a fixed rate",
    (Entry("quick", "short", Criticality.CRITICAL, Uniform(4000)), Entry("big", "long", Criticality.NORMAL, Closed())),
)  # fmt: skip
RANDOM = Workload(
    "Z", "both with a rate",
    (
        Entry("quick", "short", Criticality.CRITICAL, Poisson(4000)),
        Entry("big", "long", Criticality.NORMAL, Uniform(5000)),
    ),
)  # fmt: skip


@cache
def toy_program(name: str) -> Program:
    return program(name, SHAPES[name])


@cache
def toy_profiles() -> ProfileSource:
    return Profiles(*map(toy_program, SHAPES))


@cache
def toy_results() -> Results:
    """Three workloads under three policies."""
    return run_mdtb(
        (CLOSED, PERIODIC, RANDOM), "sequential,multistream,miriam", "sim:h200/16", 0.02, jobs=1,
        programs=toy_program, profiles=toy_profiles,
    )  # fmt: skip
