"""What is sent: one request for each caller, with inputs that follow from a seed or come from a file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from miriam.errors import WorkloadError
from miriam.load.plan import Caller
from miriam.load.sender import Array, Asked, Described
from miriam.serve.errors import ServiceError
from miriam.serve.tensors import DATATYPES, datatype_of

__all__ = ["arrays", "sample"]


def sample(caller: Caller, described: Described, seed: int) -> Asked:
    """The request of a caller.

    Random numbers are normally distributed; whole numbers are 0 or 1, so that indices stay inside of tables.

    Raises
    ------
    WorkloadError
        A shape is open and nobody says which, or an input does not fit the model.
    """
    given = {} if caller.inputs is None else arrays(caller.inputs)
    for what, names in (("shape", caller.shapes), ("input", given)):
        unknown = sorted(set(names) - set(described.inputs))
        if unknown:
            raise WorkloadError(
                f"{caller.asks_for} has no input {unknown[0]!r} for the {what} that was given: "
                f"it takes {', '.join(described.inputs)}"
            )
    rng = np.random.default_rng([seed, zlib.crc32(caller.name.encode())])
    tensors = {}
    for name, (datatype, shape) in described.inputs.items():
        if name in given:
            tensors[name] = _datatype(given[name]), given[name]
        else:
            tensors[name] = datatype, _random(datatype, _shape(caller, name, shape), rng)
    parameters = {"priority": caller.priority, "timeout": caller.timeout_us}
    return Asked(caller.asks_for, tensors, {name: value for name, value in parameters.items() if value is not None})


def arrays(path: Path) -> Mapping[str, Array]:
    """The arrays of an ``.npz`` file, by name.

    Raises
    ------
    WorkloadError
        It cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise WorkloadError(f"{path} is no file of NumPy arrays by name (np.savez): {error}") from error


def _datatype(array: Array) -> str:
    try:
        return datatype_of(array.dtype)
    except ServiceError as error:
        raise WorkloadError(str(error)) from error


def _shape(caller: Caller, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    wanted = caller.shapes.get(name, shape)
    if any(size < 0 for size in wanted):
        raise WorkloadError(
            f"input {name!r} of {caller.asks_for} may have any size in {list(shape)}: give it a shape of its own"
        )
    return wanted


def _random(datatype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if datatype == "BYTES":
        texts = np.empty(shape, np.object_)
        texts[...] = b"miriam"
        return texts
    if datatype not in DATATYPES:
        raise WorkloadError(f"the server names the datatype {datatype!r}, which the protocol does not have")
    dtype = DATATYPES[datatype]
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape, np.float32).astype(dtype)
