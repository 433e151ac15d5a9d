"""Identifiers of targets: what is accepted as such, and how an export finds their rows."""

import numpy as np
import tensorflow as tf

from tf_dynidx.ops.nodes import NEVER


def checked_identifiers(identifiers, targets: int) -> tf.Tensor:
    """The identifiers as string or int64 ``[targets]``.

    Raises:
        ValueError: If they are not one string or one integer for each target, without repeats, or
            one of them is what stands for nothing: the empty string, or -1.
    """
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
    nothing = nothing_of(tensor.dtype)
    if nothing in values:
        raise ValueError(
            f"{nothing!r} stands for no target and is no identifier. "
            f"Received: {nothing!r} in row {values.index(nothing)}."
        )
    if len(set(values)) < targets:
        row_of = {}
        for row, value in enumerate(values):
            if row_of.setdefault(value, row) != row:
                raise ValueError(
                    f"identifiers do not repeat. Received: {value!r} in rows {row_of[value]} and {row}."
                )
    return tensor


def nothing_of(dtype: tf.DType) -> bytes | int:
    """What stands in the place of an identifier where there is none."""
    return b"" if dtype == tf.string else -1


class Identifiers(tf.Module):
    """The identifiers of all rows, and from them back to rows.

    The way back is a binary search among sorted fingerprints, kept in variables. A lookup table would
    put its keys into the graph, which is limited to 2 GB, or into a file of lines.

    Args:
        identifiers: string or int64 [targets], distinct.
    """

    def __init__(self, identifiers: tf.Tensor):
        super().__init__()
        fingerprints = _fingerprints(identifiers).numpy()
        order = np.argsort(fingerprints, kind="stable").astype(np.int32)
        fingerprints = fingerprints[order]
        _, times = np.unique(fingerprints, return_counts=True)
        self._longest = int(times.max())  # 1, unless two strings share a fingerprint
        self.values = tf.Variable(identifiers, trainable=False, name="identifiers")
        self.fingerprints = tf.Variable(fingerprints, trainable=False, name="fingerprints")
        self.order = tf.Variable(order, trainable=False, name="order")

    @property
    def dtype(self):
        """The dtype of an identifier: string or int64."""
        return self.values.dtype

    def of(self, rows):
        """The identifiers of rows, int32 of any shape; for row -1, what stands for nothing."""
        nothing = tf.constant(nothing_of(self.dtype), self.dtype)
        return tf.where(rows < 0, nothing, tf.gather(self.values, tf.maximum(rows, 0)))

    def rows_of(self, identifiers):
        """Rows of identifiers: int32 of the same shape; -1 for one that is unknown."""
        wanted = tf.reshape(identifiers, [-1])
        first = tf.searchsorted(self.fingerprints, _fingerprints(wanted))
        rows = tf.fill(tf.shape(wanted), NEVER)
        last = self.order.shape[0] - 1
        for step in range(self._longest):
            row = tf.gather(self.order, tf.minimum(first + step, last))
            rows = tf.where(tf.gather(self.values, row) == wanted, row, rows)
        return tf.reshape(rows, tf.shape(identifiers))


def _fingerprints(identifiers):
    """A number for each of some identifiers [n]: int64 [n]."""
    if identifiers.dtype != tf.string:
        return tf.identity(identifiers)
    return tf.bitcast(tf.fingerprint(identifiers), tf.int64)
