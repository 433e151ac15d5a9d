"""The nodes nearest to vectors, from the top of the tree down."""

import tensorflow as tf

from tf_dynidx.ops import nodes

_BLOCK = 16  # values of which the maximum is taken first, where the largest of many are wanted


def nearest_nodes(levels, vectors, level, width, fanout, size):
    """The nodes of one level that are nearest to each vector, among those that have room.

    All nodes of the topmost level are compared, then the children of the `width` nearest, and so on.

    Args:
        levels: list of `tf_dynidx.ops.nodes.Level`, from the leaves up.
        vectors: float32 [vectors, dim].
        level: int, the level wanted, at least 1.
        width: int, how many nodes to keep at each level.
        fanout: int, children of a node.
        size: int, rows that fit a node of level 1.

    Returns:
        int32 [vectors, width], nearest first; fewer where the tree has fewer. Nodes without rows come
        after those with rows, and full ones last.
    """
    dim = vectors.shape[1]
    top = len(levels) - 1
    # Scratch is the last node, and is never entered.
    candidates, centres = None, levels[top].moments[:-1, :dim]
    for here in range(top, level - 1, -1):
        counts = levels[here].counts
        if candidates is None:
            closeness = tf.matmul(vectors, centres, transpose_b=True)
            closeness -= 0.5 * tf.reduce_sum(centres**2, axis=1)
            count = counts[:-1][None, :]
        else:
            centres = nodes.centres(levels[here].moments, candidates)
            closeness = tf.reduce_sum(centres * (vectors[:, None, :] - 0.5 * centres), axis=2)
            count = tf.gather(counts, candidates)
        room = size * fanout ** (here - 1)
        closeness = tf.where(count > 0, closeness, -1e30)
        closeness = tf.where(count < room, closeness, -float("inf"))
        number = min(width, closeness.shape[1])
        best = places_of_largest(closeness, number)
        best = best if candidates is None else tf.gather(candidates, best, batch_dims=1)
        candidates = tf.reshape(best[:, :, None] * fanout + tf.range(fanout), [-1, number * fanout])
    return best


def places_of_largest(values, number):
    """Places of the largest values of each row, as `tf.math.top_k` returns them.

    Where there are many, only the blocks with the largest maxima are looked at, which hold them all: a
    maximum takes a fraction of the time that `top_k` takes for a value.

    Args:
        values: float32 [rows, values].
        number: int, at most the number of values.

    Returns:
        int32 [rows, number], places, of equal values the first ones.
    """
    length = values.shape[1]
    if number * _BLOCK * _BLOCK > length:
        return tf.math.top_k(values, number)[1]
    blocks = -(-length // _BLOCK)
    filling = [[0, 0], [0, blocks * _BLOCK - length]]
    values = tf.pad(values, filling, constant_values=-float("inf"))
    values = tf.reshape(values, [-1, blocks, _BLOCK])
    _, chosen = tf.math.top_k(tf.reduce_max(values, axis=2), number)
    chosen = tf.sort(chosen, axis=1)  # so that of equal values the first ones are found
    found = tf.reshape(tf.gather(values, chosen, batch_dims=1), [-1, number * _BLOCK])
    _, places = tf.math.top_k(found, number)
    return tf.gather(chosen, places // _BLOCK, batch_dims=1) * _BLOCK + places % _BLOCK
