"""PyTorch modules -> programs: torch.compile, one CUDA graph, read back node by node."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import miriam
from miriam.errors import CompileError
from miriam.frontend import cache
from miriam.frontend._graphs import Captured, need_torch
from miriam.program import Program
from miriam.progress import Progress, silent

if TYPE_CHECKING:
    import torch

__all__ = ["Captured", "capture", "compile_factory"]


def capture(
    module: torch.nn.Module, inputs: Sequence[torch.Tensor], *, name: str, weights: bool = True,
    progress: Progress = silent,
) -> Captured:  # fmt: skip
    """Compile ``module`` for these inputs and capture one inference.

    Parameters
    ----------
    module
        In ``eval()`` mode, on the GPU.
    inputs
        CUDA tensors; shapes and strides are fixed from now on.
    weights
        Whether the program carries the contents of its weights.
    progress
        Told what is being done.

    Raises
    ------
    CompileError
        No GPU, torch and triton versions that do not belong together, a model in training mode, or
        one that cannot be compiled or captured.
    """
    torch = need_torch()
    if not torch.cuda.is_available():
        raise CompileError("compiling needs a CUDA GPU, and torch sees none: see 'miriam devices'")
    if module.training:
        raise CompileError(f"{name} is in training mode: call .eval() on it")
    if any(not x.is_cuda for x in inputs):
        raise CompileError(f"an input of {name} is not on the GPU: move it with .cuda()")
    from miriam.device.cuda.driver import Stream
    from miriam.frontend import _inductor

    try:
        with torch.no_grad(), _inductor.loaded_kernels() as loaded:
            compiled = _inductor.compile_module(module, tuple(inputs), progress)
            progress("capturing", 0, 1)
            used = [tensor.detach() for tensor in module.state_dict(keep_vars=True).values()]
            captured = Captured(name, compiled, inputs, Stream(), loaded, _inductor.versions(), weights=weights,
                                live=False, keep=used)  # fmt: skip
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(f"{name} cannot be compiled: {type(error).__name__}: {error}") from error
    progress("capturing", 1, 1)
    return captured


def compile_factory(
    spec: str, shapes: Sequence[Sequence[int]], dtype: str = "float16", *, name: str | None = None,
    weights: bool = True, fresh: bool = False, progress: Progress = silent,
) -> Program:  # fmt: skip
    """Compile what a factory makes: ``package.module:factory``, or ``file.py:factory``.

    The factory takes no arguments and gives an ``nn.Module``. Inputs are random tensors of these
    shapes and this dtype. A model that was compiled before comes from the cache, unless ``fresh``.
    """
    torch = need_torch()
    factory = _factory(spec)
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise CompileError(f"{dtype!r} is no floating-point dtype of torch: try float16, bfloat16 or float32")
    if not torch.cuda.is_available():
        raise CompileError("compiling needs a CUDA GPU, and torch sees none: see 'miriam devices'")
    torch.manual_seed(0)
    module = factory()
    if not isinstance(module, torch.nn.Module):
        raise CompileError(f"{spec} gives a {type(module).__name__}, an nn.Module is needed")
    module = module.eval().to("cuda", kind)
    inputs = [torch.randn(*shape, device="cuda").to(kind) for shape in shapes]
    label = name or spec.rpartition(":")[2]
    key = cache.fingerprint(module, inputs, label, miriam.__version__)
    program = cache.kept(key) if key and not fresh else None
    if program is None:
        program = capture(module, inputs, name=label, progress=progress).program
        if key:
            cache.keep(key, program)
    return program if weights else program.without_weights()


def _factory(spec: str) -> Any:
    where, _, attribute = spec.partition(":")
    if not where or not attribute or where.startswith("."):
        raise CompileError(f"{spec!r} names no factory: write package.module:factory or file.py:factory")
    folder = ""
    if where.endswith(".py"):
        path = Path(where).resolve()
        if not path.is_file():
            raise CompileError(f"there is no file {where}")
        folder, where = str(path.parent), path.stem
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(where)
    except ImportError as error:
        raise CompileError(f"cannot import {where}: {error}") from error
    finally:
        sys.path.remove(folder)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        what = f"no {attribute!r}" if factory is None else f"a {type(factory).__name__} under the name {attribute!r}"
        raise CompileError(f"{where} has {what}: name a function that makes an nn.Module")
    return factory
