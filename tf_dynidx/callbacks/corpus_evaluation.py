"""`CorpusEvaluation`: recall, NDCG and MRR over the whole corpus, freshly encoded, on a schedule."""

import numpy as np
import tensorflow as tf

from tf_dynidx.callbacks.schedule import Scheduled
from tf_dynidx.index import DynamicIndex, checks
from tf_dynidx.keras_world import keras
from tf_dynidx.metrics import corpus_metrics
from tf_dynidx.metrics.corpus_metrics import ndcg, recall, reciprocal_rank
from tf_dynidx.metrics.ranking import positive_ranks


@keras.utils.register_keras_serializable(package="tf_dynidx")
class CorpusEvaluation(Scheduled):
    """Ranks all targets, encoded afresh, for held-out queries, and logs how the positives fare.

    Adds to the logs "val_recall@k" and "val_ndcg@k" for each k, and "val_mrr": to be monitored by
    `ModelCheckpoint` or `EarlyStopping` where these come later in the list of callbacks. The
    definitions are those of `metrics.ranking_metrics`. Each evaluation costs one encoding of all
    targets, which the index that is trained with is not told of.

    Args:
        data: (x, y) or (x, y, sample_weight), arrays, or a `tf.data.Dataset` of batches of them: query
            features, and rows of their positives as `DualEncoder` takes them (int [queries] or
            [queries, positives], padded with -1; or identifiers). Queries without positives do not
            count.
        every: "epoch" (default): at the end of each; or int, every so many steps. Into the logs, which
            Keras keeps by epoch, goes what was found last; `history` has everything.
        ks: ints, the lengths of list to measure at.
        exact: bool: whether all targets are scored. If not, the freshly encoded targets are put into a
            `DynamicIndex` of the callback's own and searched, which is faster where there are millions
            of them and many queries; a positive below the largest k then counts 0 for the MRR.
        exclude: int [queries, excluded], rows that each query's list leaves out, such as the positives
            that it was trained on, padded with -1, in the order of the queries, which must then be the
            same each time; default none.
        batch_size: int, queries that are encoded and ranked together where `data` is arrays.
        prefix: what names in the logs begin with.

    Raises:
        ValueError: an argument is not as described; for `data` at the first evaluation, where also a
            positive that is excluded is refused.

    Example:

        best = keras.callbacks.ModelCheckpoint("best.keras", monitor="val_mrr", mode="max")
        model.fit(dataset, epochs=3, callbacks=[CorpusEvaluation(val_ds), best])
    """

    def __init__(
        self,
        data,
        every="epoch",
        ks=(1, 10, 100),
        exact=True,
        exclude=None,
        batch_size=128,
        prefix="val_",
    ):
        super().__init__(every)
        self.data = data
        if not np.iterable(ks) or not len(ks):
            raise ValueError(f"ks must name at least one length of list. Received: ks={ks!r}")
        self.ks = [checks.positive_int("ks", k) for k in ks]
        self.exact = checks.flag("exact", exact)
        if exclude is not None:
            exclude = corpus_metrics.as_lists("exclude", exclude).numpy()
        self.exclude = exclude
        self.batch_size = checks.positive_int("batch_size", batch_size)
        if not isinstance(prefix, str):
            raise ValueError(f"prefix must be a string. Received: prefix={prefix!r}")
        self.prefix = prefix
        self._index = None

    def set_model(self, model):
        super().set_model(model)
        self._encode = tf.function(
            lambda x: model.encode_queries(x, training=False), autograph=False, reduce_retracing=True
        )

    def act(self):
        targets = self.model.encode_corpus()
        queries, positives, weights = self._queries()
        keep = (positives >= 0).any(axis=1)
        if not keep.any():
            raise ValueError("There is nothing to evaluate. Received: no query with a positive")
        exclude = self._exclusions(len(queries))[keep]
        queries, positives, weights = queries[keep], positives[keep], weights[keep]
        rank = self._exact_ranks if self.exact else self._searched_ranks
        ranks = rank(targets, queries, positives, exclude)
        limit = None if self.exact else max(self.ks)
        valid = positives >= 0
        found = {f"recall@{k}": recall(ranks, valid, k) for k in self.ks}
        found |= {f"ndcg@{k}": ndcg(ranks, valid, k) for k in self.ks}
        found["mrr"] = reciprocal_rank(ranks, valid, limit)
        return {
            self.prefix + name: float(np.average(values.numpy(), weights=weights))
            for name, values in found.items()
        }

    def get_config(self):
        """The constructor's arguments but `data` and `exclude`, which are to be given again."""
        names = ("ks", "exact", "batch_size", "prefix")
        return super().get_config() | {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config, data=None, exclude=None):
        """A callback of the same arguments, on the given data."""
        return cls(data, exclude=exclude, **config)

    def _queries(self):
        """Of all batches: float32 [queries, dim], int32 [queries, positives], float32 [queries]."""
        encodings, positives, weights = [], [], []
        for batch in self._batches():
            x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
            if y is None:
                raise ValueError("data is (x, y), y the rows of the positives. Received: no y")
            y = tf.convert_to_tensor(y)
            y = self.model.corpus.rows_of(y) if y.dtype == tf.string else y
            positives.append(corpus_metrics.as_lists("y", y).numpy())
            encodings.append(self._encode(x).numpy())
            ones = np.ones(len(positives[-1]), np.float32)
            weights.append(ones if weight is None else np.reshape(weight, [-1]))
        if not encodings:
            raise ValueError("There is nothing to evaluate. Received: data without a batch")
        width = max(each.shape[1] for each in positives)
        positives = [
            np.pad(each, [[0, 0], [0, width - each.shape[1]]], constant_values=-1) for each in positives
        ]
        return tuple(np.concatenate(each) for each in (encodings, positives, weights))

    def _batches(self):
        if isinstance(self.data, tf.data.Dataset):
            return self.data
        if not isinstance(self.data, tuple):
            raise ValueError(
                "data must be a tuple (x, y) of arrays or a tf.data.Dataset of such batches. "
                f"Received: {type(self.data).__name__}"
            )
        return tf.data.Dataset.from_tensor_slices(self.data).batch(self.batch_size)

    def _exclusions(self, number):
        if self.exclude is None:
            return np.full([number, 1], -1, np.int32)
        if len(self.exclude) != number:
            raise ValueError(
                "exclude holds a list of rows for each query. "
                f"Received: {len(self.exclude)} lists for {number} queries"
            )
        return self.exclude

    def _exact_ranks(self, targets, queries, positives, exclude):
        ranks = positive_ranks(queries, targets, _unpadded(positives), _unpadded(exclude))
        # The order inside a list does not matter: padding moves to its end.
        table = np.zeros(positives.shape, np.int32)
        table[positives >= 0] = np.concatenate(ranks)
        return table

    def _searched_ranks(self, targets, queries, positives, exclude):
        if self._index is None:
            self._index = DynamicIndex(targets.shape[1], len(targets))
        if self._index.size:
            self._index.update(np.arange(len(targets)), targets)
            self._index.repair()
        else:
            self._index.build(targets)
        k = min(max(self.ks), len(targets))
        found = self._index.search(queries, k, exclude=exclude)[1]
        return corpus_metrics.ranks_in(found, positives)


def _unpadded(table):
    return [row[row >= 0] for row in table]
