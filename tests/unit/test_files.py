from pathlib import Path

import pytest
from support import program

from miriam.errors import ProfileError, ProgramError
from miriam.store import ProfileStore


@pytest.mark.parametrize("target", ["", ".", "file/x", "no/x", "x" * 300])
def test_targets_that_cannot_be_written_are_named_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "file").write_text("mine")
    monkeypatch.chdir(folder)
    with pytest.raises(ProgramError, match="cannot write"):
        program().save(target)
    with ProfileStore(tmp_path / "p.db") as store, pytest.raises(ProfileError, match="cannot write"):
        store.export(target)
    assert [f.name for f in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "mine"
