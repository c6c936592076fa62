"""Programs made by hand: what a launch is given, what the buffers are, what is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miriam import Kernel, Pointer, Program, ProgramError, Role, Scalar, Source
from miriam.frontend.builder import Builder, Parameter, parameters, three

PTX = """.version 8.0
.target sm_75
.address_size 64
.visible .entry other() { ret; }
.visible .entry k(
    .param .u64 .ptr .global .align 16 k_param_0, // a pointer, as LLVM marks them
    .param .f32 k_param_1,
    .param .u32 k_param_2,
    .param .align 4 .b8 k_param_3[12]
)
.maxntid 128, 1, 1
{
    ret;
}
"""
KERNEL = Kernel("k", Source.CUDA, (128, 1, 1), 8, ptx=PTX)


def taking(kind: str) -> Kernel:
    ptx = f".version 8.0\n.target sm_75\n.address_size 64\n.visible .entry one(.param .{kind} one_param_0) {{ ret; }}"
    return Kernel("one", Source.CUDA, (1, 1, 1), 8, ptx=ptx)


def passed(kernel: Kernel, value: object) -> bytes:
    build = Builder("p", "sm_75")
    build.launch(kernel, 1, value)
    (argument,) = build.program().launches[0].args
    assert isinstance(argument, Scalar)
    return argument.raw


def test_parameters_are_read_from_ptx():
    assert parameters(PTX, "other") == ()
    assert parameters(PTX, "k") == (
        Parameter("k_param_0", "u", 8), Parameter("k_param_1", "f", 4), Parameter("k_param_2", "u", 4),
        Parameter("k_param_3", "[", 12),
    )  # fmt: skip
    with pytest.raises(ProgramError, match="'lost': the PTX has other, k"):
        parameters(PTX, "lost")


def test_a_program_holds_what_was_put_together(tmp_path):
    build = Builder("p", "sm_75")
    x = build.input("x", data=np.arange(6, dtype=np.float32).reshape(2, 3))
    w = build.weight("w", "float16", (5,))
    build.scratch("t", "bfloat16", (4,))
    y = build.output("y", "float32", (2, 3))
    build.launch(KERNEL, (4, 2), x, 2, -1, bytes(12))
    build.launch(KERNEL, 7, Pointer(w.at.buffer, 4), 0.5, np.int32(3), bytes(12))
    build.returns(x, "again")
    program = build.program({"how": "by hand"})
    program.save(tmp_path / "p.miriam")
    assert Program.load(tmp_path / "p.miriam") == program
    assert [(b.name, b.size_bytes, b.role) for b in program.buffers] == [
        ("x", 24, Role.INPUT), ("w", 10, Role.WEIGHT), ("t", 8, Role.INTERMEDIATE), ("y", 24, Role.OUTPUT),
    ]  # fmt: skip
    assert program.buffers[0].data == np.arange(6, dtype=np.float32).tobytes()
    assert x.strides == y.strides == (3, 1)
    assert [t.name for t in program.outputs] == ["y", "again"]
    assert program.outputs[1].at == x.at
    assert len(program.kernels) == 1
    assert [step.grid for step in program.launches] == [(4, 2, 1), (7, 1, 1)]
    first, second = (step.args for step in program.launches)
    assert first[:3] == (x.at, Scalar(struct.pack("<f", 2.0)), Scalar(b"\xff" * 4))
    assert second[:3] == (Pointer(1, 4), Scalar(struct.pack("<f", 0.5)), Scalar(struct.pack("<i", 3)))


@given(st.integers(-(2**31), 2**32 - 1))
def test_a_whole_number_takes_the_type_of_the_parameter(value):
    assert passed(taking("u32"), value) == struct.pack("<I", value % 2**32)
    assert passed(taking("s64"), value) == struct.pack("<q", value)
    assert passed(taking("f64"), value) == struct.pack("<d", value)


@pytest.mark.parametrize(
    ("kind", "value"), [("u8", 256), ("u16", -32769), ("b32", 2**32), ("u64", -(2**63) - 1), ("s32", 2**40)]
)
def test_a_number_that_does_not_fit_is_refused(kind, value):
    with pytest.raises(ProgramError, match="does not fit"):
        passed(taking(kind), value)


@pytest.mark.parametrize(
    ("kind", "value"), [("u32", 1.5), ("f32", np.float64(1)), ("u64", np.int32(1)), ("u64", b"1234"), ("f32", None)]
)
def test_a_value_of_another_type_is_refused(kind, value):
    with pytest.raises(ProgramError, match="argument 0 of 'one'"):
        passed(taking(kind), value)


def test_none_is_a_null_pointer_and_bits_take_any_number():
    assert passed(taking("u64"), None) == bytes(8)
    assert passed(taking("b32"), 1.5) == struct.pack("<f", 1.5)
    assert passed(taking("b64"), 1.5) == struct.pack("<d", 1.5)
    assert passed(taking("b32"), 3) == struct.pack("<I", 3)
    assert passed(taking("u8"), True) == b"\1"


def test_memory_is_no_number():
    build = Builder("p", "sm_75")
    with pytest.raises(ProgramError, match="no pointer"):
        build.launch(taking("f64"), 1, build.input("x", "int8", (1,)))


def test_arguments_are_counted():
    with pytest.raises(ProgramError, match="takes 4 arguments and was given 1"):
        Builder("p", "sm_75").launch(KERNEL, 1, 2.0)


def test_a_kernel_without_ptx_says_nothing_of_its_arguments():
    with pytest.raises(ProgramError, match="no PTX"):
        Builder("p", "sm_75").launch(Kernel("lib", Source.LIBRARY, (1, 1, 1), 8, opaque="closed"), 1)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda b: b.input("x", "float32", (2,), data=bytes(4)), "8 bytes was given 4"),
        (lambda b: b.input("x", "float33", (2,)), "float33"),
        (lambda b: b.input("x", "float32", (2, 0)), "above zero"),
        (lambda b: b.input("x"), "needs a dtype"),
        (lambda b: (b.input("x", "int8", (1,)), b.output("x", "int8", (1,))), "already"),
    ],
)
def test_buffers_that_make_no_sense_are_refused(make, why):
    with pytest.raises(ProgramError, match=why):
        make(Builder("p", "sm_75"))


@pytest.mark.parametrize("grid", [(), (1, 2, 3, 4), 0, (2, -1)])
def test_a_grid_that_is_none(grid):
    with pytest.raises(ProgramError, match="one to three numbers above zero"):
        three(grid, "the grid of k")
