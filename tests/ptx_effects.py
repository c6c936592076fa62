"""PTX instructions that touch more than their thread's registers, as lines of Python; and all of them by name."""

from __future__ import annotations

from collections.abc import Callable

import ptx_matrix
import ptx_mbarrier
import ptx_ops
from ptx_ops import B32, PRED, TYPES, U32, Emit, Op, Type, compute

from miriam.elastic.ptx import Pair, Vector

# Memory.

SPACES = {"global": "global", "shared": "shared", "shared::cta": "shared", "local": "local", "param": "param",
          "param::entry": "param", "param::func": "param", "const": "const"}  # fmt: skip
_STRONG = ("volatile", "relaxed", "acquire", "release", "acq_rel", "mmio")
_SCOPES = ("cta", "gpu", "sys", "cluster")
_CACHE = ("weak", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc")


def _space(op: Op) -> str:
    return SPACES.get(op.one(*SPACES), "generic")


def _access(op: Op) -> tuple[str, Type, int, str]:
    op.allow(*SPACES, *_STRONG, *_SCOPES, *_CACHE, "v2", "v4", "v8")
    if len(op.types) != 1 or op.types[0].kind == "p":
        raise op.refuse()
    count = int((op.one("v2", "v4", "v8") or "v1")[1:])
    return _space(op), op.types[0], count, ", False" if op.one(*_STRONG) else ""


def load(e: Emit, op: Op) -> None:
    space, t, count, plain = _access(op)
    to = op.operands[0]
    where, address = e.address(op.operands[1], space)
    e.visible = where in ("shared", "global", "generic") and space != "const"
    text = f"load_{where}(t, {address}, {count * t.bits // 8}{plain})"
    items = to.items if isinstance(to, Vector) else (to,)
    if len(items) != count:
        raise op.refuse()
    if count == 1:
        e.assign(items[0], t, text)
        return
    e.line(f"v = {text}")
    for i, o in enumerate(items):
        e.assign(o, t, f"(v >> {t.bits * i}) & {t.mask}")


def store(e: Emit, op: Op) -> None:
    space, t, count, plain = _access(op)
    source = op.operands[1]
    where, address = e.address(op.operands[0], space)
    e.visible = where in ("shared", "global", "generic")
    items = source.items if isinstance(source, Vector) else (source,)
    if len(items) != count or where == "param" or space == "const":
        raise op.refuse()
    value = " | ".join(f"{e.value(o, t)} << {t.bits * i}" if i else e.value(o, t) for i, o in enumerate(items))
    e.line(f"store_{where}(t, {address}, {count * t.bits // 8}, {value}{plain})")


_ATOMIC = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


def atomic(e: Emit, op: Op) -> None:
    """atom and red; a vector is so many atomic operations one after the other."""
    op.allow(*SPACES, *_STRONG, *_SCOPES, *_ATOMIC, "noftz", "v2", "v4", "v8")
    (t,), name = op.types, op.one(*_ATOMIC)
    operands = list(op.operands)
    to = operands.pop(0) if op.name == "atom" else None
    where, address = e.address(operands[0], _space(op))
    if where not in ("shared", "global", "generic") or t.bits < 16 or not name:
        raise op.refuse()
    e.visible = True
    columns = [o.items if isinstance(o, Vector) else (o,) for o in operands[1 : 3 if name == "cas" else 2]]
    for i, row in enumerate(zip(*columns, strict=True)):
        update = _update(op, name, t, [e.value(o, t) for o in row])
        text = f"atomic_{where}(t, {address} + {i * t.bits // 8}, {t.bits // 8}, lambda old: {update})"
        if to is None:
            e.line(text)
        else:
            e.assign(to.items[i] if isinstance(to, Vector) else to, t, text)


def _update(op: Op, name: str, t: Type, args: list[str]) -> str:
    if name == "exch":
        return args[0]
    if name == "cas":
        return f"{args[1]} if old == {args[0]} else old"
    if name == "inc":
        return f"0 if old >= {args[0]} else old + 1"
    if name == "dec":
        return f"{args[0]} if old == 0 or old > {args[0]} else old - 1"
    return compute(op, name, t, ["old", *args])


def asynchronous(e: Emit, op: Op) -> None:
    """cp.async: the copy, commit_group, wait_group, wait_all."""
    if op.opcode[2] == "bulk":
        ptx_mbarrier.copies(e, op)
        return
    op.allow("async", "commit_group", "wait_group", "wait_all", "ca", "cg", "shared", "shared::cta", "global")
    if "async" not in op.flags:
        raise op.refuse()
    e.visible = "commit_group" not in op.flags
    if op.flags & {"commit_group", "wait_group", "wait_all"}:
        waits = f"await_copies(t, {e.value(op.operands[0], U32) if 'wait_group' in op.flags else None})"
        e.line("commit(t)" if "commit_group" in op.flags else waits)
        return
    operands = list(op.operands)
    if "cache_hint" in op.text:
        operands.pop()
    (_, to), (_, source), size = (
        e.address(operands[0], "shared"),
        e.address(operands[1], "global"),
        e.value(operands[2], U32),
    )
    e.line(f"copy(t, {to}, {source}, {size}, {e.value(operands[3], U32) if len(operands) > 3 else size})")


def to_address(e: Emit, op: Op) -> None:
    """cvta: only a window has an offset."""
    op.allow("to", *SPACES)
    space, (t,) = _space(op), op.types
    if t.bits != 64 or space == "generic":
        raise op.refuse()
    window = {"shared": "SHARED", "local": "LOCAL", "param": "PARAM"}.get(space, "0")
    sign = "-" if "to" in op.flags else "+"
    e.assign(op.operands[0], t, f"({e.value(op.operands[1], t)} {sign} {window}) & {t.mask}")


def is_space(e: Emit, op: Op) -> None:
    op.allow(*SPACES)
    e.assign(op.operands[0], PRED, f"within(t, '{_space(op)}', {e.value(op.operands[1], TYPES['u64'])})")


# Together.


def barrier(e: Emit, op: Op) -> None:
    """bar, barrier: sync, arrive, red, warp.sync."""
    op.allow("sync", "arrive", "red", "warp", "cta", "aligned", "popc", "and", "or")
    e.visible = True
    operands = list(op.operands)
    if "warp" in op.flags:
        mask = e.value(operands[0], B32)
        e.line(f"return meet(t, 'bar.warp.sync', {mask}, None, {e.resume()}, nothing, ())")
        return
    extra = f", aligned={op.name == 'bar' or 'aligned' in op.flags}"
    if "arrive" in op.flags:
        extra += ", wait=False"
    if "red" in op.flags:
        finish = {"popc": "count", "and": "all", "or": "any"}[op.one("popc", "and", "or")]
        extra += f", finish={finish}, value={e.value(operands.pop(), PRED)}, slot={e.slot(operands.pop(0))}"
    number = e.value(operands[0], U32) if operands else "0"
    count = e.value(operands[1], U32) if len(operands) > 1 else "None"
    e.line(f"return barrier(t, {number}, {count}, {e.resume()}{extra})")


def collective(e: Emit, op: Op) -> None:
    """shfl, vote, match, redux, elect: all with .sync."""
    if "sync" not in op.flags:
        raise op.refuse()
    to, *rest = op.operands
    slots = [e.slot(o) for o in ((to.first, to.second) if isinstance(to, Pair) else (to,))]
    mask = e.value(rest.pop(), B32)
    modes = op.flags - {"sync"}
    if op.name == "shfl":
        op.allow("sync", "up", "down", "bfly", "idx")
        finish, value = f"shuffle_{op.one('up', 'down', 'bfly', 'idx')}", ", ".join(e.value(o, B32) for o in rest)
    elif op.name == "vote":
        op.allow("sync", "any", "all", "uni", "ballot")
        how = op.one("any", "all", "uni", "ballot")
        finish, value = how if how == "ballot" else f"everyone_{how}", e.value(rest[0], PRED)
    elif op.name == "match":
        op.allow("sync", "any", "all")
        finish, value = f"match_{op.one('any', 'all')}", e.value(rest[0], op.types[0])
    elif op.name == "redux" and modes < {"add", "min", "max", "and", "or", "xor"} and len(op.types) == 1:
        signed = op.types[0].kind == "s" and modes & {"min", "max"}
        finish, value = f"everyone_{'signed_' if signed else ''}{next(iter(modes))}", e.value(rest[0], op.types[0])
    elif op.name == "elect" and not modes:
        finish, value = "elect", "None"
    else:
        raise op.refuse()
    e.visible = True
    resume = e.resume()
    e.line(f"return meet(t, '{op.name} {resume}', {mask}, ({value}), {resume}, {finish}, {tuple(slots)})")


# The rest.


def nothing(e: Emit, op: Op) -> None:
    """Hints, and fences: memory is sequentially consistent here."""
    e.visible = op.name == "nanosleep"


def policy(e: Emit, op: Op) -> None:
    e.assign(op.operands[0], TYPES["b64"], "0")


def active(e: Emit, op: Op) -> None:
    """Any set of lanes that holds this one is an answer: threads are scheduled one by one."""
    e.assign(op.operands[0], B32, "1 << t.index % 32")


def trap(e: Emit, op: Op) -> None:
    e.line("trap()")


OPERATIONS: dict[str, Callable[[Emit, Op], None]] = {
    **ptx_ops.OPERATIONS, **ptx_matrix.OPERATIONS, "ld": load, "ldu": load, "st": store, "atom": atomic, "red": atomic,
    "cp": asynchronous, "cvta": to_address, "isspacep": is_space, "bar": barrier, "barrier": barrier,
    **dict.fromkeys(("shfl", "vote", "match", "redux", "elect"), collective), "createpolicy": policy,
    "activemask": active, "trap": trap, "mbarrier": ptx_mbarrier.objects,
    **dict.fromkeys(("membar", "fence", "nanosleep", "prefetch", "prefetchu", "griddepcontrol", "setmaxnreg"), nothing),
}  # fmt: skip
