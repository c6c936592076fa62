"""What Miriam uses of Triton's compiler that is not public, in one place; torch is not needed for it.

Written for triton 3.6 and 3.7.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from miriam.errors import CompileError

os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # no names of temporary files in the PTX

try:
    import triton
    from triton.backends.compiler import GPUTarget
except ImportError as error:
    raise CompileError("compiling TTIR needs Triton: pip install triton==3.7.1") from error

__all__ = ["Lowered", "lower"]

VERSIONS = ("3.6", "3.7")
"""Versions of triton with which this module is tested."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """PTX of a kernel and what Triton says of it.

    Attributes
    ----------
    name
        Name of the entry.
    threads
        Of a block.
    shared_bytes
        Dynamic shared memory of a block.
    scratch_bytes
        Global memory that each block needs, through the last pointer but one.
    """

    name: str
    ptx: str
    threads: int
    shared_bytes: int
    scratch_bytes: int


def lower(ttir: str, target: str, *, warps: int, stages: int) -> Lowered:
    """Compile the TTIR of a kernel.

    Parameters
    ----------
    target
        An NVIDIA architecture, for example ``sm_90a``.
    warps
        Of a block; a power of two.
    stages
        Depth of software pipelines, where a loop does not say its own.

    Raises
    ------
    CompileError
        Triton is of another version, or refuses this kernel or these numbers.
    """
    if ".".join(triton.__version__.split(".")[:2]) not in VERSIONS:
        raise CompileError(f"triton {triton.__version__} is not supported: install {' or '.join(VERSIONS)}")
    capability = re.fullmatch(r"sm_(\d+)[af]?", target)
    if not capability:
        raise CompileError(f"Triton compiles for NVIDIA GPUs, {target!r} is none: give for example sm_90a")
    with tempfile.TemporaryDirectory(prefix="miriam-") as folder:
        # Some of Triton's cache keys hold the name of a file and not what is in it.
        source = Path(folder, f"{hashlib.sha256(ttir.encode()).hexdigest()}.ttir")
        source.write_text(ttir)
        try:
            compiled = triton.compile(
                str(source),
                target=GPUTarget("cuda", int(capability[1]), 32),
                options={"num_warps": warps, "num_stages": stages},
            )
        except Exception as error:  # whatever a pass, LLVM or ptxas throws
            raise CompileError(
                f"Triton cannot compile this TTIR for {target} with {warps} warps and {stages} stages: {error}"
            ) from error
    facts = compiled.metadata
    return Lowered(facts.name, compiled.asm["ptx"], facts.num_warps * 32, facts.shared, facts.global_scratch_size)
