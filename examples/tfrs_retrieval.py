"""The basic retrieval tutorial of TensorFlow Recommenders, its negatives from the whole corpus.

What changes in the tutorial:

    +import tf_dynidx as tdx
    -        self.task = tfrs.tasks.Retrieval(metrics=metrics)
    +        self.task = tdx.tfrs.MinedRetrieval(movie_model, corpus, metrics=metrics)
    -        return self.task(users, movies)
    +        return self.task(users, movies, candidate_ids=features["movie_title"])
    -index = tfrs.layers.factorized_top_k.BruteForce(model.user_model)
    +index = tdx.tfrs.TreeTopK(model.user_model)

and `corpus = tdx.TargetCorpus(titles, identifiers=titles)`. On generated ratings, under a minute on two
cores; movielens.py says how to use MovieLens. Needs `pip install tensorflow-recommenders tf_keras`.
"""

import os
import tempfile

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported

import movielens
import tensorflow as tf
import tensorflow_recommenders as tfrs

import tf_dynidx as tdx

DIM = 32


class MovielensModel(tfrs.Model):
    """The tutorial's model."""

    def __init__(self, user_model, movie_model, task):
        super().__init__()
        self.user_model, self.movie_model, self.task = user_model, movie_model, task

    def compute_loss(self, features, training=False):
        users = self.user_model(features["user_id"])
        movies = self.movie_model(features["movie_title"])
        titles = features["movie_title"]
        # Metrics over all movies take time: not in training.
        return self.task(users, movies, candidate_ids=titles, compute_metrics=not training)


def embedding(vocabulary):
    """A tower that embeds strings."""
    lookup = tf.keras.layers.StringLookup(vocabulary=vocabulary)
    return tf.keras.Sequential([lookup, tf.keras.layers.Embedding(len(vocabulary) + 1, DIM)])


def evaluate(model, ranking, titles, test):
    """Metrics of a model on test ratings, by name; its movies are indexed as they are now."""
    movies = tf.data.Dataset.from_tensor_slices(titles).batch(128)
    # They have moved: they are indexed again, and nothing is traced again.
    ranking.index_from_dataset(movies.map(lambda title: (title, model.movie_model(title))))
    return model.evaluate(test, return_dict=True, verbose=0)


def main():
    """Trains, evaluates after each epoch, and serves."""
    tf.keras.utils.set_random_seed(0)
    data = movielens.load()
    train, test = data.split()
    titles = data.titles
    user_model, movie_model = embedding(data.users), embedding(titles)
    movies = tf.data.Dataset.from_tensor_slices(titles).batch(128)

    # The index that metrics and answers come from; k can be as large as its capacity.
    index = tdx.tfrs.TreeTopK(user_model, k=10)
    ranking = tdx.tfrs.TreeTopK(k=100)
    metrics = tfrs.metrics.FactorizedTopK(ranking)
    corpus = tdx.TargetCorpus(titles, identifiers=titles)
    task = tdx.tfrs.MinedRetrieval(movie_model, corpus, metrics=metrics)
    model = MovielensModel(user_model, movie_model, task)
    model.compile(tf.keras.optimizers.Adagrad(0.1))

    for epoch in range(3):
        model.fit(train, verbose=0)
        found = evaluate(model, ranking, titles, test)
        shown = {f"top {k}": found[f"factorized_top_k/top_{k}_categorical_accuracy"] for k in (10, 100)}
        print(f"epoch {epoch + 1}:", ", ".join(f"{name} {value:.3f}" for name, value in shown.items()))

    index.index_from_dataset(movies.map(lambda title: (title, movie_model(title))))
    with tempfile.TemporaryDirectory() as folder:
        signature = index.signature(max_k=100, query_spec=tf.TensorSpec([None], tf.string))
        tf.saved_model.save(index, folder, signatures=signature)
        served = tf.saved_model.load(folder).signatures["serving_default"]
        found = served(queries=tf.constant(["42"]), k=tf.constant(3))
        print("for user 42:", [title.decode() for title in found["identifiers"][0].numpy()])


if __name__ == "__main__":
    main()
