"""Tokens of PTX: names, numbers, words such as ``.visible``, strings, single characters."""

from __future__ import annotations

import re
import struct
from enum import IntEnum

__all__ = ["TRIVIA", "Kind", "ReadError", "Tokens", "number"]

# No pattern gives back what it took, so one that fails has looked at each character a fixed number of times.
# Repeated groups are atomic and not possessive: those match wrongly in Python 3.11.0 and 3.11.1.
TRIVIA = r"\s*+(?>(?:(?://[^\n]*+|/\*(?>(?s:.*?)\*/))\s*+)*)"

_TOKEN = re.compile(
    TRIVIA
    + r"(?:((?:[%$][\w$]|[A-Za-z_])[\w$]*+(?>(?:(?:\.|::)\w++)*))"
    + r"|(\d++(?>(?:\.\d*+)?)[eE][+-]\d++|\.?\d[\w.]*+)"
    + r"|(\.[A-Za-z_]\w*+(?>(?:::\w++)*))"
    + r'|("[^"]*+")'
    + r"|(/(?!\*)|[\[\]{}()<>|!,;:+\-=@*&^~?%])"
    + r"|(\Z))",
    re.ASCII,
).match

# What may stand between the braces of an initializer or a section, but for strings, comments and braces.
_PLAIN = re.compile(r"[\w\s$%.,+:-]*+", re.ASCII).match

_HEX_FLOAT = re.compile(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}")
_INTEGER = re.compile(r"(0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]*|[1-9][0-9]*)U?")
_DECIMAL = re.compile(r"(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?")
_LONGEST = 256  # characters of a number; 64 binary digits and a few hundred decimals are all that means anything


class Kind(IntEnum):
    """Kinds of token, by their group in the pattern."""

    NAME = 1
    NUMBER = 2
    WORD = 3
    STRING = 4
    MARK = 5
    END = 6


class ReadError(Exception):
    """What is wrong at an offset of the text; the reader makes a PtxError of it."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(at, what)
        self.at = at
        self.what = what


class Tokens:
    """A cursor on one token of a text.

    Attributes
    ----------
    kind, value, start, end
        The token: ``text[start:end] == value``.
    before
        Where the token before it ended.
    """

    __slots__ = ("before", "end", "kind", "start", "text", "value")

    def __init__(self, text: str, at: int = 0) -> None:
        self.text = text
        self.end = at
        self.advance()

    def advance(self) -> None:
        """Go to the next token; at the end of the text there is an empty one."""
        self.before = self.end
        match = _TOKEN(self.text, self.end)
        if match is None:
            raise _unreadable(self.text, self.end)
        self.kind = kind = match.lastindex or Kind.END
        self.value = match[kind]
        self.start, self.end = match.span(kind)

    def skip_plain(self) -> None:
        """Put the cursor behind all that means nothing inside of braces; ``advance`` goes on from there."""
        match = _PLAIN(self.text, self.end)
        self.end = match.end() if match else self.end

    def fault(self, wanted: str) -> ReadError:
        """Say that something else was wanted here."""
        found = "the end of the text" if self.kind == Kind.END else repr(self.value[:40])
        return ReadError(self.start, f"expected {wanted}, found {found}")

    def expect(self, value: str) -> None:
        """Refuse any other token than ``value``."""
        if self.value != value:
            raise self.fault(repr(value))

    def take(self, value: str) -> bool:
        """Go past the token if it is ``value``; whether it was."""
        if self.value != value:
            return False
        self.advance()
        return True

    def take_name(self, wanted: str) -> str:
        """Go past a name without dots and return it."""
        value = self.value
        if self.kind != Kind.NAME or "." in value or ":" in value:
            raise self.fault(wanted)
        self.advance()
        return value

    def take_count(self, wanted: str) -> int:
        """Go past a whole number and return it."""
        if self.kind != Kind.NUMBER:
            raise self.fault(wanted)
        value = number(self.value, self.start)
        if not isinstance(value, int):
            raise self.fault(wanted)
        self.advance()
        return value


def number(text: str, at: int) -> int | float:
    """The value of a number without sign: ``12``, ``0x1fU``, ``017``, ``0b1``, ``1.5e3``, ``0f3F800000``.

    Raises
    ------
    ReadError
        It is none, or a whole number of more than 64 bits.
    """
    if len(text) <= _LONGEST:
        if integer := _INTEGER.fullmatch(text):
            digits = integer[1]
            value = int(digits, 8 if digits[0] == "0" and digits.isdigit() else 0)
            if value.bit_length() > 64:
                raise ReadError(at, f"{text} has more than 64 bits")
            return value
        if _HEX_FLOAT.fullmatch(text):
            unpacked: float = struct.unpack(">f" if text[1] in "fF" else ">d", bytes.fromhex(text[2:]))[0]
            return unpacked
        if _DECIMAL.fullmatch(text):
            return float(text)
    raise ReadError(at, f"{text[:40]!r} is no number")


def _unreadable(text: str, at: int) -> ReadError:
    """Why no token can be read behind ``at``."""
    skipped = re.compile(TRIVIA, re.ASCII).match(text, at)
    at = skipped.end() if skipped else at
    if text.startswith("/*", at):
        return ReadError(at, "the comment is not closed")
    if text[at] == '"':
        return ReadError(at, "the string is not closed")
    return ReadError(at, f"{text[at]!r} means nothing here")
