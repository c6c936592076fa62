"""Loaded device code and its kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from miriam.device.cuda.driver.calls import bindings, check, constant, failure
from miriam.errors import DeviceError

if TYPE_CHECKING:
    from miriam.device.cuda.driver.stream import Stream

__all__ = ["Function", "Module", "Prepared", "function_facts", "parameters"]


class Module:
    """Loaded device code, usable in every context of the GPU (a CUDA library)."""

    def __init__(self, code: bytes) -> None:
        # The driver may compile as late as when a kernel is asked for, and writes its words here even then; the
        # bindings take nothing but bytes for it.
        self._log = bytes(4096)
        options = [constant("CUjit_option", f"CU_JIT_{n}") for n in ("ERROR_LOG_BUFFER", "ERROR_LOG_BUFFER_SIZE_BYTES")]
        values = [self._log, len(self._log)]
        self._library: Any = self._check("cuLibraryLoadData", code, options, values, len(options), [], [], 0)

    def _check(self, call: str, *args: Any) -> Any:
        """Call the driver; to an error add what the compiler says."""
        try:
            return check(call, *args)
        except DeviceError as error:
            detail = self._log.split(b"\0")[0].decode(errors="replace").strip()
            raise DeviceError(f"{error}{': ' + detail if detail else ''}") from None

    def function(self, name: str, dynamic_shared_bytes: int = 0) -> Function:
        """Kernel ``name`` for the current context, allowed to use that much dynamic shared memory."""
        kernel = self._check("cuLibraryGetKernel", self._library, name.encode())
        function = self._check("cuKernelGetFunction", kernel)
        if dynamic_shared_bytes > 48 * 1024:
            attribute = constant("CUfunction_attribute", "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES")
            check("cuFuncSetAttribute", function, attribute, dynamic_shared_bytes)
        return Function(function)

    def close(self) -> None:
        """Unload; functions of it must not be used any more."""
        if self._library is not None:
            library, self._library = self._library, None
            check("cuLibraryUnload", library)


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel that can be launched in the context in which it was got."""

    handle: Any

    @property
    def parameter_sizes(self) -> tuple[int, ...]:
        """Bytes of each parameter."""
        return tuple(size for _, size in parameters(self.handle))

    def launch(self, stream: Stream, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int,
               args: Sequence[bytes], *, early: bool = False) -> None:  # fmt: skip
        """Enqueue a launch; ``args`` are the bytes of each parameter.

        An ``early`` one may be brought to the SMs before the kernel in front of it has ended
        (programmatic dependent launch): its code must wait for that by itself.
        """
        if not early:
            self.prepare(grid, block, shared_bytes, args).enqueue(stream)
            return
        held, at = _table(args)
        cu = bindings()
        config, attribute = cu.CUlaunchConfig(), cu.CUlaunchAttribute()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes, config.hStream = shared_bytes, stream.handle
        attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [attribute], 1
        check("cuLaunchKernelEx", config, self.handle, at, 0)
        del held

    def prepare(self, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int,
                args: Sequence[bytes]) -> Prepared:  # fmt: skip
        """A launch to be enqueued again and again."""
        return Prepared((self.handle, *grid, *block, shared_bytes), args)

    def blocks_per_sm(self, threads: int, dynamic_shared_bytes: int) -> int:
        """Resident blocks of this kernel on one SM, as the driver computes them."""
        return int(check("cuOccupancyMaxActiveBlocksPerMultiprocessor", self.handle, threads, dynamic_shared_bytes))


class Prepared:
    """A launch whose arguments stay the same; to enqueue it again costs one call of the driver."""

    __slots__ = ("_fixed", "_held", "_launch", "_parameters")

    def __init__(self, fixed: tuple[Any, ...], args: Sequence[bytes]) -> None:
        self._fixed = fixed
        self._held, self._parameters = _table(args)
        self._launch = bindings().cuLaunchKernel

    def enqueue(self, stream: Stream) -> None:
        """Enqueue the launch."""
        (status,) = self._launch(*self._fixed, stream.handle, self._parameters, 0)
        if status:
            raise failure("cuLaunchKernel", status)


def _table(args: Sequence[bytes]) -> tuple[Any, int]:
    """The bytes of each argument, to be held until the driver has read them, and where their table lies."""
    held = [ctypes.create_string_buffer(raw, len(raw)) for raw in args]
    table = (ctypes.c_void_p * max(len(held), 1))(*[ctypes.addressof(raw) for raw in held])
    return (held, table), ctypes.addressof(table)


def parameters(function: Any) -> list[tuple[int, int]]:
    """Offset and bytes of each parameter of a kernel."""
    cu = bindings()
    found: list[tuple[int, int]] = []
    while True:  # the driver has no count: it answers INVALID_VALUE behind the last parameter
        status, offset, size = cu.cuFuncGetParamInfo(function, len(found))
        if status != cu.CUresult.CUDA_SUCCESS:
            return found
        found.append((offset, size))


def function_facts(function: int) -> dict[str, int]:
    """Registers, static shared memory and block limit of a kernel given by its driver handle."""
    handle = bindings().CUfunction(init_value=function)
    names = {"registers": "NUM_REGS", "shared_bytes": "SHARED_SIZE_BYTES", "max_threads": "MAX_THREADS_PER_BLOCK"}
    return {
        key: int(check("cuFuncGetAttribute", constant("CUfunction_attribute", f"CU_FUNC_ATTRIBUTE_{name}"), handle))
        for key, name in names.items()
    }
