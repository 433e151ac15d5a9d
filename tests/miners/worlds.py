"""Every miner, and a small world to mine in: what the tests of miners share."""

import importlib.util
import pathlib

import numpy as np
import tensorflow as tf

from tf_dynidx import TargetCorpus
from tf_dynidx.miners import (
    Exact,
    InBatch,
    Mixed,
    NegativeCache,
    Popularity,
    Stale,
    Stochastic,
    Tree,
    Uniform,
)

TARGETS, DIM, BETA = 200, 8, 8.0

_EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "own_miner.py"
_spec = importlib.util.spec_from_file_location("own_miner", _EXAMPLE)
own_miner = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(own_miner)


def maker(kind, **options):
    """Makes a miner of two negatives with these options, some of which may be changed."""
    return lambda **changes: kind(**{"num_negatives": 2, **options, **changes})


def mixed(weights=None, **changes):
    """Makes a mixture with a state that follows the encoder, and one without."""
    number = changes.pop("num_negatives", 2)
    ways = [Popularity(number - number // 2), NegativeCache(number // 2, refresh_share=0.1)]
    if number == 1 or weights:
        ways = [Popularity(number), NegativeCache(number, refresh_share=0.1)][: 1 + bool(weights)]
    return Mixed(ways, weights, **changes)


# All that there is to be held to the protocol: a miner is made by name, of a changed configuration.
MINERS = {
    "tree": maker(Tree, refresh_every=2, budget=192),
    "flat": maker(Tree, refresh_every=2),
    "in-batch": lambda **changes: InBatch(**{k: v for k, v in changes.items() if k == "seed"}),
    "uniform": maker(Uniform),
    "popularity": maker(Popularity),
    "stochastic": maker(Stochastic, num_candidates=64),
    "stale": maker(Stale, refresh_every=3),
    "cache": maker(NegativeCache, refresh_share=0.1),
    "small cache": maker(NegativeCache, cache_size=50, refresh_share=0.1),
    "exact": maker(Exact),
    "mixed": mixed,
    "weighted": lambda **changes: mixed([0.7, 0.3], **changes),
    "own": maker(own_miner.Recent, memory=64),
}


class World:
    """A "tower" that reads a table, and a miner over it."""

    def __init__(self, miner, targets=TARGETS):
        rng = np.random.default_rng(0)
        table = rng.normal(size=[targets, DIM])
        self.table = tf.Variable(table / np.linalg.norm(table, axis=1, keepdims=True), dtype=tf.float32)
        self.corpus = TargetCorpus(np.arange(targets))
        self.miner = miner
        self.encoded = tf.Variable(-1, dtype=tf.int64)  # rows, but for one that tells the dimension
        miner.build(self.corpus, self.encode_rows, self.encode_corpus)

    def encode_rows(self, rows):
        self.encoded.assign_add(tf.size(rows, out_type=tf.int64))
        return tf.gather(self.table, rows)

    def encode_corpus(self):
        return self.encode_rows(tf.range(self.corpus.size)).numpy()

    def mine(self, queries, positives):
        """(rows, log_prob of all targets)."""
        beta = tf.constant(BETA)
        mined, drawn = self.miner.mine(queries, beta, positives)
        everything = tf.range(self.corpus.size)
        return mined, self.miner.log_prob(everything, queries, beta, positives, drawn)

    def step(self, queries, positives):
        """A training step: mines, and hands over what it has encoded. (rows, log_prob of those)."""
        beta = tf.constant(BETA)
        mined, drawn = self.miner.mine(queries, beta, positives)
        rows = tf.concat([tf.maximum(positives[:, 0], 0), tf.reshape(mined, [-1])], axis=0)
        log_prob = self.miner.log_prob(rows, queries, beta, positives, drawn)
        weights = tf.cast(positives[:, 0] >= 0, tf.float32)
        self.miner.observe_positives(rows[: weights.shape[0]], weights)
        self.miner.observe(rows, tf.gather(self.table, rows))
        return mined, log_prob

    def move(self, amount, seed=3):
        """Moves the table smoothly, as an encoder does: by a linear map, back to the sphere."""
        map_ = np.random.default_rng(seed).normal(size=[DIM, DIM])
        table = self.table.numpy() + amount * self.table.numpy() @ map_
        self.table.assign(table / np.linalg.norm(table, axis=1, keepdims=True))


def some_queries(number, seed=1):
    queries = np.random.default_rng(seed).normal(size=[number, DIM])
    return tf.constant(queries / np.linalg.norm(queries, axis=1, keepdims=True), tf.float32)
