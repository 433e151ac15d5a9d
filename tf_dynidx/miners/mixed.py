"""Negatives of several miners together."""

import math

import tensorflow as tf

from tf_dynidx.index import checks
from tf_dynidx.keras_world import keras
from tf_dynidx.miners.miner import Miner
from tf_dynidx.ops import draws

_CALLS = 2**26  # calls that a miner makes before its seeds are those of the next


class Mixed(Miner):
    """Draws from a mixture of miners; one draw has probability sum_i weight_i p_i.

    Without weights all draws of all miners are used, and each weighs as many as it draws:
    `Mixed([Tree(2), Uniform(1)])` draws three a query. With weights each miner makes as many draws, and
    each draw of a query is taken from one of them, picked with the probability of its weight: of
    `Mixed([Tree(2), Uniform(2)], weights=[0.9, 0.1])`, nine in ten are those of the tree.

    `full_encodes` and `rows_encoded` are sums over the miners.
    """

    def __init__(self, miners, weights=None, seed=0, name=None):
        """Joins miners.

        Args:
            miners: list of miners that draw negatives, none twice.
            weights: list of a number > 0 for each miner, in any proportion; all miners then have the
                same num_negatives. Default: as many as each one draws.
            seed: int, seeds which miner a draw is taken from. The miners have seeds of their own, and
                do not draw alike if these are the same.

        Raises:
            ValueError: an argument is not as described.
        """
        several = isinstance(miners, (list, tuple))
        for miner in miners if several else [miners]:
            if not several or not isinstance(miner, Miner) or not miner.num_negatives:
                raise ValueError(
                    "miners must be a list of miners that draw negatives, such as [Tree(), Uniform()]; "
                    f"in-batch negatives are candidates anyway. Received: {miner!r}"
                )
        if not miners or len({id(miner) for miner in miners}) < len(miners):
            raise ValueError(
                f"miners must be at least one, and none twice. Received: {len(miners)} miners"
            )
        numbers = [miner.num_negatives for miner in miners]
        self._weights = _checked(weights, numbers)
        super().__init__(sum(numbers) if weights is None else numbers[0], seed, name)
        self.miners = list(miners)

    def make_state(self, corpus, encode_corpus):
        for place, miner in enumerate(self.miners):
            miner._first_call = (place + 1) * _CALLS
            miner.build(corpus, self.encode_rows, encode_corpus, self.dim)
        self._count()

    def mine(self, queries, beta, positives):
        mined, drawn = zip(
            *(miner.mine(queries, beta, positives) for miner in self.miners), strict=True
        )
        self._count()
        if self._weights is None:
            return tf.concat(mined, axis=1), drawn
        return self._picked(mined), drawn

    def log_prob(self, rows, queries, beta, positives, drawn):
        parts = [
            miner.log_prob(rows, queries, beta, positives, mine)
            for miner, mine in zip(self.miners, drawn, strict=True)
        ]
        if any(part.shape[0] != 1 for part in parts):
            shape = [tf.shape(queries)[0], tf.shape(rows)[0]]
            parts = [tf.broadcast_to(part, shape) for part in parts]
        return self._mixture(parts)

    def own_log_prob(self, rows, queries, beta, positives, drawn):
        return self._mixture(
            [
                miner.own_log_prob(rows, queries, beta, positives, mine)
                for miner, mine in zip(self.miners, drawn, strict=True)
            ]
        )

    def _mixture(self, log_probs):
        """Log probability of the mixture, from those of its parts."""
        weights = self._weights or [miner.num_negatives for miner in self.miners]
        logs = [math.log(weight / sum(weights)) for weight in weights]
        return tf.reduce_logsumexp(
            tf.stack([part + log for part, log in zip(log_probs, logs, strict=True)]), axis=0
        )

    def observe_positives(self, rows, weights):
        for miner in self.miners:
            miner.observe_positives(rows, weights)

    def observe(self, rows, encodings):
        for miner in self.miners:
            miner.observe(rows, encodings)
        self._count()

    def logs(self):
        return {name: value for miner in self.miners for name, value in miner.logs().items()}

    def look(self):
        for miner in self.miners:
            miner.look()

    def _picked(self, mined):
        """Takes each draw of a query from one of the miners: int32 [queries, num_negatives]."""
        number, seeds = tf.shape(mined[0])[0], tf.random.split(self.next_seed(), 2, alg="philox")
        # Shares of a query's draws come as near to the weights as whole numbers can.
        points = draws.stratified_uniforms(number, self.num_negatives, seeds[0])
        log_weights = tf.math.log(tf.constant(self._weights, tf.float32))
        part = draws.entries_at(tf.broadcast_to(log_weights, [number, len(mined)]), points)
        # The draws of a miner may be in order: which of them is taken must not go with their place.
        turn = draws.uniforms([number, 1], seeds[1]) * self.num_negatives
        place = (tf.cast(turn, tf.int32) + tf.range(self.num_negatives)) % self.num_negatives
        of_all = tf.concat(mined, axis=1)
        return tf.gather(of_all, part * self.num_negatives + place, batch_dims=1)

    def _count(self):
        self.full_encodes.assign(tf.add_n([tf.identity(each.full_encodes) for each in self.miners]))

    def get_config(self):
        return {
            "miners": [keras.utils.serialize_keras_object(miner) for miner in self.miners],
            "weights": None if self._weights is None else list(self._weights),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        miners = [
            each if isinstance(each, Miner) else keras.utils.deserialize_keras_object(each)
            for each in config["miners"]
        ]
        return cls(**config | {"miners": miners})


def _checked(weights, numbers):
    """weights as a list of floats, or None."""
    if weights is None:
        return None
    weights = [checks.positive_float("weights", weight) for weight in weights]
    if len(weights) != len(numbers):
        raise ValueError(
            f"weights must be one for each miner. Received: {len(weights)} weights, "
            f"{len(numbers)} miners"
        )
    if len(set(numbers)) > 1:
        raise ValueError(
            "With weights, all miners must have the same num_negatives: each draw is taken from one of "
            f"them. Received: num_negatives {numbers}"
        )
    return weights
