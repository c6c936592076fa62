"""Points in a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miriam.device.cuda.driver.calls import check, constant, ready

if TYPE_CHECKING:
    from miriam.device.cuda.driver.stream import Stream

__all__ = ["Event"]


class Event:
    """A point in a stream, with a time stamp unless it is not ``timed``, which is cheaper."""

    def __init__(self, *, timed: bool = True) -> None:
        flags = 0 if timed else constant("CUevent_flags", "CU_EVENT_DISABLE_TIMING")
        self.handle: Any = check("cuEventCreate", flags)

    def record(self, stream: Stream) -> None:
        """Mark the end of what is in ``stream`` so far."""
        check("cuEventRecord", self.handle, stream.handle)

    def record_in_graph(self, stream: Stream) -> None:
        """Make a node of the graph that ``stream`` is capturing; each launch of the graph marks it anew."""
        flags = constant("CUevent_record_flags", "CU_EVENT_RECORD_EXTERNAL")
        check("cuEventRecordWithFlags", self.handle, stream.handle, flags)

    @property
    def done(self) -> bool:
        """Whether the GPU has passed it; so has it an event that was never recorded."""
        return ready("cuEventQuery", self.handle)

    def synchronize(self) -> None:
        """Wait until the GPU has passed it."""
        check("cuEventSynchronize", self.handle)

    def since_us(self, earlier: Event) -> float:
        """Wait for this event and give the time since ``earlier`` in us."""
        self.synchronize()
        return float(check("cuEventElapsedTime", earlier.handle, self.handle)) * 1e3

    def close(self) -> None:
        """Destroy the event."""
        if self.handle is not None:
            handle, self.handle = self.handle, None
            check("cuEventDestroy", handle)
