"""HTTP/2 as the server speaks it, with a client of another make, and with what no client should send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from h2.settings import SettingCodes
from http2_peer import CALL, PREFACE, Peer, frame
from hypothesis import given
from hypothesis import strategies as st

from miriam.serve.fields import fields
from miriam.serve.frames import Reason
from miriam.serve.http2 import Connection
from miriam.serve.stream import Stream

HEAD, TAIL = b"\x88" + fields((b"content-type", b"application/grpc")), fields((b"grpc-status", b"0"))
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
SET = frame(SETTINGS, 0, 0)
PLAIN = fields(*CALL)
BEGIN = PREFACE + SET + frame(HEADERS, 4, 1, PLAIN)


class Echo(Stream):
    """Gives back what it is given, once that is whole."""

    def __init__(self, connection: Connection, number: int, head: Mapping[bytes, bytes] | None) -> None:
        super().__init__(connection, number)
        self.head, self.body, self.gone = head, b"", False
        MADE.append(self)

    def received(self, data: bytes) -> None:
        self.body += data
        self.promise(1 << 16)

    def finished(self) -> None:
        self.send(HEAD, self.body, TAIL)

    def lost(self) -> None:
        self.gone = True


MADE: list[Echo] = []


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    MADE.clear()
    asyncio.run(test())


@given(
    sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=4),
    piece=st.sampled_from([1, 7, 100, 1 << 14, 1 << 18]),
    window=st.integers(1, 1 << 17),
    frame_size=st.integers(1 << 14, 1 << 16),
    table=st.sampled_from([0, 100, 4096]),
    padded=st.booleans(),
)
def test_what_is_sent_comes_back_however_little_is_taken_at_a_time(
    sizes: list[int], piece: int, window: int, frame_size: int, table: int, padded: bool
) -> None:
    settings = {
        SettingCodes.INITIAL_WINDOW_SIZE: window,
        SettingCodes.MAX_FRAME_SIZE: frame_size,
        SettingCodes.HEADER_TABLE_SIZE: table,
    }
    if window < 1000 or piece < 100:
        sizes = [size % 2000 for size in sizes]

    async def test() -> None:
        peer = Peer(Echo, settings)
        left = {}
        for size in sizes:
            body = bytes(i % 251 for i in range(size))
            left[peer.call(end=not size)] = body
        sent = dict(left)
        for _ in range(10_000):
            peer.exchange(piece)
            left = {number: body for number, body in left.items() if body}
            if not left and len(peer.ended) == len(sizes):
                break
            for number, body in left.items():
                room = min(peer.client.local_flow_control_window(number) - 20, peer.client.max_outbound_frame_size - 20)
                if room > 0:
                    last = len(body) <= room
                    peer.client.send_data(number, body[:room], end_stream=last, pad_length=10 if padded else None)
                    left[number] = body[room:]
        assert {number: peer.bodies[number] for number in sent} == sent
        assert all(peer.heads[number][b":status"] == b"200" for number in sent)
        assert all(peer.tails[number] == {b"grpc-status": b"0"} for number in sent)
        assert not peer.connection.streams
        assert not peer.resets

    run(test)


def test_fields_are_those_that_were_sent() -> None:
    async def test() -> None:
        peer = Peer(Echo)
        long = (b"note", b"n" * 30_000)  # in several frames
        for more in ((), (long,), (), ((b"grpc-timeout", b"5S"),), (), ()):
            peer.call(head=[*CALL, *more])
            peer.exchange()
            assert MADE[-1].head == dict([*CALL, *more])
        assert len(peer.ended) == len(MADE) == 6

    run(test)


def test_too_many_fields_end_one_stream_and_let_the_others_end() -> None:
    async def test() -> None:
        peer = Peer(Echo, header_bytes=1000)
        first = peer.call(end=False)
        peer.exchange()
        large = frame(HEADERS, 1, 3, PLAIN) + frame(CONTINUATION, 4, 3, fields((b"note", b"n" * 10_000)))
        peer.give(large + frame(HEADERS, 5, 5, b"\xc0"))  # the table is not what the client thinks
        assert [made.head is None for made in MADE] == [False, True]
        peer.give(frame(DATA, 1, first, b"body"))
        assert bytes(peer.wire.written).count(b"grpc-status") == 2
        assert b"body" in peer.wire.written
        assert frame(GOAWAY, 0, 0, bytes((0, 0, 0, 3, 0, 0, 0, 0))) in peer.wire.written

    run(test)


def test_a_decoded_block_may_not_be_larger_than_the_fields_may_be() -> None:
    async def test() -> None:
        peer = Peer(Echo, header_bytes=4000)
        peer.give(PREFACE + SET)
        entry = b"\x40" + fields((b"a", b"n" * 2000))[1:]
        peer.give(frame(HEADERS, 5, 1, entry + b"\xbe" * 100))
        assert MADE[-1].head is None
        assert frame(GOAWAY, 0, 0, bytes((0, 0, 0, 1, 0, 0, 0, 0))) in peer.wire.written

    run(test)


def test_no_more_streams_are_open_than_may_be() -> None:
    async def test() -> None:
        peer = Peer(Echo)
        peer.give(PREFACE + SET + b"".join(frame(HEADERS, 4, number, PLAIN) for number in range(1, 601, 2)))
        assert len(peer.connection.streams) == len(MADE) == 256
        refused = [frame(RST_STREAM, 0, number, Reason.REFUSED_STREAM.to_bytes(4, "big")) for number in (513, 599)]
        assert all(one in peer.wire.written for one in refused)

    run(test)


def test_a_client_that_gives_up_or_goes_is_noticed() -> None:
    async def test() -> None:
        peer = Peer(Echo)
        first, second = peer.call(end=False), peer.call(end=False)
        peer.exchange()
        peer.client.reset_stream(first)
        peer.exchange()
        assert [made.gone for made in MADE] == [True, False]
        assert set(peer.connection.streams) == {second}
        peer.wire.close()
        await asyncio.sleep(0)
        assert [made.gone for made in MADE] == [True, True]

    run(test)


def test_what_a_client_does_not_take_waits_and_nothing_more_is_read_of_it() -> None:
    async def test() -> None:
        peer = Peer(Echo)
        number = peer.call(b"x" * 10)
        peer.give(peer.client.data_to_send()[:-1])
        peer.connection.pause_writing()
        assert not peer.wire.reading
        peer.give(b"x")
        assert number in peer.connection.streams
        peer.connection.resume_writing()
        assert peer.wire.reading
        peer.exchange()
        assert peer.bodies[number] == b"x" * 10

    run(test)


@pytest.mark.parametrize(
    ("limits", "body", "paused"),
    [
        ({"request_s": 0.1}, b"x" * 70_000, False),  # a window that stays closed
        ({"request_s": 0.1}, b"", True),
        ({"idle_s": 0.1}, None, False),
    ],
    ids=["a window that stays closed", "a buffer that stays full", "nothing at all"],
)
def test_a_client_that_takes_too_long_is_let_go(limits: dict[str, Any], body: bytes | None, paused: bool) -> None:
    async def test() -> None:
        peer = Peer(Echo, take=False, **limits)
        if body is not None:
            number = peer.call(end=False)
            peer.exchange()
            for at in range(0, len(body), 10_000):
                peer.client.send_data(number, body[at : at + 10_000])
                peer.exchange()
            peer.client.end_stream(number)
        peer.exchange()
        if paused:
            peer.connection.pause_writing()
        await asyncio.wait_for(peer.wire.over.wait(), 30)

    run(test)


def test_a_client_that_says_no_hello_is_let_go() -> None:
    async def test() -> None:
        peer = Peer(Echo, request_s=0.1)
        peer.give(PREFACE[:10])
        await asyncio.wait_for(peer.wire.over.wait(), 30)

    run(test)


def test_a_server_that_leaves_answers_what_was_begun() -> None:
    async def test() -> None:
        peer = Peer(Echo)
        number = peer.call(b"body", end=False)
        peer.exchange()
        peer.connection.leave()
        peer.exchange()
        assert peer.goodbye == Reason.NO_ERROR
        assert not peer.wire.is_closing()
        peer.give(frame(HEADERS, 5, number + 2, b"") + frame(DATA, 1, number))
        assert b"body" in peer.wire.written
        assert len(MADE) == 1
        await asyncio.wait_for(peer.wire.over.wait(), 30)

    run(test)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "PROTOCOL_ERROR"),
        (PREFACE + frame(PING, 0, 0, bytes(8)), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(HEADERS, 4, 2, PLAIN), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(HEADERS, 4, 0, PLAIN), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff"), "COMPRESSION_ERROR"),
        (PREFACE + SET + frame(HEADERS, 4, 1, b"\xbf"), "COMPRESSION_ERROR"),
        (PREFACE + SET + frame(HEADERS, 4, 1, b"\x00\x85\xff\xff\xff\xff\xff\x00"), "COMPRESSION_ERROR"),
        (PREFACE + SET + frame(HEADERS, 12, 1, b"\xff"), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(HEADERS, 36, 1, b"\0"), "FRAME_SIZE_ERROR"),
        (PREFACE + SET + frame(HEADERS, 0, 1, PLAIN) + frame(PING, 0, 0, bytes(8)), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(HEADERS, 0, 1, PLAIN) + frame(CONTINUATION, 4, 3), "ENHANCE_YOUR_CALM"),
        (PREFACE + SET + frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 5000, "ENHANCE_YOUR_CALM"),
        (PREFACE + SET + frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, bytes(60_000)) * 80, "ENHANCE_YOUR_CALM"),
        (PREFACE + SET + frame(CONTINUATION, 4, 1, PLAIN), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(DATA, 0, 1, b"x"), "FLOW_CONTROL_ERROR"),
        (PREFACE + SET + frame(DATA, 0, 0, b"x"), "PROTOCOL_ERROR"),
        (BEGIN + frame(DATA, 8, 1, b"\x05abc"), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(PUSH_PROMISE, 4, 1, bytes(4)), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(RST_STREAM, 0, 1, bytes(4)), "PROTOCOL_ERROR"),
        (BEGIN + frame(RST_STREAM, 0, 1, bytes(3)), "PROTOCOL_ERROR"),
        (PREFACE + frame(SETTINGS, 0, 0, bytes(5)), "FRAME_SIZE_ERROR"),
        (PREFACE + frame(SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"), "FLOW_CONTROL_ERROR"),
        (PREFACE + frame(SETTINGS, 0, 0, b"\0\5\0\0\0\1"), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(PING, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
        (PREFACE + SET + frame(PRIORITY, 0, 1, bytes(4)), "FRAME_SIZE_ERROR"),
        (PREFACE + SET + frame(WINDOW_UPDATE, 0, 0, bytes(4)), "PROTOCOL_ERROR"),
        (PREFACE + SET + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), "FLOW_CONTROL_ERROR"),
        (PREFACE + SET + frame(WINDOW_UPDATE, 0, 9, b"\0\0\0\1"), "PROTOCOL_ERROR"),
        (PREFACE + SET + b"\xff\xff\xff\0\0\0\0\0\1", "FRAME_SIZE_ERROR"),
        (PREFACE + SET + frame(PING, 0, 0, bytes(8)) * 5000, "ENHANCE_YOUR_CALM"),
        (PREFACE + SET * 5000, "ENHANCE_YOUR_CALM"),
        (BEGIN + frame(DATA, 0, 1) * 5000, "ENHANCE_YOUR_CALM"),
        (
            PREFACE + SET + b"".join(
                frame(HEADERS, 4, 2 * i + 1, PLAIN) + frame(RST_STREAM, 0, 2 * i + 1, bytes(4)) for i in range(300)
            ),
            "ENHANCE_YOUR_CALM",
        ),
    ],
)  # fmt: skip
def test_what_is_against_the_protocol_ends_the_connection(data: bytes, reason: str) -> None:
    async def test() -> None:
        peer = Peer(Echo)
        peer.give(data)
        assert peer.wire.is_closing()
        written = bytes(peer.wire.written)
        goodbye = written[written.rindex(bytes((GOAWAY, 0, 0, 0, 0, 0))) + 6 :]
        assert Reason(int.from_bytes(goodbye[4:8], "big")).name == reason
        await asyncio.sleep(0)
        assert not peer.connection.streams

    run(test)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(DATA, 1, 1, b"x") + frame(DATA, 0, 1, b"x"), None),  # its answer was there before
        (frame(HEADERS, 4, 1, PLAIN), "PROTOCOL_ERROR"),
        (frame(WINDOW_UPDATE, 0, 1, bytes(4)), "PROTOCOL_ERROR"),
        (frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), "FLOW_CONTROL_ERROR"),
    ],
)
def test_what_is_wrong_with_a_stream_ends_only_that(data: bytes, reason: str | None) -> None:
    async def test() -> None:
        peer = Peer(Echo)
        peer.give(BEGIN + data + frame(HEADERS, 5, 3, PLAIN))
        if reason is not None:
            assert frame(RST_STREAM, 0, 1, Reason[reason].to_bytes(4, "big")) in peer.wire.written
            assert MADE[0].gone
        assert frame(HEADERS, 5, 3, TAIL) in peer.wire.written
        assert not peer.wire.is_closing()

    run(test)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40))))
def test_no_frames_whatsoever_are_an_error_of_the_server(frames: list[tuple[int, int, int, bytes]]) -> None:
    async def test() -> None:
        peer = Peer(Echo)
        peer.give(BEGIN)
        for one in frames:
            peer.give(frame(*one))
        peer.wire.close()
        await asyncio.sleep(0)
        assert not peer.connection.streams
        assert all(made.gone or made.ended for made in MADE)

    run(test)
