import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from tf_dynidx.losses import log_expected_counts, log_expected_own_counts, sampled_softmax


def random_case(seed, queries, candidates):
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(size=[queries, candidates], scale=5).astype(np.float32),
        "positives": rng.integers(candidates, size=queries).astype(np.int32),
        "log_expected": rng.normal(size=candidates, scale=2).astype(np.float32),
        "masked": rng.random([queries, candidates]) < 0.3,
    }


cases = st.builds(
    random_case, st.integers(0, 2**32), st.integers(min_value=1, max_value=5), st.integers(1, 8)
)


@settings(deadline=None, max_examples=50)
@given(case=cases)
def test_loss_is_that_of_the_reference(case):
    expected = reference.sampled_softmax(**case)
    np.testing.assert_allclose(sampled_softmax(**case), expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(case=cases)
def test_gradient_is_finite_sums_to_nothing_and_is_zero_where_masked(case):
    logits = tf.constant(case["logits"])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = sampled_softmax(**{**case, "logits": logits})
    gradient = tape.gradient(loss, logits).numpy()
    own = np.eye(logits.shape[1], dtype=bool)[case["positives"]]
    assert np.all(gradient[case["masked"] & ~own] == 0)
    assert np.all(gradient[~case["masked"] & ~own] > 0)
    # Softmax minus one-hot: what the positive is pushed up by is what the others are pushed down by.
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-5)


def test_all_targets_as_candidates_give_the_full_softmax():
    rng = np.random.default_rng(0)
    queries, rows = rng.normal(size=[6, 4]), rng.normal(size=[50, 4])
    positives = rng.integers(50, size=6)
    logits = tf.constant(3.0 * queries @ rows.T, tf.float32)
    loss = sampled_softmax(
        logits, tf.constant(positives, tf.int32), tf.zeros([50]), tf.zeros([6, 50], tf.bool)
    )
    expected = reference.full_softmax_loss(queries, rows, 3.0, positives)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_candidate_repeated_n_times_and_expected_n_times_counts_once():
    logits = np.array([[2.0, 1.0, -1.0]], np.float32)
    once = sampled_softmax(logits, [0], [0.0, 0.0, 0.0], np.zeros([1, 3], bool))
    repeated = sampled_softmax(
        logits[:, [0, 1, 1, 1, 2]], [0], [0.0, *[np.log(3)] * 3, 0.0], np.zeros([1, 5], bool)
    )
    np.testing.assert_allclose(once, repeated, rtol=1e-6)


def test_own_positive_stands_for_itself_masked_and_impossible_to_draw_though_it_be():
    logits = np.array([[1.0, 1.0]], np.float32)
    loss = sampled_softmax(logits, [0], [-np.inf, 0.0], np.array([[True, False]]))
    np.testing.assert_allclose(loss, [np.log(2)], rtol=1e-6)


def test_query_with_all_candidates_masked_has_no_loss_and_no_gradient():
    logits = tf.constant([[1.0, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = sampled_softmax(logits, [0], [0.0, 0.0], np.ones([1, 2], bool))
    np.testing.assert_array_equal(loss, [0.0])
    np.testing.assert_array_equal(tape.gradient(loss, logits), [[0.0, 0.0]])


# Expected counts, and what they are for

TARGETS, QUERIES, DRAWS = 30, 40, 3


@pytest.fixture(scope="module")
def source():
    """A population of queries, each with a positive, and a distribution to mine from."""
    rng = np.random.default_rng(1)
    vectors, rows = rng.normal(size=[QUERIES, 4]), rng.normal(size=[TARGETS, 4])
    positives = rng.integers(TARGETS // 2, size=QUERIES)  # half the targets are never a positive
    mined = reference.exact_softmax(vectors, rows, 0.7, positives[:, None])
    frequency = np.bincount(positives, minlength=TARGETS) / QUERIES
    return positives, mined, frequency


def logs(probabilities):
    with np.errstate(divide="ignore"):
        return tf.constant(np.log(probabilities), tf.float32)


def draw_batches(source, batches, batch, seed):
    """What the first query of each batch sees: counts of candidates [batches, targets], and E."""
    positives, mined, frequency = source
    rng = np.random.default_rng(seed)
    counts, expected = [], []
    for _ in range(batches):
        chosen = rng.integers(QUERIES, size=batch)
        candidates = [rng.choice(TARGETS, DRAWS, p=mined[query]) for query in chosen]
        candidates = np.concatenate([*candidates, positives[chosen[1:]]])
        counts.append(np.bincount(candidates, minlength=TARGETS))
        expected.append(log_expected_counts(logs(mined[chosen]), DRAWS, logs(frequency), batch))
    return np.array(counts), np.exp(expected)


def test_expected_counts_are_those_of_mined_and_in_batch_candidates(source):
    counts, expected = draw_batches(source, batches=600, batch=6, seed=2)
    noise = counts.std(axis=0) / np.sqrt(len(counts)) + 1e-3
    difference = (counts - expected).mean(axis=0) / noise
    assert np.abs(difference).max() < 4.5
    # Either source by itself is clearly not what was counted.
    without_positives = expected - 5 * source[2]
    assert np.abs((counts - without_positives).mean(axis=0) / noise).max() > 10


def test_one_distribution_for_all_queries_is_that_of_each():
    rng = np.random.default_rng(0)
    log_prob, log_frequency = logs(rng.dirichlet(np.ones(9))), logs(rng.dirichlet(np.ones(9)))
    shared = log_expected_counts(log_prob[None], 2, log_frequency, 5)
    each = log_expected_counts(tf.tile(log_prob[None], [5, 1]), 2, log_frequency, 5)
    np.testing.assert_allclose(shared, each, rtol=1e-5)
    expected = 2 * 5 * np.exp(log_prob) + 4 * np.exp(log_frequency)
    np.testing.assert_allclose(np.exp(shared), expected, rtol=1e-5)


def test_without_mining_the_other_positives_of_the_batch_are_expected():
    log_frequency = logs(np.array([0.5, 0.25, 0.25]))
    counts = log_expected_counts(tf.fill([1, 3], -np.inf), 0, log_frequency, tf.constant(9))
    np.testing.assert_allclose(np.exp(counts), [4.0, 2.0, 2.0], rtol=1e-5)


def test_batch_of_one_has_finite_counts():
    counts = log_expected_counts(logs(np.array([[0.5, 0.0]])), 2, logs(np.array([0.5, 0.5])), 1)
    np.testing.assert_allclose(np.exp(counts), [1.0, 0.0], atol=1e-5)
    assert np.isfinite(counts).all()


def test_estimated_partition_is_unbiased(source):
    positives, mined, frequency = source
    rng = np.random.default_rng(3)
    batch, sets = 4, 4000
    queries = np.arange(batch)
    logits = rng.normal(size=[TARGETS], scale=2)
    positive = 3
    # The queries stay, the positives of the others change: so E is the same for all sets.
    candidates = [rng.choice(TARGETS, [sets, DRAWS], p=mined[query]) for query in queries]
    others = rng.choice(TARGETS, [sets, batch - 1], p=frequency)
    candidates = np.concatenate([np.full([sets, 1], positive), *candidates, others], axis=1)

    def estimates(log_expected):
        """The sum over all targets but the positive, read off the loss of each set."""

        def loss_of_set(rows):
            return sampled_softmax(
                tf.gather(tf.constant(logits, tf.float32), rows)[None],
                tf.constant([0]),
                tf.gather(log_expected, rows),
                rows[None] == positive,
            )[0]

        loss = tf.vectorized_map(loss_of_set, tf.constant(candidates, tf.int32))
        return (np.exp(np.asarray(loss, np.float64)) - 1.0) * np.exp(logits[positive])

    log_expected = log_expected_counts(logs(mined[queries]), DRAWS, logs(frequency), batch)
    truth = np.exp(logits).sum() - np.exp(logits[positive])
    right = estimates(log_expected)
    noise = right.std() / np.sqrt(sets)
    assert noise < 0.05 * truth
    assert abs(right.mean() - truth) < 4 * noise
    wrong = estimates(
        tf.fill([TARGETS], np.float32(np.log(candidates.shape[1] / TARGETS)))
    )  # as if uniform
    assert abs(wrong.mean() - truth) > 10 * noise


def test_own_draws_are_expected_as_often_as_drawn():
    log_prob = np.random.default_rng(3).normal(size=[4, 3]).astype(np.float32)
    np.testing.assert_allclose(log_expected_own_counts(log_prob, 3), log_prob + np.log(3), rtol=1e-6)


def test_candidates_of_their_own_are_corrected_each():
    rng = np.random.default_rng(4)
    case = random_case(5, 3, 6)
    log_expected = rng.normal(size=[3, 6]).astype(np.float32)
    expected = [
        reference.sampled_softmax(
            case["logits"][[query]], case["positives"][[query]], own, case["masked"][[query]]
        )[0]
        for query, own in enumerate(log_expected)
    ]
    loss = sampled_softmax(**case | {"log_expected": log_expected})
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
