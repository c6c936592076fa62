"""HTTP/2, as far as calls of gRPC need it: a connection of a client, and the streams on it (RFC 9113).

Fields of a request are decoded by the library ``hpack``; those of an answer are written without a table, so that
they are constants. What is here instead of a library is on the way of every call: ``h2`` takes 170 us of a core for
one, the gRPC library 230 us in five threads, this 40 us.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from hpack import Decoder, HPACKError, OversizedHeaderListError

__all__ = ["Connection", "Reason", "Stream", "fields"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    range(10)
)
_END_STREAM = _ACK = 1
_END_HEADERS, _PADDED, _PRIORITISED = 4, 8, 32
_MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME, _MAX_FIELDS = 3, 4, 5, 6  # settings
_HEAD = struct.Struct(">HBBBL")  # of a frame; its length has three bytes

_STREAMS = 256  # of one connection, so that it leaves some to others
_FRAME = 64 << 10  # bytes of a frame that a client may send
_WINDOW = 1 << 20  # bytes of a stream that a client may send before somebody has read any
_MOST = (1 << 31) - 1  # of a window
_BLOCK = 4 << 20  # bytes of fields that are read, and dropped, of a request that has too many
_KNOWN = 64  # blocks of fields that are remembered
_CROWD = 4096  # frames that bring nothing, among what is read at a time
_GIVEN_UP = 16  # a stream that is given up counts as so many of them
_QUIET_S = 60.0  # after which a client that has streams is asked whether it is there
_LINGER_S = 1.0  # for a client to close its connection, once it was told to
_LOOKS = 4  # at what takes too long, within the shortest time that something may take


class Reason(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class _BrokenError(Exception):
    """A client did what ends its connection."""

    def __init__(self, reason: Reason, what: str) -> None:
        super().__init__(what)
        self.reason = reason


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    """A block of fields that changes no table: each in letters (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _length(name) + name + _length(value) + value for name, value in pairs)


def _length(text: bytes) -> bytes:
    """A whole number after a bit that says that no Huffman code is used (RFC 7541, 5.1)."""
    left = len(text) - 127
    if left < 0:
        return bytes((len(text),))
    found = bytearray((127,))
    while left >= 128:
        found.append(left % 128 + 128)
        left //= 128
    return bytes((*found, left))


@dataclass(slots=True)
class _Block:
    """Fields of which more is to come."""

    number: int
    flags: int
    parts: list[bytes]
    size: int


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
        self.promised = _WINDOW  # bytes that the client may still send
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
            self.connection.write(_frame(_WINDOW_UPDATE, 0, self.number, more.to_bytes(4, "big")))

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
        parts = [_frame(_HEADERS, _END_HEADERS, self.number, connection.first_block() + head)] if head else []
        now = connection.writable and not self._out and size <= min(self.window, connection.window, connection.frame)
        if now and size:
            self.window -= size
            connection.window -= size
            parts += _HEAD.pack(size >> 8, size & 255, _DATA, 0, self.number), body
        if now and tail is not None:
            parts.append(_frame(_HEADERS, _END_HEADERS | _END_STREAM, self.number, tail))
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
            self.connection.write(_frame(_RST_STREAM, 0, self.number, reason.to_bytes(4, "big")))
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
                connection.write(_frame(_DATA, 0, self.number, piece[:room]))
            self.window -= len(piece[:room])
            connection.window -= len(piece[:room])
            if len(piece) > room:
                self._out[0] = piece[room:]
            else:
                self._out.popleft()
        if self._tail is not None:
            connection.write(_frame(_HEADERS, _END_HEADERS | _END_STREAM, self.number, self._tail))
            self._end()
        self._wake()
        return True

    def _end(self) -> None:
        self.ended = True
        self._out.clear()
        if not self.whole:  # what is still on its way is not wanted
            self.connection.write(_frame(_RST_STREAM, 0, self.number, Reason.NO_ERROR.to_bytes(4, "big")))
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
        self._promised = _MOST
        self._last = 0  # stream that was begun
        self._block: _Block | None = None
        self._lost_table = False
        self._decoder = Decoder(max_header_list_size=header_bytes)
        self._known: dict[bytes, Mapping[bytes, bytes]] = {}
        self._waiting: dict[int, Stream] = {}  # streams with more to send than the client takes
        self._crowd = 0
        self._heard_s = self._taken_s = self._busy_s = self.loop.time()
        self._asked = False
        self._clock: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            _DATA: self._data, _HEADERS: self._headers, _PRIORITY: self._priority, _RST_STREAM: self._rst_stream,
            _SETTINGS: self._settings, _PUSH_PROMISE: self._push_promise, _PING: self._ping,
            _WINDOW_UPDATE: self._window_update, _CONTINUATION: self._continuation,
        }  # fmt: skip

    # What a transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast(asyncio.Transport, transport)  # that of uvloop derives from nothing
        if not self._opened(self):
            self._transport.abort()
            return
        settings = {
            _MAX_STREAMS: _STREAMS, _INITIAL_WINDOW: _WINDOW, _MAX_FRAME: _FRAME, _MAX_FIELDS: self._header_bytes
        }  # fmt: skip
        self.write(_frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HL", *pair) for pair in settings.items())))
        self.write(_frame(_WINDOW_UPDATE, 0, 0, (_MOST - (1 << 16) + 1).to_bytes(4, "big")))
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
        except _BrokenError as error:
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
        return b"\x20"

    def leave(self, reason: Reason = Reason.NO_ERROR, why: bytes = b"") -> None:
        """Begin no stream any more, and let the client close once those that there are have ended."""
        if not self._leaving:
            self._leaving = True
            self.write(_frame(_GOAWAY, 0, 0, struct.pack(">LL", self._last, reason) + why))
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
            self.write(_frame(_PING, 0, 0, bytes(8)))

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
                raise _BrokenError(Reason.PROTOCOL_ERROR, "this is no HTTP/2 with prior knowledge")
            if end < len(_PREFACE):
                return 0
            self._greeted, at = True, len(_PREFACE)
        while end - at >= _HEAD.size:
            high, low, kind, flags, number = _HEAD.unpack_from(data, at)
            size = high << 8 | low
            if size > _FRAME:
                raise _BrokenError(Reason.FRAME_SIZE_ERROR, f"a frame of {size} bytes: {_FRAME} are allowed")
            begin = at + _HEAD.size
            if end - begin < size:
                break
            at = begin + size
            if not self._set and kind != _SETTINGS:
                raise _BrokenError(Reason.PROTOCOL_ERROR, "settings come first")
            if (self._block is not None) != (kind == _CONTINUATION):
                raise _BrokenError(Reason.PROTOCOL_ERROR, "fields come in one piece")
            if not size or kind not in (_DATA, _HEADERS):
                self._count()
            handler = self._handlers.get(kind)
            if handler is not None:  # others mean nothing here (RFC 9113, 5.5)
                handler(flags, number & _MOST, data[begin:at])
            if self._transport.is_closing():
                return end
        return at

    def _count(self, weight: int = 1) -> None:
        """A frame has come that brings nothing."""
        self._crowd += weight
        if self._crowd > _CROWD:
            raise _BrokenError(Reason.ENHANCE_YOUR_CALM, "a crowd of frames that bring nothing")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._promised -= size
        if self._promised < 0 or not 0 < number <= self._last:
            raise _BrokenError(Reason.FLOW_CONTROL_ERROR if number else Reason.PROTOCOL_ERROR, "data out of place")
        if self._promised < _MOST // 2:
            self.write(_frame(_WINDOW_UPDATE, 0, 0, (_MOST - self._promised).to_bytes(4, "big")))
            self._promised = _MOST
        stream = self.streams.get(number)
        if stream is None:  # it has ended meanwhile
            self._count()
            return
        stream.promised -= size
        if stream.whole or stream.promised < 0:
            self._break(stream, Reason.STREAM_CLOSED if stream.whole else Reason.FLOW_CONTROL_ERROR)
            return
        stream.received(_unpadded(flags, payload) if flags & _PADDED else payload)
        if flags & _END_STREAM:
            self._whole(stream)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number % 2:
            raise _BrokenError(Reason.PROTOCOL_ERROR, f"a client begins no stream {number}")
        if flags & _PADDED:
            payload = _unpadded(flags, payload)
        if flags & _PRIORITISED:
            if len(payload) < 5:
                raise _BrokenError(Reason.FRAME_SIZE_ERROR, "a priority is cut off")
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._fields(flags, number, payload)
        else:
            self._block = _Block(number, flags, [payload], len(payload))

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        assert block is not None
        block.size += len(payload)
        if number != block.number or block.size > _BLOCK:
            raise _BrokenError(Reason.ENHANCE_YOUR_CALM, f"{block.size} bytes of fields")
        if block.size <= self._header_bytes:
            block.parts.append(payload)
        if flags & _END_HEADERS:
            self._block = None
            self._fields(block.flags, number, b"".join(block.parts) if block.size <= self._header_bytes else None)

    def _fields(self, flags: int, number: int, block: bytes | None) -> None:
        if self._lost_table:  # nobody knows what they are: the client was told to begin no more
            self._count()
            self._last = max(self._last, number)
            return
        found = None if block is None else self._decoded(block)
        if found is None:
            self._lost_table = True
        stream = self.streams.get(number)
        if stream is not None:  # trailers
            if stream.whole or not flags & _END_STREAM:
                self._break(stream, Reason.PROTOCOL_ERROR)
            else:
                self._whole(stream)
        elif number <= self._last:
            self._count()
        elif self._leaving or len(self.streams) >= _STREAMS:
            self._count()
            self._last = number
            self.write(_frame(_RST_STREAM, 0, number, Reason.REFUSED_STREAM.to_bytes(4, "big")))
        else:
            self._last = number
            stream = self._begin(self, number, found)
            if not stream.ended:
                self.streams[number] = stream
            if flags & _END_STREAM:
                self._whole(stream)
        if found is None:
            self.leave()

    def _decoded(self, block: bytes) -> Mapping[bytes, bytes] | None:
        """Fields by name; None if they are too large, after which the table is lost.

        A block that only points into the table is known, for as long as that does not change.
        """
        found = self._known.get(block)
        if found is not None:
            return found
        if len(block) > self._header_bytes:
            return None
        try:
            found = dict(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            return None
        except (HPACKError, IndexError, ValueError) as error:
            raise _BrokenError(Reason.COMPRESSION_ERROR, f"the fields cannot be read: {error}") from None
        if not block or min(block) < 0x80 or max(block) == 0xFF or len(self._known) >= _KNOWN:
            self._known.clear()
        else:
            self._known[block] = found
        return found

    def _priority(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 5:
            raise _BrokenError(Reason.FRAME_SIZE_ERROR, "a priority has 5 bytes")

    def _rst_stream(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4 or not 0 < number <= self._last:
            raise _BrokenError(Reason.PROTOCOL_ERROR, "there is no such stream to reset")
        stream = self.streams.get(number)
        if stream is not None:
            self.forget(stream)
            stream.abandon()
            self._count(_GIVEN_UP)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & _ACK and payload):
            raise _BrokenError(Reason.FRAME_SIZE_ERROR, "these are no settings")
        if flags & _ACK:
            return
        self._set = True
        for name, value in struct.iter_unpack(">HL", payload):
            if name == _INITIAL_WINDOW:
                if value > _MOST:
                    raise _BrokenError(Reason.FLOW_CONTROL_ERROR, f"a window of {value} bytes")
                more, self.first_window = value - self.first_window, value
                for stream in self.streams.values():
                    stream.window += more
                    _check_window(stream.window)
            elif name == _MAX_FRAME:
                if not 1 << 14 <= value < 1 << 24:
                    raise _BrokenError(Reason.PROTOCOL_ERROR, f"frames of {value} bytes")
                self.frame = value
        self.write(_frame(_SETTINGS, _ACK, 0, b""))
        self._pump()

    def _push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise _BrokenError(Reason.PROTOCOL_ERROR, "a client promises nothing")

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise _BrokenError(Reason.FRAME_SIZE_ERROR, "a ping has 8 bytes")
        if not flags & _ACK:
            self.write(_frame(_PING, _ACK, 0, payload))

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:
        more = int.from_bytes(payload, "big") & _MOST
        if len(payload) != 4 or number > self._last:
            raise _BrokenError(Reason.PROTOCOL_ERROR, "a window is no such thing")
        if not number:
            self.window += more
            _check_window(self.window)
            if not more:
                raise _BrokenError(Reason.PROTOCOL_ERROR, "a window grows by nothing")
        elif (stream := self.streams.get(number)) is not None:
            stream.window += more
            if not more or stream.window > _MOST:
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


def _frame(kind: int, flags: int, number: int, payload: bytes | memoryview) -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 255, kind, flags, number) + payload


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _BrokenError(Reason.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _check_window(window: int) -> None:
    if window > _MOST:
        raise _BrokenError(Reason.FLOW_CONTROL_ERROR, f"a window of {window} bytes")
