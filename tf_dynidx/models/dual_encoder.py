"""`DualEncoder`: a two-tower model that `fit` trains against the whole corpus."""

import contextlib
import copy
import itertools
import math
import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dynidx import files, losses, replicas
from tf_dynidx.corpus import TargetCorpus, encode_all
from tf_dynidx.index import checks
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.miners import InBatch, Miner, Tree
from tf_dynidx.models import saving
from tf_dynidx.models.drawing import drawing_queries
from tf_dynidx.models.frequencies import PositiveFrequencies
from tf_dynidx.models.gradient_cache import changing_state, encode_in_chunks
from tf_dynidx.ops.in_place import ids_after
from tf_dynidx.ops.membership import is_among
from tf_dynidx.serving import export_retrieval
from tf_dynidx.serving.folders import destination
from tf_dynidx.variables import named_variables, read, write

_LOOK_EVERY = 16  # calls of the training function; looking waits for an accelerator to be done
_DIM = "dim"  # the dimension of encodings, in the file once a miner has state
_LEARNED_BETA = 1.0, 100.0  # the range of an inverse temperature that is learned, as in CLIP
_SIMILARITIES = ("dot", "cosine")
_SHARINGS = ("batch", "none")
_WARMUP = InBatch()  # what a warm-up trains with; it has no state


class Candidates(NamedTuple):
    """What a step has encoded, on all replicas, and for whom.

    Attributes:
        rows: int32 [candidates]; the first are the positives of the queries, in their order.
        encodings: float32 [candidates, dim], as encoded for the loss.
        valid: bool [queries], whether a query has a positive at all.
        loss: float32 scalar, what came of them.
        own_rows: int32 [own candidates], what this replica has encoded of them; and
        own_batch: int32 scalar, for so many queries; None where those are all: nothing was mined.
    """

    rows: tf.Tensor
    encodings: tf.Tensor
    valid: tf.Tensor
    loss: tf.Tensor
    own_rows: tf.Tensor
    own_batch: tf.Tensor | None


@keras.utils.register_keras_serializable("tf_dynidx")
class DualEncoder(keras.Model):
    """Scores a query against a target by beta f(query).g(target), beta = 1 / temperature.

    Training data is the Keras convention (x, y) or (x, y, sample_weight): x query features, y the row
    of the positive target, int [batch], or of several, [batch, positives], padded with -1 at the end
    (one of them is trained on at each step, picked at random; all are masked as negatives). y may be
    identifiers (strings) instead, where the step is not compiled by XLA; `TargetCorpus.rows_of` turns
    them into rows in the data pipeline.

    The candidates of a step are the batch's positives and what the miner draws for its queries (for
    `mining_queries` of them), shared by all queries of the batch; or, with `sharing="none"`, a query's
    own positive and what was drawn for it. Each logit is corrected for how often its target was to be
    expected among them, so that the loss estimates the softmax over all targets
    (`losses.sampled_softmax`).

    Under a strategy of `tf.distribute` the batch is the global one: queries see the candidates of all
    replicas. The miner's state, the index too, is held by each.

    The loss encodes candidates in training mode; the miner is given encodings in inference mode (a
    second pass, only if the target tower has layers that tell the two apart).

    `.keras` files, `.weights.h5` files and `tf.train.Checkpoint`s hold, beside the weights, all state
    of the miner (for `Tree` its index, which is not built again), the counts of positives, the number
    of steps and the states of random generators (a checkpoint: those of layers that are there, and in
    Keras 2 built, when the model is made). The dropout of Keras 2 has a state only after
    `keras.backend.experimental.enable_tf_random_generator()`. A `.keras` file holds the corpus too,
    unless it was made with `saved=False`; the others never do. Keras's oldest format (`.h5`) holds the
    towers only. Where `BackupAndRestore` saves within an epoch, Keras starts that epoch's data anew;
    data that begins at batch `model.step` continues where it stopped.
    """

    def __init__(
        self,
        query_tower,
        target_tower,
        corpus,
        miner=None,
        temperature=0.05,
        learn_temperature=False,
        similarity="dot",
        sharing="batch",
        mining_queries=256,
        relative_margin=None,
        absolute_margin=None,
        max_score=None,
        range_min=0,
        unlabelled_weight=1.0,
        encode_chunk=None,
        warmup_examples=0,
        seed=0,
        name=None,
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
            learn_temperature: bool, whether the temperature is trained, from `temperature` on, as
                log(1 / temperature) and within 0.01 to 1, as in CLIP. Default False.
            similarity: "dot" (default), or "cosine": encodings are scaled to unit norm, in whatever
                the model returns, indexes or exports.
            sharing: "batch" (default): every query sees the positives of all queries of the batch and
                what was drawn for any of them; one or two negatives a query are enough. "none": a
                query sees its own positive and its own negatives alone, which takes some tens a query
                and as many more encodings. Use it where the queries of a batch must not meet, or few
                queries fit in one.
            mining_queries: int, for how many queries of a batch, at most, negatives are drawn, spread
                evenly over it: all of its queries see them, so that many more draws cost more time than
                they bring. Default 256. More where queries have hard negatives of their own, which the
                draws for others do not find, and encoding is what a step costs. With `sharing="none"`
                negatives are drawn for all.
            relative_margin, absolute_margin, max_score, range_min: when a candidate counts as a
                positive that nobody labelled, and is left out of the loss; see
                `losses.suspected_positives`. Scores are those before the temperature. Default: never.
                What is left out is missing from the softmax that the loss estimates.
            unlabelled_weight: float in [0, 1], what a target counts in that softmax, as a negative,
                that so far was no positive of any example. Default 1: the softmax is over all targets.
                Below 1 for data whose test targets are split off, so that none of them is a positive
                in training: there the full softmax teaches that a target without a label is wrong.
                With 0 the softmax is over the labelled targets.
            encode_chunk: int, how many candidates are encoded together, with gradient caching: the
                same gradient, for one more encoding, in the memory of one chunk. Batch normalisation
                normalises over a chunk then. Default None: all at once.
            warmup_examples: int, on so many examples `fit` trains at first with the positives of the
                batch as the only negatives, as with `miners.InBatch`; then the miner is prepared and
                mines. Default 0: from the first step on. As long as an encoder knows little, steps
                without mined negatives teach nearly as much and take a part of the time and of the
                encodings: half of a training is not too much where it has time for a few epochs only
                and towers cost little beside mining. As many examples as there are targets cost as
                many encodings as preparing a miner that encodes them all. Until it mines, the loss of
                `evaluate` and of validation is estimated in-batch, too; `prepare_miner` and
                `mined_loss` end the warm-up. The miner learns nothing from it.
            seed: int, seeds which of several positives a step trains on.
            name: name of the model.

        Raises:
            ValueError: an argument is not as described, or there are more negatives than targets.
        """
        super().__init__(name=name)
        _check_tower("query_tower", query_tower)
        _check_tower("target_tower", target_tower)
        if not isinstance(corpus, TargetCorpus):
            raise ValueError(f"corpus must be a TargetCorpus. Received: {type(corpus).__name__}")
        miner = Tree() if miner is None else miner
        if not isinstance(miner, Miner):
            raise ValueError(
                f"miner must be a miner from tf_dynidx.miners, such as Tree(). Received: {miner!r}"
            )
        miner.check_fits(corpus)
        self.temperature = checks.positive_float("temperature", temperature)
        if learn_temperature and not _LEARNED_BETA[0] <= 1.0 / temperature <= _LEARNED_BETA[1]:
            raise ValueError(
                "A temperature that is learned starts within 0.01 to 1. "
                f"Received: temperature={temperature!r}, learn_temperature={learn_temperature!r}"
            )
        checks.one_of("similarity", similarity, _SIMILARITIES)
        checks.one_of("sharing", sharing, _SHARINGS)
        if sharing == "none" and not miner.num_negatives:
            raise ValueError(
                'sharing="none" needs a miner that draws negatives, such as Tree(num_negatives=32). '
                f"Received: miner={miner!r}"
            )
        self.query_tower, self.target_tower = query_tower, target_tower
        self.corpus, self.miner = corpus, miner
        self.learn_temperature = checks.flag("learn_temperature", learn_temperature)
        self.similarity, self.sharing = similarity, sharing
        self.mining_queries = checks.positive_int("mining_queries", mining_queries)
        self.relative_margin = _margin("relative_margin", relative_margin)
        self.absolute_margin = _margin("absolute_margin", absolute_margin)
        self.max_score = _number("max_score", max_score)
        self.range_min = checks.count("range_min", range_min)
        self.unlabelled_weight = _share("unlabelled_weight", unlabelled_weight)
        if encode_chunk is not None:
            encode_chunk = checks.positive_int("encode_chunk", encode_chunk)
        self.encode_chunk = encode_chunk
        self.warmup_examples = checks.count("warmup_examples", warmup_examples)
        if self.warmup_examples and sharing == "none":
            raise ValueError(
                "In a warm-up queries see the positives of their batch, which those that share nothing "
                f"must not: leave it out. Received: {warmup_examples=}, {sharing=}"
            )
        self.seed = checks.seed(seed)
        self._log_beta = None
        if self.learn_temperature:
            self._log_beta = self.add_weight(
                name="log_inverse_temperature",
                shape=(),
                dtype="float32",
                initializer=keras.initializers.Constant(-math.log(self.temperature)),
                constraint=_clip_log_beta,
            )
        self.frequencies = PositiveFrequencies(corpus.size, corpus.placement)
        with replicas.copied():
            self.step = tf.Variable(0, trainable=False, name="step", dtype=tf.int64)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self._encode_block = tf.function(self.encode_rows, autograph=False)
        self._random_states = saving.RandomStates(query_tower, target_tower)
        self._pending = _Pending()
        self._in_warmup = False  # while a step of the warm-up is called, and so while it is traced
        # What is logged beside metrics is alike on all replicas; Keras 2 would add it up.
        self.distribute_reduction_method = "first"
        # The towers hold all weights: with them the model is built, so that weights can be saved.
        self.built = query_tower.built and target_tower.built
        if corpus.placement == "host":
            self.supports_jit = False  # which Keras 3 looks at, where XLA is left to it

    def build(self, input_shape=None):
        """Builds the target tower; the query tower is built by the call that leads here."""
        del input_shape
        if not self.target_tower.built:
            with tf.init_scope():
                self.encode_rows(tf.range(1))
        self.built = True

    @property
    def beta(self):
        """float32 scalar, the inverse temperature, as trained so far where it is learned."""
        if self._log_beta is None:
            return tf.constant(1.0 / self.temperature)
        return tf.exp(tf.convert_to_tensor(self._log_beta))

    # Encoding.

    def call(self, inputs, training=False):
        """Encodes queries: what `predict` returns."""
        return self.encode_queries(inputs, training=training)

    def encode_queries(self, features, training=False):
        """float32 [batch, dim] from query features."""
        return self._encoding(self.query_tower(features, training=training))

    def encode_targets(self, features, training=False):
        """float32 [batch, dim] from target features."""
        return self._encoding(self.target_tower(features, training=training))

    def encode_rows(self, rows, training=False):
        """float32 [rows, dim], targets of the corpus encoded by row."""
        return self.encode_targets(self.corpus.gather(rows), training=training)

    def _encoding(self, output):
        encoding = tf.cast(output, tf.float32)
        return tf.math.l2_normalize(encoding, axis=-1) if self.similarity == "cosine" else encoding

    def _encode_candidates(self, rows, training):
        """As `encode_rows`, in chunks where the model says so."""
        chunk = self.encode_chunk
        if chunk is None or (rows.shape[0] is not None and rows.shape[0] <= chunk):
            return self.encode_rows(rows, training=training)
        if not self.target_tower.built:
            with tf.init_scope():
                self.encode_rows(tf.range(1))
        state = changing_state(self.target_tower) if training else ()
        if state and replicas.number() > 1:
            raise ValueError(
                "Replicas agree on what a layer changes in training, such as moving averages, which "
                "they cannot do chunk by chunk: leave encode_chunk out, or layers with such a state. "
                f"Received: encode_chunk={chunk}, {len(state)} such variables, "
                f"{replicas.number()} replicas"
            )
        return encode_in_chunks(
            lambda block: self.encode_rows(block, training=training), rows, chunk, state
        )

    def encode_corpus(self, progress=False):
        """Encodes all targets, in inference mode.

        Args:
            progress: bool, whether to show a bar.

        Returns:
            float32 NumPy array [targets, dim].
        """
        return encode_all(self._encode_block, self.corpus.size, progress=progress)

    # Training.

    @property
    def metrics(self):
        return [self.loss_tracker]

    def prepare_miner(self, progress=False):
        """Lets the miner make its state: for `Tree`, encodes and indexes all targets.

        `fit` and `evaluate` do this before their first step that mines, after `on_train_begin`: a
        callback that restores a model there restores the miner too. A miner that has its state is left
        alone.
        """
        self.corpus.check_filled()
        if not self.miner.built:
            with self.distribute_strategy.scope():
                self.miner.build(
                    self.corpus, self.encode_rows, lambda: self.encode_corpus(progress=progress)
                )

    def _prepare_step(self):
        """What must be there before a step: the miner, once there is no warm-up (any more)."""
        if self.warming_up:
            self.corpus.check_filled()
        else:
            self.prepare_miner()

    def _prepare_training(self):
        """The same before a step that trains."""
        self._prepare_step()
        _build_optimizer(self)

    def _look(self):
        if self.miner.built:
            self.miner.look()

    @property
    def warming_up(self):
        """bool, whether the next step of `fit` mines nothing yet: see `warmup_examples`."""
        if self.miner.built or not self.miner.num_negatives:
            return False
        return float(self.frequencies.total.numpy()) < self.warmup_examples

    def make_train_function(self, force=False):
        """As in Keras; the function prepares the miner before a step needs it, outside any graph."""
        return self._made_with_preparation(
            "train_function", super().make_train_function, self._prepare_training, force
        )

    def make_test_function(self, force=False):
        """As in Keras: the loss of `evaluate` needs the miner too."""
        return self._made_with_preparation(
            "test_function", super().make_test_function, self._prepare_step, force
        )

    def _made_with_preparation(self, name, make, prepare, force):
        """Has Keras make a function, and lets it do something before each call.

        A warm-up has a function of its own: what a step encodes is not the same.
        """
        self._check_devices()
        make(force)
        made = getattr(self, name)
        if hasattr(made, "prepares"):  # made before
            return made
        if self.warmup_examples:
            make(force=True)
            made = self._in_phases(warmup=made, mining=getattr(self, name))
        function = _between(prepare, self._look, made)
        function.prepares = True
        setattr(self, name, function)
        return function

    def _in_phases(self, warmup, mining):
        """A function of two: that of the warm-up until the miner is prepared, then that which mines."""

        def run(*args, **kwargs):
            if self.miner.built:
                return mining(*args, **kwargs)
            self._in_warmup = True
            try:
                return warmup(*args, **kwargs)
            finally:
                self._in_warmup = False

        return run

    def _check_devices(self):
        if self.corpus.placement == "host" and _jit_compiled(self):
            raise ValueError(
                "XLA compiles a step for one device: compile the model with jit_compile=False where "
                f"the corpus is kept on the host. Received: jit_compile={self.jit_compile}, "
                f"a corpus of placement={self.corpus.placement!r}"
            )
        several = self.distribute_strategy.num_replicas_in_sync > 1
        on_tpu = isinstance(self.distribute_strategy, tf.distribute.TPUStrategy)
        if several and _jit_compiled(self) and not on_tpu:
            raise ValueError(
                "XLA compiles a step for one device: compile the model with jit_compile=False to train "
                f"on several. Received: jit_compile={self.jit_compile}, "
                f"{self.distribute_strategy.num_replicas_in_sync} replicas"
            )

    def drawing_queries(self, queries, positives):
        """Of the encoded queries of a batch, those that negatives are drawn for.

        Args:
            queries: float32 [batch, dim].
            positives: int32 [batch, positives].

        Returns:
            (queries, positives): float32 [drawing, dim], int32 [drawing, positives].
        """
        if self.sharing == "none":
            return queries, positives
        return drawing_queries(queries, positives, self.mining_queries)

    def mined_loss(self, x, y, sample_weight=None, training=True):
        """The loss of a batch, for a training loop of your own.

        Call `after_step` at the end of each step. The first call prepares the miner, if
        `prepare_miner` was not called before the loop.

            with tf.GradientTape() as tape:
                loss = model.mined_loss(x, y)
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables))
            model.after_step()

        What regularizers of the towers ask for is in `model.losses`, not in here.

        In a step of several replicas, `strategy.run`, each gets its share: they add up to the loss of
        the global batch, as do their gradients, which optimizers of Keras sum up by themselves.

        Args:
            x: query features.
            y: int [batch] or [batch, positives], rows, padded with -1.
            sample_weight: float [batch], default all 1.
            training: bool, the mode of the towers, default True. `after_step` follows True only.

        Returns:
            float32 scalar, the weighted mean over the batch.
        """
        rows = self._rows(y)
        if not self.miner.built:
            replicas.once(self.prepare_miner)
        loss, candidates = self._loss_and_candidates(x, rows, sample_weight, training)
        if training:
            self._pending.candidates[replicas.this()] = candidates
        return loss

    def after_step(self):
        """Lets the model take in what the last `mined_loss` has encoded, as a step of `fit` does.

        Writes encodings back to the miner, counts the positives, and counts the step. Call it after
        the gradients are applied, in the same `tf.function` as `mined_loss`, or both eagerly.

        Returns:
            dict from name to float32 scalar, what the miner logs.

        Raises:
            RuntimeError: there was no `mined_loss` in training mode since the last call, or it was
                called in another `tf.function`.
        """
        candidates = self._pending.candidates.pop(replicas.this(), None)
        if candidates is None:
            raise RuntimeError(
                "after_step follows a mined_loss in training mode. Received: a call without one"
            )
        rows = candidates.rows
        if tf.is_symbolic_tensor(rows) and rows.graph is not tf.compat.v1.get_default_graph():
            raise RuntimeError(
                "after_step belongs into the tf.function that mined_loss is called in. "
                "Received: a call outside of it"
            )
        return self._take_in(candidates)

    def train_step(self, data):
        """One step of `fit`: mine, loss, gradients, write-back."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss, candidates = self._loss_and_candidates(x, self._rows(y), sample_weight, training=True)
            total = loss + replicas.share(tf.add_n(self.losses)) if self.losses else loss
            scaled = _scale(self.optimizer, total)
        variables = _values(self.trainable_variables)
        gradients = tape.gradient(scaled, variables)
        _apply(self.optimizer, gradients, self.trainable_variables)
        logs = self._take_in(candidates)
        if self.learn_temperature:
            logs["temperature"] = 1.0 / self.beta
        self.loss_tracker.update_state(replicas.of_share(loss))
        return {"loss": self.loss_tracker.result(), **logs}

    def test_step(self, data):
        """One step of `evaluate`: the loss that a step of `fit` would have, in inference mode."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        loss, _ = self._loss_and_candidates(x, self._rows(y), sample_weight, training=False)
        self.loss_tracker.update_state(replicas.of_share(loss))
        return {"loss": self.loss_tracker.result()}

    def _take_in(self, candidates):
        """Ends a step: write-back, counts. Returns what the miner logs, as a dict."""
        miner = self._step_miner
        rows, encodings, valid, loss, own_rows, own_batch = candidates
        if tells_training_apart(self.target_tower):
            encodings = self._encode_candidates(own_rows, training=False)
            encodings = replicas.gathered(encodings, own_batch)
        rows = ids_after(loss, ids=rows)  # the miner's state is written once the loss has read it
        positives = rows[: tf.size(valid)], tf.cast(valid, tf.float32)
        self.frequencies.observe(*positives)
        miner.observe_positives(*positives)
        miner.observe(rows, tf.stop_gradient(encodings))
        self.step.assign_add(1)
        return dict(miner.logs())

    @property
    def _step_miner(self):
        """The miner of the step that is being traced."""
        return _WARMUP if self._in_warmup else self.miner

    def _loss_and_candidates(self, x, positives, sample_weight, training):
        """(loss, candidates) of a batch: float32 scalar, this replica's share; `Candidates`."""
        miner = self._step_miner
        replicas.check_copied(self.frequencies, miner)
        beta = self.beta
        queries = self.encode_queries(x, training=training)
        batch = tf.shape(positives)[0]
        chosen = self._one_positive(positives)
        # A query without a positive has put nothing among the candidates but a placeholder.
        valid = tf.reduce_any(positives >= 0, axis=1)
        drawing, their_positives = self.drawing_queries(tf.stop_gradient(queries), positives)
        asked = drawing, tf.stop_gradient(beta), their_positives
        mined, drawn = miner.mine(*asked)
        asked = *asked, drawn
        own_rows = tf.concat([chosen, tf.reshape(mined, [-1])], axis=0)
        own_encodings = self._encode_candidates(own_rows, training)
        self.built = True
        draws = miner.num_negatives
        # From here on the batch is that of all replicas, and so are its candidates.
        first = batch if draws else None
        rows = replicas.gathered(own_rows, first)
        encodings = replicas.gathered(own_encodings, first)
        all_valid = replicas.gathered(valid)
        if self.sharing == "batch":
            own, _, total = replicas.span(batch)
            scores = tf.matmul(queries, encodings, transpose_b=True)
            own_scores = tf.gather(scores, own, axis=1, batch_dims=1)
            log_prob = replicas.log_summed(miner.log_prob(rows, *asked))
            num_drawing = replicas.span(tf.shape(drawing)[0]).total
            log_expected = losses.log_expected_counts(
                log_prob, draws, self.frequencies.log_frequency(rows), num_drawing, total
            )
            log_expected -= tf.pad(self._log_weight(rows[total:]), [[total, 0]])
            masked = is_among(rows[None], positives)
            masked |= tf.pad(~all_valid, [[0, tf.size(rows) - total]])
        else:
            positive, negative = own_encodings[:batch], own_encodings[batch:]
            own, own_scores = tf.zeros_like(chosen), tf.reduce_sum(queries * positive, axis=1)
            negative = tf.reshape(negative, [batch, draws, negative.shape[1]])
            scores = tf.concat(
                [own_scores[:, None], tf.einsum("qd,qnd->qn", queries, negative)], axis=1
            )
            log_expected = losses.log_expected_own_counts(miner.own_log_prob(mined, *asked), draws)
            log_expected -= self._log_weight(mined)
            log_expected = tf.pad(log_expected, [[0, 0], [1, 0]])
            masked = is_among(tf.concat([chosen[:, None], mined], axis=1), positives)
        masked |= losses.suspected_positives(
            scores,
            own_scores,
            masked,
            relative_margin=self.relative_margin,
            absolute_margin=self.absolute_margin,
            max_score=self.max_score,
            range_min=self.range_min,
        )
        each = losses.sampled_softmax(beta * scores, own, tf.stop_gradient(log_expected), masked)
        weights = tf.cast(valid, tf.float32)
        if sample_weight is not None:
            weights *= tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
        loss = tf.math.divide_no_nan(
            tf.reduce_sum(each * weights), replicas.summed(tf.reduce_sum(weights))
        )
        return loss, Candidates(rows, encodings, all_valid, loss, own_rows, first)

    def _log_weight(self, mined):
        """Log of what each mined row counts as a negative: float32, of the rows' shape."""
        weight = tf.where(self.frequencies.are_labelled(mined), 1.0, self.unlabelled_weight)
        return tf.math.log(weight)

    def _one_positive(self, positives):
        """Picks one of each query's positives at random: int32 [queries]."""
        if positives.shape[1] == 1:
            return tf.maximum(positives[:, 0], 0)
        seed = replicas.seed_apart(tf.stack([self.seed + 2, tf.cast(self.step, tf.int32)]))
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

    # Saving.

    def get_config(self):
        """The constructor's arguments; of the corpus only what it is like."""
        options = (
            "temperature",
            "learn_temperature",
            "similarity",
            "sharing",
            "mining_queries",
            "relative_margin",
            "absolute_margin",
            "max_score",
            "range_min",
            "unlabelled_weight",
            "encode_chunk",
            "warmup_examples",
            "seed",
            "name",
        )
        return {
            **saving.serialized_towers(self.query_tower, self.target_tower),
            "corpus": self.corpus.get_config(),
            "miner": keras.utils.serialize_keras_object(self.miner),
            **{option: getattr(self, option) for option in options},
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """A model of the same arguments, without its weights and the state of its miner.

        Args:
            config: what `get_config` returned.
            custom_objects: dict, as in Keras. "corpus" is the `TargetCorpus`; it must have as many
                targets as the one saved, with features of the same shapes and dtypes. Without it the
                model has no targets to encode, until `load_model` fills the corpus from the file.

        Raises:
            ValueError: the corpus is another.
        """
        config = copy.deepcopy(config)  # Keras empties what it makes towers from
        # A scope hides those around it: one without content would hide what load_model was given.
        scope = keras.utils.custom_object_scope(custom_objects) if custom_objects else None
        with scope or contextlib.nullcontext():
            query_tower, target_tower = saving.deserialized_towers(config)
            miner = keras.utils.deserialize_keras_object(config["miner"])
            corpus = keras.utils.get_registered_object("corpus")
        # Anything else is refused by the constructor.
        if corpus is None or isinstance(corpus, TargetCorpus):
            corpus = TargetCorpus.restored(config["corpus"], corpus)
        towers = {"query_tower": query_tower, "target_tower": target_tower}
        return cls(**config | towers | {"corpus": corpus, "miner": miner})

    def get_build_config(self):
        """None: the towers know themselves what they were built with."""

    def save_own_variables(self, store):
        """Writes what belongs to no layer: counts, random states, the state of the miner."""
        write(self._own_state(), store)
        if self.miner.built:
            store[_DIM] = np.array(self.miner.dim, np.int32)

    def load_own_variables(self, store):
        """Reads what `save_own_variables` wrote; a miner without state gets it, without encoding.

        A file saved before the miner had state leaves it as it is.

        Raises:
            ValueError: the file is of another model.
        """
        with_miner = _DIM in set(store.keys())
        if with_miner and not self.miner.built:
            with self.distribute_strategy.scope():
                self.miner.build(self.corpus, self.encode_rows, None, int(np.asarray(store[_DIM])))
        read(self._own_state(with_miner), store, besides=[_DIM])

    def save_assets(self, folder):
        """Writes the corpus into a `.keras` file, unless it was made with `saved=False`."""
        if self.corpus.saved:
            folder = os.path.join(folder, "corpus")
            os.makedirs(folder, exist_ok=True)
            self.corpus.write(folder)

    def load_assets(self, folder):
        """Fills the corpus from a `.keras` file, unless one was handed in."""
        if self.corpus.features is None and folder is not None:
            folder = os.path.join(folder, "corpus")
            if os.path.isdir(folder):
                self.corpus.read(folder)

    def _own_state(self, miner=True):
        """dict from name to `tf.Variable`, all state beside the weights of the towers."""
        parts = {
            "frequencies": named_variables(self.frequencies),
            "miner": named_variables(self.miner) if miner and self.miner.built else {},
            "query_random": saving.random_states(self.query_tower),
        }
        if self.target_tower is not self.query_tower:
            parts["target_random"] = saving.random_states(self.target_tower)
        state = {"step": self.step}
        if self._log_beta is not None:
            state["log_inverse_temperature"] = _values([self._log_beta])[0]
        for part, mine in parts.items():
            state |= {f"{part}.{name}": variable for name, variable in mine.items()}
        return state

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
        version=None,
        index="exact",
        row_dtype="float32",
        budget=None,
        sample_queries=None,
        metrics=None,
    ):
        """Writes a SavedModel that answers queries: encodes all targets once more and packs them in.

        `docs/serving.md` has its signatures, and how it is served and kept current.

        Args:
            path: folder to write; must not exist unless `replace`.
            k: int, how many targets `retrieve` returns, and the most that can be asked for.
            preprocess_query, preprocess_target: functions of TensorFlow ops from raw features to what
                the towers take, exported with them; default none. One that holds variables or tables
                must be a `tf.Module` or a Keras layer.
            query_spec, target_spec: `tf.TensorSpec`, or a dict of them, of what the export takes;
                default: the inputs of the towers.
            replace: bool, whether to replace an export that is there.
            version: None (default): `path` is the SavedModel. An int, or "next" for one above the
                newest: `path/<version>` is, as TF Serving wants it.
            index: "exact" (default) scores every target; "tree" only those near to the query.
            row_dtype: in which targets are kept: "float32" (default), "float16" or "int8".
            budget: int, how many targets a tree scores for a query; default as for
                `DynamicIndex.search`.
            sample_queries: query features, as the export takes them, to measure the recall of the
                index with; default: targets stand in for queries, and the model card says so.
            metrics: dict for the model card.

        Returns:
            str, the folder of the SavedModel.

        Raises:
            ValueError: an argument is not as described; nothing is written.
        """
        files.check_writable_target(destination(path, version), "directory", replace=replace)

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
            version=version,
            index=index,
            row_dtype=row_dtype,
            budget=budget,
            sample_queries=sample_queries,
            metrics=metrics,
            trackables=[holder for holder in holders if isinstance(holder, trackable)],
            replace=replace,
        )


class _Pending:
    """What a model remembers between calls, out of Keras's sight, which would track tensors."""

    def __init__(self):
        self.candidates = {}  # of the last mined_loss of each replica, for after_step


def _between(prepare, look, function):
    """The function, with something to be done before each call of it, and now and then after one."""
    calls = itertools.count(1)

    def prepared(*args, **kwargs):
        prepare()
        result = function(*args, **kwargs)
        if next(calls) % _LOOK_EVERY == 0:
            look()
        return result

    return prepared


def _clip_log_beta(log_beta):
    least, most = _LEARNED_BETA
    return tf.clip_by_value(tf.convert_to_tensor(log_beta), math.log(least), math.log(most))


def _check_tower(name, tower):
    if not isinstance(tower, keras.layers.Layer):
        raise ValueError(f"{name} must be a Keras model. Received: {name}={tower!r}")


def _number(name, value):
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if value is not None and not (number and np.isfinite(value)):
        raise ValueError(f"{name} must be a finite number or None. Received: {name}={value!r}")
    return None if value is None else float(value)


def _margin(name, value):
    value = _number(name, value)
    if value is not None and value < 0:
        raise ValueError(f"{name} must be at least 0, or None. Received: {name}={value!r}")
    return value


def _share(name, value):
    number = _number(name, value)
    if number is None or not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must be in [0, 1]. Received: {name}={value!r}")
    return number


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


def tells_training_apart(tower):
    """Whether any layer of a tower may act differently in training: dropout, normalisation, custom."""
    layers = keras.layers
    # Containers pass `training` on and do nothing with it themselves; dense layers of Keras 3 use it
    # for their quantisation only.
    indifferent = (
        keras.Sequential,
        saving.FUNCTIONAL,
        layers.InputLayer,
        layers.Dense,
        layers.EinsumDense,
    )
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


def _build_optimizer(model):
    """Makes the optimizer's variables, if the model has all of its own and the optimizer lets us.

    Otherwise they are made in the first step, which TensorFlow then traces twice.
    """
    optimizer = model.optimizer
    built = getattr(optimizer, "built" if IS_KERAS_3 else "_built", True)
    if built or not (model.query_tower.built and model.target_tower.built):
        return
    with model.distribute_strategy.scope():
        optimizer.build(model.trainable_variables)


def _apply(optimizer, gradients, variables):
    if hasattr(optimizer, "get_unscaled_gradients"):
        gradients = optimizer.get_unscaled_gradients(gradients)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
