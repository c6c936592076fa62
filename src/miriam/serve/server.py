"""One event loop on which HTTP, gRPC and metrics are answered, from the first line of output to the last answer."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import ssl
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from miriam.errors import MiriamError
from miriam.runtime import Runtime
from miriam.serve import live
from miriam.serve.auth import Guard
from miriam.serve.config import ConfigError, ServerConfig
from miriam.serve.grpc import GrpcServer
from miriam.serve.http import Http, metrics_application
from miriam.serve.limits import GuardedProtocol
from miriam.serve.metrics import Metrics
from miriam.serve.repository import Entry, Repository, in_thread
from miriam.serve.service import Service
from miriam.serve.shared import Regions
from miriam.trace import Recorder

if TYPE_CHECKING:
    from miriam.trace.otel import Exporter

__all__ = ["Server"]

_LAST_S = 1.0  # for answers to be taken, once they are written
_WATCH_S = 0.25  # between two looks at the runtime
_OPEN_CALLS = frozenset({"ServerLive", "ServerReady"})  # for probes, which have no token


class Server:
    """A server with everything that its configuration names.

    Parameters
    ----------
    reread
        Gives the configuration as its file is now.
    say
        Is told what happens, line by line.

    Attributes
    ----------
    service
        What answers.
    ports
        Where, by protocol: ``http``, ``grpc``, ``metrics``; known once it has started.
    http
        What answers over HTTP.

    Raises
    ------
    ConfigError
        The token or a certificate cannot be read.
    DeviceError, PolicyError
        They are unknown, or not here.
    """

    def __init__(
        self, config: ServerConfig, reread: Callable[[], ServerConfig] | None = None, say: Callable[[str], None] = print
    ) -> None:
        self._config, self._say = config, say
        self._guard = Guard.of(config)
        self._recorder = Recorder(config.trace.keep)
        self._spans = None if config.trace.otlp is None else _exporter(self._recorder, config.trace.otlp)
        runtime = Runtime(
            config.device, policy=config.policy, levels=config.levels, admission=config.admission,
            listeners=[self._recorder],
        )  # fmt: skip
        regions = Regions(config.limits if config.shares else None)
        self.service = Service(Repository(runtime, config, reread), regions)
        self.ports: Mapping[str, int] = {}
        self._stuck = False
        self.http = Http(self.service, config.limits, self._guard, live.routes(self.service, self._recorder))
        metrics = metrics_application(Metrics(self.service), self._guard)
        self._listeners = {
            "http": _Listener(self.http.application, config, config.ports.http, "http"),
            "metrics": _Listener(metrics, config, config.ports.metrics, "metrics"),
        }
        self._grpc = GrpcServer(
            self.service, config.host, config.ports.grpc, config.limits, self.http.memory, config.security.tls,
            self._authorize,
        )  # fmt: skip

    def _authorize(self, path: str, authorization: str | None) -> None:
        if path.rpartition("/")[2] not in _OPEN_CALLS:
            self._guard.check_token(authorization)

    async def run(self) -> int:
        """Serve until a signal to end, or the end of the runtime; the exit code."""
        stop = asyncio.Event()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            asyncio.get_running_loop().add_signal_handler(number, partial(_asked_to_end, stop, signals))
        try:
            await self.start()
            loading = asyncio.create_task(self.load(spare=True))
            watching = asyncio.create_task(self._failed())
            stopping = asyncio.create_task(stop.wait())
            loaded = True
            await asyncio.wait((loading, stopping, watching), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loaded = loading.result()
            if loaded:
                await asyncio.wait((stopping, watching), return_when=asyncio.FIRST_COMPLETED)
            for task in (loading, watching, stopping):
                task.cancel()
            well = loaded and not self.service.runtime.closed
            if not well:
                self._say("no model could be loaded" if not loaded else "the runtime has ended: see above")
        finally:
            await self.stop()
        return 0 if well else 1

    async def start(self) -> None:
        """Listen: from now on it is live, and not ready.

        Raises
        ------
        MiriamError
            A port cannot be had.
        """
        ports = {name: await listener.start() for name, listener in self._listeners.items()}
        self.ports = ports | {"grpc": await self._grpc.start()}
        scheme = "http" if self._config.security.tls is None else "https"
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        runtime = self.service.runtime
        self._say(f"miriam serves on {runtime.device}, policy {runtime.policy}")
        self._say(f"  HTTP     {scheme}://{host}:{self.ports['http']}")
        self._say(f"  gRPC     {host}:{self.ports['grpc']}")
        self._say(f"  metrics  {scheme}://{host}:{self.ports['metrics']}/metrics")

    async def load(self, *, spare: bool = False) -> bool:
        """Load all models; whether any is there.

        Parameters
        ----------
        spare
            Keep the garbage collector from what is loaded then: of the whole process.
        """
        repository = self.service.repository
        await repository.load_all(lambda entry: self._say(f"  {_in_words(entry)}"))
        if spare:
            repository.spare()
        for note in self.service.runtime.notes:
            self._say(f"  note: {note}")
        if repository.complete:
            self._say("ready")
        return any(entry.ready for entry in repository.values())

    async def stop(self) -> None:
        """Answer what is open, for as long as the configuration says, and end."""
        if not await self.service.drained(self._config.drain_s):
            self._say(f"requests are still open after {self._config.drain_s:g} s: they are told that the server ends")
            self._stuck = not await self._closed(False, _LAST_S)
            await self.service.drained(0 if self._stuck else _LAST_S)
        grace_s = 0 if self._stuck else _LAST_S
        stops = [listener.stop(grace_s) for listener in self._listeners.values()]
        await asyncio.gather(*stops, *([self._grpc.stop(grace_s)] if "grpc" in self.ports else []))
        await self.http.close()
        self.service.close()
        if self._spans is not None:  # a collector may be gone
            await asyncio.wait((asyncio.create_task(in_thread(self._spans.close)),), timeout=_LAST_S)
        if self._stuck or not await self._closed(True, self._config.drain_s + _LAST_S):
            self._say("a model does not come to its end: it is left there")
            os._exit(1)  # an end in order would wait for it

    async def _closed(self, drain: bool, within_s: float) -> bool:
        """Close the runtime; whether that came to its end in time."""
        closing = asyncio.create_task(in_thread(partial(self.service.runtime.close, drain=drain)))
        return bool((await asyncio.wait((closing,), timeout=within_s))[0])

    async def _failed(self) -> None:
        while not self.service.runtime.closed:
            await asyncio.sleep(_WATCH_S)


def _exporter(recorder: Recorder, to: str) -> Exporter:
    from miriam.trace.otel import Exporter

    return Exporter(recorder, to)


def _in_words(entry: Entry) -> str:
    if entry.loaded is None:
        return f"{entry.name} is not ready: {entry.reason}"
    choice = f", requests may choose {entry.levels[-1]} to {entry.levels[0]}" if len(entry.levels) > 1 else ""
    return f"{entry.name} is ready, criticality {entry.loaded.criticality}{choice}"


def _asked_to_end(stop: asyncio.Event, signals: tuple[signal.Signals, ...]) -> None:
    """End in order; who asks again means at once."""
    loop = asyncio.get_running_loop()
    for number in signals:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    stop.set()


class _Listener:
    """A port on which an application is served over HTTP."""

    def __init__(self, application: ASGIApp, config: ServerConfig, port: int, name: str) -> None:
        self._address, self._name = (config.host, port), name
        tls = config.security.tls
        self._patience_s = config.limits.request_s
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
        self._clock: asyncio.TimerHandle | None = None
        made = uvicorn.Config(
            application, http=partial(GuardedProtocol, config.limits), ws="none", lifespan="off", log_config=None,  # type: ignore[arg-type]
            access_log=False, proxy_headers=False, server_header=False, date_header=False,
            timeout_keep_alive=config.limits.idle_s,  # type: ignore[arg-type]
            ssl_certfile=tls.certificate if tls else None, ssl_keyfile=tls.key if tls else None,
            ssl_ca_certs=str(tls.clients) if tls and tls.clients else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.clients else ssl.CERT_NONE,
        )  # fmt: skip
        try:
            made.load()
        except OSError as error:  # ssl.SSLError among them
            raise ConfigError(f"security.tls cannot be used: {error}") from error
        self._config = made

    async def start(self) -> int:
        host, port = self._address
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = self._config.http_protocol_class(  # type: ignore[call-arg]
                config=self._config, server_state=self._state, app_state={}, _loop=loop
            )
            return made

        patience_s = self._patience_s if self._config.ssl else None
        try:
            sockets = _listening(host, port, self._config.backlog)
            self._servers = [
                await loop.create_server(protocol, sock=one, ssl=self._config.ssl, ssl_handshake_timeout=patience_s)
                for one in sockets
            ]
        except OSError as error:
            raise MiriamError(
                f"cannot listen at {host}:{port}: {error.strerror or error}; ports.{self._name} chooses another port"
            ) from error
        self._tick()
        return int(sockets[0].getsockname()[1])

    def _tick(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._clock = asyncio.get_running_loop().call_later(1, self._tick)

    async def stop(self, within_s: float) -> None:
        """Take no connection any more, and end those that are there once they have their answer."""
        if self._clock is None:
            return
        self._clock.cancel()
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=within_s)
        # What was written may still have to be sent.
        end = asyncio.get_running_loop().time() + within_s
        while self._state.connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        for connection in list(self._state.connections):
            connection.transport.abort()


def _listening(host: str, port: int, backlog: int) -> list[socket.socket]:
    """All addresses of a name that this machine has, on one port: ``localhost`` may be two."""
    made: list[socket.socket] = []
    absent: OSError | None = None
    for family, _, _, _, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        at: tuple[Any, ...] = (found[0], made[0].getsockname()[1] if made else port, *found[2:])
        try:
            made.append(socket.create_server(at, family=family, backlog=backlog))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for one in made:
                    one.close()
                raise
            absent = error
    if absent is not None and not made:
        raise absent
    return made
