"""Make the CUDA C++ corpus: ``tests/corpus/cuda/<name>.miriam``, one launch each, with its data.

    python tests/corpus/make_cuda.py [NAME ...]

No GPU is needed, only NVRTC and ptxas; the same versions give the same files. In ``meta`` stand
``expect`` (``elastic``, ``opaque`` or ``either``; ``why``) and ``compare`` (``bits``, or ``sorted`` where the
order of what is written depends on the order of blocks). Those that end in ``-large`` have a grid for a
GPU; of their arrays only the small ones have contents. A file belongs to one run: some kernels add to
what their outputs hold.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from cuda_cases import LARGE, Case, Out, case_names, make_case

from miriam import Kernel, Program, Source
from miriam.elastic.ptxas import assemble
from miriam.frontend.builder import Builder, Value
from miriam.frontend.cuda_source import Compiled, compile_source

__all__ = ["case_names", "expected", "make"]

FOLDER = Path(__file__).parent / "cuda"
_KEPT_BYTES = 4096  # of an array of a large case


def make(name: str) -> Program:
    """Compile a case and put its data beside it."""
    case, large = make_case(name), name.endswith(LARGE)
    build = Builder(name, case.target)
    values: list[Value] = []
    for argument, value in case.arguments.items():
        if isinstance(value, np.ndarray):
            values.append(build.input(argument, value.dtype.name, value.shape, data=_contents(value, large)))
        elif isinstance(value, Out):
            add = build.scratch if value.scratch else build.output
            like = value.expected
            values.append(add(argument, like.dtype.name, like.shape, data=_contents(value.start, large)))
        else:
            values.append(value)
    code = _compiled(case.source, case.target, tuple(case.options))
    build.launch(_kernel(name.removesuffix(LARGE), case, code), case.grid, *values)
    meta = {
        "expect": "opaque" if case.opaque else "either" if case.doubtful else "elastic", "compare": case.compare,
        "source": case.source, "compiler": code.compiler,
    }  # fmt: skip
    return build.program(meta | ({"why": why} if (why := case.opaque or case.doubtful) else {}))


def expected(name: str) -> dict[str, np.ndarray]:
    """What the outputs of a case hold after it has run with the data of its file."""
    arguments = make_case(name).arguments
    return {key: value.expected for key, value in arguments.items() if isinstance(value, Out) and not value.scratch}


def _contents(array: np.ndarray | None, large: bool) -> np.ndarray | None:
    return None if array is None or (large and array.nbytes > _KEPT_BYTES) else array


def _kernel(entry: str, case: Case, code: Compiled) -> Kernel:
    if "--relocatable-device-code=true" not in case.options:
        return code.kernel(entry, case.block, dynamic_shared_bytes=case.shared)
    # what it calls comes from a library that the driver would have to link
    needs = assemble(code.ptx, case.target, options=["--compile-only"]).entries[entry]
    return Kernel(entry, Source.CUDA, (case.block, 1, 1), needs.registers, needs.shared_bytes, ptx=code.ptx)


@functools.cache
def _compiled(source: str, target: str, options: tuple[str, ...]) -> Compiled:
    return compile_source((FOLDER / source).read_text(), target=target, name=source, options=options)


def main() -> None:
    """Write the files that are asked for, or all of them."""
    for name in sys.argv[1:] or case_names():
        path = FOLDER / f"{name}.miriam"
        program = make(name)
        program.save(path)
        kernel = program.kernels[0]
        print(
            f"{path.stat().st_size:7} {name}: {program.launches[0].grid} x {kernel.block}, {kernel.registers} registers"
        )


if __name__ == "__main__":
    main()
