"""Draws from the softmax over the rows of a table, by looking at all of them."""

import math

import tensorflow as tf

from tf_dynidx.ops import draws
from tf_dynidx.ops.membership import is_among, without

_SCORED = 2048  # rows that are scored together: few enough that their scores stay in a cache
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256  # rows of a block
_ROW = 4  # what reading a row for a draw costs, in masses that are summed up


def inner_products(read, queries, rows):
    """q.y for every query.

    Args:
        read: function from int32 [rows] to float32 [rows, dim].
        queries: float32 [queries, dim].
        rows: int32 [rows], the same for every query; or [queries, rows], its own for each.

    Returns:
        float32 [queries, rows].
    """
    if rows.shape.rank == 1:
        return tf.matmul(queries, read(rows), transpose_b=True)
    shape = [tf.shape(rows)[0], tf.shape(rows)[1], queries.shape[1]]
    return tf.einsum("qd,qnd->qn", queries, tf.reshape(read(tf.reshape(rows, [-1])), shape))


def products(size, num_draws):
    """int, dot products that `draw` takes for a query.

    Args:
        size: int, rows.
        num_draws: int.
    """
    return size + num_draws * _block_size(size, num_draws)


def scores_held(size, num_draws):
    """int, numbers that `draw` holds for a query at a time.

    Args:
        size: int, rows.
        num_draws: int.
    """
    block = _block_size(size, num_draws)
    return _SCORED + -(-size // block) + num_draws * block


def draw(scores, size, excluded, num_draws, seed, held=None):
    """Draws rows of a table with probability proportional to exp(score), without those excluded.

    A block by its mass, then a row in it by its own: the same distribution as one draw over all (or as
    the largest of all scores with Gumbel noise), for one random number each. The draws of a query are
    stratified, as those of `draws.categorical`.

    The whole table is read once. Blocks are of 16 to 256 rows (128 for two draws of 10^5), the smaller
    the more draws. Memory: queries * 2,048 scores at a time, a mass for every query and block, and a
    block of rows for every draw.

    Args:
        scores: function from int32 rows, [rows] for all queries or [queries, rows], to float32
            [queries, rows], such as `inner_products` times the inverse temperature.
        size: int, how many of its rows, the first, take part.
        excluded: int32 [queries, excluded], rows that are not drawn, padded with -1.
        num_draws: int.
        seed: int32 [2].
        held: function from int32 rows to bool of the same shape, whether there is such a row; default:
            there are all.

    Returns:
        (rows, log_partition): int32 [queries, num_draws], with replacement, and float32 [queries], the
        log of the sum of exp(score) over all rows that can be drawn. A query with none draws row 0, and
        its log partition is -inf.
    """
    length = _block_size(size, num_draws)
    masses = log_masses(scores, size, excluded, length, held)
    # All at once: XLA takes a good part of a second to compile what makes random numbers.
    points = draws.uniforms([2, tf.shape(masses)[0], num_draws], seed)
    block = draws.entries_at(masses, draws.in_strata(points[0]))
    rows = tf.reshape(block[:, :, None] * length + tf.range(length), [-1, num_draws * length])
    weights = _log_weights(scores, size, rows, held)
    weights = tf.where(is_among(rows, excluded), -float("inf"), weights)
    place = draws.entries_at(tf.reshape(weights, [-1, length]), tf.reshape(points[1], [-1, 1]))
    place = tf.reshape(place, tf.shape(block))
    return tf.minimum(block * length + place, size - 1), tf.reduce_logsumexp(masses, axis=1)


def log_masses(scores, size, excluded, length, held=None):
    """Log of the sum of exp(score) over the rows of each block, a few blocks at a time.

    Args:
        scores, size, excluded, held: as for `draw`.
        length: int, rows of a block.

    Returns:
        float32 [queries, blocks]; -inf where there is none to be drawn.
    """
    blocks = -(-size // length)
    together = min(_SCORED // length, blocks)

    def masses_from(first):
        start = first * length
        weights = _log_weights(scores, size, start + tf.range(together * length), held)
        weights = tf.reshape(without(weights, excluded - start), [-1, together, length])
        return tf.reduce_logsumexp(weights, axis=2)

    masses = tf.map_fn(
        masses_from,
        tf.range(0, blocks, together),
        fn_output_signature=tf.float32,
        parallel_iterations=1,
    )
    return tf.reshape(tf.transpose(masses, [1, 0, 2]), [-1, masses.shape[0] * together])


def _log_weights(scores, size, rows, held):
    """float32 [queries, rows], for rows as `scores` takes them; -inf for what is no row."""
    there = tf.minimum(rows, size - 1)
    live = rows < size
    if held is not None:
        live &= held(there)
    return tf.where(live, scores(there), -float("inf"))


def _block_size(size, num_draws):
    """int, rows of a block, so that about as much is done for blocks as for the rows of those drawn."""
    best = math.sqrt(size / (_ROW * num_draws))
    return min(max(2 ** round(math.log2(best)), SMALLEST_BLOCK), LARGEST_BLOCK)
