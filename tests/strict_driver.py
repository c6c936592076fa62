# ruff: noqa: N802 - the names are those of the driver's calls
"""A driver that notices what belongs to another context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fake_driver import CUresult, FakeDriver
from null_gpu import Context, Function

__all__ = ["Strict"]


@dataclass(frozen=True)
class _Bound(Function):
    """A kernel in the context in which it was asked for."""

    context: Context | None


class Strict(FakeDriver):
    """Lets nothing of one context be used in another, which null effects would not notice."""

    def _cuKernelGetFunction(self, kernel: Function) -> tuple[_Bound]:
        return (_Bound(kernel.name, kernel.library, kernel.sizes, self._current[-1]),)

    def _cuLaunchKernel(self, f: _Bound, *args: Any) -> Any:
        stream = args[7]
        return super()._cuLaunchKernel(f, *args) if f.context is stream.context else CUresult.CUDA_ERROR_INVALID_CONTEXT

    def _cuEventCreate(self, *args: Any) -> Any:
        (event,) = super()._cuEventCreate(*args)
        event.context = self._current[-1]
        return (event,)

    def _cuEventRecord(self, event: Any, stream: Any) -> Any:
        right = event.context is stream.context
        return super()._cuEventRecord(event, stream) if right else CUresult.CUDA_ERROR_INVALID_CONTEXT

    def _cuMemcpyHtoDAsync(self, to: int, host: int, size: int, stream: Any) -> Any:
        right = self._current[-1] is stream.context
        return super()._cuMemcpyHtoDAsync(to, host, size, stream) if right else CUresult.CUDA_ERROR_INVALID_CONTEXT

    def _cuMemcpyDtoHAsync(self, host: int, source: int, size: int, stream: Any) -> Any:
        right = self._current[-1] is stream.context
        return super()._cuMemcpyDtoHAsync(host, source, size, stream) if right else CUresult.CUDA_ERROR_INVALID_CONTEXT
