"""Asks an exported SavedModel for the best targets of text queries."""

import os
import sys
from pathlib import Path
from typing import TextIO

import tensorflow as tf

from tf_dynidx.cli.data import DataError
from tf_dynidx.serving.folders import newest


def search(folder: str | os.PathLike, queries: list[str], k: int = 10) -> list[list[tuple[str, float]]]:
    """The best targets of each query, best first.

    Args:
        folder: An export whose ``retrieve`` signature takes text, or versions, of which the newest.
        queries: What to look for.
        k: How many targets a query gets, at most as many as the export returns.

    Returns:
        For each query, k pairs of identifier and score, or fewer where there are no more. Integer
        identifiers are written as text.

    Raises:
        DataError: If the folder cannot be asked, or if k is out of range.
    """
    retrieve = _load_retrieve(folder)
    name = _text_input(retrieve, folder)
    largest = retrieve.structured_outputs["scores"].shape[1]
    if not 1 <= k <= largest:
        raise DataError(
            f"{Path(folder)}: the export returns {largest} targets a query. Received: k={k}. "
            f"Ask for 1 to {largest}, or export with a larger k."
        )
    found = retrieve(**{name: tf.constant(queries, tf.string, [len(queries)])})
    scores = found["scores"].numpy()[:, :k].tolist()
    identifiers = found["identifiers"].numpy()[:, :k].tolist()
    return [
        [(_text(each), score) for each, score in zip(*pairs, strict=True) if each not in (b"", -1)]
        for pairs in zip(identifiers, scores, strict=True)
    ]


def print_results(
    queries: list[str], results: list[list[tuple[str, float]]], file: TextIO | None = None
) -> None:
    """Prints each query and below it rank, score and identifier of its targets, aligned.

    Args:
        queries: As for `search`.
        results: What `search` returned.
        file: Where to print; standard output if None.

    Example:

        print_results(["red hat"], [[("hat/red", 0.91), ("hat/blue", 0.5)]])

        red hat
          1  0.9100  hat/red
          2  0.5000  hat/blue
    """
    file = sys.stdout if file is None else file
    for query, targets in zip(queries, results, strict=True):
        print(query, file=file)
        scores = [f"{score:.4f}" for _, score in targets]
        score_width = max(map(len, scores), default=0)
        rank_width = len(str(len(targets)))
        for rank, ((identifier, _), score) in enumerate(zip(targets, scores, strict=True), 1):
            print(f"  {rank:{rank_width}}  {score:>{score_width}}  {identifier}", file=file)


def _load_retrieve(folder: str | os.PathLike):
    """The ``retrieve`` signature of an export."""
    path = newest(folder)
    if not path.is_dir():
        problem = "this is not a folder" if path.exists() else "there is no such folder"
        raise DataError(
            f"{path}: {problem}. Received: the path {os.fspath(folder)!r} in {os.getcwd()}. "
            "Name the folder of an export."
        )
    if not tf.saved_model.contains_saved_model(str(path)):
        raise DataError(
            f"{path}: this is not a SavedModel. Received: a folder without saved_model.pb. "
            "Name the folder of an export."
        )
    try:
        signatures = tf.saved_model.load(str(path)).signatures
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise DataError(
            f"{path}: the SavedModel cannot be loaded. Received: {type(error).__name__}, {error}. "
            "Export it again."
        ) from error
    if "retrieve" not in signatures:
        raise DataError(
            f"{path}: the SavedModel has no signature retrieve. Received: "
            f"{', '.join(sorted(signatures)) or 'no signatures'}. Name the folder of an export."
        )
    return signatures["retrieve"]


def _text_input(retrieve, folder: str | os.PathLike) -> str:
    """The name of the signature's one input, if that is a list of texts."""
    specs = retrieve.structured_input_signature[1]
    name, spec = next(iter(specs.items()))
    if len(specs) > 1 or spec.dtype != tf.string or spec.shape.rank != 1:
        wanted = ", ".join(
            f"{name} ({spec.dtype.name} {spec.shape})" for name, spec in sorted(specs.items())
        )
        raise DataError(
            f"{Path(folder)}: this export is not asked with text alone: it wants {wanted}. "
            "Received: text. Ask its signature retrieve from a program."
        )
    return name


def _text(identifier: bytes | int) -> str:
    # Not every string that TensorFlow holds is UTF-8.
    return identifier.decode(errors="replace") if isinstance(identifier, bytes) else str(identifier)
