"""How fast a network of the zoo is without any of this: PyTorch with its libraries, alone on the GPU.

    python -m miriam.frontend.stock resnet18-b32 [--seconds 5]

prints one line of JSON, the fields of :class:`Stock`. A process of its own keeps torch's memory and clocks apart
from what is measured next to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from miriam.errors import CompileError, MiriamError
from miriam.frontend._graphs import captured_graph, need_torch

__all__ = ["Stock", "measure", "stock_per_s", "summary"]

_WINDOWS = 5
_WARM_UP = 0.2  # of the time
_LEAST = 100  # inferences, for a p99
_LIKE = "resnet18-b32"


@dataclass(frozen=True, slots=True)
class Stock:
    """What was measured of a network: back to back, and one inference at a time.

    Attributes
    ----------
    name
        As in the zoo, ``resnet18-b32``.
    batches_per_s
        Inferences (batches) per second, back to back; median of five windows.
    p50_us, p99_us
        Time of one inference on the GPU with nothing behind it.
    inferences
        How many ``p50_us`` and ``p99_us`` were taken from.
    """

    name: str
    batches_per_s: float
    p50_us: float
    p99_us: float
    inferences: int


def stock_per_s(name: str, seconds: float = 5.0) -> float:
    """Batches per second of a network of the zoo in plain PyTorch, back to back; see :func:`measure`."""
    return measure(name, seconds).batches_per_s


def measure(name: str, seconds: float = 5.0) -> Stock:
    """Measure a network of the zoo in plain PyTorch on the current GPU.

    The module is in ``eval()`` mode and fp16, channels-last where its input is an image, with cuDNN's
    choice of algorithms by measurement (``cudnn.benchmark``), and is captured in one CUDA graph.
    Times are those of CUDA events.

    Parameters
    ----------
    name
        Network and batch size, such as ``resnet18-b32``; any batch size.
    seconds
        Time to measure in, after loading and capture.

    Raises
    ------
    CompileError
        No torch, no GPU, or no such network.
    """
    if not 0 < seconds < math.inf:
        raise CompileError(f"{seconds} seconds are no time to measure in: give a number above zero")
    torch = need_torch()
    from miriam.device.cuda.driver import Stream
    from miriam.zoo.models import MODELS

    label, _, batch = name.rpartition("-b")
    if label not in MODELS or not batch.isdecimal() or not int(batch):
        raise CompileError(f"there is no network {name!r}: name one of {', '.join(MODELS)} with its batch, as {_LIKE}")
    if not torch.cuda.is_available():
        raise CompileError("plain PyTorch is measured on a CUDA GPU, and torch sees none: see 'miriam devices'")
    torch.manual_seed(0)
    model = MODELS[label]
    module: Any = model.make().eval().cuda().half()
    inputs = model.inputs(int(batch), "cuda")
    if inputs.dim() == 4:
        module, inputs = (x.to(memory_format=torch.channels_last) for x in (module, inputs))
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        graph, _ = captured_graph(module, [inputs], Stream())
    finally:
        torch.backends.cudnn.benchmark = before
    graph.instantiate()

    def timed(count: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return summary(name, timed, seconds)


def summary(name: str, timed: Callable[[int], float], seconds: float) -> Stock:
    """Run for about ``seconds``: a fifth to warm up, half back to back, the rest one inference at a time.

    ``timed`` runs so many inferences back to back and gives the seconds that they took together.
    """
    warm_up = math.ceil(_WARM_UP * seconds / timed(1))
    count = math.ceil(seconds / 2 / _WINDOWS / (timed(warm_up) / warm_up))
    rate = statistics.median(count / timed(count) for _ in range(_WINDOWS))
    alone = [timed(1) * 1e6 for _ in range(max(_LEAST, math.ceil((0.5 - _WARM_UP) * seconds * rate)))]
    p50, p99 = np.quantile(alone, (0.5, 0.99), method="inverted_cdf")
    return Stock(name, rate, float(p50), float(p99), len(alone))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; for ``python -m``."""
    parser = argparse.ArgumentParser("python -m miriam.frontend.stock", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help=f"network and batch, as {_LIKE}")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to measure in")
    given: Any = parser.parse_args(arguments)
    try:
        found = measure(given.name, given.seconds)
    except MiriamError as error:
        print(f"miriam: {error}", file=sys.stderr)
        return 1
    print(json.dumps(dataclasses.asdict(found)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
