import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import gaussian, unit
from tf_dynidx.ops import grouping

BATCH, SLOTS, GROUPS = 8, 24, 4


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "xla"])
def compiled(request):
    """A function from `grouping`, with XLA and without; its integers are static."""
    made = {}

    def run(function, *arguments):
        if function not in made:
            made[function] = tf.function(function, jit_compile=request.param, autograph=False)
        return made[function](*arguments).numpy()

    return run


def kmeans(rows, groups, iterations):
    """Centres by Lloyd's iterations, from rows at equal distances in their order; in float64."""
    rows = rows.astype(np.float64)
    centres = rows[[(2 * i + 1) * len(rows) // (2 * groups) for i in range(groups)]]
    for _ in range(iterations):
        nearest = np.linalg.norm(rows[:, None] - centres, axis=2).argmin(axis=1)
        for group in np.unique(nearest):
            centres[group] = rows[nearest == group].mean(axis=0)
    return centres


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([SLOTS // GROUPS, 8]))
def test_every_live_row_gets_a_group_and_no_group_too_many(compiled, seed, size):
    rng = np.random.default_rng(seed)
    # Equal rows too, so that all want the same group.
    rows = rng.normal(size=[BATCH, SLOTS, 2]) * rng.choice([0.0, 1.0, 1e3], size=[BATCH, 1, 1])
    live = rng.random([BATCH, SLOTS]) < rng.choice([0.0, 0.1, 0.7, 1.0], size=[BATCH, 1])
    found = compiled(grouping.group, rows.astype(np.float32), live, GROUPS, size, 2)
    for mine, here in zip(found, live, strict=True):
        assert ((mine[here] >= 0) & (mine[here] < GROUPS)).all()
        assert np.bincount(mine[here], minlength=GROUPS).max() <= size


@pytest.mark.parametrize("iterations", [0, 3])
def test_every_row_is_in_its_nearest_group_where_there_is_room_everywhere(compiled, iterations):
    rng = np.random.default_rng(0)
    rows = gaussian(rng, BATCH * SLOTS, 2).reshape(BATCH, SLOTS, 2)
    live = rng.random([BATCH, SLOTS]) < 0.8
    found = compiled(grouping.group, rows, live, GROUPS, SLOTS, iterations)
    for mine, here, theirs in zip(found, live, rows, strict=True):
        theirs = theirs[here].astype(np.float64)
        centres = kmeans(theirs, GROUPS, iterations)
        nearest = np.linalg.norm(theirs[:, None] - centres, axis=2).argmin(axis=1)
        np.testing.assert_array_equal(mine[here], nearest)


def test_clusters_that_fit_are_found(compiled):
    """From one row in each cluster; a cluster is of a group's size."""
    rng = np.random.default_rng(0)
    label = np.tile(np.arange(GROUPS), SLOTS // GROUPS)[
        rng.permuted(np.tile(np.arange(SLOTS), [9, 1]), axis=1)
    ]
    starts = [(2 * i + 1) * SLOTS // (2 * GROUPS) for i in range(GROUPS)]
    label = np.stack([each for each in label if len(set(each[starts])) == GROUPS])
    assert len(label)
    rows = 10.0 * np.eye(GROUPS)[label] + rng.normal(size=[*label.shape, GROUPS])
    everyone = np.ones(label.shape, bool)
    found = compiled(grouping.group, rows.astype(np.float32), everyone, GROUPS, SLOTS // GROUPS, 3)
    np.testing.assert_array_equal(
        found[:, :, None] == found[:, None], label[:, :, None] == label[:, None]
    )


@pytest.mark.parametrize("norms", ["equal", "any"])
def test_closest_rows_win_where_a_group_is_full(compiled, norms):
    rows = gaussian(np.random.default_rng(1), BATCH * SLOTS, 2)
    rows = (unit(rows) if norms == "equal" else rows).reshape(BATCH, SLOTS, 2)
    everyone = np.ones([BATCH, SLOTS], bool)
    found = compiled(grouping.group, rows, everyone, GROUPS, SLOTS // GROUPS, 0)
    refused = 0
    for mine, theirs in zip(found, rows, strict=True):
        away = np.linalg.norm(theirs[:, None] - kmeans(theirs, GROUPS, 0), axis=2)
        nearest = away.argmin(axis=1)
        for group in range(GROUPS):
            out = away[(nearest == group) & (mine != group), group]
            within = away[(nearest == group) & (mine == group), group]
            refused += len(out)
            assert out.min(initial=np.inf) >= within.max(initial=0.0) - 1e-5
    assert refused > BATCH


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([SLOTS // GROUPS, 9]))
def test_rows_get_the_first_choice_that_has_room_and_the_nearest_rows_choose_first(
    compiled, seed, size
):
    rng = np.random.default_rng(seed)
    near = rng.permuted(np.tile(np.arange(SLOTS), [BATCH, 1]), axis=1).astype(np.float32)
    live = rng.random([BATCH, SLOTS]) < rng.choice([0.3, 1.0], size=[BATCH, 1])
    # Fewer choices than groups, and popular ones: some rows find none that has room.
    order = np.argsort(rng.random([BATCH, SLOTS, GROUPS]) + [0.0, 0.3, 0.6, 0.9], axis=2)
    choices = order[:, :, :2].astype(np.int32)
    found = compiled(grouping.assign, near, choices, live, GROUPS, size)
    for entry in range(BATCH):
        room, expected = [size] * GROUPS, {}
        first = [row for row in np.argsort(-near[entry]) if live[entry, row]]
        for number in range(2):
            for row in first:
                group = choices[entry, row, number]
                if row not in expected and room[group]:
                    expected[row] = group
                    room[group] -= 1
        assert {row: found[entry, row] for row in expected} == expected
        counts = np.bincount(found[entry, live[entry]], minlength=GROUPS)
        assert counts.max(initial=0) <= size and len(counts) == GROUPS


@given(seed=st.integers(0, 2**32 - 1))
def test_lay_out_has_every_row_once_in_the_slots_of_its_group(compiled, seed):
    rng = np.random.default_rng(seed)
    live = rng.random([BATCH, SLOTS]) < rng.choice([0.0, 0.5, 1.0], size=[BATCH, 1])
    size = 8
    target = rng.permuted(np.tile(np.arange(GROUPS * size) // size, [BATCH, 1]), axis=1)
    target = target[:, :SLOTS].astype(np.int32)
    laid = compiled(grouping.lay_out, target, live, GROUPS, size)
    assert laid.shape == (BATCH, GROUPS * size)
    for mine, groups, here in zip(laid, target, live, strict=True):
        mine = mine.reshape(GROUPS, size)
        for group, slots in enumerate(mine):
            # In their order, from the first slot on; behind them the number of slots.
            members = np.flatnonzero(here & (groups == group))
            assert slots.tolist() == [*members, *[SLOTS] * (size - len(members))]


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_principal_direction_is_the_first_singular_vector(compiled, scale):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=[8, 50, 6]) * [4.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    rows = rows @ np.linalg.qr(rng.normal(size=[8, 6, 6]))[0] + 3.0
    rows = (scale * rows).astype(np.float32)
    live = np.arange(50) < np.array([50, 40, 30, 20, 10, 5, 3, 2])[:, None]
    found = compiled(grouping.principal_direction, rows, live)
    for direction, theirs, here in zip(found, rows, live, strict=True):
        members = theirs[here].astype(np.float64)
        _, lengths, directions = np.linalg.svd(members - members.mean(axis=0))
        assert np.linalg.norm(direction) == pytest.approx(1.0, abs=1e-4)
        # What is left of the second direction shrinks by the ratio squared at each step.
        left = (lengths[1] / lengths[0]) ** 6
        assert abs(direction @ directions[0]) > 1.0 - left - 1e-3


def test_rows_without_a_direction_have_none(compiled):
    rows = np.ones([3, 10, 4], np.float32)
    live = np.arange(10) < np.array([8, 1, 0])[:, None]
    np.testing.assert_array_equal(compiled(grouping.principal_direction, rows, live), np.zeros([3, 4]))
