import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import exact_softmax, log_partition
from tf_dynidx.ops import masses, nodes


def make_nodes(rng, counts, dim, spread, offset):
    """(members, level): nodes of the given counts; slots behind the count hold anything."""
    rows = rng.normal(size=[len(counts), max(max(counts), 1), dim]) * spread
    rows = (rows + offset * rng.normal(size=[len(counts), 1, dim])).astype(np.float32)
    members = [each[:count] for each, count in zip(rows, counts, strict=True)]
    return members, nodes.statistics(rows, tf.sequence_mask(counts, rows.shape[1]))


def truth(queries, members, beta):
    with np.errstate(divide="ignore"):
        return np.stack([log_partition(queries, each, beta) for each in members], axis=1)


def slack(queries, members, beta):
    """What float32 rounding of beta q.mu and of the statistics amounts to: [queries, nodes]."""
    longest = np.array([np.linalg.norm(each, axis=1).max(initial=0.0) for each in members])
    return 1e-5 * (float(beta) * np.linalg.norm(queries, axis=1)[:, None] * longest + 1.0)


def estimate_and_bounds(queries, beta, level):
    """(lower, estimate, upper) of all nodes for all queries."""
    along, across = masses.project(queries, level.moments)
    spread = beta * tf.norm(queries, axis=1, keepdims=True) * level.radii
    estimate = masses.log_masses(along, across, spread, level.counts, beta)
    lower, upper = masses.log_mass_bounds(along, spread, level.counts, beta)
    return lower, estimate, upper


def numbers(queries, beta, level):
    return tuple(each.numpy() for each in estimate_and_bounds(queries, tf.constant(beta), level))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_projections_are_those_on_centres_and_variances(jit_compile):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=[5, 3]).astype(np.float32)
    shared, own = rng.random([4, 6]).astype(np.float32), rng.random([5, 7, 6]).astype(np.float32)
    run = tf.function(masses.project, jit_compile=jit_compile)
    for moments in (shared, own):
        along, across = run(queries, moments)
        each = np.broadcast_to(moments, [5, *moments.shape[-2:]])
        expected = [np.stack([node[:, :3] @ query for node, query in zip(each, queries, strict=True)])]
        expected += [
            np.stack([node[:, 3:] @ query**2 for node, query in zip(each, queries, strict=True)])
        ]
        np.testing.assert_allclose(along, expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(across, expected[1], rtol=1e-4, atol=1e-5)


@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    dim=st.integers(1, 5),
    beta=st.floats(0.015625, 1000.0, width=32),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 10.0]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_true_mass_and_estimate_lie_within_the_bounds(seed, counts, dim, beta, spread, offset):
    rng = np.random.default_rng(seed)
    members, level = make_nodes(rng, counts, dim, spread, offset)
    queries = rng.normal(size=[4, dim]).astype(np.float32)
    lower, estimate, upper = numbers(queries, beta, level)
    exact, allowed = truth(queries, members, beta), slack(queries, members, beta)
    assert (lower <= exact + allowed).all() and (exact <= upper + allowed).all()
    assert (lower <= estimate).all() and (estimate <= upper).all()


def test_empty_node_has_no_mass():
    rng = np.random.default_rng(0)
    _, level = make_nodes(rng, [3, 0, 5], 4, 1.0, 1.0)
    queries = rng.normal(size=[2, 4]).astype(np.float32)
    for values in numbers(queries, 10.0, level):
        assert (values[:, 1] == -np.inf).all() and np.isfinite(values[:, [0, 2]]).all()


@pytest.mark.parametrize("count", [1, 20])
def test_node_of_equal_members_is_exact(count):
    rng = np.random.default_rng(0)
    members, level = make_nodes(rng, [count] * 5, 4, 0.0, 1.0)
    queries = rng.normal(size=[3, 4]).astype(np.float32)
    for values in numbers(queries, 5.0, level):
        np.testing.assert_allclose(values, truth(queries, members, 5.0), rtol=1e-5, atol=1e-4)


def gaussian_nodes():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=[20, 8]).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return queries, *make_nodes(rng, [100] * 50, 8, 0.1, 1.0)


def test_estimate_of_gaussian_nodes_is_close():
    queries, members, level = gaussian_nodes()
    # beta q.y of a node's members deviates by 0.5 and by 1 from their mean.
    for beta, limit in [(5.0, 0.02), (10.0, 0.08)]:
        exact = truth(queries, members, beta)
        lower, estimate, _ = numbers(queries, beta, level)
        error = np.abs(estimate - exact).mean()
        assert error < limit and error < 0.3 * np.abs(lower - exact).mean()


def test_mass_far_out_does_not_grow_as_if_members_were_arbitrarily_far_out():
    queries, members, level = gaussian_nodes()
    # Here the deviation is 10: half its square, the Gaussian term, would be too much by tens.
    exact = truth(queries, members, 100.0)
    _, estimate, _ = numbers(queries, 100.0, level)
    deviation = exact - truth(queries, [each.mean(0, keepdims=True) for each in members], 100.0)
    assert np.abs(estimate - exact).mean() < 0.25 * deviation.mean()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_cold_and_long_queries_do_not_overflow(jit_compile):
    rng = np.random.default_rng(0)
    members, level = make_nodes(rng, [10] * 4, 8, 10.0, 30.0)
    queries = 10.0 * rng.normal(size=[3, 8]).astype(np.float32)
    run = tf.function(estimate_and_bounds, jit_compile=jit_compile)
    lower, estimate, upper = (each.numpy() for each in run(queries, tf.constant(1000.0), level))
    exact, allowed = truth(queries, members, 1000.0), slack(queries, members, 1000.0)
    for values in (lower, upper, estimate):
        assert np.isfinite(values).all()
    assert (lower <= exact + allowed).all() and (upper >= exact - allowed).all()


def deviations(queries, members, log_masses, beta):
    """log p - log q of every row, query by query: list of [rows].

    p is the softmax over the rows of the nodes of finite mass, q the distribution of a uniform member
    of a node drawn by its mass.
    """
    found = []
    for query, mass in zip(queries, np.asarray(log_masses, np.float64), strict=True):
        taking_part = np.flatnonzero(np.isfinite(mass))
        rows = np.concatenate([members[node] for node in taking_part])
        log_p = np.log(exact_softmax(query[None], rows, beta)[0])
        log_q = [
            np.full(len(members[node]), mass[node] - np.log(len(members[node]))) for node in taking_part
        ]
        log_r = np.logaddexp.reduce(mass[taking_part])
        found.append(log_p - (np.concatenate(log_q) - log_r))
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    dim=st.integers(1, 4),
    beta=st.floats(0.125, 20.0, width=32),
    spread=st.sampled_from([0.0, 0.3, 3.0]),
    offset=st.sampled_from([0.0, 1.0]),
)
def test_draws_from_capped_masses_are_within_two_spreads(seed, counts, dim, beta, spread, offset):
    rng = np.random.default_rng(seed)
    # Nodes of one row, of two opposite ones, and of widely different radii take the bound furthest.
    members, level = make_nodes(rng, counts, dim, spread * rng.random([len(counts), 1, 1]), offset)
    queries = rng.normal(size=[4, dim]).astype(np.float32)
    lower, _, upper = numbers(queries, beta, level)
    share = np.clip(rng.uniform(-1.0, 2.0, size=lower.shape), 0.0, 1.0)
    wanted = np.where(rng.random(lower.shape) < 0.2, -np.inf, lower + share * (upper - lower))
    wanted[:, 0] = lower[:, 0]  # one node at least takes part
    along, _ = masses.project(queries, level.moments)
    spreads = beta * tf.norm(queries, axis=1, keepdims=True) * level.radii
    wanted = wanted.astype(np.float32)
    capped = within_two_spreads(wanted, along, spreads, level.counts, beta).numpy()
    allowed = slack(queries, members, beta)
    assert (capped <= wanted).all() and (np.isfinite(capped) == np.isfinite(wanted)).all()
    assert ((capped >= lower - allowed) | ~np.isfinite(wanted)).all()
    widest = np.where(np.isfinite(wanted), spreads, 0.0).max(axis=1)
    off = deviations(queries, members, capped, beta)
    for each, limit in zip(off, 2.0 * widest + 2.0 * allowed.max(axis=1), strict=True):
        assert np.abs(each).max() <= limit


def within_two_spreads(log_masses, along, spread, counts, beta):
    """Capped as in a frontier of these nodes alone."""
    widest = masses.widest_spread(log_masses, spread)
    return masses.within_two_spreads(log_masses, along, spread, counts, widest, beta)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_masses_within_their_bounds_alone_are_off_by_more_than_two_spreads(jit_compile):
    """One node at its upper bound, beside another with nearly all of the mass at its lower bound."""
    beta, queries = tf.constant(10.0), np.ones([1, 1], np.float32)
    rows = np.array([[[-1.0], [1.0]], [[2.0], [4.0]]], np.float32)
    level = nodes.statistics(rows, tf.ones([2, 2], tf.bool))
    lower, _, upper = estimate_and_bounds(queries, beta, level)
    wanted = tf.concat([upper[:, :1], lower[:, 1:]], axis=1)
    along, _ = masses.project(queries, level.moments)
    spread = beta * level.radii[None]
    np.testing.assert_allclose(spread, [[10.0, 10.0]])
    assert np.abs(deviations(queries, rows, wanted, 10.0)[0]).max() > 28.0
    run = tf.function(within_two_spreads, jit_compile=jit_compile)
    capped = run(wanted, along, spread, level.counts, beta)
    assert np.abs(deviations(queries, rows, capped, 10.0)[0]).max() <= 20.0 + 1e-3


def test_node_that_does_not_take_part_widens_nothing():
    """The cap is that of the other nodes, whatever radius the absent one has."""
    along, counts = tf.zeros([1, 2]), tf.constant([4, 4])
    spread = tf.constant([[1.0, 50.0]])
    _, upper = masses.log_mass_bounds(along, spread, counts, 1.0)
    alone = within_two_spreads(upper[:, :1], along[:, :1], spread[:, :1], counts[:1], 1.0)
    absent = tf.constant([[float(upper[0, 0]), -np.inf]])
    found = within_two_spreads(absent, along, spread, counts, 1.0)
    np.testing.assert_allclose(found, [[alone[0, 0], -np.inf]])
    # 2 x - x_c - log cosh x above the lower bound.
    assert float(alone[0, 0]) == pytest.approx(
        np.log(4.0) + min(1.0 - np.log(np.cosh(1.0)), np.log(np.cosh(1.0)))
    )
