"""The PTX machine runs whole kernels, in any order, and notices what a device may not forgive."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_compile import missing
from ptx_machine import Machine, run
from ptx_memory import Fault, Memory, Race, Unsupported
from ptx_races import Races
from ptx_support import ONE, OWN, POINTERS, each, entry, u32, u64

SEEDS = st.integers(0, 1 << 32)
SLOTS = st.lists(st.integers(0, 7), min_size=1, max_size=4)
# Whole kernels: the same result in every order.

ADD = entry(
    f"""{OWN} ld.param.u64 %d0, [p0]; ld.param.u64 %d1, [p1]; ld.param.u64 %d2, [p2]; ld.param.u32 %r4, [p3];
    setp.ge.u32 %p0, %r3, %r4;
    @%p0 bra END;
    mul.wide.u32 %d3, %r3, 4; add.s64 %d0, %d0, %d3; add.s64 %d1, %d1, %d3; add.s64 %d2, %d2, %d3;
    ld.global.f32 %f0, [%d0]; ld.global.f32 %f1, [%d1]; add.rn.f32 %f2, %f0, %f1; st.global.f32 [%d2], %f2;
    END:""",
    ("u64", "u64", "u64", "u32"),
)


@given(SEEDS, SLOTS, st.integers(1, 100))
def test_vector_add(seed: int, slots: list[int], count: int) -> None:
    memory, numbers = Memory(), np.random.default_rng(seed)
    x, y = (numbers.standard_normal(count, np.float32) for _ in range(2))
    pointers = [memory.alloc(x), memory.alloc(y), memory.alloc(4 * count)]
    launch = Machine(ADD, memory).launch(
        "k", (4, 1, 1), (32, 1, 1), [*map(u64, pointers), u32(count)], slots=slots, races=Races()
    )
    run(launch, seed=seed)
    assert memory.array(pointers[2], "<f4", count).tolist() == (x + y).tolist()
    assert launch.done


TILE = 4
MATMUL = entry(
    f""".shared .align 4 .b8 a[{4 * TILE * TILE}]; .shared .align 4 .b8 b[{4 * TILE * TILE}];
    ld.param.u64 %d0, [p0]; ld.param.u64 %d1, [p1]; ld.param.u64 %d2, [p2]; ld.param.u32 %r9, [p3];
    mov.u32 %r0, %tid.x; mov.u32 %r1, %tid.y; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ctaid.y;
    mad.lo.u32 %r4, %r2, {TILE}, %r0; mad.lo.u32 %r5, %r3, {TILE}, %r1; // column, row
    mov.u32 %r20, a; mov.u32 %r21, b;
    mad.lo.u32 %r6, %r1, {TILE}, %r0; mad.lo.u32 %r7, %r6, 4, %r20; mad.lo.u32 %r8, %r6, 4, %r21;
    mov.f32 %f0, 0f00000000; mov.u32 %r10, 0;
    TILES:
    add.u32 %r11, %r10, %r0; mad.lo.u32 %r11, %r5, %r9, %r11; mad.wide.u32 %d3, %r11, 4, %d0; ld.global.f32 %f1, [%d3];
    add.u32 %r12, %r10, %r1; mad.lo.u32 %r12, %r12, %r9, %r4; mad.wide.u32 %d4, %r12, 4, %d1; ld.global.f32 %f2, [%d4];
    st.shared.f32 [%r7], %f1; st.shared.f32 [%r8], %f2;
    bar.sync 0;
    mov.u32 %r13, 0;
    mad.lo.u32 %r14, %r1, {4 * TILE}, %r20; mad.lo.u32 %r15, %r0, 4, %r21;
    INNER:
    ld.shared.f32 %f3, [%r14]; ld.shared.f32 %f4, [%r15]; mul.f32 %f5, %f3, %f4; add.f32 %f0, %f0, %f5;
    add.u32 %r14, %r14, 4; add.u32 %r15, %r15, {4 * TILE}; add.u32 %r13, %r13, 1;
    setp.lt.u32 %p0, %r13, {TILE}; @%p0 bra INNER;
    bar.sync 0;
    add.u32 %r10, %r10, {TILE}; setp.lt.u32 %p1, %r10, %r9; @%p1 bra.uni TILES;
    mad.lo.u32 %r16, %r5, %r9, %r4; mad.wide.u32 %d5, %r16, 4, %d2; st.global.f32 [%d5], %f0;""",
    ("u64", "u64", "u64", "u32"),
)


def matmul(text: str, seed: int, races: Races | None = None) -> tuple[np.ndarray, np.ndarray]:
    n, memory, numbers = 2 * TILE, Memory(), np.random.default_rng(0)
    a, b = (numbers.standard_normal((n, n), np.float32) for _ in range(2))
    pointers = [memory.alloc(a), memory.alloc(b), memory.alloc(4 * n * n)]
    run(
        Machine(text, memory).launch("k", (2, 2, 1), (TILE, TILE, 1), [*map(u64, pointers), u32(n)], races=races),
        seed=seed,
    )
    expected = np.zeros((n, n), np.float32)
    for k in range(n):
        expected += a[:, k : k + 1] * b[k : k + 1]
    return memory.array(pointers[2], "<f4", n * n).reshape(n, n), expected


@settings(max_examples=20)
@given(SEEDS)
def test_tiled_product(seed: int) -> None:
    actual, expected = matmul(MATMUL, seed, Races())
    assert np.array_equal(actual, expected)


def test_a_forgotten_barrier_shows() -> None:
    first, second, _ = MATMUL.split("bar.sync 0;")
    broken = MATMUL[: len(first) + len("bar.sync 0;" + second)] + MATMUL[len(first + second) + 2 * len("bar.sync 0;") :]
    assert not all(np.array_equal(*matmul(broken, seed)) for seed in range(10))
    with pytest.raises(Race, match="shared memory"):
        matmul(broken, 0, Races())


HISTOGRAM = entry(
    f""".shared .align 4 .u32 bins[16];
    {OWN} {POINTERS} mov.u32 %r4, bins;
    setp.ge.u32 %p0, %r0, 16; mad.lo.u32 %r5, %r0, 4, %r4; @!%p0 st.shared.u32 [%r5], 0;
    bar.sync 0;
    mad.wide.u32 %d2, %r3, 4, %d0; ld.global.u32 %r6, [%d2]; and.b32 %r6, %r6, 15; mad.lo.u32 %r7, %r6, 4, %r4;
    atom.shared.add.u32 %r8, [%r7], 1;
    bar.sync 0;
    @%p0 ret;
    ld.shared.u32 %r9, [%r5]; mad.wide.u32 %d3, %r0, 4, %d1; red.global.add.u32 [%d3], %r9;"""
)


@settings(max_examples=30)
@given(SEEDS, SLOTS)
def test_histogram(seed: int, slots: list[int]) -> None:
    memory, data = Memory(), np.random.default_rng(seed).integers(0, 1 << 31, 48 * 3, np.uint32)
    pointers = [memory.alloc(data), memory.alloc(64)]
    run(
        Machine(HISTOGRAM, memory).launch(
            "k", (3, 1, 1), (48, 1, 1), [*map(u64, pointers)], slots=slots, races=Races()
        ),
        seed=seed,
    )
    assert memory.array(pointers[1], "<u4", 16).tolist() == np.bincount(data & 15, minlength=16).tolist()


REDUCTION = "".join(
    f"shfl.sync.bfly.b32 %r5, %r4, {step}, 31, 0xffffffff; add.u32 %r4, %r4, %r5;" for step in (16, 8, 4, 2, 1)
)


@given(SEEDS)
def test_reduction_by_shuffles(seed: int) -> None:
    body = f"mul.lo.u32 %r4, %r3, %r3; {REDUCTION} st.global.u32 [%d1], %r4;"
    warps = np.arange(96, dtype=np.uint32).reshape(3, 32)
    assert each(body, 96, seed=seed).tolist() == np.repeat((warps**2).sum(1), 32).tolist()


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 4)] * 3), SEEDS)
def test_three_dimensions(grid: tuple[int, int, int], block: tuple[int, int, int], seed: int) -> None:
    specials = [f"%{name}.{axis}" for name in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"]
    names = "".join(f"mov.u32 %r{i}, {name};" for i, name in enumerate(specials))
    text = entry(f"""{names} ld.param.u64 %d0, [p0];
        mad.lo.u32 %r20, %r5, %r10, %r4; mad.lo.u32 %r20, %r20, %r9, %r3; // the block's index
        mad.lo.u32 %r20, %r20, %r8, %r2; mad.lo.u32 %r20, %r20, %r7, %r1; mad.lo.u32 %r20, %r20, %r6, %r0;
        mad.wide.u32 %d1, %r20, 24, %d0;
        st.global.v2.u32 [%d1], {{%r0, %r1}}; st.global.v2.u32 [%d1+8], {{%r2, %r3}};
        st.global.v2.u32 [%d1+16], {{%r4, %r5}};""",
        ("u64",))  # fmt: skip
    memory, count = Memory(), int(np.prod(grid + block))
    target = memory.alloc(24 * count)
    run(Machine(text, memory).launch("k", grid, block, [u64(target)], races=Races()), seed=seed)
    expected = [(*t[::-1], *b[::-1]) for b in np.ndindex(*grid[::-1]) for t in np.ndindex(*block[::-1])]
    assert [tuple(x) for x in memory.array(target, "<u4", 6 * count).reshape(-1, 6)] == expected


def test_order_depends_on_the_seed_alone() -> None:
    body = "atom.global.add.u32 %r4, [%d0], 1; st.global.u32 [%d1], %r4;"
    orders = [tuple(each(body, 32, 3, seed=seed)) for seed in range(8)]
    assert all(sorted(order) == list(range(96)) for order in orders)
    assert len(set(orders)) == 8
    assert tuple(each(body, 32, 3, seed=5)) == orders[5]
    in_turn = each(body, 32, 3, slots=[3])
    assert [x // 32 for x in in_turn] == [0] * 32 + [1] * 32 + [2] * 32


# Control.


def test_indexed_branch_and_loop() -> None:
    body = """
    mov.u32 %r4, 0; mov.u32 %r6, 0;
    NEXT: and.b32 %r5, %r0, 3;
    brx.idx %r5, TABLE;
    TABLE: .branchtargets A, B, C, C;
    A: add.u32 %r4, %r4, 1; bra JOIN;
    B: add.u32 %r4, %r4, 10; bra.uni JOIN;
    C: add.u32 %r4, %r4, 100;
    JOIN: add.u32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, 3; @%p1 bra NEXT;
    st.global.u32 [%d1], %r4;"""
    assert each(body, 8).tolist() == [3, 30, 300, 300] * 2


def test_scopes_hide_names() -> None:
    body = """
    mov.u32 %r4, 1;
    { .reg .b32 %r<5>; .reg .b32 t; mov.u32 %r4, 7; mov.u32 t, %r4; bra L; mov.u32 t, 9; L: st.global.u32 [%d1], t; }
    { .reg .b32 t; mov.u32 t, %r4; L: st.global.u32 [%d1+4], t; }"""
    assert each(body, 2, words=2).tolist() == [[7, 1]] * 2


FUNCTIONS = """
.func (.param .b32 out) twice (.param .b32 x) {
    .reg .b32 %r<3>; .reg .pred %p;
    ld.param.b32 %r0, [x]; setp.eq.u32 %p, %r0, 3; mov.u32 %r1, 33; st.param.b32 [out], %r1; @%p ret;
    add.u32 %r1, %r0, %r0; st.param.b32 [out+0], %r1; ret;
}
.func (.reg .b32 %z) square (.reg .b32 %a, .reg .b32 %b) { mul.lo.u32 %z, %a, %b; ret; }
.func store (.reg .b64 %to, .reg .b32 %what) { st.global.u32 [%to], %what; bar.sync 0; }
.func (.reg .b32 %z) forever (.reg .b32 %a) { call (%z), forever, (%a); ret; }
"""


def test_functions() -> None:
    body = """
    { .param .b32 a; .param .b32 b; st.param.b32 [a], %r0; call.uni (b), twice, (a); ld.param.b32 %r4, [b]; }
    setp.gt.u32 %p0, %r0, 1;
    @%p0 call (%r4), square, (%r4, 5);
    call store, (%d1, %r4);
    @%p0 bra TWO;
    bar.sync 0;
    TWO: exit;"""
    with pytest.raises(Fault, match="divergent"):
        each(body.replace("@%p0 bra TWO", "@%p0 call store, (%d1, %r4)"), 4, module=FUNCTIONS)
    assert each(body, 4, module=FUNCTIONS).tolist() == [0, 2, 20, 165]
    with pytest.raises(Unsupported, match="forever"):
        each("call (%r4), forever, (%r4);", module=FUNCTIONS)


def test_special_registers() -> None:
    names = ["%laneid", "%warpid", "%smid", "%nwarpid", "%dynamic_smem_size", "%lanemask_lt", "%lanemask_ge", "%gridid"]
    body = "".join(f"mov.u32 %r{10 + i}, {x}; st.global.u32 [%d1+{4 * i}], %r{10 + i};" for i, x in enumerate(names))
    rows = each(body, 40, 2, words=8, slots=(5, 9), dynamic=96)
    for i, row in enumerate(rows.tolist()):
        lane = i % 40 % 32
        assert row == [lane, i % 40 // 32, (5, 9)[i // 40], 2, 96, (1 << lane) - 1, (1 << 32) - (1 << lane), 0]
    ticks = "mov.u64 %d5, %clock64; mov.u64 %d6, %clock64; sub.s64 %d7, %d6, %d5; st.global.u64 [%d1], %d7;"
    clocks = each(ticks, words=2)
    assert (clocks[:, 0] > 0).all()


# Memory.


def test_widths_and_signs() -> None:
    source = bytes(range(0x80, 0xA0))
    body = """
    ld.global.s8 %r4, [%d0]; ld.global.u8 %r5, [%d0+1]; ld.global.s16 %r6, [%d0+2]; ld.global.b16 %h0, [%d0+4];
    ld.global.v4.b32 {%r10, %r11, _, %r13}, [%d0+16]; ld.global.v2.u16 {%h1, %h2}, [%d0+8]; ld.global.b64 %d5, [%d0+24];
    mov.b32 %r7, {%h1, %h2}; cvt.u32.u16 %r8, %h0; mov.b64 {%r14, %r15}, %d5;
    st.global.v4.b32 [%d1], {%r4, %r5, %r6, %r8}; st.global.v4.b32 [%d1+16], {%r7, %r10, %r11, %r13};
    st.global.v2.b32 [%d1+32], {%r14, %r15}; st.global.u8 [%d1+40], %r6; st.global.u8 [%d1+41], 1;
    st.global.u16 [%d1+42], 0;
    st.global.b32 [%d1+44], 0f3F800000;"""
    (row,) = each(body, 1, words=12, source=source).reshape(1, 12).tolist()
    word = [int(x) for x in np.frombuffer(source, "<u4")]
    assert row == [
        0xFFFFFF80,
        0x81,
        0xFFFF8382,
        0x8584,
        word[2],
        word[4],
        word[5],
        word[7],
        word[6],
        word[7],
        0x0182,
        0x3F800000,
    ]


VARIABLES = """
.const .align 4 .u32 table[4] = {3, 1, 0x10, 7};
.visible .global .align 8 .b8 counter[8];
.global .f32 half = 0.5;
.shared .align 8 .b8 pool[16];
.extern .shared .align 16 .b8 rest[];
"""


def test_spaces() -> None:
    body = """.local .align 4 .b8 own[16];
    and.b32 %r4, %r0, 3; mul.wide.u32 %d4, %r4, 4; mov.u64 %d5, table; add.s64 %d5, %d5, %d4;
    ld.const.u32 %r5, [%d5]; cvta.const.u64 %d6, %d5; ld.u32 %r6, [%d6]; add.u32 %r5, %r5, %r6;
    mov.u64 %d7, own; add.s64 %d7, %d7, %d4; st.local.u32 [%d7], %r5; cvta.local.u64 %d8, %d7; ld.u32 %r6, [%d8];
    setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [pool+4], %r6; bar.sync 0;
    mov.u64 %d9, pool; cvta.shared.u64 %d10, %d9; ld.u32 %r7, [%d10+4]; cvta.to.shared.u64 %d11, %d10;
    ld.shared.u32 %r8, [%d11+4];
    add.u32 %r6, %r6, %r7; add.u32 %r6, %r6, %r8; ld.global.f32 %f0, [half]; cvt.rzi.u32.f32 %r9, %f0;
    mov.u64 %d12, rest; cvta.shared.u64 %d13, %d12; add.s64 %d13, %d13, %d4; st.u32 [%d13], %r6;
    ld.shared.u32 %r6, [rest];
    isspacep.shared %p1, %d13; isspacep.global %p2, %d13; isspacep.local %p3, %d8; isspacep.const %p4, %d6;
    isspacep.global %p5, %d1;
    mov.u64 %d16, 0; isspacep.shared %p6, %d16; @%p6 trap; isspacep.global %p6, %d16; @%p6 trap;
    selp.u32 %r10, 1, 0, %p1; selp.u32 %r11, 2, 0, %p2; selp.u32 %r12, 4, 0, %p3; selp.u32 %r13, 8, 0, %p4;
    selp.u32 %r14, 16, 0, %p5;
    add.u32 %r10, %r10, %r11; add.u32 %r10, %r10, %r12; add.u32 %r10, %r10, %r13; add.u32 %r10, %r10, %r14;
    ld.u32 %r15, [%d13];
    st.v2.u32 [%d1], {%r15, %r10}; mov.u64 %d14, counter; cvta.global.u64 %d14, %d14;
    red.relaxed.gpu.global.add.u64 [%d14], 1;"""
    rows = each(body, 4, module=VARIABLES, words=2, dynamic=16)
    assert rows.tolist() == [[2 * x + 2 * 6, 1 + 4 + 8 + 16] for x in (3, 1, 16, 7)]


def test_dynamic_shared_memory_follows_the_static() -> None:
    body = """.shared .align 4 .b8 s[20]; mov.u32 %r4, rest; mov.u32 %r5, s; sub.u32 %r6, %r4, %r5;
    st.global.u32 [%d1], %r6; st.shared.u32 [%r4+12], 1;"""
    assert each(body, module=VARIABLES, dynamic=16).tolist() == [32] * 32
    with pytest.raises(Fault, match=r"thread \d+, line \d+: st\.shared.*outside"):
        each(body, module=VARIABLES, dynamic=12)


def test_shared_memory_begins_with_anything() -> None:
    body = ".shared .align 4 .b8 s[64]; mov.u32 %r4, s; ld.shared.u32 %r5, [%r4]; st.global.u32 [%d1], %r5;"
    assert len({each(body, 1, 4, seed=seed)[i] for seed in range(4) for i in range(4)}) == 16


def test_symbols_have_addresses() -> None:
    memory = Memory()
    machine = Machine(
        entry("ld.global.u32 %r0, [counter]; add.u32 %r0, %r0, 5; st.global.u32 [counter], %r0;", (), module=VARIABLES),
        memory,
    )
    memory.write(machine.address("counter"), u32(37))
    run(machine.launch("k", ONE, ONE, []))
    assert memory.array(machine.address("counter"), "<u4", 1) == [42]


def test_parameters_keep_their_alignment() -> None:
    text = entry("""ld.param.u8 %h0, [p0]; ld.param.u64 %d0, [p1]; ld.param.v2.u32 {%r1, %r2}, [p2+8];
    mov.b64 %d2, p2; cvta.param.u64 %d3, %d2; ld.u32 %r3, [%d3];
        cvt.u32.u8 %r0, %h0;
        st.global.v4.u32 [%d0], {%r0, %r1, %r2, %r3};""")  # fmt: skip
    text = text.replace(".param .u64 p0, .param .u64 p1", ".param .u8 p0, .param .u64 p1, .param .align 8 .b8 p2[16]")
    memory = Memory()
    target, machine = memory.alloc(16), Machine(text, memory)
    run(machine.launch("k", ONE, ONE, [b"\x07", u64(target), u32(1) + u32(2) + u32(3) + u32(4)]))
    assert memory.array(target, "<u4", 4).tolist() == [7, 3, 4, 1]
    with pytest.raises(Fault, match=r"\[1, 8, 16\] bytes"):
        machine.launch("k", ONE, ONE, [b"\x07", u64(target)])


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("ld.global.u32 %r4, [%d0+8];", "in no allocation"),
        ("ld.global.u32 %r4, [%d0-4];", "in no allocation"),
        ("st.global.u32 [%d0+2], 1;", "not aligned"),
        ("ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%d0];", "in no allocation"),
        ("st.shared.u32 [%r0], 1;", "shared"),
        ("mov.u64 %d5, 0; ld.u32 %r4, [%d5];", "no space"),
        ("mov.u64 %d5, 8; atom.add.u32 %r4, [%d5], 1;", "no space"),
        ("ld.shared.u32 %r4, [%r0];", "outside"),
        ("mov.u64 %d5, table; st.global.u32 [%d5], 1;", "constant"),
        ("@%p7 bra L; L:", "never had a value"),
        ("@!%p7 mov.u32 %r4, 0;", "never had a value"),
        ("setp.eq.u32 %p1, %r5, 1; @%p1 bra L; L:", "never had a value"),
        ("setp.leu.f32 %p2, %f1, %f2; vote.sync.any.pred %p1, %p2, 1;", "never had a value"),
        ("st.global.u32 [%d1], %r7;", "never had a value"),
        ("add.s64 %d5, %d6, 8; ld.global.u32 %r4, [%d5];", "never had a value"),
        ("mul.wide.u32 %d5, %r7, 4; st.shared.u32 [%d5], 0;", "never had a value"),
        ("min.f32 %f3, %f1, %f2; st.global.f32 [%d1], %f3;", "never had a value"),
        ("bfe.s32 %r4, %r5, 0, 3; cvt.rn.f16.s32 %h1, %r4; st.global.b16 [%d1], %h1;", "never had a value"),
        ("selp.u32 %r4, 1, 1, %p7; atom.global.add.u32 %r5, [%d1], %r4;", "never had a value"),
        ("brx.idx %r2, T; T: .branchtargets L; L:", "IndexError"),
        ("trap;", "trap"),
        ("bar.sync 0, 33;", "33 threads"),
        ("shfl.sync.idx.b32 %r4, %r0, 0, 31, 2;", "does not belong"),
    ],
)
def test_faults(body: str, what: str) -> None:
    with pytest.raises(Fault, match=what):
        each(body, 1, module=VARIABLES)


def test_faults_name_the_place() -> None:
    with pytest.raises(Fault, match=r"k, block 2, thread 3, line 10: ld\.global\.u32 %r5, \[%d0 \+ 8\];: 4 bytes"):
        each(
            "setp.eq.u32 %p1, %r3, 131; @%p1\n add.s64 %d0, %d0, 1048576;\n @%p1 bra L; bra M;\n"
            "L: ld.global.u32 %r5, [%d0 + 8]; M:",
            64,
            3,
        )


def test_what_is_dropped_may_be_undefined() -> None:
    """Lanes that loaded nothing take part in a reduction, as compilers let them."""
    body = """setp.lt.u32 %p1, %r0, 4; @%p1 mov.u32 %r4, %r0;
    shfl.sync.bfly.b32 %r5, %r4, 2, 31, -1; add.u32 %r4, %r4, %r5; shfl.sync.bfly.b32 %r5, %r4, 1, 31, -1;
    max.s32 %r5, %r5, %r4; cvt.rn.f32.s32 %f0, %r5; fma.rn.f32 %f1, %f0, %f0, %f0; setp.gt.f32 %p2, %f1, %f0;
    selp.u32 %r6, 1, 0, %p2; setp.ne.and.u32 %p3, %r6, 9, %p1; and.pred %p4, %p2, !%p1; not.pred %p5, %p1;
    or.pred %p6, %p2, %p5;
    @%p3 st.global.u32 [%d1], %r5; @%p6 st.global.u32 [%d1], 5;"""
    assert each(body.partition("@%p6")[0]).tolist() == [4] * 4 + [0] * 28
    assert each(body).tolist() == [5] * 32
    with pytest.raises(Fault, match="never had"):
        each(body.replace("@%p6", "@!%p2"))


def test_random_registers_instead_of_poison() -> None:
    text = entry("ld.param.u64 %d0, [p0]; st.global.u32 [%d0], %r5;", ("u64",))
    seen = set()
    for seed in range(5):
        memory = Memory()
        target = memory.alloc(4)
        run(Machine(text, memory, poison=False).launch("k", ONE, ONE, [u64(target)]), seed=seed)
        seen.add(memory.read(target, 4))
    assert len(seen) == 5


def test_launch_bounds() -> None:
    memory = Memory()
    machine = Machine(entry("", (), directives=".reqntid 64"), memory)
    machine.launch("k", ONE, (64, 1, 1), [])
    for grid, block in (
        ((1, 1, 1), (32, 1, 1)),
        ((1, 1, 1), (32, 2, 1)),
        ((1, 65536, 1), (64, 1, 1)),
        ((0, 1, 1), (64, 1, 1)),
    ):
        with pytest.raises(Fault):
            machine.launch("k", grid, block, [])
    Machine(entry("", (), directives=".maxntid 64"), memory).launch("k", ONE, (8, 2, 2), [])
    with pytest.raises(Fault, match="128"):
        Machine(entry("", (), directives=".maxntid 64"), memory).launch("k", ONE, (128, 1, 1), [])
    with pytest.raises(Fault, match="1025"):
        Machine(entry("", ()), memory).launch("k", ONE, (1025, 1, 1), [])


@pytest.mark.parametrize(
    "body",
    [
        "tcgen05.fence::before_thread_sync;", "cp.async.bulk.prefetch.L2.global [%d0], 16;", "mov.u64 %d3, %pm0;",
        "tex.1d.v4.f32.s32 {%f0, %f1, %f2, %f3}, [p0, {%r1}];", "call vprintf, (%r1);", "barrier.cluster.arrive;",
        "mbarrier.pending_count.b64 %r1, %d1;", "add.cc.u32 %r1, %r1, %r1;", "ld.global.v4.b128 %d1, [%d0];",
        "vote.ballot.b32 %r1, %p1;", "cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f2;", "mul24.lo.u32 %r1, %r1, %r1;",
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%r1, %r2, %r3, %r4}, %d1, %d1, 1, 1, 1;",
    ],
)  # fmt: skip
def test_what_is_not_supported_is_told_before_it_runs(body: str) -> None:
    text = entry(f"bra END; {body}\nEND:")
    name = body.split(maxsplit=1)[0].rstrip(";")
    assert not Machine.supports(text, "k")
    assert any(name in what and "line" in what for what in missing(text, "k"))
    with pytest.raises(Unsupported, match=name):
        Machine(text, Memory()).launch("k", ONE, ONE, [u64(0), u64(0)])
    assert Machine.supports(ADD, "k")
    assert not missing(MATMUL, "k")
