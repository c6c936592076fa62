"""Programs: exact round trips, checks on load, digests."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import program

from miriam.errors import ProgramError
from miriam.program import Buffer, Kernel, Launch, Pointer, Program, Role, Scalar, Source, Tensor

names = st.text(max_size=8)
extents = st.tuples(*[st.integers(1, 2**16)] * 3)


@st.composite
def kernels(draw: st.DrawFn) -> Kernel:
    ptx = draw(st.none() | st.text(max_size=40))
    opaque = draw(st.text(max_size=10)) if ptx is not None else draw(st.text(min_size=1, max_size=10))
    return Kernel(
        draw(names), draw(st.sampled_from(Source)), draw(extents), draw(st.integers(0, 255)),
        draw(st.integers(0, 2**18)), draw(st.integers(0, 2**18)), ptx, draw(st.none() | st.text(max_size=40)), opaque,
    )  # fmt: skip


@st.composite
def programs(draw: st.DrawFn) -> Program:
    buffers = []
    for _ in range(draw(st.integers(0, 4))):
        data = draw(st.none() | st.binary(max_size=64))
        size = draw(st.integers(0, 2**40)) if data is None else len(data)
        buffers.append(Buffer(draw(names), size, draw(st.sampled_from(Role)), data))
    scalars = st.builds(Scalar, st.binary(max_size=16))

    def pointer() -> Pointer:
        buffer = draw(st.integers(0, len(buffers) - 1))
        return Pointer(buffer, draw(st.integers(0, buffers[buffer].size_bytes)))

    code = draw(st.lists(kernels(), max_size=4))
    launches = []
    for _ in range(draw(st.integers(0, 4)) if code else 0):
        pointers = [pointer() for _ in range(draw(st.integers(0, 2)))] if buffers else []
        args = draw(st.permutations([*pointers, *draw(st.lists(scalars, max_size=2))]))
        launches.append(Launch(draw(st.integers(0, len(code) - 1)), draw(extents), tuple(args)))

    def tensors() -> tuple[Tensor, ...]:
        shape = st.lists(st.integers(0, 2**20), max_size=4).map(tuple)
        count = draw(st.integers(0, 2)) if buffers else 0
        return tuple(Tensor(draw(names), draw(names), draw(shape), draw(shape), pointer()) for _ in range(count))

    meta = draw(st.dictionaries(names, names, max_size=3))
    return Program(draw(names), draw(names), tuple(code), tuple(launches), tuple(buffers), tensors(), tensors(), meta)


@given(programs())
def test_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, made: Program) -> None:
    path = tmp_path_factory.mktemp("program") / "p.miriam"
    made.save(path)
    read = Program.load(path)
    assert read == made
    assert read.digest == made.digest
    assert [k.digest for k in read.kernels] == [k.digest for k in made.kernels]


@given(programs())
@settings(max_examples=20)
def test_equal_programs_give_equal_files(tmp_path_factory: pytest.TempPathFactory, made: Program) -> None:
    folder = tmp_path_factory.mktemp("program")
    meta = dict(reversed(made.meta.items()))
    made.save(folder / "a.miriam")
    replace(made, meta=meta).save(folder / "b.miriam")
    assert (folder / "a.miriam").read_bytes() == (folder / "b.miriam").read_bytes()


@given(programs())
@settings(max_examples=20)
def test_left_out_weights_leave_everything_else(tmp_path_factory: pytest.TempPathFactory, made: Program) -> None:
    path = tmp_path_factory.mktemp("program") / "p.miriam"
    bare = made.without_weights()
    bare.save(path)
    assert Program.load(path) == bare
    assert bare.size_bytes == made.size_bytes
    assert bare.digest == made.digest
    assert replace(bare, buffers=made.buffers) == made
    assert all(buffer.data is None for buffer in bare.buffers)


def saved(folder: Path) -> tuple[Path, bytes]:
    path = folder / "p.miriam"
    program().save(path)
    return path, path.read_bytes()


def test_a_file_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    path, data = saved(tmp_path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ProgramError, match="compile the model again"):
            Program.load(path)


def test_a_file_with_any_byte_changed_gives_the_same_program_or_an_error(tmp_path: Path) -> None:
    path, data = saved(tmp_path)
    for where in range(len(data)):
        for flip in (0x01, 0xFF):
            path.write_bytes(data[:where] + bytes([data[where] ^ flip]) + data[where + 1 :])
            try:
                read = Program.load(path)
            except ProgramError:
                continue
            assert read == program(), where


def changed(folder: Path, change: Callable[[dict[str, Any], list[dict[str, Any]]], None]) -> Path:
    """A saved program whose manifest and code went through ``change``, in an archive that is whole."""
    path, data = saved(folder)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest, code = json.loads(members["manifest.json"]), json.loads(members["kernels.json"])
    change(manifest, code)
    members |= {"manifest.json": json.dumps(manifest).encode(), "kernels.json": json.dumps(code).encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m, c: m.update(format=2), r"program format 2, this Miriam reads 1: compile the model again"),
        (lambda m, c: m.pop("format"), "program format None"),
        (lambda m, c: m.pop("launches"), "launches is missing"),
        (lambda m, c: m["kernels"].pop(), "1 kernels are listed and the code of 2 is there"),
        (lambda m, c: c.pop(), "2 kernels are listed and the code of 1 is there"),
        (lambda m, c: (m["kernels"].pop(), c.pop()), "launch 1 needs kernel 1, which is missing"),
        (lambda m, c: m["launches"][0].update(kernel=-1), "launch 0 needs kernel -1, which is missing"),
        (lambda m, c: c[0].update(ptx=c[0]["ptx"] + " "), "the code of kernel 'toy_0' is not the code that was saved"),
        (lambda m, c: m["kernels"][0].update(registers=33), "the code of kernel 'toy_0' is not"),
        (lambda m, c: c[0].update(ptx=None), "neither PTX nor a reason"),
        (lambda m, c: m["launches"][0].update(args=[[2, 4097]]), "points 4097 bytes into a buffer of 4096 bytes"),
        (lambda m, c: m["launches"][0].update(args=[[2, -1]]), "points -1 bytes into"),
        (lambda m, c: m["launches"][1].update(args=[[3, 0]]), "argument 0 of launch 1 points into buffer 3"),
        (lambda m, c: m["outputs"][0].update(at=[7, 0]), "tensor 'y' points into buffer 7, there are 3"),
        (lambda m, c: m["launches"][0].update(grid=[0, 1, 1]), "grid"),
        (lambda m, c: m["launches"][0].update(grid=[1, 1]), "grid"),
        (lambda m, c: m["buffers"][1].update(size_bytes=1000), "says 1000 bytes and holds 1024"),
        (lambda m, c: m["buffers"][1].update(role="ballast"), "ballast"),
        (lambda m, c: m["launches"][0].update(args=["zz"]), "damaged"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    path = changed(tmp_path, change)
    with pytest.raises(ProgramError, match=says) as caught:
        Program.load(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_programs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"there is no program file .*none\.miriam: make one with 'miriam compile'"):
        Program.load(tmp_path / "none.miriam")
    with pytest.raises(ProgramError, match="cannot read"):
        Program.load(tmp_path)
    (tmp_path / "text.miriam").write_text("not a program")
    with pytest.raises(ProgramError, match="is no program file"):
        Program.load(tmp_path / "text.miriam")
    with zipfile.ZipFile(tmp_path / "other.miriam", "w") as archive:
        archive.writestr("photo.txt", "hello")
    with pytest.raises(ProgramError, match=r"manifest\.json"):
        Program.load(tmp_path / "other.miriam")


def test_a_save_that_fails_leaves_the_old_file_and_no_scraps(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="cannot write"):
        program().save(tmp_path / "no" / "folder.miriam")
    path, data = saved(tmp_path)
    broken = replace(program(), meta={"made": b"bytes are no JSON"})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_program_file_opens_with_standard_tools(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", "kernels.json", "weights/1"]


def test_a_kernel_has_its_digest_whatever_its_name() -> None:
    def kernel(name: str, **other: Any) -> Kernel:
        ptx = f".visible .entry {name}(.param .u64 {name}_param_0) {{ ret; }}"
        return Kernel(
            **({"name": name, "source": Source.TRITON, "block": (128, 1, 1), "registers": 32, "ptx": ptx} | other)
        )

    assert kernel("triton_red_fused_very_long_17").digest == kernel("triton_red_fused_0").digest
    for other in ({"block": (64, 2, 1)}, {"registers": 40}, {"shared_bytes": 1}, {"ptx": "ret;"}):
        assert kernel("triton_red_fused_0", **other).digest != kernel("triton_red_fused_0").digest
    opaque = {"ptx": None, "opaque": "a library kernel"}
    assert kernel("cudnn_a", **opaque).digest != kernel("cudnn_b", **opaque).digest


def test_a_kernel_needs_code_or_a_reason() -> None:
    with pytest.raises(ProgramError, match="neither PTX nor a reason"):
        Kernel("k", Source.LIBRARY, (32, 1, 1), 32)


def test_counts() -> None:
    toy = program(launches=((64, 128), (200, 256)))
    assert [step.blocks for step in toy.launches] == [64, 200]
    assert [toy.kernel_of(i).threads for i in range(2)] == [128, 256]
    assert toy.size_bytes == 256 + 1024 + 4096
    assert toy.runnable
    opaque = replace(toy.kernels[0], ptx=None, opaque="cuDNN", digest="")
    assert not replace(toy, kernels=(opaque, toy.kernels[1])).runnable


def test_a_program_of_a_thousand_launches_loads_its_code_once(tmp_path: Path) -> None:
    """Kernels are stored once however often they are launched: the file grows by launches alone."""
    toy = program(weights=False)
    many = replace(toy, launches=toy.launches * 500)
    toy.save(tmp_path / "few.miriam")
    many.save(tmp_path / "many.miriam")
    read = Program.load(tmp_path / "many.miriam")
    assert read == many
    with zipfile.ZipFile(tmp_path / "few.miriam") as few, zipfile.ZipFile(tmp_path / "many.miriam") as file:
        assert few.getinfo("kernels.json").file_size == file.getinfo("kernels.json").file_size
