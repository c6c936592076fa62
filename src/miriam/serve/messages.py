"""A request for inference as a message of gRPC, and its answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from miriam.serve.config import Limits
from miriam.serve.errors import ServiceError, Status
from miriam.serve.service import InferCall, InferResult
from miriam.serve.shared import Place, Shared
from miriam.serve.tensors import Array, datatype_of, from_binary, from_values, to_binary

__all__ = ["Asked", "asked", "in_stream", "parse", "parse_bytes", "read", "response"]

_INLINE_BYTES = 64 << 10  # of a message, beside raw tensors: read within a millisecond
_FIELDS = 1024  # of a message that is larger: tensors, outputs and parameters
_NAME, _RAW = 0x0A, 0x3A  # tags of model_name and raw_input_contents of a request
_RAW_OUTPUT, _INFER_RESPONSE = 0x32, 0x12  # of raw_output_contents of an answer, and of that in one of a stream
_HEADS, _HEAD_BYTES = 256, 4096  # what is remembered of messages, beside tensors: how many, how large

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


@dataclass(frozen=True, slots=True)
class Asked:
    """A message that has come, and has only been looked at.

    Attributes
    ----------
    data
        Its bytes.
    model
        The name in it, as far as that is known.
    raw
        Where its raw tensors are, if nothing comes after them: begin and end of each.
    head
        Bytes before those.
    slow
        Whether reading it takes so long that another process should.
    """

    data: bytes
    model: str
    raw: Sequence[tuple[int, int]] = ()
    head: int = 0
    slow: bool = False

    @property
    def id(self) -> str:
        """The client's own name of the request, if it has one that can be read."""
        try:
            return str(ModelInferRequest.FromString(self.data[: self.head] or self.data).id)
        except DecodeError:
            return ""


def asked(data: bytes, limits: Limits) -> Asked:
    """Look at a message.

    Raw tensors stay where they are. All else becomes objects, many times as large as their bytes and made while
    Python's lock is held: 64 MiB of empty inputs are 32 million of them.

    Raises
    ------
    ServiceError
        There is more in it than may be.
    """
    small = len(data) <= _INLINE_BYTES
    name, others, count, head, last, texts = b"", 0, 0, 0, 0, False
    raw: list[tuple[int, int]] = []
    try:
        for at, tag, start, end in _fields(data):
            count += 1
            if tag == _RAW:
                head = head or at
                raw.append((start, end))
            else:
                last = at
                others += end - start
                if tag == _NAME:
                    name = data[start:end]
                texts = texts or (not small and b"BYTES" in data[start:end])
            if count > _FIELDS or others > limits.json_bytes:
                if small:
                    raise ValueError("that is read faster than looked at")
                most = f"{_FIELDS} fields, and {int(limits.json_bytes)} bytes (limits.json_bytes in the configuration)"
                raise ServiceError(Status.TOO_LARGE, f"a message may have {most} that are no raw_input_contents")
            if end > len(data):
                raise ValueError("a field is cut off")
    except (IndexError, ValueError):  # the parser will say what is wrong
        raw, others = [], len(data)
    slow = not small and (others > _INLINE_BYTES or texts)
    model = name.decode(errors="replace")
    return Asked(data, model, raw, head, slow) if last < head else Asked(data, model, slow=slow)


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Where each field is, its tag, begin and end; all that a `ModelInferRequest` has are of the kind with a length."""
    at = 0
    while at < len(data):
        begin, tag, size, shift = at, data[at], 0, 0
        if tag & 0x87 != 2:
            raise ValueError("not a field of this message")
        while True:
            at += 1
            size |= (data[at] & 0x7F) << shift
            shift += 7
            if data[at] < 0x80:
                break
        at += 1
        yield begin, tag, at, at + size
        at += size


@dataclass(frozen=True, slots=True)
class _Head:
    """What a request says beside its tensors."""

    model: str
    version: str
    id: str
    outputs: Sequence[str] | None
    places: Mapping[str, Place]
    priority: int
    timeout_us: int
    parameters: Mapping[str, Any]
    inputs: Sequence[tuple[str, str, tuple[int, ...]]]
    shared: Mapping[int, Place]  # where inputs are that are not in the message, by their number
    typed: str | None  # an input that has contents

    @staticmethod
    def of(message: Any) -> _Head:
        parameters = _parameters(message.parameters)
        if parameters.get("sequence_id"):
            raise ServiceError(Status.UNSUPPORTED, "no model here keeps a state: leave sequence_id out")
        shared = {}
        for number, tensor in enumerate(message.inputs):
            if (place := _place(tensor)) is not None:
                if tensor.HasField("contents"):
                    raise _invalid(f"tensor {tensor.name!r:.80} has contents beside shared memory: give one of them")
                shared[number] = place
        places = {out.name: place for out in message.outputs if (place := _place(out)) is not None}
        return _Head(
            message.model_name, message.model_version, message.id, [_wanted(out) for out in message.outputs] or None,
            places, _whole(parameters, "priority"), _whole(parameters, "timeout"), parameters,
            [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in message.inputs], shared,
            next((tensor.name for tensor in message.inputs if tensor.HasField("contents")), None),
        )  # fmt: skip

    def call(self, in_message: Iterable[Array], limits: Limits) -> InferCall:
        """The call with these as the inputs that are not shared."""
        arrays, inputs = iter(in_message), list[tuple[str, Array | Shared]]()
        for number, tensor in enumerate(self.inputs):
            place = self.shared.get(number)
            given = next(arrays) if place is None else Shared.input(*tensor, place, limits.tensor_elements)
            inputs.append((tensor[0], given))
        return InferCall(
            self.model, inputs, self.version, self.id, self.outputs, self.places, self.priority, self.timeout_us,
            self.parameters,
        )  # fmt: skip

    def with_raw(self, raw: Sequence[Any], limits: Limits) -> InferCall:
        sent = [tensor for number, tensor in enumerate(self.inputs) if number not in self.shared]
        if len(raw) != len(sent):
            raise _invalid(f"{len(raw)} raw_input_contents for {len(sent)} inputs: give one for each")
        if self.typed is not None:
            raise _invalid(f"tensor {self.typed!r:.80} has contents beside raw_input_contents: give one of them")
        most = limits.tensor_elements
        return self.call((from_binary(*one, data, most) for one, data in zip(sent, raw, strict=True)), limits)


@lru_cache(_HEADS)  # a client says the same with every tensor
def _known(head: bytes) -> _Head:
    return _Head.of(ModelInferRequest.FromString(head))


def read(asked: Asked, limits: Limits) -> InferCall:
    """What a message asks for that was looked at.

    Raises
    ------
    ServiceError
        It is not what the protocol says, or more than it may be.
    """
    if not asked.raw:
        return parse_bytes(asked.data, limits)
    head = asked.data[: asked.head]
    try:
        found = _known(head) if len(head) <= _HEAD_BYTES else _Head.of(ModelInferRequest.FromString(head))
    except DecodeError as error:
        raise _unread(error) from None
    data = memoryview(asked.data)
    return found.with_raw([data[start:end] for start, end in asked.raw], limits)


def parse_bytes(data: bytes, limits: Limits) -> InferCall:
    """The same as `parse` of a message that has not been read."""
    try:
        message = ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise _unread(error) from None
    return parse(message, limits)


def parse(message: Any, limits: Limits) -> InferCall:
    """What a message asks for.

    Raises
    ------
    ServiceError
        It is not what the protocol says, or more than it may be.
    """
    head = _Head.of(message)
    if message.raw_input_contents:
        return head.with_raw(message.raw_input_contents, limits)
    sent = (tensor for number, tensor in enumerate(message.inputs) if number not in head.shared)
    return head.call((_typed(tensor, limits) for tensor in sent), limits)


def response(result: InferResult) -> bytes:
    """An answer as the bytes of a message: tensors are raw, however those of the request came; empty where shared."""
    tensors = tuple(
        (name, array.datatype, array.shape, array.place) if isinstance(array, Shared)
        else (name, datatype_of(array.dtype), array.shape, None)
        for name, array in result.outputs
    )  # fmt: skip
    parts: list[bytes | memoryview] = [_answer_head(result.model, result.version, tensors)]
    if result.id:
        parts.append(ModelInferResponse(id=result.id).SerializeToString())
    for _, array in result.outputs:
        data = b"" if isinstance(array, Shared) else to_binary(array)
        parts += _length(_RAW_OUTPUT, len(data)), data
    return b"".join(parts)


@lru_cache(_HEADS)
def _answer_head(model: str, version: str, tensors: Sequence[tuple[str, str, tuple[int, ...], Place | None]]) -> bytes:
    message = ModelInferResponse(model_name=model, model_version=version)
    for name, datatype, shape, place in tensors:
        output = message.outputs.add(name=name, datatype=datatype, shape=shape)
        for key, value in ({} if place is None else place.parameters).items():
            if isinstance(value, str):
                output.parameters[key].string_param = value
            else:
                output.parameters[key].int64_param = value
    return bytes(message.SerializeToString())


def _length(tag: int, size: int) -> bytes:
    """The begin of a field: its tag and how many bytes it has."""
    found = bytearray((tag,))
    while size >= 0x80:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)


def in_stream(answer: bytes, final: bool) -> bytes:
    """An answer as the bytes of a message of a stream; the last one of its request may be said to be that."""
    if final:
        said = ModelInferResponse()
        said.parameters["triton_final_response"].bool_param = True
        answer += said.SerializeToString()
    return _length(_INFER_RESPONSE, len(answer)) + answer


def _typed(tensor: Any, limits: Limits) -> Array:
    field = _CONTENTS.get(tensor.datatype)
    if field is None and tensor.datatype in ("FP16", "BF16"):
        raise _invalid(f"tensor {tensor.name!r:.80}: {tensor.datatype} goes into raw_input_contents only")
    values = getattr(tensor.contents, field) if field else ()
    if len(values) > limits.json_values:
        raise ServiceError(
            Status.TOO_LARGE,
            f"tensor {tensor.name!r:.80}: contents hold {limits.json_values} values at most "
            "(limits.json_values in the server's configuration): use raw_input_contents",
        )
    return from_values(tensor.name, tensor.datatype, tuple(tensor.shape), list(values), limits.tensor_elements)


def _parameters(given: Any) -> dict[str, Any]:
    choices = ((key, value, value.WhichOneof("parameter_choice")) for key, value in given.items())
    return {key: getattr(value, choice) if choice else None for key, value, choice in choices}


def _whole(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int:
        raise _invalid(f"parameter {name!r} is {value!r:.40}, not a whole number")
    return value


def _wanted(output: Any) -> str:
    if "classification" in output.parameters:
        raise ServiceError(
            Status.UNSUPPORTED, f"output {output.name!r:.80}: leave classification out: no model has labels"
        )
    return str(output.name)


def _place(tensor: Any) -> Place | None:
    return Place.of(_parameters(tensor.parameters), tensor.name) if tensor.parameters else None


def _unread(error: DecodeError) -> ServiceError:
    return _invalid(f"the message cannot be read: {error}")


def _invalid(what: str) -> ServiceError:
    return ServiceError(Status.INVALID, what)
