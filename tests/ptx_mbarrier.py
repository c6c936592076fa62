"""mbarrier objects in shared memory, and the bulk copies that report to them.

An object keeps the parity of its phase, the arrivals that are expected and pending, and the bytes under way. A bulk
copy happens at some moment between its issue and what waits for it.
"""

from __future__ import annotations

from typing import Any

from ptx_memory import SHARED, Fault
from ptx_ops import PRED, TYPES, U32, Emit, Op
from ptx_runtime import Thread, load_global, load_shared, store_global, store_shared

B64 = TYPES["b64"]
_COUNT = (1 << 20) - 1
_VALID = 0b10  # the two highest bits of an object


def _pack(phase: int, pending: int, expected: int, under_way: int) -> int:
    return phase | pending << 1 | expected << 21 | (under_way & 2 * _COUNT + 1) << 41 | _VALID << 62


def _unpack(t: Thread, word: int) -> tuple[int, int, int, int]:
    if word >> 62 != _VALID:
        raise Fault("no mbarrier object lies there")
    under_way = word >> 41 & 2 * _COUNT + 1
    return word & 1, word >> 1 & _COUNT, word >> 21 & _COUNT, under_way - (under_way >> 20 << 21)


def mb_init(t: Thread, address: int, count: int) -> None:
    if not 0 < count <= _COUNT:
        raise Fault(f"an mbarrier object for {count} arrivals")
    store_shared(t, address, 8, _pack(0, count, count, 0), False)


def mb_invalidate(t: Thread, address: int) -> None:
    _unpack(t, load_shared(t, address, 8, False))
    store_shared(t, address, 8, 0, False)


def mb_change(t: Thread, address: int, arrivals: int, under_way: int, leaving: int = 0) -> int:
    """Arrive, expect bytes or have them come in; the object as it was."""
    old = load_shared(t, address, 8, False)
    phase, pending, expected, waiting = _unpack(t, old)
    if arrivals > pending:
        raise Fault(f"{arrivals} arrive at an mbarrier object that waits for {pending}")
    pending, waiting, expected = pending - arrivals, waiting + under_way, expected - leaving
    if t.block.races:
        t.block.races.release(t, address)
    if not pending and not waiting:
        phase, pending = phase ^ 1, expected
    store_shared(t, address, 8, _pack(phase, pending, expected, waiting), False)
    return old


def mb_test(t: Thread, address: int, phase: int) -> bool:
    """Whether the phase of this parity is complete."""
    done = _unpack(t, load_shared(t, address, 8, False))[0] != phase & 1
    if done and t.block.races:
        t.block.races.acquire(t, address)
    return done


def bulk(t: Thread, to: int, source: int, size: int, gate: int | None) -> None:
    """A bulk copy into shared memory, with an mbarrier object, or out of it, without."""
    if size % 16 or to % 16 or source % 16:
        raise Fault(f"a bulk copy of {size} bytes from {source:#x} to {to:#x}: all in units of 16")

    def carry_out() -> None:
        for i in range(0, size, 16):
            if gate is None:
                store_global(t, to + i, 16, load_shared(t, source + i, 16))
            else:
                store_shared(t, to + i, 16, load_global(t, source + i, 16))
        if gate is not None:
            mb_change(t, gate, 0, -size)

    if gate is not None:
        t.block.under_way.append(carry_out)
    else:
        t.bulk[-1].append(carry_out)


def bulk_commit(t: Thread) -> None:
    t.bulk.append([])


def bulk_wait(t: Thread, pending: int) -> None:
    done = max(len(t.bulk) - 1 - pending, 0)
    for group in t.bulk[:done]:
        for carry_out in group:
            carry_out()
    del t.bulk[:done]


# The instructions.


def objects(e: Emit, op: Op) -> None:
    """mbarrier: init, inval, arrive, arrive_drop, expect_tx, test_wait, try_wait."""
    op.allow("init", "inval", "arrive", "arrive_drop", "expect_tx", "test_wait", "try_wait", "parity", "shared",
             "shared::cta", "release", "acquire", "relaxed", "cta")  # fmt: skip
    e.visible = True
    action, operands = op.opcode[1], list(op.operands)
    result = operands.pop(0) if action in ("arrive", "arrive_drop", "test_wait", "try_wait") else None
    where, address = e.address(operands[0], "shared" if op.one("shared", "shared::cta") else "generic")
    address = address if where == "shared" else f"({address}) - {SHARED}"
    rest = [
        e.value(o, B64 if action in ("test_wait", "try_wait") and "parity" not in op.flags else U32)
        for o in operands[1:2]
    ]
    if action == "init":
        e.line(f"mb_init(t, {address}, {rest[0]})")
    elif action == "inval":
        e.line(f"mb_invalidate(t, {address})")
    elif action == "expect_tx":
        e.line(f"mb_change(t, {address}, 0, {rest[0]})")
    elif action in ("arrive", "arrive_drop") and result is not None:
        leaving = ", 1" if action == "arrive_drop" else ""
        change = f"1, {rest[0]}" if "expect_tx" in op.flags else f"{rest[0] if rest else 1}, 0"
        e.assign(result, B64, f"mb_change(t, {address}, {change}{leaving})")
    elif action in ("test_wait", "try_wait") and result is not None:
        e.assign(result, PRED, f"mb_test(t, {address}, {rest[0]})")
    else:
        raise op.refuse()


def copies(e: Emit, op: Op) -> None:
    """cp.async.bulk between device and shared memory."""
    e.visible = True
    shared, complete = ("shared::cta", "shared::cluster"), "mbarrier::complete_tx::bytes"
    operands = op.operands[:-1] if "cache_hint" in op.text else op.operands
    match [part for part in op.opcode[3:] if not part.startswith("L2::")]:
        case ["commit_group"]:
            e.line("bulk_commit(t)")
        case ["wait_group", *_]:
            e.line(f"bulk_wait(t, {e.value(operands[0], U32)})")
        case [to, "global", how] if to in shared and how == complete and len(operands) == 4:
            (_, at), (_, source), (_, gate) = (
                e.address(operands[i], x) for i, x in ((0, "shared"), (1, "global"), (3, "shared"))
            )
            e.line(f"bulk(t, {at}, {source}, {e.value(operands[2], U32)}, {gate})")
        case ["global", "shared::cta", "bulk_group"] if len(operands) == 3:
            (_, at), (_, source) = e.address(operands[0], "global"), e.address(operands[1], "shared")
            e.line(f"bulk(t, {at}, {source}, {e.value(operands[2], U32)}, None)")
        case _:
            raise op.refuse()


NAMES: dict[str, Any] = {
    f.__name__: f for f in (mb_init, mb_invalidate, mb_change, mb_test, bulk, bulk_commit, bulk_wait)
}
