"""The SavedModel that answers a query with the identifiers of its best targets.

What is saved is a plain `tf.Module` with what its signatures use, and nothing else: neither Keras
nor this package is needed to load it, and no optimizer state or Keras configuration goes with it.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral

import numpy as np
import tensorflow as tf

from tf_dynidx.index import checks
from tf_dynidx.serving.folders import destination
from tf_dynidx.serving.identifiers import checked_identifiers
from tf_dynidx.serving.indexes import INDEXES
from tf_dynidx.serving.retrieval import EXCLUDE, K
from tf_dynidx.serving.table import ROW_DTYPES, packed
from tf_dynidx.serving.writing import Contents, write

Features = tf.Tensor | dict[str, tf.Tensor]
FeatureSpec = tf.TensorSpec | Mapping[str, tf.TensorSpec]


def export_retrieval(
    path: str | os.PathLike,
    *,
    encode_query: Callable[[Features], tf.Tensor],
    query_spec: FeatureSpec,
    encode_target: Callable[[Features], tf.Tensor],
    target_spec: FeatureSpec,
    embeddings,
    identifiers,
    k: int = 100,
    version: int | str | None = None,
    index: str = "exact",
    row_dtype: str = "float32",
    budget: int | None = None,
    sample_queries: Features | None = None,
    metrics: Mapping | None = None,
    trackables: Iterable[tf.Module] = (),
    replace: bool = False,
) -> str:
    """Writes a SavedModel that encodes queries and finds their best targets.

    Its signatures, all with a free batch size:

    - ``retrieve``, also ``serving_default``: from query features to ``scores``, float32
      ``[batch, k]``, and ``identifiers``, string or int64 ``[batch, k]``, best first; of equal
      scores, the earlier target first.
    - ``retrieve_with``: the same, with two inputs more, since a signature has no optional ones:
      ``k``, int32, one number or one for each query, at most the k of the export; and ``exclude``,
      identifiers ``[batch, any]`` that are left out, padded with ``""`` or ``-1``. The outputs are as
      wide as the largest k.
    - ``similar``: from ``identifiers`` ``[batch]`` of targets to their neighbours by inner product,
      without themselves.
    - ``encode_query`` and ``encode_target``: ``embedding``, float32 ``[batch, dim]``.

    Inputs are named by the keys of the specs; a spec that is one tensor makes the input ``query`` or
    ``target``. Where there are fewer targets than asked for, the rest is ``""`` or ``-1`` with the
    lowest float32 for a score. An identifier that is unknown and a k out of range are refused when
    the model is asked.

    Beside the SavedModel, in ``assets.extra``, lie a model card (``model_card.json``) and a warm-up
    request for TF Serving. The folder appears whole or not at all. The embeddings are stored as they
    are given, and do not follow what is trained later; `refresh_export` writes a version with others.

    Args:
        path: Folder of the SavedModel, or with ``version`` of its versions. Folders above it are made.
        encode_query: From query features, in the structure of ``query_spec``, to float32
            ``[batch, dim]``. It is traced as it stands: call layers with ``training=False`` in it.
        query_spec: One tensor, or one for each named feature; leading axes ``None``.
        encode_target: The same for targets.
        target_spec: The same for targets.
        embeddings: ``[targets, dim]``, finite.
        identifiers: One string or integer for each target, without repeats; not ``""`` nor ``-1``.
        k: How many targets ``retrieve`` returns, at most the number of targets.
        version: None (default): ``path`` is the SavedModel, as `tf.saved_model.load` takes it. A
            number of at least 1, or "next" for one above the newest: ``path/<version>`` is, as TF
            Serving wants it.
        index: "exact" (default) scores every target; "tree" only those near to the query.
        row_dtype: In which targets are kept: "float32" (default), "float16" (half the memory) or
            "int8" (a quarter, each row with a scale of its own). Scores are those of what is kept.
        budget: How many targets a tree scores for a query; default as for `DynamicIndex.search`.
        sample_queries: Query features to measure the recall of the index with, and the first of
            them for the warm-up; in the structure of ``query_spec``. Default: encodings of targets
            stand in for queries, and the card says so.
        metrics: Figures of the model for the model card, as JSON can hold them.
        trackables: Keras models, layers or modules that hold the lookup tables of the callables.
            Variables are found without it.
        replace: Whether an existing folder is replaced, once the new one is complete.

    Returns:
        The folder of the SavedModel, as a string.

    Raises:
        OutputError: A ``ValueError``, if the folder is taken.
        ValueError: If an argument is not as described here; nothing is written.

    Example:

        export_retrieval(
            "exported",
            encode_query=lambda query: query_tower(query, training=False),
            query_spec=tf.TensorSpec([None], tf.string),
            encode_target=lambda target: target_tower(target, training=False),
            target_spec=tf.TensorSpec([None], tf.string),
            embeddings=target_tower.predict(texts),
            identifiers=names,
            trackables=[query_tower, target_tower],
        )
        retrieve = tf.saved_model.load("exported").signatures["retrieve"]
        retrieve(query=tf.constant(["a query"]))["identifiers"]
    """
    checks.one_of("index", index, INDEXES)
    checks.one_of("row_dtype", row_dtype, ROW_DTYPES)
    if budget is not None:
        budget = checks.positive_int("budget", budget)
    folder = destination(path, version)
    embeddings = _checked_embeddings(embeddings)
    identifiers = checked_identifiers(identifiers, len(embeddings))
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= len(embeddings):
        raise ValueError(
            "k is an integer from 1 to the number of targets. "
            f"Received: k={k!r} with {len(embeddings)} targets."
        )
    trackables = _checked_trackables(trackables)

    dim = embeddings.shape[1]
    encode_query = _encoder("encode_query", encode_query, "query", query_spec, dim)
    encode_target = _encoder("encode_target", encode_target, "target", target_spec, dim)
    taken = {K, EXCLUDE} & encode_query.input_signature[0].keys()
    if taken:
        raise ValueError(
            f"k and exclude are inputs of retrieve_with already. Received: a feature {taken.pop()!r} "
            "of encode_query. Name it otherwise."
        )
    functions = [each.get_concrete_function() for each in (encode_query, encode_target)]
    contents = Contents(
        encode_query,
        encode_target,
        # Not the trackables themselves: a compiled model would bring its optimizer along.
        _resources(functions, trackables),
        packed(embeddings, row_dtype),
        identifiers,
    )
    samples = None
    if sample_queries is not None:
        samples = _sampled(encode_query, sample_queries, query_spec)
    options = {"k": int(k), "index": index, "row_dtype": row_dtype, "budget": budget}
    return write(folder, contents, embeddings, samples, dict(metrics or {}), replace, **options)


def _checked_embeddings(embeddings) -> np.ndarray:
    """The embeddings as float32 ``[targets, dim]``."""
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(
            "embeddings are [targets, dim], with at least one target. "
            f"Received: shape {list(embeddings.shape)}."
        )
    # The extremes tell without an array of the size of the embeddings: NaN and infinity carry over.
    if not np.isfinite([embeddings.min(), embeddings.max()]).all():
        row = np.argmin(np.isfinite(embeddings).all(axis=1))
        raise ValueError(f"embeddings are finite. Received: row {row} is {embeddings[row]}.")
    return embeddings


def _checked_trackables(trackables) -> list:
    """The trackables as a list, each one an object whose parts TensorFlow can walk through."""
    trackables = list(trackables) if isinstance(trackables, Iterable) else [trackables]
    for trackable in trackables:
        if not isinstance(trackable, tf.__internal__.tracking.Trackable):
            raise ValueError(
                f"trackables are Keras models, layers or modules. Received: {trackable!r}."
            )
    return trackables


def _encoder(name: str, encode: Callable, input_name: str, spec: FeatureSpec, dim: int):
    """The callable as a `tf.function` from a dict to ``{"embedding": float32 [batch, dim]}``."""
    specs = dict(spec) if isinstance(spec, Mapping) else {input_name: spec}
    if not specs:
        raise ValueError(f"{name} has at least one feature. Received: {spec}.")
    for feature, tensor in specs.items():
        # TensorFlow would save the input under another name, or not at all.
        if not re.fullmatch(r"[A-Za-z]\w*", feature, re.ASCII):
            raise ValueError(
                f"The features of {name} are named by ASCII letters, digits and underscores, a "
                f"letter first. Received: {feature!r}."
            )
        if (
            not isinstance(tensor, tf.TensorSpec)
            or not tensor.shape.rank
            or tensor.shape[0] is not None
        ):
            raise ValueError(
                f"The features of {name} are each a tf.TensorSpec with a leading axis of None. "
                f"Received: {tensor} for {feature!r}."
            )
    # The names of tensors, not the keys of the dict, become those of the signature's inputs.
    specs = {key: tf.TensorSpec(s.shape, s.dtype, name=key) for key, s in specs.items()}

    @tf.function(input_signature=[specs])
    def encoder(features):
        embedding = encode(features if isinstance(spec, Mapping) else features[input_name])
        return {"embedding": tf.convert_to_tensor(embedding)}

    returned = encoder.get_concrete_function().structured_outputs["embedding"]
    if returned.dtype != tf.float32 or returned.shape != [None, dim]:
        raise ValueError(
            f"{name} returns float32 [batch, {dim}], as wide as the embeddings, for any batch "
            f"size. Received: {returned.dtype.name} {returned.shape}."
        )
    return encoder


def _sampled(encode_query, queries, spec) -> dict:
    """Sample queries as a dict of tensors, as the function takes them."""
    (specs,) = encode_query.input_signature
    queries = dict(queries) if isinstance(spec, Mapping) else {"query": queries}
    try:
        queries = {name: tf.convert_to_tensor(queries[name], specs[name].dtype) for name in specs}
        fitting = all(specs[name].is_compatible_with(value) for name, value in queries.items())
        fitting &= len({len(value) for value in queries.values()}) == 1
        fitting &= all(len(value) > 0 for value in queries.values())
    except (KeyError, TypeError, ValueError):
        fitting = False
    if not fitting:
        raise ValueError(
            "sample_queries are features as query_spec describes them, of one query or more. "
            f"Received: {queries!r:.200} for {spec}."
        )
    return queries


def _resources(functions: Iterable, trackables: list) -> list:
    """The variables and lookup tables that traced functions use.

    A function knows its variables. Of a table it knows the handle alone, which does not say how to
    fill the table after loading: the object behind it has to be found among the trackables.

    Args:
        functions: Concrete functions.
        trackables: As for `export_retrieval`.

    Raises:
        ValueError: If a function uses a table that the trackables do not hold.
    """
    functions = list(functions)
    owners = {id(variable.handle): variable for f in functions for variable in f.variables}
    for trackable in trackables:
        for part in tf.train.TrackableView(trackable).descendants():
            if isinstance(part, tf.saved_model.experimental.TrackableResource):
                owners[id(part.resource_handle)] = part
    # A dict, as several functions use the same resource.
    handles = {id(h): h for f in functions for h in f.captured_inputs if h.dtype == tf.resource}
    missing = len(handles.keys() - owners.keys())
    if missing:
        raise ValueError(
            f"The callables use {missing} lookup tables that no trackable holds. Add the layers or "
            f"models that hold them to trackables. Received: {trackables}."
        )
    return [owners[handle] for handle in handles]
