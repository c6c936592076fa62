"""Streams: work in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miriam.device.cuda.driver.calls import check, constant, ready
from miriam.device.cuda.driver.capture import Capture, begin_capture
from miriam.device.cuda.driver.graph import Graph

if TYPE_CHECKING:
    from miriam.device.cuda.driver.event import Event
    from miriam.device.cuda.driver.partition import Partition

__all__ = ["Stream"]


class Stream:
    """A stream. Without a handle a new non-blocking one is made in the current context.

    Parameters
    ----------
    handle
        A stream of the driver, owned from now on.
    priority
        As the driver counts: lower numbers go first (``Gpu.priorities``); others are brought into the range.
    partition
        Whose SMs its work stays on, None: those of the GPU.
    """

    def __init__(self, handle: Any = None, *, priority: int = 0, partition: Partition | None = None) -> None:
        flags = constant("CUstream_flags", "CU_STREAM_NON_BLOCKING")
        self.handle: Any = check("cuStreamCreateWithPriority", flags, priority) if handle is None else handle
        self.partition = partition

    @property
    def priority(self) -> int:
        """The priority that the driver gave it."""
        return int(check("cuStreamGetPriority", self.handle))

    @property
    def done(self) -> bool:
        """Whether everything in the stream is done."""
        return ready("cuStreamQuery", self.handle)

    def synchronize(self) -> None:
        """Wait until everything in the stream is done."""
        check("cuStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        """Let what follows in the stream wait for ``event``."""
        check("cuStreamWaitEvent", self.handle, event.handle, 0)

    def sibling(self) -> Stream:
        """Give a new stream on the same SMs, of the same priority."""
        priority = self.priority
        if self.partition is not None:
            return self.partition.stream(priority)
        check("cuCtxPushCurrent", check("cuStreamGetCtx", self.handle))
        try:
            return Stream(priority=priority)
        finally:
            check("cuCtxPopCurrent")

    def copy(self, destination: int, source: int, size_bytes: int) -> None:
        """Enqueue a copy between two places in device memory."""
        check("cuMemcpyDtoDAsync", destination, source, size_bytes, self.handle)

    def upload(self, destination: int, host: int, size_bytes: int) -> None:
        """Enqueue a copy from page-locked memory of the host, which must stay until that is done."""
        check("cuMemcpyHtoDAsync", destination, host, size_bytes, self.handle)

    def download(self, host: int, source: int, size_bytes: int) -> None:
        """Enqueue a copy to page-locked memory of the host."""
        check("cuMemcpyDtoHAsync", host, source, size_bytes, self.handle)

    def fill(self, destination: int, value: int, width: int, count: int) -> None:
        """Enqueue a fill of ``count`` values of ``width`` bytes (1, 2 or 4)."""
        call = {1: "cuMemsetD8Async", 2: "cuMemsetD16Async", 4: "cuMemsetD32Async"}[width]
        check(call, destination, value, count, self.handle)

    def fill_rows(self, destination: int, pitch: int, value: int, rows: int) -> None:
        """Enqueue a fill of ``rows`` words of 4 bytes that lie ``pitch`` bytes apart."""
        check("cuMemsetD2D32Async", destination, pitch, value, 1, rows, self.handle)

    def capture(self) -> Capture:
        """Give a block that collects what is enqueued inside into a graph, instead of running it."""
        return Capture(self)

    def begin_capture(self) -> None:
        """Collect what follows into a graph instead of running it."""
        begin_capture(self)

    def end_capture(self) -> Graph:
        """End the capture and instantiate what was collected."""
        return Graph(check("cuStreamEndCapture", self.handle))

    def close(self) -> None:
        """Destroy the stream."""
        if self.handle is not None:
            handle, self.handle = self.handle, None
            check("cuStreamDestroy", handle)
