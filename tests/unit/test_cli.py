"""The command: what it prints, where, and how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import Profiles, program
from typer.testing import CliRunner

import miriam
from miriam import zoo
from miriam.cli import app
from miriam.errors import DeviceError
from miriam.program import Program
from miriam.store import ExportedProfiles, ProfileStore

runner = CliRunner()


def call(*args: str) -> Any:
    return runner.invoke(app, list(args))


@pytest.fixture
def toy_zoo(monkeypatch: pytest.MonkeyPatch) -> tuple[Program, ...]:
    """A zoo of two toys."""
    toys = {"one": program("one"), "two": program("two", ((8, 32),))}
    profiles = Profiles(*toys.values())
    monkeypatch.setattr(zoo, "names", lambda: tuple(toys))
    monkeypatch.setattr(zoo, "profiles", lambda: profiles)
    real = zoo.load
    monkeypatch.setattr(zoo, "load", lambda name: toys[name] if name in toys else real(name))
    return tuple(toys.values())


def as_one_line(result: Any, code: int) -> str:
    """The message of a failed call, which printed nothing else."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("miriam: ")
    return str(lines[0])


def test_help_names_every_command_and_an_example() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for name in ("bench", "compile", "profile", "zoo", "devices", "miriam bench mdtb --device sim:xavier"):
        assert name in result.stdout


@pytest.mark.parametrize(
    "command",
    [["bench", "mdtb"], ["compile"], ["profile"], ["zoo", "list"], ["zoo", "show"], ["zoo", "export"], ["devices"]],
)
def test_every_command_shows_an_example(command: list[str]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert f"  miriam {' '.join(command)} " in result.stdout.replace("\n", " \n")


def test_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"miriam {miriam.__version__}\n")


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["bench", "nonsense"],
        ["bench", "mdtb", "--nonsense"],
        ["bench", "mdtb", "--duration", "long"],
        ["bench", "mdtb", "--seed", "1.5"],
        ["compile"],
        ["compile", "m:f", "--shape", "1"],
        ["compile", "m:f", "-o", "x.miriam"],
        ["compile", "m:f", "--shape", "1,x", "-o", "x.miriam"],
        ["compile", "m:f", "--shape", "1,0", "-o", "x.miriam"],
        ["compile", "m:f", "--shape", "", "-o", "x.miriam"],
        ["compile", "m:f", "--shape", "1,3", "-o", "/no/such/folder/x.miriam"],
        ["profile"],
        ["zoo", "show"],
        ["zoo", "export", "one"],
        ["devices", "extra"],
    ],
)
def test_bad_usage_ends_with_2_and_says_why_on_standard_error(args: list[str]) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["profile", "none.miriam"], "there is no program file none.miriam"),
        (["zoo", "show", "elephant"], "the zoo has no 'elephant'; it has one, two"),
        (["zoo", "export", "elephant", "-o", "x"], "the zoo has no 'elephant'"),
        (["bench", "mdtb", "--workload", "A,Q"], "mdtb has no workload 'Q'"),
        (["bench", "mdtb", "--workload", ""], "workload"),
        (["bench", "mdtb", "--policy", "magic"], "there is no policy 'magic'"),
        (["bench", "mdtb", "--device", "sim:4090"], "there is no simulated device 'sim:4090'"),
        (["bench", "mdtb", "--device", "sim:xavier/9"], "SMs"),
        (["bench", "mdtb", "--device", "cuda:0"], "cuda:0 cannot be used"),
        (["bench", "mdtb", "--repeats", "0"], "0 repeats"),
        (["bench", "pair", "--depth", "0"], "0 requests at a time"),
        (["bench", "pair", "--verify"], "on a GPU only"),
        (["bench", "disb", "--workload", "driving"], "disb has no workload 'driving'"),
        (["bench", "mdtb", "--duration", "0"], "duration"),
        (["bench", "mdtb", "--duration", "nan"], "duration"),
        (["bench", "mdtb", "--critical-load", "1.5"], "critical load"),
    ],
)
@pytest.mark.usefixtures("toy_zoo")
def test_bad_input_ends_with_2_and_one_line(args: list[str], says: str) -> None:
    assert says in as_one_line(call(*args), 2)


def test_an_error_keeps_its_traceback_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRIAM_DEBUG", "1")
    result = call("profile", "none.miriam")
    assert isinstance(result.exception, miriam.MiriamError)


@pytest.mark.usefixtures("toy_zoo")
def test_zoo_lists_its_programs() -> None:
    for args in (["zoo"], ["zoo", "list"]):
        result = call(*args)
        assert result.exit_code == 0
        assert [line.split()[0] for line in result.stdout.splitlines()] == ["one", "two"]
        assert "2 launches (2 Triton), 264 blocks" in result.stdout
    found = json.loads(call("zoo", "list", "--json").stdout)
    assert [(p["name"], p["launches"], p["blocks"]) for p in found] == [("one", 2, 264), ("two", 1, 8)]


@pytest.mark.usefixtures("toy_zoo")
def test_zoo_shows_a_program() -> None:
    result = call("zoo", "show", "one")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["0", "64", "128", "32", "0", "one_0"] in rows
    assert ["1", "200", "256", "32", "0", "one_1"] in rows
    found = json.loads(call("zoo", "show", "one", "--json").stdout)
    assert [step["grid"] for step in found["launch"]] == [[64, 1, 1], [200, 1, 1]]
    assert found["meta"] == {"made": "by hand"}


def test_zoo_exports_a_program(toy_zoo: tuple[Program, ...], tmp_path: Path) -> None:
    path = tmp_path / "one.miriam"
    assert call("zoo", "export", "one", "-o", str(path)).exit_code == 0
    assert Program.load(path) == toy_zoo[0]
    assert "cannot write" in as_one_line(call("zoo", "export", "one", "-o", str(tmp_path / "no" / "x")), 1)


def test_devices_says_what_can_be_used_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from miriam.device.cuda import driver

    monkeypatch.setattr(driver, "unavailable", lambda: "no CUDA driver on this machine: install the driver")
    found = {d["name"]: d for d in json.loads(call("devices", "--json").stdout)}
    assert found["sim:xavier"]["usable"]
    assert found["sim:xavier"]["sms"] == 8
    assert found["sim:h200"]["sms"] == 132
    assert not found["cuda:0"]["usable"]
    assert found["cuda:0"]["why"] == "no CUDA driver on this machine: install the driver"
    assert "not usable: no CUDA driver on this machine: install the driver" in call("devices").stdout


def test_devices_shows_each_gpu_and_the_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from miriam.device.cuda import driver

    class Gpu:
        driver_version = "13.0"
        name = "NVIDIA Toy"
        geometry = miriam.Geometry(20, 2048, 32, 65536, 1 << 16, 1 << 16)

        def __init__(self, ordinal: int) -> None:
            if ordinal == 1:
                raise DeviceError("cuDevicePrimaryCtxRetain failed: out of memory")

        def close(self) -> None: ...

    monkeypatch.setattr(driver, "unavailable", lambda: "")
    monkeypatch.setattr(driver, "check", lambda call: 2)
    monkeypatch.setattr(driver, "Gpu", Gpu)
    found = {d["name"]: d for d in json.loads(call("devices", "--json").stdout)}
    assert (found["cuda:0"]["sms"], found["cuda:0"]["usable"]) == (20, True)
    assert found["cuda:0"]["title"] == "NVIDIA Toy, CUDA 13.0"
    assert "out of memory" in found["cuda:1"]["why"]


def test_devices_never_fails_here() -> None:
    assert call("devices").exit_code == 0


def test_compile_passes_everything_on_and_writes_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch_frontend = pytest.importorskip("miriam.frontend.torch")
    seen: dict[str, Any] = {}

    def compile_factory(spec: str, shapes: Any, dtype: str, **options: Any) -> Program:
        seen.update(options, spec=spec, shapes=shapes, dtype=dtype)
        options["progress"]("autotuning", 1, 2)
        return program("toy")

    monkeypatch.setattr(torch_frontend, "compile_factory", compile_factory)
    path = tmp_path / "toy.miriam"
    args = ["compile", "nets:toy", "--shape", "1,3,8,8", "--shape", "4", "--name", "toy", "--no-weights", "--fresh"]
    result = call(*args, "--dtype", "bfloat16", "-o", str(path), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["launches"] == 2
    assert Program.load(path) == program("toy")
    del seen["progress"]
    assert seen == {
        "spec": "nets:toy", "shapes": [(1, 3, 8, 8), (4,)], "dtype": "bfloat16", "name": "toy", "weights": False,
        "fresh": True,
    }  # fmt: skip


def test_compile_says_what_it_lacks(tmp_path: Path) -> None:
    message = as_one_line(call("compile", "no.such.module:toy", "--shape", "1", "-o", str(tmp_path / "x.miriam")), 1)
    assert "cannot import no.such.module" in message or "pip install" in message
    assert not list(tmp_path.iterdir())


def test_profile_measures_into_the_store_and_exports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profiler = pytest.importorskip("miriam.device.cuda.profiler")
    monkeypatch.setenv("MIRIAM_CACHE", str(tmp_path / "cache"))

    def profile_program(found: Program, store: ProfileStore, device: str, **options: Any) -> None:
        options["progress"]("measuring", 0, 2)
        assert device == "cuda:1"
        assert options["counters"] is False
        source = Profiles(found)
        for step in found.launches:
            key = (found.kernels[step.kernel].digest, step.grid)
            measured = source.launch("h200", key)
            assert measured is not None
            store.put_launch("h200", key, measured)

    monkeypatch.setattr(profiler, "profile_program", profile_program)
    program().save(tmp_path / "toy.miriam")
    args = ["--device", "cuda:1", "--no-counters", "--export", str(tmp_path / "toy.json.xz")]
    result = call("profile", str(tmp_path / "toy.miriam"), *args)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "cache" / "profiles.db") in result.stdout
    assert len(ExportedProfiles(tmp_path / "toy.json.xz").launches) == 2


def test_bench_prints_one_json_document_or_a_table_and_writes_the_report(tmp_path: Path) -> None:
    args = ["bench", "mdtb", "--workload", "a", "--policy", "sequential,miriam", "--duration", "0.05", "--jobs", "1"]
    result = call(*args, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["policies"] == ["sequential", "miriam"]
    assert found["device"]["name"] == "sim:xavier"
    result = call(*args, "--out", str(tmp_path))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "miriam" in result.stdout
    assert result.stdout.endswith(f"The report is in {tmp_path / 'index.html'}\n")
    assert (tmp_path / "index.html").exists()


def test_progress_goes_to_a_terminal_and_leaves_standard_output_alone() -> None:
    pty = pytest.importorskip("pty")
    terminal, other_end = pty.openpty()
    args = ["bench", "mdtb", "--workload", "A", "--policy", "priority", "--duration", "0.02", "--jobs", "1", "--json"]
    with subprocess.Popen([sys.executable, "-m", "miriam", *args], stdout=subprocess.PIPE, stderr=other_end) as process:
        os.close(other_end)
        stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(stdout)["policies"] == ["priority"]
    assert b"running" in os.read(terminal, 1 << 16)
    os.close(terminal)


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "miriam", *args],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment,
    )  # fmt: skip


def test_a_real_process_ends_as_it_should() -> None:
    good = run("devices", "--json")
    assert (good.returncode, good.stderr) == (0, "")
    assert len(json.loads(good.stdout)) > 3
    bad = run("profile", "none.miriam")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("miriam: there is no program file none.miriam")
    assert bad.stderr.count("\n") == 1


def test_a_damaged_store_is_a_warning_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "profiles.db").write_bytes(b"garbage" * 100)
    program().save(tmp_path / "toy.miriam")
    done = run("profile", str(tmp_path / "toy.miriam"), MIRIAM_CACHE=str(tmp_path))
    lines = done.stderr.splitlines()
    assert lines[0].startswith("miriam: warning: the profile store ")
    assert "set-aside" in lines[0]
    assert all(line.startswith("miriam: ") for line in lines)
