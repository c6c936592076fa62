"""Everything of Triton and Inductor that is private, in one place: here and in ``_inductor_*`` beside it.

Written for torch 2.11 with triton 3.6 and torch 2.13 with triton 3.7; :func:`check_versions` says so
when another pair is installed. The rest of Miriam imports only the functions below.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from miriam.errors import CompileError
from miriam.progress import Progress

os.environ.setdefault(
    "TRITON_DISABLE_LINE_INFO", "1"
)  # no paths of this machine in the PTX, and equal kernels stay equal

import torch
import triton
from torch._inductor import config as inductor_config
from torch._inductor import select_algorithm
from torch._inductor import utils as inductor_utils
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.choices import InductorChoices
from torch._inductor.graph import GraphLowering
from torch._inductor.kernel_template_choice import KernelTemplateChoice
from torch._inductor.select_algorithm import (
    AlgorithmSelectorCache,
    TritonTemplateCaller,
    add_preprocessing_fn,
    get_algorithm_selector_cache,
)
from torch._inductor.template_heuristics.triton import ConvConfig
from torch._inductor.virtualized import V

from miriam.frontend._inductor_depthwise import depthwise_as_pointwise
from miriam.frontend._inductor_stems import few_channels
from miriam.frontend._inductor_tiles import CONV_WARPS, TILES, misfit

__all__ = ["LoadedKernel", "check_versions", "compile_module", "loaded_kernels", "versions"]

PAIRS = (("2.11", "3.6"), ("2.13", "3.7"))
"""Versions of torch and triton that belong together and with which this module is tested."""

_PER_SHAPE = 6


def versions() -> dict[str, str]:
    """Versions of what compiles."""
    return {"torch": torch.__version__, "triton": triton.__version__, "cuda": str(torch.version.cuda)}


def check_versions() -> None:
    """Raise :class:`CompileError` unless torch and triton are a pair that this module knows."""
    pair = tuple(".".join(v.split(".")[:2]) for v in (torch.__version__, triton.__version__))
    if pair not in PAIRS:
        known = " or ".join(f"torch {a} with triton {b}" for a, b in PAIRS)
        raise CompileError(f"torch {pair[0]} with triton {pair[1]} is not supported: install {known}")


def options() -> dict[str, Any]:
    """Inductor options: constants folded, templates tuned, each for itself and not inside a fusion."""
    return {
        "max_autotune_gemm": True,
        "max_autotune_gemm_backends": "ATEN,TRITON",  # see _triton_first
        "max_autotune_conv_backends": "ATEN,TRITON",
        "benchmark_epilogue_fusion": False,
        "freezing": True,
        "epilogue_fusion": True,
        "prologue_fusion": False,  # a constant input of a matrix product gives Triton code that does not compile
        "combo_kernels": False,
        "use_static_cuda_launcher": False,  # the static launcher loads kernels past the hooks that tell their handles
        "triton.unique_kernel_names": True,
        "triton.cudagraphs": False,
        "triton.enable_persistent_tma_matmul": False,
        "triton.cooperative_reductions": False,
        "triton.autotune_at_compile_time": False,
        "inductor_choices_class": FewChoices,
        # In 2.11 it keeps what follows a convolution out of its kernel: ResNet-50 has 105 launches in place of 74.
        "loop_ordering_after_fusion": not torch.__version__.startswith("2.11."),
    }


class FewChoices(InductorChoices):
    """A handful of tiles for each shape: those whose grid comes closest to filling the GPU."""

    def uuid(self) -> str:
        """Name of this search in Inductor's cache keys."""
        return "miriam-few-2"

    def get_conv_configs(self, device_type: str | None = "cuda") -> Any:
        """Tiles of the convolution templates."""
        heuristics = self.get_config_heuristics(device_type)

        def generate(m: Any, n: Any, k: Any, **kwargs: Any) -> Any:
            tiles = sorted(TILES, key=partial(misfit, _hint(m), _hint(n)))
            configs = [ConvConfig(bm, bn, bk, s, min(w, CONV_WARPS)) for bm, bn, bk, s, w in tiles]
            kept = []
            for config in heuristics.preprocess_mm_configs(m, n, k, configs=configs, op_name="conv", **kwargs):
                kept.append(config)
                if len(kept) == _PER_SHAPE:
                    break
            return iter(kept)

        return generate

    def _finalize_template_configs(self, template_choices: Any, kernel_inputs: Any, *args: Any, **kwargs: Any) -> Any:
        every: list[KernelTemplateChoice] = super()._finalize_template_configs(
            template_choices, kernel_inputs, *args, **kwargs
        )
        m, n = (_hint(size) for size in kernel_inputs.output_layout().size[-2:])
        tiled: list[tuple[KernelTemplateChoice, dict[str, Any]]] = []
        others: list[tuple[KernelTemplateChoice, dict[str, Any]]] = []
        for choice in every:
            tile = choice.params.to_kwargs()
            (tiled if "BLOCK_M" in tile and "BLOCK_N" in tile else others).append((choice, tile))
        tiled.sort(key=lambda pair: misfit(m, n, (pair[1]["BLOCK_M"], pair[1]["BLOCK_N"], 0, 0, 0)))
        return [choice for choice, _ in others + tiled[: _PER_SHAPE + 2]]


def _hint(size: Any) -> int:
    return int(size) if isinstance(size, int) or getattr(size, "is_number", False) else 1024


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """A Triton kernel that was loaded in this process: its entry name and the files of its stages."""

    name: str
    files: dict[str, str]

    def text(self, stage: str) -> str | None:
        """Text of a stage (``ptx``, ``ttir``), or None if Triton kept none."""
        path = self.files.get(f"{self.name}.{stage}")
        return Path(path).read_text() if path else None


@contextmanager
def loaded_kernels() -> Iterator[dict[int, LoadedKernel]]:
    """Collect the Triton kernels that are loaded inside, by their driver handle."""
    found: dict[int, LoadedKernel] = {}

    def loaded(module: Any, function: Any, name: str, files: dict[str, str], digest: str) -> None:
        found[int(function)] = LoadedKernel(name, {Path(p).name: str(p) for p in files.values()})

    hook = triton.knobs.runtime.kernel_load_end_hook
    hook.add(loaded)
    try:
        yield found
    finally:
        hook.remove(loaded)


def _triton_first(choices: list[Any]) -> list[Any]:
    """Triton templates where there are any; a library only where there is nothing else."""
    AsyncCompile.wait_pool_ready()  # until then Inductor would compile in this process, one kernel after the other
    return [choice for choice in choices if isinstance(choice, TritonTemplateCaller)] or choices


@contextmanager
def search() -> Iterator[None]:
    """Our tiles, Triton first, short measurements, and no log lines about candidates that do not fit."""
    logs = [logging.getLogger(f"torch._inductor.{name}") for name in ("select_algorithm", "runtime.triton_heuristics")]
    levels = [log.level for log in logs]
    add_preprocessing_fn(_triton_first)
    quiet = inductor_config.patch(
        freezing=True,  # Dynamo looks at the global option, not at those of one compilation
        inductor_default_autotune_warmup=5,
        inductor_default_autotune_rep=20,
        max_autotune_report_choices_stats=False,
    )
    printing = select_algorithm.PRINT_AUTOTUNE
    select_algorithm.PRINT_AUTOTUNE = False
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL)
        # Inductor has no templates for GPUs of less than 68 SMs, which are the ones that are shared most.
        templates = patch.object(inductor_utils, "is_big_gpu", lambda *args: True)
        with V.set_choices_handler(FewChoices()), depthwise_as_pointwise(), few_channels(), quiet, templates:
            yield
    finally:
        get_algorithm_selector_cache().preprocessing_fns.remove(_triton_first)
        select_algorithm.PRINT_AUTOTUNE = printing
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


class Collected(Exception):  # noqa: N818 - it ends a pass, it is no error
    """Ends the first pass of a compilation: every candidate is known."""


@contextmanager
def _collecting(pending: dict[int, Callable[[], Any]]) -> Iterator[None]:
    """Lower without tuning: note what would have to be compiled, and stop before code is made."""

    def note(self: Any, name: str, nodes: Any, layout: Any, gens: Any, key: str, choices: Any, precompile: Any,
             *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        pending[id(precompile)] = precompile
        return {choice: float(i + 1) for i, choice in enumerate(choices)}

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise Collected

    tuning, codegen = AlgorithmSelectorCache.do_autotuning, GraphLowering.codegen
    setattr(AlgorithmSelectorCache, "do_autotuning", note)  # noqa: B010 - a plain assignment is refused by mypy
    setattr(GraphLowering, "codegen", stop)  # noqa: B010
    try:
        yield
    finally:
        setattr(AlgorithmSelectorCache, "do_autotuning", tuning)  # noqa: B010
        setattr(GraphLowering, "codegen", codegen)  # noqa: B010


def compile_module(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], progress: Progress) -> Callable[..., Any]:
    """Compile ``module`` for ``inputs``, with Triton wherever it can, and run it once.

    Tuning compiles hundreds of candidate kernels. Inductor does that shape by shape, waiting for each;
    here a first pass only collects the candidates, all cores compile them at once into Triton's cache,
    and the second pass finds them there.
    """
    check_versions()
    with search():
        pending: dict[int, Callable[[], Any]] = {}
        progress("finding candidates", 0, 1)
        torch._dynamo.reset()
        with _collecting(pending):
            try:
                compiled = torch.compile(module, options=options(), fullgraph=True)
                compiled(*inputs)
            except Exception as error:
                if not caused_by(error, Collected):
                    raise
            else:  # Inductor has compiled this graph before
                return compiled
        for done, precompile in enumerate(pending.values()):
            progress("compiling candidates", done, len(pending))
            precompile()
        progress("tuning", 0, 1)
        torch._dynamo.reset()
        compiled = torch.compile(module, options=options(), fullgraph=True)
        compiled(*inputs)
        progress("tuning", 1, 1)
    return compiled


def caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error, or one that it wraps, is of this kind."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return False
