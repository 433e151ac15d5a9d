"""A new version of an export, with targets added, removed and encoded anew."""

import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dynidx.corpus import TargetCorpus, encode_all
from tf_dynidx.index import checks
from tf_dynidx.serving.card import read_card
from tf_dynidx.serving.folders import destination, newest, versions
from tf_dynidx.serving.identifiers import checked_identifiers
from tf_dynidx.serving.indexes import INDEXES, stored_table
from tf_dynidx.serving.table import ROW_DTYPES, joined, overwritten, packed, taken, unpacked
from tf_dynidx.serving.writing import Contents, write


class _Changes(NamedTuple):
    """Rows that stay, int [kept]; rows overwritten, int [updated], by their place among all."""

    kept: np.ndarray
    updated: np.ndarray


def refresh_export(
    path: str | os.PathLike,
    added: TargetCorpus | None = None,
    removed=None,
    updated: TargetCorpus | None = None,
    *,
    output: str | os.PathLike | None = None,
    k: int | None = None,
    index: str | None = None,
    row_dtype: str | None = None,
    budget: int | None = None,
) -> str:
    """Writes the next version of an export, from the newest one.

    Nothing is trained, and only what is added or updated is encoded, by the export's own
    ``encode_target``. Without changes of targets it packs the same targets another way.

    Rows that were kept as float16 or int8 are carried over bit by bit; with another ``row_dtype`` they
    start from what was kept, so that nothing is regained. The recall in the model card is measured
    anew, against the rows as they were kept, with targets in the place of queries.

    Args:
        path: Folder of the versions, or of an export without versions (then name an ``output``).
        added: New targets, with the features that ``encode_target`` takes; they come last.
        removed: Identifiers of targets that go.
        updated: Targets whose features have changed; they keep their places.
        output: Folder of the versions that the new one joins; default ``path``.
        k, index, row_dtype, budget: As for `export_retrieval`; default: as they were. Another
            ``index`` begins with its default budget.

    Returns:
        The folder of the new version, as a string.

    Raises:
        OutputError: A ``ValueError``, if the version was written by someone else meanwhile.
        ValueError: If an argument is not as described, there is no such export, an identifier to be
            removed or updated is unknown, one to be added is known, or one is named twice; nothing is
            written.

    Example:

        model.export_retrieval("served", version=1)
        new = tdx.TargetCorpus(["a new text"], identifiers=["new"])
        tdx.serving.refresh_export("served", added=new, removed=["old"])  # served/2
    """
    output = _checked_output(path, output)
    source = newest(path)
    card = read_card(source)
    options = _options(card, k, index, row_dtype, budget)
    loaded = tf.saved_model.load(str(source))
    identifiers = loaded.identifiers.values.numpy()
    number, strings = len(identifiers), card["identifiers"] == "string"
    added_ids = _identifiers_of("added", added, strings)
    updated_ids = _identifiers_of("updated", updated, strings)
    changes = _changes(identifiers, added_ids, _as_keys("removed", removed, strings), updated_ids)

    table = stored_table(loaded.index)
    if options["row_dtype"] != card["index"]["row_dtype"]:
        table = packed(unpacked(table), options["row_dtype"])
    if len(updated_ids):
        fresh = packed(_encoded(loaded.encode_target, updated), options["row_dtype"])
        table = overwritten(table, changes.updated, fresh)
    table = taken(table, changes.kept)
    if len(added_ids):
        fresh = packed(_encoded(loaded.encode_target, added), options["row_dtype"])
        table = joined(table, fresh)
    identifiers = np.concatenate([identifiers[changes.kept], added_ids])
    if not 1 <= options["k"] <= len(identifiers):
        raise ValueError(
            "k is at most the number of targets. "
            f"Received: k={options['k']} with {len(identifiers)} targets left."
        )
    contents = Contents(
        loaded.encode_query,
        loaded.encode_target,
        list(loaded.resources),
        table,
        checked_identifiers(identifiers, len(identifiers)),
    )
    more = {
        "refreshed": {
            "from": os.path.basename(source),
            "added": len(added_ids),
            "removed": number - len(changes.kept),
            "updated": len(updated_ids),
        }
    }
    folder = destination(output, "next")
    metrics = card["metrics"]
    return write(folder, contents, unpacked(table), None, metrics, False, more=more, **options)


def _checked_output(path, output):
    source = newest(path)
    if not (source / "saved_model.pb").is_file():
        raise ValueError(f"There is no export. Received: {os.fspath(path)!r}.")
    if output is None:
        if not versions(path):
            raise ValueError(
                "An export without versions cannot be given the next one. "
                f"Received: {os.fspath(path)!r}. Name an output folder for versions."
            )
        return path
    return output


def _options(card, k, index, row_dtype, budget):
    held = card["index"]
    if index is not None:
        checks.one_of("index", index, INDEXES)
    if row_dtype is not None:
        checks.one_of("row_dtype", row_dtype, ROW_DTYPES)
    if budget is None and index in (None, held["kind"]):
        budget = held["budget"]
    return {
        "k": card["k"] if k is None else checks.positive_int("k", k),
        "index": index or held["kind"],
        "row_dtype": row_dtype or held["row_dtype"],
        "budget": None if budget is None else checks.positive_int("budget", budget),
    }


def _identifiers_of(name, corpus, strings):
    if corpus is None:
        return _as_keys(name, None, strings)
    if not isinstance(corpus, TargetCorpus):
        raise ValueError(f"{name} must be a TargetCorpus. Received: {corpus!r}")
    return _as_keys(name, corpus.identifiers, strings)


def _as_keys(name, identifiers, strings):
    """Identifiers as NumPy holds those of an export: bytes in an object array, or int64."""
    if identifiers is None:
        return np.array([], object if strings else np.int64)
    array = np.asarray(identifiers)
    if array.ndim != 1 or (array.size and (array.dtype.kind in "USO") != strings):
        raise ValueError(
            f"{name} must be identifiers like those of the export, "
            f"{'strings' if strings else 'integers'}. Received: {identifiers!r}"
        )
    if strings:
        values = [each.encode() if isinstance(each, str) else each for each in array.tolist()]
        array = np.empty(len(values), object)
        array[:] = values
        return array
    return array.astype(np.int64)


def _changes(identifiers, added, removed, updated):
    """Which rows stay and which are overwritten."""
    row_of = {identifier: row for row, identifier in enumerate(identifiers.tolist())}
    named = {}
    for what, some in (("added", added), ("removed", removed), ("updated", updated)):
        for identifier in some.tolist():
            if identifier in named:
                raise ValueError(
                    f"A target is added, removed or updated once. Received: {identifier!r}, {what} and "
                    f"{named[identifier]}."
                )
            named[identifier] = what
            if (identifier in row_of) == (what == "added"):
                state = "is there already" if what == "added" else "is unknown"
                raise ValueError(f"A target to be {what} {state}. Received: {identifier!r}.")
    gone = np.array([row_of[each] for each in removed.tolist()], np.int64)
    return _Changes(
        np.delete(np.arange(len(identifiers)), gone),
        np.array([row_of[each] for each in updated.tolist()], np.int64),
    )


def _encoded(encode_target, corpus):
    """Encodings of a corpus by an encoder that was loaded: float32 [targets, dim]."""
    (specs,) = encode_target.input_signature
    features = corpus.features if isinstance(corpus.features, dict) else {"target": corpus.features}
    wanted = {name: (spec.dtype.name, spec.shape.as_list()[1:]) for name, spec in specs.items()}
    if features.keys() != wanted.keys():
        raise ValueError(
            f"Targets must have the features that the export encodes: {wanted}. "
            f"Received: {sorted(features)}"
        )
    for name, spec in specs.items():
        if not spec.is_compatible_with(features[name]):
            raise ValueError(
                f"Targets must have the features that the export encodes: {wanted}. Received: "
                f"{name} of {features[name].dtype.name} {features[name].shape.as_list()}"
            )

    def encode(rows):
        return encode_target({n: tf.gather(f, rows) for n, f in features.items()})["embedding"]

    encodings = encode_all(encode, len(corpus))
    checks.finite("encodings of targets", encodings, tf.float32)
    return encodings
