"""Kernels and programs -> elastic ones, and their machine code. What was made before is found again.

::

    elastic = make_elastic(program)
    code = assembled(elastic.kernels, elastic.target)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from miriam.elastic import cache
from miriam.elastic.ptx import Module, parse
from miriam.elastic.ptxas import Assembled, Needs, assemble, find_ptxas, ptxas_version
from miriam.elastic.rewrite import ELASTIC, Form, Rewritten, rewrite
from miriam.elastic.thin import thin
from miriam.errors import ProgramError, PtxError
from miriam.program import Kernel, Program
from miriam.progress import Progress, silent

__all__ = [
    "VERSION",
    "assembled",
    "assembled_texts",
    "elastic_kernel",
    "forms_of",
    "make_elastic",
    "rewritten",
    "shard_texts",
]


def _version() -> str:
    # Of all that stands in this package: a list of files would have to be kept up by hand, and one
    # that is missing on it would bring old code under a new name.
    sources = sorted((f for f in files(__package__).iterdir() if f.name.endswith(".py")), key=lambda f: f.name)
    return hashlib.sha256(b"".join(f.name.encode() + b"\0" + f.read_bytes() for f in sources)).hexdigest()[:16]


VERSION = _version()
"""What made the code: a hash of the sources of this package, taken when it was imported."""


_MADE_BY = "// Elastic forms, made by Miriam's generator"


def _header() -> str:
    return f"{_MADE_BY} {VERSION}.\n"


def rewritten(
    ptx: str | Module,
    entries: Iterable[str] | None = None,
    wanted: Iterable[Form] = ELASTIC,
    *,
    block: tuple[int, int, int] | None = None,
    axes: str = "xyz",
) -> Rewritten:
    """Do what :func:`miriam.elastic.rewrite.rewrite` does, or find what it did before.

    The first line of the text tells the version.

    Raises
    ------
    PtxError
        The text cannot be read.
    ProgramError
        An entry is not there, or the module is one that was made here.
    """
    if str(ptx).startswith(_MADE_BY):
        raise ProgramError("this module holds elastic forms already: give the one that they were made from")
    chosen, kinds = None if entries is None else list(entries), tuple(wanted)
    key = ("rewritten", VERSION, str(ptx), repr(chosen), repr(kinds), repr(block), axes)
    if (data := cache.kept(*key)) is not None:
        said, text = _unpack(data)
        return Rewritten(text.decode(), said["refused"], {n: tuple(map(Form, f)) for n, f in said["forms"].items()})
    made = rewrite(ptx, chosen, kinds, block=block, axes=axes)
    made = replace(made, ptx=_header() + made.ptx)
    cache.keep(_pack({"refused": made.refused, "forms": made.forms}, made.ptx.encode()), *key)
    return made


def elastic_kernel(kernel: Kernel, axes: str = "xyz") -> Kernel:
    """The kernel with its elastic forms, for grids that extend along some axes.

    One that may not be elastic gets its guarded form and is opaque from then on, with the reason. One
    without PTX, or opaque by itself, stays what it is, and so does one that has the forms of this version.
    """
    if kernel.ptx is None or (kernel.elastic or "").startswith(_header()) or (kernel.opaque and kernel.elastic is None):
        return kernel
    try:
        made = rewritten(kernel.ptx, [kernel.name], block=kernel.block, axes=axes)
    except (PtxError, ProgramError) as error:
        return replace(kernel, elastic=None, opaque=f"its PTX cannot be rewritten: {error}")
    return replace(kernel, elastic=made.ptx, opaque=made.refused.get(kernel.name, ""))


def forms_of(kernel: Kernel) -> tuple[Form, ...]:
    """The forms that ``kernel.elastic`` holds."""
    if kernel.elastic is None:
        return ()
    return (Form.GUARDED,) if kernel.opaque else ELASTIC


def make_elastic(program: Program, *, progress: Progress = silent) -> Program:
    """The program with the elastic forms of its kernels beside the originals.

    Launches, buffers and digests stay, and so does what was measured. Copies and fills have no code
    here: whoever runs the program brings it.
    """
    kernels, axes = [], _axes(program)
    for i, kernel in enumerate(program.kernels):
        progress("rewriting", i, len(program.kernels))
        kernels.append(elastic_kernel(kernel, axes.get(kernel.digest, "xyz")))
    progress("rewriting", len(kernels), len(kernels))
    return replace(program, kernels=tuple(kernels))


def _axes(program: Program) -> dict[str, str]:
    """By digest, for equal kernels share their forms, the axes along which grids extend."""
    extents: dict[str, tuple[int, ...]] = {}
    for step in program.launches:
        digest = program.kernels[step.kernel].digest
        extents[digest] = tuple(map(max, extents.get(digest, (1, 1, 1)), step.grid))
    return {
        digest: "".join(a for a, n in zip("xyz", most, strict=True) if n > 1 or a == "x")
        for digest, most in extents.items()
    }


def shard_texts(program: Program, *, thinner: bool = False) -> dict[str, tuple[str, str]]:
    """PTX of kernels in the form that runs some logical blocks in a row.

    Its entry has the parameters of the original and a :class:`~miriam.elastic.state.Piece`; its grid has as
    many blocks as it is to run, along x.

    Parameters
    ----------
    thinner
        For blocks of fewer threads: the launch decides how many, in one dimension, whole warps or as many as
        the kernel has.

    Returns
    -------
    dict
        By digest of the kernel: the name of the entry, and the text. A kernel that may not be elastic, or
        not thinner, is not there.
    """
    axes = _axes(program)
    made: dict[str, tuple[str, str]] = {}
    for kernel in program.kernels:
        if kernel.ptx is None or kernel.opaque or kernel.digest in made:
            continue
        try:
            ptx = thin(parse(kernel.ptx), kernel.name, block=kernel.block) if thinner else kernel.ptx
            block = None if thinner else kernel.block
            one = rewritten(ptx, [kernel.name], (Form.SHARD,), block=block, axes=axes.get(kernel.digest, "xyz"))
        except (PtxError, ProgramError):
            continue
        if not one.refused:
            made[kernel.digest] = Form.SHARD.of(kernel.name), one.ptx
    return made


def assembled(
    kernels: Iterable[Kernel], target: str, wanted: Iterable[Form] = ELASTIC, *, progress: Progress = silent
) -> list[Assembled | ProgramError | None]:
    """Machine code of the elastic forms of some kernels, and what they need.

    Parameters
    ----------
    kernels
        Elastic or not yet; then they are rewritten while others are being assembled.
    target
        Architecture of the machine code, for example ``sm_90a``.
    wanted
        Forms of the kernels that are elastic: each costs as much time as the original. Forms that are to
        share one launch have to come from one call, since each call's code has its own variables in memory.

    Returns
    -------
    list
        In the order of ``kernels``: the code, ptxas's refusal in its place, or None for a kernel
        that has no elastic forms.

    Raises
    ------
    CompileError
        There is no ptxas.
    """
    kernels, chosen = list(kernels), set(wanted)
    jobs: list[_Job | None] = [None] * len(kernels)

    def each() -> Iterator[_Job]:
        for i in sorted(range(len(kernels)), key=lambda i: len(kernels[i].ptx or ""), reverse=True):  # none waits last
            kernel = elastic_kernel(kernels[i])
            if kernel.elastic is not None:
                some = [form.of(kernel.name) for form in forms_of(kernel) if form in chosen or kernel.opaque]
                jobs[i] = job = kernel.elastic, tuple(some)
                yield job

    made = _assembled(each(), target, progress)
    return [None if job is None else made[job] for job in jobs]


def assembled_texts(
    texts: Iterable[str], target: str, *, progress: Progress = silent
) -> dict[str, Assembled | ProgramError]:
    """Machine code of PTX modules, by text, with all their entries; see :func:`assembled`."""
    return {text: made for (text, _), made in _assembled(((text, ()) for text in texts), target, progress).items()}


_Job: TypeAlias = tuple[str, tuple[str, ...]]
"""A text, and which of its entries are wanted; all if none is named."""


def _assembled(jobs: Iterable[_Job], target: str, progress: Progress) -> dict[_Job, Assembled | ProgramError]:
    """Each job is begun as soon as it comes."""
    ptxas = find_ptxas()
    begun: dict[_Job, Future[Assembled | ProgramError]] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for job in jobs:
                if job not in begun:
                    begun[job] = pool.submit(_one, job, target, ptxas)
            for i, running in enumerate(begun.values()):
                progress("assembling", i, len(begun))
                running.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    progress("assembling", len(begun), len(begun))
    return {job: done.result() for job, done in begun.items()}


def _one(job: _Job, target: str, ptxas: Path | None) -> Assembled | ProgramError:
    ptx, entries = job
    key = ("assembled", VERSION, ptx, repr(entries), target, repr(ptxas and ptxas_version(ptxas)))
    if (data := cache.kept(*key)) is not None:
        said, cubin = _unpack(data)
        needs = {name: Needs(**words) for name, words in said["entries"].items()}
        return Assembled(cubin, needs, said["spill_stores"], said["spill_loads"], tuple(said["warnings"]))
    try:
        made = assemble(ptx, target, options=[f"--entry={','.join(entries)}"] if entries else [], ptxas=ptxas)
    except ProgramError as error:
        return error
    said = {
        "entries": {name: asdict(needs) for name, needs in made.entries.items()},
        "spill_stores": made.spill_stores,
        "spill_loads": made.spill_loads,
        "warnings": made.warnings,
    }
    cache.keep(_pack(said, made.cubin), *key)
    return made


def _pack(said: Mapping[str, Any], code: bytes) -> bytes:
    return json.dumps(said).encode() + b"\n" + code


def _unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    said, _, code = data.partition(b"\n")
    return json.loads(said), code
