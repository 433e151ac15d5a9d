"""Draws from the softmax over the rows of a table, by looking at all of them."""

import tensorflow as tf

from tf_dynidx.ops import draws
from tf_dynidx.ops.membership import is_among, without

_BLOCK = 256  # rows whose masses are summed up: a draw picks a block, then a row in it
_BLOCKS = 32  # blocks that are scored together


def draw(table, size, queries, beta, excluded, num_draws, seed):
    """Draws rows of a table with probability proportional to exp(beta q.y), without those excluded.

    A block by its mass, then a row in it by its own: the same distribution as one draw over all (or as
    the largest of all scores with Gumbel noise), for one random number each. The draws of a query are
    stratified, as those of `draws.categorical`.

    The whole table is read once. Memory: queries * 8,192 scores at a time, a mass for every query and
    256 rows, and 256 rows for every draw.

    Args:
        table: float32 [rows, dim], a tensor or variable.
        size: int, how many of its rows, the first, take part.
        queries: float32 [queries, dim].
        beta: float32 scalar, the inverse temperature.
        excluded: int32 [queries, excluded], rows that are not drawn, padded with -1.
        num_draws: int.
        seed: int32 [2].

    Returns:
        (rows, log_partition): int32 [queries, num_draws], with replacement, and float32 [queries], the
        log of the sum of exp(beta q.y) over all rows that can be drawn. A query with none draws row 0,
        and its log partition is -inf.
    """
    queries = beta * queries
    blocks = -(-size // _BLOCK)
    together = min(_BLOCKS, blocks)
    table = tf.convert_to_tensor(table)

    def masses_from(first):
        """float32 [queries, together], the log masses of some blocks."""
        start = first * _BLOCK
        rows = start + tf.range(together * _BLOCK)
        scores = tf.matmul(queries, tf.gather(table, tf.minimum(rows, size - 1)), transpose_b=True)
        scores = without(tf.where(rows < size, scores, -float("inf")), excluded - start)
        return tf.reduce_logsumexp(tf.reshape(scores, [-1, together, _BLOCK]), axis=2)

    masses = tf.map_fn(
        masses_from,
        tf.range(0, blocks, together),
        fn_output_signature=tf.float32,
        parallel_iterations=1,
    )
    masses = tf.reshape(tf.transpose(masses, [1, 0, 2]), [-1, masses.shape[0] * together])

    seeds = tf.random.split(seed, 2, alg="philox")
    block = draws.categorical(masses, num_draws, seeds[0])
    rows = block[:, :, None] * _BLOCK + tf.range(_BLOCK)
    members = tf.gather(table, tf.minimum(rows, size - 1))
    scores = tf.einsum("qd,qsmd->qsm", queries, members)
    out = is_among(tf.reshape(rows, [-1, num_draws * _BLOCK]), excluded)
    out = tf.reshape(out, tf.shape(rows)) | (rows >= size)
    scores = tf.reshape(tf.where(out, -float("inf"), scores), [-1, _BLOCK])
    place = tf.reshape(draws.categorical(scores, 1, seeds[1]), tf.shape(block))
    return tf.minimum(block * _BLOCK + place, size - 1), tf.reduce_logsumexp(masses, axis=1)
