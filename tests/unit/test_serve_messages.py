"""Requests for inference and answers as messages of gRPC."""

import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ByteSize
from tritonclient.grpc import service_pb2 as pb

from miriam.serve.config import Limits
from miriam.serve.errors import ServiceError, Status
from miriam.serve.messages import asked, parse, parse_bytes, read, response
from miriam.serve.service import InferResult
from miriam.serve.shared import Place, Shared
from miriam.serve.tensors import DATATYPES, from_binary, to_binary

LIMITS = Limits(json_bytes=ByteSize(1 << 18), json_values=1 << 14, tensor_elements=1 << 20)
LIMIT = LIMITS.tensor_elements
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
Array = np.ndarray[Any, Any]


@st.composite
def arrays(draw: st.DrawFn, datatype: str) -> Array:
    shape = draw(SHAPES)
    if datatype == "BYTES":
        size = math.prod(shape)
        array = np.empty(size, np.object_)
        array[:] = draw(st.lists(st.binary(max_size=5), min_size=size, max_size=size))
        return array.reshape(shape)
    if datatype == "BF16":
        return draw(hnp.arrays(np.uint16, shape)).view(ml_dtypes.bfloat16)
    return draw(hnp.arrays(DATATYPES[datatype], shape))


TENSORS = st.sampled_from(sorted(DATATYPES)).flatmap(lambda kind: st.tuples(st.just(kind), arrays(kind)))


def same(a: Array, b: Array) -> bool:
    if a.dtype == np.object_:
        return a.shape == b.shape and bool((a == b).all())
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    with np.errstate(invalid="ignore"):  # values that are none may come as others that are none
        return a.tobytes() == b.tobytes() or np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def raw(tensors: list[tuple[str, Array]], **others: Any) -> Any:
    message = pb.ModelInferRequest(model_name="m", **others)
    for i, (datatype, array) in enumerate(tensors):
        message.inputs.add(name=f"x{i}", datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(bytes(to_binary(array)))
    return message


def typed(tensors: list[tuple[str, Array]]) -> Any:
    message = pb.ModelInferRequest(model_name="m")
    for i, (datatype, array) in enumerate(tensors):
        tensor = message.inputs.add(name=f"x{i}", datatype=datatype, shape=array.shape)
        getattr(tensor.contents, CONTENTS[datatype]).extend(array.reshape(-1).tolist())
    return message


def refused(message: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        parse(message, LIMITS)
    return caught.value


@given(st.lists(TENSORS, max_size=3))
def test_raw_tensors_come_as_they_were(tensors: list[tuple[str, Array]]) -> None:
    call = parse(raw(tensors, id="7", model_version="1"), LIMITS)
    assert (call.model, call.id, call.version, call.outputs) == ("m", "7", "1", None)
    assert [name for name, _ in call.inputs] == [f"x{i}" for i in range(len(tensors))]
    assert all(same(array, given) for (_, given), (_, array) in zip(call.inputs, tensors, strict=True))


@given(st.lists(TENSORS, max_size=3), st.booleans(), st.integers(0, 3))
def test_a_message_says_the_same_however_it_is_read(tensors: list[tuple[str, Array]], late: bool, id_: int) -> None:
    message = raw(tensors, id="7" * id_, outputs=[{"name": "y"}], parameters={"priority": {"int64_param": 2}})
    data = message.SerializeToString()
    if late:  # fields may come in any order
        data += pb.ModelInferRequest(model_version="1").SerializeToString()
        message.model_version = "1"
    found, call = read(asked(data, LIMITS), LIMITS), parse(message, LIMITS)
    assert replace(found, inputs=()) == replace(call, inputs=())
    assert [name for name, _ in found.inputs] == [name for name, _ in call.inputs]
    assert all(same(a, b) for (_, a), (_, b) in zip(found.inputs, call.inputs, strict=True))
    assert (asked(data, LIMITS).id, asked(data, LIMITS).model) == (message.id, "m")


@given(st.sampled_from(sorted(CONTENTS)).flatmap(lambda kind: st.tuples(st.just(kind), arrays(kind))))
def test_typed_contents_are_the_same_as_raw_ones(tensor: tuple[str, Array]) -> None:
    ((_, by_values),) = parse(typed([tensor]), LIMITS).inputs
    ((_, by_bytes),) = parse(raw([tensor]), LIMITS).inputs
    assert same(by_values, by_bytes)
    assert same(by_values, tensor[1])


@given(st.lists(TENSORS, max_size=3))
def test_an_answer_holds_the_outputs_in_their_order(tensors: list[tuple[str, Array]]) -> None:
    outputs = [(f"y{i}", array) for i, (_, array) in enumerate(tensors)]
    message = pb.ModelInferResponse.FromString(response(InferResult("m", "1", "7", 3, outputs, 1.0, 2.0)))
    assert (message.model_name, message.model_version, message.id) == ("m", "1", "7")
    again = [
        from_binary(tensor.name, tensor.datatype, tuple(tensor.shape), data, LIMIT)
        for tensor, data in zip(message.outputs, message.raw_output_contents, strict=True)
    ]
    assert [tensor.name for tensor in message.outputs] == [name for name, _ in outputs]
    assert [tensor.datatype for tensor in message.outputs] == [datatype for datatype, _ in tensors]
    assert all(same(a, b) for a, (_, b) in zip(again, tensors, strict=True))


@given(st.binary(max_size=200), st.booleans())
def test_whatever_comes_is_a_request_or_refused(data: bytes, looked_at: bool) -> None:
    try:
        model: object = (read(asked(data, LIMITS), LIMITS) if looked_at else parse_bytes(data, LIMITS)).model
    except ServiceError as error:
        model = error.status
    if isinstance(model, Status):
        assert model in {Status.INVALID, Status.UNSUPPORTED, Status.TOO_LARGE}
    else:
        assert pb.ModelInferRequest.FromString(data).model_name == model


def test_what_a_request_says_beside_its_tensors() -> None:
    message = raw([("FP32", np.ones(2, np.float32))])
    message.parameters["priority"].uint64_param = 2
    message.parameters["timeout"].int64_param = 1500
    message.parameters["note"].string_param = "hello"
    message.parameters["flag"].bool_param = True
    message.parameters["empty"].SetInParent()
    message.outputs.add(name="b")
    message.outputs.add(name="a").parameters["binary_data"].bool_param = True
    call = parse(message, LIMITS)
    assert (call.priority, call.timeout_us, call.outputs) == (2, 1500, ["b", "a"])
    assert (call.parameters["note"], call.parameters["flag"], call.parameters["empty"]) == ("hello", True, None)


def test_what_cannot_be_read_is_refused_with_the_way_out() -> None:
    one = ("FP32", np.ones(2, np.float32))

    both = raw([one])
    both.inputs[0].contents.fp32_contents.extend([1, 1])
    assert "give one of them" in str(refused(both))

    fewer = raw([one, one])
    del fewer.raw_input_contents[1]
    assert "1 raw_input_contents for 2 inputs" in str(refused(fewer))

    short = raw([one])
    short.raw_input_contents[0] = b"1234"
    assert "takes 8 bytes, 4 were given" in str(refused(short))

    half = typed([])
    half.inputs.add(name="x", datatype="FP16", shape=[1])
    assert "FP16 goes into raw_input_contents only" in str(refused(half))

    unknown = typed([])
    unknown.inputs.add(name="x", datatype="FP8", shape=[1])
    assert "'FP8' is unknown" in str(refused(unknown))

    elsewhere = typed([])
    elsewhere.inputs.add(name="x", datatype="FP32", shape=[1]).contents.int_contents.append(1)
    assert "has 1 elements, 0 were given" in str(refused(elsewhere))


@pytest.mark.parametrize("shape", [[-1], [1 << 62, 1 << 62], [1 << 40], [1] * 40])
def test_no_shape_makes_memory(shape: list[int]) -> None:
    message = raw([("FP32", np.ones(2, np.float32))])
    message.inputs[0].shape[:] = shape
    assert refused(message).status in {Status.INVALID, Status.TOO_LARGE}


@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_a_parameter_that_is_no_number_is_refused(name: str) -> None:
    message = raw([])
    message.parameters[name].string_param = "1"
    assert f"parameter '{name}' is '1'" in str(refused(message))


def test_what_is_not_here_is_said_to_be_not_here() -> None:
    sequence = raw([])
    sequence.parameters["sequence_id"].int64_param = 5
    classes = raw([])
    classes.outputs.add(name="y").parameters["classification"].int64_param = 3
    for message in (sequence, classes):
        assert refused(message).status is Status.UNSUPPORTED


def test_a_tensor_is_in_shared_memory_or_in_the_message() -> None:
    message = raw([("FP32", np.ones(2, np.float32)), ("FP32", np.ones(3, np.float32))])
    for key, value in {"shared_memory_byte_size": 8, "shared_memory_offset": 64}.items():
        message.inputs[0].parameters[key].int64_param = value
    assert "shared_memory_region is None" in str(refused(message))
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert "2 raw_input_contents for 1 inputs" in str(refused(message))
    del message.raw_input_contents[0]
    message.outputs.add(name="y").parameters["shared_memory_region"].string_param = "s"
    assert "shared_memory_byte_size is None" in str(refused(message))
    message.outputs[0].parameters["shared_memory_byte_size"].int64_param = 4
    call = parse(message, LIMITS)
    assert call.inputs[0][1] == Shared("FP32", (2,), Place("r", 8, 64))
    assert np.array_equal(call.inputs[1][1], np.ones(3, np.float32))
    assert call.places == {"y": Place("s", 4)}
    message.inputs[0].contents.fp32_contents[:] = [1, 1]
    assert "contents beside shared memory" in str(refused(message))


def test_raw_tensors_of_any_size_are_read_at_once() -> None:
    message = raw([("FP32", np.zeros(1 << 18, np.float32))])
    found = asked(message.SerializeToString(), LIMITS)
    assert (found.model, found.slow) == ("m", False)
    ((_, array),) = read(found, LIMITS).inputs
    assert same(array, np.zeros(1 << 18, np.float32))


def test_what_takes_long_to_read_is_only_looked_at() -> None:
    values = typed([("FP32", np.zeros(1 << 15, np.float32))])
    texts = raw([("BYTES", np.full(1 << 15, b"", np.object_))])
    for data in (values.SerializeToString(), texts.SerializeToString()):
        found = asked(data, LIMITS)
        assert (found.slow, found.data, found.model) == (True, data, "m")


@pytest.mark.parametrize(
    "piece", [b"\x2a\x00", b"\x3a\x00", b"\x22\x00", b"\x2a" + b"\x81\x01" + bytes([0x12, 0x7F]) + bytes(127)]
)
def test_a_crowd_of_small_things_is_not_even_looked_at(piece: bytes) -> None:
    data = raw([]).SerializeToString() + piece * ((LIMITS.json_bytes + (64 << 10)) // len(piece))
    with pytest.raises(ServiceError) as caught:
        asked(data, LIMITS)
    assert caught.value.status is Status.TOO_LARGE


def test_typed_contents_hold_no_more_values_than_may_be() -> None:
    one_more = np.zeros(LIMITS.json_values + 1, np.uint8)
    error = refused(typed([("UINT8", one_more)]))
    assert (error.status, "use raw_input_contents" in str(error)) == (Status.TOO_LARGE, True)
    assert parse(typed([("UINT8", one_more[1:])]), LIMITS).inputs[0][1].size == LIMITS.json_values


@given(st.binary(min_size=1, max_size=40))
def test_looking_at_a_long_message_breaks_on_none(start: bytes) -> None:
    data = start + b"\x0a" * (64 << 10)
    with suppress(ServiceError):
        assert asked(data, LIMITS).data == data
