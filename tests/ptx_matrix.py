"""Matrix instructions: ldmatrix, stmatrix, mma.sync and wgmma, as the PTX ISA lays out their fragments.

Sums are formed in binary64 and rounded once; a device rounds otherwise, but each always in its own way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ptx_runtime
from ptx_memory import Fault
from ptx_ops import B32, TYPES, Emit, Op

from miriam.elastic.ptx import Number, Operand, Vector

Lanes = dict[int, Any]
ALL = 0xFFFFFFFF


def _items(of: Operand) -> tuple[Operand, ...]:
    return of.items if isinstance(of, Vector) else (of,)


def _together(e: Emit, name: str, values: str, finish: str, slots: tuple[int | None, ...]) -> None:
    e.visible = True
    resume = e.resume()
    e.line(f"return meet(t, '{name} {resume}', {ALL}, ({values}), {resume}, {finish}, {slots})")


def move_matrices(e: Emit, op: Op) -> None:
    """ldmatrix and stmatrix of 8x8 matrices of 16-bit elements."""
    op.allow("sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta")
    loads = op.name == "ldmatrix"
    items, of = _items(op.operands[0 if loads else 1]), op.operands[1 if loads else 0]
    if op.types != (TYPES["b16"],) or len(items) != int(op.one("x1", "x2", "x4")[1:]):
        raise op.refuse()
    _, address = e.address(of, "shared")
    values = "" if loads else "".join(f", {e.value(o, B32)}" for o in items)
    slots = tuple(e.slot(o) for o in items) if loads else ()
    finish = f"{op.name}_{len(items)}{'_trans' if 'trans' in op.flags else ''}"
    _together(e, op.name, f"t, {address}{values}", finish, slots)


def _row(of: tuple[ptx_runtime.Thread, int]) -> int:
    return ptx_runtime.load_shared(of[0], of[1], 16)


def _load(count: int, trans: bool) -> Callable[[Lanes], Lanes]:
    def finish(lanes: Lanes) -> Lanes:
        rows = [
            [row >> 16 * j & 0xFFFF for row in (_row(lanes[8 * m + i]) for i in range(8)) for j in range(8)]
            for m in range(count)
        ]
        firsts = [lane % 4 * 16 + lane // 4 if trans else 2 * lane for lane in range(32)]
        step = 8 if trans else 1
        return {lane: tuple(r[at] | r[at + step] << 16 for r in rows) for lane, at in enumerate(firsts)}

    return finish


def _store(count: int, trans: bool) -> Callable[[Lanes], Lanes]:
    def finish(lanes: Lanes) -> Lanes:
        for m in range(count):
            matrix = np.zeros((8, 8), np.uint16)
            for lane in range(32):
                word, row, column = lanes[lane][2 + m], lane // 4, lane % 4 * 2
                for i in range(2):
                    at = (column + i, row) if trans else (row, column + i)
                    matrix[at] = word >> 16 * i & 0xFFFF
            for i in range(8):
                t, address = lanes[8 * m + i][:2]
                ptx_runtime.store_shared(t, address, 16, int.from_bytes(matrix[i].astype("<u2").tobytes(), "little"))
        return dict.fromkeys(lanes, ())

    return finish


# The elements of A and B: bits, and their numbers.
_ELEMENTS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "f16": (16, lambda x: x.astype("<u2").view("<f2").astype(np.float64)),
    "bf16": (16, lambda x: (x.astype("<u4") << 16).view("<f4").astype(np.float64)),
    "tf32": (32, lambda x: (x.astype("<u4") & ~np.uint32(0x1FFF)).view("<f4").astype(np.float64)),
    "s8": (8, lambda x: x.astype("<u1").view("<i1").astype(np.float64)),
    "u8": (8, lambda x: x.astype(np.float64)),
}


_SUMS = {"f32": "<f4", "f16": "<f2", "s32": "<i4"}


@dataclass(frozen=True, slots=True)
class Fragments:
    """How the 32 lanes of a warp hold A (16 x k), B (k x 8) and the sums (16 x n) of a product.

    Lanes go by fours: lane // 4 is a row of A and of the sums and a column of B, lane % 4 a place in the other
    direction, where a register holds neighbours.
    """

    to: str
    left: str
    right: str
    n: int
    k: int

    @property
    def per_word(self) -> int:
        return 32 // _ELEMENTS[self.left][0]

    @property
    def words(self) -> tuple[int, int, int]:
        """Registers for A, for B and for the sums."""
        return self.k // self.per_word // 2, self.k // self.per_word // 4, self.n // (4 if self.to == "f16" else 2)

    def known(self) -> bool:
        kinds = {self.left, self.right}
        return self.to in _SUMS and kinds <= _ELEMENTS.keys() and len({_ELEMENTS[x][0] for x in kinds}) == 1

    def a(self, words: np.ndarray) -> np.ndarray:
        matrix, packed = np.zeros((16, self.k)), _unpack(words, self.left)
        for register in range(packed.shape[1]):
            for i in range(self.per_word):
                column = _LANE % 4 * self.per_word + i + register // 2 * 4 * self.per_word
                matrix[_LANE // 4 + register % 2 * 8, column] = packed[:, register, i]
        return matrix

    def b(self, words: np.ndarray) -> np.ndarray:
        matrix, packed = np.zeros((self.k, 8)), _unpack(words, self.right)
        for register in range(packed.shape[1]):
            for i in range(self.per_word):
                matrix[_LANE % 4 * self.per_word + i + register * 4 * self.per_word, _LANE // 4] = packed[
                    :, register, i
                ]
        return matrix

    def add(self, words: np.ndarray, product: np.ndarray) -> list[list[int]]:
        """The registers of the sums with a product (16 x n) added."""
        number = np.arange(self.n // 2)
        row = _LANE[:, None] // 4 + number // 2 % 2 * 8
        column = _LANE[:, None] % 4 * 2 + number % 2 + number // 4 * 8
        with np.errstate(all="ignore"):
            sums = words.view(_SUMS[self.to]).reshape(32, -1).astype(np.float64) + product[row, column]
            whole = self.to == "s32"
            result = sums.astype(np.int64).astype(np.int32) if whole else sums.astype(_SUMS[self.to])
        listed: list[list[int]] = np.ascontiguousarray(result).view("<u4").tolist()
        return listed


_LANE = np.arange(32)


def _unpack(words: np.ndarray, kind: str) -> np.ndarray:
    """lane, register, place in the register -> number"""
    bits, number = _ELEMENTS[kind]
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    return number(words[:, :, None] >> shifts & np.uint32(ALL >> (32 - bits)))


def _words(lanes: Lanes, begin: int, end: int) -> np.ndarray:
    return np.array([lanes[i][begin:end] for i in range(32)], np.uint32).reshape(32, end - begin)


def multiply_matrices(e: Emit, op: Op) -> None:
    """mma.sync.aligned.m16n8kK.row.col.D.A.B.C: D = A * B + C."""
    match op.opcode[1:]:
        case ("sync", "aligned", shape, "row", "col", to, left, right, start) if to == start:
            f = Fragments(to, left, right, 8, int(shape.removeprefix("m16n8k")))
        case _:
            raise op.refuse()
    d, a, b, c = (_items(o) for o in op.operands)
    if not f.known() or (len(a), len(b), len(c)) != f.words:
        raise op.refuse()
    values = ", ".join(e.value(o, B32) for o in (*a, *b, *c))
    _together(e, "mma", values, e.bind(functools.partial(_multiply, f)), tuple(e.slot(o) for o in d))


def _multiply(f: Fragments, lanes: Lanes) -> Lanes:
    a, b, c = f.words
    product = f.a(_words(lanes, 0, a)) @ f.b(_words(lanes, a, a + b))
    return dict(enumerate(map(tuple, f.add(_words(lanes, a + b, a + b + c), product))))


# wgmma: each warp of a warpgroup has 16 of the 64 rows, and reads them and B by the descriptors of their layouts.


def multiply_group(e: Emit, op: Op) -> None:
    """wgmma: fence, commit_group, wait_group, and mma_async, which happens at its issue or as late as its wait."""
    match op.opcode[1:]:
        case ("fence", "sync", "aligned"):
            return
        case ("commit_group", "sync", "aligned"):
            _together(e, "wgmma", "t,", "wgmma_commit", ())
        case ("wait_group", "sync", "aligned"):
            _together(e, "wgmma", f"t, {e.value(op.operands[0], B32)}", "wgmma_wait", ())
        case ("mma_async", "sync", "aligned", shape, to, left, right) if shape.startswith("m64n"):
            n, k = shape[4:].split("k")
            _asynchronous(e, op, Fragments(to, left, right, int(n), int(k)))
        case _:
            raise op.refuse()


def _asynchronous(e: Emit, op: Op, f: Fragments) -> None:
    d, left, right, scale, *signs = op.operands
    numbers = [int(x.value) for x in signs if isinstance(x, Number)]
    sums, from_registers = tuple(s for o in _items(d) if (s := e.slot(o)) is not None), isinstance(left, Vector)
    if not f.known() or len(sums) != f.words[2] or len(numbers) != len(signs):
        raise op.refuse()
    trans = [0] * from_registers + numbers[2:] + [0, 0]
    a = [e.value(o, B32) for o in left.items] if isinstance(left, Vector) else [e.value(left, TYPES["b64"])]
    text = ", ".join(("t", e.value(right, TYPES["b64"]), _predicate(e, scale), *a))
    factor = numbers[0] * numbers[1] if numbers else 1
    _together(
        e,
        "wgmma",
        text,
        e.bind(functools.partial(_issue, f, sums, factor, (bool(trans[0]), bool(trans[1])), from_registers)),
        (),
    )


def _predicate(e: Emit, scale: Operand) -> str:
    return str(bool(scale.value)) if isinstance(scale, Number) else e.value(scale, TYPES["pred"])


def _issue(f: Fragments, sums: tuple[int, ...], factor: int, transposed: tuple[bool, bool], from_registers: bool,
           lanes: Lanes) -> Lanes:  # fmt: skip
    t = lanes[0][0]

    def multiply() -> None:
        if from_registers:
            a = f.a(_words(lanes, 3, 3 + f.words[0]))
        else:
            a = _gather(t, lanes[0][3], f.left, 64, f.k, transposed[0])[t.warp.number % 4 * 16 :][:16]
        b = _gather(t, lanes[0][1], f.right, f.n, f.k, transposed[1]).T
        threads = [lanes[i][0] for i in range(32)]
        zero = [0] * len(sums)
        start = [[x.registers[s] for s in sums] if lanes[0][2] else zero for x in threads]
        for x, row in zip(threads, f.add(np.array(start, np.uint32), factor * (a @ b)), strict=True):
            for slot, word in zip(sums, row, strict=True):
                x.registers[slot] = word

    if any(t.warp.products) or t.block.random.random() < 0.5:
        t.warp.products[-1].append(multiply)
    else:
        multiply()
    return dict.fromkeys(lanes, ())


def _gather(t: Any, descriptor: int, kind: str, rows: int, k: int, transposed: bool) -> np.ndarray:
    """A matrix (rows x k) in shared memory by its descriptor; layouts as in the PTX ISA, "Matrix-Descriptor Format"."""
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    size, number = _ELEMENTS[kind][0] // 8, _ELEMENTS[kind][1]
    swizzle = {0: 0, 1: 3, 2: 2, 3: 1}[descriptor >> 62]
    wide = 16 << swizzle  # bytes of a row of the layout's atom, which has 8 rows
    row, column = np.arange(rows)[:, None], np.arange(k)[None, :]
    along, across = (row * size, column) if transposed else (column * size, row)
    outer = along // wide
    if transposed and not swizzle:
        leading, stride = stride, leading
    at = start + across // 8 * stride + across % 8 * wide + along % wide + outer * leading
    at ^= (at >> 7 & (1 << swizzle) - 1) << 4
    at -= ptx_runtime.SHARED_BASE
    shared = np.frombuffer(t.block.shared, np.uint8)
    if at.min() < 0 or at.max() + size > len(shared):
        raise Fault(f"the matrix of descriptor {descriptor:#x} lies outside of shared memory")
    if t.block.races:
        for chunk in np.unique(at // 16):
            t.block.races.shared(t, int(chunk) * 16, 16, write=False)
    raw = sum(shared[at + i].astype(np.uint32) << np.uint32(8 * i) for i in range(size))
    return number(np.asarray(raw))


def _commit(lanes: Lanes) -> Lanes:
    lanes[0][0].warp.products.append([])
    return dict.fromkeys(lanes, ())


def _wait(lanes: Lanes) -> Lanes:
    t, pending = lanes[0]
    done = max(len(t.warp.products) - 1 - pending, 0)
    for group in t.warp.products[:done]:
        for multiply in group:
            multiply()
    del t.warp.products[:done]
    return dict.fromkeys(lanes, ())


OPERATIONS: dict[str, Callable[[Emit, Op], None]] = {
    "ldmatrix": move_matrices, "stmatrix": move_matrices, "mma": multiply_matrices,
    "wgmma": multiply_group,
}  # fmt: skip
NAMES: dict[str, Any] = {"wgmma_commit": _commit, "wgmma_wait": _wait} | {
    f"{name}_{count}{'_trans' * trans}": make(count, trans)
    for name, make in (("ldmatrix", _load), ("stmatrix", _store)) for count in (1, 2, 4) for trans in (False, True)
}  # fmt: skip
