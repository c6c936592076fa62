"""One caller in a process of its own: it sends when it is due, and writes down what came of it."""

from __future__ import annotations

import asyncio
import gc
import math
import selectors
import time
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from miriam.bench.arrivals import Closed, seeded_times_us
from miriam.errors import WorkloadError
from miriam.load.expected import Expected
from miriam.load.plan import Caller, Plan
from miriam.load.sample import sample
from miriam.load.sender import Asked, Described, Sender, UnansweredError
from miriam.load.server import Server
from miriam.load.shared import left
from miriam.serve.errors import ServiceError

__all__ = ["Phase", "Record", "call", "live", "sender"]

_FIRST = 3  # requests before everything: what is made on first use is made now
_PAUSE_S = 0.01  # of a closed loop after a failure, so that it does not run against a wall


@dataclass(frozen=True, slots=True)
class Phase:
    """A run that all callers are told of.

    Attributes
    ----------
    alone
        Name of the caller that has the server for itself, or None.
    begin_ns
        On the machine's monotonic clock, which all processes share.
    seed
        Of the arrivals.
    """

    alone: str | None
    begin_ns: int
    seed: int


@dataclass(frozen=True, slots=True)
class Record:
    """What came of the requests of a caller in a phase; times in us after its begin, shape (requests,).

    Attributes
    ----------
    arrival_us
        When it was due: for a closed loop the finish of the one before.
    sent_us, finish_us
        When it left, and when its answer was complete; infinite where it failed.
    reasons
        By reason: which requests failed for it.
    said
        By reason: what was said of the first of them.
    checked, wrong
        Answers that were compared, and words of 4 bytes in them that differed; None where nobody looked.
    cpu_us
        Processor time of this process in the phase.
    """

    arrival_us: NDArray[np.float64]
    sent_us: NDArray[np.float64]
    finish_us: NDArray[np.float64]
    reasons: Mapping[str, tuple[int, ...]]
    said: Mapping[str, str]
    checked: int | None
    wrong: int | None
    cpu_us: float

    @property
    def end_us(self) -> float:
        """When the last answer was complete."""
        return float(np.max(self.finish_us, initial=0.0, where=np.isfinite(self.finish_us)))


def live(connection: Connection, plan: Plan, caller: Caller) -> None:
    """The life of a process: tell whoever started it what the model takes, then a record for each phase until None."""
    # select() can wait for microseconds, the other ways for milliseconds only.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_live(connection, plan, caller))


async def _live(connection: Connection, plan: Plan, caller: Caller) -> None:
    own = sender(plan.server)
    try:
        described, asked = await _described(own, plan, caller)
        async with left(own, asked) if caller.shared_memory else nullcontext(asked) as asked:
            request, expected = await _prepare(own, plan, caller, asked)
            gc.collect()
            gc.freeze()
            gc.disable()  # its pauses would be latency; what is left behind is collected between two phases
            connection.send(described)
            while (phase := await asyncio.to_thread(connection.recv)) is not None:
                if phase.alone not in (None, caller.name):
                    connection.send(None)
                    continue
                connection.send(await call(own, request, plan, caller, phase, expected if plan.verify else None))
                gc.collect()
    finally:
        await own.close()


def sender(server: Server) -> Sender:
    """What sends over the protocol of the server."""
    if server.grpc:
        from miriam.load.over_grpc import GrpcSender

        return GrpcSender(server)
    from miriam.load.over_http import HttpSender

    return HttpSender(server)


async def _described(own: Sender, plan: Plan, caller: Caller) -> tuple[Described, Asked]:
    """Ask what the model takes."""
    try:
        described = await own.describe(caller.asks_for)
    except UnansweredError as error:
        raise _unusable(plan, error) from error
    return described, sample(caller, described, plan.seed)


async def _prepare(own: Sender, plan: Plan, caller: Caller, asked: Asked) -> tuple[object, Expected]:
    """Make the request, and ask for the first answers."""
    try:
        request = own.serialise(asked)
    except ServiceError as error:
        raise WorkloadError(str(error)) from error
    answers: list[bytes] = []
    for more in reversed(range(_FIRST)):
        try:
            answers.append(await own.send(request, plan.patience_s, lambda: None))
        except UnansweredError as error:
            if not more and not answers:  # one that is refused now may be answered later
                raise _unusable(plan, error) from error
            await asyncio.sleep(_PAUSE_S)
    return request, Expected.of(own, answers[0], caller)


def _unusable(plan: Plan, error: UnansweredError) -> WorkloadError:
    return WorkloadError(f"{plan.server}: {error} ({error.reason})")


async def call(
    own: Sender, request: object, plan: Plan, caller: Caller, phase: Phase, expected: Expected | None
) -> Record:
    """Send the requests of a phase, wait for what is under way at its end, and tell what came of them.

    An open arrival is sent when it is due whatever became of those before; what its client is late counts
    as latency, too, since latency runs from the moment in which it was due.
    """
    until_us = plan.duration_s * 1e6
    due_us = seeded_times_us(caller.name, caller.arrivals, until_us, phase.seed)
    arrival: list[float] = []
    sent: list[float] = []
    finish: list[float] = []
    reasons: dict[str, list[int]] = {}
    said: dict[str, str] = {}

    def now_us() -> float:
        return (time.monotonic_ns() - phase.begin_ns) * 1e-3

    async def one(arrival_us: float) -> float:
        number = len(arrival)
        arrival.append(arrival_us)
        sent.append(math.nan)
        finish.append(math.inf)

        def sending() -> None:
            sent[number] = now_us()

        try:
            answer = await own.send(request, plan.patience_s, sending)
        except UnansweredError as error:
            reasons.setdefault(error.reason, []).append(number)
            said.setdefault(error.reason, str(error))
            return math.inf
        finish[number] = done_us = now_us()
        if expected is not None:
            expected.check(own, answer)
        return done_us

    async def loop() -> None:
        arrival_us = 0.0
        while arrival_us < until_us:
            arrival_us = await one(arrival_us)
            if arrival_us == math.inf:
                await asyncio.sleep(_PAUSE_S)
                arrival_us = now_us()

    async def open_arrivals() -> None:
        running, under_way = asyncio.get_running_loop(), set[asyncio.Task[float]]()
        left, all_sent = deque(due_us.tolist()), asyncio.Event()

        def send_due() -> None:  # a callback: a coroutine that sleeps would wake up two turns of the loop later
            while left and left[0] <= now_us():
                task = asyncio.create_task(one(left.popleft()))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            if left:
                running.call_later((left[0] - now_us()) * 1e-6, send_due)
            else:
                all_sent.set()

        send_due()
        await all_sent.wait()
        await asyncio.gather(*under_way)

    if expected is not None:
        expected.checked = expected.wrong = 0
    await asyncio.sleep(max(0.0, -now_us()) * 1e-6)
    cpu_ns = time.process_time_ns()
    if isinstance(caller.arrivals, Closed):
        await asyncio.gather(*(loop() for _ in due_us))
    else:
        await open_arrivals()
    cpu_ns = time.process_time_ns() - cpu_ns
    return Record(
        np.array(arrival), np.array(sent), np.array(finish), {why: tuple(which) for why, which in reasons.items()},
        said, expected.checked if expected else None, expected.wrong if expected else None, cpu_ns * 1e-3,
    )  # fmt: skip
