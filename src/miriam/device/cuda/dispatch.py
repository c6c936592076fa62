"""What is in the lanes, brought to the GPU in its order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial

from miriam.device.base import Run
from miriam.device.cuda.control import Control
from miriam.device.cuda.driver import Prepared
from miriam.device.cuda.lane import CudaLane
from miriam.device.cuda.limits import Limits
from miriam.device.cuda.place import Place
from miriam.device.cuda.transfer import Staged
from miriam.device.cuda.warm import Warmer
from miriam.device.cuda.work import Holds, Plan, Work
from miriam.elastic.pauses import spans
from miriam.elastic.state import ALL
from miriam.errors import DeviceError
from miriam.task import Request, Task

__all__ = ["Dispatcher"]

_HERE = nullcontext()


class Dispatcher:
    """Enqueues runs: as graphs, as passes one after another, or as shards.

    Parameters
    ----------
    place
        Of the device.
    lanes, limits, control
        All lanes, what holds them down, and the small kernels around the work.
    staged
        Inputs and outputs of requests that have some.
    work
        Gives a task in the place of a lane.
    aside
        A block for what takes long, once.
    loading
        The same, for what the driver may wait for all kernels in.
    say
        Told what a reader of the results has to know.
    """

    def __init__(
        self, place: Place, lanes: Sequence[CudaLane], limits: Limits, control: Control,
        staged: Mapping[Request, Staged], work: Callable[[Task, CudaLane], Work],
        aside: Callable[[], AbstractContextManager[None]], loading: Callable[[], AbstractContextManager[None]],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._place = place
        self._lanes = lanes
        self._limits = limits
        self._staged = staged
        self._control = control
        self._telling: dict[CudaLane, Prepared] = {}
        self._work = work
        self._aside = aside
        self._loading = loading
        self._say = say

    def begin(self, lane: CudaLane) -> None:
        """Enqueue what may be enqueued of a lane: everything, but for what the host itself has to keep in order."""
        while lane.begun < len(lane.flying) and lane.passing is None:
            run = lane.flying[lane.begun]
            work = self._work(run.request.task, lane)
            elastic = run.workers is not None and run.blocks is None and self._elastic(work, lane, run)
            in_passes = elastic and not lane.place.conditional
            if (in_passes and lane.begun) or not self._follow(lane, run):
                return
            lane.begun += 1
            staged = self._staged.get(run.request) if self._staged else None
            if staged is not None and not run.first:
                with self._there(lane):
                    staged.feed(work.instance, lane.stream)
            if run.blocks is not None:
                with self._once(lane, work, "shard", run.first, run.threads):
                    self._held(run, partial(work.shard, lane, run.first, run.blocks, run.threads))
                continue
            narrow = None
            if elastic:
                with self._once(lane, work, "resizable"):
                    narrow = work.resizable and (in_passes or lane.narrow)
                if not narrow:
                    lane.blunt.add(run)
                    self._limits.rest(lane)
            if in_passes:
                with self._once(lane, work, lane, "pass", False):
                    work.single(lane, narrow=False)
                lane.passing = work
                self._held(run, partial(self.go_on, lane))
            else:
                self._launch(work, lane, run, narrow)
                if staged is not None:
                    self.fetch(lane, run, staged)

    def fetch(self, lane: CudaLane, run: Run, staged: Staged) -> None:
        """Enqueue the outputs of a request, if ``run`` in front of them is its last, and tell the host of them."""
        if run.launches.stop != len(run.request.task.program.launches):
            return
        with self._there(lane):
            staged.fetch(self._work(run.request.task, lane).instance, lane.stream)
            if lane not in self._telling:
                self._telling[lane] = self._control.notifying(lane.stream, lane.counter, lane.words)
            self._telling[lane].enqueue(lane.stream)
        lane.fetching.add(run)

    def _once(self, lane: CudaLane, work: Work, *what: object) -> AbstractContextManager[None]:
        """A block that makes something of a task when it is first entered for that."""
        return self._there(lane) if what in work.made else self._first(work, what)

    @contextmanager
    def _first(self, work: Work, what: tuple[object, ...]) -> Iterator[None]:
        with self._loading():
            yield
        work.made.add(what)

    def _there(self, lane: CudaLane) -> AbstractContextManager[None]:
        """A block in the context of a lane's stream."""
        return _HERE if lane.place is self._place else self._elsewhere(lane)

    @contextmanager
    def _elsewhere(self, lane: CudaLane) -> Iterator[None]:
        lane.place.activate()
        try:
            yield
        finally:
            self._place.activate()

    def _follow(self, lane: CudaLane, run: Run) -> bool:
        """Let a lane wait for the runs that ``run`` comes after; gives False if one of them is not enqueued whole."""
        if not run.after:
            return True
        waits = []
        for earlier in run.after:
            other = self._lanes[earlier.lane]
            if other is not lane and earlier in other.flying:
                if other.passing is not None or other.flying.index(earlier) >= other.begun:
                    return False
                waits.append(other.mark(earlier))
        if lane.begun:  # others may come after it as well, and need not wait for this one
            lane.mark(lane.flying[lane.begun - 1])
        self._place.activate()
        for event in waits:
            lane.stream.wait(event)
        return True

    def _launch(self, work: Work, lane: CudaLane, run: Run, narrow: bool | None) -> None:
        """Enqueue launches as they are, or (``narrow`` is not None) an inference that looks after itself."""
        # The graph itself takes hold: that is the least work for the host, and the GPU is as early. But behind another
        # run of the lane hold at once, or others come back between the two; unless that waits for a run which might be
        # held, or somebody loads.
        cut = narrow is not None and lane.pauses.cut and len(spans(len(run.launches))) > 1
        behind = lane.begun > 1 and not any(other.after for other in lane.flying)
        while True:
            with self._limits.lock:
                hold = bool(run.limits) and not (behind and not self._limits.loading)
                key = (work, run.first, run.last, narrow, cut, hold, *run.limits)
                plan = lane.plans.get(key)
                if plan is not None:
                    self._enqueue(run, plan.holds, partial(plan.graph.launch, lane.stream), ahead=not hold)
                    if plan.warmer is not None:
                        self._warm(plan.warmer, lane, run)
                    return
            with self._loading():
                holds = self._limits.of(run.limits)
                warmer = work.warmed() if holds.lanes and narrow is None else None
                if warmer is not None:
                    _ = lane.beside  # or a lane would be held while its stream is made
                # All of them, since PyTorch may be collecting a graph when the other one is wanted.
                ways = (False, True) if narrow is not None and len(spans(len(run.launches))) > 1 else (False,)
                for inside, spanned in itertools.product((False, True) if run.limits else (False,), ways):
                    if narrow is None:
                        graph = work.original(lane, run.launches, holds, hold=inside)
                    else:
                        graph = work.resident(lane, holds, hold=inside, narrow=narrow, cut=spanned)
                    key = (work, run.first, run.last, narrow, spanned, inside, *run.limits)
                    lane.plans[key] = Plan(graph, holds, warmer)

    def _held(self, run: Run, launch: Callable[[], None]) -> None:
        """Enqueue a run whose limits hold until :meth:`_hear` ends them; of those whose graphs do not see to that."""
        with self._aside() if run.limits else _HERE:
            holds = self._limits.of(run.limits)
        self._enqueue(run, holds, launch, ahead=True)

    def _enqueue(self, run: Run, holds: Holds, launch: Callable[[], None], *, ahead: bool) -> None:
        """Enqueue a run, and a hold in front of it if that is to come ``ahead``; nobody is held if that fails."""
        held = False
        self._limits.book(run.limits)
        try:
            if ahead:
                self._limits.hold(holds)
                held = True
            launch()
        except BaseException:
            with suppress(DeviceError):  # of a driver that does nothing any more: the first one says why
                if held:
                    self._limits.hold(holds, -1)
                self._limits.strike(run.limits)
            raise

    def _warm(self, warmer: Warmer, lane: CudaLane, run: Run) -> None:
        try:
            warmer.enqueue(lane.beside)
        except DeviceError as error:  # the run is under way, and does without
            self._say(f"weights of {run.request.task.name} were not asked for: {error}")

    def go_on(self, lane: CudaLane) -> None:
        """Enqueue the next pass of the inference under way, where the host does that and the limit lets it run."""
        work, limit = lane.passing, lane.limit
        if work is None or lane.in_pass or limit == 0:
            return
        narrow = limit != ALL
        if narrow and not work.resizable:
            return
        with self._once(lane, work, lane, "pass", narrow):
            graph = work.single(lane, narrow=narrow)
        graph.launch(lane.stream)
        lane.in_pass = True

    def _elastic(self, work: Work, lane: CudaLane, run: Run) -> bool:
        """Whether a program can run with elastic workers in a lane; says why if it cannot."""
        program = work.program
        if len(run.launches) != len(program.launches):
            raise DeviceError(
                f"elastic workers for launches {run.first} to {run.launches.stop - 1} of {program.name}: on a GPU an "
                "elastic run is a whole program, or a shard of one launch"
            )
        if lane.place.conditional:
            return True
        with self._once(lane, work, "opaque"):
            opaque = work.opaque
        for name, why in opaque.items():
            self._say(f"{program.name} runs whole in a partition: {name} is not elastic ({why})")
            return False
        return True
