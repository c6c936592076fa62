"""Matrix instructions, mbarrier objects and bulk copies of the PTX machine."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_machine import Machine, Scheduler, run
from ptx_memory import Deadlock, Fault, Memory, Race
from ptx_races import Races
from ptx_support import entry, u64

SEEDS = st.integers(0, 1 << 32)
ONE = (1, 1, 1)
NUMBERS = np.random.default_rng(7)
POINTERS = "ld.param.u64 %d0, [p0]; ld.param.u64 %d1, [p1]; mov.u32 %r0, %tid.x;"
# All bytes of the source to shared memory, by all threads of the block.
FETCH = """.shared .align 1024 .b8 s[{size}]; mov.u32 %r1, s; mov.u32 %r2, %r0; mov.u32 %r39, %ntid.x;
    FETCH: setp.ge.u32 %p0, %r2, {count}; @%p0 bra FETCHED; mul.wide.u32 %d2, %r2, 16; add.s64 %d2, %d2, %d0;
    ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%d2];
    mad.lo.u32 %r7, %r2, 16, %r1; st.shared.v4.b32 [%r7], {{%r3, %r4, %r5, %r6}}; add.u32 %r2, %r2, %r39;
    bra FETCH; FETCHED: bar.sync 0;"""


def group(body: str, source: np.ndarray, words: int, threads: int = 32, *, seed: int = 0, dtype: str = "<u4",
          races: Races | None = None) -> np.ndarray:  # fmt: skip
    """Run a body on a source that lies in shared memory from %r1; each thread's own words, to which %d1 points."""
    size = len(source.tobytes())
    fetch = FETCH.format(size=size, count=size // 16)
    text = entry(f"{POINTERS} mad.wide.u32 %d1, %r0, {4 * words}, %d1; {fetch} {body}")
    memory = Memory()
    args = [u64(memory.alloc(source)), u64(target := memory.alloc(4 * words * threads))]
    run(Machine(text, memory).launch("k", ONE, (threads, 1, 1), args, races=races), seed=seed)
    return memory.array(target, dtype, 4 * words * threads // np.dtype(dtype).itemsize).reshape(threads, -1)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_a_warp_loads_and_stores_matrices(count: int, trans: str) -> None:
    source = np.arange(8 * 8 * count, dtype="<u2").reshape(count, 8, 8)
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    rows = f"and.b32 %r10, %r0, {8 * count - 1}; mad.lo.u32 %r10, %r10, 16, %r1;"
    keep = "".join(f"st.global.b32 [%d1+{4 * i}], %r{20 + i};" for i in range(count))
    loaded = group(f"{rows} ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r10]; {keep}",
                   source, count, dtype="<u2", races=Races())  # fmt: skip
    held = loaded.reshape(32, count, 2).transpose(1, 0, 2).reshape(count, 8, 8)  # lane / 4 is a row, two to a lane
    assert np.array_equal(held, source.transpose(0, 2, 1) if trans else source)
    lines = "and.b32 %r11, %r0, 7; mad.lo.u32 %r11, %r11, 16, %r1;" if count == 1 else rows.replace("%r10", "%r11")
    back = f"""{rows} ldmatrix.sync.aligned.m8n8.x{count}.shared::cta.b16 {{{registers}}}, [%r10];
        {lines} stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r11], {{{registers}}}; bar.warp.sync -1;
        {"".join(f"ld.shared.b32 %r{30 + i}, [%r12+{128 * i}];" for i in range(count))}
        {"".join(f"st.global.b32 [%d1+{4 * i}], %r{30 + i};" for i in range(count))}"""
    stored = group(
        back.replace("bar.warp.sync -1;", "bar.warp.sync -1; mad.lo.u32 %r12, %r0, 4, %r1;"), source, count, dtype="<u2"
    )
    held = stored.reshape(32, count, 2).transpose(1, 0, 2).reshape(count, 8, 8)
    assert np.array_equal(held, source.transpose(0, 2, 1) if trans else source)


def pack(matrix: np.ndarray, kind: str) -> np.ndarray:
    """Small whole numbers as a type of the matrix unit."""
    if kind == "bf16":
        return (matrix.astype("<f4").view("<u4") >> 16).astype("<u2")
    return matrix.astype({"f16": "<f2", "tf32": "<f4", "s8": "<i1", "u8": "<u1"}[kind])


SUMS = {"f32": "<f4", "f16": "<f2", "s32": "<i4"}


@pytest.mark.parametrize(
    ("k", "to", "kind"),
    [(16, "f32", "f16"), (8, "f32", "f16"), (16, "f16", "f16"), (16, "f32", "bf16"), (8, "f32", "bf16"),
     (8, "f32", "tf32"), (4, "f32", "tf32"), (32, "s32", "s8"), (16, "s32", "u8")],
)  # fmt: skip
def test_a_warp_multiplies_matrices(k: int, to: str, kind: str) -> None:
    """The fragments are those of ldmatrix: rows of 16 bytes, whatever the type."""
    a, b = (NUMBERS.integers(0 if kind == "u8" else -8, 9, shape) for shape in ((16, k), (8, k)))
    left, right = pack(a, kind), pack(b, kind)  # B by columns
    row = left.itemsize * k  # bytes
    words, half = row // 8, row // 16 or 1
    source = np.zeros(1024, np.uint8)
    source[: 16 * row] = left.view(np.uint8).ravel()
    source[16 * row : 24 * row] = right.view(np.uint8).ravel()
    loads = "".join(  # register i of A holds row lane / 4 + 8 * (i % 2) and four bytes of the chunk i / 2; B likewise
        f"mad.lo.u32 %r12, %r10, {row}, %r1; mad.lo.u32 %r12, %r11, 4, %r12; "
        f"ld.shared.b32 %r{20 + i}, [%r12+{8 * row * (i % 2) + 16 * (i // 2)}];"
        for i in range(words)
    ) + "".join(f"ld.shared.b32 %r{30 + i}, [%r12+{16 * row + 16 * i}];" for i in range(half))  # fmt: skip
    sums = 2 if to == "f16" else 4
    begin = "".join(f"mov.b32 %r{34 + i}, 0;" for i in range(sums))
    multiply = f"mma.sync.aligned.m16n8k{k}.row.col.{to}.{kind}.{kind}.{to}"
    factors = f"{{{regs(14, sums)}}}, {{{regs(20, words)}}}, {{{regs(30, half)}}}"
    body = f"""shr.u32 %r10, %r0, 2; and.b32 %r11, %r0, 3; {loads} {begin}
        {multiply} {factors}, {{{regs(34, sums)}}}; {multiply} {factors}, {{{regs(14, sums)}}};
        {"".join(f"st.global.b32 [%d1+{4 * i}], %r{14 + i};" for i in range(sums))}"""
    found = group(body, source, sums, dtype=SUMS[to]).reshape(8, 4, 2, 2)  # row, column / 2, upper or lower, column % 2
    product = found.transpose(2, 0, 1, 3).reshape(16, 8)
    assert np.array_equal(product, 2 * (a @ b.T))


def regs(first: int, count: int) -> str:
    return ", ".join(f"%r{first + i}" for i in range(count))


def canonical(
    rows: int, columns: int, size: int, swizzle: int, transposed: bool
) -> tuple[Callable[[int, int], int], int, int, int]:
    """CUTLASS's canonical layouts (cute/arch/mma_sm90_desc.hpp): row, column -> byte; and LBO, SBO, bytes.

    In units of 16 bytes, T elements: K-major is ((8, n), 2):((w, SBO), 1), or LBO for 1 without a swizzle;
    MN-major is ((w, n), (8, k)):((1, LBO), (w, SBO)), without a swizzle ((1, n), (8, k)):((X, SBO), (1, LBO)).
    """
    per, wide = 16 // size, 1 << swizzle
    major, minor = (rows, columns) if transposed else (columns, rows)  # contiguous, other
    across = -(-minor // 8)
    atoms = -(-major // (per * wide))
    near, far = 8 * wide, 8 * wide * across  # of groups of 8 in the other direction, of atoms

    def at(row: int, column: int) -> int:
        x, y = (row, column) if transposed else (column, row)
        unit, inside = divmod(x, per)
        where = unit % wide + unit // wide * far + y % 8 * wide + y // 8 * near
        return ((where ^ (where >> 3 & wide - 1)) * 16) + inside * size

    lbo, sbo = (near, far) if transposed and not swizzle else (far, near)
    return at, lbo, sbo, atoms * far * 16


@pytest.mark.parametrize("swizzle", [0, 1, 2, 3])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@settings(max_examples=3)
@given(seed=SEEDS)
def test_a_warpgroup_multiplies_matrices(swizzle: int, transposed: tuple[bool, bool], seed: int) -> None:
    n, k = 16, 16
    a, b = (np.random.default_rng(seed).integers(-8, 9, shape) for shape in ((64, k), (n, k)))
    parts, offset, descriptors = [], 0, []
    for matrix, trans in zip((a, b), transposed, strict=True):
        at, lbo, sbo, size = canonical(*matrix.shape, 2, swizzle, trans)
        raw = np.zeros(-(-size // 1024) * 1024, np.uint8)
        for index, x in np.ndenumerate(matrix.astype("<f2")):
            raw[at(*index) :][:2] = np.array([x]).view(np.uint8)
        parts.append(raw)
        descriptors.append((1024 + offset) // 16 | lbo << 16 | sbo << 32 | {0: 0, 1: 3, 2: 2, 3: 1}[swizzle] << 62)
        offset += len(raw)
    sums = n // 2

    def product(scale: str, sign: int) -> str:
        opcode, trans = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.f16.f16", f"{+transposed[0]}, {+transposed[1]}"
        return f"{opcode} {{{regs(20, sums)}}}, %d4, %d5, {scale}, 1, {sign}, {trans};"

    body = f"""mov.u64 %d4, {descriptors[0]}; mov.u64 %d5, {descriptors[1]}; setp.eq.u32 %p3, %r1, %r1;
        wgmma.fence.sync.aligned;
        {product("0", 1)} {product("%p3", 1)} wgmma.commit_group.sync.aligned;
        {product("1", -1)} {product("%p3", 1)} {product("1", 1)}
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1; wgmma.wait_group.sync.aligned 0;
        {"".join(f"st.global.b32 [%d1+{4 * i}], %r{20 + i};" for i in range(sums))}"""
    source = np.concatenate(parts)
    found = group(body, source, sums, 128, seed=seed % 1000, dtype="<f4", races=Races())
    rows = found.reshape(4, 8, 4, n // 8, 2, 2).transpose(0, 4, 1, 3, 2, 5).reshape(64, n)
    assert np.array_equal(rows, 3 * (a @ b.T))
    with pytest.raises(Fault, match="outside"):
        group(body.replace(str(descriptors[1]), str(descriptors[1] | 0x3000)), source, sums, 128)


def test_a_product_that_is_not_waited_for_may_come_late() -> None:
    body = f"""mov.b32 %r20, 0; mov.b32 %r21, 0; mov.b32 %r22, 0; mov.b32 %r23, 0; mov.b32 %r30, 0x3c003c00;
        mov.u64 %d5, {1024 // 16 | 8 << 16 | 8 << 32};
        wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{{regs(20, 4)}}}, {{%r30, %r30, %r30, %r30}}, %d5, 1, 1, 1,
        0; wgmma.commit_group.sync.aligned; WAIT st.global.v4.b32 [%d1], {{{regs(20, 4)}}};
        wgmma.wait_group.sync.aligned 0;"""
    source = np.ones(8 * 16, "<f2")
    wait = "wgmma.wait_group.sync.aligned 0;"
    right = [group(body.replace("WAIT", wait), source, 4, 128, seed=seed, dtype="<f4") for seed in range(5)]
    assert all((x == 16).all() for x in right)
    assert not all(
        (group(body.replace("WAIT", ""), source, 4, 128, seed=seed, dtype="<f4") == 16).all() for seed in range(5)
    )


GATED = """.shared .align 16 .b8 held[256]; .shared .align 8 .b64 gate; {pointers} mad.wide.u32 %d1, %r0, 4, %d1;
    mov.u32 %r1, held; mov.u32 %r2, gate; mad.lo.u32 %r3, %r0, 4, %r1; setp.eq.u32 %p0, %r0, 0; mov.u32 %r4, 0;
    @%p0 mbarrier.init.shared::cta.b64 [%r2], 64;
    bar.sync 0;
    AGAIN:
    @%p0 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r2], 256;
    @%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d0], 256, [%r2];
    mbarrier.arrive.shared::cta.b64 %d4, [%r2];
    {wait}
    ld.shared.u32 %r5, [%r3]; st.global.u32 [%d1], %r5; add.s64 %d0, %d0, 256; add.s64 %d1, %d1, 256;
    bar.sync 0;
    add.u32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, 3; @%p2 bra AGAIN;
    @%p0 mbarrier.inval.shared.b64 [%r2];"""
WAITS = {
    "state": "WAIT: mbarrier.test_wait.shared.b64 %p1, [%r2], %d4; @!%p1 bra WAIT;",
    "parity": """WAIT: and.b32 %r6, %r4, 1; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p1, [%r2], %r6;
    @!%p1 bra WAIT;""",
}


@pytest.mark.parametrize("wait", WAITS)
@settings(max_examples=20)
@given(seed=SEEDS)
def test_bulk_copies_report_to_mbarrier_objects(wait: str, seed: int) -> None:
    source = np.arange(192, dtype="<u4")
    memory = Memory()
    args = [u64(memory.alloc(source)), u64(target := memory.alloc(768))]
    text = entry(GATED.format(pointers=POINTERS, wait=WAITS[wait]))
    run(Machine(text, memory).launch("k", ONE, (64, 1, 1), args, races=Races()), seed=seed)
    assert np.array_equal(memory.array(target, "<u4", 192), source)


def test_a_bulk_copy_races_with_who_does_not_wait() -> None:
    memory = Memory()
    args = [u64(memory.alloc(768)), u64(memory.alloc(768))]
    text = entry(GATED.format(pointers=POINTERS, wait=""))
    for seed in range(5):
        launch = Machine(text, memory).launch("k", ONE, (64, 1, 1), args, races=Races())
        with pytest.raises(Race, match="shared memory"):
            run(launch, seed=seed)


def test_bulk_copies_out_of_shared_memory() -> None:
    source = NUMBERS.integers(0, 1 << 16, 128, np.uint32)
    body = """setp.eq.u32 %p1, %r0, 0; @%p1 cp.async.bulk.global.shared::cta.bulk_group [%d1], [%r1], 512;
        cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;"""
    assert np.array_equal(group(body, source, 4).ravel(), source)


def test_mbarrier_faults() -> None:
    init = "mov.u32 %r2, s; mbarrier.init.shared.b64 [%r2], 2; bar.sync 0;"
    for body, what in (
        ("mov.u32 %r2, s; mbarrier.init.shared.b64 [%r2], 0;", "0 arrivals"),
        (f"{init} mbarrier.inval.shared.b64 [%r2]; mbarrier.arrive.shared.b64 _, [%r2];", "no mbarrier object"),
        (f"{init} mbarrier.arrive.shared.b64 _, [%r2], 3;", "3 arrive"),
    ):
        text = entry(f".shared .align 8 .b64 s; {body}", ())
        with pytest.raises(Fault, match=what):
            run(Machine(text, Memory()).launch("k", ONE, ONE, []))
    dropped = f""".shared .align 8 .b64 s; {init} mbarrier.arrive_drop.shared.b64 _, [%r2];
        mbarrier.arrive.shared.b64 %d4, [%r2]; mbarrier.arrive.shared.b64 %d4, [%r2];
        mbarrier.test_wait.shared.b64 %p1, [%r2], %d4; @!%p1 trap;"""
    run(Machine(entry(dropped, ()), Memory()).launch("k", ONE, ONE, []))


def test_a_part_of_a_warp_cannot_multiply() -> None:
    body = f"""setp.lt.u32 %p1, %r0, 16;
        @%p1 mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32
        {{{regs(20, 4)}}}, {{%r0, %r0}}, {{%r0}}, {{{regs(0, 4)}}};"""
    scheduler = Scheduler(Random(0))
    memory = Memory()
    text = entry(f"{POINTERS} {body} bar.sync 0;")
    scheduler.add(Machine(text, memory).launch("k", ONE, (32, 1, 1), [u64(0), u64(0)]))
    with pytest.raises(Deadlock, match="16 threads"):
        scheduler.run()
