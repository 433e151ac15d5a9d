import io

import numpy as np
import pytest
import tensorflow as tf

from tf_dynidx.cli.data import DataError
from tf_dynidx.cli.search import print_results, search
from tf_dynidx.serving import export_retrieval

TARGETS = ["hat", "Grüße", "shoe"]


def export(path, query_spec, encode_query, **changed):
    """An export of three targets: the embedding of a row is that axis."""
    arguments = {
        "encode_target": lambda target: tf.one_hot(target, 3),
        "target_spec": tf.TensorSpec([None], tf.int32),
        "embeddings": np.eye(3) * [1, 2, 3],
        "identifiers": TARGETS,
        "k": 3,
    }
    return export_retrieval(
        path, query_spec=query_spec, encode_query=encode_query, **{**arguments, **changed}
    )


def lengths(text):
    """Scores 1, 2, 3 times the number of bytes of the query."""
    size = tf.cast(tf.strings.length(text), tf.float32)[:, None]
    return tf.tile(size, [1, 3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "exported"
    return export(path, tf.TensorSpec([None], tf.string), lengths)


def refusal(*arguments):
    with pytest.raises(DataError) as caught:
        search(*arguments)
    return str(caught.value)


def test_each_query_gets_its_targets_best_first(folder):
    assert search(folder, ["ab", "abc"], k=2) == [
        [("shoe", 6.0), ("Grüße", 4.0)],
        [("shoe", 9.0), ("Grüße", 6.0)],
    ]


def test_no_queries_have_no_results(folder):
    assert search(folder, [], k=2) == []


def test_input_may_have_any_name(tmp_path):
    spec = {"title": tf.TensorSpec([None], tf.string)}
    path = export(tmp_path / "exported", spec, lambda features: lengths(features["title"]))
    assert search(path, ["a"], k=1) == [[("shoe", 3.0)]]


def test_integer_identifiers_are_written_as_text(tmp_path):
    spec = tf.TensorSpec([None], tf.string)
    path = export(tmp_path / "exported", spec, lengths, identifiers=[7, 8, 2**40])
    assert search(path, ["a"], k=1) == [[("1099511627776", 3.0)]]


def test_identifier_that_is_not_utf8_is_shown(tmp_path):
    spec = tf.TensorSpec([None], tf.string)
    path = export(tmp_path / "exported", spec, lengths, identifiers=[b"a", b"b", b"c\xff"])
    assert search(path, ["a"], k=1) == [[("c\ufffd", 3.0)]]


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_that_of_the_export_is_refused_with_the_largest(folder, k):
    message = refusal(folder, ["a"], k)
    assert f"returns 3 targets a query. Received: k={k}. Ask for 1 to 3" in message


def test_folder_that_is_missing_is_refused(tmp_path):
    message = refusal(tmp_path / "missing", ["a"])
    assert "there is no such folder. Received: " in message and "missing" in message


def test_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "this is not a folder. Received: " in refusal(tmp_path / "file", ["a"])


def test_folder_that_is_no_saved_model_is_refused(tmp_path):
    assert "not a SavedModel. Received: a folder without" in refusal(tmp_path, ["a"])


def test_damaged_saved_model_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\xff damaged")
    message = refusal(tmp_path, ["a"])
    assert "cannot be loaded. Received: " in message and message.endswith("Export it again.")


def test_saved_model_without_retrieve_is_refused_with_what_it_has(tmp_path):
    function = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec([None])])
    tf.saved_model.save(tf.Module(), str(tmp_path), signatures={"encode": function})
    assert "no signature retrieve. Received: encode." in refusal(tmp_path, ["a"])


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (tf.TensorSpec([None], tf.int32), "it wants query (int32 (None,))."),
        (tf.TensorSpec([None, 2], tf.string), "it wants query (string (None, 2))."),
        (
            {"user": tf.TensorSpec([None], tf.string), "age": tf.TensorSpec([None])},
            "it wants age (float32 (None,)), user (string (None,)).",
        ),
    ],
    ids=["numbers", "several texts a query", "several inputs"],
)
def test_export_that_is_not_asked_with_text_says_what_it_wants(tmp_path, spec, wanted):
    def encode_query(features):
        return tf.ones([tf.shape(tf.nest.flatten(features)[0])[0], 3])

    path = export(tmp_path / "exported", spec, encode_query)
    message = refusal(path, ["a"])
    assert wanted in message and "Received: text. Ask its signature" in message


def test_results_are_printed_in_columns():
    targets = [(f"target {rank}", 5.5 - rank) for rank in range(10)]
    file = io.StringIO()
    print_results(["red hat", "none"], [targets, []], file)
    lines = file.getvalue().splitlines()
    assert lines[0] == "red hat"
    assert lines[1] == "   1   5.5000  target 0"
    assert lines[10] == "  10  -3.5000  target 9"
    assert lines[11:] == ["none"]


def test_results_go_to_standard_output(capsys):
    print_results(["red hat"], [[("hat/red", 0.91)]])
    assert capsys.readouterr().out == "red hat\n  1  0.9100  hat/red\n"
