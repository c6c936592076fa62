"""What threads of the PTX machine do together: barriers, warps, atomics, copies, messages, launches side by side."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_machine import Launch, Machine, Scheduler, run
from ptx_memory import Deadlock, Fault, Hang, Memory, Race
from ptx_races import Races
from ptx_support import ONE, OWN, POINTERS, each, entry, u32, u64

SEEDS = st.integers(0, 1 << 32)
SLOTS = st.lists(st.integers(0, 7), min_size=1, max_size=4)


# Barriers.


@given(SEEDS)
def test_threads_that_left_are_not_waited_for(seed: int) -> None:
    body = """.shared .align 4 .b8 s[4]; setp.gt.u32 %p1, %r0, 40; @%p1 exit;
    setp.eq.u32 %p2, %r0, 40; @%p2 st.shared.u32 [s], 7; bar.sync 0; ld.shared.u32 %r4, [s];
    st.global.u32 [%d1], %r4;"""
    assert each(body, 64, seed=seed, races=Races()).tolist() == [7] * 41 + [0] * 23


@given(SEEDS)
def test_producers_and_consumers(seed: int) -> None:
    """Warp 0 fills, warp 1 takes: two named barriers of 64, one arrives and one waits; 48 threads make two warps."""
    body = """.shared .align 4 .b8 s[128]; mov.u32 %r20, s; and.b32 %r4, %r0, 15; mad.lo.u32 %r20, %r4, 4, %r20;
    mov.u32 %r5, 0; mov.u32 %r7, 0;
    setp.ge.u32 %p1, %r0, 32; setp.ge.u32 %p2, %r0, 16;
    @%p1 bra TAKE;
    FILL: barrier.sync 2, 64; @!%p2 st.shared.u32 [%r20], %r5; bar.arrive 1, 64;
    add.u32 %r5, %r5, 1; setp.lt.u32 %p3, %r5, 4; @%p3 bra FILL; bra END;
    TAKE: bar.cta.arrive 2, 64; bar.sync 1, 64; ld.shared.u32 %r6, [%r20]; add.u32 %r7, %r7, %r6;
    add.u32 %r5, %r5, 1; setp.lt.u32 %p3, %r5, 4; @%p3 bra TAKE;
    END: st.global.u32 [%d1], %r7;"""
    assert each(body, 48, seed=seed, races=Races()).tolist() == [0] * 32 + [6] * 16


@given(SEEDS)
def test_barriers_that_reduce(seed: int) -> None:
    body = """and.b32 %r4, %r0, 3; setp.eq.u32 %p1, %r4, 0; setp.lt.u32 %p2, %r0, 64;
    bar.red.popc.u32 %r5, 1, %p1; barrier.cta.red.and.aligned.pred %p3, 1, 64, %p2; bar.red.or.pred %p4, 0, !%p2;
    selp.u32 %r6, 1, 0, %p3; selp.u32 %r7, 1, 0, %p4; st.global.v2.u32 [%d1], {%r5, %r6}; st.global.u32 [%d1+8], %r7;"""
    assert each(body, 64, words=4, seed=seed)[:, :3].tolist() == [[16, 1, 0]] * 64


def test_deadlock() -> None:
    for body, what in (
        ("setp.eq.u32 %p1, %r0, 5; @%p1 bar.sync 1; bar.sync 0;", "divergent|every thread"),
        ("setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1; @!%p1 bar.sync 0;", "block 0 waits.*32 threads waiting"),
        ("setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 0, 64;", "every thread"),
        ("setp.eq.u32 %p1, %r0, 5; @%p1 elect.sync %r4|%p2, -1; @!%p1 elect.sync %r4|%p2, -1;", "every thread"),
    ):  # fmt: skip
        with pytest.raises((Deadlock, Fault), match=what):
            each(body, 64)


def test_hang() -> None:
    with pytest.raises(Hang, match=r"1000000 instructions.*ld\.volatile"):
        each("L: ld.volatile.global.u32 %r4, [%d0]; setp.eq.u32 %p1, %r4, 0; @%p1 bra L;")
    with pytest.raises(Hang):
        each("L: bra L;", 1)


# Warps.


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@settings(max_examples=40)
@given(SEEDS, st.integers(0, 31), st.sampled_from([0, 31, 0x1807, 0x181F, 0x1C00, 0x1C03]))
def test_shuffle(mode: str, seed: int, b: int, c: int) -> None:
    body = f"""mul.lo.u32 %r4, %r0, 5; shfl.sync.{mode}.b32 %r5|%p1, %r4, {b}, {c}, 0xffffffff; selp.u32 %r6, 1, 0, %p1;
    st.global.v2.u32 [%d1], {{%r5, %r6}};"""
    inside = []
    for lane in range(32):  # as the PTX ISA words it
        clamp, segment = c & 31, c >> 8
        high = lane & segment | clamp & ~segment
        low = lane & segment
        j, valid = {
            "up": (lane - b, lane - b >= high), "down": (lane + b, lane + b <= high),
            "bfly": (lane ^ b, (lane ^ b) <= high), "idx": (low | b & ~segment, (low | b & ~segment) <= high),
        }[mode]  # fmt: skip
        inside.append([5 * (j if valid else lane), int(valid)])
    assert each(body, words=2, seed=seed).tolist() == inside


@given(SEEDS, st.integers(1, (1 << 32) - 1))
def test_votes_of_two_halves(seed: int, mask: int) -> None:
    body = f"""mov.u32 %r9, {mask}; shr.u32 %r4, %r9, %r0; and.b32 %r4, %r4, 1; setp.ne.u32 %p1, %r4, 0;
    and.b32 %r5, %r0, 1; setp.eq.u32 %p2, %r5, 0;
    @%p1 bra ONES; not.b32 %r9, %r9; ONES:
    vote.sync.ballot.b32 %r10, %p2, %r9; vote.sync.any.pred %p3, %p2, %r9; vote.sync.all.pred %p4, !%p2, %r9;
    vote.sync.uni.pred %p5, %p2, %r9;
    selp.u32 %r11, 1, 0, %p3; selp.u32 %r12, 1, 0, %p4; selp.u32 %r13, 1, 0, %p5;
    redux.sync.add.u32 %r14, %r0, %r9; redux.sync.min.s32 %r15, %r0, %r9; elect.sync %r16|%p6, %r9;
    match.any.sync.b32 %r17, %r5, %r9;
    match.all.sync.b32 %r18|%p7, %r5, %r9; bar.warp.sync %r9; activemask.b32 %r19; shr.u32 %r19, %r19, %r0;
    selp.u32 %r20, 1, 0, %p6;
    st.global.v4.u32 [%d1], {{%r10, %r11, %r12, %r13}}; st.global.v4.u32 [%d1+16], {{%r14, %r15, %r16, %r17}};
    st.global.v4.u32 [%d1+32], {{%r18, %r19, %r20, 0}};"""
    rows = each(body, words=12, seed=seed).tolist()
    for lane, row in enumerate(rows):
        members = [i for i in range(32) if mask >> i & 1 == mask >> lane & 1]
        even = [i % 2 == 0 for i in members]
        same = sum(1 << i for i in members if i % 2 == lane % 2)
        ballot = sum(1 << i for i in members if i % 2 == 0)
        everyone = sum(1 << i for i in members) if len(set(even)) == 1 else 0
        assert row[:8] == [
            ballot,
            any(even),
            not any(even),
            len(set(even)) == 1,
            sum(members),
            members[0],
            members[0],
            same,
        ]
        assert [row[8], row[9] & 1, row[10]] == [everyone, 1, lane == members[0]]


def test_warp_barrier_orders_lanes() -> None:
    exchange = """.shared .align 4 .b8 s[128]; mov.u32 %r4, s; mad.lo.u32 %r5, %r0, 4, %r4; st.shared.u32 [%r5], %r0;
    SYNC
    xor.b32 %r6, %r0, 1; mad.lo.u32 %r6, %r6, 4, %r4; ld.shared.u32 %r7, [%r6]; st.global.u32 [%d1], %r7;"""
    for seed in range(10):
        result = each(exchange.replace("SYNC", "bar.warp.sync 0xffffffff;"), seed=seed, races=Races())
        assert result.tolist() == [i ^ 1 for i in range(32)]
    with pytest.raises(Race, match="shared memory"):
        each(exchange.replace("SYNC", ""), races=Races())


# Atomics, copies, messages.


@pytest.mark.parametrize(
    ("instruction", "start", "expected"),
    [
        ("atom.global.add.u32 %r4, [%d0], %r0;", 5, 5 + 496), ("atom.global.min.s32 %r4, [%d0], -3;", 5, (1 << 32) - 3),
        ("atom.global.max.u32 %r4, [%d0], %r0;", 5, 31), ("atom.global.and.b32 %r4, [%d0], 0xfffffff0;", 255, 240),
        ("atom.global.or.b32 %r4, [%d0], %r0;", 32, 63), ("atom.global.xor.b32 %r4, [%d0], %r0;", 1, 1),
        ("atom.global.inc.u32 %r4, [%d0], 9;", 3, 5), ("atom.global.dec.u32 %r4, [%d0], 9;", 3, 1),
        ("atom.add.noftz.f16 %h4, [%d0], %h5;", 0, 0x5000), ("red.release.sys.add.u64 [%d0], 4294967297;", 0, 32),
        ("atom.acq_rel.gpu.global.add.f32 %f4, [%d0], 0f3F800000;", 0, 0x42000000),
        ("atom.global.exch.b32 %r4, [%d0], 77;", 3, 77), ("atom.global.cas.b32 %r4, [%d0], %r0, 99;", 7, 99),
        ("atom.global.v2.u32.add {%r4, %r5}, [%d0], {%r0, %r0};", 4, 4 + 496),
    ],
)  # fmt: skip
def test_atomics(instruction: str, start: int, expected: int) -> None:
    text = entry(f"{OWN} {POINTERS} mov.b16 %h5, 0x3c00; {instruction}")
    for seed in range(3):
        memory = Memory()
        target = memory.alloc(u64(start))
        run(Machine(text, memory).launch("k", ONE, (32, 1, 1), [u64(target), u64(0)], races=Races()), seed=seed)
        assert memory.array(target, "<u4", 1) == [expected]


@settings(max_examples=20)
@given(SEEDS, SLOTS)
def test_lock(seed: int, slots: list[int]) -> None:
    """A spin lock by compare-and-swap lets one thread at a time through."""
    body = """
    TRY: atom.acquire.gpu.global.cas.b32 %r4, [%d0], 0, 1; setp.ne.u32 %p1, %r4, 0; @%p1 nanosleep.u32 20; @%p1 bra TRY;
    ld.global.u32 %r5, [%d0+4]; add.u32 %r5, %r5, 1; st.global.u32 [%d0+4], %r5; fence.acq_rel.gpu;
    atom.release.gpu.global.exch.b32 %r4, [%d0], 0; st.global.u32 [%d1], %r5;"""
    assert sorted(each(body, 8, 3, seed=seed, slots=slots)) == list(range(1, 25))
    assert len(set(each(body.replace("@%p1 bra TRY;", ""), 8, 3, seed=seed, slots=(0, 1, 2, 3)))) <= 24


COPY = """.shared .align 16 .b8 s[2048]; mov.u32 %r4, s; mad.lo.u32 %r5, %r0, 16, %r4; mad.wide.u32 %d5, %r0, 16, %d0;
    cp.async.cg.shared.global [%r5], [%d5], 16; cp.async.commit_group;
    cp.async.ca.shared::cta.global.L2::128B [%r5+1024], [%d5], 8, 4; cp.async.commit_group;
    WAIT ld.shared.v2.u32 {%r6, %r7}, [%r5]; ld.shared.v2.u32 {%r8, %r9}, [%r5+1024];
    st.global.v4.u32 [%d1], {%r6, %r7, %r8, %r9};"""


def test_asynchronous_copies() -> None:
    source = np.arange(256, dtype="<u4")
    rows = source.reshape(-1, 4)
    expected = np.stack([rows[:, 0], rows[:, 1], rows[:, 0], 0 * rows[:, 0]], 1)
    kinds = {
        "one": "cp.async.wait_group 1;",
        "all": "cp.async.wait_group 0;",
        "every": "cp.async.wait_all;",
        "none": "",
    }
    for seed in range(6):
        result = {
            name: each(COPY.replace("WAIT", wait), 64, words=4, source=source.tobytes(), seed=seed)
            for name, wait in kinds.items()
        }
        assert np.array_equal(result["all"], expected)
        assert np.array_equal(result["every"], expected)
        assert np.array_equal(result["one"][:, :2], expected[:, :2])
        assert not np.array_equal(result["one"], expected)
        assert not np.array_equal(result["none"][:, :2], expected[:, :2])


def test_a_copy_is_a_write_when_it_is_waited_for() -> None:
    body = """.shared .align 16 .b8 s[512]; mov.u32 %r4, s; mad.lo.u32 %r5, %r0, 16, %r4; xor.b32 %r6, %r0, 1;
    mad.lo.u32 %r6, %r6, 16, %r4;
    cp.async.cg.shared.global [%r5], [%d0], 16; FIRST cp.async.wait_all; SECOND ld.shared.u32 %r7, [%r6];
    st.global.u32 [%d1], %r7;"""
    for seed in range(5):
        each(body.replace("FIRST", "").replace("SECOND", "bar.sync 0;"), source=bytes(16), seed=seed, races=Races())
        with pytest.raises(Race):
            each(body.replace("FIRST", "bar.sync 0;").replace("SECOND", ""), source=bytes(16), seed=seed, races=Races())


MESSAGE = f"""{OWN} {POINTERS} setp.eq.u32 %p1, %r1, 0; @%p1 bra SEND;
    WAIT: ld.acquire.gpu.global.u32 %r4, [%d0]; setp.eq.u32 %p2, %r4, 0; @%p2 bra WAIT;
    ld.volatile.global.u32 %r5, [%d0+4]; mad.wide.u32 %d1, %r3, 4, %d1; st.global.u32 [%d1], %r5; ret;
    SEND: st.global.u32 [%d0+4], 42; membar.gl; st.release.gpu.global.u32 [%d0], 1;"""


@given(SEEDS)
def test_blocks_and_launches_talk(seed: int) -> None:
    memory = Memory()
    args = [u64(memory.alloc(8)), u64(target := memory.alloc(16))]
    machine = Machine(entry(MESSAGE), memory)
    first, second = (machine.launch("k", (2, 1, 1), (2, 1, 1), args, slots=slots) for slots in ((0,), (1, 1)))
    run(second, first, seed=seed)
    assert first.done
    assert second.done
    assert memory.array(target, "<u4", 4).tolist() == [0, 0, 42, 42]


@given(st.randoms(use_true_random=False))
def test_hypothesis_may_choose_the_order(random: Random) -> None:
    memory = Memory()
    args = [u64(memory.alloc(8)), u64(target := memory.alloc(16))]
    launch = Machine(entry(MESSAGE), memory).launch("k", (2, 1, 1), (2, 1, 1), args)
    Scheduler(random, launch).run()
    assert memory.array(target, "<u4", 4).tolist() == [0, 0, 42, 42]


@given(SEEDS)
def test_a_write_between_turns_is_seen(seed: int) -> None:
    text = entry(
        f"""{OWN} {POINTERS} L: ld.relaxed.sys.global.u32 %r4, [%d0]; setp.eq.u32 %p1, %r4, 0; @%p1 bra L;
        st.global.u32 [%d1], %r4;"""
    )
    memory = Memory()
    limit, target = memory.alloc(4), memory.alloc(4)
    scheduler = Scheduler(Random(seed), Machine(text, memory).launch("k", ONE, (4, 1, 1), [u64(limit), u64(target)]))

    def stream() -> None:
        if scheduler.turns == 20:
            assert memory.array(target, "<u4", 1) == [0]
            memory.write(limit, u32(6))

    scheduler.run(between=stream)
    assert memory.array(target, "<u4", 1) == [6]
    assert scheduler.turns > 20


@given(SEEDS)
def test_launches_of_one_stream_follow_each_other(seed: int) -> None:
    text = entry(
        """ld.param.u64 %d0, [p0]; ld.param.u32 %r1, [p1];
        ld.global.u32 %r0, [%d0]; mad.lo.u32 %r0, %r0, 10, %r1; st.global.u32 [%d0], %r0;""",
        ("u64", "u32"),
    )
    memory = Memory()
    machine, target, scheduler = Machine(text, memory), memory.alloc(4), Scheduler(Random(seed))
    last: Launch | None = None
    for digit in (1, 2, 3, 4):
        last = scheduler.add(machine.launch("k", ONE, ONE, [u64(target), u32(digit)]), after=last)
    assert not scheduler.done
    assert scheduler.run() == 4 * 6
    assert memory.array(target, "<u4", 1) == [1234]


def test_blocks_may_hand_over_data() -> None:
    text = MESSAGE.replace("ld.volatile.global.u32 %r5", "ld.global.u32 %r5")
    for device in (True, False):
        memory = Memory()
        args = [u64(memory.alloc(8)), u64(memory.alloc(16))]
        launch = Machine(entry(text), memory).launch("k", (2, 1, 1), (1, 1, 1), args, races=Races(device=device))
        if device:
            with pytest.raises(Race, match="device memory"):
                run(launch)
        else:
            run(launch)


def test_threads_may_write_the_same() -> None:
    body = """.shared .align 4 .b8 s[4]; st.shared.u32 [s], WHAT; bar.sync 0;
    ld.shared.u32 %r4, [s]; st.global.u32 [%d1], %r4;"""
    assert each(body.replace("WHAT", "7"), races=Races()).tolist() == [7] * 32
    with pytest.raises(Race, match=r"threads .* write it unordered"):
        each(body.replace("WHAT", "%r0"), races=Races())


def test_a_block_that_runs_twice_is_a_race() -> None:
    text = entry(
        f"""{OWN} {POINTERS} and.b32 %r4, %r1, 3; mad.lo.u32 %r4, %r4, %r2, %r0; mad.wide.u32 %d1, %r4, 2, %d1;
        st.global.u16 [%d1], %r4;"""
    )
    memory = Memory()
    machine, args = Machine(text, memory), [u64(0), u64(memory.alloc(2 * 4 * 16))]
    races = Races()
    run(machine.launch("k", (4, 1, 1), (16, 1, 1), args, races=races))
    run(machine.launch("k", (4, 1, 1), (16, 1, 1), args, races=Races()))
    with pytest.raises(Race, match="device memory"):
        run(machine.launch("k", (5, 1, 1), (16, 1, 1), args, races=Races()))
    with pytest.raises(Race, match="device memory"):
        run(machine.launch("k", ONE, (16, 1, 1), args, races=races))
