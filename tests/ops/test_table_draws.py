import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import exact_softmax, gaussian, log_partition, unit
from tf_dynidx.ops import table_draws

DIM = 6


def products(table, queries):
    read = functools.partial(tf.gather, tf.constant(table))
    return functools.partial(table_draws.inner_products, read, tf.constant(queries))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("size", [9_000, 8_192, 300])  # one, two or no whole rounds of blocks
def test_draws_are_from_the_softmax_over_the_rows_that_take_part(size, jit_compile):
    rng = np.random.default_rng(0)
    table = unit(gaussian(rng, size + 3, DIM))
    table[size:] *= 50.0  # would be drawn always
    kinds, copies, beta = 2, 1_000, 12.0
    queries = unit(gaussian(rng, kinds, DIM))
    best = np.argsort(-queries @ table[:size].T, axis=1)[:, :3]
    excluded = np.concatenate([best, np.full([kinds, 1], -1)], axis=1).astype(np.int32)
    draw = tf.function(table_draws.draw, jit_compile=jit_compile)
    rows, found = draw(
        products(table, np.repeat(beta * queries, copies, axis=0)),
        size,
        tf.constant(np.repeat(excluded, copies, axis=0)),
        8,
        tf.constant([1, 2]),
    )
    truth = exact_softmax(queries, table[:size], beta, best)
    np.testing.assert_allclose(
        found[::copies], log_partition(queries, table[:size], beta, best), rtol=1e-5
    )
    frequency = np.array(
        [np.bincount(each, minlength=size) for each in np.split(rows.numpy().ravel(), 2)]
    )
    assert np.all(frequency[truth == 0] == 0)
    distance = 0.5 * np.abs(frequency / (8 * copies) - truth).sum(axis=1)
    chance = 0.5 * np.sqrt(truth / (8 * copies)).sum(axis=1)
    assert np.all(distance <= chance)
    assert np.all(0.5 * np.abs(1 / size - truth).sum(axis=1) > 2 * distance)


@given(
    size=st.integers(1, 600),
    excluded=st.lists(st.integers(-1, 599), min_size=1, max_size=4),
    missing=st.sets(st.integers(0, 599)),
    seed=st.integers(0, 2**20),
)
def test_no_row_that_is_excluded_or_missing_or_beyond_the_size_is_ever_drawn(
    size, excluded, missing, seed
):
    rng = np.random.default_rng(seed)
    table = gaussian(rng, 600, DIM)
    given_rows = np.where(np.array(excluded) < size, excluded, -1).astype(np.int32)
    there = ~np.isin(np.arange(600), list(missing))
    queries = 3.0 * gaussian(rng, 1, DIM)
    rows, found = table_draws.draw(
        products(table, queries),
        size,
        tf.constant(given_rows[None]),
        5,
        tf.constant([seed, 1]),
        functools.partial(tf.gather, tf.constant(there)),
    )
    left = np.setdiff1d(np.flatnonzero(there[:size]), given_rows)
    if len(left):
        assert np.isin(rows, left).all()
        np.testing.assert_allclose(found, log_partition(queries, table[left], 1.0), rtol=1e-5)
    else:
        assert rows.numpy().tolist() == [[0] * 5]
        assert np.isneginf(found).all()
