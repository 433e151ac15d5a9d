"""The deep retrieval tutorial of TensorFlow Recommenders: towers of one layer and of two.

Run it as movielens.py says.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported

import movielens
import tensorflow as tf
import tensorflow_recommenders as tfrs
from tfrs_retrieval import MovielensModel, embedding, evaluate

import tf_dynidx as tdx


def deep(tower, sizes):
    """A tower with dense layers on top; none is activated last."""
    layers = [tf.keras.layers.Dense(size, activation="relu") for size in sizes[:-1]]
    return tf.keras.Sequential([tower, *layers, tf.keras.layers.Dense(sizes[-1])])


def main():
    """Trains a shallow and a deep model, and compares."""
    data = movielens.load()
    train, test = data.split()
    for sizes in ((32,), (64, 32)):
        tf.keras.utils.set_random_seed(0)
        user_model = deep(embedding(data.users), sizes)
        movie_model = deep(embedding(data.titles), sizes)
        ranking = tdx.tfrs.TreeTopK(k=100)
        corpus = tdx.TargetCorpus(data.titles, identifiers=data.titles)
        task = tdx.tfrs.MinedRetrieval(
            movie_model, corpus, metrics=tfrs.metrics.FactorizedTopK(ranking)
        )
        model = MovielensModel(user_model, movie_model, task)
        model.compile(tf.keras.optimizers.Adagrad(0.1))
        model.fit(train, epochs=3, verbose=0)
        found = evaluate(model, ranking, data.titles, test)
        share = found["factorized_top_k/top_100_categorical_accuracy"]
        print(f"layers {sizes}: top 100 {share:.3f}")


if __name__ == "__main__":
    main()
