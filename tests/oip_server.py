"""A small server of the Open Inference Protocol over HTTP and gRPC, with models that behave and models that do not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as stubs

SIZE = 4
CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
}
MODELS = ("double", "open", "refuses", "slow", "turns", "never")


class RefusedError(Exception):
    """An answer with this status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Models:
    """What the models do.

    ``double`` doubles; ``open`` does, too, with a shape that is left open; ``refuses`` refuses every second
    request; ``slow`` takes 20 ms, one request at a time; ``turns`` gives something else from the fifth answer
    on; ``never`` answers no more after the third.
    """

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.parameters: list[dict[str, Any]] = []
        self.authorization: str | None = None
        self._one_at_a_time = asyncio.Lock()

    def describe(self, name: str) -> dict[str, Any]:
        if name not in MODELS:
            raise RefusedError(404, f"there is no model {name!r}")
        shape = [-1, SIZE] if name == "open" else [SIZE]
        tensor = {"datatype": "FP32", "shape": shape}
        return {"name": name, "inputs": [{"name": "x"} | tensor], "outputs": [{"name": "y"} | tensor]}

    def config(self, name: str) -> dict[str, Any]:
        self.describe(name)
        return {"name": name, "parameters": {"criticality": {"string_value": "1" if name == "double" else "0"}}}

    async def infer(self, name: str, x: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
        self.describe(name)
        self.seen[name] += 1
        self.parameters.append(parameters)
        count = self.seen[name]
        if name == "refuses" and count > 3 and count % 2:
            raise RefusedError(429, "the queue is full")
        if name == "never" and count > 3:
            await asyncio.sleep(3600)
        if name == "slow":
            async with self._one_at_a_time:
                await asyncio.sleep(0.02)
        return 2 * x + (name == "turns" and count > 5)


class Http:
    def __init__(self, models: Models) -> None:
        self.models = models
        self.app = Starlette(
            routes=[
                Route("/v2/models/{name}", self._guarded(self.describe)),
                Route("/v2/models/{name}/config", self._guarded(self.config)),
                Route("/v2/models/{name}/infer", self._guarded(self.infer), methods=["POST"]),
            ]
        )

    @staticmethod
    def _guarded(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except RefusedError as error:
                return JSONResponse({"error": str(error)}, error.status)

        return guarded

    async def describe(self, request: Request) -> Response:
        return JSONResponse(self.models.describe(request.path_params["name"]))

    async def config(self, request: Request) -> Response:
        return JSONResponse(self.models.config(request.path_params["name"]))

    async def infer(self, request: Request) -> Response:
        body = await request.body()
        self.models.authorization = request.headers.get("authorization")
        length = int(request.headers["inference-header-content-length"])
        head = json.loads(body[:length])
        (given,) = head["inputs"]
        assert given["parameters"]["binary_data_size"] == len(body) - length
        x = np.frombuffer(body[length:], np.float32).reshape(given["shape"])
        name = request.path_params["name"]
        y = (await self.models.infer(name, x, head["parameters"])).astype(np.float32)
        tensor = {"name": "y", "datatype": "FP32", "shape": list(y.shape), "parameters": {"binary_data_size": y.nbytes}}
        answer = json.dumps({"model_name": name, "outputs": [tensor]}).encode()
        return Response(answer + y.tobytes(), headers={"Inference-Header-Content-Length": str(len(answer))})


class Grpc(stubs.GRPCInferenceServiceServicer):
    def __init__(self, models: Models) -> None:
        self.models = models

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._guard(context) as refuse:
            return messages.ModelMetadataResponse(**self.models.describe(request.name))
        return await refuse()

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = self.models.config(request.name)
        answer = messages.ModelConfigResponse()
        answer.config.name = request.name
        answer.config.parameters["criticality"].string_value = found["parameters"]["criticality"]["string_value"]
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._guard(context) as refuse:
            self.models.authorization = dict(context.invocation_metadata()).get("authorization")
            x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
            parameters = {name: value.int64_param for name, value in request.parameters.items()}
            y = (await self.models.infer(request.model_name, x, parameters)).astype(np.float32)
            answer = messages.ModelInferResponse(model_name=request.model_name, raw_output_contents=[y.tobytes()])
            answer.outputs.add(name="y", datatype="FP32", shape=y.shape)
            return answer
        return await refuse()

    @contextmanager
    def _guard(self, context: Any) -> Iterator[Callable[[], Awaitable[None]]]:
        found: list[RefusedError] = []

        async def refuse() -> None:
            await context.abort(CODES[found[0].status], str(found[0]))

        try:
            yield refuse
        except RefusedError as error:
            found.append(error)


class OipServer:
    """The server, in a thread of its own.

    Attributes
    ----------
    http, grpc
        Addresses.
    models
        What was asked of them.
    """

    def __enter__(self) -> OipServer:
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        ready.result(30)
        return self

    async def _serve(self, ready: Future[None]) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self.models = Models()
        server = grpc.aio.server()
        stubs.add_GRPCInferenceServiceServicer_to_server(Grpc(self.models), server)
        self.grpc = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        config = uvicorn.Config(Http(self.models).app, port=0, log_level="error", lifespan="off", ws="none")
        web = uvicorn.Server(config)
        config.load()
        web.lifespan = config.lifespan_class(config)
        await web.startup()
        self.http = f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
        ready.set_result(None)
        await self._end.wait()
        await server.stop(0)
        web.force_exit = True
        await web.shutdown()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
