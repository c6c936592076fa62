"""Whole programs on the PTX machine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from ptx_machine import Machine, run
from ptx_memory import Memory

from miriam import Pointer, Program

__all__ = ["can_run", "outputs"]


def can_run(program: Program) -> bool:
    """Whether the machine knows every instruction of a program."""
    return all(kernel.ptx is not None and Machine.supports(kernel.ptx, kernel.name) for kernel in program.kernels)


def outputs(program: Program, seed: int = 0, *, slots: Iterable[int] = (0, 1)) -> dict[str, np.ndarray]:
    """Run the launches one after the other; what is in the outputs then.

    Parameters
    ----------
    slots
        Places for blocks: a kernel whose blocks wait for each other needs one for each block.
    """
    memory = Memory()
    at = [memory.alloc(b.size_bytes if b.data is None else b.data, name=b.name) for b in program.buffers]
    machines = [Machine(kernel.ptx or "", memory) for kernel in program.kernels]
    for step in program.launches:
        kernel = program.kernels[step.kernel]
        raw = [
            (at[a.buffer] + a.offset_bytes).to_bytes(8, "little") if isinstance(a, Pointer) else a.raw
            for a in step.args
        ]
        launch = machines[step.kernel].launch(
            kernel.name, step.grid, kernel.block, raw, kernel.dynamic_shared_bytes, slots=tuple(slots)
        )
        run(launch, seed=seed)
    return {
        t.name: memory.array(at[t.at.buffer] + t.at.offset_bytes, t.dtype, np.prod(t.shape, dtype=int)).reshape(t.shape)
        for t in program.outputs
    }
