import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dynidx.metrics import positive_ranks, ranking, ranking_metrics

METRICS = ["recall@1", "recall@10", "recall@20", "recall@64", "recall@100", "ndcg@20", "mrr"]


def listed_ranks(queries, targets, positives, exclude):
    """Places in the list of all targets, by sorting it."""
    ranks = []
    for query, own, left_out in zip(queries, positives, exclude, strict=True):
        scores = targets @ query
        ranked = [row for row in range(len(targets)) if row not in set(left_out)]
        listed = sorted(ranked, key=lambda row: -scores[row])  # of equal scores, the earlier first
        ranks.append([1 + listed.index(row) for row in own])
    return ranks


def as_lists(arrays):
    return [array.tolist() for array in arrays]


@st.composite
def cases(draw):
    """Whole numbers, so that scores are exact in any order of summation and ties are frequent."""
    num_queries = draw(st.integers(0, 7))
    num_targets = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    dim = draw(st.integers(1, 3))
    queries = rng.integers(-2, 3, [num_queries, dim]).astype(np.float32)
    targets = rng.integers(-2, 3, [num_targets, dim]).astype(np.float32)
    positives, exclude = [], []
    for _ in range(num_queries):
        rows = rng.permutation(num_targets)
        cut = rng.integers(0, num_targets + 1)
        positives.append(rows[:cut])
        exclude.append(rng.choice(rows[cut:], rng.integers(0, 9)) if cut < num_targets else [])
    return queries, targets, positives, exclude, draw(st.integers(1, 8))


# positive_ranks


@given(cases())
@settings(deadline=None)
def test_ranks_are_the_places_in_the_sorted_list(case):
    queries, targets, positives, exclude, batch = case
    ranks = positive_ranks(queries, targets, positives, exclude, batch)
    assert as_lists(ranks) == listed_ranks(queries, targets, positives, exclude)
    assert all(array.dtype == np.int64 for array in ranks)


def test_ranks_agree_with_top_k_on_real_numbers_with_duplicate_targets():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=[300, 64]).astype(np.float32)
    targets = rng.normal(size=[1003, 64]).astype(np.float32)
    targets[rng.permutation(1003)[:400]] = targets[7]
    positives = [rng.permutation(1003)[:2] for _ in range(300)]
    ranks = positive_ranks(queries, targets, positives, batch=300)
    _, listed = tf.math.top_k(tf.matmul(queries, targets, transpose_b=True), 1003)
    for row_ranks, own, rows in zip(ranks, positives, listed.numpy(), strict=True):
        np.testing.assert_array_equal(rows[row_ranks - 1], own)


def test_equal_scores_rank_by_row():
    ranks = positive_ranks(np.ones([1, 2]), np.ones([5, 2]), [[4, 0, 2]])
    assert as_lists(ranks) == [[5, 1, 3]]


def test_excluded_targets_are_left_out_once_however_often_they_are_named():
    targets = np.array([[5.0], [4.0], [3.0], [2.0]])
    assert as_lists(positive_ranks([[1.0]], targets, [[2, 3]], [[0, 0, 0]])) == [[2, 3]]


def test_every_query_has_exclusions_of_its_own():
    targets = np.array([[3.0], [2.0], [1.0]])
    ranks = positive_ranks(np.ones([3, 1]), targets, [[2], [2], [2]], [[], [0], [1, 0]])
    assert as_lists(ranks) == [[3], [2], [1]]


def test_ranks_do_not_depend_on_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    queries = rng.integers(-3, 4, [50, 4]).astype(np.float32)
    targets = rng.integers(-3, 4, [40, 4]).astype(np.float32)
    positives = [rng.permutation(40)[: i % 6] for i in range(50)]
    whole = as_lists(positive_ranks(queries, targets, positives, batch=50))
    assert as_lists(positive_ranks(queries, targets, positives, batch=7)) == whole
    monkeypatch.setattr(ranking, "_MAX_SCORES", 90)  # two queries a block
    assert as_lists(positive_ranks(queries, targets, positives, batch=50)) == whole


def test_tensors_of_other_float_types_are_taken():
    half = tf.constant([[1.0], [2.0]], tf.float16)
    assert as_lists(positive_ranks(half, tf.cast(half, tf.float64), [[0], [1]])) == [[2], [1]]


ONES = np.ones([2, 3], np.float32)
NAN = np.array([[0, 0, 0], [0, math.nan, 0]], np.float32)
INFINITE = np.array([[math.inf, 0, 0]], np.float32)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((ONES[0], ONES, [[0]]), r"query_embeddings is \[rows, dim\].*Received: shape \(3,\)"),
        ((ONES, ONES[None], [[0], [0]]), r"target_embeddings is \[rows, dim\].*\(1, 2, 3\)"),
        ((ONES[:, :2], ONES, [[0], [0]]), "one dim.*Received: 2 and 3"),
        ((ONES, ONES[:0], [[], []]), "nothing to rank.*without a row"),
        ((NAN, ONES, [[0], [0]]), "query_embeddings is finite.*Received: NaN.*row 1"),
        ((ONES, INFINITE, [[0], [0]]), "target_embeddings is finite.*Received: NaN.*row 0"),
        ((ONES, ONES, [[0]]), "positives holds one.*Received: 1 arrays for 2 queries"),
        ((ONES, ONES, [[0], [1]], [[0]]), "exclude holds one.*Received: 1 arrays for 2 queries"),
        ((ONES, ONES, [[0], [2]]), "rows of target_embeddings, 0 to 1.*Received: 2 for query 1"),
        ((ONES, ONES, [[-1], [0]]), "rows of target_embeddings.*Received: -1 for query 0"),
        ((ONES, ONES, [[], []], [[], [9]]), "exclude holds rows.*Received: 9 for query 1"),
        ((ONES, ONES, [[0], [1.0]]), "positives holds integer.*Received: float64.*query 1"),
        (
            (ONES, ONES, [[0], [[1]]]),
            r"integer arrays of rank 1.*Received: int64 \[1, 1\].*query 1",
        ),
        ((ONES, ONES, [[0], [1, 0, 1]]), "counts once.*Received: 1 repeated for query 1"),
        ((ONES, ONES, [[0], [1]], [[1], [0, 1]]), "no rank.*Received: 1 as both for query 1"),
        ((ONES, ONES, [[0], [1]], None, 0), "batch is at least 1.*Received: batch=0"),
    ],
)
def test_what_cannot_be_ranked_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        positive_ranks(*arguments)


# ranking_metrics


@given(st.lists(st.sets(st.integers(1, 130), min_size=1, max_size=40), min_size=1, max_size=9))
def test_metrics_are_those_of_the_definitions(ranks):
    expected = {f"recall@{k}": [] for k in (1, 10, 20, 64, 100)} | {"ndcg@20": [], "mrr": []}
    for own in ranks:
        for k in (1, 10, 20, 64, 100):
            expected[f"recall@{k}"].append(len(own & set(range(1, k + 1))) / len(own))
        gain = sum(1 / math.log2(1 + rank) for rank in own if rank <= 20)
        ideal = sum(1 / math.log2(1 + rank) for rank in range(1, 1 + min(20, len(own))))
        expected["ndcg@20"].append(gain / ideal)
        expected["mrr"].append(1 / min(own))
    metrics = ranking_metrics([np.array(list(own), np.int64) for own in ranks])
    assert list(metrics) == METRICS
    assert all(type(value) is float for value in metrics.values())
    assert metrics == pytest.approx({name: np.mean(values) for name, values in expected.items()})


def test_perfect_ranks_score_one_in_all_metrics_that_can_reach_it():
    metrics = ranking_metrics([np.array([1]), np.array([1])])
    assert metrics == pytest.approx(dict.fromkeys(METRICS, 1.0))


def test_reciprocal_rank_is_not_cut():
    assert ranking_metrics([np.array([4000, 9000])])["mrr"] == pytest.approx(1 / 4000)


@pytest.mark.parametrize(
    "ranks, message",
    [
        ([], "nothing to average.*Received: the ranks of 0 queries"),
        ([np.array([1]), np.array([], int)], "has a positive.*Received: no ranks for query 1"),
        ([np.array([3, 0])], "best rank is 1.*Received: rank 0"),
    ],
)
def test_ranks_without_a_mean_are_refused(ranks, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(ranks)
