"""On what and with what a document was made."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

from miriam import __version__
from miriam.bench.pool import processors

__all__ = ["machine", "versions"]


def machine() -> dict[str, str]:
    """Processor, cores and system."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass  # not Linux: the general name has to do
    return {"processor": processor, "cores": str(processors()), "system": platform.platform()}


def versions() -> dict[str, str]:
    """Python, Miriam and the packages that figures depend on."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, "miriam": __version__} | {name: metadata.version(name) for name in ("numpy", "numba")}
