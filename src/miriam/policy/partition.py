"""Two static partitions of the SMs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from miriam.coordinator import View
from miriam.device.base import Command, Event, EventKind, Lane, Run
from miriam.errors import PolicyError
from miriam.policy.base import Setting, most_urgent
from miriam.task import Request

__all__ = ["Partition"]

_AHEAD = 2  # runs of a part on the device: one at work, and one behind it so that no gap lies between


class Partition:
    """Critical tasks on some of the SMs, normal tasks on the others, whatever there is to do.

    What green contexts, and MPS with shares of the SMs, do by themselves (CUDA driver API,
    ``cuGreenCtxCreate``). Nobody waits for blocks of the other part; memory and its bandwidth are shared,
    and the SMs of an idle part stay idle. Kernels run in their original form. Within a part the more
    critical request goes first, then the older one; two at most are on the device.

    Cost: one command for each request.

    Parameters
    ----------
    sms
        SMs of the critical part; None: half of the device, rounded to what a partition can have. The
        rest is the normal part.

    Raises
    ------
    PolicyError
        The device cannot be divided, or not so.
    """

    name = "partition"

    def __init__(self, setting: Setting, sms: int | None = None) -> None:
        whole, step = setting.geometry.sms, setting.geometry.partition_sms
        if whole < 2 * step:
            raise PolicyError(
                f"policy partition: a device of {whole} SMs cannot be divided: partitions have a multiple of "
                f"{step} there, so it takes {2 * step}"
            )
        if sms is None:
            sms = max(step, round(whole / 2 / step) * step)
        if sms % step or not step <= sms <= whole - step:
            raise PolicyError(
                f"policy partition: a critical part of {sms} SMs is impossible: take a multiple of {step} "
                f"from {step} to {(whole - step) // step * step}, of {whole}"
            )
        self.lanes: tuple[Lane, ...] = (Lane("critical", sms=sms), Lane("normal", sms=whole - sms))
        self._queues: tuple[list[Request], ...] = ([], [])

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """What each part runs next."""
        if event.kind is EventKind.ARRIVED and event.request is not None:
            self._queues[not event.request.task.critical].append(event.request)
        for lane, queue in enumerate(self._queues):
            while queue and len(view.flying(lane)) < _AHEAD:
                request = most_urgent(queue)
                queue.remove(request)
                yield Run(request, lane)

    def report(self) -> Mapping[str, float]:
        """SMs of the two parts."""
        return {f"{lane.name}_sms": float(lane.sms or 0) for lane in self.lanes}
