import math
import warnings

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.models.small import (
    BATCH,
    DIM,
    NAMES,
    POSITIVES,
    QUERY_FEATURES,
    TARGET_FEATURES,
    TARGETS,
    TEMPERATURE,
    WIDTH,
    assert_same,
    batches,
    functional_tower,
    make,
    weights,
)
from tf_dynidx import DualEncoder, TargetCorpus
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.miners import Exact, InBatch, Tree, Uniform
from tf_dynidx.miners.turns import in_turn


class Tower(keras.Model):
    """A subclassed tower that counts how often its call is traced."""

    def __init__(self, dropout=0.0, normalise=False):
        super().__init__()
        self.inner = keras.layers.Dense(16, activation="tanh")
        self.extra = [keras.layers.Dropout(dropout)] if dropout else []
        self.extra += [keras.layers.BatchNormalization()] if normalise else []
        self.outer = keras.layers.Dense(DIM)
        self.traces = 0

    def call(self, features, training=False):
        self.traces += 1
        inner = self.inner(features)
        for layer in self.extra:
            inner = layer(inner, training=training)
        return tf.math.l2_normalize(self.outer(inner), axis=1)


def recall(model, k=5):
    """Share of queries whose positive is among the best k, by brute force with the towers."""
    queries = model.query_tower(QUERY_FEATURES, training=False).numpy()
    targets = model.target_tower(TARGET_FEATURES, training=False).numpy()
    _, best = reference.top_k(queries @ targets.T, k)
    return np.mean(np.any(best == POSITIVES[:, None], axis=1))


# fit, with every miner, compiled by XLA and not

MINERS = {
    "tree": lambda: Tree(num_negatives=2, refresh_every=4, budget=192),  # else it is flat
    "exact": lambda: Exact(num_negatives=2),
    "uniform": lambda: Uniform(num_negatives=2),
    "in-batch": InBatch,
}


@pytest.fixture(
    scope="module",
    params=[(name, jit) for name in MINERS for jit in (False, True)],
    ids=lambda param: f"{param[0]}-{'xla' if param[1] else 'no xla'}",
)
def run(request):
    """A model before and after training: what it was told and what came of it."""
    name, jit_compile = request.param
    model = make(MINERS[name](), towers=lambda: (Tower(), Tower()), jit_compile=jit_compile)
    traces = []

    class CountTraces(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            traces.append(model.target_tower.traces)

    model.encode_corpus()
    model.encode_queries(QUERY_FEATURES[:1])
    before = recall(model)
    # Compiling evaluation too would teach nothing more and take its time.
    first = None if jit_compile else model.evaluate(batches(), verbose=0)
    history = model.fit(batches(), epochs=6, verbose=0, callbacks=[CountTraces()]).history["loss"]
    return {
        "model": model,
        "name": name,
        "recall": (before, recall(model)),
        "evaluated": None if jit_compile else (first, model.evaluate(batches(), verbose=0)),
        "history": history,
        "traces": traces,
    }


def test_fit_lowers_the_loss(run):
    assert run["history"][-1] < 0.7 * run["history"][0]
    assert np.isfinite(run["history"]).all()


def test_fit_ranks_the_corpus_better(run):
    before, after = run["recall"]
    assert before < 0.15
    assert after > before + 0.3


def test_evaluate_tells_the_progress(run):
    if run["evaluated"]:
        first, last = run["evaluated"]
        assert last < 0.7 * first


def test_nothing_is_traced_after_the_second_step(run):
    assert len(run["traces"]) == 6 * len(POSITIVES) // BATCH
    assert len(set(run["traces"][1:])) == 1


def test_predict_encodes_queries(run):
    model = run["model"]
    expected = model.query_tower(QUERY_FEATURES, training=False)
    np.testing.assert_allclose(
        model.predict(QUERY_FEATURES, batch_size=100, verbose=0), expected, atol=1e-5
    )


def test_all_targets_are_encoded_as_often_as_the_miner_says(run):
    passes = 6 + (2 if run["evaluated"] else 0)  # evaluate mines too
    steps = passes * len(POSITIVES) // BATCH
    expected = {"tree": 1, "exact": steps, "uniform": 0, "in-batch": 0}
    assert int(run["model"].miner.full_encodes) == expected[run["name"]]


# The loss


def test_in_batch_loss_is_that_of_the_reference():
    model = make(InBatch())
    model.fit(batches().take(2), verbose=0)  # the first 40 targets, each the positive of two examples
    x, y = QUERY_FEATURES[:10], np.array([0, 0, 2, 5, 5, 9, 60, 70, 80, 90], np.int32)
    queries, rows = model.query_tower(x).numpy(), model.target_tower(TARGET_FEATURES[y]).numpy()
    # One more example is imagined for every target.
    log_expected = np.log(9 * np.where(y < 40, 3, 1) / (2 * 40 + TARGETS))
    expected = reference.sampled_softmax(
        queries @ rows.T / TEMPERATURE, np.arange(10), log_expected, y[:, None] == y[None, :]
    )
    assert model.mined_loss(x, y).numpy() == pytest.approx(expected.mean(), rel=1e-4)
    sample_weight = np.arange(10, dtype=np.float32)
    weighted = model.mined_loss(x, y, sample_weight=sample_weight).numpy()
    assert weighted == pytest.approx(np.average(expected, weights=sample_weight), rel=1e-4)


# What y may be


def test_rows_padded_rows_and_identifiers_are_the_same():
    model = make(Uniform(), identifiers=NAMES)
    model.prepare_miner()
    x, y = QUERY_FEATURES[:6], POSITIVES[3:9]
    forms = {
        "rows": y,
        "int64": y.astype(np.int64),
        "column": y[:, None],
        "padded": np.stack([y, np.full(6, -1), np.full(6, -1)], axis=1),
        "padded in front": np.stack([np.full(6, -1), y], axis=1),
        "identifiers": tf.constant(NAMES[y]),
        "padded identifiers": tf.constant(np.stack([NAMES[y], [""] * 6], axis=1)),
    }
    computed = {}
    for form, value in forms.items():
        model.miner._calls.assign(0)  # the same draws each time
        computed[form] = float(model.mined_loss(x, value))
    assert computed == pytest.approx(dict.fromkeys(forms, computed["rows"]), rel=1e-5)


def test_one_of_several_positives_is_trained_on_at_each_step_and_none_is_a_negative():
    model = make(InBatch(), optimizer=keras.optimizers.SGD(0.0))
    positives = np.array([[4, 7, 9, -1], [20, 21, -1, -1]], np.int32)
    model.fit(batches(positives, x=QUERY_FEATURES[:2]).repeat(300), verbose=0)
    counts = model.frequencies.counts.numpy()
    assert set(np.flatnonzero(counts)) == {4, 7, 9, 20, 21}
    np.testing.assert_allclose(counts[[4, 7, 9]], 100, atol=30)
    np.testing.assert_allclose(counts[[20, 21]], 150, atol=35)
    # Two queries that know each other's positives have no negative at all.
    both = np.array([[4, 7], [7, 4]], np.int32)
    assert float(model.mined_loss(QUERY_FEATURES[:2], both)) == pytest.approx(0.0, abs=1e-6)


def test_identifiers_train_where_the_step_is_not_compiled():
    model = make(identifiers=NAMES)
    again = make()
    model.fit(batches(NAMES[POSITIVES]), verbose=0)
    again.fit(batches(), verbose=0)
    assert_same(weights(model), weights(again))


def test_example_without_positive_has_no_influence():
    """Neither on the loss of the others, nor as a candidate."""
    y = np.array([5, 6, -1, -1], np.int32)
    changed = QUERY_FEATURES[:4].copy()
    changed[2:] *= -3.0

    def gradients(x):
        keras.utils.set_random_seed(0)
        ids = keras.Input([], dtype="int32")
        target_tower = keras.Model(ids, keras.layers.Embedding(TARGETS, DIM)(ids))
        model = DualEncoder(
            functional_tower(), target_tower, TargetCorpus(np.arange(TARGETS)), InBatch()
        )
        model.prepare_miner()
        variables = [v.value if IS_KERAS_3 else v for v in target_tower.trainable_variables]
        with tf.GradientTape() as tape:
            loss = model.mined_loss(x, y)
        return float(loss), tf.convert_to_tensor(tape.gradient(loss, variables)[0]).numpy()

    loss, gradient = gradients(QUERY_FEATURES[:4])
    assert loss > 0
    assert set(np.flatnonzero(np.abs(gradient).sum(axis=1))) == {5, 6}
    assert_same((loss, gradient), gradients(changed))


def test_batch_without_any_positive_changes_nothing():
    model = make(Uniform())
    model.prepare_miner()
    before = weights(model)
    loss = model.train_on_batch(QUERY_FEATURES[:3], np.full([3, 2], -1, np.int32))
    assert float(np.ravel(loss)[0]) == 0.0
    assert_same(before, weights(model), atol=0, rtol=0)
    assert model.frequencies.counts.numpy().sum() == 0


def test_example_of_weight_zero_has_no_influence():
    changed = QUERY_FEATURES[:8].copy()
    changed[3] = 9.0
    weight = np.ones(8, np.float32)
    weight[3] = 0.0
    results = []
    for x in (QUERY_FEATURES[:8], changed):
        model = make(Uniform())
        model.train_on_batch(x, POSITIVES[:8], sample_weight=weight)
        results.append(weights(model))
    assert_same(*results)
    model = make(Uniform())
    model.train_on_batch(changed, POSITIVES[:8])
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(weights(model), results[0], strict=True))


# What towers may be


def test_features_may_be_dicts():
    title, price = keras.Input([WIDTH], name="title"), keras.Input([1], name="price")
    joined = keras.layers.Concatenate()([title, price])
    target_tower = keras.Model({"title": title, "price": price}, keras.layers.Dense(DIM)(joined))
    text = keras.Input([WIDTH], name="text")
    query_tower = keras.Model({"text": text}, keras.layers.Dense(DIM)(text))
    prices = np.zeros([TARGETS, 1], np.float32)
    corpus = TargetCorpus({"title": TARGET_FEATURES, "price": prices})
    model = DualEncoder(query_tower, target_tower, corpus, Uniform())
    model.compile(optimizer="adam", jit_compile=False)
    dataset = batches().map(lambda x, y: ({"text": x}, y))
    history = model.fit(dataset, epochs=2, verbose=0).history["loss"]
    assert history[1] < history[0]
    assert model.predict(dataset, verbose=0).shape == (2 * TARGETS, DIM)


def test_towers_may_share_layers_or_be_one():
    shared = keras.layers.Dense(DIM)

    def sharing():
        towers = []
        for _ in range(2):
            features = keras.Input([WIDTH])
            towers.append(keras.Model(features, shared(keras.layers.Dense(WIDTH)(features))))
        return towers

    for towers, distinct in ((sharing, 6), (lambda: [functional_tower()] * 2, 4)):
        model = make(Uniform(), towers=towers)
        assert len(model.trainable_variables) == distinct
        history = model.fit(batches(), epochs=3, verbose=0).history["loss"]
        assert history[-1] < history[0]


def test_tower_need_not_take_training():
    class Plain(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(DIM)

        def call(self, features):
            return self.dense(features)

    model = make(Uniform(), towers=lambda: (Plain(), Plain()))
    history = model.fit(batches(), epochs=2, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize("kind", ["kernel_regularizer", "activity_regularizer"])
def test_regularisation_of_the_towers_is_trained_on(kind):
    def towers():
        made = []
        for _ in range(2):
            features = keras.Input([WIDTH])
            layer = keras.layers.Dense(DIM, **{kind: keras.regularizers.L2(3.0)})
            made.append(keras.Model(features, layer(features)))
        return made

    # Exact encodes all targets in inference mode too: that is not to be added.
    model = make(Exact(), towers=towers, optimizer=keras.optimizers.SGD(1e-3))
    twin = make(Exact(), towers=towers)
    twin.prepare_miner()
    x, y = QUERY_FEATURES[:8], POSITIVES[:8]
    expected = weights(model)
    variables = [v.value if IS_KERAS_3 else v for v in twin.trainable_variables]
    with tf.GradientTape() as tape:
        queries = twin.query_tower(x)
        loss, (rows, *_) = twin._loss_and_candidates(x, tf.constant(y[:, None]), None, training=True)
        if kind == "kernel_regularizer":
            kernels = [v for v in variables if len(v.shape) == 2]
            penalty = tf.add_n([3.0 * tf.reduce_sum(kernel**2) for kernel in kernels])
        else:  # Keras divides by the batch
            candidates = twin.target_tower(tf.gather(TARGET_FEATURES, rows))
            penalty = 3.0 * tf.reduce_sum(queries**2) / 8
            penalty += 3.0 * tf.reduce_sum(candidates**2) / float(len(rows))
        total = loss + penalty
    gradients = tape.gradient(total, variables)
    model.train_on_batch(x, y)
    expected = [w - 1e-3 * g for w, g in zip(expected, gradients, strict=True)]
    assert_same(weights(model), expected)


# Write-back


def held(model, rows):
    return model.miner.index.tree.read(tf.constant(rows)).numpy()


def encoded(model, rows):
    return model.target_tower(TARGET_FEATURES[rows], training=False).numpy()


@pytest.mark.parametrize("towers", ["plain", "dropout", "batch normalisation"])
def test_step_writes_inference_encodings_back(towers):
    kinds = {
        "plain": lambda: (functional_tower(), functional_tower()),
        "dropout": lambda: (functional_tower(0.5), functional_tower(0.5)),
        "batch normalisation": lambda: (Tower(normalise=True), Tower(normalise=True)),
    }
    model = make(Tree(refresh_every=1000), towers=kinds[towers], optimizer=keras.optimizers.SGD(0.5))
    model.prepare_miner()
    model.train_on_batch(QUERY_FEATURES[-20:], POSITIVES[-20:])  # from here on, rows are stale
    rows, others = POSITIVES[:20:2], np.arange(TARGETS)
    before, stale = encoded(model, others), held(model, others)
    assert np.median(np.abs(before - stale).max(axis=1)[rows]) > 0.01
    first = model.miner.turn.numpy()
    model.train_on_batch(QUERY_FEATURES[:20:2], rows)
    in_turn_now = in_turn(np.arange(first, model.miner.turn.numpy()), TARGETS)
    assert len(in_turn_now) == math.ceil(3 * len(rows) / 16)
    after = encoded(model, others)
    assert np.abs(after - before).max() > 0.01
    now = held(model, others)
    # Encodings that the step made anyway are those of before its update; where training mode differs
    # there is a second pass, and that is after it.
    written = before if towers == "plain" else after
    written[in_turn_now] = after[in_turn_now]  # these are encoded in the end
    np.testing.assert_allclose(now[rows], written[rows], atol=1e-5)
    np.testing.assert_allclose(now[in_turn_now], written[in_turn_now], atol=1e-5)
    touched = np.abs(now - stale).max(axis=1) > 1e-6
    touched[in_turn_now] = False
    assert touched.sum() <= 3 * len(rows)  # positives and two negatives for each
    np.testing.assert_allclose(now[touched], written[touched], atol=1e-5)


def test_index_follows_training_without_another_full_encode():
    model = make(Tree(refresh_every=2), optimizer=keras.optimizers.Adam(0.01))
    model.prepare_miner()
    start = held(model, np.arange(TARGETS))
    model.fit(batches(), epochs=3, verbose=0)
    fresh = encoded(model, np.arange(TARGETS))
    drift = np.linalg.norm(start - fresh, axis=1).mean()
    left = np.linalg.norm(held(model, np.arange(TARGETS)) - fresh, axis=1).mean()
    assert drift > 0.3
    assert left < 0.2 * drift
    assert int(model.miner.full_encodes) == 1


def test_encoder_that_jumps_is_noticed_once_and_followed():
    model = make(Tree(1), options={"seed": 1})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*jumped")
        model.fit(batches(), epochs=4, verbose=0)
    assert model.miner.index.staleness()["jumps"] == 0

    def behind():
        fresh = model.encode_corpus()
        held = model.miner.index.read(tf.range(TARGETS)).numpy()
        return np.mean(np.sum((held - fresh) ** 2, axis=1))

    usual = behind()
    other = functional_tower()
    model.target_tower.set_weights(other.get_weights())
    assert behind() > 0.3
    with pytest.warns(UserWarning, match="jumped"):
        model.fit(batches(), epochs=2, verbose=0)  # 24 steps
    assert behind() < 2 * usual + 0.02
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*jumped")
        model.target_tower.set_weights(functional_tower().get_weights())
        model.fit(batches(), epochs=2, verbose=0)
    assert model.miner.index.staleness()["jumps"] >= 2


# Ways to train


def test_last_batch_may_be_smaller():
    model = make(Tree(), jit_compile=False)
    history = model.fit(batches(batch=400), epochs=2, verbose=0).history["loss"]  # 400 and 80
    assert np.isfinite(history).all()
    assert model.frequencies.counts.numpy().sum() == 2 * len(POSITIVES)


def test_several_steps_per_execution_are_the_same_steps():
    one = make(Uniform())
    several = make(Uniform(), steps_per_execution=4)
    one.fit(batches(), epochs=2, verbose=0)
    several.fit(batches(), epochs=2, verbose=0)
    assert_same(weights(one), weights(several))


def test_arrays_train_like_a_dataset():
    arrays, dataset = make(Uniform()), make(Uniform())
    arrays.fit(QUERY_FEATURES, POSITIVES, batch_size=BATCH, shuffle=False, verbose=0)
    dataset.fit(batches(), verbose=0)
    assert_same(weights(arrays), weights(dataset))


def test_train_on_batch_is_a_step_of_fit():
    by_hand, fitted = make(Uniform()), make(Uniform())
    for x, y in batches():
        by_hand.train_on_batch(x, y)
    fitted.fit(batches(), verbose=0)
    assert_same(weights(by_hand), weights(fitted))


@pytest.mark.parametrize("traced", [True, False])
def test_own_training_loop_is_that_of_fit(traced):
    by_hand, fitted = (make(Tree(refresh_every=2)) for _ in range(2))
    variables = by_hand.trainable_variables
    by_hand.optimizer.build(variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = by_hand.mined_loss(x, y)
        gradients = tape.gradient(loss, [v.value if IS_KERAS_3 else v for v in variables])
        by_hand.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return by_hand.after_step()

    step = tf.function(step, autograph=False) if traced else step
    for x, y in batches().take(4):
        logs = step(x, y)
    fitted.fit(batches().take(4), verbose=0)
    assert_same(weights(by_hand), weights(fitted))
    everything = np.arange(TARGETS)
    assert_same([held(by_hand, everything)], [held(fitted, everything)])
    assert_same([by_hand.frequencies.counts], [fitted.frequencies.counts])
    assert int(by_hand.step) == 4
    assert logs.keys() == by_hand.miner.logs().keys()


def test_what_the_miner_logs_is_logged():
    class Counting(Uniform):
        def logs(self):
            return {"draws": tf.cast(self._calls, tf.float32)}

    history = make(Counting()).fit(batches().take(3), verbose=0).history
    assert history["draws"] == [3.0]


def test_after_step_needs_a_loss_of_its_own_step():
    model = make(Uniform())
    model.prepare_miner()
    x, y = QUERY_FEATURES[:4], POSITIVES[:4]
    with pytest.raises(RuntimeError, match="follows a mined_loss.*Received: a call without one"):
        model.after_step()
    model.mined_loss(x, y)
    model.after_step()
    with pytest.raises(RuntimeError, match="without one"):
        model.after_step()
    model.mined_loss(x, y, training=False)
    with pytest.raises(RuntimeError, match="without one"):
        model.after_step()
    tf.function(model.mined_loss)(x, y)
    with pytest.raises(RuntimeError, match="the tf.function that mined_loss.*a call outside of it"):
        model.after_step()


def test_validation_data_is_evaluated():
    model = make(Uniform())
    history = model.fit(batches(), validation_data=batches(), epochs=2, verbose=0).history
    assert history.keys() == {"loss", "val_loss"}
    assert history["val_loss"][1] < history["val_loss"][0]


def test_evaluate_changes_neither_weights_nor_index():
    model = make(Tree(refresh_every=1))
    model.prepare_miner()
    before = [*weights(model), held(model, np.arange(TARGETS))]
    model.evaluate(batches(), verbose=0)
    assert_same(before, [*weights(model), held(model, np.arange(TARGETS))], atol=0, rtol=0)
    assert model.frequencies.counts.numpy().sum() == 0


def test_evaluate_switches_dropout_off():
    def evaluated():
        model = make(InBatch(), towers=lambda: (functional_tower(0.9), functional_tower(0.9)))
        return model, [model.evaluate(batches(), verbose=0) for _ in range(2)]

    model, (first, second) = evaluated()
    assert first == pytest.approx(second, rel=1e-6)
    x, y = QUERY_FEATURES[:8], POSITIVES[:8]
    trained = [float(model.mined_loss(x, y, training=True)) for _ in range(2)]
    assert abs(trained[0] - trained[1]) > 1e-4


def test_same_seed_gives_the_same_run():
    def run_of(seed):
        model = make(Tree(refresh_every=2, seed=seed), seed=0)
        history = model.fit(batches(), verbose=0).history["loss"]
        return [np.array(history), *weights(model)]

    first, again, another = run_of(1), run_of(1), run_of(2)
    assert_same(first, again, rtol=1e-5, atol=1e-6)
    assert np.abs(first[1] - another[1]).max() > 1e-3


@pytest.mark.parametrize("prepared", [True, False])
def test_checkpoint_continues_alike(tmp_path, prepared):
    def fresh():
        return make(Tree(refresh_every=3), options={"learn_temperature": True})

    def state(model):
        index = held(model, np.arange(TARGETS))
        return [*weights(model), index, model.frequencies.counts.numpy(), model.beta.numpy()]

    first = fresh()
    first.fit(batches(), epochs=1, verbose=0)
    path = tf.train.Checkpoint(model=first).save(str(tmp_path / "checkpoint"))
    saved = state(first)
    first.fit(batches(), epochs=1, verbose=0)

    second = fresh()
    if prepared:
        second.prepare_miner()
        second.optimizer.build(second.trainable_variables)
        status = tf.train.Checkpoint(model=second).restore(path)
        status.assert_existing_objects_matched()
    else:
        tf.train.Checkpoint(model=second).restore(path)
        second.prepare_miner()
    assert_same(saved, state(second), atol=0, rtol=0)
    assert np.abs(saved[0] - state(first)[0]).max() > 1e-3
    second.fit(batches(), epochs=1, verbose=0)
    assert_same(state(first), state(second))
    assert int(second.step) == int(first.step)
    assert int(second.miner.full_encodes) == 1


def test_weights_are_saved_and_loaded(tmp_path):
    trained, fresh = make(Uniform()), make(Uniform(), seed=1)
    trained.fit(batches(), verbose=0)
    trained.save_weights(tmp_path / "model.weights.h5")
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_same(weights(trained), weights(fresh), atol=0, rtol=0)
    subclassed = make(Uniform(), towers=lambda: (Tower(), Tower()))
    subclassed.fit(batches(), verbose=0)
    subclassed.save_weights(tmp_path / "subclassed.weights.h5")


def test_summary_names_the_towers():
    lines = []
    model = make()
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert model.query_tower.name in "".join(lines)
    assert model.target_tower.name in "".join(lines)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_trains(dtype):
    """Whether XLA compiles the step is left to Keras here."""
    keras.mixed_precision.set_global_policy(f"mixed_{dtype}")
    try:
        model = make(Uniform())
        model.compile(optimizer=keras.optimizers.Adam(0.02))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    history = model.fit(batches(), epochs=3, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]
    assert model.target_tower.compute_dtype == dtype
    assert model.predict(QUERY_FEATURES[:3], verbose=0).dtype == np.float32


# Export


@pytest.mark.parametrize("identifiers", [None, NAMES], ids=["integers", "strings"])
def test_export_answers_as_the_model_in_memory(tmp_path, identifiers):
    model = make(Uniform(), identifiers=identifiers)
    model.fit(batches(), epochs=2, verbose=0)
    path = model.export_retrieval(tmp_path / "exported", k=7)
    queries, targets = model.query_tower(QUERY_FEATURES).numpy(), encoded(model, np.arange(TARGETS))
    scores, rows = reference.top_k(queries @ targets.T, 7)
    model.fit(batches(), epochs=1, verbose=0)  # what is trained later is not served
    signatures = tf.saved_model.load(path).signatures
    (name,) = signatures["retrieve"].structured_input_signature[1]
    answer = signatures["retrieve"](**{name: tf.constant(QUERY_FEATURES)})
    np.testing.assert_allclose(answer["scores"], scores, atol=1e-5)
    found = answer["identifiers"].numpy()
    clear = np.diff(scores, axis=1).max(axis=1) < -1e-5  # ties may come in either order
    assert clear.mean() > 0.9
    if identifiers is None:
        np.testing.assert_array_equal(found[clear], rows[clear])
    else:
        assert np.char.decode(found[clear].astype("S")).tolist() == NAMES[rows[clear]].tolist()


def test_export_prepares_raw_features(tmp_path):
    model = make(Uniform())
    path = model.export_retrieval(
        tmp_path / "exported",
        k=3,
        preprocess_query=lambda text: tf.strings.to_number(tf.strings.split(text).to_tensor()),
        query_spec=tf.TensorSpec([None], tf.string),
    )
    texts = [" ".join(map(str, features)) for features in QUERY_FEATURES[:5].tolist()]
    signatures = tf.saved_model.load(path).signatures
    answer = signatures["retrieve"](query=tf.constant(texts))
    queries = model.query_tower(QUERY_FEATURES[:5]).numpy()
    scores, rows = reference.top_k(queries @ encoded(model, np.arange(TARGETS)).T, 3)
    np.testing.assert_allclose(answer["scores"], scores, atol=1e-5)
    np.testing.assert_array_equal(answer["identifiers"], rows)


def test_export_of_a_subclassed_tower_needs_to_be_told_its_inputs(tmp_path):
    model = make(Uniform(), towers=lambda: (Tower(), Tower()))
    model.fit(batches(), verbose=0)
    with pytest.raises(ValueError, match="give query_spec and target_spec. Received: Tower"):
        model.export_retrieval(tmp_path / "exported")
    spec = tf.TensorSpec([None, WIDTH])
    path = model.export_retrieval(tmp_path / "exported", k=3, query_spec=spec, target_spec=spec)
    answer = tf.saved_model.load(path).signatures["retrieve"](query=tf.constant(QUERY_FEATURES[:5]))
    queries = model.query_tower(QUERY_FEATURES[:5]).numpy()
    scores, _ = reference.top_k(queries @ encoded(model, np.arange(TARGETS)).T, 3)
    np.testing.assert_allclose(answer["scores"], scores, atol=1e-5)


# What is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"corpus": TARGET_FEATURES}, "corpus must be a TargetCorpus. Received: ndarray"),
        ({"miner": "tree"}, r"miner must be a miner .* such as Tree\(\). Received: 'tree'"),
        ({"miner": Tree}, "miner must be a miner .*Received: <class"),
        (
            {"miner": Uniform(num_negatives=TARGETS + 1)},
            f"More negatives than targets.*num_negatives={TARGETS + 1}, {TARGETS} targets",
        ),
        ({"learn_temperature": True, "temperature": 2.0}, "0.01 to 1. Received: temperature=2.0"),
        ({"similarity": "euclid"}, "similarity must be one of dot, cosine. Received: .*'euclid'"),
        ({"sharing": "all"}, "sharing must be one of batch, none. Received: .*'all'"),
        ({"sharing": "none"}, "needs a miner that draws .*Received: miner=<.*InBatch"),
        ({"relative_margin": -0.1}, "at least 0, or None. Received: relative_margin=-0.1"),
        ({"absolute_margin": "1"}, "finite number or None. Received: absolute_margin='1'"),
        ({"max_score": float("nan")}, "finite number or None. Received: max_score=nan"),
        ({"range_min": 1.5}, "whole number of at least 0. Received: range_min=1.5"),
        ({"range_min": -1}, "whole number of at least 0. Received: range_min=-1"),
        ({"encode_chunk": 0}, "encode_chunk .*Received: .*0"),
        *(
            ({"temperature": value}, f"positive and finite. Received: temperature={value!r}")
            for value in (0, -0.1, float("nan"), float("inf"), "0.1", None)
        ),
    ],
)
def test_bad_argument_is_refused(changes, message):
    arguments = {"corpus": TargetCorpus(TARGET_FEATURES), "miner": InBatch(), **changes}
    with pytest.raises(ValueError, match=message):
        DualEncoder(functional_tower(), functional_tower(), **arguments)


@pytest.mark.parametrize(
    "y, message",
    [
        (np.zeros(4, np.float32), "rows of the corpus .* or identifiers .*Received: dtype float32"),
        (np.zeros([4, 1, 1], np.int32), r"\[batch\] or \[batch, positives\].*shape \(4, 1, 1\)"),
        (np.array(3), r"\[batch\] or \[batch, positives\].*shape \(\)"),
        (np.zeros(4, bool), "rows of the corpus .*Received: dtype bool"),
        (tf.constant(["a"] * 4), "are integers: look up the same. Received: dtype string"),
        (None, r"Training data is \(x, y\).*Received: no y"),
    ],
)
def test_bad_y_is_refused(y, message):
    model = make()
    model.prepare_miner()
    with pytest.raises(ValueError, match=message):
        model.mined_loss(QUERY_FEATURES[:4], y)


def test_bad_y_is_refused_by_fit():
    with pytest.raises(ValueError, match="rows of the corpus .*Received: dtype float32"):
        make().fit(batches(POSITIVES.astype(np.float32)), verbose=0)
    with pytest.raises(ValueError, match=r"Training data is \(x, y\).*Received: no y"):
        make().fit(tf.data.Dataset.from_tensor_slices(QUERY_FEATURES).batch(4), verbose=0)


def test_identifiers_are_refused_where_the_step_is_compiled():
    model = make(identifiers=NAMES, jit_compile=True)
    message = "String identifiers cannot .* XLA.*corpus.rows_of.*Received: y of dtype string"
    with pytest.raises(ValueError, match=message):
        model.fit(batches(NAMES[POSITIVES]), verbose=0)
    model = make(identifiers=NAMES, jit_compile=True)
    dataset = batches(NAMES[POSITIVES]).map(lambda x, y: (x, model.corpus.rows_of(y)))
    assert np.isfinite(model.fit(dataset, verbose=0).history["loss"]).all()
