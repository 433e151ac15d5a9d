"""The oracle: all targets encoded afresh at every step, and drawn from by brute force."""

import tensorflow as tf

from tf_dynidx.miners.miner import Miner, without_positives
from tf_dynidx.ops import draws

_BLOCK = 2048  # targets that are encoded and summed up together


class Exact(Miner):
    """Draws from the exact softmax over fresh encodings. For reference: it costs a full encode a step.

    Memory: queries * targets float32 scores a step.
    """

    def __init__(self, num_negatives=2, seed=0, name=None):
        super().__init__(num_negatives, seed, name)

    def build(self, corpus, encode_rows, encode_corpus):
        super().build(corpus, encode_rows, encode_corpus)
        self.full_encodes = tf.Variable(0, trainable=False, name="full_encodes")

    def mine(self, queries, beta, positives):
        self.full_encodes.assign_add(1)
        block = min(_BLOCK, self.num_targets)
        blocks = -(-self.num_targets // block)
        rows = tf.reshape(tf.range(blocks * block), [blocks, block])
        table = tf.map_fn(
            lambda part: self.encode_rows(tf.minimum(part, self.num_targets - 1)),
            rows,
            fn_output_signature=tf.float32,
        )
        table = tf.reshape(table, [blocks * block, table.shape[-1]])
        scores = beta * tf.matmul(queries, table, transpose_b=True)
        scores = tf.where(tf.range(blocks * block) < self.num_targets, scores, -float("inf"))
        scores = _drop(scores, positives)
        scores = tf.reshape(scores, [-1, blocks, block])

        # A block by its mass, then a target in it by its own: the same as one draw over all.
        masses = tf.reduce_logsumexp(scores, axis=2)
        seeds = tf.random.split(self.next_seed(), 2, alg="philox")
        which = draws.categorical(masses, self.num_negatives, seeds[0])
        inside = tf.reshape(tf.gather(scores, which, batch_dims=1), [-1, block])
        place = tf.reshape(draws.categorical(inside, 1, seeds[1]), tf.shape(which))
        mined = tf.minimum(which * block + place, self.num_targets - 1)
        return mined, (table, tf.reduce_logsumexp(masses, axis=1))

    def log_prob(self, rows, queries, beta, positives, drawn):
        table, log_partition = drawn
        scores = beta * tf.matmul(queries, tf.gather(table, rows), transpose_b=True)
        return without_positives(scores - log_partition[:, None], rows, positives)


def _drop(scores, positives):
    """Scores with -inf at the known positives of each query."""
    queries, columns = tf.shape(scores)[0], tf.shape(scores)[1]
    scores = tf.pad(scores, [[0, 0], [0, 1]])  # padding of positives points to one more column
    column = tf.where(positives < 0, columns, positives)
    row = tf.broadcast_to(tf.range(queries)[:, None], tf.shape(column))
    where = tf.reshape(tf.stack([row, column], axis=-1), [-1, 2])
    scores = tf.tensor_scatter_nd_update(scores, where, tf.fill([tf.shape(where)[0]], -float("inf")))
    return scores[:, :-1]
