"""Raw strings and numbers into the towers: trained, saved, reloaded, continued and exported.

Towers look strings up and normalise numbers themselves, so that nothing is prepared outside of the
model: not for training, and not for what is served. Run it: python examples/raw_features.py
"""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tf_dynidx as tdx

keras = tf.keras
USERS, ITEMS, GENRES, PAIRS = 500, 1_000, 20, 20_000


def generate(rng):
    """Features of users and items as a database has them, and pairs (user, item) of what was bought."""
    genre, liked = rng.integers(GENRES, size=ITEMS), rng.integers(GENRES, size=USERS)
    by_genre = [np.flatnonzero(genre == each) for each in range(GENRES)]
    user = rng.integers(USERS, size=PAIRS)
    item = np.array([rng.choice(by_genre[each]) for each in liked[user]])
    users = {
        "user": np.array([f"user-{number}" for number in range(USERS)]),
        "age": rng.uniform(18, 80, USERS).astype("float32"),
    }
    items = {
        "item": np.array([f"item-{number}" for number in range(ITEMS)]),
        "price": (100 * genre + rng.uniform(1, 90, ITEMS)).astype("float32"),
    }
    return users, items, user, item


def tower(features, name, number, dim=16):
    """Unit-norm encodings of a name and a number."""
    inputs = {
        name: keras.Input([], dtype="string", name=name),
        number: keras.Input([], dtype="float32", name=number),
    }
    lookup = keras.layers.StringLookup(vocabulary=features[name].tolist())
    normalise = keras.layers.Normalization(axis=None)
    normalise.adapt(features[number])
    embedded = keras.layers.Embedding(lookup.vocabulary_size(), dim)(lookup(inputs[name]))
    scaled = keras.layers.Reshape([1])(normalise(inputs[number]))
    encoding = keras.layers.Dense(dim)(keras.layers.Concatenate()([embedded, scaled]))
    return keras.Model(inputs, keras.layers.UnitNormalization()(encoding))


def main():
    """Trains, saves, loads, trains on, exports, and asks what was exported."""
    users, items, user, item = generate(np.random.default_rng(0))
    corpus = tdx.TargetCorpus(items, identifiers=items["item"])
    model = tdx.DualEncoder(tower(users, "user", "age"), tower(items, "item", "price"), corpus)
    # XLA compiles no string look-up.
    model.compile(optimizer=keras.optimizers.Adam(0.01), jit_compile=False)
    queries = {name: values[user] for name, values in users.items()}
    dataset = tf.data.Dataset.from_tensor_slices((queries, item.astype("int32"))).batch(200)
    model.fit(dataset, epochs=2, verbose=2)

    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        model = keras.models.load_model(f"{folder}/model.keras")
        # Index, optimizer and counts go on from where they were.
        model.fit(dataset, epochs=1, verbose=2)
        print("steps", int(model.step), "full encodes", int(model.miner.full_encodes))

        model.export_retrieval(f"{folder}/export", k=10)
        retrieve = tf.saved_model.load(f"{folder}/export").signatures["retrieve"]
        first = {name: tf.constant(values[:100]) for name, values in users.items()}
        found = np.char.decode(retrieve(**first)["identifiers"].numpy().astype("S"))
    bought = [np.char.add("item-", item[user == each].astype(str)) for each in range(100)]
    share = [np.isin(names, of).mean() for names, of in zip(found, bought, strict=True)]
    print("precision", np.mean(share))


if __name__ == "__main__":
    main()
