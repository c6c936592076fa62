"""Tensors as the Open Inference Protocol carries them, and NumPy arrays.

The binary form is Triton's extension: elements one after another in row-major order, little-endian; ``BYTES`` have
their length before each element, in four bytes. The JSON form is a list, flat in row-major order or nested as the
shape says; NaN and infinity cannot be said in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import ml_dtypes
import numpy as np

from miriam.serve.errors import ServiceError, Status

__all__ = [
    "DATATYPES",
    "datatype_of",
    "element_count",
    "from_binary",
    "from_values",
    "to_binary",
    "to_values",
    "usable",
]

Array = np.ndarray[Any, np.dtype[Any]]

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(np.object_),
}
"""Every datatype of the protocol with the array that carries it; those of ``BYTES`` hold ``bytes``."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_MAX_DIMENSIONS = 32  # of a NumPy 1 array; NumPy 2 has 64


@lru_cache(256)  # NumPy takes microseconds to say what a dtype is, and every request asks
def datatype_of(dtype: np.dtype[Any] | str) -> str:
    """The protocol's name of a NumPy dtype, or of a dtype's name.

    Raises
    ------
    ServiceError
        The protocol has no such datatype.
    """
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if dtype.kind in "SU":
        return "BYTES"
    try:
        return _NAMES[dtype.newbyteorder("=")]
    except KeyError:
        raise ServiceError(
            Status.INTERNAL,
            f"the protocol has no datatype for {dtype}: let the model give one of {', '.join(_NAMES.values())}",
        ) from None


def element_count(name: str, datatype: str, shape: Sequence[int], limit: int) -> int:
    """Elements of a tensor, checked before anything is allocated for it.

    Parameters
    ----------
    limit
        The most that it may have.

    Raises
    ------
    ServiceError
        An unknown datatype, or a shape that no array can have.
    """
    if datatype not in DATATYPES:
        raise _invalid(name, f"datatype {datatype!r:.40} is unknown: the protocol has {', '.join(DATATYPES)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise _invalid(name, f"{len(shape)} dimensions are too many: {_MAX_DIMENSIONS} at most")
    if shape and (set(map(type, shape)) != {int} or min(shape) < 0):
        raise _invalid(name, f"the shape holds something else than whole numbers from 0: {list(shape)!s:.80}")
    # A size beyond the limit is refused beside a zero, too: an array cannot have it.
    count = math.prod(shape)
    if count > limit or max(shape, default=0) > limit:
        raise ServiceError(
            Status.TOO_LARGE,
            f"tensor {name!r}: {'x'.join(map(str, shape)):.80} has more than {limit} elements, the server's limit "
            "(limits.tensor_elements in its configuration)",
        )
    return count


def from_binary(name: str, datatype: str, shape: Sequence[int], data: Any, limit: int) -> Array:
    """An array from the binary form of a tensor.

    Parameters
    ----------
    data
        A buffer. The array is a view of it: give it to a model as `usable` has it.
    limit
        The most elements that the tensor may have.

    Raises
    ------
    ServiceError
        The bytes are not what datatype and shape say.
    """
    count = element_count(name, datatype, shape, limit)
    data = memoryview(data).cast("B")
    if datatype == "BYTES":
        return _objects(_split(name, data, count), shape)
    dtype = DATATYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise _invalid(name, f"{datatype} {list(shape)} takes {count * dtype.itemsize} bytes, {len(data)} were given")
    if datatype == "BOOL" and (np.frombuffer(data, np.uint8) > 1).any():
        raise _invalid(name, "a byte of BOOL is neither 0 nor 1")
    return np.frombuffer(data, dtype).reshape(shape)


def usable(array: Array) -> Array:
    """The array if it may be written to and lies as NumPy needs it; else a copy."""
    return array if array.flags.aligned and array.flags.writeable else array.copy()


def _split(name: str, data: memoryview, count: int) -> list[bytes]:
    if count * 4 > len(data):
        raise _invalid(name, f"{count} elements of BYTES take {count * 4} bytes at least, {len(data)} were given")
    found: list[bytes] = []
    at = 0
    for _ in range(count):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise _invalid(name, f"element {len(found)} of BYTES goes beyond the end of the data")
        found.append(bytes(data[at + 4 : end]))
        at = end
    if at != len(data):
        raise _invalid(name, f"{len(data) - at} bytes are left after {count} elements of BYTES")
    return found


def from_values(name: str, datatype: str, shape: Sequence[int], data: Any, limit: int) -> Array:
    """An array from a list of values: the JSON form, or the typed contents of a gRPC message.

    Parameters
    ----------
    data
        Flat in row-major order, or nested as ``shape`` says. ``BYTES`` are text or bytes.
    limit
        The most elements that the tensor may have.

    Raises
    ------
    ServiceError
        The values are not what datatype and shape say, or do not fit into the datatype.
    """
    count = element_count(name, datatype, shape, limit)
    values = _flatten(name, data, shape, count)
    dtype, kinds = DATATYPES[datatype], set(map(type, values))
    if datatype == "BYTES":
        if kinds - {str, bytes}:
            raise _invalid(name, "an element of BYTES is no text")
        return _objects([v.encode() if isinstance(v, str) else v for v in values], shape)
    allowed: set[type] = {bool} if datatype == "BOOL" else {int} if dtype.kind in "iu" else {int, float}
    if kinds - allowed:
        wrong = min(kind.__name__ for kind in kinds - allowed)
        raise _invalid(name, f"an element is of type {wrong}, which is no {datatype}")
    if dtype.kind in "iu":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        if values and (min(values) < least or max(values) > most):
            raise _invalid(name, f"an element is not within {datatype}: {least} to {most}")
    if dtype.kind in "iub":
        return np.array(values, dtype).reshape(shape)
    wide = np.array(values, np.float64).reshape(shape)
    with np.errstate(over="ignore"):
        array = wide.astype(dtype)
    if (np.isinf(array) & np.isfinite(wide)).any():
        raise _invalid(name, f"an element is too large for {datatype}")
    return array


def _flatten(name: str, data: Any, shape: Sequence[int], count: int) -> list[Any]:
    if not isinstance(data, list):
        raise _invalid(name, "data is no list")
    if shape and data and isinstance(data[0], list):
        parts: list[Any] = [data]
        for size in shape:
            if any(type(part) is not list or len(part) != size for part in parts):
                raise _invalid(name, f"data is neither flat nor nested as its shape {list(shape)} says")
            parts = list(chain.from_iterable(parts))
        return parts
    if len(data) != count:
        raise _invalid(name, f"shape {list(shape)} has {count} elements, {len(data)} were given")
    return data


def _objects(values: Sequence[object], shape: Sequence[int]) -> Array:
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array.reshape(shape)


def to_binary(array: Array) -> memoryview:
    """The binary form of an array: a view of it where it lies in row-major order."""
    if array.dtype.kind in "OSU":
        values = [_bytes(value) for value in array.reshape(-1).tolist()]
        return memoryview(b"".join(chain.from_iterable((len(v).to_bytes(4, "little"), v) for v in values)))
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return array.reshape(-1).view(np.uint8).data


def to_values(name: str, array: Array) -> Array | list[Any]:
    """What a JSON writer that knows NumPy writes for an array: its values, flat in row-major order.

    Raises
    ------
    ServiceError
        NaN, infinity, or bytes that are no UTF-8: JSON cannot say them.
    """
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(-1)
    if array.dtype.kind in "OSU":
        try:
            return [_bytes(value).decode() for value in flat.tolist()]
        except UnicodeDecodeError:
            raise _unsaid(name, "bytes that are no UTF-8") from None
    if array.dtype in (np.float16, ml_dtypes.bfloat16):
        flat = flat.astype(np.float32)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise _unsaid(name, "NaN or infinity")
    return flat


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _unsaid(name: str, what: str) -> ServiceError:
    return ServiceError(
        Status.INTERNAL, f"tensor {name!r} holds {what}, which JSON cannot say: ask for it with binary_data true"
    )


def _invalid(name: str, what: str) -> ServiceError:
    return ServiceError(Status.INVALID, f"tensor {name!r:.80}: {what}")
