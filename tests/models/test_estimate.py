"""The estimate: what the loss and its gradient are, on average over draws."""

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.models.small import DIM, assert_same
from tf_dynidx import DualEncoder, TargetCorpus, losses
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.miners import Exact, Mixed, NegativeCache, Popularity, Tree, Uniform


def uncorrected(log_prob, draws, log_frequency, asking, batch):
    return tf.zeros_like(log_frequency)


def mined_only(log_prob, draws, log_frequency, asking, batch):
    """As if the positives of the other queries were no candidates."""
    return right_counts(log_prob, draws, tf.fill(tf.shape(log_frequency), -float("inf")), asking, batch)


right_counts = losses.log_expected_counts


def uncorrected_own(log_prob, draws):
    return tf.zeros_like(log_prob)


@pytest.mark.parametrize(
    "name, sharing, wrong",
    [
        ("tree", "batch", uncorrected),
        ("exact", "batch", uncorrected),
        ("uniform", "batch", mined_only),
        ("mixed", "batch", uncorrected),
        ("tree", "some", uncorrected),
        ("tree", "none", uncorrected_own),
    ],
)
def test_gradient_averages_to_that_of_the_full_softmax(name, sharing, wrong, monkeypatch):
    """On N = 2,000 targets, by enumeration; towers are tables, so gradients are those of encodings."""
    targets, queries, batch = 2000, 64, 32
    draws = 800 if sharing == "some" else 200  # where fewer draw, gradients vary more
    negatives = {"batch": 16, "some": 64, "none": 128}[sharing]
    mining_queries = 16 if sharing == "some" else batch
    sharing = "none" if sharing == "none" else "batch"
    beta = 5.0 if name == "uniform" else 10.0
    generator = np.random.default_rng(5)

    def table(number):
        encodings = generator.normal(size=[number, DIM])
        encodings /= np.linalg.norm(encodings, axis=1, keepdims=True)
        ids = keras.Input([], dtype="int32")
        layer = keras.layers.Embedding(number, DIM)
        tower = keras.Model(ids, layer(ids))
        layer.set_weights([encodings])
        return tower, encodings

    (query_tower, query_table), (target_tower, target_table) = table(queries), table(targets)
    positives = generator.integers(8, size=queries)  # popular ones
    miner = {
        "tree": lambda: Tree(negatives),
        "exact": lambda: Exact(negatives),
        "uniform": lambda: Uniform(negatives),
        "mixed": lambda: Mixed([Popularity(negatives // 4), NegativeCache(negatives * 3 // 4)]),
    }[name]()
    corpus = TargetCorpus(np.arange(targets, dtype=np.int32))
    model = DualEncoder(
        query_tower,
        target_tower,
        corpus,
        miner,
        temperature=1.0 / beta,
        sharing=sharing,
        mining_queries=mining_queries,
    )
    model.prepare_miner()
    # As if a very long training had counted the positives.
    model.frequencies.counts.assign(1e7 * np.bincount(positives, minlength=targets) / queries)
    model.frequencies.total.assign(1e7)
    variables = [query_tower.trainable_variables[0], target_tower.trainable_variables[0]]
    variables = [v.value if IS_KERAS_3 else v for v in variables]

    def mined_gradient(x, y):
        with tf.GradientTape() as tape:
            loss = model.mined_loss(x, y)
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]

    def full_gradient(x):
        of_queries, of_rows = reference.full_softmax_gradient(
            query_table[x], target_table, beta, positives[x]
        )
        scattered = np.zeros_like(query_table)
        np.add.at(scattered, x, of_queries)
        return scattered, of_rows

    def bias_and_noise():
        """Of the average gradient over batches, as shares of the full softmax's, for each tower."""
        order = np.random.default_rng(6)
        rounds = [order.integers(queries, size=batch) for _ in range(draws)]
        traced = tf.function(mined_gradient)
        mined = [traced(tf.constant(x), tf.constant(positives[x])) for x in rounds]
        truth = [full_gradient(x) for x in rounds]
        result = []
        for tower in (0, 1):
            full = np.array([gradient[tower] for gradient in truth])
            error = np.array([gradient[tower].numpy() for gradient in mined]) - full
            noise = error.var(axis=0).sum() / draws
            # The squared error of an average is squared bias plus noise.
            bias = max(np.sum(error.mean(axis=0) ** 2) - noise, 0.0)
            result.append(np.sqrt([bias, noise] / np.sum(full.mean(axis=0) ** 2)))
        return result

    right = bias_and_noise()

    # The same draws, encoded in chunks, give the same gradient.
    x = np.arange(batch)
    before, both = [tf.identity(each) for each in miner.variables], []
    for model.encode_chunk in (None, 100):
        for variable, value in zip(miner.variables, before, strict=True):
            variable.assign(value)
        both.append(tf.function(mined_gradient)(tf.constant(x), tf.constant(positives[x])))
    assert_same(*both, rtol=1e-4, atol=1e-6)
    model.encode_chunk = None

    replaced = "log_expected_counts" if sharing == "batch" else "log_expected_own_counts"
    monkeypatch.setattr(losses, replaced, wrong)
    for (bias, noise), (wrong_bias, _) in zip(right, bias_and_noise(), strict=True):
        assert noise < 0.03
        assert bias < 0.012
        assert wrong_bias > 0.024
