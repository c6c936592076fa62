"""The stock reference: what networks do alone in plain PyTorch, measured in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from multiprocessing.connection import Connection

from miriam.bench.children import Call, Children
from miriam.errors import CompileError, WorkloadError

__all__ = ["check_stock", "stock_rates"]

_SECONDS = 1.0
_PATIENCE_S = 300.0  # to import torch, to load and to capture


def check_stock(device: str) -> None:
    """Raise :class:`WorkloadError` if plain PyTorch cannot be measured on a device of that name."""
    if not device.startswith("cuda:") or "/" in device:
        raise WorkloadError(f"plain PyTorch is measured on a whole GPU, such as cuda:0: leave out --stock on {device}")


def stock_rates(models: Iterable[str], device: str) -> dict[str, float]:
    """Requests by second of each model that the zoo has as a module; see :func:`miriam.frontend.stock.measure`.

    A process of its own keeps torch's memory and context from what is measured before and after.

    Raises
    ------
    CompileError
        There is no torch here, or it fails.
    """
    ordinal = int(device.removeprefix("cuda:"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    own = visible.split(",")[ordinal] if visible else str(ordinal)
    call = Call({"CUDA_VISIBLE_DEVICES": own}, _rates, (tuple(dict.fromkeys(models)),))
    with Children({"stock": call}) as children:
        found: dict[str, float] = children.answers(_PATIENCE_S)["stock"]
    return found


def _rates(connection: Connection, models: tuple[str, ...]) -> dict[str, float]:
    from miriam.frontend.stock import stock_per_s

    try:
        from miriam.zoo.models import MODELS
    except ImportError as error:
        raise CompileError(f"plain PyTorch cannot be measured without it ({error}): leave out --stock") from error
    return {model: stock_per_s(model, _SECONDS) for model in models if model.rpartition("-b")[0] in MODELS}
