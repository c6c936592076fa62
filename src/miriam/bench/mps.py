"""The MPS control daemon of the driver, one of our own, for as long as it is needed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from miriam.errors import DeviceError

__all__ = ["Mps", "control_program"]

_PROGRAM = "nvidia-cuda-mps-control"
_PATIENCE_S = 20.0


class Mps:
    """Multi-Process Service: processes that see :attr:`environment` share the GPU at the same time.

    The daemon has folders of its own, so that nobody else's work gets to it and no other daemon is touched.
    The block of a ``with`` statement ends it, also after an error.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None

    def __enter__(self) -> Mps:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def environment(self) -> Mapping[str, str]:
        """What leads a process to the daemon; nothing while there is none."""
        if self._folder is None:
            return {}
        folders = {"CUDA_MPS_PIPE_DIRECTORY": "pipe", "CUDA_MPS_LOG_DIRECTORY": "log"}
        return {variable: str(self._folder / name) for variable, name in folders.items()}

    def start(self) -> None:
        """Start the daemon, if it does not run.

        Raises
        ------
        DeviceError
            The program is missing or does not start.
        """
        if self._folder is not None:
            return
        program = control_program()
        self._folder = Path(tempfile.mkdtemp(prefix="miriam-mps-"))
        try:
            for name in ("pipe", "log"):
                (self._folder / name).mkdir()
            self._call(program, "-d")
            self._call(program, words="get_server_list\n")  # it answers
        except DeviceError as error:
            said = self.said()
            self.stop()
            raise DeviceError(f"MPS does not start: {error}{f'; it says: {said}' if said else ''}") from None
        except BaseException:
            self.stop()
            raise

    def said(self) -> str:
        """The last lines that daemon and server wrote."""
        if self._folder is None:
            return ""
        lines = [
            line
            for log in sorted((self._folder / "log").glob("*.log"))
            for line in log.read_text("utf-8", "replace").splitlines()
        ]
        return " | ".join(lines[-4:])

    def stop(self) -> None:
        """End the daemon and its server, and remove what they wrote; allowed when there is none."""
        if self._folder is None:
            return
        daemon, program = self._daemon(), shutil.which(_PROGRAM)
        if program is not None:
            with suppress(DeviceError):
                self._call(program, words="quit\n")
        if daemon is not None:
            until_s = time.monotonic() + _PATIENCE_S
            while _runs(daemon) and time.monotonic() < until_s:
                time.sleep(0.02)
        if daemon is not None and _runs(daemon):
            with suppress(ProcessLookupError):
                os.kill(daemon, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _daemon(self) -> int | None:
        """The process, from the file that it keeps in the folder that is ours."""
        assert self._folder is not None
        try:
            return int((self._folder / "pipe" / f"{_PROGRAM}.pid").read_text("ascii"))
        except (OSError, ValueError):
            return None

    def _call(self, *command: str, words: str = "") -> None:
        """Call the program; what it prints goes to a file, as the daemon keeps its output open."""
        assert self._folder is not None
        log = self._folder / "log" / "start.log"
        try:
            with log.open("ab") as output:
                subprocess.run(
                    command, input=words.encode(), stdout=output, stderr=output, timeout=_PATIENCE_S, check=True,
                    env=os.environ | self.environment,
                )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise DeviceError(str(error)) from error


def control_program() -> str:
    """Where the program is that starts and ends the daemon.

    Raises
    ------
    DeviceError
        It is not there.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise DeviceError(f"there is no {_PROGRAM}, which the policies mps need: it comes with the driver of NVIDIA")
    return program


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie, which only waits for somebody to ask how it ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
