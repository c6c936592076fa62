"""Servers that are told to end, or killed, under load; what is left of a profile store whose writer was killed."""

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_support import PATIENCE_S

import miriam
from miriam import zoo
from miriam.profile import Counters, LaunchProfile
from miriam.store import ChainedProfiles, ProfileStore

NETS = """
import numpy as np

def slow():
    def run(x):
        for _ in range(200):
            x = np.sqrt(x * x)
        return x
    return [run, run, lambda x: x + np.float32(1)]
"""
CLIENTS = 6


class Server:
    """`miriam serve` in a process of its own, on ports that it chose or on these."""

    def __init__(self, folder: Path, ports: tuple[int, int, int] = (0, 0, 0)) -> None:
        (folder / "nets.py").write_text(NETS, "utf-8")
        config = folder / "serve.yaml"
        config.write_text(
            "device: cpu\nports: {{http: {}, grpc: {}, metrics: {}}}\n"
            "models: {{slow: {{factory: 'nets.py:slow', example: [[64]]}}}}\n".format(*ports), "utf-8",
        )  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "miriam", "serve", str(config)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = ""
        assert self.process.stdout is not None
        while not said.endswith("ready\n") or said.endswith("is ready\n"):
            line = self.process.stdout.readline()
            assert line, (said, self.process.stderr and self.process.stderr.read())
            said += line
        http_, grpc, metrics = map(int, re.findall(r":(\d+)(?:/metrics)?$", said, re.M))
        self.ports = http_, grpc, metrics

    def end(self) -> tuple[int, str]:
        """Exit code, and what it said on standard error."""
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, err


@contextmanager
def server(folder: Path, ports: tuple[int, int, int] = (0, 0, 0)) -> Iterator[Server]:
    started = Server(folder, ports)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate(timeout=PATIENCE_S)


def ask_until_it_ends(port: int, first: int, begun: threading.Semaphore) -> Counter[str]:
    """Ask one question after another, each another one, until nobody listens; what became of them."""
    found: Counter[str] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    for number in range(first, first + 1_000_000):
        values = [float(number % 100_000 + i) for i in range(64)]
        tensor = {"name": "input0", "datatype": "FP32", "shape": [64], "data": values}
        try:
            connection.request("POST", "/v2/models/slow/infer", json.dumps({"inputs": [tensor]}))
            answer = connection.getresponse()
            said = json.loads(answer.read())
        except (ConnectionError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, ConnectionRefusedError):
                return found
            found["half" if isinstance(error, http.client.IncompleteRead) else "closed"] += 1
            continue
        if answer.status == 200:
            assert said["outputs"][0]["data"] == [value + 1 for value in values]
        else:
            assert (answer.status, list(said)) == (503, ["error"]), said
        found[str(answer.status)] += 1
        begun.release()
    raise AssertionError("it never ended")


@contextmanager
def under_load(port: int) -> Iterator[list[Any]]:
    """Clients that ask until the server ends; each has had answers when the block begins."""
    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask_until_it_ends, port, 1000 * i, begun) for i in range(CLIENTS)]
        for _ in range(5 * CLIENTS):
            assert begun.acquire(timeout=PATIENCE_S)
        yield asking


def test_a_server_that_is_told_to_end_under_load_owes_nobody_an_answer(tmp_path: Path) -> None:
    with server(tmp_path) as one:
        with under_load(one.ports[0]) as asking:
            one.process.send_signal(signal.SIGTERM)
            ends = [client.result(PATIENCE_S) for client in asking]
        assert one.end() == (0, "")
    assert all(end["200"] >= 1 and end["closed"] <= 2 and not end["half"] for end in ends), ends


def test_one_that_is_killed_under_load_can_begin_again_at_once_where_it_was(tmp_path: Path) -> None:
    with server(tmp_path) as one:
        with under_load(one.ports[0]) as asking:
            one.process.kill()
            ends = [client.result(PATIENCE_S) for client in asking]
        assert one.end()[0] == -signal.SIGKILL
    assert all(end["200"] >= 1 and end["closed"] <= 2 and not end["503"] for end in ends), ends
    with server(tmp_path, one.ports) as again:
        assert again.ports == one.ports
        with under_load(one.ports[0]) as asking:
            again.process.send_signal(signal.SIGINT)
            assert all(client.result(PATIENCE_S)["200"] >= 1 for client in asking)
        assert again.end() == (0, "")


WRITER = """
import itertools, sys
from miriam.profile import Counters, LaunchProfile
from miriam.store import ProfileStore

with ProfileStore(sys.argv[1]) as store:
    for i in itertools.count():
        profile = LaunchProfile({8: i + 0.5}, 1, Counters(*[1.0] * 6), measured=True)
        store.put_launch("h200", (f"{sys.argv[2]}{i}", (i + 1, 1, 1)), profile)
        print(i, flush=True)
"""


@contextmanager
def writer(path: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_a_profile_store_survives_its_writer_and_those_beside_it_go_on(tmp_path: Path) -> None:
    """Two runtimes read the store that two processes write, of which one is killed in the midst of it."""
    path = tmp_path / "profiles.db"
    mine = LaunchProfile({132: 7.0}, 4, Counters(*[2.0] * 6), measured=True)
    with warnings.catch_warnings(), ProfileStore(path) as store, ProfileStore(path) as other:
        warnings.simplefilter("error")  # a store that is set aside warns
        sources = [ChainedProfiles(one, zoo.profiles()) for one in (store, other)]
        runtimes = [miriam.Runtime("sim:orin", store=source) for source in sources]
        try:
            with writer(path, "a") as killed, writer(path, "b") as alive:
                assert killed.stdout is not None
                assert alive.stdout is not None
                written = [int(killed.stdout.readline()) for _ in range(40)]
                tasks = [rt.load("zoo:squeezenet-b1") for rt in runtimes]
                killed.kill()
                written += map(int, killed.stdout.read().split())
                more = [int(alive.stdout.readline()) for _ in range(len(written) + 40)]
                store.put_launch("h200", ("mine", (1, 1, 1)), mine)
                for task in tasks:
                    assert not task(np.zeros(task.inputs[0].shape, task.inputs[0].dtype)).any()
            for name, numbers in (("a", written), ("b", more)):
                for i in numbers:
                    found = other.launch("h200", (f"{name}{i}", (i + 1, 1, 1)))
                    assert found is not None
                    assert found.times_us == {8: i + 0.5}
            assert other.launch("h200", ("mine", (1, 1, 1))) == mine
        finally:
            for rt in runtimes:
                rt.close()
        with ProfileStore(path) as third:
            assert third.launch("h200", ("mine", (1, 1, 1))) == mine
    assert not list(tmp_path.glob("*.set-aside-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_while_it_loads_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("import time\n\ndef made():\n    time.sleep(3600)\n")
    config = tmp_path / "serve.yaml"
    config.write_text(
        "device: cpu\nports: {http: 0, grpc: 0, metrics: 0}\nmodels: {m: {factory: 'nets.py:made', example: [[1]]}}\n"
    )
    command = [sys.executable, "-m", "miriam", "serve", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            while "metrics" not in (line := process.stdout.readline()):
                assert line
            process.send_signal(number)
            _, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (process.returncode, err) == (0 if number is signal.SIGTERM else -number, "")
