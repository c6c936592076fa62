"""Which shards may run beside which critical launch: the offline half of Miriam's coordinator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from miriam.elastic.space import Shape, shrink
from miriam.errors import PolicyError
from miriam.policy.base import Setting

__all__ = ["Fits", "Padding", "Shard"]

Fits: TypeAlias = Literal["figure", "strict"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A candidate that was kept.

    Attributes
    ----------
    blocks, threads
        Its shape; ``threads`` None: those of the kernel.
    room
        Normal blocks that may be in flight once it is.
    """

    blocks: int
    threads: int | None
    room: int


class Padding:
    """The shrunk design space of every pair of a critical and a normal launch.

    Pairs of equal geometry share an entry, so the effort grows with the shapes of two programs and
    not with their launches.

    Parameters
    ----------
    fits
        How many normal blocks may be in flight beside a critical launch. ``strict``: as many as a
        single shard may have, one for each SM that the last wave leaves idle. ``figure``: as the
        paper's overview draws it, one beside each critical block of the last wave, and stacked on
        the SMs without one as many as they hold.
    launch_us, limit_us
        For OScore: cost of one launch, and the most that the shards of one launch may cost.
    """

    def __init__(self, setting: Setting, fits: Fits, launch_us: float, limit_us: float) -> None:
        if fits not in ("figure", "strict"):
            raise PolicyError(f"there is no reading {fits!r} of the room for shards: take 'figure' or 'strict'")
        geometry = setting.geometry
        self._keys: dict[str, list[int]] = {}
        forms: dict[tuple[Shape, tuple[int, ...]], int] = {}
        critical: Counter[int] = Counter()
        normal: Counter[int] = Counter()
        for task in setting.tasks:
            program = task.program
            keys = self._keys[task.name] = []
            for i, step in enumerate(program.launches):
                shape = Shape.of(program.kernel_of(i), step.blocks)
                resident = tuple(max(1, geometry.residency(program.kernel_of(i), b)) for b in shape.widths)
                keys.append(forms.setdefault((shape, resident), len(forms)))
            (critical if task.critical else normal).update(keys)

        self._shards: dict[tuple[int, int], tuple[Shard, ...]] = {}
        self._pairs = critical.total() * normal.total()
        self._candidates = self._feasible = self._kept = 0
        self._pruned = 0.0
        shapes = list(forms)
        for k_rt, n_rt in critical.items():
            rt, _ = shapes[k_rt]
            beside = rt.blocks % geometry.sms or geometry.sms  # SMs with a critical block in the last wave
            for k_be, n_be in normal.items():
                be, resident = shapes[k_be]
                stack = dict(zip(be.widths, resident, strict=True))
                space = shrink(rt, be, geometry, launch_us, limit_us)
                self._shards[k_rt, k_be] = tuple(
                    Shard(
                        kept.blocks,
                        None if kept.threads == be.threads else kept.threads,
                        beside + (geometry.sms - beside) * stack[kept.threads]
                        if fits == "figure"
                        else geometry.sms - rt.blocks % geometry.sms,
                    )
                    for kept in space.kept
                )
                self._candidates += n_rt * n_be * space.candidates
                self._feasible += n_rt * n_be * space.feasible
                self._kept += n_rt * n_be * len(space.kept)
                self._pruned += n_rt * n_be * space.pruned

    def beside(self, critical: tuple[str, int], normal: tuple[str, int]) -> tuple[Shard, ...]:
        """Shards of a launch (task name, launch) that may run beside a critical one, best first."""
        (task_rt, i), (task_be, j) = critical, normal
        return self._shards[self._keys[task_rt][i], self._keys[task_be][j]]

    def report(self) -> Mapping[str, float]:
        """Sizes summed over all pairs of launches, and the share pruned in the mean pair."""
        return {
            "pairs": self._pairs,
            "candidates": self._candidates,
            "feasible": self._feasible,
            "kept": self._kept,
            "pruned_share": self._pruned / self._pairs if self._pairs else 0.0,
        }
