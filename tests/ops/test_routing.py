import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_dynidx.ops import routing
from tf_dynidx.ops.nodes import Level

DIM, FANOUT, SIZE = 3, 4, 6  # SIZE: rows that fit a node of level 1
TOPS = {2: 9, 3: 3}  # nodes of the topmost level, by number of levels


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "xla"])
def nearest_nodes(request):
    """`routing.nearest_nodes` on (counts, centres) of each level from 1 on, with XLA and without."""

    @tf.function(jit_compile=request.param, autograph=False)
    def run(counts, centres, vectors, level, width):
        levels = [None]
        for count, centre in zip(counts, centres, strict=True):
            moments = tf.concat([centre, tf.fill(tf.shape(centre), 0.5)], axis=1)
            levels.append(Level(count, moments, None, None))
        return routing.nearest_nodes(levels, vectors, level, width, FANOUT, SIZE)

    return lambda *arguments: run(*arguments).numpy()


def random_levels(rng, number):
    """(counts, centres): of each level from 1 on, scratch last; many nodes are full, or empty."""
    size = FANOUT ** (number - 2) * (TOPS[number] + 1)
    count = rng.choice([0, 1, 3, SIZE - 1, SIZE], size=size)
    # Whole runs of full and of empty ones, so that there are such nodes above them.
    run = rng.choice([-1, 0, SIZE], p=[0.6, 0.2, 0.2], size=TOPS[number] + 1).repeat(
        FANOUT ** (number - 2)
    )
    count = np.where(run < 0, count, run)
    count[-(FANOUT ** (number - 2)) :] = 0
    counts, centres = [count], [rng.normal(size=[size, DIM]) * (count > 0)[:, None]]
    while len(counts) < number - 1:
        below = counts[-1].reshape(-1, FANOUT)
        total = below.sum(axis=1)
        weighed = below[:, :, None] * centres[-1].reshape(-1, FANOUT, DIM)
        counts.append(total)
        centres.append(weighed.sum(axis=1) / np.maximum(total, 1)[:, None])
    return [each.astype(np.int32) for each in counts], [each.astype(np.float32) for each in centres]


def ranked(vector, nodes, counts, centres, room):
    """Nodes, nearest first; then those without rows, and last those without room, in any order."""
    away = np.linalg.norm(centres[nodes].astype(np.float64) - vector, axis=1)
    kind = np.where(counts[nodes] >= room, 2, np.where(counts[nodes] == 0, 1, 0))
    return nodes[np.lexsort([away * (kind == 0), kind])]


def check(found, vector, nodes, counts, centres, room):
    """Asserts that found nodes are the first of the ranked ones, up to the order of equals."""
    expected = ranked(vector, nodes, counts, centres, room)[: len(found)]
    usual = (counts[expected] > 0) & (counts[expected] < room)
    np.testing.assert_array_equal(found[usual], expected[usual])
    np.testing.assert_array_equal(counts[found[~usual]] == 0, counts[expected[~usual]] == 0)
    assert np.isin(found, nodes).all() and len(set(found)) == len(found)


@pytest.mark.parametrize("number", [2, 3])
@given(seed=st.integers(0, 2**32 - 1))
def test_nodes_are_those_of_a_search_of_all_where_width_covers_everything(nearest_nodes, number, seed):
    rng = np.random.default_rng(seed)
    counts, centres = random_levels(rng, number)
    vectors = rng.normal(size=[5, DIM]).astype(np.float32)
    for level in range(1, number):
        nodes = np.arange(TOPS[number] * FANOUT ** (number - 1 - level))
        found = nearest_nodes(counts, centres, vectors, level, 50)
        assert found.shape == (5, len(nodes))
        room = SIZE * FANOUT ** (level - 1)
        for vector, mine in zip(vectors, found, strict=True):
            check(mine, vector, nodes, counts[level - 1], centres[level - 1], room)


@pytest.mark.parametrize("width", [1, 2])
@given(seed=st.integers(0, 2**32 - 1))
def test_narrow_search_looks_below_the_nearest_nodes_above(nearest_nodes, width, seed):
    rng = np.random.default_rng(seed)
    counts, centres = random_levels(rng, 3)
    vectors = rng.normal(size=[5, DIM]).astype(np.float32)
    above = nearest_nodes(counts, centres, vectors, 2, width)
    found = nearest_nodes(counts, centres, vectors, 1, width)
    assert above.shape == found.shape == (5, width)
    for vector, tops, mine in zip(vectors, above, found, strict=True):
        check(tops, vector, np.arange(TOPS[3]), counts[1], centres[1], SIZE * FANOUT)
        children = (tops[:, None] * FANOUT + np.arange(FANOUT)).ravel()
        check(mine, vector, children, counts[0], centres[0], SIZE)


@pytest.mark.parametrize("number", [2, 3])
@given(seed=st.integers(0, 2**32 - 1), width=st.sampled_from([1, 3, 50]))
def test_node_without_room_never_comes_before_one_with_room(nearest_nodes, number, seed, width):
    rng = np.random.default_rng(seed)
    counts, centres = random_levels(rng, number)
    vectors = rng.normal(size=[5, DIM]).astype(np.float32)
    found = counts[0][nearest_nodes(counts, centres, vectors, 1, width)]
    assert (np.diff((found >= SIZE).astype(int), axis=1) >= 0).all()
    # With room, those without rows come last.
    assert (np.diff(np.where(found >= SIZE, 2, found == 0).astype(int), axis=1) >= 0).all()
    if (counts[0][: -(FANOUT ** (number - 2))] < SIZE).any():
        assert (found[:, 0] < SIZE).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([511, 512, 600, 1000]),
    number=st.integers(1, 2),
)
def test_largest_of_many_are_those_of_top_k_and_of_equals_the_first(seed, length, number):
    rng = np.random.default_rng(seed)
    # Few different values, so that many are equal; some rows have next to none that are finite.
    values = rng.integers(0, 30, size=[4, length]).astype(np.float32)
    values[2, rng.integers(length, size=length - 3)] = -np.inf
    values[3] = -np.inf
    found = routing.places_of_largest(tf.constant(values), number).numpy()
    np.testing.assert_array_equal(found, np.argsort(-values, axis=1, kind="stable")[:, :number])
