"""Programs that were compiled before, found again without starting the compiler.

Importing Inductor and tracing a model take longer than everything else once its own caches are warm.
A program is therefore kept under a fingerprint of all that decides its contents. Where the
fingerprint cannot be sure (hooks, attributes that cannot be serialized), nothing is kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import pickle
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from miriam.errors import ProgramError
from miriam.program import Program
from miriam.store import default_path

if TYPE_CHECKING:
    import torch

__all__ = ["fingerprint", "keep", "kept"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BOOKKEEPING = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}


def fingerprint(module: torch.nn.Module, inputs: Sequence[torch.Tensor], *context: str) -> str | None:
    """Hash of a model, its inputs' shapes, and the code that is loaded in this process.

    Covers the weights' contents, every attribute of every submodule, the source files of all loaded
    modules (their size and time; those of torch and triton by their versions), and ``context``. It cannot see code
    that a model imports only while it runs.

    Returns
    -------
    None if something is there that cannot be hashed.
    """
    import torch

    hasher = hashlib.sha256()

    def add(*parts: object) -> None:
        hasher.update(repr(parts).encode())

    device = inputs[0].device if inputs else torch.device("cpu")
    add(context, sys.version, torch.__version__, _version("triton"), torch.version.cuda, torch.get_default_dtype())
    add(torch.cuda.get_device_properties(device) if device.type == "cuda" else device)
    for x in inputs:
        add(x.shape, x.stride(), x.dtype, x.requires_grad)
    for name, part in module.named_modules():
        if any(getattr(part, hook, None) for hook in _HOOKS):
            return None
        own = {k: v for k, v in vars(part).items() if k not in _BOOKKEEPING and k not in _HOOKS}
        try:
            add(name, type(part).__module__, type(part).__qualname__, part.training)
            hasher.update(pickle.dumps(sorted(own.items(), key=lambda item: item[0])))
        except Exception:  # whatever an attribute raises when it is serialized
            return None
    for name, tensor in module.state_dict().items():
        add(name, tensor.shape, tensor.stride(), tensor.dtype)
        hasher.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    for path in _sources():
        found = path.stat()
        add(str(path), found.st_size, found.st_mtime_ns)
    return hasher.hexdigest()[:32]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sources() -> Iterator[Path]:
    """Source files of what is loaded, besides torch, triton and Python's own."""
    paths = sysconfig.get_paths()
    standard, site = Path(paths["stdlib"]), Path(paths["purelib"])
    files = {str(f) for m in list(sys.modules.values()) if (f := getattr(m, "__file__", None)) and f.endswith(".py")}
    for file in sorted(files):
        path = Path(file)
        by_version = path.is_relative_to(standard) and not path.is_relative_to(site)
        if not by_version and not {"torch", "triton"} & set(path.parts) and path.is_file():
            yield path


def _path(key: str) -> Path:
    return default_path().parent / "programs" / f"{key}.miriam"


def kept(key: str) -> Program | None:
    """The program kept under ``key``; None if there is none, or it is damaged."""
    try:
        return Program.load(_path(key))
    except ProgramError:
        return None


def keep(key: str, program: Program) -> None:
    """Keep ``program``; a folder that cannot be written costs only the next compilation."""
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        program.save(path)
    except (OSError, ProgramError):
        return
