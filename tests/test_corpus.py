import numpy as np
import pytest
import tensorflow as tf

from tf_dynidx import TargetCorpus

NAMES = ["tea", "coffee", "Grüße", ""]


def test_array_of_features_is_gathered_by_row():
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    corpus = TargetCorpus(features)
    assert len(corpus) == corpus.size == 4
    np.testing.assert_array_equal(corpus.gather([2, 0, 2]), features[[2, 0, 2]])


def test_dict_of_features_keeps_its_structure_and_types():
    corpus = TargetCorpus(
        {"price": [3.0, 5.0], "title": tf.constant(["a", "b"]), "tokens": np.array([[1], [2]], np.int8)}
    )
    gathered = corpus.gather(tf.constant([1]))
    assert gathered.keys() == {"price", "title", "tokens"}
    assert gathered["title"].numpy().tolist() == [b"b"]
    assert gathered["tokens"].dtype == tf.int8
    assert gathered["tokens"].shape == [1, 1]
    np.testing.assert_array_equal(gathered["price"], [5.0])


def test_integers_are_where_an_accelerator_can_read_them(monkeypatch):
    """TensorFlow keeps int32 in the memory of the host; whoever asks is given int32 all the same."""
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    tokens = np.array([[1, 2], [3, 2**31 - 1]], np.int32)
    corpus = TargetCorpus({"tokens": tokens, "price": [1.0, 2.0]})
    gather = tf.function(corpus.gather)
    gathered = gather(tf.constant([1]))
    assert gathered["tokens"].dtype == tf.int32
    np.testing.assert_array_equal(gathered["tokens"], tokens[1:])
    np.testing.assert_array_equal(gathered["price"], [2.0])
    captured = gather.get_concrete_function(tf.TensorSpec([1], tf.int32)).captured_inputs
    assert [tensor.dtype for tensor in captured if tensor.dtype == tf.int32] == []


def test_features_are_no_constants_of_a_graph():
    corpus = TargetCorpus(np.zeros([1000, 100], np.float32))
    function = tf.function(corpus.gather, input_signature=[tf.TensorSpec([None], tf.int32)])
    graph = function.get_concrete_function().graph.as_graph_def()
    assert graph.ByteSize() < 10_000


@pytest.mark.parametrize(
    "identifiers",
    [NAMES, np.array(NAMES), tf.constant(NAMES), np.array([name.encode() for name in NAMES], object)],
    ids=["list", "array", "tensor", "bytes"],
)
def test_string_identifiers_are_looked_up(identifiers):
    corpus = TargetCorpus(np.zeros([4, 1]), identifiers)
    assert corpus.identifiers.tolist() == NAMES
    rows = corpus.rows_of([["", "tea"], ["Grüße", "unknown"]])
    assert rows.dtype == tf.int32
    np.testing.assert_array_equal(rows, [[3, 0], [2, -1]])


def test_integer_identifiers_are_looked_up_whatever_their_width():
    corpus = TargetCorpus(np.zeros([3, 1]), identifiers=[2**40, 7, -5])
    np.testing.assert_array_equal(corpus.rows_of([-5, 2**40, 0]), [2, 0, -1])
    np.testing.assert_array_equal(corpus.rows_of(np.array([7], np.uint8)), [1])


def test_identifiers_are_the_rows_by_default():
    corpus = TargetCorpus(np.zeros([3, 1]))
    np.testing.assert_array_equal(corpus.rows_of([2, 0, 3]), [2, 0, -1])


def test_identifiers_become_rows_in_a_data_pipeline():
    corpus = TargetCorpus(np.zeros([4, 1]), NAMES)  # its table is first made inside the pipeline
    dataset = tf.data.Dataset.from_tensor_slices((np.arange(3), ["coffee", "nothing", "tea"]))
    dataset = dataset.batch(2).map(lambda x, y: (x, corpus.rows_of(y)))
    assert [rows.numpy().tolist() for _, rows in dataset] == [[1, -1], [0]]


def test_identifiers_become_rows_in_functions_one_after_the_other():
    corpus = TargetCorpus(np.zeros([4, 1]), NAMES)
    for _ in range(2):
        rows = tf.function(lambda names: corpus.rows_of(names))(tf.constant(["coffee"]))
        np.testing.assert_array_equal(rows, [1])
    np.testing.assert_array_equal(corpus.rows_of("coffee"), 1)


# What is refused

REFUSALS = {
    "scalar": (3.0, None, r"leading axis of targets.*Received: shapes \[\(\)\]"),
    "scalar in a dict": ({"a": [1], "b": 2}, None, r"Received: shapes \[\(1,\), \(\)\]"),
    "no features": ({}, None, r"leading axis of targets.*Received: shapes \[\]"),
    "uneven": (
        {"a": [1, 2], "b": [1]},
        None,
        r"same number of targets.*Received: shapes \[\(2,\), \(1,\)\]",
    ),
    "empty": (np.zeros([0, 3]), None, "at least one target. Received: 0 targets"),
    "too few": ([1, 2], ["a"], r"each of the 2 targets. Received: identifiers of shape \(1,\)"),
    "nested": ([1, 2], [["a"], ["b"]], r"each of the 2 targets. Received: .* shape \(2, 1\)"),
    "repeated": ([1, 2, 3], ["a", "b", "a"], "distinct. Received: .*'a'.* 2 times"),
    "repeated integer": ([1, 2, 3], [7, 7, 7], "distinct. Received: .*7.* 3 times"),
    "floats": ([1, 2], [0.5, 1.5], "strings or integers. Received: dtype float64"),
    "bool": ([1, 2], [True, False], "strings or integers. Received: dtype bool"),
    "none": ([1, 2], ["a", None], "strings or integers. Received: None"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_with_what_was_received(case):
    features, identifiers, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        TargetCorpus(features, identifiers)


@pytest.mark.parametrize(
    "identifiers, asked, message",
    [
        (NAMES, [1], "are strings: look up the same. Received: dtype int32"),
        (None, ["1"], "are integers: look up the same. Received: dtype string"),
        (None, [1.0], "are integers: look up the same. Received: dtype float32"),
    ],
)
def test_look_up_of_another_type_is_refused(identifiers, asked, message):
    with pytest.raises(ValueError, match=message):
        TargetCorpus(np.zeros([4, 1]), identifiers).rows_of(asked)
