"""The thread that runs the coordinator."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, TypeVar

from miriam.coordinator import Coordinator, Listener, Policy
from miriam.device.base import Command, Event, Serving
from miriam.errors import ClosedError
from miriam.runtime.waiting import Waiting
from miriam.task import Request

__all__ = ["Loop"]

_LOG = logging.getLogger("miriam")

T = TypeVar("T")


class Loop:
    """A device and a policy at work in a thread of their own.

    The thread sleeps while there is nothing to do. Requests that have ended are given to ``settle`` before the
    policy hears of it, so that the next one is there by then.

    Parameters
    ----------
    open_device, make_policy
        Called in the thread, in which the device stays until it is closed.
    settle
        Is given each request that has ended, in the thread.
    failed
        Is given the exception that ended the loop, if one did.
    listeners
        Hear what the coordinator hears and does.

    Attributes
    ----------
    device, policy
        Those that were made.
    ended
        Whether the device is closed, or is about to be.

    Raises
    ------
    MiriamError
        There is no such device or policy.
    """

    device: Serving
    policy: Policy

    def __init__(
        self,
        open_device: Callable[[], Serving],
        make_policy: Callable[[Serving], Policy],
        settle: Callable[[Request], None],
        failed: Callable[[BaseException], None],
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._open_device, self._make_policy = open_device, make_policy
        self._settle, self._failed = settle, failed
        self._listeners = list(listeners)
        self._errands_lock = threading.Lock()
        self._left: list[Future[Any]] = []
        self.ended = False
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name="miriam", daemon=True)
        self._thread.start()
        self._opened.result()

    @property
    def inside(self) -> bool:
        """Whether this is the thread of the loop."""
        return threading.current_thread() is self._thread

    def offer(self, request: Request) -> None:
        """Let a request arrive."""
        self._waiting.offer(request)

    def hint(self, level: int | None) -> None:
        """Say that a request of a level is on its way; None: no more."""
        if not self.ended:
            self._waiting.hint(level)

    def post(self, call: Callable[[], None]) -> None:
        """Have something called before the next event; nobody waits for it, not even while a model hangs."""
        self._waiting.run_errand(call)

    def call(self, call: Callable[[], T]) -> T:
        """Call something between two events, and wait for what it returns.

        Raises
        ------
        ClosedError
            The loop has ended.
        """
        if self.inside:
            return call()
        done: Future[T] = Future()

        def errand() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        with self._errands_lock:
            if self.ended:
                raise ClosedError("the runtime is closed: make another one")
            self._left.append(done)
            self._waiting.run_errand(errand)
        try:
            return done.result()
        finally:
            with self._errands_lock:
                self._left.remove(done)

    def stop(self) -> None:
        """End the loop, whatever is open, and close the device; allowed twice."""
        self._waiting.stop()
        if not self.inside:
            self._thread.join()

    def heard(self, event: Event, commands: Sequence[Command]) -> None:
        """Tell the listeners; one that raises is told no more, for a policy can do without."""
        for listener in tuple(self._listeners):
            try:
                listener.heard(event, commands)
            except Exception:
                _LOG.exception("a listener raised, and is told no more")
                self._listeners.remove(listener)

    def _main(self) -> None:
        with ExitStack() as undone:
            try:
                self.device = self._open_device()
                undone.callback(self.device.close)
                self.policy = self._make_policy(self.device)
                self._waiting = Waiting(self.device)
                coordinator = Coordinator(self._waiting, self.policy, listener=self if self._listeners else None)
                undone.pop_all()
            except BaseException as error:
                self._opened.set_exception(error)
                return
        self._opened.set_result(None)
        try:
            for request in coordinator.run(math.inf):
                self._settle(request)
        except BaseException as error:
            self._failed(error)
        finally:
            self._end()

    def _end(self) -> None:
        with self._errands_lock:
            self.ended = True
            for done in self._left:
                if not done.done():
                    done.set_exception(ClosedError("the runtime is closed: make another one"))
        try:
            self.device.close()
        except Exception:
            _LOG.exception("%s could not be closed", self.device.name)
