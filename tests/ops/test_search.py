import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dynidx.ops.search import exact_top_k


def reference(queries, embeddings, k):
    scores = queries @ embeddings.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


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
