"""The model card of an export: what is in it, in JSON, for people and for `refresh_export`."""

import datetime
import importlib.metadata
import json
import os
from pathlib import Path

import tensorflow as tf

from tf_dynidx import files
from tf_dynidx.keras_world import IS_KERAS_3
from tf_dynidx.serving.retrieval import MEANINGS

_PATH = os.path.join("assets.extra", "model_card.json")
_FORMAT = 2  # of the export as a whole: raised when what `refresh_export` reads of it moves


def write_card(folder: str | os.PathLike, card: dict) -> None:
    """Writes a model card into the folder of a SavedModel."""
    files.write_json(Path(folder, _PATH), card)


def read_card(folder: str | os.PathLike) -> dict:
    """The model card of a SavedModel.

    Raises:
        ValueError: If it has none that can be read.
    """
    path = Path(folder, _PATH)
    if not path.is_file():
        raise ValueError(
            f"This is no export with a model card. Received: {os.fspath(folder)!r}, without {_PATH}. "
            "Export the model again."
        )
    card = json.loads(path.read_text("utf-8"))
    if card.get("format") != _FORMAT:
        raise ValueError(
            f"The model card has another format than {_FORMAT}. Received: {card.get('format')!r} in "
            f"{os.fspath(folder)!r}. Export the model again, or use another version of tf_dynidx."
        )
    return card


def model_card(index, identifiers, k, row_dtype, budget, recall, metrics, signatures) -> dict:
    """What `write_card` writes.

    Args:
        index: of the export.
        identifiers: string or int64 [targets].
        k: int.
        row_dtype: str.
        budget: int or None, as it was asked for.
        recall: dict, from `expected_recall`.
        metrics: dict, given by the user.
        signatures: dict of concrete functions.
    """
    return {
        "format": _FORMAT,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "targets": int(identifiers.shape[0]),
        "dim": index.dim,
        "k": k,
        "identifiers": identifiers.dtype.name,
        "index": {
            "kind": index.kind,
            "row_dtype": row_dtype,
            "budget": budget,
            "rows_scored": index.rows_scored,
        },
        "expected_recall": recall,
        "metrics": metrics,
        "versions": {
            "tf_dynidx": _version("tf_dynidx"),
            "tensorflow": tf.__version__,
            "keras": _version("keras" if IS_KERAS_3 else "tf_keras"),
        },
        "signatures": {name: _described(function) for name, function in signatures.items()},
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from its folder, without an install
        return "unknown"


def _described(function):
    inputs = function.structured_input_signature
    specs = dict(inputs[0][0]) if inputs[0] else dict(inputs[1])
    return {
        "inputs": {name: _tensor(name, spec) for name, spec in specs.items()},
        "outputs": {name: _tensor(name, s) for name, s in function.structured_outputs.items()},
    }


def _tensor(name, spec):
    shape = None if spec.shape.rank is None else spec.shape.as_list()
    known = {"meaning": MEANINGS[name]} if name in MEANINGS else {}
    return {"dtype": spec.dtype.name, "shape": shape} | known
