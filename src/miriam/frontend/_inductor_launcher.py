"""How Inductor launches kernels (private names of Inductor, as in ``_inductor``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._inductor import config

__all__ = ["through_triton"]


@contextmanager
def through_triton() -> Iterator[None]:
    """Let what is compiled inside load its kernels by Triton, which tells their handles."""
    with config.patch(use_static_cuda_launcher=False):
        yield
