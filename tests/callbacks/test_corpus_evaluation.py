import numpy as np
import pytest
import tensorflow as tf

from tests.callbacks.worlds import (
    POSITIVES,
    QUERY_FEATURES,
    STEPS,
    TARGETS,
    encoded,
    make,
    train,
    weights,
)
from tf_dynidx import metrics
from tf_dynidx.callbacks import CorpusEvaluation
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import InBatch

SEVERAL = np.stack([POSITIVES, np.where(POSITIVES % 3, -1, (POSITIVES + 7) % TARGETS)], axis=1)
DATA = (QUERY_FEATURES, SEVERAL)


def report(model, positives=SEVERAL, exclude=None, kept=slice(None)):
    """What the ranking says of the model as it is now."""
    queries, targets = encoded(model)
    lists = [row[row >= 0] for row in positives[kept]]
    exclude = None if exclude is None else [row[row >= 0] for row in exclude[kept]]
    ranks = metrics.positive_ranks(queries[kept], targets, lists, exclude)
    return ranks, metrics.ranking_metrics(ranks)


def evaluated(model, evaluation):
    evaluation.set_model(model)
    return evaluation.act()


@pytest.fixture(scope="module")
def trained():
    """Not to be trained further."""
    model = make(InBatch())
    train(model, epochs=1)
    return model


def test_logs_are_those_of_the_ranking_at_the_end_of_each_epoch():
    model, evaluation = make(InBatch()), CorpusEvaluation(DATA, ks=(1, 10, 20))
    first = train(model, evaluation, epochs=1)
    _, expected = report(model)
    history = train(model, evaluation, epochs=2)
    assert set(first) >= {"val_recall@1", "val_recall@10", "val_ndcg@20", "val_mrr"}
    for name in ("recall@1", "recall@10", "recall@20", "ndcg@20", "mrr"):
        assert first[f"val_{name}"] == [pytest.approx(expected[name], rel=1e-4)], name
    _, expected = report(model)
    assert history["val_mrr"][-1] == pytest.approx(expected["mrr"], rel=1e-4)
    assert history["val_mrr"][-1] > first["val_mrr"][0]
    assert [each["step"] for each in evaluation.history] == [2 * STEPS, 3 * STEPS]


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "search"])
def test_exclusions_and_queries_without_positives(trained, exact):
    queries, targets = encoded(trained)
    best = np.argsort(-queries @ targets.T, axis=1)[:, :3]
    exclude = np.where((best[:, :, None] == SEVERAL[:, None]).any(axis=2), -1, best)
    positives = SEVERAL.copy()
    positives[::5] = -1
    kept = np.arange(TARGETS) % 5 > 0
    ranks, expected = report(trained, positives, exclude, kept)
    found = evaluated(
        trained,
        CorpusEvaluation((QUERY_FEATURES, positives), exact=exact, exclude=exclude, ks=[10, TARGETS]),
    )
    assert found["val_recall@10"] == pytest.approx(expected["recall@10"], rel=1e-4)
    assert found["val_mrr"] == pytest.approx(expected["mrr"], rel=1e-4)
    assert found[f"val_recall@{TARGETS}"] == pytest.approx(1.0)
    gains = [
        np.sum(1 / np.log2(own + 1)) / np.sum(1 / np.log2(np.arange(len(own)) + 2)) for own in ranks
    ]
    assert found[f"val_ndcg@{TARGETS}"] == pytest.approx(np.mean(gains), rel=1e-4)


def test_search_follows_the_encoder_and_agrees_with_exact():
    model = make(InBatch())
    exact, search = (
        CorpusEvaluation(DATA, ks=[TARGETS]),
        CorpusEvaluation(DATA, ks=[TARGETS], exact=False),
    )
    history = train(model, exact, CorpusEvaluation(DATA, ks=[TARGETS], exact=False, prefix="found_"))
    assert history["val_mrr"] == pytest.approx(history["found_mrr"], rel=1e-4)
    assert history["val_mrr"][0] != history["val_mrr"][1]
    assert evaluated(model, search) == pytest.approx(evaluated(model, exact), rel=1e-4)


def test_best_model_is_kept_and_training_stopped_by_what_is_logged(tmp_path):
    model = make(InBatch(), learning_rate=0.0)
    path = tmp_path / "best.weights.h5"
    history = train(
        model,
        CorpusEvaluation(DATA),
        keras.callbacks.ModelCheckpoint(
            str(path), monitor="val_recall@10", mode="max", save_best_only=True, save_weights_only=True
        ),
        keras.callbacks.EarlyStopping(monitor="val_mrr", mode="max", patience=1),
        epochs=5,
    )
    assert len(history["val_mrr"]) < 5  # nothing is learned
    assert path.exists()


def test_datasets_arrays_weights_and_identifiers(trained):
    plain = evaluated(trained, CorpusEvaluation((QUERY_FEATURES, POSITIVES)))
    weight = np.ones(TARGETS, np.float32)
    dataset = tf.data.Dataset.from_tensor_slices((QUERY_FEATURES, POSITIVES, weight)).batch(40)
    assert evaluated(trained, CorpusEvaluation(dataset)) == pytest.approx(plain, rel=1e-5)
    weight[: TARGETS // 2] = 0.0
    half = evaluated(trained, CorpusEvaluation((QUERY_FEATURES, POSITIVES, weight)))
    rest = evaluated(
        trained, CorpusEvaluation((QUERY_FEATURES[TARGETS // 2 :], POSITIVES[TARGETS // 2 :]))
    )
    assert half == pytest.approx(rest, rel=1e-5)
    names = np.array([f"target {row}" for row in range(TARGETS)])
    named = make(InBatch(), identifiers=names)
    for mine, theirs in (
        (named.query_tower, trained.query_tower),
        (named.target_tower, trained.target_tower),
    ):
        mine.set_weights(theirs.get_weights())
    assert evaluated(named, CorpusEvaluation((QUERY_FEATURES, names))) == pytest.approx(plain, rel=1e-5)


def test_evaluation_in_mid_epoch_is_in_the_history():
    evaluation = CorpusEvaluation(DATA, every=2, prefix="test_")
    history = train(make(InBatch()), evaluation, epochs=1)
    assert [each["step"] for each in evaluation.history] == [2, 4]
    assert history["test_mrr"] == [evaluation.history[-1]["test_mrr"]]


def test_evaluation_changes_nothing():
    watched, alone = make(InBatch()), make(InBatch())
    train(watched, CorpusEvaluation(DATA, every=2, exact=False))
    train(alone)
    for a, b in zip(weights(watched), weights(alone), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ks": []}, r"at least one length of list. Received: ks=\[\]"),
        ({"ks": [0]}, "ks must be a whole number.*Received: ks=0"),
        ({"exclude": [[0.5]]}, "exclude must be rows.*Received: dtype float32"),
        ({"batch_size": 0}, "batch_size must be .*Received: batch_size=0"),
        ({"every": 0}, "every="),
    ],
)
def test_bad_argument_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CorpusEvaluation(DATA, **changes)


@pytest.mark.parametrize(
    "data, changes, message",
    [
        (QUERY_FEATURES, {}, r"a tuple \(x, y\) of arrays or .*Received: ndarray"),
        ((QUERY_FEATURES,), {}, "y the rows of the positives. Received: no y"),
        ((QUERY_FEATURES, POSITIVES * 0 - 1), {}, "no query with a positive"),
        ((QUERY_FEATURES, POSITIVES * 0.5), {}, "y must be rows.*Received: dtype float64"),
        (DATA, {"exclude": [[1]]}, "Received: 1 lists for 150 queries"),
        (DATA, {"exclude": POSITIVES[:, None]}, "excluded has no rank.*Received: 0 as both"),
    ],
)
def test_bad_data_is_refused(trained, data, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluated(trained, CorpusEvaluation(data, **changes))
