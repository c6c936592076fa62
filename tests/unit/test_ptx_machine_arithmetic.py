"""Instructions of the PTX machine against Python, numpy and exact fractions."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_support import compute, u32

MASK = {n: (1 << n) - 1 for n in (8, 16, 32, 64)}


def signed(x: int, bits: int) -> int:
    return x - (1 << bits) if x >> (bits - 1) else x


def words(bits: int) -> st.SearchStrategy[int]:
    """Integers with the edges that matter: powers of two and their neighbours."""
    edges = [x & MASK[bits] for i in range(bits) for x in (1 << i, (1 << i) - 1, -(1 << i))]
    return st.sampled_from(edges) | st.integers(0, MASK[bits])


def truncate(a: int, b: int) -> int:
    return math.trunc(Fraction(a, b)) if b else -1


INTEGER: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, n: a + b, "sub": lambda a, b, n: a - b, "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: a * b >> n, "min": lambda a, b, n: min(a, b), "max": lambda a, b, n: max(a, b),
    "div": lambda a, b, n: truncate(a, b), "rem": lambda a, b, n: a - b * truncate(a, b) if b else a,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", INTEGER)
@settings(max_examples=20)
@given(data=st.data())
def test_integer_arithmetic(name: str, kind: str, data: st.DataObject) -> None:
    bits = int(kind[1:])
    rows = data.draw(st.lists(st.tuples(words(bits), words(bits)), min_size=1, max_size=32))
    number = (lambda x: signed(x, bits)) if kind[0] == "s" else (lambda x: x)
    expected = [INTEGER[name](number(a), number(b), bits) & MASK[bits] for a, b in rows]
    assert compute(f"{name}.{kind} {{d}}, {{a}}, {{b}}", [bits, bits], bits, rows) == expected


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
@settings(max_examples=20)
@given(data=st.data())
def test_wide_products(kind: str, data: st.DataObject) -> None:
    bits = int(kind[1:])
    rows = data.draw(st.lists(st.tuples(words(bits), words(bits), words(2 * bits)), min_size=1, max_size=32))
    number = (lambda x: signed(x, bits)) if kind[0] == "s" else (lambda x: x)
    expected = [(number(a) * number(b) + c) & MASK[2 * bits] for a, b, c in rows]
    assert compute(f"mad.wide.{kind} {{d}}, {{a}}, {{b}}, {{c}}", [bits, bits, 2 * bits], 2 * bits, rows) == expected


def bits_of(x: int, n: int) -> list[int]:
    return [x >> i & 1 for i in range(n)]


def number_of(bits: Sequence[int]) -> int:
    return sum(b << i for i, b in enumerate(bits))


def extract(a: int, at: int, length: int, n: int, sign: bool) -> int:
    """bfe as the PTX ISA words it."""
    at, length, source = at & 255, length & 255, bits_of(a, n)
    fill = 0 if not sign or not length else source[min(at + length - 1, n - 1)]
    return number_of([source[at + i] if i < length and at + i < n else fill for i in range(n)])


def put(a: int, b: int, at: int, length: int, n: int) -> int:
    """bfi as the PTX ISA words it."""
    at, length, result = at & 255, length & 255, bits_of(b, n)
    for i in range(length):
        if at + i < n:
            result[at + i] = a >> i & 1
    return number_of(result)


COUNTS = st.integers(0, 40) | st.integers(0, MASK[32])
BITS = [
    ("not.b32 {d}, {a}", [32], 32, lambda a: a ^ MASK[32]),
    ("cnot.b32 {d}, {a}", [32], 32, lambda a: int(not a)),
    ("and.b64 {d}, {a}, {b}", [64, 64], 64, lambda a, b: a & b),
    ("or.b16 {d}, {a}, {b}", [16, 16], 16, lambda a, b: a | b),
    ("xor.b32 {d}, {a}, {b}", [32, 32], 32, lambda a, b: a ^ b),
    ("xor.pred {d}, {a}, {b}", [1, 1], 1, lambda a, b: a ^ b),
    ("not.pred {d}, {a}", [1], 1, lambda a: 1 - a),
    ("shl.b32 {d}, {a}, {b}", [32, 32], 32, lambda a, b: (a << b) & MASK[32] if b < 32 else 0),
    ("shr.u64 {d}, {a}, {b}", [64, 32], 64, lambda a, b: a >> b if b < 64 else 0),
    ("shr.s32 {d}, {a}, {b}", [32, 32], 32, lambda a, b: (signed(a, 32) >> min(b, 31)) & MASK[32]),
    ("shr.s16 {d}, {a}, {b}", [16, 32], 16, lambda a, b: (signed(a, 16) >> min(b, 15)) & MASK[16]),
    ("bfe.u32 {d}, {a}, {b}, {c}", [32, 32, 32], 32, lambda a, b, c: extract(a, b, c, 32, False)),
    ("bfe.s32 {d}, {a}, {b}, {c}", [32, 32, 32], 32, lambda a, b, c: extract(a, b, c, 32, True)),
    ("bfe.s64 {d}, {a}, {b}, {c}", [64, 32, 32], 64, lambda a, b, c: extract(a, b, c, 64, True)),
    ("bfi.b32 {d}, {a}, {b}, {c}, {e}", [32, 32, 32, 32], 32, lambda a, b, c, e: put(a, b, c, e, 32)),
    ("bfi.b64 {d}, {a}, {b}, {c}, {e}", [64, 64, 32, 32], 64, lambda a, b, c, e: put(a, b, c, e, 64)),
    ("popc.b64 {d}, {a}", [64], 32, lambda a: sum(bits_of(a, 64))),
    ("clz.b32 {d}, {a}", [32], 32, lambda a: next((i for i in range(32) if a >> (31 - i) & 1), 32)),
    ("brev.b32 {d}, {a}", [32], 32, lambda a: number_of(bits_of(a, 32)[::-1])),
    ("bfind.u32 {d}, {a}", [32], 32, lambda a: max((i for i in range(32) if a >> i & 1), default=MASK[32])),
    ("bfind.shiftamt.u32 {d}, {a}", [32], 32,
     lambda a: min((31 - i for i in range(32) if a >> i & 1), default=MASK[32])),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0xCA", [32, 32, 32], 32, lambda a, b, c: (a & b) | (~a & c & MASK[32])),
    ("lop3.b32 {d}, {a}, {b}, {c}, 0x96", [32, 32, 32], 32, lambda a, b, c: a ^ b ^ c),
    ("shf.l.wrap.b32 {d}, {a}, {b}, {c}", [32, 32, 32], 32,
     lambda a, b, c: ((b << 32 | a) << (c & 31)) >> 32 & MASK[32]),
    ("shf.r.clamp.b32 {d}, {a}, {b}, {c}", [32, 32, 32], 32, lambda a, b, c: (b << 32 | a) >> min(c, 32) & MASK[32]),
    ("selp.b32 {d}, {a}, {b}, {c}", [32, 32, 1], 32, lambda a, b, c: a if c else b),
    ("slct.u32.s32 {d}, {a}, {b}, {c}", [32, 32, 32], 32, lambda a, b, c: a if signed(c, 32) >= 0 else b),
    ("sad.s32 {d}, {a}, {b}, {c}", [32, 32, 32], 32,
     lambda a, b, c: (c + abs(signed(a, 32) - signed(b, 32))) & MASK[32]),
    ("abs.s32 {d}, {a}", [32], 32, lambda a: abs(signed(a, 32)) & MASK[32]),
    ("neg.s64 {d}, {a}", [64], 64, lambda a: -a & MASK[64]),
    ("add.sat.s32 {d}, {a}, {b}", [32, 32], 32,
     lambda a, b: min(max(signed(a, 32) + signed(b, 32), -(1 << 31)), MASK[32] >> 1) & MASK[32]),
    ("add.s16x2 {d}, {a}, {b}", [32, 32], 32, lambda a, b: (a + b & 0xFFFF) | ((a >> 16) + (b >> 16) & 0xFFFF) << 16),
    ("cvt.s32.s8 {d}, {a}", [16], 32, lambda a: signed(a & 255, 8) & MASK[32]),
    ("cvt.sat.u8.s32 {d}, {a}", [32], 32, lambda a: min(max(signed(a, 32), 0), 255)),
    ("cvt.sat.s16.s64 {d}, {a}", [64], 16, lambda a: min(max(signed(a, 64), -32768), 32767) & MASK[16]),
    ("cvt.u64.u32 {d}, {a}", [32], 64, lambda a: a),
    ("cvt.s64.s16 {d}, {a}", [16], 64, lambda a: signed(a, 16) & MASK[64]),
    ("set.lt.u32.s32 {d}, {a}, {b}", [32, 32], 32, lambda a, b: MASK[32] * (signed(a, 32) < signed(b, 32))),
    ("mov.b64 {d}, {{{a}, {b}}}", [32, 32], 64, lambda a, b: a | b << 32),
    ("mov.b64 {{_, {d}}}, {a}", [64], 32, lambda a: a >> 32),
]  # fmt: skip


@pytest.mark.parametrize(("instruction", "inputs", "output", "formula"), BITS, ids=[b[0].split()[0] for b in BITS])
@settings(max_examples=30)
@given(data=st.data())
def test_bits(
    instruction: str, inputs: list[int], output: int, formula: Callable[..., int], data: st.DataObject
) -> None:
    first = words(inputs[0]) if inputs[0] > 1 else st.integers(0, 1)
    others = [st.integers(0, 1) if n == 1 else words(n) | COUNTS if n == 32 else words(n) for n in inputs[1:]]
    rows = data.draw(st.lists(st.tuples(first, *others), min_size=1, max_size=32))
    assert compute(instruction, inputs, output, rows) == [formula(*row) for row in rows]


@given(st.lists(st.tuples(words(32), words(32), words(32)), min_size=1, max_size=32))
def test_permute(rows: list[tuple[int, int, int]]) -> None:
    def expected(a: int, b: int, c: int) -> int:
        source = u32(a) + u32(b)
        picks = [(source[c >> 4 * i & 7], c >> 4 * i & 8) for i in range(4)]
        return int.from_bytes(bytes((0xFF if x & 0x80 else 0) if s else x for x, s in picks), "little")

    assert compute("prmt.b32 {d}, {a}, {b}, {c}", [32, 32, 32], 32, rows) == [expected(*row) for row in rows]


COMPARE: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u16"])
@pytest.mark.parametrize("name", COMPARE)
@settings(max_examples=15)
@given(data=st.data())
def test_comparison(name: str, kind: str, data: st.DataObject) -> None:
    bits = int(kind[1:])
    number = (lambda x: signed(x, bits)) if kind[0] == "s" else (lambda x: x)
    pairs = st.tuples(words(bits), words(bits)) | words(bits).map(lambda x: (x, x))
    rows = [
        (a, b, c) for (a, b), c in data.draw(st.lists(st.tuples(pairs, st.integers(0, 1)), min_size=1, max_size=32))
    ]
    truth = [COMPARE[name](number(a), number(b)) for a, b, _ in rows]
    operands = [bits, bits, 1]
    for how, join in (("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)):
        first = compute(f"setp.{name}.{how}.{kind} {{d}}|%p1, {{a}}, {{b}}, {{c}}", operands, 1, rows)
        second = compute(f"setp.{name}.{how}.{kind} %p1|{{d}}, {{a}}, {{b}}, !{{c}}", operands, 1, rows)
        assert first == [join(int(t), c) for t, (_, _, c) in zip(truth, rows, strict=True)]
        assert second == [join(int(not t), 1 - c) for t, (_, _, c) in zip(truth, rows, strict=True)]


# Floats.

FLOATS = {"f16": (16, "e", 11), "f32": (32, "f", 24), "f64": (64, "d", 53)}


def patterns(form: str) -> st.SearchStrategy[int]:
    """Bits of floats: edges (zeros, subnormals, infinities, NaN), neighbours, and anything."""
    bits, _, precision = FLOATS[form]
    some = st.floats(width=bits, allow_nan=False).map(lambda x: pattern(x, form))
    top = ((1 << (bits - precision)) - 1) << (precision - 1)
    edges = [
        s << (bits - 1) | x
        for s in (0, 1)
        for x in (0, 1, (1 << (precision - 1)) - 1, 1 << (precision - 1), top - 1, top, top + 1)
    ]
    ordinary = st.integers(-4096, 4096).map(lambda x: pattern(x / 16, form))
    return st.sampled_from(edges) | some | ordinary | st.integers(0, MASK[bits])


def pattern(x: float, form: str) -> int:
    return int.from_bytes(struct.pack("<" + FLOATS[form][1], x), "little")


def value(bits: int, form: str) -> float:
    width, code, _ = FLOATS[form]
    return float(struct.unpack("<" + code, bits.to_bytes(width // 8, "little"))[0])


def same(actual: int, expected: int, form: str) -> bool:
    """Equal bits; or both NaN, whose payload is the device's own."""
    return actual == expected or (math.isnan(value(actual, form)) and math.isnan(value(expected, form)))


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in ("add", "sub", "mul", "div") for form in FLOATS if (name, form) != ("div", "f16")],
)
@settings(max_examples=40)
@given(data=st.data())
def test_float_arithmetic_equals_numpy(name: str, form: str, data: st.DataObject) -> None:
    bits = FLOATS[form][0]
    rows = data.draw(st.lists(st.tuples(patterns(form), patterns(form)), min_size=1, max_size=32))
    a, b = (np.array([r[i] for r in rows], f"<u{bits // 8}").view(f"<f{bits // 8}") for i in (0, 1))
    with np.errstate(all="ignore"):
        exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name](a, b)
    expected = exact.view(f"<u{bits // 8}").tolist()
    actual = compute(f"{name}.rn.{form} {{d}}, {{a}}, {{b}}", [bits, bits], bits, rows)
    assert all(same(x, y, form) for x, y in zip(actual, expected, strict=True))


def rounds_to(bits: int, exact: Fraction, form: str, mode: str) -> bool:
    """Whether bits are the correctly rounded result: no neighbour is a better one."""
    width, _, precision = FLOATS[form]
    infinity, sign = ((1 << (width - precision)) - 1) << (precision - 1), bits & ~(MASK[width] >> 1)
    top = Fraction(value(infinity - 1, form))
    beyond = top * (1 << precision) / ((1 << precision) - 1)  # what infinity would be if the exponent went on

    def number(magnitude: int) -> Fraction:
        x = beyond if magnitude == infinity else Fraction(value(magnitude, form))
        return -x if sign else x

    if abs(exact) > top and (mode != "rn" or abs(exact) > beyond):
        exact = (beyond if mode == "rn" else (top + beyond) / 2) * (1 if exact > 0 else -1)
    magnitude = bits ^ sign
    here, others = number(magnitude), [number(m) for m in (magnitude - 1, magnitude + 1) if 0 <= m <= infinity]
    others += [] if magnitude else [-others[0]]
    if mode == "rn":
        gaps = [abs(other - exact) for other in others]
        return all(abs(here - exact) < gap or (abs(here - exact) == gap and not magnitude & 1) for gap in gaps)
    allowed: Callable[[Fraction], bool] = {
        "rz": lambda x: abs(x) <= abs(exact), "rm": lambda x: x <= exact, "rp": lambda x: x >= exact,
    }[mode]  # fmt: skip
    return allowed(here) and not any(allowed(x) and abs(x - exact) < abs(here - exact) for x in others)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("form", ["f16", "f32", "f64"])
@settings(max_examples=60)
@given(data=st.data())
def test_fma_rounds_once(form: str, mode: str, data: st.DataObject) -> None:
    bits = FLOATS[form][0]
    rows = data.draw(st.lists(st.tuples(*[patterns(form)] * 3), min_size=1, max_size=32))
    for row, x in zip(
        rows, compute(f"fma.{mode}.{form} {{d}}, {{a}}, {{b}}, {{c}}", [bits] * 3, bits, rows), strict=True
    ):
        a, b, c = (value(v, form) for v in row)
        if not all(map(math.isfinite, (a, b, c))):
            assert same(x, pattern(c if math.isfinite(a) and math.isfinite(b) else a * b + c, form), form)
        elif exact := Fraction(a) * Fraction(b) + Fraction(c):
            assert rounds_to(x, exact, form, mode), (row, x)
        else:
            negative = [math.copysign(1, v) < 0 for v in (a, b, c)]
            zeros = (negative[0] ^ negative[1], negative[2])
            minus = zeros[0] if zeros[0] == zeros[1] and not (a and b) else mode == "rm"
            assert x == (1 << (bits - 1) if minus else 0), (row, x)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize(("name", "count"), [("add", 2), ("mul", 2), ("div", 2), ("rcp", 1)])
@settings(max_examples=30)
@given(data=st.data())
def test_directed_rounding(name: str, count: int, mode: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(*[patterns("f32")] * count), min_size=1, max_size=32))
    operands = ", ".join(("{a}", "{b}")[:count])
    for row, x in zip(rows, compute(f"{name}.{mode}.f32 {{d}}, {operands}", [32] * count, 32, rows), strict=True):
        args = [value(v, "f32") for v in row]
        if not all(map(math.isfinite, args)) or (name in ("div", "rcp") and not args[-1]):
            continue
        exact = {
            "add": lambda a, b: a + b,
            "mul": lambda a, b: a * b,
            "div": lambda a, b: a / b,
            "rcp": lambda a: 1 / a,
        }[name](*map(Fraction, args))
        if exact:
            assert rounds_to(x, exact, "f32", mode), (row, x)


@given(st.lists(st.tuples(patterns("f32")), min_size=1, max_size=32))
def test_square_root(rows: list[tuple[int]]) -> None:
    with np.errstate(all="ignore"):
        expected = np.sqrt(np.array([a for (a,) in rows], "<u4").view("<f4")).view("<u4").tolist()
    for x, y in zip(compute("sqrt.rn.f32 {d}, {a}", [32], 32, rows), expected, strict=True):
        assert same(x, y, "f32")


@settings(max_examples=60)
@given(st.lists(st.tuples(patterns("f32"), patterns("f32")), min_size=1, max_size=32))
def test_float_minimum_and_comparison(rows: list[tuple[int, int]]) -> None:
    pairs = [(value(a, "f32"), value(b, "f32")) for a, b in rows]
    both = [math.isnan(a) or math.isnan(b) for a, b in pairs]
    order = [(a, math.copysign(1, a)) < (b, math.copysign(1, b)) for a, b in pairs]
    for name, keep in (("min", order), ("max", [not x for x in order])):
        actual = compute(f"{name}.f32 {{d}}, {{a}}, {{b}}", [32, 32], 32, rows)
        for x, (a, b), row, first in zip(actual, pairs, rows, keep, strict=True):
            expected = row[1] if math.isnan(a) else row[0] if math.isnan(b) else row[0] if first else row[1]
            assert same(x, expected, "f32")
        strict = compute(f"{name}.NaN.f32 {{d}}, {{a}}, {{b}}", [32, 32], 32, rows)
        assert [math.isnan(value(x, "f32")) for x in strict] == both
    for name, how in COMPARE.items():
        ordered = [how(a, b) and not n for (a, b), n in zip(pairs, both, strict=True)]
        assert compute(f"setp.{name}.f32 {{d}}, {{a}}, {{b}}", [32, 32], 1, rows) == ordered
        unordered = [how(a, b) or n for (a, b), n in zip(pairs, both, strict=True)]
        assert compute(f"setp.{name}u.f32 {{d}}, {{a}}, {{b}}", [32, 32], 1, rows) == unordered
    assert compute("setp.nan.f32 {d}, {a}, {b}", [32, 32], 1, rows) == both
    assert compute("setp.num.f32 {d}, {a}, {b}", [32, 32], 1, rows) == [not n for n in both]


def flushed(x: int) -> int:
    return x if x & 0x7F800000 else x & 1 << 31


@given(st.lists(st.tuples(patterns("f32"), patterns("f32")), min_size=1, max_size=32))
def test_flush_and_saturation(rows: list[tuple[int, int]]) -> None:
    plain = compute("mul.f32 {d}, {a}, {b}", [32, 32], 32, [(flushed(a), flushed(b)) for a, b in rows])
    assert compute("mul.ftz.f32 {d}, {a}, {b}", [32, 32], 32, rows) == [flushed(x) for x in plain]
    for x, y in zip(
        compute("mul.sat.f32 {d}, {a}, {b}", [32, 32], 32, rows),
        compute("mul.f32 {d}, {a}, {b}", [32, 32], 32, rows),
        strict=True,
    ):
        number = value(y, "f32")
        assert value(x, "f32") == (0 if math.isnan(number) else min(max(number, 0), 1))


@settings(max_examples=60)
@given(st.lists(st.tuples(words(64)), min_size=1, max_size=32), st.sampled_from(["rn", "rz", "rm", "rp"]))
def test_integer_to_float(rows: list[tuple[int]], mode: str) -> None:
    for kind in ("s64", "u64", "s32", "u16"):
        bits = int(kind[1:])
        some = [(x & MASK[bits],) for (x,) in rows]
        for form in ("f16", "f32", "f64"):
            for (a,), x in zip(
                some, compute(f"cvt.{mode}.{form}.{kind} {{d}}, {{a}}", [bits], FLOATS[form][0], some), strict=True
            ):
                exact = signed(a, bits) if kind[0] == "s" else a
                assert rounds_to(x, Fraction(exact), form, mode) if exact else x == 0


@settings(max_examples=60)
@given(st.lists(st.tuples(patterns("f64")), min_size=1, max_size=32))
def test_float_to_integer_and_narrower(rows: list[tuple[int]]) -> None:
    rounding: dict[str, Callable[[float], int]] = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    for mode, how in rounding.items():
        for kind in ("s32", "u32", "s64", "u8"):
            bits = int(kind[1:])
            low, high = (-(1 << (bits - 1)), MASK[bits] >> 1) if kind[0] == "s" else (0, MASK[bits])
            for (a,), x in zip(
                rows, compute(f"cvt.{mode}.{kind}.f64 {{d}}, {{a}}", [64], max(bits, 16), rows), strict=True
            ):
                number = value(a, "f64")
                clamped = 0 if math.isnan(number) else high if number > high else low if number < low else how(number)
                assert x & MASK[bits] == min(max(clamped, low), high) & MASK[bits]
        for (a,), x in zip(rows, compute(f"cvt.{mode}.f64.f64 {{d}}, {{a}}", [64], 64, rows), strict=True):
            if math.isfinite(number := value(a, "f64")):
                assert value(x, "f64") == how(number)
    for form in ("f16", "f32"):
        for mode in ("rn", "rz", "rm", "rp"):
            for (a,), x in zip(
                rows, compute(f"cvt.{mode}.{form}.f64 {{d}}, {{a}}", [64], FLOATS[form][0], rows), strict=True
            ):
                if math.isfinite(number := value(a, "f64")) and number:
                    assert rounds_to(x, Fraction(number), form, mode)


@given(st.lists(st.tuples(patterns("f32"), patterns("f32")), min_size=1, max_size=32))
def test_packed_halves(rows: list[tuple[int, int]]) -> None:
    packed = compute("cvt.rn.f16x2.f32 {d}, {a}, {b}", [32, 32], 32, rows)
    high = compute("cvt.rn.f16.f32 {d}, {a}", [32, 32], 16, rows)
    low = compute("cvt.rn.f16.f32 {d}, {b}", [32, 32], 16, rows)
    assert packed == [h << 16 | x for h, x in zip(high, low, strict=True)]
    pairs = list(zip(packed, packed[::-1], strict=True))
    sums = compute("add.f16x2 {d}, {a}, {b}", [32, 32], 32, pairs)
    lows = compute("add.f16 {d}, {a}, {b}", [16, 16], 16, [(a & MASK[16], b & MASK[16]) for a, b in pairs])
    highs = compute("add.f16 {d}, {a}, {b}", [16, 16], 16, [(a >> 16, b >> 16) for a, b in pairs])
    assert sums == [h << 16 | x for h, x in zip(highs, lows, strict=True)]


@given(st.lists(st.tuples(patterns("f32")), min_size=1, max_size=32))
def test_bfloat16(rows: list[tuple[int]]) -> None:
    for (a,), x in zip(rows, compute("cvt.rn.bf16.f32 {d}, {a}", [32], 16, rows), strict=True):
        if math.isnan(value(a, "f32")):
            assert math.isnan(value(x << 16, "f32"))
        else:
            assert x == (a + 0x7FFF + (a >> 16 & 1)) >> 16
    wide = [(x,) for x in compute("cvt.rn.bf16.f32 {d}, {a}", [32], 16, rows)]
    for (a,), x in zip(wide, compute("cvt.f32.bf16 {d}, {a}", [16], 32, wide), strict=True):
        assert same(x, a << 16, "f32")


def test_approximations_are_near() -> None:
    rows = [(pattern(x, "f32"),) for x in (0.25, 1.0, 2.0, 3.5, 9.0)]
    for name, exact in {
        "ex2": lambda x: 2**x, "lg2": math.log2, "rcp": lambda x: 1 / x, "sqrt": math.sqrt, "rsqrt": lambda x: x**-0.5,
        "sin": math.sin, "cos": math.cos, "tanh": math.tanh,
    }.items():  # fmt: skip
        actual = compute(f"{name}.approx.f32 {{d}}, {{a}}", [32], 32, rows)
        assert [value(x, "f32") for x in actual] == pytest.approx([exact(value(a, "f32")) for (a,) in rows], rel=1e-6)
    for name, x, expected in (
        ("ex2", 1000.0, math.inf),
        ("lg2", 0.0, -math.inf),
        ("rcp", -0.0, -math.inf),
        ("rsqrt", 0.0, math.inf),
    ):
        assert value(compute(f"{name}.approx.f32 {{d}}, {{a}}", [32], 32, [(pattern(x, "f32"),)])[0], "f32") == expected
    assert math.isnan(value(compute("lg2.approx.f32 {d}, {a}", [32], 32, [(pattern(-1.0, "f32"),)])[0], "f32"))
