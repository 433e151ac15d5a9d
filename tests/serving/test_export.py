import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_dynidx.files import OutputError
from tf_dynidx.serving import export_retrieval

keras = tf.keras  # Keras 3, or Keras 2 under TF_USE_LEGACY_KERAS=1

COLOURS = ["red", "green", "blue"]
TARGETS = [f"{colour} {thing}" for colour in COLOURS for thing in ("hat", "shoe", "coat", "scarf")]
PRICES = np.linspace(1, 2, len(TARGETS), dtype=np.float32)
QUERIES = ["red", "Blue", "purple"]
DIM = 4
K = 5


def text_tower():
    """A functional model from strings [batch], with its vocabulary in a lookup table."""
    words = keras.Input([], dtype="string")
    ids = keras.layers.StringLookup(vocabulary=COLOURS)(words)
    return keras.Model(words, keras.layers.Embedding(len(COLOURS) + 1, DIM)(ids))


def dict_tower():
    """A functional model from a dict with a string [batch] and a float [batch, 1]."""
    title, price = keras.Input([], dtype="string", name="title"), keras.Input([1], name="price")
    ids = keras.layers.StringLookup(vocabulary=TARGETS)(title)
    parts = [keras.layers.Embedding(len(TARGETS) + 1, DIM)(ids), keras.layers.Dense(DIM)(price)]
    output = keras.layers.Dense(DIM)(keras.layers.Concatenate()(parts))
    return keras.Model({"title": title, "price": price}, output)


def target_features():
    return {"title": tf.constant(TARGETS), "price": tf.constant(PRICES[:, None])}


@pytest.fixture(scope="module")
def towers():
    keras.utils.set_random_seed(0)
    return text_tower(), dict_tower()


@pytest.fixture(scope="module")
def arguments(towers):
    """Those of an export that succeeds, without the path."""
    query_tower, target_tower = towers

    def encode_target(features):
        return target_tower(features, training=False)

    return {
        # String operations inside of the callable, beside those inside of the tower.
        "encode_query": lambda text: query_tower(tf.strings.lower(text), training=False),
        "query_spec": tf.TensorSpec([None], tf.string),
        "encode_target": encode_target,
        "target_spec": {
            "title": tf.TensorSpec([None], tf.string),
            "price": tf.TensorSpec([None, 1], tf.float32),
        },
        "embeddings": encode_target(target_features()),
        "identifiers": TARGETS,
        "k": K,
        "trackables": towers,
    }


@pytest.fixture(scope="module")
def exported(arguments, tmp_path_factory):
    return export_retrieval(tmp_path_factory.mktemp("export") / "exported", **arguments)


def reference(arguments, queries, k=K):
    """Scores [queries, k] and rows [queries, k] of the best targets, in NumPy."""
    encoded = np.asarray(arguments["encode_query"](tf.constant(queries)))
    scores = encoded @ np.asarray(arguments["embeddings"]).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


# What is exported


def test_process_without_this_package_gets_the_answers_of_numpy(exported, arguments, tmp_path):
    script = """
import json, sys
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
result = loaded.signatures["retrieve"](query=tf.constant(json.loads(sys.argv[2])))
assert not any(name.split(".")[0] == "tf_dynidx" for name in sys.modules)
json.dump({
    "scores": result["scores"].numpy().tolist(),
    "identifiers": [[i.decode() for i in row] for row in result["identifiers"].numpy().tolist()],
}, open(sys.argv[3], "w"))
"""
    command = [sys.executable, "-c", script, exported, json.dumps(QUERIES), tmp_path / "result"]
    subprocess.run(command, check=True, cwd=tmp_path)
    result = json.loads((tmp_path / "result").read_text())
    scores, rows = reference(arguments, QUERIES)
    assert result["identifiers"] == np.array(TARGETS)[rows].tolist()
    np.testing.assert_allclose(result["scores"], scores, rtol=1e-5)


def test_serving_default_is_retrieve_for_any_batch_size(exported, arguments):
    signatures = tf.saved_model.load(exported).signatures
    for queries in (QUERIES, QUERIES[:1], np.array([], str)):
        scores, rows = reference(arguments, queries)
        for name in ("retrieve", "serving_default"):
            result = signatures[name](query=tf.constant(queries, tf.string))
            assert result.keys() == {"scores", "identifiers"}
            np.testing.assert_allclose(result["scores"], scores, rtol=1e-5)
            np.testing.assert_array_equal(
                result["identifiers"], np.array(TARGETS, "S")[rows].astype(object)
            )


def test_encoders_encode_as_the_callables_do(exported, arguments):
    signatures = tf.saved_model.load(exported).signatures
    encoded = signatures["encode_query"](query=tf.constant(QUERIES))
    assert encoded.keys() == {"embedding"}
    expected = arguments["encode_query"](tf.constant(QUERIES))
    np.testing.assert_allclose(encoded["embedding"], expected, rtol=1e-5)
    encoded = signatures["encode_target"](**target_features())
    np.testing.assert_allclose(encoded["embedding"], arguments["embeddings"], rtol=1e-5)


def test_signatures_say_names_types_and_shapes(exported):
    signatures = tf.saved_model.load(exported).signatures
    assert set(signatures) == {
        "retrieve",
        "retrieve_with",
        "similar",
        "serving_default",
        "encode_query",
        "encode_target",
    }
    for name in ("retrieve", "serving_default"):
        (spec,) = signatures[name].structured_input_signature[1].values()
        assert (spec.name, spec.dtype, spec.shape.as_list()) == ("query", tf.string, [None])
        outputs = signatures[name].structured_outputs
        assert outputs["scores"].shape.as_list() == [None, K]
        assert outputs["scores"].dtype == tf.float32
        assert outputs["identifiers"].shape.as_list() == [None, K]
        assert outputs["identifiers"].dtype == tf.string
    assert signatures["encode_target"].structured_input_signature[1].keys() == {"title", "price"}
    for name in ("encode_query", "encode_target"):
        assert signatures[name].structured_outputs["embedding"].shape.as_list() == [None, DIM]


@pytest.mark.parametrize(
    "identifiers",
    [range(2**40, 2**40 + len(TARGETS)), np.arange(len(TARGETS), dtype=np.uint8)],
    ids=["above int32", "uint8"],
)
def test_integer_identifiers_are_int64(arguments, tmp_path, identifiers):
    identifiers = np.asarray(identifiers)
    path = export_retrieval(tmp_path / "exported", **{**arguments, "identifiers": identifiers})
    result = tf.saved_model.load(path).signatures["retrieve"](query=tf.constant(QUERIES))
    assert result["identifiers"].dtype == tf.int64
    np.testing.assert_array_equal(result["identifiers"], identifiers[reference(arguments, QUERIES)[1]])


def test_of_equal_scores_the_earlier_target_comes_first(arguments, tmp_path):
    changed = {**arguments, "embeddings": np.ones([len(TARGETS), DIM])}
    path = export_retrieval(tmp_path / "exported", **changed)
    result = tf.saved_model.load(path).signatures["retrieve"](query=tf.constant(["red"]))
    assert [i.decode() for i in result["identifiers"].numpy()[0]] == TARGETS[:K]


def test_plain_tensorflow_module_is_a_tower(arguments, tmp_path):
    class Scale(tf.Module):
        def __init__(self):
            super().__init__()
            self.weights = tf.Variable(np.eye(DIM, dtype=np.float32) * 2)

        def __call__(self, features):
            return features @ self.weights

    scale = Scale()
    changed = {
        **arguments,
        "encode_query": scale,
        "query_spec": tf.TensorSpec([None, DIM]),
        "embeddings": np.eye(DIM),
        "identifiers": list(range(DIM)),
        "k": 1,
    }
    path = export_retrieval(tmp_path / "exported", **changed)
    scale.weights.assign(tf.zeros([DIM, DIM]))  # what is trained later is not served
    result = tf.saved_model.load(path).signatures["retrieve"](query=tf.eye(DIM))
    np.testing.assert_array_equal(result["identifiers"], np.arange(DIM)[:, None])
    np.testing.assert_array_equal(result["scores"], np.full([DIM, 1], 2))


# What the folder holds


def test_graph_calls_no_python(exported):
    saved = Path(exported, "saved_model.pb").read_bytes()
    assert b"ResourceGather" in saved  # operations are named in clear
    assert b"PyFunc" not in saved


def test_targets_beyond_one_block_are_searched_and_are_no_constants(arguments, exported, tmp_path):
    copies = 6000
    changed = {
        **arguments,
        "embeddings": np.tile(arguments["embeddings"], [copies, 1]),
        "identifiers": range(copies * len(TARGETS)),
    }
    larger = export_retrieval(tmp_path / "exported", **changed)
    result = tf.saved_model.load(larger).signatures["retrieve"](query=tf.constant(QUERIES))
    np.testing.assert_allclose(result["scores"], reference(changed, QUERIES)[0], rtol=1e-5)
    sizes = [Path(path, "saved_model.pb").stat().st_size for path in (exported, larger)]
    # The graph grows by the loops over blocks, not by targets: their encodings alone are 1.2 MB.
    assert sizes[1] - sizes[0] < 100_000


def test_neither_optimizer_nor_metrics_are_saved(arguments, towers, tmp_path):
    tower = text_tower()
    tower.compile("adam", "mse", metrics=["mae"])
    tower.fit(tf.constant(COLOURS), np.zeros([3, DIM]), verbose=0)
    changed = {
        **arguments,
        "encode_query": lambda text: tower(text, training=False),
        "trackables": [tower, towers[1]],
    }
    path = export_retrieval(tmp_path / "exported", **changed)
    shapes = [
        tuple(shape)
        for name, shape in tf.train.list_variables(f"{path}/variables/variables")
        if name.endswith("VARIABLE_VALUE")
    ]
    weights = [tuple(w.shape) for tower in (tower, towers[1]) for w in tower.weights]
    own = [(len(TARGETS), DIM), *3 * [(len(TARGETS),)]]  # encodings; identifiers and how to find them
    assert sorted(shapes) == sorted([*own, *weights])


def test_vocabulary_file_goes_along_and_no_path_of_this_machine(arguments, towers, tmp_path):
    vocabulary = tmp_path / "colours.txt"
    vocabulary.write_text("\n".join(COLOURS) + "\n")
    lookup = keras.layers.StringLookup(vocabulary=str(vocabulary))
    changed = {
        **arguments,
        "encode_query": lambda text: tf.one_hot(lookup(text), DIM),
        "trackables": [lookup, *towers],
    }
    exported = export_retrieval(tmp_path / "exported", **changed)
    vocabulary.unlink()
    encode = tf.saved_model.load(exported).signatures["encode_query"]
    np.testing.assert_array_equal(
        encode(query=tf.constant(["blue", "mauve"]))["embedding"], np.eye(DIM)[[3, 0]]
    )
    places = [tmp_path, Path(__file__).parents[2], sys.prefix, Path(tf.__file__).parent]
    files = [path for path in Path(exported).rglob("*") if path.is_file()]
    assert {"saved_model.pb", "variables.index", "colours.txt"} <= {file.name for file in files}
    for file in files:
        saved = file.read_bytes()
        assert not [place for place in places if str(place).encode() in saved]


# Where it is written


def test_path_comes_back_and_folders_above_it_are_made(arguments, tmp_path):
    path = tmp_path / "models" / "1"
    assert export_retrieval(path, **arguments) == str(path)
    assert contents(path.parent) == ["1"]


def test_existing_export_is_replaced_only_if_asked_for(arguments, tmp_path):
    path = export_retrieval(tmp_path / "exported", **{**arguments, "k": 1})
    with pytest.raises(OutputError, match="not empty. Received: "):
        export_retrieval(path, **arguments)

    def width():
        retrieve = tf.saved_model.load(path).signatures["retrieve"]
        return retrieve.structured_outputs["scores"].shape[1]

    assert width() == 1
    export_retrieval(path, **arguments, replace=True)
    assert width() == K
    assert contents(tmp_path) == ["exported"]


def test_failed_export_leaves_nothing(arguments, tmp_path, monkeypatch):
    def full(module, folder, **kwargs):
        Path(folder, "saved_model.pb").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export_retrieval(tmp_path / "exported", **arguments)
    assert contents(tmp_path) == []


# What is refused


def with_row(arguments, row, value):
    embeddings = np.array(arguments["embeddings"])
    embeddings[row] = value
    return embeddings


REFUSALS = {
    "rank": (
        lambda a: {"embeddings": np.ones(12)},
        r"\[targets, dim\].*Received: shape \[12\]",
    ),
    "empty": (
        lambda a: {"embeddings": np.ones([0, DIM]), "identifiers": []},
        r"at least one target. Received: shape \[0, 4\]",
    ),
    "nan": (
        lambda a: {"embeddings": with_row(a, 3, np.nan)},
        r"finite. Received: row 3 is \[nan nan nan nan\]",
    ),
    "infinity": (
        lambda a: {"embeddings": with_row(a, 4, [0, 0, 0, -np.inf])},
        r"finite. Received: row 4 is \[.*-inf\]",
    ),
    "count": (
        lambda a: {"identifiers": TARGETS[:-1]},
        r"each of the 12 embeddings. Received: identifiers of shape \[11\]",
    ),
    "nested": (
        lambda a: {"identifiers": [[target] for target in TARGETS]},
        r"each of the 12 embeddings. Received: identifiers of shape \[12, 1\]",
    ),
    "duplicate": (
        lambda a: {"identifiers": [*TARGETS[:-1], TARGETS[2]]},
        r"do not repeat. Received: b'red coat' in rows 2 and 11",
    ),
    "mixed": (
        lambda a: {"identifiers": [1, *TARGETS[1:]]},
        r"all strings or all integers. Received: .*mixed types.*",
    ),
    "float": (
        lambda a: {"identifiers": PRICES},
        r"strings, or integers that fit int64. Received: float32",
    ),
    "unsigned": (
        lambda a: {"identifiers": np.arange(12, dtype=np.uint64)},
        r"strings, or integers that fit int64. Received: uint64",
    ),
    "k of 0": (lambda a: {"k": 0}, r"from 1 to .* Received: k=0 with 12 targets"),
    "large k": (lambda a: {"k": 13}, r"from 1 to .* Received: k=13 with 12 targets"),
    "fractional k": (lambda a: {"k": 1.5}, r"an integer .* Received: k=1.5 with 12 targets"),
    "no spec": (
        lambda a: {"query_spec": "text"},
        r"features of encode_query .* axis of None. Received: text for 'query'",
    ),
    "scalar spec": (
        lambda a: {"query_spec": tf.TensorSpec([], tf.string)},
        r"features of encode_query .* axis of None. Received: TensorSpec\(shape=\(\).*'query'",
    ),
    "fixed batch": (
        lambda a: {"target_spec": {**a["target_spec"], "price": tf.TensorSpec([8, 1])}},
        r"features of encode_target .* axis of None. Received: TensorSpec.* for 'price'",
    ),
    "no features": (
        lambda a: {"target_spec": {}},
        r"encode_target has at least one feature. Received: {}",
    ),
    "feature name": (
        lambda a: {"target_spec": {"the price": tf.TensorSpec([None])}},
        r"encode_target .* ASCII letters, digits and underscores.* Received: 'the price'",
    ),
    "reserved name": (
        lambda a: {
            "query_spec": {"exclude": tf.TensorSpec([None], tf.string)},
            "encode_query": lambda features: tf.ones([tf.size(features["exclude"]), DIM]),
        },
        r"k and exclude are inputs of .* Received: a feature 'exclude' of encode_query.*",
    ),
    "dim": (
        lambda a: {"encode_query": lambda text: tf.ones([tf.size(text), 3])},
        r"encode_query returns float32 \[batch, 4\].* Received: float32 \(None, 3\)",
    ),
    "half precision": (
        lambda a: {"encode_query": lambda text: tf.ones([tf.size(text), DIM], tf.float16)},
        r"encode_query returns float32 \[batch, 4\].* Received: float16 \(None, 4\)",
    ),
    "one batch size": (
        lambda a: {"encode_query": lambda text: tf.ones([2, DIM])},
        r"encode_query returns .* for any batch size. Received: float32 \(2, 4\)",
    ),
    "untracked table": (
        lambda a: {"trackables": []},
        r"use 2 lookup tables that no trackable holds. Add .* Received: \[\]",
    ),
    "no trackable": (
        lambda a: {"trackables": ["tower"]},
        r"trackables are Keras models, layers or modules. Received: 'tower'",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_with_what_was_received(case, arguments, tmp_path):
    change, message = REFUSALS[case]
    with pytest.raises(ValueError, match=rf"^.*{message}\.?$"):
        export_retrieval(tmp_path / "models" / "1", **{**arguments, **change(arguments)})
    assert contents(tmp_path) == []
