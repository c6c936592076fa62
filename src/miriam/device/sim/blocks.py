"""Blocks of a launch: what one of them needs, and how long many of them take alone on a device.

A block has four components: a *latency* that it needs even in an empty GPU, *work* on its SM (busy
time of the unit that it uses most), and bytes to L2 and to DRAM. With n equal blocks on an SM and N
on the device it lasts ::

    duration = (latency^2 + (n work)^2 + (N dram_bytes / dram_bandwidth)^2 + (N l2_bytes / l2_bandwidth)^2)^(1/2)

between a maximum and a sum: what overlaps and what waits. The exponent is a choice; benchmarks/wave_fit.py
shows how well it foretells launches on more SMs, benchmarks/model_check.py programs in company.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from miriam.device.sim.spec import MEASURED, Spec

__all__ = ["Block", "Wave"]

_LEAST = 2.0**-4
"""Least share of latency in duration^2: a block alone on its SM runs at most four times faster."""

_LINE_BYTES = 128
_L2_CYCLES, _DRAM_CYCLES = 263.0, 479.0
"""Latencies of an H100 (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture
via Microbenchmarking", 2024)."""


@dataclass(frozen=True, slots=True)
class Wave:
    """How the blocks of a launch stand on a device when it begins.

    Attributes
    ----------
    blocks, sms
        Of the launch; of the device.
    per_sm, resident
        Blocks in the first wave: on the fullest SM, on the device.
    full
        Blocks that the device holds.
    """

    blocks: int
    sms: int
    per_sm: int
    resident: int
    full: int

    @staticmethod
    def of(blocks: int, residency: int, sms: int) -> Wave:
        """The first wave where an SM holds ``residency`` of the blocks."""
        full = residency * sms
        return Wave(blocks, sms, min(residency, -(-blocks // sms)), min(blocks, full), full)


@dataclass(frozen=True, slots=True)
class Block:
    """Components of a block."""

    latency_us: float
    work_us: float
    dram_bytes: float
    l2_bytes: float

    def duration_us(self, wave: Wave, spec: Spec) -> float:
        """Duration of a block in the first wave, alone on the device."""
        parts = (
            self.latency_us,
            wave.per_sm * self.work_us,
            wave.resident * self.dram_bytes / spec.dram_bytes_per_us,
            wave.resident * self.l2_bytes / spec.l2_bytes_per_us,
        )
        return math.sqrt(sum(part**2 for part in parts))

    def loads(self, wave: Wave, duration_us: float, spec: Spec) -> tuple[float, float, float]:
        """Loads of SM, DRAM and L2 in the first wave, shrunk together where they exceed the time."""
        sm = wave.per_sm * self.work_us / duration_us
        dram = wave.resident * self.dram_bytes / (spec.dram_bytes_per_us * duration_us)
        l2 = wave.resident * self.l2_bytes / (spec.l2_bytes_per_us * duration_us)
        total = sm**2 + dram**2 + l2**2
        shrink = 1.0 if total <= 1 - _LEAST else math.sqrt((1 - _LEAST) / total)
        return sm * shrink, dram * shrink, l2 * shrink

    def weights(self, wave: Wave, duration_us: float, spec: Spec) -> tuple[float, float]:
        """How much loads on DRAM and on L2 matter to it, 0 to 1.

        The greater of the own load and the share of time in which it waits there: time in which its SM
        is not busy, times the share of its accesses that go there (misses for DRAM, hits for L2), and at
        most the time in which a request of the SM is under way at all, if no two overlap.
        """
        sm, dram, l2 = self.loads(wave, duration_us, spec)
        lines_per_cycle = wave.per_sm / (_LINE_BYTES * duration_us * spec.clock_mhz)
        misses, hits = self.dram_bytes, max(0.0, self.l2_bytes - self.dram_bytes)
        accesses = misses + hits or 1.0
        waits_dram = min((1.0 - sm) * misses / accesses, lines_per_cycle * _DRAM_CYCLES * misses)
        waits_l2 = min((1.0 - sm) * hits / accesses, lines_per_cycle * _L2_CYCLES * hits)
        return max(dram, waits_dram), max(l2, waits_l2)

    def whole_us(self, wave: Wave, duration_us: float, spec: Spec) -> float:
        """The launch alone, gap left out: full waves, then a last one, which leaves room and is faster for it."""
        sm, dram, l2 = self.loads(wave, duration_us, spec)
        w_dram, w_l2 = self.weights(wave, duration_us, spec)
        sm2, memory2 = sm**2, w_dram * dram**2 + w_l2 * l2**2

        def stretched_us(on_sm: int, resident: int) -> float:
            own, all_ = on_sm / wave.per_sm, resident / wave.resident
            return duration_us * math.sqrt(1.0 - sm2 * (1.0 - own**2) - memory2 * (1.0 - all_**2))

        waves = -(-wave.blocks // wave.full)
        last = wave.blocks - (waves - 1) * wave.full
        deep = -(-last // wave.sms)
        deeper_sms = last - (deep - 1) * wave.sms
        slow_us = fast_us = stretched_us(deep, last)
        if deep > 1 and deeper_sms < wave.sms:
            fast_us = stretched_us(deep - 1, last)
        left_us = (1.0 - fast_us / slow_us) * stretched_us(deep, deeper_sms * deep)
        return (waves - 1) * duration_us + fast_us + left_us

    def fitted(self, wave: Wave, whole_us: float) -> Block:
        """The same work and bytes with the latency for which the launch takes ``whole_us`` on the measured GPU.

        Work and bytes are cut to what fits into that time.
        """
        duration_us = self._fitted_us(wave, whole_us)
        sm, dram, l2 = self.loads(wave, duration_us, MEASURED)
        return Block(
            latency_us=duration_us * math.sqrt(1.0 - sm**2 - dram**2 - l2**2),
            work_us=sm * duration_us / wave.per_sm,
            dram_bytes=dram * duration_us * MEASURED.dram_bytes_per_us / wave.resident,
            l2_bytes=l2 * duration_us * MEASURED.l2_bytes_per_us / wave.resident,
        )

    def _fitted_us(self, wave: Wave, whole_us: float) -> float:
        """Duration for which the launch takes ``whole_us``.

        Solved by false position with the Illinois rule: the whole rises with the duration, nearly in a
        straight line.
        """
        waves = -(-wave.blocks // wave.full)
        low, high = whole_us / waves, whole_us / (waves - 1 + math.sqrt(_LEAST))
        under = self.whole_us(wave, low, MEASURED) - whole_us
        over = self.whole_us(wave, high, MEASURED) - whole_us
        side = 0
        while high - low > 1e-12 * high and under < 0:
            middle = (low * over - high * under) / (over - under)
            at = self.whole_us(wave, middle, MEASURED) - whole_us
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

    def chilled(self, wave: Wave, more_bytes: float) -> Block:
        """The same if so many of its bytes come from DRAM in place of L2 on the measured GPU."""
        sm, _, _ = self.loads(wave, self.duration_us(wave, MEASURED), MEASURED)
        part = more_bytes / max(self.l2_bytes, more_bytes, 1.0)
        return replace(
            self,
            latency_us=self.latency_us * (1.0 + (1.0 - sm) * part * (_DRAM_CYCLES / _L2_CYCLES - 1.0)),
            dram_bytes=self.dram_bytes + more_bytes,
        )

    def mixed(self, other: Block, share: float) -> Block:
        """Between this and ``other``, which counts ``share``."""
        return Block(
            self.latency_us + share * (other.latency_us - self.latency_us),
            self.work_us + share * (other.work_us - self.work_us),
            self.dram_bytes + share * (other.dram_bytes - self.dram_bytes),
            self.l2_bytes + share * (other.l2_bytes - self.l2_bytes),
        )
