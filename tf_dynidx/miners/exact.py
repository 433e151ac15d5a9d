"""The oracle: all targets encoded afresh at every step, and drawn from by brute force."""

import functools

import tensorflow as tf

from tf_dynidx.miners.miner import Miner, softmax_draw, softmax_log_prob


class Exact(Miner):
    """Draws from the exact softmax over fresh encodings. For reference: it costs a full encode a step.

    Memory: targets * dim float32 numbers a step, and what `ops.table_draws.draw` takes.
    """

    def __init__(self, num_negatives=2, seed=0, name=None):
        super().__init__(num_negatives, seed, name)

    def mine(self, queries, beta, positives):
        table, seed = self.encode_all(), self.next_seed()
        read = functools.partial(tf.gather, table)
        mined, log_partition = softmax_draw(
            read, self.num_targets, queries, beta, positives, self.num_negatives, seed
        )
        return mined, (table, log_partition)

    def log_prob(self, rows, queries, beta, positives, drawn):
        table, log_partition = drawn
        read = functools.partial(tf.gather, table)
        return softmax_log_prob(read, rows, queries, beta, positives, log_partition)

    def own_log_prob(self, rows, queries, beta, positives, drawn):
        return self.log_prob(rows, queries, beta, positives, drawn)
