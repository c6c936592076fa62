"""A server for the benchmarks, in a process of its own, with models that need no PyTorch."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.request import ProxyHandler, build_opener

MODELS = """
import sys

import numpy as np

if "torch" in sys.modules:
    raise RuntimeError("PyTorch was imported")

def tiny():
    return lambda x: x + x

def small():  # about half a millisecond on one core, without a library that has threads of its own
    weights = np.random.default_rng(0).standard_normal((256, 768), np.float32)
    return lambda x: np.tanh(weights * x).sum(axis=1)
"""
SHAPES: Mapping[str, Sequence[int]] = {"tiny": (1, 16), "small": (1, 768)}


def factories() -> dict[str, object]:
    """The functions that make the models, in this process."""
    names: dict[str, object] = {}
    exec(compile(MODELS, "models.py", "exec"), names)
    return {name: names[name] for name in SHAPES}


def on_cpu(models: Sequence[str] = tuple(SHAPES)) -> str:
    """A configuration with these models on the CPU device."""
    lines = ["device: cpu", "ports: {http: 0, grpc: 0, metrics: 0}", "models:"]
    lines += [f"  {name}: {{factory: 'models.py:{name}', example: [{list(SHAPES[name])}]}}" for name in models]
    return "\n".join(lines) + "\n"


class Served:
    """``miriam serve``.

    Parameters
    ----------
    folder
        Where the configuration is written, and the file ``models.py`` with the models above.
    config
        The configuration.

    Attributes
    ----------
    http, grpc
        Addresses.
    ready_s
        From the begin of its process until it said that it was ready and answered so.
    """

    def __init__(self, folder: Path, config: str) -> None:
        (folder / "models.py").write_text(MODELS)
        path = folder / "serve.yaml"
        path.write_text(config)
        began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "miriam", "serve", str(path)], stdout=subprocess.PIPE, text=True
        )
        said = ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said += line
            if line.strip() == "ready":
                break
        else:
            self._process.wait()
            raise SystemExit(f"the server did not come up; it said:\n{said}")
        self.http = "http://" + self._found("HTTP", said)
        self.grpc = "grpc://" + self._found("gRPC", said)
        opener = build_opener(ProxyHandler({}))
        with opener.open(f"{self.http}/v2/health/ready", timeout=10) as answer:
            assert answer.status == 200
        self.ready_s = time.monotonic() - began

    @staticmethod
    def _found(protocol: str, said: str) -> str:
        found = re.search(protocol + r" +(?:\w+://)?(\S+)", said)
        if found is None:
            raise SystemExit(f"the server did not say where it listens:\n{said}")
        return found[1]

    def cpu_s(self) -> float:
        """Processor time that it took so far, in seconds (Linux)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
