"""Programs found again: what changes a model changes its fingerprint."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest
import support

torch = pytest.importorskip("torch", reason="the cache of compiled models needs torch")

from miriam.frontend import cache  # noqa: E402


class Scaled(torch.nn.Module):
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.scale = scale
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) * self.scale


def make(scale: float = 2.0, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Scaled(scale).eval()


def key(module: torch.nn.Module, batch: int = 1, *context: str) -> str | None:
    return cache.fingerprint(module, [torch.zeros(batch, 4)], *context)


def test_the_same_model_is_found_again():
    assert key(make()) == key(make()) is not None


def test_weights_attributes_shapes_and_context_count():
    keys = [key(make()), key(make(seed=1)), key(make(scale=3.0)), key(make(), 2), key(make(), 1, "name")]
    assert len(set(keys)) == len(keys)


def test_hooks_and_what_cannot_be_serialized_are_never_kept():
    hooked = make()
    hooked.register_forward_hook(lambda *_: None)
    assert key(hooked) is None
    closed = make()
    closed.helper = lambda x: x
    assert key(closed) is None


def test_a_changed_source_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "helper_of_a_model.py"
    path.write_text("FACTOR = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("helper_of_a_model")
    before = key(make())
    path.write_text("FACTOR = 22\n")
    os.utime(path, ns=(1, 1))
    assert key(make()) != before
    del sys.modules["helper_of_a_model"]


def test_programs_come_back_and_damage_is_no_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MIRIAM_CACHE", str(tmp_path))
    assert cache.kept("a") is None
    cache.keep("a", support.program())
    assert cache.kept("a") == support.program()
    (tmp_path / "programs" / "a.miriam").write_bytes(b"damage")
    assert cache.kept("a") is None


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIRIAM_CACHE", str(tmp_path / "file"))
    cache.keep("a", support.program())
    assert cache.kept("a") is None
