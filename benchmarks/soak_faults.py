"""What may go wrong with a server, done to one on purpose, for `serve_soak.py`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import grpc
import numpy as np
from soaking import PATIENCE_S, SWAPPED, Array, Site, ask, get, question
from tritonclient.grpc import service_pb2 as messages

__all__ = ["FAULTS"]

Fault = Callable[[Site], Awaitable[None]]
FAULTS: dict[str, Fault] = {}

CLIENT = """
import socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
request = sys.stdin.buffer.read()
clients = [socket.create_connection((host, port)) for _ in range(count)]
for client in clients:
    client.sendall(request)
print("sent", flush=True)
time.sleep(60)
"""
BROKEN = {
    "no Python": "what, is this\n",
    "no such function": "def other():\n    return abs\n",
    "a factory that raises": "def made():\n    raise RuntimeError('the weights are not there')\n",
    "a model that raises": "def made():\n    def run(x):\n        raise ValueError('never')\n    return run\n",
    "a factory that wants to go": "import sys\n\ndef made():\n    sys.exit(1)\n",
    "a model that is none": "def made():\n    return 7\n",
}


def fault(function: Fault) -> Fault:
    """Make it one of those that are done."""
    FAULTS[function.__name__.replace("_", " ")] = function
    return function


def binary(model: str, x: Array, datatype: str) -> bytes:
    """A request over HTTP."""
    tensor = {"name": "input0", "datatype": datatype, "shape": x.shape, "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return (
        (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n"
            f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + x.nbytes}\r\n\r\n"
        ).encode()
        + head
        + x.tobytes()
    )


def archived(site: Site) -> bytes:
    return binary("archive", question("archive", np.random.default_rng(site.rng.getrandbits(32))), "FP32")


async def raw(site: Site, data: bytes, pause_s: float = 0.0, piece: int = 1 << 30) -> list[int]:
    """Statuses of all answers on a connection over which this is sent, piece by piece, until the server closes it."""
    answer = bytearray()

    async def read(reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                answer.extend(part)

    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(*site.process.http)
        reading = asyncio.create_task(read(reader))
        with suppress(ConnectionError):
            for at in range(0, len(data), piece):
                writer.write(data[at : at + piece])
                await writer.drain()
                await asyncio.sleep(pause_s)
                if answer:
                    break
        await reading
        writer.close()
    return [int(part[:3]) for part in bytes(answer).split(b"HTTP/1.1 ")[1:]]


def expect(site: Site, what: str, found: object, *wanted: object) -> None:
    """Note it if something else happened."""
    if found not in wanted:
        site.book.wrong.append(f"{what}: {found!s:.300}, not {' or '.join(map(str, wanted))}")


@fault
async def client_killed(site: Site) -> None:
    """A process with requests under way is killed."""
    host, port = site.process.http
    command = [sys.executable, "-c", CLIENT, host, str(port), "8"]
    # Not by asyncio: what gRPC does around a fork may kill it before it has begun.
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        client.stdin.write(archived(site))
        client.stdin.close()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(client.stdout.readline)
        site.book.counts["archive", "abandoned"] += 8
        await asyncio.sleep(site.rng.uniform(0, 0.05))
    finally:
        client.kill()
        client.wait()
        client.stdout.close()


@fault
async def connections_reset(site: Site) -> None:
    """Clients vanish: with half a request, with a request under way, with an answer under way."""
    request = archived(site)
    clients = []
    for sent in (b"", request[:40], request[:-1], request, request, request):
        client = socket.create_connection(site.process.http, PATIENCE_S)
        client.sendall(sent)
        clients.append(client)
    site.book.counts["archive", "abandoned"] += 3
    await asyncio.sleep(site.rng.uniform(0, 0.05))
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()


@fault
async def calls_cancelled(site: Site) -> None:
    """Many calls of gRPC, unary and in a stream, given up at once, the connection with them."""
    x = question("archive", np.random.default_rng(site.rng.getrandbits(32)))
    request = messages.ModelInferRequest(model_name="archive")
    request.inputs.add(name="input0", datatype="FP32", shape=x.shape)
    request.raw_input_contents.append(x.tobytes())
    data = request.SerializeToString()
    host, port = site.process.grpc
    async with grpc.aio.insecure_channel(f"{host}:{port}", (("grpc.use_local_subchannel_pool", 1),)) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [asyncio.ensure_future(infer(data).code()) for _ in range(12)]
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([data] * 12))
        site.book.counts["archive", "abandoned"] += 24
        await asyncio.sleep(site.rng.uniform(0, 0.1))
        stream.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@fault
async def malformed_bodies(site: Site) -> None:
    """What no client should send."""

    def post(body: bytes, *headers: str) -> bytes:
        lines = ["POST /v2/models/urgent/infer HTTP/1.1", "Host: localhost", "Connection: close", *headers]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    def tensor(**change: object) -> bytes:
        one = {"name": "input0", "datatype": "INT32", "shape": [1, 256], "data": [0] * 256} | change
        return json.dumps({"inputs": [one]}).encode()

    bodies = [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 50_000, tensor(shape=[-1, -256]),
        tensor(shape=[2**62, 4]), tensor(shape=[1] * 70), tensor(datatype="FP32"), tensor(datatype="INT999"),
        tensor(data=[0] * 255), tensor(data=[float("nan")] * 256), tensor(data=[2**40] * 256), tensor(name="x" * 9999),
        tensor(data=["0"] * 256), tensor(parameters={"binary_data_size": -1}), tensor(data=[0.5] * 256),
        tensor(parameters={"shared_memory_region": "a"}),
    ]  # fmt: skip
    for body in bodies:
        found = await raw(site, post(body))
        expect(site, f"a body {body[:60]!r}", found, [400], [413])
    small = tensor()
    for headers in (("Inference-Header-Content-Length: -1",), ("Inference-Header-Content-Length: 99999",),
                    ("Content-Encoding: gzip",), ("Transfer-Encoding: chunked",), ("Content-Length: 3",)):  # fmt: skip
        expect(site, f"headers {headers}", await raw(site, post(small, *headers)), [400])
    expect(site, "a body that says it is huge", await raw(site, post(b"")[:-5] + b"9" * 14 + b"\r\n\r\n"), [413])
    for junk in (b"\x16\x03\x01\x02\x00" * 20, b"GET / HTTP/9.9\r\n\r\n", os.urandom(300)):
        expect(site, "what is no HTTP", await raw(site, junk), [400])


@fault
async def malformed_messages(site: Site) -> None:
    """The same over gRPC."""
    host, port = site.process.grpc
    async with grpc.aio.insecure_channel(f"{host}:{port}", (("grpc.use_local_subchannel_pool", 1),)) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        wide = messages.ModelInferRequest(model_name="urgent")
        wide.inputs.add(name="input0", datatype="INT32", shape=[2**40, 2**40])
        negative = messages.ModelInferRequest(model_name="urgent", raw_input_contents=[b"1234"])
        negative.inputs.add(name="input0", datatype="INT32", shape=[-1])
        for data in (b"", b"\x0a\xff\xff\xff\xff\x0f", site.rng.randbytes(200), wide.SerializeToString(),
                     negative.SerializeToString(), b"\x0a\x06urgent" + b"\x3a\x00" * 200_000,
                     b"\x3a" + b"\x80\x80\xc0\x02" + bytes(5 << 20)):  # fmt: skip
            try:
                await infer(data, timeout=PATIENCE_S)
                site.book.wrong.append(f"a message {data[:40]!r} was answered")
            except grpc.aio.AioRpcError as error:
                expect(site, f"a message {data[:40]!r} ({error.details()})", error.code().name, "INVALID_ARGUMENT",
                       "NOT_FOUND", "RESOURCE_EXHAUSTED")  # fmt: skip


@fault
async def large_json(site: Site) -> None:
    """Bodies that take long to read, up to the limits and beyond."""
    for count, wanted in ((90_000, [400]), (400_000, [413])):  # another shape; too many values
        body = json.dumps({"inputs": [{"name": "input0", "datatype": "INT64", "shape": [count], "data": [7] * count}]})
        head = "POST /v2/models/table/infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        found = await asyncio.gather(*(raw(site, (head + body).encode()) for _ in range(3)))
        for one in found:
            expect(site, f"{count} values", one, wanted)


@fault
async def slow_clients(site: Site) -> None:
    """One that sends byte by byte, one that stops, one that takes none of its answers."""
    lazy = socket.create_connection(site.process.http, PATIENCE_S)
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.setblocking(False)
    request = archived(site)
    try:
        for _ in range(4):
            lazy.send(request)
    except BlockingIOError:
        pass
    site.book.counts["archive", "abandoned"] += 4
    drip = b"POST /v2/models/urgent/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n" + b"{" * 80
    drips = raw(site, drip[:70], 0.1, 1), raw(site, drip + b"{" * 60, 0.1, 3), raw(site, drip[:90])
    found = await asyncio.gather(*drips)
    for one in found:
        expect(site, "a slow client", one, [408])
    lazy.close()


@fault
async def connections_flood(site: Site) -> None:
    """More connections than there may be."""
    async with site.excused_for(("*", "connection")):
        clients = []
        for _ in range(120):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(site.process.http)
            clients.append(client)
        await asyncio.sleep(0.5)
        for client in clients:
            client.close()
        await asyncio.sleep(0.5)


@fault
async def queue_overflow(site: Site) -> None:
    """Thirty times as many requests as may wait."""
    http, grpc_ = site.senders()
    rng = np.random.default_rng(site.rng.getrandbits(32))
    asks = [
        ask(site, sender, "tight", question("tight", rng), may=("exhausted", "deadline"))
        for sender in (http, grpc_)
        for _ in range(20)
    ]
    await asyncio.gather(*asks)
    await http.close()
    await grpc_.close()


@fault
async def model_raises(site: Site) -> None:
    """Forty exceptions, those that end a process among them."""
    http, grpc_ = site.senders()
    texts = {-1: "less than nothing", -2: "there is no room", -3: "I want to go"}
    for number in texts:
        x = np.full((1, 16), number, np.int32)
        await asyncio.gather(*(ask(site, s, "moody", x, must=texts[number]) for s in (http, grpc_) for _ in range(7)))
    await http.close()
    await grpc_.close()


@fault
async def model_unloaded_and_loaded(site: Site) -> None:
    """One goes and comes back."""
    async with site.excused_for(("guest", "unavailable")):
        expect(site, "unload", (await get(site, "/v2/repository/models/guest/unload", "POST"))[0], 200)
        await asyncio.sleep(site.rng.uniform(0, 0.3))
        expect(site, "load", (await get(site, "/v2/repository/models/guest/load", "POST"))[0], 200)


@fault
async def model_swapped(site: Site) -> None:
    """A file is another one now; requests on their way are answered by either."""
    old, new = max(site.versions), max(site.versions) + 1
    site.process.folder.joinpath("swapped.py").write_text(SWAPPED.format(version=new))
    async with site.excused_for(("swapped", "unavailable")):
        site.versions.add(new)
        expect(site, "load", (await get(site, "/v2/repository/models/swapped/load", "POST"))[0], 200)
        site.versions.discard(old)


@fault
async def model_swapped_for_a_broken_one(site: Site) -> None:
    """It cannot be loaded, and nobody notices but who asked."""
    path = site.process.folder / "swapped.py"
    for what, text in BROKEN.items():
        path.write_text(text)
        status, body = await get(site, "/v2/repository/models/swapped/load", "POST")
        expect(site, f"{what} was loaded", status, 400)
        if b"swapped" not in body:
            site.book.wrong.append(f"{what}: nobody was told why: {body!r:.200}")
    path.write_text(SWAPPED.format(version=max(site.versions)))


@fault
async def server_stopped_for_a_while(site: Site) -> None:
    """As if the machine had something else to do for 0.2 s."""
    site.process.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(0.2)
    finally:
        site.process.signal(signal.SIGCONT)


@fault
async def reader_killed(site: Site) -> None:
    """A process that reads large bodies dies; the next one comes with the next body."""
    async with site.excused_for(("table", "internal")):
        for reader in site.process.readers:
            with suppress(ProcessLookupError):
                os.kill(reader, signal.SIGKILL)
        await asyncio.sleep(0.5)
