"""Numbers as PTX sees them: bit patterns in, bit patterns out, equal to the bit on every computer.

A float travels as the unsigned integer of its bits. Its value is a Python float (binary64), which holds every
value of the narrower formats; one addition, product, quotient or root in binary64 and one rounding to at
most 24 bits of precision gives the correctly rounded result (53 >= 2 * 24 + 2: Figueroa, "When is double
rounding innocuous?", 1995). What that does not cover goes through exact fractions.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

from ptx_memory import UNDEFINED, Fault, lenient

INF = math.inf


@dataclass(frozen=True, slots=True)
class Format:
    """A binary interchange format: its width and precision in bits, and the letter of ``struct``."""

    name: str
    bits: int
    precision: int
    code: str = ""

    @property
    def bias(self) -> int:
        return (1 << (self.bits - self.precision - 1)) - 1

    @property
    def infinity(self) -> int:
        return ((1 << (self.bits - self.precision)) - 1) << (self.precision - 1)

    @property
    def nan(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)


FORMATS = {f.name: f for f in (
    Format("f16", 16, 11, "e"), Format("bf16", 16, 8), Format("f32", 32, 24, "f"), Format("f64", 64, 53, "d"),
)}  # fmt: skip


_UNSIGNED = {16: "H", 32: "I", 64: "Q"}  # of struct


def narrow(x: Fraction | float | int, to: Format, mode: str = "rn") -> int:
    """The bits of x rounded once to a format; mode is rn, rna (ties away), rz, rm (down) or rp (up)."""
    if isinstance(x, float):
        if x != x:
            return to.nan
        if x in (INF, -INF) or x == 0:
            return (to.sign if math.copysign(1, x) < 0 else 0) | (to.infinity if x else 0)
    exact = Fraction(x)
    if not exact:
        return 0
    negative, top, bottom = exact < 0, abs(exact.numerator), exact.denominator
    exponent = top.bit_length() - bottom.bit_length()
    if (top << max(0, -exponent)) < (bottom << max(0, exponent)):
        exponent -= 1
    exponent = max(exponent, 1 - to.bias)
    shift = exponent - to.precision + 1
    count, rest = divmod(top << max(0, -shift), bottom << max(0, shift))
    half = 2 * rest - (bottom << max(0, shift))
    if rest and mode == ("rm" if negative else "rp"):
        count += 1
    elif mode == "rna":
        count += half >= 0
    elif mode == "rn":
        count += half > 0 or (half == 0 and count & 1)
    bits = ((exponent - 1 + to.bias) << (to.precision - 1)) + count
    if bits >= to.infinity:
        away = mode in ("rn", "rna") or mode == ("rm" if negative else "rp")
        bits = to.infinity if away else to.infinity - 1
    return bits | (to.sign if negative else 0)


def _value(of: Format) -> Callable[[int], float]:
    if not of.code:  # bf16 is the upper half of an f32
        wide = _value(FORMATS["f32"])
        return lambda bits: wide(bits << 16)
    pack = struct.Struct("<" + _UNSIGNED[of.bits]).pack
    unpack = struct.Struct("<" + of.code).unpack

    def value(bits: int) -> float:
        try:
            return cast(float, unpack(pack(bits))[0])
        except Fault:
            return cast(float, UNDEFINED)

    return value


def _bits(to: Format) -> Callable[[float], int]:
    if not to.code:
        return lenient(lambda x: narrow(x, to))
    pack = struct.Struct("<" + to.code).pack
    unpack = struct.Struct("<" + _UNSIGNED[to.bits]).unpack
    nan, infinity, sign = to.nan, to.infinity, to.sign

    def bits(x: float) -> int:
        try:
            return nan if x != x else cast(int, unpack(pack(x))[0])
        except OverflowError:
            return infinity if x > 0 else infinity | sign
        except Fault:
            return cast(int, UNDEFINED)

    return bits


def _flush(of: Format) -> Callable[[int], int]:
    sign, mantissa = of.sign, (1 << (of.precision - 1)) - 1
    exponent = of.infinity
    return lambda bits: bits if bits & exponent or not bits & mantissa else bits & sign


def unit(x: float) -> float:
    """The .sat modifier: clamp to [0, 1], NaN to +0."""
    return 0.0 if not x > 0 else min(x, 1.0)


def quotient(x: float, y: float) -> float:
    if y:
        return x / y
    return math.nan if x != x or x == 0 or y != y else math.copysign(INF, x) * math.copysign(1, y)


def square_root(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan if x or x != x else x


def fma(x: float, y: float, z: float) -> float:
    """x * y + z, for formats up to f32: rounded to odd, so that rounding it once more is harmless."""
    product = x * y
    total = product + z
    back = total - product
    error = (product - (total - back)) + (z - back)
    if error and error == error and abs(total) != INF and not _as_integer(total) & 1:
        return math.nextafter(total, INF if error > 0 else -INF)
    return total


def fma_f64(x: float, y: float, z: float) -> float:
    if not (math.isfinite(x) and math.isfinite(y)) or not (x and y):
        return x * y + z
    if not math.isfinite(z):
        return z
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    try:
        return float(exact) or (math.copysign(0.0, exact.numerator) if exact else 0.0)
    except OverflowError:
        return INF if exact > 0 else -INF


_pack, _unpack = struct.Struct("<d").pack, struct.Struct("<Q").unpack


def _as_integer(x: float) -> int:
    return cast(int, _unpack(_pack(x))[0])


_PLAIN: dict[str, Callable[..., float]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": quotient,
    "fma": lambda x, y, z: z if math.isfinite(x) and math.isfinite(y) and not math.isfinite(z) else x * y + z,
    "rcp": lambda x: quotient(1.0, x),
}  # fmt: skip
_EXACT: dict[str, Callable[..., Fraction]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "fma": lambda x, y, z: x * y + z, "rcp": lambda x: 1 / x,
}  # fmt: skip


def directed(to: str, name: str, mode: str, *x: float) -> int:
    """An operation rounded toward zero, down or up: the bits of the result."""
    plain = _PLAIN[name](*x)
    if not all(map(math.isfinite, x)) or (name in ("div", "rcp") and not x[-1]):
        return narrow(plain, FORMATS[to], mode)
    exact = _EXACT[name](*map(Fraction, x))
    if exact:
        return narrow(exact, FORMATS[to], mode)
    if name not in ("add", "sub", "fma"):
        return narrow(plain, FORMATS[to])
    # A sum of zero has the sign of its terms; where they differ, + except when rounding down (IEEE 754, 6.3).
    first, second = (x[0] * x[1], x[2]) if name == "fma" else (x[0], -x[1] if name == "sub" else x[1])
    sign = math.copysign(1, first)
    down = sign < 0 if sign == math.copysign(1, second) else mode == "rm"
    return FORMATS[to].sign if down else 0


def minimum(x: float, y: float) -> float:
    """PTX min: the number where the other is NaN, and -0 below +0."""
    if x != x or y != y:
        return y if x != x else x
    return x if x < y or (x == y and math.copysign(1, x) < 0) else y


def maximum(x: float, y: float) -> float:
    return -minimum(-x, -y)


def strict(function: Callable[[float, float], float]) -> Callable[[float, float], float]:
    return lambda x, y: math.nan if x != x or y != y else function(x, y)


def approximate(function: Callable[[float], float], pole: float = math.nan) -> Callable[[float], float]:
    """A function of ``math`` that answers for every float: pole at 0, NaN outside its domain."""

    def total(x: float) -> float:
        try:
            return function(x)
        except ValueError:
            return pole if x == 0 else math.nan
        except OverflowError:
            return INF

    return total


_ROUND: dict[str, Callable[[float], int]] = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}


def to_integer(x: float, mode: str, low: int, high: int) -> int:
    """Float to integer: NaN is 0, what does not fit is clamped."""
    if x != x:
        return 0
    if abs(x) == INF:
        return high if x > 0 else low
    return min(max(_ROUND[mode](x), low), high)


def to_integral(x: float, mode: str) -> float:
    return math.copysign(float(_ROUND[mode](x)), x) if math.isfinite(x) else x


def divide(a: int, b: int, ones: int) -> int:
    """C division; by zero the device gives all ones and goes on."""
    if not b:
        return ones
    return a // b if (a < 0) == (b < 0) else -(-a // b)


def remainder(a: int, b: int) -> int:
    if not b:
        return a
    return abs(a) % abs(b) * (-1 if a < 0 else 1)


def field(a: int, at: int, length: int, bits: int, signed: bool) -> int:
    """bfe: the field of ``length`` bits from ``at``; beyond the top are sign bits or zeros."""
    at, length = at & 255, length & 255
    if not length:
        return 0
    value = (a >> at) & ((1 << length) - 1)
    if signed and a >> min(at + length - 1, bits - 1) & 1:
        value |= -1 << min(length, max(bits - at, 0))
    return value & ((1 << bits) - 1)


def insert(a: int, b: int, at: int, length: int, bits: int) -> int:
    """bfi: a's low bits into b."""
    mask = ((1 << (length & 255)) - 1) << (at & 255) & ((1 << bits) - 1)
    return b & ~mask | a << (at & 255) & mask


def highest(a: int, bits: int, signed: bool, shift: bool) -> int:
    """bfind: the place of the highest bit that is no sign; all ones where there is none."""
    if signed and a >> (bits - 1):
        a ^= (1 << bits) - 1
    if not a:
        return 0xFFFFFFFF
    return bits - a.bit_length() if shift else a.bit_length() - 1


def permute(a: int, b: int, selector: int) -> int:
    """prmt in its default mode."""
    both, result = a | b << 32, 0
    for i in range(4):
        pick = selector >> 4 * i
        byte = both >> 8 * (pick & 7) & 255
        result |= ((255 if byte & 128 else 0) if pick & 8 else byte) << 8 * i
    return result


def lookup(a: int, b: int, c: int, table: int, mask: int) -> int:
    """lop3: the table's bit for each triple of bits."""
    result = 0
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result & mask


def choose(p: bool, a: int, b: int) -> int:
    return a if p else b


def unordered(x: float, y: float) -> bool:
    return x != x or y != y


def _names() -> dict[str, Any]:
    functions = (
        unit, quotient, square_root, fma, fma_f64, directed, minimum, maximum, to_integer, to_integral, divide,
        remainder, field, insert, highest, permute, lookup, choose, unordered, narrow, min, max, abs, int, float,
    )  # fmt: skip
    named: dict[str, Callable[..., Any]] = {f.__name__: f for f in functions}
    named |= {
        "strict_minimum": strict(minimum), "strict_maximum": strict(maximum), "ex2": approximate(lambda x: 2.0**x),
        "lg2": approximate(math.log2, -INF), "sin": approximate(math.sin), "cos": approximate(math.cos),
        "tanh": approximate(math.tanh),
    }  # fmt: skip
    names: dict[str, Any] = {name: lenient(f) for name, f in named.items()}
    for name, form in FORMATS.items():
        names |= {f"value_{name}": _value(form), f"bits_{name}": _bits(form), f"FORMAT_{name}": form}
        names[f"flush_{name}"] = lenient(_flush(form))
    return names


# What the text of a compiled instruction may call: undefined arguments give undefined results.
NAMES = _names()
