"""Writes an export: the SavedModel, its model card and its warm-up request, whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_dynidx.files import new_directory
from tf_dynidx.serving.card import model_card, write_card
from tf_dynidx.serving.indexes import make_index
from tf_dynidx.serving.recall import expected_recall
from tf_dynidx.serving.retrieval import Retrieval
from tf_dynidx.serving.table import Table
from tf_dynidx.serving.warmup import blank, write_warmup


class Contents(NamedTuple):
    """What an export is made of.

    Attributes:
        encode_query, encode_target: as for `Retrieval`.
        resources: list of variables and tables that these use.
        table: the encodings of the targets.
        identifiers: string or int64 [targets].
    """

    encode_query: Any
    encode_target: Any
    resources: list
    table: Table
    identifiers: tf.Tensor


def write(
    folder: str | os.PathLike,
    contents: Contents,
    embeddings: np.ndarray,
    samples: dict[str, tf.Tensor] | None,
    metrics: dict,
    replace: bool,
    *,
    k: int,
    index: str,
    row_dtype: str,
    budget: int | None,
    more: dict | None = None,
) -> str:
    """Writes an export.

    Args:
        folder: Of the SavedModel.
        contents: See there.
        embeddings: float32 ``[targets, dim]``, against which recall is measured.
        samples: Query features, or None.
        metrics: For the model card.
        replace: Whether an existing folder is replaced.
        k, index, row_dtype, budget: As for `export_retrieval`.
        more: Further entries of the model card.

    Returns:
        ``folder`` as a string.
    """
    held = make_index(index, contents.table, k, budget)
    queries = None if samples is None else contents.encode_query(samples)["embedding"]
    recall = expected_recall(held, embeddings, k, queries)
    module = Retrieval(
        contents.encode_query,
        contents.encode_target,
        held,
        contents.identifiers,
        k,
        contents.resources,
    )
    signatures = module.signatures()
    card = model_card(held, contents.identifiers, k, row_dtype, budget, recall, metrics, signatures) | (
        more or {}
    )
    requests = _warmup_requests(signatures["retrieve"], contents.encode_query, samples)
    card["warmup_requests"] = len(requests)
    with new_directory(folder, replace=replace) as place, _numbered_tables(contents.resources):
        tf.saved_model.save(module, str(place), signatures=signatures)
        write_card(place, card)
        if requests:
            write_warmup(place, requests)
    return os.fspath(folder)


def _warmup_requests(retrieve, encode_query, samples) -> list:
    """A request for ``retrieve``, if one can be made up that it answers.

    TF Serving does not load a model that fails at its warm-up.
    """
    (specs,) = encode_query.input_signature
    if samples is None:
        samples = {name: blank(spec) for name, spec in specs.items()}
    else:
        samples = {name: value[:1] for name, value in samples.items()}
    try:
        retrieve(samples)
    except tf.errors.OpError:
        return []
    return [("retrieve", samples)]


@contextlib.contextmanager
def _numbered_tables(resources: list) -> Iterator[None]:
    """Lets tables be saved under numbers.

    TensorFlow saves a table that was read from a file under a name with the file's absolute path.
    The file itself goes along as an asset, and the path says nothing on another machine.
    """
    tables = [part for part in resources if isinstance(part, tf.lookup.StaticHashTable)]
    names = [table._shared_name for table in tables]
    try:
        for number, table in enumerate(tables):
            table._shared_name = f"table_{number}"
        yield
    finally:
        for table, name in zip(tables, names, strict=True):
            table._shared_name = name
