"""Make the Triton corpus: ``tests/corpus/triton/<name>.miriam``, one launch each, with data small enough to keep.

    python tests/corpus/make_triton.py [NAME ...]

No GPU is needed, and the same version of Triton gives the same file. A few kernels are there once more
as Triton 3.6 writes them, with ``-36`` at the end of their names. A file belongs to one run: some kernels
add to what their outputs hold.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # no paths of this machine in the PTX
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import triton
import triton_dots  # noqa: F401 - registers its cases
import triton_others  # noqa: F401
from numpy.lib.stride_tricks import as_strided
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_cases import Case, Out, case_names, make_case

from miriam.elastic.ptxas import assemble
from miriam.program import Argument, Buffer, Kernel, Launch, Pointer, Program, Role, Scalar, Source, Tensor

__all__ = ["case_names", "close", "expected", "file_of", "interpret", "make"]

FOLDER = Path(__file__).parent / "triton"
TARGET = "sm_90a"

_TYPES = {"float16": "fp16", "float32": "fp32", "int8": "i8", "int32": "i32"}
_SUFFIX = "-36"
_TWICE = ("attention-w4", "layer-norm", "matmul-epilogue", "matmul-tma", "matmul-w4", "scan", "softmax", "spin-wait")


def make(name: str) -> Program:
    """Compile a case and put its data beside it."""
    case = make_case(name)
    signature, constants, hints = _signature(case)
    source = ASTSource(case.kernel, signature, constants, hints)
    options = {"num_warps": case.warps, **case.options}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx, facts = compiled.asm["ptx"], compiled.metadata
    needs = assemble(ptx, TARGET).entries[facts.name]
    threads = facts.num_warps * 32
    kernel = Kernel(
        facts.name, Source.TRITON, (threads, 1, 1), needs.registers, needs.shared_bytes + facts.shared, facts.shared,
        ptx, compiled.asm["ttir"],
    )  # fmt: skip
    buffers, inputs, outputs, args = _data(case, signature)
    for size in (facts.global_scratch_size * math.prod(case.grid), facts.profile_scratch_size):
        if size:
            args.append(Pointer(len(buffers)))
            buffers.append(Buffer("scratch", size, Role.INTERMEDIATE))
        else:
            args.append(Scalar(bytes(8)))
    x, y, z = case.grid  # of clusters; a launch counts blocks
    launch = Launch(0, (x * facts.num_ctas, y, z), tuple(args))
    meta = {"triton": triton.__version__}
    return Program(name, TARGET, (kernel,), (launch,), tuple(buffers), tuple(inputs), tuple(outputs), meta)


def _signature(case: Case) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Types, constants and hints as Triton finds them when a kernel is called."""
    signature, constants, hints = {}, dict(case.constants), {}
    for i, name in enumerate(case.kernel.arg_names):
        value = case.constants.get(name, case.arguments.get(name))
        if name in case.constants or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, int):
            signature[name] = "i32"
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "*" + _TYPES[str(value.dtype)]
        if signature[name][0] == "*" or (signature[name] == "i32" and value % 16 == 0):
            hints[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, hints


def _data(case: Case, signature: dict[str, str]) -> tuple[list[Buffer], list[Tensor], list[Tensor], list[Argument]]:
    buffers: list[Buffer] = []
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    args: list[Argument] = []
    for name, value in case.arguments.items():
        if signature[name] == "constexpr":
            continue
        if isinstance(value, int):
            args.append(Scalar(value.to_bytes(4, "little", signed=True)))
        elif isinstance(value, float):
            args.append(Scalar(np.float32(value).tobytes()))
        else:
            at = Pointer(len(buffers))
            args.append(at)
            size = np.dtype(value.dtype).itemsize
            if isinstance(value, Out):
                strides = tuple(math.prod(value.shape[i + 1 :]) for i in range(len(value.shape)))
                data = None if value.start is None else np.full(value.shape, value.start, value.dtype).tobytes()
                buffers.append(Buffer(name, math.prod(value.shape) * size, value.role, data))
                if value.role is Role.OUTPUT:
                    outputs.append(Tensor(name, value.dtype, value.shape, strides, at))
            else:
                strides = tuple(stride // size for stride in value.strides)
                data = _flat(value).tobytes()
                buffers.append(Buffer(name, len(data), Role.INPUT, data))
                inputs.append(Tensor(name, str(value.dtype), value.shape, strides, at))
    return buffers, inputs, outputs, args


def _flat(view: np.ndarray) -> np.ndarray:
    """Everything from the first element of a view to its last."""
    steps = (stride // view.itemsize for stride in view.strides)
    length = 1 + sum((n - 1) * step for n, step in zip(view.shape, steps, strict=True))
    return as_strided(view, (length,), (view.itemsize,))


def expected(name: str) -> dict[str, np.ndarray]:
    """Outputs that NumPy computes from the data in a file of the corpus, by tensor, as the kernel's own type."""
    program, case = Program.load(file_of(name)), make_case(name.removesuffix(_SUFFIX))
    of = SimpleNamespace(**case.arguments)
    for tensor in program.inputs:
        flat = np.frombuffer(program.buffers[tensor.at.buffer].data or b"", tensor.dtype)
        setattr(of, tensor.name, as_strided(flat, tensor.shape, tuple(s * flat.itemsize for s in tensor.strides)))
    found = case.expected(of)
    return {tensor.name: found[tensor.name].astype(tensor.dtype).reshape(tensor.shape) for tensor in program.outputs}


def interpret(name: str) -> dict[str, np.ndarray]:
    """Outputs by Triton's interpreter, which runs on a CPU where TRITON_INTERPRET is set from the start."""
    import torch

    case, given, outputs = make_case(name), {}, {}
    for argument, value in case.arguments.items():
        if isinstance(value, Out):
            fill = 77 if value.start is None else value.start
            given[argument] = torch.full(value.shape, fill, dtype=getattr(torch, value.dtype))
            if value.role is Role.OUTPUT:
                outputs[argument] = given[argument].numpy()
        else:
            given[argument] = torch.from_numpy(_flat(value).copy()) if isinstance(value, np.ndarray) else value
    case.kernel[case.grid](**given, **case.constants)
    return outputs


def close(name: str, found: dict[str, np.ndarray]) -> bool:
    """Whether outputs are what they should be: equal to the bit, or within the tolerance of the largest number."""
    tolerance = make_case(name.removesuffix(_SUFFIX)).tolerance
    for output, want in expected(name).items():
        if tolerance == 0 and found[output].tobytes() != want.tobytes():
            return False
        error = np.abs(found[output].astype(np.float64) - want.astype(np.float64)).max()
        if not error <= tolerance * np.abs(want.astype(np.float64)).max():
            return False
    return True


def file_of(name: str) -> Path:
    """Where a program of the corpus lies."""
    return FOLDER / f"{name}.miriam"


if __name__ == "__main__":
    old = triton.__version__.startswith("3.6.")
    suffix = _SUFFIX if old else ""
    for chosen in sys.argv[1:] or (_TWICE if old else case_names()):
        make(chosen).save(file_of(chosen + suffix))
        print(f"{chosen + suffix}: {file_of(chosen + suffix).stat().st_size} bytes")
