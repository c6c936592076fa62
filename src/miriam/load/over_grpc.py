"""Requests over gRPC: the published messages, serialised once, over grpc.aio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc
from tritonclient.grpc import service_pb2 as messages

from miriam.load.sender import CONNECTION, TIMEOUT, Asked, Described, UnansweredError
from miriam.load.server import Server
from miriam.serve.errors import Status
from miriam.serve.tensors import to_binary

__all__ = ["GrpcSender"]

_SERVICE = "/inference.GRPCInferenceService/"
_REASONS = {
    grpc.StatusCode.INVALID_ARGUMENT: Status.INVALID,
    grpc.StatusCode.UNAUTHENTICATED: Status.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: Status.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: Status.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Status.EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Status.DEADLINE,
    grpc.StatusCode.UNAVAILABLE: Status.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED: Status.UNSUPPORTED,
    grpc.StatusCode.INTERNAL: Status.INTERNAL,
}
# What gRPC itself says where nobody answered; servers give the same status, and nothing else tells them apart.
_OWN_WORDS = (
    "failed to connect", "Failed to connect", "Connection re", "Socket closed", "Cancelling all calls",
    "GOAWAY", "sendmsg", "Broken pipe", "Endpoint closing", "End of TCP stream", "keepalive", "ping timeout",
    "Stream removed", "recvmsg", "ransport closed", "DNS resolution", "name resolver", "empty address list",
)  # fmt: skip
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
    ("grpc.enable_http_proxy", 0),
)


class GrpcSender:
    """A client with one connection, which carries any number of requests at a time."""

    def __init__(self, server: Server) -> None:
        token = server.token()
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        if server.tls:
            credentials = grpc.ssl_channel_credentials(*server.pem())
            self._channel = grpc.aio.secure_channel(server.authority, credentials, _OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(server.authority, _OPTIONS)
        self._infer = self._channel.unary_unary(_SERVICE + "ModelInfer")  # bytes in, bytes out

    async def describe(self, model: str) -> Described:
        """Ask what the model takes."""
        asked = messages.ModelMetadataRequest(name=model)
        found = messages.ModelMetadataResponse.FromString(await self._call("ModelMetadata", asked.SerializeToString()))
        try:
            config = await self._call("ModelConfig", messages.ModelConfigRequest(name=model).SerializeToString())
            said = messages.ModelConfigResponse.FromString(config).config.parameters["criticality"].string_value
        except UnansweredError:
            said = ""  # not every server has it
        return Described(
            {t.name: (t.datatype, tuple(t.shape)) for t in found.inputs},
            int(said) if said.isdecimal() else None,
        )

    async def _call(self, method: str, request: bytes, timeout_s: float = 10.0) -> bytes:
        call = self._channel.unary_unary(_SERVICE + method)
        try:
            answer: bytes = await call(request, timeout=timeout_s, metadata=self._metadata)
            return answer
        except grpc.aio.AioRpcError as error:
            raise _unanswered(error) from error

    async def register(self, key: str, size: int) -> None:
        """Tell the server of shared memory, under its own name."""
        asked = messages.SystemSharedMemoryRegisterRequest(name=key, key=f"/{key}", byte_size=size)
        await self._call("SystemSharedMemoryRegister", asked.SerializeToString())

    async def unregister(self, key: str) -> None:
        """Tell the server that it is no longer used, if that can be told."""
        asked = messages.SystemSharedMemoryUnregisterRequest(name=key)
        with suppress(UnansweredError):
            await self._call("SystemSharedMemoryUnregister", asked.SerializeToString())

    def serialise(self, asked: Asked) -> bytes:
        """The request as it goes over the wire."""
        request = messages.ModelInferRequest(model_name=asked.model)
        for name, (datatype, array) in asked.tensors.items():
            tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            if (place := asked.places.get(name)) is None:
                request.raw_input_contents.append(bytes(to_binary(array)))
                continue
            for key, value in place.parameters.items():
                if isinstance(value, str):
                    tensor.parameters[key].string_param = value
                else:
                    tensor.parameters[key].int64_param = value
        for name, value in asked.parameters.items():
            request.parameters[name].int64_param = value
        return bytes(request.SerializeToString())

    async def send(self, request: bytes, patience_s: float, sending: Callable[[], None]) -> bytes:
        """Send a serialised request and wait for its answer."""
        sending()
        try:
            answer: bytes = await self._infer(request, timeout=patience_s, metadata=self._metadata)
            return answer
        except grpc.aio.AioRpcError as error:
            raise _unanswered(error) from error

    def outputs(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """Name and contents of each tensor of an answer."""
        found = messages.ModelInferResponse.FromString(answer)
        names = [tensor.name for tensor in found.outputs]
        contents = found.raw_output_contents or [t.contents.SerializeToString() for t in found.outputs]
        return list(zip(names, contents, strict=True))

    async def close(self) -> None:
        """Give the connection back."""
        await self._channel.close()


def _unanswered(error: grpc.aio.AioRpcError) -> UnansweredError:
    code, said = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and said == "Deadline Exceeded":  # grpc's own words
        return UnansweredError(TIMEOUT, "no answer in time")
    if code is grpc.StatusCode.UNAVAILABLE and any(words in said for words in _OWN_WORDS):
        return UnansweredError(CONNECTION, said)
    return UnansweredError(_REASONS.get(code, code.name.lower()), said)
