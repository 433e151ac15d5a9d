import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_dynidx.ops import regression


def reference_fit(before, after):
    """Ridge regression of the change, its penalty picked by refits that leave one out each."""
    features = np.concatenate([before, np.ones_like(before[:, :1])], axis=1).astype(np.float64)
    change = (after - before).astype(np.float64)
    size = features.shape[1]
    scale = np.trace(features.T @ features) / size

    def fit(features, change, ridge):
        moment = features.T @ features + ridge * np.eye(size)
        return np.linalg.solve(moment, features.T @ change)

    def left_out(ridge):
        error = 0.0
        for out in range(len(features)):
            rest = np.arange(len(features)) != out
            matrix = fit(features[rest], change[rest], ridge)
            error += ((change[out] - features[out] @ matrix) ** 2).sum()
        return error

    ridges = [relative * scale for relative in regression._RIDGES]
    errors = [left_out(ridge) for ridge in ridges]
    if min(errors) >= (change**2).sum():
        return np.zeros([size, before.shape[1]])
    return fit(features, change, ridges[int(np.argmin(errors))])


def landmarks(rng, number, dim, noise, offset=0.3):
    """(before, after): moved by an affine map, plus noise."""
    before = rng.normal(size=[number, dim])
    move = 0.2 * rng.normal(size=[dim, dim])
    after = before + before @ move + offset + noise * rng.normal(size=[number, dim])
    return before.astype(np.float32), after.astype(np.float32)


def fit(before, after, weights=None):
    weights = np.ones(len(before)) if weights is None else weights
    return regression.fit_change(
        tf.constant(before, tf.float32),
        tf.constant(after, tf.float32),
        tf.constant(weights, tf.float32),
    ).numpy()


@given(seed=st.integers(0, 10_000), dim=st.integers(1, 4), noise=st.sampled_from([0.03, 0.3, 3.0]))
def test_fit_is_the_ridge_regression_that_leaves_one_out_best(seed, dim, noise):
    before, after = landmarks(np.random.default_rng(seed), 25, dim, noise)
    expected = reference_fit(before, after)
    np.testing.assert_allclose(fit(before, after), expected, rtol=1e-2, atol=1e-3)


def test_nothing_moves_when_no_landmark_moved():
    rows = np.random.default_rng(0).normal(size=[50, 6]).astype(np.float32)
    matrix = fit(rows, rows)
    assert (matrix == 0).all()
    np.testing.assert_array_equal(regression.apply_change(rows, matrix), rows)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_linear_movement_is_carried_over_to_other_rows(jit_compile):
    before, after = landmarks(np.random.default_rng(0), 300, 6, noise=0.0)

    @tf.function(jit_compile=jit_compile)
    def carry(before, after, weights, rows):
        return regression.apply_change(rows, regression.fit_change(before, after, weights))

    moved = carry(before[:200], after[:200], tf.ones(200), before[200:])
    error = np.linalg.norm(moved - after[200:]) / np.linalg.norm(before[200:] - after[200:])
    assert error < 1e-3


def test_pure_noise_moves_other_rows_hardly():
    worse = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = rng.normal(size=[72, 8]).astype(np.float32)
        matrix = fit(before, before + rng.normal(size=before.shape))
        rows = rng.normal(size=[500, 8]).astype(np.float32)
        after = rows + rng.normal(size=rows.shape)  # noise of their own
        error = np.linalg.norm(regression.apply_change(rows, matrix) - after)
        worse.append(error / np.linalg.norm(rows - after))
    assert np.mean(worse) < 1.02 and np.max(worse) < 1.06


def test_entries_of_weight_zero_do_not_count():
    before, after = landmarks(np.random.default_rng(0), 60, 5, noise=0.1)
    weights = np.repeat([1.0, 0.0], 30)
    alone = fit(before[:30], after[:30])
    before[30:], after[30:] = 1e3, -1e3
    np.testing.assert_allclose(fit(before, after, weights), alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_degenerate_landmarks_give_a_finite_fit(jit_compile):
    rng = np.random.default_rng(0)
    usual = rng.normal(size=[30, 8]).astype(np.float32)
    few = np.where(np.arange(30)[:, None] < 3, usual, 0.0)
    run = tf.function(regression.fit_change, jit_compile=jit_compile)
    ones = np.ones(30)
    cases = {
        "all equal": (np.ones([30, 8]), np.ones([30, 8]) + 1.0, ones),
        "all zero": (np.zeros([30, 8]), usual, ones),
        "none": (usual, usual + 1.0, 0 * ones),
        "fewer than dimensions": (few, 2 * few, np.arange(30) < 3),
        "jump": (usual, 1e6 * usual, ones),
        "noisy jump": (usual, 1e6 * rng.normal(size=[30, 8]), ones),
        "huge": (usual, 1e25 * usual, ones),
        "huge before": (1e25 * usual, usual, ones),
        "infinite": (usual, np.inf * np.ones([30, 8]), ones),
    }
    for name, case in cases.items():
        matrix = run(*(tf.constant(each, tf.float32) for each in case)).numpy()
        assert np.isfinite(matrix).all(), name


def test_jump_is_followed():
    before, _ = landmarks(np.random.default_rng(0), 100, 4, noise=0.0)
    after = 1e6 * before
    rows = np.random.default_rng(1).normal(size=[20, 4]).astype(np.float32)
    moved = regression.apply_change(rows, fit(before, after))
    np.testing.assert_allclose(moved, 1e6 * rows, atol=1e4)


# What was observed beside the landmarks


def observed(rng, number, dim, move, weights):
    """Rows that have made shares of the movement of a linear map, as sums."""
    rows = rng.normal(size=[number, dim]).astype(np.float32)
    after = rows + weights[:, None] * (rows @ move[:-1] + move[-1])
    return regression.sums(rows, tf.constant(after, tf.float32), tf.constant(weights, tf.float32))


def test_observations_make_up_for_few_landmarks():
    rng = np.random.default_rng(0)
    dim, weights = 12, rng.uniform(0.1, 1.0, size=400)
    move = 0.2 * rng.normal(size=[dim + 1, dim])
    before = rng.normal(size=[20, dim]).astype(np.float32)
    noise = 0.05 * rng.normal(size=before.shape)
    after = before + before @ move[:-1] + move[-1] + noise
    others = observed(rng, 400, dim, move, weights)
    errors = []
    for given_others in (None, others):
        matrix = regression.fit_change(
            before, tf.constant(after, tf.float32), tf.ones(20), given_others
        )
        errors.append(np.linalg.norm(matrix.numpy() - move))
    assert errors[1] < 0.2 * errors[0]


def test_observations_that_mislead_are_not_trusted():
    rng = np.random.default_rng(0)
    before, after = landmarks(rng, 200, 6, noise=0.01)
    misled = observed(rng, 400, 6, 5.0 * rng.normal(size=[7, 6]), np.ones(400))
    matrix = regression.fit_change(before, after, tf.ones(200), misled).numpy()
    np.testing.assert_allclose(matrix, fit(before, after), atol=1e-5)


def test_no_observations_change_nothing():
    before, after = landmarks(np.random.default_rng(0), 60, 5, noise=0.1)
    nothing = regression.Sums(tf.zeros([6, 6]), tf.zeros([6, 5]))
    matrix = regression.fit_change(before, after, tf.ones(60), nothing).numpy()
    np.testing.assert_allclose(matrix, fit(before, after), atol=1e-6)


# The RBF kernel


def reference_rbf(before, after, ridges):
    """Kernel ridge regression of the change, its penalty picked by refits that leave one out each."""
    before, change = before.astype(np.float64), (after - before).astype(np.float64)
    width = 2.0 * before.var(axis=0).sum()
    squares = ((before[:, None] - before[None]) ** 2).sum(axis=2)
    kernel = np.exp(-0.5 * squares / width)

    def fit(rows, ridge):
        mine = kernel[np.ix_(rows, rows)] + ridge * np.eye(len(rows))
        return np.linalg.solve(mine, change[rows])

    errors = []
    for ridge in ridges:
        error = 0.0
        for out in range(len(before)):
            rest = np.flatnonzero(np.arange(len(before)) != out)
            error += ((change[out] - kernel[out, rest] @ fit(rest, ridge)) ** 2).sum()
        errors.append(error)
    everything = np.arange(len(before))
    return kernel @ fit(everything, ridges[int(np.argmin(errors))])


@pytest.mark.parametrize("seed", range(3))
def test_rbf_fit_is_the_kernel_ridge_regression_that_leaves_one_out_best(seed):
    rng = np.random.default_rng(seed)
    before = rng.normal(size=[40, 3]).astype(np.float32)
    after = (before + 0.3 * np.sin(2 * before) + 0.02 * rng.normal(size=before.shape)).astype("float32")
    rbf = regression.fit_rbf(before, after, tf.ones(40))
    moved = regression.apply_rbf(before, rbf).numpy()
    expected = before + reference_rbf(before, after, regression._RIDGES)
    np.testing.assert_allclose(moved, expected, atol=2e-3)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rbf_carries_over_what_is_not_linear(jit_compile):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=[500, 3]).astype(np.float32)
    after = rows + 0.5 * np.sin(2 * rows)

    @tf.function(jit_compile=jit_compile)
    def carry(before, after, weights, rows):
        return regression.apply_rbf(rows, regression.fit_rbf(before, after, weights))

    weights = np.r_[np.ones(300), np.zeros(50)].astype(np.float32)
    noisy = after.copy()
    noisy[300:350] = 1e3  # of weight zero: not to count
    moved = carry(rows[:350], noisy[:350], weights, rows[350:]).numpy()
    error = np.linalg.norm(moved - after[350:]) / np.linalg.norm(rows[350:] - after[350:])
    assert error < 0.3


def test_rbf_leaves_rows_where_landmarks_did_not_move_or_moved_at_random():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=[50, 6]).astype(np.float32)
    same = regression.fit_rbf(rows, rows, tf.ones(50))
    np.testing.assert_array_equal(regression.apply_rbf(rows, same), rows)
    bad = regression.fit_rbf(rows, np.full_like(rows, np.inf), tf.ones(50))
    assert np.isfinite(bad.coefficients).all()
