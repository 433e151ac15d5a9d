"""The basic retrieval example of Keras Recommenders (keras-rs), its negatives from the whole corpus.

In Keras 3. The towers and the movies stay; the model and the layer that answers change:

    +import tf_dynidx as tdx
    -model = RetrievalModel(user_tower, movie_tower)
    +model = tdx.DualEncoder(user_tower, movie_tower, tdx.TargetCorpus(rows, identifiers=titles))
    -retrieval = keras_rs.layers.BruteForceRetrieval(candidates, k=10)
    +retrieval = tdx.layers.TreeTopK(k=10).index(candidates, titles)

`RetrievalModel` stands for the model class of that example, which is not needed any more. Both layers
are called on queries and return scores, then identifiers, best first; the tree's may be strings. Where
keras-rs is installed (`pip install keras-rs`), its layer is asked too, and the answers are compared.

On generated ratings, under a minute on two cores; movielens.py says how to use MovieLens.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import movielens
import numpy as np
import tensorflow as tf

import tf_dynidx as tdx

try:
    import keras_rs
except ImportError:
    keras_rs = None

DIM = 32


def tower(number):
    """Unit-norm encodings of a number."""
    ids = keras.Input([], dtype="int64")
    encoding = keras.layers.Embedding(number, DIM)(ids)
    return keras.Model(ids, keras.layers.UnitNormalization()(encoding))


def main():
    """Trains, evaluates after each epoch, indexes the movies and asks."""
    keras.utils.set_random_seed(0)
    data = movielens.load()
    titles, rows = data.titles, np.arange(len(data.titles))
    user_tower, movie_tower = tower(len(data.users)), tower(len(titles))

    # Numbers in place of strings, in the data pipeline: XLA, which compiles the step, has no strings.
    users = keras.layers.StringLookup(vocabulary=data.users, num_oov_indices=0)
    corpus = tdx.TargetCorpus(rows, identifiers=titles)
    train, test = (
        part.map(lambda rating: (users(rating["user_id"]), corpus.rows_of(rating["movie_title"])))
        for part in data.split()
    )
    model = tdx.DualEncoder(user_tower, movie_tower, corpus)
    model.compile(keras.optimizers.Adam(0.02))
    evaluation = tdx.callbacks.CorpusEvaluation(test, ks=(10, 100))
    for name, values in model.fit(train, epochs=3, verbose=0, callbacks=[evaluation]).history.items():
        if name.startswith("val_recall"):
            print(name, " ".join(f"{value:.3f}" for value in values))

    candidates = model.encode_corpus()
    retrieval = tdx.layers.TreeTopK(k=10).index(candidates, titles)
    queries = user_tower(np.arange(100))
    scores, found = retrieval(queries)
    for score, title in zip(scores[42].numpy(), found[42].numpy(), strict=True):
        print(f"{score:.3f}  {title.decode()}")
    if keras_rs is not None:
        same = keras_rs.layers.BruteForceRetrieval(tf.constant(candidates), k=10)(queries)[1].numpy()
        pairs = zip(corpus.rows_of(found).numpy(), same, strict=True)
        print("shared with brute force", np.mean([len(np.intersect1d(*pair)) / 10 for pair in pairs]))


if __name__ == "__main__":
    main()
