"""Some logical blocks of a launch in a row, as a launch of their own."""

from __future__ import annotations

from miriam.device.cuda.driver import Function, Module, Partition, Stream
from miriam.device.cuda.instance import Instance
from miriam.elastic.generator import assembled_texts, shard_texts
from miriam.elastic.ptxas import Assembled, find_ptxas
from miriam.elastic.state import Piece
from miriam.errors import DeviceError
from miriam.program import Kernel, Pointer, Program

__all__ = ["ShardCode"]


class ShardCode:
    """The kernels of a program in the form that runs a shard, loaded for one GPU.

    Parameters
    ----------
    thinner
        Whether the blocks may have fewer threads than the kernel; not every kernel has that form.
    """

    def __init__(self, program: Program, *, thinner: bool) -> None:
        self._thinner = thinner
        self._modules: dict[str, tuple[str, Module]] = {}
        self._functions: dict[tuple[str, Partition | None], Function] = {}
        texts = shard_texts(program, thinner=thinner)
        ready = assembled_texts((text for _, text in texts.values()), program.target) if find_ptxas() else {}
        try:
            for digest, (name, text) in texts.items():
                code = ready.get(text)
                if isinstance(code, Assembled):
                    self._modules[digest] = name, Module(code.cubin)
                elif code is None:  # the driver assembles
                    self._modules[digest] = name, Module(text.encode() + b"\0")
                else:
                    raise DeviceError(f"{name} of {program.name} cannot be assembled: {code}")
        except BaseException:
            self.close()
            raise

    def has(self, kernel: Kernel) -> bool:
        """Whether ``kernel`` has this form."""
        return kernel.digest in self._modules

    def enqueue(
        self, stream: Stream, instance: Instance, index: int, blocks: tuple[int, int], threads: int | None
    ) -> None:
        """Enqueue the logical blocks ``blocks[0]`` to ``blocks[1] - 1`` of a launch; :meth:`has` its kernel."""
        step = instance.program.launches[index]
        kernel = instance.program.kernels[step.kernel]
        key = kernel.digest, stream.partition
        if key not in self._functions:
            name, module = self._modules[kernel.digest]
            self._functions[key] = module.function(name, kernel.dynamic_shared_bytes)
        args = [instance.address(a).to_bytes(8, "little") if isinstance(a, Pointer) else a.raw for a in step.args]
        begin, end = blocks
        block = kernel.block if threads is None else (threads, 1, 1)
        told = Piece(begin, step.grid).pack()
        grid, shared = (end - begin, 1, 1), kernel.dynamic_shared_bytes
        self._functions[key].launch(stream, grid, block, shared, [*args, told])

    def forget(self, partition: Partition) -> None:
        """See :meth:`miriam.device.cuda.control.Control.forget`."""
        self._functions = {key: function for key, function in self._functions.items() if key[1] is not partition}

    def close(self) -> None:
        """Unload."""
        for _, module in self._modules.values():
            module.close()
        self._modules = {}
