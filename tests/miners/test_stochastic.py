import numpy as np
import pytest
import tensorflow as tf

from tests.miners.worlds import TARGETS, World, some_queries
from tf_dynidx.miners import Stochastic


def test_hardest_of_one_sample_for_all_queries_are_kept():
    world = World(Stochastic(num_negatives=3, num_candidates=40))
    queries, positives = some_queries(5), tf.constant([[1], [2], [3], [4], [-1]])
    mined, (sample, _, _) = world.miner.mine(queries, tf.constant(2.0), positives)
    scores = queries.numpy() @ world.table.numpy()[sample].T
    scores[sample.numpy()[None] == positives.numpy()] = -np.inf
    expected = np.sort(scores, axis=1)[:, :-4:-1]
    found = np.take_along_axis(queries.numpy() @ world.table.numpy().T, mined.numpy(), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sample.shape == [40]


def test_negatives_are_as_hard_as_the_encoder_is_now():
    world = World(Stochastic(num_negatives=1, num_candidates=2000))
    world.move(0.5)
    mined, _ = world.mine(some_queries(4), tf.fill([4, 1], -1))
    hardest = np.argmax(some_queries(4).numpy() @ world.table.numpy().T, axis=1)
    np.testing.assert_array_equal(mined[:, 0], hardest)


def test_target_outside_of_the_sample_is_told_the_average():
    world = World(Stochastic(num_negatives=2, num_candidates=16))
    queries, positives = some_queries(2), tf.fill([2, 1], -1)
    _, drawn = world.miner.mine(queries, tf.constant(2.0), positives)
    outside = np.setdiff1d(np.arange(TARGETS), drawn[0]).astype(np.int32)
    log_prob = world.miner.log_prob(tf.constant(outside), queries, tf.constant(2.0), positives, drawn)
    np.testing.assert_allclose(np.exp(log_prob), 1 / TARGETS, rtol=1e-5)


def test_what_is_kept_is_told_about_as_much_as_a_uniform_sample_of_all_candidates():
    world = World(Stochastic(num_negatives=4, num_candidates=100))
    mined, log_prob = world.mine(some_queries(6), tf.fill([6, 1], -1))
    told = 4 * np.exp(np.take_along_axis(log_prob.numpy(), mined.numpy(), axis=1))
    expected = 100 / TARGETS
    assert np.all((told > 0.4 * expected) & (told <= 1.001 * expected))
    # The rank decides: the hardest are kept whenever they are drawn.
    np.testing.assert_allclose(told[:, 0], expected, rtol=0.1)


def test_all_of_a_sample_may_be_kept():
    world = World(Stochastic(num_negatives=5, num_candidates=5))
    _, log_prob = world.mine(some_queries(2), tf.fill([2, 1], -1))
    np.testing.assert_allclose(np.exp(log_prob), 1 / TARGETS, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_candidates": 0}, "at least 1. Received: num_candidates=0"),
        (
            {"num_negatives": 5, "num_candidates": 4},
            "Received: num_candidates=4, num_negatives=5",
        ),
    ],
)
def test_bad_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Stochastic(**options)
