"""A PTX entry -> its elastic forms.

Every form takes the parameters of the original and one more behind them (:class:`state.Argument`):
it works for any PTX, whatever its other parameters are, and lies in constant memory, where a word
costs nothing. Nothing else changes for the body: its shared memory stays where it was, a logical
block is never split, and its arithmetic is never reordered.

``direct``
    One worker for each logical block, launched with the grid of the original. Before its block a
    worker asks whether it should run at all; behind it there is nothing. This is the form for a
    network that has the device to itself, and the one with the least cost.
``looped``
    Any number of workers, launched as a one-dimensional grid. Each claims logical blocks and runs
    them one after another, until none is left or the limit changes. Several launches, in several
    lanes, may share the work: blocks claimed and blocks done are counted apart.
``guarded``
    For a kernel that must run whole: it runs or leaves as one, so that it can be skipped when a
    paused inference goes on.

No form keeps anything in registers or shared memory while the body runs: what a worker has to
know is read again from memory between two blocks. That is what keeps the occupancy of the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from miriam.elastic.legality import refusal
from miriam.elastic.ptx import Function, Instruction, Module, Name, names, parse, walk
from miriam.elastic.state import ARGUMENT_ALIGN, ARGUMENT_BYTES, COUNTER_BYTES, MAX_LAUNCHES
from miriam.errors import ProgramError

__all__ = ["Form", "Rewritten", "rewrite"]


class Form(StrEnum):
    """An elastic form of an entry; its entry is called ``NAME_FORM``."""

    DIRECT = "direct"
    LOOPED = "looped"
    GUARDED = "guarded"

    def of(self, name: str) -> str:
        """The entry of this form of the entry ``name``."""
        return f"{name}_{self}"


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


def rewrite(ptx: str | Module, entries: Iterable[str] | None = None) -> Rewritten:
    """Make the entries of a PTX module elastic.

    Parameters
    ----------
    ptx
        A module.
    entries
        Which of them; all by default. Others are left out.

    Raises
    ------
    PtxError
        The text cannot be read.
    ProgramError
        An entry is not there.
    """
    module = ptx if isinstance(ptx, Module) else parse(ptx)
    there = {entry.name: entry for entry in module.entries}
    wanted = list(there) if entries is None else list(entries)
    for name in wanted:
        if name not in there:
            has = f"it has {', '.join(there)}" if there else "it has none"
            raise ProgramError(f"there is no entry {name!r} in {module.name}: {has}")
    refused: dict[str, str] = {}
    forms: dict[str, tuple[Form, ...]] = {}
    edits: list[tuple[int, int, str]] = []
    for item in module.items:
        if isinstance(item, Function) and item.kind == "entry":
            text = ""
            if item.name in wanted and item.body is not None:
                if reason := refusal(module, item):
                    refused[item.name] = reason
                forms[item.name] = (Form.GUARDED,) if reason else (Form.DIRECT, Form.LOOPED)
                text = "\n".join(_form(module, item, form) for form in forms[item.name])
            edits.append((item.start, item.end, text))
        elif not isinstance(item, Function) and getattr(item, "name", "") == ".section":
            edits.append((item.start, item.end, ""))  # debug information of entries that are no more
    return Rewritten(module.edit(edits), refused, forms)


def _form(module: Module, entry: Function, form: Form) -> str:
    assert entry.body is not None
    prefix = "miriam"
    while prefix in module.text[entry.start : entry.end]:
        prefix += "_"
    names = _Names(entry, prefix)
    build = {Form.DIRECT: _direct, Form.LOOPED: _looped, Form.GUARDED: _guarded}[form]
    argument = f"{', ' if entry.parameters else ''}.param .align {ARGUMENT_ALIGN} .b8 {prefix}[{ARGUMENT_BYTES}]"
    at = entry.parameters_end
    head = _spliced(module, entry.start, entry.body.start, [
        (*_name_span(module, entry), form.of(entry.name)),
        (at, at, argument if entry.has_list else f"({argument})"),
    ])  # fmt: skip
    return head + build(module, entry, names)


def _spliced(module: Module, start: int, end: int, edits: Iterable[tuple[int, int, str]]) -> str:
    pieces, at = [], start
    for begin, stop, text in sorted(edits, key=lambda edit: edit[:2]):
        pieces += [module.text[at:begin], text]
        at = stop
    return "".join([*pieces, module.text[at:end]])


def _name_span(module: Module, entry: Function) -> tuple[int, int]:
    limit = entry.parameters_end if not entry.parameters else entry.parameters[0].start
    start = module.text.index(entry.name, module.text.index(".entry", entry.start, limit) + len(".entry"), limit)
    return start, start + len(entry.name)


@dataclass(frozen=True, slots=True)
class _Names:
    """Registers and labels of our own in an entry."""

    entry: Function
    prefix: str

    def fill(self, code: str) -> str:
        """``code`` with ``~`` for the prefix: ``%~a`` is a register, ``$~x`` a label, ``[~+8]`` the argument."""
        return code.replace("~", self.prefix)

    @property
    def flat(self) -> bool:
        """Whether the block is known to have one dimension."""
        for directive in self.entry.directives:
            if directive.name in (".reqntid", ".maxntid"):
                extents = [int(word) for word in directive.rest.replace(",", " ").split()]
                return all(extent == 1 for extent in extents[1:])
        return False

    def others(self, predicate: str) -> str:
        """Code that sets ``predicate`` in all threads but the first of the block."""
        if self.flat:
            return f"\tmov.u32 %~a, %tid.x;\n\tsetp.ne.u32 {predicate}, %~a, 0;\n"
        return (
            "\tmov.u32 %~a, %tid.x;\n\tmov.u32 %~b, %tid.y;\n\tor.b32 %~a, %~a, %~b;\n"
            f"\tmov.u32 %~b, %tid.z;\n\tor.b32 %~a, %~a, %~b;\n\tsetp.ne.u32 {predicate}, %~a, 0;\n"
        )


# %~i is the index of this launch. Loads the lane: its limit, its width, its first launch in %~f,
# the number of the inference in %~e, its stop; sets %~out if this pass does not run this launch.
_LANE = f"""	ld.param.u64 %~lane, [~];
	ld.param.u32 %~i, [~+32];
	ld.relaxed.gpu.global.v4.u32 {{%~limit, %~width, %~f, %~stop}}, [%~lane];
	shr.u32 %~e, %~f, 16;
	and.b32 %~f, %~f, {MAX_LAUNCHES};
	setp.lt.u32 %~out, %~i, %~f;
	setp.gt.or.u32 %~out, %~i, %~stop, %~out;
"""
_LANE_REGISTERS = """	.reg .pred %~p, %~out;
	.reg .b16 %~h;
	.reg .b32 %~a, %~b, %~i, %~limit, %~width, %~f, %~e, %~stop;
	.reg .b64 %~lane, %~at;
"""
# The place through which the first thread of a worker tells the others what to run.
_SLOT = """	ld.param.u64 %~slot, [~+24];
	mov.u32 %~a, %ctaid.x;
	mad.wide.u32 %~slot, %~a, 8, %~slot;
"""


def _guarded(module: Module, entry: Function, names: _Names) -> str:
    code = names.fill("{\n\t{\n" + _LANE_REGISTERS + _LANE + "\t@%~out ret;\n\t}")
    assert entry.body is not None
    return code + module.text[entry.body.start + 1 : entry.body.end]


def _direct(module: Module, entry: Function, names: _Names) -> str:
    linear = "\tmov.u32 %~a, %ctaid.x;\n"
    if _reads(entry, "%ctaid.y") or _reads(entry, "%ctaid.z"):
        linear = """	mov.u32 %~a, %ctaid.z;
	mov.u32 %~b, %nctaid.y;
	mov.u32 %~limit, %ctaid.y;
	mad.lo.u32 %~a, %~a, %~b, %~limit;
	mov.u32 %~b, %nctaid.x;
	mov.u32 %~limit, %ctaid.x;
	mad.lo.u32 %~a, %~a, %~b, %~limit;
"""
    # Only the first launch of a pass can have been begun before, so no other one looks at what was taken.
    code = f"""{{
	.reg .pred %~leave;
	mov.pred %~leave, 0;
	{{
{_LANE_REGISTERS}{names.others("%~p")}	@%~p bra $~join;
{_LANE}	mov.pred %~leave, %~out;
	@%~out bra $~join;
	ld.param.u64 %~at, [~+8];
{linear}	mad.wide.u32 %~at, %~a, 2, %~at;
	setp.ne.u32 %~p, %~i, %~f;
	@%~p bra $~untouched;
	ld.relaxed.gpu.global.u16 %~h, [%~at];
	cvt.u32.u16 %~b, %~h;
	setp.eq.u32 %~leave, %~b, %~e;
	@%~leave bra $~join;
$~untouched:
	setp.ne.u32 %~leave, %~limit, %~width;
	@%~leave st.relaxed.gpu.global.u32 [%~lane+12], %~i;
	cvt.u16.u32 %~h, %~e;
	@!%~leave st.relaxed.gpu.global.u16 [%~at], %~h;
$~join:
	}}
	bar.red.or.pred %~leave, 0, %~leave;
	@%~leave ret;"""
    assert entry.body is not None
    return names.fill(code) + module.text[entry.body.start + 1 : entry.body.end]


def _looped(module: Module, entry: Function, names: _Names) -> str:
    body = entry.body
    assert body is not None
    steps = [step for step in walk(body) if isinstance(step, Instruction)]
    edits: list[tuple[int, int, str]] = []
    for step in steps:
        if step.opcode[0] in ("ret", "exit"):
            guard = module.text[step.guard.start : step.guard.end] + " " if step.guard else ""
            edits.append((step.start, step.end, names.fill(f"{guard}bra $~end;")))
        else:
            for name in _indices(step):
                edits.append((name.start, name.end, names.fill("%~" + name.text[1:].replace(".", "_"))))
    inside = _spliced(module, body.start + 1, body.end - 1, edits)
    # Threads may come to the end one by one if some of them left early.
    straight = sum(step.opcode[0] in ("ret", "exit") for step in steps) == 1
    meet = "bar.sync" if straight else "barrier.sync"
    code = f"""{{
	.reg .b32 %~block, {", ".join(f"%~{word}_{axis}" for word in ("ctaid", "nctaid") for axis in "xyz")};
	{{
{_LANE_REGISTERS}	.reg .b32 %~end, %~chunk, %~blocks, %~done;
	.reg .b64 %~slot, %~count;
{names.others("%~p")}	@%~p bra $~top;
{_LANE}{_SLOT}	mov.u32 %~end, 0;
	st.global.v2.u32 [%~slot], {{%~end, %~end}};
	setp.le.or.u32 %~out, %~i, %~f, %~out;
	@%~out bra $~top;
	ld.param.u64 %~count, [~+16];
	ld.acquire.gpu.global.u32 %~done, [%~count+{4 - COUNTER_BYTES}];
	ld.global.u32 %~blocks, [%~count+{8 - COUNTER_BYTES}];
	setp.ne.u32 %~p, %~done, %~blocks;
	sub.u32 %~i, %~i, 1;
	@%~p st.relaxed.gpu.global.u32 [%~lane+12], %~i;
$~top:
{names.others("%~p")}	@%~p bra $~join;
{_SLOT}	ld.global.v2.u32 {{%~b, %~end}}, [%~slot];
{_LANE}	mov.u32 %~a, %ctaid.x;
	setp.ge.or.u32 %~out, %~a, %~width, %~out;
	@%~out bra $~leave;
$~take:
	setp.lt.u32 %~p, %~b, %~end;
	@%~p bra $~claimed;
	setp.ne.u32 %~p, %~limit, %~width;
	@%~p st.relaxed.gpu.global.u32 [%~lane+12], %~i;
	@%~p bra $~leave;
	ld.param.u64 %~count, [~+16];
	ld.param.u32 %~chunk, [~+52];
	atom.relaxed.gpu.global.add.u32 %~b, [%~count], %~chunk;
	ld.param.u32 %~blocks, [~+36];
	setp.ge.u32 %~p, %~b, %~blocks;
	@%~p bra $~leave;
	add.u32 %~end, %~b, %~chunk;
	min.u32 %~end, %~end, %~blocks;
$~claimed:
	ld.param.u64 %~at, [~+8];
	mad.wide.u32 %~at, %~b, 2, %~at;
	ld.relaxed.gpu.global.u16 %~h, [%~at];
	cvt.u32.u16 %~a, %~h;
	add.u32 %~b, %~b, 1;
	setp.ne.u32 %~p, %~a, %~e;
	@%~p bra $~fresh;
	ld.relaxed.gpu.global.u32 %~limit, [%~lane];
	bra $~take;
$~fresh:
	cvt.u16.u32 %~h, %~e;
	st.relaxed.gpu.global.u16 [%~at], %~h;
	bra $~tell;
$~leave:
	mov.u32 %~b, 0;
$~tell:
	st.global.v2.u32 [%~slot], {{%~b, %~end}};
$~join:
	bar.sync 0;
{_SLOT}	ld.global.u32 %~block, [%~slot];
	setp.eq.u32 %~p, %~block, 0;
	@%~p ret;
	sub.u32 %~block, %~block, 1;
{_coordinates(entry)}{{{inside}}}
$~end:
{_drained(steps)}	{meet} 0;
{names.others("%~p")}	@%~p bra $~top;
	ld.param.u64 %~count, [~+16];
	red.release.gpu.global.add.u32 [%~count+4], 1;
	bra $~top;
	}}
}}"""
    return names.fill(code)


def _coordinates(entry: Function) -> str:
    """Code for the block's index from its number, and for the grid; only what the body reads."""
    code = ""
    planes, rows = _reads(entry, "%ctaid.z"), _reads(entry, "%ctaid.y") or _reads(entry, "%ctaid.z")
    sizes = {axis for axis in "xyz" if _reads(entry, f"%nctaid.{axis}")}
    sizes |= {"x"} if rows else set()
    sizes |= {"y"} if planes else set()
    for axis, at in zip("xyz", (40, 44, 48), strict=True):
        if axis in sizes:
            code += f"\tld.param.u32 %~nctaid_{axis}, [~+{at}];\n"
    if not rows:
        return code + "\tmov.u32 %~ctaid_x, %~block;\n"
    code += "\trem.u32 %~ctaid_x, %~block, %~nctaid_x;\n\tdiv.u32 %~block, %~block, %~nctaid_x;\n"
    if not planes:
        return code + "\tmov.u32 %~ctaid_y, %~block;\n"
    return code + "\trem.u32 %~ctaid_y, %~block, %~nctaid_y;\n\tdiv.u32 %~ctaid_z, %~block, %~nctaid_y;\n"


def _drained(steps: Sequence[Instruction]) -> str:
    """Code that waits for copies into and out of shared memory, which the next block will use."""
    copies = [step.opcode for step in steps if step.opcode[:2] == ("cp", "async")]
    plain = "\tcp.async.wait_all;\n" if any("bulk" not in opcode for opcode in copies) else ""
    return plain + ("\tcp.async.bulk.wait_group 0;\n" if any("bulk" in opcode for opcode in copies) else "")


def _reads(entry: Function, register: str) -> bool:
    assert entry.body is not None
    steps = (step for step in walk(entry.body) if isinstance(step, Instruction))
    return any(name.text == register for step in steps for name in _indices(step))


def _indices(step: Instruction) -> Iterator[Name]:
    if "%" in step.text[step.start : step.end] and "ctaid" in step.text[step.start : step.end]:
        yield from (n for o in step.operands for n in names(o) if n.text.startswith(("%ctaid", "%nctaid")))
