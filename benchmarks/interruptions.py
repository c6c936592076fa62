"""Interrupt elastic programs at random times on this machine's GPU, and see that they are right and leave soon.

    python benchmarks/interruptions.py --out FILE [--only gru-b1 ...] [--inferences 120] [--samples 200]

*Storm*: every inference runs through passes of all kinds (the whole GPU, looped with any width, in
a partition, two partitions that share the work), whose limits change at random while they run; its
buffers are poisoned before, and must hold the bits of an uninterrupted run of the unmodified
kernels behind. *Leaving*: the time from the moment that the limit became 0 until the last worker
of the launch that stopped was gone, by the GPU's own clock, over random moments of the program.
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

from miriam.device.cuda.driver import Gpu, Module, Stream
from miriam.device.cuda.elastic import ElasticCode, ElasticInstance
from miriam.device.cuda.instance import Code, Instance
from miriam.elastic.state import ALL, MAX_LAUNCHES, NONE
from miriam.program import Program, Role

WIDTH = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "uint32": 4, "int64": 8, "uint8": 1, "int8": 1}

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


def contents(gpu: Gpu, instance: Instance) -> list[bytes]:
    """What every buffer holds that the program writes."""
    return [
        gpu.read(address, buffer.size_bytes)
        for address, buffer in zip(instance._memory, instance.program.buffers, strict=True)
        if buffer.role in (Role.OUTPUT, Role.INTERMEDIATE)
    ]


def results(gpu: Gpu, instance: Instance) -> list[bytes]:
    """The outputs alone."""
    size = {
        t.name: sum((n - 1) * s for n, s in zip(t.shape, t.strides, strict=True)) + 1 for t in instance.program.outputs
    }
    width = {"float16": 2, "bfloat16": 2, "float32": 4, "int64": 8, "int32": 4}
    return [instance.read(t, size[t.name] * width[t.dtype]) for t in instance.program.outputs]


def poison(stream: Stream, instance: Instance) -> None:
    """Overwrite what a program writes with NaNs."""
    for address, buffer in zip(instance._memory, instance.program.buffers, strict=True):
        if buffer.role in (Role.OUTPUT, Role.INTERMEDIATE) and buffer.size_bytes >= 4:
            stream.fill(address, 0xFFFFFFFF, 4, buffer.size_bytes // 4)


def storm(gpu: Gpu, program: Program, inferences: int, seed: int) -> dict[str, object]:
    """Interrupt ``inferences`` inferences."""
    chance = random.Random(seed)
    sms = gpu.geometry.sms
    partitions = [gpu.partition(16), gpu.partition(32)]
    gpu.activate()
    code, elastic_code = Code(program), ElasticCode(program)
    instance = Instance(gpu, program, code)
    instance.fill(seed)
    each = [chance.choice((1, 1, 2, 3, 7)) for _ in program.launches]
    elastic = ElasticInstance(gpu, instance, elastic_code, each)
    control = Stream(priority=-5)
    lanes = []
    looped = all(elastic_code.has(program.kernel_of(i), "looped") for i in range(len(program.launches)))
    for context, width in (
        (None, None),
        (None, 8 * sms),
        (None, sms),
        (partitions[0], 64),
        (partitions[1], 64),
        (None, 3),
    ):
        if width is not None and not looped:
            continue
        (context or gpu).activate()
        stream = context.stream() if context else Stream()
        lane = elastic.lane(width or 1)
        lanes.append((lane, stream, lane.graph(stream, workers=width), width))
    gpu.activate()
    plain = Stream()
    poison(plain, instance)
    start = time.perf_counter()
    instance.enqueue(plain)
    plain.synchronize()
    instance.enqueue(plain)
    start = time.perf_counter()
    plain.synchronize()
    whole_us = (time.perf_counter() - start) * 1e6
    wanted, everything = results(gpu, instance), contents(gpu, instance)
    wrong = passes = stopped = moves = shared = 0
    shares = elastic.shares
    for number in range(inferences):
        poison(control, instance)
        control.synchronize()
        last = None
        for turn in range(400):
            if turn > 40:  # enough of it
                chosen, limits, changes = [lanes[0]], [ALL], 0
            elif len(lanes) > 1 and chance.random() < 0.25:
                chosen, changes = chance.sample(lanes[1:], 2), chance.randrange(0, 5)
                limits = [chance.choice((1, 8, ALL)) for _ in chosen]
                # The gate that begins, or follows an exclusive pass, comes before the others.
                chosen[0][0].limit(control, 0)
                control.synchronize()
                chosen[0][2].launch(chosen[0][1])
                chosen[0][1].synchronize()
                shared += 1
            else:
                chosen, changes = [chance.choice((lanes[0], *lanes))], chance.randrange(0, 6)
                limits = [chance.choice((0, ALL, ALL, ALL) if chosen[0][3] is None else (0, 1, 66, ALL, ALL))]
            moves += last is not None and last is not chosen[0]
            last = chosen[0]
            for (lane, *_), limit in zip(chosen, limits, strict=True):
                lane.limit(control, limit)
            control.synchronize()
            for _, stream, graph, _ in chosen:
                graph.launch(stream)
            for _ in range(changes):
                until = time.perf_counter() + chance.random() * 2.0 * whole_us / 1e6 / (changes + 1)
                while time.perf_counter() < until:
                    pass
                lane = chance.choice(chosen)[0]
                lane.limit(control, chance.choice((0, 1, chance.randrange(1, 200), ALL)))
            for _, stream, _, _ in chosen:
                stream.synchronize()
            control.synchronize()
            passes += 1
            records = [lane.record for lane, *_ in chosen]
            stopped += any(r.stop != NONE for r in records)
            if chosen[0][3] is None:
                complete = records[0].first != MAX_LAUNCHES and records[0].stop == NONE
            else:
                complete = elastic.progress.claimed == 1 and elastic.done[-1] == shares[-1]
            if complete:
                break
        else:
            raise RuntimeError(f"{program.name}: inference {number} does not end: {elastic.progress}, {elastic.done}")
        wrong += results(gpu, instance) != wanted or (number % 20 == 0 and contents(gpu, instance) != everything)
    for lane, stream, graph, _ in lanes:
        graph.close()
        stream.close()
        lane.close()
    plain.close()
    control.close()
    elastic.close()
    instance.close()
    elastic_code.close()
    code.close()
    for partition in partitions:
        partition.close()
    return {"inferences": inferences, "wrong": wrong, "passes": passes, "stopped": stopped, "moves": moves,
            "shared": shared}  # fmt: skip


def leaving_us(gpu: Gpu, program: Program, samples: int, seed: int) -> list[float]:
    """Times from limit 0 to the last worker gone, at random moments of an exclusive pass."""
    chance = random.Random(seed)
    clock = Module(CLOCK)
    stamp, rise = clock.function("stamp"), clock.function("raise")
    elastic_code = ElasticCode(program)
    instance = Instance(gpu, program)
    instance.fill(seed)
    elastic = ElasticInstance(gpu, instance, elastic_code)
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
            found.append((times[record.stop] - times[count]) / 1e3)
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


def main() -> None:
    """Interrupt what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--inferences", type=int, default=120)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    gpu = Gpu(0)
    programs: dict[str, object] = {}
    record: dict[str, object] = {
        "gpu": gpu.name, "driver": gpu.driver_version, "date": datetime.date.today().isoformat(), "programs": programs,
    }  # fmt: skip
    times: list[float] = []
    for path in sorted(Path(str(files("miriam.zoo") / "programs")).glob("*.miriam")):
        if args.only and path.stem not in args.only:
            continue
        start = time.perf_counter()
        program = Program.load(path)
        facts = storm(gpu, program, args.inferences, args.seed)
        middle = time.perf_counter()
        left = sorted(leaving_us(gpu, program, args.samples, args.seed))
        times += left
        facts["leaving_us"] = {
            "samples": len(left), "p50": round(statistics.median(left), 2), "p99": round(left[int(0.99 * len(left))], 2),
            "max": round(left[-1], 2),
        }  # fmt: skip
        programs[path.stem] = facts
        took = f"{middle - start:.1f} + {time.perf_counter() - middle:.1f} s"
        print(f"{path.stem:18} {facts} {took}", flush=True)
        times.sort()
        record["leaving_us"] = {
            "samples": len(times), "p50": round(statistics.median(times), 2),
            "p99": round(times[int(0.99 * len(times))], 2), "max": round(times[-1], 2),
        }  # fmt: skip
        args.out.write_text(json.dumps(record, indent=1))
    print(record["leaving_us"])
    gpu.close()


if __name__ == "__main__":
    main()
