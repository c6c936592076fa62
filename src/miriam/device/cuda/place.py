"""The SMs that a device uses: all of a GPU, or a partition of them."""

from __future__ import annotations

import struct
from contextlib import ExitStack, closing
from dataclasses import replace

from miriam.device.base import Geometry
from miriam.device.cuda.driver import Gpu, Module, Partition, Stream
from miriam.errors import DeviceError

__all__ = ["Place", "parse"]

# Blocks so large that two fill an SM, and that stay for a while: every SM gets one.
_PROBE_THREADS = 1024
_PROBE = f"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry sms(.param .u64 seen) .reqntid {_PROBE_THREADS} {{
	.reg .b32 %sm, %block;
	.reg .b64 %at;
	ld.param.u64 %at, [seen];
	mov.u32 %block, %ctaid.x;
	mad.wide.u32 %at, %block, 4, %at;
	mov.u32 %sm, %smid;
	st.global.u32 [%at], %sm;
	nanosleep.u32 100000;
	ret;
}}
\0"""


def parse(name: str) -> tuple[int, int | None]:
    """GPU and number of SMs of a device name: ``cuda:0`` is (0, None), ``cuda:0/16`` is (0, 16).

    Raises
    ------
    DeviceError
        The name is none of a GPU.
    """
    base, slash, part = name.partition("/")
    kind, _, ordinal = base.partition(":")
    numbers = [ordinal or "0", *([part] if slash else [])]
    if kind != "cuda" or not all(n.isascii() and n.isdigit() for n in numbers) or (slash and int(part) < 1):
        raise DeviceError(f"there is no GPU {name!r}: write cuda:0, or cuda:0/16 for 16 of its SMs")
    return int(numbers[0]), int(part) if slash else None


class Place:
    """All SMs of a GPU, or those of one of its partitions, which it then owns.

    Attributes
    ----------
    gpu
        The GPU.
    sms
        How many there are.
    partition
        The partition; None for the whole GPU.
    conditional
        Whether graphs here may hold conditional nodes, which the driver refuses in green contexts.
    """

    def __init__(self, gpu: Gpu, partition: Partition | None = None) -> None:
        self.gpu = gpu
        self.partition = partition
        self.sms = gpu.geometry.sms if partition is None else partition.sms
        self.conditional = partition is None

    def activate(self) -> None:
        """Make its context current in this thread."""
        (self.gpu if self.partition is None else self.partition).activate()

    def stream(self, priority: int = 0) -> Stream:
        """A stream whose work stays here. Higher ``priority`` goes first; 0 is the lowest."""
        _, greatest = self.gpu.priorities
        capped = max(-priority, greatest)
        if self.partition is not None:
            return self.partition.stream(capped)
        self.activate()
        return Stream(priority=capped)

    @property
    def geometry(self) -> Geometry:
        """Counts of the GPU with the SMs that are here."""
        return replace(self.gpu.geometry, sms=self.sms)

    def ids(self) -> list[int]:
        """The SMs by the number that kernels read in ``%smid``, in the order in which blocks are placed on them."""
        blocks = 2 * self.sms
        self.activate()
        with ExitStack() as made:
            seen = self.gpu.allocate(4 * blocks)
            made.callback(self.gpu.free, seen)
            module = made.enter_context(closing(Module(_PROBE.encode())))
            stream = made.enter_context(closing(self.stream()))
            probe = module.function("sms")
            probe.launch(stream, (blocks, 1, 1), (_PROBE_THREADS, 1, 1), 0, [seen.to_bytes(8, "little")])
            stream.synchronize()
            return list(dict.fromkeys(struct.unpack(f"<{blocks}I", self.gpu.read(seen, 4 * blocks))))

    def close(self) -> None:
        """Give the partition back."""
        if self.partition is not None:
            self.partition.close()
            self.partition = None
