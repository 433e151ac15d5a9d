import numpy as np
import pytest
import tensorflow as tf

from tests.reference import clustered, gaussian, top_k, unit
from tf_dynidx.index import DynamicIndex
from tf_dynidx.index.fixed_tree import FixedTree

DIM, CAPACITY, K = 6, 900, 5

rng = np.random.default_rng(0)
ROWS = clustered(rng, 700, DIM)
IDS = rng.permutation(CAPACITY)[: len(ROWS)].astype(np.int32)
QUERIES = unit(ROWS[rng.integers(len(ROWS), size=20)] + 0.1 * gaussian(rng, 20, DIM))


def built(rows=ROWS, ids=IDS):
    index = DynamicIndex(DIM, CAPACITY)
    index.build(rows, rows=ids)
    return index


@pytest.fixture(name="index", scope="module")
def _index():
    return built()


@pytest.fixture(name="tree", scope="module")
def _tree(index):
    tree = FixedTree(DIM, CAPACITY)
    tree.take(index.tree)
    return tree


def expected(exclude=None, rows=ROWS, ids=IDS):
    """Scores and ids of the best K by enumeration."""
    scores = np.full([len(QUERIES), CAPACITY], -np.inf)
    scores[:, ids] = QUERIES @ rows.T
    if exclude is not None:
        np.put_along_axis(scores, exclude, -np.inf, axis=1)
    return top_k(scores, K)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_search_of_all_rows_is_enumeration(tree, jit_compile):
    search = tf.function(
        lambda queries, exclude: tree.top_k(queries, K, CAPACITY, exclude), jit_compile=jit_compile
    )
    best = expected()[1]
    for exclude in (best[:, :2].astype(np.int32), np.full([20, 1], -1, np.int32)):
        scores, rows = search(tf.constant(QUERIES), tf.constant(exclude))
        known = expected(exclude if exclude.max() >= 0 else None)
        np.testing.assert_allclose(scores, known[0], atol=1e-5)
        np.testing.assert_array_equal(rows, known[1])


def test_search_of_some_rows_finds_what_the_index_finds(index, tree):
    best = expected()[1]

    def recall(found):
        return np.mean([len(np.intersect1d(*each)) / K for each in zip(best, found, strict=True)])

    mine = recall(tree.top_k(QUERIES, K, 20)[1].numpy())
    assert recall(index.search(QUERIES, K, 20)[1].numpy()) - 0.1 <= mine < 1.0
    assert tree.rows_scored(K, 20) == 20


def test_rows_are_read_by_id(tree):
    np.testing.assert_array_equal(tree.read(tf.constant(IDS[:9])), ROWS[:9])
    held = np.isin(np.arange(-3, CAPACITY + 3), IDS)
    np.testing.assert_array_equal(tree.contains(tf.range(-3, CAPACITY + 3)), held)


def test_nothing_is_found_in_a_tree_without_rows_and_fewer_rows_leave_nothing_behind():
    tree = FixedTree(DIM, CAPACITY)
    scores, rows = tree.top_k(tf.constant(QUERIES), K, CAPACITY)
    assert np.isneginf(scores).all() and (rows.numpy() == -1).all()
    assert not tree.contains(tf.range(CAPACITY)).numpy().any()
    for number in (len(ROWS), 40):
        tree.take(built(ROWS[:number], IDS[:number]).tree)
        known = expected(None, ROWS[:number], IDS[:number])
        scores, rows = tree.top_k(tf.constant(QUERIES), K, CAPACITY)
        np.testing.assert_allclose(scores, known[0], atol=1e-5)
        np.testing.assert_array_equal(rows, known[1])
        held = np.isin(np.arange(CAPACITY), IDS[:number])
        np.testing.assert_array_equal(tree.contains(tf.range(CAPACITY)), held)


def test_scaled_rows_stand_for_their_multiples(index):
    tree = FixedTree(DIM, CAPACITY, tf.int8, scaled=True)
    slots = index.tree.num_slots
    stored = np.zeros(tree.rows.shape, np.int8)
    held = index.tree.ids.numpy() >= 0
    stored[held] = np.rint(127 * index.tree.rows.numpy()[held])
    scales = np.where(held, 1 / 127, 0.0).astype(np.float32)
    tree.take(index.tree, stored, scales)
    near = np.rint(127 * ROWS) / 127
    np.testing.assert_allclose(tree.read(tf.constant(IDS)), near, rtol=1e-6)
    scores, rows = tree.top_k(tf.constant(QUERIES), K, CAPACITY)
    np.testing.assert_allclose(scores, expected(None, near)[0], atol=1e-5)
    assert (rows.numpy() >= 0).all() and len(stored) > slots


def test_its_tables_are_read_whole_without_being_copied(tree):
    """What is written or read entry by entry is copied whenever it is read whole."""
    search = tf.function(lambda queries: tree.top_k(queries, K, 120)).get_concrete_function(
        tf.TensorSpec([None, DIM])
    )
    graph = search.graph
    bodies = [graph, *(each.graph for each in graph._functions.values() if hasattr(each, "graph"))]
    handles = {id(v.handle): v.name for v in (tree.rows, tree.ids.variable)}
    captured = {
        id(inner): handles[id(outer)] for outer, inner in graph.captures if id(outer) in handles
    }
    assert len(captured) == 2
    for body in bodies:
        for operation in body.get_operations():
            if operation.type == "ResourceGather":
                assert id(operation.inputs[0]) not in captured
