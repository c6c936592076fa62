"""Programs made by hand: buffers, and launches of kernels on them.

::

    build = Builder("saxpy", "sm_90")
    x, y = build.input("x", "float32", (n,)), build.output("y", "float32", (n,))
    build.launch(kernel, -(-n // 256), x, y, 2.0, n)
    program = build.program()
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from miriam.elastic.ptx import Variable, parse
from miriam.errors import ProgramError
from miriam.program import Argument, Buffer, Kernel, Launch, Pointer, Program, Role, Scalar, Tensor

__all__ = ["Builder", "Parameter", "Value", "parameters"]

Value: TypeAlias = Tensor | Pointer | Scalar | bool | int | float | bytes | np.generic | None
"""What a launch may be given: memory, a number, the bytes of a structure, or None (a null pointer)."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a kernel, as PTX declares it.

    Attributes
    ----------
    name
        The one in PTX.
    kind
        ``b`` (bits), ``s``, ``u`` (integers), ``f`` (floating point), or ``[`` for bytes in a row: a
        structure, or a number of 16 bits that PTX has no parameter for.
    size_bytes
        Its size.
    """

    name: str
    kind: str
    size_bytes: int


def parameters(ptx: str, entry: str) -> tuple[Parameter, ...]:
    """The parameters of a kernel in the text of its module.

    Raises
    ------
    ProgramError
        There is no such kernel, or a parameter is no number, structure or pointer.
    PtxError
        The text is not understood.
    """
    kernels = {function.name: function for function in parse(ptx, f"the PTX of {entry!r}").entries}
    if entry not in kernels:
        raise ProgramError(f"there is no kernel {entry!r}: the PTX has {', '.join(kernels) or 'none'}")
    return tuple(_parameter(variable, entry) for variable in kernels[entry].parameters)


def _parameter(variable: Variable, entry: str) -> Parameter:
    (declared,) = variable.names
    if (size := variable.size_bytes(declared)) is None:
        raise ProgramError(f"parameter {declared.name!r} of kernel {entry!r} has the type {variable.type!r}, no number")
    return Parameter(declared.name, "[" if declared.extents else variable.type[0], size)


class Builder:
    """Collects buffers and launches; :meth:`program` puts them together.

    Parameters
    ----------
    name
        Of the program.
    target
        Architecture that its PTX was made for, for example ``sm_90``.
    """

    def __init__(self, name: str, target: str) -> None:
        self.name, self.target = name, target
        self._kernels: list[Kernel] = []
        self._launches: list[Launch] = []
        self._buffers: list[Buffer] = []
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def input(
        self, name: str, dtype: str | None = None, shape: Sequence[int] | None = None, *, data: Any = None
    ) -> Tensor:
        """Add an input.

        Parameters
        ----------
        name
            Unique among the buffers.
        dtype, shape
            As NumPy spells it, or ``bfloat16``; those of ``data`` where they are left out.
        data
            Initial contents: an array, or bytes.

        Raises
        ------
        ProgramError
            The name is taken, dtype or shape are missing or make no sense, or ``data`` has another size.
        """
        self._inputs.append(tensor := self._buffer(name, dtype, shape, data, Role.INPUT))
        return tensor

    def output(
        self, name: str, dtype: str | None = None, shape: Sequence[int] | None = None, *, data: Any = None
    ) -> Tensor:
        """Add an output; see :meth:`input`."""
        self._outputs.append(tensor := self._buffer(name, dtype, shape, data, Role.OUTPUT))
        return tensor

    def weight(
        self, name: str, dtype: str | None = None, shape: Sequence[int] | None = None, *, data: Any = None
    ) -> Tensor:
        """Add a weight; see :meth:`input`."""
        return self._buffer(name, dtype, shape, data, Role.WEIGHT)

    def scratch(
        self, name: str, dtype: str | None = None, shape: Sequence[int] | None = None, *, data: Any = None
    ) -> Tensor:
        """Add memory for what lies between inputs and outputs; see :meth:`input`."""
        return self._buffer(name, dtype, shape, data, Role.INTERMEDIATE)

    def returns(self, tensor: Tensor, name: str | None = None) -> None:
        """Make an output of memory that is there already: an input that is changed in place, say."""
        self._outputs.append(replace(tensor, name=name or tensor.name))

    def launch(self, kernel: Kernel, grid: int | tuple[int, ...], *args: Value) -> None:
        """Add a launch.

        Parameters
        ----------
        kernel
            With PTX.
        grid
            Blocks in x, y and z; those left out are 1.
        *args
            One value for each parameter of the kernel. A Python number takes the type of the
            parameter; a NumPy number must have its size.

        Raises
        ------
        ProgramError
            Values and parameters do not fit each other.
        """
        if kernel.ptx is None:
            raise ProgramError(
                f"kernel {kernel.name!r} has no PTX, so what it takes is not known: add its launch by hand"
            )
        takes = parameters(kernel.ptx, kernel.name)
        if len(takes) != len(args):
            raise ProgramError(f"kernel {kernel.name!r} takes {len(takes)} arguments and was given {len(args)}")
        given = tuple(_argument(value, takes[i], f"argument {i} of {kernel.name!r}") for i, value in enumerate(args))
        if kernel not in self._kernels:
            self._kernels.append(kernel)
        self._launches.append(Launch(self._kernels.index(kernel), three(grid, f"the grid of {kernel.name}"), given))

    def program(self, meta: Mapping[str, str] | None = None) -> Program:
        """Give the program.

        Raises
        ------
        ProgramError
            It does not hold together, see :class:`~miriam.program.Program`.
        """
        return Program(
            self.name, self.target, tuple(self._kernels), tuple(self._launches), tuple(self._buffers),
            tuple(self._inputs), tuple(self._outputs), dict(meta or {}),
        )  # fmt: skip

    def _buffer(self, name: str, dtype: str | None, shape: Sequence[int] | None, data: Any, role: Role) -> Tensor:
        if any(buffer.name == name for buffer in self._buffers):
            raise ProgramError(f"{self.name} has a buffer {name!r} already: choose another name")
        if isinstance(data, np.ndarray):
            dtype, shape = dtype or data.dtype.name, data.shape if shape is None else shape
            data = np.ascontiguousarray(data).tobytes()
        if dtype is None or shape is None:
            raise ProgramError(f"buffer {name!r} needs a dtype and a shape, or an array as its data")
        extents = tuple(int(n) for n in shape)
        if any(n < 1 for n in extents):
            raise ProgramError(f"buffer {name!r} has the shape {extents}: every extent must be above zero")
        buffer = Buffer(name, math.prod(extents) * _item_bytes(dtype, name), role, data)
        if data is not None and len(data) != buffer.size_bytes:
            raise ProgramError(f"buffer {name!r} of {buffer.size_bytes} bytes was given {len(data)}")
        self._buffers.append(buffer)
        strides = tuple(math.prod(extents[i + 1 :]) for i in range(len(extents)))
        return Tensor(name, dtype, extents, strides, Pointer(len(self._buffers) - 1))


def three(extents: int | tuple[int, ...], what: str) -> tuple[int, int, int]:
    """Give the extents of a grid or a block in three dimensions.

    Raises
    ------
    ProgramError
        They are not one to three whole numbers above zero.
    """
    given = (extents,) if isinstance(extents, int) else tuple(extents)
    if not 1 <= len(given) <= 3 or not all(isinstance(n, int) and n > 0 for n in given):
        raise ProgramError(f"{what} is {extents!r}: give one to three numbers above zero")
    x, y, z = (*given, 1, 1)[:3]
    return x, y, z


def _item_bytes(dtype: str, name: str) -> int:
    if dtype == "bfloat16":
        return 2
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        raise ProgramError(f"buffer {name!r} has the dtype {dtype!r}: give one of NumPy's, or bfloat16") from None


def _argument(value: Value, parameter: Parameter, what: str) -> Argument:
    size = parameter.size_bytes
    if isinstance(value, Tensor | Pointer):
        if size != 8 or parameter.kind not in "ub":
            raise ProgramError(f"{what} is a place in memory, and the kernel takes {size} bytes that are no pointer")
        return value.at if isinstance(value, Tensor) else value
    if value is None:
        value = bytes(8)
    if not isinstance(value, Scalar | bytes | np.generic | int | float):
        raise ProgramError(f"{what} is {value!r}: give memory or a number")
    if isinstance(value, Scalar | bytes | np.generic):
        raw = value.raw if isinstance(value, Scalar) else value.tobytes() if isinstance(value, np.generic) else value
        if len(raw) != size:
            raise ProgramError(f"{what} has {len(raw)} bytes, and the kernel takes {size}")
        return Scalar(raw)
    if parameter.kind == "f" or (isinstance(value, float) and parameter.kind == "b" and size in (4, 8)):
        try:
            return Scalar(struct.pack("<f" if size == 4 else "<d", value))
        except OverflowError:
            raise ProgramError(f"{what} is {value}, which does not fit into {size} bytes") from None
    if isinstance(value, float) or parameter.kind == "[":
        raise ProgramError(
            f"{what} is {value!r}, and the kernel takes {size} bytes of another type: give a NumPy number"
        )
    if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
        raise ProgramError(f"{what} is {value}, which does not fit into {size} bytes")
    return Scalar((value % (1 << 8 * size)).to_bytes(size, "little"))
