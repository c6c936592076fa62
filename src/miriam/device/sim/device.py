"""The simulated device: the engine behind the seam, with a host whose commands take time."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from miriam.device.base import Event, EventKind, Lane, Limit, Run, Span, Usage, check_lanes, check_limit, check_run
from miriam.device.sim import state as col
from miriam.device.sim.costs import BlockCost, CostModel
from miriam.device.sim.spec import parse
from miriam.device.sim.state import ALL, NONE, State, add_rows, grow_runs, new_state
from miriam.elastic.pauses import Pauses, spans
from miriam.errors import DeviceError
from miriam.profile import ProfileSource
from miriam.program import Program
from miriam.task import Request

__all__ = ["SimDevice"]

_RUNS = 64
_SAMPLES = 1 << 14
_SPANS = 1 << 12


class SimDevice:
    """A model of a GPU; implements :class:`miriam.device.base.Device`.

    Same inputs, same events, to the bit. One host thread handles events and submits commands, each of
    which occupies it for a while (see :class:`miriam.device.sim.spec.Spec`); what happens on the
    device reaches it a little later. A run in ``Run.after`` that is not in flight counts as finished.

    Parameters
    ----------
    name
        Such as ``sim:h200``, ``sim:h200/16``, ``sim:xavier``.
    profiles
        Where the profiles are that blocks' costs follow from.

    Raises
    ------
    DeviceError
        There is no such device.
    """

    def __init__(self, name: str, profiles: ProfileSource) -> None:
        self.name = name
        self.spec = parse(name)
        self.geometry = self.spec.geometry
        self.command_us = self.spec.host_launch_us
        self.notes: tuple[str, ...] = self.spec.notes
        self._model = CostModel(self.spec, profiles)
        self._costs: dict[tuple[int, int | None, int], tuple[BlockCost, ...]] = {}
        self._rows: dict[tuple[int, int | None, int, bool], int] = {}
        self._programs: dict[int, Program] = {}  # keeps alive what is known by id
        self._used: dict[int, int] = {}  # program -> when it used the caches last, counted in uses
        self._uses = 0
        self._crowds: dict[Request, int] = {}
        self._state: State | None = None
        self._lanes: tuple[Lane, ...] = ()
        self._pauses: list[Pauses] = []
        self._holding: list[int] = []  # runs in flight that limit a lane
        self._queue: list[tuple[float, int, float, EventKind, Request | None, Run | None]] = []
        self._order = itertools.count()
        self._commands: deque[tuple[float, Run | Limit]] = deque()
        self._host_us = 0.0
        self._heard_us = 0.0
        self._places: list[int] = []
        self._flying: dict[Run, int] = {}
        self._runs: dict[int, Run] = {}
        self._followers: dict[Run, list[Run]] = {}
        self._last_blocks: dict[Request, int] = {}
        self._samples: list[tuple[float, tuple[int, ...]]] = []
        self._spans: list[Span] = []
        self._closed = False

    def open(self, lanes: Sequence[Lane], trace_us: tuple[float, float] | None = None) -> None:
        """Make the lanes; called once. ``trace_us``: the window whose spans and samples are kept."""
        if self._state is not None or self._closed:
            raise DeviceError(f"{self.name} was opened before: make a new device for every run")
        check_lanes(lanes, self.geometry.sms)
        self._lanes = tuple(lanes)
        self._pauses = [Pauses() for _ in lanes]
        self._holding = [0] * len(lanes)
        self._state = new_state(self.spec, lanes, _RUNS, _SAMPLES, _SPANS)
        self._places = list(range(_RUNS))[::-1]
        if trace_us is not None:
            self._state.now[col.TRACE_FROM : col.TRACE_TO + 1] = trace_us

    def offer(self, request: Request) -> None:
        """Let ``request`` arrive at its ``arrival_us``, which must not lie before the event at hand happened."""
        if not request.arrival_us >= self._heard_us:
            raise DeviceError(
                f"request {request.number} of {request.task.name} would arrive at {request.arrival_us} us, "
                f"and it is {self._heard_us} us: offer requests before they arrive"
            )
        self._opened()
        self._push(request.arrival_us, request.arrival_us, EventKind.ARRIVED, request)

    def wake(self, time_us: float) -> None:
        """Give a TICK at that time."""
        self._opened()
        self._push(time_us, time_us, EventKind.TICK)

    def launch_us(self, program: Program) -> tuple[float, ...]:
        """Time of each launch of ``program`` alone on this device, launch gap included."""
        return tuple(cost.alone_us for cost in self._cost(program, None))

    def submit(self, command: Run | Limit) -> None:
        """Carry out a command, after the ones submitted before it."""
        self._opened()
        if isinstance(command, Run):
            self._check(command)
            self._flying[command] = -1
            cost_us = self.spec.run_cost_us(len(command.launches))
        else:
            check_limit(command, len(self._lanes))
            cost_us = self.spec.host_launch_us
        self._host_us += cost_us
        self._commands.append((self._host_us, command))

    def events(self, until_us: float) -> Iterator[Event]:
        """Events in the order of time, up to ``until_us`` or until nothing is left to happen."""
        from miriam.device.sim import core

        self._opened()
        while not self._closed:
            deliver_us = max(self._queue[0][0], self._host_us) if self._queue else math.inf
            command_us = self._commands[0][0] if self._commands else math.inf
            stop_us = min(deliver_us, command_us, until_us)
            code = core.advance(self._opened(), stop_us)
            if code in (col.VISIBLE, col.FULL):
                self._take()
            elif command_us <= stop_us and command_us < until_us:
                self._apply(self._commands.popleft()[1], command_us)
            elif deliver_us <= stop_us and deliver_us < until_us:
                _, _, happened_us, kind, request, run = heapq.heappop(self._queue)
                self._host_us, self._heard_us = deliver_us + self._handling_us(kind, request, run), happened_us
                if kind is EventKind.FINISHED and run is not None:
                    self._strike(run, deliver_us)
                yield Event(kind, deliver_us, request, run)
            else:
                break
        if self._state is not None:
            self._take()

    def usage(self) -> Usage:
        """How full the device was so far."""
        state = self._opened()
        busy_us, sm_us, warp_us = (float(state.now[i]) for i in (col.BUSY, col.SM_TIME, col.WARP_TIME))
        warps = self.geometry.threads_per_sm // 32
        return Usage(
            busy_us=busy_us,
            occupancy=min(1.0, warp_us / (warps * sm_us)) if sm_us else 0.0,  # rounding can pass 1
            sm_active=min(1.0, sm_us / (self.geometry.sms * busy_us)) if busy_us else 0.0,
            blocks=int(state.total[col.BLOCKS]),
            samples=tuple(self._samples),
            spans=tuple(self._spans),
        )

    def resident(self) -> NDArray[np.int64]:
        """Blocks on the device now, shape (SMs, lanes)."""
        return self._opened().held.copy()

    def close(self) -> None:
        """Give everything back; allowed twice."""
        self._closed = True
        self._queue.clear()
        self._commands.clear()

    def _opened(self) -> State:
        if self._state is None:
            raise DeviceError(f"{self.name} has not been opened: call open() with the policy's lanes first")
        return self._state

    def _check(self, run: Run) -> None:
        check_run(run, len(self._lanes))
        if run in self._flying:
            raise DeviceError("a run was submitted twice: make a new Run for every submission")
        costs = self._cost(run.request.task.program, run.threads)
        if run.blocks is not None:
            cost = costs[run.first]
            if cost.rigid and run.blocks != (0, cost.blocks):
                kernel = run.request.task.program.kernel_of(run.first)
                reason = kernel.opaque or f"it is a {kernel.source}"
                raise DeviceError(f"kernel {kernel.name} only runs whole ({reason}), not in shards")

    def _handling_us(self, kind: EventKind, request: Request | None, run: Run | None) -> float:
        """What the host spends on an event: it books every launch of what arrived or finished."""
        launches = 0
        if kind is EventKind.ARRIVED and request is not None:
            launches = len(request.task.program.launches)
        elif kind is EventKind.FINISHED and run is not None:
            launches = len(run.launches)
        return self.spec.host_event_us + launches * self.spec.host_step_us

    def _push(self, at_us: float, happened_us: float, kind: EventKind, request: Request | None = None,
              run: Run | None = None) -> None:  # fmt: skip
        """Let the host hear of something from ``at_us`` on."""
        heapq.heappush(self._queue, (at_us, next(self._order), happened_us, kind, request, run))

    def _cost(self, program: Program, threads: int | None, crowd_bytes: int = 0) -> tuple[BlockCost, ...]:
        key = (id(program), threads, crowd_bytes)
        if key not in self._costs:
            self._programs[id(program)] = program
            self._costs[key] = self._model.program(program, threads, crowd_bytes)
            self.notes = (*self.spec.notes, *self._model.notes)
        return self._costs[key]

    def _first_row(self, run: Run) -> int:
        """Row of the costs of the first launch of ``run``, in its form."""
        program, elastic = run.request.task.program, run.workers is not None
        crowd_bytes = self._crowd_bytes(run.request)
        key = (id(program), run.threads, crowd_bytes, elastic)
        if key not in self._rows:
            stretch = self.spec.elastic_overhead if elastic else 1.0
            costs = self._cost(program, run.threads, crowd_bytes)
            self._state, self._rows[key] = add_rows(self._opened(), costs, stretch)
        return self._rows[key] + run.first

    def _crowd_bytes(self, request: Request) -> int:
        """Size of the other programs that ran since the last request of this program, or run now."""
        if request not in self._crowds:
            own = id(request.task.program)
            last = self._used.get(own, -1)
            others = {program for program, at in self._used.items() if at > last}
            others |= {id(run.request.task.program) for run in self._runs.values() if not self._waits(run)}
            self._crowds[request] = sum(self._programs[other].size_bytes for other in others - {own})
        return self._crowds[request]

    def _waits(self, run: Run) -> bool:
        """Whether a run has left the device for a limit of zero."""
        lane = self._opened().lane[run.lane]
        return bool(lane[col.SAID]) and lane[col.HEAD] == self._flying[run]

    def _use(self, run: Run) -> None:
        self._uses += 1
        self._used[id(run.request.task.program)] = self._uses

    def _apply(self, command: Run | Limit, now_us: float) -> None:
        """A command reaches the device."""
        if isinstance(command, Limit):
            state = self._opened()
            state.lane[command.lane, col.BASE] = ALL if command.sms is None else command.sms
        else:
            row = self._first_row(command)
            if not self._places:
                places = len(self._opened().run)
                self._state = grow_runs(self._opened())
                self._places = list(range(2 * places - 1, places - 1, -1))
            self._enqueue(command, self._places.pop(), row)
            self._book(command, now_us)
            state = self._opened()
        state.total[col.DIRTY] = 1

    def _enqueue(self, run: Run, place: int, row: int) -> None:
        state, steps = self._opened(), run.launches
        waits = 0
        for other in run.after:
            if self._flying.get(other, NONE) != NONE:
                self._followers.setdefault(other, []).append(run)
                waits += 1
        state.run[place, col.LANE] = run.lane
        state.run[place, col.NEXT] = NONE
        state.run[place, col.WAITS] = waits
        state.run[place, col.FIRST_ROW] = row
        state.run[place, col.FIRST_STEP] = steps.start
        state.run[place, col.STEPS] = len(steps)
        state.run[place, col.SHARD] = NONE if run.blocks is None else run.blocks[1] - run.blocks[0]
        state.run[place, col.WORKER_COUNT] = NONE if run.workers is None else run.workers
        state.run[place, col.CUT] = run.workers is not None and self._cut(run)
        state.started[place] = np.nan
        state.limits[place] = ALL
        for lane, sms in run.limits.items():
            if sms is not None:
                state.limits[place, lane] = sms
        lane = state.lane[run.lane]
        if lane[col.TAIL] == NONE:
            lane[col.HEAD] = place
        else:
            state.run[lane[col.TAIL], col.NEXT] = place
        lane[col.TAIL] = place
        self._flying[run] = place
        self._runs[place] = run
        self._use(run)

    def _cut(self, run: Run) -> bool:
        """Whether an elastic run begins in spans: a whole program, and long enough."""
        whole = run.blocks is None and len(run.launches) == len(run.request.task.program.launches)
        return whole and self._pauses[run.lane].cut and len(spans(len(run.launches))) > 1

    def _book(self, run: Run, now_us: float) -> None:
        """The host has launched a run, which holds lanes."""
        for lane in run.limits:
            if not self._holding[lane]:
                self._pauses[lane].begin(now_us)
            self._holding[lane] += 1

    def _strike(self, run: Run, now_us: float) -> None:
        """The host hears that such a run is over."""
        for number in run.limits:
            self._holding[number] -= 1
            if self._holding[number]:
                continue
            lane, pauses = self._lanes[number], self._pauses[number]
            launches = 0
            if self.spec.conditional and lane.sms is None:
                inside = (other for other in self._flying if other.lane == number and other.workers is not None)
                launches = max((len(other.launches) for other in inside), default=0)
            pauses.end(now_us, launches)
            self._opened().lane[number, col.STAYS] = pauses.stays

    def _take(self) -> None:
        """Take out of the engine what it has to tell."""
        state = self._opened()
        for i in range(state.total[col.SAMPLES]):
            self._samples.append((float(state.samples_at[i]), tuple(int(n) for n in state.samples[i])))
        for i in range(state.total[col.SPANS]):
            place, step, blocks = (int(n) for n in state.spans[i])
            begin_us, end_us = (float(t) for t in state.spans_at[i])
            self._spans.append(Span(self._runs[place], step, blocks, begin_us, end_us))
        told = [(int(place), bool(left)) for place, left in state.out[: state.total[col.OUT]]]
        state.total[col.SAMPLES] = state.total[col.SPANS] = state.total[col.OUT] = 0
        now_us = float(state.now[col.TIME])
        for place, yielded in told:
            run = self._runs[place]
            self._began(run)
            if yielded:
                self._use(run)
            else:
                self._ended(run, now_us)
            kind = EventKind.YIELDED if yielded else EventKind.FINISHED
            self._push(now_us + self.spec.host_notice_us, now_us, kind, run.request, run)

    def _began(self, run: Run) -> None:
        start_us = float(self._opened().started[self._flying[run]])
        request = run.request
        if not math.isnan(start_us) and (request.start_us is None or start_us < request.start_us):
            request.start_us = start_us

    def _ended(self, run: Run, now_us: float) -> None:
        request, last = run.request, len(run.request.task.program.launches) - 1
        if last in run.launches:
            total = request.task.program.launches[last].blocks
            done = total if run.blocks is None else run.blocks[1] - run.blocks[0]
            done += self._last_blocks.pop(request, 0)
            if done < total:
                self._last_blocks[request] = done
            else:
                request.finish_us = now_us
                self._crowds.pop(request, None)  # gone already if a policy ran the last launch twice
        self._use(run)
        place = self._flying.pop(run)
        del self._runs[place]
        self._places.append(place)
        for follower in self._followers.pop(run, ()):
            self._opened().run[self._flying[follower], col.WAITS] -= 1
