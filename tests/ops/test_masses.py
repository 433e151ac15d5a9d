import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import log_partition
from tf_dynidx.ops import leaves, masses


def nodes(rng, counts, dim, spread, offset):
    """(members, statistics) of nodes of the given counts; slots behind the count hold anything."""
    rows = rng.normal(size=[len(counts), max(max(counts), 1), dim]) * spread
    rows = (rows + offset * rng.normal(size=[len(counts), 1, dim])).astype(np.float32)
    members = [each[:count] for each, count in zip(rows, counts, strict=True)]
    counts = tf.constant(counts, tf.int32)
    return members, (counts, *leaves.statistics(rows, counts))


def truth(queries, members, beta):
    with np.errstate(divide="ignore"):
        return np.stack([log_partition(queries, each, beta) for each in members], axis=1)


def estimate_and_bounds(queries, beta, statistics):
    counts, centres, variances, radii = statistics
    beta = tf.constant(beta, tf.float32)
    estimate = masses.log_masses(queries, beta, counts, centres, variances, radii)
    lower, upper = masses.log_mass_bounds(queries, beta, counts, centres, radii)
    return lower.numpy(), estimate.numpy(), upper.numpy()


@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    dim=st.integers(1, 5),
    beta=st.floats(0.01, 1000.0),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 10.0]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_true_mass_and_estimate_lie_within_the_bounds(seed, counts, dim, beta, spread, offset):
    rng = np.random.default_rng(seed)
    members, statistics = nodes(rng, counts, dim, spread, offset)
    queries = rng.normal(size=[4, dim]).astype(np.float32)
    lower, estimate, upper = estimate_and_bounds(queries, beta, statistics)
    # What float32 rounding of beta q.mu and of the statistics amounts to.
    longest = np.array([np.linalg.norm(each, axis=1).max() for each in members])
    slack = 1e-5 * (beta * np.linalg.norm(queries, axis=1)[:, None] * longest + 1.0)
    exact = truth(queries, members, np.float32(beta))
    assert (lower <= exact + slack).all() and (exact <= upper + slack).all()
    assert (lower <= estimate).all() and (estimate <= upper).all()


def test_empty_node_has_no_mass():
    rng = np.random.default_rng(0)
    _, statistics = nodes(rng, [3, 0, 5], 4, 1.0, 1.0)
    queries = rng.normal(size=[2, 4]).astype(np.float32)
    for values in estimate_and_bounds(queries, 10.0, statistics):
        assert (values[:, 1] == -np.inf).all() and np.isfinite(values[:, [0, 2]]).all()


@pytest.mark.parametrize("count", [1, 20])
def test_node_of_equal_members_is_exact(count):
    rng = np.random.default_rng(0)
    members, statistics = nodes(rng, [count] * 5, 4, 0.0, 1.0)
    queries = rng.normal(size=[3, 4]).astype(np.float32)
    for values in estimate_and_bounds(queries, 5.0, statistics):
        np.testing.assert_allclose(values, truth(queries, members, 5.0), rtol=1e-5, atol=1e-4)


def test_estimate_of_gaussian_nodes_is_close():
    rng = np.random.default_rng(0)
    members, statistics = nodes(rng, [100] * 50, 8, 0.1, 1.0)
    queries = rng.normal(size=[20, 8]).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    # beta q.y of a node's members deviates by 0.5 and by 1 from their mean.
    for beta, limit in [(5.0, 0.02), (10.0, 0.08)]:
        exact = truth(queries, members, beta)
        lower, estimate, _ = estimate_and_bounds(queries, beta, statistics)
        error = np.abs(estimate - exact).mean()
        assert error < limit and error < 0.3 * np.abs(lower - exact).mean()


def test_mass_far_out_does_not_grow_as_if_members_were_arbitrarily_far_out():
    rng = np.random.default_rng(0)
    members, statistics = nodes(rng, [100] * 50, 8, 0.1, 1.0)
    queries = rng.normal(size=[20, 8]).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    # Here the deviation is 10: half its square, the Gaussian term, would be too much by tens.
    exact = truth(queries, members, 100.0)
    _, estimate, _ = estimate_and_bounds(queries, 100.0, statistics)
    deviation = exact - truth(queries, [each.mean(0, keepdims=True) for each in members], 100.0)
    assert np.abs(estimate - exact).mean() < 0.25 * deviation.mean()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_cold_and_long_queries_do_not_overflow(jit_compile):
    rng = np.random.default_rng(0)
    members, statistics = nodes(rng, [10] * 4, 8, 10.0, 30.0)
    queries = 10.0 * rng.normal(size=[3, 8]).astype(np.float32)

    @tf.function(jit_compile=jit_compile)
    def run(queries, beta, counts, centres, variances, radii):
        return (
            *masses.log_mass_bounds(queries, beta, counts, centres, radii),
            masses.log_masses(queries, beta, counts, centres, variances, radii),
        )

    lower, upper, estimate = (each.numpy() for each in run(queries, tf.constant(1000.0), *statistics))
    exact = truth(queries, members, 1000.0)
    for values in (lower, upper, estimate):
        assert np.isfinite(values).all()
    assert (lower <= exact + 1e-5 * np.abs(exact)).all()
    assert (upper >= exact - 1e-5 * np.abs(exact)).all()
