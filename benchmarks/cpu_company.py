"""What a critical network loses on the CPU device beside a saturating normal one, and beside it in plain threads.

    python benchmarks/cpu_company.py [--requests 600] [--rounds 6] [--out benchmarks/records]

Critical: ResNet-34, batch 1; the time between two requests is random, two to four times what one takes alone. Normal:
ResNet-18, batch 16, one request after another. Ways that are compared take turns in every round: each network alone and both together, as
chains on the CPU device with the policy ``resident``, and as modules that two threads call. A slowdown is against the
same way alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

import miriam
from miriam.coordinator import coordinate
from miriam.device.cpu import CpuDevice
from miriam.frontend.chain import Chain
from miriam.policy import Setting, create
from miriam.task import Criticality, Request, Task
from miriam.zoo.models import MODELS

BATCH = 16
GAP = (2.0, 4.0)  # between two critical requests, in what one takes alone: never two at a time, in no step with others


@dataclass
class Way:
    """What was measured of one way: latencies and waits of critical requests, normal requests in how much time."""

    latency_ms: list[float] = field(default_factory=list)
    wait_ms: list[float] = field(default_factory=list)
    normal: int = 0
    spent_s: float = 0.0


class Traffic:
    """Critical requests at times, normal ones one after another until the last critical one is through."""

    def __init__(self, critical: Task | None, normal: Task | None, times_us: Sequence[float], inputs: dict) -> None:
        self._inputs, self._normal, self._made = inputs, normal, 0
        self._first = [self._request(critical, at) for at in times_us] if critical is not None else []
        self._last = self._first[-1] if self._first else None
        self._open = True
        if normal is not None:
            self._first.append(self._request(normal, 0.0))

    def start(self) -> list[Request]:
        return self._first

    def after(self, finished: Request) -> Request | None:
        self._open &= finished is not self._last
        finished.inputs = finished.outputs = None
        if finished.task is not self._normal or not self._open or finished.finish_us is None:
            return None
        return self._request(self._normal, finished.finish_us)

    def _request(self, task: Task, at_us: float) -> Request:
        self._made += 1
        return Request(task, self._made, at_us, inputs=self._inputs[task.name])


def on_device(chains: dict[str, Chain], inputs: dict, times_s: Sequence[float], names: Sequence[str], way: Way) -> None:
    """Chains on the CPU device."""
    tasks = {
        name: Task(name, chains[name].program, Criticality.CRITICAL if name == "critical" else Criticality.NORMAL)
        for name in names
    }
    device = CpuDevice(bound=chains.values())
    steps_us = {task.name: device.launch_us(task.program) for task in tasks.values()}
    policy = create("resident", Setting(list(tasks.values()), device.geometry, steps_us, device.command_us))
    traffic = Traffic(tasks.get("critical"), tasks.get("normal"), [1e6 * at for at in times_s], inputs)
    done = coordinate(device, policy, traffic, 1e6 * times_s[-1] + 1e6)
    device.close()
    for request in done:
        if request.error is not None:
            raise request.error
        if request.task.critical:
            way.latency_ms.append(request.latency_us / 1e3)
            way.wait_ms.append((request.start_us - request.arrival_us) / 1e3)
        else:
            way.normal += 1
    way.spent_s += max((request.finish_us for request in done), default=0.0) / 1e6


def in_threads(modules: dict, inputs: dict, times_s: Sequence[float], names: Sequence[str], way: Way) -> None:
    """A thread for each module, that calls it."""
    over = threading.Event()
    begin_s = time.perf_counter() + 0.1

    def critical() -> None:
        with torch.no_grad():
            for at_s in times_s:
                time.sleep(max(0.0, begin_s + at_s - time.perf_counter()))
                modules["critical"](*inputs["critical"])
                way.latency_ms.append(1e3 * (time.perf_counter() - begin_s - at_s))
        over.set()

    def normal() -> None:
        last_s = begin_s + times_s[-1]
        time.sleep(max(0.0, begin_s - time.perf_counter()))
        with torch.no_grad():
            while not over.is_set() and ("critical" in names or time.perf_counter() < last_s):
                modules["normal"](*inputs["normal"])
                way.normal += 1

    threads = [threading.Thread(target={"critical": critical, "normal": normal}[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    way.spent_s += time.perf_counter() - begin_s


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "miriam": miriam.__version__,
    }


def row(what: str, way: Way, alone: Way | None, normal_alone: Way | None) -> dict[str, object]:
    """A line of the table."""
    line: dict[str, object] = {"what": what}
    for name, values in (("latency_ms", way.latency_ms), ("wait_ms", way.wait_ms)):
        if values:
            ordered = sorted(values)
            quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
            line[name] = {q: round(float(np.quantile(ordered, share)), 2) for q, share in quantiles.items()}
    if way.latency_ms:
        line["requests"] = len(way.latency_ms)
    if alone is not None:
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            ratio = np.quantile(way.latency_ms, share) / np.quantile(alone.latency_ms, share)
            line[f"slowdown_{name}"] = round(float(ratio), 3)
    if way.normal:
        line["normal_per_s"] = round(BATCH * way.normal / way.spent_s, 1)
    if normal_alone is not None:
        rate = (way.normal / way.spent_s) / (normal_alone.normal / normal_alone.spent_s)
        line["normal_share"] = round(rate, 3)
    return line


def main() -> None:
    """Print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600, help="critical ones of each way, over all rounds")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records", help="folder of the record")
    options = parser.parse_args()

    load = os.getloadavg()[0]
    torch.manual_seed(0)
    modules = {"critical": MODELS["resnet34"].make().eval(), "normal": MODELS["resnet18"].make().eval()}
    inputs = {"critical": [torch.randn(1, 3, 224, 224)], "normal": [torch.randn(BATCH, 3, 224, 224)]}
    chains = {name: Chain.of(module, inputs[name], name=name) for name, module in modules.items()}
    gc.collect()
    gc.freeze()  # what is there now stays: a collection that looks at all of PyTorch takes as long as a request

    gap_s = [share * sum(chains["critical"].step_us) / 1e6 for share in GAP]
    both, rng = ("critical", "normal"), random.Random(0)
    runs: dict[str, tuple[Callable[..., None], dict, tuple[str, ...]]] = {
        "device, critical alone": (on_device, chains, ("critical",)),
        "device, normal alone": (on_device, chains, ("normal",)),
        "device, both": (on_device, chains, both),
        "threads, critical alone": (in_threads, modules, ("critical",)),
        "threads, normal alone": (in_threads, modules, ("normal",)),
        "threads, both": (in_threads, modules, both),
    }
    ways = {what: Way() for what in runs}
    for _ in range(options.rounds):
        at_s, times_s = 0.2, []
        for _ in range(options.requests // options.rounds):
            at_s += rng.uniform(*gap_s)
            times_s.append(at_s)
        for what, (run, models, names) in runs.items():
            alone = names == ("normal",)
            run(models, inputs, times_s[-1:] if alone else times_s, names, ways[what])
    rows = []
    for what, way in ways.items():
        how, _, who = what.partition(", ")
        together = who == "both"
        rows.append(
            row(
                what, way, ways[f"{how}, critical alone"] if together else None,
                ways[f"{how}, normal alone"] if together else None,
            )
        )  # fmt: skip
    print(f"{'':26} {'p50 ms':>8} {'p99 ms':>8} {'slowdown':>9} {'p99':>7} {'images/s':>9} {'share':>6}")
    for line in rows:
        latency = line.get("latency_ms", {})
        cells = [latency.get("p50", ""), latency.get("p99", ""), *(line.get(k, "") for k in COLUMNS)]
        print(f"{line['what']:26} {cells[0]:>8} {cells[1]:>8} {cells[2]:>9} {cells[3]:>7} {cells[4]:>9} {cells[5]:>6}")
    record = {
        "what": "a critical ResNet-34 (batch 1) beside a saturating ResNet-18 (batch 16): CPU device and plain threads",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_before": round(load, 2),
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "gap_ms": [round(1e3 * gap, 1) for gap in gap_s],
        "chains": {
            name: {
                "steps": len(chain.steps),
                "rows of a slice": chain.program.meta["rows of a slice"],
                "step_us": {
                    "p50": round(statistics.median(chain.step_us), 1),
                    "max": round(max(chain.step_us), 1),
                    "sum": round(sum(chain.step_us), 1),
                },
            }
            for name, chain in chains.items()
        },
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "cpu-company.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")


COLUMNS = ("slowdown_p50", "slowdown_p99", "normal_per_s", "normal_share")

if __name__ == "__main__":
    main()
