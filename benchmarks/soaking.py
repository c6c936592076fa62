"""A server under a mixed load whose answers are all known, for `serve_soak.py`.

Every request has an input of its own, and every model an answer that this side works out by itself, to the bit: so an
answer that is another one's, an old one or a half one is found.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages

from miriam.load.over_grpc import GrpcSender
from miriam.load.over_http import HttpSender
from miriam.load.sender import CONNECTION, Asked, Sender, UnansweredError
from miriam.load.server import Server

Array = np.ndarray[Any, Any]

PATIENCE_S = 15.0  # after which a request counts as lost: the longest that goes well takes a tenth of it
MODELS = """
import numpy as np

def urgent():
    return [lambda x: x * np.int32(3), lambda x: x ^ np.int32(0x5A5A), lambda x: x + np.int32(7)]

def archive():  # eight steps of about a millisecond, between which it is interrupted
    def step(x):
        for _ in range(10):
            x = np.sqrt(x * x + np.float32(1))
        return x
    return [step] * 8

def table():
    return lambda x: x[:, ::-1] * np.int64(2) + np.int64(1)

def moody():
    def run(x):
        if x[0, 0] == -1:
            raise ValueError("less than nothing")
        if x[0, 0] == -2:
            raise MemoryError("there is no room for this")
        if x[0, 0] == -3:
            raise SystemExit("I want to go")
        return x + np.int32(1)
    return run

def tight():
    def run(x):
        y = x.astype(np.float64).repeat(4000)
        for _ in range(20):
            y = np.sqrt(y * y)
        return x - np.int32(1)
    return run
"""
SWAPPED = "import numpy as np\n\ndef made():\n    return lambda x: x + np.int64({version})\n"
CONFIG = """
device: cpu
ports: {http: 0, grpc: 0, metrics: 0}
drain_s: 5
limits: {request_s: 3, connections: 64, body_bytes: 4 MiB, json_bytes: 2 MiB, json_values: 100000}
models:
  urgent: {factory: "models.py:urgent", example: [[1, 256]], dtype: int32, criticality: critical, priority: [1, 2],
           deadline_ms: 50}
  archive: {factory: "models.py:archive", example: [[1, 16384]]}
  table: {factory: "models.py:table", example: [[3, 3000]], dtype: int64}
  moody: {factory: "models.py:moody", example: [[1, 16]], dtype: int32}
  tight: {factory: "models.py:tight", example: [[1, 16]], dtype: int32, queue: 2, timeout_ms: 20}
  swapped: {factory: "swapped.py:made", example: [[1, 64]], dtype: int64}
  guest: {factory: "models.py:moody", example: [[1, 16]], dtype: int32}
"""


def _factories() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(MODELS, "models.py", "exec"), names)
    return names


def _in_turn(steps: Iterable[Callable[[Array], Array]], x: Array) -> Array:
    for step in steps:
        x = step(x)
    return x


_MADE = _factories()
RIGHT: Mapping[str, Callable[[Array], Array]] = {
    "urgent": lambda x: _in_turn(_MADE["urgent"](), x),
    "archive": lambda x: _in_turn(_MADE["archive"](), x),
    "table": _MADE["table"](),
    "moody": _MADE["moody"](),
    "tight": lambda x: x - np.int32(1),
    "guest": _MADE["moody"](),
}
"""What each model answers; `swapped` depends on the time."""

_SHAPES = {"urgent": (1, 256), "archive": (1, 16384), "table": (3, 3000), "swapped": (1, 64)}
_DATATYPES = {np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}


def question(model: str, rng: np.random.Generator) -> Array:
    """An input that no other request has."""
    shape = _SHAPES.get(model, (1, 16))
    if model == "archive":
        return rng.standard_normal(shape, np.float32)
    return rng.integers(0, 1 << 30, shape, np.int64 if model in ("table", "swapped") else np.int32)


class Process:
    """`miriam serve` with these models.

    Attributes
    ----------
    http, grpc, metrics
        ``(host, port)``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "models.py").write_text(MODELS)
        (folder / "swapped.py").write_text(SWAPPED.format(version=0))
        (folder / "serve.yaml").write_text(CONFIG)
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "miriam", "serve", str(folder / "serve.yaml")],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.pid = self._process.pid
        assert self._process.stdout is not None
        said: dict[str, tuple[str, int]] = {}
        for line in self._process.stdout:
            words = line.split()
            if words and words[0] in ("HTTP", "gRPC", "metrics"):
                host, _, port = words[1].removeprefix("http://").removesuffix("/metrics").partition(":")
                said[words[0]] = host, int(port)
            if line.strip() == "ready":
                break
        else:
            raise SystemExit(f"the server did not come up:\n{self.log()}")
        self.http, self.grpc, self.metrics = said["HTTP"], said["gRPC"], said["metrics"]

    @property
    def readers(self) -> list[int]:
        """Processes that it has for large bodies."""
        found: list[int] = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # threads end meanwhile
                found += map(int, (task / "children").read_text().split())
        return found

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def log(self) -> str:
        """What it said on standard error."""
        return (self.folder / "log").read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.alive:
            os.kill(self.pid, number)

    def end(self) -> int:
        """Ask it to end; its exit code."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@dataclass
class Book:
    """What became of every request.

    Attributes
    ----------
    counts
        By model and outcome: ``right``, a reason for which it may be refused, ``abandoned`` by its own client.
    wrong, lost
        What should not have been, in words.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def of(self, model: str, outcome: str) -> int:
        """How many."""
        return self.counts[model, outcome]


@dataclass
class Site:
    """What all callers and faults share.

    Attributes
    ----------
    versions
        Which ``swapped`` may answer now.
    excuses
        What is not the server's fault just now: pairs of a model, or ``*``, and a reason; and how often each came.
    """

    process: Process
    rng: random.Random
    book: Book = field(default_factory=Book)
    versions: set[int] = field(default_factory=lambda: {0})
    excuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    excused: Counter[tuple[str, str]] = field(default_factory=Counter)
    ending: bool = False

    @asynccontextmanager
    async def excused_for(self, *what: tuple[str, str]) -> AsyncIterator[None]:
        """Within it, requests may be refused like this."""
        self.excuses.update(what)
        self.excused.update(what)
        try:
            yield
        finally:
            self.excuses.subtract(what)

    def excuse(self, model: str, reason: str) -> tuple[int, bool]:
        """How often there was one, and whether there is now: one that changes meanwhile is one, too."""
        keys = [(model, reason), ("*", reason)]
        return sum(self.excused[key] for key in keys), any(self.excuses[key] > 0 for key in keys)

    def senders(self) -> tuple[HttpSender, GrpcSender]:
        """A client of each protocol."""
        http, grpc_ = (Server.of(f"{scheme}://{host}:{port}") for scheme, (host, port) in
                       (("http", self.process.http), ("grpc", self.process.grpc)))  # fmt: skip
        return HttpSender(http), GrpcSender(grpc_)


REASONS = ("connection", "timeout", "unavailable", "internal", "exhausted", "deadline", "invalid")


async def ask(
    site: Site, sender: Sender, model: str, x: Array, *, may: Sequence[str] = (), must: str | None = None,
    form: str = "binary", **parameters: int,
) -> None:  # fmt: skip
    """Ask once, and look at what comes.

    Parameters
    ----------
    may
        Reasons for which it may be refused.
    must
        What the refusal has to say, of a request that has to be refused with ``internal``.
    """
    book, tensors = site.book, {"input0": (_DATATYPES[x.dtype], x)}
    before, versions = {reason: site.excuse(model, reason) for reason in REASONS}, set(site.versions)
    asked = sender.serialise(Asked(model, tensors, parameters)) if form == "binary" else in_json(site, model, x)
    try:
        answer = await sender.send(asked, PATIENCE_S, lambda: None)
    except UnansweredError as error:
        reason = str(error.reason)
        excuse = before.get(reason, (0, False)), site.excuse(model, reason)
        if must is not None and reason == "internal":
            if must not in str(error):
                book.wrong.append(f"{model} should have failed with {must!r}, not with {str(error)!r:.200}")
        elif reason not in may and excuse[0] == excuse[1] and not excuse[0][1]:
            notes = book.lost if reason in ("connection", "timeout") else book.wrong
            notes.append(f"{model}: {reason}: {error!s:.200}")
        book.counts[model, reason] += 1
        return
    if must is not None:
        book.wrong.append(f"{model} answered, and should have failed with {must!r}")
        return
    [(name, contents)] = sender.outputs(answer)
    if form == "json":
        contents = np.array(json.loads(contents), x.dtype).tobytes()
    if model == "swapped":
        wanted = [(x + np.int64(version)).tobytes() for version in versions | site.versions]
    else:
        wanted = [np.ascontiguousarray(RIGHT[model](x)).tobytes()]
    if name != "output0" or contents not in wanted:
        book.wrong.append(f"an answer of {model} of {len(contents)} bytes is not the right one")
    book.counts[model, "right"] += 1


def in_json(site: Site, model: str, x: Array) -> bytes:
    """A request over HTTP whose tensors are JSON, and whose answer is to be."""
    tensor = {"name": "input0", "datatype": _DATATYPES[x.dtype], "shape": x.shape, "data": x.reshape(-1).tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    host, port = site.process.http
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def stream(site: Site, model: str, xs: Sequence[Array]) -> None:
    """Ask over a stream of gRPC: answers have to come in the order of the requests, one for each."""
    host, port = site.process.grpc

    async def requests() -> AsyncIterator[Any]:
        for x in xs:
            request = messages.ModelInferRequest(model_name=model)
            request.inputs.add(name="input0", datatype=_DATATYPES[x.dtype], shape=x.shape)
            request.raw_input_contents.append(x.tobytes())
            yield request

    async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelStreamInferResponse.FromString,
        )
        found = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for answer in call(requests()):
                    found.append(answer)
        except (TimeoutError, grpc.aio.AioRpcError) as error:
            site.book.lost.append(f"a stream of {model}: {error!r:.200}")
            return
    wanted = [RIGHT[model](x).tobytes() for x in xs]
    given = [b"".join(one.infer_response.raw_output_contents) for one in found]
    if given != wanted:
        said = [one.error_message for one in found if one.error_message]
        site.book.wrong.append(f"a stream of {len(xs)} requests for {model} gave {len(given)} answers: {said!s:.200}")
    site.book.counts[model, "right"] += len(xs)


async def callers(site: Site) -> None:
    """The load, until the site ends."""
    rng = np.random.default_rng(site.rng.getrandbits(32))
    http, grpc_ = site.senders()

    async def again(pause_s: float, call: Callable[[], Any]) -> None:
        while not site.ending:
            await call()
            await asyncio.sleep(pause_s * site.rng.uniform(0.5, 1.5))

    def asks(sender: Sender, model: str, **how: Any) -> Callable[[], Any]:
        return lambda: ask(site, sender, model, question(model, rng), **how)

    def raises() -> Any:
        x, (number, text) = question("moody", rng), site.rng.choice(
            [(-1, "less than nothing"), (-2, "there is no room"), (-3, "I want to go")]
        )  # fmt: skip
        x[0, 0] = number
        return ask(site, site.rng.choice([http, grpc_]), "moody", x, must=text)

    async def quits() -> None:
        """Give up in mid-request."""
        async with asyncio.timeout(PATIENCE_S):
            x = question("archive", rng)
            call = asyncio.create_task(grpc_.send(grpc_.serialise(Asked("archive", {"input0": ("FP32", x)})), 10, int))
            await asyncio.sleep(site.rng.uniform(0, 0.03))
            call.cancel()
            outcome = (await asyncio.gather(call, return_exceptions=True))[0]
        site.book.counts["archive", "right" if isinstance(outcome, bytes) else "abandoned"] += 1

    async with asyncio.TaskGroup() as tasks:
        for pause_s, call in (
            (0.04, asks(http, "urgent")),
            (0.04, asks(grpc_, "urgent", priority=1)),
            (0.10, asks(grpc_, "urgent", priority=2)),
            (0.05, asks(http, "archive")),
            (0.05, asks(grpc_, "archive")),
            (0.10, asks(grpc_, "archive", timeout=2000, may=("deadline",))),
            (0.20, asks(http, "table", form="json")),
            (0.20, asks(grpc_, "table")),
            (0.05, asks(http, "moody")),
            (0.15, raises),
            *((0.03, asks(sender, "tight", may=("exhausted", "deadline"))) for sender in (http, grpc_) for _ in (1, 2)),
            (0.05, asks(http, "swapped")),
            (0.05, asks(grpc_, "swapped")),
            (0.10, asks(http, "guest")),
            (0.10, asks(grpc_, "guest")),
            (0.20, quits),
            (0.50, lambda: stream(site, "urgent", [question("urgent", rng) for _ in range(8)])),
            (1.00, lambda: pages(site)),
        ):
            tasks.create_task(again(pause_s, call))
    await http.close()
    await grpc_.close()


async def pages(site: Site) -> None:
    """Look at what people and Prometheus look at."""
    paths = ("/", "/live.json", "/v2/trace", "/v2/models/stats", "/v2/health/live", "/metrics")
    path = site.rng.choice(paths)
    before = site.excuse("*", CONNECTION)
    try:
        status, _ = await get(site, path)
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
        if before == site.excuse("*", CONNECTION) and not before[1]:
            site.book.lost.append(f"GET {path}: {error!r}")
        return
    if status != 200:
        site.book.wrong.append(f"GET {path} gave {status}")


async def get(site: Site, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Status and body of a page, over a connection of its own."""
    host, port = site.process.metrics if path == "/metrics" else site.process.http
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            writer.write(head.encode())
            answer = await reader.read()
        finally:
            writer.close()
    if not answer:
        raise ConnectionResetError("closed without an answer")
    head_, _, body = answer.partition(b"\r\n\r\n")
    return int(head_.split(b" ", 2)[1]), body


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server holds at a time.

    Attributes
    ----------
    at_s
        Since the begin.
    rss_kib, reader_kib
        Memory of its process, and of the largest of those that read large bodies for it.
    files, threads
        Of its process, without the two pipes to each reader, which comes and goes.
    """

    at_s: float
    rss_kib: int
    reader_kib: int
    files: int
    threads: int


def sample(process: Process, began: float) -> Sample:
    """Look."""
    proc = Path(f"/proc/{process.pid}")
    files, threads = (len(list((proc / what).iterdir())) for what in ("fd", "task"))
    readers = process.readers
    largest = max(map(_rss, readers), default=0)
    return Sample(time.monotonic() - began, _rss(process.pid), largest, files - 2 * len(readers), threads)


def _rss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0  # it has ended just now
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
