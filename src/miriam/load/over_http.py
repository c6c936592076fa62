"""Requests over HTTP: raw bytes over connections that stay open."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast
from urllib.parse import quote

import httptools

from miriam.load.sender import CONNECTION, TIMEOUT, Asked, Described, UnansweredError
from miriam.load.server import Server
from miriam.serve.errors import Status
from miriam.serve.tensors import to_binary

__all__ = ["HttpSender"]

_MOST = 256  # connections: one request at a time each, and select() knows no more than 1024 files
_REASONS = {
    400: Status.INVALID,
    401: Status.UNAUTHENTICATED,
    403: Status.FORBIDDEN,
    404: Status.NOT_FOUND,
    413: Status.TOO_LARGE,
    429: Status.EXHAUSTED,
    500: Status.INTERNAL,
    501: Status.UNSUPPORTED,
    503: Status.UNAVAILABLE,
    504: Status.DEADLINE,
}
_HEADER = b"inference-header-content-length"


class HttpSender:
    """A client with as many connections as it has requests open, 256 at most; others wait for one of them."""

    def __init__(self, server: Server) -> None:
        token = server.token()
        self._server, self._context = server, server.context()
        self._authority = server.authority + "\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")
        self._idle: list[_Connection] = []
        self._waiting: deque[asyncio.Future[_Connection | None]] = deque()
        self._count = 0

    async def describe(self, model: str) -> Described:
        """Ask what the model takes."""
        path = f"/v2/models/{quote(model, safe='')}"
        found = await self._get(path)
        try:
            inputs = {t["name"]: (t["datatype"], tuple(map(int, t["shape"]))) for t in found["inputs"]}
        except (KeyError, TypeError, ValueError) as error:
            raise UnansweredError(
                Status.INTERNAL, f"the answer to GET {path} does not say what the model takes"
            ) from error
        try:
            config = await self._get(f"{path}/config")
            said = str(config["parameters"]["criticality"]["string_value"])
        except (UnansweredError, KeyError, TypeError):
            said = ""  # not every server has it
        return Described(inputs, int(said) if said.isdecimal() else None)

    async def _get(self, path: str) -> Any:
        request = f"GET {path} HTTP/1.1\r\nHost: {self._authority}\r\n".encode()
        answer = await self.send(request, 10.0, lambda: None)
        try:
            return json.loads(answer[4:])
        except ValueError as error:
            raise UnansweredError(Status.INTERNAL, f"the answer to GET {path} is no JSON: {error}") from error

    async def register(self, key: str, size: int) -> None:
        """Tell the server of shared memory, under its own name."""
        await self._post(f"/v2/systemsharedmemory/region/{key}/register", {"key": f"/{key}", "byte_size": size})

    async def unregister(self, key: str) -> None:
        """Tell the server that it is no longer used, if that can be told."""
        with suppress(UnansweredError):
            await self._post(f"/v2/systemsharedmemory/region/{key}/unregister", {})

    async def _post(self, path: str, said: dict[str, Any]) -> None:
        body = json.dumps(said) if said else ""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._authority}Content-Length: {len(body)}\r\n\r\n"
        await self.send((head + body).encode(), 10.0, lambda: None)

    def serialise(self, asked: Asked) -> bytes:
        """The request as it goes over the wire."""
        tensors, contents = [], []
        for name, (datatype, array) in asked.tensors.items():
            if (place := asked.places.get(name)) is None:
                contents.append(bytes(to_binary(array)))
                where: dict[str, str | int] = {"binary_data_size": len(contents[-1])}
            else:
                where = place.parameters
            tensors.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": where})
        parameters = {"binary_data_output": True, **asked.parameters}
        head = json.dumps({"inputs": tensors, "parameters": parameters}, separators=(",", ":")).encode()
        body = b"".join([head, *contents])
        return (
            f"POST /v2/models/{quote(asked.model, safe='')}/infer HTTP/1.1\r\nHost: {self._authority}"
            f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(head)}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def send(self, request: bytes, patience_s: float, sending: Callable[[], None]) -> bytes:
        """Send a serialised request and wait for its answer.

        Returns
        -------
        bytes
            The body, with the length of its JSON in four bytes before it.
        """
        while True:
            connection = await self._take(patience_s)
            try:
                sending()
                status, head, body = await connection.ask(request, patience_s)
                break
            except _ClosedBeforeError:  # an old connection that the server gave up meanwhile: nobody read the request
                continue
            finally:
                self._give(connection)
        if status != 200:
            raise UnansweredError(_REASONS.get(status, f"HTTP {status}"), _text(body))
        return head.to_bytes(4, "little") + body

    async def _take(self, patience_s: float) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            self._count -= 1
        if self._count >= _MOST:
            waiting: asyncio.Future[_Connection | None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            try:
                async with asyncio.timeout(patience_s):
                    handed = await waiting
            except TimeoutError:
                raise UnansweredError(TIMEOUT, f"{_MOST} requests were open all the time") from None
            if handed is not None:
                return handed
        self._count += 1
        try:
            async with asyncio.timeout(patience_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, self._server.host, self._server.port, ssl=self._context
                )
        except OSError as error:  # a timeout is one, too
            self._count -= 1
            self._wake(None)
            raise UnansweredError(CONNECTION, f"cannot connect to {self._server}: {error}") from error
        return connection

    def _give(self, connection: _Connection) -> None:
        if not connection.usable:
            self._count -= 1
            self._wake(None)
        elif not self._wake(connection):
            self._idle.append(connection)

    def _wake(self, connection: _Connection | None) -> bool:
        """Hand a connection, or the room for one, to who waits longest; whether there was somebody."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(connection)
                return True
        return False

    def outputs(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """Name and contents of each tensor of an answer."""
        at = 4 + (int.from_bytes(answer[:4], "little") or len(answer))
        found = []
        for tensor in json.loads(answer[4:at])["outputs"]:
            size = tensor.get("parameters", {}).get("binary_data_size")
            if size is None:
                found.append((tensor["name"], json.dumps(tensor["data"]).encode()))
            else:
                found.append((tensor["name"], answer[at : at + size]))
                at += size
        return found

    async def close(self) -> None:
        """Give the connections back."""
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)  # so that the loop closes them


class _ClosedBeforeError(Exception):
    """The connection had been closed before the request was sent."""


class _Connection(asyncio.Protocol):
    """One connection, one request at a time.

    Attributes
    ----------
    usable
        Whether another request may be sent over it.
    """

    def __init__(self) -> None:
        self.usable = True
        self._answer: asyncio.Future[tuple[int, int, bytes]] | None = None
        self._used = False
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._head, self._heard = 0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, request: bytes, patience_s: float) -> tuple[int, int, bytes]:
        """Status, length of the JSON before binary tensors (0: all is JSON), and body of the answer."""
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        timer = loop.call_later(patience_s, self._fail, UnansweredError(TIMEOUT, "no answer in time"))
        self._transport.write(request)
        try:
            return await self._answer
        except asyncio.CancelledError:  # the answer still comes, and is nobody else's
            self.usable = False
            self._transport.abort()
            raise
        finally:
            timer.cancel()
            self._answer, self._used = None, True
            self._reset()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(UnansweredError(CONNECTION, f"the answer is no HTTP: {error}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == _HEADER and value.isdigit():
            self._head = int(value)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._answer.set_result((self._parser.get_status_code(), self._head, body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._used and not self._heard:
            self._fail(_ClosedBeforeError())
        else:
            self._fail(UnansweredError(CONNECTION, f"the connection was lost: {error or 'closed by the server'}"))

    def _fail(self, error: Exception) -> None:
        self.usable = False
        self._transport.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def close(self) -> None:
        """Close it when everything is written."""
        self.usable = False
        self._transport.close()


def _text(body: bytes) -> str:
    """What the server says of an error."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
