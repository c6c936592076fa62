"""Where the time of a critical request goes on this machine's GPU, alone and in company.

    python benchmarks/critical_segments.py --out FILE [--critical resnet34-b1 --normal resnet18-b32] [--seconds 2]

A small kernel behind every few launches of the critical program writes the GPU's own clock. So it shows
whether time is lost at the start, where workers leave, or all along, where caches are cold and memory
is shared. The time from the request to the first launch is the host's: response time less the sum.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import statistics
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from elastic_cost import machine
from interruptions import CLOCK

from miriam import zoo
from miriam.bench.arrivals import Closed, Poisson, SeededTraffic
from miriam.coordinator import Policy, View, coordinate
from miriam.device.base import Command, Event, EventKind
from miriam.device.cuda.device import CudaDevice
from miriam.device.cuda.driver import Graph, Module
from miriam.device.cuda.lane import CudaLane
from miriam.device.cuda.warm import Warmer
from miriam.device.cuda.work import Codes, Holds, Work
from miriam.policy import create
from miriam.policy.base import Setting
from miriam.program import Program
from miriam.task import Task

SEGMENTS = 12
WARM_UP = 50  # requests


class Stamped(Work):
    """A task whose program, if it is ``watched``, leaves the time behind each segment of its launches."""

    watched: Program
    stamps: int
    clock: Module
    warm = True

    def warmed(self) -> Warmer | None:
        """What is asked for ahead, if this way does."""
        return super().warmed() if self.warm else None

    def original(self, lane: CudaLane, launches: range, holds: Holds, *, hold: bool) -> Graph:
        """Launches as they are, and stamps between them."""
        if self.program is not self.watched:
            return super().original(lane, launches, holds, hold=hold)
        key = (lane, launches, holds.table, hold, "stamped")
        if key not in self._graphs:
            stamp = self.clock.function("stamp")
            ends = [round(len(launches) * (i + 1) / SEGMENTS) for i in range(SEGMENTS)]
            with self._capture(lane) as capture:
                self._hold(capture, holds, hold and bool(holds.lanes))
                begin = 0
                for i, end in enumerate([0, *ends]):
                    self.instance.enqueue(capture.stream, launches[begin:end])
                    begin = end
                    at = (self.stamps + 8 * i).to_bytes(8, "little")
                    stamp.launch(capture.stream, (1, 1, 1), (1, 1, 1), 0, [at])
                self._release(capture, lane, holds)
            self._graphs[key] = self._ready(capture, lane)
        return self._graphs[key]


class Watching:
    """A policy, and somebody who reads the stamps behind each critical request."""

    def __init__(self, policy: Policy, codes: Codes, stamps: int) -> None:
        self.name, self.lanes = policy.name, policy.lanes
        self.found: list[tuple[float, ...]] = []
        self._policy, self._codes, self._stamps = policy, codes, stamps

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        """What the policy decides."""
        if event.kind is EventKind.FINISHED and event.request is not None and event.request.task.critical:
            raw = self._codes.gpu.read(self._stamps, 8 * (SEGMENTS + 1))
            times = struct.unpack(f"<{SEGMENTS + 1}Q", raw)
            self.found.append(tuple((b - a) / 1e3 for a, b in itertools.pairwise(times)))
        yield from self._policy.decide(event, view)

    def report(self) -> Mapping[str, float]:
        """What the policy reports."""
        return self._policy.report()


def segments(
    codes: Codes, device: str, policy: str, tasks: list[Task], seconds: float, stamps: int
) -> dict[str, object]:
    """Median time of each segment in us, and of the whole service."""
    on = CudaDevice(device, zoo.profiles(), codes=codes)
    alone_us = {task.name: on.launch_us(task.program) for task in tasks}
    watching = Watching(create(policy, Setting(tasks, on.geometry, alone_us, on.command_us)), codes, stamps)
    until_us = seconds * 1e6
    arrivals = [Poisson(200.0) if task.critical else Closed(2) for task in tasks]
    traffic = SeededTraffic(list(zip(tasks, arrivals, strict=True)), until_us, 0)
    try:
        coordinate(on, watching, traffic, until_us)
    finally:
        on.close()
    rows = watching.found[WARM_UP:]
    service = [r.finish_us - r.start_us for r in traffic.requests
               if r.task.critical and r.finish_us is not None and r.start_us is not None][WARM_UP:]  # fmt: skip
    # Medians, since the host now and then reads what the next request has begun to write.
    middle = [round(statistics.median(column), 2) for column in zip(*rows, strict=True)]
    return {"segments_us": middle, "gpu_us": round(sum(middle), 1), "service_us": round(statistics.median(service), 1),
            "requests": len(rows)}  # fmt: skip


def main() -> None:
    """Measure a pair of programs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--critical", default="resnet34-b1")
    parser.add_argument("--normal", default="resnet18-b32")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    import miriam.device.cuda.works as module

    codes = Codes()
    critical, normal = Task("critical", zoo.load(args.critical), 1), Task("normal", zoo.load(args.normal))
    Stamped.watched, Stamped.stamps, Stamped.clock = (
        critical.program,
        codes.gpu.allocate(8 * (SEGMENTS + 1)),
        Module(CLOCK),
    )
    module.Work = Stamped  # type: ignore[attr-defined]
    ways: dict[str, object] = {}
    record = {
        **machine(codes.gpu), "date": datetime.date.today().isoformat(),
        "device": args.device, "critical": args.critical, "normal": args.normal, "seconds": args.seconds, "ways": ways,
    }  # fmt: skip
    for label, policy, tasks, warm in (
        ("alone", "priority", [critical], True),
        ("resident", "resident", [critical, normal], True),
        ("resident, weights not asked for", "resident", [critical, normal], False),
        ("priority", "priority", [critical, normal], True),
    ):
        Stamped.warm = warm
        ways[label] = segments(codes, args.device, policy, tasks, args.seconds, Stamped.stamps)
        print(label, ways[label], flush=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    Stamped.clock.close()
    codes.gpu.free(Stamped.stamps)
    codes.close()


if __name__ == "__main__":
    main()
