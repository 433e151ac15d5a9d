import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tf_dynidx.ops import draws

SEED = tf.constant([3, 4])
SLACK = 1e-5  # of float32 sums of weights that add up to 1


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "xla"])
def categorical(request):
    """`draws.categorical`, with XLA and without."""

    @tf.function(jit_compile=request.param)
    def run(log_weights, num_draws, seed):
        return draws.categorical(log_weights, num_draws, seed)

    return lambda log_weights, num_draws, seed=SEED: run(
        tf.constant(log_weights, tf.float32), num_draws, seed
    ).numpy()


def log(weights):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(weights, np.float32))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_uniforms_are_uniform_and_the_same_with_xla(jit_compile):
    expected = draws.uniforms([100, 200], SEED).numpy()
    found = tf.function(draws.uniforms, jit_compile=jit_compile)([100, 200], SEED).numpy()
    np.testing.assert_array_equal(found, expected)
    assert found.min() >= 0 and found.max() < 1
    assert stats.kstest(found.ravel(), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(20_000)


def test_stratified_uniforms_are_uniform_with_one_in_each_stratum():
    uniforms = draws.stratified_uniforms(5000, 8, SEED).numpy()
    within = uniforms * 8 - np.arange(8)
    assert uniforms.shape == (5000, 8) and (within >= 0).all() and (within <= 1).all()
    for column in within.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    # Strata are independent of each other.
    correlations = np.corrcoef(within.T) - np.eye(8)
    assert np.abs(correlations).max() < 5 / np.sqrt(5000)


def test_frequencies_match_the_weights(categorical):
    rng = np.random.default_rng(0)
    weights = rng.gamma(0.5, size=40)
    weights[[0, 7, 8, 39]] = 0.0
    drawn = categorical(np.tile(log(weights), [4000, 1]), 8)
    counts = np.bincount(drawn.ravel(), minlength=40)
    likely = weights > 0
    assert counts[~likely].sum() == 0
    # Stratified draws vary less than independent ones: chance alone fails this more rarely still.
    expected = weights[likely] / weights.sum() * counts.sum()
    assert stats.chisquare(counts[likely], expected).pvalue > 1e-4


def test_counts_of_one_set_deviate_by_less_than_two_from_their_expectation(categorical):
    rng = np.random.default_rng(1)
    weights = rng.gamma(1.0, size=[200, 12])
    drawn = categorical(log(weights), 50)
    counts = np.stack([np.bincount(row, minlength=12) for row in drawn])
    expected = 50 * weights / weights.sum(axis=1, keepdims=True)
    assert np.abs(counts - expected).max() < 2.0
    assert (np.diff(drawn, axis=1) >= 0).all()


@given(data=st.data())
def test_entry_without_weight_is_never_drawn(categorical, data):
    weights = st.one_of(st.just(-np.inf), st.floats(-50.0, 50.0, width=32))
    rows = data.draw(st.lists(st.lists(weights, min_size=17, max_size=17), min_size=3, max_size=3))
    log_weights = np.array(rows, np.float32)
    drawn = categorical(log_weights, 50, tf.constant([0, data.draw(st.integers(0, 999))]))
    assert (drawn >= 0).all() and (drawn < 17).all()
    for row, entries in zip(log_weights, drawn, strict=True):
        if np.isfinite(row).any():
            assert np.isfinite(row[entries]).all()
        else:
            assert (entries == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
def test_random_number_on_the_border_draws_no_entry_without_weight(monkeypatch, uniform):
    monkeypatch.setattr(draws, "uniforms", lambda shape, seed: tf.fill(shape, uniform))
    log_weights = log([0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0])
    drawn = draws.categorical(tf.constant(log_weights)[None], 8, SEED)
    assert np.isfinite(log_weights[drawn.numpy()]).all()


def test_only_differences_of_log_weights_matter(categorical):
    rng = np.random.default_rng(2)
    weights = rng.integers(-20, 20, size=[50, 30]).astype(np.float32)  # exact when shifted
    drawn = categorical(weights, 20)
    np.testing.assert_array_equal(categorical(weights + 4096.0, 20), drawn)
    np.testing.assert_array_equal(categorical(weights - 4096.0, 20), drawn)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_entries_are_those_that_points_fall_into(jit_compile):
    rng = np.random.default_rng(4)
    weights = rng.gamma(0.5, size=[40, 30]) * (rng.random([40, 30]) < 0.7)
    weights[0] = 0.0
    points = rng.random([40, 200]).astype(np.float32)
    points[:, 0], points[:, 1] = 0.0, 1.0  # the whole of it, too
    found = tf.function(draws.entries_at, jit_compile=jit_compile)(log(weights), points).numpy()
    assert (found[0] == 0).all()
    for mass, mine, at in zip(weights[1:], found[1:], points[1:], strict=True):
        ends = np.cumsum(mass) / mass.sum()
        assert (mass[mine] > 0).all()
        assert (at <= ends[mine] + SLACK).all() and (
            at >= ends[mine] - (mass / mass.sum())[mine] - SLACK
        ).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("entries", [1, 2, 7, 16, 1000])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_entries_up_to_points_are_counted_as_by_a_binary_search(jit_compile, entries, dtype):
    rng = np.random.default_rng(entries)
    # Few values, so that many entries are equal, and points fall on them; and far out on both sides.
    cumulative = np.sort(rng.integers(-entries, entries + 1, size=[20, entries]), axis=1).astype(dtype)
    points = rng.integers(-entries - 2, entries + 3, size=[20, 50]).astype(dtype)
    points[:, 0], points[:, 1] = -(2**30), 2**30
    count = tf.function(
        lambda rows, at: draws.entries_up_to(draws.ladder(rows), at), jit_compile=jit_compile
    )
    found = count(cumulative, points).numpy()
    expected = [np.searchsorted(*each, side="right") for each in zip(cumulative, points, strict=True)]
    np.testing.assert_array_equal(found, expected)


@given(data=st.data())
def test_entries_up_to_any_numbers_are_counted_as_by_a_binary_search(data):
    # No subnormal numbers, which TensorFlow takes for 0.
    numbers = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
    cumulative = np.sort(data.draw(st.lists(numbers, min_size=1, max_size=40))).astype(np.float32)
    points = data.draw(st.lists(numbers | st.sampled_from(list(cumulative)), min_size=1, max_size=20))
    in_order = draws.ladder(tf.constant(cumulative)[None])
    found = draws.entries_up_to(in_order, tf.constant(points, tf.float32)[None])
    np.testing.assert_array_equal(found[0], np.searchsorted(cumulative, points, side="right"))


def test_one_entry_and_one_draw(categorical):
    assert categorical(np.zeros([3, 1]), 5).tolist() == [[0] * 5] * 3
    drawn = categorical(np.tile(log([0.25, 0.75]), [4000, 1]), 1)
    assert abs(drawn.mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_many_entries(categorical):
    number = 100_003
    weights = np.zeros(number)
    weights[::3] = 1.0
    weights[number // 2] = weights.sum()  # half of the mass
    drawn = categorical(np.tile(log(weights), [4, 1]), 2000)
    assert (weights[drawn] > 0).all()
    np.testing.assert_allclose((drawn == number // 2).mean(axis=1), 0.5, atol=0.01)
    below = (drawn < number // 4).mean(axis=1)
    np.testing.assert_allclose(below, weights[: number // 4].sum() / weights.sum(), atol=0.01)


def test_same_seed_gives_the_same_draws_and_another_seed_others(categorical):
    log_weights = np.zeros([20, 1000])
    drawn = categorical(log_weights, 30)
    np.testing.assert_array_equal(categorical(log_weights, 30), drawn)
    assert (categorical(log_weights, 30, tf.constant([3, 5])) != drawn).mean() > 0.9


def test_xla_draws_the_same():
    rng = np.random.default_rng(3)
    log_weights = tf.constant(rng.normal(size=[500, 300]), tf.float32)
    plain = tf.function(draws.categorical)(log_weights, 40, SEED)
    compiled = tf.function(draws.categorical, jit_compile=True)(log_weights, 40, SEED)
    # Sums rounded otherwise may move a draw that falls on the border between two entries.
    assert (plain.numpy() != compiled.numpy()).mean() < 1e-3
