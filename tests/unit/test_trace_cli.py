"""The command ``miriam trace``, from a file and from a server."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from trace_support import Clock, Job, play, schedule
from typer.testing import CliRunner

from miriam.cli import app
from miriam.trace import Recorder, Recording, read

JOBS = [
    Job("caption", 0, 0, 2000), Job("caption", 0, 100, 3000), Job("detector", 1, 2500, 700),
    Job("detector", 1, 2600, 300), Job("caption", 0, 9000, 2000),
]  # fmt: skip
TOKEN = "a-token-of-twenty-ch"


@pytest.fixture(scope="module")
def recording() -> Recording:
    clock = Clock()
    recorder = Recorder(clock=clock)
    jobs = [Job(job.task, job.level, job.arrival_us, job.length_us) for job in JOBS]
    schedule(jobs)
    play(recorder, clock, jobs)
    return recorder.recording()


@pytest.fixture
def server(recording: Recording) -> Iterator[Callable[..., str]]:
    """Starts servers that answer with a recording, or with something else."""
    running: list[tuple[HTTPServer, Thread]] = []

    def start(body: str = "", token: str = "") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = not token or self.headers["Authorization"] == f"Bearer {token}"
                text = (body or "".join(recording.text())).encode()
                self.send_response(401 if not allowed else 200 if self.path == "/v2/trace" else 404)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        made = HTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((made, thread))
        return f"http://127.0.0.1:{made.server_port}"

    yield start
    for made, thread in running:
        made.shutdown()
        thread.join()
        made.server_close()


@pytest.fixture
def file(recording: Recording, tmp_path: Path) -> str:
    (tmp_path / "trace.json").write_text("".join(recording.text()))
    return str(tmp_path / "trace.json")


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["trace", *words])
    return result.exit_code, result.output


def test_it_lists_tasks_and_explains_the_slowest(file: str) -> None:
    code, text = run(file)
    assert code == 0
    assert text.startswith("cpu, policy resident: 5 requests, 0 older")
    rows = [line.split() for line in text.splitlines()]
    assert ["detector", "(critical)", "2", "700", "µs", "900", "µs", "-", "55", "%", "0", "%"][:7] in [
        row[:7] for row in rows
    ]
    assert "The slowest against alone. caption #2 (normal) took 5.90 ms, 2.95 times the 2.00 ms" in text


def test_it_explains_the_request_that_is_asked_for(file: str) -> None:
    code, text = run(file, "--request", "4")
    assert code == 0
    assert text.startswith("detector #4 (critical) took 900 µs.")
    assert "1 request was before it: detector #3 (critical) 600 µs" in text


def test_a_model_alone(file: str) -> None:
    code, text = run(file, "--model", "detector")
    assert code == 0
    assert "caption (normal)" not in text
    assert "detector #4 (critical) took 900 µs." in text


def test_json_has_all_of_it(file: str) -> None:
    code, text = run(file, "--json")
    found = json.loads(text)
    assert code == 0
    assert [task["task"] for task in found["tasks"]] == ["detector", "caption"]
    caption = found["tasks"][1]
    assert (caption["p50_us"], caption["p99_us"], caption["alone_us"]) == (2000, 5900, 2000)
    assert caption["waited"] == pytest.approx(1900 / 9900)
    assert caption["paused"] == pytest.approx(1000 / 9900)
    assert found["story"]["number"] == found["slowest"][0] == 2


def test_a_server_is_asked_and_the_trace_written(server: Callable[..., str], tmp_path: Path) -> None:
    code, text = run(server(), "-o", str(tmp_path / "out.json"), "--request", "2")
    assert code == 0
    assert "The trace is in" in text
    assert json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    assert read(tmp_path / "out.json").find(2).task == "caption"


def test_a_token_is_sent(server: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    url = server(token=TOKEN)
    assert run(url, "--token-file", str(tmp_path / "token"))[0] == 0
    code, text = run(url)
    assert code == 2
    assert "401" in text
    assert "--token-file" in text
    code, text = run(url, "--token-file", str(tmp_path / "none"))
    assert (code, "cannot read the token" in text) == (2, True)


@pytest.mark.parametrize(("body", "says"), [("<html>", "something else than JSON"), ("{}", "is no trace of a runtime")])
def test_another_server_is_an_error(server: Callable[..., str], body: str, says: str) -> None:
    code, text = run(server(body))
    assert (code, says in text) == (2, True)


def test_errors_in_what_was_asked_for_are_said(file: str, server: Callable[..., str], tmp_path: Path) -> None:
    for words, says in (
        ([file, "--request", "99"], "request 99 is not in this trace"),
        ([file, "--model", "nobody"], "it has those of: caption, detector"),
        ([str(tmp_path / "none.json")], "there is no file"),
        ([str(tmp_path)], "cannot read"),
        (["127.0.0.1:8000"], "begins with http://"),
        (["http://127.0.0.1:9/"], "does not answer"),
        ([f"{server()}/elsewhere"], "says 404"),
    ):
        code, text = run(*words)
        assert code == 2, words
        assert says in text


def test_a_trace_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("".join(Recorder().recording().text()))
    code, text = run(str(tmp_path / "empty.json"))
    assert code == 0
    assert "0 requests" in text
