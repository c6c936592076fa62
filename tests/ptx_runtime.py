"""What a compiled PTX instruction calls: memory in its spaces, barriers, warps, asynchronous copies.

A thread has a program counter of its own (independent thread scheduling); what a warp or a block does together
waits until everyone who takes part has arrived. Memory is sequentially consistent: a missing fence goes unseen.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ptx_memory import GLOBAL, LOCAL, PARAM, SHARED, UNDEFINED, Fault, Memory
from ptx_races import Races

WAITS, LEFT = -1, -2
WARP = 32
SHARED_BASE = 1024  # of a block's own; the first KiB belongs to the system (sm_90)


@dataclass(slots=True, eq=False)
class Warp:
    """The lanes that have not left, and the operations that some of them wait in."""

    number: int
    live: int = 0
    meetings: dict[Any, dict[int, tuple[Thread, Any]]] = field(default_factory=dict)
    products: list[list[Callable[[], None]]] = field(default_factory=lambda: [[]])  # of wgmma, the last group open


@dataclass(slots=True, eq=False)
class Barrier:
    """One barrier of a block between two completions."""

    count: int | None
    arrived: list[tuple[Thread, bool, Any, int | None]] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    finish: Callable[[list[Any]], Any] | None = None


@dataclass(slots=True, eq=False)
class Block:
    """A resident block: its threads, those of them that can run, its shared memory and its barriers."""

    launch: int
    index: int
    memory: Memory
    shared: bytearray
    parameters: bytes
    random: Random
    clock: Iterator[int]
    races: Races | None
    threads: list[Thread] = field(default_factory=list)
    ready: list[Thread] = field(default_factory=list)
    live: int = 0
    barriers: dict[int, Barrier] = field(default_factory=dict)
    under_way: list[Callable[[], None]] = field(default_factory=list)  # bulk copies, which no thread waits for

    @property
    def warps(self) -> int:
        return -(-len(self.threads) // WARP)


@dataclass(slots=True, eq=False)
class Thread:
    """Registers, a program counter, and the copies under way."""

    block: Block
    warp: Warp
    index: int
    registers: list[Any]
    local: bytearray
    pc: int = 0
    groups: list[list[tuple[int, int, int, int]]] = field(default_factory=list)
    copies: list[tuple[int, int, int, int]] = field(default_factory=list)
    bulk: list[list[Callable[[], None]]] = field(default_factory=lambda: [[]])  # by groups, the last one open

    @property
    def lane(self) -> int:
        return self.index % WARP


# Memory. A plain access takes part in the detection of races, a volatile or an atomic one does not.


def _own(data: bytearray, at: int, size: int, space: str) -> None:
    if at < 0 or at + size > len(data) or at % size:
        raise Fault(f"{size} bytes at {at} of {len(data)} bytes of {space} memory: outside or not aligned")


def load_shared(t: Thread, address: int, size: int, plain: bool = True) -> int:
    data, at = t.block.shared, address - SHARED_BASE
    _own(data, at, size, "shared")
    if t.block.races and plain:
        t.block.races.shared(t, at, size, write=False)
    return int.from_bytes(data[at : at + size], "little")


def store_shared(t: Thread, address: int, size: int, value: int, plain: bool = True) -> None:
    data, at = t.block.shared, address - SHARED_BASE
    _own(data, at, size, "shared")
    content = value.to_bytes(size, "little")
    if t.block.races and plain and data[at : at + size] != content:
        t.block.races.shared(t, at, size, write=True)
    data[at : at + size] = content


def load_local(t: Thread, address: int, size: int, plain: bool = True) -> int:
    _own(t.local, address, size, "local")
    return int.from_bytes(t.local[address : address + size], "little")


def store_local(t: Thread, address: int, size: int, value: int, plain: bool = True) -> None:
    _own(t.local, address, size, "local")
    t.local[address : address + size] = value.to_bytes(size, "little")


def load_param(t: Thread, address: int, size: int, plain: bool = True) -> int:
    data = t.block.parameters
    if address + size > len(data) or address % size:
        raise Fault(f"{size} bytes at {address} of {len(data)} bytes of parameters: outside or not aligned")
    return int.from_bytes(data[address : address + size], "little")


def load_global(t: Thread, address: int, size: int, plain: bool = True) -> int:
    block = t.block
    if block.races and plain:
        block.races.device(block, address, size, write=False)
    return block.memory.load(address, size)


def store_global(t: Thread, address: int, size: int, value: int, plain: bool = True) -> None:
    block = t.block
    if block.races and plain:
        block.races.device(block, address, size, write=True)
    block.memory.store(address, size, value)


def load_generic(t: Thread, address: int, size: int, plain: bool = True) -> int:
    if address >= GLOBAL:
        return load_global(t, address, size, plain)
    if address >= PARAM:
        return load_param(t, address - PARAM, size)
    if address >= LOCAL:
        return load_local(t, address - LOCAL, size)
    if address >= SHARED:
        return load_shared(t, address - SHARED, size, plain)
    raise Fault(f"{size} bytes at {address:#x}, which is in no space")


def store_generic(t: Thread, address: int, size: int, value: int, plain: bool = True) -> None:
    if address >= GLOBAL:
        store_global(t, address, size, value, plain)
    elif address >= PARAM:
        raise Fault(f"a write to the parameters at {address:#x}")
    elif address >= LOCAL:
        store_local(t, address - LOCAL, size, value)
    elif address >= SHARED:
        store_shared(t, address - SHARED, size, value, plain)
    else:
        raise Fault(f"{size} bytes at {address:#x}, which is in no space")


def within(t: Thread, space: str, address: int) -> bool:
    """isspacep."""
    if space in ("shared", "local", "param"):
        low = {"shared": SHARED, "local": LOCAL, "param": PARAM}[space]
        return low <= address < low + (1 << 44)
    return address >= GLOBAL and t.block.memory.constant(address) == (space == "const")


def _atomic(load: Callable[..., int], store: Callable[..., None]) -> Callable[..., int]:
    def atomic(t: Thread, address: int, size: int, update: Callable[[int], int]) -> int:
        old = load(t, address, size, False)
        store(t, address, size, update(old), False)
        return old

    return atomic


# Asynchronous copies: each happens at some moment between its issue and the wait for it.


def copy(t: Thread, to: int, source: int, size: int, take: int) -> None:
    if t.block.races:
        t.block.races.shared(t, to - SHARED_BASE, size, write=True)
    if t.block.random.random() < 0.5:
        _carry_out(t, (to, source, size, take))
    else:
        t.copies.append((to, source, size, take))


def _carry_out(t: Thread, job: tuple[int, int, int, int]) -> None:
    to, source, size, take = job
    wide = max(4, math.gcd(source, take, 16))
    data = b"".join(load_global(t, source + i, wide).to_bytes(wide, "little") for i in range(0, min(take, size), wide))
    store_shared(t, to, size, int.from_bytes(data[:take], "little"))


def commit(t: Thread) -> None:
    t.groups.append(t.copies)
    t.copies = []


def await_copies(t: Thread, pending: int | None) -> None:
    """Finish all groups but the ``pending`` newest; None: whatever was issued."""
    if pending is None:
        commit(t)
    done = len(t.groups) - (pending or 0)
    for group in t.groups[: max(done, 0)]:
        for job in group:
            _carry_out(t, job)
    del t.groups[: max(done, 0)]


def progress(t: Thread) -> None:
    """One copy that is under way may happen now, of the thread's own and of the block's."""
    if (bulk := t.block.under_way) and t.block.random.random() < 0.25:
        bulk.pop(t.block.random.randrange(len(bulk)))()
    under_way = [group for group in (*t.groups, t.copies) if group]
    if under_way and t.block.random.random() < 0.25:
        group = t.block.random.choice(under_way)
        _carry_out(t, group.pop(t.block.random.randrange(len(group))))


# Together: warps, barriers, the end of a thread.


def meet(
    t: Thread, key: str, mask: int, value: Any, resume: int, finish: Callable[..., Any], slots: tuple[int | None, ...]
) -> int:
    """Wait for the lanes of a mask at a warp-level operation.

    ``finish`` takes lane -> value and gives lane -> the values for the slots.
    """
    warp, lane = t.warp, t.index % WARP
    if not mask >> lane & 1:
        raise Fault(f"lane {lane} executes an operation of the lanes {mask:#010x}, to which it does not belong")
    arrived = warp.meetings.setdefault((key, mask), {})
    arrived[lane] = (t, (value, finish, slots))
    t.pc = resume
    return resume if _met(t.block, warp, (key, mask), t) else WAITS


def _met(block: Block, warp: Warp, key: tuple[str, int], last: Thread | None) -> bool:
    arrived = warp.meetings[key]
    if len(arrived) < (key[1] & warp.live).bit_count():  # who waits is alive, and one of the mask
        return False
    del warp.meetings[key]
    if block.races:
        block.races.join(block, [t for t, _ in arrived.values()])
    finish = next(iter(arrived.values()))[1][1]
    results = finish({lane: value for lane, (_, (value, _, _)) in arrived.items()})
    for lane, (t, (_, _, slots)) in arrived.items():
        for i, slot in enumerate(slots):
            if slot is not None:
                t.registers[slot] = results[lane][i]
        if t is not last:
            block.ready.append(t)
    return True


def barrier(
    t: Thread,
    number: int,
    count: int | None,
    resume: int,
    *,
    aligned: bool = True,
    wait: bool = True,
    finish: Callable[[list[Any]], Any] | None = None,
    value: Any = None,
    slot: int | None = None,
) -> int:
    """bar and barrier: count None is the whole block, those who left taken off."""
    block = t.block
    if not 0 <= number < 16 or (count is not None and (count % WARP or not count)):
        raise Fault(f"barrier {number} with {count} threads")
    here = block.barriers.setdefault(number, Barrier(count))
    if here.count != count:
        raise Fault(f"barrier {number} is used with {count} and with {here.count} threads at a time")
    if aligned and here.places.setdefault(t.warp.number, resume) != resume:
        raise Fault(f"warp {t.warp.number} is divergent at the aligned barrier {number}")
    here.arrived.append((t, wait, value, slot))
    here.finish = finish or here.finish
    t.pc = resume
    return resume if _complete(block, number, t) or not wait else WAITS


def _complete(block: Block, number: int, last: Thread | None) -> bool:
    here = block.barriers[number]
    if here.count is None:
        if len(here.arrived) < block.live:
            return False
    elif len(here.arrived) < here.count and len(here.arrived) + _absent(here) < here.count:
        return False
    del block.barriers[number]
    if block.races:
        block.races.join(block, [t for t, _, _, _ in here.arrived])
    result = here.finish([value for _, wait, value, _ in here.arrived if wait]) if here.finish else None
    for t, wait, _, slot in here.arrived:
        if slot is not None:
            t.registers[slot] = result
        if wait and t is not last:
            block.ready.append(t)
    return True


def _absent(here: Barrier) -> int:
    """Lanes that do not exist (any more) in warps that have arrived: a warp counts whole."""
    seen: dict[Warp, int] = {}
    for t, _, _, _ in here.arrived:
        seen[t.warp] = seen.get(t.warp, 0) | 1 << t.lane
    return sum(WARP - lanes.bit_count() for warp, lanes in seen.items() if not warp.live & ~lanes)


def leave(t: Thread) -> int:
    """ret and exit: copies under way are carried out, and nobody waits for the thread any more."""
    await_copies(t, None)
    block, warp = t.block, t.warp
    for carry_out in [*itertools.chain(*t.bulk), *(block.under_way if block.live == 1 else ())]:
        carry_out()
    block.live -= 1
    warp.live &= ~(1 << t.lane)
    for key in list(warp.meetings):
        _met(block, warp, key, None)
    for number in [n for n, b in block.barriers.items() if b.count is None]:
        _complete(block, number, None)
    return LEFT


def trap() -> None:
    raise Fault("trap")


# Warp-level operations: lane -> operands to lane -> results.

Lanes = dict[int, Any]


def _everyone(function: Callable[[list[Any]], Any]) -> Callable[[Lanes], Lanes]:
    return lambda lanes: dict.fromkeys(lanes, (function(list(lanes.values())),))


def ballot(lanes: Lanes) -> Lanes:
    return dict.fromkeys(lanes, (sum(1 << lane for lane, p in lanes.items() if p),))


def _biased(bits: int) -> int:
    return bits ^ 1 << 31


def elect(lanes: Lanes) -> Lanes:
    return {lane: (min(lanes), lane == min(lanes)) for lane in lanes}


def match_any(lanes: Lanes) -> Lanes:
    return {lane: (sum(1 << other for other, b in lanes.items() if a == b),) for lane, a in lanes.items()}


def match_all(lanes: Lanes) -> Lanes:
    same = len(set(lanes.values())) == 1
    return dict.fromkeys(lanes, (sum(1 << lane for lane in lanes) if same else 0, same))


def shuffle(mode: str) -> Callable[[Lanes], Lanes]:
    """shfl.sync: operands (a, b, c), results (d, p); PTX ISA, "shfl.sync"."""

    def finish(lanes: Lanes) -> Lanes:
        results = {}
        for lane, (a, b, c) in lanes.items():
            b, clamp, segment = b & 31, c & 31, c >> 8 & 31
            low, high = lane & segment, lane & segment | clamp & ~segment
            source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": low | b & ~segment}[mode]
            inside = source >= high if mode == "up" else source <= high
            results[lane] = (lanes.get(source, (UNDEFINED,))[0] if inside else a, inside)
        return results

    return finish


_REDUCE: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: (a + b) & 0xFFFFFFFF, "min": min, "max": max, "and": operator.and_, "or": operator.or_,
    "xor": operator.xor, "signed_min": lambda a, b: min(a, b, key=_biased),
    "signed_max": lambda a, b: max(a, b, key=_biased),
}  # fmt: skip
_FUNCTIONS = (
    load_shared, store_shared, load_local, store_local, load_param, load_global, store_global, load_generic,
    store_generic, within, copy, commit, await_copies, meet, barrier, leave, ballot, elect, match_any, match_all, trap,
)  # fmt: skip
NAMES: dict[str, Any] = {
    **{f.__name__: f for f in _FUNCTIONS},
    **{f"shuffle_{mode}": shuffle(mode) for mode in ("up", "down", "bfly", "idx")},
    **{f"everyone_{name}": _everyone(functools.partial(functools.reduce, f)) for name, f in _REDUCE.items()},
    "atomic_shared": _atomic(load_shared, store_shared), "atomic_global": _atomic(load_global, store_global),
    "atomic_generic": _atomic(load_generic, store_generic), "nothing": lambda lanes: dict.fromkeys(lanes, ()),
    "everyone_any": _everyone(any), "everyone_all": _everyone(all),
    "everyone_uni": _everyone(lambda x: len(set(map(bool, x))) == 1), "count": lambda x: sum(map(bool, x)),
    "SHARED": SHARED, "LOCAL": LOCAL, "PARAM": PARAM,
}  # fmt: skip
