"""The SavedModel that answers a query with the identifiers of its best targets.

What is saved is a plain `tf.Module` with what its signatures use, and nothing else: neither Keras
nor this package is needed to load it, and no optimizer state or Keras configuration goes with it.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral

import numpy as np
import tensorflow as tf

from tf_dynidx.files import new_directory
from tf_dynidx.ops.search import exact_top_k

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
    trackables: Iterable[tf.Module] = (),
    replace: bool = False,
) -> str:
    """Writes a SavedModel that encodes queries and searches the targets exactly.

    Its signatures, all with a free batch size:

    - ``retrieve``, also ``serving_default``: ``scores``, float32 ``[batch, k]``, and
      ``identifiers``, string or int64 ``[batch, k]``, best first; of equal scores, the earlier
      target first.
    - ``encode_query`` and ``encode_target``: ``embedding``, float32 ``[batch, dim]``.

    Their inputs are named by the keys of the specs; a spec that is one tensor makes the input
    ``query`` or ``target``. The folder appears whole or not at all. The embeddings are stored as
    they are given, and do not follow what is trained later.

    Args:
        path: Folder of the SavedModel. Folders above it are made.
        encode_query: From query features, in the structure of ``query_spec``, to float32
            ``[batch, dim]``. It is traced as it stands: call layers with ``training=False`` in it.
        query_spec: One tensor, or one for each named feature; leading axes ``None``.
        encode_target: The same for targets.
        target_spec: The same for targets.
        embeddings: ``[targets, dim]``, finite, stored as float32.
        identifiers: One string or integer for each target, without repeats.
        k: How many targets ``retrieve`` returns, at most the number of targets.
        trackables: Keras models, layers or modules that hold the lookup tables of the callables.
            Variables are found without it.
        replace: Whether an existing folder is replaced, once the new one is complete.

    Returns:
        ``path`` as a string.

    Raises:
        OutputError: A ``ValueError``, if ``path`` is taken.
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
    embeddings = _checked_embeddings(embeddings)
    identifiers = _checked_identifiers(identifiers, len(embeddings))
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= len(embeddings):
        raise ValueError(
            "k is an integer from 1 to the number of targets. "
            f"Received: k={k!r} with {len(embeddings)} targets."
        )
    trackables = _checked_trackables(trackables)

    module = tf.Module()
    # Variables, since a graph that holds them as constants could not be saved above 2 GB.
    module.embeddings = tf.Variable(embeddings, trainable=False, name="embeddings")
    module.identifiers = tf.Variable(identifiers, trainable=False, name="identifiers")

    dim = embeddings.shape[1]
    encode_query = _encoder("encode_query", encode_query, "query", query_spec, dim)
    encode_target = _encoder("encode_target", encode_target, "target", target_spec, dim)

    @tf.function(input_signature=encode_query.input_signature)
    def retrieve(features):
        queries = encode_query(features)["embedding"]
        scores, rows = exact_top_k(queries, module.embeddings, int(k))
        return {"scores": scores, "identifiers": tf.gather(module.identifiers, rows)}

    functions = {"retrieve": retrieve, "encode_query": encode_query, "encode_target": encode_target}
    signatures = {name: function.get_concrete_function() for name, function in functions.items()}
    signatures["serving_default"] = signatures["retrieve"]
    # Not the trackables themselves: a compiled model would bring its optimizer along.
    module.resources = _resources(signatures.values(), trackables)

    with new_directory(path, replace=replace) as folder, _numbered_tables(module.resources):
        tf.saved_model.save(module, str(folder), signatures=signatures)
    return os.fspath(path)


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


def _checked_identifiers(identifiers, targets: int) -> tf.Tensor:
    """The identifiers as string or int64 ``[targets]``."""
    try:
        tensor = tf.convert_to_tensor(identifiers)
    except (TypeError, ValueError) as error:
        raise ValueError(f"identifiers are all strings or all integers. Received: {error}") from error
    if tensor.dtype != tf.string:
        # What is above int64 would silently become another, negative, identifier.
        if not tensor.dtype.is_integer or tensor.dtype == tf.uint64:
            raise ValueError(
                f"identifiers are strings, or integers that fit int64. Received: {tensor.dtype.name}."
            )
        tensor = tf.cast(tensor, tf.int64)
    if tensor.shape != [targets]:
        raise ValueError(
            f"There is one identifier for each of the {targets} embeddings. "
            f"Received: identifiers of shape {tensor.shape.as_list()}."
        )
    values = tensor.numpy().tolist()
    if len(set(values)) < targets:
        row_of = {}
        for row, value in enumerate(values):
            if row_of.setdefault(value, row) != row:
                raise ValueError(
                    f"identifiers do not repeat. Received: {value!r} in rows {row_of[value]} and {row}."
                )
    return tensor


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
