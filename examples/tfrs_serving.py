"""The efficient serving tutorial of TensorFlow Recommenders: an index in place of brute force.

`TreeTopK` stands where the tutorial has ScaNN: it needs no package beside TensorFlow, its SavedModel
loads in a stock TF Serving, and candidates may change without anything being traced again. Queries
come one by one, as to a server. Candidates are random vectors in clusters: it is about the index alone.
"""

import os
import tempfile
import time

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

import tf_dynidx as tdx

CANDIDATES, QUERIES, DIM, CLUSTERS = 200_000, 100, 64, 2_000


def clustered(seed=0):
    """float32 candidates and queries of unit norm."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=[CLUSTERS, DIM])
    vectors = centres[rng.integers(CLUSTERS, size=CANDIDATES + QUERIES)]
    vectors += 0.5 * rng.normal(size=vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors[:CANDIDATES], vectors[CANDIDATES:]


def timed(index, queries):
    """(median seconds, identifiers) of an index that is asked one query after the other."""
    index = tf.function(index)
    index(queries[:1])
    seconds, found = [], []
    for query in tf.split(queries, len(queries)):
        began = time.perf_counter()
        found.append(index(query)[1].numpy()[0])
        seconds.append(time.perf_counter() - began)
    return np.median(seconds), found


def main():
    """Compares with brute force, then saves, loads and asks with another number of results."""
    candidates, queries = clustered()
    identifiers = tf.constant([f"item {row}" for row in range(CANDIDATES)])
    exact = tfrs.layers.factorized_top_k.BruteForce(k=10).index(candidates, identifiers)
    index = tdx.tfrs.TreeTopK(k=10).index(candidates, identifiers)
    exact_seconds, truth = timed(exact, queries)
    seconds, found = timed(index, queries)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, found, strict=True)])
    print(f"brute force {exact_seconds * 1e3:.1f} ms, tree {seconds * 1e3:.1f} ms, recall {recall:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(index, folder, signatures=index.signature(max_k=100))
        served = tf.saved_model.load(folder).signatures["serving_default"]
        answer = served(queries=tf.constant(queries[:1]), k=tf.constant(3))
        print("served:", [name.decode() for name in answer["identifiers"][0].numpy()])


if __name__ == "__main__":
    main()
