"""A PTX entry -> its elastic forms.

Every form takes the parameters of the original and one more behind them (:class:`state.Argument`):
it works for any PTX, whatever its other parameters are, and lies in constant memory, where a word
costs little. Nothing else changes for the body: its shared memory stays where it was, a logical
block is never split, and its arithmetic is never reordered.

``direct``
    One worker for each logical block, launched with the grid of the original. Before its block a
    worker asks whether it should run at all, while what the block begins with is already on its
    way; behind it there is nothing. For launches that fit the device at once.
``strided``
    One worker for each share of several blocks, in a one-dimensional grid. It asks once a share.
    For launches of many blocks.
``looped``
    Any number of workers, in a one-dimensional grid. Each claims one share after another, until
    none is left or the limit changes; on an SM that the limit leaves to others, none at all. Several
    launches, in several lanes, may share the work: shares claimed and shares done are counted apart.
``shard``
    One worker for each of some logical blocks in a row, in a one-dimensional grid; it asks nobody and
    writes nothing down. Made only where it is wanted.
``guarded``
    For a kernel that must run whole: it runs or leaves as one, so that it can be skipped when a
    paused inference goes on.

What a worker has to know is read again from memory between two shares, and not kept in registers or
shared memory while the body runs. For most kernels that keeps the occupancy of the original.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from miriam.elastic import forms
from miriam.elastic.legality import refusal
from miriam.elastic.ptx import Directive, Function, Module, parse
from miriam.errors import ProgramError

__all__ = ["ELASTIC", "Form", "Rewritten", "rewrite"]


class Form(StrEnum):
    """An elastic form of an entry; its entry is called ``NAME_FORM``."""

    DIRECT = "direct"
    STRIDED = "strided"
    LOOPED = "looped"
    SHARD = "shard"
    GUARDED = "guarded"

    def of(self, name: str) -> str:
        """The entry of this form of the entry ``name``."""
        return f"{name}_{self}"


ELASTIC = (Form.DIRECT, Form.STRIDED, Form.LOOPED)
"""What an elastic entry has unless others are wanted; one that is refused is guarded."""

_CODE = {
    Form.DIRECT: forms.direct,
    Form.STRIDED: forms.strided,
    Form.LOOPED: forms.looped,
    Form.SHARD: forms.shard,
    Form.GUARDED: forms.guarded,
}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A module with the elastic forms of its entries in their places.

    Attributes
    ----------
    ptx
        The text: device functions and variables as they were, no original entry.
    refused
        By entry, why it is not elastic; those have a guarded form alone.
    forms
        By entry, its forms.
    """

    ptx: str
    refused: dict[str, str]
    forms: dict[str, tuple[Form, ...]]


def rewrite(
    ptx: str | Module,
    entries: Iterable[str] | None = None,
    wanted: Iterable[Form] = ELASTIC,
    *,
    block: tuple[int, int, int] | None = None,
    axes: str = "xyz",
) -> Rewritten:
    """Make the entries of a PTX module elastic.

    Parameters
    ----------
    ptx
        A module.
    entries
        Which of them; all by default. Others are left out.
    wanted
        Which forms of an elastic entry.
    block
        Threads of a block that the entries are launched with, where that is known.
    axes
        Axes along which a grid may have more than one block, whether the entries read them or not: for
        ``x`` alone, and for ``xy``, less has to be worked out.

    Raises
    ------
    PtxError
        The text cannot be read.
    ProgramError
        An entry is not there, or another function has the name of a form.
    """
    module = ptx if isinstance(ptx, Module) else parse(ptx)
    there = {entry.name: entry for entry in module.entries}
    chosen = list(there) if entries is None else list(entries)
    kinds = tuple(wanted)
    for name in chosen:
        if name not in there:
            has = f"it has {', '.join(there)}" if there else "it has none"
            raise ProgramError(f"there is no entry {name!r} in {module.name}: {has}")
    reasons = {name: refusal(module, there[name], block) for name in chosen}
    refused = {name: reason for name, reason in reasons.items() if reason}
    made = {name: (Form.GUARDED,) if name in refused else kinds for name in there if name in reasons}
    used = {item.name for item in module.items if isinstance(item, Function)}
    for name, some in made.items():
        if clash := next((form.of(name) for form in some if form.of(name) in used), None):
            raise ProgramError(f"{module.name} has a function {clash!r}, which is to be a form of {name!r}: rename it")
    launching = [module.text[there[name].start : there[name].end] for name in refused]
    edits: list[tuple[int, int, str]] = []
    for item in module.items:
        if isinstance(item, Function) and item.kind == "entry":
            if item.name in made and item.body is not None:
                entry = forms.Entry.of(module, item, block, axes)
                texts = [_CODE[form](entry, form.of(item.name)) for form in made[item.name]]
                edits.append((item.start, item.end, "\n".join(texts)))
            elif not any(item.name in text for text in launching):
                edits.append((item.start, item.end, ""))
        elif isinstance(item, Directive) and item.name == ".section":
            edits.append((item.start, item.end, ""))  # debug information of entries that are no more
    return Rewritten(module.edit(edits), refused, made)
