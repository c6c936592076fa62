"""What one client can take from the others: connections, time, headers, memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from miriam.serve.config import Limits
from miriam.serve.errors import ServiceError, Status

__all__ = ["GuardedProtocol", "Memory", "read_body", "while_connected"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Memory:
    """Bytes of requests that are held at a time, of all clients together.

    Attributes
    ----------
    held
        How many there are now.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Hold more.

        Raises
        ------
        ServiceError
            That would be too much.
        """
        if self.held + size > self._limit:
            raise ServiceError(
                Status.EXHAUSTED,
                f"requests of {self.held} bytes are being served: come back later (limits.total_bytes)",
            )
        self.held += size

    @contextmanager
    def lent(self) -> Iterator[Callable[[int], None]]:
        """Give a function that holds more; all of it is given back at the end of the block."""
        sizes: list[int] = []

        def take(size: int) -> None:
            self.take(size)
            sizes.append(size)

        try:
            yield take
        finally:
            self.held -= sum(sizes)


async def read_body(
    receive: Receive, declared: str | None, limits: Limits, take: Callable[[int], None], lead: int = 0
) -> bytearray:
    """Read the body of a request, no more of it than may be.

    Parameters
    ----------
    declared
        The ``Content-Length`` header.
    take
        Told of every piece before it is kept.
    lead
        Bytes to leave free before the body.

    Raises
    ------
    ServiceError
        It is too long, or the client has gone.
    """
    if declared is not None and int(declared) > limits.body_bytes:
        raise _too_long(limits)
    body = bytearray(lead)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _gone()
        piece = message.get("body", b"")
        if len(body) - lead + len(piece) > limits.body_bytes:
            raise _too_long(limits)
        take(len(piece))
        body += piece
        if not message.get("more_body", False):
            return body


def _gone() -> ServiceError:
    return ServiceError(Status.UNAVAILABLE, "the client has gone")


def _too_long(limits: Limits) -> ServiceError:
    return ServiceError(
        Status.TOO_LARGE, f"a request may have {int(limits.body_bytes)} bytes (limits.body_bytes in the configuration)"
    )


@contextmanager
def while_connected(scope: MutableMapping[str, Any]) -> Iterator[None]:
    """Break the block off as soon as the client has gone.

    Raises
    ------
    ServiceError
        It has; nobody will read that.
    """
    connection = scope.get("extensions", {}).get("miriam", {}).get("connection")
    task = asyncio.current_task()
    if connection is None or task is None:
        yield
        return
    connection.waiting.add(task)
    try:
        yield
    except asyncio.CancelledError:
        if not connection.lost:
            raise
        task.uncancel()
        raise _gone() from None
    finally:
        connection.waiting.discard(task)


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 on a connection that nobody can keep for nothing.

    uvicorn's own waits for ever for the rest of a request and for a client that does not read, and keeps headers of
    any size.

    Attributes
    ----------
    waiting
        Tasks to cancel when the client has gone.
    lost
        Whether it has.
    """

    def __init__(self, limits: Limits, **others: Any) -> None:
        super().__init__(**others)
        self.limits = limits
        self.waiting: set[asyncio.Task[Any]] = set()
        self.lost = False
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._raw_bytes = 0  # of the message at hand, framing included
        self._body_bytes = 0
        self._head_bytes = 0
        self._arrived = 0  # bytes at a time
        self._read = 0  # of them; at least so many
        self._refusal = 400
        self._open: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
        else:
            self._expect_within(self.limits.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it, and what was done for it."""
        for timer in (self._receiving, self._sending):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self.lost = True
        for cycle in self._open:  # uvicorn tells the last one only
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()
        self._open.clear()
        for task in self.waiting:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        """Read on, unless headers, trailers or the framing of chunks have become too long."""
        self._raw_bytes += len(data)
        self._arrived, self._read = len(data), 0
        super().data_received(data)
        # Framing may be as long as the body that came in it: that is chunks of six bytes.
        if self._raw_bytes - self._body_bytes > self.limits.header_bytes + self._body_bytes and not self._closing:
            self._refuse(431)

    def on_message_begin(self) -> None:
        """Begin a request: it has to be there soon."""
        super().on_message_begin()
        self.scope["extensions"] = {"miriam": {"connection": self}}
        self._raw_bytes, self._body_bytes, self._head_bytes = self._arrived - self._read, 0, 0
        self._expect_within(self.limits.request_s)

    def on_url(self, url: bytes) -> None:
        """Take a piece of the address."""
        self._read += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._read += len(name) + len(value) + 3
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes + len(self.url) > self.limits.header_bytes:
            self._refusal = 431
            raise ValueError("headers are too long")  # the parser stops, and the answer is a refusal
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the answer, or let it wait for those before it."""
        super().on_headers_complete()
        self._open = [cycle for cycle in (*self._open, self.cycle) if not cycle.response_complete]

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._read += len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request: how long the answer takes is not the client's doing."""
        self._raw_bytes = self._body_bytes = 0
        self._read += len(b"GET  HTTP/1.1\r\n\r\n")  # what every request has beside its address, headers and body
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly, but not for ever."""
        super().pause_writing()
        self._sending = self.loop.call_later(self.limits.request_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or too much of it."""
        self._refuse(self._refusal)

    @property
    def _closing(self) -> bool:
        return self.transport.is_closing()

    def _expect_within(self, seconds: float) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
        self._receiving = self.loop.call_later(seconds, self._too_slow, seconds)

    def _too_slow(self, seconds: float) -> None:
        if self.flow.read_paused:  # it is us who do not read
            self._expect_within(seconds)
        elif self.headers is not None and (self.cycle is None or not self.cycle.response_started):
            self._refuse(408)
        else:
            self.transport.abort()

    def _refuse(self, status: int) -> None:
        text = b'{"error":"%s"}' % STATUS_LINE[status].split(b" ", 2)[2].strip()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text)
        self.transport.write(STATUS_LINE[status] + head + text)
        self.transport.close()
