"""Leaves of a fixed number of slots: their statistics, and moving rows between them.

The slots of a leaf lie side by side in memory and the live ones come first, so that a leaf is read as
one block and a uniform member of it is one random number away. The last leaf is scratch: it is never
live, and a scatter of static shape writes there what it is told to ignore.
"""

from typing import NamedTuple

import tensorflow as tf

NEVER = -1  # a row id that no row has: marks empty slots and padding


class Leaves(NamedTuple):
    """All leaves; the last one is scratch. Fields may be variables or tensors.

    Attributes:
        rows: float [leaves, leaf_size, dim].
        ids: int32 [leaves, leaf_size], the row id in each slot; -1 if empty.
        counts: int32 [leaves], live slots.
        centres: float32 [leaves, dim], mean of the live rows.
        variances: float32 [leaves, dim], their variance, coordinate by coordinate.
        radii: float32 [leaves], the largest distance of a live row from the centre.
    """

    rows: tf.Tensor
    ids: tf.Tensor
    counts: tf.Tensor
    centres: tf.Tensor
    variances: tf.Tensor
    radii: tf.Tensor


def statistics(rows, counts):
    """Centre, diagonal variance and covering radius of leaves.

    Args:
        rows: float [leaves, leaf_size, dim], the live ones first.
        counts: int32 [leaves].

    Returns:
        (centres, variances, radii): float32 [leaves, dim], [leaves, dim], [leaves]; zeros for an
        empty leaf.
    """
    rows = tf.cast(rows, tf.float32)
    live = tf.sequence_mask(counts, rows.shape[1], dtype=tf.float32)
    number = tf.maximum(tf.cast(counts, tf.float32), 1.0)[:, None]
    # Sums over members as products with the mask: faster than masking, which writes a copy.
    centres = tf.matmul(live[:, None, :], rows)[:, 0] / number
    squares = (rows - centres[:, None, :]) ** 2
    variances = tf.matmul(live[:, None, :], squares)[:, 0] / number
    distances = tf.reduce_sum(squares, axis=2) * live
    return centres, variances, tf.sqrt(tf.reduce_max(distances, axis=1))


def gather_places(table, places):
    """Entries of a [leaves, leaf_size, ...] table at [..., 2] places (leaf, slot)."""
    # XLA knows no gather_nd on a variable, only on its value; reading the value copies nothing.
    return tf.gather_nd(tf.convert_to_tensor(table), places)


def nearest(vectors, centres, usable):
    """The usable leaf whose centre is nearest to each vector: int32 [vectors].

    Args:
        vectors: float32 [vectors, dim].
        centres: float32 [leaves, dim].
        usable: bool [leaves].
    """
    closeness = tf.matmul(vectors, centres, transpose_b=True) - 0.5 * tf.reduce_sum(centres**2, 1)
    return tf.argmax(tf.where(usable, closeness, -float("inf")), axis=1, output_type=tf.int32)


def places(targets, wanted, counts, leaf_size):
    """Free slots for rows that want to enter leaves, first come first served.

    Args:
        targets: int32 [moves], the leaf that each row wants to enter.
        wanted: bool [moves], whether it does.
        counts: int32 [leaves], live slots before.
        leaf_size: int.

    Returns:
        (slots, accepted, counts): int32 [moves] slot in the target leaf, bool [moves] whether there
        was one, int32 [leaves] live slots after. What is not accepted has slot 0.
    """
    leaves = tf.shape(counts)[0]
    key = tf.where(wanted, targets, leaves)
    order = tf.argsort(key, stable=True)
    arrivals = tf.math.unsorted_segment_sum(tf.cast(wanted, tf.int32), targets, leaves)
    first = tf.concat([tf.cumsum(arrivals, exclusive=True), [0]], axis=0)
    rank = tf.range(tf.shape(order)[0]) - tf.gather(first, tf.gather(key, order))
    rank = tf.scatter_nd(order[:, None], rank, tf.shape(order))
    slots = tf.gather(counts, targets) + rank
    accepted = wanted & (slots < leaf_size)
    return tf.where(accepted, slots, 0), accepted, tf.minimum(counts + arrivals, leaf_size)


def keep_first(keep):
    """Order of slots that brings the kept ones to the front and is stable otherwise.

    Args:
        keep: bool [leaves, leaf_size].

    Returns:
        int32 [leaves, leaf_size].
    """
    return tf.argsort(tf.cast(~keep, tf.int32), axis=1, stable=True)


def longest_first(rows, counts, iterations=6):
    """Order of slots along the longest direction of each leaf, live rows before empty slots.

    The longest direction is the first principal one, by power iteration from the row that is farthest
    from the centre. Cutting the order at the median halves the leaf.

    Args:
        rows: float [leaves, leaf_size, dim], the live ones first.
        counts: int32 [leaves].
        iterations: int, steps of the power iteration; few do, since any long direction serves.

    Returns:
        int32 [leaves, leaf_size].
    """
    rows = tf.cast(rows, tf.float32)
    live = tf.sequence_mask(counts, rows.shape[1])
    number = tf.maximum(tf.cast(counts, tf.float32), 1.0)[:, None]
    weights = tf.cast(live, tf.float32)[:, :, None]
    centres = tf.reduce_sum(rows * weights, axis=1) / number
    offsets = (rows - centres[:, None, :]) * weights
    farthest = tf.argmax(tf.reduce_sum(offsets**2, axis=2), axis=1)
    direction = tf.gather(offsets, farthest, batch_dims=1)
    for _ in range(iterations):
        along = tf.matmul(offsets, direction[:, :, None])
        direction = tf.matmul(offsets, along, transpose_a=True)[:, :, 0]
        direction = tf.math.l2_normalize(direction, axis=1)
    along = tf.matmul(offsets, direction[:, :, None])[:, :, 0]
    return tf.argsort(tf.where(live, along, -float("inf")), axis=1, direction="DESCENDING")
