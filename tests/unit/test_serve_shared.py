"""Tensors in the system's shared memory: real clients, and what no client should do."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import served_models
import tritonclient.grpc
import tritonclient.http
from hypothesis import example, given
from hypothesis import strategies as st
from serving import MODELS, WAIT_S, Serving
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from miriam.device.unread import read
from miriam.serve.config import Limits, ServerConfig
from miriam.serve.errors import ServiceError, Status
from miriam.serve.shared import FOLDER, Place, Regions, Shared

pytestmark = pytest.mark.skipif(not Path(FOLDER).is_dir(), reason=f"this system has no {FOLDER}")

KINDS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
LARGE = 300_000  # elements; what is so large is copied in a thread
OTHERS: dict[str, Any] = {
    "large": {"factory": "served_models:double", "example": [[LARGE]], "inputs": ["x"], "outputs": ["y"]},
    "writes": {"factory": "served_models:in_place", "example": [[LARGE]], "inputs": ["x"], "outputs": ["y"]},
    "bools": {"factory": "served_models:echo", "example": [[4]], "dtype": "bool", "inputs": ["x"], "outputs": ["y"]},
}
SMALL = {"shared_regions": 3, "shared_bytes": 4 << 20, "total_bytes": 2 << 20}
X = np.arange(6, dtype=np.float32).reshape(2, 3)
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with Serving(MODELS | OTHERS, limits=SMALL) as serving:
        yield serving


@pytest.fixture(params=sorted(KINDS))
def client(request: pytest.FixtureRequest, serving: Serving) -> Iterator[Any]:
    client = KINDS[request.param].InferenceServerClient(getattr(serving, request.param))
    yield client
    client.unregister_system_shared_memory()
    client.close()


@pytest.fixture
def key() -> Iterator[str]:
    """A name for a file that is gone in the end."""
    name = f"miriam-test-{uuid.uuid4().hex}"
    yield name
    Path(FOLDER, name).unlink(missing_ok=True)


def kind(client: Any) -> ModuleType:
    return KINDS["grpc" if type(client).__module__.startswith("tritonclient.grpc") else "http"]


def there(client: Any, name: str, array: Array, region: str, offset: int = 0, size: int | None = None) -> Any:
    """An input that is in a region."""
    found = kind(client).InferInput(
        name, array.shape, {"float32": "FP32", "int32": "INT32", "bool": "BOOL"}[array.dtype.name]
    )
    found.set_shared_memory(region, array.nbytes if size is None else size, offset)
    return found


def into(client: Any, name: str, region: str, size: int, offset: int = 0) -> Any:
    """An output that goes there."""
    found = kind(client).InferRequestedOutput(name)
    found.set_shared_memory(region, size, offset)
    return found


def file(key: str, size: int) -> Path:
    path = Path(FOLDER, key)
    path.write_bytes(bytes(size))
    return path


def open_files(key: str) -> int:
    """How often this process, which the server is in, has it open."""
    links = (Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and key in os.readlink(link) for link in links)


@pytest.mark.parametrize(("model", "x"), [("double", X), ("large", np.arange(LARGE, dtype=np.float32))])
def test_tensors_in_shared_memory_are_those_of_messages(client: Any, key: str, model: str, x: Array) -> None:
    plain = kind(client).InferInput("x", x.shape, "FP32")
    plain.set_data_from_numpy(x)
    wanted = client.infer(model, [plain]).as_numpy("y")
    size, begin = x.nbytes, 64
    region = shm.create_shared_memory_region("tensors", f"/{key}", begin + 2 * size + 8)
    try:
        shm.set_shared_memory_region(region, [x], begin)
        client.register_system_shared_memory("tensors", f"/{key}", begin + 2 * size, offset=0)
        answer = client.infer(
            model, [there(client, "x", x, "tensors", begin)], outputs=[into(client, "y", "tensors", size, begin + size)]
        )
        output = answer.get_output("y")
        assert list(output["shape"] if isinstance(output, dict) else output.shape) == list(x.shape)
        assert "data" not in (output if isinstance(output, dict) else {})
        found = shm.get_contents_as_numpy(region, np.float32, x.shape, begin + size)
        assert found.tobytes() == wanted.tobytes() == (2 * x).tobytes()
        in_message = client.infer(model, [there(client, "x", x, "tensors", begin)]).as_numpy("y")
        assert in_message.tobytes() == wanted.tobytes()
        del found
    finally:
        shm.destroy_shared_memory_region(region)


def test_the_example_of_the_page_does_what_it_says(grpc_client: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    names: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    assert names["ask"](grpc_client, "double", "x", X).as_numpy("y").tolist() == (2 * X).tolist()


def test_some_tensors_are_there_and_some_in_the_message(client: Any, key: str) -> None:
    a, b = np.arange(4, dtype=np.int32), np.full(4, 7, np.int32)
    path = file(key, 4096)
    with path.open("r+b") as opened:
        opened.seek(1024)
        opened.write(b.tobytes())
    client.register_system_shared_memory("half", key, 2048, offset=1000)  # regions need not begin at a page
    sent = kind(client).InferInput("a", [4], "INT32")
    sent.set_data_from_numpy(a)
    wanted = [into(client, "sum", "half", 16, 100), kind(client).InferRequestedOutput("difference")]
    answer = client.infer("both", [there(client, "b", b, "half", 24), sent], outputs=wanted)
    assert answer.as_numpy("difference").tolist() == (a - b).tolist()
    assert path.read_bytes()[1100:1116] == (a + b).tobytes()


def test_a_model_that_writes_into_its_input_changes_nothing_of_the_clients(client: Any, key: str) -> None:
    x = np.arange(LARGE, dtype=np.float32)
    path = file(key, x.nbytes)
    path.write_bytes(x.tobytes())
    client.register_system_shared_memory("r", key, x.nbytes)
    sent = kind(client).InferInput("x", x.shape, "FP32")
    sent.set_data_from_numpy(x)
    for tensor in (sent, there(client, "x", x, "r")):
        assert client.infer("writes", [tensor]).as_numpy("y").tobytes() == (2 * x).tobytes()
    assert path.read_bytes() == x.tobytes()


def test_regions_come_and_go(client: Any, serving: Serving, key: str) -> None:
    file(key, 100)
    name = {} if kind(client) is tritonclient.http else {"as_json": True}
    assert "system_shared_memory" in client.get_server_metadata(**name)["extensions"]
    client.register_system_shared_memory("one", key, 60, offset=40)
    client.register_system_shared_memory("two", f"/{key}", 100)
    found = client.get_system_shared_memory_status("one", **name)
    if kind(client) is tritonclient.grpc:
        assert found["regions"]["one"] == {"name": "one", "key": key, "offset": "40", "byte_size": "60"}
        assert set(client.get_system_shared_memory_status(**name)["regions"]) == {"one", "two"}
    else:
        assert found == [{"name": "one", "key": key, "offset": 40, "byte_size": 60}]
        assert [one["name"] for one in client.get_system_shared_memory_status()] == ["one", "two"]
    with pytest.raises(InferenceServerException, match="unregister it first"):
        client.register_system_shared_memory("one", key, 60)
    assert open_files(key) == 2
    client.unregister_system_shared_memory("one")
    client.unregister_system_shared_memory("one")  # no more than that was wanted
    with pytest.raises(InferenceServerException, match="no region 'one'"):
        client.get_system_shared_memory_status("one")
    client.unregister_system_shared_memory()
    assert open_files(key) == 0


def test_that_of_cuda_is_refused_and_need_not_be_unregistered(client: Any) -> None:
    client.unregister_cuda_shared_memory()
    client.get_cuda_shared_memory_status()
    with pytest.raises(InferenceServerException, match="use that of the system"):
        client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 8)


def test_what_does_not_fit_is_refused_with_the_reason(client: Any, key: str) -> None:
    file(key, 64)
    client.register_system_shared_memory("r", key, 32, offset=32)
    flags = np.zeros(4, np.bool_)

    def refused(model: str, tensor: Any, *outputs: Any) -> str:
        with pytest.raises(InferenceServerException) as error:
            client.infer(model, [tensor], outputs=list(outputs) or None)
        return str(error.value)

    assert "no region 'none' of shared memory is registered" in refused("double", there(client, "x", X, "none"))
    assert "go beyond region 'r', which has 32 bytes" in refused("double", there(client, "x", X, "r", 9))
    assert "go beyond region 'r', which has 32 bytes" in refused("double", there(client, "x", X, "r", 2**62))
    assert "FP32 [2, 3] takes 24 bytes, shared_memory_byte_size is 25" in refused(
        "double", there(client, "x", X, "r", 0, 25)
    )
    assert "shared_memory_byte_size is -1" in refused("double", there(client, "x", X, "r", 0, -1))
    assert "shared_memory_offset is -1" in refused("double", there(client, "x", X, "r", -1))
    assert "is FP32, not INT32" in refused("double", there(client, "x", X.astype(np.int32), "r"))
    assert "shape 3x2" in refused("double", there(client, "x", X.reshape(3, 2), "r"))
    too_small = refused("double", there(client, "x", X, "r"), into(client, "y", "r", 23))
    assert "output 'y' has 24 bytes, shared_memory_byte_size is 23" in too_small
    assert "no region 'none'" in refused("double", there(client, "x", X, "r"), into(client, "y", "none", 24))
    Path(FOLDER, key).write_bytes(b"\2" * 64)
    assert "neither 0 nor 1" in refused("bools", there(client, "x", flags, "r"))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"shared_memory_byte_size": 24}, "shared_memory_region is None"),
        ({"shared_memory_region": 5, "shared_memory_byte_size": 24}, "shared_memory_region is 5"),
        ({"shared_memory_region": "", "shared_memory_byte_size": 24}, "shared_memory_region is ''"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": "24"}, "shared_memory_byte_size is '24'"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": True}, "shared_memory_byte_size is True"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 2**63}, "shared_memory_byte_size is"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 24, "binary_data_size": 24}, "give one of them"),
    ],
)
def test_half_a_place_is_none(serving: Serving, parameters: dict[str, Any], said: str) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": parameters}
    answer = httpx.post(f"http://{serving.http}/v2/models/double/infer", json={"inputs": [tensor]}, trust_env=False)
    assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.json()


def test_no_more_is_registered_and_held_than_may_be(client: Any, key: str) -> None:
    file(key, 4 << 20)
    client.register_system_shared_memory("a", key, 2 << 20)
    with pytest.raises(InferenceServerException, match=r"limits\.shared_bytes"):
        client.register_system_shared_memory("b", key, (2 << 20) + 1)
    client.register_system_shared_memory("b", key, 8)
    client.register_system_shared_memory("c", key, 8)
    with pytest.raises(InferenceServerException, match=r"limits\.shared_regions"):
        client.register_system_shared_memory("d", key, 8)
    client.unregister_system_shared_memory()
    client.register_system_shared_memory("all", key, 4 << 20)
    x = np.zeros(600_000, np.float32)  # more than the server holds of requests
    with pytest.raises(InferenceServerException, match=r"limits\.total_bytes"):
        client.infer("large", [there(client, "x", x, "all")])


def meanwhile(client: Any, key: str, do: Callable[[], None]) -> Any:
    """Ask for a tensor in shared memory, and do something when the model has begun."""
    path = file(key, 8)
    path.write_bytes(np.array([3, 0], np.float32).tobytes())
    client.register_system_shared_memory("r", key, 8)
    ended: list[Any] = []

    def ask() -> None:
        x = np.zeros(1, np.float32)
        try:
            ended.append(client.infer("gated", [there(client, "x", x, "r")], outputs=[into(client, "y", "r", 4, 4)]))
        except InferenceServerException as error:
            ended.append(error)

    with served_models.shut():
        thread = threading.Thread(target=ask)
        thread.start()
        assert served_models.ENTERED.acquire(timeout=WAIT_S)
        do()
    thread.join(WAIT_S)
    return ended[0]


@pytest.fixture
def grpc_client(serving: Serving) -> Iterator[Any]:
    """The client that may be used by two threads."""
    with tritonclient.grpc.InferenceServerClient(serving.grpc) as client:
        yield client
        client.unregister_system_shared_memory()


def test_a_region_lasts_as_long_as_its_requests(grpc_client: Any, key: str) -> None:
    path = Path(FOLDER, key)

    def go() -> None:
        grpc_client.unregister_system_shared_memory("r")
        path.write_bytes(np.array([5, 0], np.float32).tobytes())  # the input was read long ago

    meanwhile(grpc_client, key, go)
    assert np.frombuffer(path.read_bytes(), np.float32).tolist() == [5, 3]
    assert open_files(key) == 0


def test_a_file_that_is_cut_while_the_model_computes_ends_one_request(grpc_client: Any, key: str) -> None:
    answer = meanwhile(grpc_client, key, lambda: os.truncate(Path(FOLDER, key), 0))
    assert "has become shorter than region 'r' says" in str(answer)
    assert Path(FOLDER, key).stat().st_size == 0
    with pytest.raises(InferenceServerException, match="has become shorter"):
        grpc_client.infer("gated", [there(grpc_client, "x", np.zeros(1, np.float32), "r")])
    assert grpc_client.is_server_ready()


def test_a_file_that_is_cut_at_any_moment_ends_no_server(client: Any, key: str) -> None:
    x = np.arange(LARGE, dtype=np.float32)
    path = file(key, 2 * x.nbytes)
    path.write_bytes(x.tobytes() * 2)
    client.register_system_shared_memory("r", key, 2 * x.nbytes)
    over, cuts = threading.Event(), 0

    def cut() -> None:
        nonlocal cuts
        while not over.is_set():
            os.truncate(path, 0)
            os.truncate(path, 2 * x.nbytes)
            cuts += 1

    thread = threading.Thread(target=cut)
    thread.start()
    refused: list[str] = []
    for _ in range(40):
        try:
            client.infer("large", [there(client, "x", x, "r")], outputs=[into(client, "y", "r", x.nbytes, x.nbytes)])
        except InferenceServerException as error:
            refused.append(str(error))
    over.set()
    thread.join(WAIT_S)
    assert cuts
    assert all("has become shorter" in error for error in refused)
    assert client.is_server_ready()


def test_a_file_that_was_removed_is_used_on(client: Any, key: str) -> None:
    path = file(key, 24)
    path.write_bytes(X.tobytes())
    client.register_system_shared_memory("r", key, 24)
    path.unlink()
    assert client.infer("double", [there(client, "x", X, "r")]).as_numpy("y").tolist() == (2 * X).tolist()


def test_where_it_is_off_nothing_is_taken() -> None:
    with Serving(MODELS, shared_memory=False) as serving:
        for name, module in KINDS.items():
            client = module.InferenceServerClient(getattr(serving, name))
            for do in (
                lambda client=client: client.infer("double", [there(client, "x", X, "r")]),
                lambda client=client: client.register_system_shared_memory("r", "k", 8),
                client.get_system_shared_memory_status,
                client.unregister_system_shared_memory,
            ):
                with pytest.raises(InferenceServerException, match="send tensors in the request, not in shared memory"):
                    do()
            client.close()
        document = httpx.get(f"http://{serving.http}/v2", trust_env=False).json()
        assert "system_shared_memory" not in document["extensions"]


def test_it_is_for_this_machine_unless_the_configuration_says_so() -> None:
    far: dict[str, Any] = {"host": "0.0.0.0", "security": {"token_file": "t"}, "models": {}}
    assert ServerConfig(models={}).shares
    assert not ServerConfig(models={}, shared_memory=False).shares
    assert not ServerConfig.model_validate(far).shares
    assert ServerConfig.model_validate(far | {"shared_memory": True}).shares


HOSTILE = [
    "", "/", "//", ".", "..", "/..", "../etc/passwd", "/etc/passwd", "a/b", "/a/b", "x\0y", "x" * 256, "é" * 128,
    "sem.mp-lock", "/sem.mp-lock", "miriam-test-is-not-there",
]  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_a_key_is_a_name_in_one_folder(key: str) -> None:
    regions = Regions(Limits())
    with pytest.raises(ServiceError) as error:
        regions.register("r", key, 0, 1)
    assert error.value.status is (Status.NOT_FOUND if key.endswith("not-there") else Status.INVALID)
    assert "key" in str(error.value)
    assert not regions.status()


@pytest.mark.parametrize("what", ["a link", "a folder", "a pipe", "another user's", "too small"])
def test_a_key_is_a_file_of_this_user(what: str, key: str, tmp_path: Path) -> None:
    path = Path(FOLDER, key)
    match what:
        case "a link":
            (tmp_path / "other").write_bytes(bytes(8))
            path.symlink_to(tmp_path / "other")
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "another user's":
            if os.geteuid():
                pytest.skip("only root can make one")
            path.write_bytes(bytes(8))
            os.chown(path, 65534, -1)
        case "too small":
            path.write_bytes(bytes(7))
    said = {"a link": "a link", "another user's": "another user's", "too small": "has 7 bytes"}
    try:
        with pytest.raises(ServiceError, match=said.get(what, "no regular file|directory")):
            Regions(Limits()).register("r", key, 0, 8)
        assert open_files(key) == 0
    finally:
        if path.is_dir():
            path.rmdir()


@given(st.binary(max_size=24), st.integers(-1, 8), st.integers(-1, 24), st.integers(0, 8), st.integers(0, 24))
@example(b"0123456789", 1, 8, 2, 6)
@example(b"0123456789", 0, 10, 0, 10)
@example(b"0123456789", 2, 8, 8, 0)
def test_nothing_outside_of_a_region_is_read(content: bytes, offset: int, size: int, begin: int, count: int) -> None:
    key, regions = f"miriam-test-{os.getpid()}", Regions(Limits())
    path = Path(FOLDER, key)
    path.write_bytes(content)
    try:
        if not (offset >= 0 < size and offset + size <= len(content)):
            with pytest.raises(ServiceError):
                regions.register("r", key, offset, size)
            return
        regions.register("r", key, offset, size)
        tensor = Shared.input("x", "UINT8", [count], Place("r", count, begin), 100)
        if begin + count > size:
            with pytest.raises(ServiceError):
                regions.slot("x", tensor.place)
            return
        slot = regions.slot("x", tensor.place)
        assert read(slot.input(tensor)).tobytes() == content[offset:][:size][begin:][:count]
        slot.write(memoryview(bytes(count)))
        assert path.read_bytes() == content[: offset + begin] + bytes(count) + content[offset + begin + count :]
    finally:
        path.unlink()
