"""Which version of an export answers: the newest, from the moment that it is loaded."""

import contextlib
import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2

from tf_dynidx.serving.folders import newest, versions
from tf_dynidx.serving.server.predict import RequestError, specs_of
from tf_dynidx.serving.warmup import blank


class Loaded(NamedTuple):
    """A version in memory. A request that has one keeps it to its end, whatever comes after.

    Attributes:
        version: int.
        signatures: functions by name.
        signature_defs: what they take and return, as TF Serving says it in JSON.
        model: the SavedModel, whose variables live as long as it does.
    """

    version: int
    signatures: dict
    signature_defs: dict
    model: Any


class Versions:
    """The newest version of an export, followed while it is served.

    A new version is loaded and warmed up beside the one that answers, and then takes its place in one
    assignment. The one before is freed when its last request is answered. A version that cannot be
    loaded is told of on standard error, passed over and tried again. An export without versions counts
    as version 1, and is not followed.

    Args:
        path: folder of the versions, or of a SavedModel.
        name: what clients call the model.

    Raises:
        ValueError: there is nothing to serve.
    """

    def __init__(self, path: str | os.PathLike, name: str):
        self._path, self.name = Path(path), name
        self._failed: set[int] = set()
        self._ended = threading.Event()
        self._watcher = None
        self._current = None
        self._followed = bool(versions(path))
        if not self._followed and not (newest(path) / "saved_model.pb").is_file():
            raise ValueError(
                f"There is no export to serve. Received: {os.fspath(path)!r}. Name the folder of an "
                "export, or of its versions."
            )
        self.look()
        if self._current is None:
            raise ValueError(f"No version of the export can be loaded. Received: {os.fspath(path)!r}.")

    def get(self, name: str, version: int | None = None) -> Loaded:
        """The version that answers now; RequestError where another one is asked for."""
        loaded = self._current
        if name != self.name or version not in (None, loaded.version):
            asked = f"{name!r}" if version is None else f"{name!r}, version {version}"
            raise RequestError(
                "NOT_FOUND",
                f"Servable not found for request. Received: {asked}. Served is {self.name!r}, version "
                f"{loaded.version}.",
            )
        return loaded

    def look(self) -> bool:
        """Loads the newest version, if it is not the one that answers; whether there is a new one."""
        for version in reversed(self._found()):
            if self._current is not None and version == self._current.version:
                return False
            try:
                loaded = self._load(version)
            except (OSError, ValueError, tf.errors.OpError) as error:
                # It is tried again: it may be a copy that is not complete yet.
                if version not in self._failed:
                    message = str(error).splitlines()[0]
                    print(f"version {version} cannot be loaded: {message}", file=sys.stderr, flush=True)
                self._failed.add(version)
                continue
            self._current = loaded
            gc.collect()  # the one before, unless somebody still asks it: models have cycles
            return True
        return False

    def follow(self, every: float) -> None:
        """Looks for a new version every so many seconds, until `close`."""
        if not self._followed:
            return

        def watch():
            while not self._ended.wait(every):
                if self.look():
                    print(f"version {self._current.version} is served now", flush=True)

        self._watcher = threading.Thread(target=watch, name="versions", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Ends following."""
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join()

    def _found(self):
        return versions(self._path) if self._followed else [1]

    def _load(self, version):
        folder = self._path / str(version) if self._followed else self._path
        model = tf.saved_model.load(str(folder))
        saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        described = {
            name: json_format.MessageToDict(definition, preserving_proto_field_name=True)
            for name, definition in saved.meta_graphs[0].signature_def.items()
            if not name.startswith("__")
        }
        signatures = dict(model.signatures)
        _warm_up(signatures)
        return Loaded(version, signatures, described, model)


def _warm_up(signatures):
    """Calls every signature once: a first call takes seconds, in which nobody should wait."""
    for signature in signatures.values():
        inputs = {name: blank(spec) for name, spec in specs_of(signature).items()}
        # What is made up may be refused, as a k of 0 is.
        with contextlib.suppress(tf.errors.OpError):
            signature(**inputs)
