"""Hardware counters of a program's launches, read by Nsight Compute.

The profiler runs this module as a child: it replays the program launch by launch, without a graph,
because a graph would be one unit to it. Two runs: one with the caches as the program leaves them, one
with empty caches before each launch.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from miriam.device.cuda.driver import Gpu, Stream, profiled
from miriam.device.cuda.instance import Instance
from miriam.errors import ProfileError
from miriam.profile import Counters
from miriam.program import Program
from miriam.progress import Progress

__all__ = ["parse", "read"]

_WARM = ("dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_bytes.sum")
_COLD = (
    "dram__bytes_read.sum",
    "lts__t_sectors_op_write.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
)
_SECTOR_BYTES = 32
_LIMIT_S = 300
_WITHOUT = "or do without (--no-counters)"


def read(program: Program, ordinal: int, progress: Progress) -> dict[int, Counters]:
    """Counters by launch index.

    Raises
    ------
    ProfileError
        Nsight Compute is not installed or may not read counters; the message has its words.
    """
    tool = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if tool is None:
        raise ProfileError(f"Nsight Compute (ncu) is not on the PATH: install it, {_WITHOUT}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.miriam"
        program.save(path)
        progress(f"counters of {program.name}", 0, 2)
        warm = _run(tool, path, ordinal, "none", _WARM)
        progress(f"counters of {program.name}", 1, 2)
        cold = _run(tool, path, ordinal, "all", _COLD)
    kernels = [i for i, step in enumerate(program.launches) if program.kernels[step.kernel].ptx is not None]
    if not len(warm) == len(cold) == len(kernels):
        raise ProfileError(
            f"Nsight Compute saw {len(warm)} and {len(cold)} launches of {program.name}, which has {len(kernels)}"
        )
    return {i: _counters(w, c) for i, w, c in zip(kernels, warm, cold, strict=True)}


def _counters(warm: dict[str, float], cold: dict[str, float]) -> Counters:
    return Counters(
        dram_read_bytes=warm["dram__bytes_read.sum"],
        dram_write_bytes=warm["dram__bytes_write.sum"],
        touched_bytes=cold["dram__bytes_read.sum"] + _SECTOR_BYTES * cold["lts__t_sectors_op_write.sum"],
        l2_bytes=warm["lts__t_bytes.sum"],
        issue_utilization=min(1.0, cold["smsp__issue_active.avg.pct_of_peak_sustained_active"] / 100),
        pipe_utilization=min(1.0, cold["sm__throughput.avg.pct_of_peak_sustained_elapsed"] / 100),
    )


def _run(tool: str, path: Path, ordinal: int, caches: str, metrics: tuple[str, ...]) -> list[dict[str, float]]:
    command = [
        tool, "--csv", "--page", "raw", "--print-units", "base", "--profile-from-start", "off",
        "--clock-control", "none", "--cache-control", caches, "--metrics", ",".join(metrics),
        sys.executable, "-m", __name__, str(path), str(ordinal),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise ProfileError(
            f"Nsight Compute took more than {_LIMIT_S} s: profile a smaller program, {_WITHOUT}"
        ) from None
    if done.returncode != 0:
        words = " ".join((done.stdout + done.stderr).split())[-600:]
        raise ProfileError(f"Nsight Compute failed ({words}): allow it to read counters, {_WITHOUT}")
    return parse(done.stdout, metrics)


def parse(text: str, metrics: tuple[str, ...]) -> list[dict[str, float]]:
    """Values of ``metrics`` for each launch, from the CSV page ``raw`` of Nsight Compute.

    The page has a line of names, a line of units, then a line for each launch; the tool's own
    messages, which start with ``==``, may stand before it.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines)), restval=""))
    try:
        return [{m: float(row[m].replace(",", "")) for m in metrics} for row in rows[1:]]
    except (KeyError, ValueError) as error:
        raise ProfileError(f"the output of Nsight Compute is not what it was ({error}): {_WITHOUT}") from error


def _replay(path: str, ordinal: int) -> None:
    gpu = Gpu(ordinal)
    instance = Instance(gpu, Program.load(path), partial=True)
    instance.fill()
    stream = Stream()
    instance.enqueue(stream)
    stream.synchronize()
    with profiled():
        instance.enqueue(stream)
        stream.synchronize()
    stream.close()
    instance.close()
    gpu.close()


if __name__ == "__main__":
    _replay(sys.argv[1], int(sys.argv[2]))
