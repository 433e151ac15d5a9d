"""What the original's own tests ask of `Retrieval` and of `TopK`, asked of ours."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_dynidx import TargetCorpus
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import InBatch
from tf_dynidx.tfrs import MinedRetrieval, TreeTopK

SIZE, DIM, BATCH, K = 120, 4, 6, 8

rng = np.random.default_rng(5)
CANDIDATES = rng.normal(size=[SIZE, DIM]).astype(np.float32)
NAMES = np.array([f"n{row}" for row in range(SIZE)])
ROWS = np.array([3, 50, 7, 90, 11, 64], np.int32)
# Half of the queries look at their own candidate, half away from it.
QUERIES = CANDIDATES[ROWS] * np.where(np.arange(BATCH) % 2, -5.0, 5.0)[:, None].astype(np.float32)
WEIGHTS = np.linspace(0.1, 0.6, BATCH).astype(np.float32)

# Of each query's own candidate, from 0, among all and among the batch.
SCORES = QUERIES @ CANDIDATES.T
RANKS = np.sum(SCORES[np.arange(BATCH), ROWS][:, None] < SCORES, axis=1)
IN_BATCH = QUERIES @ CANDIDATES[ROWS].T
# Each of the five others is to be expected as often: nothing has been counted.
LOGITS = IN_BATCH - np.log((BATCH - 1) / SIZE) * (1.0 - np.eye(BATCH))
FIRST = np.argmax(LOGITS, axis=1) == np.arange(BATCH)


# The task.


def make(**changes):
    """A task with a metric of each kind; the metric over all candidates is made from a data set."""
    keras.utils.set_random_seed(0)
    candidates = tf.data.Dataset.from_tensor_slices((NAMES, CANDIDATES)).batch(32)
    options = {
        "metrics": tfrs.metrics.FactorizedTopK(candidates, ks=(K,)),
        "batch_metrics": [keras.metrics.TopKCategoricalAccuracy(k=1, name="first")],
        "loss_metrics": [keras.metrics.Mean(name="mean_loss")],
    }
    tower = keras.layers.Embedding(SIZE, DIM, weights=[CANDIDATES])
    corpus = TargetCorpus(np.arange(SIZE), NAMES)
    return MinedRetrieval(tower, corpus, InBatch(), **options | changes)


def values(task):
    return {metric.name: float(metric.result()) for metric in task.metrics}


@pytest.mark.parametrize("all_candidates", [True, False])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_each_kind_of_metric_has_its_name_its_switch_and_the_weights(
    all_candidates, in_batch, weighted
):
    task = make()
    loss = task(
        QUERIES,
        CANDIDATES[ROWS],
        sample_weight=WEIGHTS if weighted else None,
        candidate_ids=NAMES[ROWS],
        compute_metrics=all_candidates,
        compute_batch_metrics=in_batch,
    )
    weights = WEIGHTS if weighted else np.ones(BATCH)
    assert 0 < np.mean(RANKS < K) < 1 and 0 < FIRST.mean() < 1
    assert values(task) == {
        f"factorized_top_k/top_{K}_categorical_accuracy": pytest.approx(
            np.average(RANKS < K, weights=weights) * all_candidates
        ),
        "first": pytest.approx(np.average(FIRST, weights=weights) * in_batch),
        "mean_loss": pytest.approx(float(loss)),
    }
    expected = np.log(np.sum(np.exp(LOGITS - np.diag(LOGITS)[:, None]), axis=1))
    assert float(loss) == pytest.approx(float(expected @ weights), rel=1e-4)


def test_states_of_metrics_are_reset_by_keras():
    task = make()
    task(QUERIES, CANDIDATES[ROWS], candidate_ids=NAMES[ROWS])
    for metric in task.metrics:
        metric.reset_states()
    assert set(values(task).values()) == {0.0}


def test_several_heads_leave_the_metric_over_all_candidates_alone():
    task = make()
    heads = np.stack([QUERIES, 0.0 * QUERIES], axis=1)
    task(heads, CANDIDATES[ROWS], candidate_ids=NAMES[ROWS])
    found = values(task)
    assert found[f"factorized_top_k/top_{K}_categorical_accuracy"] == 0.0
    assert found["first"] > 0.0 and found["mean_loss"] != 0.0


def test_a_candidate_that_is_left_out_has_no_mass():
    twice = np.array([3, 50, 3, 90, 11, 64], np.int32)
    seen = []

    def loss(y_true, y_pred, sample_weight=None):
        seen.append(tf.nn.softmax(y_pred).numpy())
        return tf.reduce_sum(y_pred)

    task = make(loss=loss, metrics=None, remove_accidental_hits=True)
    mask = np.ones([BATCH, BATCH], bool)
    mask[4, 5] = False
    task(0.0 * QUERIES, CANDIDATES[twice], candidate_ids=NAMES[twice], score_mask=mask)
    (mass,) = seen
    assert mass[0, 2] == mass[2, 0] == mass[4, 5] == 0.0
    rest = np.ones([BATCH, BATCH], bool)
    rest[[0, 2, 4], [2, 0, 5]] = False
    assert (mass[rest] > 0.0).all()


# The layer.


@pytest.mark.parametrize("k", [5, 10])
@pytest.mark.parametrize("queries", [1, 3, 16])
@pytest.mark.parametrize("named", [True, False])
def test_a_data_set_in_batches_of_any_size_is_indexed_again_and_again(k, queries, named):
    asked = np.random.default_rng(queries).normal(size=[queries, DIM]).astype(np.float32)
    excluded = np.random.default_rng(k).integers(SIZE, size=[queries, 5])
    scores = asked @ CANDIDATES.T
    left = scores.copy()
    np.put_along_axis(left, excluded, -np.inf, axis=1)
    top = TreeTopK(k=k, budget=SIZE)
    data = tf.data.Dataset.from_tensor_slices(CANDIDATES)
    if named:
        data = tf.data.Dataset.zip((tf.data.Dataset.from_tensor_slices(NAMES), data))
    called = NAMES.astype("S") if named else np.arange(SIZE)
    for batch in (7, 64):
        top.index_from_dataset(data.batch(batch))
        for answer, truth in (
            (top(asked), scores),
            (top.query_with_exclusions(asked, tf.constant(called[excluded])), left),
        ):
            best = np.argsort(-truth, axis=1)[:, :k]
            np.testing.assert_allclose(answer[0], np.take_along_axis(scores, best, 1), atol=1e-5)
            np.testing.assert_array_equal(answer[1].numpy().astype(called.dtype), called[best])


def test_identifiers_in_batches_of_another_size_are_refused():
    names = tf.data.Dataset.from_tensor_slices(NAMES).batch(20, drop_remainder=True)
    data = tf.data.Dataset.from_tensor_slices(CANDIDATES).batch(40, drop_remainder=True)
    with pytest.raises(ValueError, match="same batch dimension"):
        TreeTopK().index_from_dataset(tf.data.Dataset.zip((names, data)))


def test_a_layer_that_keras_saved_answers_as_before(tmp_path):
    top = TreeTopK(k=5, budget=SIZE).index(CANDIDATES, NAMES)
    expected = top(tf.constant(QUERIES))
    seen = expected[1][:, :2]
    without = top.query_with_exclusions(tf.constant(QUERIES), seen)
    top.save(str(tmp_path / "layer"))
    restored = keras.models.load_model(str(tmp_path / "layer"))
    found = restored(tf.constant(QUERIES)), restored.query_with_exclusions(tf.constant(QUERIES), seen)
    for answer, same in zip(found, (expected, without), strict=True):
        np.testing.assert_allclose(answer[0], same[0], atol=1e-6)
        np.testing.assert_array_equal(answer[1], same[1])
    np.testing.assert_array_equal(restored(QUERIES, k=3)[1], expected[1][:, :3])
    again = restored.index(CANDIDATES[::-1].copy(), NAMES)(QUERIES)
    np.testing.assert_allclose(again[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("with_ids", [True, False])
def test_weights_count_in_the_metric_over_all_candidates(with_ids):
    metric = tfrs.metrics.FactorizedTopK(TreeTopK(budget=SIZE).index(CANDIDATES, NAMES), ks=(1, K, 50))
    ids = tf.constant(NAMES[ROWS]) if with_ids else None
    metric.update_state(
        QUERIES, CANDIDATES[ROWS], true_candidate_ids=ids, sample_weight=WEIGHTS[:, None]
    )
    for k, found in zip((1, K, 50), metric.result(), strict=True):
        assert float(found) == pytest.approx(np.average(k > RANKS, weights=WEIGHTS), abs=1e-5)
