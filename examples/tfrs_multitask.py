"""The multitask tutorial of TensorFlow Recommenders: which movies are watched, and how they are rated.

The retrieval task mines; the ranking task beside it is as it was. Run it as movielens.py says.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported

import movielens
import tensorflow as tf
import tensorflow_recommenders as tfrs
from tfrs_retrieval import embedding, evaluate

import tf_dynidx as tdx


class MultitaskModel(tfrs.Model):
    """The tutorial's model, of two tasks with weights."""

    def __init__(self, user_model, movie_model, retrieval_task, weights):
        super().__init__()
        self.user_model, self.movie_model = user_model, movie_model
        self.rating_model = tf.keras.Sequential(
            [tf.keras.layers.Dense(64, activation="relu"), tf.keras.layers.Dense(1)]
        )
        self.rating_task = tfrs.tasks.Ranking(
            loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError()]
        )
        self.retrieval_task = retrieval_task
        self.rating_weight, self.retrieval_weight = weights

    def compute_loss(self, features, training=False):
        users = self.user_model(features["user_id"])
        movies = self.movie_model(features["movie_title"])
        ratings = self.rating_model(tf.concat([users, movies], axis=1))
        rating_loss = self.rating_task(labels=features["user_rating"], predictions=ratings)
        retrieval_loss = self.retrieval_task(
            users, movies, candidate_ids=features["movie_title"], compute_metrics=not training
        )
        return self.rating_weight * rating_loss + self.retrieval_weight * retrieval_loss


def main():
    """Trains for ratings alone, for retrieval alone, and for both."""
    data = movielens.load()
    train, test = data.split()
    for name, weights in (("rating", (1.0, 0.0)), ("retrieval", (0.0, 1.0)), ("both", (1.0, 1.0))):
        tf.keras.utils.set_random_seed(0)
        user_model, movie_model = embedding(data.users), embedding(data.titles)
        ranking = tdx.tfrs.TreeTopK(k=100)
        corpus = tdx.TargetCorpus(data.titles, identifiers=data.titles)
        task = tdx.tfrs.MinedRetrieval(
            movie_model, corpus, metrics=tfrs.metrics.FactorizedTopK(ranking)
        )
        model = MultitaskModel(user_model, movie_model, task, weights)
        model.compile(tf.keras.optimizers.Adagrad(0.1))
        model.fit(train, epochs=3, verbose=0)
        found = evaluate(model, ranking, data.titles, test)
        share = found["factorized_top_k/top_100_categorical_accuracy"]
        print(f"{name}: top 100 {share:.3f}, rating error {found['root_mean_squared_error']:.2f}")


if __name__ == "__main__":
    main()
