"""The documentation is true: its Python runs, its commands exist, its table is the record's."""

import doctest
import importlib
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_driver import CUresult, FakeDriver
from null_kernels import EFFECTS

import miriam
from miriam.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_pages_runs_and_gives_what_it_says(page: Path) -> None:
    """The Python of a page is one program; blocks with prompts also say what comes out."""
    names: dict[str, Any] = {"__name__": "docs"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for number, block in enumerate(PYTHON.findall(page.read_text("utf-8")), 1):
        where = f"{page.name}, block {number}"
        if ">>>" not in block:
            exec(compile(block, where, "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, where, str(page), 0)
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        names = test.globs
        assert not said, "".join(said)


def modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(miriam.__path__, "miriam.")]
    return [name for name in found if not name.startswith(("miriam.__", "miriam.frontend", "miriam.zoo.models"))]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_give_what_they_say(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def commands() -> dict[str, list[str]]:
    """Every command and its long options."""
    import typer

    def walk(command: Any, path: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, sub in getattr(command, "commands", {}).items():
            found |= walk(sub, f"{path} {name}")
        if not found:
            options = [o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
            found[path] = [o for o in options if o != "--help"]
        return found

    return walk(typer.main.get_command(app), "miriam")


@pytest.mark.parametrize(("command", "options"), commands().items())
def test_every_command_and_option_is_on_the_page(command: str, options: list[str]) -> None:
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    sections = page.split("\n## ")
    group = command if "zoo" not in command else "miriam zoo"
    section = next(s for s in sections if s.startswith(group + "\n"))
    assert [option for option in options if f"`{option}`" not in section] == []


def test_every_policy_is_on_the_page() -> None:
    from miriam.policy import NAMES

    page = (ROOT / "docs" / "policies.md").read_text("utf-8")
    assert [name for name in NAMES if f"| `{name}` |" not in page] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    missing = [p.stem for p in (ROOT / "docs").glob("*.md") if p.stem != "index" and f"\n{p.stem}\n" not in index]
    assert missing == []


def test_links_between_files_lead_somewhere() -> None:
    lost = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert lost == []


def test_the_tables_are_those_of_their_records() -> None:
    assert tables("--check") == 0, "run benchmarks/tables.py"


def test_the_policy_example_protects_the_critical_network(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "policy.py"), run_name="__main__")
    stock, own = capsys.readouterr().out.splitlines()
    slowdown = re.compile(r"critical p99 +([0-9.]+) x alone")
    found = [slowdown.search(line) for line in (stock, own)]
    assert found[0] is not None
    assert found[1] is not None
    assert float(found[1][1]) < float(found[0][1])


def test_the_runtime_example_lets_the_critical_model_go_first(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "runtime.py"))["main"](1.0)
    said = capsys.readouterr().out
    p50 = {name: float(ms) for name, ms in re.findall(r"^(\w+ \w+(?: \w+)?) +p50 +([0-9.]+) ms", said, re.MULTILINE)}
    assert p50["detector beside archive"] < p50["archive alone"], "it waited for a whole inference of a normal one"
    assert " 0 of its requests failed" in said


def test_the_gpu_example_serves_both_networks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeDriver()
    fake.install(monkeypatch)
    fake.effects.update(EFFECTS)
    monkeypatch.setattr("miriam.device.cuda.elastic.find_ptxas", lambda: None)  # the driver assembles
    runpy.run_path(str(ROOT / "examples" / "gpu.py"))["main"]("cuda:0", 0.2)
    found = re.findall(r"^(\w+) +critical p99 +[1-9]\d* us +normal +[1-9]\d* ", capsys.readouterr().out, re.MULTILINE)
    assert found == ["multistream", "resident"]
    assert not fake.leaks()


@pytest.mark.parametrize("example", ["elastic.py", "gpu.py"])
def test_without_a_gpu_an_example_says_why_it_does_nothing(
    example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeDriver()
    fake.install(monkeypatch)
    fake.fail["cuInit"] = CUresult.CUDA_ERROR_NOT_FOUND
    runpy.run_path(str(ROOT / "examples" / example))["main"]()
    said = capsys.readouterr().out
    assert said.startswith("This example needs a GPU: cuInit failed: ")
    assert said.count("\n") == 1


def tables(*args: object) -> int:
    script = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), *map(str, args)]
    return subprocess.run(script, timeout=60, check=False).returncode


def test_a_table_that_was_changed_is_found_and_mended(tmp_path: Path) -> None:
    readme, text = tmp_path / "README.md", (ROOT / "README.md").read_text("utf-8")
    assert "| `miriam` |" in text
    readme.write_text(text.replace("| `miriam` |", "| `mine` |"), "utf-8")
    assert tables("--check", readme) == 1
    assert tables(readme) == 0
    assert readme.read_text("utf-8") == text


def test_the_bench_example_writes_its_report_and_a_table_follows_from_it(tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "bench.py"))["main"]
    results = main(str(tmp_path), 0.2)
    point = results.point("robot", "miriam")
    assert (tmp_path / "index.html").stat().st_size > 0
    table = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))["mdtb"](results)
    assert f"{point.critical.slowdown.p99:.2f}" in table
