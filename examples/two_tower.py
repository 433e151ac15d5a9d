"""A two-tower model on generated data: train with mined negatives, search, export, reload.

Users like items of a few genres; a user's tower knows their number and their age, an item's tower its
number and its price. Run it: python examples/two_tower.py
"""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tf_dynidx as tdx

keras = tf.keras
USERS, ITEMS, GENRES, PAIRS = 2_000, 5_000, 100, 60_000


def generate(rng):
    """Features of users and items, and pairs (user, item) of what was bought."""
    genre = rng.integers(GENRES, size=ITEMS)
    liked = rng.integers(GENRES, size=(USERS, 2))
    by_genre = [np.flatnonzero(genre == g) for g in range(GENRES)]
    user = rng.integers(USERS, size=PAIRS)
    item = np.array([rng.choice(by_genre[g]) for g in liked[user, rng.integers(2, size=PAIRS)]])
    users = {"user": np.arange(USERS), "age": rng.uniform(18, 80, USERS).astype("float32")}
    items = {"item": np.arange(ITEMS), "price": rng.uniform(1, 90, ITEMS).astype("float32")}
    return users, items, user, item


def tower(number, size, feature, dim=32):
    """Unit-norm encodings of a number and one more feature."""
    inputs = {
        number: keras.Input([], dtype="int64", name=number),
        feature: keras.Input([], dtype="float32", name=feature),
    }
    embedded = keras.layers.Embedding(size, dim)(inputs[number])
    scaled = keras.layers.Rescaling(0.01)(keras.layers.Reshape([1])(inputs[feature]))
    encoding = keras.layers.Dense(dim)(keras.layers.concatenate([embedded, scaled]))
    return keras.Model(inputs, keras.layers.UnitNormalization()(encoding))


def main():
    """Trains, exports, reloads and asks."""
    users, items, user, item = generate(np.random.default_rng(0))
    names = [f"item-{number}" for number in range(ITEMS)]

    corpus = tdx.TargetCorpus(items, identifiers=names)
    model = tdx.DualEncoder(
        tower("user", USERS, "age"),
        tower("item", ITEMS, "price"),
        corpus,
        miner=tdx.miners.Tree(num_negatives=2),
    )
    model.compile(optimizer=keras.optimizers.Adam(0.01))

    queries = {name: values[user] for name, values in users.items()}
    dataset = tf.data.Dataset.from_tensor_slices((queries, item.astype("int32")))
    model.fit(dataset.shuffle(PAIRS).batch(256, drop_remainder=True), epochs=3, verbose=2)

    with tempfile.TemporaryDirectory() as folder:
        model.export_retrieval(f"{folder}/export", k=5)
        served = tf.saved_model.load(f"{folder}/export")
        found = served.signatures["retrieve"](user=tf.constant([7], tf.int64), age=tf.constant([33.0]))
        for name, score in zip(found["identifiers"][0], found["scores"][0], strict=True):
            print(f"{score:.3f}  {name.numpy().decode()}")


if __name__ == "__main__":
    main()
