"""The command ``miriam elastic``: what it says of kernels, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import support
from typer.testing import CliRunner

from miriam.cli import app
from miriam.elastic.generator import make_elastic
from miriam.elastic.ptx import parse
from miriam.elastic.ptxas import assemble, find_ptxas, ptxas_version
from miriam.elastic.rewrite import ELASTIC
from miriam.program import Kernel, Launch, Program, Source

HEAD = ".version 8.0\n.target sm_75\n.address_size 64\n"
GOOD = """.visible .entry good(.param .u64 p)
.reqntid 96
{
    .reg .b64 %rd<3>;
    .reg .b32 %r<3>;
    ld.param.u64 %rd1, [p];
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.u64 %rd1, %rd1, %rd2;
    st.global.u32 [%rd1], %r1;
    ret;
}
"""
ODD = ".visible .entry odd() {\n    .reg .b32 %r<2>;\n    mov.u32 %r1, %smid;\n    bar.sync 0;\n    ret;\n}\n"
MEETING = ".visible .entry meeting() .maxntid 64, 2 {\n    bar.sync 0;\n    ret;\n}\n"

needs_ptxas = pytest.mark.skipif(find_ptxas() is None, reason="needs ptxas")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRIAM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def no_ptxas(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ptxas", "generator", "survey"):
        monkeypatch.setattr(f"miriam.elastic.{module}.find_ptxas", lambda: None)


@pytest.fixture
def ptx(tmp_path: Path) -> Path:
    """A module of three kernels; the second of them is not elastic."""
    path = tmp_path / "three.ptx"
    path.write_text(HEAD + GOOD + ODD + MEETING)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of five launches: of an elastic kernel, of two that are not, and a copy."""
    kernels = (
        Kernel("good", Source.CUDA, (96, 1, 1), 8, ptx=HEAD + GOOD),
        Kernel("odd", Source.CUDA, (64, 1, 1), 8, ptx=HEAD + ODD),
        Kernel("gemm", Source.LIBRARY, (256, 1, 1), 128, opaque="a library kernel"),
        Kernel("copy [4] bytes", Source.COPY, (1, 1, 1), 0, opaque="a copy of memory has no code"),
    )
    steps = tuple(Launch(i, (7, 1, 1)) for i in (0, 1, 0, 2, 3))
    path = tmp_path / "five.miriam"
    replace(support.program(), kernels=kernels, launches=steps, target="sm_75").save(path)
    return path


def call(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["elastic", *map(str, args)])


def found(*args: str | Path) -> dict[str, Any]:
    result = call(*args, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return dict(json.loads(result.stdout))


@needs_ptxas
def test_a_module_as_a_document(ptx):
    said = found(ptx)
    tool = find_ptxas()
    assert tool is not None
    assert said["ptxas"] == ".".join(map(str, ptxas_version(tool)))
    assert (said["target"], said["notes"], said["launches"], said["elastic_launches"]) == ("sm_75", [], None, None)
    assert said["elastic_kernels"] == 2
    good, odd, meeting = said["kernels"]
    assert [k["name"] for k in said["kernels"]] == ["good", "odd", "meeting"]
    assert [(k["elastic"], k["launches"]) for k in said["kernels"]] == [(True, None), (False, None), (True, None)]
    assert (good["reason"], meeting["reason"]) == (None, None)
    assert odd["reason"] == "line 18: it behaves by the SM that it runs on"
    assert good["blocks_variants"] == [32, 64]
    assert odd["blocks_variants"] == meeting["blocks_variants"] == []
    original = assemble(ptx.read_text(), "sm_75").registers
    assert [k["registers"]["original"] for k in said["kernels"]] == [original[n] for n in ("good", "odd", "meeting")]
    for kernel in (good, meeting):
        assert all(kernel["registers"][form] >= kernel["registers"]["original"] for form in ("elastic", "looped"))
        assert kernel["registers"]["guarded"] is kernel["spill_bytes"]["guarded"] is None
        assert kernel["spill_bytes"]["elastic"] == 0
    assert odd["registers"]["elastic"] is odd["registers"]["looped"] is None
    assert odd["registers"]["guarded"] > 0


@needs_ptxas
def test_a_program_as_a_document(program):
    said = found(program)
    assert (said["name"], said["elastic_kernels"], said["launches"], said["elastic_launches"]) == ("toy", 2, 5, 3)
    kernels = {k["name"]: k for k in said["kernels"]}
    assert {name: k["launches"] for name, k in kernels.items()} == {"good": 2, "odd": 1, "gemm": 1, "copy [4] bytes": 1}
    assert {name: k["elastic"] for name, k in kernels.items()} == {
        "good": True, "odd": False, "gemm": False, "copy [4] bytes": True,
    }  # fmt: skip
    assert kernels["gemm"]["reason"] == "a library kernel"
    assert set(kernels["gemm"]["registers"].values()) == {None}
    assert kernels["good"]["blocks_variants"] == [32, 64]
    assert kernels["good"]["registers"]["original"] == assemble(HEAD + GOOD, "sm_75").registers["good"]


def test_block_sizes_are_those_of_one_thread_for_several_or_of_compiling_again(tmp_path):
    ttir = "module { tt.func public @meeting() { tt.return } }"
    alone = Kernel("good", Source.TRITON, (96, 1, 1), 8, ptx=HEAD + GOOD, ttir="module {}")
    meeting = HEAD + MEETING.replace(".maxntid 64, 2", ".reqntid 128")
    kernels = (alone, *(Kernel("meeting", Source.TRITON, (128, 1, 1), 8, ptx=meeting, ttir=t) for t in (ttir, None)))
    steps = tuple(Launch(i, (2, 1, 1)) for i in range(3))
    replace(support.program(), kernels=kernels, launches=steps, target="sm_75").save(tmp_path / "p.miriam")
    assert [k["blocks_variants"] for k in found(tmp_path / "p.miriam")["kernels"]] == [[32, 64], [32, 64], []]


@needs_ptxas
def test_the_table_says_the_same_and_ends_with_the_shares(program, ptx):
    result = call(program)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[-1] == "Elastic: 2 of 4 kernels (50 %) and 3 of 5 launches (60 %)."
    rows = {line.split()[0]: line.split() for line in lines if line.split()}
    registers = found(program)["kernels"][0]["registers"]
    shown = " / ".join(str(registers[name]) for name in ("elastic", "strided", "looped"))
    assert " ".join(rows["good"]) == f"good yes 32, 64 {registers['original']} → {shown} 0 2"
    assert "no: a library kernel" in " ".join(rows["gemm"])
    assert " ".join(rows["copy"]) == "copy [4] bytes yes – – – 1"
    assert call(ptx).stdout.splitlines()[-1] == "Elastic: 2 of 3 kernels (67 %)."


@pytest.mark.usefixtures("no_ptxas")
@pytest.mark.parametrize("which", ["ptx", "program"])
def test_without_an_assembler_there_are_no_numbers_and_a_way_to_get_them(which, request, tmp_path):
    path = request.getfixturevalue(which)
    said = found(path, "-o", tmp_path / f"out{path.suffix}")
    assert said["ptxas"] is None
    assert "pip install" in said["notes"][0]
    assert [k["elastic"] for k in said["kernels"][:2]] == [True, False]
    assert said["kernels"][0]["blocks_variants"] == [32, 64]
    assert {n for k in said["kernels"] for n in (*k["registers"].values(), *k["spill_bytes"].values())} == {None}
    assert (tmp_path / f"out{path.suffix}").exists()
    result = call(path)
    assert result.exit_code == 0
    assert "Note: registers and spills are not known: there is no ptxas" in result.stdout
    assert "pip install" in result.stdout


@needs_ptxas
def test_an_original_that_the_assembler_refuses_is_a_note_and_its_kernels_are_what_they_are(tmp_path):
    path = tmp_path / "strange.ptx"
    path.write_text(HEAD + GOOD.replace("%ctaid.x", "%nosuch.x"))
    said = found(path)
    assert [k["elastic"] for k in said["kernels"]] == [True]
    assert said["kernels"][0]["registers"]["original"] is None
    assert "%nosuch" in said["notes"][0]


@needs_ptxas
def test_elastic_forms_that_the_assembler_refuses_are_not_elastic(ptx, monkeypatch):
    from miriam.elastic import rewrite

    def broken(*args: Any, **options: Any) -> Any:
        made = rewrite.rewrite(*args, **options)
        return replace(made, ptx=made.ptx + "\n.visible .entry more() { nonsense; }\n")

    monkeypatch.setattr("miriam.elastic.generator.rewrite", broken)
    said = found(ptx)
    assert said["elastic_kernels"] == 0
    assert "nonsense" in said["kernels"][0]["reason"]
    assert said["kernels"][0]["blocks_variants"] == []


def test_a_module_is_written_with_the_forms_in_the_place_of_its_kernels(ptx, tmp_path):
    out = tmp_path / "out.ptx"
    assert f"The elastic module is in {out}" in call(ptx, "-o", out).stdout
    names = [entry.name for entry in parse(out.read_text()).entries]
    assert names == [*(form.of("good") for form in ELASTIC), "odd_guarded", *(form.of("meeting") for form in ELASTIC)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ptx", "three.ptx"]


def test_a_program_is_written_with_the_forms_beside_its_kernels(program, tmp_path):
    out = tmp_path / "out.miriam"
    before = program.read_bytes()
    assert found(program, "--output", out)["output"] == str(out)
    assert Program.load(out) == make_elastic(Program.load(program))
    assert program.read_bytes() == before
    again = tmp_path / "again.miriam"
    assert found(out, "-o", again)["kernels"] == found(program)["kernels"]
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("which", ["ptx", "program"])
def test_nothing_is_written_unless_it_is_asked_for(which, request, tmp_path, monkeypatch):
    path = request.getfixturevalue(which)
    monkeypatch.chdir(tmp_path)
    before = path.read_bytes()
    assert call(path).exit_code == 0
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def refused(code: int, *args: str | Path) -> str:
    result = call(*args)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.startswith("miriam: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.mark.parametrize("which", ["ptx", "program"])
def test_the_input_is_never_written_over(which, request, tmp_path):
    path = request.getfixturevalue(which)
    before = path.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(path)
    (tmp_path / "hard").hardlink_to(path)
    for out in (path, link, tmp_path / "hard", tmp_path / "." / path.name):
        assert "is the input" in refused(2, path, "-o", out)
    assert path.read_bytes() == before


def test_a_name_that_says_something_else_is_refused(ptx, program, tmp_path):
    assert f"call the output {tmp_path / 'x.miriam'}" in refused(2, program, "-o", tmp_path / "x.ptx")
    assert f"call the output {tmp_path / 'x.ptx'}" in refused(2, ptx, "-o", tmp_path / "x.miriam")
    assert not list(tmp_path.glob("x.*"))


def test_an_output_that_cannot_be_written_is_said(ptx, tmp_path):
    assert "it is a folder" in refused(1, ptx, "-o", tmp_path)
    result = call(ptx, "-o", tmp_path / "none" / "x.ptx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no folder" in result.stderr


BROKEN = {
    "missing.ptx": (None, "there is no file"),
    "missing.miriam": (None, "there is no file"),
    "empty.ptx": (b"", r":1: expected '.version'"),
    "broken.ptx": ((HEAD + GOOD + ".visible .entry b() {\n  add.u32 %r1, ;\n}").encode(), ":17: "),
    "cut.ptx": ((HEAD + GOOD).encode()[:-2], ":6: '{' is not closed"),
    "prose.txt": (b"Dear reader,\n", r":1: expected '.version'"),
    "code.cubin": (b"\x7fELF\x02\x01\xff\xff", "machine code"),
    "picture.png": (b"\x89PNG\r\n\x1a\n\xff\xfe", "is neither a program file nor PTX"),
    "garbage.miriam": (b"garbage", "is no program file"),
    "zip.zip": (b"PK\x03\x04 and no more", "is no program file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_refused_by_its_name(name, tmp_path):
    contents, says = BROKEN[name]
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    message = refused(2, tmp_path / name, "-o", tmp_path / f"out{Path(name).suffix}")
    assert says in message
    assert str(tmp_path / name) in message
    assert not list(tmp_path.glob("out*"))


def test_a_folder_and_a_damaged_program_are_refused(tmp_path, program):
    assert "directory" in refused(2, tmp_path)
    raw = program.read_bytes()
    program.write_bytes(raw[: len(raw) // 2])
    assert "damaged" in refused(2, program)


def test_text_may_end_with_a_zero_and_have_no_kernels(tmp_path):
    path = tmp_path / "x.ptx"
    path.write_bytes((HEAD + GOOD).encode() + b"\0")
    assert [k["name"] for k in found(path)["kernels"]] == ["good"]
    path.write_text(HEAD)
    assert found(path)["kernels"] == []
    assert call(path).stdout.splitlines()[-1] == f"There is no kernel in {path}."


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | environment,
    )  # fmt: skip


def test_neither_torch_nor_triton_is_needed(program, ptx):
    for path in (program, ptx):
        code = (
            "import sys\nfor name in ('torch', 'triton', 'cuda'): sys.modules[name] = None\n"
            f"sys.argv = ['miriam', 'elastic', {str(path)!r}]\nfrom miriam.cli import main\nmain()"
        )
        done = run(code)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Elastic: " in done.stdout


def test_help_loads_nothing_of_the_generator():
    code = (
        "import sys\nsys.argv = ['miriam', 'elastic', '--help']\nfrom miriam.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('miriam.elastic.generator', 'rich.table', 'numpy') if m in sys.modules])"
    )
    done = run(code)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert "miriam elastic " in done.stdout
