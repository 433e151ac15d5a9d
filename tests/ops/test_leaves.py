import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_dynidx.ops import leaves


@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    dim=st.integers(1, 5),
    offset=st.sampled_from([0.0, 100.0]),
)
def test_statistics_are_those_of_the_live_rows(seed, counts, dim, offset):
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=[len(counts), 9, dim]) + offset).astype(np.float32)
    centres, variances, radii = leaves.statistics(rows, tf.constant(counts))
    for leaf, count in enumerate(counts):
        members = rows[leaf, :count].astype(np.float64)
        mean = members.mean(axis=0) if count else np.zeros(dim)
        variance = members.var(axis=0) if count else np.zeros(dim)
        radius = np.linalg.norm(members - mean, axis=1).max(initial=0.0)
        np.testing.assert_allclose(centres[leaf], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(variances[leaf], variance, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(radii[leaf], radius, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_statistics_of_half_precision_rows_are_summed_in_float32(dtype):
    rng = np.random.default_rng(0)
    rows = tf.cast(1.0 + 0.01 * rng.normal(size=[2, 3000, 4]), dtype)
    centres, variances, radii = leaves.statistics(rows, tf.constant([3000, 1500]))
    members = tf.cast(rows, tf.float64).numpy()[1, :1500]
    assert centres.dtype == variances.dtype == radii.dtype == tf.float32
    np.testing.assert_allclose(centres[1], members.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variances[1], members.var(axis=0), rtol=1e-3)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("make", [tf.Variable, tf.constant])
def test_places_are_read_from_variables_and_tensors(make, jit_compile):
    values = np.random.default_rng(0).normal(size=[5, 4, 3]).astype(np.float32)
    table, at = make(values), tf.constant([[[4, 0], [0, 3]], [[2, 2], [2, 2]]])
    read = tf.function(lambda at: leaves.gather_places(table, at), jit_compile=jit_compile)
    np.testing.assert_array_equal(read(at), [values[[4, 0], [0, 3]], values[[2, 2], [2, 2]]])


def test_nearest_is_the_usable_leaf_with_the_smallest_distance():
    rng = np.random.default_rng(0)
    vectors, centres = rng.normal(size=[200, 4]), rng.normal(size=[30, 4])
    usable = rng.random(30) < 0.5
    distances = np.linalg.norm(vectors[:, None] - centres, axis=2)
    distances[:, ~usable] = np.inf
    found = leaves.nearest(
        tf.constant(vectors, tf.float32), tf.constant(centres, tf.float32), tf.constant(usable)
    )
    np.testing.assert_array_equal(found, distances.argmin(axis=1))


@given(data=st.data(), leaf_size=st.integers(1, 6), number=st.integers(1, 5))
def test_places_are_given_first_come_first_served(data, leaf_size, number):
    counts = data.draw(st.lists(st.integers(0, leaf_size), min_size=number, max_size=number))
    move = st.tuples(st.integers(0, number - 1), st.booleans())
    moves = data.draw(st.lists(move, min_size=1, max_size=30))
    targets, wanted = (list(each) for each in zip(*moves, strict=True))
    slots, accepted, after = leaves.places(
        tf.constant(targets), tf.constant(wanted), tf.constant(counts), leaf_size
    )
    full = list(counts)
    for move, (target, wants) in enumerate(moves):
        fits = wants and full[target] < leaf_size
        assert bool(accepted[move]) == fits
        assert int(slots[move]) == (full[target] if fits else 0)
        full[target] += fits
    assert after.numpy().tolist() == full


@given(
    st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=5),
)
def test_kept_slots_come_first_in_their_order(keep):
    order = leaves.keep_first(tf.constant(keep)).numpy()
    for row, kept in zip(order, keep, strict=True):
        dropped = [slot for slot in range(7) if not kept[slot]]
        assert row.tolist() == [slot for slot in range(7) if kept[slot]] + dropped


@pytest.mark.parametrize("jit_compile", [False, True])
def test_longest_first_orders_live_rows_along_the_principal_direction(jit_compile):
    rng = np.random.default_rng(0)
    counts = np.array([40, 25, 2, 1, 0])
    rows = rng.normal(size=[5, 40, 6]) * [4.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    rotation = np.linalg.qr(rng.normal(size=[6, 6]))[0]
    rows = (rows @ rotation + 3.0).astype(np.float32)
    order = tf.function(leaves.longest_first, jit_compile=jit_compile)(rows, tf.constant(counts))
    for leaf, count in enumerate(counts):
        found = order[leaf].numpy()
        assert sorted(found) == list(range(40)) and sorted(found[:count]) == list(range(count))
        if count < 3:
            continue
        members = rows[leaf, :count] - rows[leaf, :count].mean(axis=0)
        direction = np.linalg.svd(members.astype(np.float64))[2][0]
        ranks = np.argsort(np.argsort(members @ direction))[found[:count]]
        assert abs(np.corrcoef(ranks, np.arange(count))[0, 1]) > 0.98
        # Cut at the median, either half is tighter than the whole.
        halves = members[found[: count // 2]], members[found[count // 2 : count]]
        assert all(half.var(axis=0).sum() < 0.7 * members.var(axis=0).sum() for half in halves)


def test_longest_first_of_equal_rows_is_an_order():
    order = leaves.longest_first(tf.ones([2, 8, 3]), tf.constant([8, 5])).numpy()
    assert sorted(order[0]) == list(range(8)) and sorted(order[1][:5]) == list(range(5))
