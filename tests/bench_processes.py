"""What processes of tests do. They import this file, and with it no pytest."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from bench_support import Clockwork, toy_program

from miriam.errors import ProgramError
from miriam.profile import ProfileSource


class Telling(Clockwork):
    """Says in its notes what its process sees of the environment."""

    def __init__(self, name: str, profiles: ProfileSource) -> None:
        super().__init__(name, profiles)
        seen = [os.environ.get(f"CUDA_MPS_{v}", "-") for v in ("PIPE_DIRECTORY", "ACTIVE_THREAD_PERCENTAGE")]
        self.notes = (f"{os.getpid()} {' '.join(seen)}",)


class Deadly(Clockwork):
    """Ends its process if that is not the one that all began with."""

    def __init__(self, name: str, profiles: ProfileSource) -> None:
        super().__init__(name, profiles)
        if multiprocessing.parent_process() is not None:
            os._exit(7)


def lost_program(name: str) -> Any:
    if multiprocessing.parent_process() is not None and name == "long":
        raise ProgramError("lost on the way")
    return toy_program(name)


def echo(connection: Connection, variable: str) -> str:
    connection.send("ready")
    return f"{os.environ[variable]} {connection.recv()}"


def sleepy(connection: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.send("ready")
    time.sleep(60)


def gone(connection: Connection, wait_s: float) -> None:
    connection.send("ready")
    time.sleep(wait_s)
    os._exit(9)
