"""Tensors handed to other libraries and taken from them without going through the host.

DLPack (dmlc.github.io/dlpack, the structures of version 0.x, which every library still gives when nothing newer
is asked for) and the CUDA array interface (version 3, numba.readthedocs.io). No library of tensors is needed.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from miriam.errors import DeviceError

__all__ = ["CPU", "CUDA", "HOSTS", "View", "viewed"]

CPU, CUDA = 1, 2
"""Kinds of devices, as DLPack numbers them."""

HOSTS = (CPU, 3)
"""Kinds of memory of the host: page-locked memory, too."""

_GPU = (CUDA, 13)  # managed memory, too
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "complex": 5, "bool": 6}
_CAPSULE = b"dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


def _capsule_call(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_new = _capsule_call("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_valid = _capsule_call("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_pointer = _capsule_call("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)

_exported: dict[int, tuple[Any, ...]] = {}  # by the address of the structure: what must stay as long as it is used


def _release(managed: int) -> None:
    _exported.pop(managed, None)


def _dropped(capsule: int) -> None:
    if _valid(capsule, _CAPSULE):  # nobody took it
        _release(_pointer(capsule, _CAPSULE))


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_release)
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_dropped)


@dataclass(frozen=True, slots=True)
class View:
    """Memory as a tensor, for ``torch.from_dlpack`` and its like in other libraries.

    Whoever wraps it waits for pending work by itself, and lets go before the memory is given back.

    Attributes
    ----------
    address
        Of element zero.
    dtype, shape, strides
        As in :class:`miriam.program.Tensor`.
    device
        Kind and number, as DLPack counts them.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: tuple[int, int] = (CUDA, 0)

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape} with strides {self.strides}"

    def alike(self, other: View) -> bool:
        """Whether both have the same elements in the same places; strides of single elements do not matter."""

        def steps(view: View) -> list[int]:
            return [stride for size, stride in zip(view.shape, view.strides, strict=True) if size > 1]

        return (self.dtype, self.shape, steps(self)) == (other.dtype, other.shape, steps(other))

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(
        self, *, stream: object = None, max_version: object = None, dl_device: object = None, copy: bool | None = None
    ) -> object:
        if copy or dl_device not in (None, self.device):
            raise BufferError("this is memory of a program, which can be shared where it is and not be copied: clone()")
        code, bits = _type_of(self.dtype)
        shape, strides = ((ctypes.c_int64 * len(self.shape))(*sizes) for sizes in (self.shape, self.strides))
        sizes = ctypes.POINTER(ctypes.c_int64)
        tensor = _Tensor(
            self.address, *self.device, len(self.shape), code, bits, 1, ctypes.cast(shape, sizes),
            ctypes.cast(strides, sizes), 0,
        )  # fmt: skip
        managed = _Managed(tensor, None, ctypes.cast(_deleter, ctypes.c_void_p))
        at = ctypes.addressof(managed)
        _exported[at] = (managed, shape, strides)
        return _new(at, _CAPSULE, ctypes.cast(_destructor, ctypes.c_void_p))

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        if self.device[0] != CUDA or self.dtype == "bfloat16":
            raise AttributeError("the CUDA array interface knows neither bfloat16 nor memory of the host: use DLPack")
        kind = np.dtype(self.dtype)
        return {
            "version": 3, "shape": self.shape, "typestr": kind.str, "data": (self.address, False), "stream": None,
            "strides": tuple(stride * kind.itemsize for stride in self.strides),
        }  # fmt: skip


def viewed(thing: Any, stream: int, ordinal: int) -> tuple[View, object, int | None]:
    """See a tensor of another library where it lies.

    Parameters
    ----------
    thing
        Has ``__dlpack__`` or ``__cuda_array_interface__``.
    stream
        Stream of the driver on which it will be read; the other library lets it wait for pending work.
    ordinal
        GPU on which what does not tell its own is taken to lie.

    Returns
    -------
    The view, what must be kept while it is used, and a stream that must be waited for, if there is one.

    Raises
    ------
    DeviceError
        It is no tensor, one on another kind of device, of a type that is not known, or its library refuses.
    """
    if hasattr(thing, "__dlpack__"):
        try:
            kind, number = (int(part) for part in thing.__dlpack_device__())
            if kind not in (*HOSTS, *_GPU):
                raise DeviceError(
                    f"a tensor on a device of kind {kind} (as DLPack counts): move it to the GPU or the host"
                )
            capsule = thing.__dlpack__() if kind in HOSTS else thing.__dlpack__(stream=stream)
        except (BufferError, ValueError) as error:  # read-only, of another byte order, with a gradient, nowhere
            what = type(thing).__name__
            raise DeviceError(f"this {what} cannot be handed over ({error}): give a plain copy of it") from error
        return _opened(capsule, (CPU if kind in HOSTS else CUDA, number)), capsule, None
    facts = getattr(thing, "__cuda_array_interface__", None)
    if facts is None:
        what = type(thing).__name__
        raise DeviceError(f"a {what} is no tensor: give bytes, or what has __dlpack__ or __cuda_array_interface__")
    kind, shape = np.dtype(facts["typestr"]), tuple(facts["shape"])
    steps = facts.get("strides")
    strides = _dense(shape) if steps is None else tuple(step // kind.itemsize for step in steps)
    return View(facts["data"][0], kind.name, shape, strides, (CUDA, ordinal)), thing, facts.get("stream")


def _opened(capsule: object, device: tuple[int, int]) -> View:
    at = _pointer(id(capsule), _CAPSULE)
    tensor = _Managed.from_address(at).tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _dense(shape)
    name = next((name for name, code in _CODES.items() if code == tensor.code), None)
    if name is None or tensor.lanes != 1:
        raise DeviceError(f"a tensor of a type that DLPack numbers {tensor.code} is not known here")
    dtype = name if name == "bool" else f"{name}{tensor.bits}"
    return View((tensor.data or 0) + tensor.byte_offset, dtype, shape, strides, device)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _type_of(dtype: str) -> tuple[int, int]:
    found = re.fullmatch(r"([a-z]+)(\d*)", dtype)
    if not found or found[1] not in _CODES:
        raise BufferError(f"{dtype} has no number in DLPack")
    return _CODES[found[1]], int(found[2] or 8)
