"""The hardest of a uniform sample."""

import numpy as np
import tensorflow as tf
from scipy.stats import binom

from tf_dynidx.index import checks
from tf_dynidx.miners.miner import Miner, without_positives
from tf_dynidx.ops import draws
from tf_dynidx.ops.membership import is_among


class Stochastic(Miner):
    """Draws a uniform sample, and keeps for each query what scores highest in it.

    Reddi et al., "Stochastic Negative Mining for Learning with Large Output Spaces" (AISTATS 2019). The
    sample is encoded afresh at every step, and shared by the queries of the batch: `num_candidates`
    encodings a step, whatever the batch. Nothing is kept from step to step.

    The log probability. A draw of the sample is kept if fewer than `num_negatives` of the others score
    higher. With M candidates and S kept, a target that a share u of all targets beats is therefore one
    given draw among those kept with probability

        p = M / (S N) * P(Binomial(M - 1, u) < S).

    u is not known without encoding all targets; for a target of the sample, the share of the sample
    that beats it stands in, so that what is kept has a p near M / (S N). A target that is not in the
    sample, such as the positive of another query, has p = 1 / N: the average over all targets.

    What the loss then estimates: the terms of the softmax that come from a query's hard targets, about
    the S / M of all that score highest, each as from a uniform sample. The others come in through the
    positives of the batch alone. That is the method, which means the loss to look at those only.
    """

    def __init__(self, num_negatives=2, num_candidates=1024, seed=0, name=None):
        """Makes a miner.

        Args:
            num_negatives: int, draws a query.
            num_candidates: int, targets that are drawn uniformly, with replacement, and encoded at each
                step, for all queries; at least num_negatives. More means harder.
            seed: int, seeds every draw.

        Raises:
            ValueError: an argument is not as described.
        """
        super().__init__(num_negatives, seed, name)
        self.num_candidates = checks.positive_int("num_candidates", num_candidates)
        if self.num_candidates < self.num_negatives:
            raise ValueError(
                "num_candidates must be at least num_negatives, which are picked from them. "
                f"Received: num_candidates={num_candidates}, num_negatives={num_negatives}"
            )

    def mine(self, queries, beta, positives):
        shape, seed = [self.num_candidates], self.next_seed()
        # Sorted, so that `log_prob` finds a target in it.
        sample = tf.sort(
            tf.random.stateless_uniform(
                shape, seed, maxval=self.num_targets, dtype=tf.int32, alg="philox"
            )
        )
        scores = tf.matmul(queries, self.encode_rows(sample), transpose_b=True)
        possible = tf.where(is_among(sample[None], positives), -float("inf"), scores)
        best = tf.math.top_k(possible, min(4 * self.num_negatives + 60, self.num_candidates))
        mined = tf.gather(sample, best.indices[:, : self.num_negatives])
        return mined, (sample, scores, best.values)

    def log_prob(self, rows, queries, beta, positives, drawn):
        sample, scores, best = drawn
        asked = tf.reshape(rows, [1, -1])
        in_order = draws.ladder(sample[None])
        upto = draws.entries_up_to(in_order, asked)
        times = tf.reshape(upto - draws.entries_up_to(in_order, asked - 1), tf.shape(rows))
        place = tf.reshape(tf.maximum(upto - 1, 0), tf.shape(rows))
        # How many of the sample score at least as high as the target, which is there itself.
        if rows.shape.rank == 1:
            rows, own = rows[None], tf.gather(scores, place, axis=1)
        else:
            own = tf.gather(scores, place, batch_dims=1)
        # What comes after the best ones is kept with a probability below e^-40.
        at_least = draws.entries_up_to(draws.ladder(-best), -own)
        beaten_by = tf.clip_by_value(2 * at_least - times, 0, 2 * self.num_candidates)
        log_prob = tf.gather(self._log_kept(), beaten_by)
        unknown = tf.cast(-np.log(self.num_targets), tf.float32)
        log_prob = tf.where(times > 0, log_prob, unknown)
        return without_positives(log_prob, rows, positives)

    def own_log_prob(self, rows, queries, beta, positives, drawn):
        return self.log_prob(rows, queries, beta, positives, drawn)

    def _log_kept(self):
        """log p of a target that half as many of the sample beat: float32 [2 num_candidates + 1].

        In halves, as a target that is several times in the sample stands in the middle of its places.
        """
        most, kept = self.num_candidates, self.num_negatives
        share = np.arange(2 * most + 1) / (2 * most)
        log_kept = binom.logcdf(kept - 1, most - 1, share)
        return tf.constant(log_kept + np.log(most / kept / self.num_targets), tf.float32)

    def get_config(self):
        return super().get_config() | {"num_candidates": self.num_candidates}
