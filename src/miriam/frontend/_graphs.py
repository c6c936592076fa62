"""CUDA graphs of PyTorch: captured from anything that can be called, and read into a program."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from miriam.errors import CompileError
from miriam.frontend.captured import Code, Memory, Region, to_program
from miriam.program import Program, Role

if TYPE_CHECKING:
    import torch

    from miriam.device.cuda.driver import GraphNode
    from miriam.frontend._inductor import LoadedKernel

__all__ = ["captured_graph", "need_torch", "program_of"]


def need_torch() -> Any:
    """Import torch, or say what to install."""
    try:
        import torch
    except ImportError as error:
        raise CompileError(
            "compiling a model needs torch: pip install torch==2.13.0 triton==3.7.1 'cuda-bindings>=13.0,<14'"
        ) from error
    return torch


def captured_graph(
    call: Callable[..., Any], inputs: Sequence[torch.Tensor], *, priority: int = 0
) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """Capture one call on a stream of its own, after two calls to warm up; not yet instantiated.

    Parameters
    ----------
    call
        Gives tensors, in any nesting.
    priority
        Of the stream, as torch counts, and so of the kernels in the graph.

    Returns
    -------
    The graph, which keeps what torch captured, and the output tensors in its memory.

    Raises
    ------
    CompileError
        An output is no tensor on the GPU.
    """
    torch = need_torch()
    stream = torch.cuda.Stream(priority=priority)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(2):  # lazy set-up of libraries must not end up in the graph
            call(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.no_grad(), torch.cuda.graph(graph, stream=stream):
        result = call(*inputs)
    outputs, _ = torch.utils._pytree.tree_flatten(result)
    if not all(isinstance(x, torch.Tensor) and x.is_cuda for x in outputs):
        raise CompileError("the model gives something that is not a tensor on the GPU; give such tensors alone")
    return graph, outputs


def program_of(
    name: str, graph: torch.cuda.CUDAGraph, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor],
    loaded: Mapping[int, LoadedKernel], *, weights: bool,
) -> Program:  # fmt: skip
    """Read a captured graph into a program.

    Parameters
    ----------
    loaded
        Triton's kernels by their driver handle; all others become opaque.
    weights
        Whether the program carries the contents of its weights.
    """
    from miriam.device.cuda import driver
    from miriam.frontend import _inductor

    cuda = need_torch().cuda
    gpu = driver.Gpu(cuda.current_device())

    def code(node: GraphNode) -> Code:
        facts = driver.function_facts(node.function)
        kernel = loaded.get(node.function)
        ptx, ttir = (kernel.text("ptx"), kernel.text("ttir")) if kernel and kernel.name == node.name else (None, None)
        return Code(facts["registers"], facts["shared_bytes"], ptx, ttir)

    def tensors(prefix: str, given: Sequence[torch.Tensor]) -> dict[str, Any]:
        return {
            f"{prefix}{i}": (x.data_ptr(), str(x.dtype).removeprefix("torch."), tuple(x.shape), tuple(x.stride()))
            for i, x in enumerate(given)
        }

    try:
        nodes = driver.graph_nodes(graph.raw_cuda_graph())
        regions = _regions(cuda, graph, inputs)
        major, minor = cuda.get_device_capability()
        meta = {
            **_inductor.versions(),
            "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "device": cuda.get_device_name(),
        }
        memory = Memory(regions, gpu.read if weights else None)
        return to_program(name, f"sm_{major}{minor}{'a' if major >= 9 else ''}", nodes, code, memory,
                          tensors("input", inputs), tensors("output", outputs), meta)  # fmt: skip
    finally:
        gpu.close()


def _regions(cuda: Any, graph: Any, inputs: Sequence[torch.Tensor]) -> list[Region]:
    """Map device memory: the graph's own pool segment by segment, everything else block by block.

    Inside a graph's pool torch reuses addresses for one intermediate after the other, so only the
    whole segment has a size that holds throughout.
    """
    given = {x.untyped_storage().data_ptr(): i for i, x in enumerate(inputs)}
    regions: list[Region] = []
    for segment in cuda.memory_snapshot():
        if tuple(segment["segment_pool_id"]) == tuple(graph.pool()):
            regions.append(Region(segment["address"], segment["total_size"], Role.INTERMEDIATE, f"arena{len(regions)}"))
            continue
        for block in segment["blocks"]:
            if block["state"] != "active_allocated":
                continue
            number = given.get(block["address"])
            role, label = (Role.WEIGHT, f"weight{len(regions)}") if number is None else (Role.INPUT, f"input{number}")
            regions.append(Region(block["address"], block["size"], role, label))
    return regions
