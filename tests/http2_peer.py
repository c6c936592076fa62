"""A client of the `h2` library, and a connection of the server at the other end of a wire in memory."""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes, Settings

from miriam.serve.http2 import Connection
from miriam.serve.stream import Stream

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CALL = [
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/m"), (b":authority", b"here"),
    (b"content-type", b"application/grpc"), (b"te", b"trailers"),
]  # fmt: skip


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 255, kind, flags, number) + payload


class Wire(asyncio.Transport):
    """Keeps what the server writes."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.reading = True
        self.over = asyncio.Event()

    def write(self, data: Any) -> None:
        assert not self.is_closing()
        self.written += data

    def is_closing(self) -> bool:
        return self.over.is_set()

    def close(self) -> None:
        if not self.over.is_set():
            self.over.set()
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Peer:
    """Both ends.

    Attributes
    ----------
    connection, wire
        The server's end.
    client
        The other one, which raises an exception at whatever is against the protocol.
    heads, bodies, tails
        What has come of answers, by stream.
    ended, resets, goodbye
        Streams whose answer is whole; by stream: why it was reset; why the connection ended, or None.
    """

    def __init__(
        self,
        begin: Callable[[Connection, int, Mapping[bytes, bytes] | None], Stream],
        settings: Mapping[SettingCodes, int] | None = None,
        *,
        take: bool = True,
        request_s: float = 30.0,
        idle_s: float = 30.0,
        header_bytes: int = 1 << 15,
    ) -> None:
        self.connection = Connection(
            begin, lambda connection: True, lambda connection: None,
            request_s=request_s, idle_s=idle_s, header_bytes=header_bytes,
        )  # fmt: skip
        self.wire = Wire(self.connection)
        self.connection.connection_made(self.wire)
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        defaults = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.MAX_FRAME_SIZE: 1 << 14}
        self.client.local_settings = Settings(client=True, initial_values=defaults | dict(settings or {}))
        self.client.max_inbound_frame_size = self.client.local_settings.max_frame_size
        self.client.decoder.max_allowed_table_size = self.client.local_settings.header_table_size
        self.client.initiate_connection()
        self._take = take
        self.heads: dict[int, dict[bytes, bytes]] = {}
        self.bodies: dict[int, bytes] = defaultdict(bytes)
        self.tails: dict[int, dict[bytes, bytes]] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goodbye: int | None = None

    def give(self, data: bytes) -> None:
        """Bytes for the server."""
        if not self.wire.is_closing():
            self.connection.data_received(data)

    def exchange(self, size: int = 1 << 18) -> None:
        """Let both ends read what the other one wrote, in pieces of a size, until they are quiet."""
        while (data := self.client.data_to_send()) or self.wire.written:
            for at in range(0, len(data), size):
                self.give(data[at : at + size])
            data = bytes(self.wire.written)
            self.wire.written.clear()
            for event in self.client.receive_data(data):
                self._heard(event)

    async def until(self, there: Callable[[], bool]) -> None:
        """Exchange until something is so."""
        async with asyncio.timeout(30):
            while not there():
                self.exchange()
                await asyncio.sleep(0)

    def call(self, body: bytes = b"", head: list[tuple[bytes, bytes]] = CALL, *, end: bool = True) -> int:
        """Begin a stream, and send as much of a body as may be; the stream."""
        number: int = self.client.get_next_available_stream_id()
        self.client.send_headers(number, head, end_stream=end and not body)
        if body:
            self.client.send_data(number, body, end_stream=end)
        return number

    def _heard(self, event: Event) -> None:
        number: int = getattr(event, "stream_id", None) or 0
        if isinstance(event, ResponseReceived):
            self.heads[number] = dict(event.headers)
        elif isinstance(event, DataReceived):
            self.bodies[number] += event.data
            if self._take:
                self.client.acknowledge_received_data(event.flow_controlled_length, number)
        elif isinstance(event, TrailersReceived):
            self.tails[number] = dict(event.headers)
        elif isinstance(event, StreamEnded):
            self.ended.add(number)
        elif isinstance(event, StreamReset):
            self.resets[number] = int(event.error_code or 0)
        elif isinstance(event, ConnectionTerminated):
            self.goodbye = int(event.error_code or 0)
