"""How many block events a second the model of a GPU runs, for a few shapes of work.

    python benchmarks/sim_speed.py [--seconds 2] [--out benchmarks/records]

A block event is the start and the end of one block. Each shape is served in a closed loop for about
so many seconds of CPU time of this process, after a run that compiles the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numba
import numpy as np

import miriam
from miriam import zoo
from miriam.coordinator import View, coordinate
from miriam.device.base import Command, Event, EventKind, Lane, Run
from miriam.device.sim.device import SimDevice
from miriam.device.sim.spec import MEASURED
from miriam.profile import Counters, LaunchKey, LaunchProfile, ProgramProfile, launch_key
from miriam.program import Kernel, Launch, Program, Source
from miriam.task import Request, Task


@dataclass(frozen=True)
class Shape:
    """One line of the table: programs side by side, each on a lane of its own."""

    name: str
    device: str
    programs: Sequence[str]
    priorities: Sequence[int]
    workers: int | None = None
    launch_by_launch: bool = False


SHAPES = (
    Shape("39 large launches, alone", "sim:h200", ["large"], [0]),
    Shape("60 launches of 20 to 50 blocks, alone", "sim:h200", ["small-0"], [0]),
    Shape("the same, three lanes", "sim:h200", ["small-0", "small-1", "small-2"], [0, 0, 0]),
    Shape("small above large, two lanes", "sim:h200", ["small-0", "large"], [1, 0]),
    Shape("two small and large, three lanes", "sim:h200", ["small-0", "small-1", "large"], [1, 0, 0]),
    Shape("large beside large", "sim:h200", ["large", "large-too"], [0, 0]),
    Shape("large with 264 workers", "sim:h200", ["large"], [0], workers=264),
    Shape("small above large, two lanes", "sim:xavier", ["small-0", "large"], [1, 0]),
    Shape("small above large, two lanes", "sim:h200/16", ["small-0", "large"], [1, 0]),
    Shape("ResNet-34 above ResNet-18, zoo", "sim:h200", ["resnet34-b1", "resnet18-b32"], [1, 0]),
    Shape("ResNet-34 above ResNet-18, zoo", "sim:xavier", ["resnet34-b1", "resnet18-b32"], [1, 0]),
    Shape("SqueezeNet above AlexNet, zoo", "sim:xavier", ["squeezenet-b1", "alexnet-b1"], [1, 0]),
    Shape("a run for each launch, two lanes", "sim:xavier", ["small-0", "small-1"], [1, 0], launch_by_launch=True),
)


class Invented:
    """Programs and profiles as a network could have them, from a seed; and the zoo."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self._launches: dict[LaunchKey, LaunchProfile] = {}
        self.programs = {
            "large": self._program("large", [rng.randint(100, 6000) for _ in range(39)], 64, 0, rng),
            "large-too": self._program("large-too", [rng.randint(100, 6000) for _ in range(39)], 48, 0, rng),
        }
        for i in range(3):
            blocks = [rng.randint(20, 50) for _ in range(60)]
            self.programs[f"small-{i}"] = self._program(f"small-{i}", blocks, 64, 16384, rng)
        self.programs |= {name: zoo.load(name) for name in zoo.names()}

    def _program(self, name: str, blocks: Sequence[int], registers: int, shared: int, rng: random.Random) -> Program:
        kernels, launches = [], []
        for i, count in enumerate(blocks):
            kernel = Kernel(f"{name}_{i}", Source.TRITON, (rng.choice([64, 128, 256]), 1, 1), registers, shared, ptx="")
            launch = Launch(i, (count, 1, 1))
            residency, wave_us = MEASURED.geometry.residency(kernel), rng.uniform(2.0, 30.0)
            times = {sms: 1.06 + wave_us * -(-count // (residency * sms)) for sms in (8, 16, 32, 64, 132)}
            moved = rng.uniform(0.05, 0.8) * MEASURED.dram_bytes_per_us * times[132]
            counters = Counters(moved / 2, moved / 2, 2 * moved, 2 * moved, rng.random() * 0.7, rng.random() * 0.8)
            self._launches[launch_key(kernel, launch)] = LaunchProfile(times, residency, counters, measured=False)
            kernels.append(kernel)
            launches.append(launch)
        return Program(name, "none", tuple(kernels), tuple(launches))

    def launch(self, device: str, key: LaunchKey) -> LaunchProfile | None:
        """Profile of a launch."""
        return self._launches.get(key) or zoo.profiles().launch(device, key)

    def program(self, device: str, program: Program) -> ProgramProfile | None:
        """None: nothing of the kind was invented."""
        return None


class Direct:
    """Each request on the lane of its task: at once, or one launch after another by the host."""

    name = "direct"

    def __init__(self, shape: Shape) -> None:
        self.lanes = tuple(
            Lane(program, priority) for program, priority in zip(shape.programs, shape.priorities, strict=True)
        )
        self._shape = shape

    def decide(self, event: Event, view: View) -> Iterable[Command]:
        """Run what came or what is next."""
        if event.request is None:
            return
        lane = self._shape.programs.index(event.request.task.name)
        if not self._shape.launch_by_launch:
            if event.kind is EventKind.ARRIVED:
                yield Run(event.request, lane, workers=self._shape.workers)
            return
        step = 0 if event.run is None else event.run.first + 1
        if step < len(event.request.task.program.launches):
            yield Run(event.request, lane, first=step, last=step + 1, workers=self._shape.workers)

    def report(self) -> Mapping[str, float]:
        """Nothing."""
        return {}


class ClosedLoop:
    """One request of each task at a time."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks, self._made = tasks, 0

    def start(self) -> Iterable[Request]:
        """The first of each task."""
        return [self._request(task, 0.0) for task in self._tasks]

    def after(self, finished: Request) -> Request | None:
        """The next, at once."""
        return self._request(finished.task, finished.finish_us or 0.0)

    def _request(self, task: Task, at_us: float) -> Request:
        self._made += 1
        return Request(task, self._made, at_us)


def run(shape: Shape, invented: Invented, until_us: float) -> tuple[int, float, int]:
    """Blocks, CPU seconds and requests of one run."""
    tasks = [Task(name, invented.programs[name]) for name in shape.programs]
    device = SimDevice(shape.device, invented)
    begin = time.process_time()
    done = coordinate(device, Direct(shape), ClosedLoop(tasks), until_us)
    return device.usage().blocks, time.process_time() - begin, len(done)


def measure(shape: Shape, invented: Invented, seconds: float) -> dict[str, object]:
    """Run a shape for about ``seconds``."""
    until_us = 2e4
    _, took, _ = run(shape, invented, until_us)
    while took < seconds / 20:
        until_us *= 4
        _, took, _ = run(shape, invented, until_us)
    blocks, took, requests = run(shape, invented, until_us * seconds / took)
    return {
        "shape": shape.name,
        "device": shape.device,
        "blocks": blocks,
        "requests": requests,
        "cpu_s": round(took, 3),
        "million_block_events_per_s": round(blocks / took / 1e6, 2),
    }


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "miriam": getattr(miriam, "__version__", "unknown"),
    }


def main() -> None:
    """Print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time for each shape")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records", help="folder of the record")
    options = parser.parse_args()

    invented = Invented(options.seed)
    begin = time.perf_counter()
    run(SHAPES[0], invented, 1e3)
    first_s = time.perf_counter() - begin
    print(f"first run, compiling unless cached: {first_s:.1f} s")
    print(f"{'shape':40} {'device':12} {'M blocks/s':>10} {'requests':>9}")
    rows = []
    for shape in SHAPES:
        row = measure(shape, invented, options.seconds)
        rows.append(row)
        print(f"{shape.name:40} {shape.device:12} {row['million_block_events_per_s']:10.2f} {row['requests']:9}")
    record = {
        "what": "block events per second of the model of a GPU, one core",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "seed": options.seed,
        "first_run_s": round(first_s, 2),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "sim_speed.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
