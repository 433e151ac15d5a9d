"""A small world to train in: targets, queries near them, and models of two linear towers."""

import numpy as np
import tensorflow as tf

from tf_dynidx import DualEncoder, TargetCorpus
from tf_dynidx.index import DynamicIndex
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import Uniform

TARGETS, WIDTH, DIM, BATCH = 150, 8, 6, 30

rng = np.random.default_rng(0)
TARGET_FEATURES = rng.normal(size=[TARGETS, WIDTH]).astype(np.float32)
POSITIVES = np.arange(TARGETS, dtype=np.int32)
QUERY_FEATURES = (TARGET_FEATURES + 0.5 * rng.normal(size=[TARGETS, WIDTH])).astype(np.float32)
STEPS = TARGETS // BATCH  # an epoch


def tower():
    features = keras.Input([WIDTH])
    return keras.Model(features, keras.layers.UnitNormalization()(keras.layers.Dense(DIM)(features)))


class Indexed(Uniform):
    """Keeps an index, which nothing but write-backs follows the encoder with, and draws uniformly.

    A step of it is traced in no time, unlike one of `Tree`.
    """

    def make_state(self, corpus, encode_corpus):
        self.index = DynamicIndex(DIM, corpus.size)
        self.index.build(encode_corpus())

    def observe(self, rows, encodings):
        self.index.write(rows[:BATCH], encodings[:BATCH])


def make(miner=None, learning_rate=0.05, identifiers=None, **compiled):
    """A compiled model, the same each time."""
    keras.utils.set_random_seed(0)
    corpus = TargetCorpus(TARGET_FEATURES, identifiers)
    miner = Indexed() if miner is None else miner
    model = DualEncoder(tower(), tower(), corpus, miner, temperature=0.1)
    optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(**{"optimizer": optimizer, "jit_compile": False} | compiled)
    return model


def train(model, *callbacks, epochs=2, **changes):
    """The history of a run with callbacks."""
    dataset = tf.data.Dataset.from_tensor_slices((QUERY_FEATURES, POSITIVES)).batch(BATCH)
    given = {"epochs": epochs, "verbose": 0, "callbacks": list(callbacks)} | changes
    return model.fit(dataset, **given).history


def weights(model):
    return [*model.query_tower.get_weights(), *model.target_tower.get_weights()]


def encoded(model):
    """(queries, targets), by the towers as they are now."""
    return (
        model.encode_queries(QUERY_FEATURES).numpy(),
        model.encode_targets(TARGET_FEATURES).numpy(),
    )
