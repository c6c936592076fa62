"""What becomes of the kernels of a program or of a PTX module when they are made elastic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miriam.elastic.generator import assembled_texts
from miriam.elastic.ptx import Function, Module, parse
from miriam.elastic.ptxas import Assembled, Needs, find_ptxas, ptxas_version
from miriam.elastic.rewrite import Form, Rewritten
from miriam.elastic.space import multiples
from miriam.elastic.thin import why_not_thin
from miriam.elastic.variants import thinner
from miriam.errors import CompileError, ProgramError
from miriam.program import Kernel, Program, Source
from miriam.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ORIGINAL", "Finding", "Survey", "print_survey", "read", "survey_module", "survey_program"]

ORIGINAL = "original"

_WARP = 32
_SHOWN = 4  # block sizes in a cell
_WIDTH = 120  # of the table where no terminal says how wide it is


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one kernel.

    Attributes
    ----------
    name
        Its entry.
    reason
        Why it is not elastic; empty if it is.
    launches
        Launches of it in the program; None in a module.
    block_variants
        Threads that its block may have instead of its own, smallest first.
    needs
        What it takes: as it was, under ``ORIGINAL``, and in each elastic form; without what ptxas did not say.
    """

    name: str
    reason: str
    launches: int | None
    block_variants: tuple[int, ...] = ()
    needs: Mapping[str, Needs] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the command writes it; ``elastic`` among the registers and spills is the direct form."""
        found = {"elastic" if form is Form.DIRECT else form: self.needs.get(form) for form in (ORIGINAL, *Form)}
        return {
            "name": self.name,
            "elastic": not self.reason,
            "reason": self.reason or None,
            "launches": self.launches,
            "blocks_variants": list(self.block_variants),
            "registers": {name: needs and needs.registers for name, needs in found.items()},
            "spill_bytes": {name: needs and _spilled(needs) for name, needs in found.items()},
        }


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of all kernels.

    Attributes
    ----------
    name, target
        Of the program or module, and the architecture that it was assembled for.
    findings
        By kernel, in the order of the program or module.
    ptxas
        Version of the assembler; empty where there is none.
    notes
        What stands in the way of knowing more.
    """

    name: str
    target: str
    findings: tuple[Finding, ...]
    ptxas: str = ""
    notes: tuple[str, ...] = ()

    @property
    def launches(self) -> int | None:
        """Launches of the program; None for a module."""
        counts = [found.launches for found in self.findings]
        return None if None in counts or not counts else sum(count or 0 for count in counts)

    def to_json(self) -> dict[str, Any]:
        """As the command writes it."""
        elastic = [found for found in self.findings if not found.reason]
        return {
            "name": self.name,
            "target": self.target,
            "ptxas": self.ptxas or None,
            "kernels": [found.to_json() for found in self.findings],
            "elastic_kernels": len(elastic),
            "launches": self.launches,
            "elastic_launches": None if self.launches is None else sum(found.launches or 0 for found in elastic),
            "notes": list(self.notes),
        }


def read(file: Path) -> Program | Module:
    """Read a program file or a PTX module, by its name and its first bytes.

    Raises
    ------
    ProgramError, PtxError
        It cannot be read, or is neither of them.
    """
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise ProgramError(f"there is no file {file}") from None
    except OSError as error:
        raise ProgramError(f"cannot read {file}: {error.strerror or error}") from error
    if file.suffix == ".miriam" or raw.startswith(b"PK"):
        return Program.load(file)
    try:
        text = raw.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        kind = "machine code, which cannot be read" if raw.startswith(b"\x7fELF") else "no text"
        raise ProgramError(f"{file} is neither a program file nor PTX: it is {kind}") from None
    return parse(text, str(file))


def survey_program(program: Program, *, progress: Progress = silent) -> Survey:
    """Survey a program that :func:`miriam.elastic.generator.make_elastic` gave."""
    code, ptxas, notes = _code([(k.ptx, k.elastic) for k in program.kernels], program.target, progress)
    launches = Counter(step.kernel for step in program.launches)
    findings = []
    for i, kernel in enumerate(program.kernels):
        memory = kernel.source in (Source.COPY, Source.FILL)  # whoever runs it brings an elastic kernel for that
        found = Finding(kernel.name, "" if memory else kernel.opaque, launches[i])
        if kernel.ptx is not None and kernel.elastic is not None:
            module = parse(kernel.ptx)
            entry = next(entry for entry in module.entries if entry.name == kernel.name)
            variants = _variants(module, entry, kernel) if not kernel.opaque else ()
            found, note = _with_needs(found, variants, code.get(kernel.ptx), code.get(kernel.elastic))
            notes += note
        findings.append(found)
    return Survey(program.name, program.target, tuple(findings), ptxas, tuple(dict.fromkeys(notes)))


def survey_module(module: Module, made: Rewritten, *, progress: Progress = silent) -> Survey:
    """Survey a PTX module of which :func:`miriam.elastic.generator.rewritten` made ``made``."""
    code, ptxas, notes = _code([(module.text, made.ptx)], module.target, progress)
    findings = []
    for entry in module.entries:
        found = Finding(entry.name, made.refused.get(entry.name, ""), None)
        variants = _variants(module, entry) if not found.reason else ()
        found, note = _with_needs(found, variants, code.get(module.text), code.get(made.ptx))
        notes += note
        findings.append(found)
    return Survey(module.name, module.target, tuple(findings), ptxas, tuple(dict.fromkeys(notes)))


def _code(
    pairs: Sequence[tuple[str | None, str | None]], target: str, progress: Progress
) -> tuple[dict[str, Assembled | ProgramError], str, list[str]]:
    """Machine code by text, the assembler's version, and what stands in the way."""
    texts = sorted({text for pair in pairs for text in pair if text is not None}, key=len, reverse=True)
    try:
        version = ".".join(map(str, ptxas_version(ptxas))) if (ptxas := find_ptxas()) else ""
        return assembled_texts(texts, target, progress=progress), version, []
    except CompileError as error:
        return {}, "", [f"registers and spills are not known: {error}"]


def _with_needs(
    found: Finding,
    variants: tuple[int, ...],
    original: Assembled | ProgramError | None,
    elastic: Assembled | ProgramError | None,
) -> tuple[Finding, list[str]]:
    """The finding with what ptxas says; what it does not assemble as it was is no fault of the rewriting."""
    if isinstance(original, ProgramError):
        return replace(found, block_variants=variants), [str(original)]
    if isinstance(elastic, ProgramError):
        return replace(found, reason=found.reason or f"its elastic forms are refused: {elastic}"), []
    named = {} if original is None else {ORIGINAL: original.entries.get(found.name)}
    named |= {} if elastic is None else {form: elastic.entries.get(form.of(found.name)) for form in Form}
    needs = {name: needs for name, needs in named.items() if needs is not None}
    return replace(found, block_variants=variants, needs=needs), []


def _variants(module: Module, entry: Function, kernel: Kernel | None = None) -> tuple[int, ...]:
    """Block sizes below its own: by several logical threads on a physical one, or by compiling it again."""
    threads = kernel.threads if kernel else _declared_threads(entry)
    if threads and not why_not_thin(module, entry):
        return multiples(threads)[:-1]
    return tuple(_WARP * warps for warps in reversed(thinner(kernel))) if kernel else ()


def _declared_threads(entry: Function) -> int:
    """Threads of a block, where the entry says so; else 0."""
    said = [d.rest for d in entry.directives if d.name in (".reqntid", ".maxntid")]
    return prod(int(word, 0) for word in said[0].replace(",", " ").split()) if said else 0


def _spilled(needs: Needs) -> int:
    return needs.spill_stores + needs.spill_loads


def print_survey(survey: Survey, console: Console | None = None) -> None:
    """Print a table, and what share is elastic.

    Parameters
    ----------
    console
        Where to; None: standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)  # a file or a pipe has room
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("kernel", overflow="fold", ratio=3)
    table.add_column("elastic", overflow="fold", ratio=4)
    table.add_column("other blocks", no_wrap=True)
    table.add_column("registers: as it was →\ndirect / strided / looped", no_wrap=True)
    table.add_column("bytes\nspilled", no_wrap=True)
    if survey.launches is not None:
        table.add_column("launches", justify="right", no_wrap=True)
    for found in survey.findings:
        launches = [] if survey.launches is None else [str(found.launches)]
        table.add_row(
            escape(found.name), escape(f"no: {found.reason}") if found.reason else "yes",
            _few(found.block_variants), *_cells(found), *launches, style="yellow" if found.reason else None,
        )  # fmt: skip
    console.print(table)
    for note in survey.notes:
        console.print(f"Note: {note}.", highlight=False, markup=False)
    console.print(_in_words(survey), highlight=False, markup=False)


def _few(sizes: Sequence[int]) -> str:
    if len(sizes) > _SHOWN:
        return f"{', '.join(map(str, sizes[: _SHOWN - 2]))} … {sizes[-1]}"
    return ", ".join(map(str, sizes)) or "–"


def _cells(found: Finding) -> tuple[str, str]:
    """Registers and spills: as it was, and of the forms that there are."""
    if not found.needs:
        return "–", "–"
    shown = [form for form in Form if form in found.needs]
    registers, spilled = (
        " → ".join([_of(found, ORIGINAL, count), " / ".join(_of(found, form, count) for form in shown)])
        for count in (lambda needs: needs.registers, _spilled)
    )
    return registers, spilled if any(map(_spilled, found.needs.values())) else "0"


def _of(found: Finding, form: str, count: Callable[[Needs], int]) -> str:
    return str(count(found.needs[form])) if form in found.needs else "–"


def _in_words(survey: Survey) -> str:
    if not survey.findings:
        return f"There is no kernel in {survey.name}."
    elastic = [found for found in survey.findings if not found.reason]
    shares = [_share(len(elastic), len(survey.findings), "kernels")]
    if survey.launches is not None:
        shares.append(_share(sum(found.launches or 0 for found in elastic), survey.launches, "launches"))
    return f"Elastic: {' and '.join(shares)}."


def _share(part: int, whole: int, what: str) -> str:
    return f"{part} of {whole} {what}" + (f" ({100 * part / whole:.0f} %)" if whole else "")
