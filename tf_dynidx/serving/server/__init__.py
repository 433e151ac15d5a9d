"""A development server for exports, which speaks what TF Serving speaks."""

from tf_dynidx.serving.server.server import Server

__all__ = ["Server"]
