"""The public face of the package."""

import subprocess
import sys
from importlib import metadata

import miriam


def test_public_names_are_there_and_in_order() -> None:
    assert list(miriam.__all__) == sorted(miriam.__all__)
    assert all(hasattr(miriam, name) for name in miriam.__all__)
    modules = {name for name, value in vars(miriam).items() if type(value) is type(miriam)}
    own = {name for name in vars(miriam) if not name.startswith("_")} - modules - {"TYPE_CHECKING", "Any"}
    assert own == set(miriam.__all__)
    assert set(miriam.__all__) <= set(dir(miriam))
    assert not hasattr(miriam, "nothing")


def test_the_version_is_the_one_that_is_installed() -> None:
    assert miriam.__version__ == metadata.version("miriam")


def test_every_public_name_says_what_it_is() -> None:
    undocumented = [n for n in miriam.__all__ if n != "Command" and not (getattr(miriam, n).__doc__ or "").strip()]
    assert undocumented == []


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = ["torch", "triton", "numba", "numpy", "rich.console", "jinja2", "cuda", "multiprocessing", "miriam.program"]
    code = f"import sys, miriam, miriam.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
