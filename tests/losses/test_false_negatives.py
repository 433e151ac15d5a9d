import numpy as np
import pytest
import tensorflow as tf

from tf_dynidx.losses import suspected_positives

NEVER = {"relative_margin": None, "absolute_margin": None, "max_score": None, "range_min": 0}


def expected(scores, positive_scores, absent, relative_margin, absolute_margin, max_score, range_min):
    """The rules one candidate at a time."""
    suspected = np.zeros(scores.shape, bool)
    for query, positive in enumerate(positive_scores):
        others = scores[query][~absent[query]]
        for candidate, score in enumerate(scores[query]):
            rank = np.sum(others > score)
            suspected[query, candidate] = (
                (relative_margin is not None and score > positive - relative_margin * abs(positive))
                or (absolute_margin is not None and score > positive - absolute_margin)
                or (max_score is not None and score > max_score)
                or (rank < range_min)
            )
    return suspected


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"relative_margin": 0.05},
        {"relative_margin": 0.5},
        {"absolute_margin": 0.3},
        {"absolute_margin": 0.0},
        {"max_score": 0.5},
        {"range_min": 1},
        {"range_min": 4},
        {"range_min": 100},
        {"relative_margin": 0.2, "absolute_margin": 0.1, "max_score": 1.2, "range_min": 2},
    ],
    ids=str,
)
def test_suspected_are_those_of_the_rules(rules):
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=[20, 15]), 1).astype(np.float32)  # some are equal
    positive_scores = rng.normal(size=20).astype(np.float32)
    absent = rng.random([20, 15]) < 0.2
    found = suspected_positives(scores, positive_scores, tf.constant(absent), **rules).numpy()
    wanted = expected(scores, positive_scores, absent, **NEVER | rules)
    # What is absent has no rank; it is left out whatever is said of it.
    np.testing.assert_array_equal(found[~absent], wanted[~absent])
    assert wanted[~absent].any() == bool(rules)


def test_relative_margin_as_in_nv_retriever():
    scores = tf.constant([[0.77, 0.75, 0.5]])
    found = suspected_positives(
        scores, tf.constant([0.8]), tf.zeros([1, 3], tf.bool), relative_margin=0.05
    )
    np.testing.assert_array_equal(found, [[True, False, False]])  # 95 % of 0.8 is 0.76
