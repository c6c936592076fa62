"""The server over gRPC, asked with the published stubs: what each call answers, and what a client cannot do to it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import served_models
from serving import MODELS, WAIT_S, Serving
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from miriam.errors import MiriamError
from miriam.serve.config import Limits
from miriam.serve.grpc import GrpcServer


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with Serving(limits={"body_bytes": 1 << 20, "json_bytes": 1 << 20}) as serving:
        yield serving


@pytest.fixture
def stub(serving: Serving) -> Iterator[Any]:
    with grpc.insecure_channel(serving.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture
def gate() -> Iterator[None]:
    """Shut: `gated` begins and does not end."""
    with served_models.shut():
        yield


def request(model: str, *arrays: np.ndarray[Any, Any], names: str = "x", **others: Any) -> Any:
    message = pb.ModelInferRequest(model_name=model, **others)
    for name, array in zip(names.split(), arrays, strict=True):
        datatype = {"float32": "FP32", "int32": "INT32"}[array.dtype.name]
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


X = np.arange(6, dtype=np.float32).reshape(2, 3)
ONE = np.ones(1, np.float32)


def refused(call: Callable[..., Any], *arguments: Any, **others: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=WAIT_S, **others)
    return caught.value.code(), caught.value.details()


def enter(stub: Any, count: int, **others: Any) -> list[Any]:
    """Calls of `gated`, of which the first has begun and the others wait."""
    calls = [stub.ModelInfer.future(request("gated", ONE), timeout=WAIT_S, **others)]
    assert served_models.ENTERED.acquire(timeout=WAIT_S)
    return calls + [stub.ModelInfer.future(request("gated", ONE), timeout=WAIT_S, **others) for _ in range(count - 1)]


def counted(serving: Serving, until: Callable[[Any], bool]) -> Any:
    """Statistics of `gated`, once they are so."""
    for _ in range(WAIT_S * 100):
        found = serving.statistics("gated")
        if until(found):
            return found
        served_models.ENTERED.acquire(timeout=0.01)
    raise AssertionError(found)


def test_it_says_what_it_is(stub: Any) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest()).name == "miriam"
    index = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    assert {(model.name, model.version, model.state) for model in index} == {(name, "1", "READY") for name in MODELS}


def test_it_says_what_its_models_are(stub: Any) -> None:
    assert stub.ModelReady(pb.ModelReadyRequest(name="both")).ready
    assert not stub.ModelReady(pb.ModelReadyRequest(name="none")).ready
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="both"))
    assert metadata.versions == ["1"]
    assert [(t.name, t.datatype, t.shape) for t in metadata.inputs] == [("a", "INT32", [4]), ("b", "INT32", [4])]
    assert [t.name for t in metadata.outputs] == ["sum", "difference"]
    config = stub.ModelConfig(pb.ModelConfigRequest(name="both")).config
    assert config.max_batch_size == 0
    assert [t.dims for t in config.input] == [[4], [4]]
    said = {name: value.string_value for name, value in config.parameters.items()}
    assert (said["criticality"], said["priority_levels"], said["max_queue_size"]) == ("1", "3", "64")


def test_statistics_rise(stub: Any) -> None:
    def read() -> Any:
        (found,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="double")).model_stats
        return found

    before = read()
    for _ in range(3):
        stub.ModelInfer(request("double", X))
    after = read()
    assert after.inference_count == after.execution_count == before.inference_count + 3
    stats, earlier = after.inference_stats, before.inference_stats
    assert stats.success.count == earlier.success.count + 3
    assert stats.success.ns > earlier.success.ns
    assert stats.success.ns >= stats.queue.ns + stats.compute_infer.ns - 3e3
    assert after.last_inference >= before.last_inference > 0 or before.inference_count == 0
    assert {found.name for found in stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats} == set(MODELS)


def test_it_answers(stub: Any) -> None:
    answer = stub.ModelInfer(request("double", X, id="seven"))
    assert (answer.model_name, answer.model_version, answer.id) == ("double", "1", "seven")
    (output,), (data,) = answer.outputs, answer.raw_output_contents
    assert (output.name, output.datatype, output.shape) == ("y", "FP32", [2, 3])
    assert data == (2 * X).tobytes()


def test_outputs_come_as_they_are_asked_for(stub: Any) -> None:
    a, b = np.arange(4, dtype=np.int32), np.full(4, 7, np.int32)
    asked = request("both", b, a, names="b a")  # inputs in any order
    asked.outputs.add(name="difference")
    answer = stub.ModelInfer(asked)
    assert [output.name for output in answer.outputs] == ["difference"]
    assert np.frombuffer(answer.raw_output_contents[0], np.int32).tolist() == (a - b).tolist()


def test_typed_contents_large_ones_too() -> None:
    size = 1 << 15  # more than is read on the event loop
    model = {"factory": "served_models:double", "example": [[size]], "inputs": ["x"], "outputs": ["y"]}
    values = np.arange(size, dtype=np.float32)
    message = pb.ModelInferRequest(model_name="large")
    message.inputs.add(name="x", datatype="FP32", shape=[size]).contents.fp32_contents.extend(values.tolist())
    with Serving({"large": model}) as serving, grpc.insecure_channel(serving.grpc) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=WAIT_S)
    assert answer.raw_output_contents[0] == (2 * values).tobytes()


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (request("none", X), "NOT_FOUND", "there is no model 'none'"),
        (request("double", X, model_version="2"), "NOT_FOUND", "has no version '2'"),
        (request("double", X, names="z"), "INVALID_ARGUMENT", "takes the inputs 'x'"),
        (request("double", X, X, names="x x"), "INVALID_ARGUMENT", "an input twice"),
        (request("double", X.astype(np.int32)), "INVALID_ARGUMENT", "is FP32, not INT32"),
        (request("double", X.T.copy()), "INVALID_ARGUMENT", "3x2"),
        (request("double", X, outputs=[{"name": "z"}]), "INVALID_ARGUMENT", "has no output 'z'"),
        (request("double", X, parameters={"priority": {"int64_param": -1}}), "INVALID_ARGUMENT", "priority is -1"),
        (request("double", X, parameters={"timeout": {"int64_param": -1}}), "INVALID_ARGUMENT", "timeout is -1"),
        (request("double", X, parameters={"sequence_id": {"int64_param": 1}}), "UNIMPLEMENTED", "sequence_id"),
        (request("raising", -ONE), "INTERNAL", "less than nothing"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(stub: Any, message: Any, code: str, text: str) -> None:
    found, details = refused(stub.ModelInfer, message)
    assert (found.name, text in details) == (code, True), details


def test_a_model_that_raised_serves_on(stub: Any) -> None:
    refused(stub.ModelInfer, request("raising", -ONE))
    assert stub.ModelInfer(request("raising", ONE)).raw_output_contents[0] == ONE.tobytes()


@pytest.mark.parametrize("name", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_an_unknown_model_is_not_found(stub: Any, name: str) -> None:
    code, _ = refused(getattr(stub, name), getattr(pb, f"{name}Request")(name="none"))
    assert code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "name",
    [
        "CudaSharedMemoryRegister",
        "TraceSetting",
        "LogSettings",
    ],
)
def test_what_is_not_here_says_so(stub: Any, name: str) -> None:
    code, details = refused(getattr(stub, name), getattr(pb, f"{name}Request")())
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "there are no" in details or "there is no" in details or "no settings" in details


def test_models_come_and_go(stub: Any) -> None:
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="double"))
    assert not stub.ModelReady(pb.ModelReadyRequest(name="double")).ready
    assert refused(stub.ModelInfer, request("double", X))[0] is grpc.StatusCode.UNAVAILABLE
    ready = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
    assert "double" not in {model.name for model in ready}
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="double"))
    assert stub.ModelInfer(request("double", X)).raw_output_contents[0] == (2 * X).tobytes()
    unknown = pb.RepositoryModelLoadRequest(model_name="none")
    assert refused(stub.RepositoryModelLoad, unknown)[0] is grpc.StatusCode.NOT_FOUND
    override = pb.RepositoryModelLoadRequest(model_name="double", parameters={"config": {"string_param": "{}"}})
    assert refused(stub.RepositoryModelLoad, override)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_no_more_wait_than_may(serving: Serving, stub: Any, gate: None) -> None:
    calls = enter(stub, 3)  # one runs, two wait
    counted(serving, lambda found: found.queue_depth == 2)
    code, details = refused(stub.ModelInfer, request("gated", ONE))
    assert (code, "2 requests of gated wait" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    served_models.GATE.set()
    assert all(call.result(WAIT_S).outputs for call in calls)


def test_a_request_that_waits_too_long_is_told_so(serving: Serving, stub: Any, gate: None) -> None:
    before = serving.statistics("gated").timed_out
    (first,) = enter(stub, 1)
    short = request("gated", ONE, parameters={"timeout": {"int64_param": 20_000}})
    code, _ = refused(stub.ModelInfer, short)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert serving.statistics("gated").timed_out == before + 1
    served_models.GATE.set()
    assert first.result(WAIT_S).outputs


def test_nothing_waits_beyond_the_clients_deadline(serving: Serving, stub: Any, gate: None) -> None:
    before = serving.statistics("gated")
    (first,) = enter(stub, 1)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request("gated", ONE), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The server's clock and the end of the call race for it: both take it out of the queue.
    found = counted(serving, lambda now: now.timed_out + now.cancelled == before.timed_out + before.cancelled + 1)
    assert found.queue_depth == 0
    served_models.GATE.set()
    assert first.result(WAIT_S).outputs


def test_a_client_that_goes_takes_its_request_along(serving: Serving, stub: Any, gate: None) -> None:
    before = serving.statistics("gated").cancelled
    first, waiting = enter(stub, 2)
    counted(serving, lambda found: found.queue_depth == 1)
    waiting.cancel()
    found = counted(serving, lambda found: found.cancelled == before + 1)
    assert found.queue_depth == 0
    served_models.GATE.set()
    assert first.result(WAIT_S).outputs


def test_what_is_too_large_is_refused_and_nobody_else_notices(stub: Any) -> None:
    message = pb.ModelInferRequest(model_name="double", raw_input_contents=[bytes(2 << 20)])
    assert refused(stub.ModelInfer, message)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    long = (("note", "x" * (1 << 20)),)
    assert refused(stub.ModelInfer, request("double", X), metadata=long)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stub.ModelInfer(request("double", X)).outputs


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 20, b"\x2a\x00" * (1 << 17), b"\x2a\xff\xff\xff\xff\x0f", b"\x0a\x06double" + b"\x3a\x00" * (1 << 17)],
    ids=["noise", "a crowd of inputs", "a length beyond the end", "a crowd of tensors"],
)
def test_a_hostile_message_is_refused(serving: Serving, data: bytes) -> None:
    with grpc.insecure_channel(serving.grpc) as channel:
        send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        code, details = refused(send, data)
        assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}, details
        assert GRPCInferenceServiceStub(channel).ModelInfer(request("double", X)).outputs


def test_a_stream_answers_each_request_in_its_place(stub: Any) -> None:
    final = {"triton_enable_empty_final_response": {"bool_param": True}}
    asked = [request("double", X + i, id=str(i), parameters=final if i % 2 else {}) for i in range(40)]
    asked[7] = request("none", X, id="7")
    answers = list(stub.ModelStreamInfer(iter(asked), timeout=WAIT_S))
    assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(40)]
    assert [i for i, answer in enumerate(answers) if answer.error_message] == [7]
    for i, answer in enumerate(answers):
        if i != 7:
            assert answer.infer_response.raw_output_contents[0] == (2 * (X + i)).tobytes()
            assert ("triton_final_response" in answer.infer_response.parameters) == (i % 2 == 1)


def test_a_message_of_a_stream_that_cannot_be_read_ends_only_itself(serving: Serving) -> None:
    good = request("double", X, id="good").SerializeToString()
    bad = request("double", X, names="z", id="bad").SerializeToString()
    with grpc.insecure_channel(serving.grpc) as channel:
        send = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        answers = list(send(iter([b"\xff" * 20, good, b"\x2a\x00" * (1 << 17), bad, good]), timeout=WAIT_S))
    assert ["takes the inputs" in answer.error_message for answer in answers] == [False, False, False, True, False]
    assert [bool(answer.error_message) for answer in answers] == [True, False, True, True, False]
    assert [answer.infer_response.id for answer in answers] == ["", "good", "", "bad", "good"]
    assert serving.server.http.memory.held == 0


def test_messages_may_be_compressed_and_are_measured_as_they_were_before(serving: Serving) -> None:
    with grpc.insecure_channel(serving.grpc, compression=grpc.Compression.Gzip) as channel:
        stub = GRPCInferenceServiceStub(channel)
        zeros = np.zeros((2, 3), np.float32)
        message = request("double", zeros, id="i" * 10_000)
        assert stub.ModelInfer(message, timeout=WAIT_S).id == message.id
        large = pb.ModelInferRequest(model_name="double", raw_input_contents=[bytes(2 << 20)])  # 2 KiB on the wire
        assert refused(stub.ModelInfer, large)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.ModelInfer(message, timeout=WAIT_S).outputs


def test_a_stream_that_breaks_off_takes_its_requests_along(serving: Serving, stub: Any, gate: None) -> None:
    before = serving.statistics("gated").cancelled
    stream = stub.ModelStreamInfer(iter([request("gated", ONE)] * 3), timeout=WAIT_S)
    counted(serving, lambda found: found.queue_depth == 2)
    stream.cancel()
    counted(serving, lambda found: found.cancelled == before + 2)


def test_who_has_no_token_is_told_nothing(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length\n")
    models = {"double": MODELS["double"]}
    with (
        Serving(models, security={"token_file": str(token)}) as serving,
        grpc.insecure_channel(serving.grpc) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        for metadata in ((), (("authorization", "Bearer a-token-of-other-length"),)):
            code, _ = refused(stub.ModelInfer, request("double", X), metadata=metadata)
            assert code is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.ModelStreamInfer(iter([request("double", X)]), metadata=metadata))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        good = (("authorization", "Bearer a-token-of-some-length"),)
        assert stub.ModelInfer(request("double", X), metadata=good).outputs


def test_who_has_no_certificate_is_not_listened_to(tmp_path: Path) -> None:
    for name in ("server", "client"):
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", f"{tmp_path}/{name}.key", "-out", f"{tmp_path}/{name}.pem"], capture_output=True,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    read = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tls = {
        "certificate": f"{tmp_path}/server.pem",
        "key": f"{tmp_path}/server.key",
        "clients": f"{tmp_path}/client.pem",
    }
    with Serving({"double": MODELS["double"]}, security={"tls": tls}) as serving:
        known = grpc.ssl_channel_credentials(read["server.pem"], read["client.key"], read["client.pem"])
        with grpc.secure_channel(serving.grpc, known) as channel:
            assert GRPCInferenceServiceStub(channel).ModelInfer(request("double", X)).outputs
        unknown = grpc.ssl_channel_credentials(read["server.pem"])
        with grpc.secure_channel(serving.grpc, unknown) as channel:
            code, _ = refused(GRPCInferenceServiceStub(channel).ModelInfer, request("double", X))
            assert code is grpc.StatusCode.UNAVAILABLE


def test_there_are_no_more_connections_than_may_be() -> None:
    own = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel
    with Serving({"double": MODELS["double"]}, limits={"connections": 2}) as serving:
        channels = [grpc.insecure_channel(serving.grpc, options=own) for _ in range(3)]
        stubs = [GRPCInferenceServiceStub(channel) for channel in channels]
        assert all(stub.ModelInfer(request("double", X), timeout=WAIT_S).outputs for stub in stubs[:2])
        assert refused(stubs[2].ModelInfer, request("double", X))[0] is grpc.StatusCode.UNAVAILABLE
        channels[0].close()
        assert stubs[1].ModelInfer(request("double", X), timeout=WAIT_S).outputs
        for channel in channels[1:]:
            channel.close()


def test_a_connection_on_which_nothing_is_said_is_closed() -> None:
    with Serving({"double": MODELS["double"]}, limits={"request_s": 0.2}) as serving:
        host, _, port = serving.grpc.partition(":")
        with socket.create_connection((host, int(port)), WAIT_S) as silent:
            while silent.recv(4096):
                pass
        with grpc.insecure_channel(serving.grpc) as channel:
            assert GRPCInferenceServiceStub(channel).ModelInfer(request("double", X), timeout=WAIT_S).outputs


def test_no_more_calls_are_answered_at_a_time_than_may_be(serving: Serving, gate: None) -> None:
    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, serving.loop).result(WAIT_S)

    async def started() -> tuple[GrpcServer, int]:
        server = GrpcServer(serving.server.service, "127.0.0.1", 0, Limits(), calls=1)
        return server, await server.start()

    server, port = on_loop(started())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        (first,) = enter(stub, 1)
        code, details = refused(stub.ServerLive, pb.ServerLiveRequest())
        assert (code, details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "1 calls are being answered: come back later")
        served_models.GATE.set()
        assert first.result(WAIT_S).outputs
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=WAIT_S).live
    on_loop(server.stop(None))


def test_what_requests_hold_is_counted_for_both_protocols() -> None:
    with (
        Serving({"gated": MODELS["gated"]}, limits={"total_bytes": 500}) as serving,
        grpc.insecure_channel(serving.grpc) as channel,
        ThreadPoolExecutor(1) as aside,
        served_models.shut(),
    ):
        stub = GRPCInferenceServiceStub(channel)
        body = {"id": "i" * 300, "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
        url = f"http://{serving.http}/v2/models/gated/infer"
        held = aside.submit(httpx.post, url, json=body, timeout=WAIT_S)
        assert served_models.ENTERED.acquire(timeout=WAIT_S)
        code, details = refused(stub.ModelInfer, request("gated", ONE, id="i" * 200))
        assert (code, "limits.total_bytes" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        served_models.GATE.set()
        assert held.result(WAIT_S).json()["outputs"]
        assert stub.ModelInfer(request("gated", ONE, id="i" * 200), timeout=WAIT_S).outputs


def test_a_server_that_ends_answers_what_is_open() -> None:
    with (
        Serving({"gated": MODELS["gated"]}) as serving,
        grpc.insecure_channel(serving.grpc) as channel,
        served_models.shut(),
    ):
        stub = GRPCInferenceServiceStub(channel)
        calls = enter(stub, 2)
        counted(serving, lambda found: found.queue_depth == 1)
        ending = asyncio.run_coroutine_threadsafe(serving.server.service.drained(WAIT_S), serving.loop)
        while stub.ServerReady(pb.ServerReadyRequest()).ready:
            pass
        assert refused(stub.ModelInfer, request("gated", ONE))[0] is grpc.StatusCode.UNAVAILABLE
        served_models.GATE.set()
        assert all(call.result(WAIT_S).outputs for call in calls)
        assert ending.result(WAIT_S)


def test_a_port_that_is_taken_is_said_to_be(serving: Serving) -> None:
    async def start() -> None:
        host, _, port = serving.grpc.partition(":")
        await GrpcServer(serving.server.service, host, int(port), Limits()).start()

    with pytest.raises(MiriamError, match=r"ports\.grpc chooses another port"):
        asyncio.run(start())
