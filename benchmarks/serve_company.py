"""A critical network beside a normal one through the server, and through the library in one process.

    python benchmarks/serve_company.py --device cuda:0 [--policy resident] [--seconds 6] [--rounds 3] [--messages]

The pair of ``miriam bench pair``: a critical ResNet-34 of batch 1, Poisson arrivals, and a ResNet-18 of batch 32 in
a closed loop, two at a time, so that none waits for the way back. Their weights are random numbers: what
they answer means nothing. Inputs lie in shared memory that the server reads; with --messages they are sent. Each way
is measured alone and together in every round; a slowdown is against the same way alone. A latency is from the moment
at which a request was due to its answer.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from serving import Served

import miriam
from miriam import zoo
from miriam.bench import Closed, Poisson
from miriam.bench.made import machine, versions
from miriam.load import Caller, Plan, Server, run
from miriam.program import Program
from miriam.runtime import Loaded

PAIR = {"critical": "resnet34-b1", "normal": "resnet18-b32"}
DEPTH, WARM_UP_S = 2, 0.5


@dataclass
class Measured:
    """A way: p99 of critical latency and normal requests a second, a value for each round."""

    alone_us: list[float] = field(default_factory=list)
    together_us: list[float] = field(default_factory=list)
    normal_alone: list[float] = field(default_factory=list)
    normal_per_s: list[float] = field(default_factory=list)

    @property
    def slowdowns(self) -> list[float]:
        """Of p99, by round."""
        return [t / a for t, a in zip(self.together_us, self.alone_us, strict=True)]

    def row(self) -> dict[str, Any]:
        """For the record."""
        return {
            "p99_alone_us": [round(v) for v in self.alone_us],
            "p99_together_us": [round(v) for v in self.together_us],
            "slowdown_p99": [round(v, 3) for v in self.slowdowns],
            "slowdown_p99_median": round(statistics.median(self.slowdowns), 3),
            "normal_per_s": [round(v, 1) for v in self.normal_per_s],
            "normal_alone_per_s": [round(v, 1) for v in self.normal_alone],
        }


def with_weights(name: str) -> Program:
    """A program of the zoo with random weights."""
    program, rng = zoo.load(name), np.random.default_rng(0)
    filled = tuple(
        b if b.data is not None or b.role != "weight" else replace(b, data=_small_numbers(b.size_bytes, rng))
        for b in program.buffers
    )
    return replace(program, buffers=filled)


def _small_numbers(size_bytes: int, rng: np.random.Generator) -> bytes:
    return (0.05 * rng.standard_normal(-(-size_bytes // 2))).astype(np.float16).tobytes()[:size_bytes]


def ask(tasks: Mapping[str, Loaded], rate_per_s: float, seconds: float, seed: int) -> tuple[list[float], float]:
    """Latencies of the critical task in us, and normal requests a second; of the tasks that there are."""
    given = {name: [np.ones(s.shape, s.dtype) for s in task.inputs] for name, task in tasks.items()}
    due_s = Poisson(rate_per_s).times_us(seconds * 1e6, np.random.default_rng(seed)) / 1e6
    latencies: list[float] = []
    answered = [0]
    begin_s = time.perf_counter() + 0.05

    def critical() -> None:
        for at_s in due_s:
            time.sleep(max(0.0, begin_s + at_s - time.perf_counter()))
            response = tasks["critical"].submit(*given["critical"], raw=True)
            response.add_done_callback(lambda _, at_s=at_s: note(at_s, time.perf_counter()))

    def note(at_s: float, now_s: float) -> None:
        if at_s > WARM_UP_S:
            latencies.append(1e6 * (now_s - begin_s - at_s))

    def normal() -> None:
        flying = deque(tasks["normal"].submit(*given["normal"], raw=True) for _ in range(DEPTH))
        while time.perf_counter() < begin_s + seconds:
            flying.popleft().result()
            answered[0] += time.perf_counter() > begin_s + WARM_UP_S
            flying.append(tasks["normal"].submit(*given["normal"], raw=True))
        for response in flying:
            response.result()

    threads = [threading.Thread(target={"critical": critical, "normal": normal}[name]) for name in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, answered[0] / (seconds - WARM_UP_S)


def library(options: argparse.Namespace, files: Mapping[str, Path], seed: int, into: Measured) -> None:
    """A round in this process."""
    device, policy, rate_per_s, seconds = options.device, options.policy, options.rate, options.seconds
    with miriam.Runtime(device, policy=policy) as rt:
        tasks = {name: rt.load(path, name=name, criticality=name) for name, path in files.items()}
        for task in tasks.values():
            task(*(np.ones(s.shape, s.dtype) for s in task.inputs))
        gc.collect()
        gc.freeze()
        alone, _ = ask({"critical": tasks["critical"]}, rate_per_s, seconds, seed)
        _, normal_alone = ask({"normal": tasks["normal"]}, rate_per_s, seconds, seed)
        together, normal = ask(tasks, rate_per_s, seconds, seed)
    into.alone_us.append(float(np.quantile(alone, 0.99)))
    into.together_us.append(float(np.quantile(together, 0.99)))
    into.normal_alone.append(normal_alone)
    into.normal_per_s.append(normal)


def served(url: str, options: argparse.Namespace, seed: int, into: Measured) -> Sequence[str]:
    """A round through the server; what the load generator has to say."""
    shared = not options.messages
    callers = [
        Caller("critical", Poisson(options.rate), criticality=1, shared_memory=shared),
        Caller("normal", Closed(DEPTH), criticality=0, shared_memory=shared),
    ]
    results = run(Plan(Server.of(url), callers, duration_s=options.seconds, warm_up_s=WARM_UP_S, seed=seed))
    found = {(point.alone, task.name): task for point in results.points for task in point.tasks}
    for alone, values in ((True, into.alone_us), (False, into.together_us)):
        task = found["critical" if alone else None, "critical"]
        if task.response is None or task.failed:
            raise SystemExit(f"critical requests failed: {task.failed}")
        values.append(task.response.p99_us)
    into.normal_alone.append(found["normal", "normal"].throughput_per_s)
    into.normal_per_s.append(found[None, "normal"].throughput_per_s)
    return results.notes


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True, help="cuda:0, cuda:0/16, or sim:h200 to try the script")
    parser.add_argument("--policy", default="resident")
    parser.add_argument("--rate", type=float, default=200.0, help="critical requests a second")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", action="store_true", help="send inputs to the server in messages")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records", help="folder of the record")
    options = parser.parse_args()
    load_before, ways, notes = os.getloadavg()[0], {"library": Measured(), "server": Measured()}, set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {task: folder / f"{task}.miriam" for task in PAIR}
        for task, path in files.items():
            with_weights(PAIR[task]).save(path)
        config = f"device: {options.device}\npolicy: {options.policy}\n"
        config += "ports: {http: 0, grpc: 0, metrics: 0}\nmodels:\n"
        config += "".join(f"  {task}: {{program: {path}, criticality: {task}}}\n" for task, path in files.items())
        for seed in range(options.rounds):
            library(options, files, seed, ways["library"])
            with Served(folder, config) as server:
                notes.update(served(server.grpc, options, seed, ways["server"]))
    rows = {way: measured.row() for way, measured in ways.items()}
    for note in sorted(notes):
        print(note)
    print(f"{'':10} {'p99 alone us':>13} {'together':>10} {'slowdown':>9} {'normal/s':>9} {'alone':>8}")
    for way, row in rows.items():
        middle = {key: statistics.median(values) for key, values in row.items() if isinstance(values, list)}
        print(
            f"{way:10} {middle['p99_alone_us']:13.0f} {middle['p99_together_us']:10.0f} {middle['slowdown_p99']:9.3f} "
            f"{middle['normal_per_s']:9.1f} {middle['normal_alone_per_s']:8.1f}"
        )
    record = {
        "what": "a critical ResNet-34 (batch 1) beside a ResNet-18 (batch 32), through the server and without",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine() | {"load_before": str(load_before)},
        "versions": versions(),
        "device": options.device,
        "simulated": options.device.startswith("sim:"),
        "policy": options.policy,
        "inputs": "in messages" if options.messages else "in shared memory",
        "critical_per_s": options.rate,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "ways": rows,
        "notes": sorted(notes),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    device = options.device.replace(":", "-").replace("/", "-")
    path = options.out / f"serve-company-{device}{'-messages' if options.messages else ''}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
