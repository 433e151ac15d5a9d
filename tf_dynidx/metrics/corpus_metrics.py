"""Keras metrics of retrieval over all rows of an index: recall, NDCG and reciprocal rank."""

import math

import tensorflow as tf

from tf_dynidx.index import DynamicIndex, checks
from tf_dynidx.keras_world import keras
from tf_dynidx.ops.nodes import NEVER

_BLOCK = 16_384  # rows that all queries of a batch are scored against at a time
_NOT_FOUND = 2**31 - 1  # the rank of a positive that is not in the list


class _CorpusMetric(keras.metrics.Mean):
    """The mean over queries of what the ranks of their positives among all rows give."""

    def __init__(self, k, index, exact, budget, name, dtype):
        super().__init__(name=name, dtype=dtype)
        self.k = None if k is None else checks.positive_int("k", k)
        self.exact = checks.flag("exact", exact)
        self.budget = None if budget is None else checks.positive_int("budget", budget)
        if self.k is None and not self.exact:
            raise ValueError(
                "A search finds a list of k rows: give k, or exact=True for the rank among all rows. "
                "Received: k=None, exact=False"
            )
        self._ranks = tf.function(self._ranks_of, autograph=False, reduce_retracing=True)
        self.index = index

    @property
    def index(self):
        """What is searched: a `DynamicIndex`, or a layer that holds one; None if not given yet."""
        return self._held()

    @index.setter
    def index(self, index):
        # A layer may make its index later.
        known = isinstance(index, DynamicIndex) or hasattr(type(index), "fixed_tree")
        if index is not None and not known:
            raise ValueError(
                f"index must be a DynamicIndex or a layers.TreeTopK. Received: {type(index).__name__}"
            )
        # Behind a function: Keras would take the variables of the index for the metric's own, and set
        # them to zero with those at the end of each epoch.
        self._held = lambda: index

    def update_state(self, y_true, y_pred, sample_weight=None, exclude=None):
        """Takes in a batch.

        Args:
            y_true: int [batch] or [batch, positives], rows of the index, without repeats, padded with
                -1. A query without any counts for nothing.
            y_pred: float [batch, dim], encodings of the queries.
            sample_weight: float [batch], default all 1.
            exclude: int [batch, excluded], rows that a query's list leaves out, such as the positives
                that it was trained on; padded with -1; default none.

        Raises:
            ValueError: a shape or dtype is not as described, or there is no index.
        """
        positives = as_lists("y_true", y_true)
        queries = tf.cast(tf.convert_to_tensor(y_pred), tf.float32)
        if exclude is None:
            exclude = tf.fill([tf.shape(positives)[0], 1], NEVER)
        exclude = as_lists("exclude", exclude)
        index = self._index()
        if queries.shape.rank != 2 or queries.shape[1] not in (None, index.dim):
            raise ValueError(
                f"y_pred must be query encodings of shape [batch, {index.dim}]. "
                f"Received: shape {tuple(queries.shape)}"
            )
        queries = tf.ensure_shape(queries, [None, index.dim])
        ranks = self._ranks(queries, positives, exclude)
        valid = positives >= 0
        weights = tf.cast(tf.reduce_any(valid, axis=1), tf.float32)
        if sample_weight is not None:
            weights *= tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
        return super().update_state(self._values(ranks, valid), sample_weight=weights)

    def get_config(self):
        config = {"k": self.k, "exact": self.exact, "budget": self.budget}
        return super().get_config() | config

    def _index(self):
        index = self._held()
        index = index if isinstance(index, DynamicIndex) else getattr(index, "fixed_tree", None)
        if index is None:
            raise ValueError(
                "There is no index to rank the rows of: set `index` to a DynamicIndex, or to a "
                f"TreeTopK layer that has been given its candidates. Received: {self._held()!r}"
            )
        return index

    def _ranks_of(self, queries, positives, exclude):
        index = self._index()
        if self.exact:
            return exact_ranks(index, queries, positives, exclude)
        found = index.top_k(queries, self.k, self.budget, exclude)[1]
        return ranks_in(found, positives)

    def _values(self, ranks, valid):
        raise NotImplementedError


@keras.utils.register_keras_serializable(package="tf_dynidx")
class CorpusRecall(_CorpusMetric):
    """Recall at k over all rows of an index: the share of a query's positives among the best k.

    For one positive, the hit rate. A query's list holds all rows but those excluded for it, its other
    positives included. The definitions are those of `metrics.ranking_metrics`.

    The index is not part of the configuration, nor of what is saved: set `index` anew.

    Args:
        k: int, the length of the list.
        index: the `DynamicIndex` that holds the targets, or a `layers.TreeTopK`, of which a row is a
            candidate's place; default: to be set as `index` before the first update. The rows are
            ranked as they stand in it: what has changed since they were encoded is not seen.
        exact: bool, whether all rows are scored, rather than those that a search of the tree reads.
        budget: int, rows that the search reads for each query, as for `DynamicIndex.search`. From the
            number of rows on it finds what `exact` finds.
        name: name of the metric; default "recall@{k}".
        dtype: dtype of the result, as for any Keras metric.

    Raises:
        ValueError: an argument is not as described.

    Example:

    >>> index = DynamicIndex(dim=2, capacity=3)
    >>> index.build([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> recall = CorpusRecall(k=2, index=index)
    >>> recall.update_state([[0, -1], [1, 0]], [[1.0, 0.0], [0.0, 1.0]])
    >>> float(recall.result())
    0.75
    """

    def __init__(self, k=10, index=None, exact=False, budget=None, name=None, dtype=None):
        super().__init__(_given(k), index, exact, budget, name or f"recall@{k}", dtype)

    def _values(self, ranks, valid):
        return recall(ranks, valid, self.k)


@keras.utils.register_keras_serializable(package="tf_dynidx")
class CorpusNDCG(_CorpusMetric):
    """Normalised discounted cumulative gain at k over all rows of an index.

    A positive at rank r <= k gains 1 / log2(r + 1); the sum is divided by that of a list that begins
    with all of the query's positives. Otherwise as `CorpusRecall`.

    Args:
        k, index, exact, budget, name, dtype: as for `CorpusRecall`; the name is "ndcg@{k}" by default.

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(self, k=20, index=None, exact=False, budget=None, name=None, dtype=None):
        super().__init__(_given(k), index, exact, budget, name or f"ndcg@{k}", dtype)

    def _values(self, ranks, valid):
        return ndcg(ranks, valid, self.k)


@keras.utils.register_keras_serializable(package="tf_dynidx")
class CorpusMRR(_CorpusMetric):
    """Mean reciprocal rank over all rows of an index: 1 / rank of a query's best positive.

    Args:
        k: int, the length of the list: a positive below it counts 0. None, with `exact`: no limit.
        index, exact, budget, name, dtype: as for `CorpusRecall`; the name is "mrr" by default.

    Raises:
        ValueError: an argument is not as described, or k is None without `exact`.
    """

    def __init__(self, k=100, index=None, exact=False, budget=None, name=None, dtype=None):
        super().__init__(k, index, exact, budget, name or "mrr", dtype)

    def _values(self, ranks, valid):
        return reciprocal_rank(ranks, valid, self.k)


# What ranks give. Ranks are int32 [queries, positives], from 1; valid, bool of the same shape, says
# which are no padding. Each returns float32 [queries]; 0 for a query without positives.


def recall(ranks, valid, k):
    """Share of the positives with rank <= k."""
    found = tf.cast(valid & (ranks <= k), tf.float32)
    number = tf.reduce_sum(tf.cast(valid, tf.float32), axis=1)
    return tf.math.divide_no_nan(tf.reduce_sum(found, axis=1), number)


def ndcg(ranks, valid, k):
    """Discounted gain of the positives with rank <= k, relative to a list that begins with them."""
    number = tf.reduce_sum(tf.cast(valid, tf.int32), axis=1)
    gains = _discount(tf.minimum(ranks, k))  # smaller ranks, for the sake of float32
    gains = tf.where(valid & (ranks <= k), gains, 0.0)
    best = tf.cumsum(_discount(tf.range(1, k + 1)))
    ideal = tf.gather(best, tf.clip_by_value(number, 1, k) - 1)
    return tf.reduce_sum(gains, axis=1) / ideal


def reciprocal_rank(ranks, valid, k=None):
    """1 / rank of the best positive; 0 if that is not found, or above k."""
    best = tf.reduce_min(tf.where(valid, ranks, _NOT_FOUND), axis=1)
    limit = _NOT_FOUND - 1 if k is None else k
    return tf.where(best <= limit, 1.0 / tf.cast(best, tf.float32), 0.0)


def _discount(ranks):
    return math.log(2.0) / tf.math.log1p(tf.cast(ranks, tf.float32))


# Ranks.


def ranks_in(found, positives):
    """Ranks of positives in lists of rows.

    Args:
        found: int32 [queries, k], best first.
        positives: int32 [queries, positives].

    Returns:
        int32 [queries, positives], from 1; 2**31 - 1 for one that is not in the list.
    """
    same = found[:, None, :] == positives[:, :, None]
    place = tf.argmax(tf.cast(same, tf.int32), axis=2, output_type=tf.int32)
    return tf.where(tf.reduce_any(same, axis=2), place + 1, _NOT_FOUND)


def exact_ranks(index, queries, positives, exclude):
    """Ranks of positives among all rows of an index, by brute force, a block of rows at a time.

    Of equal scores, the lower row comes first. All comparisons are between scores of the same matrix
    products, gone through twice: a product computed in another way may round differently, and a row
    would then come before its own equal.

    Args:
        index: `DynamicIndex` or `FixedTree`.
        queries: float32 [queries, dim].
        positives: int32 [queries, positives], rows of the index, padded with -1.
        exclude: int32 [queries, excluded], rows that are left out, padded with -1.

    Returns:
        int32 [queries, positives], from 1; 2**31 - 1 for a row that is excluded or not in the index.
    """
    total = index.capacity
    size = min(_BLOCK, total)
    blocks = -(-total // size)
    shape = tf.shape(positives)

    def scores_of(block):
        # The last block reaches back, so that all have one shape; what it repeats counts for nothing.
        start = tf.minimum(block * size, total - size)
        rows = start + tf.range(size)
        scores = tf.matmul(queries, index.read(rows), transpose_b=True)
        live = index.contains(rows) & (rows >= block * size)
        scores = tf.where(live, scores, -float("inf"))
        return start, _without(scores, exclude - start)

    def own_of(block, own):
        start, scores = scores_of(block)
        place = positives - start
        inside = (place >= 0) & (place < size)
        here = tf.gather(scores, tf.clip_by_value(place, 0, size - 1), batch_dims=1)
        return block + 1, tf.maximum(own, tf.where(inside, here, -float("inf")))

    def above_of(block, above):
        start, scores = scores_of(block)
        rows = start + tf.range(size)

        # One positive at a time: a comparison is as large as the scores.
        def count(of):
            score, row = of[0][:, None], of[1][:, None]
            before = (scores > score) | ((scores == score) & (rows < row))
            return tf.reduce_sum(tf.cast(before, tf.int32), axis=1)

        counts = tf.map_fn(
            count,
            (tf.transpose(own), tf.transpose(positives)),
            fn_output_signature=tf.int32,
            parallel_iterations=1,
        )
        return block + 1, above + tf.transpose(counts)

    def over_blocks(body, start):
        return tf.while_loop(
            lambda block, _: block < blocks,
            body,
            (tf.constant(0), start),
            maximum_iterations=blocks,
            parallel_iterations=1,
        )[1]

    own = over_blocks(own_of, tf.fill(shape, -float("inf")))
    above = over_blocks(above_of, tf.zeros(shape, tf.int32))
    return tf.where(own > -float("inf"), above + 1, _NOT_FOUND)


def _without(scores, columns):
    """Scores with -inf at the given columns of each query, those out of range ignored."""
    queries, size = tf.shape(scores)[0], scores.shape[1]
    # They point to one more column, which is dropped.
    columns = tf.where((columns >= 0) & (columns < size), columns, size)
    query = tf.broadcast_to(tf.range(queries)[:, None], tf.shape(columns))
    where = tf.reshape(tf.stack([query, columns], axis=-1), [-1, 2])
    nothing = tf.fill([tf.shape(where)[0]], -float("inf"))
    padded = tf.pad(scores, [[0, 0], [0, 1]])
    return tf.tensor_scatter_nd_update(padded, where, nothing)[:, :-1]


def as_lists(name, rows):
    """Rows, int [queries] or [queries, any], as int32 [queries, any]; ValueError if they are not."""
    rows = tf.convert_to_tensor(rows)
    if not rows.dtype.is_integer:
        raise ValueError(
            f"{name} must be rows of the index, integers. Received: dtype {rows.dtype.name}"
        )
    if rows.shape.rank not in (1, 2):
        raise ValueError(
            f"{name} must have shape [batch] or [batch, rows]. Received: shape {tuple(rows.shape)}"
        )
    rows = tf.cast(rows, tf.int32)
    return rows[:, None] if rows.shape.rank == 1 else rows


def _given(k):
    return checks.positive_int("k", k)
