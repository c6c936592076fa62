"""The Open Inference Protocol over gRPC, with Triton's extensions: the published calls, answered by a `Service`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as messages

from miriam.serve import triton
from miriam.serve.aside import Aside
from miriam.serve.config import Limits, Tls
from miriam.serve.errors import ServiceError, Status
from miriam.serve.http2 import Connection
from miriam.serve.limits import Memory
from miriam.serve.listening import listen
from miriam.serve.messages import Asked, asked, in_stream, parse_bytes, read, response
from miriam.serve.rpc import Call, Method, Rules
from miriam.serve.service import InferCall, Service

__all__ = ["GrpcServer"]

_STREAMED = 16  # requests of one stream that are computed at a time; the next one is not read before
_SERVICE = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]

Authorize = Callable[[str, str | None], None]


def _refused(why: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: _Calls, request: Any, context: Any) -> None:
        raise ServiceError(Status.UNSUPPORTED, why)

    return method


class _Calls:
    """Every call of the service. A `ServiceError` that it raises becomes the status of the call."""

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service = service
        self.limits = limits
        self._asides: dict[int, Aside] = {}

    async def close(self) -> None:
        for aside in self._asides.values():
            await aside.close()

    # Health and metadata

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ServerLiveResponse(live=self._service.live())

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ServerReadyResponse(ready=self._service.ready())

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        try:
            ready = self._service.model_ready(request.name, request.version)
        except ServiceError:  # as Triton: what is not known is not ready
            ready = False
        return messages.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ServerMetadataResponse(**self._service.metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ModelMetadataResponse(**self._service.metadata(request.name, request.version))

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = self._service.config(request.name, request.version)
        return json_format.ParseDict({"config": config}, messages.ModelConfigResponse())

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        counted = triton.statistics(self._service.statistics(request.name or None, request.version))
        return json_format.ParseDict(counted, messages.ModelStatisticsResponse())

    # The repository

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.RepositoryIndexResponse(models=self._service.index(ready=request.ready))

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.parameters:
            raise ServiceError(
                Status.UNSUPPORTED, "a model is loaded as the configuration file says: give no parameter"
            )
        await self._service.load(request.model_name)
        return messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._service.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    # Inference

    async def ModelInfer(self, request: Asked, context: Call) -> bytes:  # noqa: N802
        return (await self._answer(request, context))[0]

    async def ModelStreamInfer(self, requests: AsyncIterator[Asked | ServiceError], context: Call) -> None:  # noqa: N802
        """Answer each request of a stream, in their order; several are computed at a time."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_STREAMED)
        async with asyncio.TaskGroup() as tasks:

            async def read() -> None:
                async for request in requests:
                    await answers.put(tasks.create_task(self._streamed(request, context)))
                await answers.put(None)

            tasks.create_task(read())
            while (answer := await answers.get()) is not None:
                await context.write(await answer)

    async def _streamed(self, request: Asked | ServiceError, context: Call) -> bytes:
        """The answer to a request of a stream; an error is one, too, and ends only that request."""
        if isinstance(request, ServiceError):
            return _failed(request)
        try:
            answer, call = await self._answer(request, context)
        except ServiceError as error:
            return _failed(error, {"model_name": request.model, "id": request.id})
        finally:
            context.release(len(request.data))
        return in_stream(answer, call.parameters.get("triton_enable_empty_final_response") is True)

    async def _answer(self, request: Asked, context: Call) -> tuple[bytes, InferCall]:
        with self._service.admitted(request.model):
            if request.slow:
                call = await self._aside(request.model).call(parse_bytes, request.data, self.limits)
            else:
                call = read(request, self.limits)
            if (remaining_s := context.time_remaining()) is not None:
                call = replace(call, timeout_us=self._timeout_us(call, remaining_s))
            return response(await self._service.infer(call)), call

    def _aside(self, model: str) -> Aside:
        """What reads for a model's level: none waits for what a lower one sent."""
        return self._asides.setdefault(self._service.entry(model, "").config.criticality, Aside())

    def _timeout_us(self, call: InferCall, remaining_s: float) -> int:
        """Time that a request may wait: what it asks for or its model's own, but not beyond the client's deadline."""
        asked_us, remaining_us = call.timeout_us, max(int(remaining_s * 1e6), 1)
        entry = self._service.repository.get(call.model)
        if not asked_us and entry is not None and entry.config.timeout_ms is not None:
            asked_us = int(entry.config.timeout_ms * 1e3)
        return min(asked_us, remaining_us) if asked_us else remaining_us

    # What is not here

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _refused(
        "there is no shared memory with clients: send tensors in the request"
    )
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = SystemSharedMemoryStatus
    TraceSetting = _refused("traces have no settings here: `miriam trace` shows those of the last requests")
    LogSettings = _refused("there are no log settings")


class GrpcServer:
    """A `Service` on a port, for gRPC, on the running event loop.

    Parameters
    ----------
    service
        What answers.
    host, port
        Where; port 0 lets the kernel choose.
    limits
        What a client may ask for.
    memory
        What requests hold, those of other protocols, too; None: a count of its own.
    tls
        How the server shows who it is, and whom it listens to; None: plain.
    authorize
        Is given a call's path and its ``authorization`` (or None), and raises a `ServiceError` if that is not enough.
    calls
        That are answered at a time, of all connections; the queue of each model has its own limit long before.
    """

    def __init__(
        self,
        service: Service,
        host: str,
        port: int,
        limits: Limits,
        memory: Memory | None = None,
        tls: Tls | None = None,
        authorize: Authorize = lambda path, authorization: None,
        calls: int = 4096,
    ) -> None:
        self._limits, self._address = limits, (host, port)
        self._tls = None if tls is None else _context(tls)
        memory = memory or Memory(limits.total_bytes)
        self._calls = _Calls(service, limits)
        self._rules = Rules(
            dict(_methods(self._calls)), authorize, memory, int(limits.body_bytes), limits.request_s, calls
        )
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._gone = asyncio.Event()

    async def start(self) -> int:
        """Answer from now on; the port.

        Raises
        ------
        MiriamError
            The port cannot be had.
        """
        limits = self._limits
        protocol = partial(
            Connection, partial(Call, rules=self._rules), self._opened, self._closed,
            request_s=limits.request_s, idle_s=limits.idle_s, header_bytes=int(limits.header_bytes),
        )  # fmt: skip
        self._servers, port = await listen(
            protocol, *self._address, "grpc", tls=self._tls, handshake_s=limits.request_s
        )
        return port

    async def stop(self, grace_s: float | None) -> None:
        """Take no call any more, and end those that are open after some time."""
        for server in self._servers:
            server.close()
        for connection in tuple(self._connections):
            connection.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s or 0):
                await self._empty()
        for connection in tuple(self._connections):
            connection.abort()
        await self._empty()
        await self._calls.close()

    def _opened(self, connection: Connection) -> bool:
        if len(self._connections) >= self._limits.connections:
            return False
        self._connections.add(connection)
        return True

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._gone.set()

    async def _empty(self) -> None:
        while self._connections:
            self._gone.clear()
            await self._gone.wait()


def _methods(calls: _Calls) -> Iterator[tuple[str, Method]]:
    """What the published stubs have, but for requests for inference, which not all are read at once."""
    for method in _SERVICE.methods:
        read, write = _class(method.input_type).FromString, _class(method.output_type).SerializeToString
        if method.input_type.name == "ModelInferRequest":
            read, write = partial(asked, limits=calls.limits), bytes
        streams = method.name == "ModelStreamInfer"
        yield (
            f"/{_SERVICE.full_name}/{method.name}",
            Method(getattr(calls, method.name), _reading(read, streams), write, streams),
        )


def _failed(error: ServiceError, about: Mapping[str, str] | None = None) -> bytes:
    """An error as the bytes of a message of a stream."""
    answer = messages.ModelStreamInferResponse(error_message=str(error), infer_response=about)
    return bytes(answer.SerializeToString())


def _class(descriptor: Any) -> Any:
    return getattr(messages, descriptor.name)


def _reading(read: Callable[[bytes], Any], streams: bool) -> Callable[[bytes], Any]:
    """What cannot be read raises a `ServiceError`; in a stream it becomes one, which ends that request only."""

    def reading(data: bytes) -> Any:
        try:
            return read(data)
        except (ServiceError, DecodeError) as error:
            found = (
                error
                if isinstance(error, ServiceError)
                else ServiceError(Status.INVALID, f"the message cannot be read: {error}")
            )
        if not streams:
            raise found
        return found

    return reading


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.clients)
    if tls.clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    return context
