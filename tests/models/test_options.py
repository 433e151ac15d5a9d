import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.models import small
from tests.models.small import POSITIVES, QUERY_FEATURES, TARGET_FEATURES, TARGETS, batches, make
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.miners import Exact, InBatch, Tree, Uniform

X, Y = QUERY_FEATURES[:10], POSITIVES[10:20]


def plain_tower():
    features = keras.Input([small.WIDTH])
    inner = keras.layers.Dense(16, activation="tanh")(features)
    return keras.Model(features, keras.layers.Dense(small.DIM)(inner))


def plain_towers():
    return plain_tower(), plain_tower()


def encodings(model, x):
    """Of queries, and of all targets."""
    queries = model.query_tower(x, training=False).numpy()
    return queries, model.target_tower(TARGET_FEATURES, training=False).numpy()


# Optimizers


def weights_after_two_steps(optimizer):
    model = make(optimizer=optimizer)
    for _ in range(2):
        model.train_on_batch(X, Y)
    return small.weights(model)


def test_schedule_and_clipping_are_those_of_the_optimizer():
    """Against gradients taken and applied by hand, the second rate a tenth of the first."""
    rates, norm = (0.5, 0.05), 0.1
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], list(rates))
    found = weights_after_two_steps(keras.optimizers.SGD(schedule, global_clipnorm=norm))
    model = make()
    values = [v.value if IS_KERAS_3 else v for v in model.trainable_variables]
    for rate in rates:
        with tf.GradientTape() as tape:
            loss = model.mined_loss(X, Y)
        gradients = tape.gradient(loss, values)
        size = np.sqrt(sum(np.sum(each.numpy() ** 2) for each in gradients))
        assert size > norm
        for value, gradient in zip(values, gradients, strict=True):
            value.assign_sub(rate * norm / size * gradient)
        model.after_step()
    small.assert_same(found, small.weights(model))


def test_scaled_loss_takes_the_same_steps():
    scaling = (keras.optimizers if IS_KERAS_3 else keras.mixed_precision).LossScaleOptimizer
    scaled = weights_after_two_steps(scaling(keras.optimizers.SGD(0.1)))
    small.assert_same(scaled, weights_after_two_steps(keras.optimizers.SGD(0.1)))


# Similarity


def test_cosine_scales_whatever_is_encoded():
    model = make(Tree(), plain_towers, options={"similarity": "cosine"})
    model.prepare_miner()
    queries, targets = encodings(model, X)
    np.testing.assert_allclose(
        model.predict(X, verbose=0), reference.unit(queries), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(model.encode_corpus(), reference.unit(targets), rtol=1e-4, atol=1e-5)
    held = model.miner.index.tree.read(np.arange(TARGETS))
    np.testing.assert_allclose(held, reference.unit(targets), rtol=1e-4, atol=1e-5)


def test_cosine_is_dot_of_towers_that_scale():
    scaling = make(Uniform(), options={"similarity": "cosine"})
    assert float(make(Uniform()).train_on_batch(X, Y, return_dict=True)["loss"]) == pytest.approx(
        float(scaling.train_on_batch(X, Y, return_dict=True)["loss"]), rel=1e-5
    )


# Temperature


def test_learned_temperature_is_trained_by_the_gradient_of_the_loss():
    model = make(options={"learn_temperature": True}, optimizer=keras.optimizers.SGD(1e-3))
    assert float(model.beta) == pytest.approx(10.0)
    step = 1e-2

    def loss_at(temperature):
        return float(make(options={"temperature": temperature}).mined_loss(X, Y))

    slope = (loss_at(0.1 * np.exp(-step)) - loss_at(0.1 * np.exp(step))) / (2 * step)
    logs = model.train_on_batch(X, Y, return_dict=True)
    assert np.log(float(model.beta)) == pytest.approx(np.log(10) - 1e-3 * slope, abs=2e-5)
    assert abs(slope) > 0.05
    assert float(logs["temperature"]) == pytest.approx(1 / float(model.beta))


def test_learned_temperature_stays_sane():
    reached = set()
    for labels in (Y, POSITIVES[200:210]):  # of its own start, and of other targets
        model = make(options={"learn_temperature": True}, optimizer=keras.optimizers.SGD(1e6))
        model.train_on_batch(X, labels)
        reached.add(round(1.0 / float(model.beta), 4))
    assert reached <= {0.01, 1.0}


def test_fixed_temperature_is_no_weight():
    model = make()
    model.train_on_batch(X, Y)
    assert float(model.beta) == pytest.approx(10.0)
    assert len(model.trainable_variables) == 8


# Sharing


def test_own_negatives_alone_are_seen():
    positives = np.stack([Y, np.where(np.arange(10) % 2, (Y + 1) % TARGETS, -1)], axis=1)
    positives[3] = -1
    model = make(Uniform(num_negatives=200), options={"sharing": "none"})
    model.prepare_miner()
    loss, candidates = model._loss_and_candidates(X, tf.constant(positives), None, True)
    chosen = candidates.rows[:10].numpy()
    mined = candidates.rows[10:].numpy().reshape(10, 200)
    queries, targets = encodings(model, X)
    losses = []
    for query in range(10):
        rows = np.concatenate([[chosen[query]], mined[query]])
        logits = queries[[query]] @ targets[rows].T / small.TEMPERATURE
        masked = np.isin(rows, positives[query])[None]
        log_expected = np.full(len(rows), np.log(200 / TARGETS))
        losses.append(reference.sampled_softmax(logits, [0], log_expected, masked)[0])
    assert np.isin(mined, positives).any()
    assert float(loss) == pytest.approx(np.delete(losses, 3).mean(), rel=1e-4)


@pytest.mark.parametrize("miner", [lambda: Tree(4), lambda: Exact(4), lambda: Uniform(4)])
def test_own_negatives_train(miner):
    model = make(miner(), options={"sharing": "none"})
    history = model.fit(batches(), epochs=3, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
    assert model.frequencies.counts.numpy().sum() == 3 * len(POSITIVES)


# False negatives


@pytest.mark.parametrize("sharing", ["batch", "none"])
def test_suspected_candidates_are_left_out(sharing):
    """Whatever is suspected is missing from the softmax; the positive stays."""
    rules = {"relative_margin": 0.5, "absolute_margin": 0.2, "max_score": 0.3, "range_min": 3}
    model = make(Uniform(20), options={"sharing": sharing, **rules})
    model.prepare_miner()
    loss, candidates = model._loss_and_candidates(X, tf.constant(Y[:, None]), None, True)
    rows = candidates.rows.numpy()
    queries, targets = encodings(model, X)
    expected = []
    for query in range(10):
        own = np.concatenate([[rows[query]], rows[10 + 20 * query : 30 + 20 * query]])
        seen, place = (rows, query) if sharing == "batch" else (own, 0)
        log_expected = np.full(len(seen), np.log(20 / TARGETS))
        if sharing == "batch":
            log_expected = np.full(len(seen), np.log(10 * 20 / TARGETS + 9 / TARGETS))
        scores = queries[query] @ targets[seen].T
        positive = scores[place]
        known = seen == Y[query]
        masked = known | (scores > positive - 0.5 * abs(positive)) | (scores > positive - 0.2)
        masked |= scores > 0.3
        masked |= np.array([np.sum(scores[~known] > score) < 3 for score in scores])
        logits = scores[None] / small.TEMPERATURE
        expected.append(reference.sampled_softmax(logits, [place], log_expected, masked[None])[0])
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-3)
    assert 0 < float(loss) < float(make(Uniform(20), options={"sharing": sharing}).mined_loss(X, Y))


@pytest.mark.parametrize("weight", [0.25, 0.0])
@pytest.mark.parametrize("sharing", ["batch", "none"])
def test_targets_without_a_label_count_less(sharing, weight):
    """Mined rows that never were a positive; the batch's own positives have a label all the same."""
    model = make(Uniform(20), options={"sharing": sharing, "unlabelled_weight": weight})
    model.prepare_miner()
    labelled = np.arange(0, TARGETS, 3)
    model.frequencies.counts.assign(np.isin(np.arange(TARGETS), labelled).astype(np.float32))
    loss, candidates = model._loss_and_candidates(X, tf.constant(Y[:, None]), None, True)
    rows = candidates.rows.numpy()
    assert not np.isin(rows[:10], labelled).all()
    queries, targets = encodings(model, X)
    expected = []
    for query in range(10):
        own = np.concatenate([[rows[query]], rows[10 + 20 * query : 30 + 20 * query]])
        seen, place, given = (rows, query, 10) if sharing == "batch" else (own, 0, 1)
        weights = np.where(np.isin(seen, labelled), 1.0, weight)
        weights[:given] = 1.0
        count = np.full(len(seen), 20 / TARGETS)
        if sharing == "batch":
            frequency = (np.isin(seen, labelled) + 1) / TARGETS
            count = 10 * 20 / TARGETS + 9 * frequency
        masked = (seen == Y[query]) | (weights == 0)
        log_expected = np.log(count) - np.log(np.where(weights == 0, 1, weights))
        logits = (queries[query] @ targets[seen].T)[None] / small.TEMPERATURE
        expected.append(reference.sampled_softmax(logits, [place], log_expected, masked[None])[0])
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-3)


def test_labels_are_learned_from_the_examples():
    model = make(Uniform(20), options={"unlabelled_weight": 0.0})
    model.fit(batches(), epochs=1, verbose=0)
    labelled = model.frequencies.are_labelled(tf.range(TARGETS)).numpy()
    np.testing.assert_array_equal(np.flatnonzero(labelled), np.unique(POSITIVES))


@pytest.mark.parametrize("sharing", ["batch", "none"])
def test_options_compile(sharing):
    options = {
        "sharing": sharing,
        "similarity": "cosine",
        "learn_temperature": True,
        "relative_margin": 0.05,
        "absolute_margin": 0.01,
        "max_score": 0.9,
        "range_min": 2,
        "unlabelled_weight": 0.5,
    }
    losses = []
    for jit_compile in (False, True):
        model = make(Uniform(6), plain_towers, options=options, jit_compile=jit_compile)
        losses.append(float(model.train_on_batch(X, Y, return_dict=True)["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 0


# Encoding in chunks


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("sharing", ["batch", "none"])
def test_chunks_train_the_same_model(jit_compile, sharing):
    models = [
        make(
            Uniform(6),
            options={"encode_chunk": chunk, "sharing": sharing, "similarity": "cosine"},
            optimizer=keras.optimizers.SGD(0.5, clipnorm=1.0),
            jit_compile=jit_compile,
        )
        for chunk in (None, 64)
    ]
    for model in models:
        model.fit(batches().take(5), verbose=0)
    small.assert_same(*(small.weights(model) for model in models), rtol=1e-3, atol=1e-5)


def test_chunks_train_with_everything_at_once():
    """Regularizers, dropout, batch normalisation, mixed precision, a learned temperature, a tree."""

    def tower():
        layers = [
            keras.layers.Dense(16, "tanh", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            *([keras.layers.Dropout(0.1)] if IS_KERAS_3 else []),
            keras.layers.Dense(small.DIM),
        ]
        return keras.Sequential([keras.Input([small.WIDTH]), *layers])

    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make(
            Tree(4, refresh_every=2),
            lambda: (tower(), tower()),
            options={
                "encode_chunk": 32,
                "learn_temperature": True,
                "similarity": "cosine",
                "relative_margin": 0.01,
                "range_min": 1,
            },
            steps_per_execution=3,
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    history = model.fit(batches(), epochs=3, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert int(model.miner.full_encodes) == 1


def test_nothing_is_traced_after_the_second_step():
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, features):
            traces.append(1)
            return features

    def tower():
        features = keras.Input([small.WIDTH])
        return keras.Model(features, plain_tower()(Counting()(features)))

    options = {"encode_chunk": 32, "learn_temperature": True, "range_min": 1}
    model = make(Tree(refresh_every=2), lambda: (tower(), tower()), options=options)
    after = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: after.append(len(traces))
    )
    model.fit(batches(), epochs=2, verbose=0, callbacks=[count])
    assert len(after) == 2 * len(POSITIVES) // small.BATCH
    assert len(set(after[1:])) == 1


def test_in_batch_negatives_are_encoded_in_chunks():
    whole, chunked = (make(InBatch(), options={"encode_chunk": chunk}) for chunk in (None, 7))
    assert float(whole.mined_loss(X, Y)) == pytest.approx(float(chunked.mined_loss(X, Y)), rel=1e-5)
