"""The load generator: what is sent when, what is written down of it, and what comes out at the end."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oip_server import SIZE, OipServer
from typer.testing import CliRunner

from miriam.bench import Closed, Entry, Poisson, Results, Uniform, Workload
from miriam.bench.arrivals import Arrivals, seeded_times_us
from miriam.bench.report import render
from miriam.bench.results import schema
from miriam.cli import app
from miriam.errors import WorkloadError
from miriam.load import Caller, Plan, Server
from miriam.load.client import Phase, Record, call, sender
from miriam.load.expected import Expected
from miriam.load.measure import metrics, notes, point
from miriam.load.sample import sample
from miriam.load.sender import Asked, Described, Sender, UnansweredError

SERVER = Server.of("http://127.0.0.1:8000")


@pytest.fixture(scope="module")
def server() -> Iterator[OipServer]:
    with OipServer() as running:
        yield running


class Fake:
    """A server in this process: it answers after ``serve``, which may fail."""

    def __init__(self, serve: Callable[[int], Any]) -> None:
        self.serve, self.count, self.open, self.most = serve, 0, 0, 0

    async def describe(self, model: str) -> Described:
        return Described({"x": ("FP32", (SIZE,))})

    def serialise(self, asked: Asked) -> Asked:
        return asked

    async def send(self, request: Any, patience_s: float, sending: Callable[[], None]) -> bytes:
        number, self.count = self.count, self.count + 1
        self.open += 1
        self.most = max(self.most, self.open)
        sending()
        try:
            return bytes(await self.serve(number) or b"")
        finally:
            self.open -= 1

    def outputs(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        return [("y", answer)]

    async def close(self) -> None: ...


def record(own: Sender, arrivals: Arrivals, duration_s: float = 0.2, seed: int = 0, expected: Any = None) -> Record:
    caller = Caller("a", arrivals)
    plan = Plan(SERVER, [caller], duration_s=duration_s, warm_up_s=0, seed=seed)
    return asyncio.run(call(own, None, plan, caller, Phase(None, time.monotonic_ns(), seed), expected))


# What is sent when


def test_open_arrivals_are_sent_whatever_became_of_those_before() -> None:
    async def never(number: int) -> None:
        await asyncio.sleep(0.3)  # longer than the run
        raise UnansweredError("timeout", "no answer")

    fake = Fake(never)
    found = record(fake, Poisson(100), seed=3)
    due_us = seeded_times_us("a", Poisson(100), 0.2e6, 3)
    assert due_us.size > 10
    assert found.arrival_us.tolist() == due_us.tolist()
    assert fake.most == due_us.size
    assert (found.sent_us >= found.arrival_us).all()
    assert found.reasons == {"timeout": tuple(range(due_us.size))}
    assert np.isposinf(found.finish_us).all()


def test_latency_holds_the_time_that_a_slow_server_makes_others_wait() -> None:
    lock = asyncio.Lock()

    async def slow(number: int) -> None:
        async with lock:
            await asyncio.sleep(0.02)

    found = record(Fake(slow), Uniform(100))
    latency_us = found.finish_us - found.arrival_us
    # one at a time: the k-th answer cannot come before k times the 20 ms, although it was due every 10 ms
    least_us = np.arange(1, latency_us.size + 1) * 20e3 - (found.arrival_us - found.arrival_us[0]) - 1e3
    assert (latency_us >= least_us).all()
    assert latency_us[-1] > 100e3


@given(st.integers(1, 5))
def test_a_closed_loop_keeps_its_depth(depth: int) -> None:
    async def quick(number: int) -> None:
        await asyncio.sleep(0)

    fake = Fake(quick)
    found = record(fake, Closed(depth), 0.005)
    assert fake.most == depth
    assert (found.arrival_us[:depth] == 0).all()
    # every other one is due in the moment in which one was answered
    assert set(found.arrival_us[depth:]) <= set(found.finish_us)
    assert found.arrival_us.max() < 5e3


def test_a_closed_loop_goes_on_after_failures_but_not_without_a_pause() -> None:
    async def fail(number: int) -> None:
        raise UnansweredError("exhausted", f"number {number}")

    found = record(Fake(fail), Closed(1), 0.1)
    assert 2 <= found.arrival_us.size <= 11
    assert found.said == {"exhausted": "number 0"}


def test_answers_are_compared_word_by_word() -> None:
    answers = [b"aaaabbbb", b"aaaabbbb", b"aaaaBbbb", b"aaaabbbb", b"aaaa"]

    async def other(number: int) -> bytes:
        return answers[min(number, 4)]

    found = record(Fake(other), Uniform(25), 0.2, expected=Expected({"y": b"aaaabbbb"}))
    assert (found.checked, found.wrong) == (5, 1 + 2)


# What is written down of it


def test_failures_count_neither_as_finished_nor_as_unfinished() -> None:
    entry = Entry("a", "a", 1, Uniform(10), 50.0)
    times = np.array([0.0, 100, 200, 300, 400])
    finish = np.array([10.0, math.inf, 230, 360, math.inf])
    found = metrics(
        entry, Record(times, times + 5, finish, {"exhausted": (1,), "timeout": (4,)}, {}, 3, 0, 9.0), 100, 350
    )
    assert (found.arrived, found.failed, found.unfinished) == (3, {"exhausted": 1}, 1)
    assert (found.missed, found.checked, found.wrong) == (1, 3, 0)  # refused; the one under way has time left
    assert found.response is not None
    assert found.service is not None
    assert (found.response.p50_us, found.service.p50_us) == (30, 25)
    assert found.throughput_per_s == pytest.approx(1 / 250e-6)


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100), st.sampled_from(["", "exhausted", "timeout"])), max_size=30
    ),
    st.floats(0, 50),
)
def test_every_request_of_the_window_is_somewhere(requests: list[tuple[float, float, str]], begin_us: float) -> None:
    arrival = np.array([a for a, _, _ in requests])
    finish = np.array([math.inf if why else a + d for a, d, why in requests])
    reasons = {why: tuple(i for i, r in enumerate(requests) if r[2] == why) for why in {r[2] for r in requests} - {""}}
    entry = Entry("a", "a", 0, Poisson(1), 20.0)
    found = metrics(entry, Record(arrival, arrival, finish, reasons, {}, None, None, 0.0), begin_us, 80.0)
    inside = [r for r in requests if begin_us <= r[0] < 80]
    assert found.arrived == len(inside)
    assert sum((found.failed or {}).values()) == sum(bool(r[2]) for r in inside)
    assert found.arrived == found.unfinished + sum((found.failed or {}).values()) + (
        found.response.count if found.response else 0
    )
    assert found.missed is not None
    assert sum(bool(r[2]) for r in inside) <= found.missed <= found.arrived


def test_the_generator_says_where_it_was_slow_itself() -> None:
    workload = Workload("load", "", (Entry("late", "m", 1, Uniform(10)), Entry("loop", "m", 0, Closed())))
    arrival = np.arange(10) * 100.0
    late = Record(arrival, arrival + 30, arrival + 50, {"timeout": (9,)}, {"timeout": "no answer"}, None, None, 100.0)
    loop = Record(arrival, arrival + 30, arrival + 50, {}, {}, None, None, 950.0)
    by_name = {"late": late, "loop": loop}
    run = point(workload, by_name, None, 0, 0.0, 1000.0)
    assert run.report == {
        "late_client_us": 10, "late_late_p50_us": 30, "late_late_p99_us": 30, "late_late_max_us": 30,
        "loop_client_us": 95,
    }  # fmt: skip
    said = notes([run], [by_name], 1000.0)
    assert [note.split(" ")[:3] for note in said] == [
        ["requests", "of", "late"], ["the", "client", "of"], ["requests", "of", "late"],
    ]  # fmt: skip
    assert "p99 30 us" in said[0]
    assert "95%" in said[1]
    assert said[2].endswith("(timeout), the first with: no answer")


# Over the wire


@pytest.fixture(params=["http", "grpc"])
def url(server: OipServer, request: pytest.FixtureRequest) -> str:
    return str(getattr(server, request.param))


def over(url: str, do: Callable[[Sender], Any], token_file: Path | None = None) -> Any:
    async def run() -> Any:
        own = sender(Server.of(url, token_file=token_file))
        try:
            return await do(own)
        finally:
            await own.close()

    return asyncio.run(run())


def test_a_request_goes_there_and_its_answer_comes_back(server: OipServer, url: str, tmp_path: Path) -> None:
    async def ask(own: Sender) -> Any:
        described = await own.describe("double")
        caller = Caller("double", Closed(), priority=2, timeout_us=1500)
        asked = sample(caller, described, 7)
        answer = await own.send(own.serialise(asked), 5.0, lambda: None)
        return described, asked, own.outputs(answer)

    token = tmp_path / "token"
    token.write_text("sesame\n")
    described, asked, outputs = over(url, ask, token)
    assert described == Described({"x": ("FP32", (SIZE,))}, 1)
    ((name, contents),) = outputs
    assert name == "y"
    assert np.array_equal(np.frombuffer(contents, np.float32), 2 * asked.tensors["x"][1])
    sent = server.models.parameters[-1]
    assert (sent["priority"], sent["timeout"]) == (2, 1500)
    assert server.models.authorization == "Bearer sesame"


@pytest.mark.parametrize(
    ("model", "reason"), [("nothing", "not_found"), ("refuses", "exhausted"), ("never", "timeout")]
)
def test_failures_have_a_reason(url: str, model: str, reason: str) -> None:
    async def ask(own: Sender) -> Any:
        request = own.serialise(sample(Caller(model, Closed()), Described({"x": ("FP32", (SIZE,))}), 0))
        for _ in range(5):
            await own.send(request, 0.2 if model == "never" else 5.0, lambda: None)

    with pytest.raises(UnansweredError) as found:
        over(url, ask)
    assert found.value.reason == reason


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server_is_a_reason_too(scheme: str) -> None:
    with pytest.raises(UnansweredError) as found:
        over(f"{scheme}://127.0.0.1:1", lambda own: own.describe("double"))
    assert found.value.reason == "connection"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"nonsense\r\n\r\n", "connection"), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfour", "connection"),
     (b"HTTP/1.1 418 No\r\nContent-Length: 0\r\n\r\n", "HTTP 418"),
     (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "internal"),
     (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"inputs\":1}", "internal")],
)  # fmt: skip
def test_servers_that_misbehave(answer: bytes, reason: str) -> None:
    async def ask() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            own = sender(Server.of(f"http://127.0.0.1:{port}"))
            try:
                await own.describe("double")
            finally:
                await own.close()

    with pytest.raises(UnansweredError) as found:
        asyncio.run(ask())
    assert found.value.reason == reason


def test_a_connection_that_the_server_gave_up_is_replaced() -> None:
    """One request a connection, closed without saying so."""

    async def ask() -> list[Described]:
        body = b'{"inputs": []}'

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            own = sender(Server.of(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"))
            try:
                return [await own.describe("double") for _ in range(5)]
            finally:
                await own.close()

    assert asyncio.run(ask()) == [Described({})] * 5


# What is sent


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT64", "FP16", "BF16", "FP64", "BYTES"])
def test_inputs_follow_from_the_seed(datatype: str) -> None:
    caller = Caller("a", Closed(), shapes={"x": (3, 2)})
    described = Described({"x": (datatype, (-1, 2))})
    one, again, other = (sample(caller, described, seed).tensors["x"][1] for seed in (0, 0, 1))
    assert one.shape == (3, 2)
    assert np.array_equal(one, again)
    assert datatype == "BYTES" or not np.array_equal(one, other)


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    described = Described({"x": ("FP32", (-1, 2))})
    with pytest.raises(WorkloadError, match=r"'x' of a may have any size in \[-1, 2\]"):
        sample(Caller("a", Closed()), described, 0)
    with pytest.raises(WorkloadError, match="no input 'z' for the shape"):
        sample(Caller("a", Closed(), shapes={"z": (1,)}), described, 0)
    with pytest.raises(WorkloadError, match="datatype 'FP7'"):
        sample(Caller("a", Closed()), Described({"x": ("FP7", (1,))}), 0)
    file = tmp_path / "inputs.npz"
    file.write_text("nothing of the kind")
    with pytest.raises(WorkloadError, match=r"inputs\.npz is no file of NumPy arrays"):
        sample(Caller("a", Closed(), inputs=file), described, 0)
    np.savez(file, x=np.ones((1, 2), np.float16))
    (datatype, array) = sample(Caller("a", Closed(), inputs=file), described, 0).tensors["x"]
    assert (datatype, array.shape) == ("FP16", (1, 2))


# From the command to the report


def load(*args: object) -> Any:
    return CliRunner().invoke(app, ["load", *map(str, args)])


def test_a_load_from_the_command_to_the_report(server: OipServer, tmp_path: Path) -> None:
    found = load(
        server.grpc, "--model", "double", "--poisson", 100, "--deadline=500", "--model", "slow", "--closed", 2,
        "--model", "refuses", "--uniform", 50, "--name", "other", "--duration", 0.3, "--warm-up", 0.1, "--verify",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    raw = json.loads((tmp_path / "out" / "results.json").read_text())
    jsonschema.validate(raw, schema())
    results = Results.load(tmp_path / "out" / "results.json")
    assert [(p.policy, p.alone) for p in results.points] == [
        ("together", "double"), ("together", "slow"), ("together", "other"), ("together", None),
    ]  # fmt: skip
    assert [(e.name, e.model, e.criticality) for e in results.workloads[0].entries] == [
        ("double", "double", 1), ("slow", "slow", 0), ("other", "refuses", 0),
    ]  # fmt: skip
    together = results.points[-1]
    assert together.critical is not None
    assert together.critical.slowdown is not None
    assert together.critical.missed is not None
    assert all(task.checked and not task.wrong for task in together.tasks)
    refused = next(task for task in together.tasks if task.name == "other")
    assert (refused.failed or {}).get("exhausted", 0) > 0
    alone = results.alone("load", "double", "together")
    assert alone is not None
    assert alone.tasks[0].arrived == together.critical.arrived  # the same arrivals
    for text in ("double (critical)", "Poisson 100/s", "requests failed: exhausted", "us of a processor a request"):
        assert text in found.output
    page = render(results)
    assert "against sequential" not in page
    assert "The load generator itself" in page


def test_answers_that_change_are_found(server: OipServer) -> None:
    found = load(
        server.http, "--model", "turns", "--closed", 1, "--duration", 0.2, "--warm-up", 0, "--verify", "--json"
    )
    assert found.exit_code == 1
    raw = json.loads(found.stdout)
    (task,) = raw["points"][0]["tasks"]
    assert task["wrong"] > 0
    assert task["slowdown"] is None  # one caller: it is alone anyhow
    assert f"in {task['wrong']:,} words" in found.stderr


def test_a_model_that_is_not_there_ends_it(server: OipServer) -> None:
    found = load(server.http, "--model", "double", "--closed", 1, "--model", "nothing", "--closed", 1)
    assert found.exit_code == 2
    assert f"nothing: {server.http}: there is no model 'nothing' (not_found)" in found.output


# Plans, as files and as options

GOOD = """
server: grpc://127.0.0.1:8001
duration_s: 3
verify: true
token_file: token
models:
  detector:
    poisson: 200
    criticality: critical
    deadline_ms: 20
    priority: 1
  caption: {closed: 4, model: captioner, shapes: {x: [8, 3]}}
  camera: {recorded: times.csv, timeout_ms: 1.5}
"""


def test_a_file_says_what_a_load_is(tmp_path: Path) -> None:
    from miriam.load import read

    (tmp_path / "times.csv").write_text("# seconds, what\n0, first\n0.5 second\n\n0.5\n2.25,x\n")
    file = tmp_path / "load.yaml"
    file.write_text(GOOD)
    plan = read(file, duration_s=5.0, repeats=None)
    assert (str(plan.server), plan.server.token_file) == ("grpc://127.0.0.1:8001", tmp_path / "token")
    assert (plan.duration_s, plan.repeats, plan.verify, plan.warm_up) == (5.0, 1, True, 0.5)
    detector, caption, camera = plan.callers
    assert detector == Caller("detector", Poisson(200), "", 1, 20e3, 1)
    assert (caption.asks_for, caption.arrivals, caption.shapes) == ("captioner", Closed(4), {"x": (8, 3)})
    assert (camera.arrivals.times_us(2e6, np.random.default_rng()).tolist(), camera.timeout_us) == ([0, 5e5, 5e5], 1500)  # type: ignore[union-attr]
    assert [e.name for e in plan.workload({"camera": 2}).entries] == ["camera", "detector", "caption"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("poisson: 200", "poison: 200", ":8: models.detector.poison: unknown key; did you mean 'poisson'?"),
        ("poisson: 200", "poisson: -1", ":8: models.detector.poisson: Input should be greater than 0"),
        ("    poisson: 200\n", "", ":7: models.detector: say when requests come: one of closed, uniform"),
        ("criticality: critical", "criticality: high", ":9: models.detector.criticality: write normal, critical, or"),
        ("duration_s: 3", "duration_s: 3\nduration_s: 4", ":4: duration_s: is written twice"),
        ("closed: 4", "closed: four", ":12: models.caption.closed: Input should be a valid integer"),
        ("grpc://", "ftp://", ": 'ftp://127.0.0.1:8001' is no address of a server"),
        ("duration_s: 3", "duration_s: 0.4", ": a duration of 0.4 s with a warm-up of 0.5 s"),
        ("recorded: times.csv", "recorded: nowhere.csv", "cannot read the arrivals"),
        ("models:", "models: {", "this is no YAML"),
        ("server: grpc://127.0.0.1:8001\n", "", ": server: is missing"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, old: str, new: str, expected: str) -> None:
    (tmp_path / "times.csv").write_text("1\n")
    file = tmp_path / "load.yaml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    found = load(file)
    assert found.exit_code == 2
    assert expected in found.output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("http://h --poisson 3", "Option '--poisson' belongs to a model"),
        ("http://h --model a --closed", "Option '--closed' requires an argument"),
        ("http://h --model a --closed 1 --closed 2", "'--closed' is given twice for the model a"),
        ("http://h --model a", "model a: say when requests come"),
        ("http://h --model a --closed 1 --poisson 2", "model a: say when requests come: one of"),
        ("http://h --model a --closed x", "--closed: 'x' is no number"),
        ("http://h --model a --closed 1 --shape x", "--shape: 'x' is no shape"),
        ("http://h --model a --closed 1 --model a --closed 2", "different names"),
        ("http://h --model a --uniform 0", "model a: uniform: Input should be greater than 0"),
        ("http://h --model a --closed 1 --ca ca.pem", "write https://h"),
        ("https://h --model a --closed 1 --key key.pem", "a certificate and its key go together"),
        ("http://h", "name at least one model"),
        (f"{__file__} --model a --closed 1", "give a URL in its place"),
        ("127.0.0.1:8000 --model a --closed 1", "the address of a server begins with http://"),
        ("http://h:x --model a --closed 1", "is no address of a server"),
        ("http://h --model a --closed 1 --duration -1", "a duration of -1.0 s"),
    ],
)  # fmt: skip
def test_options_that_are_wrong(options: str, expected: str) -> None:
    found = load(*options.split())
    assert found.exit_code == 2
    assert expected in " ".join(found.output.replace("│", " ").split())


def test_recorded_arrivals_survive_the_document() -> None:
    from miriam.bench.arrivals import Recorded, arrivals_from_json

    recorded = Recorded((0.0, 0.25, 1.0))
    assert arrivals_from_json(json.loads(json.dumps(recorded.to_json()))) == recorded
    assert recorded.scaled(2).at_s == (0.0, 0.125, 0.5)
    assert recorded.rate_per_s == 3
    for wrong in ((), (0.0,), (1.0, 0.5), (-1.0, 2.0), (math.nan, 1.0)):
        with pytest.raises(WorkloadError, match="rising times"):
            Recorded(wrong)


@pytest.mark.parametrize(("text", "line"), [("1\n0.5\n", 2), ("# no\nx\n", 2), ("inf\n", 1), ("-1\n", 1)])
def test_a_file_of_arrivals_says_which_line_is_wrong(tmp_path: Path, text: str, line: int) -> None:
    from miriam.bench.arrivals import Recorded

    file = tmp_path / "times.csv"
    file.write_text(text)
    with pytest.raises(WorkloadError, match=rf"times\.csv:{line}: "):
        Recorded.read(file)
