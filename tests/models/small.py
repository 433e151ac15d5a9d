"""A small retrieval task, and models for it, that several tests share."""

import numpy as np
import tensorflow as tf

from tf_dynidx import DualEncoder, TargetCorpus
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import InBatch

TARGETS, WIDTH, DIM, BATCH = 240, 12, 8, 40
TEMPERATURE = 0.1

_rng = np.random.default_rng(0)
TARGET_FEATURES = _rng.normal(size=[TARGETS, WIDTH]).astype(np.float32)
# A query is a rotated and noisy look at its target: nothing that an untrained model knows.
_ROTATION = np.linalg.qr(_rng.normal(size=[WIDTH, WIDTH]))[0]
POSITIVES = np.repeat(np.arange(TARGETS, dtype=np.int32), 2)
_NOISE = 0.3 * _rng.normal(size=[2 * TARGETS, WIDTH])
QUERY_FEATURES = (TARGET_FEATURES[POSITIVES] @ _ROTATION + _NOISE).astype(np.float32)
NAMES = np.array([f"target {row}" for row in range(TARGETS)])


def functional_tower(dropout=0.0):
    features = keras.Input([WIDTH])
    inner = keras.layers.Dense(16, activation="tanh")(features)
    if dropout:
        inner = keras.layers.Dropout(dropout)(inner)
    return keras.Model(features, keras.layers.UnitNormalization()(keras.layers.Dense(DIM)(inner)))


def make(miner=None, towers=None, seed=0, identifiers=None, options=None, corpus=None, **compiled):
    """A compiled model, the same for the same seed."""
    keras.utils.set_random_seed(seed)
    query, target = towers() if towers else (functional_tower(), functional_tower())
    corpus = TargetCorpus(TARGET_FEATURES, identifiers, **(corpus or {}))
    options = {"temperature": TEMPERATURE} | (options or {})
    model = DualEncoder(query, target, corpus, miner or InBatch(), **options)
    compiled = {"optimizer": keras.optimizers.Adam(0.02), "jit_compile": False} | compiled
    model.compile(**compiled)
    return model


def batches(y=POSITIVES, batch=BATCH, x=QUERY_FEATURES):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


def weights(model):
    return [np.array(w) for t in (model.query_tower, model.target_tower) for w in t.get_weights()]


def state(model):
    """All that a model keeps: weights, optimizer, index, counts, random state, by name."""
    parts = {"weights": weights(model), "optimizer": optimizer_state(model)}
    named = {f"{part} {i}": v for part, values in parts.items() for i, v in enumerate(values)}
    return named | {name: variable.numpy() for name, variable in model._own_state().items()}


def optimizer_state(model):
    variables = model.optimizer.variables
    return [np.array(v) for v in (variables() if callable(variables) else variables)]


def assert_same(first, second, **kwargs):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-5} | kwargs)


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
