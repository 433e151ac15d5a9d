"""`TreeTopK`: a layer that answers queries with the best candidates of an index."""

import numpy as np
import tensorflow as tf

from tf_dynidx.index import DynamicIndex, checks
from tf_dynidx.index.fixed_tree import FixedTree
from tf_dynidx.index.integers import state
from tf_dynidx.keras_world import keras
from tf_dynidx.variables import named_variables, read, write

_IDENTIFIERS = "identifiers"  # in a file, beside the variables of the index


@keras.utils.register_keras_serializable(package="tf_dynidx")
class TreeTopK(keras.layers.Layer):
    """Finds the k candidates with the highest inner product with each query, through a tree.

    Give it candidates with `index`, as often as they change: their number may differ up to the
    capacity, and no call that was traced or compiled is traced again. Called on queries it returns
    scores, then identifiers, best first. It is approximate unless `budget` covers all candidates
    (`is_exact`).

    Integer identifiers work in a function compiled by XLA; strings do not, and `supports_jit` then
    says so. Scores are float32 under any mixed-precision policy.

    Candidates and identifiers are saved with the layer, in `.keras` and `.weights.h5` files, in
    `tf.train.Checkpoint`s and SavedModels; not in the `.h5` files of Keras 2. Once loaded, the layer
    answers as before, without building its index again.

    Args:
        query_model: Keras model from query features to float [batch, dim]; default: the queries are
            encodings already.
        k: int, how many candidates a query gets, unless a call says otherwise.
        capacity: int, the largest number of candidates; default: the number of the first ones.
        budget: int, how many candidates are scored for a query: more is slower and finds more; as for
            `DynamicIndex.search`.
        row_dtype: dtype in which candidates are held: "float32" (default), "float16" or "bfloat16".
        seed: int, seeds the building of the tree.
        name: name of the layer.

    Raises:
        ValueError: an argument is not as described.

    Example:

    >>> candidates = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]
    >>> top = TreeTopK(k=2).index(candidates, identifiers=["tea", "milk", "coffee"])
    >>> scores, identifiers = top(tf.constant([[0.0, 1.0]]))
    >>> identifiers.numpy().tolist()
    [[b'coffee', b'milk']]
    """

    def __init__(
        self,
        query_model=None,
        k=100,
        capacity=None,
        budget=None,
        row_dtype="float32",
        seed=0,
        name=None,
        **kwargs,
    ):
        # Queries are not to lose precision before they are scored.
        super().__init__(name=name, **{"autocast": False, "trainable": False} | kwargs)
        if query_model is not None and not callable(query_model):
            raise ValueError(
                f"query_model must be a Keras model or None. Received: query_model={query_model!r}"
            )
        self.query_model = query_model
        self.k = checks.positive_int("k", k)
        self.capacity = None if capacity is None else checks.positive_int("capacity", capacity)
        self.budget = None if budget is None else checks.positive_int("budget", budget)
        if self.capacity is not None and self.k > self.capacity:
            raise ValueError(
                f"k is at most the capacity. Received: k={self.k}, capacity={self.capacity}"
            )
        self.row_dtype = checks.row_dtype("row_dtype", row_dtype).name
        self.seed = checks.seed(seed)
        self._tree = None
        self._identifiers = None

    @property
    def fixed_tree(self):
        """The `FixedTree` of the layer, its rows the places of candidates; None before `index`."""
        return self._tree

    def index(self, candidates, identifiers=None, progress=False):
        """Takes in candidates, in place of those there were, which it holds until the new are ready.

        Args:
            candidates: float [candidates, dim], encodings; a tensor, a NumPy array or a memmap.
            identifiers: what a call returns for each: int or strings [candidates]; default: their
                places, 0, 1, 2, ... Of the same kind each time.
            progress: bool, whether to show a bar.

        Returns:
            The layer.

        Raises:
            ValueError: there are more candidates than the capacity or fewer than k, the dimension or
                the kind of identifiers is another than before, or an argument is not as described;
                what there was is kept.
        """
        candidates = _table(candidates)
        number, dim = candidates.shape
        identifiers = _as_identifiers(identifiers, number)
        capacity = self.capacity or number
        if number > capacity:
            raise ValueError(
                "More candidates than the layer has room for: make it with a larger capacity. "
                f"Received: {number} candidates, capacity={capacity}"
            )
        if number < self.k:
            raise ValueError(
                "Fewer candidates than are to be returned: make the layer with a smaller k. "
                f"Received: {number} candidates, k={self.k}"
            )
        checks.finite("candidates", candidates, tf.as_dtype(self.row_dtype))
        if self._tree is None:
            self._make(dim, capacity, identifiers.dtype)
        kind = self._identifiers.dtype
        if dim != self._tree.dim or (identifiers.dtype == tf.string) != (kind == tf.string):
            raise ValueError(
                "Candidates must have the dimension, and identifiers the kind, that they had the first "
                f"time: {self._tree.dim} and {kind.name}. "
                f"Received: {dim} and {identifiers.dtype.name}"
            )
        # What it takes to change a tree is held for as long as this one is made.
        built = DynamicIndex(dim, self.capacity, self.row_dtype, self.seed)
        built.build(candidates, progress=progress)
        self._tree.take(built.tree)
        # The places that are left stand for "nothing found".
        nothing = _nothing(kind, [self.capacity + 1 - number])
        self._identifiers.assign(tf.concat([tf.cast(identifiers, kind), nothing], axis=0))
        return self

    def call(self, queries, k=None):
        """Answers queries.

        Args:
            queries: float [batch, dim], or what `query_model` takes.
            k: int, how many candidates; default: that of the layer.

        Returns:
            (scores, identifiers): float32 [batch, k], and int or string [batch, k], best first, of
            equals the earlier candidate first. Where fewer are found, which is possible if k is close
            to the number of candidates, the rest is -inf and -1 or "".

        Raises:
            ValueError: `index` has not been called, or k is above the capacity.
        """
        queries, k = self._encoded(queries), self._checked_k(k)
        return self._answer(queries, k)

    def query_with_exclusions(self, queries, exclusions, k=None):
        """As a call, with some candidates left out for each query.

        Args:
            queries, k: as for a call.
            exclusions: int or string [batch, excluded], identifiers; others than those of candidates,
                such as padding, leave nothing out. Their number is static.

        Returns:
            (scores, identifiers), as a call.

        Raises:
            ValueError: as for a call, or exclusions are not as described.
        """
        k = self._checked_k(k)
        queries = self._encoded(queries)
        exclusions = tf.convert_to_tensor(exclusions)
        kind = self._identifiers.dtype
        alike = exclusions.dtype == kind or (exclusions.dtype.is_integer and kind.is_integer)
        if not alike or exclusions.shape.rank != 2 or exclusions.shape[1] is None:
            raise ValueError(
                f"exclusions must be {kind.name} identifiers of shape [batch, excluded], their number "
                f"static. Received: shape {exclusions.shape}, dtype {exclusions.dtype.name}"
            )
        # As many more as can be excluded: then enough are left.
        more = min(k + exclusions.shape[1], self.capacity)
        scores, identifiers = self._answer(queries, more)
        out = tf.zeros_like(scores, tf.bool)
        for column in tf.unstack(tf.cast(exclusions, kind), axis=1):
            out |= identifiers == column[:, None]
        scores = tf.where(out, -float("inf"), scores)
        scores, places = tf.math.top_k(scores, min(k, more))
        identifiers = tf.gather(identifiers, places, batch_dims=1)
        found = tf.math.is_finite(scores)
        return scores, tf.where(found, identifiers, _nothing(kind, []))

    def is_exact(self):
        """bool, whether a call finds the k best for certain: whether the budget covers the capacity."""
        return self.capacity is not None and self.budget is not None and self.budget >= self.capacity

    def compute_output_shape(self, input_shape):
        """Of scores and identifiers, for queries that are encodings."""
        shape = (input_shape[0], self.k)
        return shape, shape

    # Saving.

    def get_config(self):
        query_model = self.query_model
        if query_model is not None:
            query_model = keras.utils.serialize_keras_object(query_model)
        names = ("k", "capacity", "budget", "row_dtype", "seed")
        config = {name: getattr(self, name) for name in names}
        return super().get_config() | config | {"query_model": query_model}

    @classmethod
    def from_config(cls, config):
        """A layer of the same arguments, without candidates."""
        config = dict(config)
        if isinstance(config.get("query_model"), dict):
            config["query_model"] = keras.utils.deserialize_keras_object(config["query_model"])
        return super().from_config(config)

    def get_build_config(self):
        """What the variables are like, so that a model is made from its configuration alone."""
        if self._tree is None:
            return None
        return {
            "dim": self._tree.dim,
            "capacity": self.capacity,
            "identifiers": self._identifiers.dtype.name,
        }

    def build_from_config(self, config):
        """Makes the variables, to be filled from a file or by `index`."""
        if config and "dim" in config and self._tree is None:
            self._make(config["dim"], config["capacity"], tf.as_dtype(config["identifiers"]))

    def save_own_variables(self, store):
        """Writes what there is; strings as bytes, which HDF5 has no trouble with."""
        if self._tree is None:
            return
        write(named_variables(self._tree), store)
        identifiers = self._identifiers.numpy()
        store[_IDENTIFIERS] = _as_bytes(identifiers) if identifiers.dtype == object else identifiers

    def load_own_variables(self, store):
        """Reads what `save_own_variables` wrote; a layer without candidates takes its size from there.

        Raises:
            ValueError: the file is of a layer of another size or kind.
        """
        names = set(store.keys())
        if _IDENTIFIERS not in names:
            return
        identifiers = np.asarray(store[_IDENTIFIERS])
        strings = identifiers.dtype == np.uint8
        if self._tree is None:
            dim = np.asarray(store["rows"]).shape[1]
            kind = tf.string if strings else tf.as_dtype(identifiers.dtype)
            self._make(dim, len(identifiers) - 1, kind)
        if strings != (self._identifiers.dtype == tf.string):
            raise ValueError(
                "The file was saved from a layer with identifiers of another kind. "
                f"Received: {'strings' if strings else 'integers'} for {self._identifiers.dtype.name}"
            )
        read(named_variables(self._tree), store, besides=[_IDENTIFIERS])
        self._identifiers.assign(_from_bytes(identifiers) if strings else identifiers)

    # Helpers.

    def _make(self, dim, capacity, kind):
        """Makes the variables, once."""
        self.capacity = capacity
        with tf.init_scope():
            self._tree = FixedTree(dim, capacity, self.row_dtype)
            # One more, for "nothing found".
            self._identifiers = state(_nothing(kind, [capacity + 1]), _IDENTIFIERS)
        self.supports_jit = kind != tf.string
        self._answer = tf.function(self._best, autograph=False, reduce_retracing=True)
        self.built = True

    def _encoded(self, queries):
        if self._tree is None:
            raise ValueError("There are no candidates to find: call index() first. Received: none")
        if self.query_model is not None:
            queries = self.query_model(queries)
        queries = tf.cast(tf.convert_to_tensor(queries), tf.float32)
        dim = self._tree.dim
        if queries.shape.rank != 2 or queries.shape[1] not in (None, dim):
            raise ValueError(
                f"queries must have shape [batch, {dim}]. Received: shape {tuple(queries.shape)}"
            )
        return tf.ensure_shape(queries, [None, dim])

    def _checked_k(self, k):
        k = self.k if k is None else checks.positive_int("k", k)
        if self.capacity is not None and k > self.capacity:
            raise ValueError(f"k is at most the capacity. Received: k={k}, capacity={self.capacity}")
        return k

    def _best(self, queries, k):
        scores, rows = self._tree.top_k(queries, k, self.budget)
        return scores, tf.gather(self._identifiers, tf.where(rows < 0, self.capacity, rows))


def _table(candidates):
    """Candidates as a floating NumPy array [candidates, dim]; ValueError if they are not."""
    shape = np.shape(candidates)
    if len(shape) != 2:
        raise ValueError(f"candidates must have shape [candidates, dim]. Received: shape {shape}")
    return checks.table("candidates", candidates, shape[1])


def _as_identifiers(identifiers, number):
    """Identifiers as a tensor, int32, int64 or string [number]; ValueError if they are not."""
    if identifiers is None:
        return tf.range(number)
    if not tf.is_tensor(identifiers):
        identifiers = tf.convert_to_tensor(np.asarray(identifiers))
    kind = identifiers.dtype
    if not (kind == tf.string or kind.is_integer) or identifiers.shape != [number]:
        raise ValueError(
            f"identifiers must be integers or strings, one for each of the {number} candidates. "
            f"Received: dtype {kind.name}, shape {tuple(identifiers.shape)}"
        )
    return identifiers if kind in (tf.string, tf.int32) else tf.cast(identifiers, tf.int64)


def _nothing(kind, shape):
    """Identifiers of nothing found."""
    return tf.fill(shape, tf.constant("") if kind == tf.string else tf.constant(-1, kind))


def _as_bytes(strings):
    """Byte strings as uint8 [strings, longest + 4]: how long each is, and its bytes, padded."""
    lengths = np.array([len(each) for each in strings], "<u4")
    table = np.zeros([len(strings), lengths.max(initial=0)], np.uint8)
    for row, each in zip(table, strings, strict=True):
        row[: len(each)] = np.frombuffer(each, np.uint8)
    return np.concatenate([lengths[:, None].view(np.uint8), table], axis=1)


def _from_bytes(table):
    """What `_as_bytes` was given, as a list."""
    lengths = np.ascontiguousarray(table[:, :4]).view("<u4")[:, 0]
    return [row[4 : 4 + length].tobytes() for row, length in zip(table, lengths, strict=True)]
