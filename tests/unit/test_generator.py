"""Elastic programs, and what is kept of the work that they cost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import support

import miriam
from miriam.elastic import generator
from miriam.elastic.generator import (
    assembled,
    assembled_texts,
    elastic_kernel,
    forms_of,
    make_elastic,
    rewritten,
    shard_texts,
)
from miriam.elastic.ptx import parse
from miriam.elastic.ptxas import Assembled, find_ptxas
from miriam.elastic.rewrite import ELASTIC, Form, rewrite
from miriam.errors import CompileError, ProgramError, PtxError
from miriam.program import Kernel, Launch, Pointer, Program, Source

PTX = """.version 8.0
.target sm_75
.address_size 64
.visible .entry {name}(.param .u64 p) {{
    .reg .b64 %rd<3>;
    .reg .b32 %r<3>;
    ld.param.u64 %rd1, [p];
    mov.u32 %r1, {index};
    mul.wide.u32 %rd2, %r1, 4;
    add.u64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r1;
    ret;
}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own for each test."""
    monkeypatch.setenv("MIRIAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "elastic"


def kernel(name: str = "good", index: str = "%ctaid.x") -> Kernel:
    return Kernel(name, Source.CUDA, (64, 1, 1), 8, ptx=PTX.format(name=name, index=index))


LIBRARY = Kernel("gemm", Source.LIBRARY, (256, 1, 1), 128, opaque="a library kernel")
COPY = Kernel("copy 4 bytes", Source.COPY, (1, 1, 1), 0, opaque="a copy of memory has no code")


def program(*kernels: Kernel) -> Program:
    given = support.program()
    steps = tuple(Launch(i, (4 + i, 1, 1), (Pointer(2),)) for i in range(len(kernels)))
    return replace(given, kernels=kernels, launches=steps, target="sm_75")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever rewrites or assembles from now on fails."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("this was made before")

    monkeypatch.setattr(generator, "rewrite", fail)
    monkeypatch.setattr(generator, "assemble", fail)


needs_ptxas = pytest.mark.skipif(find_ptxas() is None, reason="needs ptxas")


def test_an_elastic_program_is_the_same_program_with_forms_beside_its_kernels():
    before = program(kernel(), kernel("second", "%ctaid.y"), LIBRARY)
    after = make_elastic(before)
    assert after.digest == before.digest
    assert [k.digest for k in after.kernels] == [k.digest for k in before.kernels]
    assert replace(after, kernels=before.kernels) == before
    for old, new in zip(before.kernels[:2], after.kernels, strict=False):
        assert (new.ptx, new.opaque) == (old.ptx, "")
        assert new.elastic is not None
        assert [e.name for e in parse(new.elastic).entries] == [form.of(old.name) for form in ELASTIC]
        assert forms_of(new) == ELASTIC


def test_a_kernel_that_may_not_be_elastic_is_opaque_with_the_reason_and_can_still_be_skipped():
    given = kernel("odd", "%smid")
    made = elastic_kernel(given)
    assert "it behaves by the SM that it runs on" in made.opaque
    assert "line 8" in made.opaque
    assert made.elastic is not None
    assert [e.name for e in parse(made.elastic).entries] == ["odd_guarded"]
    assert forms_of(made) == (Form.GUARDED,)
    assert made.digest == given.digest


@pytest.mark.parametrize("given", [LIBRARY, COPY, replace(kernel(), opaque="not to be touched")])
def test_what_has_no_code_or_a_reason_of_its_own_stays_as_it_is(given):
    assert elastic_kernel(given) is given
    assert forms_of(given) == ()


@pytest.mark.parametrize("ptx", ["no PTX", PTX.format(name="other", index="%ctaid.x")])
def test_ptx_that_cannot_be_rewritten_makes_a_kernel_opaque(ptx):
    made = elastic_kernel(Kernel("k", Source.CUDA, (32, 1, 1), 8, ptx=ptx))
    assert made.opaque.startswith("its PTX cannot be rewritten: ")
    assert made.elastic is None


def test_rewritten_is_what_rewrite_makes_and_fails_as_it_does():
    ptx = PTX.format(name="a", index="%ctaid.x") + PTX.format(name="b", index="%smid").partition("64\n")[2]
    for _ in range(2):
        for entries in (None, ["b"], []):
            made, wanted = rewritten(ptx, entries), rewrite(ptx, entries)
            assert made.ptx.split("\n", 1)[1] == wanted.ptx
            assert (made.refused, made.forms) == (wanted.refused, wanted.forms)
        with pytest.raises(ProgramError, match="'c'"):
            rewritten(ptx, ["c"])
        with pytest.raises(PtxError, match=r"^file\.ptx:2: "):
            rewritten(parse(".version 8.0\n!", "file.ptx"))


@pytest.mark.usefixtures("no_work")
def test_a_kernel_that_is_elastic_already_costs_nothing(monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(generator, "rewrite", rewrite)
        made = elastic_kernel(kernel())
    monkeypatch.setenv("MIRIAM_CACHE", "/dev/null")
    assert elastic_kernel(made) is made


def test_forms_of_another_version_are_made_anew(monkeypatch):
    good, odd = kernel(), kernel("odd", "%smid")
    with monkeypatch.context() as context:
        context.setattr(generator, "VERSION", "another")
        old = [elastic_kernel(good), elastic_kernel(odd)]
    assert [elastic_kernel(k) for k in old] == [elastic_kernel(k) for k in (good, odd)]
    assert old != [elastic_kernel(k) for k in (good, odd)]
    # What was refused then may be elastic now.
    assert elastic_kernel(replace(old[0], opaque="was not known")).opaque == ""


def test_shards_are_made_of_what_may_be_cut_and_thinner_ones_of_threads_that_are_alone():
    text = PTX.format(name="meets", index="%ctaid.x").replace("ret;", "bar.sync 0; ret;")
    meets = replace(kernel("meets"), ptx=text, digest="")
    given = program(kernel(), kernel("bad", "%smid"), LIBRARY, COPY, kernel(), meets)
    made = shard_texts(given)
    assert [*made] == [given.kernels[0].digest, meets.digest]
    for digest, name in zip(made, ("good", "meets"), strict=True):
        entry, text = made[digest]
        assert [function.name for function in parse(text).entries] == [entry] == [Form.SHARD.of(name)]
    thinner = shard_texts(given, thinner=True)
    assert [*thinner] == [given.kernels[0].digest]
    assert thinner[given.kernels[0].digest] != made[given.kernels[0].digest]
    assert forms_of(elastic_kernel(given.kernels[0])) == ELASTIC  # the others are not made for it


@needs_ptxas
def test_shards_can_be_assembled():
    given = program(kernel())
    texts = [text for thinner in (False, True) for _, text in shard_texts(given, thinner=thinner).values()]
    made = assembled_texts(texts, "sm_90")
    assert [[*done.entries] for done in made.values()] == [[Form.SHARD.of("good")]] * 2


def test_an_elastic_program_comes_back_from_its_file(tmp_path):
    made = make_elastic(program(kernel(), kernel("odd", "%smid"), LIBRARY, COPY))
    made.save(tmp_path / "p.miriam")
    assert Program.load(tmp_path / "p.miriam") == made


def test_a_program_that_is_not_elastic_is_written_as_it_always_was(tmp_path):
    program(kernel(), LIBRARY).save(tmp_path / "p.miriam")
    with zipfile.ZipFile(tmp_path / "p.miriam") as archive:
        assert [set(code) for code in json.loads(archive.read("kernels.json"))] == [{"ptx", "ttir"}] * 2
        assert json.loads(archive.read("manifest.json"))["format"] == 1


@pytest.mark.usefixtures("no_work")
def test_what_was_rewritten_before_is_found_again(monkeypatch):
    given = program(kernel(), kernel("odd", "%smid"))
    with monkeypatch.context() as context:
        context.setattr(generator, "rewrite", rewrite)
        made = make_elastic(given)
    assert make_elastic(given) == made
    monkeypatch.setattr(generator, "VERSION", "another")
    with pytest.raises(AssertionError, match="before"):
        make_elastic(given)


def swapped(files: list[Path]) -> None:
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[1:] + contents[:1], strict=True):
        file.write_bytes(content)


DAMAGE = {
    "emptied": lambda files: [f.write_bytes(b"") for f in files],
    "cut": lambda files: [f.write_bytes(f.read_bytes()[:-20]) for f in files],
    "garbage": lambda files: [f.write_bytes(os.urandom(200)) for f in files],
    "a bit": lambda files: [
        f.write_bytes(f.read_bytes()[:40] + bytes([f.read_bytes()[40] ^ 4]) + f.read_bytes()[41:]) for f in files
    ],
    "swapped": swapped,
    "a folder in its place": lambda files: [(f.unlink(), f.mkdir()) for f in files],
}


@needs_ptxas
@pytest.mark.parametrize("how", DAMAGE)
def test_damage_in_the_cache_is_never_believed(folder, how):
    kernels = [kernel(), kernel("second", "%ctaid.y")]
    made = make_elastic(program(*kernels))
    code = assembled(made.kernels, "sm_75")
    files = sorted(folder.iterdir())
    assert len(files) == 4
    good = [file.read_bytes() for file in files]
    DAMAGE[how](files)
    assert make_elastic(program(*kernels)) == made
    assert assembled(made.kernels, "sm_75") == code
    if "folder" not in how:
        assert [file.read_bytes() for file in files] == good
    assert sorted(folder.iterdir()) == files


@needs_ptxas
def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    wanted = make_elastic(program(kernel()))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIRIAM_CACHE", str(tmp_path / "file"))
    assert make_elastic(program(kernel())) == wanted
    assert isinstance(assembled([kernel()], "sm_75")[0], Assembled)


@needs_ptxas
def test_machine_code_comes_in_the_order_of_the_kernels():
    given = [LIBRARY, kernel(), kernel("odd", "%smid"), kernel("second", "%nosuch.x"), kernel()]
    done = assembled(given, "sm_75")
    assert done[0] is None
    assert isinstance(done[1], Assembled)
    assert set(done[1].entries) == {form.of("good") for form in ELASTIC}
    assert isinstance(done[2], Assembled)
    assert set(done[2].entries) == {"odd_guarded"}
    assert isinstance(done[3], ProgramError)
    assert "%nosuch" in str(done[3])
    assert done[4] is done[1]
    again = assembled(make_elastic(program(*given)).kernels, "sm_75")
    for new, old in zip(again[1:3], done[1:3], strict=True):
        assert isinstance(new, Assembled)
        assert isinstance(old, Assembled)
        assert set(new.entries) == set(old.entries)


@needs_ptxas
def test_only_the_forms_that_are_wanted_are_assembled():
    given = [kernel(), kernel("odd", "%smid")]
    good, odd = assembled(given, "sm_75", [Form.LOOPED, Form.STRIDED])
    assert isinstance(good, Assembled)
    assert isinstance(odd, Assembled)
    assert set(good.entries) == {"good_looped", "good_strided"}
    assert set(odd.entries) == {"odd_guarded"}
    everything = assembled(given, "sm_75")[0]
    assert isinstance(everything, Assembled)
    assert {name: everything.entries[name] for name in good.entries} == good.entries
    assert len(good.cubin) < len(everything.cubin)


@needs_ptxas
def test_machine_code_is_found_again_for_the_same_target_and_assembler(monkeypatch):
    made = assembled([kernel()], "sm_75")
    monkeypatch.setattr(generator, "assemble", lambda *_, **__: pytest.fail("assembled again"))
    assert assembled([kernel()], "sm_75") == made
    with pytest.raises(pytest.fail.Exception):
        assembled([kernel()], "sm_80")
    monkeypatch.setattr(generator, "ptxas_version", lambda _: (1, 2))
    with pytest.raises(pytest.fail.Exception):
        assembled([kernel()], "sm_75")


def test_without_an_assembler_kernels_are_rewritten_and_not_assembled(monkeypatch):
    monkeypatch.setattr(generator, "find_ptxas", lambda: None)
    monkeypatch.setattr("miriam.elastic.ptxas.find_ptxas", lambda: None)
    assert make_elastic(program(kernel())).kernels[0].elastic
    with pytest.raises(CompileError, match="no ptxas"):
        assembled([kernel()], "sm_75")


def test_progress_is_told_and_an_interruption_leaves_the_rest_undone(monkeypatch):
    done: list[str] = []

    def assemble(ptx: str, *_: object, **__: object) -> ProgramError:
        done.append(ptx)
        time.sleep(0.01)
        raise ProgramError("refused")

    monkeypatch.setattr(generator, "assemble", assemble)
    texts = [f"text {i}" for i in range(200)]
    told: list[tuple[str, int, int]] = []
    assembled_texts(texts[:5], "sm_75", progress=lambda *step: told.append(step))
    assert told == [("assembling", i, 5) for i in range(6)]
    make_elastic(program(kernel(), LIBRARY), progress=lambda *step: told.append(step))
    assert told[6:] == [("rewriting", i, 2) for i in range(3)]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assembled_texts(texts, "sm_75", progress=interrupt)
    assert len(done) < len(texts)


def test_the_version_changes_with_every_source_of_the_generator(tmp_path):
    package = Path(miriam.__file__).parent
    copy = tmp_path / "miriam"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "programs", "profiles"))

    def version() -> str:
        code = "import miriam.elastic.generator as g; print(g.__file__, g.VERSION)"
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        file, found = done.stdout.split()
        assert Path(file).is_relative_to(copy)
        return found

    seen = [version()]
    assert seen == [generator.VERSION]
    for name in ("rewrite.py", "_ptx_tokens.py"):
        source = copy / "elastic" / name
        source.write_text(source.read_text() + "\n")
        seen.append(version())
    (copy / "elastic" / "new.py").write_text("")
    seen.append(version())
    assert len(set(seen)) == 4


def test_forms_are_not_made_of_forms():
    made = rewritten(kernel().ptx)
    with pytest.raises(ProgramError, match="holds elastic forms already"):
        rewritten(made.ptx)
