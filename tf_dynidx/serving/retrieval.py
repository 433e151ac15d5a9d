"""`Retrieval`: encoders, an index and identifiers as the functions that an export offers."""

import tensorflow as tf

from tf_dynidx.serving.identifiers import Identifiers

K, EXCLUDE = "k", "exclude"  # inputs of retrieve_with beside the features of the query

# What an input or output is, for the model card. Features are described by their own names.
MEANINGS = {
    "scores": "inner products, best first; the lowest float32 where there is no more target",
    "identifiers": 'of targets; "" or -1 where there is none',
    "embedding": "the encoding of each query or target",
    K: "how many targets, at most the k of the export: one number, or one for each query",
    EXCLUDE: 'identifiers of targets that are left out for each query, padded with "" or -1',
}


class Retrieval(tf.Module):
    """What a SavedModel of an export holds.

    Args:
        encode_query, encode_target: `tf.function`s from a dict of features to ``{"embedding":
            float32 [batch, dim]}``, each with one input signature, or such as were loaded.
        index: `ExactIndex` or `TreeIndex`.
        identifiers: string or int64 [targets].
        k: int, how many targets are found at most.
        resources: variables and tables that the encoders use.
    """

    def __init__(self, encode_query, encode_target, index, identifiers, k, resources):
        super().__init__()
        self.encode_query, self.encode_target = encode_query, encode_target
        self.index = index
        self.identifiers = Identifiers(identifiers)
        self.resources = resources
        self._k = k

    def signatures(self) -> dict:
        """A concrete function for each name."""
        query = dict(self.encode_query.input_signature[0])
        ids = self.identifiers.dtype
        with_options = query | {
            # Of any rank: a number in the columns of a request, one for each query in its rows.
            K: tf.TensorSpec(None, tf.int32, name=K),
            EXCLUDE: tf.TensorSpec([None, None], ids, name=EXCLUDE),
        }
        own = {"identifiers": tf.TensorSpec([None], ids, name="identifiers")}

        def traced(function, specs):
            return tf.function(function, input_signature=[specs]).get_concrete_function()

        signatures = {
            "retrieve": traced(self._retrieve, query),
            "retrieve_with": traced(self._retrieve_with, with_options),
            "similar": traced(self._similar, own),
            "encode_query": self.encode_query.get_concrete_function(),
            "encode_target": self.encode_target.get_concrete_function(),
        }
        return signatures | {"serving_default": signatures["retrieve"]}

    def _retrieve(self, features):
        return self._named(*self.index.top_k(self.encode_query(features)["embedding"]))

    def _retrieve_with(self, inputs):
        features = {name: value for name, value in inputs.items() if name not in (K, EXCLUDE)}
        batch = tf.shape(next(iter(features.values())))[0]
        exclude, k = inputs[EXCLUDE], tf.reshape(inputs[K], [-1])
        checked = [
            tf.debugging.Assert(
                tf.reduce_all((k >= 1) & (k <= self._k)),
                [f"k must be from 1 to {self._k}, the k of the export. Received:", k],
            ),
            tf.debugging.Assert(
                (tf.size(k) == 1) | (tf.size(k) == batch),
                [
                    "k must be one number, or one for each query. Received, of k and queries:",
                    tf.stack([tf.size(k), batch]),
                ],
            ),
            tf.debugging.Assert(
                tf.shape(exclude)[0] == batch,
                [
                    "exclude must have one row for each query. Received, of exclude and queries:",
                    tf.stack([tf.shape(exclude)[0], batch]),
                ],
            ),
        ]
        # First of all, so that it is not something else that fails.
        with tf.control_dependencies(checked):
            rows = self._known(exclude, "exclude", padded=True)
        with tf.control_dependencies([rows]):
            features = {name: tf.identity(value) for name, value in features.items()}
            k = tf.identity(k)
        scores, rows = self.index.top_k(self.encode_query(features)["embedding"], rows)
        width = tf.reduce_max(tf.concat([k, [1]], axis=0))
        asked = tf.range(width)[None] < k[:, None]
        rows = tf.where(asked, rows[:, :width], -1)
        return self._named(scores[:, :width], rows)

    def _similar(self, inputs):
        rows = self._known(inputs["identifiers"], "identifiers")
        return self._named(*self.index.top_k(self.index.read(rows), rows[:, None]))

    def _known(self, identifiers, name, padded=False):
        """Rows of identifiers; an unknown one is refused, and padding, where it may be, is -1."""
        rows = self.identifiers.rows_of(identifiers)
        known = rows >= 0
        if padded:
            known |= identifiers == self.identifiers.of(tf.constant(-1))
        unknown = tf.boolean_mask(identifiers, ~known)
        checked = tf.debugging.Assert(
            tf.equal(tf.size(unknown), 0),
            [f"{name} must be identifiers of targets in the index. Received unknown:", unknown],
            summarize=5,
        )
        with tf.control_dependencies([checked]):
            return tf.identity(rows)

    def _named(self, scores, rows):
        # Finite, since JSON knows no infinity.
        scores = tf.where(rows < 0, scores.dtype.min, scores)
        return {"scores": scores, "identifiers": self.identifiers.of(rows)}
