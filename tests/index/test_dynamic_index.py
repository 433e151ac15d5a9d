import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp

from tests.reference import (
    check_holds,
    check_invariants,
    clustered,
    exact_softmax,
    gaussian,
    held,
    index_as_new,
    log_partition,
    make_index,
    state,
    top_k,
    unit,
)
from tf_dynidx.index import DynamicIndex
from tf_dynidx.index.shapes import sample_shape, search_shape
from tf_dynidx.ops import frontier, masses

DIM, SIZE = 8, 2000
METHODS = ["importance", "mh", "top"]


@pytest.fixture(scope="module")
def rows():
    return clustered(np.random.default_rng(0), SIZE, DIM)


@pytest.fixture(scope="module", params=[2, 3])
def index(rows, request):
    """Of two levels and of three; not to be changed but by what leaves it as it was."""
    made = make_index(DIM, SIZE, levels=request.param)
    made.build(rows)
    return made


@pytest.fixture(scope="module")
def deep(rows):
    """Of three levels; not to be changed."""
    made = make_index(DIM, SIZE, levels=3)
    made.build(rows)
    return made


@pytest.fixture(scope="module")
def queries(rows):
    """Near a row each, as trained queries are."""
    rng = np.random.default_rng(1)
    return unit(rows[rng.integers(SIZE, size=20)] + 0.1 * gaussian(rng, 20, DIM))


# What it holds


def test_build_holds_every_row_once(index, rows):
    check_holds(index, dict(enumerate(rows)))
    check_invariants(index)
    landmarks = index.landmarks.numpy()
    assert len(set(landmarks)) == len(landmarks) == 16 * (DIM + 1)


def test_build_holds_rows_under_ids_of_the_callers_choice():
    rng = np.random.default_rng(0)
    ids, vectors = rng.permutation(200)[:70], gaussian(rng, 70, 3)
    index = index_as_new(3, 200)
    index.build(vectors, rows=ids)
    check_holds(index, dict(zip(ids.tolist(), vectors, strict=True)))
    check_invariants(index)
    assert set(index.landmarks.numpy()) <= {-1, *ids}
    _, found = index.search(vectors, 1)
    np.testing.assert_array_equal(found[:, 0], ids[np.argmax(vectors @ vectors.T, axis=1)])


OPERATIONS = ["update", "insert", "remove", "repair", "upkeep", "write", "correct", "reset"]
# Few sizes: each is compiled anew.
CHANGING = {
    "2 levels": (2, 700, "float32", [1, 650]),
    "2 levels, float16": (2, 700, "float16", [1, 650]),
    "3 levels": (3, 4200, "float32", [30, 3000]),
    "flat": ("flat", 700, "float32", [1, 650]),
}


@pytest.fixture(scope="module", params=CHANGING)
def changing(request):
    levels, capacity, dtype, sizes = CHANGING[request.param]
    return make_index(4, capacity, levels, dtype=dtype), sizes


def some_of(rng, ids):
    """None of them, a few, or any number."""
    ids = np.array(sorted(ids), np.int32)
    most = rng.choice([0, 16, len(ids)], p=[0.1, 0.4, 0.5])
    return rng.permutation(ids)[: rng.integers(min(most, len(ids)) + 1)]


def rounding(queries, rows, beta):
    """What float32 leaves open of a log partition: [queries, 1]."""
    longest = np.linalg.norm(queries, axis=1) * np.linalg.norm(rows, axis=1).max()
    return 1e-5 * (beta * longest + 1.0)[:, None]


def check_bounds(index, queries, beta):
    """Of the partition of all rows, and of the mass of every node of every level."""
    expected = held(index)
    rows = np.stack(list(expected.values()))
    slack = rounding(queries, rows, beta)
    lower, estimate, upper = (each.numpy() for each in index.log_partition(queries, beta))
    exact = log_partition(queries, rows, beta)
    assert (lower <= exact + slack[:, 0]).all() and (exact <= upper + slack[:, 0]).all()
    assert (lower <= estimate + slack[:, 0]).all() and (estimate <= upper + slack[:, 0]).all()
    tree = index.tree
    scores = beta * np.float64(queries) @ tree.rows.numpy().astype(np.float64).T
    scores[:, tree.ids.numpy() == -1] = -np.inf
    norms = np.linalg.norm(queries, axis=1, keepdims=True)
    for level in tree.levels:
        along, _ = masses.project(tf.constant(queries), level.moments)
        spread = tf.constant(beta * norms) * level.radii
        bounds = masses.log_mass_bounds(along, spread, level.counts, beta)
        lower, upper = (each.numpy() for each in bounds)
        mass = logsumexp(scores.reshape(len(queries), lower.shape[1], -1), axis=2)
        assert (lower <= mass + slack).all() and (mass <= upper + slack).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    start=st.integers(0, 1),
    operations=st.lists(st.sampled_from(OPERATIONS), max_size=8),
    spread=st.sampled_from([0.0, 0.1, 1.0, 100.0]),
    beta=st.sampled_from([0.01, 1.0, 30.0]),
)
@settings(max_examples=10)
def test_any_sequence_of_changes_leaves_what_a_dict_would_hold(
    changing, seed, start, operations, spread, beta
):
    """And bounds that hold. `write` and `correct` leave statistics behind, as they say."""
    (index, sizes), rng = changing, np.random.default_rng(seed)
    stored = index.tree.rows.dtype.as_numpy_dtype

    def vectors(number):
        one_point = rng.random() < 0.2
        drawn = gaussian(rng, 1 if one_point else number, 4)
        drawn = np.broadcast_to(spread * drawn + 1.0, [number, 4])
        return drawn.astype(stored).astype(np.float32)

    size = sizes[start]
    ids = rng.permutation(index.capacity)[:size]
    expected = dict(zip(ids.tolist(), vectors(size), strict=True))
    index.reset()
    check_invariants(index)
    assert index.size == 0
    index.build(np.array(list(expected.values())), ids)
    refreshed = True
    for operation in ["", *operations]:
        if operation in ("update", "write"):
            some = some_of(rng, expected)
            fresh = vectors(len(some))
            if operation == "update":
                index.update(some, fresh)  # refreshes the groups of these rows only
            else:
                strangers = np.array([-1, *set(range(index.capacity)) - expected.keys()], np.int32)
                index.write(
                    np.concatenate([some, strangers]),
                    np.concatenate([fresh, vectors(len(strangers))]),
                )
                refreshed &= len(some) == 0
            expected.update(zip(some.tolist(), fresh, strict=True))
        elif operation == "insert":
            some = some_of(rng, set(range(index.capacity)) - expected.keys())
            fresh = vectors(len(some))
            index.insert(some, fresh)
            expected.update(zip(some.tolist(), fresh, strict=True))
        elif operation == "remove":
            some = some_of(rng, expected)
            index.remove(some)
            for row in some.tolist():
                del expected[row]
        elif operation == "correct":
            landmarks = index.landmarks.numpy()
            fresh = vectors(len(landmarks))
            index.correct(fresh)
            found = held(index)
            moved = dict(zip(landmarks.tolist(), fresh, strict=True))
            for row in expected:
                expected[row] = moved.get(row, found[row])
                assert np.isfinite(found[row]).all()
            refreshed = False
        elif operation == "reset":
            index.reset()
            expected, refreshed = {}, True
        elif operation == "repair":
            assert index.repair() >= 0
            refreshed = True
        elif operation == "upkeep":
            index.upkeep()
            refreshed |= not index.flat  # which leaves nothing to it
        check_holds(index, expected)
        check_invariants(index, statistics=refreshed)
        if refreshed:
            index.check()
            if expected:
                check_bounds(index, gaussian(rng, 3, 4), beta)


def test_index_grows_from_one_row_and_shrinks_to_none_and_grows_again():
    rng = np.random.default_rng(0)
    vectors = clustered(rng, 500, 4)
    index = index_as_new(4, 500)
    index.build(vectors[:1])
    for start in (1, 10, 200):
        stop = {1: 10, 10: 200, 200: 500}[start]
        index.insert(np.arange(start, stop), vectors[start:stop])
        check_invariants(index)
    check_holds(index, dict(enumerate(vectors)))
    index.remove(rng.permutation(500)[:500])
    assert index.size == 0
    check_invariants(index)
    index.insert(np.arange(500)[::-1], vectors)
    check_holds(index, dict(zip(range(499, -1, -1), vectors, strict=True)))
    check_invariants(index)


def test_rows_inserted_all_at_one_point_find_room():
    index = index_as_new(4, 300)
    index.build(np.zeros([1, 4], np.float32))
    index.insert(np.arange(1, 300), np.ones([299, 4], np.float32))
    assert index.size == 300
    check_invariants(index)


def test_nothing_to_change_is_no_error(index):
    none, before = np.zeros(0, np.int32), held(index)
    index.update(none, np.zeros([0, DIM], np.float32))
    index.insert(none, np.zeros([0, DIM], np.float32))
    index.remove(none)
    check_holds(index, before)


def test_what_is_changed_is_sampled_and_found_as_it_is_now():
    rng = np.random.default_rng(0)
    index = index_as_new(4, 100)
    index.build(unit(gaussian(rng, 90, 4)))
    query = np.array([[1.0, 0.0, 0.0, 0.0]], np.float32)
    index.update([7], 5 * query)
    index.insert([95], 4 * query)
    scores, found = index.search(query, 2)
    assert found.numpy().tolist() == [[7, 95]] and scores.numpy().tolist() == [[5.0, 4.0]]
    assert (index.sample(query, 50, 20.0).ids.numpy() == 7).all()
    index.remove([7])
    assert index.search(query, 1)[1].numpy() == [[95]]
    assert (index.sample(query, 50, 20.0).ids.numpy() == 95).all()
    index.remove([95])
    assert not np.isin(index.search(query, 89)[1], [7, 95]).any()
    assert not np.isin(index.sample(query, 89, 0.1).ids, [7, 95]).any()


# Sampling


DRAWS = 250_000  # of each of four: a million


def drawer(index, method):
    """Draws for one query, 4096 at a time: counts of row ids.

    Without XLA, which `test_xla_draws_the_same` compares: what it compiles for tests runs slowly.
    """
    none = tf.fill([4096, 1], -1)

    @tf.function(autograph=False)
    def draw(query, beta, seed):
        return index.draw(tf.repeat(query, 4096, axis=0), beta, none, seed, 1, method).ids

    def count(query, beta, draws=DRAWS):
        counts = np.zeros(index.capacity)
        for seed in range(math.ceil(draws / 4096)):
            ids = draw(tf.constant(query), tf.constant(beta), tf.constant([7, seed])).numpy()
            counts += np.bincount(ids.ravel(), minlength=index.capacity)
        return counts

    return count


@pytest.fixture(scope="module", params=["2 levels", "3 levels"])
def drawers(request, rows, queries):
    """(index, shape, methods): few rows are read; of three levels some inner nodes stay closed."""
    index = make_index(DIM, SIZE, levels=int(request.param[0]))
    index.build(rows)
    budget = {"2 levels": 256, "3 levels": 128}[request.param]
    with pytest.MonkeyPatch.context() as patch:  # of what is traced in here
        patch.setattr("tf_dynidx.index.shapes._LEAST_BUDGET", budget)
        methods = {method: drawer(index, method) for method in ("importance", "mh")}
        for draw in methods.values():
            draw(queries[:1], 1.0, 1)
        return index, sample_shape(index.tree, 1), methods


def p_value(counts, probabilities):
    """That draws are from a distribution; rows expected less than five times are one bin."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    counts, expected = (np.append(each[~rare], each[rare].sum()) for each in (counts, expected))
    if expected[-1] < 5:
        assert counts[-1] < 25  # a Poisson variable of mean 5 comes to that once in 10^10
        counts, expected = counts[:-1], expected[:-1]
    return stats.chisquare(counts, expected * (counts.sum() / expected.sum())).pvalue


@pytest.mark.parametrize("method", ["importance", "mh"])
def test_draws_are_distributed_as_the_softmax(drawers, rows, queries, method):
    index, shape, draw = drawers
    # Each method at either temperature, and each depth.
    beta = 2.0 if (method == "mh") == (len(index.tree.widths) > 2) else 20.0
    query = queries[:1]
    front = frontier.open_nodes(index.tree.levels, query, beta, shape, shape.budget // 8)
    assert 0 < int(front.members[0]) < shape.budget < SIZE / 3  # proposals matter
    closed = [np.isfinite(each.log_masses).sum() for each in front.rest]
    assert len(closed) == len(index.tree.widths) - (shape.dense == 0)
    assert closed[-1] > 0 and (shape.dense == 0 or closed[-2] > 0)
    counts = draw[method](query, beta)
    assert p_value(counts, exact_softmax(query, rows, beta)[0]) > 1e-3
    # As many draws tell it from the softmax at a slightly other temperature.
    assert p_value(counts, exact_softmax(query, rows, 1.05 * beta)[0]) < 1e-3


def frequencies(index, query, beta, method, exclude=None):
    """How often each row is drawn in 16,000 sets of 4 draws for one query."""
    queries = np.tile(query, [2000, 1])
    exclude = None if exclude is None else np.tile(exclude, [2000, 1])
    counts = np.zeros(index.capacity)
    for _ in range(8):
        ids = index.sample(queries, 4, beta, exclude, method).ids.numpy()
        counts += np.bincount(ids.ravel(), minlength=index.capacity)
    return counts


def check_frequencies(counts, probabilities):
    """Draws of one query share proposals: chi-square, per degree of freedom, is about 1, not quite."""
    expected = probabilities * counts.sum()
    often = expected > 5
    assert often.sum() > 100
    assert ((counts - expected)[often] ** 2 / expected[often]).mean() < 1.25
    # Nor would any other distribution do.
    other, often = np.roll(expected, 1), np.roll(often, 1)
    assert ((counts - other)[often] ** 2 / other[often]).mean() > 5


@pytest.mark.parametrize("method", ["importance", "mh"])
def test_excluded_rows_are_never_drawn_and_the_others_by_the_softmax_over_them(rows, queries, method):
    index = index_as_new(DIM, SIZE)
    index.build(rows)
    likeliest = np.argsort(-queries[0] @ rows.T)[[0, 2, 5]]
    exclude = np.array([[*likeliest, -1, 1100, -1]])
    counts = frequencies(index, queries[:1], 5.0, method, exclude)
    assert (counts[exclude[exclude >= 0]] == 0).all()
    check_frequencies(counts, exact_softmax(queries[:1], rows, 5.0, exclude)[0])
    sample = index.sample(queries[:1], 4, 5.0, exclude, method)
    expected = log_partition(queries[:1], rows, 5.0, exclude)
    np.testing.assert_allclose(sample.log_partition, expected, atol=0.1)


@pytest.mark.parametrize("method", ["importance", "mh"])
def test_draws_stay_right_while_statistics_are_behind(rows, queries, method):
    index = index_as_new(DIM, SIZE)
    index.build(rows)
    moved = unit(rows + 0.1 * gaussian(np.random.default_rng(5), SIZE, DIM))
    index.write(tf.range(SIZE), moved)
    counts = frequencies(index, queries[:1], 5.0, method)
    check_frequencies(counts, exact_softmax(queries[:1], moved, 5.0)[0])


def test_draws_are_exact_where_every_leaf_is_opened():
    rng = np.random.default_rng(4)
    rows = gaussian(rng, 25, 3)
    index = index_as_new(3, 25)
    index.build(rows)
    ids = index.sample(np.tile(rows[:1], [20_000, 1]), 1, 1.0).ids.numpy()
    counts = np.bincount(ids.ravel(), minlength=25)
    assert p_value(counts, exact_softmax(rows[:1], rows, 1.0)[0]) > 1e-4
    estimate = index.sample(rows, 1, 1.0).log_partition
    np.testing.assert_allclose(estimate, log_partition(rows, rows, 1.0), atol=1e-4)


def test_top_draws_are_the_rows_of_highest_score(index, rows, queries):
    exclude = np.argsort(-queries @ rows.T)[:, [0, 3]]
    for excluded in (None, exclude):
        # So many draws that the search behind them covers all.
        sample = index.sample(queries, 300, 5.0, excluded, method="top")
        scores = queries @ rows.T
        if excluded is not None:
            np.put_along_axis(scores, excluded, -np.inf, axis=1)
        expected, _ = top_k(scores, 300)
        np.testing.assert_allclose(sample.scores, expected, atol=1e-5)
        found = np.take_along_axis(scores, sample.ids.numpy(), axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert all(len(set(each)) == 300 for each in sample.ids.numpy())
        np.testing.assert_allclose(
            sample.log_prob, 5.0 * expected - sample.log_partition.numpy()[:, None], atol=1e-4
        )
        error = sample.log_partition.numpy() - log_partition(queries, rows, 5.0)
        assert np.abs(error).mean() < 0.02


def test_top_draws_that_are_not_found_are_empty():
    rows = gaussian(np.random.default_rng(0), 40, 3)
    index = index_as_new(3, 40)
    index.build(rows)
    sample = index.sample(rows[:2], 6, 1.0, [np.arange(36), np.full(36, -1)], method="top")
    assert sorted(sample.ids[0].numpy()) == [-1, -1, 36, 37, 38, 39]
    np.testing.assert_array_equal(sample.log_prob[0, 4:], [-np.inf] * 2)
    assert np.isfinite(sample.log_prob[0, :4]).all() and np.isfinite(sample.log_prob[1]).all()


@pytest.mark.parametrize("method", METHODS)
def test_query_with_every_row_excluded_draws_none(method):
    rows = gaussian(np.random.default_rng(0), 40, 3)
    index = index_as_new(3, 40)
    index.build(rows)
    exclude = np.array([np.arange(40), np.full(40, -1)])
    sample = index.sample(rows[:2], 5, 1.0, exclude, method)
    assert (sample.ids[0].numpy() == -1).all() and (sample.ids[1].numpy() >= 0).all()
    assert (sample.log_prob[0].numpy() == -np.inf).all()
    assert np.isfinite(sample.log_prob[1]).all()


@pytest.mark.parametrize("beta", [1.0, 20.0])
@pytest.mark.parametrize("method", METHODS)
def test_scores_and_log_prob_are_those_of_the_drawn_rows(index, rows, queries, method, beta):
    sample = index.sample(queries, 32, beta, method=method)
    assert sample.ids.dtype == tf.int32 and sample.ids.shape == (20, 32)
    scores = np.einsum("qd,qsd->qs", queries, rows[sample.ids.numpy()])
    np.testing.assert_allclose(sample.scores, scores, atol=1e-5)
    partition = sample.log_partition.numpy()
    np.testing.assert_allclose(sample.log_prob, beta * scores - partition[:, None], atol=1e-4)
    # And hence close to the log of the softmax itself.
    error = partition - log_partition(queries, rows, beta)
    assert np.abs(error).mean() < 0.03 and np.abs(error).max() < 0.15


def test_the_more_rows_are_read_the_nearer_draws_come_to_the_softmax(index, rows, queries):
    """By what they take for the partition; with room for all rows twice they are read one by one."""
    exact, off = log_partition(queries, rows, 2.0), []
    for budget in (None, 800, 2 * SIZE):
        found = [index.sample(queries, 1, 2.0, budget=budget).log_partition for _ in range(10)]
        off.append(np.abs(np.array(found) - exact).mean())
    assert off[0] > 1.3 * off[1] > 0.0 and off[2] < 1e-4
    # Fewer than there are in any case change nothing.
    few, default = (index.sample(queries, 4, 2.0, seed=[1, 2], budget=each) for each in (1, None))
    np.testing.assert_array_equal(few.ids, default.ids)
    assert index.sample_cost(4, budget=600) > index.sample_cost(4) == index.sample_cost(4, budget=1)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_gives_the_same_draws(index, queries, method):
    one, two = (index.sample(queries, 16, 2.0, method=method, seed=[5, 6]) for _ in range(2))
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first, second)
    other = index.sample(queries, 16, 2.0, method=method, seed=[5, 7])
    assert ((other.ids.numpy() != one.ids.numpy()).mean() > 0.5) == (method != "top")


def test_every_call_draws_anew_and_two_runs_of_one_seed_draw_alike(rows, queries):
    def run(seed):
        index = DynamicIndex(DIM, SIZE, seed=seed)
        index.build(rows)
        index.update([3], rows[:1])
        return [index.sample(queries, 16, 2.0).ids.numpy() for _ in range(3)]

    first, again, other = run(1), run(1), run(2)
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert (one != three).mean() > 0.5
    assert (first[0] != first[1]).mean() > 0.5 and (first[1] != first[2]).mean() > 0.5


@pytest.mark.parametrize("method", ["importance", "mh"])
def test_queries_of_one_batch_draw_independently(index, queries, method):
    ids = index.sample(np.tile(queries[:1], [200, 1]), 8, 2.0, method=method).ids.numpy()
    assert len({tuple(row) for row in ids.tolist()}) == 200


@pytest.mark.parametrize("method", METHODS)
def test_xla_draws_the_same(deep, queries, method):
    index = deep
    arguments = (
        tf.constant(queries),
        tf.constant(3.0),
        tf.constant([[4, -1]] * 20),
        tf.constant([8, 9]),
    )
    plain = tf.function(index.draw, autograph=False)(*arguments, 32, method)
    compiled = tf.function(index.draw, jit_compile=True, autograph=False)(*arguments, 32, method)
    # Sums rounded otherwise may swap two leaves of equal mass, or move one proposal to the next row,
    # and with it the draws of a query and a little of its estimate.
    assert (plain.ids.numpy() == compiled.ids.numpy()).all(axis=1).mean() >= 0.8
    difference = np.abs(plain.log_partition - compiled.log_partition)
    assert (difference < 1e-4).mean() >= 0.8
    assert difference.max() < 0.1
    checked = index.sample(queries, 32, 3.0, exclude=[[4, -1]] * 20, method=method, seed=[8, 9])
    np.testing.assert_array_equal(checked.ids, plain.ids)


def test_calls_of_one_shape_are_traced_once(rows, queries):
    index = DynamicIndex(DIM, SIZE)
    index.build(rows[:1200])

    def traces():
        return {
            name: value.experimental_get_tracing_count()
            for name, value in vars(index).items()
            if hasattr(value, "experimental_get_tracing_count")
        }

    def ask(number, beta):
        for method in METHODS:
            index.sample(queries[:number], 4, beta, method=method)
        index.sample(queries[:number], 4, tf.constant(beta), exclude=[[3]] * number, seed=[1, 2])
        index.log_partition(queries[:number], beta)
        index.search(queries[:number], 5)
        index.search(queries[:number], 5, exclude=[[3]] * number)

    def change(number, first=1200):
        some = np.arange(first, first + number)
        index.insert(some, rows[some])
        index.update(some - 1200, rows[some])
        index.repair()
        index.remove(some)
        index.repair()

    for number in (5, 400):
        change(number)
    ask(2, 2.0)
    ask(3, 1.0)  # another batch size is traced once more, for any
    before = traces()
    assert len(before) >= 6 and before["_sample"] > 0 and before["_insert_block"] > 0
    for number in (2, 7, 20):
        ask(number, 0.5 * number)
    for number, first in [(1, 1300), (16, 1201), (17, 1250), (700, 1210), (30, 1200)]:
        change(number, first)
    assert traces() == before
    index.check()


# Search


def check_search(index, rows, queries, k, exclude=None, **budget):
    """Against all scores; near ties may come in another order."""
    scores, found = index.search(queries, k, exclude=exclude, **budget)
    exact = queries @ rows.T
    if exclude is not None:
        for query, excluded in enumerate(np.asarray(exclude)):
            exact[query, excluded[excluded >= 0]] = -np.inf
    expected, order = top_k(exact, k)
    assert scores.shape == found.shape == (len(queries), k)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, found.numpy(), 1), expected, atol=1e-5)
    assert (found.numpy() == order).mean() > 0.99


@pytest.mark.parametrize("budget", [SIZE, SIZE + 1, 10**6])
@pytest.mark.parametrize("k", [1, 10, SIZE])
def test_search_with_a_budget_of_all_rows_is_exact(index, rows, queries, k, budget):
    check_search(index, rows, queries, k, budget=budget)


def test_search_leaves_out_what_is_excluded(index, rows, queries):
    best = np.argsort(-queries @ rows.T)
    exclude = np.concatenate([best[:, [0, 1, 4]], np.full([20, 1], -1)], axis=1)
    check_search(index, rows, queries, 10, exclude, budget=SIZE)
    _, found = index.search(queries, 10, exclude=exclude)
    assert not (found.numpy()[:, :, None] == exclude[:, None, :3]).any()


def recall(found, queries, rows, k=10):
    _, order = top_k(queries @ rows.T, k)
    shared = [len(set(a) & set(b)) for a, b in zip(np.asarray(found), order, strict=True)]
    return np.mean(shared) / k


def test_search_scores_are_exact_at_any_budget_and_more_find_more(index, rows, queries):
    recalls = []
    for budget in (12, 40, None):
        scores, found = index.search(queries, 10, budget)
        there = found.numpy() >= 0
        reached = np.einsum("qd,qkd->qk", queries, rows[found.numpy()])
        np.testing.assert_allclose(scores, np.where(there, reached, -np.inf), atol=1e-5)
        assert (scores[:, 1:] <= scores[:, :-1]).numpy().all()
        assert there[:, 0].all() and (there.all() or budget == 12)
        assert all(len(set(each[each >= 0])) == (each >= 0).sum() for each in found.numpy())
        recalls.append(recall(found, queries, rows))
    assert recalls[0] < recalls[1] < recalls[2] and recalls[2] > 0.97


def test_search_reads_enough_for_any_k(index):
    query = np.ones([1, DIM], np.float32)
    for k in (SIZE // 2, SIZE):
        _, found = index.search(query, k)
        assert len(set(found.numpy()[0])) == k and found.numpy().min() >= 0


def test_search_for_more_than_its_budget_holds_is_filled_up(index, rows, queries):
    scores, found = index.search(queries[:1], 100, budget=50)
    number = int((found.numpy() >= 0).sum())
    assert 0 < number <= 50
    np.testing.assert_array_equal(found[0, number:], [-1] * (100 - number))
    np.testing.assert_array_equal(scores[0, number:], [-np.inf] * (100 - number))
    np.testing.assert_allclose(scores[0, :number], rows[found[0, :number]] @ queries[0], atol=1e-5)


@pytest.mark.parametrize("levels", [2, 3])
def test_of_rows_of_equal_score_search_finds_the_lower_ids(levels):
    rng = np.random.default_rng(0)
    rows = rng.integers(-1, 2, size=[900, 3]).astype(np.float32)  # 27 points, 33 times each
    index = index_as_new(3, 900, levels)
    index.build(rows)
    queries = rng.integers(1, 4, size=[10, 3]).astype(np.float32)
    for k in (1, 20, 100, 900):
        scores, found = index.search(queries, k, budget=900)
        expected, order = top_k(queries @ rows.T, k)
        np.testing.assert_array_equal(scores, expected)
        np.testing.assert_array_equal(found, order)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_search_kernel_is_compiled_as_it_is(index, rows, queries, jit_compile):
    shape, none = search_shape(index.tree, 10, 300), tf.fill([20, 1], -1)
    kernel = tf.function(lambda q: index._top_k(q, 10, shape, none), jit_compile=jit_compile)
    for got, expected in zip(kernel(queries), index.search(queries, 10, 300), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


# Partition


@pytest.mark.parametrize("beta", [0.1, 5.0, 50.0, 1000.0])
def test_partition_lies_within_its_bounds_and_near_its_estimate(index, rows, queries, beta):
    check_bounds(index, queries, beta)
    _, estimate, _ = index.log_partition(queries, beta)
    error = estimate.numpy() - log_partition(queries, rows, beta)
    assert np.abs(error).mean() < 0.02 + 1e-5 * beta


# Rows of half precision


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rows_answer_as_what_is_stored(rows, queries, dtype):
    index = index_as_new(DIM, SIZE, dtype=dtype)
    index.build(rows)
    stored = tf.cast(tf.cast(rows, dtype), tf.float32).numpy()
    check_holds(index, dict(enumerate(stored)))
    check_invariants(index)
    index.check()
    check_search(index, stored, queries, 10, budget=SIZE)
    check_bounds(index, queries, 20.0)
    _, estimate, _ = index.log_partition(queries, 20.0)
    assert np.abs(estimate - log_partition(queries, stored, 20.0)).mean() < 0.05
    sample = index.sample(queries, 16, 20.0)
    drawn = np.einsum("qd,qsd->qs", queries, stored[sample.ids.numpy()])
    np.testing.assert_allclose(sample.scores, drawn, atol=1e-5)
    assert index.tree.rows.dtype == dtype and sample.scores.dtype == tf.float32


# Saving


def test_restored_index_goes_on_as_the_saved_one(tmp_path, rows, queries):
    index = index_as_new(DIM, SIZE)
    index.build(rows[:1000])
    index.insert([1100], rows[1100:1101])
    index.sample(queries, 4, 2.0)
    index.upkeep()
    path = tf.train.Checkpoint(index=index).save(str(tmp_path / "index"))
    restored = index_as_new(DIM, SIZE, copy="restored")
    tf.train.Checkpoint(index=restored).restore(path).assert_consumed()
    check_invariants(restored)
    check_holds(restored, held(index))

    def go_on(index):
        drawn = index.sample(queries, 16, 2.0).ids.numpy()
        index.correct(0.5 * index.tree.read(tf.maximum(index.landmarks, 0)))
        index.upkeep()
        return [drawn, index.sample(queries, 16, 2.0).ids.numpy(), *state(index)]

    for first, second in zip(go_on(index), go_on(restored), strict=True):
        np.testing.assert_array_equal(first, second)


# Following an encoder that moves


def moved_by_a_map(rng, rows):
    moved = rows @ (np.eye(DIM) + 0.3 * gaussian(rng, DIM, DIM))
    return (moved + 0.3).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_follow_landmarks_that_moved_by_a_linear_map(rows, dtype):
    rng = np.random.default_rng(0)
    before = rows * rng.uniform(0.5, 2.0, [SIZE, 1]).astype(np.float32)
    index = index_as_new(DIM, SIZE, dtype=dtype)
    index.build(before)
    after = moved_by_a_map(rng, before)
    landmarks = index.landmarks.numpy()
    index.correct(after[landmarks])
    found = index.tree.read(tf.range(SIZE)).numpy()
    others = np.setdiff1d(np.arange(SIZE), landmarks)
    error = np.linalg.norm(found[others] - after[others])
    assert error < 0.01 * np.linalg.norm(before[others] - after[others])
    rounding = {"float32": 1e-6, "float16": 1e-3}[dtype]
    np.testing.assert_allclose(found[landmarks], after[landmarks], rtol=rounding, atol=rounding)
    index.upkeep()
    check_invariants(index)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_stay_where_landmarks_did_not_move(rows, dtype):
    index = index_as_new(DIM, SIZE, dtype=dtype)
    index.build(2 * rows)  # off the unit sphere, to which predictions are brought back
    before = held(index)
    for _ in range(20):
        index.correct(index.tree.read(index.landmarks))
    for row, vector in held(index).items():
        np.testing.assert_array_equal(vector, before[row])


def test_removed_landmarks_do_not_count_and_stay_removed(rows):
    rng = np.random.default_rng(0)
    index = index_as_new(DIM, SIZE)
    index.build(2 * rows)
    landmarks = index.landmarks.numpy()
    gone = landmarks[:30]
    index.remove(gone)
    after = moved_by_a_map(rng, 2 * rows)
    fresh = after[landmarks]
    fresh[:30] = 1e6
    index.correct(fresh)
    found = held(index)
    assert found.keys() == set(range(SIZE)) - set(gone.tolist())
    for row, vector in found.items():
        np.testing.assert_allclose(vector, after[row], atol=0.05)


def test_what_an_emptied_slot_held_never_comes_back():
    rng = np.random.default_rng(0)
    rows = gaussian(rng, 200, 4)
    index = index_as_new(4, 200)
    index.build(rows)
    landmarks = index.landmarks.numpy()
    far = np.setdiff1d(np.arange(200), landmarks)[:50]
    index.update(far, 1e8 * rows[far])
    index.remove(far)
    kept = np.setdiff1d(np.arange(200), far)
    for _ in range(35):  # far rows, had they stayed, would be beyond float32 by now
        index.correct(10 * rows[landmarks])
        index.write(kept, rows[kept])
    index.upkeep()
    check_holds(index, {int(row): rows[row] for row in kept})
    check_invariants(index)
    assert np.isfinite(index.sample(rows[:4], 10, 1.0).log_prob).all()


def test_step_of_training_compiled_by_xla_does_the_same(rows):
    """Write-back, correction and upkeep, as a training step calls them."""
    rng = np.random.default_rng(0)
    results = []
    written, fresh = tf.range(0, SIZE, 3), moved_by_a_map(rng, rows)
    for jit_compile in (False, True):
        index = index_as_new(DIM, SIZE)
        index.build(rows)

        @tf.function(jit_compile=jit_compile, autograph=False)
        def step(written, vectors, landmarks, index=index):
            index.write(written, vectors)
            index.correct(landmarks)
            index.upkeep()
            return index.next_seed()

        landmarks = index.landmarks.numpy()
        seeds = [step(written, fresh[::3], fresh[landmarks]).numpy().tolist() for _ in range(3)]
        check_invariants(index)
        results.append((seeds, held(index)))
    (seeds, plain), (compiled_seeds, compiled) = results
    assert seeds == compiled_seeds and len({tuple(seed) for seed in seeds}) == 3
    assert plain.keys() == compiled.keys()
    for row, vector in plain.items():
        np.testing.assert_allclose(compiled[row], vector, atol=1e-3)
