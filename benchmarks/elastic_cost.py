"""What being elastic costs a program that runs alone: elastic against unmodified kernels, on this machine's GPU.

    python benchmarks/elastic_cost.py --out FILE [--only resnet18-b32 ...] [--sms 16]

Both are one CUDA graph each over the same buffers, launched in turn, so clocks and caches are the
same for both. Before that the elastic program must give the output of the other to the bit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import time
from importlib.resources import files
from pathlib import Path

import miriam
from miriam import zoo
from miriam.device.cuda.driver import Event, Gpu, Graph, Stream
from miriam.device.cuda.elastic import ElasticCode, ElasticInstance
from miriam.device.cuda.instance import Code, Instance
from miriam.device.cuda.profiler import short_name
from miriam.elastic.dealing import share_sizes
from miriam.elastic.rewrite import Form
from miriam.program import Program


def machine(gpu: Gpu) -> dict[str, str]:
    """What a record says of where it was made."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    return {"gpu": gpu.name, "driver": driver, "cuda": gpu.driver_version, "miriam": miriam.__version__}


def outputs(instance: Instance) -> list[bytes]:
    """Everything that the program writes for its user, and what is left in its other buffers."""
    gpu = instance._gpu
    return [gpu.read(a, b.size_bytes) for a, b in zip(instance._memory, instance.program.buffers, strict=True)]


def in_turn_us(graphs: dict[str, Graph], stream: Stream, rounds: int) -> dict[str, list[float]]:
    """Times of each graph alone in us, launched one after another in turn."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    before, after = Event(), Event()
    for i in range(rounds + 10):
        for name, graph in graphs.items():
            before.record(stream)
            graph.launch(stream)
            after.record(stream)
            us = after.since_us(before)
            if i >= 10:
                times[name].append(us)
    before.close()
    after.close()
    return times


def measure(gpu: Gpu, program: Program, sms: int | None, rounds: int) -> dict[str, object]:
    """One program on the whole GPU or on ``sms`` SMs."""
    partition = gpu.partition(sms) if sms else None
    if partition:
        partition.activate()
    wide = partition.sms if partition else gpu.geometry.sms
    code, elastic_code = Code(program), ElasticCode(program)
    instance = Instance(gpu, program, code)
    instance.fill()
    each = share_sizes(program, zoo.profiles(), short_name(gpu.name), wide)
    elastic = ElasticInstance(gpu, instance, elastic_code, each)
    lane = elastic.lane(sms=wide)
    stream = partition.stream() if partition else Stream()
    graphs = {
        "plain": instance.graph(stream), "elastic": lane.graph(stream), "gate": lane.graph(stream, launches=[]),
    }  # fmt: skip
    found = {}
    for name in ("plain", "elastic"):
        graph = graphs[name]
        instance.fill()
        graph.launch(stream)
        stream.synchronize()
        found[name] = outputs(instance)
    times = in_turn_us(graphs, stream, rounds)
    median = {name: statistics.median(us) for name, us in times.items()}
    forms = [lane.form(i)[0] for i in range(len(program.launches))]
    facts = {
        "launches": len(program.launches),
        "equal": found["plain"] == found["elastic"],
        "plain_us": round(median["plain"], 2),
        "elastic_us": round(median["elastic"], 2),
        "gate_us": round(median["gate"], 2),
        "cost": round(median["elastic"] / median["plain"] - 1, 4),
        "direct": forms.count(Form.DIRECT),
        "strided": forms.count(Form.STRIDED),
    }
    for graph in graphs.values():
        graph.close()
    stream.close()
    lane.close()
    elastic.close()
    instance.close()
    elastic_code.close()
    code.close()
    if partition:
        partition.close()
    return facts


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--sms", nargs="*", type=int, default=[0, 16], help="0 is the whole GPU")
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    gpu = Gpu(0)
    programs: dict[str, dict[str, dict[str, object]]] = {}
    record = {
        "what": "what being elastic costs a program alone: one CUDA graph of its elastic kernels, gate included, "
        "against one of the unmodified kernels, launched in turn; medians; benchmarks/elastic_cost.py",
        "machine": machine(gpu),
        "date": datetime.date.today().isoformat(),
        "rounds": args.rounds,
        "programs": programs,
    }
    for path in sorted(Path(str(files("miriam.zoo") / "programs")).glob("*.miriam")):
        if args.only and path.stem not in args.only:
            continue
        program = Program.load(path)
        rows = {}
        for sms in args.sms:
            start = time.perf_counter()
            rows[str(sms or gpu.geometry.sms)] = facts = measure(gpu, program, sms or None, args.rounds)
            print(f"{path.stem:18} {sms or 'all':>4} {facts} {time.perf_counter() - start:.1f} s", flush=True)
        programs[path.stem] = rows
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    gpu.close()


if __name__ == "__main__":
    main()
