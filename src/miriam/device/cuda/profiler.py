"""Measure a program alone on a GPU: each launch at several numbers of SMs, and what it moves.

Launches are timed where they stand: the whole program is one CUDA graph with an event behind each
launch, so the caches hold what they hold in a real inference. What the events add is the difference
to the same graph without them; it is taken off each launch in equal parts. A measurement is repeated
as often as fits a second, up to a number that serves short programs, and ten times at least.
"""

from __future__ import annotations

import datetime
import itertools
import os
import platform
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from miriam.device.cuda import counters as hardware
from miriam.device.cuda.driver import Event, Gpu, Module, Stream
from miriam.device.cuda.instance import Code, Instance
from miriam.errors import DeviceError, ProfileError
from miriam.profile import Counters, LaunchProfile, ProgramProfile, launch_key
from miriam.program import Program
from miriam.progress import Progress, silent

if TYPE_CHECKING:
    from miriam.store import ProfileStore

__all__ = ["SM_COUNTS", "launch_times_us", "profile_program", "profile_programs"]

SM_COUNTS = (8, 16, 32, 64)
"""Partitions that are measured besides the whole GPU, where the GPU is larger."""

_REPLAYS = 40
_WARM_UP = 5
_PIPELINED = 10
_LEAST_REPLAYS = 10
_ENOUGH_US = 1e6  # of one measurement, where that leaves enough replays
_EMPTY = b".version 7.0\n.target sm_52\n.address_size 64\n.visible .entry empty() { ret; }\n\0"


def profile_program(
    program: Program, store: ProfileStore, device: str = "cuda:0", *, counters: bool | None = None,
    progress: Progress = silent,
) -> None:  # fmt: skip
    """Measure one program; see :func:`profile_programs`."""
    profile_programs([program], store, device, counters=counters, progress=progress)


def profile_programs(
    programs: list[Program], store: ProfileStore, device: str = "cuda:0", *, counters: bool | None = None,
    progress: Progress = silent,
) -> None:  # fmt: skip
    """Measure programs alone on ``device`` and keep the results.

    Parameters
    ----------
    store
        Where the results go, under the GPU's short name (``h200``).
    counters
        Whether to read hardware counters with Nsight Compute. True: they must be read. None: where
        that is possible, with a warning where it is not. What is not read now stays as it was read
        before, or is estimated.
    progress
        Told what is being done.

    Raises
    ------
    DeviceError
        No such device, or the driver refused something.
    ProfileError
        Counters must be read and cannot be.

    Warns
    -----
    UserWarning
        Counters cannot be read and are estimated.
    """
    gpu = Gpu(_ordinal(device))
    try:
        name = short_name(gpu.name)
        whole = gpu.attribute("MULTIPROCESSOR_COUNT")
        store.put_device(name, _facts(gpu, _gap_us(gpu)))
        for number, program in enumerate(programs):
            progress(f"timing {program.name}", number, len(programs))
            read: Mapping[int, Counters] = {}
            try:
                if counters is not False:
                    read = hardware.read(program, gpu.ordinal, progress)
            except ProfileError as error:
                if counters:
                    raise
                warnings.warn(f"counters of {program.name} are estimated: {error}", stacklevel=2)
            _measure(gpu, program, store, name, (*_counts(whole), whole), read)
    finally:
        gpu.close()


def short_name(gpu: str) -> str:
    """Name under which profiles of a GPU are kept: ``NVIDIA H200`` is ``h200``."""
    return gpu.lower().removeprefix("nvidia ").replace(" ", "-")


def _ordinal(device: str) -> int:
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise DeviceError(f"{device!r} cannot be profiled on: name a GPU, such as cuda:0")
    return int(number or 0)


def _counts(whole: int) -> tuple[int, ...]:
    return tuple(sms for sms in SM_COUNTS if sms < whole)


class _Place:
    """The whole GPU or a partition of it, current in this thread while it is open."""

    def __init__(self, gpu: Gpu, sms: int, whole: int) -> None:
        self._gpu = gpu
        self._partition = None if sms == whole else gpu.partition(sms)
        if self._partition is not None and self._partition.sms != sms:
            got = self._partition.sms
            self._partition.close()
            raise ProfileError(f"asked for {sms} SMs of {gpu.name}, the driver gave {got}")
        if self._partition is None:
            gpu.activate()
            self.stream = Stream()
        else:
            self._partition.activate()
            self.stream = self._partition.stream()

    def close(self) -> None:
        self.stream.close()
        if self._partition is not None:
            self._partition.close()
        self._gpu.activate()


def _gap_us(gpu: Gpu, launches: int = 100) -> float:
    """Time of an empty kernel in a graph of them: from the end of a launch to the end of the next one."""
    module, stream = Module(_EMPTY), Stream()
    function = module.function("empty")
    stream.begin_capture()
    for _ in range(launches):
        function.launch(stream, (1, 1, 1), (32, 1, 1), 0, ())
    graph = stream.end_capture()
    found = statistics.median(_pipelined_us(lambda: graph.launch(stream), stream)) / launches
    graph.close()
    stream.close()
    module.close()
    return found


def _pipelined_us(run: Callable[[], None], stream: Stream) -> list[float]:
    """Time of one ``run`` out of several enqueued back to back, in us, repeated."""
    once_us = _once_us(run, stream)
    in_row = max(1, min(_PIPELINED, int(_ENOUGH_US / (_REPLAYS // 2 * once_us))))
    start, end = Event(), Event()
    times = []
    for i in range(_WARM_UP + _replays(_REPLAYS // 2, in_row * once_us)):
        start.record(stream)
        for _ in range(in_row):
            run()
        end.record(stream)
        if i >= _WARM_UP:
            times.append(end.since_us(start) / in_row)
        else:
            stream.synchronize()
    start.close()
    end.close()
    return times


def _once_us(run: Callable[[], None], stream: Stream) -> float:
    """Time of the second ``run``, to see how many there is time for."""
    start, end = Event(), Event()
    for _ in range(2):
        start.record(stream)
        run()
        end.record(stream)
        us = end.since_us(start)
    start.close()
    end.close()
    return max(us, 1.0)


def _replays(most: int, once_us: float) -> int:
    return max(_LEAST_REPLAYS, min(most, int(_ENOUGH_US / once_us)))


def _measure(
    gpu: Gpu, program: Program, store: ProfileStore, name: str, counts: Sequence[int], read: Mapping[int, Counters]
) -> None:  # fmt: skip
    whole = max(counts)
    launch_us: dict[int, dict[int, float]] = {}
    program_us: dict[int, tuple[float, float]] = {}
    residency: dict[int, int] = {}
    code = Code(program)
    for sms in counts:
        place = _Place(gpu, sms, whole)
        instance = Instance(gpu, program, code, partial=True)
        instance.fill()
        every = instance.every()
        if sms == whole:
            residency = {i: instance.blocks_per_sm(i) for i in every}
        plain = instance.graph(place.stream)
        times = _pipelined_us(lambda: plain.launch(place.stream), place.stream)  # noqa: B023 - used at once
        single = _single_us(lambda: plain.launch(place.stream), place.stream)  # noqa: B023
        tail = statistics.quantiles(single, n=100, method="inclusive")[98] - statistics.median(single)
        program_us[sms] = (statistics.median(times), statistics.median(times) + tail)
        plain.close()
        events = [Event() for _ in range(len(every) + 1)]
        marked = _between_us(instance, place.stream, events)
        launch_us[sms] = dict(zip(every, without_events(marked, program_us[sms][0]), strict=True))
        for event in events:
            event.close()
        instance.close()
        place.close()
    code.close()
    positions: dict[tuple[str, tuple[int, int, int]], list[int]] = {}
    for i in launch_us[whole]:
        positions.setdefault(launch_key(program.kernel_of(i), program.launches[i]), []).append(i)
    for key, where in positions.items():
        found = {sms: statistics.fmean(times[i] for i in where) for sms, times in launch_us.items()}
        seen = [read[i] for i in where if i in read]
        before = store.launch(name, key)
        if seen:
            facts, measured = mean_counters(seen), True
        elif before is not None and before.measured:
            facts, measured = before.counters, True
        else:
            facts, measured = estimate(found[whole]), False
        store.put_launch(name, key, LaunchProfile(found, residency[where[0]], facts, measured))
    store.put_program(name, program, ProgramProfile(program_us))


def launch_times_us(instance: Instance, stream: Stream) -> tuple[float, ...]:
    """Time of each launch of a program where it stands, in us: times alone, on the SMs of ``stream``."""
    plain = instance.graph(stream)
    whole_us = statistics.median(_pipelined_us(lambda: plain.launch(stream), stream))
    plain.close()
    events = [Event() for _ in range(len(instance.every()) + 1)]
    times = without_events(_between_us(instance, stream, events), whole_us)
    for event in events:
        event.close()
    return tuple(times)


def _single_us(run: Callable[[], None], stream: Stream) -> list[float]:
    replays = _replays(_REPLAYS * 5, _once_us(run, stream))
    start, end = Event(), Event()
    times = []
    for _ in range(replays):
        start.record(stream)
        run()
        end.record(stream)
        times.append(end.since_us(start))
    start.close()
    end.close()
    return times


def without_events(marked_us: Sequence[float], whole_us: float, least_us: float = 0.2) -> list[float]:
    """Take off what events added to launches, in equal parts, so that they add up to the time without events.

    Parameters
    ----------
    marked_us
        Times from event to event.
    whole_us
        Time of all launches together without events.
    least_us
        No launch becomes shorter than this.
    """
    free = list(range(len(marked_us)))
    found = [least_us] * len(marked_us)
    while free:
        spare = whole_us - least_us * (len(marked_us) - len(free))
        added = (sum(marked_us[i] for i in free) - spare) / len(free)
        if all(marked_us[i] - added >= least_us for i in free):
            for i in free:
                found[i] = marked_us[i] - added
            break
        free = [i for i in free if marked_us[i] - added >= least_us]
    return found


def _between_us(instance: Instance, stream: Stream, events: list[Event]) -> list[float]:
    """Time from each event to the next: median over replays."""
    rest = iter(events[1:])
    stream.begin_capture()
    events[0].record_in_graph(stream)
    for i in instance.every():
        instance.enqueue(stream, [i])
        next(rest).record_in_graph(stream)
    graph = stream.end_capture()
    rows = []
    for replay in range(_WARM_UP + _replays(_REPLAYS, _once_us(lambda: graph.launch(stream), stream))):
        graph.launch(stream)
        stream.synchronize()
        if replay >= _WARM_UP:
            rows.append([later.since_us(earlier) for earlier, later in itertools.pairwise(events)])
    graph.close()
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def mean_counters(seen: list[Counters]) -> Counters:
    """Mean over the places of a program where the same launch stands."""
    fields = Counters.__slots__
    return Counters(*(statistics.fmean(getattr(c, f) for c in seen) for f in fields))


def estimate(whole_us: float) -> Counters:
    """Stand in for counters: half of what an H200 could move and issue in that time."""
    moved = 0.5 * 4.8e6 * whole_us
    return Counters(0.7 * moved, 0.3 * moved, moved, 2 * moved, 0.5, 0.5)


def _facts(gpu: Gpu, gap_us: float) -> dict[str, str | int | float]:
    geometry = gpu.geometry
    return {
        "gpu": gpu.name,
        "sms": geometry.sms,
        "l2_bytes": gpu.l2_bytes,
        "launch_gap_us": round(gap_us, 3),
        "cuda_driver": gpu.driver_version,
        "host": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
