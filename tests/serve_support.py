"""A server in this process, on ports that the kernel chose, and models for it that need no torch."""

from __future__ import annotations

import asyncio
import socket
import threading
import weakref
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvloop

from miriam.serve.config import load_config
from miriam.serve.server import Server

T = TypeVar("T")
PATIENCE_S = 20.0  # after which a test has failed; no test takes that long

NETS = """
import sys
import weakref
import numpy as np
import serve_support

def add():
    return lambda a, b: (a + b, a - b)

def same():
    return lambda a: a.copy()

def nothing_in_json():
    return lambda a: np.copysign(np.float32(np.inf), a)

def torch_is_there():
    return lambda a: np.array(["torch" in sys.modules])

def gated():
    def run(a):
        if a[0] > 1:  # not with the example
            serve_support.gate.pass_through()
        return a
    return run

def raising():
    def run(a):
        if a[0] > 1:  # not with the example
            raise ValueError("this model does not like its input")
        return a
    return run

def circular():
    class Model:
        def __call__(self, a):
            return a.copy()
    model = Model()
    model.itself = model
    serve_support.models.append(weakref.ref(model))
    return model

def broken():
    raise RuntimeError("the weights are not there")
"""


class Gate:
    """Where a model waits until a test lets it go on."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self._may_go = threading.Semaphore(0)

    def pass_through(self) -> None:
        self.arrived.release()
        assert self._may_go.acquire(timeout=PATIENCE_S)

    def wait_for_one(self) -> None:
        assert self.arrived.acquire(timeout=PATIENCE_S)

    def let_one_go(self) -> None:
        self._may_go.release()


gate = Gate()
models: list[weakref.ref[Any]] = []  # that the factory ``circular`` made


@dataclass
class Running:
    """A server that answers."""

    server: Server
    loop: asyncio.AbstractEventLoop
    said: list[str]
    client: httpx.Client
    path: Path
    _clients: list[socket.socket] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.ports["http"]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on the server's event loop."""
        done: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return done.result(PATIENCE_S)

    def connect(self) -> socket.socket:
        """A bare connection, closed in the end."""
        self._clients.append(socket.create_connection(self.address, PATIENCE_S))
        return self._clients[-1]

    def infer(self, model: str, *inputs: dict[str, Any], **others: Any) -> httpx.Response:
        return self.client.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs), **others})


def tensor(
    data: list[Any], datatype: str = "FP32", name: str = "input0", shape: list[int] | None = None
) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)] if shape is None else shape, "data": data}


def files(folder: Path, config: str) -> Path:
    """The files of a server: its configuration, and `NETS` as nets.py."""
    (folder / "nets.py").write_text(NETS, "utf-8")
    path = folder / "serve.yaml"
    path.write_text(f"device: cpu\nports: {{http: 0, grpc: 0, metrics: 0}}\n{config}", "utf-8")
    return path


@contextmanager
def serving(folder: Path, config: str, scheme: str = "http", **client: Any) -> Iterator[Running]:
    """Serve, with everything loaded that can be."""
    path = files(folder, config)
    said: list[str] = []
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()

    async def begin() -> Server:
        server = Server(load_config(path), lambda: load_config(path), said.append)
        await server.start()
        await server.load()
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(begin(), loop).result(PATIENCE_S)
        url = f"{scheme}://127.0.0.1:{server.ports['http']}"
        try:
            with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False, **client) as asking:
                running = Running(server, loop, said, asking, path)
                yield running
                for connection in running._clients:
                    connection.close()
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()
