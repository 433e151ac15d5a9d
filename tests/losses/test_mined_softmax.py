import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tf_dynidx.keras_world import keras
from tf_dynidx.losses import SampledSoftmax

BATCH, CANDIDATES = 5, 7
rng = np.random.default_rng(0)
SCORES = rng.normal(size=[BATCH, CANDIDATES]).astype(np.float32)
POSITIVES = rng.integers(CANDIDATES, size=BATCH)
LOG_EXPECTED = rng.normal(size=CANDIDATES).astype(np.float32)
MASKED = rng.random([BATCH, CANDIDATES]) < 0.3


def expected(temperature=1.0, log_expected=None, masked=None):
    log_expected = np.zeros(CANDIDATES) if log_expected is None else log_expected
    masked = np.zeros([BATCH, CANDIDATES], bool) if masked is None else masked
    return reference.sampled_softmax(SCORES / temperature, POSITIVES, log_expected, masked)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"log_expected": LOG_EXPECTED},
        {"masked": MASKED},
        {"log_expected": LOG_EXPECTED, "masked": MASKED},
    ],
    ids=lambda given: "+".join(given) or "plain",
)
def test_loss_is_that_of_the_reference(given):
    each = SampledSoftmax(temperature=0.2, reduction="none")(POSITIVES, SCORES, **given)
    np.testing.assert_allclose(each, expected(0.2, **given), rtol=1e-5)
    mean = tf.function(SampledSoftmax(temperature=0.2))(POSITIVES, tf.constant(SCORES), **given)
    assert float(mean) == pytest.approx(expected(0.2, **given).mean(), rel=1e-5)


def test_candidates_of_a_query_s_own_are_corrected_by_their_own_counts():
    own = rng.normal(size=[BATCH, CANDIDATES]).astype(np.float32)
    each = SampledSoftmax(reduction="none")(POSITIVES, SCORES, log_expected=own)
    for query in range(BATCH):
        one = reference.sampled_softmax(
            SCORES[[query]], POSITIVES[[query]], own[query], np.zeros([1, CANDIDATES], bool)
        )
        assert float(each[query]) == pytest.approx(one[0], rel=1e-5)


def test_candidate_that_could_not_be_drawn_is_left_out():
    log_expected = LOG_EXPECTED.copy()
    log_expected[[1, 4]] = -np.inf
    out = np.zeros([BATCH, CANDIDATES], bool)
    out[:, [1, 4]] = True
    scores = tf.constant(SCORES)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        each = SampledSoftmax(reduction="none")(POSITIVES, scores, log_expected=log_expected)
    np.testing.assert_allclose(each, expected(1.0, LOG_EXPECTED, out), rtol=1e-5)
    gradient = tape.gradient(each, scores).numpy()
    assert np.isfinite(gradient).all()
    own = np.arange(CANDIDATES) == POSITIVES[:, None]
    assert (gradient[out & ~own] == 0).all() and (gradient[own] < 0).all()


def test_positives_may_be_indices_or_one_hot():
    loss = SampledSoftmax()
    plain = float(loss(POSITIVES, SCORES))
    assert float(loss(POSITIVES[:, None], SCORES)) == pytest.approx(plain)
    one_hot = np.eye(CANDIDATES, dtype=np.float32)[POSITIVES]
    assert float(loss(one_hot, SCORES)) == pytest.approx(plain)
    for y_true in (np.zeros([BATCH, 1], int), np.ones([BATCH, 1], np.float32)):
        assert float(loss(y_true, SCORES[:, :1])) == 0.0


def test_examples_are_weighted_and_reduced_as_by_keras():
    weight = np.arange(BATCH, dtype=np.float32)
    each = expected(log_expected=LOG_EXPECTED)
    for reduction, truth in (
        ("none", each * weight),
        ("sum", (each * weight).sum()),
        ("sum_over_batch_size", (each * weight).mean()),
    ):
        loss = SampledSoftmax(reduction=reduction)
        found = loss(POSITIVES, SCORES, sample_weight=weight, log_expected=LOG_EXPECTED)
        np.testing.assert_allclose(found, truth, rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_model_is_fitted_to_it(jit_compile):
    inputs = keras.Input([CANDIDATES])
    model = keras.Model(inputs, keras.layers.Dense(CANDIDATES)(inputs))
    model.compile(keras.optimizers.Adam(0.1), SampledSoftmax(0.5), jit_compile=jit_compile)
    history = model.fit(SCORES, POSITIVES, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="positive and finite. Received: temperature="):
        SampledSoftmax(temperature)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"y_pred must have .*Received: shape \(5,\)"):
        SampledSoftmax()(POSITIVES, SCORES[:, 0])
    with pytest.raises(ValueError, match=r"y_true must be .*shape \(5, 3\) for 7 candidates"):
        SampledSoftmax()(np.zeros([BATCH, 3]), SCORES)
