"""`Server`: an export served over REST and gRPC on this machine, while one develops."""

import os
import sys
import threading

from tf_dynidx.serving.server.rest import RestServer
from tf_dynidx.serving.server.versions import Versions

_GRACE = 10.0  # seconds for requests under way, when it is stopped


class Server:
    """Serves the newest version of an export, and goes on to newer ones as they come.

    For development: it speaks what TF Serving speaks, so that clients work with both, but it knows
    neither batching of requests, nor encryption, nor who asks.

    Args:
        path: folder of the versions of an export, or of a SavedModel.
        name: what clients call the model.
        host: address to listen at; the default can be reached from this machine only.
        port: of gRPC, 0 for any that is free, None for no gRPC.
        rest_port: of REST and of the page, 0 for any that is free.
        poll_seconds: how often it looks for a new version.

    Raises:
        OSError: a port is taken.
        ValueError: there is nothing to serve.

    Example:

        with Server("served", rest_port=0, port=None) as server:
            print(server.rest_port)
    """

    def __init__(
        self,
        path: str | os.PathLike,
        name: str = "retrieval",
        host: str = "127.0.0.1",
        port: int | None = 8500,
        rest_port: int = 8501,
        poll_seconds: float = 1.0,
    ):
        self._rpc, self.port = None, None
        self.versions = Versions(path, name)
        try:
            self._rest = RestServer((host, rest_port), self.versions)
        except OSError as error:
            raise OSError(
                f"Nothing can listen at {host}:{rest_port}: {error.strerror}. Name another --rest-port."
            ) from error
        self.rest_port = self._rest.server_address[1]
        if port is not None:
            try:
                self._start_rpc(host, port)
            except BaseException:
                self._rest.server_close()
                raise
        self._thread = threading.Thread(target=self._rest.serve_forever, name="rest", daemon=True)
        self._thread.start()
        self.versions.follow(poll_seconds)

    def stop(self) -> None:
        """Takes no more requests, and lets those under way come to their end."""
        self.versions.close()
        self._rest.shutdown()
        self._rest.wait(_GRACE)
        self._rest.server_close()
        if self._rpc is not None:
            self._rpc.stop(_GRACE).wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def _start_rpc(self, host, port):
        try:
            from tf_dynidx.serving.server.rpc import rpc_server
        except ImportError as error:
            print(
                f"gRPC is not served: {error}. It needs pip install 'tf_dynidx[serving]'.",
                file=sys.stderr,
            )
            return
        self._rpc, self.port = rpc_server(host, port, self.versions)
        self._rpc.start()
