"""Exact ranks of the positives among all targets, and what is read off them.

The rank of a target is its place, from 1, in the list of all targets by falling score; equal scores
are listed by rising row, as `tf.math.top_k` does.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_RECALL_CUTS = (1, 10, 20, 64, 100)
_NDCG_CUT = 20

# Scores held at once: half a gibibyte of float32, and about twice that while they are compared.
_MAX_SCORES = 2**27


def positive_ranks(
    query_embeddings,
    target_embeddings,
    positives: Sequence[np.ndarray],
    exclude: Sequence[np.ndarray] | None = None,
    batch: int = 128,
) -> list[np.ndarray]:
    """The rank of every positive of every query, by inner product.

    A query's list holds all targets but those excluded for it, its other positives included.

    Scores are those of one `tf.matmul` per block of queries, so that ties are as exact as that is
    on the device.

    Args:
        query_embeddings: float32 [queries, dim].
        target_embeddings: float32 [targets, dim].
        positives: For each query an integer array of rows of targets, without repeats.
        exclude: For each query an integer array of rows that its list leaves out, such as the
            positives that it was trained on; repeats count once.
        batch: Queries scored at once; fewer where that would be more than 2^27 scores.

    Returns:
        For each query int64 [positives of the query], in the order given.

    Raises:
        ValueError: If shapes do not fit, an embedding is not finite, a row is not a target's, or
            a positive is repeated or excluded.
    """
    queries = _embeddings("query_embeddings", query_embeddings)
    targets = _embeddings("target_embeddings", target_embeddings)
    num_queries, num_targets = len(queries), len(targets)
    if not num_targets:
        raise ValueError("There is nothing to rank. Received: target_embeddings without a row")
    if queries.shape[1] != targets.shape[1]:
        raise ValueError(
            "query_embeddings and target_embeddings have one dim. "
            f"Received: {queries.shape[1]} and {targets.shape[1]}"
        )
    if batch < 1:
        raise ValueError(f"batch is at least 1. Received: batch={batch}")
    positive_keys = _keys("positives", positives, num_queries, num_targets)
    exclude_keys = np.empty(0, np.int64)
    if exclude is not None:
        exclude_keys = np.unique(_keys("exclude", exclude, num_queries, num_targets))
    _refuse_contradictions(positive_keys, exclude_keys, num_targets)
    positives = _RowLists(positive_keys, num_queries, num_targets)
    exclude = _RowLists(exclude_keys, num_queries, num_targets)

    # Queries with equally many positives share a block: that leaves little padding.
    order = np.argsort(-positives.lengths, kind="stable")
    batch = max(1, min(batch, _MAX_SCORES // num_targets))
    ranks = [None] * num_queries
    for start in range(0, num_queries, batch):
        block = order[start : start + batch]
        block_ranks = _block_ranks(
            tf.gather(queries, block), targets, positives.padded(block), exclude.padded(block)
        ).numpy()
        for query, padded in zip(block, block_ranks.T, strict=True):
            ranks[query] = padded[: positives.lengths[query]].astype(np.int64)
    return ranks


def ranking_metrics(ranks: Sequence[np.ndarray]) -> dict[str, float]:
    """Recall, normalised discounted cumulative gain and reciprocal rank, as means over the queries.

    - `recall@k`: the share of a query's positives with rank <= k. For one positive, the hit rate.
    - `ndcg@20`: a positive at rank r <= 20 gains 1 / log2(r + 1); normalised by the gain of a list
      that begins with all of the query's positives.
    - `mrr`: 1 / rank of the best positive, however low it ranks.

    Args:
        ranks: For each query an integer array: the ranks, from 1, of its positives.

    Raises:
        ValueError: If there are no queries, a query has no positives, or a rank is below 1.
    """
    if not len(ranks):
        raise ValueError("There is nothing to average. Received: the ranks of 0 queries")
    lengths = np.array([len(query_ranks) for query_ranks in ranks])
    if not lengths.all():
        raise ValueError(
            "Every query has a positive; leave the others out. "
            f"Received: no ranks for query {np.argmin(lengths)}"
        )
    flat = np.concatenate(ranks)
    if flat.min() < 1:
        raise ValueError(f"The best rank is 1. Received: rank {flat.min()}")
    starts = np.cumsum(lengths) - lengths

    metrics = {}
    for k in _RECALL_CUTS:
        found = np.add.reduceat((flat <= k).astype(np.int64), starts)
        metrics[f"recall@{k}"] = float(np.mean(found / lengths))
    discounts = 1.0 / np.log2(np.arange(_NDCG_CUT) + 2)
    gains = np.where(flat <= _NDCG_CUT, discounts[np.minimum(flat, _NDCG_CUT) - 1], 0.0)
    ideal = np.cumsum(discounts)[np.minimum(lengths, _NDCG_CUT) - 1]
    metrics[f"ndcg@{_NDCG_CUT}"] = float(np.mean(np.add.reduceat(gains, starts) / ideal))
    metrics["mrr"] = float(np.mean(1.0 / np.minimum.reduceat(flat, starts)))
    return metrics


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([None, None], tf.int32),
    ]
)
def _block_ranks(queries, targets, positives, exclude):
    """Ranks int32 [positives, queries]; lists of rows are padded with -1, whose ranks mean nothing.

    A rank counts what outranks the positive among all targets, less what does among the excluded.
    Both counts compare scores from one matmul: the same product computed elsewhere may round
    differently, and a target would then outrank itself.
    """
    scores = tf.matmul(queries, targets, transpose_b=True)
    rows = tf.range(tf.shape(targets)[0])
    exclude_scores = _scores_at(scores, exclude)

    # One positive at a time, and no iterations in parallel: a comparison is as large as the scores.
    def rank(column):
        own_rows = positives[:, column : column + 1]
        own_scores = _scores_at(scores, own_rows)
        return (
            1
            + _count_above(scores, rows, own_scores, own_rows)
            - _count_above(exclude_scores, exclude, own_scores, own_rows)
        )

    columns = tf.range(tf.shape(positives)[1])
    return tf.map_fn(
        rank,
        columns,
        parallel_iterations=1,
        fn_output_signature=tf.TensorSpec([None], tf.int32),
    )


def _scores_at(scores, rows):
    """scores[query, row] for rows [queries, entries]; -inf for padding."""
    values = tf.gather(scores, tf.maximum(rows, 0), batch_dims=1)
    return tf.where(rows < 0, -np.inf, values)


def _count_above(scores, rows, own_scores, own_rows):
    """How many of the scores [queries, entries] come before a query's own score [queries, 1]."""
    above = (scores > own_scores) | ((scores == own_scores) & (rows < own_rows))
    return tf.reduce_sum(tf.cast(above, tf.int32), axis=1)


class _RowLists:
    """One list of rows a query, of any length."""

    def __init__(self, keys, num_queries, num_targets):
        queries, rows = np.divmod(keys, num_targets)
        self.lengths = np.bincount(queries, minlength=num_queries)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._rows_and_padding = np.append(rows, -1).astype(np.int32)

    def padded(self, block):
        """The lists of some queries: int32 [block, at least 1], padded with -1."""
        lengths, starts = self.lengths[block, None], self._starts[block, None]
        places = np.arange(max(1, lengths.max()))
        return self._rows_and_padding[np.where(places < lengths, starts + places, -1)]


def _keys(name, lists, num_queries, num_targets):
    """One number, query * num_targets + row, for each entry of the lists: int64 [entries]."""
    if len(lists) != num_queries:
        raise ValueError(
            f"{name} holds one array of rows for each query. "
            f"Received: {len(lists)} arrays for {num_queries} queries"
        )
    lists = [np.asarray(rows) for rows in lists]
    for query, rows in enumerate(lists):
        # An empty list has no dtype of its own.
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise ValueError(
                f"{name} holds integer arrays of rank 1. "
                f"Received: {rows.dtype} {list(rows.shape)} for query {query}"
            )
    queries = np.repeat(np.arange(num_queries), [len(rows) for rows in lists])
    rows = np.concatenate([rows.astype(np.int64) for rows in lists] or [queries])
    outside = (rows < 0) | (rows >= num_targets)
    if outside.any():
        entry = np.argmax(outside)
        raise ValueError(
            f"{name} holds rows of target_embeddings, 0 to {num_targets - 1}. "
            f"Received: {rows[entry]} for query {queries[entry]}"
        )
    return queries * num_targets + rows


def _refuse_contradictions(positive_keys, exclude_keys, num_targets):
    keys, counts = np.unique(positive_keys, return_counts=True)
    if (counts > 1).any():
        query, row = divmod(keys[np.argmax(counts > 1)], num_targets)
        raise ValueError(f"A positive counts once. Received: {row} repeated for query {query}")
    excluded = np.isin(keys, exclude_keys)
    if excluded.any():
        query, row = divmod(keys[np.argmax(excluded)], num_targets)
        raise ValueError(
            "A positive that is excluded has no rank; leave it out of one of the two. "
            f"Received: {row} as both for query {query}"
        )


def _embeddings(name, values):
    """The embeddings as a float32 tensor of rank 2 without NaN and infinities."""
    values = tf.cast(values, tf.float32)
    if values.shape.rank != 2:
        raise ValueError(f"{name} is [rows, dim]. Received: shape {values.shape}")
    finite = tf.reduce_all(tf.math.is_finite(values), axis=1).numpy()
    if not finite.all():
        row = np.argmin(finite)
        raise ValueError(f"{name} is finite. Received: NaN or infinity in row {row}")
    return values
