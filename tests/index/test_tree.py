import numpy as np
import pytest
import tensorflow as tf
from scipy.special import logsumexp

from tests.reference import (
    check_holds,
    check_invariants,
    clustered,
    gaussian,
    held,
    index_as_new,
    log_partition,
    top_k,
    traced,
    unit,
)

DIM, SIZE = 8, 2000


@pytest.mark.parametrize("jit_compile", [False, True])
def test_tree_is_changed_by_compiled_functions_as_by_others(jit_compile):
    """Every method but `build` works inside a `tf.function`, compiled by XLA or not."""
    rng = np.random.default_rng(0)
    index = index_as_new(4, 400, levels=3)
    tree, vectors = index.tree, gaussian(rng, 400, 4)
    index.build(vectors[:350])

    @tf.function(jit_compile=jit_compile, autograph=False)
    def change(gone, new, fresh, strays):
        tree.remove(gone)
        tree.refresh()
        accepted = tree.insert(new, fresh)
        tree.regroup(tf.constant([0, 1]))
        changed = tree.tidy(2)
        tree.refresh_groups(tf.constant([0, 1]))
        tree.refresh_groups(changed)
        tree.refresh_above()
        tree.write(strays, tf.ones([3, 4]))
        tree.refresh()
        moved = tree.move(strays), tree.reroute(tf.range(tree.widths[0]))
        tree.refresh()
        return accepted, moved, tree.read(tf.range(400)), tree.contains(tf.range(400))

    gone, new = tf.constant([3, 4, -1, 20]), tf.constant([360, -1, 361, 3])
    strays = tf.constant([0, -1, 399])
    accepted, moved, rows, present = change(gone, new, tf.constant(vectors[[360, 0, 361, 30]]), strays)
    np.testing.assert_array_equal(accepted, [True, False, True, True])
    assert moved[0] == 1 and moved[1] > 0
    expected = {row: vectors[row] for row in range(350) if row not in (4, 20)}
    expected |= {360: vectors[360], 361: vectors[361], 3: vectors[30], 0: np.ones(4, np.float32)}
    check_holds(index, expected)
    check_invariants(index)
    index.check()
    np.testing.assert_array_equal(np.flatnonzero(present), sorted(expected))
    np.testing.assert_array_equal(
        rows.numpy()[sorted(expected)], [expected[r] for r in sorted(expected)]
    )


def test_row_ids_that_are_no_rows_are_ignored_wherever_they_may_come():
    index = index_as_new(3, 20)
    vectors = gaussian(np.random.default_rng(0), 10, 3)
    index.build(vectors)
    strangers = tf.constant([-1, 15, 20, 21, 2**31 - 1, -(2**31)])
    assert not index.tree.contains(strangers).numpy().any()
    # Not even what is no number at all has an effect.
    index.write(strangers, tf.fill([6, 3], np.nan))
    index.tree.refresh()
    check_holds(index, dict(enumerate(vectors)))
    check_invariants(index)
    assert all(np.isfinite(moments.numpy()).all() for moments in index.tree.moments)


def test_emptied_slots_that_held_huge_rows_do_not_count():
    """The square of such a row is beyond float32."""
    index = index_as_new(3, 20)
    vectors = gaussian(np.random.default_rng(0), 10, 3)
    index.build(vectors)
    index.insert([12], np.full([1, 3], 1e18, np.float32))
    index.remove([12])
    check_invariants(index)


# How good a tree is


def quality(index, rows, queries, beta=10.0):
    """Recall of a search that reads a twentieth of the rows, error of the partition by nodes alone."""
    _, found = index.search(queries, 10, budget=100)
    _, order = top_k(queries @ rows.T, 10)
    shared = [len(set(a) & set(b)) for a, b in zip(found.numpy(), order, strict=True)]
    level = index.tree.levels[0]
    centres, variances = np.split(level.moments.numpy(), 2, axis=1)
    with np.errstate(divide="ignore"):
        mass = np.log(level.counts.numpy()) + beta * queries @ centres.T
    estimate = logsumexp(mass + 0.5 * beta**2 * queries**2 @ variances.T, axis=1)
    return np.mean(shared) / 10, np.mean((estimate - log_partition(queries, rows, beta)) ** 2)


def test_off_centre_is_how_far_rows_lie_from_the_centre_of_their_leaf():
    rows = clustered(np.random.default_rng(4), 600, DIM)
    index = index_as_new(DIM, 700)
    index.build(rows)
    tree = index.tree
    groups = tf.range(tree.num_groups + 1)  # scratch as well, which holds nothing
    found = tree.off_centre(groups).numpy()
    assert found.shape == (tree.num_groups + 1, 512)
    ids = tree.ids.numpy().reshape(found.shape)
    np.testing.assert_array_equal(found[ids < 0], -1)
    for group, slot in np.argwhere(ids >= 0):
        leaf = ids[group, slot // 32 * 32 :][:32]
        centre = rows[leaf[leaf >= 0]].mean(axis=0)
        away = ((rows[ids[group, slot]] - centre) ** 2).sum()
        assert found[group, slot] == pytest.approx(away, rel=1e-3, abs=1e-6)


def queries_near(rng, rows, number=1000):
    return unit(rows[rng.integers(len(rows), size=number)] + 0.1 * gaussian(rng, number, DIM))


def check_as_good(index, rows, recall=0.03, error=2.0):
    """Asserts that a tree is about as good as one that is built of the same rows."""
    queries = queries_near(np.random.default_rng(9), rows)
    fresh = index_as_new(DIM, index.capacity, len(index.tree.widths), copy="fresh")
    fresh.build(rows)
    (mine, my_error), (best, least) = quality(index, rows, queries), quality(fresh, rows, queries)
    assert 0.6 < best < 1.0 and mine > best - recall
    assert my_error < error * least + 1e-5


@pytest.mark.parametrize(
    "levels, clusters, way",
    [(2, 30, "repair"), (3, 4000, "repair"), (2, 4000, "upkeep"), (3, 30, "upkeep")],
)
def test_tree_stays_as_good_as_a_fresh_one_while_every_row_drifts(levels, clusters, way):
    rows = clustered(np.random.default_rng(0), SIZE, DIM, clusters)
    rng = np.random.default_rng(1)
    index, left_alone = (index_as_new(DIM, SIZE, levels, copy) for copy in range(2))
    for each in (index, left_alone):
        each.build(rows)
    upkeep = traced(index.upkeep)
    for _ in range(30):
        rows = unit(rows + 0.03 * gaussian(rng, SIZE, DIM))
        if way == "repair":
            index.update(np.arange(SIZE), rows)
            index.repair()
        else:
            index.write(tf.range(SIZE), rows)
            upkeep()
    check_holds(index, dict(enumerate(rows)))
    check_invariants(index)
    check_as_good(index, rows)
    # The drift, 0.46 of the radius of the sphere, leaves a tree that is clearly worse.
    left_alone.update(np.arange(SIZE), rows)
    with pytest.raises(AssertionError):
        check_as_good(left_alone, rows)


def test_repair_moves_the_rows_that_went_far_to_where_they_belong():
    rng = np.random.default_rng(2)
    rows = clustered(rng, SIZE, DIM)
    index = index_as_new(DIM, SIZE)
    index.build(rows)
    some = rng.permutation(SIZE)[:100]
    rows[some] = rows[some[::-1]]
    index.update(some, rows[some])
    with pytest.raises(AssertionError):
        check_as_good(index, rows)
    assert 50 < index.repair() <= 100
    assert index.repair() == 0  # nothing has changed since
    check_holds(index, dict(enumerate(rows)))
    check_invariants(index)
    check_as_good(index, rows)


def test_upkeep_makes_a_tree_anew_whose_rows_went_all_over_the_place():
    rng = np.random.default_rng(2)
    rows = clustered(rng, SIZE, DIM)
    index = index_as_new(DIM, SIZE)
    index.build(rows)
    rows = rows[rng.permutation(SIZE)]
    index.write(tf.range(SIZE), rows)
    upkeep = traced(index.upkeep)
    for _ in range(64):
        upkeep()
    check_holds(index, dict(enumerate(rows)))
    check_invariants(index)
    check_as_good(index, rows)


@pytest.mark.parametrize("levels", [2, 3])
def test_tree_grown_by_inserts_is_as_good_as_a_fresh_one(levels):
    rows = clustered(np.random.default_rng(0), SIZE, DIM)
    index = index_as_new(DIM, SIZE, levels)
    for start in range(0, SIZE, 100):
        index.insert(np.arange(start, start + 100), rows[start : start + 100])
    check_invariants(index)
    check_as_good(index, rows, recall=0.05)


@pytest.mark.parametrize("levels", [2, 3])
def test_groups_that_are_emptied_are_filled_again(levels):
    rng = np.random.default_rng(0)
    rows = clustered(rng, SIZE, DIM)
    index = index_as_new(DIM, SIZE, levels)
    index.build(rows)
    group = index.tree.slots.numpy()[:SIZE] // 512
    gone = np.flatnonzero(group != group[0])
    before = index.stats()["levels"][1]["nodes"]
    index.remove(gone)
    assert index.stats()["levels"][1]["nodes"] == 1
    index.insert(gone, rows[gone])
    assert index.stats()["levels"][1]["nodes"] >= before - 2
    # The first of them came where there was room; each upkeep reroutes a part of the leaves.
    upkeep = traced(index.upkeep)
    for _ in range(8):
        upkeep()
    check_holds(index, dict(enumerate(rows)))
    check_invariants(index)
    check_as_good(index, rows, recall=0.05)


@pytest.mark.parametrize("levels", [2, 3])
def test_group_of_hardly_any_rows_is_given_up(levels):
    rows = clustered(np.random.default_rng(0), SIZE, DIM)
    index = index_as_new(DIM, SIZE, levels)
    index.build(rows)
    group = index.tree.slots.numpy()[:SIZE] // 512
    gone = np.flatnonzero(group == group[0])[4:]
    index.remove(gone)
    before = index.stats()["levels"][1]["nodes"]
    for _ in range(4):  # each reroutes a part of the leaves
        index.upkeep()
    assert index.stats()["levels"][1]["nodes"] == before - 1
    check_holds(index, {row: rows[row] for row in range(SIZE) if row not in set(gone)})
    check_invariants(index)


@pytest.mark.parametrize("levels, way", [(2, "upkeep"), (3, "repair")])
def test_rows_that_fall_into_one_point_and_spread_out_again_are_kept(levels, way):
    rng = np.random.default_rng(0)
    index = index_as_new(4, 700, levels)
    vectors = gaussian(rng, 700, 4)
    index.build(vectors)
    for target in (np.ones([700, 4], np.float32), gaussian(rng, 700, 4)):
        index.write(tf.range(700), target)
        step = traced(index.upkeep) if way == "upkeep" else index.repair
        for _ in range(8 if way == "upkeep" else 2):
            step()
        check_holds(index, dict(enumerate(target)))
        check_invariants(index)
        index.check()
    assert held(index).keys() == set(range(700))
