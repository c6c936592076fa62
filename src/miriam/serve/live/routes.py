"""The page, its data, and traces, as routes of a Starlette application."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from miriam.errors import TraceError
from miriam.serve.http import JsonRoute
from miriam.serve.live.snapshot import Snapshots
from miriam.trace.explain import explain
from miriam.trace.perfetto import text

if TYPE_CHECKING:
    from miriam.serve.service import Service
    from miriam.trace.recorder import Recorder

__all__ = ["page", "routes"]

_DIGITS = 20  # of a number; Python refuses to read thousands of them
_NO_STORE = {"Cache-Control": "no-store"}


def routes(service: Service, recorder: Recorder) -> list[BaseRoute]:
    """What the live page needs, and the address of traces.

    ``/``
        The page. It asks for nothing but what follows.
    ``/live.json?since=TIME``
        Tasks, and the requests and decisions since a ``now_us`` of an earlier answer.
    ``/v2/trace``, ``/v2/trace?form=perfetto``
        The recording, as it is or for Perfetto.
    ``/v2/trace/NUMBER``
        What happened to one request, in words.
    """
    html, headers = page()
    snapshots = Snapshots(service, recorder)

    async def root(request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    async def live(request: Request) -> Response:
        try:
            since_us = float(request.query_params.get("since", "-inf"))
        except ValueError:
            since_us = math.nan
        if math.isnan(since_us):
            return _refused(400, "since is no number: give the now_us of an earlier answer")
        return _json(await snapshots.take(since_us))

    async def trace(request: Request) -> Response:
        form = request.query_params.get("form", "recording")
        if form not in ("recording", "perfetto"):
            return _refused(400, f"there is no form {form!r:.40}: ask for recording or perfetto")
        recording = recorder.recording()
        if form == "recording":
            return _stream(recording.text())
        return _stream(text(recording), {"Content-Disposition": 'attachment; filename="miriam-trace.json"'})

    async def story(request: Request) -> Response:
        number = request.path_params["number"]
        if not (number.isascii() and number.isdecimal() and len(number) <= _DIGITS):
            return _refused(404, f"{number!r:.40} is no number of a request")
        try:
            return _json(explain(recorder.recording(), int(number)).to_json())
        except TraceError as error:
            return _refused(404, str(error))

    return [
        JsonRoute("/", root),
        JsonRoute("/live.json", live),
        JsonRoute("/v2/trace", trace),
        JsonRoute("/v2/trace/{number}", story),
    ]


def page() -> tuple[str, dict[str, str]]:
    """The page, and the headers that let it run its own style and script and nothing else."""
    style, script = _asset("style.css"), _asset("script.js")
    policy = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return _asset("page.html").replace("{{ style }}", style).replace("{{ script }}", script), headers


def _asset(name: str) -> str:
    return resources.files("miriam.serve.live").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an inline element (CSP level 3, section 8.3)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> Response:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Response(text, media_type="application/json", headers=_NO_STORE)


def _stream(pieces: Iterator[str], headers: dict[str, str] | None = None) -> Response:
    async def one_by_one() -> AsyncIterator[str]:
        for piece in pieces:
            yield piece
            await asyncio.sleep(0)  # let others go first, and the thread that runs the models

    return StreamingResponse(one_by_one(), media_type="application/json", headers=_NO_STORE | (headers or {}))


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
