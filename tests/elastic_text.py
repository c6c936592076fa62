"""PTX of an entry around a body, and what speaks against it."""

from __future__ import annotations

from miriam.elastic.rewrite import ELASTIC, Form, rewrite

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"
REGISTERS = ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<99>; .reg .b64 %rd<9>; .shared .align 8 .b8 pool[64];\n"
STORE = "ld.param.u64 %rd1, [p];\nmov.u32 %r1, %ctaid.x;\nst.global.u32 [%rd1], %r1;\n"


def entry(
    body: str = STORE + "ret;", name: str = "k", parameters: str = "(.param .u64 p)", directives: str = ""
) -> str:
    """The text of an entry."""
    return f".visible .entry {name}{parameters} {directives}\n{{\n{REGISTERS}{body}\n}}\n"


def refused(ptx: str) -> str:
    """The reason against ``k``, which has a guarded form then; empty if it is elastic."""
    made = rewrite(ptx, ["k"])
    assert made.forms == {"k": (Form.GUARDED,) if made.refused else ELASTIC}
    return made.refused.get("k", "")


def refusal_at(mark: str, ptx: str) -> str:
    """The reason, which names the line of ``mark``."""
    line, _, reason = refused(ptx).partition(": ")
    assert line == f"line {ptx[: ptx.index(mark)].count(chr(10)) + 1}"
    return reason
