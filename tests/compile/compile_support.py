"""What the tests of the compiler need, or why it is not there."""

from importlib import metadata

import pytest

PAIRS = {("2.11", "3.6"), ("2.13", "3.7")}

# torch's own modules warn about torch's own functions.
TORCH_WARNS = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")


def missing() -> str:
    """Why nothing can be lowered here; empty if something can."""
    try:
        pair = tuple(".".join(metadata.version(name).split(".")[:2]) for name in ("torch", "triton"))
    except metadata.PackageNotFoundError as error:
        return f"lowering needs torch and triton: {error.name} is not installed"
    return "" if pair in PAIRS else f"torch {pair[0]} with triton {pair[1]} is not supported"


def need_torch_and_triton() -> None:
    """Skip the module that calls this where torch and triton are missing or do not belong together."""
    if reason := missing():
        pytest.skip(reason, allow_module_level=True)
