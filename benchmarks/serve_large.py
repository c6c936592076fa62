"""How long a tiny critical request waits beside large ones, over HTTP and gRPC, in messages and in shared memory.

    python benchmarks/serve_large.py [--seconds 4] [--rounds 3] [--mb 9.6] [--depth 2]

On the CPU device, with models that compute next to nothing: a critical one that takes 16 numbers, Poisson arrivals,
and a normal one that takes some megabytes and gives back the first number of them, in a closed loop. So what is
measured is the way to the model. A latency is from the moment at which a request was due to its answer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving import Served

from miriam.bench import Closed, Poisson
from miriam.bench.made import machine, versions
from miriam.load import Caller, Plan, Server, run

MODELS = """
def tiny():
    return lambda x: x + x

def large():
    return lambda x: x[:1].copy()
"""


def measured(url: str, shared: bool, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """A round of one way."""
    callers = [
        Caller("tiny", Poisson(options.rate), criticality=1),
        Caller("large", Closed(options.depth), criticality=0, shared_memory=shared),
    ]
    results = run(Plan(Server.of(url), callers, duration_s=options.seconds, seed=seed))
    found = {(point.alone, task.name): task for point in results.points for task in point.tasks}
    alone, together = found["tiny", "tiny"], found[None, "tiny"]
    if alone.response is None or together.response is None or alone.failed or together.failed:
        raise SystemExit(f"requests failed: {alone.failed}, {together.failed}")
    return {
        "p50_alone_us": alone.response.p50_us,
        "p99_alone_us": alone.response.p99_us,
        "p50_together_us": together.response.p50_us,
        "p99_together_us": together.response.p99_us,
        "large_per_s": found[None, "large"].throughput_per_s,
        "large_alone_per_s": found["large", "large"].throughput_per_s,
    }


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=9.6, help="MB of a large request")
    parser.add_argument("--depth", type=int, default=2, help="large requests at a time")
    parser.add_argument("--rate", type=float, default=200.0, help="tiny requests a second")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records", help="folder of the record")
    options = parser.parse_args()
    load_before, count = os.getloadavg()[0], int(options.mb * 1e6 / 4)
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.py").write_text(MODELS)
        config = f"""
device: cpu
ports: {{http: 0, grpc: 0, metrics: 0}}
models:
  tiny: {{factory: "large.py:tiny", example: [[16]], criticality: critical}}
  large: {{factory: "large.py:large", example: [[{count}]]}}
"""
        for seed in range(options.rounds):
            with Served(folder, config) as server:
                for protocol, url in (("HTTP", server.http), ("gRPC", server.grpc)):
                    for shared in (False, True):
                        way = f"{protocol}, {'shared memory' if shared else 'messages'}"
                        rows.setdefault(way, []).append(measured(url, shared, options, seed))
    middle: dict[str, dict[str, Any]] = {
        way: {key: round(statistics.median(row[key] for row in found), 1) for key in found[0]}
        for way, found in rows.items()
    }
    print(f"{'':21} {'tiny p50':>9} {'p99 alone':>10} {'p50':>8} {'p99 together':>13} {'large/s':>8} {'alone':>8}")
    for way, row in middle.items():
        print(
            f"{way:21} {row['p50_alone_us']:9.0f} {row['p99_alone_us']:10.0f} {row['p50_together_us']:8.0f} "
            f"{row['p99_together_us']:13.0f} {row['large_per_s']:8.1f} {row['large_alone_per_s']:8.1f}"
        )
    record = {
        "what": f"a tiny critical request beside requests of {options.mb:g} MB on the CPU device; medians and rounds",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine() | {"load_before": str(load_before)},
        "versions": versions(),
        "tiny_per_s": options.rate,
        "large_mb": options.mb,
        "depth": options.depth,
        "seconds": options.seconds,
        "ways": middle,
        "rounds": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "serve-large.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
