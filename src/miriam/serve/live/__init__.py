"""The live page: what a server is doing now, in a browser, and where traces come from."""

from miriam.serve.live.routes import routes

__all__ = ["routes"]
