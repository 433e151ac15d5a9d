import numpy as np
import pytest
import tensorflow as tf

from tests.miners.worlds import TARGETS, World, some_queries
from tf_dynidx.miners import Popularity

NONE = tf.fill([2, 1], -1)


def told(world):
    """The probability of every target."""
    return np.exp(world.mine(some_queries(2), NONE)[1].numpy()[0])


def test_all_targets_are_alike_before_training_has_shown_any():
    np.testing.assert_allclose(told(World(Popularity())), 1 / TARGETS, rtol=1e-5)


def test_positives_that_training_shows_are_counted_but_not_placeholders():
    world = World(Popularity(power=0.5, smoothing=3.0))
    for _ in range(6):
        world.miner.observe_positives(tf.constant([5, 5, 9, 0]), tf.constant([1.0, 1.0, 1.0, 0.0]))
    counts = np.zeros(TARGETS)
    counts[[5, 9]] = 12, 6
    weights = np.sqrt(counts + 3.0)
    np.testing.assert_allclose(told(world), weights / weights.sum(), rtol=1e-5)


def test_counts_that_are_given_stay():
    counts = np.arange(TARGETS)
    world = World(Popularity(power=1.0, counts=counts))
    world.miner.observe_positives(tf.constant([5]), tf.constant([1.0]))
    np.testing.assert_allclose(told(world), (counts + 1) / (counts + 1).sum(), rtol=1e-5)


def test_mining_alone_counts_nothing():
    """`evaluate` mines too."""
    world = World(Popularity())
    world.mine(some_queries(2), tf.constant([[3], [4]]))
    assert not world.miner.counts.numpy().any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"power": 0}, "positive and finite. Received: power=0"),
        ({"smoothing": -1.0}, "positive and finite. Received: smoothing=-1.0"),
        ({"counts": [[1, 2]]}, r"one for each target. Received: shape \(1, 2\)"),
        ({"counts": ["a"]}, "one for each target. Received: .*dtype <U1"),
        ({"counts": [1.0, -2.0]}, r"at least 0. Received: -2.0 for target 1"),
        ({"counts": [1.0, float("nan")]}, r"finite.*Received: nan for target 1"),
    ],
)
def test_bad_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Popularity(**options)


def test_counts_of_another_corpus_are_refused():
    with pytest.raises(ValueError, match=f"each target. Received: 3 counts, {TARGETS} targets"):
        World(Popularity(counts=[1, 2, 3]))
