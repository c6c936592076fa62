"""Models for serve.yaml: each function gives what the server is to run. Weights are random, NumPy computes."""

from collections.abc import Callable
from typing import Any

import numpy as np

Step = Callable[[Any], Any]


def nearest() -> Step:
    """One function is one step."""
    return lambda ranges: ranges.min(keepdims=True)


def detector() -> list[Step]:
    """Several functions are a chain: between two of them a more critical model may go first."""
    return _network(4, 256)


def archive() -> list[Step]:
    """Larger, and in no hurry."""
    return _network(48, 512)


def _network(layers: int, width: int) -> list[Step]:
    def layer(weights: Any) -> Step:
        return lambda x: np.tanh(x @ weights)

    random = np.random.default_rng(0)
    return [layer(random.standard_normal((width, width), np.float32) / width**0.5) for _ in range(layers)]
