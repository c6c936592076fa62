"""How long until Miriam is there: the import, the help of the command, a server that is ready.

    python benchmarks/start_times.py [--runs 15] [--out benchmarks/records]

Every run is a fresh process; the first of each kind, which may have to compile, does not count. The server has two
models in NumPy on the CPU device and must not import PyTorch (the models' file refuses to be loaded then).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from serving import Served, on_cpu

from miriam.bench.made import machine, versions

IMPORT = "import time; began = time.perf_counter(); import miriam; print(time.perf_counter() - began)"
GOALS_S = {"import": 0.15, "help": 0.3, "ready": 1.0}


def imported() -> float:
    """Seconds of ``import miriam`` within a fresh interpreter."""
    return float(subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout)


def helped() -> float:
    """Seconds from the begin to the end of ``miriam --help``."""
    began = time.monotonic()
    subprocess.run([str(Path(sys.executable).with_name("miriam")), "--help"], check=True, capture_output=True)
    return time.monotonic() - began


def ready() -> float:
    """Seconds from the begin of ``miriam serve`` until it is ready and says so over HTTP."""
    with tempfile.TemporaryDirectory() as folder, Served(Path(folder), on_cpu()) as server:
        return server.ready_s


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    kinds: dict[str, Callable[[], float]] = {"import": imported, "help": helped, "ready": ready}
    found: dict[str, dict[str, float]] = {}
    for name, measure in kinds.items():
        measure()
        times = [measure() for _ in range(options.runs)]
        found[name] = {
            "median_s": round(statistics.median(times), 4), "least_s": round(min(times), 4),
            "most_s": round(max(times), 4), "goal_s": GOALS_S[name],
        }  # fmt: skip
        print(
            "{:8} median {median_s:.3f} s, {least_s:.3f} to {most_s:.3f}, goal {goal_s} s".format(name, **found[name])
        )
    record = {
        "what": "seconds until Miriam is there, each in a fresh process",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine() | {"load_before": str(load_before)},
        "versions": versions(),
        "runs": options.runs,
        "times": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "start-times.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
