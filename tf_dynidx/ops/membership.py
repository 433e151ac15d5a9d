"""Whether ids are among others; scores without those of some."""

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


def without(scores, places):
    """Scores with -inf at some places of each query; a place that is none does nothing.

    Args:
        scores: float32 [queries, entries].
        places: int32 [queries, any].

    Returns:
        float32 [queries, entries].
    """
    shape, width = tf.shape(places), tf.shape(scores)[1]
    inside = (places >= 0) & (places < width)
    query = tf.tile(tf.range(shape[0])[:, None], [1, shape[1]])
    where = tf.stack([query, tf.where(inside, places, 0)], axis=2)
    # A minimum, which infinity does not change: what is outside points at the first place.
    most = tf.where(inside, -float("inf"), float("inf"))
    return tf.tensor_scatter_nd_min(scores, where, most)
