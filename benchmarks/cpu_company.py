"""What a critical network loses on the CPU device beside a saturating normal one, and beside it in plain threads.

    python benchmarks/cpu_company.py [--requests 600] [--rounds 6] [--out benchmarks/records]

Critical: ResNet-34, batch 1; the time between two requests is random, two to four times what one takes alone.
Normal: ResNet-18, batch 16, one request after another. In both ways two threads ask, each for one network:
of a runtime on the CPU device, or by calling the module themselves. Alone and together take turns in every
round, and a slowdown is against the same way alone. A latency is from the time at which a request was due.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import miriam
from miriam.zoo.models import MODELS

BATCH = 16
GAP = (2.0, 4.0)  # between two critical requests, in what one takes alone: never two at a time, in step with nobody
COLUMNS = ("slowdown_p50", "slowdown_p99", "normal_per_s", "normal_share")


@dataclass
class Measured:
    """Latencies of critical requests; normal requests that were answered, and in how much time."""

    latency_ms: list[float] = field(default_factory=list)
    normal: int = 0
    spent_s: float = 0.0


def ask(networks: Mapping[str, Callable[[], Any]], due_s: Sequence[float], measured: Measured) -> None:
    """Let a thread for each network ask, until the last critical request is through or would have been due."""
    over = threading.Event()
    begin_s = time.perf_counter() + 0.05

    def critical() -> None:
        for at_s in due_s:
            time.sleep(max(0.0, begin_s + at_s - time.perf_counter()))
            networks["critical"]()
            measured.latency_ms.append(1e3 * (time.perf_counter() - begin_s - at_s))
        over.set()

    def normal() -> None:
        end_s = begin_s + due_s[-1]
        while not over.is_set() and ("critical" in networks or time.perf_counter() < end_s):
            networks["normal"]()
            measured.normal += 1

    threads = [threading.Thread(target=critical if name == "critical" else normal) for name in networks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured.spent_s += time.perf_counter() - begin_s


def plain(module: torch.nn.Module, given: torch.Tensor) -> Callable[[], Any]:
    """What a thread does that calls a module itself."""

    def call() -> Any:
        with torch.no_grad():
            return module(given)

    return call


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
        "miriam": miriam.__version__,
    }


def row(what: str, found: Measured, alone: Measured, normal_alone: Measured) -> dict[str, Any]:
    """A line of the table; ``alone`` and ``normal_alone``: the same way without the other network."""
    line: dict[str, Any] = {"what": what}
    if found.latency_ms:
        quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        line["requests"] = len(found.latency_ms)
        line["latency_ms"] = {
            name: round(float(np.quantile(found.latency_ms, share)), 2) for name, share in quantiles.items()
        }
    if found.normal:
        line["normal_per_s"] = round(BATCH * found.normal / found.spent_s, 1)
    if found.latency_ms and found.normal:
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            ratio = np.quantile(found.latency_ms, share) / np.quantile(alone.latency_ms, share)
            line[f"slowdown_{name}"] = round(float(ratio), 3)
        rate = (found.normal / found.spent_s) / (normal_alone.normal / normal_alone.spent_s)
        line["normal_share"] = round(rate, 3)
    return line


def main() -> None:
    """Print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600, help="critical ones of each row, over all rounds")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records", help="folder of the record")
    options = parser.parse_args()

    load = os.getloadavg()[0]
    torch.manual_seed(0)
    modules = {"critical": MODELS["resnet34"].make().eval(), "normal": MODELS["resnet18"].make().eval()}
    given = {"critical": torch.randn(1, 3, 224, 224), "normal": torch.randn(BATCH, 3, 224, 224)}
    rng = random.Random(0)
    with miriam.Runtime("cpu") as rt:
        loaded = {name: rt.load(module, given[name], name=name, criticality=name) for name, module in modules.items()}
        networks: dict[str, dict[str, Callable[[], Any]]] = {
            "CPU device": {name: lambda one=one, name=name: one(given[name]) for name, one in loaded.items()},
            "plain threads": {name: plain(module, given[name]) for name, module in modules.items()},
        }
        gc.collect()
        gc.freeze()  # what is there now stays: to look through all of PyTorch takes as long as a request
        alone_ms = statistics.median(_timed_ms(networks["CPU device"]["critical"]) for _ in range(15))
        found: dict[str, dict[str, Measured]] = {
            how: {who: Measured() for who in ("critical", "normal", "both")} for how in networks
        }
        for _ in range(options.rounds):
            at_s, due_s = 0.0, []
            for _ in range(options.requests // options.rounds):
                at_s += rng.uniform(*GAP) * alone_ms / 1e3
                due_s.append(at_s)
            for how, both in networks.items():
                for who, measured in found[how].items():
                    ask(both if who == "both" else {who: both[who]}, due_s if who != "normal" else due_s[:20], measured)
        chains = {name: one.task.program for name, one in loaded.items()}
        notes = rt.notes
    rows = [
        row(f"{how}, {who}", measured, ways["critical"], ways["normal"])
        for how, ways in found.items()
        for who, measured in ways.items()
    ]
    print(f"{'':26} {'p50 ms':>8} {'p99 ms':>8} {'slowdown':>9} {'p99':>7} {'images/s':>9} {'share':>6}")
    for line in rows:
        latency = line.get("latency_ms", {})
        cells = [latency.get("p50", ""), latency.get("p99", ""), *(line.get(name, "") for name in COLUMNS)]
        print(f"{line['what']:26} {cells[0]:>8} {cells[1]:>8} {cells[2]:>9} {cells[3]:>7} {cells[4]:>9} {cells[5]:>6}")
    record = {
        "what": "a critical ResNet-34 (batch 1) beside a saturating ResNet-18 (batch 16): CPU device and plain threads",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_before": round(load, 2),
        "threads": torch.get_num_threads(),
        "waiting": os.environ.get("OMP_WAIT_POLICY", "the library's default"),
        "rounds": options.rounds,
        "gap_ms": [round(share * alone_ms, 1) for share in GAP],
        "chains": {
            name: {"steps": len(program.launches), "rows of a slice": program.meta["rows of a slice"]}
            for name, program in chains.items()
        },
        "notes": notes,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "cpu-company.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")


def _timed_ms(call: Callable[[], Any]) -> float:
    begin_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin_s)


if __name__ == "__main__":
    main()
