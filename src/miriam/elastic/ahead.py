"""How much of a body may run before it is known whether the block is to run at all.

The answer is a word in memory, and so are the first operands of most kernels. If both are asked for
together, the question costs less. What runs ahead must leave no trace: arithmetic on
parameters and indices, loads from addresses made of these, copies into shared memory. A value that
was loaded may be stale, since the launches before this one may be incomplete: it is not used.
"""

from __future__ import annotations

from miriam.elastic.ptx import Block, Directive, Instruction, Operand, Variable, names

__all__ = ["ahead"]

_TRACELESS = frozenset(
    """abs add addc and bfe bfi bfind bmsk brev clz cnot createpolicy cvt cvta div fma lop3 mad max min mov mul neg
    not or popc prmt rem sad selp set setp shf shl shr sub subc xor""".split()
)
_ORDERED = frozenset(("volatile", "relaxed", "acquire", "mmio", "cv", "shared", "shared::cta", "local"))


def ahead(body: Block) -> int:
    """Offset in the module's text of the end of that part of ``body``; that of its beginning if there is none."""
    loaded: set[str] = set()
    end = body.start + 1
    for step in body.statements:
        if isinstance(step, (Variable, Directive)):
            continue
        if not isinstance(step, Instruction):
            break
        head, parts = step.opcode[0], set(step.opcode[1:])
        guard = {step.guard.register} if step.guard else set()
        if head == "ld" and not parts & _ORDERED:
            # What it gives may not be used; where it reads, and whether, may not depend on what was loaded.
            if (guard | _named(step.operands[1:])) & loaded:
                break
            if "param" not in parts and "const" not in parts:
                loaded |= _named(step.operands[:1])
        elif (
            step.opcode[:3] in (("cp", "async", "ca"), ("cp", "async", "cg"), ("cp", "async", "commit_group"))
            or head in _TRACELESS
        ):
            if (guard | _named(step.operands)) & loaded:
                break
        else:
            break
        end = step.end
    return end


def _named(operands: tuple[Operand, ...]) -> set[str]:
    return {name.text for operand in operands for name in names(operand)}
