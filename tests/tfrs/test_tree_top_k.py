import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_dynidx.keras_world import keras
from tf_dynidx.tfrs import TreeTopK

SIZE, DIM = 200, 6

rng = np.random.default_rng(0)
CANDIDATES = rng.normal(size=[SIZE, DIM]).astype(np.float32)
QUERIES = rng.normal(size=[7, DIM]).astype(np.float32)
NAMES = np.array([f"titul {row}" for row in range(SIZE)])


def make(**changes):
    """A layer whose search is exact."""
    return TreeTopK(**{"budget": SIZE} | changes)


def brute(k=10, names=NAMES, candidates=CANDIDATES):
    return tfrs.layers.factorized_top_k.BruteForce(k=k).index(candidates, tf.constant(names))


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])


def test_answer_is_that_of_brute_force():
    top, expected = make(), brute()
    assert isinstance(top, tfrs.layers.factorized_top_k.TopK)
    assert top.index(CANDIDATES, NAMES) is top
    assert top.is_exact()
    assert not TreeTopK().index(CANDIDATES).is_exact()
    assert_same(top(QUERIES), expected(QUERIES))
    assert_same(top(QUERIES, k=23), expected(QUERIES, k=23))
    seen = tf.concat([expected(QUERIES)[1][:, :3], tf.fill([7, 1], "")], axis=1)
    for k in (None, 4):
        found = top.query_with_exclusions(QUERIES, seen, k=k)
        assert_same(found, expected.query_with_exclusions(tf.constant(QUERIES), seen, k=k))


def test_dataset_is_indexed_with_and_without_identifiers():
    candidates = tf.data.Dataset.from_tensor_slices(CANDIDATES).batch(64)
    names = tf.data.Dataset.from_tensor_slices(NAMES).batch(64)
    expected = brute()
    top = make()
    assert top.index_from_dataset(tf.data.Dataset.zip((names, candidates))) is top
    assert_same(top(QUERIES), expected(QUERIES))
    rows = make().index_from_dataset(candidates)(QUERIES)[1].numpy()
    np.testing.assert_array_equal(np.char.encode(NAMES[rows], "utf-8"), expected(QUERIES)[1])


def test_indexing_again_retraces_nothing_and_is_seen():
    traces = []
    top = make(capacity=SIZE).index(CANDIDATES[:100], NAMES[:100])

    @tf.function
    def ask(queries, seen):
        traces.append(1)
        return top(queries), top.query_with_exclusions(queries, seen)

    seen = tf.fill([7, 1], NAMES[150])
    for part in (slice(0, 100), slice(0, SIZE), slice(50, 90)):
        top.index(CANDIDATES[part], NAMES[part])
        expected = brute(names=NAMES[part], candidates=CANDIDATES[part])
        assert_same(ask(QUERIES, seen)[0], expected(QUERIES))
    assert len(traces) == 1


def test_query_model_encodes():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Embedding(9, DIM)])
    top = make(query_model=model, k=3).index(CANDIDATES, NAMES)
    users = tf.constant([4, 8])
    assert_same(top(users), brute(3)(model(users)))
    seen = brute(3)(model(users))[1][:, :1]
    assert (top.query_with_exclusions(users, seen)[1][:, 0] != seen[:, 0]).numpy().all()


@pytest.mark.parametrize("with_ids", [True, False])
def test_factorized_metric_is_that_of_brute_force(with_ids):
    truth = np.array([0, 5, 9, 30, 60, 90, 120])
    queries = QUERIES + 1.5 * CANDIDATES[truth]
    results = []
    for top in (make().index(CANDIDATES, NAMES), brute()):
        metric = tfrs.metrics.FactorizedTopK(top, ks=(1, 5, 50))
        ids = tf.constant(NAMES[truth]) if with_ids else None
        metric.update_state(queries, CANDIDATES[truth], true_candidate_ids=ids)
        results.append([float(each) for each in metric.result()])
    assert results[0] == results[1]
    assert 0 < results[0][2] <= 1


def test_factorized_metric_takes_more_places_than_candidates():
    top = make(capacity=SIZE).index(CANDIDATES[:20], NAMES[:20])
    metric = tfrs.metrics.FactorizedTopK(top, ks=(20, 100))
    metric.update_state(QUERIES, CANDIDATES[:7], true_candidate_ids=tf.constant(NAMES[:7]))
    assert [float(each) for each in metric.result()] == [1.0, 1.0]
    scores, names = top(QUERIES, k=25)
    assert np.isfinite(scores).all()
    assert set(names.numpy()[:, 20:].ravel()) == {b""}


def test_approximate_layer_wants_ids_for_the_metric():
    metric = tfrs.metrics.FactorizedTopK(TreeTopK().index(CANDIDATES, NAMES), ks=(5,))
    with pytest.raises(ValueError, match="true_candidate_ids"):
        metric.update_state(QUERIES, CANDIDATES[:7])


@pytest.mark.parametrize("with_model", [False, True])
def test_number_of_results_is_an_input_of_the_saved_signature(tmp_path, with_model):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Embedding(9, DIM)]) if with_model else None
    top = make(query_model=model).index(CANDIDATES, NAMES)
    asked = tf.constant([4, 8], tf.int32) if with_model else tf.constant(QUERIES)
    spec = tf.TensorSpec([None], tf.int32) if with_model else None
    expected = brute()
    top(asked)
    tf.saved_model.save(top, str(tmp_path), signatures=top.signature(max_k=50, query_spec=spec))
    loaded = tf.saved_model.load(str(tmp_path))
    answer = loaded.signatures["serving_default"]
    encoded = model(asked) if with_model else asked
    for k in (1, 10, 50):
        found = answer(queries=asked, k=tf.constant(k))
        assert_same((found["scores"], found["identifiers"]), expected(encoded, k=k))
    assert answer(queries=asked, k=tf.constant(60))["scores"].shape[1] == 50
    assert_same(loaded(asked), expected(encoded))


def test_configuration_makes_the_same_layer():
    model = keras.Sequential([keras.layers.Embedding(9, DIM)])
    top = make(query_model=model, k=7, capacity=300, row_dtype="bfloat16", seed=3, name="top")
    assert TreeTopK.from_config(top.get_config()).get_config() == top.get_config()


def test_checkpoint_holds_the_candidates(tmp_path):
    top = make().index(CANDIDATES, NAMES)
    path = tf.train.Checkpoint(top=top).write(str(tmp_path / "checkpoint"))
    again = make().index(CANDIDATES[::-1].copy(), NAMES)
    tf.train.Checkpoint(top=again).read(path).assert_consumed()
    assert_same(again(QUERIES), top(QUERIES))


def test_bad_call_is_refused():
    with pytest.raises(ValueError, match=r"call index\(\) first"):
        TreeTopK()(QUERIES)
    with pytest.raises(ValueError, match=r"call index\(\) first"):
        TreeTopK().signature()
    with pytest.raises(ValueError, match="must be a Keras model or None. Received: query_model=3"):
        TreeTopK(query_model=3)
    top = make(query_model=keras.Sequential([keras.layers.Embedding(9, DIM)])).index(CANDIDATES)
    with pytest.raises(ValueError, match="Received: query_spec=None"):
        top.signature()
    with pytest.raises(ValueError, match="at most the capacity. Received: k=201"):
        make().index(CANDIDATES)(QUERIES, k=201)
