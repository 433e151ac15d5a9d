"""Evaluation: the metric of TensorFlow Recommenders, through its own layers and through the tree."""

import time

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from tqdm import tqdm

from tf_dynidx.cli import encodings as random_encodings
from tf_dynidx.cli.bench import measure
from tf_dynidx.cli.bench.measure import Row
from tf_dynidx.cli.bench.speed import exact_top
from tf_dynidx.tfrs import TreeTopK

DIM = 64
KS = (1, 5, 10, 50, 100)  # what the metric has by default
QUERIES = 2048
RANKS = 1000  # the lowest exact rank of a positive
BATCHES = (32, 256)  # queries a call
ROUNDS = 5
STREAMED = 4096  # candidates in an element of the dataset that is streamed
# Candidates that a tree scores for a query, as a share of them all; None: its default.
BUDGETS = (None, 0.01, 0.005, 0.003)

TITLES = {
    "evaluation": "Evaluation: what FactorizedTopK says of the same queries through each layer, the "
    "largest difference from brute force, seconds of `index`, milliseconds a query in batches, and how "
    "many times faster that is than brute force and than streaming "
    f"(medians of {ROUNDS} rounds, in turns)"
}


def evaluation(settings):
    """Yields a row for each number of candidates and each layer."""
    for number in settings.sizes:
        yield from _evaluation(number, settings)


def _evaluation(number, settings):
    some = random_encodings.clustered(number, DIM, QUERIES, settings.seed, progress=settings.progress)
    targets, queries = some.targets, some.queries
    rows = positives(queries, targets, settings.seed, settings.progress)
    found, updates = {}, {}
    for name, make in layers(targets).items():
        began = time.perf_counter()
        layer = make()
        seconds = time.perf_counter() - began
        metric = tfrs.metrics.FactorizedTopK(layer, ks=KS)
        updates[name] = updating(metric)
        accuracies = _accuracies(metric, updates[name], queries, targets, rows)
        found[name] = {"candidates": number, "layer": name, "index_seconds": seconds, **accuracies}
    exact = found["BruteForce"]
    for values in found.values():
        values["difference"] = max(abs(values[f"top_{k}"] - exact[f"top_{k}"]) for k in KS)
    for batch in BATCHES:
        times = measure.alternating(
            _calls(updates, queries[:batch], targets[rows[:batch]], rows[:batch]),
            ROUNDS,
            settings.progress,
            desc=f"evaluation, {number:,} candidates, batches of {batch}",
        )
        for name, values in found.items():
            values[f"ms_{batch}"] = 1000 * times[name] / batch
            for rival in ("BruteForce", "Streaming"):
                values[f"times_{rival}_{batch}"] = times[rival] / times[name]
    for values in found.values():
        yield Row("evaluation", values)


def positives(queries, targets, seed, progress=False):
    """A positive for each query, so that the metric lies between 0 and 1 at every k.

    Its exact rank r is drawn with probability log((r + 1) / r) / log(R + 1), from 1 to R = `RANKS`, so
    that an exact search has the accuracy log(k + 1) / log(R + 1) at k, on average.

    Returns:
        int32 [queries], rows of the targets.
    """
    lowest = min(RANKS, len(targets))
    top = exact_top(tf.constant(targets), lowest, noise=False)
    rng = np.random.default_rng([seed, 11])
    ranks = np.exp(rng.random(len(queries)) * np.log(lowest + 1)).astype(int)
    blocks = tqdm(measure.blocks(queries), desc="positives", unit="batch", disable=not progress)
    best = np.concatenate([top(tf.constant(each), 1.0)[1].numpy() for each in blocks])[: len(queries)]
    return best[np.arange(len(queries)), ranks - 1].astype(np.int32)


def layers(targets):
    """Functions that make the layers that are compared, by name: each indexes the targets."""
    own = tfrs.layers.factorized_top_k
    rows, k = np.arange(len(targets), dtype=np.int32), max(KS)

    def streaming():
        candidates = tf.data.Dataset.from_tensor_slices((rows, targets)).batch(STREAMED)
        # What is streamed is ready in memory, block by block: no tower has to encode it first.
        return own.Streaming(k=k).index_from_dataset(candidates.cache())

    def tree(budget):
        return TreeTopK(k=k, budget=budget).index(targets, rows)

    made = {
        "BruteForce": lambda: own.BruteForce(k=k).index(tf.constant(targets), tf.constant(rows)),
        "Streaming": streaming,
    }
    for share in BUDGETS:
        budget = None if share is None else max(k, round(share * len(targets)))
        name = "TreeTopK" if share is None else f"TreeTopK, {budget} scored"
        made[name] = lambda budget=budget: tree(budget)
    return made


def updating(metric):
    """A function of queries, positives and their rows that updates a metric in a graph."""

    @tf.function
    def update(queries, encodings, rows):
        metric.update_state(queries, encodings, true_candidate_ids=rows)
        return metric.result()[0]

    return update


def _calls(updates, *arrays):
    """What is timed, by name: each waits for its result."""
    inputs = [tf.constant(each) for each in arrays]
    return {name: lambda update=update: update(*inputs).numpy() for name, update in updates.items()}


def _accuracies(metric, update, queries, targets, rows):
    batch = BATCHES[-1]
    for start in range(0, len(queries), batch):
        part = rows[start : start + batch]
        update(*map(tf.constant, (queries[start : start + batch], targets[part], part)))
    return {f"top_{k}": float(each) for k, each in zip(KS, metric.result(), strict=True)}
