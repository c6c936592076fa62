"""PTX -> machine code, by NVIDIA's assembler ``ptxas``: what a kernel takes, and whether it is PTX at all.

The assembler is a program of its own and needs no GPU. It comes with Triton, with the package
``nvidia-cuda-nvcc`` and with every CUDA toolkit.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from miriam.errors import CompileError, ProgramError

__all__ = ["Assembled", "Needs", "assemble", "assemble_many", "find_ptxas", "ptxas_version"]

_VARIABLE = "MIRIAM_PTXAS"
_WAY_OUT = f"pip install 'nvidia-cuda-nvcc>=13', or name another one in {_VARIABLE}"
_SHOWN = 5  # complaints of the assembler in one message: one mistake draws many


@dataclass(frozen=True, slots=True)
class Needs:
    """What one entry takes.

    Attributes
    ----------
    registers
        Per thread.
    shared_bytes
        Static shared memory of a block; what a launch asks for comes on top.
    stack_bytes
        Local memory of a thread, that of the functions it calls included where ptxas knows it.
    spill_stores, spill_loads
        Bytes that are moved between registers and local memory, each instruction counted once.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True, slots=True)
class Assembled:
    """Machine code and what ptxas said of it.

    Attributes
    ----------
    cubin
        An ELF image that a driver loads.
    entries
        What each kernel takes, by its name.
    spill_stores, spill_loads
        Of all entries and of the functions that were not inlined.
    warnings
        Lines that speak of lost performance or of anything doubtful.
    """

    cubin: bytes = field(repr=False)
    entries: Mapping[str, Needs]
    spill_stores: int
    spill_loads: int
    warnings: tuple[str, ...] = ()

    @property
    def registers(self) -> dict[str, int]:
        """Registers per thread, by entry."""
        return {name: needs.registers for name, needs in self.entries.items()}


@functools.cache
def find_ptxas() -> Path | None:
    """The newest ptxas of this machine, since an old one reads no newer PTX; None if there is none.

    Looked for in Triton, in the CUDA packages for Python, on ``PATH`` and in the toolkit's usual
    place. The environment variable ``MIRIAM_PTXAS`` overrules them all.

    Raises
    ------
    CompileError
        ``MIRIAM_PTXAS`` names no program.
    """
    if named := os.environ.get(_VARIABLE):
        if not (found := shutil.which(named)):
            raise CompileError(f"{_VARIABLE} is {named!r}, which is no program: name a ptxas or unset it")
        return Path(found)
    folders = [folder / "backends/nvidia/bin" for folder in _packages("triton")]
    folders += [folder / place for folder in _packages("nvidia") for place in ("cu13/bin", "cuda_nvcc/bin")]
    at = [folder / name for folder in folders for name in ("ptxas", "ptxas-blackwell")]
    at += [Path(path) for path in (shutil.which("ptxas"), "/usr/local/cuda/bin/ptxas") if path]
    return max((path for path in at if os.access(path, os.X_OK)), key=ptxas_version, default=None)


@functools.cache
def ptxas_version(ptxas: Path) -> tuple[int, ...]:
    """Version of the toolkit that ``ptxas`` is from, for example ``(13, 0, 88)``; ``()`` if it does not say."""
    try:
        said = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    found = re.search(r"\bV(\d+(?:\.\d+)+)", said)
    return tuple(map(int, found[1].split("."))) if found else ()


def assemble(ptx: str, target: str, *, options: Sequence[str] = (), ptxas: Path | None = None) -> Assembled:
    """Assemble a PTX module.

    Parameters
    ----------
    ptx
        The text of a module, with any number of entries.
    target
        Architecture of the machine code, for example ``sm_90a``; what ``.target`` says or, if it
        has no letter, a later one.
    options
        More options for ptxas, for example ``--maxrregcount=64``.
    ptxas
        The assembler; :func:`find_ptxas` where nothing is said.

    Raises
    ------
    ProgramError
        ptxas refuses the text; with its words and their lines.
    CompileError
        There is no ptxas.
    """
    if (tool := ptxas or find_ptxas()) is None:
        raise CompileError(f"there is no ptxas to assemble PTX with: {_WAY_OUT}")
    with tempfile.TemporaryDirectory(prefix="miriam-") as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [str(tool), "--verbose", f"--gpu-name={target}", *options, f"--output-file={cubin}", str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise CompileError(f"cannot run {tool}: {error.strerror or error}; {_WAY_OUT}") from error
        said = (done.stdout + done.stderr).replace(str(source), "kernel.ptx")
        if done.returncode:
            raise ProgramError(_refusal(said, target, tool))
        if not cubin.exists():
            raise CompileError(f"{tool} wrote no code; is it ptxas? {_WAY_OUT}")
        return _read(said, cubin.read_bytes())


def assemble_many(
    jobs: Iterable[tuple[str, str]], *, workers: int | None = None, ptxas: Path | None = None
) -> list[Assembled | ProgramError]:
    """Assemble several modules, each of them PTX and target, in processes side by side.

    Parameters
    ----------
    workers
        Processes at a time; as many as there are processors where nothing is said.

    Returns
    -------
    list
        In the order of ``jobs``; for a module that ptxas refuses the error in its place, so that
        one bad kernel does not cost the others.

    Raises
    ------
    CompileError
        There is no ptxas.
    """

    def one(job: tuple[str, str]) -> Assembled | ProgramError:
        try:
            return assemble(*job, ptxas=ptxas)
        except ProgramError as error:
            return error

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(pool.map(one, jobs))


def _packages(name: str) -> list[Path]:
    # found, not imported: Triton takes a second, and a broken one should not matter here
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def _refusal(said: str, target: str, ptxas: Path) -> str:
    complaints = [re.sub(r"^\S*ptxas\S*\s+", "", line) for line in said.splitlines() if re.search(r"error|fatal", line)]
    told = [re.sub(r"\s*;?\s*(error|fatal)\s*:\s*", ": ", line).removeprefix(": ") for line in complaints]
    told = [line for line in told if "aborted due to errors" not in line] or [said.strip() or "no reason given"]
    more = f" (and {len(told) - _SHOWN} more)" if len(told) > _SHOWN else ""
    version = ".".join(map(str, ptxas_version(ptxas))) or "of unknown version"
    way_out = f"; this PTX is newer than {ptxas}: {_WAY_OUT}" if "Unsupported .version" in said else ""
    return f"ptxas {version} refuses this PTX for {target}: {'; '.join(told[:_SHOWN])}{more}{way_out}"


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")
_STACK = re.compile(r"(\d+) bytes cumulative stack size")
_DOUBT = re.compile(r"^\S*ptxas\S*.*(?:warning\s*:|Performance Loss)", re.IGNORECASE)


def _read(said: str, cubin: bytes) -> Assembled:
    entries: dict[str, Needs] = {}
    entry, frame = "", (0, 0, 0)
    stores = loads = 0
    for line in said.splitlines():
        if found := _ENTRY.search(line):
            entry = found[1]
        elif found := _FRAME.search(line):
            frame = (int(found[1]), int(found[2]), int(found[3]))
            stores, loads = stores + frame[1], loads + frame[2]
        elif entry and (found := _USED.search(line)):
            shared, deep = _SHARED.search(found[2]), _STACK.search(found[2])
            stack = max(frame[0], int(deep[1]) if deep else 0)
            entries[entry] = Needs(int(found[1]), int(shared[1]) if shared else 0, stack, *frame[1:])
            entry = ""
    doubts = tuple(line.split(":", 1)[-1].strip() for line in said.splitlines() if _DOUBT.search(line))
    return Assembled(cubin, entries, stores, loads, doubts)
