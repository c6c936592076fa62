"""What it costs to remember requests, in the path of each, and to look at what is remembered.

    python benchmarks/trace_cost.py [--requests 20000] [--out benchmarks/records]

The recorder is told what a runtime would tell it of requests that come and end one after another; the time of the loop
around is taken off. Times are those of the CPU in one thread, so that little of what else the machine does is in them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import statistics
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import thread_time_ns
from types import SimpleNamespace

from sim_speed import machine

from miriam.device.base import Event, EventKind, Lane, Run
from miriam.program import Program
from miriam.runtime.response import Response
from miriam.runtime.statistics import Tally
from miriam.serve.live.snapshot import Snapshots
from miriam.task import Request, Task
from miriam.trace import Recorder, explain

TASKS = (Task("detector", Program("detector", "none", (), ()), 1), Task("caption", Program("caption", "none", (), ())))
LANES = (Lane("critical", 1), Lane("normal", 0))


@dataclass(frozen=True)
class Told:
    """What a runtime tells of one request."""

    response: Response
    request: Request
    arrived: Event
    commands: Sequence[Run]
    finished: Event


def made(count: int) -> list[Told]:
    """Requests 100 us apart, every fourth of them critical, that take 90 us."""
    found = []
    for number in range(count):
        task, at_us = TASKS[number % 4 > 0], 100.0 * number
        response = Response(
            task, number, (), deadline_us=math.inf, expires_us=math.inf, submitted_us=at_us, wrap=tuple,
            withdraw=lambda one: False, caller=lambda call: call(),
        )  # fmt: skip
        response.started_us, response.finished_us = at_us + 5, at_us + 90
        response.set_result(())
        request = Request(task, number, at_us)
        run = Run(request, number % 4 > 0, limits={1: 0} if number % 4 == 0 else {}, why="whole and at once")
        arrived, finished = (Event(kind, at_us, request, run) for kind in (EventKind.ARRIVED, EventKind.FINISHED))
        found.append(Told(response, request, arrived, [run], finished))
    return found


@dataclass
class Clock:
    """Shows when the last request came."""

    us: float = 0.0

    def __call__(self) -> float:
        """See above."""
        return self.us


def tell(recorder: Recorder, told: Sequence[Told], clock: Clock) -> None:
    """All that a recorder hears of requests."""
    for one in told:
        clock.us = one.request.arrival_us
        recorder.queued(one.response)
        recorder.offered(one.response, one.request)
        recorder.heard(one.arrived, one.commands)
        recorder.answered(one.response)
        recorder.heard(one.finished, ())


def nothing(told: Sequence[Told]) -> None:
    """The same loop with a recorder that does nothing."""
    idle = SimpleNamespace(**dict.fromkeys(("queued", "offered", "heard", "answered"), lambda *_: None))
    tell(idle, told, Clock())  # type: ignore[arg-type]


def took_us(call: Callable[[], object], times: int = 5) -> float:
    """CPU time of this thread, the median of a few calls."""
    spent = []
    for _ in range(times):
        gc.collect()
        begin_ns = thread_time_ns()
        call()
        spent.append((thread_time_ns() - begin_ns) / 1e3)
    return statistics.median(spent)


def service(told: Sequence[Told]) -> SimpleNamespace:
    """What the live page asks."""
    tallies = {task.name: Tally(task.name, task.criticality, 1000) for task in TASKS}
    for one in told[-2000:]:
        tallies[one.response.name].answered(one.response)
    return SimpleNamespace(
        runtime=SimpleNamespace(device="cpu", policy="resident", notes=(), report=dict),
        ready=lambda: True,
        index=lambda: [{"name": name, "state": "READY", "reason": ""} for name in tallies],
        statistics=lambda: {name: tally.snapshot(0, 0) for name, tally in tallies.items()},
    )


def main() -> None:
    """Print the figures and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records", help="folder of the record")
    options = parser.parse_args()
    told = made(options.requests)

    def recorded() -> Recorder:
        clock = Clock()
        recorder = Recorder(1000, clock=clock)
        recorder.opened("cpu", "resident", LANES)
        tell(recorder, told, clock)
        return recorder

    recording_us = took_us(recorded) - took_us(lambda: nothing(told))
    tracemalloc.start()
    recorder = recorded()
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    recording = recorder.recording()
    snapshots = Snapshots(service(told), recorder)  # type: ignore[arg-type]
    since_us = 100.0 * (options.requests - 100)
    asyncio.run(snapshots.take(since_us))
    figures = {
        "recorder_us_a_request": round(recording_us / options.requests, 2),
        "bytes_held_of_1000_requests": held_bytes,
        "explain_ms": round(took_us(lambda: explain(recording, recording.requests[500].number)) / 1e3, 2),
        "page_of_100_new_requests_ms": round(took_us(lambda: asyncio.run(snapshots.take(since_us))) / 1e3, 2),
        "trace_of_1000_requests_ms": round(took_us(lambda: "".join(recording.text())) / 1e3, 2),
        "longest_piece_of_it_ms": round(max(pieces_us(recording.text())) / 1e3, 2),
    }
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):32} {value:,}")
    record = {
        "what": "what the recorder costs a request, one thread; what it costs to look at what it holds",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine(), "requests": options.requests, **figures,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "trace-cost.json").write_text(json.dumps(record, indent=2) + "\n")


def pieces_us(pieces: object) -> list[float]:
    """How long each piece of a text took to make."""
    spent, begin_ns = [], thread_time_ns()
    for _ in pieces:  # type: ignore[attr-defined]
        spent.append((thread_time_ns() - begin_ns) / 1e3)
        begin_ns = thread_time_ns()
    return spent


if __name__ == "__main__":
    main()
