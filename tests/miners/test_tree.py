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


def encoded_by(miner):
    """The rows that a miner asks to be encoded from now on, a list for each time."""
    encode, asked = miner.encode_rows, []
    miner.encode_rows = lambda rows: asked.append(np.array(rows)) or encode(rows)
    return asked


def test_what_a_step_encoded_is_written_back_with_rows_whose_turn_it_is_and_no_others():
    world = World(Tree(refresh_every=10))
    before, asked = held(world), encoded_by(world.miner)
    world.move(0.3)
    rows = [5, 9, 5, 150, 9]
    world.miner.observe(tf.constant(rows), tf.gather(world.table, rows))
    assert [len(each) for each in asked] == [1]  # a sixteenth as many
    written = np.union1d(rows, asked[0])
    np.testing.assert_allclose(held(world)[written], world.table.numpy()[written], atol=1e-6)
    others = np.setdiff1d(np.arange(TARGETS), written)
    np.testing.assert_array_equal(held(world)[others], before[others])


def test_all_rows_have_their_turn_before_one_has_it_again():
    world = World(Tree(refresh_every=10**6))
    asked = encoded_by(world.miner)
    rows = tf.zeros([160], tf.int32)
    for _ in range(TARGETS // 10):
        world.miner.observe(rows, tf.gather(world.table, rows))
    turns = np.concatenate(asked)
    np.testing.assert_array_equal(np.sort(turns), np.arange(TARGETS))
    # Those of one step lie far apart: neighbours in a file are often alike.
    assert np.abs(np.subtract.outer(asked[0], asked[0]))[np.triu_indices(10, 1)].min() > 1


@pytest.mark.parametrize("refresh_every", [1, 3])
def test_refresh_encodes_landmarks_and_carries_their_movement_over(refresh_every):
    world = World(Tree(refresh_every=refresh_every), targets=2 * TARGETS)
    asked = encoded_by(world.miner)
    landmarks = world.miner.index.landmarks.numpy()
    others = np.setdiff1d(np.arange(2 * TARGETS), landmarks)
    assert len(others) > TARGETS
    world.move(0.3)
    before = error(world, others)
    for step in range(refresh_every):
        written = np.concatenate(asked) if asked else []
        assert error(world, np.setdiff1d(others, written)) == pytest.approx(before, rel=0.1), step
        world.miner.observe(tf.constant(landmarks[:1]), tf.gather(world.table, landmarks[:1]))
    np.testing.assert_array_equal(asked[-1], landmarks)
    np.testing.assert_allclose(held(world)[landmarks], world.table.numpy()[landmarks], atol=1e-6)
    assert error(world, np.setdiff1d(others, np.concatenate(asked))) < 0.3 * before


def test_landmarks_are_a_sixteenth_of_what_steps_encode_at_most():
    world = World(Tree())
    index, asked = world.miner.index, encoded_by(world.miner)
    for number in (20, TARGETS, 10 * TARGETS):
        rows, steps = tf.range(number) % TARGETS, 0
        refreshes, period = int(index.reencoder.refreshes), float(index.reencoder.period)
        while int(index.reencoder.refreshes) == refreshes:
            world.miner.observe(rows, tf.gather(world.table, rows))
            steps += 1
        affordable = 16 * index.num_landmarks / number
        assert steps == np.ceil(max(affordable, period)), number
    # The index asks every so many steps: of what the last ones encoded it was too little to count.
    assert affordable < period
    assert [len(each) for each in asked].count(index.num_landmarks) == 3


def test_landmarks_are_encoded_at_once_when_the_encoder_has_jumped():
    world = World(Tree())
    rows = tf.range(64)
    world.miner.observe(rows, tf.gather(world.table, rows))
    world.move(3.0)
    world.miner.observe(rows, tf.gather(world.table, rows))
    assert int(world.miner.index.reencoder.refreshes) == 1
    assert world.miner.index.staleness()["jumps"] == 1


def test_budget_is_what_a_query_reads_and_all_of_a_corpus_that_is_not_large():
    worlds = [World(Tree(1, budget=budget), targets=4 * TARGETS) for budget in (192, 10**6, None)]
    queries = some_queries(16, 0)
    none = tf.fill([16, 1], -1)
    exact = np.log(np.exp(BETA * queries @ worlds[0].table.numpy().T).sum(axis=1))
    off = [np.abs(world.miner.mine(queries, BETA, none)[1] - exact).max() for world in worlds]
    assert max(off[1:]) < 1e-4 < off[0]
    assert Tree.from_config(worlds[1].miner.get_config()).budget == 10**6
    with pytest.raises(ValueError, match="budget must be.*Received: budget=0"):
        Tree(budget=0)


def test_a_large_corpus_is_not_looked_at_as_a_whole(monkeypatch):
    monkeypatch.setattr("tf_dynidx.miners.tree._FLAT", 4 * TARGETS - 1)
    worlds = [World(Tree(1, budget=budget), targets=4 * TARGETS) for budget in (None, 192)]
    queries, none = some_queries(16, 0), tf.fill([16, 1], -1)
    drawn = [world.miner.mine(queries, BETA, none) for world in worlds]
    for default, told in zip(*drawn, strict=True):
        np.testing.assert_array_equal(default, told)


def test_no_step_encodes_all_targets_again():
    world = World(Tree(refresh_every=1))
    asked = encoded_by(world.miner)
    world.miner.observe(tf.constant([0]), tf.gather(world.table, [0]))
    assert [len(each) for each in asked] == [1, world.miner.index.num_landmarks]
    assert sum(map(len, asked)) < TARGETS


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
