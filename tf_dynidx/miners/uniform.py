"""Negatives drawn uniformly from the corpus."""

import math

import tensorflow as tf

from tf_dynidx.miners.miner import Miner


class Uniform(Miner):
    """Draws every target alike, whatever the query."""

    def __init__(self, num_negatives=2, seed=0, name=None):
        super().__init__(num_negatives, seed, name)

    def mine(self, queries, beta, positives):
        shape = [tf.shape(queries)[0], self.num_negatives]
        seed = self.next_seed()
        rows = tf.random.stateless_uniform(
            shape, seed, maxval=self.num_targets, dtype=tf.int32, alg="philox"
        )
        return rows, None

    def log_prob(self, rows, queries, beta, positives, drawn):
        return tf.fill([1, tf.shape(rows)[0]], -math.log(self.num_targets))
