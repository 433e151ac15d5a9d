import numpy as np
import pytest
import tensorflow as tf

from tests.miners.worlds import TARGETS, World, some_queries
from tf_dynidx.miners import InBatch, Mixed, NegativeCache, Popularity, Stale, Tree, Uniform

NONE = tf.fill([4, 1], -1)


def test_draws_of_all_miners_are_used_each_as_many_as_it_makes():
    hub, other = np.zeros(TARGETS), np.zeros(TARGETS)
    hub[7], other[9] = 1e9, 1e9
    miner = Mixed([Popularity(3, power=1.0, counts=hub), Popularity(1, power=1.0, counts=other)])
    mined, log_prob = World(miner).mine(some_queries(4), NONE)
    np.testing.assert_array_equal(np.sort(mined, axis=1), [[7, 7, 7, 9]] * 4)
    np.testing.assert_allclose(np.exp(log_prob)[:, [7, 9]], [[0.75, 0.25]], rtol=1e-5)
    assert miner.num_negatives == 4


def test_draws_are_shared_out_by_weight_for_each_query():
    hub, other = np.zeros(TARGETS), np.zeros(TARGETS)
    hub[7], other[9] = 1e9, 1e9
    miners = [Popularity(5, power=1.0, counts=hub), Popularity(5, power=1.0, counts=other)]
    mined, _ = World(Mixed(miners, weights=[3.0, 1.0])).mine(some_queries(2000), tf.fill([2000, 1], -1))
    assert mined.shape == [2000, 5]
    of_first = np.sum(mined.numpy() == 7, axis=1)
    assert {*of_first.tolist()} == {3, 4}  # 3.75 of five
    assert np.mean(of_first) == pytest.approx(3.75, abs=0.05)


def test_miners_of_one_seed_do_not_draw_alike():
    mined, _ = World(Mixed([Uniform(4), Uniform(4)])).mine(some_queries(4), NONE)
    assert np.any(mined[:, :4].numpy() != mined[:, 4:].numpy(), axis=1).all()


def test_every_miner_observes():
    world = World(Mixed([Popularity(1), Stale(1, refresh_every=2), NegativeCache(1)]))
    counts, stale, cache = world.miner.miners
    world.move(0.5)
    world.miner.observe_positives(tf.constant([5]), tf.constant([1.0]))
    world.miner.observe(tf.constant([150]), tf.gather(world.table, [150]))
    assert counts.counts.numpy()[5] == 1
    np.testing.assert_allclose(cache.table[150], world.table[150], atol=1e-6)
    assert int(world.miner.full_encodes) == 2
    world.miner.observe(tf.constant([150]), tf.gather(world.table, [150]))
    np.testing.assert_allclose(stale.table, world.table, atol=1e-6)
    assert int(world.miner.full_encodes) == 3
    parts = sum(int(each.rows_encoded) for each in world.miner.miners)
    assert int(world.miner.rows_encoded) == parts == int(world.encoded)


def test_logs_are_those_of_the_miners():
    miner = Mixed([Uniform(1), Tree(1)])
    World(miner)
    assert miner.logs().keys() == {"staleness"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([],), "at least one, and none twice. Received: 0 miners"),
        ((Uniform(),), "list of miners that draw.*Received: <"),
        (([Uniform(), "tree"],), "list of miners that draw.*Received: 'tree'"),
        (([Uniform(), InBatch()],), "in-batch negatives are candidates anyway. Received: <"),
        (([Uniform(), Tree()], [1.0]), "one for each miner. Received: 1 weights, 2 miners"),
        (([Uniform(), Tree()], [1.0, 0]), "positive and finite. Received: weights=0"),
        (([Uniform(1), Tree(2)], [1, 1]), r"same num_negatives.*Received: num_negatives \[1, 2\]"),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixed(*arguments)


def test_miner_that_is_given_twice_is_refused():
    miner = Uniform()
    with pytest.raises(ValueError, match="none twice. Received: 2 miners"):
        Mixed([miner, miner])
