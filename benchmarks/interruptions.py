"""Interrupt elastic programs at random times on this machine's GPU, and see that they are right and leave soon.

    python benchmarks/interruptions.py --out FILE [--only gru-b1 ...] [--inferences 120] [--samples 200] [--part 0/1]
    python benchmarks/interruptions.py --out FILE --merge FILE ...

*Storm*: inferences are interrupted (see interrupting.py) and have to leave the bits that the
unmodified kernels leave.

*Leaving*: times by the GPU's own clock, over random moments of exclusive passes on the whole GPU, from the
moment that the limit became 0.

- ``leaving_us``: until the launch that was running then had ended, that is, until the last worker that
  computes was gone. A launch behind it computes nothing: before it comes, the clock is read once
  more by a kernel of its own, and its workers find the limit at 0.
- ``walked_us``: until the launch that says where the pass stopped had ended. That can be much later: a pass
  that goes on after an earlier stop walks over the launches that are complete already, whose workers leave
  at once without looking at the limit, and only the first launch that is not complete sees that it
  changed. Nobody computes in that time, so whoever wants the GPU has it.

``--merge`` makes one record of what several runs wrote (``tests/gpu/prove.sh``).
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import struct
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from elastic_cost import machine
from interrupting import Interrupter

from miriam import zoo
from miriam.device.cuda.driver import Gpu, Module, Stream
from miriam.device.cuda.elastic import ElasticCode, ElasticInstance
from miriam.device.cuda.instance import Instance
from miriam.device.cuda.profiler import short_name
from miriam.elastic.dealing import share_sizes
from miriam.elastic.state import ALL, MAX_LAUNCHES, NONE
from miriam.program import Program

COUNTS = ("inferences", "wrong", "passes", "stopped", "moves", "shared")
GOAL_US = 30.0

CLOCK = b"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry stamp(.param .u64 where) .reqntid 1 {
	.reg .b64 %t, %w;
	ld.param.u64 %w, [where];
	mov.u64 %t, %globaltimer;
	st.global.u64 [%w], %t;
	ret;
}
.visible .entry raise(.param .u64 where, .param .u64 limit, .param .u64 delay) .reqntid 16 {
	.reg .pred %p;
	.reg .b32 %i;
	.reg .b64 %t, %w, %l, %d;
	ld.param.u64 %w, [where];
	ld.param.u64 %l, [limit];
	ld.param.u64 %d, [delay];
	mov.u64 %t, %globaltimer;
	add.u64 %d, %d, %t;
$wait:
	mov.u64 %t, %globaltimer;
	setp.lt.u64 %p, %t, %d;
	@%p bra $wait;
	mov.u32 %i, %tid.x;
	mad.wide.u32 %l, %i, 128, %l;
	st.relaxed.gpu.global.u32 [%l], 0;
	st.global.u64 [%w], %t;
	ret;
}
\0"""


def storm(gpu: Gpu, program: Program, inferences: int, seed: int) -> dict[str, int]:
    """Interrupt ``inferences`` inferences, and count."""
    interrupter = Interrupter(gpu, program, seed)
    for _ in range(inferences):
        interrupter.inference()
    interrupter.close()
    return {name: interrupter.counts[name] for name in COUNTS}


def leaving_us(gpu: Gpu, program: Program, samples: int, seed: int) -> list[tuple[float, float]]:
    """Pairs of ``leaving_us`` and ``walked_us``, as said above, at random moments of an exclusive pass."""
    chance = random.Random(seed)
    clock = Module(CLOCK)
    stamp, rise = clock.function("stamp"), clock.function("raise")
    elastic_code = ElasticCode(program)
    instance = Instance(gpu, program)
    instance.fill(seed)
    each = share_sizes(program, zoo.profiles(), short_name(gpu.name), gpu.geometry.sms)
    elastic = ElasticInstance(gpu, instance, elastic_code, each)
    lane = elastic.lane()
    stream, control = Stream(), Stream(priority=-5)
    count = len(program.launches)
    stamps = gpu.allocate(8 * (count + 1))
    stream.begin_capture()
    lane.enqueue(stream, launches=[])
    for i in range(count):
        lane.launch(stream, i)
        stamp.launch(stream, (1, 1, 1), (1, 1, 1), 0, [(stamps + 8 * i).to_bytes(8, "little")])
    graph = stream.end_capture()
    for _ in range(3):
        start = time.perf_counter()
        graph.launch(stream)
        stream.synchronize()
        whole_ns = int((time.perf_counter() - start) * 1e9)
    found = []
    for _ in range(samples):
        lane.limit(control, ALL)
        control.synchronize()
        delay = chance.randrange(10_000, 10_000 + whole_ns)
        rise.launch(control, (1, 1, 1), (16, 1, 1), 0, [
            (stamps + 8 * count).to_bytes(8, "little"), lane._record.to_bytes(8, "little"), delay.to_bytes(8, "little"),
        ])  # fmt: skip
        graph.launch(stream)
        stream.synchronize()
        control.synchronize()
        record = lane.record
        if record.stop != NONE and record.first != MAX_LAUNCHES:
            times = struct.unpack(f"<{count + 1}Q", gpu.read(stamps, 8 * (count + 1)))
            raised = times[count]
            running = next(end for end in times[: record.stop + 1] if end >= raised or end == times[record.stop])
            found.append((max(0, running - raised) / 1e3, (times[record.stop] - raised) / 1e3))
    graph.close()
    gpu.free(stamps)
    stream.close()
    control.close()
    lane.close()
    elastic.close()
    instance.close()
    elastic_code.close()
    clock.close()
    return found


def summary(times: list[float]) -> dict[str, float]:
    """What is worth knowing of some times."""
    ordered = sorted(times)
    return {
        "samples": len(ordered), "p50": round(statistics.median(ordered), 2),
        "p90": round(ordered[int(0.9 * len(ordered))], 2), "p99": round(ordered[int(0.99 * len(ordered))], 2),
        "max": round(ordered[-1], 2), "within_goal": round(sum(us <= GOAL_US for us in ordered) / len(ordered), 4),
    }  # fmt: skip


def both(pairs: list[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Both times of some moments."""
    return {what: summary([pair[at] for pair in pairs]) for at, what in enumerate(("leaving_us", "walked_us"))}


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of the records of several runs: each program's storm, and its moments, with sums over all."""
    storms: dict[str, dict[str, int]] = {}
    moments: dict[str, list[tuple[float, float]]] = {}
    for part in parts:
        for name, facts in part["programs"].items():
            if "inferences" in facts:
                storms[name] = {count: facts[count] for count in COUNTS}
            if "samples_us" in facts:
                moments[name] = [(leaving, walked) for leaving, walked in facts["samples_us"]]
    sets: dict[str, list[tuple[float, float]]] = {"tuned": [], "naive": []}
    for name, pairs in moments.items():
        sets["naive" if "-naive-" in name else "tuned"] += pairs
    return {
        "what": "inferences interrupted at random, results compared to the bit with an uninterrupted run of the "
        "unmodified kernels; and times from the limit going to 0 (benchmarks/interruptions.py says which)",
        "machine": parts[0]["machine"],
        "date": max(part["date"] for part in parts),
        "goal_us": GOAL_US,
        "total": {count: sum(storm[count] for storm in storms.values()) for count in COUNTS},
        "leaving": {kind: both(pairs) for kind, pairs in sets.items() if pairs},
        "programs": {
            name: {
                **({"storm": storms[name]} if name in storms else {}),
                **(both(moments[name]) if name in moments else {}),
            }
            for name in sorted({*storms, *moments})
        },
    }


def main() -> None:
    """Interrupt what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--inferences", type=int, default=120, help="of each program; 0 for no storm")
    parser.add_argument("--samples", type=int, default=200, help="of leaving, of each program; 0 for none")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th program, from the i-th on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", nargs="+", type=Path, help="records of runs, to make one of; nothing is run")
    args = parser.parse_args()
    if args.merge:
        parts = [json.loads(path.read_text()) for path in args.merge]
        args.out.write_text(json.dumps(merged(parts), indent=1) + "\n")
        return
    gpu = Gpu(0)
    programs: dict[str, dict[str, object]] = {}
    record = {"machine": machine(gpu), "date": datetime.date.today().isoformat(), "programs": programs}
    first, step = map(int, args.part.split("/"))
    for path in sorted(Path(str(files("miriam.zoo") / "programs")).glob("*.miriam"))[first::step]:
        if args.only and path.stem not in args.only:
            continue
        start = time.perf_counter()
        program = Program.load(path)
        facts: dict[str, object] = {}
        if args.inferences:
            facts.update(storm(gpu, program, args.inferences, args.seed))
        if args.samples:
            left = leaving_us(gpu, program, args.samples, args.seed)
            facts.update(both(left))
            facts["samples_us"] = [[round(a, 2), round(b, 2)] for a, b in left]
        programs[path.stem] = facts
        shown = {what: fact for what, fact in facts.items() if what != "samples_us"}
        print(f"{path.stem:18} {shown} {time.perf_counter() - start:.1f} s", flush=True)
        args.out.write_text(json.dumps(record, indent=1))
    gpu.close()


if __name__ == "__main__":
    main()
