"""Who may ask: a token, and for browsers the names of this server."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from miriam.serve.config import ConfigError, ServerConfig
from miriam.serve.errors import ServiceError, Status

__all__ = ["Guard"]

_LEAST = 16  # characters of a token; a shorter one can be guessed


class Guard:
    """Lets requests in, or not.

    Parameters
    ----------
    token
        What clients have to send, or None if nobody is asked.
    hosts
        Names that a ``Host`` header may have, or None for any. A page of another site, open in a browser on this
        machine, can send requests here under a name of its own (DNS rebinding): this is what stops it.
    """

    def __init__(self, token: str | None = None, hosts: Iterable[str] | None = None) -> None:
        self._token = None if token is None else token.encode()
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    @classmethod
    def of(cls, config: ServerConfig) -> Guard:
        """The guard of a configuration.

        Raises
        ------
        ConfigError
            The token's file cannot be read, or holds none that is good for anything.
        """
        token = None if config.security.token_file is None else _read(config.security.token_file)
        if token is not None or not config.local:
            return cls(token)
        return cls(None, {"localhost", "127.0.0.1", "::1", config.host, *config.security.hosts})

    def check_token(self, authorization: str | None) -> None:
        """Look at an ``Authorization`` header, or the metadata of that name.

        ``Bearer TOKEN``; or ``Basic`` with the token as password, which is how a browser asks its user.

        Raises
        ------
        ServiceError
            It is not the token.
        """
        if self._token is None:
            return
        scheme, _, rest = (authorization or "").partition(" ")
        given = rest.strip().encode(errors="replace")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                given = b""
        if scheme.lower() not in {"bearer", "basic"} or not hmac.compare_digest(given, self._token):
            raise ServiceError(Status.UNAUTHENTICATED, "send the server's token: 'Authorization: Bearer TOKEN'")

    def check_browser(self, host: str | None, origin: str | None, changes: bool) -> None:
        """Look at the ``Host`` and ``Origin`` headers.

        Parameters
        ----------
        changes
            Whether the request may change something: it may not come from a page of another site.

        Raises
        ------
        ServiceError
            The request is meant for another server, or comes from another site's page.
        """
        if self._hosts is not None and host is not None and _name(host) not in self._hosts:
            raise ServiceError(
                Status.FORBIDDEN,
                f"the Host header says {host!r:.80}: use 127.0.0.1, or add that name to security.hosts",
            )
        if changes and origin is not None and urlsplit(origin).netloc.lower() != (host or "").lower():
            raise ServiceError(Status.FORBIDDEN, f"a page of {origin!r:.80} may not send this")


def _name(host: str) -> str:
    """A host without its port and brackets."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        name = host
    return name.lower().removeprefix("[").removesuffix("]")


def _read(path: Path) -> str:
    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token from {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(token) < _LEAST or not token.isprintable() or " " in token:
        raise ConfigError(f"{path} holds no token: write {_LEAST} printable characters or more, without spaces")
    return token
