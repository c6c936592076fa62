"""Processes that serve or measure for the benchmark, each with an environment of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, Concatenate, ParamSpec, cast

from miriam.errors import DeviceError, MiriamError

__all__ = ["Call", "Children", "ending_in_order"]

_END_S = 10.0  # for a process that has answered to be gone

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, slots=True)
class Call:
    """What a process does.

    Attributes
    ----------
    environment
        Variables that it sees besides ours, from its begin on.
    target
        A function of a module, called with a connection to us and the arguments; what it returns is its last answer.
    arguments
        Can be pickled.
    """

    environment: Mapping[str, str]
    target: Callable[Concatenate[Connection, ...], Any]
    arguments: Sequence[Any]


class Children:
    """Processes by name, ended with the block whatever happens.

    Parameters
    ----------
    calls
        By name: what each does. All start at once.
    """

    def __init__(self, calls: Mapping[str, Call]) -> None:
        self._calls = calls
        self._processes: dict[str, SpawnProcess] = {}
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> Children:
        context = multiprocessing.get_context("spawn")
        try:
            for name, call in self._calls.items():
                ours, theirs = context.Pipe()
                process = context.Process(target=_run, args=(theirs, call), daemon=True)
                self._connections[name], self._processes[name] = ours, process
                process.start()
                theirs.close()  # so that the end of the process is the end of the pipe
        except BaseException:
            self._end(0.0)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(_END_S if kind is None else 0.0)

    def tell(self, message: object) -> None:
        """Send the same to all; of who is gone :meth:`answers` knows more."""
        for connection in self._connections.values():
            with suppress(OSError):
                connection.send(message)

    def answers(self, timeout_s: float) -> dict[str, Any]:
        """One answer from each, by name.

        Raises
        ------
        MiriamError
            What went wrong in one of them.
        DeviceError
            One died, or did not answer in time.
        """
        found: dict[str, Any] = {}
        until_s = time.monotonic() + timeout_s
        while len(found) < len(self._connections):
            names = {c: name for name, c in self._connections.items() if name not in found}
            ready = wait(list(names), max(0.0, until_s - time.monotonic()))
            if not ready:
                raise DeviceError(f"the process of {', '.join(names.values())} gave no answer for {timeout_s:g} s")
            for connection in cast(list[Connection], ready):
                name = names[connection]
                found[name] = self._answer(name, connection)
        return {name: found[name] for name in self._connections}

    def _answer(self, name: str, connection: Connection) -> Any:
        try:
            answer = connection.recv()
        except (EOFError, OSError):  # the latter if it had not read what it was told
            process = self._processes[name]
            process.join(_END_S)
            raise DeviceError(f"the process of {name} died with exit code {process.exitcode}") from None
        if isinstance(answer, MiriamError):
            raise type(answer)(f"{name}: {answer}")
        return answer

    def _end(self, patience_s: float) -> None:
        started = [p for p in self._processes.values() if p.pid is not None]
        until_s = time.monotonic() + patience_s
        for process in started:
            process.join(max(0.0, until_s - time.monotonic()))
        for end in (SpawnProcess.terminate, SpawnProcess.kill):
            for process in started:
                if process.is_alive():
                    end(process)
            for process in started:
                process.join(_END_S)
        for connection in self._connections.values():
            connection.close()
        for process in started:
            process.close()


def _run(connection: Connection, call: Call) -> None:
    """The life of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    os.environ.update(call.environment)
    try:
        answer = call.target(connection, *call.arguments)
    except MiriamError as error:
        answer = type(error)(str(error))
    except Exception as error:
        answer = MiriamError(f"{type(error).__name__}: {error}")
    with suppress(BrokenPipeError):  # who asked is gone
        connection.send(answer)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """A block that a request to end breaks off as Ctrl-C does, so that what has to be ended with it is.

    In other threads than the main one, and for signals that somebody handles already, nothing changes.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    if current_thread() is not main_thread():
        ours = []
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
