"""Tensors between NumPy and the two forms of the protocol."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from miriam.serve.errors import ServiceError, Status
from miriam.serve.tensors import (
    DATATYPES,
    datatype_of,
    element_count,
    from_binary,
    from_values,
    to_binary,
    to_values,
    usable,
)

LIMIT = 1 << 16
NUMBERS = sorted(set(DATATYPES) - {"BYTES"})
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
Array = np.ndarray[Any, Any]


@st.composite
def arrays(draw: st.DrawFn, datatypes: list[str], finite: bool) -> tuple[str, Array]:
    datatype, shape = draw(st.sampled_from(datatypes)), draw(SHAPES)
    if datatype == "BYTES":
        values = draw(st.lists(st.binary(max_size=5), min_size=math.prod(shape), max_size=math.prod(shape)))
        array = np.empty(len(values), np.object_)
        array[:] = values
        return datatype, array.reshape(shape)
    dtype = DATATYPES[datatype]
    if datatype == "BF16":
        narrow = hnp.arrays(np.uint16, shape).map(lambda bits: bits.view(ml_dtypes.bfloat16))
        found = draw(narrow)
        return datatype, np.where(np.isfinite(found), found, dtype.type(1)) if finite else found
    elements = {"allow_nan": False, "allow_infinity": False} if finite and dtype.kind == "f" else None
    return datatype, draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **elements) if elements else None))


def same(a: Array, b: Array) -> bool:
    """To the bit, NaN and the sign of zero included."""
    if a.dtype == np.object_:
        return a.shape == b.shape and bool((a == b).all())
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(arrays(list(DATATYPES), finite=False), st.booleans())
def test_the_binary_form_says_every_array(given: tuple[str, Array], writable: bool) -> None:
    datatype, array = given
    data = bytes(to_binary(array))
    again = from_binary("x", datatype, array.shape, bytearray(data) if writable else data, LIMIT)
    assert same(array, again)
    assert same(array, usable(again))
    assert usable(again).flags.writeable
    assert usable(again).flags.aligned
    assert datatype_of(array.dtype) == datatype


@given(arrays(NUMBERS, finite=True), st.booleans())
def test_the_json_form_says_every_array_of_numbers(given: tuple[str, Array], nested: bool) -> None:
    datatype, array = given
    values = orjson.loads(orjson.dumps(to_values("x", array), option=orjson.OPT_SERIALIZE_NUMPY))
    if nested and array.ndim:
        values = np.array(values, object).reshape(array.shape).tolist()
    assert same(array, from_values("x", datatype, array.shape, values, LIMIT))


@given(st.lists(st.text(max_size=5), max_size=6))
def test_the_json_form_says_texts(texts: list[str]) -> None:
    array = from_values("x", "BYTES", [len(texts)], texts, LIMIT)
    assert array.tolist() == [text.encode() for text in texts]
    assert to_values("x", array) == texts
    assert to_values("x", np.array(texts, str)) == [text.rstrip("\0") for text in texts]  # NumPy drops those


@given(arrays(list(DATATYPES), finite=False), st.data())
def test_the_binary_form_of_another_length_is_refused(given: tuple[str, Array], data: st.DataObject) -> None:
    datatype, array = given
    right = bytes(to_binary(array))
    cut = data.draw(st.integers(0, max(len(right) - 1, 0)))
    for wrong in (right + b"\0", right[:cut] if right else b"\0"):
        with pytest.raises(ServiceError) as refused:
            from_binary("x", datatype, array.shape, wrong, LIMIT)
        assert refused.value.status is Status.INVALID


@given(st.binary(max_size=40), SHAPES)
def test_any_bytes_are_texts_or_refused(data: bytes, shape: tuple[int, ...]) -> None:
    try:
        array = from_binary("x", "BYTES", shape, data, LIMIT)
    except ServiceError:
        return
    assert bytes(to_binary(array)) == data


def test_an_array_lies_in_what_came_if_it_can() -> None:
    data = bytearray(16)
    array = from_binary("x", "FP32", [4], memoryview(data), LIMIT)
    array[0] = 1.0
    assert data[:4] == b"\0\0\x80\x3f"
    assert usable(array) is array
    odd = usable(from_binary("x", "FP32", [3], memoryview(data)[1:13], LIMIT))
    assert odd.flags.aligned
    assert odd.base is None


@pytest.mark.parametrize(
    ("shape", "status"),
    [
        ([-1], Status.INVALID),
        ([2, -1, -2], Status.INVALID),
        ([1.0], Status.INVALID),
        ([True], Status.INVALID),
        (["2"], Status.INVALID),
        ([None], Status.INVALID),
        ([[1]], Status.INVALID),
        ([1] * 33, Status.INVALID),
        ([LIMIT + 1], Status.TOO_LARGE),
        ([2**32, 2**32], Status.TOO_LARGE),  # wraps to 0 in 64 bits
        ([2**62, 4], Status.TOO_LARGE),
        ([0, 2**62], Status.TOO_LARGE),
        ([10**400], Status.TOO_LARGE),
    ],
)
def test_a_shape_that_cannot_be_is_refused_before_anything_is_allocated(shape: list[Any], status: Status) -> None:
    for make in (from_binary, from_values):
        with pytest.raises(ServiceError) as refused:
            make("x", "FP32", shape, b"" if make is from_binary else [], LIMIT)
        assert refused.value.status is status
        assert len(str(refused.value)) < 300


@given(st.lists(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans()), max_size=4))
def test_any_shape_is_counted_or_refused(shape: list[Any]) -> None:
    try:
        count = element_count("x", "FP32", shape, LIMIT)
    except ServiceError:
        return
    assert count == math.prod(shape) <= LIMIT


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2], [1.0]),
        ("FP32", [2], [1.0, None]),
        ("FP32", [2], [1.0, "2"]),
        ("FP32", [2], [1.0, True]),
        ("FP32", [2], [1.0, [2.0]]),
        ("FP32", [2], 1.0),
        ("FP32", [2], {"0": 1.0}),
        ("FP32", [2], None),
        ("FP32", [2, 2], [[1, 2], [3]]),
        ("FP32", [2, 2], [[1, 2], 3, 4]),
        ("FP32", [2, 2], [[1, 2], [3, [4]]]),
        ("FP32", [1], [1e39]),
        ("FP16", [1], [65520.0]),
        ("BF16", [1], [3.4e38 * 1.01]),
        ("INT32", [1], [1.0]),
        ("INT32", [1], [2**31]),
        ("INT64", [1], [2**63]),
        ("UINT64", [1], [-1]),
        ("UINT8", [1], [256]),
        ("BOOL", [1], [1]),
        ("BYTES", [1], [1]),
        ("FP8", [1], [1]),
        ("", [1], [1]),
    ],
)
def test_values_that_are_not_the_datatypes_are_refused(datatype: str, shape: list[int], data: object) -> None:
    with pytest.raises(ServiceError) as refused:
        from_values("x", datatype, shape, data, LIMIT)
    assert refused.value.status is Status.INVALID
    assert "'x'" in str(refused.value)


def test_a_bool_that_is_no_bool_is_refused() -> None:
    with pytest.raises(ServiceError, match="neither 0 nor 1"):
        from_binary("x", "BOOL", [2], b"\x01\x02", LIMIT)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_what_json_cannot_say_is_no_answer_in_json(datatype: str, value: float) -> None:
    with pytest.raises(ServiceError, match="binary_data"):
        to_values("x", np.array([value], DATATYPES[datatype]))
    with pytest.raises(ServiceError, match="binary_data"):
        to_values("x", np.array([b"\xff"], object))


def test_views_in_another_order_are_said_in_row_major_order() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert list(to_values("x", array)) == [0, 3, 1, 4, 2, 5]
    assert bytes(to_binary(array)) == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()


def test_a_dtype_without_a_name_in_the_protocol_is_an_error_that_names_those_there_are() -> None:
    assert (datatype_of("bfloat16"), datatype_of("<U3"), datatype_of(">f4")) == ("BF16", "BYTES", "FP32")
    with pytest.raises(ServiceError, match=r"complex64.*FP32"):
        datatype_of("complex64")
