"""`TreeTopK`: a top-k layer of TensorFlow Recommenders that searches a tree."""

import tensorflow as tf
from tensorflow_recommenders.layers import factorized_top_k

from tf_dynidx import layers
from tf_dynidx.index import checks
from tf_dynidx.keras_world import keras


@keras.utils.register_keras_serializable(package="tf_dynidx.tfrs")
class TreeTopK(factorized_top_k.TopK):
    """Finds the k candidates with the highest inner product with each query, through a tree.

    Stands where `BruteForce`, `Streaming` or `ScaNN` of TensorFlow Recommenders stand, in
    `FactorizedTopK` too. `index` may be called as often as candidates change, up to the capacity, and
    traces nothing again. It is approximate unless `budget` covers all candidates (`is_exact`);
    `FactorizedTopK` then wants `true_candidate_ids`.

    Where fewer than k are found the rest has the lowest finite score and the identifier -1 or "":
    `FactorizedTopK` takes differences of scores, which infinities would break.

    `k` is an input of a saved signature:

        tf.saved_model.save(top, path, signatures=top.signature(max_k=100))
        tf.saved_model.load(path).signatures["serving_default"](queries=queries, k=tf.constant(20))

    Args:
        query_model: Keras model from query features to float [batch, dim]; default: the queries are
            encodings already.
        k: int, how many candidates a query gets, unless a call says otherwise; default 10.
        capacity, budget, row_dtype, seed: as for `tf_dynidx.layers.TreeTopK`.
        name: name of the layer.

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(
        self,
        query_model=None,
        k=10,
        capacity=None,
        budget=None,
        row_dtype="float32",
        seed=0,
        name=None,
        **kwargs,
    ):
        # Queries are not to lose precision before they are scored.
        super().__init__(k=k, name=name, **{"autocast": False} | kwargs)
        self.tree = layers.TreeTopK(query_model, k, capacity, budget, row_dtype, seed, name="tree")

    def index(self, candidates, identifiers=None):
        """Takes in candidates, in place of those there were.

        Args:
            candidates: float [candidates, dim], encodings.
            identifiers: what a call returns for each: int or strings [candidates]; default: their
                places, 0, 1, 2, ... Of the same kind each time.

        Returns:
            The layer.

        Raises:
            ValueError: as for `tf_dynidx.layers.TreeTopK.index`; what there was is kept.
        """
        self.tree.index(candidates, identifiers)
        return self

    def call(self, queries, k=None):
        """Answers queries.

        Args:
            queries: float [batch, dim], or what `query_model` takes.
            k: int, how many candidates; default: that of the layer.

        Returns:
            (scores, identifiers): float32 [batch, k], and int or string [batch, k], best first.

        Raises:
            ValueError: `index` has not been called, or k is above the capacity.
        """
        return _finite(*self.tree(queries, k=k))

    def query_with_exclusions(self, queries, exclusions, k=None):
        """As a call, with some candidates left out for each query.

        Args:
            queries, k: as for a call.
            exclusions: int or string [batch, excluded], identifiers, their number static.

        Returns:
            (scores, identifiers), as a call.

        Raises:
            ValueError: as for a call, or exclusions are not as described.
        """
        return _finite(*self.tree.query_with_exclusions(queries, exclusions, k=k))

    def is_exact(self):
        """bool, whether a call finds the k best for certain: whether the budget covers the capacity."""
        return self.tree.is_exact()

    def signature(self, max_k=None, query_spec=None):
        """A function of (queries, k) for `tf.saved_model.save`, its k an int32 scalar.

        It looks for the best `max_k` and returns the first k, at most `max_k`, of them.

        Args:
            max_k: int, the largest k that can be asked for; default: the layer's k, but at least 100
                where there is room for as many.
            query_spec: `tf.TensorSpec`, or a dict of them, of what the layer takes; default: of
                encodings, which a layer with a `query_model` does not take.

        Returns:
            A concrete function to dict of `scores` and `identifiers`, each [batch, min(k, max_k)].

        Raises:
            ValueError: there is no index, the layer has a `query_model` and query_spec is not given,
                or max_k is above the capacity.
        """
        held = self.tree.fixed_tree
        if held is None:
            raise ValueError("There are no candidates to find: call index() first. Received: none")
        if query_spec is None and self.tree.query_model is not None:
            raise ValueError(
                "query_spec must say what the query model takes. Received: query_spec=None"
            )
        default = min(max(self.tree.k, 100), held.capacity)
        max_k = default if max_k is None else checks.positive_int("max_k", max_k)
        if query_spec is None:
            query_spec = tf.TensorSpec([None, held.dim], tf.float32)

        @tf.function
        def retrieve(queries, k):
            scores, identifiers = self(queries, k=max_k)
            k = tf.clip_by_value(k, 0, max_k)
            return {"scores": scores[:, :k], "identifiers": identifiers[:, :k]}

        return retrieve.get_concrete_function(
            queries=_named("queries", query_spec), k=tf.TensorSpec([], tf.int32, name="k")
        )

    def get_config(self):
        """The constructor's arguments; candidates are in checkpoints and in what `save` writes."""
        query_model = self.tree.query_model
        if query_model is not None:
            query_model = keras.utils.serialize_keras_object(query_model)
        names = ("k", "capacity", "budget", "row_dtype", "seed")
        config = {name: getattr(self.tree, name) for name in names}
        # What the variables are like, so that `load_model` finds some to put the candidates into.
        config["variables"] = self.tree.get_build_config()
        return config | {"query_model": query_model, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """A layer of the same arguments, without candidates."""
        config = dict(config)
        variables = config.pop("variables", None)
        if isinstance(config.get("query_model"), dict):
            config["query_model"] = keras.utils.deserialize_keras_object(
                config["query_model"], custom_objects
            )
        layer = cls(**config)
        layer.tree.build_from_config(variables)
        return layer


def _finite(scores, identifiers):
    return tf.maximum(scores, scores.dtype.min), identifiers


def _named(name, spec):
    """A single spec with a name: signatures call their arguments by it."""
    return tf.TensorSpec(spec.shape, spec.dtype, name) if isinstance(spec, tf.TensorSpec) else spec
