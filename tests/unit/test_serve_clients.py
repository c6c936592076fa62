"""Clients that people use, against a server: tritonclient in its four forms, the protocol's own stubs, curl, and
perf_analyzer where it is there."""

from __future__ import annotations

import asyncio
import csv
import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import served_models
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from serving import MODELS, WAIT_S, Serving
from tritonclient.utils import InferenceServerException

CLIENTS = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}
DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "BF16",
}  # fmt: skip
TYPED = {
    "typed": {"factory": "served_models:echo", "example": [[2, 2]] * len(DATATYPES), "dtype": list(DATATYPES)},
}
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
INTS = np.arange(4, dtype=np.int32)
ONE = np.ones(1, np.float32)
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with Serving(MODELS | TYPED) as serving:
        yield serving


class Client:
    """One of the four clients; every call of it is awaited, also those that block."""

    def __init__(self, name: str, serving: Serving) -> None:
        self.kind: ModuleType = CLIENTS[name]
        self.http = name.startswith("http")
        self._address = serving.http if self.http else serving.grpc

    async def __aenter__(self) -> Client:
        self._client = self.kind.InferenceServerClient(self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await _awaited(self._client.close())

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **others: Any) -> Any:
            return await _awaited(getattr(self._client, name)(*arguments, **others))

        return call

    async def json(self, name: str, *arguments: Any, **others: Any) -> Any:
        """An answer that is a document, in the form that HTTP gives it."""
        return await getattr(self, name)(*arguments, **others, **({} if self.http else {"as_json": True}))

    def given(self, name: str, array: Array, **others: Any) -> Any:
        found = self.kind.InferInput(name, array.shape, DATATYPES[array.dtype.name])
        return found.set_data_from_numpy(array, **others)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


Do = Callable[[Client], Awaitable[Any]]


@pytest.fixture(params=sorted(CLIENTS))
def ask(request: pytest.FixtureRequest, serving: Serving) -> Callable[[Do], Any]:
    """Runs something with a client."""

    async def run(do: Do) -> Any:
        async with Client(request.param, serving) as client:
            return await do(client)

    return lambda do: asyncio.run(run(do))


def test_health_and_what_there_is(ask: Callable[[Do], Any]) -> None:
    async def do(client: Client) -> None:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("both", "1")
        assert not await client.is_model_ready("none")
        assert (await client.json("get_server_metadata"))["name"] == "miriam"
        metadata = await client.json("get_model_metadata", "both")
        assert [(t["name"], t["datatype"], list(map(int, t["shape"]))) for t in metadata["inputs"]] == [
            ("a", "INT32", [4]),
            ("b", "INT32", [4]),
        ]
        config = await client.json("get_model_config", "both")
        config = config.get("config", config)
        assert [tensor["data_type"] for tensor in config["input"]] == ["TYPE_INT32", "TYPE_INT32"]
        index = await client.json("get_model_repository_index")
        assert {m["name"] for m in (index if client.http else index["models"])} == MODELS.keys() | TYPED.keys()

    ask(do)


def test_statistics_rise(ask: Callable[[Do], Any]) -> None:
    async def do(client: Client) -> None:
        async def read() -> tuple[int, int, int]:
            (found,) = (await client.json("get_inference_statistics", "double"))["model_stats"]
            success = found["inference_stats"].get("success", {})
            return int(found.get("inference_count", 0)), int(success.get("count", 0)), int(success.get("ns", 0))

        before = await read()
        for _ in range(2):
            await client.infer("double", [client.given("x", X)])
        after = await read()
        assert (after[0], after[1]) == (before[0] + 2, before[1] + 2)
        assert after[2] > before[2]

    ask(do)


def test_every_datatype_comes_back_as_it_went(ask: Callable[[Do], Any]) -> None:
    def values(name: str) -> Array:
        if name == "bool":
            return np.array([[True, False], [False, True]])
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        if dtype.kind in "iu":
            return np.array([[np.iinfo(dtype).min, 0], [1, np.iinfo(dtype).max]], dtype)
        return np.array([[0, -1.5], [np.inf, 3]], dtype)

    async def do(client: Client) -> None:
        arrays = [values(name) for name in DATATYPES]
        answer = await client.infer("typed", [client.given(f"input{i}", array) for i, array in enumerate(arrays)])
        for i, array in enumerate(arrays):
            found = answer.as_numpy(f"output{i}")
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tobytes() == array.tobytes()

    ask(do)


@pytest.mark.parametrize("name", ["http", "http.aio"])
@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True, None])
def test_json_and_bytes_in_every_mixture(serving: Serving, name: str, binary_in: bool, binary_out: bool | None) -> None:
    async def do() -> None:
        async with Client(name, serving) as client:
            inputs = [client.given("a", INTS, binary_data=binary_in), client.given("b", INTS + 1)]
            outputs = (
                [client.kind.InferRequestedOutput("difference", binary_data=binary_out)]
                if binary_out is not None
                else None
            )
            answer = await client.infer("both", inputs, outputs=outputs, request_id="seven")
            assert answer.as_numpy("difference").tolist() == [-1] * 4
            head = answer.get_response()
            assert head["id"] == "seven"
            assert [tensor["name"] for tensor in head["outputs"]] == (
                ["difference"] if outputs else ["sum", "difference"]
            )
            assert ("data" in head["outputs"][0]) == (binary_out is False)

    asyncio.run(do())


def test_what_is_wrong_is_said(ask: Callable[[Do], Any]) -> None:
    async def do(client: Client) -> None:
        async def refused(model: str, *inputs: Any, **others: Any) -> tuple[str, str]:
            with pytest.raises(InferenceServerException) as caught:
                await client.infer(model, list(inputs), **others)
            return caught.value.status(), caught.value.message()

        invalid, missing, failed = (
            ("400", "404", "500")
            if client.http
            else ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND", "StatusCode.INTERNAL")
        )
        wrong = partial(client.given, "x")
        status, text = await refused("double", wrong(X.T.copy()))
        assert (status, "3x2" in text, "2x3" in text) == (invalid, True, True)
        status, text = await refused("double", wrong(X.astype(np.float64)))
        assert (status, "FP32" in text, "FP64" in text) == (invalid, True, True)
        status, text = await refused("double", client.given("z", X))
        assert (status, "'x'" in text) == (invalid, True)
        status, text = await refused("both", client.given("a", INTS))
        assert (status, "'b'" in text) == (invalid, True)
        status, text = await refused("none", wrong(X))
        assert (status, "'none'" in text) == (missing, True)
        status, text = await refused("double", wrong(X), model_version="9")
        assert (status, "'9'" in text) == (missing, True)
        status, text = await refused("double", wrong(X), outputs=[client.kind.InferRequestedOutput("z")])
        assert (status, "'z'" in text) == (invalid, True)
        status, text = await refused("raising", wrong(-ONE))
        assert (status, "less than nothing" in text) == (failed, True)
        assert (await client.infer("double", [wrong(X)])).as_numpy("y").tolist() == (2 * X).tolist()

    ask(do)


def test_a_request_chooses_its_level_by_priority(ask: Callable[[Do], Any], serving: Serving) -> None:
    def levels() -> dict[int, int]:
        return {level: found.count for level, found in serving.statistics("both").levels.items()}

    async def do(client: Client) -> None:
        # The model lets a request choose 2, 1 or 0, and is at 1 itself; what is below goes to the lowest.
        for priority, level in ((0, 1), (1, 2), (2, 1), (3, 0), (9, 0)):
            before = levels()
            await client.infer("both", [client.given("a", INTS), client.given("b", INTS)], priority=priority)
            assert levels() == before | {level: before.get(level, 0) + 1}

    ask(do)


def test_a_request_says_how_long_it_waits(ask: Callable[[Do], Any], serving: Serving) -> None:
    before = serving.statistics("gated").timed_out

    async def do(client: Client) -> None:
        async with Client("grpc.aio", serving) as other:
            with served_models.shut():
                first = asyncio.create_task(other.infer("gated", [other.given("x", ONE)]))
                while not served_models.ENTERED.acquire(blocking=False):
                    await asyncio.sleep(0.001)
                with pytest.raises(InferenceServerException) as caught:
                    await client.infer("gated", [client.given("x", ONE)], timeout=20_000)
            assert caught.value.status() == ("504" if client.http else "StatusCode.DEADLINE_EXCEEDED")
            assert (await first).as_numpy("y").tolist() == [1]

    ask(do)
    assert serving.statistics("gated").timed_out == before + 1


def test_models_come_and_go(ask: Callable[[Do], Any]) -> None:
    async def do(client: Client) -> None:
        await client.unload_model("double")
        assert not await client.is_model_ready("double")
        with pytest.raises(InferenceServerException, match="double"):
            await client.infer("double", [client.given("x", X)])
        await client.load_model("double")
        assert await client.is_model_ready("double")
        assert (await client.infer("double", [client.given("x", X)])).as_numpy("y").tolist() == (2 * X).tolist()
        with pytest.raises(InferenceServerException, match="none"):
            await client.load_model("none")

    ask(do)


def test_many_at_a_time_each_get_their_own_answer(ask: Callable[[Do], Any]) -> None:
    async def do(client: Client) -> None:
        answers = await asyncio.gather(
            *(client.infer("double", [client.given("x", X + i)], request_id=str(i)) for i in range(24))
        )
        for i, answer in enumerate(answers):
            head = answer.get_response()
            assert (head["id"] if client.http else head.id) == str(i)
            assert np.array_equal(answer.as_numpy("y"), 2 * (X + i))

    ask(do)


def test_a_stream_and_calls_that_answer_later(serving: Serving) -> None:
    found: SimpleQueue[tuple[Any, Any]] = SimpleQueue()

    def tell(result: Any, error: Any) -> None:
        found.put((result, error))

    def one(value: float) -> Any:
        return tritonclient.grpc.InferInput("x", X.shape, "FP32").set_data_from_numpy(X + np.float32(value))

    with tritonclient.grpc.InferenceServerClient(serving.grpc) as client:
        client.async_infer("double", [one(1)], tell)
        result, error = found.get(timeout=WAIT_S)
        assert error is None
        assert np.array_equal(result.as_numpy("y"), 2 * (X + 1))

        client.start_stream(tell)
        for i in range(5):
            client.async_stream_infer("none" if i == 3 else "double", [one(i)], request_id=str(i))
        answers = [found.get(timeout=WAIT_S) for _ in range(5)]
        client.stop_stream()
    assert ["there is no model" in str(error) for _, error in answers] == [False, False, False, True, False]
    for i, (result, error) in enumerate(answers):
        if error is None:
            assert result.get_response().id == str(i)
            assert np.array_equal(result.as_numpy("y"), 2 * (X + i))


def test_the_stubs_of_the_protocol_itself(serving: Serving) -> None:
    # In a process of its own: its messages have the names of Triton's, and one process has room for one of the two.
    script = """
        import sys, grpc
        from open_inference.grpc import protocol as pb
        from open_inference.grpc.service import GRPCInferenceServiceStub

        with grpc.insecure_channel(sys.argv[1]) as channel:
            stub = GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(pb.ServerLiveRequest()).live
            assert stub.ServerReady(pb.ServerReadyRequest()).ready
            assert stub.ModelReady(pb.ModelReadyRequest(name="both")).ready
            assert "statistics" in stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
            metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="both"))
            request = pb.ModelInferRequest(model_name="both", id="seven")
            for tensor in metadata.inputs:
                given = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
                given.contents.int_contents.extend(range(4))
            answer = stub.ModelInfer(request)
            assert answer.id == "seven"
            found = [int.from_bytes(answer.raw_output_contents[0][i : i + 4], "little") for i in range(0, 16, 4)]
            assert found == [0, 2, 4, 6], found
            try:
                stub.ModelInfer(pb.ModelInferRequest(model_name="none"))
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND
            else:
                raise AssertionError("an unknown model answered")
        print("well")
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), serving.grpc], capture_output=True, text=True, timeout=WAIT_S
    )
    assert (ran.returncode, ran.stdout) == (0, "well\n"), ran.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl(serving: Serving, tmp_path: Path) -> None:
    def curl(path: str, *options: str) -> tuple[int, Any]:
        ran = subprocess.run(
            ["curl", "-sS", "--noproxy", "*", "-m", str(WAIT_S), "-w", "\n%{http_code}", *options,
             f"http://{serving.http}{path}"], capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        body, _, status = ran.stdout.rpartition("\n")
        return int(status), json.loads(body) if body else None

    assert curl("/v2/health/ready") == (200, None)
    assert curl("/v2/models/both")[1]["outputs"][0] == {"name": "sum", "datatype": "INT32", "shape": [4]}
    tensors = [{"name": name, "datatype": "INT32", "shape": [4], "data": [1, 2, 3, 4]} for name in "ab"]
    body = tmp_path / "request.json"
    body.write_text(json.dumps({"inputs": tensors}))
    status, answer = curl("/v2/models/both/infer", "-H", "Content-Type: application/json", "-d", f"@{body}")
    assert (status, answer["outputs"][0]["data"]) == (200, [2, 4, 6, 8])
    status, answer = curl("/v2/models/both/infer", "-d", "{")
    assert (status, list(answer)) == (400, ["error"])


def _perf_analyzer() -> str | None:
    return os.environ.get("MIRIAM_PERF_ANALYZER") or shutil.which("perf_analyzer")


@pytest.mark.skipif(
    _perf_analyzer() is None,
    reason="there is no perf_analyzer here (its wheel needs glibc 2.38): MIRIAM_PERF_ANALYZER can name one",
)
@pytest.mark.parametrize("protocol", ["http", "grpc", "stream"])
def test_perf_analyzer_measures(serving: Serving, tmp_path: Path, protocol: str) -> None:
    address = serving.http if protocol == "http" else serving.grpc
    how = {"http": ["-i", "http"], "grpc": ["-i", "grpc", "--request-parameter", "priority:1:int"],
           "stream": ["-i", "grpc", "--streaming", "--async"]}[protocol]  # fmt: skip
    table = tmp_path / "table.csv"
    before = serving.statistics("both").answered
    ran = subprocess.run(
        [_perf_analyzer(), "-m", "both", "-u", address, *how, "--concurrency-range", "2", "--percentile", "99",
         "--measurement-mode", "count_windows", "--measurement-request-count", "200", "--max-trials", "3",
         "--stability-percentage", "100000", "-f", str(table)],
        capture_output=True, text=True, timeout=4 * WAIT_S,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
    assert float(row["p99 latency"]) >= float(row["p50 latency"]) > 0
    assert serving.statistics("both").answered >= before + 200
