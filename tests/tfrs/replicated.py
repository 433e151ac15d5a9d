"""TFRS's task on two replicas and on one, the same batches: python -m tests.tfrs.replicated.

Prints what came out as JSON.
"""

import json
import sys

import numpy as np
import tensorflow as tf

# First: it divides the processor into two devices.
from tests.models.replicated import TWO, Hardest  # isort: skip
import tensorflow_recommenders as tfrs

from tests.models import small
from tf_dynidx import TargetCorpus
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import InBatch
from tf_dynidx.tfrs import MinedRetrieval

QUERIES, BATCH = 122, 40
ONE = tf.distribute.get_strategy()
NAMES = small.NAMES.copy()
POSITIVES = small.POSITIVES[:QUERIES]


class Model(tfrs.Model):
    def __init__(self, miner):
        super().__init__()
        self.query, self.target = small.functional_tower(), small.functional_tower()
        corpus = TargetCorpus(small.TARGET_FEATURES, NAMES)
        metrics = [keras.metrics.Mean(name="mean_loss")]
        self.task = MinedRetrieval(self.target, corpus, miner, temperature=0.1, loss_metrics=metrics)

    def compute_loss(self, features, training=False):
        queries, targets = self.query(features["query"]), self.target(features["target"])
        return self.task(queries, targets, candidate_ids=features["name"], compute_metrics=False)


def made(strategy, miner):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = Model(miner)
        model.compile(optimizer=keras.optimizers.Adam(0.02))
    return model


def fitted(miner):
    """Differences between what two replicas and one have come to; losses of both."""
    features = {
        "query": small.QUERY_FEATURES[:QUERIES],
        "target": small.TARGET_FEATURES[POSITIVES],
        "name": NAMES[POSITIVES],
    }
    dataset = tf.data.Dataset.from_tensor_slices(features).batch(BATCH)
    models = [made(strategy, miner()) for strategy in (ONE, TWO)]
    logs = [model.fit(dataset, epochs=2, verbose=0).history for model in models]
    values = [[v.numpy().astype(np.float64) for v in model.variables] for model in models]
    found = {"logs": logs}
    found["differences"] = [float(np.abs(a - b).max(initial=0)) for a, b in zip(*values, strict=True)]
    variables = [*models[1].task.miner.variables, *models[1].task.frequencies.variables]
    copies = [[copy.numpy() for copy in variable.values] for variable in variables]
    found["apart"] = [v.name for v, (a, b) in zip(variables, copies, strict=True) if (a != b).any()]
    return found


def called():
    """Losses of one batch, with everything that a call takes, cut in two and whole."""
    rng = np.random.default_rng(1)
    extras, half = 3, BATCH // 2
    rows = rng.integers(0, 60, size=[2, half + extras])
    names = NAMES[rows]
    names[0, 2] = names[1, 4] = names[1, half] = "not in the corpus"
    features = small.TARGET_FEATURES[rows]
    queries = rng.normal(size=[2, half, small.DIM]).astype(np.float32)
    weight = rng.uniform(size=[2, half]).astype(np.float32)
    probability = rng.uniform(0.01, 0.1, size=[60])[rows].astype(np.float32)
    mask = (rng.uniform(size=[2, half, half + extras]) < 0.7) | np.eye(half, half + extras, dtype=bool)

    def loss(model, query, features, names, weight, probability, mask):
        return model.task(
            query, model.target(features), weight, probability, names, False, score_mask=mask
        )

    parts = (queries, features, names, weight, probability, mask)
    two, one = made(TWO, Hardest(2)), made(ONE, Hardest(2))

    @tf.function(autograph=False)
    def replicated():
        def run():
            # Each replica its part.
            place = tf.distribute.get_replica_context().replica_id_in_sync_group
            return loss(two, *(tf.gather(tf.constant(part), place) for part in parts))

        return TWO.reduce("SUM", TWO.run(run), axis=None)

    def whole(part):
        return np.concatenate([part[0, :half], part[1, :half], part[0, half:], part[1, half:]])

    own = np.ones([BATCH, BATCH + 2 * extras], bool)
    for place in range(2):
        these = slice(place * half, (place + 1) * half)
        own[these, these] = mask[place, :, :half]
        after = BATCH + place * extras
        own[these, after : after + extras] = mask[place, :, half:]
    given = (np.concatenate(queries), whole(features), whole(names), np.concatenate(weight))
    alone = loss(one, *given, whole(probability), own)
    return [float(replicated()), float(alone)]


def main():
    found = {"in_batch": fitted(InBatch), "mined": fitted(lambda: Hardest(2)), "called": called()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
