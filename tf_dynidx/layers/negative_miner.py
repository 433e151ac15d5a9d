"""`NegativeMiner`: mined negatives as a layer, for losses of your own."""

import numpy as np
import tensorflow as tf

from tf_dynidx import replicas
from tf_dynidx.corpus import TargetCorpus, encode_all
from tf_dynidx.index import checks
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import Miner
from tf_dynidx.ops.membership import is_among
from tf_dynidx.variables import named_variables, read, write

_DIM = "dim"  # of encodings, in a file once the miner has state


@keras.utils.register_keras_serializable(package="tf_dynidx")
class NegativeMiner(keras.layers.Layer):
    """Draws negatives for encoded queries, and says how likely each draw was.

    For models and losses other than `DualEncoder`'s; any miner of `tf_dynidx.miners` that draws will
    do. Call `prepare` once, eagerly, before the first step; in a step, encode the rows that the layer
    returns, and once the gradients are applied hand their encodings to `observe`, so that the miner
    follows the encoder:

        rows, log_prob = negatives(queries, positives)
        ... scores of [positive, rows], 1 + num_negatives candidates a query ...
        log_expected = tf.pad(log_prob + math.log(num_negatives), [[0, 0], [1, 0]])
        loss = losses.SampledSoftmax(temperature)(zeros, scores, log_expected=log_expected)

    In a step of several replicas (`tf.distribute`) each draws for its own queries, and `observe` takes
    in what all of them have encoded. Make the layer and call `prepare` in the strategy's scope.

    The miner's state, the index of `Tree` for one, is saved with the layer; of the corpus only what it
    is like: a file is loaded with `custom_objects={"corpus": corpus}`.

    Args:
        miner: a miner from `tf_dynidx.miners` that draws negatives.
        corpus: `TargetCorpus`, all targets.
        target_tower: Keras model from target features to float [batch, dim]. The miner is given what
            it returns in inference mode.
        temperature: float > 0, what scores are divided by before the softmax.
        name: name of the layer.

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(self, miner, corpus, target_tower, temperature=0.05, name=None, **kwargs):
        # Queries are not to lose precision before they are scored.
        super().__init__(name=name, **{"autocast": False} | kwargs)
        if not isinstance(miner, Miner) or not miner.num_negatives:
            raise ValueError(
                "miner must be a miner from tf_dynidx.miners that draws negatives, such as Tree(). "
                f"Received: {miner!r}"
            )
        if not isinstance(corpus, TargetCorpus):
            raise ValueError(f"corpus must be a TargetCorpus. Received: {type(corpus).__name__}")
        if not isinstance(target_tower, keras.layers.Layer):
            raise ValueError(
                f"target_tower must be a Keras model. Received: target_tower={target_tower!r}"
            )
        self.miner, self.corpus, self.target_tower = miner, corpus, target_tower
        self.temperature = checks.positive_float("temperature", temperature)
        if corpus.placement == "host":
            self.supports_jit = False  # XLA compiles a step for one device

    def prepare(self):
        """Lets the miner make its state: for `Tree`, encodes and indexes all targets. Returns self."""
        self.corpus.check_filled()
        if not self.miner.built:
            encode = tf.function(self.encode_rows, autograph=False)
            self.miner.build(
                self.corpus, self.encode_rows, lambda: encode_all(encode, self.corpus.size)
            )
        self.built = True
        return self

    def encode_rows(self, rows, training=False):
        """float32 [rows, dim], targets of the corpus encoded by row."""
        return tf.cast(self.target_tower(self.corpus.gather(rows), training=training), tf.float32)

    def call(self, queries, positives):
        """Draws negatives.

        Args:
            queries: float [batch, dim], encodings. No gradient flows through the draws.
            positives: int [batch] or [batch, positives], rows of the known positives, padded with -1.

        Returns:
            (rows, log_prob): int32 and float32 [batch, num_negatives], drawn with replacement, and the
            log probability that one draw for the query is that row. A row that came though it is a
            known positive has -inf: leave it out, as `losses.SampledSoftmax` does.

        Raises:
            ValueError: `prepare` has not been called.
        """
        if not self.miner.built:
            raise ValueError("The miner has no state yet: call prepare() first. Received: none")
        replicas.check_copied(self.miner)
        queries = tf.stop_gradient(tf.cast(queries, tf.float32))
        positives = tf.cast(positives, tf.int32)
        positives = positives[:, None] if positives.shape.rank == 1 else positives
        beta = tf.constant(1.0 / self.temperature)
        rows, drawn = self.miner.mine(queries, beta, positives)
        log_prob = self.miner.own_log_prob(rows, queries, beta, positives, drawn)
        # Not every miner knows a positive when it draws one.
        return rows, tf.where(is_among(rows, positives), -float("inf"), log_prob)

    def observe(self, rows, encodings, positives=None):
        """Hands encodings that a step has made anyway to the miner.

        Args:
            rows: int32 [rows], possibly with repeats.
            encodings: float [rows, dim], encoded in inference mode.
            positives: int32 [batch], the positives that the step has trained on, -1 for none; default:
                they are not told, and `Popularity` learns nothing from the step.
        """
        if positives is not None:
            positives = replicas.gathered(tf.cast(positives, tf.int32))
            known = tf.cast(positives >= 0, tf.float32)
            self.miner.observe_positives(tf.maximum(positives, 0), known)
        encodings = replicas.gathered(tf.stop_gradient(tf.cast(encodings, tf.float32)))
        self.miner.observe(replicas.gathered(tf.cast(rows, tf.int32)), encodings)

    # Saving.

    def get_config(self):
        serialize = keras.utils.serialize_keras_object
        return super().get_config() | {
            "miner": serialize(self.miner),
            "corpus": self.corpus.get_config(),
            "target_tower": serialize(self.target_tower),
            "temperature": self.temperature,
        }

    @classmethod
    def from_config(cls, config):
        """A layer of the same arguments, without state; "corpus" among the custom objects is used."""
        config = dict(config)
        handed_in = keras.utils.get_registered_object("corpus")
        corpus = TargetCorpus.restored(config["corpus"], handed_in)
        for name in ("miner", "target_tower"):
            config[name] = keras.utils.deserialize_keras_object(config[name])
        return super().from_config(config | {"corpus": corpus})

    def get_build_config(self):
        """What the miner's variables are like, once it has any."""
        return {_DIM: self.miner.dim} if self.miner.built else None

    def build_from_config(self, config):
        """Makes the miner's variables, to be filled from a file."""
        if config and _DIM in config and not self.miner.built:
            self._make_state(config[_DIM])

    def save_own_variables(self, store):
        """Writes the state of the miner."""
        if self.miner.built:
            write(named_variables(self.miner), store)
            store[_DIM] = np.array(self.miner.dim, np.int32)

    def load_own_variables(self, store):
        """Reads what `save_own_variables` wrote; all targets are not encoded again.

        Raises:
            ValueError: the file is of another miner or corpus.
        """
        names = set(store.keys())
        if _DIM not in names:
            return
        if not self.miner.built:
            self._make_state(int(np.asarray(store[_DIM])))
        read(named_variables(self.miner), store, besides=[_DIM])

    def _make_state(self, dim):
        self.miner.build(self.corpus, self.encode_rows, None, dim)
        self.built = True
