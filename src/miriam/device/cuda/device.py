"""A GPU, or some SMs of one, as a device that runs lanes."""

from __future__ import annotations

import gc
import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from time import perf_counter_ns

from miriam.device.base import (
    Command,
    Event,
    EventKind,
    Geometry,
    Lane,
    Limit,
    Run,
    Span,
    Usage,
    Wake,
    check_lanes,
    check_limit,
)
from miriam.device.cuda.bound import Bound
from miriam.device.cuda.clock import Clock, HostClock
from miriam.device.cuda.dispatch import Dispatcher
from miriam.device.cuda.instance import Instance
from miriam.device.cuda.lane import WORDS, CudaLane
from miriam.device.cuda.limits import Limits
from miriam.device.cuda.place import Place, parse
from miriam.device.cuda.profiler import launch_times_us, short_name
from miriam.device.cuda.transfer import Staged
from miriam.device.cuda.work import Codes, Work
from miriam.device.cuda.works import Works
from miriam.errors import DeviceError, InputError
from miriam.profile import ProfileSource, launch_key
from miriam.program import Program
from miriam.task import Request, Task

__all__ = ["CudaDevice"]

_HUNG_US = 20e6  # without a sign of life from a lane that has work and may run
_COMMAND_US = 5.0  # of the host for a graph launch from Python, as a policy may reckon


class CudaDevice:
    """Runs lanes on a real GPU.

    Every lane is a stream, every run of whole launches a CUDA graph, made when it is first needed; the
    clock of the device stands still meanwhile, and while nobody asks for events. The host polls: arrivals
    by the clock, ends by words in its own memory that kernels write.

    The inputs of a request are copied in its lane, in front of its first run, and the outputs behind its last
    one, which counts as finished when they are there. Requests without inputs run on what is there.

    Parameters
    ----------
    name
        ``cuda:0``, or ``cuda:0/16`` for a device of 16 of its SMs (a green context).
    profiles
        Where launch times were measured; those that were not are measured when they are asked for.
    codes
        Loaded kernels to share with devices before and after this one; by default owned.
    verify
        Compare the outputs of inferences with those of the unmodified kernels; see :meth:`outputs`.
    bound
        Programs that are there already, such as live modules of PyTorch: tasks of these programs use their
        memory and run their graphs. They are closed by their owner, after the device. Not compared.
    clock
        Of the device; by default one of its own.

    Raises
    ------
    DeviceError
        There is no such GPU, or it cannot be split like this.
    """

    _goes_on = False  # for as long as the process does: garbage is collected, other threads run

    def __init__(
        self,
        name: str,
        profiles: ProfileSource,
        *,
        codes: Codes | None = None,
        verify: bool = False,
        bound: Iterable[Bound] = (),
        clock: Clock | HostClock | None = None,
    ) -> None:
        ordinal, sms = parse(name)
        self.name = name
        self.command_us = _COMMAND_US
        self._profiles = profiles
        with ExitStack() as made:
            self._codes = codes or Codes(ordinal)
            if codes is None:
                made.callback(self._codes.close)
            gpu = self._codes.gpu
            gpu.activate()
            self._model = short_name(gpu.name)
            whole = gpu.geometry.sms
            if sms is not None and sms > whole:
                raise DeviceError(f"{name!r} asks for {sms} SMs: {gpu.name} has {whole}")
            made.callback(gpu.activate)
            self._place = Place(gpu, gpu.partition(sms) if sms not in (None, whole) else None)
            made.callback(self._give_back, self._place)
            self.notes: tuple[str, ...] = (f"{gpu.name}, CUDA {gpu.driver_version}",)
            if not self._place.conditional:
                self.notes += (
                    f"{self._place.sms} of {whole} SMs as a partition (green context), with the clocks, the L2 and "
                    "the memory bandwidth of the whole GPU",
                )
            self.geometry: Geometry = self._place.geometry
            self._works = Works(self._codes, self._model, profiles, verify=verify, bound=bound)
            made.callback(self._works.close)
            self._made = made.pop_all()  # closed backwards
        self._lanes: list[CudaLane] = []
        self._staged: dict[Request, Staged] = {}
        self._due: list[tuple[float, int, Request | None]] = []
        self._count = itertools.count()
        self._left: dict[Request, int] = {}
        self._flying = 0
        self._looked_us = 0.0
        self._told: deque[Event] = deque()
        self._clock: Clock | HostClock = clock or Clock()
        self._busy_us = self._busy_since_us = 0.0
        self._blocks = 0
        self._spans: list[Span] = []
        self._trace_us: tuple[float, float] | None = None
        self._open = True

    def open(self, lanes: Sequence[Lane], trace_us: tuple[float, float] | None = None) -> None:
        """Make the lanes; called once. ``trace_us``: the window whose spans are kept."""
        if self._lanes or not self._open:
            raise DeviceError(f"{self.name} was opened before: one device object serves one run")
        check_lanes(lanes, self._place.sms)
        self._trace_us = trace_us
        gpu = self._codes.gpu
        self._place.activate()
        self._host = gpu.host_memory(WORDS * len(lanes))
        self._made.callback(self._host.close)
        self._limits = Limits(self._place, self._codes.control, self._place.stream(len(lanes)), self._lanes, self._now)
        self._made.callback(self._limits.close)
        wanted = [lane.sms for lane in lanes if lane.sms is not None]
        parts = [Place(gpu, partition) for partition in gpu.partitions(wanted)] if wanted else []
        for part in parts:
            self._made.callback(self._give_back, part)
        left = iter(parts)
        ids: dict[Place, list[int]] = {}
        for number, lane in enumerate(lanes):
            place = self._place if lane.sms is None else next(left)
            if place not in ids:
                ids[place] = place.ids()
            self._lanes.append(CudaLane(lane, place, self._host, number, ids[place]))
            self._made.callback(self._lanes[-1].close)
        self._place.activate()
        self._dispatcher = Dispatcher(
            self._place, self._lanes, self._limits, self._codes.control, self._staged, self._work,
            self._standing_still, self.loading, self._say,
        )  # fmt: skip
        self._made.callback(self._works.close)  # sooner than lanes

    def _now(self) -> float:
        return self._clock.now_us

    def offer(self, request: Request) -> None:
        """Let ``request`` arrive at its ``arrival_us``, or at once if that has passed. From any thread."""
        heapq.heappush(self._due, (request.arrival_us, next(self._count), request))

    def wake(self, time_us: float) -> None:
        """Give a TICK at that time."""
        heapq.heappush(self._due, (time_us, next(self._count), None))

    def launch_us(self, program: Program) -> tuple[float, ...]:
        """Time of each launch of ``program`` alone on this device, launch gap included."""
        found = []
        for step in program.launches:
            profile = self._profiles.launch(self._model, launch_key(program.kernels[step.kernel], step))
            found.append(None if profile is None else profile.times_us.get(self._place.sms))
        known = tuple(time for time in found if time is not None)
        if len(known) == len(found):
            return known
        self._place.activate()
        with (
            closing(self._place.stream()) as stream,
            closing(
                Instance(self._codes.gpu, program, self._codes.plain(program), bound=self._works.bound(program))
            ) as instance,
        ):
            instance.fill()
            return launch_times_us(instance, stream)

    def submit(self, command: Command) -> None:
        """Carry out a command, after the ones submitted before it.

        Raises
        ------
        DeviceError
            The driver refuses; or elastic workers were asked for a part of a program that is no shard. The
            command is then as if it had never been.
        """
        if isinstance(command, Wake):
            self.wake(command.time_us)
            return
        if isinstance(command, Limit):
            check_limit(command, len(self._lanes))
            lane = self._lanes[command.lane]
            lane.idle = lane.width(command.sms)
            self._limits.rest(lane)
            self._dispatcher.go_on(lane)
            return
        lane, request = self._lanes[command.lane], command.request
        begins = request not in self._left
        if begins:
            work = self._work(request.task, lane)
            if request.inputs is not None and not self._stage(command, work):
                return
            self._left[request] = work.blocks[-1]
        if not lane.flying:
            lane.since_us = self._clock.now_us
            if not self._flying:
                self._busy_since_us = lane.since_us
        lane.flying.append(command)
        self._flying += 1
        try:
            if lane.begun == len(lane.flying) - 1:
                self._dispatcher.begin(lane)
        except BaseException:
            lane.forget(command)
            self._limits.rest(lane)
            lane.flying.pop()
            self._flying -= 1
            lane.begun, lane.passing = min(lane.begun, len(lane.flying)), None
            if begins:
                del self._left[request]
                if (staged := self._staged.pop(request, None)) is not None:
                    staged.close()
            raise

    def events(self, until_us: float) -> Iterator[Event]:
        """Events in the order of time, up to ``until_us`` or until nothing is left to happen."""
        if not self._lanes:
            raise DeviceError(f"{self.name} has not been opened: call open() with the policy's lanes first")
        words, due, told = self._host.words, self._due, self._told
        self._place.activate()
        lanes = sorted(self._lanes, key=lambda lane: -lane.lane.priority)
        look_us = 0.0
        collecting = gc.isenabled()
        if not self._goes_on:
            gc.disable()  # a collection takes as long as a critical request
        try:
            with self._clock.running():
                while self._open and (now_us := self._clock.now_us) < until_us:
                    for lane in lanes:
                        if lane.flying and (words[lane.word] != lane.heard or lane.ended):
                            self._hear(lane, now_us)
                    if told:
                        yield told.popleft()
                    elif due and due[0][0] <= now_us:
                        request = heapq.heappop(due)[2]
                        yield Event(EventKind.ARRIVED if request else EventKind.TICK, now_us, request)
                    elif not (due or self._flying):
                        return
                    elif now_us > look_us:
                        look_us = now_us + _HUNG_US / 10
                        self._look(now_us)
                    elif self._goes_on:
                        self._idle(now_us)
        finally:
            if collecting:
                gc.enable()

    def _idle(self, now_us: float) -> None:
        """Pass the time until something happens, or for a moment."""

    def _hear(self, lane: CudaLane, now_us: float) -> None:
        """Book what has ended on a lane."""
        word = self._host.words[lane.word]
        ends = (word - lane.heard) & 0xFFFFFFFF
        lane.heard = word
        if lane.passing is not None and ends:
            lane.in_pass = False
            if not self._host.words[lane.word + 1]:
                self._dispatcher.go_on(lane)
                return
            with self._standing_still():
                lane.passing.settle(lane)
            lane.passing = None
            self._limits.hold(self._limits.of(lane.flying[0].limits), -1)
            if (staged := self._staged.get(lane.flying[0].request)) is not None:
                self._dispatcher.fetch(lane, lane.flying[0], staged)
        lane.ended += ends
        while lane.ended and not self._follows(lane.flying[0]):
            if lane.fetching and lane.flying[0] in lane.fetching:
                if lane.ended == 1:
                    break  # its outputs are under way
                lane.ended -= 1
            run = lane.flying.popleft()
            lane.ended -= 1
            lane.begun -= 1
            self._flying -= 1
            if run.blocks is not None:
                self._limits.hold(self._limits.of(run.limits), -1)
            self._finish(lane, run, now_us)
            self._told.append(Event(EventKind.FINISHED, now_us, run.request, run))
        for other in self._lanes:
            if other.begun < len(other.flying):
                self._dispatcher.begin(other)

    def _stage(self, run: Run, work: Work) -> bool:
        """Have the inputs of a request ready; whether they are such that it can run."""
        request = run.request
        if run.blocks is not None:
            raise DeviceError(f"a shard of {request.task.name}: a request that brings inputs runs in whole launches")
        if request.error is not None:  # has been told
            return False
        inputs = request.inputs or ()
        try:
            self._staged[request] = inputs if isinstance(inputs, Staged) else work.transfer.stage(inputs)
        except InputError as error:
            request.error, request.finish_us = error, self._clock.now_us
            self._told.append(Event(EventKind.FINISHED, request.finish_us, request, run))
            return False
        return True

    def _follows(self, run: Run) -> bool:
        """Whether a run that has ended comes after one whose end is still to be told, first."""
        return any(e.lane != run.lane and e in self._lanes[e.lane].flying for e in run.after)

    def _finish(self, lane: CudaLane, run: Run, now_us: float) -> None:
        request, begin_us = run.request, lane.since_us
        lane.since_us = now_us
        before = self._work(request.task, lane).blocks
        blocks = run.blocks[1] - run.blocks[0] if run.blocks else before[run.launches.stop] - before[run.first]
        self._blocks += blocks
        self._left[request] -= blocks
        if request.start_us is None or begin_us < request.start_us:
            request.start_us = begin_us
        if not self._left[request]:
            request.finish_us = now_us
            del self._left[request]
            if request.inputs is not None:
                request.outputs = self._staged.pop(request).done()
        lane.forget(run)
        self._limits.rest(lane)
        self._limits.strike(run.limits)
        for number in run.limits:
            self._dispatcher.go_on(self._lanes[number])
        if not self._flying:
            self._busy_us += now_us - self._busy_since_us
        if self._trace_us is not None and self._trace_us[0] <= now_us <= self._trace_us[1]:
            self._spans.append(Span(run, run.first, blocks, begin_us, now_us))

    def _look(self, now_us: float) -> None:
        """Raise an error if a lane that may run has not given a sign of life for long."""
        away = now_us - self._looked_us > _HUNG_US / 2  # nobody asked for events: who knows what would have ended
        self._looked_us = now_us
        for lane in self._lanes:
            if away or not (lane.begun and lane.limit) or lane.heard != lane.seen:
                lane.seen, lane.seen_us = lane.heard, now_us
            elif now_us - lane.seen_us > _HUNG_US:
                run = lane.flying[0]
                raise DeviceError(
                    f"lane {lane.lane.name}: nothing has ended for {_HUNG_US / 1e6:.0f} s; "
                    f"{run.request.task.program.name} hangs, or takes that long"
                )
            _ = lane.stream.done  # or the error of a GPU that has failed

    def usage(self) -> Usage:
        """How long there was work, as the host saw it; how full the SMs were is not measured."""
        busy_us = self._busy_us + (self._clock.now_us - self._busy_since_us if self._flying else 0.0)
        return Usage(busy_us, None, None, self._blocks, spans=tuple(self._spans))

    def outputs(self) -> Mapping[str, tuple[int, int]]:
        """By task: inferences whose outputs were compared, and words of 4 bytes in them that were not equal.

        Not compared are inferences whose last launch ran in shards. What is under way is let go to its end, and
        nothing can be submitted after that.
        """
        self._drain()
        found: dict[str, tuple[int, int]] = {}
        for task, work in self._works:
            if work.check is not None:
                pair = work.check.found
                before = found.get(task, (0, 0))
                found[task] = (before[0] + pair[0], before[1] + pair[1])
        return found

    def _drain(self) -> None:
        """Let everything that was enqueued end.

        Raises
        ------
        DeviceError
            Something does not end.
        """
        for lane in self._lanes:
            lane.passing = None
            self._limits.lift(lane)
        until_ns = perf_counter_ns() + int(_HUNG_US * 1e3)
        for lane in self._lanes:
            while not lane.done:
                if perf_counter_ns() > until_ns:
                    raise DeviceError(f"lane {lane.lane.name} of {self.name} does not end: the GPU hangs")
        if self._lanes:
            self._limits.synchronize()

    def close(self) -> None:
        """Let what is under way end and give everything back; allowed twice."""
        if not self._open:
            return
        self._open = False
        self._place.activate()
        self._drain()
        self._made.close()

    def _give_back(self, place: Place) -> None:
        if place.partition is not None:
            self._codes.forget(place.partition)
        place.close()

    def _work(self, task: Task, lane: CudaLane) -> Work:
        """The task in the place of a lane."""
        work = self._works.find(task, lane.place)
        if work is None:
            with self.loading():
                work = self._works.make(task, lane.place)
        return work

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A block of the thread of the events in which the driver may wait for all kernels to end."""
        with self._standing_still(), self._limits.load():
            yield

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        """Do something that takes long, once, wherever it is: the clock does not count it."""
        with self._clock.standing_still():
            try:
                yield
            finally:
                self._place.activate()

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes += (note,)
