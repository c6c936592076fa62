"""The Open Inference Protocol over HTTP, with Triton's extensions: requests for a `Service`, as an ASGI application."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from miriam.serve import triton, wire
from miriam.serve.aside import Aside
from miriam.serve.auth import Guard
from miriam.serve.config import Limits
from miriam.serve.errors import ServiceError, Status
from miriam.serve.limits import Memory, read_body, while_connected
from miriam.serve.metrics import Metrics
from miriam.serve.openapi import document
from miriam.serve.service import Service
from miriam.serve.shared import CUDA

__all__ = ["CODES", "Http", "JsonRoute", "metrics_application"]

_LOG = logging.getLogger("miriam")

CODES: Mapping[Status, int] = {
    Status.INVALID: 400,
    Status.UNAUTHENTICATED: 401,
    Status.FORBIDDEN: 403,
    Status.NOT_FOUND: 404,
    Status.TOO_LARGE: 413,
    Status.EXHAUSTED: 429,
    Status.DEADLINE: 504,
    Status.UNAVAILABLE: 503,
    Status.UNSUPPORTED: 400,
    Status.INTERNAL: 500,
}

_OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})  # for probes, which have no token
_INLINE_BYTES = 64 << 10  # JSON that is read within a millisecond
_INLINE_VALUES = 8 << 10  # values that are written in it
_LEAD = 16  # bytes at which memory of any size begins

Answer = Callable[[Request], Awaitable[Response]]


class JsonRoute(Route):
    """A route whose refusal of a method is JSON like every other error."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        methods = self.methods or set()
        if scope["method"] in methods:
            await self.app(scope, receive, send)
        else:
            error = f"{scope['path']} takes {' and '.join(sorted(methods))}"
            await _json({"error": error}, 405, {"allow": ", ".join(sorted(methods))})(scope, receive, send)


class _Guarded:
    """Looks at who asks, and turns what goes wrong into answers."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, sending)
        except ServiceError as error:
            await _refusal(error)(scope, receive, send)
        except Exception:
            _LOG.exception("an error in the answer to %s %s", scope["method"], scope["path"])
            if begun:
                raise
            await _refusal(ServiceError(Status.INTERNAL, "an error of the server: see its log"))(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        given: dict[bytes, bytes] = dict(scope["headers"])
        host, origin, token = (
            None if value is None else value.decode("latin-1")
            for value in map(given.get, (b"host", b"origin", b"authorization"))
        )
        self._guard.check_browser(host, origin, scope["method"] not in {"GET", "HEAD", "OPTIONS"})
        if scope["path"] not in _OPEN:
            self._guard.check_token(token)


class Http:
    """A `Service` for HTTP.

    Parameters
    ----------
    others
        Routes beside those of the protocol.

    Attributes
    ----------
    application
        For an ASGI server.
    memory
        What requests hold.
    """

    def __init__(self, service: Service, limits: Limits, guard: Guard, others: Sequence[BaseRoute] = ()) -> None:
        self._service, self._limits = service, limits
        self.memory = Memory(limits.total_bytes)
        self._asides: dict[int, Aside] = {}
        router = Router([*self._routes(), *others], default=_nothing, redirect_slashes=False)
        self.application: ASGIApp = _Guarded(router, guard)

    async def close(self) -> None:
        """End what was begun for large bodies."""
        for aside in self._asides.values():
            await aside.close()

    def _routes(self) -> list[BaseRoute]:
        get: dict[str, Callable[[Request], Any]] = {
            "/v2": lambda request: self._service.metadata(),
            "/v2/models/stats": lambda request: triton.statistics(self._service.statistics()),
            "/openapi.json": lambda request: document(self._limits, list(self._service.repository)),
        }
        of_model: dict[str, Callable[[str, str], Any]] = {
            "": self._service.metadata,
            "/config": self._service.config,
            "/stats": lambda *model: triton.statistics(self._service.statistics(*model)),
        }
        routes: list[BaseRoute] = []
        for at in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes.append(JsonRoute(f"{at}/infer", self._infer, methods=["POST"]))
            routes.append(JsonRoute(f"{at}/ready", self._model_ready, methods=["GET"]))
        routes += [JsonRoute(path, _answering(value), methods=["GET"]) for path, value in get.items()]
        for at in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                JsonRoute(at + path, _answering(partial(_of_model, value)), methods=["GET"])
                for path, value in of_model.items()
            ]
        return [
            *routes,
            JsonRoute("/v2/health/live", self._live, methods=["GET"]),
            JsonRoute("/v2/health/ready", self._ready, methods=["GET"]),
            JsonRoute("/v2/repository/index", self._index, methods=["GET", "POST"]),
            JsonRoute("/v2/repository/models/{model}/load", self._load, methods=["POST"]),
            JsonRoute("/v2/repository/models/{model}/unload", self._unload, methods=["POST"]),
            *self._routes_of_regions(),
        ]

    def _routes_of_regions(self) -> list[BaseRoute]:
        system, cuda, of_one = "/v2/systemsharedmemory", "/v2/cudasharedmemory", "/region/{region}"
        routes: list[BaseRoute] = [
            JsonRoute(f"{system}{of_one}/register", self._register, methods=["POST"]),
            JsonRoute(f"{cuda}{of_one}/register", self._register_cuda, methods=["POST"]),
        ]
        for at in ("", of_one):
            routes += [
                JsonRoute(f"{system}{at}/status", self._regions, methods=["GET"]),
                JsonRoute(f"{system}{at}/unregister", self._unregister, methods=["POST"]),
            ]
        # Clients unregister everything before they begin, of both kinds.
        return [
            *routes,
            JsonRoute(f"{cuda}/status", _answering(lambda request: []), methods=["GET"]),
            JsonRoute(f"{cuda}/unregister", _answering(lambda request: {}), methods=["POST"]),
        ]

    async def _live(self, request: Request) -> Response:
        return _health(self._service.live(), "the runtime has ended: see the server's log")

    async def _ready(self, request: Request) -> Response:
        return _health(self._service.ready(), "not all models are ready: see /v2/repository/index")

    async def _model_ready(self, request: Request) -> Response:
        return _health(self._service.model_ready(*_model(request)), "the model is not ready: see /v2/repository/index")

    async def _index(self, request: Request) -> Response:
        asked = await self._small_body(request)
        ready = asked.get("ready", False)
        if type(ready) is not bool:
            raise ServiceError(Status.INVALID, "'ready' is neither true nor false")
        return _json(self._service.index(ready=ready))

    async def _load(self, request: Request) -> Response:
        asked = await self._small_body(request)
        if asked.get("parameters"):
            raise ServiceError(
                Status.UNSUPPORTED, "a model is loaded as the configuration file says: give no parameter"
            )
        await self._service.load(request.path_params["model"])
        return _json({})

    async def _unload(self, request: Request) -> Response:
        await self._small_body(request)
        await self._service.unload(request.path_params["model"])
        return _json({})

    async def _regions(self, request: Request) -> Response:
        found = self._service.regions.status(request.path_params.get("region", ""))
        return _json([{"name": one.name, "key": one.key, "offset": one.offset, "byte_size": one.size} for one in found])

    async def _register(self, request: Request) -> Response:
        asked = await self._small_body(request)
        key, offset, size = asked.get("key"), wire.number(asked.get("offset", 0)), wire.number(asked.get("byte_size"))
        if type(key) is not str or type(offset) is not int or type(size) is not int:
            raise ServiceError(Status.INVALID, "give the 'key' of the memory, a text, 'offset' and 'byte_size'")
        self._service.regions.register(request.path_params["region"], key, offset, size)
        return _json({})

    async def _unregister(self, request: Request) -> Response:
        await self._small_body(request)
        self._service.regions.unregister(request.path_params.get("region", ""))
        return _json({})

    async def _register_cuda(self, request: Request) -> Response:
        raise ServiceError(Status.UNSUPPORTED, CUDA)

    async def _small_body(self, request: Request) -> dict[str, Any]:
        limits = self._limits.model_copy(update={"body_bytes": _INLINE_BYTES})
        with self.memory.lent() as take:
            body = await read_body(request.receive, request.headers.get("content-length"), limits, take)
        if not body:
            return {}
        try:
            found = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ServiceError(Status.INVALID, f"the body is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise ServiceError(Status.INVALID, "the body is no JSON object")
        if not isinstance(found.get("parameters", {}), dict):
            raise ServiceError(Status.INVALID, "'parameters' is no object")
        return found

    async def _infer(self, request: Request) -> Response:
        model, version = _model(request)
        headers, level = request.headers, self._service.entry(model, version).config.criticality
        if headers.get("content-encoding", "identity") != "identity":
            raise ServiceError(Status.UNSUPPORTED, "send the body as it is: no Content-Encoding is understood")
        with self._service.admitted(model), self.memory.lent() as take, while_connected(request.scope):
            said = headers.get("inference-header-content-length")
            # What comes after the JSON lies in memory as arrays have to, so that nothing need be copied.
            lead = -wire.json_size(said, self._limits.body_bytes) % _LEAD if said is not None else 0
            body = await read_body(request.receive, headers.get("content-length"), self._limits, take, lead)
            size = wire.json_size(said, len(body) - lead)
            asked = await self._parsed(level, body, lead, size, model, version)
            result = await self._service.infer(asked.call, take)
            if wire.elements(result.outputs, asked.binary) > _INLINE_VALUES:
                content, head = await self._aside(level).call(wire.write, result, asked.binary)
            else:
                content, head = wire.write(result, asked.binary)
        if head is None:
            return Response(content, media_type="application/json")
        return Response(
            content, media_type="application/octet-stream", headers={"inference-header-content-length": str(head)}
        )

    async def _parsed(self, level: int, body: bytearray, lead: int, size: int, model: str, version: str) -> wire.Asked:
        arguments = (body, lead, size, model, version, self._limits)
        texts = len(body) > _INLINE_BYTES and b'"BYTES"' in body[lead : lead + size]
        if size <= _INLINE_BYTES and not texts:
            return wire.parse(*arguments)
        asked: wire.Asked = await self._aside(level).call(wire.parse, *arguments)
        return asked

    def _aside(self, level: int) -> Aside:
        """What reads and writes for a level: none waits for what a lower one sent."""
        return self._asides.setdefault(level, Aside())


def metrics_application(metrics: Metrics, guard: Guard) -> ASGIApp:
    """The page ``/metrics``."""

    async def page(request: Request) -> Response:
        content, kind = metrics.page(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": kind})

    return _Guarded(Router([JsonRoute("/metrics", page, methods=["GET"])], default=_nothing), guard)


def _answering(value: Callable[[Request], Any]) -> Answer:
    async def answer(request: Request) -> Response:
        return _json(value(request))

    return answer


def _of_model(value: Callable[[str, str], Any], request: Request) -> Any:
    return value(*_model(request))


def _model(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _health(well: bool, why: str) -> Response:
    return Response() if well else _json({"error": why}, 503)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


def _refusal(error: ServiceError) -> Response:
    headers = {"www-authenticate": 'Bearer, Basic realm="miriam"'} if error.status is Status.UNAUTHENTICATED else {}
    return _json({"error": str(error)}, CODES[error.status], headers)


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise ServiceError(Status.NOT_FOUND, f"there is nothing at {scope['path']!r:.200}: see /openapi.json")
