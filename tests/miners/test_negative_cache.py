import numpy as np
import pytest
import tensorflow as tf

from tests.miners.worlds import BETA, DIM, TARGETS, World, some_queries
from tests.reference import exact_softmax
from tf_dynidx.losses import log_expected_own_counts, sampled_softmax
from tf_dynidx.miners import NegativeCache


def observe(world, rows):
    world.miner.observe(tf.constant(rows), tf.gather(world.table, tf.maximum(rows, 0)))


def cached(world):
    """The rows of a cache, and the encodings that it has for them."""
    miner = world.miner
    rows = np.arange(TARGETS) if miner.size == TARGETS else miner.rows.numpy()
    return rows, miner.table.numpy()[: miner.size]


def fresh(world):
    """The rows whose cached encodings are those of the encoder as it is now."""
    rows, encodings = cached(world)
    off = np.abs(encodings - world.table.numpy()[rows]).max(axis=1)
    return {*rows[off < 1e-6].tolist()}


def test_cache_is_filled_before_the_first_step():
    for size in (None, 50):
        world = World(NegativeCache(cache_size=size))
        rows, encodings = cached(world)
        assert len({*rows.tolist()}) == (size or TARGETS)
        np.testing.assert_allclose(encodings, world.table.numpy()[rows], atol=1e-6)


def test_what_a_step_encoded_is_written_back_and_the_oldest_are_encoded_anew():
    world = World(NegativeCache(refresh_share=0.25))
    world.move(0.5)
    observe(world, [3, 150, 3, -1])
    # The fifty oldest: all are of one age but those written back, and the first come first.
    assert fresh(world) == {3, 150} | {*range(51)}
    observe(world, [199])
    assert fresh(world) == {3, 150, 199} | {*range(101)}
    # What has been written back is young, and is passed over.
    for _ in range(2):
        observe(world, [-1])
    assert fresh(world) == {*range(TARGETS)}


def test_smaller_cache_streams_over_the_corpus():
    world = World(NegativeCache(cache_size=40, refresh_share=0.2))
    seen = {*cached(world)[0].tolist()}
    for step in range(20):  # of eight targets each
        before = {*cached(world)[0].tolist()}
        world.move(0.1, seed=step)
        observe(world, [-1])
        rows, _ = cached(world)
        assert len({*rows.tolist()}) == 40
        came = {*rows.tolist()} - before
        assert len(came) == 8 and not came & seen
        assert came <= fresh(world)
        seen |= came
    assert len(seen) == TARGETS
    assert int(world.miner.rows_encoded) == TARGETS


def test_places_of_a_smaller_cache_are_those_of_its_rows():
    world = World(NegativeCache(cache_size=30, refresh_share=0.3))
    rng = np.random.default_rng(0)
    for step in range(40):  # several times over the corpus, with write-backs that keep rows
        world.move(0.05, seed=step)
        written = rng.choice(cached(world)[0], 6).astype(np.int32)
        observe(world, written)
        rows, encodings = cached(world)
        places = np.full(TARGETS, -1)
        places[rows] = np.arange(30)
        np.testing.assert_array_equal(world.miner.places, places)
        assert len({*rows.tolist()}) == 30
        assert {*written.tolist()} & {*rows.tolist()} <= fresh(world)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_smallest_caches_stay_whole(size):
    world = World(NegativeCache(1, cache_size=size, refresh_share=0.5), targets=5)
    for step in range(30):
        world.miner.observe(tf.constant([step % 5]), tf.gather(world.table, [step % 5]))
        rows = world.miner.rows.numpy()
        assert len({*rows.tolist()}) == size
        np.testing.assert_allclose(world.miner.table[:size], world.table.numpy()[rows], atol=1e-6)


def test_target_that_is_not_cached_is_not_drawn_and_not_written():
    world = World(NegativeCache(cache_size=40, refresh_share=0.01))
    rows, before = cached(world)
    outside = np.setdiff1d(np.arange(TARGETS), rows).astype(np.int32)
    world.move(0.5)
    observe(world, outside[:5])
    changed = np.abs(cached(world)[1] - before).max(axis=1) > 1e-6
    assert changed.sum() == 1  # the oldest
    _, log_prob = world.mine(some_queries(2), tf.fill([2, 1], -1))
    rows, _ = cached(world)
    held = np.isin(np.arange(TARGETS), rows)
    np.testing.assert_array_equal(np.isneginf(log_prob.numpy()), np.tile(~held, [2, 1]))


def test_gradient_of_own_negatives_is_that_of_the_authors_loss():
    """Theirs is (1 - p+) (s- - s+), p+ held fixed, with one negative a query. The cache is fresh."""
    world = World(NegativeCache(num_negatives=1))
    queries = some_queries(6)
    positives = tf.constant([[4], [9], [50], [8], [120], [7]])
    mined, drawn = world.miner.mine(queries, tf.constant(BETA), positives)
    log_prob = world.miner.own_log_prob(mined, queries, tf.constant(BETA), positives, drawn)
    positive, negative = (tf.gather(world.table, rows[:, 0]) for rows in (positives, mined))

    def scores(queries):
        of = [tf.reduce_sum(queries * each, axis=1) for each in (positive, negative)]
        return BETA * tf.stack(of, axis=1)

    with tf.GradientTape() as tape:
        tape.watch(queries)
        log_expected = tf.pad(log_expected_own_counts(log_prob, 1), [[0, 0], [1, 0]])
        own = tf.zeros([6], tf.int32)
        loss = sampled_softmax(scores(queries), own, log_expected, tf.zeros([6, 2], tf.bool))
    found = tape.gradient(loss, queries)

    share = np.take_along_axis(exact_softmax(queries, world.table, BETA), positives.numpy(), axis=1)
    expected = (1 - share) * BETA * (negative.numpy() - positive.numpy())
    assert found.shape == [6, DIM]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cache_size": 0}, "at least 1. Received: cache_size=0"),
        (
            {"cache_size": 1, "num_negatives": 1},
            "at least 2, and.*Received: cache_size=1",
        ),
        ({"cache_size": 4, "num_negatives": 5}, "Received: cache_size=4, num_negatives=5"),
        ({"refresh_share": 0}, "positive and finite. Received: refresh_share=0"),
        ({"refresh_share": 0.6}, "at most 0.5. Received: refresh_share=0.6"),
    ],
)
def test_bad_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NegativeCache(**options)
