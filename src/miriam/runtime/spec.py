"""What goes into a task and comes out of it, and whether what was given is that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from miriam.errors import InputError
from miriam.program import Tensor

__all__ = ["Spec", "check", "dtype_name"]


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor as its user sees it.

    Attributes
    ----------
    name
        Of the input or output.
    dtype
        As NumPy spells it, and ``bfloat16``.
    shape
        Exactly.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        """The same of a tensor of a program."""
        return cls(tensor.name, tensor.dtype, tensor.shape)

    def __str__(self) -> str:
        return f"{self.name}: {_words(self.dtype, self.shape)}"


def check(task: str, specs: Sequence[Spec], given: Sequence[Any]) -> None:
    """Raise :class:`InputError` unless arrays or tensors are those that a task takes."""
    if len(given) != len(specs):
        wanted = ", ".join(map(str, specs)) or "none"
        raise InputError(f"{task} takes {len(specs)} inputs ({wanted}), and {len(given)} were given")
    for spec, one in zip(specs, given, strict=True):
        shape, dtype = getattr(one, "shape", None), getattr(one, "dtype", None)
        if shape is None or dtype is None:
            kind = type(one).__name__
            raise InputError(f"input {spec.name} of {task} is a {kind}: give an array or a tensor, {_wanted(spec)}")
        name = dtype_name(dtype)
        if tuple(shape) != spec.shape or name != spec.dtype:
            raise InputError(f"input {spec.name} of {task} is {_words(name, tuple(shape))}: give {_wanted(spec)}")


@lru_cache(256)  # NumPy takes microseconds to spell a dtype
def dtype_name(dtype: Any) -> str:
    """An array says its type is float32, a tensor that it is torch.float32."""
    return str(dtype).removeprefix("torch.")


def _wanted(spec: Spec) -> str:
    return _words(spec.dtype, spec.shape)


def _words(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} of shape {'x'.join(map(str, shape)) or '()'}"
