"""The command, from its first line of output to its exit code."""

import asyncio
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_support import PATIENCE_S, files, serving, tensor
from typer.testing import CliRunner

from miriam.cli import app
from miriam.errors import MiriamError
from miriam.serve.config import ServerConfig, load_config
from miriam.serve.server import Server

MODELS = "models:\n  same: {factory: 'nets.py:same', example: [[1]]}\n"
FIFO = """
import gc, os, sys
import numpy as np

def torch_is_there():
    return lambda a: np.array(["torch" in sys.modules])

def settings():
    passive = os.environ["OMP_WAIT_POLICY"] == "passive"
    return lambda a: np.array([passive, sys.getswitchinterval() < 1e-3, gc.get_freeze_count() > 10_000])

def same():
    return lambda a: a.copy()

def waiting():
    def run(a):
        if a[0] > 1:
            (open(os.path.join(os.path.dirname(__file__), "arrived"), "wb")).close()
            open(os.path.join(os.path.dirname(__file__), "fifo"), "rb").read()
        return a
    return run

def broken():
    raise RuntimeError("the weights are not there")
"""


class Process:
    """`miriam serve` in a process of its own."""

    def __init__(self, folder: Path, config: str, *options: str) -> None:
        path = files(folder, config)
        (folder / "nets.py").write_text(FIFO, "utf-8")
        os.mkfifo(folder / "fifo")
        os.mkfifo(folder / "arrived")
        self.folder, self.said = folder, ""
        command = [sys.executable, "-m", "miriam", "serve", str(path), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def until(self, line: str) -> str:
        """Read what it says up to a line."""
        assert self.process.stdout is not None
        for said in self.process.stdout:
            self.said += said
            if re.search(line, said):
                return self.said
        raise AssertionError(f"it ended: {self.said}{self.process.stderr and self.process.stderr.read()}")

    @property
    def url(self) -> str:
        found = re.search(r"HTTP +(\S+)", self.said)
        assert found is not None
        return found[1]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S, trust_env=False)

    def infer(self, model: str, value: int, **options: object) -> httpx.Response:
        body = {"inputs": [tensor([value], "INT8")]}
        return httpx.post(f"{self.url}/v2/models/{model}/infer", json=body, timeout=PATIENCE_S, trust_env=False)

    def wait_for_arrival(self) -> None:
        (self.folder / "arrived").read_bytes()

    def let_go(self) -> None:
        (self.folder / "fifo").write_bytes(b"")

    def end(self) -> tuple[int, str]:
        """Exit code, and what it said on standard error."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        self.said += out
        return self.process.returncode, err


@contextmanager
def process(folder: Path, config: str, *options: str) -> Iterator[Process]:
    started = Process(folder, config, *options)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate(timeout=PATIENCE_S)


def test_a_server_that_is_to_end_answers_what_is_open_and_takes_nothing_new(tmp_path: Path) -> None:
    models = "".join(
        f"  {name}: {{factory: 'nets.py:{factory}', example: [[1]], dtype: int8}}\n"
        for name, factory in (("waiting", "waiting"), ("same", "same"))
    )
    with process(tmp_path, f"models:\n{models}") as server, ThreadPoolExecutor(1) as pool:
        said = server.until("^ready$")
        assert re.search(r"gRPC +127.0.0.1:\d+\n +metrics +http://127.0.0.1:\d+/metrics", said)
        assert server.get("/v2/health/ready").status_code == 200
        first = pool.submit(server.infer, "waiting", 2)
        server.wait_for_arrival()
        server.process.send_signal(signal.SIGTERM)
        while server.get("/v2/health/ready").status_code == 200:  # until it has heard
            pass
        assert server.infer("same", 0).status_code == 503
        assert server.get("/v2/health/live").status_code == 200
        server.let_go()
        assert first.result(PATIENCE_S).json()["outputs"][0]["data"] == [2]
        assert server.end() == (0, "")


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with process(tmp_path, "models: {waiting: {factory: 'nets.py:waiting', example: [[1]], dtype: int8}}\n") as server:
        server.until("^ready$")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(server.infer, "waiting", 2)
            server.wait_for_arrival()
            server.process.send_signal(signal.SIGTERM)
            while server.get("/v2/health/ready").status_code == 200:
                pass
            server.process.send_signal(signal.SIGTERM)
            assert server.end()[0] == -signal.SIGTERM
            with pytest.raises(httpx.HTTPError):
                first.result(PATIENCE_S)


def test_a_model_that_does_not_end_is_left_there(tmp_path: Path) -> None:
    config = "drain_s: 0.1\nmodels: {waiting: {factory: 'nets.py:waiting', example: [[1]], dtype: int8}}\n"
    with process(tmp_path, config) as server, ThreadPoolExecutor(1) as pool:
        server.until("^ready$")
        pool.submit(server.infer, "waiting", 2)
        server.wait_for_arrival()
        server.process.send_signal(signal.SIGINT)
        assert server.end()[0] == 1
        assert "a model does not come to its end" in server.said


def test_a_server_that_is_killed_leaves_no_process_behind_and_one_without_torch_has_none(tmp_path: Path) -> None:
    model = "models: {torch: {factory: 'nets.py:torch_is_there', example: [[1]], dtype: int8}}\n"
    with process(tmp_path, model) as server:
        server.until("^ready$")
        large = json.dumps({"inputs": [tensor([0], "INT8")], "parameters": {"note": "x" * 100_000}})
        answer = httpx.post(f"{server.url}/v2/models/torch/infer", content=large, trust_env=False, timeout=PATIENCE_S)
        assert answer.json()["outputs"][0]["data"] == [False]
        task = Path(f"/proc/{server.process.pid}/task")
        [reader] = [int(child) for at in task.iterdir() for child in (at / "children").read_text().split()]
        end = os.pidfd_open(reader)
        try:
            server.process.kill()
            assert select.select([end], [], [], PATIENCE_S)[0]
        finally:
            os.close(end)


def test_the_process_is_set_for_it(tmp_path: Path) -> None:
    model = "models: {settings: {factory: 'nets.py:settings', example: [[1]], dtype: int8}}\n"
    with process(tmp_path, model) as server:
        server.until("^ready$")
        assert server.infer("settings", 0).json()["outputs"][0]["data"] == [True] * 3


def test_a_server_is_ready_when_its_models_are(tmp_path: Path) -> None:
    path = files(tmp_path, MODELS)

    async def codes(server: Server, *paths: str) -> list[int]:
        base = f"http://127.0.0.1:{server.ports['http']}"
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=PATIENCE_S) as client:
            return [(await client.get(path)).status_code for path in paths]

    async def watch() -> None:
        paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/same/ready", "/v2/models/same")
        server = Server(load_config(path), say=lambda line: None)
        await server.start()
        try:
            assert await codes(server, *paths) == [200, 503, 503, 503]
            assert await server.load()
            assert await codes(server, *paths) == [200, 200, 200, 200]
            assert await server.service.drained(0)
            assert await codes(server, *paths) == [200, 503, 503, 200]
        finally:
            await server.stop()

    asyncio.run(watch())


def test_a_model_that_cannot_be_loaded_does_not_keep_the_others_from_being_served(tmp_path: Path) -> None:
    with serving(tmp_path, MODELS + "  broken: {factory: 'nets.py:broken', example: [[1]]}\n") as running:
        assert "  broken is not ready: RuntimeError: the weights are not there" in running.said
        assert "ready" not in running.said
        assert running.client.get("/v2/health/live").status_code == 200
        assert running.client.get("/v2/health/ready").status_code == 503
        assert running.client.get("/v2/models/same/ready").status_code == 200
        assert running.infer("same", tensor([3.0])).json()["outputs"][0]["data"] == [3.0]
        refused = running.infer("broken", tensor([3.0]))
        assert refused.status_code == 503
        assert "the weights are not there" in refused.json()["error"]
        rows = {row["name"]: row for row in running.client.post("/v2/repository/index").json()}
        assert (rows["broken"]["state"], rows["broken"]["reason"]) == (
            "UNAVAILABLE",
            "RuntimeError: the weights are not there",
        )
        assert running.client.post("/v2/repository/models/broken/unload").status_code == 200
        assert running.client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("config", "options", "code", "said"),
    [
        ("models: {a: {program: x, queu: 1}}\n", (), 2, "yaml:3: models.a.queu: unknown key; did you mean 'queue'?"),
        ("models: {a: {program: x}}\n", ("--host", "0.0.0.0"), 2, "host: 0.0.0.0 can be reached from other machines"),
        ("security: {token_file: none}\n" + MODELS, (), 2, "cannot read the token from"),
        ("security: {token_file: nets.py}\n" + MODELS, (), 2, "nets.py holds no token"),
        ("security: {tls: {certificate: none, key: none}}\n" + MODELS, (), 2, "security.tls cannot be used"),
        (MODELS, ("--device", "tpu:0"), 1, "tpu:0"),
        (MODELS, ("--policy", "none"), 1, "none"),
        ("models: {a: {program: none.miriam}}\n", (), 1, "no model could be loaded"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_ends_with_a_code_and_a_reason(
    config: str, options: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["serve", str(files(tmp_path, config)), *options])
    assert done.exit_code == code, done.output
    assert said in done.output
    assert (done.stderr == "") == ("no model" in said)


@pytest.mark.parametrize("which", ["http", "grpc", "metrics"])
def test_a_port_that_is_taken_is_named_with_the_way_out(which: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["serve", str(files(tmp_path, MODELS)), f"--{which}-port", port])
    assert done.exit_code == 1
    assert f":{port}" in done.stderr
    assert f"ports.{which} chooses another port" in done.stderr


def test_a_name_with_several_addresses_is_served_on_one_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def several(host: str, *others: Any, **more: Any) -> list[Any]:
        # The second one is for examples in books, and no machine has it (RFC 5737).
        hosts = ["127.0.0.1", "192.0.2.1", "127.0.0.2"] if host == "localhost" else [host]
        return [found for one in hosts for found in resolve(one, *others, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    with serving(tmp_path, "host: localhost\n" + MODELS) as running:
        for host in ("127.0.0.1", "127.0.0.2"):
            headers = {"Host": "localhost"}
            url = f"http://{host}:{running.server.ports['http']}/v2/health/ready"
            assert httpx.get(url, headers=headers, trust_env=False).status_code == 200
        config = load_config(running.path, {"ports.http": running.server.ports["http"]})
        with pytest.raises(MiriamError, match=r"ports\.http chooses another port"):
            running.run(started(config))


async def started(config: ServerConfig) -> None:
    server = Server(config)
    try:
        await server.start()
    finally:
        await server.stop()


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S)


def certificate(folder: Path, name: str, *more: str) -> None:
    openssl(
        folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *more,
    )  # fmt: skip


def test_only_clients_with_a_certificate_are_heard(tmp_path: Path) -> None:
    try:
        certificate(tmp_path, "server", "-addext", "subjectAltName=IP:127.0.0.1")
        certificate(tmp_path, "client")
        certificate(tmp_path, "stranger")
    except FileNotFoundError:
        pytest.skip("there is no openssl to make certificates with")
    tls = "security: {tls: {certificate: server.pem, key: server.key, clients: client.pem}}\n"
    with serving(tmp_path, tls + MODELS, "https", verify=context(tmp_path, "client")) as running:
        assert running.infer("same", tensor([3.0])).status_code == 200
        url = f"https://127.0.0.1:{running.address[1]}/v2/health/live"
        for who in (None, "stranger"):
            with pytest.raises(httpx.TransportError):
                httpx.get(url, verify=context(tmp_path, who), trust_env=False)
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"), trust_env=False)


def context(folder: Path, who: str | None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(folder / "server.pem"))
    if who is not None:
        made.load_cert_chain(folder / f"{who}.pem", folder / f"{who}.key")
    return made


def test_the_end_of_the_runtime_is_not_hidden(tmp_path: Path) -> None:
    with serving(tmp_path, MODELS) as running:
        running.server.service.runtime.close()
        assert running.client.get("/v2/health/live").status_code == 503
        assert running.client.get("/v2/health/ready").status_code == 503
        assert running.infer("same", tensor([3.0])).status_code == 503
