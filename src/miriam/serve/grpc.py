"""The Open Inference Protocol over gRPC, with Triton's extensions: the published messages, answered by a `Service`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as stubs

from miriam.errors import MiriamError
from miriam.serve import triton
from miriam.serve.config import Limits, Tls
from miriam.serve.errors import ServiceError, Status
from miriam.serve.service import InferCall, InferResult, Service
from miriam.serve.tensors import Array, datatype_of, from_binary, from_values, to_binary

__all__ = ["GrpcServer", "Servicer"]

_CALLS = 4096  # open at a time, of all connections; each model's queue has its own limit long before
_STREAMED = 16  # requests of one stream that are computed at a time; the next one is not read before

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

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where a datatype's values stand in ``InferTensorContents``; it has no place for those of 16-bit floats."""


def _refused(why: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: Servicer, request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, why)

    return method


class Servicer(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Every call of ``inference.GRPCInferenceService``."""

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service = service
        self._limits = limits

    # Health and metadata

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return messages.ServerLiveResponse(live=self._service.live())

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return messages.ServerReadyResponse(ready=self._service.ready())

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        try:
            ready = self._service.model_ready(request.name, request.version)
        except ServiceError:  # as Triton: what is not known is not ready
            ready = False
        return messages.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return messages.ServerMetadataResponse(**self._service.metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async with _codes(context):
            return messages.ModelMetadataResponse(**self._service.metadata(request.name, request.version))

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async with _codes(context):
            config = self._service.config(request.name, request.version)
            return json_format.ParseDict({"config": config}, messages.ModelConfigResponse())

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async with _codes(context):
            counted = triton.statistics(self._service.statistics(request.name or None, request.version))
            return json_format.ParseDict(counted, messages.ModelStatisticsResponse())

    # The repository

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return messages.RepositoryIndexResponse(models=self._service.index(ready=request.ready))

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async with _codes(context):
            if request.parameters:
                raise ServiceError(
                    Status.UNSUPPORTED,
                    "a model is loaded as the configuration file says: give no parameter",
                )
            await self._service.load(request.model_name)
            return messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async with _codes(context):
            await self._service.unload(request.model_name)
            return messages.RepositoryModelUnloadResponse()

    # Inference

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        try:
            return await self._answer(request, context.time_remaining())
        except ServiceError as error:
            await context.abort(_CODES[error.status], str(error))

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        """Answer each request of a stream, in their order; several are computed at a time."""
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(_STREAMED)
        async with asyncio.TaskGroup() as tasks:

            async def read() -> None:
                async for request in requests:
                    await answers.put(tasks.create_task(self._streamed(request, context.time_remaining())))
                await answers.put(None)

            tasks.create_task(read())
            while (answer := await answers.get()) is not None:
                await context.write(await answer)

    async def _streamed(self, request: Any, remaining_s: float | None) -> Any:
        """The answer to a request of a stream; an error is one, too, and ends only that request."""
        try:
            answer = await self._answer(request, remaining_s)
        except ServiceError as error:
            return messages.ModelStreamInferResponse(
                error_message=str(error), infer_response={"model_name": request.model_name, "id": request.id}
            )
        if request.parameters["triton_enable_empty_final_response"].bool_param:
            answer.parameters["triton_final_response"].bool_param = True
        return messages.ModelStreamInferResponse(infer_response=answer)

    async def _answer(self, request: Any, remaining_s: float | None) -> Any:
        with self._service.admitted(request.model_name):
            return _response(await self._service.infer(self._call(request, remaining_s)))

    def _call(self, request: Any, remaining_s: float | None) -> InferCall:
        parameters = {}
        for key, value in request.parameters.items():
            choice = value.WhichOneof("parameter_choice")
            parameters[key] = getattr(value, choice) if choice else None
        if parameters.get("sequence_id"):
            raise ServiceError(Status.UNSUPPORTED, "no model here keeps a state: leave sequence_id out")
        wanted = [_wanted(output) for output in request.outputs]
        return InferCall(
            model=request.model_name,
            inputs=self._inputs(request),
            version=request.model_version,
            id=request.id,
            outputs=wanted or None,
            priority=_whole(parameters, "priority"),
            timeout_us=self._timeout_us(request.model_name, _whole(parameters, "timeout"), remaining_s),
            parameters=parameters,
        )

    def _timeout_us(self, model: str, asked_us: int, remaining_s: float | None) -> int:
        """Time that a request may wait: what it asks for or its model's own, but not beyond the client's deadline."""
        if remaining_s is None:
            return asked_us
        entry = self._service.repository.get(model)
        if not asked_us and entry is not None and entry.config.timeout_ms is not None:
            asked_us = int(entry.config.timeout_ms * 1e3)
        remaining_us = max(int(remaining_s * 1e6), 1)
        return min(asked_us, remaining_us) if asked_us else remaining_us

    def _inputs(self, request: Any) -> list[tuple[str, Array]]:
        tensors, raw, limit = request.inputs, request.raw_input_contents, self._limits.tensor_elements
        if not raw:
            return [(t.name, self._typed(t)) for t in tensors]
        if len(raw) != len(tensors):
            raise ServiceError(
                Status.INVALID,
                f"{len(raw)} raw_input_contents for {len(tensors)} inputs: give one for each",
            )
        for tensor in tensors:
            if tensor.parameters or tensor.HasField("contents"):
                _refuse_beside_raw(tensor)
        return [
            (t.name, from_binary(t.name, t.datatype, tuple(t.shape), data, limit))
            for t, data in zip(tensors, raw, strict=True)
        ]

    def _typed(self, tensor: Any) -> Array:
        _refuse_shared(tensor)
        field = _CONTENTS.get(tensor.datatype)
        values: Sequence[Any] = list(getattr(tensor.contents, field)) if field else []
        if not field and tensor.datatype in ("FP16", "BF16"):
            raise ServiceError(
                Status.INVALID,
                f"tensor {tensor.name!r:.80}: {tensor.datatype} goes into raw_input_contents only",
            )
        return from_values(tensor.name, tensor.datatype, tuple(tensor.shape), values, self._limits.tensor_elements)

    # What is not here

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _refused(
        "there is no shared memory with clients: send tensors in the request"
    )
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = SystemSharedMemoryStatus
    TraceSetting = _refused("traces have no settings here: `miriam trace` shows those of the last requests")
    LogSettings = _refused("there are no log settings")


class _codes:  # noqa: N801
    """Within it, a `ServiceError` ends the call with its code."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ServiceError):
            await self._context.abort(_CODES[error.status], str(error))


def _response(result: InferResult) -> Any:
    response = messages.ModelInferResponse(model_name=result.model, model_version=result.version, id=result.id)
    for name, array in result.outputs:
        response.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        response.raw_output_contents.append(to_binary(array).tobytes())
    return response


def _wanted(output: Any) -> str:
    if output.parameters:
        _refuse_shared(output)
        if output.parameters["classification"].int64_param:
            raise ServiceError(
                Status.UNSUPPORTED,
                f"output {output.name!r:.80}: leave classification out: no model has labels",
            )
    return str(output.name)


def _refuse_beside_raw(tensor: Any) -> None:
    _refuse_shared(tensor)
    if tensor.HasField("contents"):
        raise ServiceError(
            Status.INVALID, f"tensor {tensor.name!r:.80} has contents beside raw_input_contents: give one of them"
        )


def _refuse_shared(tensor: Any) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise ServiceError(
            Status.UNSUPPORTED,
            f"tensor {tensor.name!r:.80}: send it in the request, not in shared memory",
        )


def _whole(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int:
        raise ServiceError(Status.INVALID, f"parameter {name!r} is {value!r:.40}, not a whole number")
    return value


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
    tls
        How the server shows who it is, and whom it listens to; None: plain.
    authorize
        Is given a call's path and its ``authorization`` (or None), and raises a `ServiceError` if that is not enough.
    """

    def __init__(
        self,
        service: Service,
        host: str,
        port: int,
        limits: Limits,
        tls: Tls | None = None,
        authorize: Callable[[str, str | None], None] | None = None,
    ) -> None:
        self._servicer = Servicer(service, limits)
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._limits, self._tls, self._authorize = limits, tls, authorize
        self._server: Any = None

    async def start(self) -> int:
        """Answer from now on; the port.

        Raises
        ------
        MiriamError
            The port cannot be had.
        """
        self._server = grpc.aio.server(
            interceptors=[_Authorized(self._authorize)] if self._authorize else None,
            maximum_concurrent_rpcs=_CALLS,
            options=[
                ("grpc.max_receive_message_length", int(self._limits.body_bytes)),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_allowed_incoming_connections", self._limits.connections),
                ("grpc.max_concurrent_streams", _CALLS // 16),  # of one connection, so that it leaves some to others
                ("grpc.max_metadata_size", int(self._limits.header_bytes)),
                ("grpc.so_reuseport", 0),  # else a second server on the port takes half of the clients unseen
                ("grpc.max_connection_idle_ms", int(self._limits.idle_s * 1e3)),
                ("grpc.keepalive_time_ms", 60_000),  # so that a client that fell silent is found
            ],
        )
        stubs.add_GRPCInferenceServiceServicer_to_server(self._servicer, self._server)
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


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    clients = None if tls.clients is None else tls.clients.read_bytes()
    pair = tls.key.read_bytes(), tls.certificate.read_bytes()
    return grpc.ssl_server_credentials([pair], clients, require_client_auth=clients is not None)


class _Authorized(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets through who may call."""

    def __init__(self, authorize: Callable[[str, str | None], None]) -> None:
        self._authorize = authorize

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        given = dict(handler_call_details.invocation_metadata or ())
        try:
            self._authorize(handler_call_details.method, given.get("authorization"))
        except ServiceError as error:
            code, message = _CODES[error.status], str(error)

            async def refuse(request: Any, context: Any) -> None:
                await context.abort(code, message)

            return grpc.unary_unary_rpc_method_handler(refuse)
        return await continuation(handler_call_details)
