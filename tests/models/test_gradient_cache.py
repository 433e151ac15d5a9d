import numpy as np
import pytest
import tensorflow as tf

from tests.models import small
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.models.gradient_cache import changing_state, encode_in_chunks

FEATURES = tf.constant(small.TARGET_FEATURES)
ROWS = np.random.default_rng(0).integers(small.TARGETS, size=25).astype(np.int32)
UPSTREAM = np.random.default_rng(1).normal(size=[25, small.DIM]).astype(np.float32)


def values(variables):
    return [v.value if IS_KERAS_3 else v for v in variables]


def encoder(tower):
    return lambda rows: tf.cast(tower(tf.gather(FEATURES, rows), training=True), tf.float32)


def gradient(encode, tower):
    """Encodings of ROWS, and the gradient of their product with UPSTREAM."""
    variables = values(tower.trainable_variables)
    with tf.GradientTape() as tape:
        encodings = encode(tf.constant(ROWS))
        loss = tf.reduce_sum(encodings * UPSTREAM)
    return [encodings, *map(tf.convert_to_tensor, tape.gradient(loss, variables))]


def dropping_tower():
    if IS_KERAS_3:
        return small.functional_tower(0.5)
    experimental = keras.backend.experimental
    experimental.enable_tf_random_generator()
    try:
        return small.functional_tower(0.5)
    finally:
        experimental.disable_tf_random_generator()


def normalising_tower():
    layers = [keras.layers.Dense(16), keras.layers.BatchNormalization(), keras.layers.Dense(small.DIM)]
    return keras.Sequential([keras.Input([small.WIDTH]), *layers])


def embedding_tower():
    ids = keras.Input([], dtype="int32")
    return keras.Model(ids, keras.layers.Dense(small.DIM)(keras.layers.Embedding(240, 6)(ids)))


WAYS = {
    "eager": lambda function: function,
    "graph": lambda function: tf.function(function, autograph=False),
    "xla": lambda function: tf.function(function, autograph=False, jit_compile=True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunk", [1, 7, 25, 40])
def test_gradient_is_that_of_encoding_all_at_once(way, chunk):
    tower = small.functional_tower()
    encode = encoder(tower)
    expected = gradient(encode, tower)
    found = WAYS[way](lambda: gradient(lambda rows: encode_in_chunks(encode, rows, chunk), tower))()
    small.assert_same(expected, found, rtol=1e-5, atol=1e-6)


def test_number_of_rows_need_not_be_known():
    tower = small.functional_tower()
    encode = encoder(tower)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False)
    def encoded(rows):
        return encode_in_chunks(encode, rows, 4)

    for number in (0, 3, 4, 9):
        np.testing.assert_allclose(encoded(ROWS[:number]), encode(ROWS[:number]), atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [dropping_tower, normalising_tower])
def test_chunks_are_encoded_twice_alike_and_counted_once(make, way):
    """As if a tape had been kept for each chunk: the same drops, averages moved once a chunk."""
    keras.utils.set_random_seed(0)
    tower = make()
    encode = encoder(tower)
    encode(tf.constant(ROWS))  # makes the state
    state = changing_state(tower)
    assert len(state) == (2 if make is normalising_tower else 1)
    start = [variable.numpy() for variable in state]

    def by_tape(rows):
        blocks = tf.split(tf.pad(rows, [[0, 3]]), 4)
        return tf.concat([encode(block) for block in blocks], axis=0)[:25]

    # The same way: XLA turns a seed into other numbers.
    expected = WAYS[way](lambda: gradient(by_tape, tower))()
    moved = [variable.numpy() for variable in state]
    assert any((a != b).any() for a, b in zip(start, moved, strict=True))
    for variable, value in zip(state, start, strict=True):
        variable.assign(value)
    by_chunk = WAYS[way](lambda: gradient(lambda r: encode_in_chunks(encode, r, 7, state), tower))
    small.assert_same(expected, by_chunk(), rtol=1e-4, atol=1e-5)
    small.assert_same(moved, [variable.numpy() for variable in state], rtol=1e-6, atol=1e-6)


def test_embeddings_are_encoded_in_chunks():
    tower = embedding_tower()

    def encode(rows):
        return tower(rows, training=True)

    expected = gradient(encode, tower)
    found = gradient(lambda rows: encode_in_chunks(encode, rows, 7), tower)
    small.assert_same(expected, found, rtol=1e-5, atol=1e-6)


def test_activity_regularizer_is_refused():
    layer = keras.layers.Dense(2, activity_regularizer="l2", name="penalised")
    with pytest.raises(ValueError, match="activity regularizers.*Received: layer 'penalised'"):
        changing_state(keras.Sequential([keras.Input([3]), layer]))


def test_random_numbers_without_state_are_refused():
    if IS_KERAS_3:  # they always have one
        assert changing_state(small.functional_tower(0.5))
        return
    with pytest.raises(ValueError, match="enable_tf_random_generator.*Received: layer .* of Dropout"):
        changing_state(small.functional_tower(0.5))
