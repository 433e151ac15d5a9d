"""A shop as it was before: generated data, two towers, and a Keras model with in-batch negatives."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

keras = tf.keras
USERS, ITEMS, GENRES, PAIRS = 1_000, 3_000, 60, 24_000


def generate():
    """(items, pairs): features of all items, and pairs (user, item) of what was bought."""
    rng = np.random.default_rng(0)
    genre, liked = rng.integers(GENRES, size=ITEMS), rng.integers(GENRES, size=USERS)
    by_genre = [np.flatnonzero(genre == each) for each in range(GENRES)]
    user = rng.integers(USERS, size=PAIRS)
    item = np.array([rng.choice(by_genre[each]) for each in liked[user]])
    return np.arange(ITEMS), (user, item)


def tower(number, dim=16):
    """Unit-norm encodings of a number."""
    ids = keras.Input([], dtype="int64")
    encoding = keras.layers.Embedding(number, dim)(ids)
    return keras.Model(ids, keras.layers.UnitNormalization()(encoding))


class TwoTower(keras.Model):
    """Scores a user against the items of the batch."""

    def __init__(self, user_tower, item_tower, temperature=0.05):
        super().__init__()
        self.user_tower, self.item_tower = user_tower, item_tower
        self.temperature = temperature

    def call(self, inputs):
        users, items = (
            tower(each) for tower, each in zip((self.user_tower, self.item_tower), inputs, strict=True)
        )
        scores = tf.matmul(users, items, transpose_b=True) / self.temperature
        labels = tf.range(tf.shape(scores)[0])
        self.add_loss(
            tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=scores))
        )
        return scores


def precision(user_tower, item_tower, pairs, k=20):
    """Share of the best k items of a user that the user bought, over the first hundred users."""
    scores = user_tower(np.arange(100)).numpy() @ item_tower(np.arange(ITEMS)).numpy().T
    best = np.argsort(-scores, axis=1)[:, :k]
    bought = [pairs[1][pairs[0] == user] for user in range(100)]
    return np.mean([np.isin(mine, of).mean() for mine, of in zip(best, bought, strict=True)])
