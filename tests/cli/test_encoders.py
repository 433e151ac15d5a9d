import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dynidx.cli.encoders import Tokenizer, id_towers, text_towers, tokenize_all
from tf_dynidx.keras_world import keras

SMALL = {"dim": 8, "vocabulary": 50, "max_pieces": 6, "width": 5, "hidden": 7}


def hashed(pieces, tokenizer):
    """The ids of pieces written out, padded and cut."""
    ids = tf.strings.to_hash_bucket_fast(pieces, tokenizer.vocabulary - 1).numpy() + 1
    row = np.zeros(tokenizer.max_pieces, np.int32)
    row[: len(pieces)] = ids[: tokenizer.max_pieces]
    return row


def pieces_of(text, max_pieces=64):
    return Tokenizer(max_pieces=max_pieces)([text])[0].numpy()


# Tokenizer


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("a dog", ["a", "dog", "<dog", "dog>"]),
        ("readFile", ["read", "file", "<rea", "read", "ead>", "<fil", "file", "ile>"]),
        ("utf8Text", ["utf8", "text", "<utf", "utf8", "tf8>", "<tex", "text", "ext>"]),
        ("HTML", ["html", "<htm", "html", "tml>"]),
        ("  _x-- y!", ["x", "y"]),
        ("ÉTÉ été", ["été", "été", "<été", "été>", "<été", "été>"]),
        ("日本", ["日本", "<日本>"]),
        ("हिंदी", ["हिंदी", "<हिं", "हिंद", "िंदी", "ंदी>"]),
    ],
)
def test_pieces_are_words_then_their_4_grams(text, pieces):
    np.testing.assert_array_equal(pieces_of(text), hashed(pieces, Tokenizer()))


@pytest.mark.parametrize("text", ["", " ", "-- !?", "\n\t"])
def test_text_without_a_word_is_the_empty_word(text):
    np.testing.assert_array_equal(pieces_of(text), hashed([""], Tokenizer()))


def test_long_text_loses_its_last_pieces():
    text = "one two three " * 50
    assert pieces_of(text, 64).all()
    np.testing.assert_array_equal(pieces_of(text, 5), pieces_of(text, 64)[:5])


@given(st.lists(st.text(max_size=20) | st.binary(max_size=20), max_size=5))
@settings(deadline=None)
def test_ids_of_any_bytes_are_in_the_vocabulary_with_padding_last(texts):
    tokenizer = Tokenizer(vocabulary=9, max_pieces=7)
    texts = [t if isinstance(t, bytes) else t.encode("utf-8", "replace") for t in texts]
    ids = tokenizer(tf.constant(texts, tf.string, shape=[len(texts)]))
    assert ids.shape == (len(texts), 7) and ids.dtype == tf.int32
    ids = ids.numpy()
    assert ((ids >= 0) & (ids < 9)).all() and (ids[:, 0] > 0).all()
    assert (np.diff((ids > 0).astype(int)) <= 0).all()


def test_pieces_are_the_same_eagerly_in_a_function_in_batches_and_alone():
    texts = ["readFile", "", "a much longer text, with WordsInCamelCase", "été", "x"]
    tokenizer = Tokenizer()
    eager = tokenizer(texts).numpy()
    np.testing.assert_array_equal(tf.function(tokenizer)(tf.constant(texts)), eager)
    np.testing.assert_array_equal(tokenize_all(tokenizer, texts, batch=2), eager)
    np.testing.assert_array_equal([pieces_of(text) for text in texts], eager)


def test_no_texts_have_no_pieces():
    pieces = tokenize_all(Tokenizer(), [])
    assert pieces.shape == (0, 64) and pieces.dtype == np.int32


def test_last_smaller_batch_is_not_traced_again():
    traces = []

    class Counted(Tokenizer):
        def __call__(self, texts):
            traces.append(texts)
            return super().__call__(texts)

    tokenize_all(Counted(), ["x"] * 5, batch=2)
    assert len(traces) == 1


@pytest.mark.parametrize("sizes", [{"vocabulary": 1}, {"max_pieces": 0}])
def test_sizes_that_leave_no_piece_are_refused(sizes):
    (name, size) = next(iter(sizes.items()))
    with pytest.raises(ValueError, match=f"at least.*Received: {name}={size}"):
        Tokenizer(**sizes)


# Towers


@pytest.fixture(params=["text", "text with dropout", "id"])
def towers(request):
    """(query_tower, target_tower), and an input that both take."""
    pieces = np.random.default_rng(0).integers(1, 50, [4, 6]).astype(np.int32)
    pieces[1, 3:] = 0
    if request.param == "text":
        return text_towers(**SMALL), pieces
    if request.param == "text with dropout":
        return text_towers(**SMALL, dropout=0.5), pieces
    return id_towers(5, 3, dim=8), np.array([0, 2, 2, 1], np.int32)


def loss_and_gradients(towers, inputs, jit_compile):
    weights = [weight for tower in towers for weight in tower.trainable_variables]

    @tf.function(jit_compile=jit_compile)
    def run(inputs):
        with tf.GradientTape() as tape:
            query, target = (tower(inputs, training=False) for tower in towers)
            scores = tf.matmul(query, target, transpose_b=True)
            loss = tf.reduce_mean(tf.reduce_logsumexp(3.0 * scores, axis=1))
        return loss, [tf.convert_to_tensor(g) for g in tape.gradient(loss, weights)]

    return run(tf.constant(inputs))


def test_encodings_have_unit_norm(towers):
    models, inputs = towers
    for model in models:
        encodings = model(inputs)
        assert encodings.shape == (4, 8) and encodings.dtype == tf.float32
        np.testing.assert_allclose(np.linalg.norm(encodings, axis=1), 1.0, rtol=1e-5)


def test_gradients_are_finite_and_the_same_with_xla(towers):
    models, inputs = towers
    loss, gradients = loss_and_gradients(models, inputs, jit_compile=False)
    xla_loss, xla_gradients = loss_and_gradients(models, inputs, jit_compile=True)
    np.testing.assert_allclose(loss, xla_loss, rtol=1e-5)
    for gradient, xla_gradient in zip(gradients, xla_gradients, strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient)
        np.testing.assert_allclose(gradient, xla_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_every_weight_trains(towers, jit_compile):
    (query_tower, target_tower), inputs = towers
    scores = keras.layers.Dot(1)([query_tower.output, target_tower.output])
    model = keras.Model([query_tower.input, target_tower.input], scores)
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=jit_compile)
    before = model.get_weights()
    model.fit([inputs, inputs], np.ones([4, 1]), epochs=2, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.isfinite(new).all() and np.any(new != old)


@pytest.mark.parametrize("make", [text_towers, id_towers])
def test_seed_decides_the_weights(make):
    sizes = SMALL if make is text_towers else {"num_queries": 5, "num_targets": 3, "dim": 8}

    def weights(seed):
        """The weights that are drawn, each once."""
        towers = make(**sizes, seed=seed)
        variables = {id(weight): weight for tower in towers for weight in tower.weights}
        values = [weight.numpy() for weight in variables.values()]
        return [value for value in values if np.unique(value).size > 1]

    first, same, other = weights(1), weights(1), weights(2)
    for one, two, three in zip(first, same, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert np.all(one != three)
    assert len({value.flat[0] for value in first}) == len(first)


def test_text_towers_share_the_table_and_nothing_else():
    query_tower, target_tower = text_towers(**SMALL)
    shared = [w for w in query_tower.weights if any(w is v for v in target_tower.weights)]
    assert [tuple(weight.shape) for weight in shared] == [(50, 5)]


def test_padding_does_not_change_an_encoding():
    tower, _ = text_towers(**SMALL)
    pieces = np.array([[3, 9, 0, 0, 0, 0]], np.int32)
    encoding = tower(pieces)
    table = next(weight for weight in tower.weights if tuple(weight.shape) == (50, 5))
    rows = table.numpy()
    rows[0] = 100.0
    table.assign(rows)
    np.testing.assert_array_equal(tower(pieces), encoding)


def test_encoding_of_padding_alone_is_finite():
    for tower in text_towers(**SMALL):
        assert np.isfinite(tower(np.zeros([2, 6], np.int32))).all()


def test_empty_text_trains_to_finite_weights():
    pieces = Tokenizer(vocabulary=50, max_pieces=6)(["", "a dog"])
    _, gradients = loss_and_gradients(text_towers(**SMALL), pieces, jit_compile=False)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("suffix", ["keras", "weights.h5"])
def test_saved_tower_encodes_the_same(towers, tmp_path, suffix):
    (tower, _), inputs = towers
    path = str(tmp_path / f"tower.{suffix}")
    if suffix == "keras":
        tower.save(path)
        loaded = keras.models.load_model(path)
    else:
        tower.save_weights(path)
        loaded = keras.models.clone_model(tower)
        loaded.load_weights(path)
    np.testing.assert_array_equal(loaded(inputs), tower(inputs))


def test_tokenizer_and_tower_are_exported_together(tmp_path):
    tokenizer = Tokenizer(vocabulary=50, max_pieces=6)
    tower, _ = text_towers(**SMALL)
    module = tf.Module()
    module.tower = tower
    module.encode = tf.function(
        lambda texts: tower(tokenizer(texts)), input_signature=[tf.TensorSpec([None], tf.string)]
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    texts = tf.constant(["readFile", ""])
    np.testing.assert_allclose(loaded.encode(texts), tower(tokenizer(texts)), rtol=1e-5)
