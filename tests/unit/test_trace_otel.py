"""Spans of requests."""

import gc
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from trace_support import Clock, Job, play, schedule

from miriam.trace import Recorder

memory = pytest.importorskip(
    "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="OpenTelemetry is not installed"
)
from opentelemetry.trace import StatusCode  # noqa: E402

from miriam.trace.otel import Exporter  # noqa: E402

JOBS = [Job("caption", 0, 0, 2000), Job("detector", 1, 500, 300), Job("caption", 0, 600, 50, fails=True)]


def played(*jobs: Job, keep: int = 1000) -> Recorder:
    clock = Clock()
    recorder = Recorder(keep, clock=clock)
    schedule(jobs)
    play(recorder, clock, jobs)
    return recorder


def spans_of(recorder: Recorder) -> tuple[list[Any], int]:
    to = memory.InMemorySpanExporter()
    exporter = Exporter(recorder, to, every_s=3600)
    exporter.close()
    exporter.close()
    return list(to.get_finished_spans()), exporter.lost


def test_a_request_is_a_span_whose_parts_follow_one_another() -> None:
    spans, lost = spans_of(played(*JOBS))
    [whole] = [span for span in spans if span.attributes and span.attributes.get("miriam.request") == 1]
    parts = [span for span in spans if span.parent is not None and span.parent.span_id == whole.context.span_id]
    assert [part.name for part in parts] == ["ran", "paused", "ran"]
    assert [round((part.end_time - part.start_time) / 1e3) for part in parts] == [500, 300, 1500]
    assert (parts[0].start_time, parts[-1].end_time) == (whole.start_time, whole.end_time)
    assert (whole.name, whole.attributes["miriam.lane"], whole.attributes["miriam.criticality"]) == (
        "caption", "normal", "normal"
    )  # fmt: skip
    assert lost == 0


def test_spans_stand_at_the_time_of_day() -> None:
    recorder = played(*JOBS)
    recording = recorder.recording()
    spans, _ = spans_of(recorder)
    begin_us = min(span.start_time for span in spans) / 1e3
    assert begin_us == pytest.approx(recording.unix_us + recording.requests[0].submitted_us, abs=5e6)


def test_a_failure_is_an_error_with_its_text() -> None:
    spans, _ = spans_of(played(*JOBS))
    [failed] = [span for span in spans if span.status.status_code is StatusCode.ERROR]
    assert failed.status.description == "ModelError: caption failed: ValueError: no"


def test_each_request_is_sent_once_and_what_was_forgotten_is_counted() -> None:
    jobs = [Job("caption", 0, 100 * i, 50) for i in range(20)]
    spans, lost = spans_of(played(*jobs, keep=6))
    assert sorted(span.attributes["miriam.request"] for span in spans if span.parent is None) == list(range(15, 21))
    assert lost == 14


def test_spans_reach_a_collector() -> None:
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        exporter = Exporter(played(*JOBS), f"http://127.0.0.1:{server.server_port}/v1/traces", every_s=3600)
        exporter.close()
        server.shutdown()
        thread.join()
    assert b"caption" in b"".join(bodies)
    gc.collect()
