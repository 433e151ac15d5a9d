import numpy as np
import pytest
import tensorflow as tf

from tests.reference import check_holds, check_invariants, clustered, gaussian, held
from tf_dynidx.index import DynamicIndex
from tf_dynidx.index.tree import Tree


def spread_within_leaves(index):
    """Mean squared distance of a row from the centre of its leaf, read off the rows themselves."""
    ids, rows = index.tree.ids.numpy(), index.tree.rows.numpy()
    members = [rows[leaf][ids[leaf] >= 0] for leaf in range(len(ids))]
    total = sum(((each - each.mean(axis=0)) ** 2).sum() for each in members if len(each))
    return total / index.size


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 16, 100, 1000])
def test_any_number_of_rows_fits_and_is_laid_out_once(capacity):
    index = DynamicIndex(3, capacity)
    vectors = gaussian(np.random.default_rng(capacity), capacity, 3)
    for number in sorted({1, capacity // 2, capacity - 1, capacity} - {0}):
        index.reset()
        index.build(vectors[:number])
        check_holds(index, dict(enumerate(vectors[:number])))
        check_invariants(index)


def test_leaves_are_groups_of_near_neighbours():
    index = DynamicIndex(8, 1000)
    vectors = clustered(np.random.default_rng(0), 1000, 8)
    index.build(vectors)
    used = (index.tree.counts.numpy() > 0).sum()
    total = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean()
    assert used > 50 and spread_within_leaves(index) < 0.15 * total


@pytest.mark.parametrize("jit_compile", [False, True])
def test_tree_is_changed_by_compiled_functions_as_by_others(jit_compile):
    """Every method but `build` works inside a `tf.function`, compiled by XLA or not."""
    rng = np.random.default_rng(0)
    tree = Tree(4, 60)
    vectors = gaussian(rng, 60, 4)
    tree.build(tf.range(50), tf.constant(vectors[:50]))

    @tf.function(jit_compile=jit_compile)
    def change(gone, leaves, new, fresh):
        tree.remove(gone, leaves)
        tree.refresh()
        accepted = tree.insert(new, fresh)
        tree.split(2)
        tree.refresh()
        moved = tree.reroute(tf.range(tree.num_leaves))
        tree.write(tf.constant([0, -1, 59]), tf.ones([3, 4]))
        tree.refresh()
        return accepted, moved, tree.read(tf.range(60)), tree.contains(tf.range(60))

    gone, new = tf.constant([3, 4, -1, 20]), tf.constant([50, -1, 51, 3])
    leaves = tf.range(tree.num_leaves)
    accepted, _, rows, present = change(gone, leaves, new, tf.constant(vectors[[50, 0, 51, 30]]))
    accepted = accepted.numpy()
    expected = {row: vectors[row] for row in range(50) if row not in (3, 4, 20)}
    inserted = {50: vectors[50], 51: vectors[51], 3: vectors[30]}
    assert not accepted[1] and accepted.sum() >= 2
    for position, row in [(0, 50), (2, 51), (3, 3)]:
        if accepted[position]:
            expected[row] = inserted[row]
    expected[0] = np.ones(4, np.float32)
    assert set(np.flatnonzero(present)) == set(expected)
    for row, vector in expected.items():
        np.testing.assert_array_equal(rows[row], vector)


def test_row_ids_that_are_no_rows_are_ignored_wherever_they_may_come():
    index = DynamicIndex(3, 20)
    vectors = gaussian(np.random.default_rng(0), 10, 3)
    index.build(vectors)
    strangers = tf.constant([-1, 15, 20, 21, 2**31 - 1, -(2**31)])
    assert not index.tree.contains(strangers).numpy().any()
    # Not even what is no number at all has an effect.
    index.write(strangers, tf.fill([6, 3], np.nan))
    index.tree.refresh()
    check_holds(index, dict(enumerate(vectors)))
    check_invariants(index)
    assert np.isfinite(index.tree.centres.numpy()).all()


def drift(index, vectors, rounds, size, rng, maintained):
    """Moves every row at random, on the sphere, `rounds` times."""
    write, upkeep = tf.function(index.write), tf.function(index.upkeep)
    for _ in range(rounds):
        vectors = vectors + size * gaussian(rng, *vectors.shape)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        write(tf.range(len(vectors)), tf.constant(vectors))
        if maintained:
            upkeep()
    return vectors


@pytest.mark.parametrize("clusters", [30, 2000])
def test_upkeep_keeps_the_tree_as_good_as_a_fresh_one_while_rows_drift(clusters):
    start = clustered(np.random.default_rng(0), 1000, 8, clusters)
    spreads = {}
    for maintained in (False, True):
        index = DynamicIndex(8, 1000)
        index.build(start)
        rng = np.random.default_rng(1)
        vectors = drift(index, start, 30, 0.03, rng, maintained)
        check_holds(index, dict(enumerate(vectors)))
        check_invariants(index, statistics=maintained)
        spreads[maintained] = spread_within_leaves(index)
    index.reset()
    index.build(vectors)
    fresh = spread_within_leaves(index)
    assert spreads[True] < 1.25 * fresh
    # Without upkeep the drift, 0.4 of the radius of the sphere, leaves a tree that is clearly worse.
    assert spreads[False] > 1.4 * fresh


def test_upkeep_makes_a_tree_anew_whose_rows_went_all_over_the_place():
    rng = np.random.default_rng(2)
    start = clustered(rng, 1000, 8, clusters=2000)
    index = DynamicIndex(8, 1000)
    index.build(start)
    vectors = drift(index, start, 1, 2.0, rng, maintained=False)
    shuffled = spread_within_leaves(index)
    upkeep = tf.function(index.upkeep)
    for _ in range(5 * 16):  # each reroutes a sixteenth of the leaves
        upkeep()
    check_holds(index, dict(enumerate(vectors)))
    check_invariants(index)
    after = spread_within_leaves(index)
    index.reset()
    index.build(vectors)
    assert shuffled > 3 * spread_within_leaves(index) > 2.4 * after


def test_tree_grown_by_inserts_is_as_good_as_a_fresh_one():
    vectors = clustered(np.random.default_rng(0), 1500, 8)
    index = DynamicIndex(8, 1500)
    index.build(vectors[:100])
    for start in range(100, 1500, 100):
        index.insert(np.arange(start, start + 100), vectors[start : start + 100])
    grown = spread_within_leaves(index)
    index.repair()
    check_invariants(index)
    repaired = spread_within_leaves(index)
    index.reset()
    index.build(vectors)
    fresh = spread_within_leaves(index)
    assert grown < 1.35 * fresh and repaired < 1.15 * fresh


def test_leaves_of_hardly_any_rows_are_emptied_for_others_to_split_into():
    index = DynamicIndex(8, 1500)
    index.build(clustered(np.random.default_rng(0), 1500, 8))
    ids, counts = index.tree.ids.numpy(), index.tree.counts.numpy()
    thinned = np.flatnonzero(counts)[::2]
    index.remove(np.concatenate([ids[leaf, 1 : counts[leaf]] for leaf in thinned]))
    before = held(index)
    assert (index.tree.counts.numpy()[thinned] == 1).all()
    moved = sum(index.repair() for _ in range(3))
    check_holds(index, before)
    check_invariants(index)
    assert (index.tree.counts.numpy() == 1).sum() == 0 and moved >= len(thinned)


def test_rows_that_fall_into_one_point_and_spread_out_again_are_kept():
    rng = np.random.default_rng(0)
    index = DynamicIndex(4, 300)
    vectors = gaussian(rng, 300, 4)
    index.build(vectors)
    for target in (np.ones([300, 4], np.float32), gaussian(rng, 300, 4)):
        index.write(tf.range(300), target)
        for _ in range(32):
            index.upkeep()
        check_holds(index, dict(enumerate(target)))
        check_invariants(index)
