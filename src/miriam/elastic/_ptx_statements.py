"""What a PTX module is made of: directives, variables, functions, blocks, instructions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from miriam.elastic._ptx_operands import Guard, Operand, read_parts
from miriam.elastic._ptx_tokens import Tokens
from miriam.errors import PtxError

__all__ = [
    "Block",
    "Declared",
    "Directive",
    "Function",
    "Instruction",
    "Label",
    "Module",
    "Statement",
    "Variable",
    "walk",
]

_BITS = re.compile(r"[busf](8|16|32|64|128)|bf(16)|f16x2|bf16x2")


@dataclass(frozen=True, slots=True)
class Directive:
    """A directive that is neither a variable nor a function.

    Attributes
    ----------
    name
        With its dot: ``.version``, ``.loc``, ``.pragma``, ``.section``, ``.branchtargets``, ``.reqntid``.
    rest
        The text behind the name, without ``;`` and without white space around it.
    """

    start: int
    end: int
    name: str
    rest: str


@dataclass(frozen=True, slots=True)
class Declared:
    """One name of a :class:`Variable`.

    Attributes
    ----------
    count
        n of ``%r<n>``, which declares ``%r0`` to ``%r(n-1)``; else None.
    extents
        Array extents; None for one that is not said (``[]``).
    """

    start: int
    end: int
    name: str
    count: int | None
    extents: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A declaration of variables, registers or a parameter.

    Attributes
    ----------
    linkage
        Words before the state space: ``.extern``, ``.visible``, ``.weak``, ``.common``.
    space, type
        Without their dots: ``shared``, ``b32``.
    vector
        Elements of a vector type, 0 if it is none.
    align
        In bytes, 0 if unsaid; that of the memory which a pointer parameter points to does not count.
    """

    start: int
    end: int
    linkage: tuple[str, ...]
    space: str
    type: str
    vector: int
    align: int
    names: tuple[Declared, ...]

    def size_bytes(self, declared: Declared) -> int | None:
        """Bytes that one of :attr:`names` takes; None where its type or an extent does not say."""
        if not (bits := _BITS.fullmatch(self.type)) or None in declared.extents:
            return None
        element = int(bits[1] or bits[2] or 32) // 8 * max(1, self.vector)
        count = 1 if declared.count is None else declared.count
        return element * count * math.prod(extent or 0 for extent in declared.extents)


@dataclass(frozen=True, slots=True)
class Label:
    """A place to jump to; the span includes the colon, the name does not."""

    start: int
    end: int
    name: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction up to its ``;``.

    Attributes
    ----------
    opcode
        Its text, cut at dots: ``("ld", "global", "v4", "b32")``; ``shared::cta`` stays whole.
    """

    start: int
    end: int
    guard: Guard | None
    opcode: tuple[str, ...]
    text: str = field(repr=False)  # of the module, for the operands
    _operands: tuple[Operand, ...] | None = field(init=False, repr=False, compare=False, default=None)

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The operands, read when they are asked for: few are, and their syntax was checked already."""
        if self._operands is None:
            object.__setattr__(self, "_operands", read_parts(Tokens(self.text, self.start))[2])
        return self._operands or ()


@dataclass(frozen=True, slots=True)
class Block:
    """A body or a nested scope; the span includes the braces."""

    start: int
    end: int
    statements: tuple[Statement, ...]


Statement = Label | Variable | Directive | Instruction | Block


@dataclass(frozen=True, slots=True)
class Function:
    """An entry or a device function; a declaration has no body.

    Attributes
    ----------
    kind
        ``entry`` or ``func``.
    linkage
        Words before the kind: ``.visible``, ``.extern``, ``.weak``.
    directives
        Around the parameters: ``.reqntid``, ``.maxnreg``, ``.noreturn``, ``.pragma``, ``.attribute``.
    has_list, parameters_end
        Whether there is a parameter list, and the offset of its ``)``; without one, that behind the name.
    name_start
        Where the name begins.
    """

    start: int
    end: int
    name: str
    kind: str
    linkage: tuple[str, ...]
    returns: tuple[Variable, ...]
    parameters: tuple[Variable, ...]
    directives: tuple[Directive, ...]
    body: Block | None
    has_list: bool
    parameters_end: int
    name_start: int


@dataclass(frozen=True, slots=True)
class Module:
    """A PTX text and what is in it.

    Attributes
    ----------
    name
        What the text is called in errors.
    version
        PTX version, as (8, 7).
    target
        Architecture, as ``sm_90a``.
    address_size
        In bits; 32 if unsaid.
    """

    text: str = field(repr=False)
    name: str
    version: tuple[int, int]
    target: str
    address_size: int
    items: tuple[Directive | Variable | Function, ...]

    def __str__(self) -> str:
        return self.text

    @property
    def entries(self) -> tuple[Function, ...]:
        """The entries that have a body."""
        return tuple(f for f in self._bodies() if f.kind == "entry")

    @property
    def functions(self) -> tuple[Function, ...]:
        """The device functions that have a body."""
        return tuple(f for f in self._bodies() if f.kind == "func")

    def _bodies(self) -> Iterator[Function]:
        return (item for item in self.items if isinstance(item, Function) and item.body is not None)

    def line(self, offset: int) -> int:
        """The line of an offset, counted from 1."""
        return self.text.count("\n", 0, offset) + 1

    def edit(self, edits: Iterable[tuple[int, int, str]]) -> str:
        """The text with parts of it replaced.

        Parameters
        ----------
        edits
            (start, end, replacement), in any order. Where ``start == end`` the replacement is inserted:
            before what is replaced from there on, several in their order.

        Raises
        ------
        PtxError
            Edits overlap, or one is not inside the text.
        """
        pieces: list[str] = []
        at = 0
        for start, end, replacement in sorted(edits, key=lambda edit: edit[:2]):
            if not 0 <= start <= end <= len(self.text):
                line = self.line(max(0, min(start, len(self.text))))
                raise PtxError(f"{self.name}:{line}: characters {start} to {end} are not in the text", line)
            if start < at:
                line = self.line(start)
                raise PtxError(f"{self.name}:{line}: two edits overlap at character {start}", line)
            pieces += self.text[at:start], replacement
            at = end
        pieces.append(self.text[at:])
        return "".join(pieces)


def walk(block: Block) -> Iterator[Statement]:
    """All statements of a block in the order of the text; a nested block stands before its own statements."""
    levels = [iter(block.statements)]
    while levels:
        for statement in levels[-1]:
            yield statement
            if isinstance(statement, Block):
                levels.append(iter(statement.statements))
                break
        else:
            levels.pop()
