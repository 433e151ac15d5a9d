import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.trees import BUILT, small_tree
from tests.reference import clustered, top_k
from tf_dynidx.ops import nodes
from tf_dynidx.ops.frontier import Shape
from tf_dynidx.ops.search import exact_top_k, tree_top_k


def reference(queries, embeddings, k):
    return top_k(queries @ embeddings.T, k)


def small_integers(rng, *shape):
    """Vectors whose inner products are exact in float32, and often equal."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def assert_equal(result, expected):
    scores, rows = result
    assert scores.dtype == tf.float32 and rows.dtype == tf.int32
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(scores, expected[0])


@settings(deadline=None)
@given(data=st.data(), targets=st.integers(1, 40), block_size=st.integers(1, 50))
def test_any_blocks_give_the_order_of_a_stable_sort(data, targets, block_size):
    k = data.draw(st.integers(1, targets))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    queries, embeddings = small_integers(rng, 3, 2), small_integers(rng, targets, 2)
    result = exact_top_k(queries, embeddings, k, block_size)
    assert_equal(result, reference(queries, embeddings, k))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("targets", [7, 20, 43])  # one block, whole blocks, a remainder
def test_function_and_xla_give_the_order_of_a_stable_sort(targets, jit_compile):
    rng = np.random.default_rng(targets)
    embeddings = tf.Variable(small_integers(rng, targets, 3))

    @tf.function(jit_compile=jit_compile, input_signature=[tf.TensorSpec([None, 3])])
    def search(queries):
        scores, rows = exact_top_k(queries, embeddings, k=5, block_size=10)
        assert scores.shape.as_list() == rows.shape.as_list() == [None, 5]
        return scores, rows

    for number in (1, 4):
        queries = small_integers(rng, number, 3)
        assert_equal(search(queries), reference(queries, embeddings.numpy(), 5))


def test_no_queries_have_no_results():
    scores, rows = exact_top_k(tf.zeros([0, 2]), tf.zeros([5, 2]), k=3, block_size=2)
    assert scores.shape == rows.shape == (0, 3)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_embeddings_are_scored_in_float32(dtype):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=[4, 8]).astype(np.float32)
    embeddings = tf.cast(rng.normal(size=[30, 8]), dtype)
    scores, rows = exact_top_k(queries, embeddings, k=6, block_size=8)
    expected = reference(queries, tf.cast(embeddings, tf.float32).numpy(), 6)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5)


def test_scores_of_all_targets_are_never_held_at_once(monkeypatch):
    widths = []
    top_k = tf.math.top_k

    def recorded(scores, k):
        widths.append(scores.shape[1])
        return top_k(scores, k)

    monkeypatch.setattr(tf.math, "top_k", recorded)
    exact_top_k(tf.zeros([5, 2]), tf.zeros([1000, 2]), k=3, block_size=16)
    assert max(widths) == 16 and sum(width > 6 for width in widths) == 1000 // 16 + 1


@pytest.mark.parametrize("k", [0, 6])
def test_k_beyond_the_targets_is_refused(k):
    with pytest.raises(ValueError, match=rf"k is from 1 .* Received: k={k}, targets=5$"):
        exact_top_k(tf.zeros([1, 2]), tf.zeros([5, 2]), k)


def test_empty_block_is_refused():
    with pytest.raises(ValueError, match="at least one target. Received: block_size=0$"):
        exact_top_k(tf.zeros([1, 2]), tf.zeros([5, 2]), 1, block_size=0)


LEVELS = pytest.mark.parametrize("levels", [2, 3, 4])


@functools.cache
def tree_of(levels, exact):
    """A tree of so many levels; of whole numbers, whose inner products are exact and often equal."""
    rng = np.random.default_rng(0)
    return small_tree(levels, small_integers(rng, BUILT, 4) if exact else clustered(rng, BUILT, 4))


def search_tree(small, queries, k, shape, exclude=None, jit_compile=False):
    exclude = np.full([len(queries), 1], -1, np.int32) if exclude is None else exclude

    @tf.function(jit_compile=jit_compile, autograph=False)
    def search(queries, exclude):
        tree = small.tree
        return tree_top_k(tree.levels, tree.rows, tree.ids, queries, k, shape, exclude)

    scores, ids = search(queries, exclude)
    assert scores.dtype == tf.float32 and ids.dtype == tf.int32
    return scores.numpy(), ids.numpy()


def best_held(small, queries, k, exclude=None):
    """The k best of the rows held by exact sort, of equals the lower id; then (-inf, -1)."""
    scores = queries @ small.vectors[small.held].T
    for query, gone in enumerate([] if exclude is None else exclude):
        scores[query, np.isin(small.held, gone)] = -np.inf
    scores, columns = top_k(np.pad(scores, [[0, 0], [0, k]], constant_values=-np.inf), k)
    return scores, np.where(np.isfinite(scores), np.append(small.held, [0] * k)[columns], -1)


@pytest.mark.parametrize("levels, jit_compile", [(2, False), (3, False), (3, True), (4, False)])
def test_tree_search_is_an_exact_sort_at_full_budget(levels, jit_compile):
    small = tree_of(levels, False)
    queries = np.random.default_rng(1).normal(size=[6, 4]).astype(np.float32)
    for shape in (small.shape(600, 5000), small.shape(0, 5000, dense=0)):
        scores, ids = search_tree(small, queries, 20, shape, jit_compile=jit_compile)
        expected = best_held(small, queries, 20)
        np.testing.assert_array_equal(ids, expected[1])
        np.testing.assert_allclose(scores, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [3, 40, 700])
def test_tree_search_has_the_lower_id_of_equals_first(k):
    small = tree_of(3, True)
    queries = small_integers(np.random.default_rng(2), 8, 4)
    scores, ids = search_tree(small, queries, k, small.shape(600, 5000))
    np.testing.assert_array_equal(scores, best_held(small, queries, k)[0])
    np.testing.assert_array_equal(scores, np.einsum("qd,qkd->qk", queries, small.vectors[ids]))
    np.testing.assert_array_equal(np.lexsort([ids, -scores]), np.tile(np.arange(k), [8, 1]))


def test_tree_search_keeps_the_lower_ids_where_k_cuts_among_equals():
    small = tree_of(3, True)
    queries = small_integers(np.random.default_rng(2), 8, 4)
    _, ids = search_tree(small, queries, 40, small.shape(600, 5000))
    np.testing.assert_array_equal(ids, best_held(small, queries, 40)[1])


@LEVELS
def test_tree_search_leaves_out_the_excluded(levels):
    small = tree_of(levels, False)
    queries = np.random.default_rng(3).normal(size=[5, 4]).astype(np.float32)
    _, best = best_held(small, queries, 30)
    exclude = best[:, ::2].astype(np.int32)
    exclude[:, -1], exclude[0] = -1, -1
    _, ids = search_tree(small, queries, 30, small.shape(600, 5000), exclude)
    np.testing.assert_array_equal(ids, best_held(small, queries, 30, exclude)[1])


@LEVELS
@pytest.mark.parametrize("width, budget", [(1, 32), (3, 600)])
def test_tree_search_scores_exactly_at_any_budget(levels, width, budget):
    small = tree_of(levels, False)
    queries = np.random.default_rng(4).normal(size=[10, 4]).astype(np.float32)
    shape = small.shape(width, budget)
    scores, ids = search_tree(small, queries, 200, shape)
    finite = np.isfinite(scores)
    assert (scores[~finite] == -np.inf).all() and (ids[~finite] == -1).all()
    assert np.isin(ids[finite], small.held).all()
    for query, mine, found, here in zip(queries, scores, ids, finite, strict=True):
        np.testing.assert_allclose(mine[here], small.vectors[found[here]] @ query, rtol=1e-4, atol=1e-5)
        assert (np.diff(mine[here]) <= 0).all() and len(set(found[here])) == here.sum()
        assert 0 < here.sum() <= min(budget, 200)


def test_tree_search_finds_most_with_a_small_part_of_the_rows():
    small = tree_of(3, False)
    queries = small.vectors[small.held[::90]]
    found = {}
    for width, budget in [(4, 64), (8, 400)]:
        _, ids = search_tree(small, queries, 10, small.shape(width, budget))
        best = best_held(small, queries, 10)[1]
        found[budget] = np.mean([np.isin(*each).mean() for each in zip(best, ids, strict=True)])
    assert found[400] > 0.9 and found[400] > found[64] > 0.2


@pytest.mark.parametrize("budget", [64, 5000])
def test_tree_search_finds_nothing_where_every_row_is_excluded(budget):
    small = tree_of(3, False)
    exclude = np.tile(small.held.astype(np.int32), [2, 1])
    queries = np.random.default_rng(5).normal(size=[2, 4]).astype(np.float32)
    scores, ids = search_tree(small, queries, 7, small.shape(20, budget), exclude)
    assert (scores == -np.inf).all() and (ids == -1).all()


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_tree_search_scores_half_precision_rows_in_float32(dtype):
    small = tree_of(2, False)
    queries = np.random.default_rng(6).normal(size=[3, 4]).astype(np.float32)
    exclude = np.full([3, 1], -1, np.int32)
    rows = tf.cast(small.tree.rows, dtype)
    scores, ids = tree_top_k(
        small.levels, rows, small.tree.ids, queries, 5, small.shape(600, 5000), exclude
    )
    vectors = tf.cast(tf.cast(small.vectors, dtype), tf.float32).numpy()
    expected = top_k(queries @ vectors[small.held].T, 5)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5)
    np.testing.assert_allclose(np.einsum("qd,qkd->qk", queries, vectors[ids]), expected[0], rtol=1e-5)


def test_tree_search_reads_no_row_twice_where_the_last_leaf_is_full():
    """16 full leaves are opened, whose rows are fewer than the budget."""
    vectors = np.random.default_rng(7).normal(size=[3 * 16, 32, 4]).astype(np.float32)
    leaves = nodes.statistics(vectors, tf.fill([48, 32], True))
    tops = nodes.statistics(vectors.reshape(3, 512, 4), tf.fill([3, 512], True))
    rows, ids = tf.constant(vectors.reshape(-1, 4)), tf.range(3 * 512)
    exclude = np.full([2, 1], -1, np.int32)
    shape = Shape(dense=1, width=1, budget=700, fanout=16, leaf_size=32)
    scores, found = tree_top_k([leaves, tops], rows, ids, vectors[:2, 0], 600, shape, exclude)
    assert np.isfinite(scores).sum(axis=1).tolist() == [512, 512]
    for mine in found.numpy():
        assert len(set(mine[:512])) == 512 and (mine[512:] == -1).all()


@pytest.mark.parametrize("block_size", [4, 9, 50])
def test_excluded_rows_and_scaled_ones_give_the_order_of_a_sort(block_size):
    rng = np.random.default_rng(3)
    queries, rows = small_integers(rng, 3, 2), rng.integers(-3, 4, [20, 2]).astype(np.int8)
    scales = 2.0 ** rng.integers(-2, 3, 20).astype(np.float32)
    exclude = np.array([[0, 19, -1], [7, 7, 8], [-1, -1, -1]], np.int32)
    scores = queries @ (rows * scales[:, None]).T
    for query, some in enumerate(exclude):
        scores[query, some[some >= 0]] = -np.inf
    result = exact_top_k(queries, tf.constant(rows), 18, block_size, tf.constant(scales), exclude)
    expected, places = top_k(scores, 18)
    assert_equal(result, (expected, np.where(expected > -np.inf, places, -1)))
    _, everything = exact_top_k(
        queries, tf.constant(rows), 20, block_size, tf.constant(scales), exclude
    )
    assert (everything.numpy() == -1).sum(axis=1).tolist() == [2, 2, 0]
