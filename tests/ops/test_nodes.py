import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_dynidx.ops import nodes

SLACK = 1e-5  # of float32 sums, relative to the largest coordinate


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "xla"])
def compiled(request):
    """A function from `nodes`, with XLA and without."""
    made = {}

    def run(function, *arguments):
        if function not in made:
            made[function] = tf.function(function, jit_compile=request.param, autograph=False)
        return made[function](*arguments)

    return run


def measured(members, dim):
    """(centre, variance, radius, distances) of a node's rows, in float64; zeros for no rows."""
    if not len(members):
        return np.zeros(dim), np.zeros(dim), 0.0, np.zeros(1)
    members = members.astype(np.float64)
    centre = members.mean(axis=0)
    away = np.linalg.norm(members - centre, axis=1)
    return centre, members.var(axis=0), away.max(), away


def random_rows(seed, shape, offset):
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=shape) + offset).astype(np.float32)
    return rows, rng.random(shape[:-1]) < rng.choice([0.0, 0.2, 0.8, 1.0], size=[*shape[:-2], 1])


@given(seed=st.integers(0, 2**32 - 1), offset=st.sampled_from([0.0, 100.0]))
def test_statistics_are_those_of_the_live_rows(compiled, seed, offset):
    rows, live = random_rows(seed, [6, 9, 3], offset)
    slack = SLACK * (1.0 + np.abs(rows).max())
    level = compiled(nodes.statistics, rows, live)
    assert level.counts.dtype == level.representatives.dtype == tf.int32
    np.testing.assert_array_equal(level.counts, live.sum(axis=1))
    for node in range(6):
        members = rows[node, live[node]]
        centre, variance, radius, away = measured(members, 3)
        np.testing.assert_allclose(level.moments[node, :3], centre, atol=slack)
        np.testing.assert_allclose(level.moments[node, 3:], variance, rtol=1e-4, atol=slack)
        np.testing.assert_allclose(level.radii[node], radius, rtol=1e-4, atol=slack)
        representative = int(level.representatives[node])
        if len(members):
            assert live[node, representative]
            rank = np.flatnonzero(live[node]).tolist().index(representative)
            assert away[rank] <= away.min() + slack
        else:
            assert representative == 0 and not level.moments[node].numpy().any()


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_statistics_of_half_precision_rows_are_summed_in_float32(dtype):
    rng = np.random.default_rng(0)
    rows = tf.cast(1.0 + 0.01 * rng.normal(size=[2, 3000, 4]), dtype)
    level = nodes.statistics(rows, tf.sequence_mask([3000, 1500], 3000))
    members = tf.cast(rows, tf.float64).numpy()[1, :1500]
    assert level.moments.dtype == level.radii.dtype == tf.float32
    np.testing.assert_allclose(level.moments[1, :4], members.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(level.moments[1, 4:], members.var(axis=0), rtol=1e-3)


@given(seed=st.integers(0, 2**32 - 1), offset=st.sampled_from([0.0, 100.0]))
def test_combined_statistics_are_those_of_all_rows(compiled, seed, offset):
    rows, live = random_rows(seed, [3, 4, 6, 2], offset)
    children = nodes.statistics(rows.reshape(12, 6, 2), live.reshape(12, 6))
    counts, moments = compiled(
        nodes.combined, tf.reshape(children.counts, [3, 4]), tf.reshape(children.moments, [3, 4, 4])
    )
    slack = SLACK * (1.0 + np.abs(rows).max())
    np.testing.assert_array_equal(counts, live.sum(axis=(1, 2)))
    for node in range(3):
        centre, variance, _, _ = measured(rows[node][live[node]], 2)
        np.testing.assert_allclose(moments[node, :2], centre, atol=slack)
        np.testing.assert_allclose(moments[node, 2:], variance, rtol=1e-4, atol=slack)


@given(seed=st.integers(0, 2**32 - 1))
def test_reach_is_to_the_farthest_live_row_and_represented_by_the_nearest(compiled, seed):
    rows, live = random_rows(seed, [4, 7, 3], 0.0)
    centres = np.random.default_rng(seed).normal(size=[4, 3]).astype(np.float32)
    radii, representatives = compiled(nodes.reach, rows, live, centres)
    away = np.linalg.norm(rows.astype(np.float64) - centres[:, None], axis=2)
    farthest = np.where(live, away, 0.0).max(axis=1)
    np.testing.assert_allclose(radii, farthest, rtol=1e-5, atol=SLACK)
    some = live.any(axis=1)
    away = np.where(live, away, np.inf)[some]
    chosen = np.take_along_axis(away, representatives.numpy()[some, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, away.min(axis=1), rtol=1e-5)


@given(data=st.data(), size=st.sampled_from([1, 4]))
def test_places_are_given_first_come_first_served(compiled, data, size):
    counts = data.draw(st.lists(st.integers(0, size), min_size=4, max_size=4))
    move = st.tuples(st.integers(0, 3), st.booleans())
    moves = data.draw(st.lists(move, min_size=20, max_size=20))
    targets, wanted = (list(each) for each in zip(*moves, strict=True))
    slots, accepted, after = compiled(
        nodes.places, tf.constant(targets), tf.constant(wanted), tf.constant(counts), size
    )
    full = list(counts)
    for move, (target, wants) in enumerate(moves):
        fits = wants and full[target] < size
        assert bool(accepted[move]) == fits
        assert int(slots[move]) == (full[target] if fits else 0)
        full[target] += fits
    assert after.numpy().tolist() == full and max(full) <= size


@given(keep=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=3, max_size=3))
def test_kept_slots_come_first_in_their_order(compiled, keep):
    order = compiled(nodes.keep_first, tf.constant(keep)).numpy()
    for row, kept in zip(order, keep, strict=True):
        dropped = [slot for slot in range(7) if not kept[slot]]
        assert row.tolist() == [slot for slot in range(7) if kept[slot]] + dropped


@given(
    values=st.lists(
        st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 2.5]), min_size=5, max_size=5),
        min_size=3,
        max_size=3,
    )
)
def test_first_of_the_largest_is_that_of_numpy(compiled, values):
    found = compiled(nodes.first_of_largest, tf.constant(values))
    assert found.dtype == tf.int32
    np.testing.assert_array_equal(found, np.argmax(values, axis=-1))
