"""A module -> the kernels that Inductor would compile it to, for an architecture that is not there.

The same options, the same search and the same templates as in :mod:`miriam.frontend._inductor`, up to
PTX; only the measurements are left out: the first candidate wins. Weights and inputs are fake tensors,
and the questions that torch, Inductor and Triton ask a GPU are answered from its published figures.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config as inductor_config
from torch._inductor import graph
from torch._inductor import utils as inductor_utils
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CacheBase, _load_triton_kernel_from_source
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.select_algorithm import AlgorithmSelectorCache, TritonTemplateCaller
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _triton as triton_queries
from triton.backends.compiler import GPUTarget

from miriam.errors import CompileError
from miriam.frontend._inductor import Collected, caused_by, check_versions, options, search

_CUDA, _META = 1, 14  # c10/core/DeviceType.h

__all__ = ["ARCHITECTURES", "Candidate", "LoweredKernel", "Lowering", "lower"]


@dataclass(frozen=True, slots=True)
class _Architecture:
    name: str
    sms: int
    threads_per_sm: int
    shared_per_sm_bytes: int
    shared_per_block_bytes: int


# CUDA C++ programming guide, technical specifications by compute capability, with the SMs of one GPU of each.
ARCHITECTURES = {
    75: _Architecture("NVIDIA GeForce RTX 2060", 30, 1024, 64 << 10, 64 << 10),
    87: _Architecture("Orin", 16, 1536, 164 << 10, 163 << 10),
    90: _Architecture("NVIDIA H200", 132, 2048, 228 << 10, 227 << 10),
}
"""Architectures that can be lowered for, by compute capability."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to compute an operation that the search offers: a template of so many warps, or a library (no warps)."""

    operation: str
    warps: int


@dataclass(frozen=True, slots=True)
class LoweredKernel:
    """A Triton kernel: its text as Inductor wrote it, and what Triton made of it."""

    name: str
    source: str
    ttir: str
    ptx: str
    warps: int


@dataclass(frozen=True, slots=True)
class Lowering:
    """What a module becomes.

    Attributes
    ----------
    kernels
        Triton kernels, each once, however often it is launched.
    libraries
        Calls of library functions, in order.
    candidates
        All that the search offered, operation by operation.
    """

    kernels: tuple[LoweredKernel, ...]
    libraries: tuple[str, ...]
    candidates: tuple[Candidate, ...]


def lower(module: torch.nn.Module, inputs: Sequence[torch.Tensor], capability: int = 90) -> Lowering:
    """Lower ``module`` for ``inputs`` to PTX, with no GPU in reach.

    Parameters
    ----------
    module, inputs
        On the CPU; shapes, strides and dtypes matter, contents do not.
    capability
        Compute capability times ten, one of :data:`ARCHITECTURES`.

    Raises
    ------
    CompileError
        An unknown architecture, or versions of torch and triton that do not belong together.
    """
    check_versions()
    if capability not in ARCHITECTURES:
        known = ", ".join(map(str, ARCHITECTURES))
        raise CompileError(f"compute capability {capability} is not known here: take one of {known}")
    kernels: list[LoweredKernel] = []
    candidates: list[Candidate] = []
    code: list[str] = []
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = copy.deepcopy(module).eval().requires_grad_(False)
    with mode:
        module = module.to_empty(device="cuda")
        given = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in inputs]
    ended: Exception | None = None
    with _in_place_of_a_gpu(capability), _noting(kernels, candidates, code), search(), torch.no_grad():
        try:
            torch.compile(module, options=options(), fullgraph=True)(*given)
        except Exception as error:  # what leaves this block makes Inductor keep its temporary files
            ended = error
    if ended is not None and not caused_by(ended, Collected):
        raise ended
    libraries = re.findall(r"\b(?:extern_kernels|torch\.ops)\.([\w.]+)\(", "\n".join(code))
    return Lowering(tuple(kernels), tuple(libraries), tuple(candidates))


@contextmanager
def _noting(kernels: list[LoweredKernel], candidates: list[Candidate], code: list[str]) -> Iterator[None]:
    """Take the first candidate, compile each kernel to PTX, and stop before anything is launched."""

    def first(self: Any, name: str, nodes: Any, layout: Any, gens: Any, key: str, choices: Any, *args: Any,
              **kwargs: Any) -> Any:  # fmt: skip
        for choice in choices:
            template = isinstance(choice, TritonTemplateCaller)
            candidates.append(Candidate(name, int(choice.info_dict()["num_warps"]) if template else 0))
        return {choice: float(i + 1) for i, choice in enumerate(choices)}

    def compiled(self: Any, name: str, source: str, device_str: str = "cuda") -> Any:
        autotuner = _load_triton_kernel_from_source(name, source)
        binary = autotuner._precompile_config(autotuner.configs[0]).kernel
        kernels.append(
            LoweredKernel(
                binary.metadata.name, source, binary.asm["ttir"], binary.asm["ptx"], binary.metadata.num_warps
            )
        )
        return autotuner

    generate = GraphLowering.compile_to_module

    def stop(self: Any) -> Any:
        code.append(Path(str(generate(self).__file__)).read_text())
        raise Collected

    with (
        patch.object(AlgorithmSelectorCache, "do_autotuning", first),
        patch.object(AlgorithmSelectorCache, "make_precompile_fn", lambda *args, **kwargs: lambda *_, **__: None),
        patch.object(AsyncCompile, "triton", compiled),
        patch.object(GraphLowering, "compile_to_module", stop),
    ):
        yield


class _Driver:
    """Triton's view of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0


@contextmanager
def _in_place_of_a_gpu(capability: int) -> Iterator[None]:
    """Answer as a GPU of this architecture would; afterwards nothing remembers these answers."""
    what = ARCHITECTURES[capability]
    properties = SimpleNamespace(
        name=what.name, major=capability // 10, minor=capability % 10, multi_processor_count=what.sms,
        max_threads_per_multi_processor=what.threads_per_sm, max_threads_per_block=1024, warp_size=32,
        regs_per_multiprocessor=65536, shared_memory_per_block=48 << 10, gcnArchName=what.name,
        shared_memory_per_block_optin=what.shared_per_block_bytes, L2_cache_size=4 << 20, total_memory=4 << 30,
        shared_memory_per_multiprocessor=what.shared_per_sm_bytes,
    )  # fmt: skip
    queries: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: capability >= 80,
        "synchronize": lambda device=None: None,
    }
    contexts: dict[str, Callable[..., Any]] = {
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "get_rng_state": lambda device="cuda": torch.empty(0, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
    }
    patterns = joint_graph.lazy_init
    with ExitStack() as stack:
        for name, answer in (queries | contexts).items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        for name, answer in queries.items():
            stack.enter_context(patch.object(CudaInterface, name, staticmethod(answer)))
        for name in ("current_device", "get_device_properties"):
            stack.enter_context(patch.object(CudaInterface.Worker, name, staticmethod(queries[name])))
        stack.enter_context(patch.object(torch.accelerator, "is_available", lambda: False))  # it has streams
        stack.enter_context(patch.object(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, create=True))
        stack.enter_context(patch.object(triton.runtime.driver, "_active", _Driver(capability)))
        stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        stack.enter_context(patch.object(graph, "is_same_tensor", lambda one, other: one is other))
        stack.enter_context(_guard())
        # Patterns are found by tracing examples, which must be real tensors somewhere.
        stack.enter_context(patch.object(joint_graph, "lazy_init", lambda device=None: patterns(torch.device("cpu"))))
        _forget()
        stack.callback(_forget)
        stack.enter_context(inductor_utils.fresh_cache())
        stack.enter_context(
            inductor_config.patch(
                compile_threads=1,
                fx_graph_cache=False,
                autotune_local_cache=False,
                always_keep_tensor_constants=True,  # they have no contents that could be written into the code
                joint_graph_constant_folding=False,  # it computes on the GPU
                shape_padding=False,  # it measures
            )
        )
        yield


@contextmanager
def _guard() -> Iterator[None]:
    """Lend CUDA tensors the device guard of meta tensors, where torch was built without CUDA.

    Indexing and copying ask for the guard of a tensor's device, even when the tensor has no memory.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    built = guards[_CUDA]
    if built is None:
        guards[_CUDA] = guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = built


def _forget() -> None:
    """Clear what torch and Inductor remember of the GPU."""
    torch._dynamo.reset()
    for module in (inductor_utils, triton_queries):
        for query in vars(module).values():
            if isinstance(query, functools._lru_cache_wrapper):
                query.cache_clear()
    for remembered in (DeviceProperties.create, CacheBase.get_system):
        getattr(remembered, "cache_clear", lambda: None)()
