"""Modules and functions of PyTorch -> what a GPU runs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import miriam
from miriam.errors import CompileError
from miriam.frontend import cache
from miriam.frontend._graphs import need_torch
from miriam.frontend.chain import as_arrays
from miriam.program import Program
from miriam.progress import Progress
from miriam.runtime.models import Adopted, of_program

if TYPE_CHECKING:
    from miriam.device.cuda.serving import ServingCuda

__all__ = ["on_gpu"]

_KIND = "cuda"  # of the devices of PyTorch
_ONE = threading.Lock()  # what the compiler loads is noted for one model at a time


def on_gpu(model: Any, example: Any, device: ServingCuda, name: str, progress: Progress) -> Adopted:
    """Compile a module, or capture what else can be called; see :func:`miriam.runtime.models.adopt`.

    A module is compiled, and runs from its program, whose kernels are elastic. One that has kernels of libraries
    even then, or cannot be compiled, is captured as it is, and so is anything else: PyTorch's own kernels run
    unmodified, and a normal task is paused between them.
    """
    torch = need_torch()
    from miriam.frontend._torch_chain import structure_of

    if not torch.cuda.is_available():
        raise CompileError(f"{name} needs a PyTorch that sees the GPU; {torch.__version__} sees none")
    if getattr(model, "training", False):
        raise CompileError(f"{name} is in training mode: call .eval() on it")
    if isinstance(model, torch.export.ExportedProgram):
        if example is None and model.example_inputs is not None:
            example = model.example_inputs[0]
        model = model.module(check_guards=False)
        model.training = False  # nothing in it asks any more
    elif not callable(model):
        model = _in_turn(model, name)
    if example is None:
        raise CompileError(f"{name} needs an example of its inputs: shapes and dtypes follow from it")
    with _ONE, device.loads(), torch.cuda.device(device.ordinal), torch.no_grad():
        gpu = torch.empty(0, device=_KIND).device
        why = "it is no module"
        module = isinstance(model, torch.nn.Module)
        if module:
            model = _there(model, gpu, name)
        try:
            inputs = [torch.as_tensor(x).detach().to(gpu, copy=True) for x in as_arrays(example)]
            whole = structure_of(model(*inputs))
        except Exception as error:
            raise CompileError(f"{name} fails on its example: {type(error).__name__}: {error}") from error
        if module:
            program, why = _compiled(model, inputs, name, progress)
            if program is not None:
                return of_program(program, whole=whole)
        return _captured(model, inputs, device, name, why, whole)


def _compiled(module: Any, inputs: Sequence[Any], name: str, progress: Progress) -> tuple[Program | None, str]:
    """The program of a module, from the cache where it is there; or why there is none that runs by itself."""
    from miriam.frontend.torch import capture

    key = cache.fingerprint(module, inputs, name, miriam.__version__)
    if key and (program := cache.kept(key)) is not None:
        return program, ""
    try:
        captured = capture(module, inputs, name=name, progress=progress)
    except CompileError as error:
        return None, str(error)
    program = captured.program
    captured.close()
    if not program.runnable:
        names = sorted({k.name for k in program.kernels if k.opaque and k.ptx is None})
        return None, f"the code of {', '.join(names)} is not to be had"
    if key:
        cache.keep(key, program)
    return program, ""


def _captured(
    call: Any, inputs: Sequence[Any], device: ServingCuda, name: str, why: str, whole: Callable[[Sequence[Any]], Any]
) -> Adopted:
    """As it is, in one CUDA graph, with the memory that belongs to it."""
    from miriam.frontend.live import Live

    live = Live(call, inputs, name=name, stream=device.stream())
    note = f"{name} runs as PyTorch runs it, kernel by kernel ({why})"
    return of_program(live.program, bound=live, notes=(note,), whole=whole, close=live.close)


def _in_turn(model: Any, name: str) -> Callable[..., Any]:
    """One thing after another, as chains of the host have it."""
    calls = tuple(model) if isinstance(model, Sequence) else ()
    if not calls or not all(callable(call) for call in calls):
        raise CompileError(
            f"{name} is a {type(model).__name__}: give a module of PyTorch, a program, something that can be called, "
            "or a sequence of such things"
        )

    def call(*values: Any) -> Any:
        for one in calls:
            result = one(*values)
            values = result if isinstance(result, tuple) else (result,)
        return values[0] if len(values) == 1 else values

    return call


def _there(module: Any, gpu: Any, name: str) -> Any:
    """The module on the GPU: itself, or a copy, so that its owner's stays where it is."""
    if all(tensor.device == gpu for tensor in (*module.parameters(), *module.buffers())):
        return module
    try:
        return copy.deepcopy(module).to(gpu)
    except Exception as error:
        raise CompileError(f"{name} cannot be copied to the GPU ({error}): move it there yourself") from error
