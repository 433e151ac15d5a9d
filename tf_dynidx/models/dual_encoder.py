"""`DualEncoder`: a two-tower model that `fit` trains against the whole corpus."""

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_dynidx import files, losses
from tf_dynidx.corpus import TargetCorpus
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.miners import Miner, Tree
from tf_dynidx.models.frequencies import PositiveFrequencies
from tf_dynidx.ops.membership import is_among
from tf_dynidx.serving import export_retrieval

_ENCODE_BATCH = 4096  # targets encoded together where all of them are


class DualEncoder(keras.Model):
    """Scores a query against a target by beta f(query).g(target), beta = 1 / temperature.

    Training data is the Keras convention (x, y) or (x, y, sample_weight): x query features, y the row
    of the positive target, int [batch], or of several, [batch, positives], padded with -1 at the end
    (one of them is trained on at each step, picked at random; all are masked as negatives). y may be
    identifiers (strings) instead, where the step is not compiled by XLA; `TargetCorpus.rows_of` turns
    them into rows in the data pipeline.

    The candidates of a step are the batch's positives and what the miner draws for each query, shared
    by all queries of the batch. Each logit is corrected for how often its target was to be expected
    among them, so that the loss estimates the softmax over all targets (`losses.sampled_softmax`).

    The loss encodes candidates in training mode; the miner is given encodings in inference mode (a
    second pass, only if the target tower has layers that tell the two apart).
    """

    def __init__(
        self, query_tower, target_tower, corpus, miner=None, temperature=0.05, seed=0, name=None
    ):
        """Joins two towers, a corpus and a miner.

        Args:
            query_tower: Keras model from query features to float [batch, dim].
            target_tower: Keras model from target features to float [batch, dim]. May be the same
                object, or share layers.
            corpus: `TargetCorpus`, all targets.
            miner: a miner from `tf_dynidx.miners`; default `Tree()`.
            temperature: float > 0, what scores are divided by before the softmax. 0.05 suits
                encodings of unit norm.
            seed: int, seeds which of several positives a step trains on.
            name: name of the model.

        Raises:
            ValueError: an argument is not as described, or there are more negatives than targets.
        """
        super().__init__(name=name)
        if not isinstance(corpus, TargetCorpus):
            raise ValueError(f"corpus must be a TargetCorpus. Received: {type(corpus).__name__}")
        miner = Tree() if miner is None else miner
        if not isinstance(miner, Miner):
            raise ValueError(
                f"miner must be a miner from tf_dynidx.miners, such as Tree(). Received: {miner!r}"
            )
        if miner.num_negatives > corpus.size:
            raise ValueError(
                "More negatives than targets: use at most as many as the corpus holds. "
                f"Received: num_negatives={miner.num_negatives}, {corpus.size} targets"
            )
        number = isinstance(temperature, (int, float, np.number))
        if not number or not np.isfinite(temperature) or temperature <= 0:
            raise ValueError(
                f"temperature must be positive and finite. Received: temperature={temperature!r}"
            )
        self.query_tower, self.target_tower = query_tower, target_tower
        self.corpus, self.miner = corpus, miner
        self.temperature = float(temperature)
        self.seed = int(seed)
        self.frequencies = PositiveFrequencies(corpus.size)
        self.step = tf.Variable(0, trainable=False, name="step")
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self._encode_block = tf.function(self.encode_rows, autograph=False)
        # The towers hold all weights: with them the model is built, so that weights can be saved.
        self.built = query_tower.built and target_tower.built

    # Encoding.

    def call(self, inputs, training=False):
        """Encodes queries: what `predict` returns."""
        return self.encode_queries(inputs, training=training)

    def encode_queries(self, features, training=False):
        """float32 [batch, dim] from query features."""
        return tf.cast(self.query_tower(features, training=training), tf.float32)

    def encode_targets(self, features, training=False):
        """float32 [batch, dim] from target features."""
        return tf.cast(self.target_tower(features, training=training), tf.float32)

    def encode_rows(self, rows, training=False):
        """float32 [rows, dim], targets of the corpus encoded by row."""
        return self.encode_targets(self.corpus.gather(rows), training=training)

    def encode_corpus(self, progress=False):
        """Encodes all targets, in inference mode.

        Args:
            progress: bool, whether to show a bar.

        Returns:
            float32 NumPy array [targets, dim].
        """
        size = self.corpus.size
        batch = min(_ENCODE_BATCH, size)
        parts = []
        with tqdm(total=size, desc="encoding targets", unit="", disable=not progress) as bar:
            for start in range(0, size, batch):
                # The last block reaches back, so that all have one shape and nothing is retraced.
                first = min(start, size - batch)
                block = self._encode_block(tf.range(first, first + batch)).numpy()
                parts.append(block[start - first :])
                bar.update(len(parts[-1]))
        return np.concatenate(parts)

    # Training.

    @property
    def metrics(self):
        return [self.loss_tracker]

    def prepare_miner(self, progress=False):
        """Lets the miner make its state: for `Tree`, encodes and indexes all targets.

        `fit` does this before its first step. Call it yourself before a training loop of your own.
        """
        if not self.miner.built:
            self.miner.build(
                self.corpus, self.encode_rows, lambda: self.encode_corpus(progress=progress)
            )

    def make_train_function(self, force=False):
        """As in Keras; both Keras versions call it before the first step, outside any graph."""
        self.prepare_miner()
        return super().make_train_function(force)

    def make_test_function(self, force=False):
        """As in Keras: the loss of `evaluate` needs the miner too."""
        self.prepare_miner()
        return super().make_test_function(force)

    def mined_loss(self, x, y, sample_weight=None, training=True):
        """The loss of a batch, for a training loop of your own: call `prepare_miner` once before.

        Args:
            x: query features.
            y: int [batch] or [batch, positives], rows, padded with -1.
            sample_weight: float [batch], default all 1.

        Returns:
            float32 scalar, the weighted mean over the batch.
        """
        return self._losses_and_candidates(x, self._rows(y), sample_weight, training)[0]

    def train_step(self, data):
        """One step of `fit`: mine, loss, gradients, write-back."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        positives = self._rows(y)
        with tf.GradientTape() as tape:
            loss, rows, encodings = self._losses_and_candidates(
                x, positives, sample_weight, training=True
            )
            total = loss + tf.add_n(self.losses) if self.losses else loss
            scaled = _scale(self.optimizer, total)
        variables = _values(self.trainable_variables)
        gradients = tape.gradient(scaled, variables)
        _apply(self.optimizer, gradients, self.trainable_variables)
        if _tells_training_apart(self.target_tower):
            encodings = self.encode_rows(rows)
        self.miner.observe(rows, tf.stop_gradient(encodings))
        valid = tf.reduce_any(positives >= 0, axis=1)
        self.frequencies.observe(rows[: tf.size(valid)], tf.cast(valid, tf.float32))
        self.step.assign_add(1)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data):
        """One step of `evaluate`: the loss on mined negatives, in inference mode."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.loss_tracker.update_state(self.mined_loss(x, y, sample_weight, training=False))
        return {"loss": self.loss_tracker.result()}

    def _losses_and_candidates(self, x, positives, sample_weight, training):
        """(loss, rows, encodings) of a batch: scalar, int32 [candidates], float32 [candidates, dim].

        The first candidates are the positives of the queries, in their order.
        """
        beta = tf.constant(1.0 / self.temperature)
        queries = self.encode_queries(x, training=training)
        batch = tf.shape(positives)[0]
        chosen = self._one_positive(positives)
        fixed = tf.stop_gradient(queries)
        mined, drawn = self.miner.mine(fixed, beta, positives)
        rows = tf.concat([chosen, tf.reshape(mined, [-1])], axis=0)
        log_expected = losses.log_expected_counts(
            self.miner.log_prob(rows, fixed, beta, positives, drawn),
            self.miner.num_negatives,
            self.frequencies.log_frequency(rows),
            batch,
        )
        encodings = self.encode_rows(rows, training=training)
        self.built = True
        logits = beta * tf.matmul(queries, encodings, transpose_b=True)
        masked = is_among(rows[None], positives)
        # A query without a positive has put nothing among the candidates but a placeholder.
        valid = tf.reduce_any(positives >= 0, axis=1)
        masked |= tf.pad(~valid, [[0, tf.size(mined)]])
        each = losses.sampled_softmax(logits, tf.range(batch), tf.stop_gradient(log_expected), masked)
        weights = tf.cast(valid, tf.float32)
        if sample_weight is not None:
            weights *= tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
        loss = tf.math.divide_no_nan(tf.reduce_sum(each * weights), tf.reduce_sum(weights))
        return loss, rows, encodings

    def _one_positive(self, positives):
        """Picks one of each query's positives at random: int32 [queries]."""
        if positives.shape[1] == 1:
            return tf.maximum(positives[:, 0], 0)
        seed = tf.stack([tf.constant(self.seed + 2), self.step])
        lot = tf.random.stateless_uniform(tf.shape(positives), seed, alg="philox")
        pick = tf.argmax(tf.where(positives >= 0, lot, -1.0), axis=1)
        return tf.maximum(tf.gather(positives, pick, batch_dims=1), 0)

    def _rows(self, y):
        """y as int32 rows [batch, positives]."""
        if y is None:
            raise ValueError(
                "Training data is (x, y) or (x, y, sample_weight), y the rows of the positives. "
                "Received: no y"
            )
        y = tf.convert_to_tensor(y)
        if y.dtype == tf.string:
            if _jit_compiled(self):
                raise ValueError(
                    "String identifiers cannot enter a step that XLA compiles. Map them to rows in "
                    "the data pipeline, dataset.map(lambda x, y: (x, corpus.rows_of(y))), or "
                    "compile the model with jit_compile=False. Received: y of dtype string"
                )
            y = self.corpus.rows_of(y)
        if not y.dtype.is_integer:
            raise ValueError(
                "y must be rows of the corpus (integers) or identifiers (strings). "
                f"Received: dtype {y.dtype.name}"
            )
        y = tf.cast(y, tf.int32)
        if y.shape.rank not in (1, 2):
            raise ValueError(
                f"y must have shape [batch] or [batch, positives]. Received: shape {tuple(y.shape)}"
            )
        return y[:, None] if y.shape.rank == 1 else y

    # Serving.

    def export_retrieval(
        self,
        path,
        k=100,
        preprocess_query=None,
        preprocess_target=None,
        query_spec=None,
        target_spec=None,
        replace=False,
    ):
        """Writes a SavedModel that answers queries: encodes all targets once more and packs them in.

        Args:
            path: folder to write; must not exist unless `replace`.
            k: int, how many targets `retrieve` returns.
            preprocess_query, preprocess_target: functions of TensorFlow ops from raw features to what
                the towers take, exported with them; default none. One that holds variables or tables
                must be a `tf.Module` or a Keras layer.
            query_spec, target_spec: `tf.TensorSpec`, or a dict of them, of what the export takes;
                default: the inputs of the towers.
            replace: bool, whether to replace an export that is there.

        Returns:
            str, the path.

        Raises:
            ValueError: an argument is not as described; nothing is written.
        """
        files.check_writable_target(path, "directory", replace=replace)

        def encode_query(query):
            query = preprocess_query(query) if preprocess_query else query
            return self.encode_queries(query)

        def encode_target(target):
            target = preprocess_target(target) if preprocess_target else target
            return self.encode_targets(target)

        trackable = tf.Module | keras.layers.Layer
        holders = (self.query_tower, self.target_tower, preprocess_query, preprocess_target)
        return export_retrieval(
            path,
            encode_query=encode_query,
            query_spec=_input_spec(self.query_tower) if query_spec is None else query_spec,
            encode_target=encode_target,
            target_spec=_input_spec(self.target_tower) if target_spec is None else target_spec,
            embeddings=self.encode_corpus(),
            identifiers=self.corpus.identifiers,
            k=k,
            trackables=[holder for holder in holders if isinstance(holder, trackable)],
            replace=replace,
        )


def _input_spec(tower):
    """What a functional or sequential tower takes, with the batch left free."""

    def spec(tensor):
        return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)

    try:
        inputs = tower.input
    except AttributeError as error:
        raise ValueError(
            "The inputs of a subclassed tower are not known: give query_spec and target_spec. "
            f"Received: {type(tower).__name__}"
        ) from error
    return tf.nest.map_structure(spec, inputs)


def _tells_training_apart(tower):
    """Whether any layer of a tower may act differently in training: dropout, normalisation, custom."""
    layers = keras.layers
    # Containers pass `training` on and do nothing with it themselves; dense layers of Keras 3 use it
    # for their quantisation only.
    functional = type(keras.Model(*[keras.Input([1])] * 2))
    indifferent = (keras.Sequential, functional, layers.InputLayer, layers.Dense, layers.EinsumDense)
    attribute = "_call_has_training_arg" if IS_KERAS_3 else "_expects_training_arg"
    return any(
        getattr(layer, attribute, True) and type(layer) not in indifferent
        for layer in tower._flatten_layers()
    )


def _jit_compiled(model):
    return bool(model.jit_compile if IS_KERAS_3 else model._jit_compile)


def _scale(optimizer, loss):
    """The loss as loss scaling wants it, where the optimizer scales."""
    for name in ("scale_loss", "get_scaled_loss"):
        if hasattr(optimizer, name):
            return getattr(optimizer, name)(loss)
    return loss


def _values(variables):
    """What a gradient tape knows of Keras variables: in Keras 3 the variable behind each."""
    return [v.value if IS_KERAS_3 else v for v in variables]


def _apply(optimizer, gradients, variables):
    if hasattr(optimizer, "get_unscaled_gradients"):
        gradients = optimizer.get_unscaled_gradients(gradients)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
