"""A request for inference as a message of gRPC, and its answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from miriam.serve.config import Limits
from miriam.serve.errors import ServiceError, Status
from miriam.serve.service import InferCall, InferResult
from miriam.serve.tensors import Array, datatype_of, from_binary, from_values, to_binary

__all__ = ["Asked", "asked", "parse", "parse_bytes", "response"]

_INLINE_BYTES = 64 << 10  # of a message, beside raw tensors: read within a millisecond
_FIELDS = 1024  # of a message that is larger: tensors, outputs and parameters
_NAME, _RAW = 0x0A, 0x3A  # tags of model_name and raw_input_contents

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
    """A message that has come.

    Attributes
    ----------
    message
        Its content; None where reading it would take so long that another process should.
    data
        Its bytes.
    model
        The name in it, as far as that is known.
    """

    message: Any
    data: bytes
    model: str


def asked(data: bytes, limits: Limits) -> Asked:
    """Look at a message, and read it if that is quick.

    Raw tensors are only copied. All else becomes objects, many times as large as their bytes and made while Python's
    lock is held: 64 MiB of empty inputs are 32 million of them.

    Raises
    ------
    ServiceError
        There is more in it than may be.
    DecodeError
        It is none.
    """
    if len(data) <= _INLINE_BYTES:
        message = ModelInferRequest.FromString(data)
        return Asked(message, data, message.model_name)
    name, others, fields, texts = b"", 0, 0, False
    try:
        for tag, start, end in _fields(data):
            fields += 1
            if tag == _NAME:
                name = data[start:end]
            if tag != _RAW:
                others += end - start
                texts = texts or b"BYTES" in data[start:end]
            if others > limits.json_bytes or fields > _FIELDS:
                most = f"{_FIELDS} fields, and {int(limits.json_bytes)} bytes (limits.json_bytes in the configuration)"
                raise ServiceError(Status.TOO_LARGE, f"a message may have {most} that are no raw_input_contents")
    except (IndexError, ValueError):
        others = len(data)  # the parser will say what is wrong
    quick = others <= _INLINE_BYTES and not texts
    return Asked(ModelInferRequest.FromString(data) if quick else None, data, name.decode(errors="replace"))


def _fields(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The tag, begin and end of each field; all that a `ModelInferRequest` has are of the kind that has a length."""
    at = 0
    while at < len(data):
        tag, size, shift = data[at], 0, 0
        if tag & 0x87 != 2:
            raise ValueError("not a field of this message")
        while True:
            at += 1
            size |= (data[at] & 0x7F) << shift
            shift += 7
            if data[at] < 0x80:
                break
        at += 1
        yield tag, at, at + size
        at += size


def parse_bytes(data: bytes, limits: Limits) -> InferCall:
    """The same as `parse` of a message that has not been read."""
    try:
        message = ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise ServiceError(Status.INVALID, f"the message is no ModelInferRequest: {error}") from None
    return parse(message, limits)


def parse(message: Any, limits: Limits) -> InferCall:
    """What a message asks for.

    Raises
    ------
    ServiceError
        It is not what the protocol says, or more than it may be.
    """
    parameters = _parameters(message.parameters) if message.parameters else {}
    priority, timeout_us = 0, 0
    if parameters:
        priority, timeout_us = _whole(parameters, "priority"), _whole(parameters, "timeout")
        if parameters.get("sequence_id"):
            raise ServiceError(Status.UNSUPPORTED, "no model here keeps a state: leave sequence_id out")
    return InferCall(
        model=message.model_name,
        inputs=_inputs(message, limits),
        version=message.model_version,
        id=message.id,
        outputs=[_wanted(output) for output in message.outputs] or None,
        priority=priority,
        timeout_us=timeout_us,
        parameters=parameters,
    )


def response(result: InferResult) -> Any:
    """An answer as a message: tensors are raw, however those of the request came."""
    message = ModelInferResponse(model_name=result.model, model_version=result.version, id=result.id)
    for name, array in result.outputs:
        message.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        message.raw_output_contents.append(to_binary(array).tobytes())
    return message


def _inputs(message: Any, limits: Limits) -> list[tuple[str, Array]]:
    tensors, raw = message.inputs, message.raw_input_contents
    for tensor in tensors:
        if tensor.parameters:
            _refuse_shared(tensor)
    if not raw:
        return [(t.name, _typed(t, limits)) for t in tensors]
    if len(raw) != len(tensors):
        raise _invalid(f"{len(raw)} raw_input_contents for {len(tensors)} inputs: give one for each")
    found = []
    for tensor, data in zip(tensors, raw, strict=True):
        name = tensor.name
        if tensor.HasField("contents"):
            raise _invalid(f"tensor {name!r:.80} has contents beside raw_input_contents: give one of them")
        found.append((name, from_binary(name, tensor.datatype, tuple(tensor.shape), data, limits.tensor_elements)))
    return found


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
    if output.parameters:
        _refuse_shared(output)
        if "classification" in output.parameters:
            raise ServiceError(
                Status.UNSUPPORTED, f"output {output.name!r:.80}: leave classification out: no model has labels"
            )
    return str(output.name)


def _refuse_shared(tensor: Any) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise ServiceError(
            Status.UNSUPPORTED, f"tensor {tensor.name!r:.80}: send it in the request, not in shared memory"
        )


def _invalid(what: str) -> ServiceError:
    return ServiceError(Status.INVALID, what)
