"""Nodes of the tree: their statistics, and finding free places in them.

A leaf has a fixed number of slots that lie side by side in memory, the live rows first, so that a
uniform member of it is one random number away. An inner node is a run of leaves. The last node of a
level is scratch: it is never live, and a scatter of static shape writes there what it is to ignore.
"""

from typing import NamedTuple

import tensorflow as tf

NEVER = -1  # a row id that no row has: marks empty slots and padding


class Level(NamedTuple):
    """The nodes of one level of the tree; the last one is scratch. Fields: variables or tensors.

    Attributes:
        counts: int32 [nodes], rows in the node.
        moments: float32 [nodes, 2 * dim]: the centre, which is the mean of the node's rows, then their
            variance, coordinate by coordinate. Side by side, since they are always read together.
        radii: float32 [nodes], the largest distance of a row from the centre.
        representatives: int32 [nodes], the slot of the row that is nearest to the centre.
    """

    counts: tf.Tensor
    moments: tf.Tensor
    radii: tf.Tensor
    representatives: tf.Tensor


def statistics(rows, live):
    """Statistics of nodes, measured on their rows.

    Args:
        rows: float [nodes, slots, dim].
        live: bool [nodes, slots], which slots hold a row.

    Returns:
        A `Level`, its representatives counted from each node's first slot; zeros for an empty node.
    """
    rows = tf.cast(rows, tf.float32)
    mask = tf.cast(live, tf.float32)
    counts = tf.reduce_sum(mask, axis=1)
    number = tf.maximum(counts, 1.0)[:, None]
    # Sums over members as products with the mask: faster than masking, which writes a copy.
    centres = tf.matmul(mask[:, None, :], rows)[:, 0] / number
    squares = (rows - centres[:, None, :]) ** 2
    variances = tf.matmul(mask[:, None, :], squares)[:, 0] / number
    radii, representatives = _reach(tf.reduce_sum(squares, axis=2), live)
    moments = tf.concat([centres, variances], axis=1)
    return Level(tf.cast(counts, tf.int32), moments, radii, representatives)


def combined(counts, moments):
    """Counts and moments of nodes, from those of their children (law of total variance).

    Args:
        counts: int32 [nodes, children].
        moments: float32 [nodes, children, 2 * dim].

    Returns:
        (counts, moments): int32 [nodes], float32 [nodes, 2 * dim].
    """
    total = tf.reduce_sum(counts, axis=1)
    shares = tf.cast(counts, tf.float32) / tf.maximum(tf.cast(total, tf.float32), 1.0)[:, None]
    centres, variances = tf.split(moments, 2, axis=2)
    centre = tf.reduce_sum(shares[:, :, None] * centres, axis=1)
    spread = variances + (centres - centre[:, None, :]) ** 2
    return total, tf.concat([centre, tf.reduce_sum(shares[:, :, None] * spread, axis=1)], axis=1)


def reach(rows, live, centres):
    """Covering radius of nodes and their representatives, measured on their rows.

    Args:
        rows: float [nodes, slots, dim].
        live: bool [nodes, slots].
        centres: float32 [nodes, dim].

    Returns:
        (radii, representatives): float32 [nodes]; int32 [nodes], counted from each node's first slot.
    """
    offsets = tf.cast(rows, tf.float32) - centres[:, None, :]
    return _reach(tf.reduce_sum(offsets**2, axis=2), live)


def centres(moments, which):
    """Centres of some nodes, their variances left in memory: float32 [..., dim].

    Args:
        moments: float32 [nodes, 2 * dim], variable or tensor.
        which: int32 [...].
    """
    halves = tf.reshape(moments, [-1, moments.shape[1] // 2])
    return tf.gather(halves, 2 * which)


def _reach(squares, live):
    radii = tf.sqrt(tf.reduce_max(tf.where(live, squares, 0.0), axis=1))
    return radii, first_of_largest(tf.where(live, -squares, -float("inf")))


def first_of_largest(values):
    """`tf.argmax` over the last axis, int32: XLA compiles that one to a loop over single entries."""
    last = tf.shape(values)[-1] - 1
    largest = values == tf.reduce_max(values, axis=-1, keepdims=True)
    return tf.reduce_min(tf.where(largest, tf.range(last + 1), last), axis=-1)


def places(targets, wanted, counts, size):
    """Free slots for rows that want to enter nodes, first come first served.

    Args:
        targets: int32 [moves], the node that each row wants to enter.
        wanted: bool [moves], whether it does.
        counts: int32 [nodes], slots in use before.
        size: int, slots of a node that may be in use.

    Returns:
        (slots, accepted, counts): int32 [moves] slot in the target node, bool [moves] whether there
        was one, int32 [nodes] slots in use after. What is not accepted has slot 0.
    """
    nodes = tf.shape(counts)[0]
    key = tf.where(wanted, targets, nodes)
    order = tf.argsort(key, stable=True)
    arrivals = tf.math.unsorted_segment_sum(tf.cast(wanted, tf.int32), targets, nodes)
    first = tf.concat([tf.cumsum(arrivals, exclusive=True), [0]], axis=0)
    rank = tf.range(tf.shape(order)[0]) - tf.gather(first, tf.gather(key, order))
    rank = tf.scatter_nd(order[:, None], rank, tf.shape(order))
    slots = tf.gather(counts, targets) + rank
    accepted = wanted & (slots < size)
    after = counts + tf.math.unsorted_segment_sum(tf.cast(accepted, tf.int32), targets, nodes)
    return tf.where(accepted, slots, 0), accepted, after


def keep_first(keep):
    """Order of slots that brings the kept ones to the front and is stable otherwise.

    Args:
        keep: bool [nodes, slots].

    Returns:
        int32 [nodes, slots].
    """
    return tf.argsort(tf.cast(~keep, tf.int32), axis=1, stable=True)
