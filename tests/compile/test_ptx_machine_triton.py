# ruff: noqa: E402 - what is imported below may be missing
"""The PTX machine computes what Triton's kernels compute on a GPU: reductions, scans, tensor cores, waiting blocks."""

import sys
from pathlib import Path

import pytest
from compile_support import need_torch_and_triton

need_torch_and_triton()

sys.path.insert(0, str(Path(__file__).parents[1] / "corpus"))

from make_triton import close, file_of
from ptx_compile import missing
from run_program import outputs

from miriam.program import Program

# The rest of the corpus takes longer, and resembles these.
CASES = ["barrier", "batch-norm", "full-reduce", "last-block", "layer-norm", "matmul-persistent", "noise", "row-sum",
         "scan", "spin-wait", "split-k-float", "split-k-int"]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_of_the_corpus(name: str) -> None:
    program = Program.load(file_of(name))
    assert close(name, outputs(program, seed=len(name), slots=(0, 0, 1)))


def test_what_is_left_out_is_named() -> None:
    (kernel,) = Program.load(file_of("matmul-tma")).kernels
    opcodes = {what.split(": ")[1] for what in missing(kernel.ptx or "", kernel.name)}
    assert any("cp.async.bulk.tensor" in opcode for opcode in opcodes)
