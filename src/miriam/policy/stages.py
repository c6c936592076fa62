"""Cutting two programs into stages that go well side by side."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from miriam.policy.base import Setting
from miriam.task import Task

__all__ = ["Demand", "search"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What the launches of a program ask of a device, summed up to each launch.

    Attributes
    ----------
    time_ns
        Time alone; whole nanoseconds, so that sums are exact.
    work_ns
        The same, each launch weighed with the share of the device that its blocks fill.
    """

    time_ns: Sequence[int]
    work_ns: Sequence[int]

    @classmethod
    def of(cls, task: Task, setting: Setting) -> Demand:
        """The demand of a task."""
        times, works = [], []
        for i, time_us in enumerate(setting.launch_us[task.name]):
            slots = setting.geometry.sms * max(1, setting.geometry.residency(task.program.kernel_of(i)))
            times.append(round(1e3 * time_us))
            works.append(round(1e3 * time_us * min(1.0, task.program.launches[i].blocks / slots)))
        return cls(tuple(accumulate(times, initial=0)), tuple(accumulate(works, initial=0)))

    @property
    def launches(self) -> int:
        """How many launches there are."""
        return len(self.time_ns) - 1


def search(
    a: Demand, b: Demand, stages: int, rng: random.Random, starts: int = 4
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut two programs into stages whose latencies side by side have a small sum.

    Random starts, then one cut at a time goes to the best place between its neighbours until none
    moves (as in Yu et al., ICCAD'21, reconstructed). A stage is taken to last as long as its longer
    side alone, or as the whole device needs for the work of both: ``max(T_a, T_b, W_a + W_b)``. Of
    equal sums the one wins whose sides are more alike, then the one whose longest stage is shorter.

    Parameters
    ----------
    stages
        How many; fewer if one program has fewer launches.
    starts
        Random starts; the best result is taken.

    Returns
    -------
    tuple
        For each program the launches at which its stages end, rising; the last is its length.
    """
    stages = max(1, min(stages, a.launches, b.launches))

    def cost(cuts: Sequence[Sequence[int]], begin: int = 0, end: int = stages) -> tuple[int, int, int]:
        ours, theirs = cuts
        total = apart = longest = 0
        for s in range(begin, end):
            i, j, k, m = ours[s], ours[s + 1], theirs[s], theirs[s + 1]
            longer = max(a.time_ns[j] - a.time_ns[i], b.time_ns[m] - b.time_ns[k])
            latency = max(longer, a.work_ns[j] - a.work_ns[i] + b.work_ns[m] - b.work_ns[k])
            total += latency
            apart += longer
            longest = max(longest, latency)
        return total, apart, longest

    def descend(cuts: list[list[int]]) -> list[list[int]]:
        moved = True
        while moved:
            moved = False
            for own in cuts:
                for s in range(1, stages):
                    best, place = cost(cuts, s - 1, s + 1), own[s]
                    for cut in range(own[s - 1] + 1, own[s + 1]):
                        own[s] = cut
                        tried = cost(cuts, s - 1, s + 1)
                        if tried < best:
                            best, place, moved = tried, cut, True
                    own[s] = place
        return cuts

    def start(launches: int) -> list[int]:
        return [0, *sorted(rng.sample(range(1, launches), stages - 1)), launches]

    found = min((descend([start(a.launches), start(b.launches)]) for _ in range(starts)), key=cost)
    return tuple(found[0][1:]), tuple(found[1][1:])
