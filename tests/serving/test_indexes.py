import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.small import DIM, embeddings, exact, export, signatures
from tf_dynidx.ops import parts
from tf_dynidx.ops.search import ROWS_AT_A_TIME
from tf_dynidx.serving import indexes
from tf_dynidx.serving.indexes import ExactIndex, TreeIndex, stored_table
from tf_dynidx.serving.table import ROW_DTYPES, joined, packed, taken, unpacked

N, K = 400, 7
TARGETS = embeddings(N)
QUERIES = embeddings(30, seed=1)


def card(path):
    return json.loads(Path(path, "assets.extra", "model_card.json").read_text())


@pytest.mark.parametrize(
    ("kind", "row_dtype"), [*(("exact", each) for each in ROW_DTYPES), ("tree", "int8")]
)
def test_index_answers_for_the_rows_that_it_keeps(kind, row_dtype):
    table = packed(TARGETS, row_dtype)
    index = ExactIndex(table, K) if kind == "exact" else TreeIndex(table, K, budget=N)
    scores, rows = index.top_k(tf.constant(QUERIES))
    expected, _ = exact(QUERIES, unpacked(table), K)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    # Rows that may be equal in few bits come in some order: those found have the scores said.
    kept = unpacked(table)[rows.numpy()]
    np.testing.assert_allclose(np.einsum("qkd,qd->qk", kept, QUERIES), scores, rtol=1e-5)
    np.testing.assert_array_equal(index.read([3, 0]), unpacked(table)[[3, 0]])
    for mine, held in zip(table, stored_table(index), strict=True):
        np.testing.assert_array_equal(mine, held)


@pytest.mark.parametrize(
    ("kind", "exclude"), [("exact", None), ("exact", [[3, 5]] * 30), ("tree", [[3, 5]] * 30)]
)
def test_a_batch_is_answered_in_parts_as_in_one(kind, exclude, monkeypatch):
    table = packed(TARGETS, "float32")
    exclude = None if exclude is None else tf.constant(exclude)
    index = ExactIndex(table, K) if kind == "exact" else TreeIndex(table, K, 200)
    whole = index.top_k(tf.constant(QUERIES), exclude)
    monkeypatch.setattr(indexes, "_FLOATS", 8 * N)
    monkeypatch.setattr(parts, "_FLOATS_AT_A_TIME", 8 * ROWS_AT_A_TIME * DIM)
    some = index.top_k(tf.constant(QUERIES), exclude)
    np.testing.assert_allclose(some[0], whole[0], rtol=1e-5)
    np.testing.assert_array_equal(some[1], whole[1])


def test_int8_is_off_by_half_a_step_of_its_row_at_most():
    table = packed(TARGETS, "int8")
    assert table.rows.dtype == np.int8
    largest = np.abs(TARGETS).max(axis=1, keepdims=True)
    assert (np.abs(unpacked(table) - TARGETS) <= 1.001 * largest / 254).all()
    again = packed(unpacked(table), "int8")
    np.testing.assert_array_equal(again.rows, table.rows)
    zero = packed(np.zeros([2, 3], np.float32), "int8")
    np.testing.assert_array_equal(unpacked(zero), np.zeros([2, 3]))


def test_tables_are_taken_apart_and_joined_row_by_row():
    table = packed(TARGETS, "int8")
    both = joined(taken(table, np.arange(0, 5)), taken(table, np.array([9, -1])))
    expected = np.concatenate([unpacked(table)[[0, 1, 2, 3, 4, 9]], np.zeros([1, DIM])])
    np.testing.assert_array_equal(unpacked(both), expected)


def test_rows_too_large_for_float16_are_refused():
    with pytest.raises(ValueError, match="at most 65504 in float16.* Received: row 1 has 70000.0"):
        packed(np.array([[1.0], [70000.0]], np.float32), "float16")


def test_the_card_says_the_recall_that_is_found(tmp_path):
    targets, queries = embeddings(2500), embeddings(200, seed=1)
    options = {"index": "tree", "budget": 200, "sample_queries": queries, "row_dtype": "float16"}
    path = export(tmp_path / "exported", targets, identifiers=range(2500), **options)
    found = signatures(path)["retrieve"](query=queries)["identifiers"].numpy()
    _, rows = exact(queries, targets, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, rows, strict=True)])
    said = card(path)["expected_recall"]
    assert said == {"k": 10, "recall": said["recall"], "queries": 200, "measured_on": "sample queries"}
    assert said["recall"] == pytest.approx(recall, abs=1e-3)
    assert 0.3 < recall < 0.99  # so that there is something to be measured
    assert card(path)["index"] == {
        "kind": "tree",
        "row_dtype": "float16",
        "budget": 200,
        "rows_scored": 200,
    }


def test_without_sample_queries_targets_stand_in_for_them(tmp_path):
    said = card(export(tmp_path / "exported", TARGETS))["expected_recall"]
    assert said["measured_on"] == "targets in the place of queries"
    assert said["recall"] == 1.0 and said["queries"] == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": "flat"}, "index must be one of exact, tree. Received: index='flat'"),
        ({"row_dtype": "int4"}, "row_dtype must be one of float32, .* Received: row_dtype='int4'"),
        ({"budget": 0}, "budget must be a whole number of at least 1. Received: budget=0"),
        ({"sample_queries": [["text"]]}, "sample_queries are features as .* Received: "),
        ({"sample_queries": np.ones([0, DIM], np.float32)}, "of one query or more. Received: "),
    ],
)
def test_options_that_are_none_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "exported", TARGETS, **change)
    assert not list(tmp_path.iterdir())
