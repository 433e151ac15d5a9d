"""Whether ids are among others."""

import tensorflow as tf

_COLUMNS = 128  # comparisons written out one by one, at most: each is a node of the graph


def is_among(ids, others):
    """Whether each id is among the others of its query.

    Args:
        ids: int32 [queries, ids], or [1, ids] where all queries ask about the same.
        others: int32 [queries, others].

    Returns:
        bool [queries, ids].
    """
    if others.shape[1] is None or others.shape[1] > _COLUMNS:
        return tf.reduce_any(ids[:, :, None] == others[:, None, :], axis=2)
    # One comparison after the other, column by column: XLA makes one vectorised loop of them all,
    # while reducing over a last axis of comparisons runs one by one, ten times slower.
    found = tf.zeros_like(ids + others[:, :1], dtype=tf.bool)
    for column in range(others.shape[1]):
        found |= ids == others[:, column : column + 1]
    return found
