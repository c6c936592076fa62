"""The example of a server starts with the command, and gives what the pages say that it gives."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from miriam.serve.config import load_config

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
CURL = re.compile(r"^\$ curl -d '(.*)' \\\n +http://127\.0\.0\.1:8000(\S+)\n(\{.*\})$", re.MULTILINE)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    """Where the example answers, and what it said until it was ready."""
    ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "miriam", "serve", "examples/serve/serve.yaml", "--device", "cpu", *ports]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line.rstrip())
            if line == "ready\n":
                break
        yield next(line.split()[1] for line in said if "HTTP" in line), said
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_what_a_page_asks_the_example_gives_what_it_says(server: tuple[str, list[str]], page: str) -> None:
    url, _ = server
    asked = CURL.findall((ROOT / page).read_text("utf-8"))
    assert asked
    for body, path, answer in asked:
        response = httpx.post(url + path, content=body, timeout=PATIENCE_S, trust_env=False)
        assert response.status_code == 200
        assert response.json() == json.loads(answer)


def test_a_page_shows_what_the_example_says_of_its_models(server: tuple[str, list[str]]) -> None:
    _, said = server
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    models = [line for line in said if " is ready, criticality " in line]
    assert len(models) == 3
    assert [line for line in models if line not in page] == []


def test_what_becomes_of_a_configuration_of_triton_can_be_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "from-triton.md").read_text("utf-8")
    triton, ours = re.findall(r"^```(?:text|yaml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "serve.yaml").write_text(ours, "utf-8")
    model = load_config(tmp_path / "serve.yaml").models["detector"]
    said = text_format.Parse(triton, model_config_pb2.ModelConfig())
    policy = said.dynamic_batching.default_queue_policy
    assert (model.queue, model.timeout_ms) == (policy.max_queue_size, policy.default_timeout_microseconds / 1e3)
    assert (model.inputs, model.outputs) == ([one.name for one in said.input], [one.name for one in said.output])
    assert model.example == [list(one.dims) for one in said.input]
    assert model.priority is not None
    low, high = model.priority
    assert high - low + 1 == said.dynamic_batching.priority_levels
    assert high - model.criticality + 1 == said.dynamic_batching.default_priority_level
