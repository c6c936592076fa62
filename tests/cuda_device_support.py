"""Devices in front of a GPU without a processor, and tasks to run on them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fake_driver import FakeDriver
from support import Profiles, program

from miriam.bench.arrivals import Closed, SeededTraffic, Uniform
from miriam.coordinator import View, coordinate
from miriam.device.base import Command, Event, EventKind, Lane, Run
from miriam.device.cuda.device import CudaDevice
from miriam.elastic.state import Lane as Record
from miriam.elastic.state import Limiter
from miriam.program import Pointer, Scalar
from miriam.task import Request, Task

FAST = Task("fast", program("fast"), 1)
SLOW = Task("slow", program("slow", launches=((300, 128), (64, 128), (500, 64))), 0)
LANES = (Lane("critical", 1), Lane("normal"))
_READING = replace(FAST.program.launches[0], args=(Pointer(1), Scalar(bytes(4))))
WEIGHTY = Task("weighty", replace(FAST.program, name="weighty", launches=(_READING,)), 1)
OTHER = Task("other", program("other"), 2)
THREE = (Lane("upper", 2), Lane("middle", 1), Lane("normal"))
_PAIR = program("long", launches=((300, 128), (64, 128)))
LONG = Task("long", replace(_PAIR, launches=_PAIR.launches * 100), 0)


def device(name: str = "cuda:0", **options: Any) -> CudaDevice:
    return CudaDevice(name, Profiles(FAST.program, SLOW.program), **options)


class Whole:
    """Every request at once; normal ones elastic, and held to ``sms`` SMs by critical ones."""

    name = "whole"

    def __init__(self, sms: int | None = None, lanes: Sequence[Lane] = LANES) -> None:
        self.lanes = tuple(lanes)
        self.limits: Mapping[int, int] = {} if sms is None else {1: sms}

    def decide(self, event: Event, view: View) -> Iterator[Command]:
        if event.kind is EventKind.ARRIVED and event.request is not None:
            if event.request.task.critical:
                yield Run(event.request, 0, limits=self.limits)
            else:
                yield Run(event.request, 1, workers=4096 if self.limits else None)

    def report(self) -> Mapping[str, float]:
        return {}


def serve(on: CudaDevice, policy: Whole) -> dict[str, int]:
    """How many requests of each task finished, of those that came in 20 ms."""
    traffic = SeededTraffic([(FAST, Uniform(500.0)), (SLOW, Closed(2))], 20_000.0, 0)
    try:
        done = coordinate(on, policy, traffic, 1e7)
    finally:
        on.close()
    assert all(r.start_us is not None and r.arrival_us <= r.start_us <= r.finish_us for r in done if r.finish_us)
    return {task.name: sum(r.task is task for r in done) for task in (FAST, SLOW)}


def opened(lanes: Sequence[Lane] = LANES, name: str = "cuda:0", **options: Any) -> CudaDevice:
    on = device(name, **options)
    on.open(lanes)
    return on


def request(task: Task, number: int = 0) -> Request:
    return Request(task, number, 0.0)


def ended(on: CudaDevice) -> list[Run]:
    """Runs of which the host hears until nothing is left to hear."""
    return [event.run for event in on.events(1e7) if event.run is not None]


def limits(cu: FakeDriver, at: int) -> int:
    return Record.unpack(cu.memory.read(at, 16)).limit


def record(cu: FakeDriver) -> int:
    """Where the words of the second lane lie: what the last hold named first."""
    table = [run for run in cu.launches if run.name == "miriam_hold"][-1].args[0]
    return int.from_bytes(cu.memory.read(table, 8), "little")


def limiter(cu: FakeDriver) -> Limiter:
    """What decides the limit of that lane."""
    table = [run for run in cu.launches if run.name == "miriam_hold"][-1].args[0]
    return Limiter.unpack(cu.memory.read(int.from_bytes(cu.memory.read(table + 8, 8), "little"), 16))


def until(released: Callable[[], bool]) -> Callable[..., Iterator[None]]:
    """A kernel that ends when it may."""

    def effect(*_: object) -> Iterator[None]:
        while not released():
            yield

    return effect
