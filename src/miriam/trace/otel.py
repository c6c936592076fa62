"""Requests as OpenTelemetry spans."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from miriam.errors import TraceError
from miriam.trace.intervals import Intervals
from miriam.trace.recording import Outcome, Recording, Traced, level_name

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import Attributes

    from miriam.trace.recorder import Recorder

__all__ = ["Exporter"]


class Exporter:
    """Sends what a recorder remembers to an OpenTelemetry collector, in a thread of its own.

    Each request that has ended is a span with the parts of its latency as children: ``waited``, ``ran`` and
    ``paused``, as often as they occurred. Nothing of this is in the path of requests; those that the recorder has
    forgotten before the thread came to look are lost, and counted.

    Parameters
    ----------
    recorder
        Where requests come from.
    to
        Address of a collector that speaks OTLP over HTTP, such as ``http://localhost:4318/v1/traces``; or an
        exporter of the SDK.
    every_s
        How often the thread looks.

    Attributes
    ----------
    lost
        Requests that were forgotten too soon.

    Raises
    ------
    TraceError
        OpenTelemetry is not installed.
    """

    def __init__(self, recorder: Recorder, to: str | SpanExporter, *, every_s: float = 1.0) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            exporter = _over_http(to) if isinstance(to, str) else to
        except ImportError as error:
            raise TraceError(
                f"spans need OpenTelemetry ({error}), which the extra 'otel' brings: pip install '.[otel]'"
            ) from error
        self.lost = 0
        self._recorder, self._every_s = recorder, every_s
        self._provider = TracerProvider(resource=Resource.create({"service.name": "miriam"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._sent = 0  # of all requests that ever ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="miriam-spans", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send what is left, and end; allowed twice."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._provider.shutdown()

    def _main(self) -> None:
        tracer = self._provider.get_tracer("miriam")
        while not self._stop.wait(self._every_s):
            self._look(tracer)
        self._look(tracer)

    def _look(self, tracer: Tracer) -> None:
        """Make spans of the requests that have ended since the last look."""
        recording = self._recorder.recording()
        ended = [request for request in recording.requests if request.outcome != Outcome.OPEN]
        total = recording.lost + len(ended)
        fresh = min(total - self._sent, len(ended))
        self.lost += total - self._sent - fresh
        self._sent = total
        intervals = Intervals(recording)
        for request in ended[len(ended) - fresh :]:
            _spans(tracer, request, recording, intervals)


def _over_http(url: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=url)


def _spans(tracer: Tracer, request: Traced, recording: Recording, intervals: Intervals) -> None:
    from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

    def at_ns(time_us: float) -> int:
        return round((recording.unix_us + time_us) * 1e3)

    lane = "" if request.lane is None else recording.lane_name(request.lane)
    attributes: Attributes = {
        "miriam.model": request.task, "miriam.request": request.number, "miriam.criticality": level_name(request.level),
        "miriam.policy": recording.policy, "miriam.lane": lane, "miriam.why": request.why,
        "miriam.outcome": request.outcome,
    }  # fmt: skip
    end_us = intervals.end_us(request)
    span = tracer.start_span(
        request.task, kind=SpanKind.SERVER, attributes=attributes, start_time=at_ns(request.submitted_us)
    )
    if request.outcome != Outcome.ANSWERED:
        span.set_status(Status(StatusCode.ERROR, request.error or request.outcome))
    inside = set_span_in_context(span)
    for what, begin_us, until_us in _parts(request, intervals):
        part = tracer.start_span(what, context=inside, start_time=at_ns(begin_us))
        part.end(at_ns(until_us))
    span.end(at_ns(end_us))


def _parts(request: Traced, intervals: Intervals) -> Sequence[tuple[str, float, float]]:
    """The parts of a latency in the order of time."""
    until_us = intervals.waited_until_us(request)
    parts = [("waited", request.submitted_us, until_us)]
    for begin_us, end_us in intervals.pauses(request):
        parts += [("ran", until_us, begin_us), ("paused", begin_us, end_us)]
        until_us = end_us
    parts.append(("ran", until_us, intervals.end_us(request)))
    return [part for part in parts if part[2] > part[1]]
