"""The configuration of the server: what is read, and what is said about what is wrong."""

import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miriam.serve.config import ConfigError, load_config

ROOT = Path(__file__).parents[2]
MODELS = "models: {a: {factory: 'nets.py:make', example: [[1, 2]]}}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "serve.yaml"
    path.write_text(text, "utf-8")
    return path


def refusal(folder: Path, text: str) -> list[str]:
    """Errors without the path."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    lines = str(refused.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    return [line.removeprefix(str(path)) for line in lines]


def test_what_is_left_out_has_a_value(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MODELS))
    assert (config.host, config.ports.http, config.ports.grpc, config.ports.metrics) == ("127.0.0.1", 8000, 8001, 8002)
    model = config.models["a"]
    assert (model.criticality, model.priority, model.queue, model.timeout_ms) == (0, None, 64, None)
    assert config.local


def test_what_is_written_is_read(tmp_path: Path) -> None:
    config = load_config(
        write(
            tmp_path,
            """
            device: cpu/2
            policy: priority
            host: 0.0.0.0
            limits: {body_bytes: 2MiB, connections: 3}
            security: {token_file: secret, tls: {certificate: c.pem, key: /k.pem, clients: ca.pem}}
            models:
              detector: &same
                program: detector.miriam
                criticality: critical
                priority: [normal, 2]
                deadline_ms: 20
              other:
                <<: *same
                program: zoo:resnet18-b1
              made: {factory: package.module:function, example: [[1], [2, 3]], dtype: [float16, int64]}
              file: {factory: 'sub/nets.py:make', example: [[1]]}
            """,
        )
    )
    assert not config.local
    assert config.limits.body_bytes == 2 << 20
    assert config.security.token_file == tmp_path / "secret"
    assert config.security.tls is not None
    assert (config.security.tls.certificate, config.security.tls.key) == (tmp_path / "c.pem", Path("/k.pem"))
    assert config.security.tls.clients == tmp_path / "ca.pem"
    models = config.models
    assert (models["detector"].criticality, models["detector"].priority) == (1, (0, 2))
    assert models["detector"].program == str(tmp_path / "detector.miriam")
    assert (models["other"].program, models["other"].deadline_ms) == ("zoo:resnet18-b1", 20.0)
    assert models["made"].factory == "package.module:function"
    assert models["file"].factory == f"{tmp_path}/sub/nets.py:make"


def test_the_command_line_takes_the_place_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, MODELS + "ports: {http: 1, grpc: 2}\ndevice: cuda:0\n")
    config = load_config(path, {"ports.http": 0, "device": "cpu", "ports.metrics": 7})
    assert (config.ports.http, config.ports.grpc, config.ports.metrics, config.device) == (0, 2, 7, "cpu")
    with pytest.raises(ConfigError, match=r"serve.yaml: host: 10.0.0.1 can be reached"):
        load_config(path, {"host": "10.0.0.1"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MODELS + "polcy: miriam", ":2: polcy: unknown key; did you mean 'policy'?"),
        ("models:\n  a:\n    factory: n.py:f\n    example: [[1]]\n    criticallity: critical",
         ":5: models.a.criticallity: unknown key; did you mean 'criticality'?"),
        (MODELS + "security:\n  tls:\n    cert: x\n    certificate: x\n    key: y",
         ":4: security.tls.cert: unknown key; there are: certificate, key, clients"),
        ("models:\n  a: {program: x, criticality: hot}",
         ":2: models.a.criticality: write normal, critical, or a whole number from 0"),
        ("models:\n  a: {program: x, criticality: yes}",
         ":2: models.a.criticality: write normal, critical, or a whole number from 0"),
        ("models:\n  a: {program: x, criticality: 9}",
         ":2: models.a.criticality: 9 is none of the levels [0, 1, 2, 3]"),
        ("models:\n  a:\n    program: x\n    priority: [1, 2]",
         ":4: models.a.priority: criticality 0 is not within [1, 2]"),
        ("models:\n  a: {}", ":2: models.a: give one of 'program' and 'factory'"),
        ("models:\n  a: {program: x, factory: 'n.py:f', example: [[1]]}",
         ":2: models.a: give one of 'program' and 'factory'"),
        ("models:\n  a: {factory: 'n.py:f'}",
         ":2: models.a: a factory's model needs 'example', the shapes of its inputs"),
        ("models:\n  a: {factory: n.py, example: [[1]]}",
         ":2: models.a.factory: write file.py:function or package.module:function"),
        ("models:\n  a:\n    program: x\n    queue: 0",
         ":4: models.a.queue: Input should be greater than or equal to 1"),
        ("models:\n  a:\n    program: x\n    deadline_ms: .inf",
         ":4: models.a.deadline_ms: Input should be a finite number"),
        ("models:\n  a:\n    program: x\n    inputs: [i, i]", ":4: models.a.inputs: two have one name"),
        ("models:\n  'a/b': {program: x}",
         ":2: models.a/b: a model's name is made of letters, digits, '_', '-' and '.'"),
        ("models:\n  a: {program: x}\n  a: {program: y}", ":3: models.a: is written twice"),
        ("models:\n  a: {program: x}\ndevice: cpu\ndevice: cpu/2", ":4: device: is written twice"),
        ("device: cpu", ": models: is missing"),
        ("models: {}", ":1: models: name at least one"),
        (MODELS + "host: 0.0.0.0", ":2: host: 0.0.0.0 can be reached from other machines: set security.token_file or "
         "security.tls.clients, or listen on 127.0.0.1"),
        (MODELS + "host: gpu.example.org\nsecurity: {tls: {certificate: c, key: k}}",
         ":2: host: gpu.example.org can be reached from other machines: set security.token_file or "
         "security.tls.clients, or listen on 127.0.0.1"),
        (MODELS + "ports: {http: 5, grpc: 5}", ":2: ports: two of them are the same"),
        (MODELS + "ports:\n  http: 65536", ":3: ports.http: Input should be less than or equal to 65535"),
        (MODELS + "limits: {json_values: true}", ":2: limits.json_values: Input should be a valid integer"),
        ("- a", ":1: write keys and values, such as 'models:'"),
        ("", ":1: write keys and values, such as 'models:'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_line_and_key(text: str, said: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, text) == [said]


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, "models:\n  a: {program: x, queue: 0}\n  b:\n    program: y\n    dtype: half\npolicy: [x]")
    assert [line.split(": ")[1] for line in said] == ["policy", "models.a.queue", "models.b.dtype"]


@pytest.mark.parametrize(
    "text", ["models: [", "models: {a: b: c}", "\tx: 1", "a: !!python/object:os.system {}", "? [a]\n: b"]
)
def test_what_is_no_yaml_is_said_so(text: str, tmp_path: Path) -> None:
    assert len(refusal(tmp_path, text)) == 1


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000))
    with pytest.raises(ConfigError):  # no text of this length names a model by chance
        load_config(path)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "latin.yaml")


def test_the_page_is_what_the_configuration_is() -> None:
    tables = runpy.run_path(str(ROOT / "docs" / "configuration.py"))
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert tables["with_tables"](page) == page, "run docs/configuration.py"
