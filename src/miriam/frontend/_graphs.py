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

    from miriam.device.cuda.driver import GraphNode, Stream
    from miriam.frontend._inductor import LoadedKernel

__all__ = ["Captured", "captured_graph", "need_torch"]


def need_torch() -> Any:
    """Import torch, or say what to install."""
    try:
        import torch
    except ImportError as error:
        raise CompileError(
            "compiling a model needs torch: pip install torch==2.13.0 triton==3.7.1 'cuda-bindings>=13.0,<14'"
        ) from error
    return torch


class Captured:
    """A model of PyTorch in one CUDA graph, and the program that was read from the graph.

    It can be given to a device as it is (:class:`miriam.device.cuda.bound.Bound`).

    Attributes
    ----------
    program
        The program.
    inputs, outputs
        The tensors that the graph reads and writes, in the program's order.
    addresses
        Device address of each of the program's buffers.
    """

    def __init__(
        self, name: str, call: Callable[..., Any], inputs: Sequence[torch.Tensor], stream: Stream,
        loaded: Mapping[int, LoadedKernel], meta: Mapping[str, str], *, weights: bool, live: bool, keep: object,
    ) -> None:  # fmt: skip
        """Capture ``call``.

        Parameters
        ----------
        stream
            Owned from now on.
        loaded
            Triton's kernels by their driver handle, filled while ``call`` runs; all others become opaque.
        weights
            Whether the program carries the contents of its weights.
        live
            Take what cannot be read from the graph as opaque.
        keep
            What must stay as long as this.
        """
        from miriam.device.cuda.bound import Parts

        self._stream: Stream | None = stream
        self._keep: object = (call, keep)
        self._graph, self.outputs = captured_graph(call, inputs, stream)
        self.inputs = list(inputs)
        self.program, self.addresses = _program(
            name, self._graph, inputs, self.outputs, loaded, meta, weights=weights, live=live
        )
        self._parts = Parts(self._graph.raw_cuda_graph())
        self._graph.instantiate()

    def replay(self) -> None:
        """Run one inference on the current stream."""
        self._graph.replay()

    def graph(self, first: int = 0, last: int | None = None, priority: int = 0) -> int:
        """Give launches as a CUgraph; see :meth:`miriam.device.cuda.bound.Bound.graph`."""
        return self._parts.graph(first, last, priority)

    def close(self) -> None:
        """Let go of graphs and tensors; nothing of it may be in flight or run any more."""
        if self._stream is not None:
            self._parts.close()
            self._graph.reset()
            self._stream.close()
        self._stream = self._keep = None
        self.inputs, self.outputs = [], []


def captured_graph(
    call: Callable[..., Any], inputs: Sequence[torch.Tensor], stream: Stream
) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """Capture one call on ``stream``, after two calls elsewhere to warm up; not yet instantiated.

    The stream must be nobody else's for as long as the graph is used: cuBLAS has a workspace for each
    stream, which comes from the memory of the graph when a stream is first seen in a capture.

    Parameters
    ----------
    call
        Gives tensors, in any nesting.

    Returns
    -------
    The graph, which keeps what torch captured, and the output tensors in its memory.

    Raises
    ------
    CompileError
        An output is no tensor on the GPU.
    """
    from miriam.device.cuda.driver import CAPTURING

    cuda = need_torch().cuda
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    flat = need_torch().utils._pytree.tree_flatten
    with need_torch().no_grad():
        with cuda.stream(side):
            call(*inputs)  # lazy set-up of libraries must not end up in the graph
            outputs, _ = flat(call(*inputs))
        if not all(getattr(x, "is_cuda", False) for x in outputs):
            raise CompileError("the model gives something that is not a tensor on the GPU; give such tensors alone")
        del outputs
        side.synchronize()
        graph = cuda.CUDAGraph(keep_graph=True)
        here, on = cuda.current_stream(), cuda.ExternalStream(int(stream.handle))
        try:
            # Other threads may be serving: what they call must not end this capture, nor this end theirs.
            with CAPTURING, cuda.graph(graph, stream=on, capture_error_mode="thread_local"):
                result = call(*inputs)
        except BaseException:
            # A capture that fails leaves the other stream as the current one, though it is about to be destroyed, and
            # a generator of random numbers that takes itself to be captured.
            cuda.set_stream(here)
            generator = cuda.default_generators[cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise
    return graph, flat(result)[0]


def _program(
    name: str, graph: torch.cuda.CUDAGraph, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor],
    loaded: Mapping[int, LoadedKernel], meta: Mapping[str, str], *, weights: bool, live: bool,
) -> tuple[Program, tuple[int, ...]]:  # fmt: skip
    """Read a captured graph into a program, and tell where its buffers lie."""
    from miriam.device.cuda import driver

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
        memory = Memory(_regions(cuda, graph, inputs, outputs), gpu.read if weights else None)
        major, minor = cuda.get_device_capability()
        made = {"made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "device": cuda.get_device_name()}
        program = to_program(
            name, f"sm_{major}{minor}{'a' if major >= 9 else ''}", nodes, code, memory, tensors("input", inputs),
            tensors("output", outputs), {**meta, **made}, live=live,
        )  # fmt: skip
        return program, memory.addresses
    finally:
        gpu.close()


def _regions(
    cuda: Any, graph: torch.cuda.CUDAGraph, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> list[Region]:
    """Map device memory: the graph's own pool segment by segment, everything else block by block.

    Inside a graph's pool torch reuses addresses for one intermediate after the other, so only the
    whole segment has a size that holds throughout. What torch does not manage (tensors made from
    other libraries' memory) is there as far as inputs and outputs reach.
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
    for role, tensors in ((Role.INPUT, inputs), (Role.OUTPUT, outputs)):
        for i, x in enumerate(tensors):
            storage = x.untyped_storage()
            if not any(r.address <= storage.data_ptr() < r.address + r.size_bytes for r in regions):
                regions.append(Region(storage.data_ptr(), storage.nbytes(), role, f"{role}{i}"))
    return regions
