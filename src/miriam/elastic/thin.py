"""Several logical threads on one physical thread: a PTX entry for thinner blocks.

A kernel whose threads know nothing of each other may run them in any order, one after another too.
Its body then stands in a loop: of the block's logical threads, physical thread p runs p,
p + threads, p + 2 * threads and so on. Threads that were one warp stay one warp, so what they load and
store lies side by side as before. Nothing is added or reordered within a logical thread.

What a logical thread finds in registers and local memory is what the one before it left there. That
matters to nobody: both have no value when a thread begins, so no compiler reads them before it writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from miriam.elastic.flow import Flow
from miriam.elastic.legality import refusal
from miriam.elastic.ptx import Function, Instruction, Module, Variable, names, parse, walk
from miriam.errors import ProgramError

__all__ = ["thin", "why_not_thin"]

_WARP = 32

# What a thread does by itself: nothing here looks at other threads, counts them or expects them to be there.
_ALONE = """
    abs add addc and applypriority atom bfe bfi bfind bmsk bra brev brx clz cnot copysign cos createpolicy cvt cvta
    discard div dp2a dp4a ex2 exit fence fma fns isspacep ld ldu lg2 lop3 mad mad24 madc max membar min mov mul mul24
    neg not or popc prefetch prefetchu prmt rcp red rem ret rsqrt sad selp set setp shf shl shr sin slct sqrt st sub
    subc szext tanh testp trap xor
"""
_KNOWN = frozenset(_ALONE.split())
_REASONS = {
    "bar": "its threads meet at a barrier",
    "barrier": "its threads meet at a barrier",
    "mbarrier": "its threads meet at a barrier",
    "call": "it calls a function, which may know of the other threads",
}
_INDEX = ("%tid.", "%ntid.")
_SPECIAL = frozenset(f"%{word}.{axis}" for word in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz")
_WORDS = ("u32", "b32", "s32")
_SEEN_BY_OTHERS = frozenset({"volatile", "relaxed", "acquire", "mmio", "cv", "cg"})
_EXTENTS = (".reqntid", ".maxntid")
_OCCUPANCY = (".minnctapersm", ".maxnctapersm")  # in blocks of the original size, which are no more


def why_not_thin(module: Module, entry: Function) -> str:
    """Why ``entry`` needs all its threads at once; empty if it does not.

    The reason names the line of ``module`` where there is one. Refused is also what cannot be elastic,
    before or after it was made thin, and whatever is not known to be right.
    """
    if entry.body is None:
        return "its code is not here"
    for step, reason in _reasons(module, entry):
        return f"line {module.line(step.start)}: {reason}"
    if reason := refusal(module, entry):
        return reason
    if any(_watches(step) or _tells(step, entry) for step in _steps(entry)):
        # In a loop, a decision by what others wrote looks like waiting for it.
        looped = parse(_rewritten(module, entry, (_WARP, 1, 1), None), module.name)
        if refusal(looped, _find(looped, entry.name)):
            return "what other threads write decides which way it goes"
    return ""


def thin(
    module: Module, entry: Function | str, threads: int | None = None, *, block: tuple[int, int, int] | None = None
) -> str:
    """Rewrite an entry for thinner blocks.

    Parameters
    ----------
    module
        The PTX.
    entry
        The entry, or its name. It keeps its name and its parameters; the rest of the module stays as it is.
    threads
        Physical threads, which stand in one dimension: whole warps, fewer than there are logical threads.
        The entry can be launched with this block alone, and with the grid of the original. Where nothing is
        said, the launch decides: one block of whole warps in one dimension, or of as many as there are
        logical threads.
    block
        Logical threads in x, y and z; needed where the entry has no ``.reqntid``.

    Returns
    -------
    str
        The text of the module.

    Raises
    ------
    ProgramError
        The entry is not there or may not be thin, its block is not known or is another one, or
        ``threads`` are no whole warps below it.
    """
    function = _find(module, entry) if isinstance(entry, str) else entry
    if reason := why_not_thin(module, function):
        raise ProgramError(f"{function.name} cannot have a thinner block: {reason}; run it as it is")
    extents = _extents(function, block)
    total = math.prod(extents)
    if threads is not None and (threads % _WARP or not 0 < threads < total):
        raise ProgramError(
            f"{function.name} with {total} threads cannot run on {threads}: take a multiple of {_WARP} below {total}"
        )
    return _rewritten(module, function, extents, threads)


def _reasons(module: Module, entry: Function) -> Iterator[tuple[Instruction, str]]:
    shared: set[str] = set()
    registers: set[str] = set()
    numbered: set[str] = set()
    assert entry.body is not None
    for item in (*module.items, *walk(entry.body)):
        if isinstance(item, Variable):
            if item.space == "shared":
                shared |= {declared.name for declared in item.names}
            if item.space == "reg":
                registers |= {declared.name for declared in item.names if declared.count is None}
                numbered |= {declared.name for declared in item.names if declared.count is not None}
    for step in _steps(entry):
        head, parts = step.opcode[0], step.opcode[1:]
        if head not in _KNOWN:
            yield step, _REASONS.get(head, f"its threads may know of each other through {head}")
        if any(part.startswith("shared") for part in parts):
            yield step, "it uses shared memory"
        for name in _mentioned(step):
            if name in shared:
                yield step, "it uses shared memory"
            if not name.startswith("%") or name in registers or name.rstrip("0123456789") in numbered:
                continue
            if name not in _SPECIAL:
                yield step, f"it reads {name}"
            elif name.startswith(_INDEX) and not (head in ("mov", "cvt") and parts[-1] in _WORDS):
                yield step, f"it reads {name} in a way that is not known"
    # The thread that another one waits for may be a logical thread that comes after it.
    for loop in Flow(entry).loops():
        for step in loop:
            if step.opcode[0] in ("fence", "membar") or _watches(step) or _tells(step, entry):
                yield step, "it may wait in a loop for what other threads write"


def _steps(entry: Function) -> Iterator[Instruction]:
    assert entry.body is not None
    return (step for step in walk(entry.body) if isinstance(step, Instruction))


def _mentioned(step: Instruction) -> Iterator[str]:
    return (name.text for operand in step.operands for name in names(operand))


def _watches(step: Instruction) -> bool:
    return step.opcode[0] == "ld" and not _SEEN_BY_OTHERS.isdisjoint(step.opcode)


def _tells(step: Instruction, entry: Function) -> bool:
    """Whether it is an atomic operation whose result is looked at."""
    if step.opcode[0] != "atom":
        return False
    results = {name.text for name in names(step.operands[0])}
    return any(not results.isdisjoint(_mentioned(other)) for other in _steps(entry) if other is not step)


def _find(module: Module, name: str) -> Function:
    for entry in module.entries:
        if entry.name == name:
            return entry
    has = ", ".join(entry.name for entry in module.entries) or "none"
    raise ProgramError(f"there is no entry {name!r} in {module.name}: it has {has}")


def _extents(entry: Function, block: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The logical block."""
    for directive in entry.directives:
        if directive.name in _EXTENTS:
            x, y, z = ([int(word, 0) for word in directive.rest.replace(",", " ").split()] + [1, 1])[:3]
            if block is None:
                if directive.name == ".reqntid":  # the other one only bounds the product
                    return x, y, z
                continue
            if block != (x, y, z) if directive.name == ".reqntid" else math.prod(block) > x * y * z:
                raise ProgramError(f"{entry.name} has {directive.name} {x}, {y}, {z}: it cannot run with {block}")
    if block is None:
        raise ProgramError(f"{entry.name} does not say how many threads its block has: give them as block=(x, y, z)")
    return block


def _rewritten(module: Module, entry: Function, extents: tuple[int, int, int], threads: int | None) -> str:
    prefix = "thin_"
    while prefix in module.text[entry.start : entry.end]:
        prefix += "_"
    body, total = entry.body, math.prod(extents)
    assert body is not None
    size = f".maxntid {total}\n" if threads is None else f".reqntid {threads}\n"
    edits = [(d.start, d.end, "") for d in entry.directives if d.name in _EXTENTS + _OCCUPANCY]
    edits.append((body.start, body.start, size))
    known = {f"%ntid.{axis}": str(extent) for axis, extent in zip("xyz", extents, strict=True)}
    if extents[0] == total:
        known |= {"%tid.x": "%~t", "%tid.y": "0", "%tid.z": "0"}
    else:
        known |= {f"%tid.{axis}": f"%~{axis}" for axis in "xyz"}
    for step in _steps(entry):
        if step.opcode[0] in ("ret", "exit"):
            guard = f"{step.text[step.guard.start : step.guard.end]} " if step.guard else ""
            edits.append((step.start, step.end, f"{guard}bra $~next;"))
        else:
            found = (name for operand in step.operands for name in names(operand) if name.text in known)
            edits += [(name.start, name.end, known[name.text]) for name in found]
    top, end = _loop(extents, threads)
    first = next((s.start for s in body.statements if not isinstance(s, Variable)), body.end - 1)
    edits += [(first, first, top), (body.end - 1, body.end - 1, end)]
    return module.edit((start, end, text.replace("~", prefix)) for start, end, text in edits)


def _loop(extents: tuple[int, int, int], threads: int | None) -> tuple[str, str]:
    """What goes before and behind the body; ``~`` is a prefix that the entry does not use."""
    x, y, z = extents
    registers, coordinates = "%~t, %~step", ""
    if x != x * y * z:
        registers += ", %~x, %~y, %~z"
        coordinates = f"\trem.u32 %~x, %~t, {x};\n\tdiv.u32 %~y, %~t, {x};\n"
        coordinates += f"\tdiv.u32 %~z, %~y, {y};\n\trem.u32 %~y, %~y, {y};\n"
    # Unrolled it would take the registers of several logical threads at a time.
    top = f"""	.reg .b32 {registers};
	.reg .pred %~more;
	mov.u32 %~t, %tid.x;
$~top:
	.pragma "nounroll";
{coordinates}"""
    end = f"""$~next:
	mov.u32 %~step, {"%ntid.x" if threads is None else threads};
	add.u32 %~t, %~t, %~step;
	setp.lt.u32 %~more, %~t, {x * y * z};
	@%~more bra $~top;
	ret;
"""
    return top, end
