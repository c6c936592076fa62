"""A server in a thread, with models of `served_models`."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from miriam.runtime.statistics import TaskStatistics
from miriam.serve.config import ServerConfig
from miriam.serve.server import Server

WAIT_S = 30

MODELS: dict[str, Any] = {
    "double": {"factory": "served_models:double", "example": [[2, 3]], "inputs": ["x"], "outputs": ["y"]},
    "both": {
        "factory": "served_models:both",
        "example": [[4], [4]],
        "dtype": "int32",
        "inputs": ["a", "b"],
        "outputs": ["sum", "difference"],
        "criticality": "critical",
        "priority": [0, 2],
    },
    "raising": {"factory": "served_models:raising", "example": [[1]], "inputs": ["x"], "outputs": ["y"]},
    "gated": {"factory": "served_models:gated", "example": [[1]], "inputs": ["x"], "outputs": ["y"], "queue": 2},
}


class Serving:
    """The server.

    Attributes
    ----------
    http, grpc, metrics
        Addresses.
    server, loop
        Itself, and the event loop on which it runs.
    """

    def __init__(self, models: dict[str, Any] | None = None, **config: Any) -> None:
        data = {"device": "cpu", "ports": {"http": 0, "grpc": 0, "metrics": 0}, "models": models or MODELS} | config
        self._config = ServerConfig.model_validate(data)

    def __enter__(self) -> Serving:
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self._thread.start()
        ready.result(WAIT_S)
        return self

    async def _serve(self, ready: Future[None]) -> None:
        self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        try:
            self.server = Server(self._config, say=lambda line: None)
            await self.server.start()
            await self.server.load()
            entries = self.server.service.repository.items()
            assert self.server.service.ready(), {name: entry.reason for name, entry in entries}
            self.http, self.grpc, self.metrics = (
                f"127.0.0.1:{self.server.ports[name]}" for name in ("http", "grpc", "metrics")
            )
        except BaseException as error:
            ready.set_exception(error)
        else:
            ready.set_result(None)
            await self._end.wait()
        await self.server.stop()

    def statistics(self, model: str) -> TaskStatistics:
        """What was counted of a model."""
        return self.server.service.runtime[model].statistics

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
