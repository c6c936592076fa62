"""A null GPU that serves: programs whose kernels compute something, and a thread that runs the coordinator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from fake_driver import FakeDriver
from support import Profiles

from miriam.coordinator import Coordinator
from miriam.device.cuda.serving import ServingCuda
from miriam.elastic.rewrite import Form
from miriam.frontend.builder import Builder
from miriam.policy import create_serving
from miriam.policy.base import Setting
from miriam.program import Kernel, Program, Source
from miriam.task import Request, Task

__all__ = ["LEVELS", "Served", "affine", "computes", "served"]

LEVELS = (0, 1, 2)
_PTX = """.version 8.0
.target sm_90
.address_size 64
.visible .entry {name}(
    .param .u64 {name}_x, .param .u64 {name}_y, .param .u32 {name}_n)
{{
    // {factor}
    ret;
}}
"""


def affine(name: str, count: int = 8, factor: int = 2) -> Program:
    """y = factor * x, in two launches by way of an intermediate; :func:`computes` tells a GPU."""
    build = Builder(name, "sm_90")
    x, y = build.input("x", "float32", (1, count)), build.output("y", "float32", (1, count))
    between = build.scratch("between", "float32", (1, count))
    kernels = [
        Kernel(part, Source.CUDA, (128, 1, 1), 16, ptx=_PTX.format(name=part, factor=by))
        for part, by in ((f"{name}_times", factor), (f"{name}_copy", 1))
    ]
    build.launch(kernels[0], 4, x, between, count)
    build.launch(kernels[1], 4, between, y, count)
    return build.program()


def computes(cu: FakeDriver, name: str, factor: int = 2) -> None:
    """Let the kernels of :func:`affine` do what they are for, in every form."""

    def scaled(by: int) -> Callable[..., None]:
        def run(gpu: Any, x: int, y: int, n: int, *_: int) -> None:
            values = np.frombuffer(gpu.memory.read(x, 4 * n), np.float32)
            gpu.memory.write(y, (values * np.float32(by)).tobytes())

        return run

    for part, by in ((f"{name}_times", factor), (f"{name}_copy", 1)):
        for kernel in (part, *(form.of(part) for form in Form)):
            cu.effects[kernel] = scaled(by)


class Served:
    """A device and a policy, and a thread that runs them."""

    def __init__(self, name: str = "cuda:0", policy: str = "resident") -> None:
        self.device = ServingCuda(name, Profiles())
        setting = Setting((), self.device.geometry, {}, levels=LEVELS)
        try:
            self.coordinator = Coordinator(self.device, create_serving(policy, setting))
        except BaseException:
            self.device.close()
            raise
        self.done: list[Request] = []
        self.error: BaseException | None = None
        self._numbers = iter(range(1 << 30))
        self._bell = threading.Condition()
        self._offered = 0
        self._stop = False
        self._thread = threading.Thread(target=self._main, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _main(self) -> None:
        try:
            while not self._stop:
                for request in self.coordinator.run(float("inf")):
                    with self._bell:
                        self.done.append(request)
                        self._bell.notify_all()
                with self._bell:
                    self._bell.wait_for(lambda: self._stop or len(self.done) < self._offered, 30.0)
        except BaseException as error:
            self.error = error
            with self._bell:
                self._bell.notify_all()

    def offer(self, task: Task, inputs: Sequence[Any] | None, *, stage: bool = True) -> Request:
        """Let a request arrive."""
        given = self.device.stage(task, inputs) if stage and inputs is not None else inputs
        request = Request(task, next(self._numbers), 0.0, inputs=given)
        self.device.offer(request)
        with self._bell:
            self._offered += 1
            self._bell.notify_all()
        return request

    def answer(self, request: Request) -> Request:
        """Wait until it has been answered."""
        with self._bell:
            assert self._bell.wait_for(lambda: request in self.done or self.error is not None, 30.0)
        if self.error is not None:
            raise self.error
        return request

    def ask(self, task: Task, *inputs: Any, stage: bool = True) -> Request:
        """Offer one and wait."""
        return self.answer(self.offer(task, inputs, stage=stage))

    def stop(self) -> None:
        with self._bell:
            self._stop = True
            self._bell.notify_all()
        self.device.wake(0.0)
        if self._thread.is_alive():
            self._thread.join(30.0)
        self.device.close()


@contextmanager
def served(name: str = "cuda:0", policy: str = "resident") -> Iterator[Served]:
    """The same in a block."""
    on = Served(name, policy)
    try:
        on.start()
        yield on
    finally:
        on.stop()
