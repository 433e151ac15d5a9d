import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax

from tests.reference import full_softmax_loss, gaussian, unit
from tf_dynidx import TargetCorpus
from tf_dynidx.keras_world import keras
from tf_dynidx.layers import NegativeMiner
from tf_dynidx.losses import SampledSoftmax
from tf_dynidx.miners import Exact, InBatch, Popularity, Tree, Uniform

TARGETS, WIDTH, DIM, NEGATIVES = 120, 5, 4, 8
TEMPERATURE = 0.25

rng = np.random.default_rng(0)
FEATURES = gaussian(rng, TARGETS, WIDTH)
QUERIES = unit(gaussian(rng, 6, DIM))
POSITIVES = np.array([[3, 7], [0, -1], [-1, -1], [9, 100], [50, -1], [4, 5]], np.int32)


def tower():
    keras.utils.set_random_seed(0)
    features = keras.Input([WIDTH])
    return keras.Model(features, keras.layers.UnitNormalization()(keras.layers.Dense(DIM)(features)))


def make(miner=None):
    miner = Uniform(NEGATIVES) if miner is None else miner
    return NegativeMiner(miner, TargetCorpus(FEATURES), tower(), TEMPERATURE).prepare()


@pytest.mark.parametrize("kind", [Tree, Exact, Uniform])
def test_draws_come_with_their_log_probability(kind):
    layer = make(kind(num_negatives=NEGATIVES))
    rows, log_prob = layer(QUERIES, POSITIVES)
    assert rows.shape == log_prob.shape == (6, NEGATIVES) and rows.dtype == tf.int32
    scores = QUERIES @ layer.encode_rows(np.arange(TARGETS)).numpy().T / TEMPERATURE
    if kind is Uniform:
        truth = np.full([6, TARGETS], -np.log(TARGETS))
    else:
        for query, positives in enumerate(POSITIVES):
            scores[query, positives[positives >= 0]] = -np.inf
        truth = log_softmax(scores, axis=1)
    truth = np.take_along_axis(truth, rows.numpy(), axis=1)
    positive = (rows.numpy()[:, :, None] == POSITIVES[:, None, :]).any(axis=2)
    truth[positive] = -np.inf
    # The tree estimates the partition function.
    np.testing.assert_allclose(log_prob, truth, atol=0.05 if kind is Tree else 1e-4)


def test_positive_that_was_drawn_is_not_to_be_used():
    rows, log_prob = make(Uniform(TARGETS))(QUERIES, POSITIVES)
    positive = (rows.numpy()[:, :, None] == POSITIVES[:, None, :]).any(axis=2)
    assert positive.any()
    np.testing.assert_array_equal(np.isneginf(log_prob), positive)


def test_own_loss_over_the_draws_estimates_the_full_softmax():
    layer = make(Uniform(100))
    queries, positives = QUERIES[[0, 1, 3]], POSITIVES[[0, 1, 3], 0]
    table = layer.encode_rows(np.arange(TARGETS))

    @tf.function
    def loss():
        rows, log_prob = layer(queries, positives)
        rows = tf.concat([positives[:, None], rows], axis=1)
        scores = tf.einsum("qd,qcd->qc", queries, tf.gather(table, rows))
        log_expected = tf.pad(log_prob + np.log(100.0).astype("float32"), [[0, 0], [1, 0]])
        return SampledSoftmax(TEMPERATURE, reduction="none")(
            [0, 0, 0], scores, log_expected=log_expected
        )

    estimate = np.mean([loss().numpy() for _ in range(200)], axis=0)
    truth = full_softmax_loss(queries, table.numpy(), 1 / TEMPERATURE, positives)
    np.testing.assert_allclose(estimate, truth, atol=0.05)


def test_step_is_compiled_by_xla_and_traced_once():
    layer, traces = make(), []

    @tf.function(jit_compile=True)
    def step(queries, positives):
        traces.append(1)
        return layer(queries, positives)

    first, second = (step(QUERIES, POSITIVES)[0].numpy() for _ in range(2))
    assert len(traces) == 1
    assert (first != second).any()


def test_observed_encodings_are_written_to_the_index():
    layer = make(Tree(num_negatives=2))
    fresh = np.eye(DIM, dtype=np.float32)[:2]
    layer.observe([4, 90], fresh)
    np.testing.assert_allclose(layer.miner.index.read(np.array([4, 90], np.int32)), fresh, atol=1e-6)


def test_miner_is_told_the_positives_that_are_handed_over():
    layer = make(Popularity(2))
    layer.observe([4], np.eye(DIM, dtype=np.float32)[:1])
    layer.observe([4], np.eye(DIM, dtype=np.float32)[:1], positives=[7, -1, 7])
    np.testing.assert_array_equal(layer.miner.counts, np.bincount([7, 7], minlength=TARGETS))


def test_no_gradient_flows_through_the_draws():
    layer, queries = make(Exact(num_negatives=2)), tf.constant(QUERIES)
    with tf.GradientTape() as tape:
        tape.watch(queries)
        _, log_prob = layer(queries, POSITIVES)
    assert tape.gradient(log_prob, queries) is None


def test_saved_state_comes_back_without_encoding_all_targets(tmp_path):
    layer = make(Tree(num_negatives=3))
    layer.observe([4], np.eye(DIM, dtype=np.float32)[:1])
    queries, positives = keras.Input([DIM]), keras.Input([2], dtype="int32")
    rows, log_prob = layer(queries, positives)
    model = keras.Model([queries, positives], {"rows": rows, "log_prob": log_prob})
    model.save(tmp_path / "model.keras")
    corpus = TargetCorpus(FEATURES)
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"corpus": corpus})
    every = np.arange(TARGETS, dtype=np.int32)
    again = next(each for each in loaded.layers if isinstance(each, NegativeMiner))
    np.testing.assert_array_equal(again.miner.index.read(every), layer.miner.index.read(every))
    assert int(again.miner.full_encodes) == 1
    found, expected = (each([QUERIES, POSITIVES]) for each in (loaded, model))
    np.testing.assert_array_equal(found["rows"], expected["rows"])
    np.testing.assert_allclose(found["log_prob"], expected["log_prob"], rtol=1e-5)
    # Without the corpus there is nothing to encode.
    with pytest.raises(ValueError, match="without its corpus"):
        NegativeMiner.from_config(layer.get_config()).prepare()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"miner": InBatch()}, "draws negatives, such as Tree.*Received: <"),
        ({"miner": "tree"}, "draws negatives, such as Tree.*Received: 'tree'"),
        ({"corpus": FEATURES}, "corpus must be a TargetCorpus. Received: ndarray"),
        ({"temperature": 0}, "positive and finite. Received: temperature=0"),
        ({"temperature": float("nan")}, "positive and finite. Received: temperature=nan"),
    ],
)
def test_bad_argument_is_refused(changes, message):
    given = {"miner": Uniform(), "corpus": TargetCorpus(FEATURES), "target_tower": tower()} | changes
    with pytest.raises(ValueError, match=message):
        NegativeMiner(**given)


def test_layer_that_is_not_prepared_says_so():
    layer = NegativeMiner(Uniform(), TargetCorpus(FEATURES), tower())
    with pytest.raises(ValueError, match=r"call prepare\(\) first. Received: none"):
        layer(QUERIES, POSITIVES)
