"""CUDA C++ kernels without barriers, compiled for the CPU: one thread after the other, one block after the other."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from miriam import Pointer, Program

__all__ = ["COMPILER", "CpuKernels"]

COMPILER = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)

_BEFORE = """
#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>
#define __global__
#define __device__ static
#define __launch_bounds__(...)
struct Dim { unsigned x, y, z; };
static Dim blockIdx, threadIdx, blockDim, gridDim;
static float __int_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
"""
_BEHIND = """
template <class... A, size_t... I>
static void call(void (*kernel)(A...), void **args, std::index_sequence<I...>) { kernel(*(A *)args[I]...); }

template <class... A> static void launch(void (*kernel)(A...), Dim grid, Dim block, void **args) {
    gridDim = grid, blockDim = block;
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
    for (threadIdx.z = 0; threadIdx.z < block.z; threadIdx.z++)
    for (threadIdx.y = 0; threadIdx.y < block.y; threadIdx.y++)
    for (threadIdx.x = 0; threadIdx.x < block.x; threadIdx.x++)
        call(kernel, args, std::index_sequence_for<A...>{});
}
"""
_ENTRY = 'extern "C" void cpu_{0}(Dim grid, Dim block, void **args) {{ launch({0}, grid, block, args); }}\n'


class _Dim(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


class CpuKernels:
    """Kernels of a source by name, as a library; ``folder`` is where it is built."""

    def __init__(self, source: str, names: Iterable[str], folder: Path) -> None:
        assert COMPILER is not None
        text = _BEFORE + source + _BEHIND + "".join(_ENTRY.format(name) for name in names)
        (folder / "kernels.cpp").write_text(text)
        command = [
            COMPILER,
            "-std=c++17",
            "-O3",
            "-shared",
            "-fPIC",
            "-o",
            folder / "kernels.so",
            folder / "kernels.cpp",
        ]
        subprocess.run(command, check=True, capture_output=True)
        self._library = ctypes.CDLL(str(folder / "kernels.so"))

    def run(self, program: Program, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a program; memory without contents begins as NaN."""
        memory = [np.full(-(-b.size_bytes // 4), np.nan, np.float32) for b in program.buffers]
        for array, buffer in zip(memory, program.buffers, strict=True):
            if buffer.data is not None:
                array[:] = np.frombuffer(buffer.data, np.float32)
        for tensor in program.inputs:
            memory[tensor.at.buffer][:] = inputs[tensor.name].ravel()
        for launch in program.launches:
            kernel = program.kernels[launch.kernel]
            raw = [
                (memory[a.buffer].ctypes.data + a.offset_bytes).to_bytes(8, "little")
                if isinstance(a, Pointer)
                else a.raw
                for a in launch.args
            ]
            held = [ctypes.create_string_buffer(value, len(value)) for value in raw]
            args = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
            self._library[f"cpu_{kernel.name}"](_Dim(*launch.grid), _Dim(*kernel.block), args)
        return {t.name: memory[t.at.buffer][: np.prod(t.shape)].reshape(t.shape) for t in program.outputs}
