"""The protocol over HTTP, against a server on a port."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serve_support import PATIENCE_S, Running, gate, models, serving, tensor

from miriam.serve.errors import Status
from miriam.serve.http import CODES
from miriam.serve.tensors import DATATYPES, to_binary, to_values

LIMITS = (
    "limits: {body_bytes: 4MiB, json_bytes: 2MiB, json_values: 200000, tensor_elements: 300000, total_bytes: 6MiB}\n"
)
NAMES = {name: str(dtype) for name, dtype in DATATYPES.items() if name != "BYTES"}
MODELS = "models:\n" + "".join(
    f"  {name}: {{factory: 'nets.py:{factory}', example: {example}, {more}}}\n"
    for name, factory, example, more in [
        ("add", "add", [[2, 3], [2, 3]], "dtype: int32, inputs: [a, b], outputs: [sum, difference], "
         "criticality: critical, priority: [0, 2]"),
        ("inverse", "nothing_in_json", [[2]], ""),
        ("torch", "torch_is_there", [[1]], ""),
        ("gated", "gated", [[1]], "queue: 1, dtype: int8"),
        ("hurried", "gated", [[1]], "timeout_ms: 30, dtype: int8"),
        ("raising", "raising", [[1]], "dtype: int8"),
        ("large", "same", [[150000]], ""),
        *((f"same_{kind}", "same", [[2, 3]], f"dtype: {dtype}") for kind, dtype in NAMES.items()),
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("served"), LIMITS + MODELS) as running:
        assert running.said[-1] == "ready", running.said
        yield running


def error(response: httpx.Response, code: int) -> str:
    assert response.status_code == code, response.text
    assert response.headers["content-type"] == "application/json"
    said = response.json()
    assert list(said) == ["error"]
    return str(said["error"])


def array_of(datatype: str) -> Any:
    return np.array([0, 1, 0, 1, 1, 0]).astype(DATATYPES[datatype]).reshape(2, 3)


# What there is


def test_the_server_says_what_it_is(running: Running) -> None:
    assert running.client.get("/v2/health/live").status_code == 200
    assert running.client.get("/v2/health/ready").status_code == 200
    about = running.client.get("/v2").json()
    assert about["name"] == "miriam"
    assert "binary_tensor_data" in about["extensions"]


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_a_model_says_what_it_is(running: Running, version: str) -> None:
    at = f"/v2/models/add{version}"
    assert running.client.get(f"{at}/ready").status_code == 200
    about = running.client.get(at).json()
    assert about["inputs"] == [{"name": n, "datatype": "INT32", "shape": [2, 3]} for n in ("a", "b")]
    assert [output["name"] for output in about["outputs"]] == ["sum", "difference"]
    assert about["versions"] == ["1"]
    config = running.client.get(f"{at}/config").json()
    assert config["input"][0] == {"name": "a", "data_type": "TYPE_INT32", "dims": [2, 3]}
    assert config["max_batch_size"] == 0
    said = {key: value["string_value"] for key, value in config["parameters"].items()}
    assert (said["criticality"], said["priority_levels"], said["default_priority_level"]) == ("1", "3", "2")


def test_what_was_counted_rises(running: Running) -> None:
    def count(path: str) -> int:
        rows = running.client.get(path).json()["model_stats"]
        return int(next(row for row in rows if row["name"] == "raising")["inference_count"])

    for path in ("/v2/models/raising/stats", "/v2/models/stats"):
        before = count(path)
        assert running.infer("raising", tensor([0], "INT8")).status_code == 200
        assert count(path) == before + 1


def test_the_index_has_every_model(running: Running) -> None:
    for rows in (
        running.client.post("/v2/repository/index", json={"ready": True}).json(),
        running.client.post("/v2/repository/index").json(),
        running.client.get("/v2/repository/index").json(),
    ):
        assert {row["name"] for row in rows} == set(running.server.service.repository)
        assert {(row["state"], row["reason"], row["version"]) for row in rows} == {("READY", "", "1")}


def test_metrics_have_a_port_of_their_own(running: Running) -> None:
    port = running.server.ports["metrics"]
    page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    assert page.headers["content-type"].startswith("text/plain")
    assert 'miriam_model_ready{model="add",version="1"} 1.0' in page.text
    assert running.client.get("/metrics").status_code == 404


def test_the_document_tells_the_truth_of_addresses(running: Running) -> None:
    document = running.client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        at = path.replace("{model}", "torch").replace("{version}", "1")
        for method in {"get", "post"} & operations.keys():
            if path.endswith("load"):
                continue
            answer = running.client.request(method, at)
            assert str(answer.status_code) in operations[method]["responses"], (method, at, answer.text)
        for method in {"get", "post", "put", "delete"} - operations.keys():
            assert running.client.request(method, at).status_code == 405, (method, at)


# Tensors


def test_numbers_come_back_in_json(running: Running) -> None:
    a, b = tensor([1, 2, 3, 4, 5, 6], "INT32", "a", [2, 3]), tensor([[1, 1, 1], [2, 2, 2]], "INT32", "b", [2, 3])
    answer = running.infer("add", b, a, id="seven").json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("add", "1", "seven")
    assert answer["outputs"] == [
        {"name": "sum", "datatype": "INT32", "shape": [2, 3], "data": [2, 3, 4, 6, 7, 8]},
        {"name": "difference", "datatype": "INT32", "shape": [2, 3], "data": [0, 1, 2, 2, 3, 4]},
    ]
    wanted = running.infer("add", a, b, outputs=[{"name": "difference"}]).json()["outputs"]
    assert [output["name"] for output in wanted] == ["difference"]


def binary(running: Running, model: str, datatype: str, array: Any, **others: Any) -> httpx.Response:
    data = bytes(to_binary(array))
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "input0",
                    "datatype": datatype,
                    "shape": array.shape,
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            **others,
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return running.client.post(f"/v2/models/{model}/infer", content=head + data, headers=headers)


@pytest.mark.parametrize("datatype", NAMES)
@pytest.mark.parametrize("how", [{"parameters": {"binary_data_output": True}},
                                 {"outputs": [{"name": "output0", "parameters": {"binary_data": True}}]}])  # fmt: skip
def test_every_datatype_goes_in_and_out_as_bytes(running: Running, datatype: str, how: dict[str, Any]) -> None:
    array = array_of(datatype)
    answer = binary(running, f"same_{datatype}", datatype, array, **how)
    size = int(answer.headers["inference-header-content-length"])
    [output] = json.loads(answer.content[:size])["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype, [2, 3])
    assert output["parameters"]["binary_data_size"] == len(answer.content) - size
    assert answer.content[size:] == bytes(to_binary(array))


@pytest.mark.parametrize("datatype", NAMES)
def test_every_datatype_goes_in_and_out_as_json(running: Running, datatype: str) -> None:
    values = np.asarray(to_values("x", array_of(datatype))).tolist()
    [output] = running.infer(f"same_{datatype}", tensor(values, datatype, shape=[2, 3])).json()["outputs"]
    assert output["data"] == values


def test_an_output_that_json_cannot_say_comes_as_bytes(running: Running) -> None:
    inputs = tensor([1.0, -1.0])
    assert "binary_data" in error(running.infer("inverse", inputs), 500)
    answer = running.infer("inverse", inputs, parameters={"binary_data_output": True})
    size = int(answer.headers["inference-header-content-length"])
    assert np.frombuffer(answer.content[size:], np.float32).tolist() == [np.inf, -np.inf]


def test_a_large_tensor_comes_back_from_json_and_from_bytes(running: Running) -> None:
    array = np.arange(150000, dtype=np.float32)
    [output] = running.infer("large", tensor(array.tolist())).json()["outputs"]
    assert output["data"] == array.tolist()
    answer = binary(running, "large", "FP32", array, parameters={"binary_data_output": True})
    assert answer.content.endswith(array.tobytes())


# What is refused

ONE = tensor([2], "INT8")


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        ("raising", b"", "no JSON"),
        ("raising", b"{", "no JSON"),
        ("raising", b"[]", "no JSON object"),
        ("raising", b"{}", "'inputs' is no list"),
        ("raising", b'{"inputs":{}}', "'inputs' is no list"),
        ("raising", b'{"inputs":[1]}', "an input has no 'name'"),
        ("raising", b'{"inputs":[]}', "takes the inputs 'input0'; given: none"),
        ("raising", b'{"inputs":[{"name":"input0","datatype":"INT8","shape":[1],"data":[NaN]}]}', "no JSON"),
        ("raising", b'{"inputs":[{"name":"input0","datatype":"INT8","shape":[1],"data":[1e999]}]}', "no JSON"),
        ("raising", b'{"inputs":[{"name":"input0","datatype":"INT8","shape":[1]' + b"[" * 5000, "no JSON"),
        ("raising", b'{"inputs":' + b"[" * 3000 + b"]" * 3000 + b"}", "no JSON"),
        ("raising", {"inputs": [ONE, ONE]}, "an input twice"),
        ("raising", {"inputs": [ONE | {"name": "x"}]}, "given: 'x'"),
        ("raising", {"inputs": [ONE | {"datatype": "UINT8"}]}, "is INT8, not UINT8"),
        ("raising", {"inputs": [ONE | {"datatype": "BYTES", "data": ["a"]}]}, "is INT8, not BYTES"),
        ("raising", {"inputs": [ONE | {"shape": [1, 1]}]}, "input0"),
        ("raising", {"inputs": [ONE | {"shape": [-1]}]}, "whole numbers from 0"),
        ("raising", {"inputs": [ONE | {"shape": "1"}]}, "'shape' is no list"),
        ("raising", {"inputs": [ONE | {"data": None}]}, "data is no list"),
        ("raising", {"inputs": [{k: v for k, v in ONE.items() if k != "data"}]}, "neither data nor binary_data_size"),
        ("raising", {"inputs": [ONE | {"parameters": {"binary_data_size": 1}}]}, "give one of them"),
        ("raising", {"inputs": [ONE | {"parameters": 1}]}, "is no object"),
        ("raising", {"inputs": [ONE | {"parameters": {"shared_memory_region": "r"}}]}, "byte_size is None"),
        ("raising", {"inputs": [ONE], "outputs": [{"name": "y"}]}, "no output 'y'; its outputs: 'output0'"),
        ("raising", {"inputs": [ONE], "outputs": [{"name": "output0"}] * 2}, "an output twice"),
        ("raising", {"inputs": [ONE], "outputs": [{"name": "output0", "parameters": {"classification": 3}}]}, "labels"),
        ("raising", {"inputs": [ONE], "outputs": [{"name": "output0", "parameters": {"binary_data": 1}}]}, "true nor"),
        ("raising", {"inputs": [ONE], "parameters": {"priority": -1}}, "priority is -1"),
        ("raising", {"inputs": [ONE], "parameters": {"priority": "1"}}, "not a whole number"),
        ("raising", {"inputs": [ONE], "parameters": {"timeout": -5}}, "timeout is -5"),
        ("raising", {"inputs": [ONE], "parameters": {"timeout": 1.5}}, "not a whole number"),
        ("raising", {"inputs": [ONE], "parameters": {"sequence_id": 4}}, "leave sequence_id out"),
        ("raising", {"inputs": [ONE], "id": 7}, "has no 'id', which is a text"),
    ],
)  # fmt: skip
def test_a_body_that_is_wrong_is_refused_with_the_reason(running: Running, model: str, body: Any, said: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = running.client.post(f"/v2/models/{model}/infer", content=content)
    assert said in error(answer, 400)


@pytest.mark.parametrize(
    ("length", "size", "data", "said"),
    [
        ("-1", 1, b"\1", "Inference-Header-Content-Length"),
        ("1e3", 1, b"\1", "Inference-Header-Content-Length"),
        ("٣", 1, b"\1", "Inference-Header-Content-Length"),
        ("9" * 30, 1, b"\1", "Inference-Header-Content-Length"),
        ("999", 1, b"\1", "Inference-Header-Content-Length"),
        (None, -1, b"\1", "binary_data_size is -1"),
        (None, 2**70, b"\1", "binary_data_size"),
        (None, 1.5, b"\1", "binary_data_size"),
        (None, True, b"\1", "binary_data_size"),
        (None, "1", b"\1", "binary_data_size"),
        (None, 2, b"\1", "binary_data_size is 2, 1 bytes are there"),
        (None, 0, b"", "takes 1 bytes, 0 were given"),
        (None, 1, b"\1\1", "1 bytes are left after the last input"),
    ],
)
def test_bytes_that_do_not_add_up_are_refused(
    running: Running, length: str | None, size: object, data: bytes, said: str
) -> None:
    given = {"name": "input0", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [given]}).encode()
    headers = {"Inference-Header-Content-Length": (length or str(len(head))).encode()}
    answer = running.client.post("/v2/models/raising/infer", content=head + data, headers=headers)
    assert said in error(answer, 400)


def test_a_whole_number_is_one_however_it_is_written(running: Running) -> None:
    one = {"name": "input0", "datatype": "INT8", "shape": [1.0]}
    head = json.dumps({
        "inputs": [one | {"parameters": {"binary_data_size": 1.0}}], "parameters": {"priority": 1.0, "timeout": 1e9}
    }).encode()  # fmt: skip
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert running.client.post("/v2/models/raising/infer", content=head + b"\0", headers=headers).status_code == 200


def test_what_is_not_there_is_not_found(running: Running) -> None:
    for path in ("/v2/models/none", "/v2/models/add/versions/2", "/v2/models/none/ready", "/nothing", "/v2/", "/v2//"):
        assert error(running.client.get(path), 404)
    assert error(running.infer("none", ONE), 404).startswith("there is no model 'none'; this server has: add, ")
    assert running.client.get("/v2/models/..%2f..%2fetc%2fpasswd").status_code == 404


def test_a_method_that_is_not_taken_is_refused_with_those_that_are(running: Running) -> None:
    answer = running.client.get("/v2/models/add/infer")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    page = running.client.post("/")
    assert (page.status_code, page.json()) == (405, {"error": "/ takes GET and HEAD"})
    assert running.client.head("/v2").status_code == 200


def test_a_compressed_body_is_refused(running: Running) -> None:
    answer = running.client.post("/v2/models/raising/infer", content=b"", headers={"Content-Encoding": "gzip"})
    assert "Content-Encoding" in error(answer, 400)


def test_every_status_has_a_code() -> None:
    assert set(CODES) == set(Status)


# Faults of models and of time


def test_a_model_that_raises_fails_its_own_request_only(running: Running) -> None:
    assert "this model does not like its input" in error(running.infer("raising", ONE), 500)
    assert running.infer("raising", tensor([0], "INT8")).status_code == 200
    assert running.client.get("/v2/health/ready").status_code == 200


def test_more_than_the_queue_holds_is_refused(running: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.infer, "gated", ONE)
        gate.wait_for_one()
        second = pool.submit(running.infer, "gated", ONE)
        wait_for(lambda: running.server.service.statistics("gated")["gated"].queue_depth == 1)
        try:
            assert "wait already" in error(running.infer("gated", ONE), 429)
        finally:
            gate.let_one_go()
            gate.let_one_go()
        assert [first.result(PATIENCE_S).status_code, second.result(PATIENCE_S).status_code] == [200, 200]
        gate.wait_for_one()


def test_a_request_that_waits_too_long_is_told_so(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.infer, "gated", ONE)
        gate.wait_for_one()
        try:
            for others in ({}, {"parameters": {"timeout": 20000}}):
                assert error(running.infer("hurried", ONE, **others), 504)
        finally:
            gate.let_one_go()
        assert first.result(PATIENCE_S).status_code == 200


def test_a_client_that_goes_takes_its_request_along(running: Running) -> None:
    statistics = lambda: running.server.service.statistics("gated")["gated"]  # noqa: E731
    cancelled = statistics().cancelled
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.infer, "gated", ONE)
        gate.wait_for_one()
        try:
            client = running.connect()
            body = json.dumps({"inputs": [ONE]}).encode()
            client.sendall(b"POST /v2/models/gated/infer HTTP/1.1\r\nHost: localhost\r\n"
                           b"Content-Length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
            wait_for(lambda: statistics().queue_depth == 1)
            client.close()
            wait_for(lambda: statistics().cancelled == cancelled + 1)
            assert statistics().queue_depth == 0
        finally:
            gate.let_one_go()
        assert first.result(PATIENCE_S).status_code == 200


def wait_for(happened: Any) -> None:
    """Look until it is so."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if happened():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen")


def test_nobody_waits_for_a_large_body_of_a_lower_level(running: Running) -> None:
    body = tensor([0.5] * 150000)
    assert running.infer("large", body).status_code == 200  # its process is there now
    [reader] = readers()
    os.kill(reader, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            large = pool.submit(running.infer, "large", body)
            wait_for(lambda: running.server.service.busy)
            a, b = (tensor([1] * 6, "INT32", name, [2, 3]) for name in "ab")
            padding = {"parameters": {"note": "x" * 100_000}}  # a large body of a critical model
            for others in ({}, padding):
                assert running.infer("add", a, b, **others).status_code == 200
            assert not large.done()
            os.kill(reader, signal.SIGCONT)
            assert large.result(PATIENCE_S).status_code == 200
    finally:
        os.kill(reader, signal.SIGCONT)


def test_a_reader_that_dies_fails_one_request_and_comes_back(running: Running) -> None:
    body = tensor([0.5] * 150000)
    assert running.infer("large", body).status_code == 200
    for reader in readers():
        os.kill(reader, signal.SIGKILL)
    codes = [running.infer("large", body).status_code for _ in range(2)]
    assert codes[1] == 200
    assert codes[0] in (200, 500)


def readers() -> list[int]:
    """Processes of this one that read large bodies."""
    children = [
        int(child)
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
    ]  # fmt: skip
    return [child for child in children if b"miriam.serve.aside" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize(("priority", "level"), [(0, 1), (1, 2), (2, 1), (3, 0), (4, 0), (2**40, 0)])
def test_a_request_chooses_a_level_within_what_its_model_allows(running: Running, priority: int, level: int) -> None:
    def counts(model: str) -> dict[int, int]:
        counted = running.server.service.statistics(model)[model].levels
        return {n: counted[n].count if n in counted else 0 for n in range(4)}

    before = counts("add")
    a, b = (tensor([1] * 6, "INT32", name, [2, 3]) for name in "ab")
    assert running.infer("add", a, b, parameters={"priority": priority}).status_code == 200
    assert counts("add") == before | {level: before[level] + 1}
    before = counts("large")  # it lets nobody choose
    data = tensor([0.0] * 150000)
    assert running.infer("large", data, parameters={"priority": priority}).status_code == 200
    assert counts("large") == before | {0: before[0] + 1}


# Limits


def test_a_body_that_says_it_is_too_long_is_not_read(running: Running) -> None:
    client = running.connect()
    client.sendall(b"POST /v2/models/add/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n")
    assert b" 413 " in client.recv(65536).split(b"\r\n")[0]


def test_a_body_that_turns_out_too_long_is_given_up(running: Running) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(5):
            yield b" " * (1 << 20)

    assert "body_bytes" in error(running.client.post("/v2/models/add/infer", content=pieces()), 413)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (b'{"inputs":[' + b" " * (3 << 20) + b"]}", "json_bytes"),
        (b'{"inputs":[' + b"0," * 200_001 + b"0]}", "json_values"),
        (b'{"inputs":' + b"[],{}," * 100_000 + b"0}", "json_values"),
        (b'{"inputs":[{"name":"input0","datatype":"FP32","shape":[300001],"data":[]}]}', "tensor_elements"),
        (
            b'{"inputs":[{"name":"input0","datatype":"FP32","shape":[4294967296,4294967296],"data":[]}]}',
            "tensor_elements",
        ),
    ],
)
def test_more_than_may_be_asked_is_refused(running: Running, inputs: bytes, said: str) -> None:
    assert said in error(running.client.post("/v2/models/large/infer", content=inputs), 413)


def test_all_clients_together_hold_no_more_than_there_is_room_for(running: Running) -> None:
    piece = b" " * (5 << 19)
    head = b"POST /v2/models/add/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (len(piece) + 1)
    first, second, third = (running.connect() for _ in range(3))
    memory = running.server.http.memory
    for held, client in enumerate((first, second), 1):
        client.sendall(head + piece)  # all but the last byte
        wait_for(lambda held=held: memory.held == held * len(piece))
    third.sendall(head + piece)
    assert b" 429 " in third.recv(65536).split(b"\r\n")[0]
    for client in (first, second):
        client.sendall(b" ")
        assert b" 413 " in client.recv(65536).split(b"\r\n")[0]  # of JSON it may have less
    wait_for(lambda: memory.held == 0)
    assert running.infer("raising", tensor([0], "INT8")).status_code == 200


def status_of(client: socket.socket) -> int:
    """The status of the one answer that comes before the end of the connection."""
    client.settimeout(PATIENCE_S)
    answer = b""
    try:
        while piece := client.recv(65536):
            answer += piece
    except ConnectionResetError:
        pass
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 400_000,
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"v" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"v" * 400_000,
    ],
)
def test_headers_without_end_are_refused(running: Running, sent: bytes) -> None:
    client = running.connect()
    with suppress(OSError):  # it closed before it had read all
        client.sendall(sent)
    assert status_of(client) == 431


def test_trailers_and_framing_without_end_are_refused(running: Running) -> None:
    head = b"POST /v2/models/add/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    for rest in (b"1;" + b"x" * 400_000, b"1\r\n{\r\n0\r\nX: " + b"x" * 400_000):
        client = running.connect()
        with suppress(OSError):
            client.sendall(head + rest)
        assert status_of(client) in (400, 431)


HEAD = b"POST /v2/models/raising/infer HTTP/1.1\r\nHost: localhost\r\n"
HIDDEN = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
        HEAD + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + HIDDEN,
        HEAD + b"Content-Length: +5\r\n\r\n" + HIDDEN,
        HEAD + b"Content-Length: -5\r\n\r\n" + HIDDEN,
        HEAD + b"Content-Length: 5, 5\r\n\r\n" + HIDDEN,
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n" + HIDDEN,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + HIDDEN,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n" + HIDDEN,
        HEAD + b"Content-Length: 0\nX: y\r\n\r\n" + HIDDEN[:-2] + b"\0\r\n",
        HEAD + b" Content-Length: 0\r\n\r\n" + HIDDEN,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_a_request_whose_end_is_not_clear_gets_one_answer_and_the_end(running: Running, sent: bytes) -> None:
    client = running.connect()
    client.sendall(sent)
    client.shutdown(socket.SHUT_WR)
    assert status_of(client) == 400


def test_requests_that_come_at_once_are_answered_in_their_order(running: Running) -> None:
    body = json.dumps({"inputs": [tensor([0], "INT8")], "id": "first"}).encode()
    client = running.connect()
    client.sendall(
        HEAD
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
        + HIDDEN.replace(b"\r\n\r\n", b"\r\n")
        + b"Connection: close\r\n\r\n"
    )
    answer = b""
    while piece := client.recv(65536):
        answer += piece
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b'"id":"first"') < answer.index(b'"extensions"')


@pytest.mark.parametrize("large", [True, False])
def test_a_request_may_begin_right_behind_much_that_was_there_before(running: Running, large: bool) -> None:
    body = json.dumps({"inputs": [tensor([0], "INT8")], "parameters": {"note": "x" * 50_000}}).encode()
    ahead = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body if large else HIDDEN * 2000
    client, go_on, stopped = running.connect(), threading.Event(), threading.Event()
    running.loop.call_soon_threadsafe(lambda: (stopped.set(), go_on.wait(PATIENCE_S)))
    assert stopped.wait(PATIENCE_S)
    client.sendall(ahead + HIDDEN[:-2])  # all of it is there when the server looks
    go_on.set()
    client.settimeout(PATIENCE_S)
    answer = b""
    while b"HTTP/1.1 " not in answer:
        answer += client.recv(65536)
    client.sendall(b"Connection: close\r\n\r\n")
    while piece := client.recv(1 << 20):
        answer += piece
    assert answer.count(b"HTTP/1.1 200 OK") == (2 if large else 2001)


def test_a_client_that_asks_first_is_told_to_go_on_or_not(running: Running) -> None:
    body = json.dumps({"inputs": [tensor([0], "INT8")]}).encode()
    for size, said in ((len(body), b"HTTP/1.1 100 Continue"), (1 << 30, b"HTTP/1.1 413 ")):
        client = running.connect()
        client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % size)
        assert client.recv(65536).startswith(said)


# Who may ask


def test_a_page_of_another_site_cannot_ask(running: Running) -> None:
    host = f"127.0.0.1:{running.address[1]}"
    for headers in ({"Host": "evil.example:8000"}, {"Host": "127.0.0.1.evil.example"}):
        assert error(running.client.get("/v2", headers=headers), 403)
    for origin in ("https://evil.example", "null", f"http://{host}.evil.example"):
        answer = running.client.post("/v2/repository/models/torch/unload", headers={"Origin": origin})
        assert error(answer, 403)
    assert running.client.post("/v2/repository/index", headers={"Origin": f"http://{host}"}).status_code == 200
    assert running.client.get("/v2", headers={"Host": "localhost:1"}).status_code == 200
    assert running.client.get("/v2", headers={"Host": "[::1]:1"}).status_code == 200


# Models come and go


def test_models_come_and_go(running: Running, request: pytest.FixtureRequest) -> None:
    post, name = running.client.post, "same_INT8"
    one = tensor([1] * 6, "INT8", shape=[2, 3])
    assert (
        post(f"/v2/repository/models/{name}/unload", json={"parameters": {"unload_dependents": False}}).status_code
        == 200
    )
    assert "is unavailable (unloaded)" in error(running.infer(name, one), 503)
    assert running.client.get(f"/v2/models/{name}/ready").status_code == 503
    assert running.client.get("/v2/health/ready").status_code == 200  # nobody wants it
    rows = post("/v2/repository/index", json={"ready": True}).json()
    assert name not in [row["name"] for row in rows]
    assert post(f"/v2/repository/models/{name}/load").status_code == 200
    assert running.infer(name, one).status_code == 200
    assert error(post("/v2/repository/models/none/load"), 404)
    assert error(post("/v2/repository/models/none/unload"), 404)
    assert "give no parameter" in error(
        post(f"/v2/repository/models/{name}/load", json={"parameters": {"config": "{}"}}), 400
    )
    for wrong in (b'{"parameters": false}', b"[]", b"{"):
        assert error(post(f"/v2/repository/models/{name}/load", content=wrong), 400)
    assert error(post("/v2/repository/index", content=b'{"ready": 1}'), 400)
    assert error(post("/v2/repository/index", content=b"x" * 100_000), 413)


def test_a_model_is_loaded_as_the_files_are_now(running: Running) -> None:
    nets, config = running.path.parent / "nets.py", running.path
    was, had = nets.read_text("utf-8"), config.read_text("utf-8")
    post = running.client.post
    ask = lambda: running.infer("same_FP32", tensor([1.0] * 6, shape=[2, 3])).json()["outputs"][0]["data"][0]  # noqa: E731
    try:
        nets.write_text(was.replace("a.copy()", "a + a"), "utf-8")
        assert ask() == 1.0
        assert post("/v2/repository/models/same_FP32/load").status_code == 200
        assert ask() == 2.0
        nets.write_text("what, is this", "utf-8")
        assert "SyntaxError" in error(post("/v2/repository/models/same_FP32/load"), 400)
        assert ask() == 2.0  # the one that was there goes on
        config.write_text(had + "  more: {program: a.miriam, queu: 1}\n", "utf-8")
        assert "did you mean 'queue'" in error(post("/v2/repository/models/same_FP32/load"), 400)
        nets.write_text(was, "utf-8")
        config.write_text(had + "  more: {factory: 'nets.py:same', example: [[1]]}\n", "utf-8")
        assert post("/v2/repository/models/more/load").status_code == 200
        assert running.infer("more", tensor([4.0])).json()["outputs"][0]["data"] == [4.0]
        assert post("/v2/repository/models/more/unload").status_code == 200
    finally:
        nets.write_text(was, "utf-8")
        config.write_text(had, "utf-8")
        post("/v2/repository/models/same_FP32/load")


@pytest.mark.parametrize("spared", [False, True])
def test_a_model_that_goes_leaves_no_memory_behind(tmp_path: Path, spared: bool) -> None:
    with serving(tmp_path, "models: {circular: {factory: 'nets.py:circular', example: [[1]]}}\n") as running:
        if spared:
            running.server.service.repository.spare()
        for how in ("load", "unload"):
            [*_, model] = models
            assert model() is not None
            assert running.client.post(f"/v2/repository/models/circular/{how}").status_code == 200
            assert model() is None


# A server that is short of everything


def test_slow_clients_and_too_many_are_let_go(tmp_path: Path) -> None:
    model = "models: {same: {factory: 'nets.py:same', example: [[200000]]}}\n"
    with serving(tmp_path, "limits: {request_s: 0.2, idle_s: 0.4, connections: 4}\n" + model) as running:
        idle, head, body, reader = (running.connect() for _ in range(4))
        head.sendall(b"POST /v2/models/same/infer HTTP/1.1\r\nHo")
        body.sendall(b"POST /v2/models/same/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        data = np.zeros(200000, np.float32).tobytes()
        json_ = json.dumps({
            "inputs": [{"name": "input0", "datatype": "FP32", "shape": [200000],
                        "parameters": {"binary_data_size": len(data)}}],
            "parameters": {"binary_data_output": True},
        }).encode()  # fmt: skip
        assert running.connect().recv(1) == b""  # the fifth
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asked = b"POST /v2/models/same/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % (
            len(json_) + len(data)
        )
        asked += b"Inference-Header-Content-Length: %d\r\n\r\n" % len(json_) + json_ + data
        try:
            for _ in range(40):  # and takes none of the answers
                reader.sendall(asked)
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
        assert status_of(head) == 408
        assert status_of(body) == 408
        assert idle.recv(1) == b""
        wait_for(lambda: running.client.get("/v2/health/live").status_code == 200)


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    token = "0123456789abcdef-secret"
    (tmp_path / "token").write_text(f"{token}\n", "ascii")
    model = "models: {same: {factory: 'nets.py:same', example: [[1]]}}\n"
    with serving(tmp_path, "security: {token_file: token}\n" + model) as running:
        get, metrics = running.client.get, f"http://127.0.0.1:{running.server.ports['metrics']}/metrics"
        assert get("/v2/health/ready").status_code == 200
        wrong: list[str | bytes] = [
            "", "Bearer", token, f"Basic {token}", f"Bearer {token[:-1]}", f"Bearer {token}x", b"Bearer \xff\xfe",
            f"Digest {token}",
        ]  # fmt: skip
        for given in wrong:
            headers: Any = {"Authorization": given} if given else {}
            answer = get("/v2", headers=headers)
            assert error(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert httpx.get(metrics, headers=headers, trust_env=False).status_code == 401
        right = {"Authorization": f"Bearer {token}"}
        assert get("/v2", headers=right).status_code == 200
        assert get("/v2", headers=right | {"Host": "gpu.example"}).status_code == 200
        assert get("/v2", auth=("me", token)).status_code == 200
        assert httpx.get(metrics, headers=right, trust_env=False).status_code == 200
