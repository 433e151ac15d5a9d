"""In-batch negatives: the positives of the other queries of the batch, and nothing else."""

import tensorflow as tf

from tf_dynidx.miners.miner import Miner


class InBatch(Miner):
    """Mines nothing: every query sees the positives of the others.

    The loss corrects each for how often it is a positive (Yi et al., "Sampling-bias-corrected neural
    modeling for large corpus item recommendations", RecSys 2019), as it does for every miner.
    """

    def __init__(self, seed=0, name=None):
        super().__init__(1, seed, name)
        self.num_negatives = 0

    def mine(self, queries, beta, positives):
        return tf.zeros([tf.shape(queries)[0], 0], tf.int32), None

    def log_prob(self, rows, queries, beta, positives, drawn):
        return tf.fill([1, tf.shape(rows)[0]], -float("inf"))

    def get_config(self):
        return {"seed": self.seed}
