"""How well the model of a block foretells launches on 132 SMs from those on 16, by L2 bandwidth.

    python benchmarks/wave_fit.py [--out benchmarks/records/wave-fit.json]

NVIDIA does not publish the bandwidth of the H200's L2. Each launch of the zoo that fills the whole GPU at
least once is fitted to its time on 16 SMs, with work and bytes from its hardware counters; its time on
132 SMs then follows. The error is the root mean square of the relative errors, weighted by measured time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from dataclasses import replace
from pathlib import Path

import miriam
from miriam import zoo
from miriam.device.sim import blocks
from miriam.device.sim.footprint import Footprint
from miriam.device.sim.spec import H200, Spec
from miriam.profile import LaunchProfile, launch_key
from miriam.program import Kernel

FROM_SMS, TO_SMS = 16, 132
BANDWIDTHS = (4.0, 5.5, 7.0, 8.0, 9.0, 9.5, 10.0, 11.0, 13.0, 16.0, 32.0)
"""In TB/s."""


def full_launches() -> list[tuple[Kernel, int, LaunchProfile]]:
    """Kernel, blocks and profile of each different launch with at least one full wave on the whole GPU."""
    found = {}
    for name in zoo.names():
        program = zoo.load(name)
        for i, step in enumerate(program.launches):
            kernel = program.kernel_of(i)
            profile = zoo.profiles().launch("h200", launch_key(kernel, step))
            if profile is not None and step.blocks >= profile.blocks_per_sm * TO_SMS:
                found[launch_key(kernel, step)] = (kernel, step.blocks, profile)
    return list(found.values())


def error(spec: Spec, launches: list[tuple[Kernel, int, LaunchProfile]]) -> float:
    """Root mean square of the relative errors on ``TO_SMS``, weighted by time."""
    blocks.MEASURED = spec  # the GPU that a block is fitted on
    total = weight = 0.0
    for kernel, count, profile in launches:
        counters, gap_us = profile.counters, spec.launch_gap_us
        footprint = Footprint.of(kernel, kernel.threads, profile.blocks_per_sm, spec.geometry)
        residency = footprint.residency(spec.geometry)
        measured_us = profile.times_us[TO_SMS] - gap_us
        block = blocks.Block(
            latency_us=0.0,
            work_us=max(counters.pipe_utilization, counters.issue_utilization) * TO_SMS * measured_us / count,
            dram_bytes=(counters.dram_read_bytes + counters.dram_write_bytes) / count,
            l2_bytes=counters.l2_bytes / count,
        ).fitted(blocks.Wave.of(count, residency, FROM_SMS), profile.times_us[FROM_SMS] - gap_us)
        wave = blocks.Wave.of(count, residency, TO_SMS)
        foretold_us = block.whole_us(wave, block.duration_us(wave, spec), spec)
        total += measured_us * (foretold_us / measured_us - 1) ** 2
        weight += measured_us
    return math.sqrt(total / weight)


def main() -> None:
    """Print the errors and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records" / "wave-fit.json")
    args = parser.parse_args()
    launches = full_launches()
    rows = []
    for tb_per_s in BANDWIDTHS:
        found = error(replace(H200, l2_bytes_per_us=tb_per_s * 1e6), launches)
        rows.append({"l2_tb_per_s": tb_per_s, "error": round(found, 4)})
        print(f"{tb_per_s:5.1f} TB/s {found:7.2%}")
    print(f"{len(launches)} launches; the model uses {H200.l2_bytes_per_us / 1e6:g} TB/s")
    record = {
        "what": "relative error of launch times foretold on 132 SMs from those on 16, by assumed L2 bandwidth",
        "measured_on": dict(zoo.profiles().devices["h200"]),
        "launches": len(launches),
        "miriam": miriam.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "rows": rows,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
