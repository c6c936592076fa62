"""What cannot be compiled is refused with the reason and the way out, before anything is compiled."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from miriam.errors import CompileError
from miriam.frontend.torch import capture, compile_factory

HAS_TORCH = importlib.util.find_spec("torch") is not None
with_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
NO_GPU = "compiling needs a CUDA GPU, and torch sees none: see 'miriam devices'"

MODELS = """
import torch

NUMBER = 3

def net():
    return torch.nn.Linear(4, 4)

def number():
    return NUMBER
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module of models in the current folder, forgotten afterwards."""
    (tmp_path / "models_of_a_user.py").write_text(MODELS)
    (tmp_path / "broken_of_a_user.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "models_of_a_user.py"
    for name in ("models_of_a_user", "broken_of_a_user"):
        sys.modules.pop(name, None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that there is a GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_without_torch_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CompileError, match=r"needs torch: pip install torch"):
        compile_factory("a:b", [(1,)])
    with pytest.raises(CompileError, match="needs torch"):
        capture(None, [], name="x")


@with_torch
@pytest.mark.parametrize("spec", ["", "models_of_a_user", "models_of_a_user:", ":net", ":", "..models:net"])
def test_a_spec_that_names_no_factory(models: Path, spec: str) -> None:
    with pytest.raises(CompileError, match=r"names no factory: write package\.module:factory or file\.py:factory"):
        compile_factory(spec, [(1, 4)])


@with_torch
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("no_such_module:net", "cannot import no_such_module: No module named"),
        ("broken_of_a_user:net", "cannot import broken_of_a_user: No module named 'no_such_package_at_all'"),
        ("models_of_a_user:absent", "models_of_a_user has no 'absent': name a function that makes an nn.Module"),
        ("models_of_a_user.py:absent", "models_of_a_user has no 'absent'"),
        ("models_of_a_user:NUMBER", "models_of_a_user has a int under the name 'NUMBER': name a function"),
        ("absent.py:net", r"there is no file absent\.py"),
    ],
)
def test_a_factory_that_cannot_be_found(models: Path, spec: str, says: str) -> None:
    before = list(sys.path)
    with pytest.raises(CompileError, match=says):
        compile_factory(spec, [(1, 4)])
    assert sys.path == before


@with_torch
@pytest.mark.parametrize("dtype", ["float17", "int32", "bool", "nn", "Tensor", ""])
def test_a_dtype_that_no_network_has(models: Path, dtype: str) -> None:
    with pytest.raises(CompileError, match=f"{dtype!r} is no floating-point dtype of torch: try float16, bfloat16"):
        compile_factory("models_of_a_user:net", [(1, 4)], dtype)


@with_torch
@pytest.mark.parametrize(
    "spec", ["models_of_a_user:net", "models_of_a_user.py:net", "{folder}/models_of_a_user.py:net"]
)
def test_a_factory_is_found_as_a_module_and_as_a_file_and_then_needs_a_gpu(models: Path, no_gpu, spec: str) -> None:
    before = list(sys.path)
    with pytest.raises(CompileError, match=NO_GPU):
        compile_factory(spec.format(folder=models.parent), [(1, 4)])
    assert sys.path == before
    assert "models_of_a_user" in sys.modules


@with_torch
def test_a_factory_of_something_else(models: Path, gpu) -> None:
    with pytest.raises(CompileError, match=r"models_of_a_user:number gives a int, an nn\.Module is needed"):
        compile_factory("models_of_a_user:number", [(1, 4)])


@with_torch
def test_capturing_without_a_gpu(no_gpu) -> None:
    import torch

    with pytest.raises(CompileError, match=NO_GPU):
        capture(torch.nn.Linear(4, 4).eval(), [torch.zeros(1, 4)], name="linear")


@with_torch
def test_a_module_in_training_mode(gpu) -> None:
    import torch

    with pytest.raises(CompileError, match=r"linear is in training mode: call \.eval\(\) on it"):
        capture(torch.nn.Linear(4, 4), [torch.zeros(1, 4)], name="linear")


@with_torch
def test_an_input_on_the_cpu(gpu) -> None:
    import torch

    with pytest.raises(CompileError, match=r"an input of linear is not on the GPU: move it with \.cuda\(\)"):
        capture(torch.nn.Linear(4, 4).eval(), [torch.zeros(1, 4)], name="linear")


def test_importing_the_frontend_does_not_import_torch() -> None:
    """A command that compiles nothing must not wait for it."""
    code = "import sys, miriam.frontend.torch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
