"""Parts of a GPU: fixed sets of SMs, disjoint among those of one split."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from miriam.device.cuda.driver.calls import check, constant
from miriam.device.cuda.driver.stream import Stream
from miriam.errors import DeviceError

if TYPE_CHECKING:
    from miriam.device.cuda.driver.gpu import Gpu

__all__ = ["Partition", "split"]


class Partition:
    """A green context: a fixed set of SMs, from one split of the GPU.

    Attributes
    ----------
    sms
        How many SMs it really has.
    """

    def __init__(self, gpu: Gpu, groups: Sequence[Any]) -> None:
        description = check("cuDevResourceGenerateDesc", list(groups), len(groups))
        flags = constant("CUgreenCtxCreate_flags", "CU_GREEN_CTX_DEFAULT_STREAM")
        self._gpu = gpu
        self._streams: WeakSet[Stream] = WeakSet()
        self._green: Any = check("cuGreenCtxCreate", description, gpu.device, flags)
        try:
            self._context = check("cuCtxFromGreenCtx", self._green)
        except BaseException:
            self.close()
            raise
        self.sms = sum(int(group.sm.smCount) for group in groups)

    def activate(self) -> None:
        """Make this partition the current context of the thread."""
        check("cuCtxSetCurrent", self._context)

    def stream(self, priority: int = 0) -> Stream:
        """A stream whose work stays on these SMs."""
        flags = constant("CUstream_flags", "CU_STREAM_NON_BLOCKING")
        stream = Stream(check("cuGreenCtxStreamCreate", self._green, flags, priority), partition=self)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Destroy the green context, and the streams of it that are still there; nothing may be in flight."""
        if self._green is not None:
            self._gpu.activate()
            for stream in list(self._streams):
                stream.close()
            green, self._green = self._green, None
            check("cuGreenCtxDestroy", green)


def split(gpu: Gpu, counts: Sequence[int]) -> list[Partition]:
    """Disjoint partitions of about ``counts`` SMs each (the driver rounds up to what it can split off).

    The groups of one split are disjoint and equally large, and one partition may have several of them: the
    GPU is split once, into groups of the greatest size that divides all counts, or of the least that there is.
    """
    sms = gpu.attribute("MULTIPROCESSOR_COUNT")
    for count in counts:
        if not 1 <= count <= sms:
            raise DeviceError(f"a partition of {count} SMs: the GPU has {sms}")
    whole = check("cuDeviceGetDevResource", gpu.device, constant("CUdevResourceType", "CU_DEV_RESOURCE_TYPE_SM"))
    (least, *_), _, _ = check("cuDevSmResourceSplitByCount", 1, whole, 0, 1)
    unit = int(least.sm.smCount)
    uneven = [i for i, count in enumerate(counts) if count % unit]
    if len(counts) > 1 and len(uneven) == 1 and sum(counts) == sms:
        return _with_the_rest(gpu, whole, counts, uneven[0])
    rounded = [-(-count // unit) * unit for count in counts] if len(counts) > 1 else list(counts)
    for size in dict.fromkeys((gcd(*rounded), unit)):
        shares = [-(-count // size) for count in rounded]
        groups, found = _groups(whole, sum(shares), size)
        if found >= sum(shares):
            return _partitions(gpu, groups, shares)
    _, most = _groups(whole, sms // unit, unit)
    raise DeviceError(
        f"{gpu.name} cannot be split into {' + '.join(map(str, counts))} SMs: "
        f"it gives {most} groups of {unit} SMs, and a partition has whole groups"
    )


def _with_the_rest(gpu: Gpu, whole: Any, counts: Sequence[int], last: int) -> list[Partition]:
    """All SMs, where the groups that can be split off leave a few: number ``last`` gets those, too."""
    others = [*counts[:last], *counts[last + 1 :]]
    size = gcd(*others)
    shares = [count // size for count in others]
    groups, found, rest = check("cuDevSmResourceSplitByCount", sum(shares), whole, 0, size)
    if int(found) < sum(shares):
        raise DeviceError(f"{gpu.name} cannot be split into {' + '.join(map(str, counts))} SMs")
    made = _partitions(gpu, [*groups[: sum(shares)], rest], [*shares, 1])
    return [*made[:last], made[-1], *made[last:-1]]


def _groups(whole: Any, count: int, size: int) -> tuple[list[Any], int]:
    """Up to ``count`` groups of at least ``size`` SMs, and how many there are."""
    try:
        groups, found, _rest = check("cuDevSmResourceSplitByCount", count, whole, 0, size)
    except DeviceError:  # no group of that size can be split off
        return [], 0
    return groups, int(found)


def _partitions(gpu: Gpu, groups: Sequence[Any], shares: Sequence[int]) -> list[Partition]:
    made: list[Partition] = []
    try:
        for share in shares:
            begin, groups = groups[:share], groups[share:]
            made.append(Partition(gpu, begin))
    except BaseException:
        for partition in made:
            partition.close()
        raise
    return made
