"""Calls of the driver, and what becomes of a status that is not success."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

from miriam.errors import DeviceError

__all__ = ["bindings", "check", "constant", "failure", "profiled", "ready", "unavailable"]


def bindings() -> ModuleType:
    """The bindings of the driver."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError("the CUDA bindings are not installed: pip install 'cuda-bindings>=13.0,<14'") from error
    return cast(ModuleType, driver)


def constant(kind: str, name: str) -> Any:
    """Member ``name`` of the enumeration ``kind``."""
    return getattr(getattr(bindings(), kind), name)


def failure(call: str, status: Any) -> DeviceError:
    """The error for a ``status`` of ``call`` that is not success."""
    _, text = bindings().cuGetErrorString(status)
    return DeviceError(f"{call} failed: {text.decode() if text else status} ({status.name})")


def check(call: str, *args: Any) -> Any:
    """Call the driver function ``call`` and give back what it returns besides its status.

    Raises
    ------
    DeviceError
        The status was not success, or there is no driver on this machine.
    """
    try:
        status, *values = getattr(bindings(), call)(*args)
    except RuntimeError as error:  # the bindings raise it when libcuda cannot be opened
        raise DeviceError(
            f"no CUDA driver on this machine ({error}): use a sim device, or install the driver"
        ) from None
    if status != 0:
        raise failure(call, status)
    return values[0] if len(values) == 1 else tuple(values) if values else None


def ready(call: str, handle: Any) -> bool:
    """What the query ``call`` answers: whether everything behind ``handle`` is done."""
    cu = bindings()
    (status,) = getattr(cu, call)(handle)
    if status not in (cu.CUresult.CUDA_SUCCESS, cu.CUresult.CUDA_ERROR_NOT_READY):
        raise failure(call, status)
    return bool(status == cu.CUresult.CUDA_SUCCESS)


def unavailable() -> str:
    """Why no CUDA device can be used here, with the way out; empty if one can."""
    try:
        check("cuInit", 0)
        if check("cuDeviceGetCount") == 0:
            return "the driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"
    except DeviceError as error:
        return str(error)
    return ""


@contextmanager
def profiled() -> Iterator[None]:
    """Let an attached profiler collect what is launched inside."""
    check("cuProfilerStart")
    try:
        yield
    finally:
        check("cuProfilerStop")
