"""HTTP/2, as far as calls of gRPC need it: the connection of a client (RFC 9113).

What is here instead of a library is on the way of every call: ``h2`` takes 170 us of a core for one, the library of
gRPC 230 us in five threads, this 30 us. Fields of requests, the part that is hard to get right, are decoded by the
library ``hpack``; those of answers are written without a table, so that they are constants.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from miriam.serve import frames
from miriam.serve.fields import NO_TABLE, Table
from miriam.serve.frames import BrokenError, Reason, frame, unpadded
from miriam.serve.stream import WINDOW, Stream

__all__ = ["Connection"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_STREAMS = 256  # of one connection, so that it leaves some to others
_FRAME = 64 << 10  # bytes of a frame that a client may send
_BLOCK = 4 << 20  # bytes of fields that are read, and dropped, of a request that has too many
_CROWD = 4096  # frames that bring nothing, among what is read at a time
_GIVEN_UP = 16  # a stream that is given up counts as so many of them
_QUIET_S = 60.0  # after which a client that has streams is asked whether it is there
_LINGER_S = 1.0  # for a client to close its connection, once it was told to
_LOOKS = 4  # at what takes too long, within the shortest time that something may take


@dataclass(slots=True)
class _Block:
    """Fields of which more is to come."""

    number: int
    flags: int
    parts: list[bytes]
    size: int


class Connection(asyncio.Protocol):
    """A client that is connected.

    Parameters
    ----------
    begin
        Makes a stream of a connection, its number there and the fields of the request, or None if they are too
        large. It may answer at once.
    opened, closed
        Told of the connection; ``opened`` says whether it may be.
    request_s
        Time that the client may take to take an answer.
    idle_s
        Time that it may be there without a stream.
    header_bytes
        Of all fields of a request.

    Attributes
    ----------
    streams
        Those that are open, by number.
    window, frame, first_window
        Bytes that the client takes now, in one frame, and on a new stream.
    writable
        Whether it takes as fast as is written.
    """

    def __init__(
        self,
        begin: Callable[[Connection, int, Mapping[bytes, bytes] | None], Stream],
        opened: Callable[[Connection], bool],
        closed: Callable[[Connection], None],
        *,
        request_s: float,
        idle_s: float,
        header_bytes: int,
    ) -> None:
        self._begin, self._opened, self._closed = begin, opened, closed
        self._request_s, self._idle_s, self._header_bytes = request_s, idle_s, header_bytes
        self.loop = asyncio.get_running_loop()
        self.streams: dict[int, Stream] = {}
        self.window = self.first_window = (1 << 16) - 1
        self.frame = 1 << 14
        self.writable = True
        self._rest = b""
        self._greeted = self._set = self._leaving = self._first_sent = False
        self._promised = frames.MOST
        self._last = 0  # stream that was begun
        self._block: _Block | None = None
        self._table = Table(header_bytes)
        self._waiting: dict[int, Stream] = {}  # streams with more to send than the client takes
        self._crowd = 0
        self._heard_s = self._taken_s = self._busy_s = self.loop.time()
        self._asked = False
        self._clock: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            frames.DATA: self._data,
            frames.HEADERS: self._headers,
            frames.PRIORITY: self._priority,
            frames.RST_STREAM: self._rst_stream,
            frames.SETTINGS: self._settings,
            frames.PUSH_PROMISE: self._push_promise,
            frames.PING: self._ping,
            frames.WINDOW_UPDATE: self._window_update,
            frames.CONTINUATION: self._continuation,
        }

    # What a transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast(asyncio.Transport, transport)  # that of uvloop derives from nothing
        if not self._opened(self):
            self._transport.abort()
            return
        settings = {
            frames.MAX_STREAMS: _STREAMS,
            frames.INITIAL_WINDOW: WINDOW,
            frames.MAX_FRAME: _FRAME,
            frames.MAX_FIELDS: self._header_bytes,
        }
        self.write(frame(frames.SETTINGS, 0, 0, b"".join(struct.pack(">HL", *pair) for pair in settings.items())))
        self.write(frame(frames.WINDOW_UPDATE, 0, 0, (frames.MOST - (1 << 16) + 1).to_bytes(4, "big")))
        self._look()

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone."""
        for timer in (self._clock, self._closing):
            if timer is not None:
                timer.cancel()
        streams = list(self.streams.values())
        self.streams.clear()
        self._waiting.clear()
        for stream in streams:
            stream.abandon()
        self._handlers.clear()  # they hold this
        self._closed(self)

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        if self._transport.is_closing():
            return
        self._heard_s, self._asked, self._crowd = self.loop.time(), False, 0
        if self._rest:
            data = self._rest + data
        try:
            self._rest = data[self._read(data) :]
        except BrokenError as error:
            self.leave(error.reason, str(error).encode())
            self._transport.close()

    def pause_writing(self) -> None:
        """The client takes less than is written: nothing more is read of it until it does."""
        self.writable = False
        self._taken_s = self.loop.time()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It has taken that."""
        self.writable = True
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._pump()

    # For streams, and who made this

    def write(self, data: bytes) -> None:
        """Send frames."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def waits(self, stream: Stream) -> None:
        """A stream has more to send than the client takes now."""
        if not self._waiting:
            self._taken_s = self.loop.time()
        self._waiting[stream.number] = stream
        self._pump()

    def forget(self, stream: Stream) -> None:
        """A stream has ended."""
        self.streams.pop(stream.number, None)
        self._waiting.pop(stream.number, None)
        if not self.streams:
            self._busy_s = self.loop.time()
            if self._leaving:
                self._linger()

    def first_block(self) -> bytes:
        """What the first fields that are sent have before them: that they need no table (RFC 7541, 4.2)."""
        if self._first_sent:
            return b""
        self._first_sent = True
        return NO_TABLE

    def leave(self, reason: Reason = Reason.NO_ERROR, why: bytes = b"") -> None:
        """Begin no stream any more, and let the client close once those that there are have ended."""
        if not self._leaving:
            self._leaving = True
            self.write(frame(frames.GOAWAY, 0, 0, struct.pack(">LL", self._last, reason) + why))
        if not self.streams:
            self._linger()

    def _linger(self) -> None:
        """Close, but not before the client could: what it still sends would undo what was sent to it last."""
        if self._closing is None:
            self._closing = self.loop.call_later(_LINGER_S, self._transport.close)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _look(self) -> None:
        """End what takes too long."""
        now_s = self.loop.time()
        self._clock = self.loop.call_later(min(self._request_s, self._idle_s, _QUIET_S) / _LOOKS, self._look)
        for stream in tuple(self.streams.values()):
            stream.looked_at(now_s)
        if (self._waiting or not self.writable) and now_s - self._taken_s > self._request_s:
            self._transport.abort()
        elif not self.streams and now_s - self._busy_s > (self._idle_s if self._set else self._request_s):
            self.leave()
        elif self._asked and now_s - self._heard_s > _QUIET_S * 4 / 3:
            self._transport.abort()
        elif self.streams and not self._asked and now_s - self._heard_s > _QUIET_S:
            self._asked = True
            self.write(frame(frames.PING, 0, 0, bytes(8)))

    def _pump(self) -> None:
        """Send what waits."""
        for stream in tuple(self._waiting.values()):
            before = self.window
            if stream.flush():
                self._waiting.pop(stream.number, None)
            if self.window < before:
                self._taken_s = self.loop.time()
            if self.window <= 0 or not self.writable:
                return

    # Frames

    def _read(self, data: bytes) -> int:
        """Read the frames that are whole; where the next one begins."""
        at, end = 0, len(data)
        if not self._greeted:
            if data[: len(_PREFACE)] != _PREFACE[:end]:
                raise BrokenError(Reason.PROTOCOL_ERROR, "this is no HTTP/2 with prior knowledge")
            if end < len(_PREFACE):
                return 0
            self._greeted, at = True, len(_PREFACE)
        while end - at >= frames.HEAD.size:
            high, low, kind, flags, number = frames.HEAD.unpack_from(data, at)
            size = high << 8 | low
            if size > _FRAME:
                raise BrokenError(Reason.FRAME_SIZE_ERROR, f"a frame of {size} bytes: {_FRAME} are allowed")
            begin = at + frames.HEAD.size
            if end - begin < size:
                break
            at = begin + size
            if not self._set and kind != frames.SETTINGS:
                raise BrokenError(Reason.PROTOCOL_ERROR, "settings come first")
            if (self._block is not None) != (kind == frames.CONTINUATION):
                raise BrokenError(Reason.PROTOCOL_ERROR, "fields come in one piece")
            if not size or kind not in (frames.DATA, frames.HEADERS):
                self._count()
            handler = self._handlers.get(kind)
            if handler is not None:  # others mean nothing here (RFC 9113, 5.5)
                handler(flags, number & frames.MOST, data[begin:at])
            if self._transport.is_closing():
                return end
        return at

    def _count(self, weight: int = 1) -> None:
        """A frame has come that brings nothing."""
        self._crowd += weight
        if self._crowd > _CROWD:
            raise BrokenError(Reason.ENHANCE_YOUR_CALM, "a crowd of frames that bring nothing")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._promised -= size
        if self._promised < 0 or not 0 < number <= self._last:
            raise BrokenError(Reason.FLOW_CONTROL_ERROR if number else Reason.PROTOCOL_ERROR, "data out of place")
        if self._promised < frames.MOST // 2:
            self.write(frame(frames.WINDOW_UPDATE, 0, 0, (frames.MOST - self._promised).to_bytes(4, "big")))
            self._promised = frames.MOST
        stream = self.streams.get(number)
        if stream is None:  # it has ended meanwhile
            self._count()
            return
        stream.promised -= size
        if stream.whole or stream.promised < 0:
            self._break(stream, Reason.STREAM_CLOSED if stream.whole else Reason.FLOW_CONTROL_ERROR)
            return
        stream.received(unpadded(payload) if flags & frames.PADDED else payload)
        if flags & frames.END_STREAM:
            self._whole(stream)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number % 2:
            raise BrokenError(Reason.PROTOCOL_ERROR, f"a client begins no stream {number}")
        if flags & frames.PADDED:
            payload = unpadded(payload)
        if flags & frames.PRIORITISED:
            if len(payload) < 5:
                raise BrokenError(Reason.FRAME_SIZE_ERROR, "a priority is cut off")
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._fields(flags, number, payload)
        else:
            self._block = _Block(number, flags, [payload], len(payload))

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        assert block is not None
        block.size += len(payload)
        if number != block.number or block.size > _BLOCK:
            raise BrokenError(Reason.ENHANCE_YOUR_CALM, f"{block.size} bytes of fields")
        if block.size <= self._header_bytes:
            block.parts.append(payload)
        if flags & frames.END_HEADERS:
            self._block = None
            self._fields(block.flags, number, b"".join(block.parts) if block.size <= self._header_bytes else None)

    def _fields(self, flags: int, number: int, block: bytes | None) -> None:
        if self._table.lost:  # nobody knows what they are: the client was told to begin no more
            self._count()
            self._last = max(self._last, number)
            return
        found = self._table.decoded(block)
        stream = self.streams.get(number)
        if stream is not None:  # trailers
            if stream.whole or not flags & frames.END_STREAM:
                self._break(stream, Reason.PROTOCOL_ERROR)
            else:
                self._whole(stream)
        elif number <= self._last:
            self._count()
        elif self._leaving or len(self.streams) >= _STREAMS:
            self._count()
            self._last = number
            self.write(frame(frames.RST_STREAM, 0, number, Reason.REFUSED_STREAM.to_bytes(4, "big")))
        else:
            self._last = number
            stream = self._begin(self, number, found)
            if not stream.ended:
                self.streams[number] = stream
            if flags & frames.END_STREAM:
                self._whole(stream)
        if found is None:
            self.leave()

    def _priority(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 5:
            raise BrokenError(Reason.FRAME_SIZE_ERROR, "a priority has 5 bytes")

    def _rst_stream(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4 or not 0 < number <= self._last:
            raise BrokenError(Reason.PROTOCOL_ERROR, "there is no such stream to reset")
        stream = self.streams.get(number)
        if stream is not None:
            self.forget(stream)
            stream.abandon()
            self._count(_GIVEN_UP)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & frames.ACK and payload):
            raise BrokenError(Reason.FRAME_SIZE_ERROR, "these are no settings")
        if flags & frames.ACK:
            return
        self._set = True
        for name, value in struct.iter_unpack(">HL", payload):
            if name == frames.INITIAL_WINDOW:
                if value > frames.MOST:
                    raise BrokenError(Reason.FLOW_CONTROL_ERROR, f"a window of {value} bytes")
                more, self.first_window = value - self.first_window, value
                for stream in self.streams.values():
                    stream.window += more
                    _check_window(stream.window)
            elif name == frames.MAX_FRAME:
                if not 1 << 14 <= value < 1 << 24:
                    raise BrokenError(Reason.PROTOCOL_ERROR, f"frames of {value} bytes")
                self.frame = value
        self.write(frame(frames.SETTINGS, frames.ACK, 0, b""))
        self._pump()

    def _push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise BrokenError(Reason.PROTOCOL_ERROR, "a client promises nothing")

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise BrokenError(Reason.FRAME_SIZE_ERROR, "a ping has 8 bytes")
        if not flags & frames.ACK:
            self.write(frame(frames.PING, frames.ACK, 0, payload))

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:
        more = int.from_bytes(payload, "big") & frames.MOST
        if len(payload) != 4 or number > self._last:
            raise BrokenError(Reason.PROTOCOL_ERROR, "a window is no such thing")
        if not number:
            self.window += more
            _check_window(self.window)
            if not more:
                raise BrokenError(Reason.PROTOCOL_ERROR, "a window grows by nothing")
        elif (stream := self.streams.get(number)) is not None:
            stream.window += more
            if not more or stream.window > frames.MOST:
                self._break(stream, Reason.FLOW_CONTROL_ERROR if more else Reason.PROTOCOL_ERROR)
        if self._waiting:
            self._pump()

    def _whole(self, stream: Stream) -> None:
        stream.whole = True
        if not stream.ended:
            stream.finished()

    def _break(self, stream: Stream, reason: Reason) -> None:
        """End a stream on which the client did what it may not."""
        stream.whole = True
        stream.reset(reason)
        stream.lost()


def _check_window(window: int) -> None:
    if window > frames.MOST:
        raise BrokenError(Reason.FLOW_CONTROL_ERROR, f"a window of {window} bytes")
