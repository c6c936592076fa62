"""The command ``miriam serve``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from miriam._console import bad_input
from miriam.errors import MiriamError

__all__ = ["serve"]


def serve(
    file: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file: which models, and how.")],
    device: Annotated[str | None, typer.Option(help="In place of the file's: cuda:0, cpu, cpu/2, ...")] = None,
    policy: Annotated[str | None, typer.Option(help="In place of the file's.")] = None,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="In place of the file's.")] = None,
    http_port: Annotated[int | None, typer.Option(help="In place of the file's; 0: any that is free.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="In place of the file's; 0: any that is free.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="In place of the file's; 0: any that is free.")] = None,
) -> None:
    """Serve models over the Open Inference Protocol, HTTP and gRPC.

    Clients of Triton Inference Server and KServe can talk to it. It listens on this machine only,
    unless the file names a token or clients' certificates. A signal to end (SIGTERM, Ctrl+C) lets it
    answer what is open; a second one ends it at once.

    \b
    Exit codes: 0 it was asked to end; 1 it could not go on, or not begin; 2 the file is wrong.

    \b
    Examples:
      miriam serve serve.yaml
      miriam serve serve.yaml --device cpu/2 --http-port 9000
    """
    from miriam.serve import process

    process.begin()
    try:
        import uvloop

        from miriam.serve.config import ConfigError, load_config
        from miriam.serve.server import Server
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "miriam":
            raise
        raise MiriamError(
            f"there is no module {error.name}: install Miriam with its extra: pip install '.[serve]'"
        ) from error
    given = {
        "device": device, "policy": policy, "host": host, "ports.http": http_port, "ports.grpc": grpc_port,
        "ports.metrics": metrics_port,
    }  # fmt: skip
    overrides: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="miriam: %(levelname)s: %(message)s")

    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of every client that speaks no HTTP

    async def main() -> int:
        with bad_input(ConfigError):
            server = Server(load_config(file, overrides), lambda: load_config(file, overrides), _say)
        return await server.run()

    raise typer.Exit(uvloop.run(main()))


def _say(line: str) -> None:
    print(line, flush=True)
