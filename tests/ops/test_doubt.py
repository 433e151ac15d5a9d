import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln, hyp0f1, ive

from tests.reference import unit
from tf_dynidx.ops import doubt

ERRORS = np.float32([0.0, 0.1, 0.7, 1.3])


def queries(dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=[5, dim]).astype(np.float32)


def anywhere(dim=6):
    """The dimensions of errors in any direction."""
    return np.full([5], dim, np.float32)


@pytest.mark.parametrize("order", [1, 2])
def test_row_is_drawn_by_the_power_mean_of_what_its_encoding_may_weigh(order):
    rng = np.random.default_rng(1)
    means, beta = rng.normal(size=[len(ERRORS), 6]), 1.5
    # Of two opposite directions both, so that the mean is exact.
    directions = unit(rng.normal(size=[100_000, 6])).astype(np.float64)
    directions = np.concatenate([directions, -directions])
    lifts = doubt.of_all_kinds(doubt.lifts(ERRORS, anywhere(), queries(), order * beta)).numpy()
    for kind, (mean, error) in enumerate(zip(means, ERRORS, strict=True)):
        encodings = mean + np.sqrt(error) * directions
        weights = np.log(np.exp(order * beta * queries() @ encodings.T).mean(axis=1)) / order
        atol = {1: 0.08, 2: 0.12}[order]
        np.testing.assert_allclose(beta * (queries() @ mean + lifts[:, kind]), weights, atol=atol)


def test_what_is_estimated_from_draws_by_the_root_mean_square_varies_the_least():
    """The variance of the partition function by importance sampling, errors drawn anew many times."""
    rng = np.random.default_rng(4)
    dim, rows, beta = 32, 200, 6.0
    means, query = 0.5 * unit(rng.normal(size=[rows, dim])), unit(rng.normal(size=[1, dim]))
    # Some rows are known, some hardly, and errors prefer some directions.
    lengths = rng.choice([0.0, 0.3, 0.9], size=rows)
    spread = rng.uniform(0.3, 2.0, size=dim)
    errors = rng.normal(size=[4000, rows, dim]) * spread
    errors *= lengths[:, None] / np.sqrt((spread**2).sum())
    squares = np.exp(2 * beta * (means + errors) @ query[0]).mean(axis=0)
    some, query = errors[:50].reshape(-1, dim), query.astype(np.float32)
    kinds, kind = np.unique(lengths, return_inverse=True)
    dims = doubt.dimensions(np.float32(some.T @ some), query)
    lifts = doubt.of_all_kinds(doubt.lifts(np.float32(kinds**2), dims, query, 2 * beta)).numpy()[
        0, kind
    ]

    def variance(scores):
        weights = np.exp(beta * scores)
        return (squares * weights.sum() / weights).sum() / np.sqrt(squares).sum() ** 2

    plain = means @ query[0]
    found = {factor: variance(plain + factor * lifts) for factor in (0.0, 0.5, 1.0, 1.5)}
    # 1 is what no distribution can go below.
    assert found[1.0] < 1.01 and min(found, key=found.get) == 1.0
    assert found[0.5] > 1.02 and found[0.0] > found[0.5]


@given(
    seed=st.integers(0, 1000),
    dim=st.integers(2, 200),
    beta=st.floats(0.125, 200.0, width=32),
    error=st.floats(2**-20, 4.0, width=32),
)
def test_lift_is_the_bessel_function_of_an_error_in_any_direction(seed, dim, beta, error):
    some = queries(dim, seed)
    lift = doubt.lift(np.float32([error]), anywhere(dim), some, beta).numpy()[:, 0]
    length = np.linalg.norm(some.astype(np.float64), axis=1) * np.sqrt(error)
    x, nu = beta * length, dim / 2 - 1
    # Each form of it where it neither vanishes nor overflows.
    with np.errstate(divide="ignore"):
        large = gammaln(nu + 1) + nu * np.log(2 / x) + np.log(ive(nu, x)) + x
    exact = np.where(x < 1.0, np.log(hyp0f1(nu + 1, np.minimum(x, 1.0) ** 2 / 4)), large)
    assert np.isfinite(exact).all()
    # The leading term is off the least where there are many dimensions, and nowhere above.
    np.testing.assert_array_less(lift, 1.0001 * exact / beta + 1e-4)
    np.testing.assert_array_less(exact - 0.07 * x - 0.02, beta * lift)
    assert (lift >= 0.0).all() and (lift <= length).all()


@given(seed=st.integers(0, 1000), dim=st.integers(2, 40), rank=st.integers(1, 40))
def test_dimensions_are_those_in_which_an_error_anywhere_varies_as_much(seed, dim, rank):
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=[200, rank]) @ rng.normal(size=[rank, dim])
    some = queries(dim, seed)
    found = doubt.dimensions(np.float32(errors.T @ errors), some).numpy()
    directions = unit(some).astype(np.float64)
    along = ((errors @ directions.T) ** 2).mean(axis=0)
    expected = (errors**2).sum(axis=1).mean() / along
    np.testing.assert_allclose(found, np.minimum(expected, 1e6), rtol=0.01)
    assert (found >= 1.0).all()


def test_dimensions_of_no_errors_lift_nothing():
    none = np.zeros([6, 6], np.float32)
    dims = doubt.dimensions(none, queries())
    np.testing.assert_array_equal(doubt.lift(np.float32([0.0]), dims, queries(), 1.5), np.zeros([5, 1]))
    # Nor where the query is none.
    dims = doubt.dimensions(none + 1.0, 0.0 * queries())
    np.testing.assert_array_equal(doubt.lift(ERRORS, dims, 0.0 * queries(), 1.5), np.zeros([5, 4]))


def test_error_of_none_lifts_nothing_and_a_small_one_is_not_lost():
    lifts = doubt.lift(np.float32([0.0, 1e-8]), anywhere(), queries(), 1.5).numpy()
    np.testing.assert_array_equal(lifts[:, 0], np.zeros(5))
    second_order = 0.5 * 1.5 * np.sum(queries() ** 2, axis=1) * 1e-8 / 6
    np.testing.assert_allclose(lifts[:, 1], second_order, rtol=0.01)


def test_mean_lift_is_that_of_the_rows_together():
    lifts, beta = doubt.lifts(ERRORS, anywhere(), queries(), 1.5), 1.5
    shares = np.float32([3, 0, 5, 2])
    each = np.repeat(doubt.of_all_kinds(lifts), shares.astype(int), axis=1)
    expected = np.log(np.exp(beta * each).mean(axis=1)) / beta
    assert (expected > 0).all()
    np.testing.assert_allclose(doubt.mean_lift(lifts, shares, beta), expected, rtol=1e-5)
    np.testing.assert_array_equal(doubt.mean_lift(lifts, 0.0 * shares, beta), np.zeros(5))


@given(
    seed=st.integers(0, 1000),
    dim=st.integers(2, 200),
    beta=st.floats(0.125, 200.0, width=32),
    errors=st.lists(st.floats(0.0, 4.0, width=32), min_size=1, max_size=6),
)
def test_lifts_of_many_kinds_are_near_the_lift_of_each(seed, dim, beta, errors):
    errors = np.float32(errors)
    lifts = doubt.lifts(errors, anywhere(dim), queries(dim, seed), beta)
    each = doubt.lift(errors, anywhere(dim), queries(dim, seed), beta).numpy()
    found = doubt.of_all_kinds(lifts).numpy()
    largest = each.max(axis=1, keepdims=True)
    rounding = 1e-6 * largest
    assert (np.abs(found - each) <= 0.04 * largest + rounding).all()
    norms = np.linalg.norm(queries(dim, seed), axis=1)
    few = beta * norms * np.sqrt(errors.max()) <= dim / 2
    assert (np.abs(found - each) <= 0.01 * largest + rounding)[few].all()
    assert (found >= -rounding).all()
    assert (found <= norms[:, None] * np.sqrt(errors) + rounding).all()
    kinds = np.random.default_rng(seed).integers(0, len(errors), size=[5, 7])
    expected = np.take_along_axis(found, kinds, axis=1)
    np.testing.assert_allclose(doubt.of_kinds(lifts, kinds), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        doubt.of_kinds(lifts, kinds[0]), found[:, kinds[0]], rtol=1e-5, atol=1e-6
    )
