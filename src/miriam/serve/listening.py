"""Ports on which clients are listened to."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any

from miriam.errors import MiriamError

__all__ = ["listen"]


async def listen(
    protocol: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    name: str,
    *,
    tls: ssl.SSLContext | None = None,
    handshake_s: float = 60.0,
    backlog: int = 2048,
) -> tuple[list[asyncio.Server], int]:
    """Listen at all addresses of a host, on one port.

    Parameters
    ----------
    port
        0 lets the kernel choose.
    name
        Of the port in the configuration.

    Returns
    -------
    servers, port
        The port is that which was had.

    Raises
    ------
    MiriamError
        The port cannot be had.
    """
    loop = asyncio.get_running_loop()
    patience_s = None if tls is None else handshake_s
    try:
        sockets = _sockets(host, port, backlog)
        servers = [
            await loop.create_server(protocol, sock=one, ssl=tls, ssl_handshake_timeout=patience_s) for one in sockets
        ]
    except OSError as error:
        raise MiriamError(
            f"cannot listen at {host}:{port}: {error.strerror or error}; ports.{name} chooses another port"
        ) from error
    return servers, int(sockets[0].getsockname()[1])


def _sockets(host: str, port: int, backlog: int) -> list[socket.socket]:
    """All addresses of a name that this machine has, on one port: ``localhost`` may be two."""
    made: list[socket.socket] = []
    absent: OSError | None = None
    for family, _, _, _, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        at: tuple[Any, ...] = (found[0], made[0].getsockname()[1] if made else port, *found[2:])
        try:
            made.append(socket.create_server(at, family=family, backlog=backlog))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for one in made:
                    one.close()
                raise
            absent = error
    if absent is not None and not made:
        raise absent
    return made
