"""Thin blocks: what is made thin computes the same bits, and what may not be thin is refused."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from corpus import load
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_machine import Machine, run
from ptx_memory import Memory
from ptx_support import entry, u32, u64

from miriam import Pointer, Program, ProgramError
from miriam.elastic.ptx import parse
from miriam.elastic.ptxas import assemble, find_ptxas
from miriam.elastic.rewrite import rewrite
from miriam.elastic.space import multiples
from miriam.elastic.thin import thin, why_not_thin

# Who a thread is, by three ways out: out of bounds, an exit, and the end. Loops, jumps and uses its stack between.
EVERYTHING = """
    .local .align 8 .b8 stack[16];
    mov.u32 %r1, %tid.x; cvt.u64.u32 %d1, %tid.y; cvt.u32.u64 %r2, %d1; mov.b32 %r3, %tid.z;
    mov.u32 %r4, %ntid.x; mov.u32 %r5, %ntid.y; cvt.u32.u32 %r6, %ntid.z;
    mad.lo.u32 %r7, %r3, %r5, %r2; mad.lo.u32 %r7, %r7, %r4, %r1;
    mov.u32 %r8, %ctaid.z; mov.u32 %r9, %nctaid.y; mov.u32 %r10, %ctaid.y; mad.lo.u32 %r8, %r8, %r9, %r10;
    mov.u32 %r9, %nctaid.x; mov.u32 %r10, %ctaid.x; mad.lo.u32 %r8, %r8, %r9, %r10;
    mul.lo.u32 %r9, %r4, %r5; mul.lo.u32 %r9, %r9, %r6; mad.lo.u32 %r7, %r8, %r9, %r7;
    ld.param.u32 %r10, [p2]; setp.ge.u32 %p1, %r7, %r10; @%p1 ret;
    and.b32 %r11, %r7, 7; setp.ne.u32 %p2, %r11, 3; @!%p2 exit;
    ld.param.u64 %d2, [p1]; mad.wide.u32 %d2, %r7, 4, %d2; ld.global.u32 %r12, [%d2];
    and.b32 %r13, %r12, 3; mov.u32 %r14, 0;
$loop:
    mad.lo.u32 %r14, %r14, 31, %r12; st.local.u32 [stack+4], %r14;
    sub.s32 %r13, %r13, 1; setp.ge.s32 %p3, %r13, 0; @%p3 bra $loop;
    mov.u64 %d3, stack; cvta.local.u64 %d3, %d3; ld.u32 %r15, [%d3+4];
    and.b32 %r16, %r12, 1;
$ways: .branchtargets $even, $odd;
    brx.idx %r16, $ways;
$odd:
    not.b32 %r15, %r15;
    bra.uni $even;
$even:
    shl.b32 %r17, %r2, 8; or.b32 %r17, %r17, %r1; shl.b32 %r18, %r3, 16; or.b32 %r17, %r17, %r18;
    shl.b32 %r19, %r5, 8; or.b32 %r19, %r19, %r4; shl.b32 %r18, %r6, 16; or.b32 %r19, %r19, %r18;
    ld.param.u64 %d4, [p0]; mad.wide.u32 %d4, %r7, 16, %d4;
    st.global.v4.u32 [%d4], {%r17, %r19, %r8, %r15};
"""
BLOCKS = st.tuples(st.integers(1, 80), st.integers(1, 6), st.integers(1, 4)).filter(lambda b: 32 < math.prod(b) <= 160)
GRIDS = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))


def computed(text: str, grid, block, count: int, bound: int, seed: int) -> np.ndarray:
    """What the kernel k makes of ``count`` threads, each a row of four words."""
    memory, random = Memory(), Random(1)
    out = memory.alloc(b"\xaa" * 16 * count)
    x = memory.alloc(random.randbytes(4 * count))
    run(Machine(text, memory).launch("k", grid, block, [u64(out), u64(x), u32(bound)]), seed=seed)
    return memory.array(out, "<u4", 4 * count).reshape(count, 4)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), block=BLOCKS, grid=GRIDS, seed=st.integers(0, 1 << 32))
def test_results_are_equal_to_the_bit(data, block, grid, seed):
    total, count = math.prod(block), math.prod(block) * math.prod(grid)
    extents = ", ".join(map(str, block))
    directives = data.draw(st.sampled_from([f".reqntid {extents}", f".maxntid {extents}\n.minnctapersm 2", ""]))
    bound = data.draw(st.integers(0, count))
    text = entry(EVERYTHING, ("u64", "u64", "u32"), directives=directives)
    wanted = computed(text, grid, block, count, bound, seed)
    threads = data.draw(st.sampled_from(multiples(total)))
    fixed = threads < total and data.draw(st.booleans())
    thinner = thin(
        parse(text), "k", threads if fixed else None, block=None if directives.startswith(".reqntid") else block
    )
    assert np.array_equal(computed(thinner, grid, (threads, 1, 1), count, bound, seed), wanted)
    here = [i for i in range(bound) if i % 8 != 3]
    assert {i for i in range(count) if (wanted[i] != 0xAAAAAAAA).any()} == set(here)
    x, y, _ = block
    for i in here:
        t = i % total
        assert wanted[i, 0] == (t // (x * y)) << 16 | (t // x % y) << 8 | t % x


def test_neighbours_stay_neighbours():
    # Not what a compiler would write: each thread finds in its stack who used it before.
    text = entry(
        """
        .local .align 4 .b8 stack[4];
        mov.u32 %r1, %tid.x; ld.local.u32 %r2, [stack]; st.local.u32 [stack], %r1;
        ld.param.u64 %d1, [p0]; mad.wide.u32 %d1, %r1, 4, %d1; st.global.u32 [%d1], %r2;
        """,
        ("u64",),
        directives=".reqntid 150",
    )
    for threads in (32, 64, 96, 128):
        memory = Memory()
        out = memory.alloc(600)
        run(Machine(thin(parse(text), "k", threads), memory).launch("k", (1, 1, 1), (threads, 1, 1), [u64(out)]))
        assert [*memory.array(out, "<u4", 150)[threads:]] == [*range(150 - threads)]


def test_only_the_entry_changes():
    other = ".visible .entry other() .reqntid 64 { ret; }\n.global .align 4 .b32 table[2] = {1, 2};\n"
    text = entry("", ("u64",), module=other, directives=".maxntid 96\n.minnctapersm 4\n.maxnreg 40")
    module = parse(text)
    made = parse(thin(module, module.entries[1], 64, block=(96, 1, 1)))
    assert [f.name for f in made.entries] == ["other", "k"]
    assert [(d.name, d.rest) for d in made.entries[1].directives] == [(".maxnreg", "40"), (".reqntid", "64")]
    assert [
        d.rest for d in parse(thin(module, "k", block=(96, 1, 1))).entries[1].directives if d.name == ".maxntid"
    ] == ["96"]
    assert made.text[: made.entries[1].start] == text[: module.entries[1].start]
    assert [p.names[0].name for p in made.entries[1].parameters] == ["p0"]


def test_thin_kernels_can_be_made_thinner():
    text = entry(EVERYTHING, ("u64", "u64", "u32"), directives=".reqntid 16, 8")
    twice = thin(parse(thin(parse(text), "k", 96)), "k", 32)
    wanted = computed(text, (2, 1, 1), (16, 8, 1), 256, 250, 0)
    assert np.array_equal(computed(twice, (2, 1, 1), (32, 1, 1), 256, 250, 1), wanted)


PROGRAMS = {f"{kind}/{name}": program for kind in ("cuda", "triton") for name, program in load(kind).items()}


def thinnable(program: Program) -> bool:
    kernel = program.kernels[0]
    module = parse(kernel.ptx)
    return kernel.threads > 32 and not why_not_thin(module, next(e for e in module.entries if e.name == kernel.name))


THINNABLE = [n for n, p in PROGRAMS.items() if thinnable(p) and not n.endswith("-large")]


def test_there_is_something_to_try():
    assert {"cuda/exit_instruction", "cuda/jump_table", "cuda/vectors", "triton/grid-3d"} <= set(THINNABLE)
    assert "cuda/coordinates-large" in [n for n, p in PROGRAMS.items() if thinnable(p)]


@pytest.mark.parametrize("name", THINNABLE)
def test_compiled_kernels_compute_the_same(name):
    program = PROGRAMS[name]
    (kernel,), (launch,) = program.kernels, program.launches
    if not Machine.supports(kernel.ptx, kernel.name):
        pytest.skip(f"the machine lacks an instruction of {kernel.name}")
    grid = tuple(min(extent, 3) for extent in launch.grid)

    def images(text: str, block: tuple[int, int, int], seed: int) -> tuple[bytes, bytes]:
        memory, random = Memory(), Random(name)
        at = [memory.alloc(b.data if b.data is not None else random.randbytes(b.size_bytes)) for b in program.buffers]
        raw = [u64(at[a.buffer] + a.offset_bytes) if isinstance(a, Pointer) else a.raw for a in launch.args]
        machine, before = Machine(text, memory), memory.image()
        run(machine.launch(kernel.name, grid, block, raw), seed=seed)
        return before, memory.image()

    before, after = images(kernel.ptx, kernel.block, 0)
    assert before != after
    module, (*widths, own) = parse(kernel.ptx), multiples(kernel.threads)
    for seed, width in enumerate(widths):
        made = thin(module, kernel.name, width, block=kernel.block)
        assert images(made, (width, 1, 1), seed)[1] == after
    for seed, width in enumerate([32, own]):
        made = thin(module, kernel.name, block=kernel.block)
        assert images(made, (width, 1, 1), seed)[1] == after


@pytest.mark.parametrize("name", THINNABLE)
def test_thin_kernels_are_elastic_and_take_few_registers_more(name):
    (kernel,) = PROGRAMS[name].kernels
    made = thin(parse(kernel.ptx), kernel.name, block=kernel.block)
    elastic = rewrite(made)
    assert not elastic.refused
    if find_ptxas() is None:
        pytest.skip("there is no ptxas")
    target = PROGRAMS[name].target
    before = assemble(kernel.ptx, target).entries[kernel.name]
    after = assemble(made, target).entries[kernel.name]
    assert after.spill_stores == 0
    assert after.registers <= max(32, before.registers + 8)
    assert len(assemble(elastic.ptx, target).entries) == len(elastic.forms[kernel.name])


# Whatever is refused here is the only reason in its kernel.
SHARED = ".shared .align 16 .b8 tile[64];"
REFUSED = {
    "bar.sync 0;": "barrier",
    "barrier.cta.sync.aligned 0;": "barrier",
    "bar.warp.sync -1;": "barrier",
    "mbarrier.init.shared::cta.b64 [%d1], 1;": "barrier",
    "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;": "shfl",
    "vote.sync.any.pred %p1, %p2, -1;": "vote",
    "match.any.sync.b32 %r1, %r2, -1;": "match",
    "redux.sync.add.s32 %r1, %r2, -1;": "redux",
    "activemask.b32 %r1;": "activemask",
    "elect.sync %r1|%p1, -1;": "elect",
    "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%g1, %g2}, {%g3}, {%g4}, {%g1, %g2};": "mma",
    "wgmma.fence.sync.aligned;": "wgmma",
    "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r2];": "ldmatrix",
    "cp.async.wait_all;": "cp",
    "setmaxnreg.dec.sync.aligned.u32 40;": "setmaxnreg",
    "alloca.u64 %d1, 16;": "alloca",
    "nanosleep.u32 100;": "nanosleep",
    "griddepcontrol.wait;": "griddepcontrol",
    "call.uni vprintf;": "calls",
    "frobnicate.u32 %r1;": "frobnicate",
    "ld.shared.u32 %r1, [%r2];": "shared",
    "cvta.to.shared.u64 %d1, %d2;": "shared",
    "isspacep.shared %p1, %d1;": "shared",
    "mapa.u64 %d1, %d2, %r1;": "mapa",
    "mov.u64 %d1, tile;": "shared",
    f"{{ {SHARED.replace('tile', 'own')} mov.u32 %r1, own; }}": "shared",
    "mov.u32 %r1, %laneid;": "%laneid",
    "mov.u32 %r1, %warpid;": "%warpid",
    "mov.u32 %r1, %nwarpid;": "%nwarpid",
    "mov.u32 %r1, %lanemask_lt;": "%lanemask_lt",
    "mov.u64 %d1, %clock64;": "%clock64",
    "mov.u32 %r1, %smid;": "%smid",
    "mov.u32 %r1, %dynamic_smem_size;": "%dynamic_smem_size",
    "mov.u32 %r1, %something_new;": "%something_new",
    "mov.u16 %h1, %tid.x;": "%tid.x",
    "add.u32 %r1, %r2, %tid.x;": "%tid.x",
    "mov.v4.u32 {%r1, %r2, %r3, %r4}, %tid;": "%tid",
    "$l: ld.volatile.global.u32 %r1, [%d1]; setp.eq.u32 %p1, %r1, 0; @%p1 bra $l;": "wait",
    "$l: ld.acquire.cta.global.u32 %r1, [%d1]; setp.eq.u32 %p1, %r1, 0; @%p1 bra $l;": "wait",
    "$l: ld.global.u32 %r1, [%d1]; membar.cta; setp.eq.u32 %p1, %r1, 0; @%p1 bra $l;": "wait",
    "$l: atom.cta.global.add.u32 %r1, [%d1], 0; setp.eq.u32 %p1, %r1, 0; @%p1 bra $l;": "wait",
    "mov.u32 %r2, 1; $l: atom.cas.b32 %r1, [%d1], %r2, 0; setp.ne.u32 %p1, %r1, %r2; @%p1 bra $l;": "wait",
    "$l: atom.exch.b32 %r1, [%d1], 1; @%p1 bra $l; st.global.u32 [%d1], %r1;": "wait",
    "atom.global.add.u32 %r1, [%d1], 1; setp.eq.u32 %p1, %r1, 9; @%p1 st.global.u32 [%d1], 0; @%p1 ret;": "decides",
    "ld.volatile.global.u32 %r1, [%d1]; setp.eq.u32 %p1, %r1, 9; @%p1 bra $l; st.global.u32 [%d1], 0; $l:": "decides",
}  # fmt: skip


@pytest.mark.parametrize("body", REFUSED)
def test_threads_that_may_know_of_each_other_are_refused(body):
    module = parse(entry(body, module=SHARED, directives=".reqntid 64"))
    assert REFUSED[body] in why_not_thin(module, module.entries[0])
    with pytest.raises(ProgramError, match="cannot have a thinner block"):
        thin(module, "k", 32)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "mov.u32 %r1, %tid.x; cvt.u64.u32 %d1, %ntid.z; mov.b32 %r2, %ctaid.y; mov.u32 %r3, %nctaid.z;",
        ".reg .b32 %laneid_of_mine; mov.u32 %laneid_of_mine, 1;",
        "{ .reg .b32 %mine<3>; mov.u32 %mine2, WARP_SZ; }",
        "atom.global.add.u32 %r1, [%d1], 1; st.global.u32 [%d2], %r1;",
        "red.global.add.u32 [%d1], 1; fence.acq_rel.gpu;",
        "$l: atom.global.add.u32 %r1, [%d1], 1; red.relaxed.gpu.global.add.u32 [%d1], 1; @%p1 bra $l;",
        "$l: ld.global.u32 %r1, [%d1]; st.volatile.global.u32 [%d2], %r1; @%p1 bra $l;",
        "ld.volatile.global.u32 %r1, [%d1]; st.global.u32 [%d2], %r1;",
    ],
)
def test_threads_by_themselves_may_be_thin(body):
    text = entry(body, module=SHARED, directives=".reqntid 64")
    module = parse(text)
    assert why_not_thin(module, module.entries[0]) == ""
    assert not rewrite(thin(module, "k", 32)).refused


def test_what_cannot_be_elastic_is_refused():
    module = parse(entry("", directives=".reqntid 64 .reqnctapercluster 2, 1, 1"))
    assert why_not_thin(module, module.entries[0]).endswith("its blocks form clusters")


def test_reasons_name_the_line():
    module = parse(entry("\n\nbar.sync 0;"))
    line = module.text[: module.text.index("bar.sync")].count("\n") + 1
    assert why_not_thin(module, module.entries[0]).startswith(f"line {line}: ")


def test_an_entry_without_code_is_refused():
    module = parse(entry("", module=".entry outside(.param .u64 p);"))
    declared = next(item for item in module.items if getattr(item, "name", "") == "outside")
    assert why_not_thin(module, declared) == "its code is not here"


@pytest.mark.parametrize("threads", [-32, 0, 1, 48, 96, 128])
def test_only_whole_warps_below_the_own_size(threads):
    with pytest.raises(ProgramError, match="take a multiple of 32 below 96"):
        thin(parse(entry("", directives=".reqntid 96")), "k", threads)


def test_the_block_must_be_known_and_the_right_one():
    with pytest.raises(ProgramError, match=r"give them as block=\(x, y, z\)"):
        thin(parse(entry("")), "k", 32)
    with pytest.raises(ProgramError, match=r"give them as block=\(x, y, z\)"):
        thin(parse(entry("", directives=".maxntid 64")), "k", 32)
    with pytest.raises(ProgramError, match=r"has .reqntid 8, 8, 1: it cannot run with \(64, 1, 1\)"):
        thin(parse(entry("", directives=".reqntid 8, 8")), "k", 32, block=(64, 1, 1))
    with pytest.raises(ProgramError, match=r"has .maxntid 64, 1, 1"):
        thin(parse(entry("", directives=".maxntid 64")), "k", 32, block=(65, 1, 1))
    assert ".reqntid 32" in thin(parse(entry("", directives=".maxntid 64")), "k", 32, block=(8, 5, 1))


def test_an_entry_that_is_not_there_is_named():
    with pytest.raises(ProgramError, match="no entry 'other' in PTX: it has k"):
        thin(parse(entry("", directives=".reqntid 64")), "other", 32)
