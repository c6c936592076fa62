"""From a profile to the cost of a block: how long alone, and what it takes of what it shares.

The components of a block (:mod:`miriam.device.sim.blocks`) follow from the times of the launch alone and
from hardware counters, in such a way that a launch alone takes exactly the time that was measured.

In company, each resident block asks for a share of each resource: its component over its duration
alone. The sum of these shares over an SM (work) or the device (bytes) is a load L, and the duration
alone (loads L0) is stretched by ::

    stretch^2 = 1 + (L_sm^2 - L0_sm^2) + w_dram (L_dram^2 - L0_dram^2) + w_l2 (L_l2^2 - L0_l2^2)

Two kernels that need the whole bandwidth thus take twice as long each, one that needs all of it and
one that hardly uses it nearly as long as alone. Every block issues instructions, so the load of
its SM always counts; a load on memory counts as far as the block waits for memory
(:meth:`miriam.device.sim.blocks.Block.weights`).

Profiles are taken with caches as the program itself leaves them. Where other programs ran since, its
weights, inputs and code that it found in L2 are there no more, as far as all of that does not fit:
they come from DRAM, the time spent waiting for data grows as DRAM is slower than L2, and the first
launch of each kernel starts later. On a device with a smaller L2 the same holds without company, and
for everything that an empty cache would have cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from miriam.device.sim.blocks import Block, Wave
from miriam.device.sim.footprint import Footprint
from miriam.device.sim.spec import MEASURED, Spec
from miriam.errors import ProfileError
from miriam.profile import LaunchProfile, ProfileSource, launch_key
from miriam.program import Kernel, Pointer, Program, Role, Source

__all__ = ["BlockCost", "CostModel"]


@dataclass(frozen=True, slots=True)
class BlockCost:
    """One launch in one form on one device.

    Attributes
    ----------
    blocks
        Logical blocks of the grid.
    footprint
        What a physical block takes of an SM.
    rigid
        Whether it only runs whole, without workers.
    carveout_bytes
        Shared memory that an SM has while it was this launch that came to it first.
    gap_us
        From the end of the launch before it to its first block.
    duration_us
        Of a block in the *reference state*: the launch alone, its first wave on the device.
    sm_share, dram_share, l2_share
        What one block takes of the capacity of its SM, of DRAM and of L2 in that state.
    dram_weight, l2_weight
        How much a load on memory matters to it, 0 to 1.
    rest
        1 minus the weighted loads of the reference state: ``stretch^2`` at no load.
    alone_us
        The whole launch alone, gap included.
    """

    blocks: int
    footprint: Footprint
    rigid: bool
    carveout_bytes: int
    gap_us: float
    duration_us: float
    sm_share: float
    dram_share: float
    l2_share: float
    dram_weight: float
    l2_weight: float
    rest: float
    alone_us: float


@dataclass(frozen=True, slots=True)
class _Fresh:
    """What a launch is the first of its program to use: bytes of weights and inputs, and its kernel."""

    data_bytes: float
    code: bool


class CostModel:
    """Costs of launches on a device.

    Parameters
    ----------
    spec
        The device.
    profiles
        Where profiles are, taken on :data:`miriam.device.sim.spec.MEASURED`.

    Attributes
    ----------
    notes
        What was assumed for the launches seen so far.
    """

    def __init__(self, spec: Spec, profiles: ProfileSource) -> None:
        self.spec = spec
        self.notes: tuple[str, ...] = ()
        self._profiles = profiles

    def program(self, program: Program, threads: int | None = None, crowd_bytes: int = 0) -> tuple[BlockCost, ...]:
        """Cost of every launch of ``program``.

        Parameters
        ----------
        threads
            Threads of a block, if it is to be thinner.
        crowd_bytes
            What other programs may have brought into the caches since this one ran last.

        Raises
        ------
        ProfileError
            A launch was not measured.
        """
        seen: dict[tuple[int, tuple[int, int, int], _Fresh | None], BlockCost] = {}
        trimmed: set[str] = set()
        costs = []
        for i, (step, fresh) in enumerate(zip(program.launches, _fresh(program), strict=True)):
            key = (step.kernel, step.grid, None if self.spec.measured and not crowd_bytes else fresh)
            if key not in seen:
                seen[key] = self._launch(program, i, threads, crowd_bytes, fresh, trimmed)
            costs.append(seen[key])
        if trimmed:
            self._note(
                f"{program.name}: {len(trimmed)} kernels need more shared memory than {self.spec.name} gives a "
                "block; modelled as compiled with tiles that just fit, one block on an SM"
            )
        return tuple(costs)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes = (*self.notes, note)

    def _launch(self, program: Program, index: int, threads: int | None, crowd_bytes: int, fresh: _Fresh,
                trimmed: set[str]) -> BlockCost:  # fmt: skip
        kernel, step = program.kernel_of(index), program.launches[index]
        profile = self._profiles.launch(MEASURED.name, launch_key(kernel, step))
        if profile is None or not profile.times_us:
            raise ProfileError(
                f"launch {index} of {program.name} ({kernel.name}, grid {step.grid}) was not measured on "
                f"{MEASURED.name}: run 'miriam profile' on one"
            )
        geometry, blocks = self.spec.geometry, step.blocks
        rigid = bool(kernel.opaque) or kernel.source in (Source.COPY, Source.FILL)
        thin = kernel.threads if threads is None or rigid else min(threads, kernel.threads)
        if geometry.residency(kernel) == 0:
            trimmed.add(kernel.digest)
        footprint = Footprint.of(kernel, thin, profile.blocks_per_sm, geometry)
        own_bytes = max(program.size_bytes, math.ceil(profile.counters.touched_bytes))
        alone, cold = self._cold(own_bytes, 0), self._cold(own_bytes, crowd_bytes)
        dram_bytes = profile.counters.dram_read_bytes + profile.counters.dram_write_bytes
        more_bytes = max(
            alone * (profile.counters.touched_bytes - dram_bytes),
            cold * (min(profile.counters.touched_bytes, fresh.data_bytes) - dram_bytes),
            0.0,
        )
        block = self._block(kernel, profile, blocks, more_bytes / blocks)
        if thin < kernel.threads:
            block = replace(block, latency_us=block.latency_us * -(-kernel.threads // thin))
        gap_us = self.spec.launch_gap_us
        if self.spec.measured:
            gap_us = min(gap_us, 0.5 * min(profile.times_us.values()))
        if fresh.code:
            gap_us += cold * self.spec.first_use_us
        return _cost(block, Wave.of(blocks, footprint.residency(geometry), geometry.sms), footprint, self.spec,
                     gap_us, rigid)  # fmt: skip

    def _cold(self, own_bytes: int, crowd_bytes: int) -> float:
        """Share of what a program had in L2 where it was measured that is not there any more."""
        if self.spec.measured and not crowd_bytes:
            return 0.0
        all_bytes = own_bytes + crowd_bytes
        return max(0.0, 1.0 - self.spec.l2_bytes / all_bytes) if all_bytes else 0.0

    def _block(self, kernel: Kernel, profile: LaunchProfile, blocks: int, more_bytes: float) -> Block:
        """Components of a block on this device."""
        times, counters, here = profile.times_us, profile.counters, self.spec
        gap_us = min(MEASURED.launch_gap_us, 0.5 * min(times.values()))
        footprint = Footprint.of(kernel, kernel.threads, profile.blocks_per_sm, MEASURED.geometry)
        residency = footprint.residency(MEASURED.geometry)
        most = max(times)
        sm_us = most * (times[most] - gap_us) / blocks
        raw = Block(
            latency_us=0.0,
            work_us=max(counters.pipe_utilization, counters.issue_utilization * min(1.0, blocks / most)) * sm_us,
            dram_bytes=(counters.dram_read_bytes + counters.dram_write_bytes) / blocks,
            l2_bytes=counters.l2_bytes / blocks,
        )

        def measured(sms: int) -> Block:
            wave = Wave.of(blocks, residency, sms)
            return raw.fitted(wave, times[sms] - gap_us).chilled(wave, more_bytes)

        if here.measured:
            return _between(times, here.geometry.sms, measured)
        block = measured(min(times, key=lambda sms: (abs(sms - here.geometry.sms), sms)))
        return replace(
            block,
            latency_us=block.latency_us * MEASURED.clock_mhz / here.clock_mhz,
            work_us=block.work_us * _work_ratio(kernel, here),
        )


def _fresh(program: Program) -> list[_Fresh]:
    """What each launch is given that no launch before it was given."""
    buffers: set[int] = set()
    kernels: set[int] = set()
    fresh = []
    for step in program.launches:
        given = {argument.buffer for argument in step.args if isinstance(argument, Pointer)}
        outer = {i for i in given - buffers if program.buffers[i].role in (Role.WEIGHT, Role.INPUT)}
        data_bytes = float(sum(program.buffers[i].size_bytes for i in outer)) if step.args else math.inf
        fresh.append(_Fresh(data_bytes, step.kernel not in kernels))
        buffers |= outer
        kernels.add(step.kernel)
    return fresh


def _work_ratio(kernel: Kernel, here: Spec) -> float:
    """How much longer an SM of ``here`` is busy with the same work than one of the measured GPU.

    Kernels with matrix instructions follow the tensor peak (and those whose code is unknown: they
    are library convolutions and products), all others the FP32 units and the clock.
    """
    if kernel.source in (Source.COPY, Source.FILL):
        return MEASURED.clock_mhz / here.clock_mhz
    if kernel.ptx is None or "mma." in kernel.ptx or "mma_" in kernel.ptx:
        return MEASURED.tensor_flops_per_us / here.tensor_flops_per_us
    return MEASURED.fp32_lanes * MEASURED.clock_mhz / (here.fp32_lanes * here.clock_mhz)


def _between(times: Mapping[int, float], sms: int, measured: Callable[[int], Block]) -> Block:
    """Components at ``sms``, between the two measured counts beside it by the logarithm of the count."""
    below = max((s for s in times if s <= sms), default=min(times))
    above = min((s for s in times if s >= sms), default=max(times))
    low = measured(below)
    if below == above:
        return low
    return low.mixed(measured(above), math.log(sms / below) / math.log(above / below))


def _cost(block: Block, wave: Wave, footprint: Footprint, spec: Spec, gap_us: float, rigid: bool) -> BlockCost:
    duration_us = block.duration_us(wave, spec)
    sm, dram, l2 = block.loads(wave, duration_us, spec)
    w_dram, w_l2 = block.weights(wave, duration_us, spec)
    return BlockCost(
        blocks=wave.blocks,
        footprint=footprint,
        rigid=rigid,
        carveout_bytes=spec.carveout_bytes(footprint.residency(spec.geometry) * footprint.shared_bytes),
        gap_us=gap_us,
        duration_us=duration_us,
        sm_share=sm / wave.per_sm,
        dram_share=dram / wave.resident,
        l2_share=l2 / wave.resident,
        dram_weight=w_dram,
        l2_weight=w_l2,
        rest=1.0 - sm**2 - w_dram * dram**2 - w_l2 * l2**2,
        alone_us=gap_us + block.whole_us(wave, duration_us, spec),
    )
