"""`TargetCorpus`: the features and identifiers of all targets."""

import numpy as np
import tensorflow as tf


class TargetCorpus:
    """All targets that a query can be answered with: what the target tower encodes.

    A target is addressed by its row, its place along the leading axis. The features stay tensors
    outside the graph, so that their size is not limited to that of a graph constant.

    Args:
        features: a tensor or array [targets, ...], or a dict of them, as the target tower takes them.
        identifiers: what the user calls the targets: distinct strings or integers [targets]. Default:
            the rows themselves.

    Raises:
        ValueError: there are no targets, the leading axes differ, or identifiers are not one for each
            target, distinct, strings or integers.

    Example:

    >>> corpus = TargetCorpus({"price": [3.0, 5.0]}, identifiers=["tea", "coffee"])
    >>> corpus.rows_of(["coffee"]).numpy()
    array([1], dtype=int32)
    """

    def __init__(self, features, identifiers=None):
        self.features = tf.nest.map_structure(tf.convert_to_tensor, _as_structure(features))
        flat = tf.nest.flatten(self.features)
        shapes = [tuple(tensor.shape) for tensor in flat]
        if not flat or any(len(shape) == 0 for shape in shapes):
            raise ValueError(
                "features must be a tensor with a leading axis of targets, or a dict of such "
                f"tensors. Received: shapes {shapes}"
            )
        if len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                "All features must have the same number of targets along their leading axis. "
                f"Received: shapes {shapes}"
            )
        self.size = shapes[0][0]
        if self.size == 0:
            raise ValueError("A corpus needs at least one target. Received: 0 targets")
        self.identifiers = _checked_identifiers(identifiers, self.size)
        self._rows = None

    def __len__(self):
        return self.size

    def gather(self, rows):
        """The features of the given rows, int [rows], in the structure of `features`."""
        return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), self.features)

    def rows_of(self, identifiers):
        """Rows of identifiers: int32, the shape of `identifiers`; -1 for one that is unknown.

        Usable in a `tf.data` pipeline. (XLA has no string look-up: turn identifiers into rows before
        a compiled step, not in it.)

        Raises:
            ValueError: strings for identifiers that are integers, or the other way round.
        """
        identifiers = tf.convert_to_tensor(identifiers)
        strings = self.identifiers.dtype.kind == "U"
        if not (identifiers.dtype == tf.string if strings else identifiers.dtype.is_integer):
            raise ValueError(
                f"The identifiers of this corpus are {'strings' if strings else 'integers'}: look up "
                f"the same. Received: dtype {identifiers.dtype.name}"
            )
        if self._rows is None:
            # Outside any graph being traced, so that the table lives as long as the corpus.
            with tf.init_scope():
                keys = tf.constant(self.identifiers)
                initializer = tf.lookup.KeyValueTensorInitializer(
                    keys, tf.range(self.size, dtype=tf.int32)
                )
                self._rows = tf.lookup.StaticHashTable(initializer, default_value=-1)
        return self._rows.lookup(tf.cast(identifiers, self._rows.key_dtype))


def _as_structure(features):
    """A dict stays a dict of arrays; anything else is one array, lists included."""
    if isinstance(features, dict):
        return {name: _as_array(value) for name, value in features.items()}
    return _as_array(features)


def _as_array(value):
    return value if tf.is_tensor(value) else np.asarray(value)


def _checked_identifiers(identifiers, size):
    if identifiers is None:
        return np.arange(size, dtype=np.int64)
    if tf.is_tensor(identifiers):
        identifiers = identifiers.numpy()
    identifiers = np.asarray(identifiers)
    if identifiers.dtype.kind == "O":
        identifiers = np.array([_as_text(value) for value in identifiers])
    if identifiers.dtype.kind in "iu":
        identifiers = identifiers.astype(np.int64)
    elif identifiers.dtype.kind == "S":
        identifiers = np.char.decode(identifiers, "utf-8")
    elif identifiers.dtype.kind != "U":
        raise ValueError(
            f"identifiers must be strings or integers. Received: dtype {identifiers.dtype}"
        )
    if identifiers.shape != (size,):
        raise ValueError(
            f"There must be one identifier for each of the {size} targets. "
            f"Received: identifiers of shape {identifiers.shape}"
        )
    distinct, times = np.unique(identifiers, return_counts=True)
    if len(distinct) < size:
        raise ValueError(
            f"Identifiers must be distinct. Received: {distinct[times > 1][0]!r} "
            f"{times[times > 1][0]} times"
        )
    return identifiers


def _as_text(value):
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    raise ValueError(f"identifiers must be strings or integers. Received: {value!r}")
