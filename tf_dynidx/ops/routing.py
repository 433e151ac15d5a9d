"""The nodes nearest to vectors, from the top of the tree down."""

import tensorflow as tf

from tf_dynidx.ops import nodes


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
        _, best = tf.math.top_k(closeness, number)
        best = best if candidates is None else tf.gather(candidates, best, batch_dims=1)
        candidates = tf.reshape(best[:, :, None] * fanout + tf.range(fanout), [-1, number * fanout])
    return best
