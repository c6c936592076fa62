"""Programs and profiles made by hand, for tests that need no file and no GPU."""

from __future__ import annotations

from collections.abc import Sequence

from miriam.profile import Counters, LaunchKey, LaunchProfile, ProgramProfile, launch_key
from miriam.program import Buffer, Kernel, Launch, Pointer, Program, Role, Scalar, Source, Tensor

PTX = """.version 8.7
.target sm_90a
.address_size 64
.visible .entry {name}(.param .u64 .ptr .global .align 1 {name}_param_0, .param .u32 {name}_param_1)
{{
    // {salt}
    ret;
}}
"""


def program(
    name: str = "toy",
    launches: Sequence[tuple[int, int]] = ((64, 128), (200, 256)),
    *,
    registers: int = 32,
    shared_bytes: int = 0,
    weights: bool = True,
) -> Program:
    """A program of (blocks, threads) launches, each with a kernel of its own."""
    kernels = tuple(
        Kernel(
            f"{name}_{i}", Source.TRITON, (threads, 1, 1), registers, shared_bytes, shared_bytes,
            PTX.format(name=f"{name}_{i}", salt=f"{name} {i}"), "module {}",
        )
        for i, (_, threads) in enumerate(launches)
    )  # fmt: skip
    data = bytes(range(256)) * 4 if weights else None
    return Program(
        name=name,
        target="sm_90a",
        kernels=kernels,
        launches=tuple(
            Launch(i, (blocks, 1, 1), (Pointer(2, 64 * i), Scalar(i.to_bytes(4, "little"))))
            for i, (blocks, _) in enumerate(launches)
        ),
        buffers=(
            Buffer("x", 256, Role.INPUT),
            Buffer("w", 1024, Role.WEIGHT, data),
            Buffer("arena", 4096, Role.INTERMEDIATE),
        ),
        inputs=(Tensor("x", "float16", (1, 128), (128, 1), Pointer(0)),),
        outputs=(Tensor("y", "float16", (1, 64), (64, 1), Pointer(2, 128)),),
        meta={"made": "by hand"},
    )


class Profiles:
    """A profile source that answers for every launch of some programs on the device ``h200``.

    Each block takes ``block_us`` alone whatever runs beside it, unless counters say otherwise.
    """

    def __init__(self, *programs: Program, block_us: float = 5.0, gap_us: float = 1.0, residency: int = 4,
                 counters: Counters | None = None) -> None:  # fmt: skip
        self._launches: dict[LaunchKey, LaunchProfile] = {}
        counters = counters or Counters(1e3, 1e3, 2e3, 4e3, 0.1, 0.1)
        for p in programs:
            for step in p.launches:
                times = {s: gap_us + block_us * -(-step.blocks // (residency * s)) for s in (8, 16, 32, 64, 132)}
                self._launches[launch_key(p.kernels[step.kernel], step)] = LaunchProfile(
                    times, residency, counters, measured=False
                )

    def launch(self, device: str, key: LaunchKey) -> LaunchProfile | None:
        return self._launches.get(key) if device == "h200" else None

    def program(self, device: str, program: Program) -> ProgramProfile | None:
        return None
