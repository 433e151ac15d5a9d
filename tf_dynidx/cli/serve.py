"""Serves an export until it is stopped."""

import signal
import threading

from tf_dynidx.serving.server import Server


def serve(path: str, name: str, host: str, port: int, rest_port: int) -> int:
    """Serves the newest version of an export; returns the exit status once it is stopped.

    Args:
        path: As for `Server`.
        name: As for `Server`.
        host: As for `Server`.
        port: As for `Server`.
        rest_port: As for `Server`.
    """
    stopped = threading.Event()
    earlier = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in earlier:
        signal.signal(each, lambda *_: stopped.set())
    try:
        with Server(path, name, host, port, rest_port) as server:
            version = server.versions.get(name).version
            shown = f"[{host}]" if ":" in host else host
            rest = f"http://{shown}:{server.rest_port}"
            print(f"version {version} of {path}, as {name}. For development, not for production.")
            print(f"  page  {rest}/")
            print(f"  REST  {rest}/v1/models/{name}:predict")
            if server.port is not None:
                print(f"  gRPC  {shown}:{server.port}")
            print("Ctrl-C stops it.", flush=True)
            stopped.wait()
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
    return 0
