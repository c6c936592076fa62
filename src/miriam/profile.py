"""What was measured of a launch or a program on a device, and where to ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeAlias

from miriam.program import Kernel, Launch, Program

__all__ = ["Counters", "LaunchKey", "LaunchProfile", "ProfileSource", "ProgramProfile", "launch_key"]

LaunchKey: TypeAlias = tuple[str, tuple[int, int, int]]
"""Kernel digest and grid: what decides how long a launch takes on a given device."""


def launch_key(kernel: Kernel, launch: Launch) -> LaunchKey:
    """The key under which a launch is measured."""
    return kernel.digest, launch.grid


@dataclass(frozen=True, slots=True)
class Counters:
    """What hardware counters say of one launch on the whole device.

    Attributes
    ----------
    dram_read_bytes, dram_write_bytes
        To and from device memory, with the caches as the program leaves them.
    touched_bytes
        Read from device memory when the caches start empty, plus written to L2: what a device
        with a small L2 has to move.
    l2_bytes
        Through L2, reads and writes.
    issue_utilization
        Issue slots used over issue slots there, on SMs while they are active, 0 to 1.
    pipe_utilization
        The busiest unit of the SM (tensor cores, issue, load/store, ...) over its peak, over the
        time of the launch and all SMs, 0 to 1.
    """

    dram_read_bytes: float
    dram_write_bytes: float
    touched_bytes: float
    l2_bytes: float
    issue_utilization: float
    pipe_utilization: float


@dataclass(frozen=True, slots=True)
class LaunchProfile:
    """One launch alone on a device.

    Attributes
    ----------
    times_us
        By number of SMs: median time from the end of the launch before it to its own end, launch gap
        included, measured where it stands in a program that runs as one CUDA graph.
    blocks_per_sm
        Resident blocks on one SM.
    counters
        Hardware counters, or an estimate.
    measured
        Whether ``counters`` were read from the hardware; otherwise they are estimated.
    """

    times_us: Mapping[int, float]
    blocks_per_sm: int
    counters: Counters
    measured: bool


@dataclass(frozen=True, slots=True)
class ProgramProfile:
    """A whole program alone on a device, as one CUDA graph.

    Attributes
    ----------
    times_us
        By number of SMs: latency (median, p99). The median is that of graphs enqueued back to back; p99
        lies above it by what it does when each graph runs by itself.
    """

    times_us: Mapping[int, tuple[float, float]] = field(default_factory=lambda: MappingProxyType({}))


class ProfileSource(Protocol):
    """Gives profiles; a store, the files of the zoo, or both."""

    def launch(self, device: str, key: LaunchKey) -> LaunchProfile | None:
        """Profile of a launch on ``device`` (for example ``h200``), or None."""

    def program(self, device: str, program: Program) -> ProgramProfile | None:
        """Profile of a whole program, or None."""
