"""PTX arithmetic, comparison and moves as lines of Python over the register list ``r`` of the thread ``t``.

A register holds the unsigned integer of its bits, a predicate a bool. What an instruction may call stands in
``ptx_numbers.NAMES`` and ``ptx_runtime.NAMES``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ptx_memory import Unsupported

from miriam.elastic.ptx import Instruction, Operand, Pair, Vector


@dataclass(frozen=True, slots=True)
class Type:
    """An operand type: kind u, s, b, f or p (predicate); ``lanes`` is 2 for the packed formats."""

    kind: str
    bits: int
    form: str = ""
    lanes: int = 1

    @property
    def mask(self) -> int:
        return (1 << self.bits) - 1

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def range(self) -> tuple[int, int]:
        return (-self.sign, self.sign - 1) if self.kind == "s" else (0, self.mask)

    def number(self, x: str) -> str:
        """The mathematical value of bits."""
        return f"(({x} ^ {self.sign}) - {self.sign})" if self.kind == "s" else x


TYPES = {f"{k}{n}": Type(k, n) for k in "usb" for n in (8, 16, 32, 64)} | {
    "pred": Type("p", 1), "f16": Type("f", 16, "f16"), "bf16": Type("f", 16, "bf16"), "f32": Type("f", 32, "f32"),
    "f64": Type("f", 64, "f64"), "f16x2": Type("f", 32, "f16", 2), "bf16x2": Type("f", 32, "bf16", 2),
    "u16x2": Type("u", 32, "u16", 2), "s16x2": Type("s", 32, "s16", 2),
}  # fmt: skip
U32, B32, PRED = TYPES["u32"], TYPES["b32"], TYPES["pred"]


class Emit(Protocol):
    """What the compiler offers to an instruction; ``visible`` marks what other threads can see."""

    visible: bool

    def value(self, of: Operand, type: Type) -> str: ...
    def assign(self, to: Operand, type: Type, text: str) -> None: ...
    def slot(self, of: Operand) -> int | None: ...
    def line(self, text: str) -> None: ...
    def address(self, of: Operand, space: str) -> tuple[str, str]: ...
    def resume(self) -> int: ...
    def bind(self, thing: object) -> str: ...


@dataclass(frozen=True, slots=True)
class Op:
    """An instruction taken apart: types in order, the other parts of the opcode, the operands."""

    name: str
    types: tuple[Type, ...]
    flags: frozenset[str]
    operands: tuple[Operand, ...]
    opcode: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, i: Instruction, text: str) -> Op:
        types = tuple(TYPES[part] for part in i.opcode[1:] if part in TYPES)
        rest = frozenset(part for part in i.opcode[1:] if part not in TYPES)
        return cls(i.opcode[0], types, rest, i.operands, i.opcode, text)

    def refuse(self) -> Unsupported:
        return Unsupported(self.text)

    def allow(self, *flags: str) -> None:
        if any(f not in flags and not f.startswith(("L1::", "L2::")) for f in self.flags):
            raise self.refuse()

    def one(self, *flags: str) -> str:
        """The one of these that the opcode holds; empty for none."""
        return next((f for f in flags if f in self.flags), "")


# Arithmetic: the text of a result from the texts of the operands.

ROUNDING = ("rn", "rz", "rm", "rp")
_INTEGER: dict[str, str] = {  # {a} are bits, {x} their value, {m} the mask, {n} the width
    "add": "({a} + {b}) & {m}", "sub": "({a} - {b}) & {m}", "neg": "-{a} & {m}", "abs": "abs({x}) & {m}",
    "min": "min({x}, {y}) & {m}", "max": "max({x}, {y}) & {m}", "div": "divide({x}, {y}, {m}) & {m}",
    "rem": "remainder({x}, {y}) & {m}", "sad": "({c} + abs({x} - {y})) & {m}",
    "and": "{a} & {b}", "or": "{a} | {b}", "xor": "{a} ^ {b}", "not": "{a} ^ {m}", "cnot": "int({a} == 0)",
    "shl": "({a} << min({b}, {n})) & {m}", "shr": "({x} >> min({b}, {n})) & {m}",
    "bfe": "field({a}, {b}, {c}, {n}, {s})", "bfi": "insert({a}, {b}, {c}, {d}, {n})",
    "popc": "({a}).bit_count()", "clz": "{n} - ({a}).bit_length()", "brev": "int(f'{{{a}:0{n}b}}'[::-1], 2)",
    "prmt": "permute({a}, {b}, {c})", "lop3": "lookup({a}, {b}, {c}, {d}, {m})",
}  # fmt: skip
_FLOAT: dict[str, str] = {  # {x} are values
    "add": "{x} + {y}", "sub": "{x} - {y}", "mul": "{x} * {y}", "div": "quotient({x}, {y})",
    "fma": "fma({x}, {y}, {z})", "min": "minimum({x}, {y})", "max": "maximum({x}, {y})", "rcp": "quotient(1.0, {x})",
    "sqrt": "square_root({x})", "rsqrt": "quotient(1.0, square_root({x}))", "ex2": "ex2({x})", "lg2": "lg2({x})",
    "sin": "sin({x})", "cos": "cos({x})", "tanh": "tanh({x})",
}  # fmt: skip
_DIRECTED = ("add", "sub", "mul", "div", "fma", "rcp")


def compute(op: Op, name: str, t: Type, args: Sequence[str]) -> str:
    """One result of type t; raises Unsupported for what is not known."""
    if t.lanes == 2:
        half = TYPES[t.form]
        low = compute(op, name, half, [f"({a} & 65535)" for a in args])
        high = compute(op, name, half, [f"({a} >> 16)" for a in args])
        return f"({low}) | ({high}) << 16"
    if t.kind == "f":
        return _float(op, name, t, args)
    if t.kind == "p":
        if name not in ("and", "or", "xor", "not"):
            raise op.refuse()
        return f"{args[0]} ^ True" if name == "not" else _INTEGER[name].format(a=args[0], b=args[1])
    values = [t.number(a) for a in args]
    if "sat" in op.flags and name in ("add", "sub"):
        least, most = t.range
        return f"min(max({values[0]} {'+' if name == 'add' else '-'} {values[1]}, {least}), {most}) & {t.mask}"
    if name not in _INTEGER:
        raise op.refuse()
    named = dict(zip("abcd", args, strict=False)) | dict(zip("xyzw", values, strict=False))
    return _INTEGER[name].format(**named, m=t.mask, n=t.bits, s=t.kind == "s")


def _float(op: Op, name: str, t: Type, args: Sequence[str]) -> str:
    form, ftz = t.form, "ftz" in op.flags
    flushed = [f"flush_{form}({a})" if ftz else a for a in args]
    if name in ("neg", "abs"):
        return f"{flushed[0]} ^ {t.sign}" if name == "neg" else f"{flushed[0]} & {t.mask ^ t.sign}"
    if name == "copysign":
        return f"{args[0]} & {t.sign} | {args[1]} & {t.mask ^ t.sign}"
    values = [f"value_{form}({a})" for a in flushed]
    mode = op.one("rz", "rm", "rp")
    if name not in _FLOAT or (mode and (name not in _DIRECTED or "sat" in op.flags)):
        raise op.refuse()
    if mode:
        text = f"directed('{form}', '{name}', '{mode}', {', '.join(values)})"
    else:
        text = _FLOAT[name].format(**dict(zip("xyz", values, strict=False)))
        if form == "f64" and name == "fma":
            text = text.replace("fma(", "fma_f64(", 1)
        if "NaN" in op.flags:
            text = "strict_" + text
        text = f"bits_{form}(unit({text}))" if "sat" in op.flags else f"bits_{form}({text})"
    return f"flush_{form}({text})" if ftz else text


_OPERANDS = {"shl": "tu", "shr": "tu", "bfe": "tuu", "bfi": "ttuu", "prmt": "ttu", "lop3": "tttu"}
_SHORT = ("popc", "clz")  # their result has 32 bits whatever the operand


def arithmetic(e: Emit, op: Op) -> None:
    op.allow(*ROUNDING, "ftz", "sat", "approx", "full", "NaN")
    (t,) = op.types
    wanted = _OPERANDS.get(op.name, "t" * (len(op.operands) - 1))
    if len(wanted) != len(op.operands) - 1:
        raise op.refuse()
    args = [e.value(o, t if k == "t" else U32) for o, k in zip(op.operands[1:], wanted, strict=True)]
    e.assign(op.operands[0], U32 if op.name in _SHORT else t, compute(op, op.name, t, args))


def multiply(e: Emit, op: Op) -> None:
    """mul and mad: lo, hi, wide; a float mad is an fma."""
    (t,) = op.types
    if t.kind == "f":
        op.allow(*ROUNDING, "ftz", "sat")
        name = "mul" if op.name == "mul" else "fma"
        e.assign(op.operands[0], t, compute(op, name, t, [e.value(o, t) for o in op.operands[1:]]))
        return
    op.allow("lo", "hi", "wide")
    if not op.flags or t.lanes > 1:
        raise op.refuse()
    result = Type(t.kind, 2 * t.bits) if "wide" in op.flags else t
    a, b = (e.value(o, t) for o in op.operands[1:3])
    text = f"{a} * {b}" if "lo" in op.flags else f"{t.number(a)} * {t.number(b)}"
    text = f"({text} >> {t.bits})" if "hi" in op.flags else text
    if op.name == "mad":
        text += f" + {e.value(op.operands[3], result)}"
    e.assign(op.operands[0], result, f"({text}) & {result.mask}")


def find_highest(e: Emit, op: Op) -> None:
    op.allow("shiftamt")
    (t,) = op.types
    text = f"highest({e.value(op.operands[1], t)}, {t.bits}, {t.kind == 's'}, {'shiftamt' in op.flags})"
    e.assign(op.operands[0], U32, text)


def funnel(e: Emit, op: Op) -> None:
    op.allow("l", "r", "wrap", "clamp")
    a, b, n = (e.value(o, B32) for o in op.operands[1:])
    n = f"({n} & 31)" if "wrap" in op.flags else f"min({n}, 32)"
    text = f"({a} | {b} << 32) << {n} >> 32" if "l" in op.flags else f"({a} | {b} << 32) >> {n}"
    e.assign(op.operands[0], B32, f"({text}) & {B32.mask}")


# Comparison and selection.

_ORDERED = {
    name: "{x} " + sign + " {y}"
    for name, sign in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items()
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def _compare(op: Op, t: Type, a: str, b: str) -> str:
    how = op.one(*_ORDERED, *_UNSIGNED, *(f"{c}u" for c in _ORDERED), "num", "nan")
    if not how:
        raise op.refuse()
    if t.kind != "f":
        if how in _UNSIGNED:
            return _ORDERED[_UNSIGNED[how]].format(x=a, y=b)
        return _ORDERED[how].format(x=t.number(a), y=t.number(b))
    x, y = (f"value_{t.form}({f'flush_{t.form}({v})' if 'ftz' in op.flags else v})" for v in (a, b))
    if how in ("num", "nan"):
        return f"unordered({x}, {y}){' ^ True' if how == 'num' else ''}"
    if how.endswith("u"):
        return f"unordered({x}, {y}) | ({_ORDERED[how[:-1]].format(x=x, y=y)})"
    return f"(unordered({x}, {y}) ^ True) & ({x} != {y})" if how == "ne" else _ORDERED[how].format(x=x, y=y)


_CONDITIONS = frozenset((*_ORDERED, *_UNSIGNED, *(f"{c}u" for c in _ORDERED), "num", "nan"))


def set_predicate(e: Emit, op: Op) -> None:
    op.allow(*_CONDITIONS, "and", "or", "xor", "ftz")
    (t,) = op.types
    a, b = (e.value(o, t) for o in op.operands[1:3])
    to = op.operands[0]
    targets = [to.first, to.second] if isinstance(to, Pair) else [to]
    if t.lanes == 2:
        half = TYPES[t.form]
        results = [
            _compare(op, half, f"({a} & 65535)", f"({b} & 65535)"),
            _compare(op, half, f"({a} >> 16)", f"({b} >> 16)"),
        ]
        results = [f"({x})" for x in results]
    else:
        e.line(f"v = {_compare(op, t, a, b)}")
        results = ["v", "(v ^ True)"]
    if len(op.operands) > 3:
        how = {"and": "&", "or": "|", "xor": "^"}[op.one("and", "or", "xor")]
        results = [f"{x} {how} {e.value(op.operands[3], PRED)}" for x in results]
    if len(targets) > 1:  # the first target may be an operand of the second
        e.line(f"v, w = {', '.join(results)}")
        results = ["v", "w"]
    for target, text in zip(targets, results, strict=False):
        e.assign(target, PRED, text)


def set_value(e: Emit, op: Op) -> None:
    op.allow(*_CONDITIONS, "ftz")
    to, t = op.types
    if t.lanes > 1 or to.lanes > 1 or len(op.operands) > 3:
        raise op.refuse()
    true = {"f32": 0x3F800000}.get(to.form, to.mask)
    test = _compare(op, t, *(e.value(o, t) for o in op.operands[1:3]))
    e.assign(op.operands[0], to, f"choose({test}, {true}, 0)")


def select(e: Emit, op: Op) -> None:
    op.allow()
    a, b = (e.value(o, op.types[0]) for o in op.operands[1:3])
    e.assign(op.operands[0], op.types[0], f"choose({e.value(op.operands[3], PRED)}, {a}, {b})")


def select_by_sign(e: Emit, op: Op) -> None:
    op.allow("ftz")
    to, t = op.types
    a, b, c = e.value(op.operands[1], to), e.value(op.operands[2], to), e.value(op.operands[3], t)
    test = f"{c} < {t.sign}" if t.kind == "s" else f"value_f32({c}) >= 0"
    e.assign(op.operands[0], to, f"choose({test}, {a}, {b})")


# Moves and conversions.


def move(e: Emit, op: Op) -> None:
    op.allow()
    (t,), (to, source) = op.types, op.operands
    if isinstance(source, Vector):
        bits = t.bits // len(source.items)
        parts = [f"{e.value(o, Type('b', bits))} << {bits * i}" for i, o in enumerate(source.items)]
        e.assign(to, t, " | ".join(parts))
    elif isinstance(to, Vector):
        bits = t.bits // len(to.items)
        e.line(f"v = {e.value(source, t)}")
        for i, o in enumerate(to.items):
            e.assign(o, Type("b", bits), f"(v >> {bits * i}) & {(1 << bits) - 1}")
    else:
        e.assign(to, t, e.value(source, t))


def convert(e: Emit, op: Op) -> None:
    op.allow(*ROUNDING, "rna", "rni", "rzi", "rmi", "rpi", "ftz", "sat")
    to, source = op.types
    if to.lanes == 2:
        half, (high, low) = TYPES[to.form], (e.value(o, source) for o in op.operands[1:])
        e.assign(op.operands[0], to, f"{_convert(op, half, source, low)} | {_convert(op, half, source, high)} << 16")
    else:
        e.assign(op.operands[0], to, _convert(op, to, source, e.value(op.operands[1], source)))


def _convert(op: Op, to: Type, source: Type, x: str) -> str:
    mode, integral, sat = op.one(*ROUNDING, "rna") or "rn", op.one("rni", "rzi", "rmi", "rpi")[:2], "sat" in op.flags
    if "p" in (to.kind, source.kind) or "b" in (to.kind, source.kind):
        raise op.refuse()
    low, high = to.range if to.kind != "f" else (0, 0)
    if source.kind != "f":
        value = source.number(x)
        if to.kind != "f":
            return f"min(max({value}, {low}), {high}) & {to.mask}" if sat else f"{value} & {to.mask}"
        if mode == "rn" and (source.bits <= 32 or to.form == "f64"):
            return f"bits_{to.form}({f'unit({value})' if sat else f'float({value})'})"
        return f"narrow({f'unit({value})' if sat else value}, FORMAT_{to.form}, '{mode}')"
    value = f"value_{source.form}({f'flush_f32({x})' if 'ftz' in op.flags and source.form == 'f32' else x})"
    if to.kind != "f":
        if not integral:
            raise op.refuse()
        return f"to_integer({value}, '{integral}', {low}, {high}) & {to.mask}"
    if to == source and not (integral or sat or "ftz" in op.flags):
        return x
    value = f"to_integral({value}, '{integral}')" if integral else value
    value = f"unit({value})" if sat else value
    text = f"bits_{to.form}({value})" if mode == "rn" else f"narrow({value}, FORMAT_{to.form}, '{mode}')"
    return f"flush_f32({text})" if "ftz" in op.flags and to.form == "f32" else text


OPERATIONS: dict[str, Callable[[Emit, Op], None]] = {
    **dict.fromkeys((*_INTEGER, *_FLOAT, "copysign"), arithmetic), "mul": multiply, "mad": multiply,
    "bfind": find_highest, "shf": funnel, "setp": set_predicate, "set": set_value, "selp": select,
    "slct": select_by_sign, "mov": move, "cvt": convert,
}  # fmt: skip
