"""A PTX entry as Python functions.

The body is cut into segments: a label, an instruction that other threads can see, and the place behind one that
waits each begin one. A segment is a function of the thread and its registers that returns the next segment, so a
thread can be left standing before whatever it shares with others. Device functions are put in place of their calls.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import ptx_matrix
import ptx_mbarrier
import ptx_numbers
import ptx_runtime
from ptx_effects import OPERATIONS
from ptx_memory import MachineError, Unsupported
from ptx_ops import TYPES, Op, Type
from ptx_program import Place, Program, Scope, Segment, constant, element, layout, threads_of

from miriam.elastic.ptx import (
    Address,
    Block,
    Directive,
    Function,
    Group,
    Instruction,
    Label,
    Module,
    Name,
    Not,
    Number,
    Operand,
    Variable,
    parse,
)

SPECIAL = re.compile(
    r"%(?:(?:tid|ntid|ctaid|nctaid|clusterid|nclusterid|cluster_ctaid|cluster_nctaid)\.[xyz]"
    r"|laneid|warpid|nwarpid|smid|nsmid|gridid|cluster_ctarank|cluster_nctarank|is_explicit_cluster"
    r"|dynamic_smem_size|total_smem_size|aggr_smem_size|lanemask_(?:eq|le|lt|ge|gt))"
)
DYNAMIC = "dynamic shared"  # the register that holds the address of what is left to the launch


class Compiler:
    """Compiles one entry; collects what it cannot if ``missing`` is given."""

    def __init__(self, module: Module, entry: Function, missing: set[str] | None = None) -> None:
        self.module, self.entry, self.missing = module, entry, missing
        self.widths: list[int] = []
        self.presets: dict[str, int] = {}
        self.segments: list[Segment] = []
        self.shared_bytes = self.local_bytes = 0
        self.dynamic_align = 16
        self._variables = {d.name: (v, d) for v in module.items if isinstance(v, Variable) for d in v.names}
        self._functions = {f.name: f for f in module.functions}
        self._root = self._scope = Scope(None)
        self._returns: list[int] = []
        self._inlined: list[str] = []
        self._pending: list[str] = []
        self._bound: dict[str, object] = {}
        self.visible = False
        self._resume: int | None = None

    def compile(self) -> Program:
        parameters, offset = [], 0
        scope = Scope(self._root)
        for variable in self.entry.parameters:
            align, size = layout(variable)
            offset = -(-offset // align) * align
            scope.places[variable.names[0].name] = Place("param", offset)
            parameters.append((variable.names[0].name, offset, size))
            offset += size
        self._begin(self._reserve())
        clusters = [d.name for d in self.entry.directives if d.name in (".explicitcluster", ".reqnctapercluster")]
        if self.entry.body is None or clusters:
            raise Unsupported(f"entry {self.entry.name}: {' '.join(clusters) or 'no body'}")
        self._block(self.entry.body, scope)
        self._write("return leave(t)", "the end of the body")
        return self._link(parameters)

    def _link(self, parameters: list[tuple[str, int, int]]) -> Program:
        text: list[str] = []
        origin: dict[int, str] = {}
        for i, segment in enumerate(self.segments):
            text.append(f"def s{i}(t, r):")
            for python, ptx in segment.lines:
                text.append(f"  {python}")
                origin[len(text)] = ptx
            text.append("  return leave(t)")
        code = "\n".join(text)
        modules = (ptx_numbers, ptx_runtime, ptx_matrix, ptx_mbarrier)
        names: dict[str, Any] = {k: v for m in modules for k, v in m.NAMES.items()} | self._bound
        exec(compile(code, f"<{self.entry.name}>", "exec"), names)
        return Program(
            name=self.entry.name,
            segments=tuple(names[f"s{i}"] for i in range(len(self.segments))),
            sizes=tuple(max(1, s.size) for s in self.segments),
            visible=tuple(s.visible for s in self.segments),
            widths=tuple(self.widths),
            presets=tuple((slot, name) for name, slot in self.presets.items()),
            parameters=tuple(parameters),
            shared_bytes=self.shared_bytes,
            dynamic_align=self.dynamic_align,
            local_bytes=self.local_bytes,
            threads=threads_of(self.entry),
            starts=tuple(s.start for s in self.segments),
            lines=origin,
            code=code,
        )

    # Segments.

    def _reserve(self) -> int:
        self.segments.append(Segment())
        return len(self.segments) - 1

    def _begin(self, number: int) -> None:
        self._current = self.segments[number]

    def _write(self, python: str, ptx: str) -> None:
        if not self._current.lines:
            self._current.start = ptx
        self._current.lines.append((python, ptx))

    def _go(self, number: int) -> None:
        """Fall through to a segment."""
        self._write(f"return {number}", self._current.start)
        self._begin(number)

    # Statements.

    def _block(self, block: Block, scope: Scope) -> None:
        outer, self._scope = self._scope, scope
        label = ""
        for s in block.statements:
            if isinstance(s, Label):
                scope.labels[s.name] = self._reserve()
            elif isinstance(s, Directive) and s.name == ".branchtargets":
                scope.targets[label] = [x.strip() for x in s.rest.split(",")]
            elif isinstance(s, Variable):
                self._declare(s, scope)
            label = s.name if isinstance(s, Label) else ""
        for s in block.statements:
            if isinstance(s, Label):
                self._go(scope.labels[s.name])
            elif isinstance(s, Block):
                self._block(s, Scope(scope))
            elif isinstance(s, Instruction):
                try:
                    self._instruction(s)
                except Unsupported as what:
                    self._refuse(s, what)
        self._scope = outer

    def _refuse(self, i: Instruction, what: Unsupported) -> None:
        where = self._where(i)
        full = str(what) if where in str(what) else f"{where} ({what})"
        if self.missing is None:
            raise Unsupported(full) from what
        self.missing.add(full)

    def _where(self, i: Instruction) -> str:
        return f"line {self.module.line(i.start)}: {' '.join(i.text[i.start : i.end].split())}"

    def _declare(self, variable: Variable, scope: Scope) -> None:
        for declared in variable.names:
            if variable.space == "reg":
                type_ = TYPES.get(variable.type)
                if type_ is None or variable.vector:
                    continue  # its use is refused, for want of a name
                first = len(self.widths)
                self.widths += [type_.bits] * (declared.count if declared.count is not None else 1)
                if declared.count is None:
                    scope.registers[declared.name] = (first, type_)
                else:
                    scope.counted[declared.name] = (first, declared.count, type_)
            elif variable.space == "shared":
                scope.places[declared.name] = self._shared(variable, variable.size_bytes(declared))
            elif variable.space in ("local", "param"):
                align, size = layout(variable)
                self.local_bytes = -(-self.local_bytes // align) * align
                scope.places[declared.name] = Place("local", self.local_bytes)
                self.local_bytes += size

    def _shared(self, variable: Variable, size: int | None) -> Place:
        align = variable.align or element(variable)
        if ".extern" in variable.linkage or size is None:
            self.dynamic_align = max(self.dynamic_align, align)
            return Place("shared", slot=self._preset(DYNAMIC, 32))
        self.shared_bytes = -(-self.shared_bytes // align) * align
        self.shared_bytes += size
        return Place("shared", ptx_runtime.SHARED_BASE + self.shared_bytes - size)

    def _instruction(self, i: Instruction) -> None:
        where = self._where(i)
        self._pending, self.visible, self._resume, goes = [], False, None, False
        if "call" in (name := i.opcode[0]):
            self._call(i, where)
            return
        if name in _CONTROL:
            goes = True
            self._control(i)
        else:
            operation = OPERATIONS.get(name)
            if operation is None:
                raise Unsupported(where)
            try:
                operation(self, Op.of(i, where))
            except (ValueError, IndexError, KeyError, AttributeError) as wrong:
                raise Unsupported(where) from wrong
        if self.visible and self._current.lines:
            self._go(self._reserve())
        self._current.visible |= self.visible
        self._current.size += 1
        if i.guard and self._pending:
            self._write(self._test(i), where)
        for line in self._pending:
            self._write(f" {line}" if i.guard else line, where)
        if self._resume is not None:
            self._go(self._resume)
        elif goes and not i.guard:
            self._begin(self._reserve())

    def _test(self, i: Instruction, otherwise: bool = False) -> str:
        """The head of what an instruction does, or does otherwise, under its guard."""
        if i.guard is None:
            return ""
        return f"if {'not ' if i.guard.negated ^ otherwise else ''}r[{self._register(i.guard.register)[0]}]:"

    def _control(self, i: Instruction) -> None:
        name = i.opcode[0]
        if name == "bra" and isinstance(i.operands[0], Name):
            self.line(f"return {self._label(i.operands[0].text)}")
        elif name == "brx":
            index, table = i.operands
            targets = next((s.targets[table.text] for s in self._scope.chain() if table.text in s.targets), None)  # type: ignore[union-attr]
            if targets is None:
                raise Unsupported(f"no table {table}")
            numbers = tuple(self._label(x) for x in targets)
            self.line(f"return {numbers}[{self.value(index, TYPES['u32'])}]")
        elif name == "ret" and self._returns:
            self.line(f"return {self._returns[-1]}")
        else:
            self.visible = True  # to leave may let others go on
            self.line("return leave(t)")

    # Calls.

    def _call(self, i: Instruction, where: str) -> None:
        operands = list(i.operands)
        results: tuple[Operand, ...] = ()
        if isinstance(operands[0], Group):
            results, operands = operands[0].items, operands[1:]
        target = operands[0].text if isinstance(operands[0], Name) else ""
        args = operands[1].items if len(operands) > 1 and isinstance(operands[1], Group) else ()
        if target == "__assertfail":
            self._write(f"{self._test(i)}trap()", where)
            return
        function = self._functions.get(target)
        if function is None or function.kind != "func" or function.body is None or target in self._inlined:
            raise Unsupported(where)
        scope, after, beyond = Scope(self._root), self._reserve(), self._reserve()
        self._current.size += 1
        if i.guard:
            self._write(f"{self._test(i, otherwise=True)} return {beyond}", where)
        for formals, actuals, into in ((function.parameters, args, True), (function.returns, results, False)):
            if len(formals) != len(actuals):
                raise Unsupported(where)
            for formal, actual in zip(formals, actuals, strict=True):
                self._bind(formal, actual, scope, into, where)
        self._inlined.append(target)
        self._returns.append(after)
        self._block(function.body, scope)
        self._returns.pop()
        self._inlined.pop()
        self._go(after)
        for formal, actual in zip(function.returns, results, strict=True):
            if formal.space == "reg":
                self._pending = []
                slot, type_ = scope.registers[formal.names[0].name]
                self.assign(actual, type_, f"r[{slot}]")
                self._write(self._pending[0], where)
        self._go(beyond)

    def _bind(self, formal: Variable, actual: Operand, scope: Scope, into: bool, where: str) -> None:
        name = formal.names[0].name
        if formal.space == "reg":
            self._declare(formal, scope)
            slot, type_ = scope.registers[name]
            if into:
                self._write(f"r[{slot}] = {self.value(actual, type_)}", where)
        else:
            place = self._place(actual.text) if isinstance(actual, Name) else None
            if place is None or place.space != "local":
                raise Unsupported(where)
            scope.places[name] = place

    # Names.

    def _register(self, name: str) -> tuple[int, Type]:
        if found := self._find_register(name):
            return found
        raise Unsupported(f"no scalar register {name}")

    def _find_register(self, name: str) -> tuple[int, Type] | None:
        for scope in self._scope.chain():
            if name in scope.registers:
                return scope.registers[name]
            for cut in range(len(name) - 1, 0, -1):
                if not name[cut:].isdigit():
                    break
                if found := scope.counted.get(name[:cut]):
                    first, count, type_ = found
                    if int(name[cut:]) < count:
                        return first + int(name[cut:]), type_
        return None

    def _place(self, name: str) -> Place | None:
        for scope in self._scope.chain():
            if name in scope.places:
                return scope.places[name]
        if name not in self._variables:
            return None
        variable, declared = self._variables[name]
        if variable.space == "shared":
            place = self._shared(variable, variable.size_bytes(declared))
        elif variable.space in ("global", "const"):
            place = Place("global", slot=self._preset(f"symbol {name}", 64))
        else:
            return None
        self._root.places[name] = place
        return place

    def _preset(self, name: str, bits: int) -> int:
        if name not in self.presets:
            self.presets[name] = len(self.widths)
            self.widths.append(bits)
        return self.presets[name]

    def _label(self, name: str) -> int:
        for scope in self._scope.chain():
            if name in scope.labels:
                return scope.labels[name]
        raise Unsupported(f"no label {name}")

    # What instructions ask for.

    def line(self, text: str) -> None:
        self._pending.append(text)

    def resume(self) -> int:
        """The segment behind this instruction, at which a thread goes on that had to wait."""
        self._resume = self._reserve()
        return self._resume

    def bind(self, thing: object) -> str:
        """A name for a Python object."""
        self._bound[name := f"bound_{len(self._bound)}"] = thing
        return name

    def slot(self, of: Operand) -> int | None:
        if isinstance(of, Name):
            return None if of.text == "_" else self._register(of.text)[0]
        raise Unsupported(f"a result in {of}")

    def assign(self, to: Operand, type: Type, text: str) -> None:
        """Put bits of a type into a register; into a wider one with its sign or with zeros."""
        if (slot := self.slot(to)) is None:
            self.line(text)
            return
        width = self.widths[slot]
        if type.kind == "s" and width > type.bits:
            text = f"((({text}) ^ {type.sign}) - {type.sign}) & {(1 << width) - 1}"
        self.line(f"r[{slot}] = {text}")

    def value(self, of: Operand, type: Type) -> str:
        if isinstance(of, Not):
            return f"({self.value(of.of, type)} ^ True)"
        if isinstance(of, Number):
            return str(constant(of, type))
        if not isinstance(of, Name):
            raise Unsupported(f"operand {of}")
        if found := self._find_register(of.text):
            slot, declared = found
            return f"(r[{slot}] & {type.mask})" if declared.bits > type.bits else f"r[{slot}]"
        if of.text in ("%clock", "%clock64", "%globaltimer"):
            return f"(next(t.block.clock) & {type.mask})"
        if of.text == "WARP_SZ":
            return "32"
        if SPECIAL.fullmatch(of.text):
            slot = self._preset(of.text, 32)
            return f"(r[{slot}] & {type.mask})" if type.bits < 32 else f"r[{slot}]"
        place = self._place(of.text)
        if place is None:
            raise Unsupported(f"operand {of.text}")
        return str(place.offset) if place.slot is None else f"r[{place.slot}]"

    def address(self, of: Operand, space: str) -> tuple[str, str]:
        """Where an address points: the space as it is called at run time, and the offset in it."""
        if not isinstance(of, Address) or of.index:
            raise Unsupported(f"address {of}")
        where = "global" if space == "const" else space
        if isinstance(of.base, Number):
            return where, str((int(of.base.value) + of.offset) & ((1 << 64) - 1))
        found = self._find_register(of.base.text)
        if found is None:
            place = self._place(of.base.text)
            if place is None or (where not in ("generic", place.space) and (where, place.space) != ("param", "local")):
                raise Unsupported(f"[{of.base.text}] in {space} memory")
            if place.slot is None:
                return place.space, str(place.offset + of.offset)
            return place.space, f"r[{place.slot}] + {of.offset}"
        slot, declared = found
        return where, f"(r[{slot}] + {of.offset}) & {declared.mask}" if of.offset else f"r[{slot}]"


_CONTROL = ("bra", "brx", "ret", "exit")


@functools.lru_cache(maxsize=256)
def module(text: str) -> Module:
    return parse(text)


@functools.lru_cache(maxsize=256)
def compiled(text: str, entry: str) -> Program:
    """An entry of a module; raises Unsupported, with the instruction, for what the machine cannot run."""
    return Compiler(module(text), _entry(text, entry)).compile()


def missing(text: str, entry: str) -> frozenset[str]:
    """The instructions of an entry that the machine cannot run."""
    found: set[str] = set()
    try:
        Compiler(module(text), _entry(text, entry), found).compile()
    except Unsupported as what:
        found.add(str(what))
    return frozenset(found)


def _entry(text: str, name: str) -> Function:
    for function in module(text).entries:
        if function.name == name:
            return function
    raise MachineError(f"the module has no entry {name}")
