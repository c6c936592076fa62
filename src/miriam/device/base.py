"""The seam between policies and devices: lanes, commands, events, geometry.

A coordinator is one loop (:func:`miriam.coordinator.coordinate`): for every event of a device it asks
the policy for commands and carries them out. Three commands are enough:

:class:`Run`
    a whole program, some of its launches, or one shard of one launch, on a lane, at a width;
:class:`Limit`
    how many SMs the workers of a lane may keep from now on;
:class:`Wake`
    ask the policy again at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from miriam.errors import DeviceError
from miriam.program import Kernel, Program
from miriam.task import Request, Task

__all__ = [
    "Command",
    "Device",
    "Event",
    "EventKind",
    "Geometry",
    "Lane",
    "Limit",
    "Run",
    "Serving",
    "Span",
    "Usage",
    "Wake",
]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The counts of a GPU that decide where blocks fit.

    Attributes
    ----------
    sms
        Streaming multiprocessors.
    threads_per_sm, blocks_per_sm, registers_per_sm, shared_per_sm_bytes
        What one of them holds at a time.
    shared_per_block_bytes
        The most that one block may have.
    shared_reserved_bytes
        What the system takes of every resident block's shared memory (1 KiB since compute
        capability 8.0).
    partition_sms
        SMs of the smallest partition, and what the sizes of partitions are multiples of (CUDA driver
        API, ``cuDevSmResourceSplitByCount``: 2 for compute capability 7, at least 4 for 8, 8 for 9).
    """

    sms: int
    threads_per_sm: int
    blocks_per_sm: int
    registers_per_sm: int
    shared_per_sm_bytes: int
    shared_per_block_bytes: int
    shared_reserved_bytes: int = 0
    partition_sms: int = 8

    def residency(self, kernel: Kernel, threads: int | None = None) -> int:
        """Blocks of ``kernel`` that one SM holds at a time; 0 if not even one fits.

        Registers are allocated to warps in units of 256, from four register files an SM, so that the
        number of warps they suffice for is a multiple of four; shared memory is allocated in units of
        128 bytes (CUDA occupancy calculator, compute capability 7.0 to 9.0).

        Parameters
        ----------
        threads
            Threads of a block, if not as many as the kernel has.
        """
        warps = -(-(threads or kernel.threads) // 32)
        registers = -(-max(kernel.registers, 1) * 32 // 256) * 256  # of a warp
        shared = -(-kernel.shared_bytes // 128) * 128
        if shared > self.shared_per_block_bytes:
            return 0
        shared += self.shared_reserved_bytes
        held = self.registers_per_sm // registers // 4 * 4  # warps
        fits = min(self.blocks_per_sm, self.threads_per_sm // (warps * 32), held // warps)
        return min(fits, self.shared_per_sm_bytes // shared) if shared else fits


@dataclass(frozen=True, slots=True)
class Lane:
    """An ordered queue of work on a device: one run after another.

    Attributes
    ----------
    name
        For people.
    priority
        Blocks of a lane with a higher one are placed first.
    sms
        A number: the lane has a partition of so many SMs and uses no others. Partitions do not
        overlap. None: it uses all SMs of the device, those of partitions included.
    """

    name: str
    priority: int = 0
    sms: int | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Run:
    """Run launches of a request on a lane. Compared by identity.

    Attributes
    ----------
    request
        The inference that this is part of.
    lane
        Index of the lane. Runs of one lane execute in the order of their submission.
    first, last
        The launches ``first`` to ``last - 1`` of the program, one after another; ``last`` None: to
        the end.
    blocks
        Only the logical blocks ``begin`` to ``end - 1`` of launch ``first``: a shard.
    workers
        None: the original form, a physical block for each logical one. A number: elastic form, so
        many workers, each running logical blocks one after another until none is left or a limit
        of the lane takes its SM away.
    threads
        Threads of a physical block, if fewer than the kernel has (thin blocks). Not every kernel has such
        blocks: on a GPU one without runs those that it has.
    limits
        Limits of other lanes, by index, in SMs as in :class:`Limit`, that hold from this run's start
        to its end. Of several that hold at a time the lowest counts.
    after
        Runs, of whatever lane, that must be finished before this one starts; each was submitted
        before it. The device orders this by itself, with no turn of the host.
    why
        What the policy was about, for people who read a trace.
    """

    request: Request
    lane: int
    first: int = 0
    last: int | None = None
    blocks: tuple[int, int] | None = None
    workers: int | None = None
    threads: int | None = None
    limits: Mapping[int, int | None] = field(default_factory=lambda: MappingProxyType({}))
    after: tuple[Run, ...] = ()
    why: str = ""

    @property
    def launches(self) -> range:
        """The launches that it runs, whole or in part."""
        end = len(self.request.task.program.launches) if self.last is None else self.last
        return range(self.first, self.first + 1 if self.blocks is not None else end)


@dataclass(frozen=True, slots=True)
class Limit:
    """From now on workers of a lane's elastic runs may stay on so many SMs only; None: on all.

    Those are the first ``sms`` that the lane can use, always in the same order. Workers elsewhere leave
    at the end of their share; those that come later go where they may stay. Zero pauses the lane.
    Launches that only run whole do not start in a paused lane, and know no other limit.
    """

    lane: int
    sms: int | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Wake:
    """Give a TICK at this time, or at once if it has passed. The coordinator sees to it."""

    time_us: float


Command: TypeAlias = Run | Limit | Wake


class EventKind(Enum):
    """What happened."""

    ARRIVED = auto()
    """A request came in."""
    FINISHED = auto()
    """A run is complete; or its request has failed, and no more of it runs: ``request.error`` says why."""
    YIELDED = auto()
    """The last worker of an elastic run left because of a limit of zero; the run goes on by itself
    when the limit rises. Only a simulated device tells it: on a GPU nobody asks workers whether they left."""
    TICK = auto()
    """A time that was asked for with :class:`Wake` has come."""
    HINTED = auto()
    """It was said, or is no longer said, that a request of a level is on its way: see :attr:`Event.level`."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a coordinator hears of.

    Attributes
    ----------
    kind, time_us
        What, and when the coordinator noticed.
    request
        The request that arrived, or whose run finished or yielded.
    run
        The run that finished or yielded.
    level
        Of a hint: the highest level of which a request is on its way; None: of no level any more.
    """

    kind: EventKind
    time_us: float
    request: Request | None = None
    run: Run | None = None
    level: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """What a device did for one launch, or one shard of it: one bar of a timeline.

    Attributes
    ----------
    run, launch
        Of which run, and which launch of its program.
    blocks
        Logical blocks done.
    begin_us, end_us
        First block placed to last block gone.
    """

    run: Run
    launch: int
    blocks: int
    begin_us: float
    end_us: float


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a device was between the first and the last event.

    Attributes
    ----------
    busy_us
        Time in which at least one block was resident.
    occupancy
        Achieved occupancy: resident warps over the warps that an SM can hold, averaged over the
        SMs and the time in which an SM held at least one block (as Nsight Compute defines it). None
        where nobody can see it.
    sm_active
        Share of SMs that held at least one block, averaged over the busy time; None likewise.
    blocks
        Logical blocks that were run.
    samples
        (time_us, threads resident by lane) at every change inside the traced window.
    spans
        Launches that ended inside the traced window.
    """

    busy_us: float
    occupancy: float | None
    sm_active: float | None
    blocks: int
    samples: Sequence[tuple[float, tuple[int, ...]]] = ()
    spans: Sequence[Span] = ()


class Device(Protocol):
    """Runs lanes. One device object serves one run of a coordinator.

    Attributes
    ----------
    name
        As the user wrote it, for example ``sim:h200/16``.
    geometry
        Its counts.
    command_us
        What one command costs the host.
    notes
        What a reader of its results has to know (what is scaled rather than measured).
    """

    name: str
    geometry: Geometry
    command_us: float

    @property
    def notes(self) -> tuple[str, ...]:
        """See above."""

    def open(self, lanes: Sequence[Lane], trace_us: tuple[float, float] | None = None) -> None:
        """Make the lanes; called once. ``trace_us``: the window whose spans and samples are kept."""

    def offer(self, request: Request) -> None:
        """Let ``request`` arrive at its ``arrival_us``, or at once if that has passed. From any thread."""

    def wake(self, time_us: float) -> None:
        """Give a TICK at that time."""

    def launch_us(self, program: Program) -> tuple[float, ...]:
        """Time of each launch of ``program`` alone on this device, launch gap included."""

    def submit(self, command: Run | Limit) -> None:
        """Carry out a command, after the ones submitted before it."""

    def events(self, until_us: float) -> Iterator[Event]:
        """Events in the order of time, up to ``until_us`` or until nothing is left to happen.

        Commands submitted while an event is being handled take effect before the next event.
        """

    def usage(self) -> Usage:
        """How full the device was so far."""

    def close(self) -> None:
        """Give everything back; allowed twice."""


class Serving(Device, Protocol):
    """A device on which tasks come and go while it runs: what :class:`miriam.Runtime` needs.

    It is made, opened, asked for events and closed in one thread. From all others, at any time, come
    :meth:`offer`, :meth:`wake`, :meth:`prepare`, :meth:`forget` and ``now_us``.

    ``events`` is called again and again. It gives control back when nothing can happen any more without a
    new request or command (a lane whose limit is zero does nothing), and never waits for that: whoever calls
    it waits, and asks again.

    Attributes
    ----------
    now_us
        Its clock, which also runs while nobody asks for events. Requests arrive by it.
    depth
        Requests of one level that it is best given at a time: one, or two where it would idle from the end of
        one to the news of it.
    """

    depth: int

    @property
    def now_us(self) -> float:
        """See above."""

    def prepare(self, task: Task, bound: Any = None) -> None:
        """Make ready what requests of a task need: memory, code. May take long.

        Parameters
        ----------
        bound
            What runs the program of the task where the device does not do it by itself; of the kind that belongs
            to the device, such as :class:`miriam.device.cuda.bound.Bound`.

        Raises
        ------
        DeviceError
            The device cannot run it.
        """

    def forget(self, task: Task) -> None:
        """Give back what :meth:`prepare` made; no request of the task is there any more."""

    def wake(self, time_us: float) -> None:
        """Give a TICK at that time; ``events`` looks at once where that has come."""


def check_run(run: Run, lanes: int) -> None:
    """Raise :class:`DeviceError` if ``run`` makes no sense on a device with so many lanes."""
    program = run.request.task.program
    steps = run.launches
    if not 0 <= run.lane < lanes:
        raise DeviceError(f"run on lane {run.lane}, the device was opened with {lanes}")
    if not (0 <= steps.start < steps.stop <= len(program.launches)):
        raise DeviceError(f"launches {steps.start}..{steps.stop} of {program.name}, which has {len(program.launches)}")
    if run.blocks is not None:
        if run.last not in (None, run.first + 1):
            raise DeviceError(f"blocks of launch {run.first} and launches up to {run.last}: a shard is of one launch")
        begin, end = run.blocks
        total = program.launches[run.first].blocks
        if not 0 <= begin < end <= total:
            raise DeviceError(f"blocks {begin}..{end} of launch {run.first} of {program.name}, which has {total}")
    if run.workers is not None and run.workers < 1:
        raise DeviceError(f"{run.workers} workers: an elastic run needs at least one; use Limit to pause a lane")
    if run.threads is not None and not 1 <= run.threads <= program.kernel_of(run.first).threads:
        raise DeviceError(f"{run.threads} threads a block: 1 to {program.kernel_of(run.first).threads} are possible")
    for lane, sms in run.limits.items():
        _check_limit(lane, sms, lanes)
        if lane == run.lane:
            raise DeviceError(f"a run limits its own lane {lane}: give it fewer workers instead")


def check_limit(limit: Limit, lanes: int) -> None:
    """Raise :class:`DeviceError` if ``limit`` makes no sense on a device with so many lanes."""
    _check_limit(limit.lane, limit.sms, lanes)


def _check_limit(lane: int, sms: int | None, lanes: int) -> None:
    if not 0 <= lane < lanes:
        raise DeviceError(f"limit on lane {lane}, the device was opened with {lanes}")
    if sms is not None and sms < 0:
        raise DeviceError(f"a limit of {sms} SMs: zero pauses a lane, None sets it free")


def check_lanes(lanes: Sequence[Lane], sms: int) -> None:
    """Raise :class:`DeviceError` if a device of so many SMs cannot have these lanes."""
    if not lanes:
        raise DeviceError("a device was opened without a lane: give it at least one")
    parts = [lane for lane in lanes if lane.sms is not None]
    for lane in parts:
        if lane.sms is not None and lane.sms < 1:
            raise DeviceError(f"lane {lane.name!r} has a partition of {lane.sms} SMs: it needs one at least")
    asked = sum(lane.sms or 0 for lane in parts)
    if asked > sms:
        named = ", ".join(f"{lane.name!r} {lane.sms}" for lane in parts)
        raise DeviceError(f"partitions of {asked} SMs ({named}): the device has {sms}")
