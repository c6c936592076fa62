"""Calls of gRPC: messages however they are cut, deadlines, statuses, and what is held meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from http2_peer import CALL, Peer
from hypothesis import given
from hypothesis import strategies as st

from miriam.serve.errors import ServiceError, Status
from miriam.serve.limits import Memory
from miriam.serve.rpc import Call, Method, Rules

STREAM = [(name, b"/s/s" if name == b":path" else value) for name, value in CALL]


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(data).to_bytes(4, "big") + data


def read(data: bytes) -> bytes | ServiceError:
    return ServiceError("invalid", "no such thing") if data == b"bad" else data


class Service:
    """`/s/m` gives back what it is given; `/s/s` each message of a stream. Both wait while the gate is shut."""

    def __init__(self, most_bytes: int = 1 << 20, most: int = 100, request_s: float = 30.0) -> None:
        self.memory = Memory(4 << 20)
        self.gate = asyncio.Event()
        self.gate.set()
        self.remaining: float | None = None
        self.cancelled = 0
        self.rules = Rules(
            {"/s/m": Method(self._one, bytes, bytes), "/s/s": Method(self._each, read, bytes, streams=True)},
            self._authorize, self.memory, most_bytes, request_s, most,
        )  # fmt: skip
        self.peer = Peer(partial(Call, rules=self.rules), request_s=request_s)

    def _authorize(self, path: str, authorization: str | None) -> None:
        if authorization == "nobody":
            raise ServiceError(Status.UNAUTHENTICATED, f"not for you: {path}")

    async def _open(self, call: Call) -> None:
        self.remaining = call.time_remaining()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _one(self, data: bytes, call: Call) -> bytes:
        await self._open(call)
        if data == b"raise":
            raise ZeroDivisionError
        if data == b"refuse":
            raise ServiceError(Status.NOT_FOUND, "nothing: 100 % of ü\n" + "x" * 5000)
        return data

    async def _each(self, requests: Call, call: Call) -> None:
        async for data in requests:
            await self._open(call)
            if isinstance(data, ServiceError):
                await call.write(str(data).encode())
            else:
                await call.write(data)
                call.release(len(data))

    async def answered(self, number: int) -> tuple[str, bytes]:
        """The status of a call and what was said of it."""
        peer = self.peer
        await peer.until(lambda: number in peer.ended or number in peer.resets)
        tail = peer.tails.get(number, peer.heads[number])
        return tail[b"grpc-status"].decode(), tail.get(b"grpc-message", b"")


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


@given(
    sizes=st.lists(st.integers(0, 50_000), min_size=1, max_size=20),
    cuts=st.lists(st.integers(1, 16_000), min_size=1, max_size=5),
)
def test_messages_of_a_stream_come_back_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    async def test() -> None:
        service = Service()
        peer = service.peer
        data = b"".join(message(bytes(i % 251 for i in range(size))) for size in sizes)
        number = peer.call(head=STREAM, end=False)
        at = 0
        while at < len(data):
            for cut in cuts:
                await peer.until(lambda: peer.client.local_flow_control_window(number) >= 16_000)
                peer.client.send_data(number, data[at : at + cut])
                at += cut
        peer.client.end_stream(number)
        assert await service.answered(number) == ("0", b"")
        assert peer.bodies[number] == data
        assert (service.memory.held, service.rules.open) == (0, 0)

    run(test)


def test_a_call_is_answered() -> None:
    async def test() -> None:
        service = Service()
        head = [*CALL, (b"grpc-timeout", b"5S"), (b"authorization", b"Bearer somebody")]
        number = service.peer.call(message(b"body"), head)
        assert await service.answered(number) == ("0", b"")
        assert service.peer.bodies[number] == message(b"body")
        assert service.peer.heads[number][b"content-type"] == b"application/grpc"
        assert service.remaining is not None
        assert 0 < service.remaining <= 5
        assert service.memory.held == 0

    run(test)


@pytest.mark.parametrize(
    ("body", "more", "status", "said"),
    [
        (b"", {}, 3, "one message"),
        (message(b"a") + message(b"b"), {}, 3, "one message"),
        (message(b"abc")[:-1], {}, 3, "cut off"),
        (message(b"a", 1), {}, 12, "compressed"),
        (message(b"a"), {b"grpc-encoding": b"gzip"}, 12, "compressed"),
        (message(b"a"), {b"grpc-timeout": b"soon"}, 3, "no time"),
        (message(b"a"), {b":path": b"/s/none"}, 12, "no method '/s/none'"),
        (message(b"a"), {b"authorization": b"nobody"}, 16, "not for you: /s/m"),
        (message(b"a" * 1001), {}, 8, "limits.body_bytes"),
        (message(b"raise"), {}, 13, "see its log"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(body: bytes, more: dict[bytes, bytes], status: int, said: str) -> None:
    async def test() -> None:
        service = Service(most_bytes=1000)
        head = list((dict(CALL) | more).items())
        number = service.peer.call(body, head)
        code, text = await service.answered(number)
        assert code == str(status)
        assert said.encode() in text
        assert (service.memory.held, service.rules.open) == (0, 0)
        other = service.peer.call(message(b"other"))
        assert await service.answered(other) == ("0", b"")

    run(test)


def test_what_is_no_call_is_refused_as_http() -> None:
    async def test() -> None:
        service = Service()
        head = [pair for pair in CALL if pair[0] != b"content-type"]
        number = service.peer.call(b"{}", head)
        await service.peer.until(lambda: number in service.peer.ended)
        assert service.peer.heads[number][b":status"] == b"415"

    run(test)


def test_what_is_said_of_an_error_is_written_as_fields_have_to_be() -> None:
    async def test() -> None:
        service = Service()
        code, text = await service.answered(service.peer.call(message(b"refuse")))
        assert code == "5"
        assert text.startswith(b"nothing: 100 %25 of %C3%BC%0Axxx")
        assert len(text) < 8000

    run(test)


def test_an_error_of_one_message_of_a_stream_ends_only_that() -> None:
    async def test() -> None:
        service = Service()
        number = service.peer.call(message(b"a") + message(b"bad") + message(b"c"), STREAM)
        assert await service.answered(number) == ("0", b"")
        assert service.peer.bodies[number] == message(b"a") + message(b"no such thing") + message(b"c")
        assert service.memory.held == 0

    run(test)


def test_memory_is_counted_from_the_first_piece_and_runs_out() -> None:
    async def test() -> None:
        service = Service(most_bytes=8 << 20)
        peer = service.peer
        begun = message(bytes(5 << 20))
        number = peer.call(begun[:10_000], end=False)
        peer.exchange()
        assert service.memory.held == 10_000
        at = 10_000
        while number not in peer.ended:
            peer.client.send_data(number, begun[at : at + 16_000])
            at += 16_000
            peer.exchange()
        code, text = await service.answered(number)
        assert (code, b"limits.total_bytes" in text) == ("8", True)
        assert service.memory.held == 0

    run(test)


def test_a_stream_is_read_no_further_than_it_is_answered() -> None:
    async def test() -> None:
        service = Service()
        service.gate.clear()
        peer = service.peer
        number = peer.call(head=STREAM, end=False)
        sent = 0
        while peer.client.local_flow_control_window(number) >= 10_005:
            peer.client.send_data(number, message(bytes(10_000)))
            sent += 1
            peer.exchange()
            await asyncio.sleep(0)
        assert service.memory.held == sent * 10_005 < 3 << 20
        service.gate.set()
        await peer.until(lambda: peer.client.local_flow_control_window(number) >= 10_005)
        peer.client.end_stream(number)
        assert await service.answered(number) == ("0", b"")
        assert len(peer.bodies[number]) == sent * 10_005

    run(test)


@pytest.mark.parametrize("head", [CALL, STREAM])
def test_a_call_that_is_given_up_is_cancelled(head: list[tuple[bytes, bytes]]) -> None:
    async def test() -> None:
        service = Service()
        service.gate.clear()
        number = service.peer.call(message(b"a"), head)
        await service.peer.until(lambda: service.rules.open == 1)
        await asyncio.sleep(0)
        service.peer.client.reset_stream(number)
        await service.peer.until(lambda: service.rules.open == 0)
        assert (service.cancelled, service.memory.held) == (1, 0)

    run(test)


@pytest.mark.parametrize(
    ("timeout", "whole"), [(b"50m", True), (b"50m", False), (None, False)], ids=["late", "late and cut", "cut"]
)
def test_a_call_that_takes_too_long_is_ended(timeout: bytes | None, whole: bool) -> None:
    async def test() -> None:
        service = Service(request_s=0.2)
        service.gate.clear()
        head = CALL if timeout is None else [*CALL, (b"grpc-timeout", timeout)]
        number = service.peer.call(message(b"abc") if whole else message(b"abc")[:-1], head, end=whole)
        assert (await service.answered(number))[0] == "4"
        await service.peer.until(lambda: service.rules.open == 0)
        assert (service.cancelled, service.memory.held) == (int(whole), 0)

    run(test)


def test_no_more_calls_are_answered_than_may_be() -> None:
    async def test() -> None:
        service = Service(most=1)
        service.gate.clear()
        first, second = service.peer.call(message(b"a")), service.peer.call(message(b"b"))
        assert (await service.answered(second))[0] == "8"
        service.gate.set()
        assert await service.answered(first) == ("0", b"")

    run(test)
