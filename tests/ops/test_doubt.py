import numpy as np
import pytest
import tensorflow as tf

from tf_dynidx.ops import doubt

DIM, BETA = 6, 1.5
ERRORS = np.float32([0.0, 0.1, 0.7, 1.3])


@pytest.fixture(name="queries")
def _queries():
    return np.random.default_rng(0).normal(size=[5, DIM]).astype(np.float32)


def test_row_weighs_what_its_encoding_is_expected_to_weigh(queries):
    rng = np.random.default_rng(1)
    means = rng.normal(size=[len(ERRORS), DIM])
    # Of two opposite places both, so that the mean is exact.
    noise = rng.normal(size=[100_000, DIM])
    noise = np.concatenate([noise, -noise]) / np.sqrt(DIM)
    lifts = doubt.lifts(ERRORS, queries, BETA).numpy()
    for kind, (mean, error) in enumerate(zip(means, ERRORS, strict=True)):
        encodings = mean + np.sqrt(error) * noise
        assert np.mean(np.sum((encodings - mean) ** 2, axis=1)) == pytest.approx(error, rel=0.01)
        weights = np.exp(BETA * queries @ encodings.T).mean(axis=1)
        found = np.exp(BETA * (queries @ mean + lifts[:, kind]))
        np.testing.assert_allclose(found, weights, rtol=0.02)


def test_mean_lift_is_that_of_the_rows_together(queries):
    lifts = doubt.lifts(ERRORS, queries, BETA)
    shares = np.float32([3, 0, 5, 2])
    each = np.repeat(lifts.numpy(), shares.astype(int), axis=1)
    expected = np.log(np.exp(BETA * each).mean(axis=1)) / BETA
    np.testing.assert_allclose(doubt.mean_lift(lifts, shares, BETA), expected, rtol=1e-5)
    np.testing.assert_array_equal(doubt.mean_lift(lifts, 0.0 * shares, BETA), np.zeros(5))
    assert tf.reduce_all(doubt.mean_lift(lifts, shares, BETA) >= 0.0)
