"""A request over HTTP/2 and its answer: what comes, and what goes as fast as the client takes it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from miriam.serve import frames
from miriam.serve.frames import Reason, frame

if TYPE_CHECKING:
    from miriam.serve.http2 import Connection

__all__ = ["WINDOW", "Stream"]

WINDOW = 1 << 20
"""Bytes of a stream that a client may send before somebody has read any."""


class Stream:
    """One request and its answer. Who answers derives from it.

    Attributes
    ----------
    number
        Of the stream on its connection.
    whole
        Whether the client has sent all that it will.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self.number = connection, number
        self.whole = self.ended = False
        self.began_s = connection.loop.time()
        self.window = connection.first_window
        self.promised = WINDOW  # bytes that the client may still send
        self._out: deque[memoryview] = deque()  # what waits for the client
        self._tail: bytes | None = None
        self._sent: asyncio.Future[None] | None = None

    # What comes

    def received(self, data: bytes) -> None:
        """A piece of the body has come; `promise` says when the next may."""

    def finished(self) -> None:
        """The body is whole."""

    def lost(self) -> None:
        """The client has gone, or given up: no answer is wanted any more."""

    def looked_at(self, now_s: float) -> None:
        """Time passes; now and then."""

    # What goes

    def promise(self, size: int) -> None:
        """Let the client send so many bytes from now on, at least."""
        more = size - self.promised
        if more > 0 and not self.whole:
            self.promised += more
            self.connection.write(frame(frames.WINDOW_UPDATE, 0, self.number, more.to_bytes(4, "big")))

    def send(self, head: bytes, body: bytes, tail: bytes | None = None) -> None:
        """Send fields and a part of the body, as soon as the client takes it.

        Parameters
        ----------
        head
            Fields; none if it is empty.
        tail
            Fields with which it ends.
        """
        if self.ended:
            return
        connection, size = self.connection, len(body)
        parts = (
            [frame(frames.HEADERS, frames.END_HEADERS, self.number, connection.first_block() + head)] if head else []
        )
        now = connection.writable and not self._out and size <= min(self.window, connection.window, connection.frame)
        if now and size:
            self.window -= size
            connection.window -= size
            parts += frames.HEAD.pack(size >> 8, size & 255, frames.DATA, 0, self.number), body
        if now and tail is not None:
            parts.append(frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self.number, tail))
        connection.write(b"".join(parts))
        if not now:
            self._out.append(memoryview(body))
            self._tail = tail
            connection.waits(self)
        elif tail is not None:
            self._end()

    async def sent(self) -> None:
        """Wait until the client has taken so much that more may be sent."""
        while self._out and not self.ended:
            if self._sent is None:
                self._sent = self.connection.loop.create_future()
            await self._sent

    def reset(self, reason: Reason) -> None:
        """End it without an answer."""
        if not self.ended:
            self.connection.write(frame(frames.RST_STREAM, 0, self.number, reason.to_bytes(4, "big")))
            self._end()

    def flush(self) -> bool:
        """Send what waits, as much as the client takes; whether that is all."""
        connection = self.connection
        while self._out:
            piece = self._out[0]
            room = min(self.window, connection.window, connection.frame)
            if not connection.writable or (room <= 0 and piece):
                return False
            if piece:
                connection.write(frame(frames.DATA, 0, self.number, piece[:room]))
            self.window -= len(piece[:room])
            connection.window -= len(piece[:room])
            if len(piece) > room:
                self._out[0] = piece[room:]
            else:
                self._out.popleft()
        if self._tail is not None:
            connection.write(frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self.number, self._tail))
            self._end()
        self._wake()
        return True

    def _end(self) -> None:
        self.ended = True
        self._out.clear()
        if not self.whole:  # what is still on its way is not wanted
            self.connection.write(frame(frames.RST_STREAM, 0, self.number, Reason.NO_ERROR.to_bytes(4, "big")))
        self.connection.forget(self)
        self._wake()

    def _wake(self) -> None:
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)
        self._sent = None

    def abandon(self) -> None:
        """The client takes nothing more of it."""
        self.ended = True
        self._out.clear()
        self._wake()
        self.lost()
