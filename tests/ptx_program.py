"""What a compiled PTX entry is made of, and what its variables and constants are in bytes and bits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ptx_numbers
from ptx_memory import Unsupported
from ptx_ops import PRED, TYPES, Type

from miriam.elastic.ptx import Function, Number, Variable


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled entry.

    ``presets`` are the registers that have a value when a thread begins: special registers, and the addresses of
    the module's variables as ``symbol NAME``. ``lines`` gives the PTX line of a line of ``code``.
    """

    name: str
    segments: tuple[Callable[[Any, list[Any]], int], ...]
    sizes: tuple[int, ...]
    visible: tuple[bool, ...]
    widths: tuple[int, ...]
    presets: tuple[tuple[int, str], ...]
    parameters: tuple[tuple[str, int, int], ...]  # name, offset, bytes
    shared_bytes: int
    dynamic_align: int
    local_bytes: int
    threads: tuple[tuple[int, ...], bool] | None  # of .reqntid (exact) or .maxntid
    starts: tuple[str, ...]  # each segment's first instruction
    lines: dict[int, str]
    code: str


@dataclass(slots=True)
class Segment:
    lines: list[tuple[str, str]] = field(default_factory=list)  # Python, PTX
    size: int = 0
    visible: bool = False
    start: str = "the end"


@dataclass(frozen=True, slots=True)
class Place:
    """A variable: an offset in its space, or the register that holds its address."""

    space: str
    offset: int = 0
    slot: int | None = None


@dataclass(slots=True)
class Scope:
    parent: Scope | None
    registers: dict[str, tuple[int, Type]] = field(default_factory=dict)
    counted: dict[str, tuple[int, int, Type]] = field(default_factory=dict)  # prefix -> first slot, count
    places: dict[str, Place] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)

    def chain(self) -> Iterable[Scope]:
        scope: Scope | None = self
        while scope:
            yield scope
            scope = scope.parent


def constant(of: Number, type: Type) -> int | bool:
    """The bits of a constant."""
    kind = of.text[:2].lower()
    if kind in ("0f", "0d"):
        bits, form = int(of.text[2:], 16), ptx_numbers.FORMATS["f32" if kind == "0f" else "f64"]
        if type.bits == form.bits:
            return bits
        if type.kind != "f":
            raise Unsupported(f"constant {of.text} of {type.bits} bits")
    elif isinstance(of.value, int) and (type.kind != "f" or type.bits == 16):
        return bool(of.value) if type is PRED else of.value & type.mask
    if type.lanes > 1 or type.form not in ptx_numbers.FORMATS:
        raise Unsupported(f"constant {of.text} of {type.bits} bits")
    return ptx_numbers.narrow(float(of.value), ptx_numbers.FORMATS[type.form])


def element(variable: Variable) -> int:
    type_ = TYPES.get(variable.type)
    if type_ is None:
        raise Unsupported(f"variable {variable.names[0].name} of type {variable.type}")
    return type_.bits // 8 * max(1, variable.vector)


def layout(variable: Variable) -> tuple[int, int]:
    """Alignment and size of a variable in bytes."""
    size = variable.size_bytes(variable.names[0])
    if size is None:
        raise Unsupported(f"variable {variable.names[0].name} has no size")
    return variable.align or element(variable), size


def threads_of(entry: Function) -> tuple[tuple[int, ...], bool] | None:
    for directive in entry.directives:
        if directive.name in (".reqntid", ".maxntid"):
            return tuple(int(x) for x in directive.rest.split(",")), directive.name == ".reqntid"
    return None


def initial(text: str, variable: Variable, at: int) -> bytes:
    """The first bytes of a global or constant variable; ``at`` is the index of its name."""
    size = variable.size_bytes(variable.names[at])
    if size is None:
        raise Unsupported(f"variable {variable.names[at].name} has no size")
    stop = variable.names[at + 1].start if at + 1 < len(variable.names) else variable.end - 1
    _, _, tail = text[variable.names[at].end : stop].partition("=")
    if tail.count("{") > 1:
        raise Unsupported(f"the initial value of {variable.names[at].name}")
    words = [w.strip() for w in re.split(r"[{},]", tail) if w.strip()]
    type_ = TYPES[variable.type]
    try:
        numbers = [constant(Number(0, 0, w, _number(w)), type_) for w in words]
    except ValueError:
        raise Unsupported(f"the initial value of {variable.names[at].name}") from None
    return b"".join(int(n).to_bytes(type_.bits // 8, "little") for n in numbers).ljust(size, b"\0")


def _number(word: str) -> int | float:
    if word[:2].lower() in ("0f", "0d"):
        return 0.0  # its bits are in the text
    return float(word) if re.search(r"[.eE]", word) and not word.lower().startswith("0x") else int(word.rstrip("uU"), 0)
