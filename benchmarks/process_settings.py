"""What `miriam serve` sets for its process, and what each setting is good for.

    python benchmarks/process_settings.py [--rounds 5] [--seconds 4] [--out benchmarks/records]

A server of the CPU device has two critical networks, a chain of small operators and a few convolutions, and a tiny
normal model in NumPy. A client asks a critical one every 5 to 15 ms, alone and while another process asks the tiny one
over four connections as fast as it can. Every way of setting takes its turn in every round, in a fresh process.
Then somebody looks at the live page and at traces all the time, and full collections of garbage are counted.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from miriam.bench.made import machine, versions

NETS = """
def tiny():
    return lambda x: x + x

def net(*layers):
    from torch import nn
    return nn.Sequential(*layers).eval()

def chain():
    from torch import nn
    return net(*(layer for _ in range(40) for layer in (nn.Linear(64, 64), nn.GELU())))

def convolutions():
    from torch import nn
    inner = (layer for _ in range(10) for layer in (nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)))
    return net(nn.Conv2d(3, 32, 3, padding=1), *inner)
"""
SHAPES: Mapping[str, Sequence[int]] = {"chain": (1, 64), "convolutions": (1, 3, 32, 32), "tiny": (1, 16)}
CRITICAL = ("chain", "convolutions")

# What the process would do by itself, then what is set, one by one and together.
SERVER = """
import gc, os, sys, time
from miriam.serve import process
with_, began, pauses = set(sys.argv[1].split("+")), [0.0], []
def begin():
    if "passive" in with_:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    if "interval" in with_:
        sys.setswitchinterval(process._SWITCH_S)
def heard(phase, about):
    if phase == "start":
        began[0] = time.perf_counter()
    elif about["generation"] == 2:
        pauses.append(1e3 * (time.perf_counter() - began[0]))
spare = process.spare if "spare" in with_ else lambda: None
def spared():
    spare()
    pauses.clear()
process.begin, process.spare = begin, spared
gc.callbacks.append(heard)
sys.argv = ["miriam", "serve", sys.argv[2]]
from miriam.cli import main
try:
    main()
finally:
    print("collections", len(pauses), max(pauses, default=0.0))
"""
LOAD = """
import http.client, sys, threading
def ask():
    client = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    while True:
        client.request("POST", "/v2/models/tiny/infer", sys.argv[2])
        client.getresponse().read()
for _ in range(4):
    threading.Thread(target=ask).start()
"""
WAYS = ("nothing", "passive", "interval", "spare", "passive+interval", "passive+interval+spare")


def body(model: str) -> str:
    """A request of a model."""
    shape = SHAPES[model]
    data = [0.5] * math.prod(shape)
    return json.dumps({"inputs": [{"name": "input0", "datatype": "FP32", "shape": shape, "data": data}]})


class Served:
    """A server in a process of its own, with its settings."""

    def __init__(self, way: str, folder: Path) -> None:
        environment = dict(os.environ) | {"GRPC_ENABLE_FORK_SUPPORT": "0"}
        environment.pop("OMP_WAIT_POLICY", None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, way, str(folder / "serve.yaml")], stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        said = ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said += line
            if line == "ready\n":
                break
        found = re.search(r"HTTP .*:(\d+)", said)
        if found is None:
            raise SystemExit(f"the server did not come up; it said:\n{said}")
        self.port = int(found[1])

    def ask(self, model: str, seconds: float) -> list[float]:
        """Latencies of one request after another, in milliseconds."""
        client, gap, found = http.client.HTTPConnection("127.0.0.1", self.port), random.Random(1), []
        asked, end = body(model), time.perf_counter() + seconds
        while time.perf_counter() < end:
            time.sleep(gap.uniform(0.005, 0.015))
            began = time.perf_counter()
            client.request("POST", f"/v2/models/{model}/infer", asked)
            answer = client.getresponse()
            answer.read()
            assert answer.status == 200
            found.append(1e3 * (time.perf_counter() - began))
        return found

    def watch(self, seconds: float) -> None:
        """Look at the live page and at traces, all the time."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for path in ("/live.json", "/v2/trace", "/v2/trace?form=perfetto"):
                client = http.client.HTTPConnection("127.0.0.1", self.port)
                client.request("GET", path)
                client.getresponse().read()
                client.close()

    def end(self) -> tuple[int, float]:
        """Full collections since it was ready, and the longest, in milliseconds."""
        self._process.terminate()
        found = re.search(r"collections (\d+) (\S+)", self._process.communicate()[0])
        assert found is not None
        return int(found[1]), float(found[2])


def measure(way: str, seconds: float, folder: Path, found: defaultdict[str, list[float]]) -> None:
    """One server with its settings, alone, beside load, and looked at."""
    server = Served(way, folder)
    load = None
    try:
        for model in CRITICAL:
            server.ask(model, 0.5)
        for name in ("alone", "beside"):
            if name == "beside":
                load = subprocess.Popen([sys.executable, "-c", LOAD, str(server.port), body("tiny")])
                time.sleep(0.5)
            for model in CRITICAL:
                latencies = sorted(server.ask(model, seconds))
                for q in (50, 99):
                    found[f"{model} {name} p{q}_ms"].append(latencies[len(latencies) * q // 100])
        server.watch(2 * seconds)
    finally:
        if load is not None:
            load.kill()
            load.wait()
        count, longest_ms = server.end()
    found["full collections"].append(count)
    found["longest collection_ms"].append(longest_ms)


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    found: dict[str, defaultdict[str, list[float]]] = {way: defaultdict(list) for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nets.py").write_text(NETS)
        models = "".join(
            f"  {model}: {{factory: 'nets.py:{model}', example: [{list(shape)}], "
            f"criticality: {'critical' if model in CRITICAL else 'normal'}}}\n"
            for model, shape in SHAPES.items()
        )
        (folder / "serve.yaml").write_text(f"device: cpu\nports: {{http: 0, grpc: 0, metrics: 0}}\nmodels:\n{models}")
        for _ in range(options.rounds):
            for way in WAYS:
                measure(way, options.seconds, folder, found[way])
    every = {way: {key: [round(x, 2) for x in all_] for key, all_ in rows.items()} for way, rows in found.items()}
    medians = {way: {key: statistics.median(all_) for key, all_ in rows.items()} for way, rows in every.items()}
    for key in medians[WAYS[0]]:
        print(f"{key:28}", ", ".join(f"{way} {medians[way][key]:.2f}" for way in WAYS))
    record = {
        "what": "medians over rounds: latencies of critical requests in ms, by what is set for the server's process",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine() | {"load_before": str(load_before)},
        "versions": versions(),
        "rounds": options.rounds,
        "medians": medians,
        "all": every,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "process-settings.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
