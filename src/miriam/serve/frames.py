"""Frames of HTTP/2 (RFC 9113): their kinds and flags, and why a stream or a connection ends."""

from __future__ import annotations

import struct
from enum import IntEnum

__all__ = ["HEAD", "MOST", "BrokenError", "Reason", "frame", "unpadded"]

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1  # flags
END_HEADERS, PADDED, PRIORITISED = 4, 8, 32
MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_FIELDS = 3, 4, 5, 6  # settings
HEAD = struct.Struct(">HBBBL")  # of a frame; its length has three bytes
MOST = (1 << 31) - 1  # of a window, and of the number of a stream


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


class BrokenError(Exception):
    """A client did what ends its connection."""

    def __init__(self, reason: Reason, what: str) -> None:
        super().__init__(what)
        self.reason = reason


def frame(kind: int, flags: int, number: int, payload: bytes | memoryview) -> bytes:
    """The bytes of a frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 255, kind, flags, number) + payload


def unpadded(payload: bytes) -> bytes:
    """What a padded frame holds.

    Raises
    ------
    BrokenError
        The padding is longer than the frame.
    """
    if not payload or payload[0] >= len(payload):
        raise BrokenError(Reason.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
