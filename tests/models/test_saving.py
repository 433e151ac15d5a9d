import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.models import small
from tests.models.small import NAMES, TARGET_FEATURES, assert_same_state, batches, make, state
from tf_dynidx import DualEncoder, TargetCorpus
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.miners import (
    Exact,
    InBatch,
    Mixed,
    NegativeCache,
    Popularity,
    Stale,
    Stochastic,
    Tree,
    Uniform,
)


def tree():
    return Tree(num_negatives=2, refresh_every=3)


def dropping_towers():
    """Towers with random state, where Keras has one to save."""
    return [small.functional_tower(0.1 if IS_KERAS_3 else 0.0) for _ in range(2)]


def configuration(model):
    """All but the towers, whose configurations are Keras's."""
    config = model.get_config()
    assert config.pop("query_tower") and config.pop("target_tower")
    return config


@pytest.fixture(scope="module")
def trained():
    model = make(tree(), dropping_towers, identifiers=NAMES, options={"learn_temperature": True})
    model.fit(batches().take(7), verbose=0)
    return model


@pytest.fixture
def no_full_encode(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("all targets were encoded again")

    monkeypatch.setattr(DualEncoder, "encode_corpus", refuse)


@pytest.fixture
def no_full_encode_but_one(monkeypatch):
    calls, encode_corpus = [], DualEncoder.encode_corpus

    def count(self, **kwargs):
        assert not calls, "all targets were encoded again"
        calls.append(self)
        return encode_corpus(self, **kwargs)

    monkeypatch.setattr(DualEncoder, "encode_corpus", count)


# .keras files


def test_keras_file_brings_everything_back(trained, tmp_path, no_full_encode):
    trained.save(tmp_path / "model.keras")
    saved = state(trained)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_state(saved, state(loaded))
    assert saved["miner.index.tree.rows"].any() and saved["step"] == 7
    assert configuration(loaded) == configuration(trained)
    np.testing.assert_array_equal(loaded.corpus.features, TARGET_FEATURES)
    np.testing.assert_array_equal(loaded.corpus.identifiers, NAMES)
    np.testing.assert_array_equal(loaded.corpus.rows_of(["target 9", "target 3"]), [9, 3])

    # It goes on as the first would have, on the same index.
    twin = keras.models.load_model(tmp_path / "model.keras")
    loaded.fit(batches().take(4), verbose=0)
    twin.fit(batches().take(4), verbose=0)
    assert_same_state(state(loaded), state(twin))
    assert int(loaded.miner.full_encodes) == 1
    found = loaded.miner.index.search(loaded.encode_queries(small.QUERY_FEATURES[:20]), k=1)[1]
    expected = twin.miner.index.search(twin.encode_queries(small.QUERY_FEATURES[:20]), k=1)[1]
    np.testing.assert_array_equal(found, expected)


def test_keras_file_of_a_model_that_was_not_trained(tmp_path):
    model = make(Uniform())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.miner.built
    loaded.fit(batches().take(2), verbose=0)
    model.fit(batches().take(2), verbose=0)
    assert_same_state(state(model), state(loaded))


def test_mixture_of_miners_comes_back_and_goes_on_encoding(tmp_path):
    miners = [
        Stale(1, refresh_every=5),
        NegativeCache(1, cache_size=60),
        Stochastic(1, num_candidates=30),
        Popularity(1),
    ]
    model = make(Mixed(miners), jit_compile=True)
    model.fit(batches().take(7), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_state(state(model), state(loaded))
    counts = loaded.miner.miners[3].counts.numpy()
    np.testing.assert_array_equal(
        counts, np.bincount(small.POSITIVES[: 7 * small.BATCH], minlength=240)
    )
    # At first and after five steps all; the cache, and one of it a step; the samples.
    assert int(loaded.miner.rows_encoded) == 2 * 240 + 60 + 7 + 7 * 30
    loaded.fit(batches().take(3), verbose=0)
    assert int(loaded.miner.rows_encoded) == 3 * 240 + 60 + 10 + 10 * 30
    assert int(loaded.miner.full_encodes) == 3
    np.testing.assert_allclose(loaded.miner.miners[0].table, loaded.encode_corpus(), atol=1e-5)


FEATURES = {
    "dict": {"b": np.arange(6.0), "a": np.array([["x", "long text"]] * 5 + [["", "ü"]])},
    "text": np.array(["one", "", "three \x00 bytes", "ü", "five", "six"]),
    "bfloat16": tf.cast(tf.range(6), tf.bfloat16),
    "bool": np.array([True, False] * 3),
}


@pytest.mark.parametrize("identifiers", [None, [9, 8, 7, 6, 5, 4], list("äbcdef")])
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_corpus_is_written_and_read(features, identifiers, tmp_path):
    corpus = TargetCorpus(features, identifiers)
    corpus.write(tmp_path)
    again = TargetCorpus.from_config(corpus.get_config())
    assert again.size == 6
    with pytest.raises(ValueError, match="without its corpus.*Received: .* of 6 targets"):
        again.gather([0])
    again.read(tmp_path)
    assert again.get_config() == corpus.get_config()
    rows = [5, 0, 2]
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_array_equal(a.numpy(), b.numpy()),
        corpus.gather(rows),
        again.gather(rows),
    )
    np.testing.assert_array_equal(corpus.identifiers, again.identifiers)
    np.testing.assert_array_equal(again.rows_of(corpus.identifiers[rows]), rows)


def test_corpus_may_stay_out_of_the_file(tmp_path):
    model = make(Uniform(), corpus={"saved": False})
    model.fit(batches().take(1), verbose=0)
    model.save(tmp_path / "model.keras")
    alone = keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(ValueError, match='without its corpus.*"corpus": corpus'):
        alone.fit(batches().take(1), verbose=0)

    def load(features):
        corpus = TargetCorpus(features, NAMES[: len(features)])
        return keras.models.load_model(
            tmp_path / "model.keras", custom_objects={"corpus": corpus}
        ), corpus

    loaded, corpus = load(TARGET_FEATURES)
    assert loaded.corpus is corpus
    assert_same_state(state(model), state(loaded))
    loaded.fit(batches().take(1), verbose=0)
    with pytest.raises(ValueError, match="like the one .*saved with. Received: size 30, .*with 240"):
        load(TARGET_FEATURES[:30])
    with pytest.raises(ValueError, match=r"Received: features \[\[None, \[240, 2\], 'float32'\]\]"):
        load(TARGET_FEATURES[:, :2])


def test_corpus_handed_in_takes_the_place_of_the_one_in_the_file(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    corpus = TargetCorpus(TARGET_FEATURES + 1.0, NAMES[::-1])
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"corpus": corpus}, compile=False
    )
    assert loaded.corpus is corpus
    np.testing.assert_array_equal(corpus.features, TARGET_FEATURES + 1.0)


def test_one_tower_for_both_comes_back_as_one(tmp_path):
    model = make(Uniform(), lambda: [small.functional_tower()] * 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.query_tower is loaded.target_tower
    assert len(loaded.trainable_variables) == 4
    small.assert_same(small.weights(model), small.weights(loaded), rtol=0, atol=0)


def sharing_towers():
    """One takes a dict and the other does not, around a model that they share."""
    shared = keras.Sequential([keras.Input([3]), keras.layers.Dense(4), keras.layers.Dense(4)])
    towers = []
    for named in (False, True):
        features = keras.Input([small.WIDTH], name="text" if named else "query")
        output = keras.layers.Dense(small.DIM)(shared(keras.layers.Dense(3)(features)))
        towers.append(keras.Model({"text": features} if named else features, output))
    return towers


def test_towers_that_share_layers_come_back_sharing(tmp_path):
    keras.utils.set_random_seed(0)
    corpus = TargetCorpus({"text": TARGET_FEATURES}, NAMES)
    model = DualEncoder(*sharing_towers(), corpus, Uniform(), temperature=0.5)
    model.compile(optimizer="adam", jit_compile=False)
    model.fit(batches().take(2), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_variables) == len(model.trainable_variables) == 12
    assert_same_state(state(model), state(loaded))
    np.testing.assert_allclose(loaded.encode_corpus(), model.encode_corpus(), atol=1e-6)
    for each in (model, loaded):
        each.fit(batches().take(2), verbose=0)
    assert_same_state(state(model), state(loaded))
    model.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    assert_same_state(state(model), state(loaded))


def test_other_towers_that_share_layers_are_saved_as_weights(tmp_path):
    def towers():
        shared = small.functional_tower()
        head = keras.layers.Dense(4)
        return [keras.Sequential([keras.Input([small.WIDTH]), shared, head]) for _ in range(2)]

    models = [make(Uniform(), towers, seed=seed) for seed in (0, 1)]
    models[0].save_weights(tmp_path / "model.weights.h5")
    models[1].load_weights(tmp_path / "model.weights.h5")
    small.assert_same(*(small.weights(model) for model in models), rtol=0, atol=0)
    with pytest.raises(ValueError, match="save_weights.*Sequential and Sequential that share"):
        models[0].save(tmp_path / "model.keras")


def test_towers_with_look_ups_and_normalisation_come_back(tmp_path, no_full_encode_but_one):
    """Raw strings and numbers go in; vocabulary and statistics are the towers' own."""
    words = np.array([f"word {row % 50}" for row in range(small.TARGETS)])
    prices = np.linspace(1.0, 500.0, small.TARGETS, dtype=np.float32)[:, None]

    def tower(inputs, number=None):
        lookup = keras.layers.StringLookup()
        lookup.adapt(words)
        text = keras.layers.Embedding(51, small.DIM)(lookup(inputs["word"]))
        if number is not None:
            scaled = keras.layers.Normalization()
            scaled.adapt(prices)
            text = keras.layers.Concatenate()([text, scaled(inputs["price"])])
        return keras.Model(inputs, keras.layers.Dense(small.DIM)(text))

    query = tower({"word": keras.Input([], dtype="string", name="word")})
    target = tower(
        {
            "word": keras.Input([], dtype="string", name="word"),
            "price": keras.Input([1], name="price"),
        },
        number=True,
    )
    corpus = TargetCorpus({"word": words, "price": prices}, words_and_rows(words))
    model = DualEncoder(query, target, corpus, tree(), similarity="cosine", encode_chunk=64)
    model.compile(optimizer="adam", jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices(({"word": words}, corpus.identifiers)).batch(40)
    model.fit(data, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_state(state(model), state(loaded))
    for each in (model, loaded):
        each.fit(data, verbose=0)
    assert_same_state(state(model), state(loaded))
    np.testing.assert_array_equal(loaded.encode_rows([0, 7]), model.encode_rows([0, 7]))


def words_and_rows(words):
    return [f"{word} of row {row}" for row, word in enumerate(words)]


# Configurations

OPTIONS = {
    "temperature": 0.2,
    "learn_temperature": True,
    "similarity": "cosine",
    "sharing": "none",
    "mining_queries": 3,
    "relative_margin": 0.05,
    "absolute_margin": 0.1,
    "max_score": 0.9,
    "range_min": 2,
    "unlabelled_weight": 0.25,
    "encode_chunk": 16,
    "seed": 5,
    "name": "retriever",
}


MINERS = [tree(), Exact(3), Uniform(4, seed=2), InBatch(seed=3), Mixed([Stale(2), Uniform(2)], [2, 1])]


@pytest.mark.parametrize("miner", MINERS)
def test_configuration_makes_the_same_model(miner):
    options = OPTIONS | ({"sharing": "batch"} if isinstance(miner, InBatch) else {})
    model = make(miner, options=options)
    config = configuration(model)
    assert {name: config[name] for name in options} == options
    again = DualEncoder.from_config(model.get_config(), custom_objects={"corpus": model.corpus})
    assert configuration(again) == config
    assert len(again.trainable_variables) == len(model.trainable_variables)
    assert type(again.miner) is type(miner) and again.miner is not miner
    assert again.corpus is model.corpus


# Files of weights


def test_weights_file_brings_index_and_counts_back(trained, tmp_path, no_full_encode):
    trained.save_weights(tmp_path / "model.weights.h5")
    fresh = make(
        tree(), dropping_towers, seed=1, identifiers=NAMES, options={"learn_temperature": True}
    )
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_same_state(state(trained), state(fresh))
    # Into a model that has trained already, in place.
    fresh.fit(batches().take(2), verbose=0)
    before = fresh.miner.index
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert fresh.miner.index is before
    assert_same_state(state(trained), state(fresh))


def test_weights_file_of_bfloat16_rows(tmp_path):
    model = make(Tree(dtype="bfloat16"))
    model.prepare_miner()
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = make(Tree(dtype="bfloat16"), seed=1)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert model.miner.index.tree.rows.numpy().astype(np.float32).any()
    assert_same_state(state(model), state(fresh))


def test_weights_file_of_another_model_is_refused(tmp_path):
    model = make(Uniform())
    model.prepare_miner()
    model.save_weights(tmp_path / "model.weights.h5")
    other = make(Popularity())
    other.prepare_miner()
    with pytest.raises(ValueError, match=r"without \['miner.counts'\], and with \[\] besides"):
        other.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("ending", ["weights.h5", "keras"])
def test_best_model_is_kept_by_model_checkpoint(tmp_path, ending, no_full_encode):
    model = make(Uniform())
    path = tmp_path / f"best.{ending}"
    keep = keras.callbacks.ModelCheckpoint(
        str(path), save_weights_only=ending != "keras", monitor="loss", save_best_only=True
    )
    model.fit(batches(), epochs=2, verbose=0, callbacks=[keep])
    best = state(model)
    if ending == "keras":
        loaded = keras.models.load_model(path)
    else:
        loaded = make(Uniform(), seed=1)
        loaded.optimizer.build(loaded.trainable_variables)
        loaded.load_weights(path)
    assert_same_state(best, state(loaded))


def test_subclassed_towers_are_built_by_a_call_and_their_weights_saved(tmp_path):
    class Tower(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(small.DIM)

        def call(self, features):
            return self.dense(features)

    models = [make(Uniform(), lambda: [Tower(), Tower()], seed=seed) for seed in (0, 1)]
    for model in models:
        model(small.QUERY_FEATURES[:2])
        assert model.built and len(model.trainable_variables) == 4
    models[0].save_weights(tmp_path / "model.weights.h5")
    models[1].load_weights(tmp_path / "model.weights.h5")
    small.assert_same(*(small.weights(model) for model in models), rtol=0, atol=0)


# Killed and resumed


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return _start(tmp_path_factory.mktemp("uninterrupted"), "epoch")


@pytest.mark.parametrize("frequency", ["epoch", "5"])
def test_killed_run_resumes_with_the_same_weights_and_index(uninterrupted, tmp_path, frequency):
    """Killed in mid-epoch, some steps after the last backup, and started once more."""
    killed = _start(tmp_path, frequency, "19")
    assert killed[0].wait() == -signal.SIGKILL
    assert not (tmp_path / "state.npz").exists()
    resumed, expected = (_finish(each) for each in (_start(tmp_path, frequency), uninterrupted))
    assert resumed.pop("full_encodes") == 0
    expected.pop("full_encodes")
    assert expected["step"] == 36
    assert_same_state(expected, resumed)


def _start(folder, *arguments):
    command = [sys.executable, "-m", "tests.models.interrupted", str(folder), *arguments]
    with open(folder / "log.txt", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log), folder


def _finish(started):
    process, folder = started
    assert process.wait() == 0, (folder / "log.txt").read_text()
    with np.load(folder / "state.npz") as arrays:
        return dict(arrays)
