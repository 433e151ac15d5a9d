"""Every refusal of `DynamicIndex`: its message, and that nothing has changed."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import check_same_state, gaussian, state
from tf_dynidx.index import DynamicIndex

DIM, CAPACITY, SIZE = 3, 20, 10
ONES = np.ones([2, DIM], np.float32)


def with_value(value):
    vectors = ONES.copy()
    vectors[1, 2] = value
    return vectors


@pytest.fixture(scope="module")
def index():
    """Rows 0 to 9 of 20."""
    made = DynamicIndex(DIM, CAPACITY)
    made.build(gaussian(np.random.default_rng(0), SIZE, DIM))
    return made


@pytest.fixture(scope="module")
def empty():
    return DynamicIndex(DIM, CAPACITY)


def check_refused(index, call, message):
    before = state(index)
    with pytest.raises(ValueError, match=message) as caught:
        call(index)
    assert "Received: " in str(caught.value)
    check_same_state(index, before)


# Of the constructor


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dim": 0}, "dim must be a whole number.*Received: dim=0"),
        ({"dim": 2.0}, "dim must be a whole number.*Received: dim=2.0"),
        ({"dim": True}, "dim must be a whole number.*Received: dim=True"),
        ({"capacity": -5}, "capacity must be a whole number.*Received: capacity=-5"),
        ({"capacity": "9"}, "capacity must be a whole number.*Received: capacity='9'"),
        ({"capacity": 2**29 + 1}, "at most 2.*29. Received: capacity=536870913"),
        ({"flat": "no"}, "flat must be True or False. Received: flat='no'"),
        ({"dtype": "float64"}, "float32, float16 or bfloat16. Received: dtype='float64'"),
        ({"dtype": tf.int32}, "float32, float16 or bfloat16. Received: dtype=tf.int32"),
        ({"dtype": "fast"}, "float32, float16 or bfloat16. Received: dtype='fast'"),
    ],
)
def test_constructor_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicIndex(**{"dim": DIM, "capacity": CAPACITY, **arguments})


# Vectors, whoever takes them

TAKERS = {
    "update": lambda index, vectors: index.update([1, 2], vectors),
    "insert": lambda index, vectors: index.insert([11, 12], vectors),
    "sample": lambda index, vectors: index.sample(vectors, 2, 1.0),
    "search": lambda index, vectors: index.search(vectors, 2),
    "log_partition": lambda index, vectors: index.log_partition(vectors, 1.0),
}
BAD_VECTORS = {
    "vector": (np.ones(DIM, np.float32), r"shape \[rows, 3\]. Received: shape \(3,\)"),
    "rank 3": (np.ones([1, 2, DIM], np.float32), r"Received: shape \(1, 2, 3\)"),
    "dim": (np.ones([2, 4], np.float32), r"Received: shape \(2, 4\)"),
    "integers": (np.ones([2, DIM], np.int64), "floating point. Received: dtype int64"),
    "strings": (np.array([["a"] * DIM] * 2), "floating point. Received: dtype"),
    "no array": (None, "floating point. Received: dtype NoneType"),
    "NaN": (with_value(np.nan), "finite.*Received: NaN or infinity in row 1"),
    "infinity": (with_value(-np.inf), "finite.*Received: NaN or infinity in row 1"),
    "NaN in a tensor": (tf.constant(with_value(np.nan)), "Received: NaN or infinity in row 1"),
    "too large": (np.ones([2, DIM]) * 1e39, "finite in float32.*Received: .* in row 0"),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("case", BAD_VECTORS)
def test_vectors_are_refused(index, taker, case):
    vectors, message = BAD_VECTORS[case]
    check_refused(index, lambda index: TAKERS[taker](index, vectors), message)


@pytest.mark.parametrize("case", BAD_VECTORS)
def test_build_refuses_vectors(empty, case):
    vectors, message = BAD_VECTORS[case]
    check_refused(empty, lambda index: index.build(vectors), message)


def test_what_overflows_in_half_precision_is_refused():
    index = DynamicIndex(DIM, CAPACITY, dtype="float16")
    large = with_value(1e5)
    check_refused(index, lambda index: index.build(large), "float16.*Received: .* in row 1")
    index.build(ONES)
    check_refused(index, lambda index: index.update([0, 1], large), "float16.*Received: .* in row 1")
    check_refused(index, lambda index: index.insert([2, 3], large), "float16.*Received: .* in row 1")
    # A query is not stored, so it need not fit.
    assert np.isfinite(index.log_partition(large, 1e-5)[1]).all()


# Row ids, whoever takes them

ROW_TAKERS = {
    "update": lambda index, rows: index.update(rows, np.ones([len(rows), DIM])),
    "insert": lambda index, rows: index.insert(rows, np.ones([len(rows), DIM])),
    "remove": lambda index, rows: index.remove(rows),
}
BAD_ROWS = {
    "negative": ([3, -1], r"in 0\.\.19 \(the capacity is 20\).*Received: -1"),
    "beyond capacity": ([3, 20], r"in 0\.\.19.*Received: 20"),
    "far beyond": (np.array([3, 2**40]), "Received: 1099511627776"),
    "repeated": ([3, 5, 3, 5, 5], "repeat a row.*Received: row 5 3 times"),
    "floats": ([3.0], "integers. Received: .*float64"),
    "matrix": ([[3]], r"vector of integers. Received: shape \(1, 1\)"),
}


@pytest.mark.parametrize("taker", ROW_TAKERS)
@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_are_refused(index, taker, case):
    rows, message = BAD_ROWS[case]
    check_refused(index, lambda index: ROW_TAKERS[taker](index, rows), message)


@pytest.mark.parametrize("case", BAD_ROWS)
def test_build_refuses_rows(empty, case):
    rows, message = BAD_ROWS[case]
    check_refused(empty, lambda index: index.build(np.ones([len(rows), DIM]), rows), message)


# What fits no state or no other argument

REFUSED = {
    "second build": (
        lambda index: index.build(ONES),
        r"built already. Call reset\(\).*Received: 2 rows for an index of 10",
    ),
    "update of an absent row": (
        lambda index: index.update([3, 12], ONES),
        r"not in the index: use insert\(\).*nothing was changed. Received: row 12",
    ),
    "insert of a present row": (
        lambda index: index.insert([12, 3], ONES),
        r"already in the index: use update\(\).*nothing was changed. Received: row 3",
    ),
    "remove of an absent row": (
        lambda index: index.remove([3, 19]),
        "not in the index.*nothing was changed. Received: row 19",
    ),
    "update of other lengths": (
        lambda index: index.update([3], ONES),
        "must agree; nothing was changed. Received: 1 rows, 2 embeddings",
    ),
    "insert of other lengths": (
        lambda index: index.insert([13, 14, 15], ONES),
        "must agree; nothing was changed. Received: 3 rows, 2 embeddings",
    ),
    "more samples than rows": (
        lambda index: index.sample(ONES, 11, 1.0),
        "More samples than rows.*Received: num_samples=11, 10 rows",
    ),
    "no samples": (
        lambda index: index.sample(ONES, 0, 1.0),
        "num_samples must be a whole number.*Received: num_samples=0",
    ),
    "k beyond the rows": (lambda index: index.search(ONES, 11), "Received: k=11, 10 rows"),
    "k of zero": (lambda index: index.search(ONES, 0), "k must be.*Received: k=0"),
    "k of a half": (lambda index: index.search(ONES, 2.5), "k must be.*Received: k=2.5"),
    "no budget": (
        lambda index: index.search(ONES, 1, budget=0),
        "budget must be.*Received: budget=0",
    ),
    "half a budget": (
        lambda index: index.search(ONES, 1, budget=0.5),
        "budget must be.*Received: budget=0.5",
    ),
    "draws of no budget": (
        lambda index: index.sample(ONES, 1, 1.0, budget=0),
        "budget must be.*Received: budget=0",
    ),
    "budget of a cost": (
        lambda index: index.search_cost(1, budget=-1),
        "budget must be.*Received: budget=-1",
    ),
    "k of a cost": (lambda index: index.search_cost(0), "k must be.*Received: k=0"),
    "samples of a cost": (
        lambda index: index.sample_cost(0),
        "num_samples must be.*Received: num_samples=0",
    ),
    "unknown method": (
        lambda index: index.sample(ONES, 2, 1.0, method="fast"),
        "method must be one of importance, mh, top. Received: 'fast'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_call_is_refused(index, case):
    call, message = REFUSED[case]
    check_refused(index, call, message)


BAD_EXCLUDE = {
    "rank 1": ([1, 2], r"shape \(2,\), dtype int32 for 2 queries"),
    "rank 3": ([[[1]], [[2]]], r"shape \(2, 1, 1\), dtype int32 for 2 queries"),
    "other queries": ([[1, 2]], r"shape \(1, 2\), dtype int32 for 2 queries"),
    "floats": ([[1.0], [2.0]], r"shape \(2, 1\), dtype float32 for 2 queries"),
}


@pytest.mark.parametrize("case", BAD_EXCLUDE)
def test_exclude_is_refused(index, case):
    exclude, message = BAD_EXCLUDE[case]
    message = r"exclude must be integers of shape \[queries, excluded\].*Received: " + message
    check_refused(index, lambda index: index.sample(ONES, 2, 1.0, exclude), message)
    check_refused(index, lambda index: index.search(ONES, 2, exclude=exclude), message)


@pytest.mark.parametrize(
    "beta", [0, -1.0, np.nan, np.inf, 1e39, "1", None, tf.constant(0.0), tf.constant(np.nan)]
)
def test_beta_is_refused(index, beta):
    message = "beta must be positive and finite. Received: beta="
    check_refused(index, lambda index: index.log_partition(ONES, beta), message)
    # A refused call is none: it takes no random numbers away from the next.
    check_refused(index, lambda index: index.sample(ONES, 2, beta), message)


def test_empty_index_refuses_to_answer(empty):
    message = r"index is empty: call build\(\) first. Received: 0 rows"
    check_refused(empty, lambda index: index.sample(ONES, 1, 1.0), message)
    check_refused(empty, lambda index: index.search(ONES, 1, budget=5), message)
    check_refused(empty, lambda index: index.log_partition(ONES, 1.0), message)


def test_build_refuses_nothing_and_too_much(empty):
    check_refused(empty, lambda index: index.build(ONES[:0]), "at least one row. Received: 0")
    check_refused(
        empty,
        lambda index: index.build(np.ones([21, DIM])),
        "larger capacity. Received: 21 embeddings, capacity 20",
    )
    check_refused(
        empty,
        lambda index: index.build(ONES, [4]),
        "must agree. Received: 1 rows, 2 embeddings",
    )


def test_eager_method_in_a_function_says_what_to_call(index):
    @tf.function
    def traced(queries):
        return index.sample(queries, 2, 1.0)

    with pytest.raises(RuntimeError, match=r"call draw\(\).*Received: "):
        traced(tf.constant(ONES))
