"""Negatives drawn by how often a target is a positive."""

import numpy as np
import tensorflow as tf

from tf_dynidx.index import checks
from tf_dynidx.miners.miner import Miner
from tf_dynidx.ops import draws


class Popularity(Miner):
    """Draws target j with probability proportional to (count_j + smoothing) ** power, for any query.

    The power 0.75, between uniform (0) and as often as positives come (1), is that of word2vec (Mikolov
    et al., "Distributed Representations of Words and Phrases and their Compositionality", NeurIPS
    2013).

    A step reads all counts once: 4 bytes a target, which are all that is kept.
    """

    def __init__(self, num_negatives=2, power=0.75, smoothing=1.0, counts=None, seed=0, name=None):
        """Makes a miner.

        Args:
            num_negatives: int, draws a query.
            power: float > 0.
            smoothing: float > 0, what is added to each count, so that every target can come. Default
                1: as if each had been a positive once more.
            counts: how often each target is a positive: numbers of at least 0, [targets], which stay as
                they are. They are part of the configuration, as a list. Default None: they are counted
                from the positives that training shows, and start at 0, where all are alike.
            seed: int, seeds every draw.

        Raises:
            ValueError: an argument is not as described.
        """
        super().__init__(num_negatives, seed, name)
        self.power = checks.positive_float("power", power)
        self.smoothing = checks.positive_float("smoothing", smoothing)
        self._given = None if counts is None else _checked(counts)

    def make_state(self, corpus, encode_corpus):
        if self._given is None:
            counts = np.zeros(corpus.size, np.float32)
        elif len(self._given) == corpus.size:
            counts = self._given
        else:
            raise ValueError(
                "counts must hold one number for each target. "
                f"Received: {len(self._given)} counts, {corpus.size} targets"
            )
        self.counts = tf.Variable(counts, trainable=False, name="counts")

    def mine(self, queries, beta, positives):
        log_weights = self._log_weights(self.counts)
        log_total = tf.reduce_logsumexp(log_weights)
        number = tf.shape(queries)[0] * self.num_negatives
        # A block by its weight, then a target in it: float32 sums over millions would be too coarse.
        side = _side(self.num_targets)
        missing = [[0, side * side - self.num_targets]]
        blocks = tf.reshape(tf.pad(log_weights, missing, constant_values=-np.inf), [side, side])
        seeds = tf.random.split(self.next_seed(), 2, alg="philox")
        masses = tf.reduce_logsumexp(blocks, axis=1)[None]
        block = draws.entries_at(masses, draws.uniforms([1, number], seeds[0]))[0]
        points = draws.uniforms([number, 1], seeds[1])
        place = draws.entries_at(tf.gather(blocks, block), points)[:, 0]
        mined = tf.minimum(block * side + place, self.num_targets - 1)
        return tf.reshape(mined, [-1, self.num_negatives]), log_total

    def log_prob(self, rows, queries, beta, positives, drawn):
        return (self._log_weights(tf.gather(self.counts, rows)) - drawn)[None]

    def observe_positives(self, rows, weights):
        if self._given is None:
            self.counts.scatter_nd_add(rows[:, None], weights)

    def _log_weights(self, counts):
        return self.power * tf.math.log(counts + self.smoothing)

    def get_config(self):
        counts = None if self._given is None else self._given.tolist()
        own = {"power": self.power, "smoothing": self.smoothing, "counts": counts}
        return super().get_config() | own


def _side(size):
    """The smallest whole number whose square is at least `size`."""
    return int(np.ceil(np.sqrt(size)))


def _checked(counts):
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iuf":
        raise ValueError(
            "counts must be a vector of numbers, one for each target. "
            f"Received: shape {counts.shape}, dtype {counts.dtype}"
        )
    wrong = ~np.isfinite(counts) | (counts < 0)
    if wrong.any():
        raise ValueError(
            "counts must be finite and at least 0. "
            f"Received: {counts[wrong][0]} for target {np.argmax(wrong)}"
        )
    return counts.astype(np.float32)
