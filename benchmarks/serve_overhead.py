"""What the server costs a request over a direct call, and how many requests a second it answers.

    python benchmarks/serve_overhead.py [--seconds 4] [--rounds 5] [--out benchmarks/records]

Latency: ``small`` (a little NumPy), one request after another: called as a function, through ``miriam.Runtime`` in
this process, and through the server over gRPC and HTTP; and over gRPC from a process that answers without a model,
which is what the client and the protocol take. These take turns in every round. Throughput: ``tiny`` (one addition),
several requests at a time. Server and clients are processes of their own on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import uvloop
from serving import SHAPES, Served, factories, on_cpu

import miriam
from miriam.bench import Closed
from miriam.bench.made import machine, versions
from miriam.bench.metrics import TaskMetrics, latency
from miriam.load import Caller, Plan, Server, run
from miriam.serve import process

AT_ONCE = (1, 4, 16, 64)  # requests outstanding, for throughput
WARM_UP_S = 0.5


@dataclass
class Way:
    """What was measured of one way to call the small model, a value for each round."""

    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, found: Any) -> None:
        """A round's :class:`miriam.bench.metrics.Latency`."""
        self.p50_us.append(found.p50_us)
        self.p99_us.append(found.p99_us)
        self.count += found.count


def direct(call: Callable[[np.ndarray], object], x: np.ndarray, seconds: float) -> Any:
    """Latencies of calls in this process, one after another."""
    begin = time.perf_counter()
    gc.collect()
    gc.disable()
    times = []
    while (now := time.perf_counter()) < begin + seconds:
        call(x)
        if now > begin + WARM_UP_S:
            times.append((time.perf_counter() - now) * 1e6)
    gc.enable()
    return latency(times)


def served(url: str, model: str, depth: int, seconds: float) -> tuple[TaskMetrics, float, Sequence[str]]:
    """A closed loop through the server: what came of it, the client's us a request, and notes."""
    plan = Plan(Server.of(url), [Caller(model, Closed(depth))], duration_s=seconds, warm_up_s=WARM_UP_S)
    results = run(plan)
    (task,) = results.points[0].tasks
    if task.failed:
        raise SystemExit(f"{url}: requests failed: {task.failed}")
    return task, results.points[0].report[f"{model}_client_us"], results.notes


async def answer() -> None:
    """Serve what looks like the small model, without a model: say the port, and answer until the process ends."""
    from tritonclient.grpc import service_pb2 as messages

    tensor = messages.ModelMetadataResponse.TensorMetadata(name="input0", datatype="FP32", shape=SHAPES["small"])
    answers = {
        "ModelMetadata": messages.ModelMetadataResponse(name="small", inputs=[tensor]),
        "ModelConfig": messages.ModelConfigResponse(),
        "ModelInfer": messages.ModelInferResponse(
            model_name="small",
            outputs=[messages.ModelInferResponse.InferOutputTensor(name="output0", datatype="FP32", shape=[256])],
            raw_output_contents=[bytes(1024)],
        ),
    }

    def handler(given: bytes) -> Any:
        async def call(request: bytes, context: Any) -> bytes:
            return given

        return grpc.unary_unary_rpc_method_handler(call)

    handlers = {name: handler(one.SerializeToString()) for name, one in answers.items()}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.Event().wait()


@contextmanager
def answering() -> Iterator[str]:
    """The URL of `answer` in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, "--answer"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"grpc://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        process.begin()  # as the server does
        uvloop.run(answer())
    load_before = os.getloadavg()[0]
    small = factories()["small"]()  # type: ignore[operator]
    x = np.random.default_rng(0).standard_normal(SHAPES["small"], np.float32)
    ways = {name: Way() for name in ("function", "runtime", "answer", "grpc", "http")}
    rates: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Served(Path(folder), on_cpu()) as server,
        answering() as empty,
    ):
        urls = {"grpc": server.grpc, "http": server.http}
        for _ in range(options.rounds):
            ways["function"].add(direct(small, x, options.seconds))
            with miriam.Runtime("cpu") as runtime:
                ways["runtime"].add(direct(runtime.load(small, x, name="small"), x, options.seconds))
            for name, url in (urls | {"answer": empty}).items():
                ways[name].add(served(url, "small", 1, options.seconds)[0].response)
        for depth in AT_ONCE:
            for name, url in urls.items():
                cpu_s = server.cpu_s()
                began = time.monotonic()
                task, client_us, notes = served(url, "tiny", depth, options.seconds)
                assert task.response is not None
                busy = (server.cpu_s() - cpu_s) / (time.monotonic() - began)
                rates.append(
                    {
                        "protocol": name, "at_once": depth, "per_s": round(task.throughput_per_s),
                        "p50_us": round(task.response.p50_us), "p99_us": round(task.response.p99_us),
                        "client_us": round(client_us), "server_cores": round(busy, 2), "notes": list(notes),
                    }
                )  # fmt: skip
    medians = {
        name: {"p50_us": round(statistics.median(way.p50_us)), "p99_us": round(statistics.median(way.p99_us)),
               "count": way.count, "p50_us_rounds": [round(v) for v in way.p50_us],
               "p99_us_rounds": [round(v) for v in way.p99_us]}
        for name, way in ways.items()
    }  # fmt: skip
    over = {
        name: {key: medians[name][key] - medians["runtime"][key] for key in ("p50_us", "p99_us")}
        for name in ("grpc", "http")
    }
    print(f"{'small':10} {'p50 us':>8} {'p99 us':>8}   over the runtime")
    for name, way in medians.items():
        more = f"   +{over[name]['p50_us']} / +{over[name]['p99_us']}" if name in over else ""
        print(f"{name:10} {way['p50_us']:8} {way['p99_us']:8}{more}")
    print(f"\n{'tiny':10} {'at once':>8} {'/s':>8} {'p50 us':>8} {'p99 us':>8} {'client us':>10} {'server cores':>13}")
    for rate in rates:
        print(
            "{protocol:10} {at_once:8} {per_s:8} {p50_us:8} {p99_us:8} {client_us:10} {server_cores:13}".format(**rate)
        )
    record = {
        "what": "latency through the server over a direct call, and requests a second; medians over rounds",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine() | {"load_before": str(load_before)},
        "versions": versions(),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "latency": medians,
        "overhead": over,
        "throughput": rates,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "serve-overhead.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
