"""What may happen to a server and what must not follow from it: models that are swapped, break or hang, clients that
go, clocks that step, memory that is not there, processes that are killed.
"""

import asyncio
import itertools
import json
import logging
import os
import signal
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from serve_support import PATIENCE_S, Running, gate, serving, tensor
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from miriam.load.over_grpc import GrpcSender
from miriam.load.over_http import HttpSender
from miriam.load.sender import Asked, UnansweredError
from miriam.load.server import Server as Address

OWN = """
import serve_support

def made():  # of values above 1 each waits until a test lets it go; the example has none
    def run(a):
        if a[0] > 1:
            serve_support.gate.pass_through()
        return a + {plus}
    return run

def slow():
    if {plus} != 10:
        serve_support.gate.pass_through()
    return lambda a: a + {plus}

def raising():
    def run(a):
        if a[0] > 1:
            raise (MemoryError, SystemExit, RecursionError, OSError)[a[0] - 2]("it cannot be done")
        return a + {plus}
    return run
"""
MODELS = "models:\n" + "".join(
    f"  {name}: {{factory: 'own.py:{factory}', example: [[1]], dtype: int8, {more}}}\n"
    for name, factory, more in (
        ("swapped", "made", "queue: 4, priority: [0, 1]"),
        ("slow", "slow", ""),
        ("raising", "raising", "queue: 8"),
        ("urgent", "raising", "criticality: critical"),
    )
)
WIDE = "  wide: {factory: 'nets.py:same', example: [[20000]]}\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "own.py").write_text(OWN.format(plus=10))
    with serving(folder, MODELS + WIDE) as running:
        assert running.said[-1] == "ready", running.said
        yield running


@pytest.fixture
def own(running: Running) -> Iterator[Path]:
    """The file of the models, to be changed; as it was in the end."""
    path, config = running.path.parent / "own.py", running.path.read_text()
    yield path
    path.write_text(OWN.format(plus=10))
    running.path.write_text(config)
    for model in ("swapped", "slow"):
        assert load(running, model).status_code == 200


def load(running: Running, model: str) -> httpx.Response:
    return running.client.post(f"/v2/repository/models/{model}/load")


def ask(running: Running, model: str, value: int, **others: Any) -> int | str:
    """The answer, or what was said instead of one."""
    answer = running.infer(model, tensor([value], "INT8"), **others)
    said = answer.json()
    if answer.status_code == 200:
        return int(said["outputs"][0]["data"][0])
    return f"{answer.status_code} {said['error']}"


def wait_for(happened: Callable[[], object]) -> None:
    """Look until it is so."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if happened():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen")


def state(running: Running, model: str) -> str:
    rows = running.client.post("/v2/repository/index").json()
    return str(next(row["state"] for row in rows if row["name"] == model))


def statistics(running: Running, model: str) -> Any:
    return running.server.service.statistics(model)[model]


# Models that are swapped while they serve


def test_a_model_that_is_swapped_answers_what_was_asked_of_it_before(running: Running, own: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, running, "swapped", 2)
        gate.wait_for_one()
        second = pool.submit(ask, running, "swapped", 3)
        wait_for(lambda: statistics(running, "swapped").queue_depth == 1)
        own.write_text(OWN.format(plus=20))
        loading = pool.submit(load, running, "swapped")
        wait_for(lambda: state(running, "swapped") == "LOADING")
        assert running.client.get("/v2/health/ready").status_code == 503
        assert ask(running, "swapped", 0) == "503 model 'swapped' is loading"
        gate.let_one_go()
        gate.wait_for_one()
        gate.let_one_go()
        assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (12, 13)
        assert loading.result(PATIENCE_S).status_code == 200
    assert ask(running, "swapped", 0) == 20
    assert running.client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("what, is this", "SyntaxError"),
        ("", "has no function 'made'"),
        ("def made():\n raise RuntimeError('the weights are not there')", "the weights are not there"),
        ("def made():\n raise MemoryError('nor is there room')", "nor is there room"),
        ("import sys\ndef made():\n sys.exit('I go')", "I go"),
        ("import sys\ndef made():\n return lambda a: sys.exit('we both go')", "we both go"),
        ("def made():\n return lambda a: a + undefined", "'undefined' is not defined"),
        ("def made():\n return lambda a: None", "swapped"),
        ("def made():\n return 7", "is a int"),
    ],
)
def test_one_that_cannot_be_loaded_changes_nothing(running: Running, own: Path, text: str, said: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, running, "swapped", 2)
        gate.wait_for_one()
        own.write_text(text)
        running.path.write_text(running.path.read_text().replace("queue: 4, priority: [0, 1]", "queue: 1"))
        refused = load(running, "swapped")
        assert refused.status_code == 400
        assert said in refused.json()["error"]
        assert (state(running, "swapped"), waiting.done()) == ("READY", False)
        gate.let_one_go()
        assert waiting.result(PATIENCE_S) == 12
    levels = statistics(running, "swapped").levels
    answered = levels[1].count if 1 in levels else 0
    assert ask(running, "swapped", 0, parameters={"priority": 1}) == 10
    assert statistics(running, "swapped").levels[1].count == answered + 1, "its settings are what they were"
    config = running.client.get("/v2/models/swapped/config").json()
    assert config["parameters"]["max_queue_size"] == {"string_value": "4"}
    assert running.client.get("/v2/health/ready").status_code == 200


def test_a_client_that_goes_while_a_model_is_loaded_leaves_it_loaded(running: Running, own: Path) -> None:
    own.write_text(OWN.format(plus=20))
    with grpc.insecure_channel(f"127.0.0.1:{running.server.ports['grpc']}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        loading = stub.RepositoryModelLoad.future(pb.RepositoryModelLoadRequest(model_name="slow"), timeout=PATIENCE_S)
        gate.wait_for_one()
        loading.cancel()
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_S).live  # the server has heard of it
        assert ask(running, "slow", 1) == 11
        gate.let_one_go()
        wait_for(lambda: ask(running, "slow", 1) == 21)
    own.write_text(OWN.format(plus=10))
    assert load(running, "slow").status_code == 200


def test_nobody_waits_for_a_model_that_takes_for_ever_to_load(running: Running, own: Path) -> None:
    own.write_text(OWN.format(plus=20))
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, running, "slow")
        gate.wait_for_one()
        try:
            assert (ask(running, "urgent", 1), ask(running, "slow", 1)) == (11, 11)
            assert load(running, "swapped").status_code == 200
            assert ask(running, "swapped", 1) == 21
            assert not loading.done()
        finally:
            gate.let_one_go()
        assert loading.result(PATIENCE_S).status_code == 200


# Models that raise, and memory


def test_whatever_a_model_raises_is_an_answer_and_nobody_elses_affair(running: Running) -> None:
    before = statistics(running, "raising")
    with ThreadPoolExecutor(8) as pool:
        values = [2, 3, 4, 5, 0] * 4
        found = list(pool.map(lambda value: ask(running, "raising", value), values))
        kinds = {2: "MemoryError", 3: "SystemExit", 4: "RecursionError", 5: "OSError"}
        assert found == [f"500 raising failed: {kinds[v]}: it cannot be done" if v else 10 for v in values]
        assert ask(running, "urgent", 1) == 11
    after = statistics(running, "raising")
    assert (after.failed - before.failed, after.answered - before.answered) == (16, 4)
    assert running.client.get("/v2/health/live").status_code == 200


def test_no_memory_is_taken_for_a_tensor_that_is_not_there(running: Running) -> None:
    large = {"name": "input0", "datatype": "FP32", "shape": [8192, 8192]}  # as many elements as the limits allow
    bodies = [
        {"inputs": [large | {"data": []}]},
        {"inputs": [large | {"parameters": {"binary_data_size": 8192 * 8192 * 4}}]},
        {"inputs": [{"name": "input0", "datatype": "BYTES", "shape": [8192, 8192], "data": ["x"]}]},
    ]
    tracemalloc.start()
    try:
        for body in bodies:
            assert running.client.post("/v2/models/wide/infer", json=body).status_code == 400
        message = pb.ModelInferRequest(model_name="wide", raw_input_contents=[b"1234"])
        message.inputs.add(name="input0", datatype="FP32", shape=[8192, 8192])
        with grpc.insecure_channel(f"127.0.0.1:{running.server.ports['grpc']}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=PATIENCE_S)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16 << 20, "the tensor would take 256 MiB"


# Clients that go


@pytest.mark.parametrize("resets", [False, True])
def test_a_client_that_goes_takes_along_what_it_sent_ahead_and_no_error_is_logged(
    running: Running, caplog: pytest.LogCaptureFixture, resets: bool
) -> None:
    before = statistics(running, "swapped").submitted
    body = json.dumps({"inputs": [tensor([2], "INT8")]}).encode()
    head = b"POST /v2/models/swapped/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with caplog.at_level(logging.WARNING):
        client = running.connect()
        client.sendall((head + body) * 3)
        gate.wait_for_one()
        if resets:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        wait_for(lambda: not running.server.service.busy)
        gate.let_one_go()
        wait_for(lambda: statistics(running, "swapped").running == 0)
        assert ask(running, "swapped", 0) == 10
    assert caplog.records == []
    assert statistics(running, "swapped").submitted == before + 2


def test_a_request_that_a_client_cancelled_has_no_part_in_its_next_one(running: Running) -> None:
    host, port = running.address

    async def cancel_one() -> list[bytes]:
        http = HttpSender(Address.of(f"http://{host}:{port}"))
        asked = [http.serialise(Asked("swapped", {"input0": ("INT8", np.int8([value]))})) for value in (0, 2)]
        await http.send(asked[0], PATIENCE_S, lambda: None)
        held = asyncio.create_task(http.send(asked[1], PATIENCE_S, lambda: None))
        await asyncio.to_thread(gate.wait_for_one)
        held.cancel()
        await asyncio.wait((held,))
        sent = asyncio.Event()
        following = asyncio.create_task(http.send(asked[0], PATIENCE_S, sent.set))
        await sent.wait()
        gate.let_one_go()
        answers = [await following] + [await http.send(asked[0], PATIENCE_S, lambda: None) for _ in range(2)]
        await http.close()
        return [http.outputs(answer)[0][1] for answer in answers]

    assert asyncio.run(cancel_one()) == [b"\x0a"] * 3


def test_a_load_generator_tells_a_server_that_refuses_from_one_that_is_not_there(running: Running) -> None:
    assert running.client.post("/v2/repository/models/raising/unload").status_code == 200

    async def reasons(port: int) -> list[str]:
        found = []
        for kind, scheme, at in (
            (HttpSender, "http", running.server.ports["http"] if port else 0),
            (GrpcSender, "grpc", port),
        ):
            sender: Any = kind(Address.of(f"{scheme}://127.0.0.1:{at or 1}"))
            asked = sender.serialise(Asked("raising", {"input0": ("INT8", np.int8([0]))}))
            with pytest.raises(UnansweredError) as caught:
                await sender.send(asked, PATIENCE_S, lambda: None)
            found.append(str(caught.value.reason))
            await sender.close()
        return found

    try:
        assert asyncio.run(reasons(running.server.ports["grpc"])) == ["unavailable"] * 2
        assert asyncio.run(reasons(0)) == ["connection"] * 2
    finally:
        assert load(running, "raising").status_code == 200


def test_nobody_waits_for_a_large_message_of_a_lower_level(running: Running) -> None:
    values = np.arange(20000, dtype=np.float32)
    large = pb.ModelInferRequest(model_name="wide")
    large.inputs.add(name="input0", datatype="FP32", shape=[20000]).contents.fp32_contents.extend(values.tolist())
    urgent = pb.ModelInferRequest(model_name="urgent", raw_input_contents=[b"\x01"])
    urgent.inputs.add(name="input0", datatype="INT8", shape=[1])
    others = readers()
    with grpc.insecure_channel(f"127.0.0.1:{running.server.ports['grpc']}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ModelInfer(large, timeout=PATIENCE_S).raw_output_contents[0] == values.tobytes()
        [reader] = readers() - others
        os.kill(reader, signal.SIGSTOP)
        try:
            waiting = stub.ModelInfer.future(large, timeout=PATIENCE_S)
            wait_for(lambda: running.server.service.busy)
            for _ in range(3):
                assert stub.ModelInfer(urgent, timeout=PATIENCE_S).raw_output_contents == [b"\x0b"]
                assert ask(running, "urgent", 1) == 11
            assert not waiting.done()
        finally:
            os.kill(reader, signal.SIGCONT)
        assert waiting.result(PATIENCE_S).raw_output_contents[0] == values.tobytes()


def readers() -> set[int]:
    """Processes of this one that read large bodies."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # threads and processes end meanwhile
            for child in (task / "children").read_text().split():
                if b"miriam.serve.aside" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.add(int(child))
    return found


# Clocks


def test_a_clock_that_is_set_changes_no_duration_and_no_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, now_ns = time.time, time.time_ns
    steps = itertools.cycle([0, 10**9, -(10**9), 3600])
    monkeypatch.setattr(time, "time", lambda: now_s() + next(steps))
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 10**9 * next(steps))
    monkeypatch.setattr("miriam.trace.recorder.time_ns", time.time_ns)
    (tmp_path / "own.py").write_text(OWN.format(plus=10))
    models = "".join(
        f"  {name}: {{factory: 'own.py:made', example: [[1]], dtype: int8, {more}}}\n"
        for name, more in (("patient", "deadline_ms: 1.e+8, timeout_ms: 1.e+8"), ("hurried", "timeout_ms: 30"))
    )
    with serving(tmp_path, f"models:\n{models}") as running, ThreadPoolExecutor(1) as pool:
        assert [ask(running, "patient", 1) for _ in range(10)] == [11] * 10
        held = pool.submit(ask, running, "patient", 2)
        gate.wait_for_one()
        try:
            assert str(ask(running, "hurried", 1)).startswith("504 ")
            assert running.client.get("/v2/trace").status_code == 200  # it does not wait, either
        finally:
            gate.let_one_go()
        assert held.result(PATIENCE_S) == 12
        found = statistics(running, "patient")
        assert (found.answered, found.timed_out, found.deadline_missed) == (11, 0, 0)
        limit_us = 2e6 * PATIENCE_S
        assert all(0 < us < limit_us for us in found.latencies_us)
        assert 0 <= found.queue_sum_us + found.compute_sum_us <= found.latency_sum_us + 1 < 11 * limit_us
        for path in ("/v2/trace", "/live.json", "/", "/v2/models/stats"):
            assert running.client.get(path).status_code == 200
