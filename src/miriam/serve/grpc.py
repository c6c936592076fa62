"""The Open Inference Protocol over gRPC, with Triton's extensions: the published calls, answered by a `Service`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer

from miriam.errors import MiriamError
from miriam.serve import triton
from miriam.serve.aside import Aside
from miriam.serve.config import Limits, Tls
from miriam.serve.errors import ServiceError, Status
from miriam.serve.limits import Memory
from miriam.serve.messages import Asked, asked, in_stream, parse_bytes, read, response
from miriam.serve.service import InferCall, Service
from miriam.serve.shared import CUDA

__all__ = ["GrpcServer"]

_LOG = logging.getLogger("miriam")

_STREAMS = 256  # calls of one connection, so that it leaves some to others
_STREAMED = 16  # requests of one stream that are computed at a time; the next one is not read before
_SERVICE = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]

Authorize = Callable[[str, str | None], None]

_CODES = {
    Status.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Status.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Status.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Status.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Status.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,  # not RESOURCE_EXHAUSTED, after which clients try again
    Status.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Status.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Status.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Status.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Status.INTERNAL: grpc.StatusCode.INTERNAL,
}


def _refused(why: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: _Calls, request: Any, context: Any) -> None:
        raise ServiceError(Status.UNSUPPORTED, why)

    return method


class _Calls(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Every call of the service. A `ServiceError` that it raises becomes the code of the call."""

    def __init__(self, service: Service, limits: Limits, memory: Memory) -> None:
        self._service = service
        self.limits = limits
        self._memory = memory
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

    async def ModelInfer(self, request: Asked, context: Any) -> bytes:  # noqa: N802
        return (await self._answer(request, context))[0]

    async def ModelStreamInfer(self, requests: AsyncIterator[Asked | ServiceError], context: Any) -> None:  # noqa: N802
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

    async def _streamed(self, request: Asked | ServiceError, context: Any) -> bytes:
        """The answer to a request of a stream; an error is one, too, and ends only that request."""
        if isinstance(request, ServiceError):
            return _failed(request)
        try:
            answer, call = await self._answer(request, context)
        except ServiceError as error:
            return _failed(error, {"model_name": request.model, "id": request.id})
        return in_stream(answer, call.parameters.get("triton_enable_empty_final_response") is True)

    async def _answer(self, request: Asked, context: Any) -> tuple[bytes, InferCall]:
        with self._service.admitted(request.model), self._memory.lent() as take:
            take(len(request.data))
            if request.slow:
                call = await self._aside(request.model).call(parse_bytes, request.data, self.limits)
            else:
                call = read(request, self.limits)
            if (remaining_s := context.time_remaining()) is not None:  # now, after the reading
                call = replace(call, timeout_us=self._timeout_us(call, remaining_s))
            return response(await self._service.infer(call, take)), call

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

    # Shared memory

    async def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = messages.SystemSharedMemoryStatusResponse()
        for one in self._service.regions.status(request.name):
            found = answer.regions[one.name]
            found.name, found.key, found.offset, found.byte_size = one.name, one.key, one.offset, one.size
        return answer

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._service.regions.register(request.name, request.key, request.offset, request.byte_size)
        return messages.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._service.regions.unregister(request.name)
        return messages.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryUnregister(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.CudaSharedMemoryUnregisterResponse()  # clients do it before they begin, to be sure

    # What is not here

    CudaSharedMemoryRegister = _refused(CUDA)
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
        self._calls = _Calls(service, limits, memory or Memory(limits.total_bytes))
        self._handlers = _Handlers(self._calls, authorize, calls)
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._limits, self._tls = limits, tls
        self._server: Any = None

    async def start(self) -> int:
        """Answer from now on; the port.

        Raises
        ------
        MiriamError
            The port cannot be had.
        """
        # Processes that the server begins have nothing of gRPC in them; looking after that is noise and a hold-up.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", int(self._limits.body_bytes)),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", int(self._limits.header_bytes)),
                ("grpc.max_allowed_incoming_connections", self._limits.connections),
                ("grpc.max_concurrent_streams", _STREAMS),
                ("grpc.max_connection_idle_ms", int(self._limits.idle_s * 1e3)),
                ("grpc.server_handshake_timeout_ms", int(self._limits.request_s * 1e3)),
                ("grpc.keepalive_time_ms", 60_000),  # so that a client that fell silent is found
                ("grpc.so_reuseport", 0),  # else a second server on the port takes half of the clients unseen
            ],
        )
        self._server.add_generic_rpc_handlers([self._handlers])
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(self._address)
            else:
                port = self._server.add_secure_port(self._address, _credentials(self._tls))
        except RuntimeError:
            raise MiriamError(
                f"gRPC cannot listen at {self._address}: is another server there? ports.grpc chooses another port"
            ) from None
        await self._server.start()
        return int(port)

    async def stop(self, grace_s: float | None) -> None:
        """Take no call any more, and end those that are open after some time."""
        await self._server.stop(grace_s)
        await self._calls.close()


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """What the published stubs register, but for requests for inference, which not all are read at once."""

    def __init__(self, calls: _Calls, authorize: Authorize, most: int) -> None:
        self._authorize, self._most = authorize, most
        self._open = 0
        self._handlers = {}
        for method in _SERVICE.methods:
            read, write = _class(method.input_type).FromString, _class(method.output_type).SerializeToString
            if method.input_type.name == "ModelInferRequest":  # answered with the bytes themselves
                read, write = partial(asked, limits=calls.limits), None
            streams = method.name == "ModelStreamInfer"
            kind = grpc.stream_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
            self._handlers[f"/{_SERVICE.full_name}/{method.name}"] = kind(
                self._coded(getattr(calls, method.name)), _reading(read), write
            )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call; nothing has been read of it but its head."""
        path = handler_call_details.method
        given: Iterable[tuple[str, str]] = handler_call_details.invocation_metadata or ()
        try:
            self._authorize(path, dict(given).get("authorization"))
        except ServiceError as error:
            return grpc.stream_stream_rpc_method_handler(self._coded(_raising(error)))
        return self._handlers.get(path)

    def _coded(self, call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        """A call whose errors become codes; and not too many at a time, which gRPC's own limit makes dear to count."""

        async def coded(request: Any, context: Any) -> Any:
            self._open += 1
            try:
                if self._open > self._most:
                    raise ServiceError(Status.EXHAUSTED, f"{self._most} calls are being answered: come back later")
                if isinstance(request, ServiceError):
                    raise request
                return await call(request, context)
            except ServiceError as error:
                await context.abort(_CODES[error.status], str(error))
            except Exception:
                _LOG.exception("an error in the answer to %s", call.__name__)
                await context.abort(grpc.StatusCode.INTERNAL, "an error of the server: see its log")
            finally:
                self._open -= 1

        return coded


def _failed(error: ServiceError, about: Mapping[str, str] | None = None) -> bytes:
    """An error as the bytes of a message of a stream."""
    answer = messages.ModelStreamInferResponse(error_message=str(error), infer_response=about)
    return bytes(answer.SerializeToString())


def _class(descriptor: Any) -> Any:
    return getattr(messages, descriptor.name)


def _raising(error: ServiceError) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> None:
        raise error

    return call


def _reading(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """What cannot be read becomes the error that says so, which gRPC itself would only log."""

    def reading(data: bytes) -> Any:
        try:
            return read(data)
        except ServiceError as error:
            return error
        except DecodeError as error:
            return ServiceError(Status.INVALID, f"the message cannot be read: {error}")

    return reading


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    clients = None if tls.clients is None else tls.clients.read_bytes()
    pair = tls.key.read_bytes(), tls.certificate.read_bytes()
    return grpc.ssl_server_credentials([pair], clients, require_client_auth=clients is not None)
