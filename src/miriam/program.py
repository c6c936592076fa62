"""The portable compiled form of a model: kernels, launches in order, buffers.

A program knows nothing of any device handle. Every pointer that a kernel receives is a buffer and
an offset, so a program can be loaded anywhere, any number of times.

On disk it is a zip archive with three kinds of members, readable with standard tools::

    manifest.json   format version, launches, buffers, tensors, kernels without their code
    kernels.json    PTX, TTIR and elastic forms by kernel (one LZMA stream: kernels of one model resemble each other)
    weights/<n>     contents of buffer n, where they were kept
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeAlias

from miriam._files import replacing
from miriam.errors import ProgramError

__all__ = [
    "FORMAT_VERSION",
    "Argument",
    "Buffer",
    "Kernel",
    "Launch",
    "Pointer",
    "Program",
    "Role",
    "Scalar",
    "Source",
    "Tensor",
]

FORMAT_VERSION = 1

_SUFFIX = ".miriam"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time stamp: the same program gives the same file


class Role(StrEnum):
    """What a buffer is for."""

    INPUT = "input"
    OUTPUT = "output"
    WEIGHT = "weight"
    INTERMEDIATE = "intermediate"


class Source(StrEnum):
    """Where a kernel comes from."""

    TRITON = "triton"
    CUDA = "cuda"
    LIBRARY = "library"
    COPY = "copy"
    FILL = "fill"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Pointer:
    """An address inside a buffer: index of the buffer and offset in bytes."""

    buffer: int
    offset_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Scalar:
    """An argument passed by value: its bytes, as the kernel receives them."""

    raw: bytes


Argument: TypeAlias = Pointer | Scalar


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of device memory.

    Attributes
    ----------
    name
        For people; unique within a program.
    size_bytes
        Its size.
    role
        What it is for. A buffer shared by intermediates and outputs is an intermediate.
    data
        Initial contents (``size_bytes`` long), or None: undefined, or left out of the file.
    """

    name: str
    size_bytes: int
    role: Role
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a program as its user sees it.

    Attributes
    ----------
    name, dtype
        ``dtype`` as NumPy spells it, and ``bfloat16``.
    shape, strides
        In elements.
    at
        Where element zero lies.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    at: Pointer

    @property
    def item_bytes(self) -> int:
        """Size of an element."""
        bits = re.search(r"\d+", self.dtype)  # int64, float8_e4m3fn; bool has none
        return int(bits[0]) // 8 if bits else 1

    @property
    def span_bytes(self) -> int:
        """From the first element to the end of the last."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.item_bytes


@dataclass(frozen=True, slots=True)
class Kernel:
    """Device code and what a block of it needs.

    Attributes
    ----------
    name
        Name of the entry.
    source
        Where it comes from; ``copy`` and ``fill`` are memory operations, which a program treats
        as launches of one block. A copy has the arguments (destination, source, bytes), a fill
        (destination, value, bytes of the value: 1, 2 or 4, count), scalars as 8 bytes. ``host`` is a
        step that the host computes, a launch of one block without arguments.
    block
        Threads of a block in x, y and z.
    registers
        Per thread.
    shared_bytes
        Static and dynamic shared memory of a block together.
    dynamic_shared_bytes
        The part of it that the launch has to ask for.
    ptx, ttir
        The code, where it is known.
    opaque
        Why only the whole kernel can be run: there is no PTX, or its PTX may not be elastic. Empty
        when neither is known.
    elastic
        PTX with the elastic forms of the kernel, where they were made
        (:func:`miriam.elastic.generator.make_elastic`).
    digest
        Hash of everything that decides how the kernel behaves, whatever its name: equal kernels of
        two models share their measurements. Elastic forms do not count: they follow from the rest.
    """

    name: str
    source: Source
    block: tuple[int, int, int]
    registers: int
    shared_bytes: int = 0
    dynamic_shared_bytes: int = 0
    ptx: str | None = field(default=None, repr=False)
    ttir: str | None = field(default=None, repr=False)
    opaque: str = ""
    elastic: str | None = field(default=None, repr=False)
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.ptx is None and not self.opaque:
            raise ProgramError(f"kernel {self.name!r} has neither PTX nor a reason to be opaque: give one of them")
        if not self.digest:
            code = self.name if self.ptx is None else self.ptx.replace(self.name, "kernel")
            needs = f"{self.source}|{self.block}|{self.registers}|{self.shared_bytes}|{self.dynamic_shared_bytes}|"
            object.__setattr__(self, "digest", hashlib.sha256((needs + code).encode()).hexdigest()[:24])

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return math.prod(self.block)


@dataclass(frozen=True, slots=True)
class Launch:
    """One step of a program: a kernel (by index), its grid and its arguments.

    An opaque kernel may have no arguments here, because what it was given could not be read.
    """

    kernel: int
    grid: tuple[int, int, int]
    args: tuple[Argument, ...] = ()

    @property
    def blocks(self) -> int:
        """Logical blocks of the grid."""
        return math.prod(self.grid)


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled model.

    Attributes
    ----------
    name
        For people, for example ``resnet18-b32``.
    target
        Architecture that the PTX was made for, for example ``sm_90a``.
    kernels, launches, buffers, inputs, outputs
        The program itself. Launches run in order, each after the one before it is complete.
    meta
        How it was made: versions, device, date.
    """

    name: str
    target: str
    kernels: tuple[Kernel, ...]
    launches: tuple[Launch, ...]
    buffers: tuple[Buffer, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    meta: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        _check(self)

    def __hash__(self) -> int:
        return hash((self.name, len(self.launches)))

    def kernel_of(self, launch: int) -> Kernel:
        """The kernel of launch number ``launch``."""
        return self.kernels[self.launches[launch].kernel]

    @property
    def digest(self) -> str:
        """Hash of kernels and launches; weights and names do not matter."""
        steps = [(self.kernels[step.kernel].digest, step.grid) for step in self.launches]
        return hashlib.sha256(repr(steps).encode()).hexdigest()[:24]

    @property
    def runnable(self) -> bool:
        """Whether every launch carries what is needed to run it from this program alone."""
        return all(
            self.kernel_of(i).ptx is not None or self.kernel_of(i).source in (Source.COPY, Source.FILL)
            for i in range(len(self.launches))
        )

    @property
    def size_bytes(self) -> int:
        """Device memory that one instance takes."""
        return sum(buffer.size_bytes for buffer in self.buffers)

    def without_weights(self) -> Program:
        """The same program with the contents of its buffers left out; sizes stay."""
        return replace(self, buffers=tuple(replace(b, data=None) for b in self.buffers))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` in one step: a reader sees the old file or the whole new one."""
        with replacing(path, ProgramError) as part, zipfile.ZipFile(part, "w") as archive:
            _write(archive, "manifest.json", _dump(_manifest(self)), zipfile.ZIP_DEFLATED)
            code = [
                {"ptx": k.ptx, "ttir": k.ttir} | ({} if k.elastic is None else {"elastic": k.elastic})
                for k in self.kernels
            ]
            _write(archive, "kernels.json", _dump(code), zipfile.ZIP_LZMA)
            for i, buffer in enumerate(self.buffers):
                if buffer.data is not None:
                    _write(archive, f"weights/{i}", buffer.data, zipfile.ZIP_STORED)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Program:
        """Read a program file.

        Raises
        ------
        ProgramError
            The file is missing, no program, truncated, damaged, of another version, or does not
            hold together (a launch of a kernel that is not there, a pointer outside its buffer).
        """
        again = "compile the model again with 'miriam compile'"
        try:
            with zipfile.ZipFile(path) as archive:
                manifest = json.loads(archive.read("manifest.json"))
                version = manifest.get("format") if isinstance(manifest, dict) else None
                if version != FORMAT_VERSION:
                    raise ProgramError(
                        f"{path} has program format {version!r}, this Miriam reads {FORMAT_VERSION}: {again}"
                    )
                code = json.loads(archive.read("kernels.json"))
                data = {n: archive.read(n) for n in archive.namelist() if n.startswith("weights/")}
            return _from_manifest(manifest, code, data)
        except FileNotFoundError:
            raise ProgramError(f"there is no program file {path}: make one with 'miriam compile'") from None
        except OSError as error:
            raise ProgramError(f"cannot read {path}: {error.strerror or error}") from error
        except ProgramError as error:
            raise error if str(path) in str(error) else ProgramError(f"{path}: {error}") from error
        except KeyError as error:
            raise ProgramError(f"{path} is not a whole program file, {error.args[0]} is missing: {again}") from error
        except Exception as error:  # damage can surface anywhere in the zip, LZMA and JSON readers
            raise ProgramError(f"{path} is no program file or is damaged ({error}): {again}") from error


def _write(archive: zipfile.ZipFile, name: str, data: bytes, method: int) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = method
    archive.writestr(info, data)


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _check(program: Program) -> None:
    def within(at: Pointer, what: str) -> None:
        if not 0 <= at.buffer < len(program.buffers):
            raise ProgramError(f"{what} points into buffer {at.buffer}, there are {len(program.buffers)}")
        size = program.buffers[at.buffer].size_bytes
        if not 0 <= at.offset_bytes <= size:
            raise ProgramError(f"{what} points {at.offset_bytes} bytes into a buffer of {size} bytes")

    for buffer in program.buffers:
        if buffer.data is not None and len(buffer.data) != buffer.size_bytes:
            raise ProgramError(f"buffer {buffer.name!r} says {buffer.size_bytes} bytes and holds {len(buffer.data)}")
    for i, launch in enumerate(program.launches):
        if not 0 <= launch.kernel < len(program.kernels):
            raise ProgramError(f"launch {i} needs kernel {launch.kernel}, which is missing")
        if len(launch.grid) != 3 or min(launch.grid) < 1:
            raise ProgramError(f"launch {i} has the grid {launch.grid}: three numbers above zero are needed")
        for j, argument in enumerate(launch.args):
            if isinstance(argument, Pointer):
                within(argument, f"argument {j} of launch {i}")
    for tensor in (*program.inputs, *program.outputs):
        within(tensor.at, f"tensor {tensor.name!r}")


def _manifest(program: Program) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "name": program.name,
        "target": program.target,
        "meta": dict(program.meta),
        "kernels": [
            {
                "name": k.name,
                "source": k.source,
                "block": k.block,
                "registers": k.registers,
                "shared_bytes": k.shared_bytes,
                "dynamic_shared_bytes": k.dynamic_shared_bytes,
                "opaque": k.opaque,
                "digest": k.digest,
            }
            for k in program.kernels
        ],
        "launches": [
            {
                "kernel": step.kernel,
                "grid": step.grid,
                "args": [[a.buffer, a.offset_bytes] if isinstance(a, Pointer) else a.raw.hex() for a in step.args],
            }
            for step in program.launches
        ],
        "buffers": [
            {"name": b.name, "size_bytes": b.size_bytes, "role": b.role, "kept": b.data is not None}
            for b in program.buffers
        ],
        "inputs": [_tensor_json(t) for t in program.inputs],
        "outputs": [_tensor_json(t) for t in program.outputs],
    }


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "strides": tensor.strides,
        "at": [tensor.at.buffer, tensor.at.offset_bytes],
    }


def _tensor(raw: dict[str, Any]) -> Tensor:
    return Tensor(raw["name"], raw["dtype"], tuple(raw["shape"]), tuple(raw["strides"]), Pointer(*raw["at"]))


def _from_manifest(raw: dict[str, Any], code: list[dict[str, Any]], data: Mapping[str, bytes]) -> Program:
    if len(code) != len(raw["kernels"]):
        raise ProgramError(f"{len(raw['kernels'])} kernels are listed and the code of {len(code)} is there")
    kernels = []
    for k, text in zip(raw["kernels"], code, strict=True):
        kernel = Kernel(
            k["name"], Source(k["source"]), tuple(k["block"]), k["registers"], k["shared_bytes"],
            k["dynamic_shared_bytes"], text["ptx"], text["ttir"], k["opaque"], text.get("elastic"),
        )  # fmt: skip
        if kernel.digest != k["digest"]:
            raise ProgramError(f"the code of kernel {kernel.name!r} is not the code that was saved")
        kernels.append(kernel)
    for i, buffer in enumerate(raw["buffers"]):
        if buffer["kept"] != (f"weights/{i}" in data):
            raise ProgramError(
                f"buffer {buffer['name']!r} was not saved like this: contents are missing or not its own"
            )
    return Program(
        name=raw["name"],
        target=raw["target"],
        kernels=tuple(kernels),
        launches=tuple(
            Launch(
                step["kernel"],
                tuple(step["grid"]),
                tuple(Scalar(bytes.fromhex(a)) if isinstance(a, str) else Pointer(*a) for a in step["args"]),
            )
            for step in raw["launches"]
        ),
        buffers=tuple(
            Buffer(b["name"], b["size_bytes"], Role(b["role"]), data.get(f"weights/{i}"))
            for i, b in enumerate(raw["buffers"])
        ),
        inputs=tuple(_tensor(t) for t in raw["inputs"]),
        outputs=tuple(_tensor(t) for t in raw["outputs"]),
        meta=MappingProxyType(dict(raw["meta"])),
    )
