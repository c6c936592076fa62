"""What a resident block takes of its SM."""

from __future__ import annotations

from dataclasses import dataclass, replace

from miriam.device.base import Geometry
from miriam.device.sim.spec import MEASURED
from miriam.program import Kernel

__all__ = ["Footprint"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a resident block takes of its SM: threads (whole warps), registers, shared memory."""

    threads: int
    registers: int
    shared_bytes: int

    @property
    def warps(self) -> int:
        """Warps of the block."""
        return self.threads // 32

    def residency(self, geometry: Geometry) -> int:
        """Blocks that an empty SM holds."""
        fits = min(
            geometry.blocks_per_sm,
            geometry.threads_per_sm // self.threads,
            geometry.registers_per_sm // self.registers,
        )
        return min(fits, geometry.shared_per_sm_bytes // self.shared_bytes) if self.shared_bytes else fits

    @staticmethod
    def of(kernel: Kernel, threads: int, measured: int, geometry: Geometry) -> Footprint:
        """Footprint of a block of ``kernel`` with so many threads on an SM of ``geometry``.

        Where a block needs more than there is, it takes all: the kernel as compiled with a tile that
        just fits. Where fewer blocks than follow from the kernel's needs were ``measured`` on one SM
        of :data:`~miriam.device.sim.spec.MEASURED`, registers stand in for what held them down; zero:
        it was not measured.
        """
        warps = -(-threads // 32)
        registers = min(warps * (-(-max(kernel.registers, 1) * 32 // 256) * 256), geometry.registers_per_sm)
        shared = (
            min(-(-kernel.shared_bytes // 128) * 128, geometry.shared_per_block_bytes) + geometry.shared_reserved_bytes
        )
        own = Footprint(warps * 32, registers, min(shared, geometry.shared_per_sm_bytes))
        home = MEASURED.geometry
        if measured and measured < Footprint.of(kernel, kernel.threads, 0, home).residency(home):
            held = geometry.registers_per_sm // measured * warps // -(-kernel.threads // 32)
            own = replace(own, registers=max(own.registers, held))
        return own
