import numpy as np
import pytest
import tensorflow as tf

from tests.reference import clustered, log_partition
from tf_dynidx.ops import frontier, leaves

BETA = tf.constant(6.0)
NOBODY = tf.constant([[-1]])


def make_leaves(rng, counts, leaf_size, dim):
    """(leaves, rows by id): leaves around centres of their own; the last one is scratch."""
    number = sum(counts)
    vectors = clustered(rng, number, dim, clusters=5)
    ids = np.full([len(counts) + 1, leaf_size], -1, np.int32)
    rows = rng.normal(size=[len(counts) + 1, leaf_size, dim]).astype(np.float32)  # empty slots too
    # In the order of one coordinate, neighbours come together.
    order, start = np.argsort(vectors[:, 0]), 0
    for leaf, count in enumerate(counts):
        members = order[start : start + count]
        ids[leaf, :count], rows[leaf, :count] = members, vectors[members]
        start += count
    counts = tf.constant([*counts, 0])
    made = leaves.Leaves(tf.constant(rows), tf.constant(ids), counts, *leaves.statistics(rows, counts))
    return made, vectors


@pytest.fixture(scope="module")
def small():
    """60 rows in 9 leaves, one of them empty."""
    return make_leaves(np.random.default_rng(0), [8, 3, 8, 0, 8, 8, 8, 7, 10], 10, 4)


def repeated_pool(made, query, beta, width, proposals, exclude, repeats):
    """A pool of the same query many times over, each time with other random numbers."""
    queries = tf.tile(query[None], [repeats, 1])
    exclude = tf.tile(exclude, [repeats, 1])
    front = frontier.open_leaves(made, queries, beta, width, exclude)
    return frontier.pool(made, front, queries, beta, proposals, exclude, tf.constant([1, 2]))


@pytest.mark.parametrize("width", [1, 3, 10])
def test_frontier_covers_every_row_once(small, width):
    made, vectors = small
    queries = np.random.default_rng(1).normal(size=[5, 4]).astype(np.float32)
    front = frontier.open_leaves(made, queries, BETA, width, tf.tile(NOBODY, [5, 1]))
    for query in range(5):
        finite = np.isfinite(front.scores[query])
        opened = front.ids[query].numpy()[finite]
        whole = made.ids.numpy()[np.isfinite(front.rest[query])]
        assert sorted([*opened, *whole[whole >= 0]]) == list(range(60))
        expected = float(BETA) * vectors[opened] @ queries[query]
        np.testing.assert_allclose(front.scores[query].numpy()[finite], expected, rtol=1e-4, atol=1e-5)


def test_heaviest_leaves_are_opened(small):
    made, vectors = small
    query = vectors[7:8]
    front = frontier.open_leaves(made, query, BETA, 3, NOBODY)
    mass = [log_partition(query, vectors[row[row >= 0]], BETA)[0] for row in made.ids.numpy()]
    assert set(front.opened[0].numpy()) == set(np.argsort(mass)[-3:])


@pytest.mark.parametrize("exclude", [[-1, -1], [5, -1], [31, 17]], ids=["nobody", "one", "two"])
@pytest.mark.parametrize("stale", [False, True])
def test_partition_estimate_is_unbiased(small, exclude, stale):
    made, vectors = small
    if stale:  # rows have moved since the statistics were computed
        rng = np.random.default_rng(5)
        made = made._replace(
            centres=made.centres + rng.normal(size=made.centres.shape, scale=0.1),
            variances=made.variances * 0.5,
        )
    query = tf.constant(vectors[5])
    pool = repeated_pool(made, query, BETA, 2, 16, tf.constant([exclude]), 20_000)
    allowed = np.delete(vectors, [row for row in exclude if row >= 0], axis=0)
    ratio = np.exp(pool.log_partition.numpy() - log_partition(query[None], allowed, BETA))
    error = ratio.std() / np.sqrt(len(ratio))
    assert 0 < error < 0.005 and abs(ratio.mean() - 1.0) < 5 * error
    weighed = np.isfinite(pool.log_weights)
    assert not np.isin(pool.ids.numpy()[weighed], [*exclude, -1]).any()


def test_every_row_has_its_weight_in_expectation(small):
    made, vectors = small
    query = tf.constant(vectors[5])
    pool = repeated_pool(made, query, BETA, 2, 16, NOBODY, 20_000)
    weights = np.exp(pool.log_weights.numpy())
    found = np.bincount(pool.ids.numpy().ravel() + 1, weights.ravel(), minlength=61)[1:] / 20_000
    expected = np.exp(float(BETA) * vectors.astype(np.float64) @ vectors[5])
    assert np.abs(found - expected).sum() < 0.03 * expected.sum()
    # A weighed row comes with its own score.
    finite = np.isfinite(weights) & (weights > 0)
    exact = float(BETA) * vectors[pool.ids.numpy()[finite]] @ vectors[5]
    np.testing.assert_allclose(pool.scores.numpy()[finite], exact, rtol=1e-4, atol=1e-4)


def test_partition_is_exact_where_every_leaf_is_opened(small):
    made, vectors = small
    queries = np.random.default_rng(2).normal(size=[6, 4]).astype(np.float32)
    exclude = tf.constant([[0, 1, -1]] * 6)
    front = frontier.open_leaves(made, queries, BETA, 10, exclude)
    pool = frontier.pool(made, front, queries, BETA, 8, exclude, tf.constant([1, 2]))
    np.testing.assert_allclose(pool.log_partition, log_partition(queries, vectors[2:], BETA), rtol=1e-5)


def test_nothing_is_left_where_every_row_is_excluded(small):
    made, vectors = small
    exclude = tf.range(60)[None]
    front = frontier.open_leaves(made, vectors[:1], BETA, 2, exclude)
    pool = frontier.pool(made, front, vectors[:1], BETA, 8, exclude, tf.constant([1, 2]))
    assert (pool.log_weights.numpy() == -np.inf).all() and pool.log_partition.numpy() == [-np.inf]
