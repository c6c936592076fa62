"""A service on paper, whose live page shows what a script says."""

import asyncio
import random
import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Self

import httpx
from starlette.applications import Starlette
from trace_support import Clock, Job, play, schedule

from miriam.runtime.statistics import Tally, TaskStatistics
from miriam.serve.live import routes
from miriam.trace import Recorder

LEVELS = {"detector": 1, "caption": 0}


class Client:
    """Asks an application, whose event loop is in a thread of its own. No network takes part."""

    def __init__(self, app: Starlette) -> None:
        self._asgi = httpx.ASGITransport(app)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def get(self, path: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._asgi, base_url="http://miriam.test") as client:
                return await client.get(path)

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(30)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class PaperService:
    """What the live page asks of a service."""

    def __init__(self, policy: str, report: Mapping[str, float]) -> None:
        self.runtime = SimpleNamespace(device="cpu", policy=policy, notes=("times are on paper",), report=self._report)
        self.states = [{"name": "depth", "version": "1", "state": "UNAVAILABLE", "reason": "no such file"}]
        self.tallies: dict[str, Tally] = {}
        self.said = report

    def _report(self) -> Mapping[str, float]:
        return self.said

    def ready(self) -> bool:
        return True

    def index(self) -> list[dict[str, str]]:
        ready = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in self.tallies]
        return [*ready, *self.states]

    def statistics(self) -> dict[str, TaskStatistics]:
        return {name: tally.snapshot(3, 1) for name, tally in self.tallies.items()}


def traffic(seconds: float = 4.0, detector: str = "detector", caption: str = "caption") -> list[Job]:
    """A critical task at random and a normal one that fills what is left."""
    rng, jobs = random.Random(3), []
    for name, level, gap_us, length_us in ((detector, 1, 16e3, 2600), (caption, 0, 30e3, 16e3)):
        at_us = 0.0
        while (at_us := at_us + rng.expovariate(1 / gap_us)) < seconds * 1e6:
            deadline_us = 3000.0 if level else float("inf")
            jobs.append(Job(name, level, at_us, length_us * rng.uniform(0.95, 1.05), deadline_us))
    jobs.sort(key=lambda job: job.arrival_us)
    schedule(jobs)
    return jobs


def paper(
    policy: str = "contract:1.1", report: Mapping[str, float] | None = None, **given: Any
) -> tuple[Starlette, Clock]:
    """An application with the live page of a service on paper, and the clock that it goes by."""
    clock = Clock()
    recorder, service = Recorder(clock=clock), PaperService(policy, report or {})
    for response in play(recorder, clock, traffic(**given), policy):
        tally = service.tallies.setdefault(response.name, Tally(response.name, response.criticality, 1000))
        tally.counts["submitted"] += 1
        tally.answered(response)
    clock.us = max(clock.us, 4.05e6)
    return Starlette(routes=routes(service, recorder)), clock  # type: ignore[arg-type]
