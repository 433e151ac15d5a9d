"""The context features tutorial of TensorFlow Recommenders: when a movie was watched, beside by whom.

The user tower takes a dict of features, some of them numbers that a layer normalises; nothing about the
task changes. Run it as movielens.py says.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported

import movielens
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from tfrs_retrieval import embedding, evaluate

import tf_dynidx as tdx

DIM = 32


class UserModel(tf.keras.Model):
    """Who, and when."""

    def __init__(self, users, timestamps=None):
        super().__init__()
        self.user_embedding, self.time = embedding(users), None
        if timestamps is not None:
            buckets = np.linspace(timestamps.min(), timestamps.max(), 20).tolist()
            self.time = tf.keras.Sequential(
                [tf.keras.layers.Discretization(buckets), tf.keras.layers.Embedding(21, DIM)]
            )
            self.mix = tf.keras.layers.Dense(DIM)

    def call(self, inputs):
        """float32 [batch, DIM] from {"user_id": string [batch], "timestamp": int64 [batch]}."""
        user = self.user_embedding(inputs["user_id"])
        if self.time is None:
            return user
        return self.mix(tf.concat([user, self.time(tf.cast(inputs["timestamp"], tf.float32))], axis=1))


class ContextModel(tfrs.Model):
    """The tutorial's model."""

    def __init__(self, user_model, movie_model, task):
        super().__init__()
        self.user_model, self.movie_model, self.task = user_model, movie_model, task

    def compute_loss(self, features, training=False):
        users = self.user_model({name: features[name] for name in ("user_id", "timestamp")})
        movies = self.movie_model(features["movie_title"])
        return self.task(
            users, movies, candidate_ids=features["movie_title"], compute_metrics=not training
        )


def main():
    """Trains with and without the time, and compares."""
    data = movielens.load()
    train, test = data.split()
    for timestamps in (None, data.ratings["timestamp"]):
        tf.keras.utils.set_random_seed(0)
        movie_model = embedding(data.titles)
        user_model = UserModel(data.users, timestamps)
        ranking = tdx.tfrs.TreeTopK(k=100)
        corpus = tdx.TargetCorpus(data.titles, identifiers=data.titles)
        task = tdx.tfrs.MinedRetrieval(
            movie_model, corpus, metrics=tfrs.metrics.FactorizedTopK(ranking)
        )
        model = ContextModel(user_model, movie_model, task)
        model.compile(tf.keras.optimizers.Adagrad(0.1))
        model.fit(train, epochs=3, verbose=0)
        found = evaluate(model, ranking, data.titles, test)
        share = found["factorized_top_k/top_100_categorical_accuracy"]
        print(f"{'without' if timestamps is None else 'with'} the time: top 100 {share:.3f}")


if __name__ == "__main__":
    main()
