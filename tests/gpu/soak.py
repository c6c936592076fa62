"""Serve two networks and compare every output: python tests/gpu/soak.py --seconds 60 [--policy NAME]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from miriam import zoo
from miriam.bench.arrivals import Closed, Poisson, SeededTraffic
from miriam.coordinator import coordinate
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.work import Codes
from miriam.policy import Setting, create
from miriam.task import Task

CRITICAL, NORMAL = "cifarnet-b1", "cifarnet-b64"


def soak(
    seconds: float, policy: str, device: str, *, critical: str = CRITICAL, normal: str = NORMAL,
    rate_per_s: float = 1000.0, codes: Codes | None = None,
) -> dict[str, tuple[int, int, int]]:  # fmt: skip
    """By network: requests served, inferences compared, words of 4 bytes that were wrong.

    The critical network is asked at random, the normal one all the time.
    """
    until_us = 1e6 * seconds
    asked = Task(critical, zoo.load(critical), 1), Task(normal, zoo.load(normal), 0)
    on = CudaDevice(device, zoo.profiles(), codes=codes, verify=True)
    try:
        launch_us = {task.name: on.launch_us(task.program) for task in asked}
        chosen = create(policy, Setting(asked, on.geometry, launch_us, on.command_us))
        traffic = SeededTraffic(list(zip(asked, (Poisson(rate_per_s), Closed(2)), strict=True)), until_us, 0)
        done = coordinate(on, chosen, traffic, until_us)
        found = on.outputs()
    finally:
        on.close()
    return {task.name: (sum(r.task is task for r in done), *found.get(task.name, (0, 0))) for task in asked}


def main() -> None:
    """Say what was found; 1 if anything was wrong."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--policy", default="resident")
    options.add_argument("--device", default="cuda:0")
    options.add_argument("--critical", default=CRITICAL)
    options.add_argument("--normal", default=NORMAL)
    options.add_argument("--rate", type=float, default=1000.0, help="critical requests a second")
    asked = options.parse_args()
    found = soak(
        asked.seconds, asked.policy, asked.device, critical=asked.critical, normal=asked.normal, rate_per_s=asked.rate
    )
    for name, (served, compared, wrong) in found.items():
        print(f"{name}: {served} served, {compared} compared, {wrong} words wrong")
    sys.exit(any(wrong or not compared for _, compared, wrong in found.values()))


if __name__ == "__main__":
    main()
