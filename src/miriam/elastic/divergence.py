"""Where the threads of a block may go different ways, and what only some of them come past.

A branch *differs* if what it depends on may differ between threads of a block: anything made of a
thread's index or loaded from a place of its own, and whatever is written on only one side of such a branch. Its
*region* is what lies between it and the place where all ways meet again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from miriam.elastic.flow import Flow
from miriam.elastic.ptx import Function, Instruction, Name, Number, Variable, names, walk

__all__ = ["Divergence"]

_PER_THREAD = ("%tid", "%laneid", "%warpid", "%lanemask_")
_PURE = frozenset(
    """abs add addc and bfe bfi bfind bmsk brev clz cnot copysign cvt cvta div ex2 fma fns isspacep lg2 lop3 mad mad24
    madc max min mov mul mul24 neg not or popc prmt rcp rem rsqrt sad selp set setp shf shl shr slct sqrt sub subc
    szext testp xor""".split()
)
_NO_RESULT = frozenset(("st", "red", "bra", "brx", "ret", "exit", "bar", "barrier", "membar", "fence"))
_WARP = 32


@dataclass(frozen=True, slots=True)
class _Branch:
    """A differing branch: its instruction, its region, and whether all threads of a warp go the same way."""

    at: int
    region: frozenset[int]
    by_warp: bool


class Divergence:
    """What is known of the ways of threads through a function with a body.

    Attributes
    ----------
    steps
        Its instructions in the order of the text.
    """

    __slots__ = ("_branches", "_exit", "_flow", "_guarded", "_meeting", "_private", "steps")

    def __init__(self, function: Function, *, flat: bool) -> None:
        self._flow = Flow(function)
        self.steps = self._flow.steps
        self._exit = len(self.steps)
        self._meeting: list[int] = []
        assert function.body is not None
        # A generic address may then be that of a thread's own memory.
        self._private = any(isinstance(s, Variable) and s.space == "local" for s in walk(function.body))
        self._guarded: list[tuple[int, bool]] = []
        self._branches = self._differing(flat)

    @property
    def any(self) -> bool:
        """Whether threads of a block may go different ways at all."""
        return bool(self._branches)

    def apart(self, *, within_warps: bool) -> Iterator[Instruction]:
        """Instructions that some threads of a block, or of a warp, come past and others may not."""
        seen: set[int] = set()
        for branch in self._branches:
            if not (within_warps and branch.by_warp):
                seen |= branch.region
        seen.update(i for i, by_warp in self._guarded if not (within_warps and by_warp))
        return (self.steps[i] for i in sorted(seen))

    def _after(self, i: int) -> tuple[int, ...]:
        after = self._flow.after[i]
        leaves = self.steps[i].opcode[0] in ("ret", "exit")  # a trap does not: it is the end of the whole grid
        return (*after, self._exit) if leaves else after

    def _post_dominators(self) -> list[int]:
        """For each instruction the set, as bits, of those that every way from it to the end comes past."""
        everything = (1 << (self._exit + 1)) - 1
        meeting = [everything] * self._exit + [1 << self._exit]
        changed = True
        while changed:
            changed = False
            for i in range(self._exit - 1, -1, -1):
                common = everything
                for j in self._after(i):
                    common &= meeting[j]
                common |= 1 << i
                if common != meeting[i]:
                    meeting[i], changed = common, True
        return meeting

    def _region(self, i: int) -> frozenset[int]:
        self._meeting = self._meeting or self._post_dominators()  # most functions have no differing branch
        certain, found, pending = self._meeting[i], set(), list(self._after(i))
        while pending:
            j = pending.pop()
            if j == self._exit or j in found or ((certain >> j) & 1 and j != i):
                continue
            found.add(j)
            pending += self._after(j)
        return frozenset(found)

    def _differing(self, flat: bool) -> list[_Branch]:
        named = [_registers(step) for step in self.steps]
        written: dict[str, list[int]] = {}
        for i, (results, _) in enumerate(named):
            for name in results:
                written.setdefault(name, []).append(i)
        alone = [
            _differs(step, private=self._private) or any(name.startswith(_PER_THREAD) for name in sources)
            for step, (_, sources) in zip(self.steps, named, strict=True)
        ]
        forks = [i for i in range(self._exit) if len(set(self._after(i))) > 1]
        differing: set[str] = set()
        branches: dict[int, _Branch] = {}
        grown = True
        while grown:
            before = len(differing), len(branches)
            for own, (results, sources) in zip(alone, named, strict=True):
                if results and (own or not differing.isdisjoint(sources)):
                    differing.update(results)
            for i in forks:
                if i in branches or differing.isdisjoint(_decides(self.steps[i], named[i][1])):
                    continue
                region = self._region(i)
                branches[i] = _Branch(i, region, flat and self._by_warp(self.steps[i], written))
                # What is written here by some threads, and elsewhere by others.
                differing.update(name for j in region for name in named[j][0] if len(written[name]) > 1)
            grown = before != (len(differing), len(branches))
        self._guarded = [
            (i, flat and self._by_warp(step, written))
            for i, step in enumerate(self.steps)
            if step.guard is not None and step.guard.register in differing
        ]
        return list(branches.values())

    def _by_warp(self, branch: Instruction, written: dict[str, list[int]]) -> bool:
        """Whether it compares the index of a thread in a one-dimensional block with whole warps."""
        made = written.get(branch.guard.register, []) if branch.guard else []
        if len(made) != 1:
            return False
        step = self.steps[made[0]]
        if step.opcode[0] != "setp" or len(step.opcode) != 3 or step.guard or len(step.operands) != 3:
            return False
        index, bound = step.operands[1:]
        if not (isinstance(index, Name) and isinstance(bound, Number) and isinstance(bound.value, int)):
            return False
        first = {"lt": 0, "ge": 0, "lo": 0, "hs": 0, "le": 1, "gt": 1, "ls": 1, "hi": 1}.get(step.opcode[1])
        if first is None or (bound.value + first) % _WARP:
            return False
        source = written.get(index.text, [])
        if len(source) != 1 or self.steps[source[0]].opcode[0] != "mov":
            return False
        return any(name.text == "%tid.x" for operand in self.steps[source[0]].operands[1:] for name in names(operand))


def _decides(step: Instruction, sources: set[str]) -> set[str]:
    return sources if step.opcode[0] == "brx" else {step.guard.register} if step.guard else set()


_OWN = frozenset(("local", "volatile", "relaxed", "acquire", "mmio"))
_SPACES = ("global", "shared", "param", "const")


def _differs(step: Instruction, *, private: bool) -> bool:
    """Whether what it writes may differ between threads that read the same.

    Threads that load from one place find one value there: if another thread could write it meanwhile,
    the kernel would have a race. Places of a thread's own, and loads that watch for writes, are different.
    """
    head, parts = step.opcode[0], set(step.opcode)
    if head == "ld":
        return bool(_OWN & parts) or (private and not any(part.startswith(_SPACES) for part in parts))
    return head not in _PURE or "cc" in parts or head in ("addc", "subc", "madc")  # the carry is a register, too


# An instruction's first operand, and what follows it.
_OPERANDS = re.compile(r"(?:@!?[%$\w]+\s+)?[\w.:]+\s+(\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,;]*)([^;]*)", re.ASCII).match
_REGISTER = re.compile(r"[%$A-Za-z_][\w$]*", re.ASCII).findall  # any name: registers need no mark


def _registers(step: Instruction) -> tuple[set[str], set[str]]:
    """The registers that an instruction writes, and those that it reads.

    Taken from the text, which is many times as fast as reading the operands; not if there may be a comment.
    """
    text = step.text[step.start : step.end]
    parts = None if "/" in text else _OPERANDS(text)
    if parts is not None:
        first, rest = set(_REGISTER(parts[1])), set(_REGISTER(parts[2]))
    else:
        first, rest = (
            {found for operand in some for name in names(operand) for found in _REGISTER(name.text)[:1]}
            for some in (step.operands[:1], step.operands[1:])
        )
    if step.opcode[0] in _NO_RESULT:
        first, rest = set(), first | rest
    elif step.opcode[0] == "brx":
        rest = first | rest
    return first, rest | ({step.guard.register} if step.guard else set())
