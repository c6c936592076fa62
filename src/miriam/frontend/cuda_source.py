"""CUDA C++ source -> kernels, through NVRTC: no GPU, no driver and no CUDA toolkit is needed.

The compiler and the headers are packages for Python; the extra ``nvrtc`` brings them.

::

    code = compile_source(text, target="sm_87")
    saxpy = code.kernel("saxpy", block=256)

A :class:`~miriam.frontend.builder.Builder` makes a program of such kernels.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

from miriam.elastic.ptx import Directive, Function, Variable, parse, walk
from miriam.elastic.ptxas import assemble, find_ptxas
from miriam.errors import CompileError, ProgramError
from miriam.frontend.builder import three
from miriam.program import Kernel, Source

__all__ = ["Compiled", "compile_source"]

_WAY_OUT = "pip install 'cuda-bindings>=13.0,<14' 'nvidia-cuda-nvrtc>=13.0,<13.1'"
_MOST_REGISTERS = 255  # of a thread
_REGISTER_FILE = 65536  # of a block


@dataclass(frozen=True, slots=True)
class Compiled:
    """The kernels of one source.

    Attributes
    ----------
    target
        Architecture that they were compiled for, for example ``sm_90a``.
    ptx
        The text of the whole module.
    entries
        Names of its kernels, as PTX has them.
    names
        From the instances that were asked for to their names in PTX.
    log
        What the compiler had to say; empty, or its warnings.
    compiler
        Name and version, for a program's ``meta``.
    """

    target: str
    ptx: str = field(repr=False)
    entries: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    log: str = ""
    compiler: str = "NVRTC"

    def kernel(self, name: str, block: int | tuple[int, ...], *, dynamic_shared_bytes: int = 0) -> Kernel:
        """Give one kernel, alone in its module.

        Its registers and its static shared memory are what ptxas says. Where there is no ptxas they
        are *estimated* from the PTX: registers as the most 32-bit words that are live at one place of
        the text, in steps of 8. On 471 kernels of Triton that was 0.5 to 2.7 times what ptxas took
        (median 1.14), on 159 of NVRTC 0.6 to 2.9 times (median 1.33).

        Parameters
        ----------
        name
            Of a kernel with C linkage, of an instance that was asked for, or as PTX has it.
        block
            Threads in x, y and z; those left out are 1.
        dynamic_shared_bytes
            Shared memory that each launch asks for.

        Raises
        ------
        ProgramError
            There is no such kernel, it was declared for fewer threads, or ptxas refuses it.
        """
        entry = self.names.get(name, name)
        if entry not in self.entries:
            there = ", ".join([*self.names, *self.entries]) or "none"
            raise ProgramError(
                f"there is no kernel {name!r}: the source has {there} (C linkage keeps names as they are)"
            )
        x, y, z = three(block, f"the block of {name}")
        ptx, function = _alone(self.ptx, entry)
        for directive in function.directives:
            words = directive.rest.split(",") if directive.name == ".maxntid" else []
            if words and math.prod(int(word, 0) for word in words) < x * y * z:
                raise ProgramError(
                    f"kernel {name!r} cannot have blocks of {x * y * z} threads: its launch bounds forbid it"
                )
        if find_ptxas() is None:
            registers = min(_estimate(ptx), _MOST_REGISTERS, max(_REGISTER_FILE // (x * y * z) // 8 * 8, 16))
            shared = _static_shared(ptx)
        else:
            needs = assemble(ptx, self.target).entries[entry]
            registers, shared = needs.registers, needs.shared_bytes
        return Kernel(
            entry, Source.CUDA, (x, y, z), registers, shared + dynamic_shared_bytes, dynamic_shared_bytes, ptx
        )


def compile_source(
    text: str,
    *,
    target: str = "sm_90",
    name: str = "source.cu",
    options: Sequence[str] = (),
    instances: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> Compiled:
    """Compile CUDA C++ to PTX.

    Parameters
    ----------
    text
        The source. CUDA's own headers are found where they are installed (the extra brings them).
    target
        Architecture: ``sm_75`` and later, with its letter where the source needs it (``sm_90a``).
    name
        What messages call the source.
    options
        More options for NVRTC, for example ``-DTILE=16``, ``-I/my/headers`` or ``--use_fast_math``.
    instances
        Instances of templates that are wanted, as C++ spells them: ``scale<float, 4>``.
    headers
        Text of headers by the name that the source includes them with.

    Raises
    ------
    ProgramError
        The source is refused; with the compiler's log, which names lines.
    CompileError
        NVRTC is not installed, does not know the target, or fails.
    """
    nvrtc = _nvrtc()
    extra = dict(headers or {})
    given = [s.encode() for s in (name, *extra, *extra.values())]
    made, program = nvrtc.nvrtcCreateProgram(
        text.encode(), given[0], len(extra), given[1 + len(extra) :], given[1 : 1 + len(extra)]
    )
    _check(nvrtc, made, f"create {name}")
    try:
        for instance in instances:
            (asked,) = nvrtc.nvrtcAddNameExpression(program, instance.encode())
            _check(nvrtc, asked, f"ask for {instance!r}")
        wanted = [f"--gpu-architecture={target.replace('sm_', 'compute_')}", *options]
        wanted += [f"--include-path={folder}" for folder in (_headers() if "#include" in text else ())]
        (done,) = nvrtc.nvrtcCompileProgram(program, len(wanted), [option.encode() for option in wanted])
        log = _text(nvrtc, program, "ProgramLog")
        if done == nvrtc.nvrtcResult.NVRTC_ERROR_COMPILATION:
            raise ProgramError(f"{name} cannot be compiled for {target}:\n{log}")
        if done == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:
            raise CompileError(f"NVRTC refuses target {target} or the options {list(options)}: {log}; {_known(nvrtc)}")
        _check(nvrtc, done, f"compile {name}")
        ptx = _text(nvrtc, program, "PTX")
        names = {}
        for instance in instances:
            found, lowered = nvrtc.nvrtcGetLoweredName(program, instance.encode())
            _check(nvrtc, found, f"find {instance!r}")
            names[instance] = lowered.decode()
        entries = tuple(function.name for function in parse(ptx, "the compiler's PTX").entries)
        _, major, minor = nvrtc.nvrtcVersion()
        return Compiled(target, ptx, entries, names, log, f"NVRTC {major}.{minor}")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _nvrtc() -> ModuleType:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library
    except (ImportError, RuntimeError) as error:
        raise CompileError(f"compiling CUDA C++ needs NVRTC, which is not installed: {_WAY_OUT}") from error
    return cast(ModuleType, nvrtc)


def _check(nvrtc: Any, status: Any, what: str) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC could not {what}: {status.name}; install it anew: {_WAY_OUT}")


def _text(nvrtc: Any, program: Any, what: str) -> str:
    _, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    room = bytes(size + 1)  # the compiler writes into it: never the one object that Python has for a short string
    getattr(nvrtc, f"nvrtcGet{what}")(program, room)
    return str(room.rstrip(b"\0 ").decode(errors="replace")).strip()


def _known(nvrtc: Any) -> str:
    _, targets = nvrtc.nvrtcGetSupportedArchs()
    return f"it knows {', '.join(f'sm_{n}' for n in targets)}"


def _headers() -> list[str]:
    from cuda.pathfinder import find_nvidia_header_directory

    return [folder for library in ("cudart", "cccl") if (folder := find_nvidia_header_directory(library))]


def _alone(text: str, entry: str) -> tuple[str, Function]:
    """The module of one kernel: that kernel and what it speaks of, directly or not."""
    module = parse(re.sub(r"^[ \t]*//.*\n", "", text, flags=re.MULTILINE), "the compiler's PTX")
    named: dict[str, list[Variable | Function]] = {}
    for item in module.items:
        for name in [declared.name for declared in item.names] if isinstance(item, Variable) else [item.name]:
            if not isinstance(item, Directive):
                named.setdefault(name, []).append(item)
    kept, todo = set(), [entry]
    while todo:
        if (name := todo.pop()) in named and name not in kept:
            kept.add(name)
            for item in named[name]:
                todo += re.findall(r"[\w$%]+", module.text[item.start : item.end])
    unused = {item for name, items in named.items() if name not in kept for item in items}
    ptx = module.edit((item.start, item.end, "") for item in sorted(unused, key=lambda item: item.start))
    (function,) = (f for f in parse(ptx).entries if f.name == entry)
    return re.sub(r"\n{3,}", "\n\n", ptx).strip() + "\n", function


def _estimate(ptx: str) -> int:
    """Registers of a thread, from where its virtual registers are first and last named.

    A register that is named before a loop and inside it is live to the loop's end.
    """
    words = {
        name: 0 if kind == "pred" else max(1, int(re.sub(r"\D", "", kind)) // 32)
        for kind, name in re.findall(r"\.reg\s+\.(\w+)\s+(%[a-zA-Z_]+)<", ptx)
    }
    lines = [re.sub(r"//.*", "", line) for line in ptx.splitlines()]
    labels = {found[1]: i for i, line in enumerate(lines) if (found := re.match(r"\s*([\w$]+):", line))}
    spans: dict[str, list[int]] = {}
    loops = []
    for i, line in enumerate(lines):
        for name, number in re.findall(r"(%[a-zA-Z_]+)(\d+)\b", line) if ".reg" not in line else ():
            spans.setdefault(f"{name}{number}", [i, i])[1] = i
        if (jump := re.search(r"\bbra(?:\.uni)?\s+([\w$]+)", line)) and labels.get(jump[1], i + 1) <= i:
            loops.append((labels[jump[1]], i))
    for top, end in sorted(loops, key=lambda loop: loop[1] - loop[0]):
        for span in spans.values():
            if span[0] < top <= span[1] < end:
                span[1] = end
    change = [0] * (len(lines) + 1)
    for name, (first, last) in spans.items():
        change[first] += words.get(name.rstrip("0123456789"), 0)
        change[last] -= words.get(name.rstrip("0123456789"), 0)
    live = peak = 0
    for step in change:
        live += step
        peak = max(peak, live)
    return -(-peak // 8) * 8


def _static_shared(ptx: str) -> int:
    module, total = parse(ptx), 0
    inside = (walk(function.body) for function in (*module.entries, *module.functions) if function.body)
    for item in itertools.chain[Any](module.items, *inside):
        if isinstance(item, Variable) and item.space == "shared":
            step = max(item.align, 1)
            total = sum((item.size_bytes(declared) or 0 for declared in item.names), -(-total // step) * step)
    return total
