"""Small PTX modules and what they compute, for tests that run them on the PTX machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ptx_machine import Machine, run
from ptx_memory import Memory
from ptx_races import Races

ONE = (1, 1, 1)
HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"


def entry(body: str, parameters: Sequence[str] = ("u64", "u64"), *, module: str = "", directives: str = "") -> str:
    """A module with the entry k(p0, p1, ...) and a few registers of each kind."""
    declared = ", ".join(f".param .{t} p{i}" for i, t in enumerate(parameters))
    return f"""{HEADER}{module}
    .visible .entry k({declared}) {directives} {{
        .reg .pred %p<20>; .reg .b16 %h<20>; .reg .b32 %r<40>; .reg .b64 %d<40>; .reg .f32 %f<20>; .reg .f64 %g<20>;
        {body}
        ret;
    }}"""


def u32(x: int) -> bytes:
    return x.to_bytes(4, "little")


def u64(x: int) -> bytes:
    return x.to_bytes(8, "little")


def compute(instruction: str, inputs: Sequence[int], output: int, rows: Sequence[Sequence[int]]) -> list[int]:
    """One instruction, one thread a row: ``{d}`` its result, ``{a}``, ``{b}`` ... its operands, by their bits.

    A predicate has 1 bit.
    """
    bits = [*inputs, output]
    declared = "".join(
        f".reg .{'pred' if n == 1 else f'b{max(n, 16)}'} %{x};"
        for x, n in zip([*"abcd"[: len(inputs)], "z"], bits, strict=True)
    )
    loads = "".join(
        f"ld.global.u8 %h1, [%d1+{8 * i}]; setp.ne.u16 %{x}, %h1, 0;"
        if n == 1
        else f"ld.global.b{n} %{x}, [%d1+{8 * i}];"
        for i, (x, n) in enumerate(zip("abcd", inputs, strict=False))
    )
    store = "selp.u32 %r1, 1, 0, %z; st.global.u32 [%d3], %r1;" if output == 1 else f"st.global.b{output} [%d3], %z;"
    text = entry(f"""
        {declared}
        ld.param.u64 %d1, [p0]; ld.param.u64 %d3, [p1]; mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, {8 * len(inputs)}, %d1; mad.wide.u32 %d3, %r0, 8, %d3;
        {loads}
        {instruction.format(d="%z", a="%a", b="%b", c="%c", e="%d")};
        {store}""")  # fmt: skip
    memory = Memory()
    source = memory.alloc(b"".join(u64(x) for row in rows for x in row))
    target = memory.alloc(8 * len(rows))
    run(Machine(text, memory).launch("k", (1, 1, 1), (len(rows), 1, 1), [u64(source), u64(target)]))
    return [int(x) & ((1 << max(output, 8)) - 1) for x in memory.array(target, "<u8", len(rows))]


# Of bodies for each(): the thread's index in its block, the block's, the threads of a block, the thread's of all.
OWN = "mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r3, %r1, %r2, %r0;"
POINTERS = "ld.param.u64 %d0, [p0]; ld.param.u64 %d1, [p1];"


def each(
    body: str,
    threads: int = 32,
    blocks: int = 1,
    *,
    source: bytes = bytes(8),
    seed: int = 0,
    words: int = 1,
    slots: Sequence[int] = (0, 1),
    module: str = "",
    races: Races | None = None,
    dynamic: int = 0,
) -> np.ndarray:
    """Run a body in which %d0 points to a source and %d1 to so many words (32 bits) of each thread; all words."""
    text = entry(f"{OWN} {POINTERS} mad.wide.u32 %d1, %r3, {4 * words}, %d1; {body}", module=module)
    memory, count = Memory(), threads * blocks
    args = [u64(memory.alloc(source)), u64(target := memory.alloc(4 * words * count))]
    launch = Machine(text, memory).launch("k", (blocks, 1, 1), (threads, 1, 1), args, dynamic, slots=slots, races=races)
    run(launch, seed=seed, steps=1_000_000)
    found = memory.array(target, "<u4", words * count)
    return found if words == 1 else found.reshape(count, words)
