"""Words that the host and the GPU both see."""

from __future__ import annotations

import ctypes

from miriam.device.cuda.driver.calls import bindings, check

__all__ = ["HostMemory"]


class HostMemory:
    """Page-locked memory of the host, zero at first, that kernels read and write in place.

    Parameters
    ----------
    words
        How many words of 4 bytes.

    Attributes
    ----------
    address
        Where kernels find it.
    host
        Where the host finds it; 0 once it is closed.
    words
        The same memory for the host, a view of unsigned words: reading one reads what a kernel wrote last.
    """

    def __init__(self, words: int) -> None:
        cu, size = bindings(), 4 * words
        flags = cu.CU_MEMHOSTALLOC_PORTABLE | cu.CU_MEMHOSTALLOC_DEVICEMAP
        self.host = int(check("cuMemHostAlloc", size, flags))
        try:
            self.address = int(check("cuMemHostGetDevicePointer", self.host, 0))
        except BaseException:
            self._free()
            raise
        ctypes.memset(self.host, 0, size)
        held = (ctypes.c_uint32 * words).from_address(self.host)
        self.words = memoryview(held).cast("B").cast("I")

    def _free(self) -> None:
        host, self.host = self.host, 0
        check("cuMemFreeHost", host)

    def close(self) -> None:
        """Give the memory back; ``words`` cannot be used any more."""
        if self.host:
            self.words.release()
            self._free()
