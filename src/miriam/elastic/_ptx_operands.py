"""Operands of PTX instructions: what they are, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from miriam.elastic._ptx_tokens import Kind, ReadError, Tokens, number

__all__ = [
    "LIST",
    "NAME",
    "Address",
    "Expression",
    "Group",
    "Guard",
    "Name",
    "Not",
    "Number",
    "Operand",
    "Pair",
    "Vector",
    "names",
    "read_parts",
]


@dataclass(frozen=True, slots=True)
class Name:
    """A register, special register (``%ctaid.x``), label, variable or function; ``_`` is the sink."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Number:
    """A constant with its sign; ``0f`` and ``0d`` are floats."""

    start: int
    end: int
    text: str
    value: int | float


@dataclass(frozen=True, slots=True)
class Expression:
    """A constant expression (``table+8``, ``4*8``), an element (``table[2]``) or a negated register (``-%r1``).

    Attributes
    ----------
    items
        The names and numbers in it; the operators stand in the text.
    """

    start: int
    end: int
    items: tuple[Name | Number, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two destinations: ``p|q``."""

    start: int
    end: int
    first: Name
    second: Name


@dataclass(frozen=True, slots=True)
class Not:
    """A negated predicate: ``!p``."""

    start: int
    end: int
    of: Name


@dataclass(frozen=True, slots=True)
class Vector:
    """Registers or constants in braces: ``{%r1, %r2}``."""

    start: int
    end: int
    items: tuple[Name | Number | Expression, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """What stands in brackets: ``[base+offset]``, ``[base, sampler, {x, y}]``.

    Attributes
    ----------
    offset
        Sum of the constants behind the base, with their signs.
    index
        What follows the base behind a comma: coordinates as one :class:`Vector`, before them a sampler's name.
    """

    start: int
    end: int
    base: Name | Number
    offset: int
    index: tuple[Name | Number | Expression | Vector, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The arguments or the results of a call: ``(a, b)``."""

    start: int
    end: int
    items: tuple[Name | Number | Expression, ...]


Operand = Name | Number | Expression | Pair | Not | Vector | Address | Group


@dataclass(frozen=True, slots=True)
class Guard:
    """``@register`` or ``@!register`` before an instruction."""

    start: int
    end: int
    register: str
    negated: bool


def names(operand: Operand) -> Iterator[Name]:
    """All names in an operand, in the order of the text."""
    match operand:
        case Name():
            yield operand
        case Pair(first=first, second=second):
            yield first
            yield second
        case Not(of=of):
            yield of
        case Address(base=base, index=index):
            yield from names(base)
            for item in index:
                yield from names(item)
        case Vector(items=items) | Group(items=items) | Expression(items=items):
            for item in items:
                yield from names(item)


# The operands of nearly all instructions, as one pattern: what it matches, read_parts reads too.
NAME = r"(?:[%$][\w$]++|[A-Za-z_][\w$]*+)"
_DOTTED = rf"{NAME}(?>(?:\.\w++)?)"
_NUMBER = r"-?+(?:0[xX][\da-fA-F]{1,16}+|0[fF][\da-fA-F]{8}+|0[dD][\da-fA-F]{16}+|[1-9]\d{0,18}+|0)(?![\w.])"
_SCALAR = rf"(?:{_DOTTED}|{_NUMBER})"
_COMMA = r"\s*+,\s*+"
_OPERAND = (
    rf"(?:{_DOTTED}(?>(?:\|{NAME})?)"
    rf"|{_NUMBER}"
    rf"|\[{NAME}(?>(?:\+-?+(?:0|[1-9]\d{{0,8}}+))?)\]"
    rf"|\{{\s*+{_SCALAR}(?>(?:{_COMMA}{_SCALAR})*)\s*+\}}"
    rf"|!{NAME})"
)
LIST = rf"{_OPERAND}(?>(?:{_COMMA}{_OPERAND})*)"

_BINARY = frozenset("+-*/%&^")
_UNARY = frozenset("+-~")


def read_parts(tokens: Tokens) -> tuple[Guard | None, tuple[str, ...], tuple[Operand, ...]]:
    """Guard, opcode and operands of the instruction at the cursor, which goes to the ``;``."""
    guard = None
    start = tokens.start
    if tokens.take("@"):
        negated = tokens.take("!")
        register = tokens.take_name("a predicate")
        guard = Guard(start, tokens.before, register, negated)
    if tokens.kind != Kind.NAME or tokens.value[0] in "%$" or tokens.value == "_":
        raise tokens.fault("an instruction")
    words = [tokens.value]
    tokens.advance()
    while tokens.kind == Kind.WORD:  # "mov .u32" is one opcode
        words.append(tokens.value)
        tokens.advance()
    operands: list[Operand] = []
    if tokens.value != ";":
        operands.append(_operand(tokens))
        while tokens.take(","):
            operands.append(_operand(tokens))
        if tokens.value != ";":
            raise tokens.fault("',' or ';'")
    return guard, tuple("".join(words).split(".")), tuple(operands)


def _operand(tokens: Tokens) -> Operand:
    start = tokens.start
    if tokens.take("["):
        return _address(tokens, start)
    if tokens.value == "{":
        return _vector(tokens)
    if tokens.take("("):
        items = () if tokens.value == ")" else _scalars(tokens)
        tokens.expect(")")
        tokens.advance()
        return Group(start, tokens.before, items)
    if tokens.take("!"):
        of = _name(tokens)
        return Not(start, of.end, of)
    first = _scalar(tokens)
    if isinstance(first, Name) and tokens.take("|"):
        second = _name(tokens)
        return Pair(start, second.end, first, second)
    return first


def _vector(tokens: Tokens) -> Vector:
    start = tokens.start
    tokens.advance()
    items = _scalars(tokens)
    tokens.expect("}")
    tokens.advance()
    return Vector(start, tokens.before, items)


def _address(tokens: Tokens, start: int) -> Address:
    base = _atom(tokens)
    offset = 0
    while tokens.value in ("+", "-"):
        sign = 1
        while tokens.value in ("+", "-"):
            sign = -sign if tokens.value == "-" else sign
            tokens.advance()
        offset += sign * tokens.take_count("a constant offset")
    index: list[Name | Number | Expression | Vector] = []
    while tokens.take(","):
        index.append(_vector(tokens) if tokens.value == "{" else _scalar(tokens))
    tokens.expect("]")
    tokens.advance()
    tokens.take(".unified")
    return Address(start, tokens.before, base, offset, tuple(index))


def _scalars(tokens: Tokens) -> tuple[Name | Number | Expression, ...]:
    items = [_scalar(tokens)]
    while tokens.take(","):
        items.append(_scalar(tokens))
    return tuple(items)


def _scalar(tokens: Tokens) -> Name | Number | Expression:
    """A name, a number, or several of them with operators between."""
    start = tokens.start
    signs = 0
    items: list[Name | Number] = []
    while True:
        while tokens.value in _UNARY:
            signs += 1
            tokens.advance()
        items.append(item := _atom(tokens))
        if isinstance(item, Name) and tokens.take("["):
            items.append(_atom(tokens))
            tokens.expect("]")
            tokens.advance()
        if tokens.value not in _BINARY:
            break
        tokens.advance()
    if len(items) > 1:
        return Expression(start, tokens.before, tuple(items))
    if not signs:
        return item
    sign = tokens.text[start]
    if isinstance(item, Name) or signs > 1 or sign == "~":
        return Expression(start, item.end, (item,))
    return Number(start, item.end, tokens.text[start : item.end], -item.value if sign == "-" else item.value)


def _atom(tokens: Tokens) -> Name | Number:
    if tokens.kind != Kind.NUMBER:
        return _name(tokens)
    item = Number(tokens.start, tokens.end, tokens.value, number(tokens.value, tokens.start))
    tokens.advance()
    return item


def _name(tokens: Tokens) -> Name:
    if tokens.kind != Kind.NAME:
        raise tokens.fault("an operand")
    if ":" in tokens.value:
        raise ReadError(tokens.start, f"{tokens.value[:40]!r} is no operand")
    item = Name(tokens.start, tokens.end, tokens.value)
    tokens.advance()
    return item
