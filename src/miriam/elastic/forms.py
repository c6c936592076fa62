"""The code of the elastic forms of an entry, around a body that stays as it was.

In the code templates ``~`` stands for a prefix of our own: ``%~b`` is a register, ``$~end`` a label,
``[~+8]`` a word of the argument (:class:`state.Argument`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from miriam.elastic.ahead import ahead
from miriam.elastic.divergence import Divergence
from miriam.elastic.legality import flat, target_from
from miriam.elastic.ptx import Block, Function, Instruction, Module, Name, names, walk
from miriam.elastic.state import (
    ARGUMENT_ALIGN,
    ARGUMENT_BYTES,
    BEGIN_AT,
    COPIES,
    COPY_BYTES,
    COUNTER_BYTES,
    LANE_BYTES,
    LOOK_NS,
    LOOKS,
    MAX_LAUNCHES,
    STAYS_AT,
)

__all__ = ["WAIT", "Entry", "direct", "guarded", "looped", "shard", "strided"]

WAIT = "griddepcontrol.wait"
"""With it a form waits by itself for the kernel in front of it (programmatic dependent launch).

So it may be brought to the SMs while the one before is still writing back its memory, which makes up
for what the form costs where launches are short. From sm_90 on.
"""

_REGISTERS = """	.reg .pred %~p, %~out;
	.reg .b16 %~h;
	.reg .b32 %~a, %~b, %~c, %~i, %~limit, %~width, %~f, %~e, %~stop;
	.reg .b64 %~lane, %~copy, %~at;
"""

# Workers look at different copies, or they would queue at one word.
_COPY = f"""	ld.param.u64 %~lane, [~];
	mov.u32 %~a, %ctaid.x;
	and.b32 %~a, %~a, {COPIES - 1};
	mad.wide.u32 %~copy, %~a, {COPY_BYTES}, %~lane;
"""
_LOAD = f"""{_COPY}	ld.param.u32 %~i, [~+32];
	ld.relaxed.gpu.global.v4.u32 {{%~limit, %~width, %~f, %~stop}}, [%~copy];
"""

# %~a: the place of this SM among those that the lane may keep.
_RANK = f"""	mov.u32 %~a, %smid;
	mad.wide.u32 %~at, %~a, 4, %~lane;
	ld.global.u32 %~a, [%~at+{LANE_BYTES}];
"""

# Keeps the assembler from moving a load behind what follows, down to where its value is wanted.
_NOW = "\tbar.warp.sync 0xffffffff;\n"

# %~out: this pass does not run this launch.
_OUT = f"""	shr.u32 %~e, %~f, 16;
	and.b32 %~f, %~f, {MAX_LAUNCHES};
	setp.lt.u32 %~out, %~i, %~f;
	setp.gt.or.u32 %~out, %~i, %~stop, %~out;
"""

_STOP = "".join(f"\tst.relaxed.gpu.global.u32 [%~lane+{12 + COPY_BYTES * i}], %~i;\n" for i in range(COPIES))

# The first thread alone: takes share %~a or says %~leave. Whatever is rare stands behind the body:
# instructions have to be fetched, too. Only the first launch of a pass can have been begun before,
# so for another one nobody looks at what was taken.
_TAKE = """	ld.param.u64 %~at, [~+8];
	mad.wide.u32 %~at, %~a, 2, %~at;
	setp.le.or.u32 %~p, %~i, %~f, %~out;
	setp.ne.or.u32 %~p, %~limit, %~width, %~p;
	@%~p bra $~rare;
$~take:
	cvt.u16.u32 %~h, %~e;
	st.relaxed.gpu.global.u16 [%~at], %~h;
$~join:
"""
# Behind a stop, the first worker of the next launch waits there (Lane.stays); in a pass that runs nothing, that of
# launch 0, which otherwise leaves because it is complete.
_RARE = f"""$~rare:
	mov.pred %~leave, 1;
	@!%~out bra $~mine;
	add.u32 %~c, %~stop, 1;
	setp.ne.u32 %~p, %~c, %~i;
	setp.ne.or.u32 %~p, %~a, 0, %~p;
	setp.ne.u32 %~out, %~f, {MAX_LAUNCHES};
	setp.eq.and.u32 %~out, %~i, 0, %~out;
	or.pred %~p, %~p, %~out;
	@%~p bra $~join;
	ld.relaxed.gpu.global.u32 %~b, [%~lane+{STAYS_AT}];
	setp.eq.u32 %~p, %~b, 0;
	@%~p bra $~join;
	mov.u32 %~c, {LOOKS};
$~wait:
	ld.relaxed.gpu.global.u32 %~limit, [%~lane];
	setp.ne.u32 %~p, %~limit, 0;
	setp.eq.or.u32 %~p, %~c, 0, %~p;
	@%~p bra $~join;
	sub.u32 %~c, %~c, 1;
	nanosleep.u32 {LOOK_NS};
	bra $~wait;
$~mine:
	setp.ne.u32 %~p, %~i, %~f;
	@%~p bra $~fresh;
	ld.relaxed.gpu.global.u16 %~h, [%~at];
	cvt.u32.u16 %~b, %~h;
	setp.eq.u32 %~p, %~b, %~e;
	@%~p bra $~join;
$~fresh:
	setp.ne.u32 %~leave, %~limit, %~width;
	@!%~leave bra $~take;
{_STOP}	bra $~join;
"""

# On to the next block of the share: %~p if there is one.
_ON = """	ld.param.u32 %~a, [~+40];
	ld.param.u32 %~b, [~+36];
	add.u32 %~block, %~block, %~a;
	setp.lt.u32 %~p, %~block, %~b;
"""

# The place through which the first thread of a worker tells the others what to run.
_SLOT = """	ld.param.u64 %~slot, [~+24];
	mov.u32 %~a, %ctaid.x;
	mad.wide.u32 %~slot, %~a, 4, %~slot;
"""

_LINEAR = """	mov.u32 %~a, %ctaid.z;
	mov.u32 %~b, %nctaid.y;
	mov.u32 %~c, %ctaid.y;
	mad.lo.u32 %~a, %~a, %~b, %~c;
	mov.u32 %~b, %nctaid.x;
	mov.u32 %~c, %ctaid.x;
	mad.lo.u32 %~a, %~a, %~b, %~c;
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that is being rewritten.

    Attributes
    ----------
    steps
        Its instructions.
    indices
        Words of the block's index and of the grid that it reads.
    prefix
        Of our own registers and labels: it occurs nowhere in the entry.
    together
        Whether the threads of a block all go the same way.
    flat
        Whether the block is known to have one dimension.
    axes
        Axes along which the grid may extend, whether the body reads them or not.
    """

    module: Module
    function: Function
    body: Block
    steps: tuple[Instruction, ...]
    indices: frozenset[str]
    prefix: str
    together: bool
    flat: bool
    axes: str

    @staticmethod
    def of(module: Module, function: Function, block: tuple[int, int, int] | None, axes: str) -> Entry:
        """Give what the forms need to know of ``function``."""
        assert function.body is not None
        prefix, text = "miriam", module.text[function.start : function.end]
        while prefix in text:
            prefix += "_"
        steps = tuple(step for step in walk(function.body) if isinstance(step, Instruction))
        one = flat(function, block)
        together = not Divergence(function, flat=one).any
        indices = frozenset(name.text for step in steps for name in _indices(step))
        return Entry(module, function, function.body, steps, indices, prefix, together, one, axes)

    def finish(self, name: str, code: str) -> str:
        """The entry ``name`` with one more parameter and ``code``, which goes on behind the brace of the body."""
        hopper = self.module.version >= (7, 8) and target_from(self.module, 90)
        wait = f"\t{WAIT};\n" if hopper else ""
        function, at = self.function, self.function.parameters_end
        argument = f".param .align {ARGUMENT_ALIGN} .b8 ~[{ARGUMENT_BYTES}]"
        argument = f"{', ' if function.parameters else ''}{argument}" if function.has_list else f"({argument})"
        named = function.name_start, function.name_start + len(function.name), name
        head = self.spliced(function.start, self.body.start, [named, (at, at, argument)])
        return f"{head}{{\n{wait}{code}".replace("~", self.prefix).replace("\0", "~")

    def spliced(self, start: int, end: int, edits: Iterable[tuple[int, int, str]]) -> str:
        """The text from ``start`` to ``end`` with parts of it replaced."""
        pieces, at = [], start
        for begin, stop, text in sorted(edits, key=lambda edit: edit[:2]):
            pieces += [self.module.text[at:begin].replace("~", "\0"), text]
            at = stop
        return "".join([*pieces, self.module.text[at:end].replace("~", "\0")])

    def others(self, predicate: str) -> str:
        """Code that sets ``predicate`` in all threads but the first of the block."""
        if self.flat:
            return f"\tmov.u32 %~a, %tid.x;\n\tsetp.ne.u32 {predicate}, %~a, 0;\n"
        return (
            "\tmov.u32 %~a, %tid.x;\n\tmov.u32 %~b, %tid.y;\n\tor.b32 %~a, %~a, %~b;\n"
            f"\tmov.u32 %~b, %tid.z;\n\tor.b32 %~a, %~a, %~b;\n\tsetp.ne.u32 {predicate}, %~a, 0;\n"
        )

    def reads(self, register: str) -> bool:
        """Whether the body reads a word of the block's index or of the grid."""
        return register in self.indices

    @property
    def barrier(self) -> str:
        """The barrier for threads of a warp that may come one by one, where they may."""
        return "bar" if self.together else "barrier"

    @property
    def meets(self) -> bool:
        """Whether the threads of a block share anything that the next block of the worker uses too."""
        return any(
            step.opcode[0] in _TOGETHER or any(part.startswith("shared") for part in step.opcode[1:])
            for step in self.steps
        )

    def meet(self) -> str:
        """Code after which all threads have done with a block."""
        return f"\t{self.barrier}.sync 0;\n"

    def drained(self) -> str:
        """Code that waits for copies into and out of shared memory, which the next block will use."""
        copies = [step.opcode for step in self.steps if step.opcode[:2] == ("cp", "async")]
        code = "\tcp.async.wait_all;\n" if any("bulk" not in opcode for opcode in copies) else ""
        bulk = "\tcp.async.bulk.wait_group 0;\n\tfence.proxy.async;\n"  # by another way to memory than other accesses
        return code + (bulk if any("bulk" in opcode for opcode in copies) else "")

    def looping(self, *, coherent: bool = False) -> str:
        """The body, with the logical coordinates, its ways out leading to ``$~end``.

        A ``coherent`` one loads nothing through the path for data that is never written.
        """
        edits: list[tuple[int, int, str]] = []
        for step in self.steps:
            if coherent and "nc" in step.opcode:
                at = self.module.text.index(".nc", step.start)
                edits.append((at, at + len(".nc"), ""))
            if step.opcode[0] in ("ret", "exit"):
                guard = self.module.text[step.guard.start : step.guard.end] + " " if step.guard else ""
                edits.append((step.start, step.end, f"{guard}bra $~end;"))
            else:
                for name in _indices(step):
                    edits.append((name.start, name.end, "%~" + name.text[1:].replace(".", "_")))
        return self.spliced(self.body.start + 1, self.body.end - 1, edits)

    def coordinates(self) -> str:
        """Code for the coordinates of logical block ``%~block``, and for the grid; only what is needed."""
        planes = self.reads("%ctaid.z")
        rows = planes or self.reads("%ctaid.y")
        sizes = {axis for axis in "xyz" if self.reads(f"%nctaid.{axis}")}
        sizes |= set() if self.line and not rows else {"x"}
        sizes |= {"y"} if rows and "z" in self.axes else set()
        code = "".join(f"\tld.param.u32 %~nctaid_{axis}, [~+{at}];\n" for axis, at in _GRID.items() if axis in sizes)
        if self.line and not rows:
            return code + "\tmov.u32 %~ctaid_x, %~block;\n"
        code += "\trem.u32 %~ctaid_x, %~block, %~nctaid_x;\n"
        if not rows:
            return code
        code += "\tdiv.u32 %~ctaid_y, %~block, %~nctaid_x;\n"
        if "z" not in self.axes:
            return code + ("\tmov.u32 %~ctaid_z, 0;\n" if planes else "")
        code += "\tdiv.u32 %~ctaid_z, %~ctaid_y, %~nctaid_y;\n" if planes else ""
        return code + "\trem.u32 %~ctaid_y, %~ctaid_y, %~nctaid_y;\n"

    @property
    def line(self) -> bool:
        """Whether the grid extends along x alone."""
        return self.axes == "x"


_GRID = {"x": 44, "y": 48, "z": 52}  # where the argument has the logical grid
_COORDINATES = f"\t.reg .b32 {', '.join(f'%~{word}_{axis}' for word in ('ctaid', 'nctaid') for axis in 'xyz')};\n"
_TOGETHER = frozenset(("bar", "barrier", "mbarrier", "ldmatrix", "stmatrix", "wgmma", "cp", "call"))


def _indices(step: Instruction) -> Iterator[Name]:
    if "ctaid" in step.text[step.start : step.end]:
        yield from (n for o in step.operands for n in names(o) if n.text.startswith(("%ctaid", "%nctaid")))


def guarded(entry: Entry, name: str) -> str:
    """The entry as it is, behind the question whether this pass runs this launch."""
    body = entry.spliced(entry.body.start + 1, entry.body.end, [])
    code = "\t{\n" + _REGISTERS + _LOAD + _OUT + "\t@%~out ret;\n\t}" + body
    return entry.finish(name, code)


def direct(entry: Entry, name: str) -> str:
    """One worker for each block. What can be computed and loaded before the answer is there, is."""
    cut = ahead(entry.body)
    before = entry.spliced(entry.body.start + 1, cut, [])
    linear = "\tmov.u32 %~a, %ctaid.x;\n" if entry.line else _LINEAR
    waits = "\tcp.async.wait_all;\n" if "cp.async" in before else ""
    load = _LOAD.replace("\tld.relaxed", "\t@!%~p ld.relaxed") + _NOW
    code = f"""	.reg .pred %~leave;
{_REGISTERS}{entry.others("%~p")}{load}{before}
	mov.pred %~leave, 0;
{entry.others("%~p")}	@%~p bra $~join;
	ld.param.u64 %~lane, [~];
	ld.param.u32 %~i, [~+32];
{_OUT}{linear}{_TAKE}	bar.red.or.pred %~leave, 0, %~leave;
	@!%~leave bra $~go;
{waits}	ret;
$~go:
"""
    return entry.finish(name, f"{code}{entry.spliced(cut, entry.body.end - 1, [])}\tret;\n{_RARE}}}")


def strided(entry: Entry, name: str) -> str:
    """One worker for each share."""
    code = f"""	.reg .pred %~leave;
	.reg .b32 %~block;
{_COORDINATES}{_REGISTERS}	mov.pred %~leave, 0;
{entry.others("%~p")}	@%~p bra $~join;
{_LOAD}{_OUT}	mov.u32 %~a, %ctaid.x;
{_TAKE}	bar.red.or.pred %~leave, 0, %~leave;
	@%~leave ret;
	mov.u32 %~block, %ctaid.x;
$~next:
{entry.coordinates()}{{{entry.looping()}}}
$~end:
{_ON}	@!%~p ret;
{entry.drained()}{entry.meet() if entry.meets else ""}	bra $~next;
{_RARE}}}"""
    return entry.finish(name, code)


def shard(entry: Entry, name: str) -> str:
    """Some logical blocks in a row, a worker for each, which asks nobody."""
    code = f"""	.reg .b32 %~block, %~a;
{_COORDINATES}	mov.u32 %~block, %ctaid.x;
	ld.param.u32 %~a, [~+{BEGIN_AT}];
	add.u32 %~block, %~block, %~a;
{entry.coordinates()}{{{entry.looping()}}}
$~end:
	ret;
}}"""
    return entry.finish(name, code)


def looped(entry: Entry, name: str) -> str:
    """Any number of workers, each of which claims one share after another.

    Another lane may have written what the body reads: it is read coherently, behind the acquire.
    """
    bulk = any(step.opcode[:3] == ("cp", "async", "bulk") for step in entry.steps)
    fence = "\tfence.proxy.async;\n" if bulk else ""
    code = f"""	.reg .b32 %~block;
	.reg .pred %~leave;
{_COORDINATES}	{{
{_REGISTERS}	.reg .b32 %~shares, %~done;
	.reg .b64 %~slot, %~count;
	mov.pred %~leave, 0;
{entry.others("%~p")}	@%~p bra $~start;
{_LOAD}{_OUT}	setp.le.or.u32 %~out, %~i, %~f, %~out;
	@%~out bra $~start;
	ld.param.u64 %~count, [~+16];
	ld.acquire.gpu.global.u32 %~done, [%~count+{4 - COUNTER_BYTES}];
	ld.global.u32 %~shares, [%~count+{8 - COUNTER_BYTES}];
	setp.ne.u32 %~leave, %~done, %~shares;
$~start:
	bar.red.or.pred %~leave, 0, %~leave;
	@%~leave ret;
{fence}$~top:
{entry.others("%~p")}	@%~p bra $~join;
{_LOAD}{_RANK}{_OUT}	setp.ge.or.u32 %~out, %~a, %~width, %~out;
{_SLOT}	mov.u32 %~b, 0;
	@%~out bra $~tell;
$~claim:
	setp.ne.u32 %~p, %~limit, %~width;
	@%~p bra $~stop;
	ld.param.u64 %~count, [~+16];
	atom.relaxed.gpu.global.add.u32 %~b, [%~count], 1;
	ld.param.u32 %~shares, [~+40];
	setp.ge.u32 %~p, %~b, %~shares;
	@%~p bra $~nothing;
	ld.param.u64 %~at, [~+8];
	mad.wide.u32 %~at, %~b, 2, %~at;
	ld.relaxed.gpu.global.u16 %~h, [%~at];
	cvt.u32.u16 %~c, %~h;
	setp.ne.u32 %~p, %~c, %~e;
	@%~p bra $~fresh;
	ld.relaxed.gpu.global.u32 %~limit, [%~copy];
	bra $~claim;
$~fresh:
	cvt.u16.u32 %~h, %~e;
	st.relaxed.gpu.global.u16 [%~at], %~h;
	add.u32 %~b, %~b, 1;
	bra $~tell;
$~stop:
{_STOP}$~nothing:
	mov.u32 %~b, 0;
$~tell:
	st.global.u32 [%~slot], %~b;
$~join:
{entry.meet()}{_SLOT}	ld.global.u32 %~block, [%~slot];
	setp.eq.u32 %~p, %~block, 0;
	@%~p ret;
	sub.u32 %~block, %~block, 1;
$~next:
{entry.coordinates()}{{{entry.looping(coherent=True)}}}
$~end:
{entry.drained()}{entry.meet()}{_ON}	@%~p bra $~next;
{entry.others("%~p")}	@%~p bra $~top;
	ld.param.u64 %~count, [~+16];
	red.release.gpu.global.add.u32 [%~count+4], 1;
	bra $~top;
	}}
}}"""
    return entry.finish(name, code)
