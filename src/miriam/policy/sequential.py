"""One inference at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from miriam.coordinator import View
from miriam.device.base import Command, Event, Lane, Run
from miriam.policy.base import Setting, most_urgent

__all__ = ["Sequential"]


class Sequential:
    """Critical and normal requests in turn, each a whole inference alone on the device.

    The *Sequential* baseline of Miriam (SenSys'23): two queues are served alternately, an empty one
    is skipped, and the host waits for the end of an inference before it starts the next. So the
    service time of a critical request is that of a device of its own, while its response time may
    contain one whole normal inference. Within a queue the more critical request goes first, then
    the older one.

    Cost: one command and one turn of the host for each request.
    """

    name = "sequential"

    def __init__(self, setting: Setting) -> None:
        self.lanes: tuple[Lane, ...] = (Lane("all"),)
        self._critical_next = True

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """The next inference, once the one before it is over."""
        if not view.idle(0):
            return
        turn = self._critical_next
        queue = view.waiting(critical=turn) or view.waiting(critical=not turn)
        if queue:
            request = most_urgent(queue)
            self._critical_next = not request.task.critical
            missing = "nothing critical waits" if turn else "nothing normal waits"
            yield Run(request, lane=0, why="its turn" if request.task.critical is turn else missing)

    def report(self) -> Mapping[str, float]:
        """Nothing."""
        return {}
