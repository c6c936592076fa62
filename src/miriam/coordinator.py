"""The coordinator: one loop between a device and a policy, and what it knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol
from weakref import WeakSet

from miriam.device.base import Command, Device, Event, EventKind, Geometry, Lane, Run, Wake, check_run
from miriam.errors import PolicyError
from miriam.task import Request

__all__ = ["Coordinator", "Listener", "Policy", "Traffic", "View", "coordinate"]


class View:
    """What a coordinator can know when it decides.

    Attributes
    ----------
    geometry
        Of the device.
    now_us
        Time of the event at hand.
    pending
        Requests that arrived and have not finished, oldest first.
    """

    def __init__(self, geometry: Geometry, lanes: Sequence[Lane]) -> None:
        self.geometry = geometry
        self.now_us = 0.0
        self.pending: list[Request] = []
        self._flying: list[list[Run]] = [[] for _ in lanes]
        self._left: dict[Request, dict[int, int] | None] = {}  # blocks by launch; None: all of them
        self._submitted_runs: WeakSet[Run] = WeakSet()

    def flying(self, lane: int) -> Sequence[Run]:
        """Runs of a lane that were submitted and have not finished, in their order."""
        return self._flying[lane]

    def waiting(self, *, critical: bool) -> list[Request]:
        """Pending requests above the normal level, or at it, oldest first."""
        return [request for request in self.pending if request.task.critical is critical]

    def idle(self, lane: int) -> bool:
        """Whether a lane has nothing to do."""
        return not self._flying[lane]

    def launch_of(self, request: Request) -> int:
        """The first launch of ``request`` that is not complete."""
        left = self._left[request]
        return 0 if left is None else min(left, default=len(request.task.program.launches))

    def left(self, request: Request, launch: int) -> int:
        """Logical blocks of a launch that have not been run."""
        left, steps = self._left[request], request.task.program.launches
        if left is None:
            return steps[launch].blocks if launch < len(steps) else 0
        return left.get(launch, 0)

    def _arrived(self, request: Request) -> None:
        self.pending.append(request)
        self._left[request] = None

    def _submitted(self, run: Run) -> None:
        if run.request not in self._left:
            raise PolicyError(f"request {run.request.number} of {run.request.task.name} has finished or never arrived")
        if any(earlier not in self._submitted_runs for earlier in run.after):
            raise PolicyError(
                f"a run of {run.request.task.name} waits for one that was not submitted: submit that first"
            )
        self._submitted_runs.add(run)
        self._flying[run.lane].append(run)

    def _finished(self, run: Run) -> bool:
        """Book a finished run; whether its request is complete now."""
        self._flying[run.lane].remove(run)
        object.__setattr__(run, "after", ())  # or each run would keep alive all that ever ran before it
        request, program = run.request, run.request.task.program
        if request.error is not None:
            return self._failed(request)
        left = self._left.get(request, {})
        if left is None:
            if run.blocks is None and len(run.launches) == len(program.launches):  # as most: nothing to count
                return self._complete(request)
            left = self._left[request] = {i: step.blocks for i, step in enumerate(program.launches)}
        first = min(left, default=run.first)
        if first < run.first:
            raise PolicyError(
                f"launch {run.first} of {program.name} ended before launch {first}: "
                "submit them to one lane in their order, or name runs in Run.after"
            )
        for launch in run.launches:
            done = left.get(launch, 0) if run.blocks is None else run.blocks[1] - run.blocks[0]
            rest = left.get(launch, 0) - done
            if rest < 0 or (run.blocks is None and rest + done != program.launches[launch].blocks):
                raise PolicyError(f"blocks of launch {launch} of {program.name} ran twice")
            if rest:
                left[launch] = rest
            else:
                left.pop(launch, None)
        return not left and self._complete(request)

    def _complete(self, request: Request) -> bool:
        self.pending.remove(request)
        del self._left[request]
        return True

    def _failed(self, request: Request) -> bool:
        """Forget a request of which nothing more runs; whether that is news."""
        for runs in self._flying:
            runs[:] = [run for run in runs if run.request is not request]
        return request in self._left and self._complete(request)


class Policy(Protocol):
    """Decides what each lane runs next and how wide.

    Attributes
    ----------
    name
        As the user writes it.
    lanes
        The lanes that it needs.
    """

    name: str
    lanes: tuple[Lane, ...]

    def decide(self, event: Event, view: View) -> Iterable[Command]:
        """Commands in answer to an event. ``view`` already contains the event.

        A policy may be a generator: each command is carried out and seen in ``view`` before the
        policy is asked for the next one.
        """

    def report(self) -> Mapping[str, float]:
        """What it wants to say about its run; empty for most.

        Names that begin with ``host_`` are measurements of the machine that runs the coordinator.
        """


class Traffic(Protocol):
    """Where requests come from."""

    def start(self) -> Iterable[Request]:
        """The requests that are known from the start."""

    def after(self, finished: Request) -> Request | None:
        """The request that follows from a finished one (closed loop), or None."""


class Listener(Protocol):
    """Is told what a coordinator does."""

    def heard(self, event: Event, commands: Sequence[Command]) -> None:
        """An event, and the commands with which it was answered, which have been carried out."""


class Coordinator:
    """A device and a policy at work.

    Parameters
    ----------
    trace_us
        Window whose spans and samples the device keeps.
    listener
        Is told of every event and what was done about it.

    Attributes
    ----------
    view
        What the policy sees.
    """

    def __init__(
        self, device: Device, policy: Policy, trace_us: tuple[float, float] | None = None,
        listener: Listener | None = None,
    ) -> None:  # fmt: skip
        device.open(policy.lanes, trace_us)
        self.view = View(device.geometry, policy.lanes)
        self._device = device
        self._policy = policy
        self._listener = listener

    def run(self, until_us: float) -> Iterator[Request]:
        """Serve what the device is offered, and give each request that has finished, or has failed.

        It ends at ``until_us`` or when nothing is left to happen, and can be called again.

        Raises
        ------
        PolicyError
            The policy ran a block twice, a launch before the one before it, or a request that has finished.
        DeviceError
            A command makes no sense on this device.
        """
        view, listener = self.view, self._listener
        for event in self._device.events(until_us):
            view.now_us = event.time_us
            if event.kind is EventKind.ARRIVED and event.request is not None:
                view._arrived(event.request)
            elif event.kind is EventKind.FINISHED and event.run is not None and view._finished(event.run):
                yield event.run.request
            commands = []
            for command in self._policy.decide(event, view):
                self._carry_out(command)
                if listener is not None:
                    commands.append(command)
            if listener is not None:
                listener.heard(event, commands)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Wake):
            self._device.wake(command.time_us)
            return
        if isinstance(command, Run):
            check_run(command, len(self._policy.lanes))
            self.view._submitted(command)
        self._device.submit(command)


def coordinate(
    device: Device, policy: Policy, traffic: Traffic, until_us: float, trace_us: tuple[float, float] | None = None
) -> list[Request]:
    """Serve ``traffic`` with ``policy`` on ``device`` and give back the finished requests.

    Parameters
    ----------
    until_us
        When to stop; requests that are still running then are left out.
    trace_us
        Window whose spans and samples the device keeps.

    Raises
    ------
    PolicyError
        The policy ran a block twice, a launch before the one before it, or a request that has finished.
    DeviceError
        A command makes no sense on this device.
    """
    coordinator = Coordinator(device, policy, trace_us)
    for request in traffic.start():
        device.offer(request)
    done: list[Request] = []
    for request in coordinator.run(until_us):
        done.append(request)
        following = traffic.after(request)
        if following is not None:
            device.offer(following)
    return done
