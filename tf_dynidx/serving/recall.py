"""The recall that an export says to expect of its index."""

import numpy as np
import tensorflow as tf

from tf_dynidx.ops.search import exact_top_k

_QUERIES = 256  # that recall is measured with, at most


def expected_recall(index, embeddings, k: int, queries=None) -> dict:
    """How much of the k best targets the index of an export finds.

    Without queries the encodings of random targets stand in for them, each left out of what it finds.

    Args:
        index: `ExactIndex` or `TreeIndex`, made for k.
        embeddings: float32 [targets, dim], against which is measured.
        k: int.
        queries: float32 [queries, dim], of which some are taken where there are many, or None.

    Returns:
        dict: `k`, `recall` (the mean share of the k best that are found), `queries` (their number),
        `measured_on` ("sample queries" or "targets in the place of queries").
    """
    random = np.random.default_rng(0)
    own = None
    if queries is None:
        own = random.permutation(len(embeddings))[:_QUERIES].astype(np.int32)
        queries = embeddings[own]
    elif len(queries) > _QUERIES:
        queries = np.asarray(queries)[np.sort(random.permutation(len(queries))[:_QUERIES])]
    exclude = None if own is None else tf.constant(own[:, None])
    queries = tf.constant(queries, tf.float32)
    _, true = exact_top_k(queries, tf.constant(embeddings), k, exclude=exclude)
    _, found = index.top_k(queries, exclude)
    shares = [
        len(np.intersect1d(a[a >= 0], b)) / max(1, (a >= 0).sum())
        for a, b in zip(true.numpy(), found.numpy(), strict=True)
    ]
    return {
        "k": k,
        "recall": float(np.mean(shares)),
        "queries": len(shares),
        "measured_on": "sample queries" if own is None else "targets in the place of queries",
    }
