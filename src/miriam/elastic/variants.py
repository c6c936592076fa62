"""Triton kernels with thinner blocks: the same TTIR, compiled for fewer warps.

TTIR says what a block computes and not by how many threads, so a kernel that was kept with its TTIR can be
compiled again for any number of warps. Grid and arguments stay. What TTIR does not say, the depth of the
software pipelines, is found by compiling the kernel as it was until it asks for the same shared memory:
in all 463 kernels of the zoo that tells the depth wherever the depth matters, and with the version of Triton
that made them their PTX comes out again to the letter. Lost are a cap on registers
(``maxnreg``) and contraction of products and sums that was switched off (``enable_fp_fusion``); Inductor
uses neither unless it is told to.

A variant computes the same numbers up to rounding. Equal *to the bit* it is only where every number comes
from the same operations in the same order, and threads decide that order in reductions and scans, and, by
way of the instruction (``wgmma`` from four warps on, ``mma`` below), in matrix products. :func:`doubt`
says where the order may differ. Neither it nor anything else that reads code is a proof: ptxas contracts
and orders as it likes. Nothing may be offered as equal to the bit that was not run beside its original on
the GPU in question, which ``tests/gpu/test_variants.py`` does.
"""

from __future__ import annotations

import re

from miriam.elastic.ptxas import assemble
from miriam.errors import CompileError
from miriam.program import Kernel, Source

__all__ = ["doubt", "recompile", "stages_of", "thinner"]

_WARP = 32  # threads
_STAGES = (3, 4, 2, 5, 1, 6, 7, 8)  # Triton's default first, then as often as Inductor tries them


def thinner(kernel: Kernel) -> list[int]:
    """Warp counts below that of ``kernel``, largest first; empty where it cannot be compiled for them."""
    if _refusal(kernel):
        return []
    warps = kernel.threads // _WARP
    return [1 << i for i in range(warps.bit_length() - 2, -1, -1)]


def recompile(kernel: Kernel, warps: int, target: str, *, stages: int | None = None) -> Kernel:
    """Compile ``kernel`` for fewer warps.

    Parameters
    ----------
    kernel
        A Triton kernel that was kept with its TTIR.
    warps
        Warps of a block: a power of two, fewer than the kernel has. Never more: at eight warps Triton
        3.6 and older compile convolutions wrongly (triton-lang/triton issue 1254).
    target
        Architecture, for example ``sm_90a``.
    stages
        What :func:`stages_of` gives for this kernel, if it was asked before.

    Returns
    -------
    Kernel
        The same name, arguments and grid; code, block, registers and shared memory of its own.
        Its results may differ in the last bits: see :func:`doubt`.

    Raises
    ------
    CompileError
        The kernel is not Triton's, came without TTIR, or runs as a cluster or with warps of different
        kinds; the number of warps is none of :func:`thinner`; or Triton is missing or refuses.
    """
    if reason := _refusal(kernel):
        raise CompileError(f"{kernel.name} cannot be compiled for fewer warps: {reason}; run it as it is")
    if warps not in thinner(kernel):
        choice = ", ".join(map(str, thinner(kernel))) or "there is no smaller number than one"
        raise CompileError(f"{kernel.name} has {kernel.threads // _WARP} warps and cannot get {warps}: {choice}")
    from miriam.frontend._triton import lower

    stages = stages or stages_of(kernel, target)
    before, lowered = (
        lower(kernel.ttir or "", target, warps=count, stages=stages) for count in (kernel.threads // _WARP, warps)
    )
    if lowered.threads != warps * _WARP or lowered.scratch_bytes != before.scratch_bytes:
        raise CompileError(
            f"{kernel.name} comes out for {warps} warps with {lowered.threads} threads and "
            f"{lowered.scratch_bytes} bytes of scratch memory, where {before.scratch_bytes} are given: run it as it is"
        )
    needs = assemble(lowered.ptx, target).entries[lowered.name]
    return Kernel(
        name=lowered.name,
        source=Source.TRITON,
        block=(lowered.threads, 1, 1),
        registers=needs.registers,
        shared_bytes=needs.shared_bytes + lowered.shared_bytes,
        dynamic_shared_bytes=lowered.shared_bytes,
        ptx=lowered.ptx,
        ttir=kernel.ttir,
    )


def stages_of(kernel: Kernel, target: str) -> int:
    """Pipeline depth with which ``kernel`` was compiled; any where it makes no difference.

    Raises
    ------
    CompileError
        As for :func:`recompile`, or the depth makes a difference and none gives the shared memory of the
        kernel: it was made by a Triton that is too different from the one that is installed.
    """
    if reason := _refusal(kernel):
        raise CompileError(f"{kernel.name} cannot be compiled again: {reason}; run it as it is")
    if "scf.for" not in (kernel.ttir or ""):
        return _STAGES[0]
    from miriam.frontend._triton import lower

    asked = []
    for stages in _STAGES:
        lowered = lower(kernel.ttir or "", target, warps=kernel.threads // _WARP, stages=stages)
        if lowered.shared_bytes == kernel.dynamic_shared_bytes:
            return stages
        asked.append(lowered.shared_bytes)
    if len(set(asked)) == 1:
        return _STAGES[0]
    raise CompileError(
        f"{kernel.name} asks for {kernel.dynamic_shared_bytes} bytes of shared memory, compiled again for "
        f"{', '.join(map(str, sorted(set(asked))))}: compile the model again with the Triton that is installed"
    )


def doubt(kernel: Kernel, variant: Kernel) -> str:
    """Why results of ``variant`` may differ from those of ``kernel`` in the last bits, as far as code tells.

    Empty means that no reason was found: elements are computed one by one, reductions and scans do not
    mind the order, and matrix products use instructions that add in the same steps.
    """
    for operation in ("reduce", "scan"):
        for region in re.findall(rf'"tt\.{operation}"\(.*?tt\.{operation}\.return', kernel.ttir or "", re.DOTALL):
            found = set(re.findall(r'= "?(\w+\.\w+)', region))
            if len(found) > 1 or not found <= _ANY_ORDER:
                return f"a {operation} by {' and '.join(sorted(found))} whose order goes by threads"
    if re.search(r"tt\.atomic_rmw fadd", kernel.ttir or ""):
        return "sums of floating-point numbers by atomics"
    if apart := _arithmetic(kernel.ptx or "") ^ _arithmetic(variant.ptx or ""):
        return f"not the same instructions: {', '.join(sorted({found.split('.')[0] for found in apart}))}"
    return ""


_ANY_ORDER = {
    f"arith.{operation}"
    for operation in (
        "addi", "andi", "maximumf", "maxnumf", "maxsi", "maxui", "minimumf", "minnumf", "minsi", "minui", "muli",
        "ori", "xori",
    )
}  # fmt: skip

_ROUNDED = re.compile(
    r"^\s*(?:@!?%\w+\s+)?"
    r"((?:add|sub|mul|fma|div|rcp|sqrt|rsqrt|ex2|lg2|sin|cos|tanh|mma|wgmma)\.(?:[\w:]+\.)*(?:[bt]?f(?:16|32|64))[\w.]*)\s",
    re.MULTILINE,
)  # fmt: skip


def _arithmetic(ptx: str) -> set[str]:
    """Instructions that round; the width of a matrix instruction and pairs of halves make no difference."""
    return {re.sub(r"(\.m64)n\d+(k\d+)", r"\1\2", found).replace("x2", "") for found in _ROUNDED.findall(ptx)}


def _refusal(kernel: Kernel) -> str:
    warps = kernel.threads // _WARP
    if kernel.source is not Source.TRITON or kernel.ptx is None or kernel.ttir is None:
        return "there is no TTIR of it"
    if f"tt.func public @{kernel.name}(" not in kernel.ttir:
        return "its TTIR holds no function of its name"  # Triton 3.7 ends the process on a module without functions
    if "tt.warp_specialize" in kernel.ttir:
        return "its warps are of different kinds"
    if ".reqnctapercluster" in kernel.ptx:
        return "its blocks run as clusters"
    if kernel.block != (warps * _WARP, 1, 1) or warps & (warps - 1) or not warps:
        return f"a block of {kernel.block} threads is not one that Triton makes"
    return ""
