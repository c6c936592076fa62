"""Elastic forms on the PTX machine against the kernels they were made of: memory is equal to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from corpus import load
from elastic_machine import Elastic, Step, run_original, run_shards, steps_of
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_machine import Dim, Scheduler
from ptx_memory import Hang, Memory
from ptx_support import entry, u64
from run_program import can_run

from miriam import Program
from miriam.elastic.memory import COPY, FILL, MEMORY, MEMORY_THREADS
from miriam.elastic.rewrite import Form
from miriam.elastic.state import ALL

Way = tuple[Form, int, int | None]  # a form, how many blocks a share or a shard has at most, workers of a looped one
WAYS: list[Way] = [
    (Form.DIRECT, 1, None),
    *((Form.STRIDED, each, None) for each in (2, 3, 7)),
    *((Form.LOOPED, each, workers) for each in (1, 2) for workers in (1, 3, 20)),
    *((Form.SHARD, each, None) for each in (1, 4)),
]
FEW: list[Way] = [(Form.DIRECT, 1, None), (Form.STRIDED, 2, None), (Form.LOOPED, 1, 2), (Form.SHARD, 2, None)]
SEEDS = st.integers(0, 1 << 32)


def run(memory: Memory, steps: Sequence[Step], way: Way, seed: int = 0, *, races: bool = False) -> None:
    """One pass, which has to complete all; or shards."""
    form, each, workers = way
    if form is Form.SHARD:
        run_shards(memory, steps, each, seed)
        return
    elastic = Elastic(memory, steps, [each] * len(steps), races=races)
    scheduler = Scheduler(Random(seed))
    elastic.lane().enqueue(scheduler, workers, forms=[form] * len(steps))
    scheduler.run()
    assert elastic.complete


# The corpus.


def elastic(kind: str) -> dict[str, Program]:
    """Small programs of a kind whose kernel the machine runs, and which is elastic."""
    programs = {name: p for name, p in load(kind).items() if not name.endswith("-large") and can_run(p)}
    return {name: p for name, p in programs.items() if not any(s.made.refused for s in steps_of(p, Memory())[0])}


def after(program: Program, most: Dim, way: Way | None, bound: int = 10_000_000) -> list[np.ndarray]:
    """What is in the buffers after the launches, whose grids are cut down to ``most``."""
    memory = Memory()
    steps, at = steps_of(program, memory)
    x, y, z = most
    steps = [replace(s, grid=(min(s.grid[0], x), min(s.grid[1], y), min(s.grid[2], z))) for s in steps]
    if way is None:
        run_original(memory, steps, bound=bound)
    else:
        run(memory, steps, way, seed=1)
    if program.meta.get("compare") != "sorted":
        return [memory.array(a, np.uint8, b.size_bytes) for a, b in zip(at, program.buffers, strict=True)]
    places = [(at[t.at.buffer] + t.at.offset_bytes, t.dtype, np.prod(t.shape, dtype=int)) for t in program.outputs]
    return [np.sort(memory.array(*place)) for place in places]


def equal(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return len(found) == len(wanted) and all(map(np.array_equal, found, wanted))


CUDA, TRITON = elastic("cuda"), elastic("triton")


@pytest.mark.parametrize("name", CUDA)
def test_cuda_kernels(name: str) -> None:
    whole = (ALL, ALL, ALL)
    wanted = after(CUDA[name], whole, None)
    for way in WAYS:
        assert equal(after(CUDA[name], whole, way), wanted), way


@pytest.mark.parametrize("name", TRITON)
def test_triton_kernels(name: str) -> None:
    """A few blocks each, and no more than the machine runs in a moment."""
    for most, ways, bound in (((4, 2, 2), WAYS, 20_000), ((3, 1, 1), FEW, 100_000), ((2, 1, 1), FEW, 500_000)):
        try:
            wanted = after(TRITON[name], most, None, bound)
        except Hang:
            continue
        for way in ways:
            assert equal(after(TRITON[name], most, way), wanted), way
        return
    pytest.skip("two of its blocks take too long")


# By hand: %r0 is the thread in its block, %r1 the block, %r3 the thread of all; %d0 and %d1 are where its words are.

_START = """
    mov.u32 %r0, %tid.x; mov.u32 %r5, %tid.y; mov.u32 %r6, %tid.z; mov.u32 %r7, %ntid.x; mov.u32 %r8, %ntid.y;
    mov.u32 %r9, %ntid.z; mad.lo.u32 %r6, %r6, %r8, %r5; mad.lo.u32 %r0, %r6, %r7, %r0;
    mul.lo.u32 %r2, %r7, %r8; mul.lo.u32 %r2, %r2, %r9;
    mov.u32 %r1, %ctaid.x; mov.u32 %r5, %ctaid.y; mov.u32 %r6, %ctaid.z; mov.u32 %r7, %nctaid.x; mov.u32 %r8, %nctaid.y;
    mad.lo.u32 %r6, %r6, %r8, %r5; mad.lo.u32 %r1, %r6, %r7, %r1; mad.lo.u32 %r3, %r1, %r2, %r0;
    ld.param.u64 %d10, [p0]; ld.param.u64 %d11, [p1];
    mad.wide.u32 %d0, %r3, 4, %d10; mad.wide.u32 %d1, %r3, 16, %d11;
"""
_OTHER = """
    sub.u32 %r21, %r2, %r0; sub.u32 %r21, %r21, 1; mad.lo.u32 %r21, %r21, 4, %r20; mad.lo.u32 %r20, %r0, 4, %r20;
    ld.global.u32 %r4, [%d0]; st.shared.u32 [%r20], %r4; bar.sync 0; ld.shared.u32 %r4, [%r21];
    st.global.u32 [%d1], %r4;
"""
BODIES = {
    "coordinates": """
        mov.u32 %r10, %ctaid.x; mov.u32 %r11, %ctaid.y; mov.u32 %r12, %ctaid.z; mov.u32 %r13, %nctaid.z;
        mad.lo.u32 %r13, %r13, 100, %r7; st.global.v4.u32 [%d1], {%r10, %r11, %r12, %r13};""",
    "one dimension": """
        mov.u32 %r10, %ctaid.x; mov.u32 %r11, %nctaid.x; st.global.v2.u32 [%d1], {%r10, %r11};""",
    "leaves at once": "and.b32 %r4, %r1, 1; setp.eq.u32 %p1, %r4, 0; @%p1 ret; st.global.u32 [%d1], %r3;",
    "leaves out of a loop": """
        add.u32 %r4, %r0, %r1; and.b32 %r4, %r4, 7; mov.u32 %r10, 0;
        AGAIN: st.global.u32 [%d1], %r10; setp.eq.u32 %p1, %r10, %r4; @%p1 exit; add.u32 %r10, %r10, 1; bra AGAIN;""",
    "static shared memory": f".shared .align 4 .b8 s[256]; mov.u32 %r20, s; {_OTHER}",
    "dynamic shared memory": f"mov.u32 %r20, pool; {_OTHER}",
    "a check before a barrier": f"""
        ld.global.u32 %r4, [%d0]; setp.ge.u32 %p1, %r4, 0xfb000000; @%p1 bra BAD;
        mov.u32 %r20, pool; {_OTHER} bra GOOD; BAD: trap; GOOD:""",
    "shared memory that keeps what was there": f"""
        .shared .align 4 .b8 s[256]; mov.u32 %r20, s; {_OTHER} bar.sync 0;
        ld.shared.u32 %r10, [%r20]; bar.sync 0; add.u32 %r10, %r10, %r4; st.shared.u32 [%r21], %r10; bar.sync 0;
        ld.shared.u32 %r4, [%r20]; st.global.u32 [%d1+4], %r4;""",
    "shuffles": """
        ld.global.u32 %r4, [%d0]; and.b32 %r11, %r0, 0xffffffe0; sub.u32 %r11, %r2, %r11; min.u32 %r11, %r11, 32;
        sub.u32 %r11, 32, %r11; mov.u32 %r10, 0xffffffff; shr.u32 %r11, %r10, %r11;
        setp.ge.u32 %p1, %r4, 128; vote.sync.ballot.b32 %r12, %p1, %r11; redux.sync.add.u32 %r13, %r4, %r11;
        shfl.sync.idx.b32 %r10, %r4, 0, 31, %r11; st.global.v4.u32 [%d1], {%r4, %r10, %r12, %r13};""",
    "atomics": """
        ld.global.u32 %r4, [%d0]; and.b32 %r4, %r4, 3; mad.wide.u32 %d2, %r4, 4, %d11;
        red.global.add.u32 [%d2], %r3; atom.global.max.u32 %r5, [%d11+16], %r3;""",
    "atomics in shared memory": """
        .shared .align 4 .b8 s[4]; mov.u32 %r20, s; setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [s], 0; bar.sync 0;
        red.shared.add.u32 [s], %r3; bar.sync 0; ld.shared.u32 %r4, [s]; st.global.u32 [%d1], %r4;""",
    "a loop": """
        mov.u32 %r4, 0; mov.u32 %r5, 0;
        AGAIN: ld.global.u32 %r6, [%d0]; mad.lo.u32 %r4, %r4, 3, %r6; add.u32 %r5, %r5, 1;
        setp.le.u32 %p1, %r5, %r1; @%p1 bra AGAIN; st.global.u32 [%d1], %r4;""",
    "in place": "ld.global.u32 %r4, [%d0]; mad.lo.u32 %r4, %r4, 5, %r3; st.global.u32 [%d0], %r4;",
    "copies": """
        .shared .align 4 .b8 s[256]; mov.u32 %r20, s; mad.lo.u32 %r20, %r0, 4, %r20;
        cp.async.ca.shared.global [%r20], [%d0], 4; cp.async.commit_group; cp.async.wait_group 0;
        ld.shared.u32 %r4, [%r20]; st.global.u32 [%d1], %r4;""",
    "copies for others": """
        .shared .align 4 .b8 s[256]; mov.u32 %r20, s; mad.lo.u32 %r21, %r0, 4, %r20;
        cp.async.ca.shared.global [%r21], [%d0], 4; cp.async.wait_all; bar.sync 0;
        ld.shared.u32 %r4, [%r20]; st.global.u32 [%d1], %r4; bar.sync 0; cp.async.ca.shared.global [%r21], [%d0], 4;""",
}  # fmt: skip
GRIDS = [(1, 1, 1), (6, 1, 1), (3, 2, 1), (1, 4, 1), (2, 1, 3), (2, 3, 2)]
BLOCKS = [(1, 1, 1), (7, 1, 1), (33, 1, 1), (4, 3, 1), (2, 3, 5), (64, 1, 1)]


def by_hand(body: str, grid: Dim, block: Dim) -> tuple[Memory, Step]:
    memory, threads = Memory(), int(np.prod(grid) * np.prod(block))
    source = memory.alloc(bytes(i * 37 % 251 for i in range(4 * threads)))
    args = (u64(source), u64(memory.alloc(16 * threads + 32)))
    text = entry(_START + body, module=".extern .shared .align 4 .b8 pool[];\n")
    return memory, Step(text, "k", grid, block, args, 256 if "pool" in body else 0)


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=30)
@given(st.sampled_from(GRIDS), st.sampled_from(BLOCKS), st.sampled_from(WAYS), SEEDS)
def test_kernels_by_hand(name: str, grid: Dim, block: Dim, way: Way, seed: int) -> None:
    memory, step = by_hand(BODIES[name], grid, block)
    run_original(memory, [step], seed)
    wanted = memory.image()
    memory, step = by_hand(BODIES[name], grid, block)
    assert not step.made.refused
    run(memory, [step], way, seed, races=True)
    assert memory.image()[: len(wanted)] == wanted


ALONE = ["coordinates", "one dimension", "leaves at once", "leaves out of a loop", "a loop", "in place"]


@settings(max_examples=60)
@given(
    st.sampled_from(ALONE),
    st.sampled_from(GRIDS),
    st.sampled_from([(96, 1, 1), (8, 5, 2), (70, 1, 1)]),
    st.sampled_from([32, 64]),
    st.integers(1, 4),
    SEEDS,
)
def test_shards_of_thinner_blocks(name: str, grid: Dim, block: Dim, threads: int, most: int, seed: int) -> None:
    memory, step = by_hand(BODIES[name], grid, block)
    run_original(memory, [step], seed)
    wanted = memory.image()
    memory, step = by_hand(BODIES[name], grid, block)
    run_shards(memory, [step], most, seed, threads)
    assert memory.image()[: len(wanted)] == wanted


@pytest.mark.parametrize("grid", GRIDS)
@settings(max_examples=20)
@given(way=st.sampled_from(WAYS), seed=SEEDS, axes=st.sampled_from(["x", "y", "z", "xz"]))
def test_axes_that_the_body_does_not_read(grid: Dim, way: Way, seed: int, axes: str) -> None:
    number = "mov.u32 %r1, 0;" + "".join(f"mov.u32 %r2, %ctaid.{a}; mad.lo.u32 %r1, %r1, 8, %r2;" for a in axes)
    count = "ld.param.u64 %d11, [p1]; mad.wide.u32 %d1, %r1, 4, %d11; red.global.add.u32 [%d1], 1;"
    memory = Memory()
    args = (u64(memory.alloc(16)), u64(memory.alloc(bytes(4 * 64))))
    step = Step(entry(number + count), "k", grid, (32, 1, 1), args)
    run_original(memory, [step], seed)
    wanted = memory.image()
    memory = Memory()
    args = (u64(memory.alloc(16)), u64(memory.alloc(bytes(4 * 64))))
    run(memory, [Step(entry(number + count), "k", grid, (32, 1, 1), args)], way, seed)
    assert memory.image()[: len(wanted)] == wanted


# Copies and fills.


@settings(max_examples=40)
@given(st.sampled_from(WAYS), SEEDS, st.integers(0, 5000), st.integers(0, 17), st.integers(0, 17), st.integers(1, 3))
def test_copies(way: Way, seed: int, size: int, to: int, source: int, blocks: int) -> None:
    memory, content = Memory(), Random(seed).randbytes(size + 40)
    a, b = memory.alloc(content), memory.alloc(size + 40)
    args = tuple(map(u64, (b + to, a + source, size)))
    run(memory, [Step(MEMORY, COPY, (blocks, 1, 1), (MEMORY_THREADS, 1, 1), args)], way, seed)
    assert memory.read(b, size + 40) == bytes(to) + content[source : source + size] + bytes(40 - to)
    assert memory.read(a, size + 40) == content


@settings(max_examples=40)
@given(
    st.sampled_from(WAYS), SEEDS, st.integers(0, 900), st.sampled_from([1, 2, 4]), st.integers(0, 5), st.integers(1, 3)
)
def test_fills(way: Way, seed: int, count: int, width: int, skipped: int, blocks: int) -> None:
    memory, size, value = Memory(), 4 * count + 40, seed * 0x01020304 & 0xFFFFFFFF
    a = memory.alloc(bytes([99]) * size)
    args = tuple(map(u64, (a + skipped * width, value, width, count)))
    run(memory, [Step(MEMORY, FILL, (blocks, 1, 1), (MEMORY_THREADS, 1, 1), args)], way, seed)
    before, filled = skipped * width, value.to_bytes(8, "little")[:width] * count
    assert memory.read(a, size) == (bytes([99]) * before + filled).ljust(size, bytes([99]))
