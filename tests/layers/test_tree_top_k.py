import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import clustered, gaussian, top_k, unit
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.layers import TreeTopK
from tf_dynidx.metrics import CorpusRecall

DIM, SIZE, K = 6, 600, 5

rng = np.random.default_rng(0)
CANDIDATES = clustered(rng, SIZE, DIM)
QUERIES = unit(CANDIDATES[rng.integers(SIZE, size=20)] + 0.1 * gaussian(rng, 20, DIM))
NAMES = np.array([f"kandidát {row}" for row in range(SIZE)])
NUMBERS = 10_000_000_000 + 3 * np.arange(SIZE)
IDENTIFIERS = {"rows": None, "integers": NUMBERS, "strings": NAMES}


def make(identifiers=None, candidates=CANDIDATES, **changes):
    """A layer whose search is exact."""
    return TreeTopK(**{"k": K, "budget": SIZE} | changes).index(candidates, identifiers)


@functools.cache
def fixed(kind):
    """A layer that is not to be changed."""
    return make(IDENTIFIERS[kind])


def called(identifiers, rows):
    """What candidates in the given places are called."""
    if identifiers is None:
        return rows
    chosen = np.asarray(identifiers)[rows]
    return np.char.encode(chosen, "utf-8").astype(object) if chosen.dtype.kind == "U" else chosen


def check_answer(answer, identifiers=None, queries=QUERIES, k=K, candidates=CANDIDATES):
    """Asserts that an answer is that of enumeration."""
    scores, rows = top_k(queries @ candidates.T, k)
    np.testing.assert_allclose(answer[0], scores, atol=1e-5)
    np.testing.assert_array_equal(answer[1], called(identifiers, rows))


@pytest.mark.parametrize("kind", IDENTIFIERS)
def test_answer_is_that_of_enumeration(kind):
    identifiers, layer = IDENTIFIERS[kind], fixed(kind)
    check_answer(layer(QUERIES), identifiers)
    check_answer(layer(QUERIES, k=3), identifiers, k=3)
    check_answer(tf.function(lambda queries: layer(queries, k=8))(QUERIES), identifiers, k=8)
    scores, found = layer(QUERIES[:0])
    assert scores.shape == found.shape == (0, K)
    assert layer(QUERIES)[1].dtype == {"rows": tf.int32, "integers": tf.int64}.get(kind, tf.string)


def test_answer_is_the_same_compiled_by_xla_and_strings_are_known_not_to_be():
    layer = fixed("integers")
    check_answer(tf.function(lambda queries: layer(queries), jit_compile=True)(QUERIES), NUMBERS)
    if IS_KERAS_3:
        assert layer.supports_jit
        assert not fixed("strings").supports_jit


@pytest.mark.parametrize("kind", IDENTIFIERS)
def test_exclusions_are_left_out_and_the_next_best_move_up(kind):
    identifiers, layer = IDENTIFIERS[kind], fixed(kind)
    scores = (QUERIES @ CANDIDATES.T).astype(np.float64)
    out = np.argsort(-scores, axis=1)[:, [0, 2, 2, 400]]  # one twice, one that matters not
    np.put_along_axis(scores, out, -np.inf, axis=1)
    scores, rows = top_k(scores, K)
    exclusions = called(identifiers, out)
    exclusions[0, 3] = "no such" if kind == "strings" else -1
    exclusions = tf.constant(exclusions.tolist()) if kind == "strings" else exclusions
    for ask in (layer.query_with_exclusions, tf.function(layer.query_with_exclusions)):
        answer = ask(tf.constant(QUERIES), exclusions)
        np.testing.assert_allclose(answer[0], scores, atol=1e-5)
        np.testing.assert_array_equal(answer[1], called(identifiers, rows))


def test_candidates_may_change_without_another_trace():
    traces = []
    layer = make(NAMES[:200], CANDIDATES[:200], capacity=SIZE)

    @tf.function
    def ask(queries):
        traces.append(1)
        return layer(queries)

    check_answer(ask(QUERIES), NAMES, candidates=CANDIDATES[:200])
    for candidates, names in ((CANDIDATES, NAMES), (CANDIDATES[300:350], NAMES[300:350])):
        assert layer.index(candidates, names) is layer
        check_answer(ask(QUERIES), names, candidates=candidates)
    assert len(traces) == 1
    assert layer.capacity == SIZE
    # Nothing of what there was is left to be found.
    scores, found = layer(QUERIES, k=60)
    assert set(found.numpy()[:, 50:].ravel()) == {b""}
    assert np.isneginf(scores.numpy()[:, 50:]).all()
    assert np.isfinite(scores.numpy()[:, :50]).all()


def test_refused_candidates_leave_what_there_was():
    layer = fixed("integers")
    bad = CANDIDATES.copy()
    bad[17] = np.nan
    for candidates, identifiers, message in [
        (np.ones([SIZE + 1, DIM]), None, f"larger capacity. Received: {SIZE + 1} candidates"),
        (CANDIDATES[:3], None, "smaller k. Received: 3 candidates, k=5"),
        (CANDIDATES[:, :4], None, "dimension.* first time: 6 and int64. Received: 4 and int32"),
        (CANDIDATES, NAMES, "first time: 6 and int64. Received: 6 and string"),
        (CANDIDATES, NUMBERS[:9], r"one for each of the 600 candidates. Received: .* shape \(9,\)"),
        (CANDIDATES, NUMBERS * 0.5, "must be integers or strings.*Received: dtype float64"),
        (bad, NUMBERS, "finite.*Received: NaN or infinity in row 17"),
        (CANDIDATES[0], None, r"candidates must have shape .*Received: shape \(6,\)"),
        (CANDIDATES.astype(int), None, "floating point. Received: dtype int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer.index(candidates, identifiers)
    check_answer(layer(QUERIES), NUMBERS)


def test_indexing_that_is_interrupted_leaves_what_there_was(monkeypatch):
    layer = fixed("integers")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("tf_dynidx.index.build.build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        layer.index(CANDIDATES[::-1], NUMBERS)
    check_answer(layer(QUERIES), NUMBERS)


def test_budget_decides_whether_the_answer_is_exact():
    assert fixed("rows").is_exact()
    assert not TreeTopK(capacity=SIZE, budget=SIZE - 1).is_exact()
    assert not TreeTopK().is_exact()
    best = fixed("rows")(QUERIES)[1].numpy()
    found = make(budget=40)(QUERIES)[1].numpy()
    assert 0.2 < np.mean([len(np.intersect1d(*each)) / K for each in zip(best, found, strict=True)]) < 1


def test_query_model_encodes_the_queries():
    features = keras.Input([3])
    tower = keras.Model(features, keras.layers.Dense(DIM)(features))
    layer = make(query_model=tower)
    x = gaussian(np.random.default_rng(1), 4, 3)
    check_answer(layer(x), queries=tower(x).numpy())
    assert len(layer.trainable_variables) == 0 or not layer.trainable
    again = TreeTopK.from_config(layer.get_config()).query_model
    again.set_weights(tower.get_weights())
    np.testing.assert_allclose(again(x), tower(x), atol=1e-6)


def model_with(layer):
    features = keras.Input([3])
    scores, identifiers = layer(keras.layers.Dense(DIM, name="dense")(features))
    return keras.Model(features, {"scores": scores, "identifiers": identifiers})


def test_saved_model_answers_as_before_without_being_built_again(tmp_path, monkeypatch):
    layer = make(NAMES[:500], CANDIDATES[:500], capacity=SIZE, row_dtype="bfloat16", name="top")
    model = model_with(layer)
    x = gaussian(np.random.default_rng(1), 4, 3)
    expected = model(x)
    assert expected["scores"].shape == (4, K)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))

    def check(other):
        found = other(x)
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-6)
        np.testing.assert_array_equal(found["identifiers"], expected["identifiers"])

    monkeypatch.setattr("tf_dynidx.index.build.build", None)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    check(loaded)
    for kind_of_file in ("weights", "checkpoint"):
        fresh = TreeTopK.from_config(layer.get_config())
        fresh.build_from_config(layer.get_build_config())
        fresh = model_with(fresh)
        assert np.isneginf(fresh(x)["scores"]).all()
        if kind_of_file == "weights":
            fresh.load_weights(tmp_path / "model.weights.h5")
        else:
            tf.train.Checkpoint(model=fresh).read(str(tmp_path / "checkpoint"))
        check(fresh)
    monkeypatch.undo()
    # What was loaded takes other candidates as ever.
    top = loaded.get_layer("top")
    top.index(CANDIDATES, NAMES)
    queries = loaded.get_layer("dense")(x)
    np.testing.assert_array_equal(loaded(x)["identifiers"], top(queries)[1])
    assert top.capacity == SIZE


def test_weights_of_a_layer_of_another_kind_or_size_are_refused():
    store = {}
    fixed("strings").save_own_variables(store)
    with pytest.raises(ValueError, match="another kind. Received: strings for int64"):
        fixed("integers").load_own_variables(store)
    small = TreeTopK(k=K)
    small.build_from_config({"dim": DIM, "capacity": 100, "identifiers": "string"})
    with pytest.raises(ValueError, match="Received: "):
        small.load_own_variables(store)
    # One that has no size yet takes that of the file.
    fresh = TreeTopK(k=K, budget=SIZE)
    fresh.load_own_variables(store)
    check_answer(fresh(QUERIES), NAMES)
    empty = {}
    TreeTopK().save_own_variables(empty)
    assert empty == {}


def test_exported_function_answers_as_the_layer(tmp_path):
    module = tf.Module()
    module.layer = fixed("strings")
    module.answer = tf.function(module.layer, input_signature=[tf.TensorSpec([None, DIM])])
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    check_answer(loaded.answer(tf.constant(QUERIES)), NAMES)


def test_scores_keep_their_precision_under_a_mixed_policy():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        layer = make(NUMBERS)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    check_answer(layer(QUERIES), NUMBERS)
    half = QUERIES.astype(np.float16)
    check_answer(layer(half), NUMBERS, queries=half.astype(np.float32))


def test_metrics_take_the_layer_for_an_index():
    layer = TreeTopK(k=K, budget=SIZE)
    recall = CorpusRecall(1, layer, budget=SIZE)
    with pytest.raises(ValueError, match="no index to rank"):
        recall.update_state([0], QUERIES[:1])
    layer.index(CANDIDATES, NAMES)
    best = np.argmax(QUERIES @ CANDIDATES.T, axis=1)
    best[::2] = 0
    recall.update_state(best, QUERIES)
    assert float(recall.result()) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"k": 0}, "k must be a whole number.*Received: k=0"),
        ({"capacity": 1.5}, "capacity must be .*Received: capacity=1.5"),
        ({"k": 7, "capacity": 6}, "at most the capacity. Received: k=7, capacity=6"),
        ({"budget": -1}, "budget must be .*Received: budget=-1"),
        ({"row_dtype": "int8"}, "row_dtype must be float32.*Received: row_dtype='int8'"),
        ({"query_model": 3}, "query_model must be a Keras model or None. Received: query_model=3"),
    ],
)
def test_bad_argument_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TreeTopK(**changes)


def test_bad_call_is_refused():
    with pytest.raises(ValueError, match=r"call index\(\) first. Received: none"):
        TreeTopK(k=3)(QUERIES)
    layer = fixed("strings")
    with pytest.raises(ValueError, match="at most the capacity. Received: k=601, capacity=600"):
        layer(QUERIES, k=601)
    with pytest.raises(ValueError, match=r"shape \[batch, 6\]. Received: shape \(20, 4\)"):
        layer(QUERIES[:, :4])
    with pytest.raises(ValueError, match="exclusions must be string identifiers .*dtype int64"):
        layer.query_with_exclusions(QUERIES, np.zeros([20, 1], np.int64))
    with pytest.raises(ValueError, match=r"exclusions must be .*Received: shape \(20,\)"):
        layer.query_with_exclusions(QUERIES, tf.constant(["a"] * 20))
