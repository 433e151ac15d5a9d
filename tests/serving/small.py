"""Small exports without Keras, that several tests share."""

import numpy as np
import tensorflow as tf

from tests.reference import clustered, top_k
from tf_dynidx.serving import export_retrieval

DIM = 8


class Scale(tf.Module):
    """An encoder that does nothing but multiply."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = tf.Variable(factor)

    def __call__(self, features):
        return features * self.factor


def embeddings(number, seed=0):
    return clustered(np.random.default_rng(seed), number, DIM)


def names(number):
    return [f"target {row}" for row in range(number)]


def export(path, targets, identifiers=None, k=10, **options):
    """An export whose queries are encodings, and whose targets are halves of theirs."""
    options = {
        "encode_query": Scale(),
        "query_spec": tf.TensorSpec([None, DIM]),
        "encode_target": Scale(0.5),
        "target_spec": tf.TensorSpec([None, DIM]),
        "embeddings": targets,
        "identifiers": names(len(targets)) if identifiers is None else identifiers,
        "k": k,
    } | options
    return export_retrieval(path, **options)


def exact(queries, targets, k):
    """Scores and rows of the best targets, in NumPy."""
    return top_k(np.asarray(queries) @ np.asarray(targets).T, k)


def signatures(path):
    return tf.saved_model.load(path).signatures


def as_text(identifiers):
    """String identifiers [queries, k] as lists of str."""
    return [[each.decode() for each in row] for row in identifiers.numpy()]
