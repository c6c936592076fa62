"""Calls of gRPC over HTTP/2: messages with their length before them, deadlines, and a status at the end.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from urllib.parse import quote

from miriam.serve.errors import ServiceError, Status
from miriam.serve.fields import fields
from miriam.serve.http2 import Connection
from miriam.serve.limits import Memory
from miriam.serve.stream import WINDOW, Stream

__all__ = ["Call", "Method", "Rules"]

_LOG = logging.getLogger("miriam")

_AHEAD = 16  # messages of a stream that are there before somebody wants them
_SAID_BYTES = 2000  # of what is said of an error: clients take some kilobytes of fields
_PREFIX = 5  # bytes before a message
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_COMPRESSED = "send messages as they are: none that is compressed is understood"
_ONE = "give one message for one answer"


class Code(IntEnum):
    """How a call has ended."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


_CODES = {
    Status.INVALID: Code.INVALID_ARGUMENT,
    Status.UNAUTHENTICATED: Code.UNAUTHENTICATED,
    Status.FORBIDDEN: Code.PERMISSION_DENIED,
    Status.NOT_FOUND: Code.NOT_FOUND,
    Status.TOO_LARGE: Code.INVALID_ARGUMENT,  # not RESOURCE_EXHAUSTED, after which clients try again
    Status.EXHAUSTED: Code.RESOURCE_EXHAUSTED,
    Status.DEADLINE: Code.DEADLINE_EXCEEDED,
    Status.UNAVAILABLE: Code.UNAVAILABLE,
    Status.UNSUPPORTED: Code.UNIMPLEMENTED,
    Status.INTERNAL: Code.INTERNAL,
}
_HEAD = b"\x88" + fields((b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity"))
_NO_GRPC = fields((b":status", b"415"))
_OK = fields((b"grpc-status", b"0"))
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))  # needs no other letters in a field


@dataclass(frozen=True, slots=True)
class Method:
    """What answers the calls of a name.

    Attributes
    ----------
    call
        Is given the message, or for streams whatever gives them, and the `Call`; gives the answer, or writes several.
    read, write
        From bytes to a message and back.
    streams
        Whether there are several messages, both ways.
    """

    call: Callable[[Any, Any], Awaitable[Any]]
    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]
    streams: bool = False


@dataclass(slots=True)
class Rules:
    """What is the same for all calls.

    Attributes
    ----------
    methods
        By path.
    authorize
        Is given a call's path and its ``authorization`` (or None), and raises a `ServiceError` if that is not enough.
    memory
        What messages hold, from their first piece until they are answered.
    most_bytes
        Of a message.
    request_s
        Time that a client may take to send one.
    most
        Calls that are answered at a time.
    open
        That are answered now.
    """

    methods: Mapping[str, Method]
    authorize: Callable[[str, str | None], None]
    memory: Memory
    most_bytes: int
    request_s: float
    most: int
    open: int = 0


class Call(Stream):
    """A call, from its first field to its status. As an iterator: the messages of a stream."""

    def __init__(self, connection: Connection, number: int, head: Mapping[bytes, bytes] | None, rules: Rules) -> None:
        super().__init__(connection, number)
        self._rules = rules
        self._parts: list[bytes] = []  # of the next message
        self._have, self._need = 0, _PREFIX
        self._messages: deque[bytes] = deque()
        self._held = 0
        self._news: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._until_s = math.inf
        self._head = _HEAD
        try:
            self._method = self._accepted(head)
        except ServiceError as error:
            self._refuse(error)
            return
        if self._method.streams:
            self._start()

    def _accepted(self, head: Mapping[bytes, bytes] | None) -> Method:
        if head is None:
            raise ServiceError(Status.EXHAUSTED, "metadata larger than limits.header_bytes in the configuration")
        if head.get(b":method") != b"POST" or not head.get(b"content-type", b"").startswith(b"application/grpc"):
            self._head = _NO_GRPC
            raise ServiceError(Status.UNSUPPORTED, "this is no call of gRPC")
        path, token = head.get(b":path", b"").decode("latin-1"), head.get(b"authorization")
        self._rules.authorize(path, None if token is None else token.decode("latin-1"))
        if head.get(b"grpc-encoding", b"identity") != b"identity":
            raise ServiceError(Status.UNSUPPORTED, _COMPRESSED)
        if (timeout := head.get(b"grpc-timeout")) is not None:
            found = _TIMEOUT.fullmatch(timeout)
            if found is None:
                raise ServiceError(Status.INVALID, f"grpc-timeout is {timeout!r:.40}, no time")
            self._until_s = self.began_s + int(found[1]) * _SECONDS[found[2]]
        method = self._rules.methods.get(path)
        if method is None:
            raise ServiceError(Status.UNSUPPORTED, f"there is no method {path!r:.200}")
        return method

    # What comes

    def received(self, data: bytes) -> None:
        """A piece of a message, or several messages."""
        if self.ended:
            return
        try:
            self._rules.memory.take(len(data))
            self._held += len(data)
            self._parts.append(data)
            self._have += len(data)
            if self._have >= self._need:
                self._cut()
        except ServiceError as error:
            self._refuse(error)

    def _cut(self) -> None:
        """Take out the messages that are whole."""
        joined = b"".join(self._parts)
        at, end = 0, len(joined)
        while end - at >= _PREFIX:
            size = int.from_bytes(joined[at + 1 : at + _PREFIX], "big")
            if joined[at]:
                raise ServiceError(Status.UNSUPPORTED, _COMPRESSED)
            if size > self._rules.most_bytes:
                most = f"{self._rules.most_bytes} bytes (limits.body_bytes in the configuration)"
                raise ServiceError(Status.EXHAUSTED, f"a message of {size} bytes, where it may have {most}")
            self._need = _PREFIX + size
            if end - at < self._need:
                break
            if self._messages and not self._method.streams:
                raise ServiceError(Status.INVALID, _ONE)
            self._messages.append(joined[at + _PREFIX : at + self._need])
            at += self._need
            self._need = _PREFIX
        self._parts, self._have = [joined[at:]] if at < end else [], end - at
        self._ask()
        self._tell()

    def _ask(self) -> None:
        """Let the client send what is missing of a message, and more of them if few wait."""
        if self._need > _PREFIX:
            self.promise(self._need - self._have)
        elif self._method.streams and len(self._messages) < _AHEAD:
            self.promise(WINDOW)

    def finished(self) -> None:
        """Nothing more comes."""
        self._tell()
        if self._have:
            self._refuse(ServiceError(Status.INVALID, "the last message is cut off"))
        elif not self._method.streams:
            self._start()

    def lost(self) -> None:
        """No answer is wanted any more."""
        if self._task is not None:
            self._task.cancel()
        self._give_back(self._held)

    def looked_at(self, now_s: float) -> None:
        """End it where its client, or the answer, takes too long."""
        if now_s > self._until_s:
            self._late("the time that the client gave is over")
        elif self._task is None and now_s - self.began_s > self._rules.request_s:
            self._late("the message did not come in time (limits.request_s in the configuration)")

    def __aiter__(self) -> Call:
        """Itself."""
        return self

    async def __anext__(self) -> Any:
        """The next message; what it holds is counted until it is released."""
        while not self._messages:
            if self.whole:
                raise StopAsyncIteration
            self._news = self.connection.loop.create_future()
            await self._news
        data = self._messages.popleft()
        if not self.whole:
            self._ask()
        message = self._method.read(data)
        if isinstance(message, ServiceError):
            self.release(len(data))
        return message

    def release(self, size: int) -> None:
        """A message of so many bytes is needed no more."""
        self._give_back(min(_PREFIX + size, self._held))

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _give_back(self, size: int) -> None:
        self._rules.memory.give(size)
        self._held -= size

    # What goes

    def time_remaining(self) -> float | None:
        """Seconds until the client gives up; None: it does not say."""
        return None if self._until_s == math.inf else self._until_s - self.connection.loop.time()

    async def write(self, message: Any) -> None:
        """Send an answer of several, and wait until the next one may be sent."""
        self._send(self._method.write(message))
        await self.sent()

    def _start(self) -> None:
        self._task = self.connection.loop.create_task(self._answered())

    async def _answered(self) -> None:
        rules, method = self._rules, self._method
        rules.open += 1
        try:
            if rules.open > rules.most:
                raise ServiceError(Status.EXHAUSTED, f"{rules.most} calls are being answered: come back later")
            if method.streams:
                await method.call(self, self)
                self.send(self._head, b"", _OK)
                return
            if not self._messages:
                raise ServiceError(Status.INVALID, _ONE)
            self._send(method.write(await method.call(method.read(self._messages.popleft()), self)), _OK)
        except ServiceError as error:
            self._refuse(error)
        except Exception:
            _LOG.exception("an error in the answer to %s", method.call.__name__)
            self._refuse(ServiceError(Status.INTERNAL, "an error of the server: see its log"))
        finally:
            rules.open -= 1
            self._give_back(self._held)

    def _send(self, data: bytes, tail: bytes | None = None) -> None:
        head, self._head = self._head, b""
        self.send(head, b"\0" + len(data).to_bytes(4, "big") + data, tail)

    def _refuse(self, error: ServiceError) -> None:
        said = quote(str(error).encode()[:_SAID_BYTES], safe=_PLAIN).encode()
        code = b"%d" % _CODES[error.status]
        self.send(self._head, b"", fields((b"grpc-status", code), (b"grpc-message", said)))
        self._give_back(self._held)

    def _late(self, why: str) -> None:
        if self._task is not None:
            self._task.cancel()
        self._refuse(ServiceError(Status.DEADLINE, why))
