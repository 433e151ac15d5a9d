import numpy as np
import pytest
import tensorflow as tf

from tests.miners.worlds import BETA, TARGETS, World, some_queries
from tests.reference import exact_softmax
from tf_dynidx.miners import Tree


def held(world):
    return world.miner.index.tree.read(tf.range(len(world.table.numpy()))).numpy()


def error(world, rows=slice(None)):
    return np.linalg.norm(held(world) - world.table.numpy(), axis=1)[rows].mean()


def test_index_holds_all_encodings_from_the_start():
    world = World(Tree())
    np.testing.assert_allclose(held(world), world.table, atol=1e-6)


def test_rows_that_a_step_encoded_are_written_back_and_no_others():
    world = World(Tree(refresh_every=10))
    before = held(world)
    world.move(0.3)
    rows = [5, 9, 5, 150]
    world.miner.observe(tf.constant(rows), tf.gather(world.table, rows))
    np.testing.assert_allclose(held(world)[rows], world.table.numpy()[rows], atol=1e-6)
    others = np.setdiff1d(np.arange(TARGETS), rows)
    np.testing.assert_array_equal(held(world)[others], before[others])


@pytest.mark.parametrize("refresh_every", [1, 3])
def test_refresh_encodes_landmarks_and_carries_their_movement_over(refresh_every):
    world = World(Tree(refresh_every=refresh_every), targets=2 * TARGETS)
    landmarks = world.miner.index.landmarks.numpy()
    others = np.setdiff1d(np.arange(2 * TARGETS), landmarks)
    assert len(others) > TARGETS
    world.move(0.3)
    before = error(world, others)
    for step in range(refresh_every):
        assert error(world, others) == pytest.approx(before), step
        world.miner.observe(tf.constant(landmarks[:1]), tf.gather(world.table, landmarks[:1]))
    np.testing.assert_allclose(held(world)[landmarks], world.table.numpy()[landmarks], atol=1e-6)
    assert error(world, others) < 0.3 * before


def test_budget_is_what_a_query_reads():
    worlds = [World(Tree(1, budget=budget), targets=4 * TARGETS) for budget in (None, 10**6)]
    queries = some_queries(16, 0)
    none = tf.fill([16, 1], -1)
    exact = np.log(np.exp(BETA * queries @ worlds[0].table.numpy().T).sum(axis=1))
    off = [np.abs(world.miner.mine(queries, BETA, none)[1] - exact).max() for world in worlds]
    assert off[1] < 1e-4 < off[0]
    assert Tree.from_config(worlds[1].miner.get_config()).budget == 10**6
    with pytest.raises(ValueError, match="budget must be.*Received: budget=0"):
        Tree(budget=0)


def test_no_step_encodes_all_targets_again():
    world = World(Tree(refresh_every=1))
    encoded = []
    encode = world.encode_rows
    world.miner.encode_rows = lambda rows: encoded.append(rows.shape[0]) or encode(rows)
    world.miner.observe(tf.constant([0]), tf.gather(world.table, [0]))
    assert encoded == [world.miner.index.num_landmarks]
    assert sum(encoded) < TARGETS


def test_negatives_follow_an_encoder_that_moves():
    world = World(Tree(num_negatives=8, refresh_every=2))
    queries = tf.repeat(some_queries(2), 256, axis=0)
    none = tf.fill([512, 1], -1)

    def distance():
        """Total variation between the draws and the softmax of the encoder as it is now."""
        mined = np.concatenate([world.mine(queries, none)[0].numpy() for _ in range(4)], axis=1)
        counts = [np.bincount(rows, minlength=TARGETS) for rows in mined.reshape(2, -1)]
        frequency = np.array(counts) / mined[:256].size
        return 0.5 * np.abs(frequency - exact_softmax(some_queries(2), world.table, BETA)).sum(axis=1)

    fresh = distance().max()
    for step in range(6):
        world.move(0.1, seed=step)
    stale = distance().min()
    for _ in range(4):
        world.miner.observe(tf.constant([0]), tf.gather(world.table, [0]))
    assert stale > 4 * fresh
    assert distance().max() < 0.5 * stale


@pytest.mark.parametrize("refresh_every", [0, 2.0, "often"])
def test_bad_interval_is_refused(refresh_every):
    with pytest.raises(ValueError, match=f"at least 1. Received: refresh_every={refresh_every!r}"):
        Tree(refresh_every=refresh_every)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_may_be_half_as_wide(dtype):
    world = World(Tree(dtype=dtype))
    assert world.miner.index.tree.rows.dtype == dtype
    np.testing.assert_allclose(held(world), world.table, atol=4e-3)
    mined, _ = world.mine(some_queries(2), tf.constant([[1], [2]]))
    assert mined.shape == [2, 2]
