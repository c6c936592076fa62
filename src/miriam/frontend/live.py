"""Live modules of PyTorch as tasks: what runs is what PyTorch would run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from miriam.errors import CompileError
from miriam.frontend._graphs import Captured, need_torch

if TYPE_CHECKING:
    import torch

    from miriam.device.cuda.driver import Stream
    from miriam.frontend._inductor import LoadedKernel

__all__ = ["Live"]


class Live(Captured):
    """A module as it is, captured in one CUDA graph, with the program that was read from the graph.

    A critical task runs the graph unmodified, whatever is in it: cuDNN, cuBLAS, Triton. In
    a normal task the kernels that Triton loads while this is made can be elastic; all others run whole.
    The program is one of this process: its weights are those of the module, and its file could not
    run library calls.

    Parameters
    ----------
    call
        A module in ``eval()`` mode, or any function of tensors that a CUDA graph can capture. A module
        of ``torch.compile`` that has not run yet shows the code of its kernels; one that has is opaque.
    inputs
        Tensors on the GPU. The graph reads these very tensors from now on: write an inference's input
        into them.
    name
        Of the program.
    stream
        Where to capture, and so on which SMs the graph runs; owned from now on. By default a new one
        on the whole GPU.

    Attributes
    ----------
    inputs, outputs
        The tensors that the graph reads and writes, without a copy in between.

    Raises
    ------
    CompileError
        No GPU, a module in training mode, or one that cannot be captured.

    Examples
    --------
    ::

        live = Live(module, [torch.randn(1, 3, 224, 224, device="cuda").half()], name="detector")
        task = Task("detector", live.program, Criticality.CRITICAL)
        live.inputs[0].copy_(frame)
    """

    def __init__(
        self, call: Callable[..., Any], inputs: Sequence[torch.Tensor], *, name: str, stream: Stream | None = None
    ) -> None:
        torch = need_torch()
        if not torch.cuda.is_available():
            raise CompileError("a live module needs a CUDA GPU, and torch sees none: see 'miriam devices'")
        if getattr(call, "training", False):
            raise CompileError(f"{name} is in training mode: call .eval() on it")
        if any(not x.is_cuda for x in inputs):
            raise CompileError(f"an input of {name} is not on the GPU: move it with .cuda()")
        from miriam.device.cuda import driver

        state = call.state_dict(keep_vars=True) if isinstance(call, torch.nn.Module) else {}
        used = [tensor.detach() for tensor in state.values() if isinstance(tensor, torch.Tensor)]
        meta = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
        driver.many_queues()
        torch.cuda.init()  # its context is the current one from here on
        stream = stream or driver.Stream()
        try:
            with _loaded() as loaded:
                super().__init__(name, call, inputs, stream, loaded, meta, weights=False, live=True, keep=used)
        except BaseException as error:
            stream.close()
            if isinstance(error, CompileError) or not isinstance(error, Exception):
                raise
            raise CompileError(f"{name} cannot be captured: {type(error).__name__}: {error}") from error


@contextmanager
def _loaded() -> Iterator[Mapping[int, LoadedKernel]]:
    """Note the kernels that Triton loads inside; none where it is not there or of a version that is not known."""
    try:
        from miriam.frontend import _inductor, _inductor_launcher

        _inductor.check_versions()
    except (ImportError, CompileError):
        yield {}
        return
    with _inductor.loaded_kernels() as loaded, _inductor_launcher.through_triton():
        yield loaded
