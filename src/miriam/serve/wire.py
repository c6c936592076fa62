"""The body of a request for inference over HTTP, and of its answer: JSON, and after it what tensors have as bytes.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from miriam.serve.config import Limits
from miriam.serve.errors import ServiceError, Status
from miriam.serve.service import InferCall, InferResult
from miriam.serve.shared import Place, Shared
from miriam.serve.tensors import Array, datatype_of, from_binary, from_values, to_binary, to_values

__all__ = ["Asked", "elements", "json_size", "number", "parse", "write"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for.

    Attributes
    ----------
    binary
        Names of outputs that are to come as bytes, or None for all of them.
    """

    call: InferCall
    binary: frozenset[str] | None


def json_size(header: str | None, size: int) -> int:
    """How much of a body of this size is JSON, by the header ``Inference-Header-Content-Length``.

    Raises
    ------
    ServiceError
        The header is no number, or says more than there is.
    """
    if header is None:
        return size
    if not (header.isascii() and header.isdecimal() and len(header) < 20) or int(header) > size:
        raise _invalid(f"Inference-Header-Content-Length is {header!r:.40}, and the body has {size} bytes")
    return int(header)


def parse(body: bytes | bytearray, lead: int, size: int, model: str, version: str, limits: Limits) -> Asked:
    """Read a body, of which the first ``size`` bytes after ``lead`` others are JSON.

    Raises
    ------
    ServiceError
        It is not what the protocol says, or more than it may be.
    """
    view = memoryview(body)[lead:]
    document = _json(view[:size], limits)
    if not isinstance(document, dict):
        raise _invalid("the body is no JSON object")
    parameters = _parameters(document, "the request")
    if parameters.get("sequence_id"):
        raise ServiceError(Status.UNSUPPORTED, "no model here keeps a state: leave sequence_id out")
    inputs: list[tuple[str, Array | Shared]] = []
    at = size
    for given in _list(document, "inputs", required=True):
        name, datatype = _text(given, "name", "an input"), _text(given, "datatype", "an input")
        shape = [number(size) for size in _list(given, "shape", required=True)]
        said = _parameters(given, f"input {name!r:.80}")
        if (place := _place(said, name)) is not None:
            if "data" in given or "binary_data_size" in said:
                raise _invalid(f"input {name!r:.80} is in shared memory, and in the request: give one of them")
            inputs.append((name, Shared.input(name, datatype, shape, place, limits.tensor_elements)))
            continue
        length = number(said.get("binary_data_size"))
        if length is None:
            if "data" not in given:
                raise _invalid(f"input {name!r:.80} has neither data nor binary_data_size")
            inputs.append((name, from_values(name, datatype, shape, given["data"], limits.tensor_elements)))
            continue
        if "data" in given:
            raise _invalid(f"input {name!r:.80} has data and binary_data_size: give one of them")
        if type(length) is not int or not 0 <= length <= len(view) - at:
            raise _invalid(f"input {name!r:.80}: binary_data_size is {length!r:.40}, {len(view) - at} bytes are there")
        inputs.append((name, from_binary(name, datatype, shape, view[at : at + length], limits.tensor_elements)))
        at += length
    if at != len(view):
        raise _invalid(f"{len(view) - at} bytes are left after the last input")
    outputs, binary, places = _outputs(document, parameters)
    call = InferCall(
        model,
        inputs,
        version,
        _text(document, "id", "the request") if "id" in document else "",
        outputs,
        places,
        _whole(parameters, "priority"),
        _whole(parameters, "timeout"),
        parameters,
    )
    return Asked(call, binary)


def _json(text: memoryview, limits: Limits) -> Any:
    if len(text) > limits.json_bytes:
        raise ServiceError(
            Status.TOO_LARGE,
            f"the JSON may have {int(limits.json_bytes)} bytes (limits.json_bytes): send tensors in binary form",
        )
    data = bytes(text)
    # Before it is parsed: a value takes up to a hundred bytes then. In texts these are counted, too.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > limits.json_values:
        raise ServiceError(
            Status.TOO_LARGE,
            f"the JSON may have {limits.json_values} values (limits.json_values): send tensors in binary form",
        )
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _invalid(f"the body is no JSON: {error}") from None


def _outputs(
    document: Mapping[str, Any], parameters: Mapping[str, Any]
) -> tuple[list[str] | None, frozenset[str] | None, Mapping[str, Place]]:
    everything = parameters.get("binary_data_output", False)
    if type(everything) is not bool:
        raise _invalid("binary_data_output is neither true nor false")
    names, binary, places = [], set(), {}
    for wanted in _list(document, "outputs"):
        name = _text(wanted, "name", "an output")
        said = _parameters(wanted, f"output {name!r:.80}")
        if (place := _place(said, name)) is not None:
            places[name] = place
        if said.get("classification"):
            raise ServiceError(
                Status.UNSUPPORTED, f"output {name!r:.80}: leave classification out: no model has labels"
            )
        own = said.get("binary_data", everything)
        if type(own) is not bool:
            raise _invalid(f"output {name!r:.80}: binary_data is neither true nor false")
        names.append(name)
        if own:
            binary.add(name)
    if not names:
        return None, None if everything else frozenset(), places
    return names, frozenset(binary), places


def write(result: InferResult, binary: frozenset[str] | None) -> tuple[bytes, int | None]:
    """The body of an answer, and how much of it is JSON if not all.

    Raises
    ------
    ServiceError
        JSON cannot say an output.
    """
    outputs, tail = [], []
    for name, array in result.outputs:
        if isinstance(array, Shared):
            parameters = array.place.parameters
            outputs.append(
                {"name": name, "datatype": array.datatype, "shape": list(array.shape), "parameters": parameters}
            )
            continue
        output: dict[str, Any] = {"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape)}
        if binary is None or name in binary:
            data = to_binary(array)
            output["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            output["data"] = to_values(name, array)
        outputs.append(output)
    head = orjson.dumps(
        {
            "model_name": result.model,
            "model_version": result.version,
            **({"id": result.id} if result.id else {}),
            "outputs": outputs,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    return (b"".join((head, *tail)), len(head)) if tail else (head, None)


def _list(where: Any, key: str, required: bool = False) -> list[Any]:
    found = where.get(key) if isinstance(where, dict) else None
    if found is None and not required:
        return []
    if not isinstance(found, list):
        raise _invalid(f"{key!r} is no list")
    return found


def _text(where: Any, key: str, what: str) -> str:
    found = where.get(key) if isinstance(where, dict) else None
    if not isinstance(found, str):
        raise _invalid(f"{what} has no {key!r}, which is a text")
    return found


def _parameters(where: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    found = where.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _invalid(f"'parameters' of {what} is no object")
    return found


def _place(said: Mapping[str, Any], name: str) -> Place | None:
    return Place.of({key: number(value) for key, value in said.items()}, name)


def _whole(parameters: Mapping[str, Any], name: str) -> int:
    value = number(parameters.get(name, 0))
    if type(value) is not int:
        raise _invalid(f"parameter {name!r} is {value!r:.40}, not a whole number")
    return value


def number(value: Any) -> Any:
    """The same, but a number without a fraction is a whole one, however it is written: JSON knows no difference."""
    return int(value) if type(value) is float and value.is_integer() else value


def _invalid(what: str) -> ServiceError:
    return ServiceError(Status.INVALID, what)


def elements(outputs: Sequence[tuple[str, Array | Shared]], binary: frozenset[str] | None) -> int:
    """Values of an answer that JSON would have to say."""
    if binary is None:
        return 0
    return sum(array.size for name, array in outputs if name not in binary and not isinstance(array, Shared))
