"""Where the server is, and how a client shows who it is."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from miriam.errors import WorkloadError

__all__ = ["Server"]

_PORTS = {"http": 8000, "https": 8000, "grpc": 8001, "grpcs": 8001}


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the Open Inference Protocol.

    Attributes
    ----------
    scheme
        ``http``, ``grpc``, or these over TLS: ``https``, ``grpcs``.
    host, port
        Where it listens.
    token_file
        Holds the token that is sent with every request.
    ca, certificate, key
        PEM files: whom to trust instead of the system's authorities; whom to be.
    """

    scheme: str
    host: str
    port: int
    token_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @staticmethod
    def of(
        url: str,
        *,
        token_file: Path | None = None,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> Server:
        """The server at ``url``: ``grpc://host:8001``, ``http://host:8000``, with an ``s`` over TLS.

        Raises
        ------
        WorkloadError
            It is no such URL, or options of TLS are given without TLS, or one of certificate and key alone.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise WorkloadError(f"{url!r} is no address of a server: {error}") from error
        if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
            raise WorkloadError(f"{url!r} is no address of a server: write http://host:8000 or grpc://host:8001")
        server = Server(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], token_file, ca, certificate, key)
        if not server.tls and any((ca, certificate, key)):
            raise WorkloadError(f"certificates are for TLS: write {parts.scheme}s://{parts.netloc}, or leave them out")
        if (certificate is None) != (key is None):
            raise WorkloadError("a certificate and its key go together: give both, or none")
        return server

    @property
    def grpc(self) -> bool:
        """Whether it is asked over gRPC."""
        return self.scheme.startswith("grpc")

    @property
    def tls(self) -> bool:
        """Whether over TLS."""
        return self.scheme.endswith("s")

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    def token(self) -> str | None:
        """What stands in the token file."""
        return None if self.token_file is None else _read(self.token_file).decode().strip()

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Contents of ``ca``, ``key`` and ``certificate``."""
        ca, key, certificate = (None if path is None else _read(path) for path in (self.ca, self.key, self.certificate))
        return ca, key, certificate

    def context(self) -> ssl.SSLContext | None:
        """For connections of HTTP; None without TLS."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise WorkloadError(f"the certificates for {self} cannot be used: {error}") from error
        return context


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror or error}") from error
