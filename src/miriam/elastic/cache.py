"""Results that were worked out before, found again by all that decides them.

One file each, in the folder ``elastic`` of the cache folder. A file that is damaged, or that cannot
be read or written, costs the same work again and nothing else.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

from miriam._files import replacing
from miriam.errors import ProgramError
from miriam.store import default_path

__all__ = ["keep", "kept"]

_CHECK_BYTES = hashlib.sha256().digest_size


def kept(*key: str) -> bytes | None:
    """What is kept under ``key``; None if there is nothing, or it is damaged."""
    path, check = _place(key)
    try:
        raw = path.read_bytes()
        data = zlib.decompress(raw[_CHECK_BYTES:])
    except (OSError, zlib.error):
        return None
    check.update(data)
    return data if check.digest() == raw[:_CHECK_BYTES] else None


def keep(data: bytes, *key: str) -> None:
    """Keep ``data`` under ``key``, written in one step; where that fails it is not kept."""
    path, check = _place(key)
    check.update(data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, ProgramError) as part:
            part.write_bytes(check.digest() + zlib.compress(data, 1))
    except (OSError, ProgramError):
        return


def _place(key: tuple[str, ...]) -> tuple[Path, hashlib._Hash]:
    """The file, and a hash of the key to go on with: a file under another's name is damage too."""
    hasher = hashlib.sha256(repr(key).encode())
    return default_path().parent / "elastic" / f"{hasher.hexdigest()[:40]}.bin", hasher
