"""The protocol that every miner follows."""

import tensorflow as tf

from tf_dynidx.index import checks
from tf_dynidx.ops.membership import is_among


class Miner(tf.Module):
    """Draws negatives for the queries of a batch, and says how likely each draw was.

    A training step calls, in this order, `mine`, `log_prob` and, after the gradients are applied,
    `observe`. They run inside the step's `tf.function`, compiled by XLA or not: static shapes, no
    strings. State is kept in `tf.Variable`s, made in `build`.

    Attributes:
        num_negatives: int, draws a query.
        full_encodes: how often all targets were encoded: int, or an int32 variable.
    """

    def __init__(self, num_negatives, seed=0, name=None):
        """Checks and keeps what all miners share.

        Args:
            num_negatives: int, draws a query.
            seed: int, seeds every draw.

        Raises:
            ValueError: num_negatives is not a whole number of at least 1.
        """
        super().__init__(name=name)
        self.num_negatives = checks.positive_int("num_negatives", num_negatives)
        self.seed = int(seed)
        self.full_encodes = 0
        self.built = False

    def build(self, corpus, encode_rows, encode_corpus):
        """Makes the state; called once, eagerly, before the first step.

        Args:
            corpus: the `TargetCorpus`.
            encode_rows: function from int32 [rows] to float32 [rows, dim], the rows encoded afresh in
                inference mode; may be called inside a step.
            encode_corpus: function without arguments that encodes all targets eagerly, showing
                progress: float32 [targets, dim]. None: the state is made, to be filled from a file.

        Raises:
            ValueError: more negatives than targets.
        """
        del encode_corpus
        if self.num_negatives > corpus.size:
            raise ValueError(
                "More negatives than targets: use at most as many as the corpus holds. "
                f"Received: num_negatives={self.num_negatives}, {corpus.size} targets"
            )
        self.num_targets = corpus.size
        self.encode_rows = encode_rows
        self._calls = tf.Variable(0, trainable=False, name="calls")
        self.built = True

    def mine(self, queries, beta, positives):
        """Draws negatives.

        Args:
            queries: float32 [queries, dim], encodings, without gradient.
            beta: float32 scalar, the inverse temperature.
            positives: int32 [queries, positives], known positives padded with -1.

        Returns:
            (rows, drawn): int32 [queries, num_negatives] with replacement, and whatever `log_prob`
            needs to know about the draw. A row that is a known positive may come back: the loss
            masks it.
        """
        raise NotImplementedError

    def log_prob(self, rows, queries, beta, positives, drawn):
        """Log probability that one draw for each query is each of the given rows.

        Args:
            rows: int32 [rows].
            queries, beta, positives: as for `mine`.
            drawn: what `mine` returned second.

        Returns:
            float32 [queries, rows], or [1, rows] if all queries draw alike; -inf for a row that a
            query cannot draw.
        """
        raise NotImplementedError

    def observe(self, rows, encodings):
        """Takes in encodings that the step has made anyway. Default: nothing to do.

        Args:
            rows: int32 [rows], possibly with repeats.
            encodings: float32 [rows, dim], encoded in inference mode.
        """
        del rows, encodings

    def logs(self):
        """Numbers to log after a step: dict of name to float32 scalar. Default: none."""
        return {}

    def look(self):
        """Looks at the state between two steps, eagerly, now and then; may warn. Default: nothing."""

    def next_seed(self):
        """int32 [2], a seed not used before."""
        return tf.stack([tf.constant(self.seed, tf.int32), self._calls.assign_add(1)])

    def get_config(self):
        """The constructor's arguments."""
        return {"num_negatives": self.num_negatives, "seed": self.seed}

    @classmethod
    def from_config(cls, config):
        """A miner of the same arguments, without state."""
        return cls(**config)


def without_positives(log_prob, rows, positives):
    """-inf where a row is a known positive of the query: float32 [queries, rows]."""
    return tf.where(is_among(rows[None], positives), -float("inf"), log_prob)
