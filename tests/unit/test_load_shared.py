"""The load generator with inputs in shared memory, against the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oip_server import OipServer
from serving import Serving
from typer.testing import CliRunner

from miriam.bench import Closed
from miriam.cli import app
from miriam.errors import WorkloadError
from miriam.load import Caller, Server
from miriam.load.client import sender
from miriam.load.reading import caller_of
from miriam.load.sample import sample
from miriam.load.sender import Asked
from miriam.load.shared import left
from miriam.serve.shared import FOLDER

pytestmark = pytest.mark.skipif(not Path(FOLDER).is_dir(), reason=f"this system has no {FOLDER}")


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with Serving() as serving:
        yield serving


def ours() -> list[str]:
    return [path.name for path in Path(FOLDER).glob("miriam-load-*")]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_answers_are_those_to_messages_and_nothing_stays(serving: Serving, scheme: str) -> None:
    async def ask() -> tuple[Asked, Any, Any]:
        own = sender(Server.of(f"{scheme}://{getattr(serving, scheme)}"))
        try:
            asked = sample(Caller("both", Closed()), await own.describe("both"), 7)
            by_message = await own.send(own.serialise(asked), 5.0, lambda: None)
            async with left(own, asked) as shared:
                assert set(shared.places) == {"a", "b"}
                assert len(serving.server.service.regions.status()) == 1
                assert not ours()
                request = own.serialise(shared)
                assert asked.tensors["a"][1].tobytes() not in request
                by_memory = await own.send(request, 5.0, lambda: None)
            return asked, dict(own.outputs(by_message)), dict(own.outputs(by_memory))
        finally:
            await own.close()

    asked, by_message, by_memory = asyncio.run(ask())
    a, b = (asked.tensors[name][1] for name in "ab")
    assert by_memory == by_message == {"sum": (a + b).tobytes(), "difference": (a - b).tobytes()}
    assert not serving.server.service.regions.status()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_takes_none_is_said_so(scheme: str) -> None:
    async def ask(url: str) -> None:
        own = sender(Server.of(url))
        try:
            async with left(own, Asked("double", {"x": ("FP32", np.ones(4, np.float32))})):
                pass
        finally:
            await own.close()

    with OipServer() as server, pytest.raises(WorkloadError, match="no shared memory with the server"):
        asyncio.run(ask(getattr(server, scheme)))
    assert not ours()


def test_the_report_says_whose_inputs_were_not_sent(serving: Serving) -> None:
    command = (
        f"load grpc://{serving.grpc} --model double --closed 1 --shared-memory --model both --uniform 50 --no-solo"
    )
    found = CliRunner().invoke(app, [*command.split(), "--duration", "0.3", "--warm-up", "0", "--verify", "--json"])
    assert found.exit_code == 0, found.output
    results = json.loads(found.stdout)
    assert "Inputs of double were in shared memory." in found.stdout
    tasks = {task["name"]: task for task in results["points"][-1]["tasks"]}
    assert tasks["double"]["checked"] > 0
    assert tasks["double"]["wrong"] == 0
    assert not serving.server.service.regions.status()


def test_a_file_may_ask_for_it() -> None:
    assert caller_of("a", {"closed": 1, "shared_memory": True}, Path()).shared_memory
    assert not caller_of("a", {"closed": 1}, Path()).shared_memory
    with pytest.raises(WorkloadError, match="shared_memory"):
        caller_of("a", {"closed": 1, "shared_memory": "yes"}, Path())
