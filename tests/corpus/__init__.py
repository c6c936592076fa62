"""Kernels to try the elastic-kernel generator on, each a program of one launch with its data.

``tests/corpus/<kind>/<name>.miriam``; the kinds are ``cuda`` and ``triton``, and ``make_<kind>.py``
writes them anew. In the ``meta`` of a CUDA C++ kernel stands what may become of it: ``expect`` is
``elastic``, ``opaque`` or, where it may be refused though it could be elastic, ``either``, and ``why``
says why not. A name that ends in ``-large`` is the same kernel
on a grid for a GPU, without contents in its buffers.
"""

from __future__ import annotations

from pathlib import Path

from miriam import Program

__all__ = ["FOLDER", "load"]

FOLDER = Path(__file__).parent


def load(kind: str) -> dict[str, Program]:
    """Programs of a kind by name, in order."""
    return {path.stem: Program.load(path) for path in sorted((FOLDER / kind).glob("*.miriam"))}
