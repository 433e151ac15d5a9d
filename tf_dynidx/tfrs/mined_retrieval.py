"""`MinedRetrieval`: the retrieval task of TensorFlow Recommenders, against the whole corpus."""

import warnings

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow_recommenders import tasks

from tf_dynidx import losses, replicas
from tf_dynidx.corpus import TargetCorpus, encode_all
from tf_dynidx.index import checks
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import Miner, Tree
from tf_dynidx.models.drawing import drawing_queries
from tf_dynidx.models.dual_encoder import tells_training_apart
from tf_dynidx.models.frequencies import PositiveFrequencies
from tf_dynidx.ops.membership import is_among

_UNNAMED = -(2**63)  # in place of an identifier
_ROUNDING = 1e-5  # of squared lengths, the squared distance up to which encodings count as equal
_LEFT_OUT = float(np.finfo(np.float32).min) / 100.0  # finite: a loss multiplies it by labels of 0


@keras.utils.register_keras_serializable(package="tf_dynidx.tfrs")
class MinedRetrieval(tasks.Retrieval):
    """Stands in for `tfrs.tasks.Retrieval`; negatives come from the whole corpus, not the batch alone.

    Beside the candidates that a call is given, those that the miner draws for its queries (for
    `mining_queries` of them) are encoded and shared by the batch. Each negative's logit is corrected
    for how often it was to be expected among all of them (`losses.log_expected_counts`), so that the
    loss estimates the softmax over the whole corpus; the positive's is not. Candidates with the id of a
    query's positive are left out.

    In `tfrs.Model` the loss is computed inside a gradient tape and the gradients are applied later,
    out of sight of the task: the miner is therefore given encodings (in inference mode) in the call
    itself, as they are before the update. A call that is not training gives it nothing, and counts no
    positives.

    In a step of several replicas (`tf.distribute`), the queries of each see the candidates of all, and
    the loss of a call is the replica's share: with the default loss the shares add up to the loss of
    the global batch.

    The first call encodes all targets, outside any graph, unless `prepare` was called before. The
    state of the miner is saved in `tf.train.Checkpoint`s.

    Args:
        candidate_model: Keras model from the corpus's features to float [candidates, dim]: the one
            that encodes `candidate_embeddings`.
        corpus: `TargetCorpus`, all candidates.
        miner: a miner from `tf_dynidx.miners`; default `Tree()`.
        mining_queries: int, for how many queries of a batch (heads of queries, where there are any), at
            most, negatives are drawn; default 256, as for `DualEncoder`.
        loss: Keras loss of (labels, logits); default categorical cross-entropy from logits, summed
            over the batch.
        metrics: a `tfrs.metrics.FactorizedTopK`, or a list of such; default none.
        batch_metrics: list of Keras metrics of (labels, logits), those of mined candidates included.
        loss_metrics: list of Keras metrics of the loss.
        temperature: float > 0, what scores are divided by; default None, which is 1.
        num_hard_negatives: int, how many of a query's negatives the loss sees, those with the largest
            corrected logits; default, or if not positive: all. With it the loss is no estimate of the
            softmax over the corpus.
        remove_accidental_hits: bool. Accidental hits are removed either way: it is accepted so that
            what was written for the original works.
        name: name of the task.

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(
        self,
        candidate_model,
        corpus,
        miner=None,
        loss=None,
        metrics=None,
        batch_metrics=None,
        loss_metrics=None,
        temperature=None,
        num_hard_negatives=None,
        remove_accidental_hits=False,
        name=None,
        mining_queries=256,
    ):
        super().__init__(
            loss=loss,
            metrics=metrics,
            batch_metrics=batch_metrics,
            loss_metrics=loss_metrics,
            temperature=temperature,
            num_hard_negatives=num_hard_negatives,
            remove_accidental_hits=remove_accidental_hits,
            name=name,
        )
        if not isinstance(candidate_model, keras.layers.Layer):
            raise ValueError(
                f"candidate_model must be a Keras model or layer. Received: {candidate_model!r}"
            )
        if not isinstance(corpus, TargetCorpus):
            raise ValueError(f"corpus must be a TargetCorpus. Received: {type(corpus).__name__}")
        miner = Tree() if miner is None else miner
        if not isinstance(miner, Miner):
            raise ValueError(
                f"miner must be a miner from tf_dynidx.miners, such as Tree(). Received: {miner!r}"
            )
        if temperature is not None:
            checks.positive_float("temperature", temperature)
        self.candidate_model, self.corpus, self.miner = candidate_model, corpus, miner
        self.mining_queries = checks.positive_int("mining_queries", mining_queries)
        self.frequencies = PositiveFrequencies(corpus.size, corpus.placement)
        self._strategy = tf.distribute.get_strategy()
        self._warned = False  # of a call without ids
        # A step of TensorFlow Recommenders is not compiled: it may hold strings, and so may the tower,
        # which other miners call. The draws of a tree are numbers alone: half the time, compiled. Only
        # in training, whose batches are of one size: every other size would be compiled as well. Not
        # where the index is on the host: what XLA compiles is for one device.
        self._mine = miner.mine
        if isinstance(miner, Tree) and corpus.placement != "host":
            self._mine = tf.function(miner.mine, autograph=False, jit_compile=True)
        # Keras traces a step several times, and lets AutoGraph rewrite what a task calls: some seconds.
        self._observe = tf.function(miner.observe, autograph=False, reduce_retracing=True)

    def prepare(self):
        """Lets the miner make its state: for `Tree`, encodes and indexes all targets. Returns self."""
        self.corpus.check_filled()
        if not self.miner.built:
            encode = tf.function(self.encode_rows, autograph=False)
            with self._strategy.scope():
                self.miner.build(
                    self.corpus, self.encode_rows, lambda: encode_all(encode, self.corpus.size)
                )
        return self

    def encode_rows(self, rows, training=False):
        """float32 [rows, dim], targets of the corpus encoded by row."""
        features = self.corpus.gather(rows)
        model = self.candidate_model
        # Not every layer takes `training`: StringLookup does not.
        output = model(features, training=training) if model._expects_training_arg else model(features)
        return tf.cast(output, tf.float32)

    def call(
        self,
        query_embeddings,
        candidate_embeddings,
        sample_weight=None,
        candidate_sampling_probability=None,
        candidate_ids=None,
        compute_metrics=True,
        compute_batch_metrics=True,
        score_mask=None,
        training=None,
    ):
        """Computes the loss and updates the metrics.

        Args:
            query_embeddings: float [queries, dim], or [queries, heads, dim], which are scored by the
                best head; negatives are then mined for each head, and `metrics` are not computed.
            candidate_embeddings: float [candidates, dim]: the queries' positives, in their order, and
                then, if you like, extra negatives for all queries.
            sample_weight: float [queries]; default all 1.
            candidate_sampling_probability: float [candidates], how probable it is that one of
                `candidate_embeddings` is that candidate. Never clipped. Default: counted, for targets
                of the corpus, as training goes on.
            candidate_ids: int [candidates], rows of the corpus, or its identifiers as strings; or
                only [queries], those of the positives. One that the corpus does not hold (rows: -1)
                is trained on, but neither mined nor written back. Default None, which warns: candidates
                with the encoding of a query's positive are left out instead, all are taken to come
                equally often, and what is given is not written back.
            compute_metrics: bool, whether to update `metrics`, which takes the time of a search.
            compute_batch_metrics: bool, whether to update `batch_metrics`.
            score_mask: bool [queries, candidates], which of the candidates given count for a query.
                Mined ones are not concerned, nor those of other replicas.
            training: bool, whether to write back and to encode what is mined in training mode. Default
                None: what Keras says, inside the call of a model; elsewhere, as in the `compute_loss`
                of `tfrs.Model`, whether a gradient tape is recording, and mined candidates are encoded
                in Keras's default mode, as yours are without `training`.

        Returns:
            float32, the loss.

        Raises:
            ValueError: candidate_ids is of another dtype or rank than described.
        """
        mode, training = training, record.could_possibly_record() if training is None else training
        if not self.miner.built:
            replicas.once(self.prepare)
        replicas.check_copied(self.frequencies, self.miner)
        named = candidate_ids is not None
        queries = tf.cast(query_embeddings, tf.float32)
        given = tf.cast(candidate_embeddings, tf.float32)
        num_queries, num_given = tf.shape(queries)[0], tf.shape(given)[0]
        if named:
            candidate_ids = tf.convert_to_tensor(candidate_ids)
            if candidate_ids.shape.rank == 2 and candidate_ids.shape[1] == 1:
                candidate_ids = candidate_ids[:, 0]
            # Extra negatives may come without ids.
            rows = self._rows(candidate_ids)
            rows = tf.pad(rows, [[0, num_given - tf.shape(rows)[0]]], constant_values=-1)
        else:
            self._warn_of_missing_ids()
            rows = tf.fill([num_given], -1)

        heads = 1 if queries.shape.rank == 2 else tf.shape(queries)[1]
        flat = tf.stop_gradient(tf.reshape(queries, [-1, queries.shape[-1]]))
        positives = tf.repeat(rows[:num_queries, None], heads, axis=0)
        flat, positives = drawing_queries(flat, positives, self.mining_queries)
        beta = tf.constant(1.0 / (self._temperature or 1.0))
        mine = self._mine if training else self.miner.mine
        mined, drawn = mine(flat, beta, positives)
        mined = tf.reshape(mined, [-1])
        own_encodings = tf.concat([given, self.encode_rows(mined, training=mode)], axis=0)
        own_rows = tf.concat([rows, mined], axis=0)
        # From here on the batch is that of all replicas, and so are its candidates.
        first = num_given if self.miner.num_negatives else None
        encodings = replicas.gathered(own_encodings, first)
        all_rows = replicas.gathered(own_rows, first)
        places, start, num_all_given = replicas.span(num_given)
        num_all_queries = replicas.span(tf.shape(flat)[0]).total
        if candidate_sampling_probability is not None:
            candidate_sampling_probability = replicas.gathered(
                tf.cast(tf.reshape(candidate_sampling_probability, [-1]), tf.float32)
            )

        log_prob = self.miner.log_prob(tf.maximum(all_rows, 0), flat, beta, positives, drawn)
        log_prob = replicas.log_summed(tf.where(all_rows < 0, -float("inf"), log_prob))
        log_frequency = self._log_frequency(all_rows, num_all_given, candidate_sampling_probability)
        log_expected = tf.stop_gradient(
            losses.log_expected_counts(
                log_prob, self.miner.num_negatives, log_frequency, num_all_queries, num_all_given
            )
        )

        if queries.shape.rank == 3:
            scores = tf.reduce_max(tf.einsum("qhd,cd->qhc", queries, encodings), axis=1)
        else:
            scores = tf.matmul(queries, encodings, transpose_b=True)
        num_all_mined = tf.size(all_rows) - num_all_given
        own = tf.one_hot(places[:num_queries], tf.size(all_rows), True, False)
        if named:
            same = is_among(all_rows[None], rows[:num_queries, None]) & (all_rows >= 0)
            # Also of unknown identifiers.
            numbers = _numbers(candidate_ids)
            unnamed = [[0, num_given - tf.size(numbers)]]
            all_numbers = replicas.gathered(tf.pad(numbers, unnamed, constant_values=_UNNAMED))
            hits = numbers[:num_queries, None] == all_numbers[None]
            same |= tf.pad(hits, [[0, 0], [0, num_all_mined]])
        else:
            same = _equal(given[:num_queries], encodings)
        never = tf.math.is_inf(log_expected)
        logits = beta * scores
        logits = tf.where(own, logits, logits - tf.where(never, 0.0, log_expected))
        left_out = (same | never) & ~own
        if score_mask is not None:
            after = tf.size(all_rows) - start - num_given
            left_out |= tf.pad(~tf.cast(score_mask, tf.bool), [[0, 0], [start, after]])
        logits = tf.where(left_out, _LEFT_OUT, logits)
        labels = tf.cast(own, tf.float32)
        if self._num_hard_negatives is not None and self._num_hard_negatives > 0:
            logits, labels = _hardest(logits, labels, self._num_hard_negatives)

        loss = self._loss(y_true=labels, y_pred=logits, sample_weight=sample_weight)
        updates = [metric.update_state(replicas.of_share(loss)) for metric in self._loss_metrics]
        if compute_metrics and queries.shape.rank == 2:
            for metric in self._factorized_metrics:
                update = metric.update_state(
                    query_embeddings,
                    candidate_embeddings[:num_queries],
                    true_candidate_ids=candidate_ids[:num_queries] if named else None,
                    sample_weight=sample_weight,
                )
                updates.append(update)
        if compute_batch_metrics:
            for metric in self._batch_metrics:
                updates.append(metric.update_state(labels, logits, sample_weight=sample_weight))
        if training:
            if tells_training_apart(self.candidate_model):
                fresh = self.encode_rows(tf.maximum(own_rows, 0))
                fresh = tf.where(own_rows[:, None] < 0, own_encodings, fresh)
                encodings = replicas.gathered(fresh, first)
            if named:
                self._count(replicas.gathered(rows[:num_queries]))
            self._observe(all_rows, tf.stop_gradient(encodings))
        with tf.control_dependencies([update for update in updates if update is not None]):
            return tf.identity(loss)

    def _count(self, positives):
        positives = tf.maximum(positives, 0), tf.cast(positives >= 0, tf.float32)
        self.frequencies.observe(*positives)
        self.miner.observe_positives(*positives)

    def _warn_of_missing_ids(self):
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name} is called without candidate_ids, as tfrs.tasks.Retrieval may be: it then "
                "tells a positive among what is mined by its encoding, which takes a candidate model "
                "without dropout, and cannot correct for how often each candidate comes. Pass "
                "candidate_ids, the rows or identifiers of the positives.",
                stacklevel=3,
            )

    def _rows(self, candidate_ids):
        if candidate_ids.dtype == tf.string:
            candidate_ids = self.corpus.rows_of(candidate_ids)
        if not candidate_ids.dtype.is_integer or candidate_ids.shape.rank != 1:
            raise ValueError(
                "candidate_ids must be rows of the corpus (integers) or identifiers (strings), one for "
                f"each candidate or positive. Received: shape {candidate_ids.shape}, "
                f"dtype {candidate_ids.dtype.name}"
            )
        return tf.cast(candidate_ids, tf.int32)

    def _log_frequency(self, rows, num_given, probability):
        """How probable each candidate, given ones first, is in the batch, in logs: float32 [rows]."""
        counted = self.frequencies.log_frequency(tf.maximum(rows, 0))
        unseen = -tf.math.log(self.frequencies.total + float(self.corpus.size))
        counted = tf.where(rows < 0, unseen, counted)
        if probability is None:
            return counted
        stated = tf.math.log(probability)
        # A target has one frequency, whether it was given or mined.
        match = rows[num_given:, None] == rows[None, :num_given]
        place = tf.argmax(tf.cast(match, tf.int32), axis=1)
        found = tf.reduce_any(match, axis=1)
        rest = tf.where(found, tf.gather(stated, place), counted[num_given:])
        return tf.concat([stated, rest], axis=0)

    # Saving.

    def get_config(self):
        """The constructor's arguments but `metrics`, which hold a layer's candidates or a dataset."""

        def serialized(objects):
            return [keras.utils.serialize_keras_object(each) for each in objects]

        return {
            "candidate_model": keras.utils.serialize_keras_object(self.candidate_model),
            "corpus": self.corpus.get_config(),
            "miner": keras.utils.serialize_keras_object(self.miner),
            "loss": keras.utils.serialize_keras_object(self._loss),
            "batch_metrics": serialized(self._batch_metrics),
            "loss_metrics": serialized(self._loss_metrics),
            "temperature": self._temperature,
            "num_hard_negatives": self._num_hard_negatives,
            "remove_accidental_hits": self._remove_accidental_hits,
            "name": self.name,
            "mining_queries": self.mining_queries,
        }

    @classmethod
    def from_config(cls, config):
        """A task of the same arguments, without state; "corpus" among the custom objects is used."""
        config = dict(config)
        handed_in = keras.utils.get_registered_object("corpus")
        corpus = TargetCorpus.restored(config["corpus"], handed_in)
        deserialize = keras.utils.deserialize_keras_object
        for name in ("candidate_model", "miner", "loss"):
            config[name] = deserialize(config[name])
        for name in ("batch_metrics", "loss_metrics"):
            config[name] = [deserialize(each) for each in config[name]]
        return cls(**config | {"corpus": corpus})


def _equal(some, others):
    """Whether vectors are equal but for rounding: bool [some, others]."""
    lengths = tf.reduce_sum(some**2, axis=1)[:, None] + tf.reduce_sum(others**2, axis=1)
    distances = lengths - 2.0 * tf.matmul(some, others, transpose_b=True)
    return distances <= _ROUNDING * lengths


def _numbers(identifiers):
    """Identifiers as numbers, which compare twenty times as fast as strings: int64, of their shape."""
    if identifiers.dtype == tf.string:
        return tf.strings.to_hash_bucket_fast(identifiers, 2**62)
    return tf.cast(identifiers, tf.int64)


def _hardest(logits, labels, number):
    """The positive and the `number` largest negatives of each query: (logits, labels)."""
    number = tf.minimum(number + 1, tf.shape(logits)[1])
    _, places = tf.math.top_k(tf.where(labels > 0, float("inf"), logits), number)
    return tf.gather(logits, places, batch_dims=1), tf.gather(labels, places, batch_dims=1)
