"""Weights brought into the L2 cache ahead of the launches that read them."""

from __future__ import annotations

from collections.abc import Iterable

from miriam.device.cuda.driver import Gpu, Module, Stream
from miriam.device.cuda.instance import Instance
from miriam.program import Pointer, Role

__all__ = ["Warmer"]

_THREADS = 32
_BLOCKS = 64  # on different SMs: one SM alone cannot ask for what the memory can give
_CHUNK_BYTES = 8192
_LINE_BYTES = 128

_HEAD = f"""
.address_size 64
.visible .entry warm(.param .u64 table, .param .u32 count) .reqntid {_THREADS} {{
	.reg .pred %p;
	.reg .b32 %i, %n, %step, %count, %size;
	.reg .b64 %table, %at, %from, %bytes;
	ld.param.u64 %table, [table];
	ld.param.u32 %count, [count];
	mov.u32 %i, %ctaid.x;
	mov.u32 %n, %tid.x;
	mad.lo.u32 %i, %i, {_THREADS}, %n;
	mov.u32 %step, %nctaid.x;
	mul.lo.u32 %step, %step, {_THREADS};
$chunk:
	setp.ge.u32 %p, %i, %count;
	@%p ret;
	mad.wide.u32 %at, %i, 16, %table;
	ld.global.v2.u64 {{%from, %bytes}}, [%at];
	cvt.u32.u64 %size, %bytes;
	add.u32 %i, %i, %step;
"""
# One instruction for a whole chunk, from sm_90 on; before that, one for each line of the cache.
_BULK = f""".version 8.0
.target sm_90{_HEAD}	cp.async.bulk.prefetch.L2.global [%from], %size;
	bra $chunk;
}}
\0"""
_LINES = f""".version 7.0
.target sm_75{_HEAD}$line:
	prefetch.global.L2 [%from];
	add.u64 %from, %from, {_LINE_BYTES};
	sub.u32 %size, %size, {_LINE_BYTES};
	setp.gt.s32 %p, %size, 0;
	@%p bra $line;
	bra $chunk;
}}
\0"""


class Warmer:
    """Asks for the weights of a program in the order in which its launches read them.

    What other programs did meanwhile has pushed them out of the cache, and a small launch that waits
    for memory cannot keep many requests under way; one that asks for everything ahead can.

    Parameters
    ----------
    instance
        Whose weights.
    most_bytes
        No more than that is asked for, from the first launch on; by default half of the L2.
    """

    def __init__(self, gpu: Gpu, instance: Instance, most_bytes: int | None = None) -> None:
        self._gpu = gpu
        left = gpu.l2_bytes // 2 if most_bytes is None else most_bytes
        rows = []
        for address, size_bytes in _weights(instance):
            for offset in range(0, min(size_bytes, left) // 16 * 16, _CHUNK_BYTES):
                rows.append((address + offset, min(_CHUNK_BYTES, size_bytes // 16 * 16 - offset)))
            left -= min(size_bytes, left)
        self.bytes = sum(size for _, size in rows)
        table = b"".join(word.to_bytes(8, "little") for row in rows for word in row)
        self._module = Module((_BULK if gpu.attribute("COMPUTE_CAPABILITY_MAJOR") >= 9 else _LINES).encode())
        self._table = 0
        count = len(rows)
        try:
            self._table = gpu.allocate(len(table))
            gpu.write(self._table, table)
            args = [self._table.to_bytes(8, "little"), count.to_bytes(4, "little")]
            blocks = max(1, min(_BLOCKS, -(-count // _THREADS)))
            self._launch = self._module.function("warm").prepare((blocks, 1, 1), (_THREADS, 1, 1), 0, args)
        except BaseException:
            self.close()
            raise

    def enqueue(self, stream: Stream) -> None:
        """Enqueue the request for all of them."""
        self._launch.enqueue(stream)

    def close(self) -> None:
        """Give the table back and unload."""
        if self._table:
            self._gpu.free(self._table)
            self._table = 0
        self._module.close()


def _weights(instance: Instance) -> Iterable[tuple[int, int]]:
    """Address and bytes of each buffer of weights, in the order of their first use."""
    program = instance.program
    used = dict.fromkeys(
        argument.buffer for step in program.launches for argument in step.args if isinstance(argument, Pointer)
    )
    for number in used:
        if program.buffers[number].role is Role.WEIGHT:
            yield instance.address(Pointer(number)), program.buffers[number].size_bytes
