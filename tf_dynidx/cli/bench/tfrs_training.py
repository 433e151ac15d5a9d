"""Training: the retrieval task of TensorFlow Recommenders beside the mined one, on identifiers."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_dynidx.cli.bench.measure import Row
from tf_dynidx.cli.data import Pairs, by_query
from tf_dynidx.corpus import TargetCorpus
from tf_dynidx.keras_world import keras
from tf_dynidx.metrics import positive_ranks, ranking_metrics
from tf_dynidx.miners import InBatch, Tree
from tf_dynidx.tfrs import MinedRetrieval

DIM = 64
TEMPERATURE = 0.1
LEARNING_RATE = 0.03  # Adam's at the start; it falls linearly to 2 % over the budget
TEST_QUERIES = 10_000  # that are measured on, at most
KS = (20, 100)
_TEST_BATCH = 1024

TITLES = {
    "training": "Training: the same towers, a look-up and an embedding each, trained on the same "
    "examples for as long; accuracies of FactorizedTopK on test pairs, and recall and NDCG of "
    "test queries over all targets but those that the query was trained on",
    "training_summary": "Training: means over seeds, and standard deviations of two of them",
}


class Side(NamedTuple):
    """One of the tasks that are compared.

    Attributes:
        name: str.
        batch: int, pairs a step.
        make: function from the target tower, the identifiers and a seed to the task.
        corrects: whether the task is told how often each target is a positive.
    """

    name: str
    batch: int
    make: Callable
    corrects: bool = False


def _in_batch(tower, identifiers, seed):
    return tfrs.tasks.Retrieval(temperature=TEMPERATURE, remove_accidental_hits=True)


def _mined(miner):
    def make(tower, identifiers, seed):
        corpus = TargetCorpus(identifiers, identifiers)
        return MinedRetrieval(tower, corpus, miner(seed), temperature=TEMPERATURE)

    return make


SIDES = (
    Side("Retrieval", 2048, _in_batch),
    Side("Retrieval, corrected", 2048, _in_batch, corrects=True),
    Side("MinedRetrieval, InBatch", 2048, _mined(lambda seed: InBatch(seed=seed))),
    # One draw a query: towers of embeddings encode for nothing, so that what a step costs is scoring.
    Side("MinedRetrieval, Tree", 2048, _mined(lambda seed: Tree(1, seed=seed))),
)


def training(settings, targets, pairs, test):
    """Yields the rows of the tables training and training_summary."""
    data = _Data(targets, pairs, test, settings.seed)
    rows = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        for side in SIDES:
            rows.append({"task": side.name, "seed": seed, **_train(side, data, settings, seed)})
            yield Row("training", rows[-1])
    for side in SIDES:
        mine = [row for row in rows if row["task"] == side.name]
        values = {"task": side.name, "batch": side.batch}
        for name in (f"top_{KS[0]}", "recall@20", "ndcg@20"):
            values[name] = float(np.mean([row[name] for row in mine]))
        for name in (f"top_{KS[0]}", "recall@20"):
            several = len(mine) > 1
            spread = float(np.std([row[name] for row in mine], ddof=1)) if several else None
            values[f"spread_{name}"] = spread
        yield Row("training_summary", values)


class _Data:
    """The pairs as a `tfrs.Model` takes them: identifiers, as strings."""

    def __init__(self, targets, pairs, test, seed):
        self.identifiers = np.array(targets.identifiers)
        known = by_query(pairs)
        self.queries = np.array(list(known))
        asked = np.repeat(pairs.queries, [len(rows) for rows in pairs.positives])
        rows = np.concatenate(pairs.positives)
        share = np.bincount(rows, minlength=len(self.identifiers)) / len(rows)
        self._examples = {
            "query": asked,
            "target": self.identifiers[rows],
            "probability": share[rows].astype(np.float32),
        }
        rng = np.random.default_rng([seed, 12])
        some = rng.permutation(len(test.queries))[:TEST_QUERIES]
        self.test = Pairs(
            [test.queries[each] for each in some], [test.positives[each] for each in some]
        )
        nothing = np.array([], np.int32)
        self.trained_on = [
            np.setdiff1d(known.get(query, nothing), own)
            for query, own in zip(self.test.queries, self.test.positives, strict=True)
        ]

    def dataset(self, batch, seed):
        """Endless shuffled batches, all of one size."""
        size = len(self._examples["query"])
        examples = {name: tf.constant(values) for name, values in self._examples.items()}
        order = (
            tf.data.Dataset.range(size).shuffle(size, seed).repeat().batch(batch, drop_remainder=True)
        )
        return order.map(
            lambda places: {name: tf.gather(values, places) for name, values in examples.items()}
        ).prefetch(2)

    def test_pairs(self):
        """Batches of test pairs, in the same form."""
        lengths = [len(rows) for rows in self.test.positives]
        rows = np.concatenate(self.test.positives)
        values = {"query": np.repeat(self.test.queries, lengths), "target": self.identifiers[rows]}
        return tf.data.Dataset.from_tensor_slices(values).batch(_TEST_BATCH)


class _Model(tfrs.Model):
    """Two towers and a task."""

    def __init__(self, query_tower, target_tower, task, corrects):
        super().__init__()
        self.query_tower, self.target_tower = query_tower, target_tower
        self.task, self.corrects = task, corrects

    def compute_loss(self, features, training=False):
        more = {"candidate_sampling_probability": features["probability"]} if self.corrects else {}
        return self.task(
            self.query_tower(features["query"]),
            self.target_tower(features["target"]),
            candidate_ids=features["target"],
            compute_metrics=False,
            **more,
        )


class _Budget(keras.callbacks.Callback):
    """Ends a training when its steps or its seconds are up, the learning rate falling until then."""

    def __init__(self, settings):
        super().__init__()
        self._settings, self._began, self.steps = settings, time.perf_counter(), 0

    @property
    def gone(self):
        """float, seconds since it was made."""
        return time.perf_counter() - self._began

    @property
    def _share(self):
        """How much of the budget is used up."""
        if self._settings.steps is not None:
            return self.steps / self._settings.steps
        return self.gone / self._settings.seconds

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate.assign(LEARNING_RATE * max(0.02, 1.0 - self._share))

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self._share >= 1.0:
            self.model.stop_training = True


def tower(identifiers):
    """Encodings of unit norm of strings: a look-up and an embedding."""
    initializer = keras.initializers.RandomNormal(stddev=0.1)
    return keras.Sequential(
        [
            keras.layers.StringLookup(vocabulary=identifiers),
            keras.layers.Embedding(len(identifiers) + 1, DIM, embeddings_initializer=initializer),
            keras.layers.UnitNormalization(),
        ]
    )


def _train(side, data, settings, seed):
    """Trains one model; what was found, as a dict."""
    keras.utils.set_random_seed(seed)
    towers = tower(data.queries), tower(data.identifiers)
    task = side.make(towers[1], data.identifiers, seed)
    model = _Model(*towers, task, side.corrects)
    model.compile(keras.optimizers.Adam(LEARNING_RATE))
    dataset = data.dataset(side.batch, seed)
    # From here on, so that what a task has to prepare counts.
    budget = _Budget(settings)
    model.fit(dataset, steps_per_epoch=2**31, verbose=0, callbacks=[budget])
    values = {"batch": side.batch, "steps": budget.steps, "seconds": budget.gone}
    return values | _accuracies(towers, data) | _recalls(towers, data)


def _accuracies(towers, data):
    """What `FactorizedTopK` says of the test pairs, by name."""
    layer = tfrs.layers.factorized_top_k.BruteForce(k=max(KS))
    encodings = _encoded(towers[1], data.identifiers)
    layer.index(tf.constant(encodings), tf.constant(data.identifiers))
    metric = tfrs.metrics.FactorizedTopK(layer, ks=KS)

    @tf.function
    def update(pairs):
        embeddings = towers[0](pairs["query"]), towers[1](pairs["target"])
        metric.update_state(*embeddings, true_candidate_ids=pairs["target"])

    for pairs in data.test_pairs():
        update(pairs)
    return {f"top_{k}": float(each) for k, each in zip(KS, metric.result(), strict=True)}


def _recalls(towers, data):
    """Recall and NDCG of the test queries, what they were trained on left out."""
    encodings = _encoded(towers[0], np.array(data.test.queries)), _encoded(towers[1], data.identifiers)
    metrics = ranking_metrics(positive_ranks(*encodings, data.test.positives, data.trained_on))
    return {name: metrics[name] for name in ("recall@20", "ndcg@20")}


def _encoded(tower, identifiers):
    return tower.predict(identifiers, batch_size=4096, verbose=0)
