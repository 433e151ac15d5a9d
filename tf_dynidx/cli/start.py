"""Importing TensorFlow quietly, and being stopped."""

import contextlib
import os
import signal
import sys
import threading

_STOPS = (signal.SIGINT, signal.SIGTERM)


def import_tensorflow():
    """Imports TensorFlow without the lines that it writes before its own log level takes effect."""
    sys.stderr.flush()
    kept = os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silent, 2)
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silent)


@contextlib.contextmanager
def stopped_once():
    """Inside, the first Ctrl-C or SIGTERM raises KeyboardInterrupt, and others are ignored after it.

    So what is saved because of the first is not cut short by a second: Ctrl-C reaches all processes of
    a terminal, each of which may pass it on. Outside of the main thread, which alone is told of
    signals, nothing changes.
    """

    def stop(number, frame):
        for each in _STOPS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {each: signal.signal(each, stop) for each in _STOPS}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
