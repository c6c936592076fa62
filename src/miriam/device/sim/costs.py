"""From a profile to the cost of a block: how long alone, and what it takes of what it shares.

A block has four components: a *latency* that it needs even in an empty GPU, *work* on its SM
(busy time of the unit that it uses most), and bytes to L2 and to DRAM. With n equal blocks on an
SM and N on the device it lasts ::

    duration = (latency^4 + (n work)^4 + (N dram_bytes / dram_bandwidth)^4 + (N l2_bytes / l2_bandwidth)^4)^(1/4)

a smooth maximum: what is far from its capacity hardly counts, what is at its capacity rules. The
components follow from the times of the launch alone and from hardware counters, in such a way that
a launch alone takes exactly the time that was measured.

In company, each resident block asks for a share of each resource: its component over its duration
alone. The sum of these shares over an SM (work) or the device (bytes) is a load L, and the duration
alone (loads L0) is stretched by ::

    stretch^4 = 1 + (L_sm^4 - L0_sm^4) + w_dram (L_dram^4 - L0_dram^4) + w_l2 (L_l2^4 - L0_l2^4)

Two kernels that need the whole bandwidth thus take twice as long each, one that needs all of it and
one that hardly uses it nearly as long as alone. Every block issues instructions, so the load of
its SM always counts; a load on memory counts as far as the block waits for memory: w is the
greater of its load alone and the share of time in which the SM is not busy, times the share of the
block's accesses that go there (misses for DRAM, hits for L2), and at most the share of time in which
a request of the SM is under way at all (if no two overlap).

Profiles are taken with warm caches. What other programs brought into L2 since a program ran last is
not there for it any more: of the bytes that an empty cache costs it more, the part that does not fit
comes from DRAM, and the time spent waiting for these bytes grows as DRAM is slower than L2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from miriam.device.sim.footprint import Footprint
from miriam.device.sim.spec import MEASURED, Spec
from miriam.errors import ProfileError
from miriam.profile import LaunchProfile, ProfileSource, launch_key
from miriam.program import Kernel, Program, Source

__all__ = ["BlockCost", "CostModel"]

_LEAST = 2.0**-8
"""Least share of latency in duration^4: a block alone on its SM runs at most four times faster."""

_LINE_BYTES = 128
_L2_CYCLES, _DRAM_CYCLES = 263.0, 479.0
"""Latencies of an H100 (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture
via Microbenchmarking", 2024)."""


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
    gap_us
        From the end of the launch before it to its first block.
    duration_us
        Of a block in the *reference state*: the launch alone, its first wave on the device.
    sm_share, dram_share, l2_share
        What one block takes of the capacity of its SM, of DRAM and of L2 in that state.
    dram_weight, l2_weight
        How much a load on memory matters to it, 0 to 1.
    rest
        1 minus the weighted loads of the reference state: ``stretch^4`` at no load.
    alone_us
        The whole launch alone, gap included.
    """

    blocks: int
    footprint: Footprint
    rigid: bool
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
class _Block:
    """Components of a block: latency, busy time of its SM, bytes."""

    latency_us: float
    work_us: float
    dram_bytes: float
    l2_bytes: float


@dataclass(frozen=True, slots=True)
class _Wave:
    """Blocks on the busiest SM and on the device in the first wave, and the capacity of a wave."""

    blocks: int
    sms: int
    per_sm: int
    resident: int
    full: int

    @staticmethod
    def of(blocks: int, residency: int, sms: int) -> _Wave:
        full = residency * sms
        return _Wave(blocks, sms, min(residency, -(-blocks // sms)), min(blocks, full), full)


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
        seen: dict[tuple[int, tuple[int, int, int]], BlockCost] = {}
        trimmed: set[str] = set()
        for i, step in enumerate(program.launches):
            key = (step.kernel, step.grid)
            if key not in seen:
                seen[key] = self._launch(program, i, threads, crowd_bytes, trimmed)
        if trimmed:
            self._note(
                f"{program.name}: {len(trimmed)} kernels need more shared memory than {self.spec.name} gives a "
                "block; modelled as compiled with tiles that just fit, one block on an SM"
            )
        return tuple(seen[step.kernel, step.grid] for step in program.launches)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes = (*self.notes, note)

    def _launch(
        self, program: Program, index: int, threads: int | None, crowd_bytes: int, trimmed: set[str]
    ) -> BlockCost:
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
        cold = self._cold(max(program.size_bytes, profile.counters.touched_bytes), crowd_bytes)
        block = self._block(kernel, profile, blocks, cold)
        if thin < kernel.threads:
            block = replace(block, latency_us=block.latency_us * -(-kernel.threads // thin))
        gap_us = self.spec.launch_gap_us
        if self.spec.measured:
            gap_us = min(gap_us, 0.5 * min(profile.times_us.values()))
        return _cost(block, _Wave.of(blocks, footprint.residency(geometry), geometry.sms), footprint, self.spec,
                     gap_us, rigid)  # fmt: skip

    def _cold(self, own_bytes: float, crowd_bytes: int) -> float:
        """Share of a program's bytes that L2 does not keep from one run of it to the next."""
        if not crowd_bytes and self.spec.measured:
            return 0.0
        return max(0.0, 1.0 - self.spec.l2_bytes / (own_bytes + crowd_bytes)) if own_bytes else 0.0

    def _block(self, kernel: Kernel, profile: LaunchProfile, blocks: int, cold: float) -> _Block:
        """Components of a block on this device."""
        times, counters, here = profile.times_us, profile.counters, self.spec
        gap_us = min(MEASURED.launch_gap_us, 0.5 * min(times.values()))
        residency = Footprint.of(kernel, kernel.threads, profile.blocks_per_sm, MEASURED.geometry).residency(
            MEASURED.geometry
        )
        most = max(times)
        sm_us = most * (times[most] - gap_us) / blocks
        raw = _Block(
            latency_us=0.0,
            work_us=max(counters.pipe_utilization, counters.issue_utilization * min(1.0, blocks / most)) * sm_us,
            dram_bytes=(counters.dram_read_bytes + counters.dram_write_bytes) / blocks,
            l2_bytes=counters.l2_bytes / blocks,
        )
        more_bytes = cold * max(0.0, counters.touched_bytes / blocks - raw.dram_bytes)

        def measured(sms: int) -> _Block:
            wave = _Wave.of(blocks, residency, sms)
            duration_us = _duration_us(raw, wave, times[sms] - gap_us)
            return _chilled(_with_latency(raw, wave, duration_us), wave, duration_us, more_bytes)

        if here.measured:
            return _between(times, here.geometry.sms, measured)
        block = measured(min(times, key=lambda sms: (abs(sms - here.geometry.sms), sms)))
        return replace(
            block,
            latency_us=block.latency_us * MEASURED.clock_mhz / here.clock_mhz,
            work_us=block.work_us * _work_ratio(kernel, here),
        )


def _root4(value: float) -> float:
    return math.sqrt(math.sqrt(value))


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


def _loads(block: _Block, wave: _Wave, duration_us: float, spec: Spec) -> tuple[float, float, float]:
    """Loads of SM, DRAM and L2 with the first wave resident, shrunk together where they exceed the time."""
    sm = wave.per_sm * block.work_us / duration_us
    dram = wave.resident * block.dram_bytes / (spec.dram_bytes_per_us * duration_us)
    l2 = wave.resident * block.l2_bytes / (spec.l2_bytes_per_us * duration_us)
    total = sm**4 + dram**4 + l2**4
    shrink = 1.0 if total <= 1 - _LEAST else _root4((1 - _LEAST) / total)
    return sm * shrink, dram * shrink, l2 * shrink


def _weights(block: _Block, wave: _Wave, duration_us: float, spec: Spec) -> tuple[float, float]:
    """How much loads on DRAM and on L2 matter."""
    sm, dram, l2 = _loads(block, wave, duration_us, spec)
    lines_per_cycle = wave.per_sm / (_LINE_BYTES * duration_us * spec.clock_mhz)
    misses, hits = block.dram_bytes, max(0.0, block.l2_bytes - block.dram_bytes)
    accesses = misses + hits or 1.0
    waits_dram = min((1.0 - sm) * misses / accesses, lines_per_cycle * _DRAM_CYCLES * misses)
    waits_l2 = min((1.0 - sm) * hits / accesses, lines_per_cycle * _L2_CYCLES * hits)
    return max(dram, waits_dram), max(l2, waits_l2)


def _whole_us(block: _Block, wave: _Wave, duration_us: float, spec: Spec) -> float:
    """A launch alone, gap left out: full waves, then a last one, which leaves room and is faster for it."""
    loads = _loads(block, wave, duration_us, spec)
    w_dram, w_l2 = _weights(block, wave, duration_us, spec)
    sm4, memory4 = loads[0] ** 4, w_dram * loads[1] ** 4 + w_l2 * loads[2] ** 4

    def stretch(on_sm: int, resident: int) -> float:
        own, others = on_sm / wave.per_sm, resident / wave.resident
        return _root4(1.0 - sm4 * (1.0 - own**4) - memory4 * (1.0 - others**4))

    waves = -(-wave.blocks // wave.full)
    last = wave.blocks - (waves - 1) * wave.full
    deep = -(-last // wave.sms)
    fuller = last - (deep - 1) * wave.sms
    slow = duration_us * stretch(deep, last)
    fast = duration_us * stretch(deep - 1, last) if deep > 1 and fuller < wave.sms else slow
    left = (1.0 - fast / slow) * duration_us * stretch(deep, fuller * deep)
    return (waves - 1) * duration_us + fast + left


def _duration_us(block: _Block, wave: _Wave, whole_us: float) -> float:
    """The duration for which :func:`_whole_us` gives ``whole_us`` on the measured GPU.

    Solved by false position with the Illinois rule: the whole rises with the duration, nearly in a
    straight line.
    """
    waves = -(-wave.blocks // wave.full)
    low, high = whole_us / waves, whole_us / (waves - 1 + _root4(_LEAST))
    under = _whole_us(block, wave, low, MEASURED) - whole_us
    over = _whole_us(block, wave, high, MEASURED) - whole_us
    side = 0
    while high - low > 1e-12 * high and under < 0:
        middle = (low * over - high * under) / (over - under)
        at = _whole_us(block, wave, middle, MEASURED) - whole_us
        if abs(at) <= 1e-9 * whole_us:
            return middle
        if at < 0:
            low, under = middle, at
            over = over / 2 if side < 0 else over
            side = -1
        else:
            high, over = middle, at
            under = under / 2 if side > 0 else under
            side = 1
    return low


def _with_latency(block: _Block, wave: _Wave, duration_us: float) -> _Block:
    """``block`` with the latency that makes it last ``duration_us``; work and bytes are cut to what fits in there."""
    sm, dram, l2 = _loads(block, wave, duration_us, MEASURED)
    return _Block(
        latency_us=duration_us * _root4(1.0 - sm**4 - dram**4 - l2**4),
        work_us=sm * duration_us / wave.per_sm,
        dram_bytes=dram * duration_us * MEASURED.dram_bytes_per_us / wave.resident,
        l2_bytes=l2 * duration_us * MEASURED.l2_bytes_per_us / wave.resident,
    )


def _chilled(block: _Block, wave: _Wave, duration_us: float, more_bytes: float) -> _Block:
    """``block`` if so many of its bytes come from DRAM in place of L2."""
    waiting = 1.0 - _loads(block, wave, duration_us, MEASURED)[0]
    part = min(1.0, more_bytes / max(block.l2_bytes, more_bytes, 1.0))
    return replace(
        block,
        latency_us=block.latency_us * (1.0 + waiting * part * (_DRAM_CYCLES / _L2_CYCLES - 1.0)),
        dram_bytes=block.dram_bytes + more_bytes,
    )


def _between(times: Mapping[int, float], sms: int, measured: Callable[[int], _Block]) -> _Block:
    """Components at ``sms``, between the two measured counts beside it by the logarithm of the count."""
    below = max((s for s in times if s <= sms), default=min(times))
    above = min((s for s in times if s >= sms), default=max(times))
    low = measured(below)
    if below == above:
        return low
    high = measured(above)
    at = math.log(sms / below) / math.log(above / below)

    def mix(a: float, b: float) -> float:
        return a + at * (b - a)

    return _Block(
        mix(low.latency_us, high.latency_us),
        mix(low.work_us, high.work_us),
        mix(low.dram_bytes, high.dram_bytes),
        mix(low.l2_bytes, high.l2_bytes),
    )


def _cost(block: _Block, wave: _Wave, footprint: Footprint, spec: Spec, gap_us: float, rigid: bool) -> BlockCost:
    parts = (
        block.latency_us,
        wave.per_sm * block.work_us,
        wave.resident * block.dram_bytes / spec.dram_bytes_per_us,
        wave.resident * block.l2_bytes / spec.l2_bytes_per_us,
    )
    duration_us = _root4(sum(part**4 for part in parts))
    loads = _loads(block, wave, duration_us, spec)
    w_dram, w_l2 = _weights(block, wave, duration_us, spec)
    sm, dram, l2 = loads
    return BlockCost(
        blocks=wave.blocks,
        footprint=footprint,
        rigid=rigid,
        gap_us=gap_us,
        duration_us=duration_us,
        sm_share=sm / wave.per_sm,
        dram_share=dram / wave.resident,
        l2_share=l2 / wave.resident,
        dram_weight=w_dram,
        l2_weight=w_l2,
        rest=1.0 - sm**4 - w_dram * dram**4 - w_l2 * l2**4,
        alone_us=gap_us + _whole_us(block, wave, duration_us, spec),
    )
