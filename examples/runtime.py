"""A critical model beside a normal one that never pauses, on the cores of this machine. NumPy is all that it needs.

python examples/runtime.py [SECONDS]
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import numpy as np

import miriam


def network(layers: int, width: int) -> list[Callable[[Any], Any]]:
    """Some dense layers: each is a step, and between two steps a more critical model may go first."""

    def layer(weights: Any) -> Callable[[Any], Any]:
        return lambda x: np.tanh(x @ weights)

    random = np.random.default_rng(0)
    return [layer(random.standard_normal((width, width), np.float32) / width**0.5) for _ in range(layers)]


def timed_ms(model: Any, x: Any) -> float:
    """Ask, wait for the answer, and say how long that took."""
    begin = time.perf_counter()
    model(x)
    return (time.perf_counter() - begin) * 1e3


@contextmanager
def never_pausing(model: Any, batch: Any) -> Iterator[list[float]]:
    """Ask a model again and again meanwhile; how long it took each time."""
    over, took = Event(), list[float]()

    def ask() -> None:
        while not over.is_set():
            took.append(timed_ms(model, batch))

    thread = Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


def now_and_then(model: Any, frame: Any, seconds: float) -> list[float]:
    """Ask at random moments; how long it took each time."""
    random, until, took = np.random.default_rng(1), time.perf_counter() + seconds, list[float]()
    while time.perf_counter() < until:
        time.sleep(random.uniform(0.002, 0.01))
        took.append(timed_ms(model, frame))
    return took


def main(seconds: float = 2.0) -> None:
    """Show it."""
    frame, batch = np.ones((16, 256), np.float32), np.ones((64, 512), np.float32)
    with miriam.Runtime("cpu") as rt:
        detector = rt.load(network(4, 256), frame, name="detector", criticality="critical")
        archive = rt.load(network(48, 512), batch, name="archive")
        took = {"detector alone": now_and_then(detector, frame, seconds)}
        took["archive alone"] = now_and_then(archive, batch, seconds)
        with never_pausing(archive, batch) as took["archive beside detector"]:
            took["detector beside archive"] = now_and_then(detector, frame, seconds)
        seen = archive.statistics
    for what, times in took.items():
        p50, p99 = np.percentile(times, (50, 99))
        print(f"{what:24} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms")
    print(f"the archive was interrupted {seen.preemptions} times; {seen.failed} of its requests failed")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
