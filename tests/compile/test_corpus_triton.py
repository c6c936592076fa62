# ruff: noqa: E402 - what is imported below may be missing
"""The Triton kernels of the corpus: whole, assembled by ptxas, made again, and right by Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compile_support import need_torch_and_triton

need_torch_and_triton()

import triton

CORPUS = Path(__file__).parents[1] / "corpus"
sys.path.insert(0, str(CORPUS))

from make_triton import FOLDER, case_names, expected, file_of, make

from miriam.elastic.ptxas import assemble_many
from miriam.errors import ProgramError
from miriam.frontend.captured import pointer_parameters
from miriam.program import Pointer, Program, Source

NAMES = sorted(path.stem for path in FOLDER.glob("*.miriam"))

# What the interpreter does not know, and what takes it long and resembles another.
NOT_INTERPRETED = {"inline-asm", "dependent-launch"}
SLOW = {"attention-w8", "matmul-w1", "matmul-w2", "matmul-w8", "matmul-w8-wide", "matmul-epilogue"}


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    return {name: Program.load(file_of(name)) for name in NAMES}


def test_every_case_has_a_file_and_every_file_a_case() -> None:
    assert {name.removesuffix("-36") for name in NAMES} == set(case_names())
    assert sum(file_of(name).stat().st_size for name in NAMES) < 1.5e6


@pytest.mark.parametrize("name", NAMES)
def test_a_program_is_one_launch_with_all_that_it_needs(name: str, programs: dict[str, Program]) -> None:
    program = programs[name]
    (kernel,), (launch,) = program.kernels, program.launches
    assert program.runnable
    assert (kernel.source, program.target) == (Source.TRITON, "sm_90a")
    assert launch.blocks >= 16
    assert kernel.ttir
    assert kernel.ptx
    pointers = pointer_parameters(kernel.ptx)
    assert len(pointers) == len(launch.args)
    for argument, pointer in zip(launch.args, pointers, strict=True):
        assert pointer == (isinstance(argument, Pointer) or argument.raw == bytes(8))
    assert {tensor.name for tensor in program.outputs} == set(expected(name))
    assert "/" not in kernel.ttir.replace("//", ""), "a path of the machine that made it"


def test_every_kernel_assembles_and_takes_the_shared_memory_that_it_names(programs: dict[str, Program]) -> None:
    kernels = [program.kernels[0] for program in programs.values()]
    for kernel, done in zip(kernels, assemble_many([(k.ptx or "", "sm_90a") for k in kernels]), strict=True):
        assert not isinstance(done, ProgramError), done
        needs = done.entries[kernel.name]
        assert needs.shared_bytes + kernel.dynamic_shared_bytes == kernel.shared_bytes
        assert 0 < kernel.registers <= 255


def test_a_kernel_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    made, kept = make("softmax"), Program.load(file_of("softmax"))
    made.save(tmp_path / "softmax.miriam")
    assert Program.load(tmp_path / "softmax.miriam").digest == made.digest
    assert made.buffers == kept.buffers
    assert made.launches == kept.launches
    if kept.meta["triton"] == triton.__version__:
        assert made.kernels[0].ptx == kept.kernels[0].ptx


def test_numpy_and_the_interpreter_agree() -> None:
    names = [name for name in case_names() if name not in NOT_INTERPRETED | SLOW]
    code = (
        "import json, sys, make_triton as m; print(json.dumps({n: m.close(n, m.interpret(n)) for n in sys.argv[1:]}))"
    )
    paths = os.pathsep.join([str(CORPUS), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dict.fromkeys(names, True)
