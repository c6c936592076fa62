"""One GPU: what it is, and its memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from miriam.device.base import Geometry
from miriam.device.cuda.driver.calls import check, constant
from miriam.device.cuda.driver.memory import HostMemory
from miriam.device.cuda.driver.partition import Partition, split
from miriam.errors import DeviceError

__all__ = ["Gpu", "many_queues"]


def many_queues() -> None:
    """Ask for as many hardware queues as there are, in the contexts that are made from now on.

    Streams that share a queue wait for each other, and a gate that waits must not be in front of what it
    waits for.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


class Gpu:
    """One GPU and its primary context, which is current in this thread from now on."""

    def __init__(self, ordinal: int = 0) -> None:
        many_queues()
        check("cuInit", 0)
        count = check("cuDeviceGetCount")
        if not 0 <= ordinal < count:
            raise DeviceError(f"there is no cuda:{ordinal}, this machine has {count} GPUs: see 'miriam devices'")
        self.ordinal = ordinal
        self.device = check("cuDeviceGet", ordinal)
        self._context = check("cuDevicePrimaryCtxRetain", self.device)
        self._open = True
        try:
            self.activate()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """Name as the driver gives it, for example ``NVIDIA H200``."""
        return str(check("cuDeviceGetName", 96, self.device).split(b"\0")[0].decode())

    @property
    def driver_version(self) -> str:
        """Newest CUDA version that the driver supports."""
        version = check("cuDriverGetVersion")
        return f"{version // 1000}.{version % 1000 // 10}"

    def attribute(self, name: str) -> int:
        """A device attribute by the end of its name, for example ``MULTIPROCESSOR_COUNT``."""
        return int(
            check("cuDeviceGetAttribute", constant("CUdevice_attribute", f"CU_DEVICE_ATTRIBUTE_{name}"), self.device)
        )

    @property
    def geometry(self) -> Geometry:
        """Counts that decide where blocks fit."""
        return Geometry(
            sms=self.attribute("MULTIPROCESSOR_COUNT"),
            threads_per_sm=self.attribute("MAX_THREADS_PER_MULTIPROCESSOR"),
            blocks_per_sm=self.attribute("MAX_BLOCKS_PER_MULTIPROCESSOR"),
            registers_per_sm=self.attribute("MAX_REGISTERS_PER_MULTIPROCESSOR"),
            shared_per_sm_bytes=self.attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
            shared_per_block_bytes=self.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            shared_reserved_bytes=self.attribute("RESERVED_SHARED_MEMORY_PER_BLOCK"),
        )

    @property
    def l2_bytes(self) -> int:
        """Size of the L2 cache."""
        return self.attribute("L2_CACHE_SIZE")

    def activate(self) -> None:
        """Make the primary context current in this thread."""
        check("cuCtxSetCurrent", self._context)

    @contextmanager
    def visited(self) -> Iterator[None]:
        """A block of this thread in the primary context; the one that was current is so again behind it."""
        before = check("cuCtxGetCurrent")
        self.activate()
        try:
            yield
        finally:
            check("cuCtxSetCurrent", before)

    @property
    def priorities(self) -> tuple[int, int]:
        """The least and the greatest priority of a stream; the greater is the lower number."""
        least, greatest = check("cuCtxGetStreamPriorityRange")
        return int(least), int(greatest)

    def partition(self, sms: int) -> Partition:
        """A green context with about ``sms`` SMs (the driver rounds up to what it can split off)."""
        return self.partitions([sms])[0]

    def partitions(self, counts: Sequence[int]) -> list[Partition]:
        """Green contexts with about so many SMs each, none of which belongs to two of them.

        Raises
        ------
        DeviceError
            The GPU has fewer SMs, or the driver cannot split them so; the message says what is possible.
        """
        return split(self, counts)

    def host_memory(self, words: int) -> HostMemory:
        """Page-locked words that the host and kernels see."""
        return HostMemory(words)

    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory."""
        return int(check("cuMemAlloc", max(size_bytes, 1)))

    def free(self, address: int) -> None:
        """Give memory back."""
        check("cuMemFree", address)

    def write(self, address: int, data: bytes) -> None:
        """Copy host bytes to device memory and wait."""
        if data:
            check("cuMemcpyHtoD", address, data, len(data))
            check("cuStreamSynchronize", 0)  # from pageable memory it returns when all is on its way, not there

    def read(self, address: int, size_bytes: int) -> bytes:
        """Copy device memory to the host and wait."""
        host = ctypes.create_string_buffer(max(size_bytes, 1))
        check("cuMemcpyDtoH", ctypes.addressof(host), address, size_bytes)
        return host.raw[:size_bytes]

    def synchronize(self) -> None:
        """Wait for everything in the current context."""
        check("cuCtxSynchronize")

    def close(self) -> None:
        """Release the primary context; if nobody else holds it, no context is current in this thread any more."""
        if self._open:
            self._open = False
            check("cuDevicePrimaryCtxRelease", self.device)
            _, active = check("cuDevicePrimaryCtxGetState", self.device)
            if not active:  # or whoever uses the GPU next, such as PyTorch, would find one that is destroyed
                check("cuCtxSetCurrent", None)
