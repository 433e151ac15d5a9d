"""Trains a two-tower model on pairs for the command line, within a budget of steps or seconds."""

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_dynidx import miners
from tf_dynidx.cli import encoders
from tf_dynidx.cli.data import Pairs, Targets
from tf_dynidx.corpus import TargetCorpus
from tf_dynidx.keras_world import keras
from tf_dynidx.metrics import positive_ranks, ranking_metrics
from tf_dynidx.models import DualEncoder

MINERS = {
    "tree": miners.Tree,
    "in-batch": miners.InBatch,
    "uniform": miners.Uniform,
    "exact": miners.Exact,
}
_EPOCHS = 10  # where neither steps nor seconds are given
_EVALUATIONS = 10  # points of the history
_HISTORY_QUERIES = 2000  # queries that a point of the history is measured on, at most
_KNOWN_POSITIVES = 32  # positives of a query that are masked, at most: each is compared everywhere
_TIMED_STEPS = 20  # steps of mining that are run by themselves to be timed
_SAMPLE_QUERIES = 256  # that the recall of an export is measured with


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `train` can be told; the defaults are the command line's.

    Attributes:
        encoder: "text" or "id".
        miner: a key of `MINERS`.
        steps: training steps; or
        seconds: wall time of training, evaluation apart. Neither: ten epochs.
        batch: queries a step.
        negatives: mined negatives a query.
        dim: dimension of the encodings.
        temperature: what scores are divided by.
        learning_rate: Adam's at the start; it falls linearly to 2 % of that over the budget. Default:
            0.005 for text, 0.03 for ids, whose embeddings each see few examples.
        dropout: share of a text query's features dropped in training.
        seed: seeds weights, order of the data and draws.
    """

    encoder: str = "text"
    miner: str = "tree"
    steps: int | None = None
    seconds: float | None = None
    batch: int = 512
    negatives: int = 2
    dim: int = 64
    temperature: float = 0.05
    learning_rate: float | None = None
    dropout: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        report: the dict of the report file.
        export: function from a folder and k to nothing: writes the SavedModel.
        encodings: function without arguments to float32 [targets, dim] and [test queries, dim].
        interrupted: whether the user stopped it early.
        held_out: metrics on the held-out pairs that the weights were picked by; None without.
    """

    report: dict
    export: Callable
    encodings: Callable
    interrupted: bool
    held_out: dict | None


def train(
    targets: Targets,
    pairs: Pairs,
    test: Pairs,
    settings: Settings,
    held_out: Pairs | None = None,
    progress: bool = True,
    miner: miners.Miner | None = None,
    watch=None,
) -> Trained:
    """Trains one model and measures it on test queries against all targets.

    Args:
        targets: the corpus.
        pairs: training pairs.
        test: queries to measure on.
        settings: see `Settings`.
        held_out: pairs to stop early by: the weights with the best MRR on these, of all points of the
            history, are kept in the end.
        progress: whether to show a bar.
        miner: used instead of the one that the settings name.
        watch: Keras callback that is called beside the training; its attribute `queries` is set to a
            function that encodes the test queries as they are now.

    Returns:
        A `Trained`. Ctrl-C ends the training early and keeps what has been trained.

    Raises:
        ValueError: more negatives than targets, or a setting out of range.
    """
    if settings.learning_rate is None:
        rate = {"text": 5e-3, "id": 3e-2}[settings.encoder]
        settings = dataclasses.replace(settings, learning_rate=rate)
    # Keras seeds whole processes; nothing else here draws from global generators.
    keras.utils.set_random_seed(settings.seed)
    data = _Data(targets, pairs, test, held_out, settings)
    kwargs = {} if settings.miner == "in-batch" else {"num_negatives": settings.negatives}
    model = DualEncoder(
        *data.towers(),
        TargetCorpus(data.target_features, targets.identifiers),
        miner=miner or MINERS[settings.miner](seed=settings.seed, **kwargs),
        temperature=settings.temperature,
        seed=settings.seed,
    )
    # Compiled by XLA, on the CPU too: a step of these encoders then takes half the time.
    model.compile(optimizer=keras.optimizers.Adam(settings.learning_rate), jit_compile=True)
    budget = _Budget(model, data, settings, progress)
    callbacks = [budget]
    if watch is not None:
        watch.queries = lambda: data.encode_queries(model, data.test)
        callbacks.append(watch)
    interrupted = False
    try:
        model.prepare_miner(progress=progress)
        budget.preparing = budget.seconds if model.miner.num_negatives else 0.0
        model.fit(data.dataset(), steps_per_epoch=2**31, shuffle=False, verbose=0, callbacks=callbacks)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        budget.close()
    kept = budget.restore_best()
    metrics = data.evaluate(model, data.test)
    seconds, full_encodes = budget.seconds, int(model.miner.full_encodes)
    budget.history.append({"step": budget.steps, "seconds": seconds, "metrics": metrics})
    report = {
        "miner": settings.miner,
        "steps": budget.steps,
        "seconds": seconds,
        "seconds_mining": min(seconds, budget.preparing + budget.steps * _mining_seconds(model, data)),
        "num_targets": len(targets.identifiers),
        "metrics": metrics,
        "history": budget.history,
        "full_encodes": full_encodes,
    }

    def export(folder, k=100):
        k = min(k, len(targets.identifiers))
        text = tf.TensorSpec([None], tf.string)
        model.export_retrieval(
            folder,
            k=k,
            preprocess_query=data.read_query,
            preprocess_target=data.read_target,
            query_spec=text,
            target_spec=text,
            replace=True,
            sample_queries=test.queries[:_SAMPLE_QUERIES],
            metrics=report["metrics"],
        )

    def encodings():
        return model.encode_corpus(), data.encode_queries(model, data.test)

    return Trained(report, export, encodings, interrupted, kept)


class _Data:
    """The pairs as the towers take them."""

    def __init__(self, targets, pairs, test, held_out, settings):
        self.settings = settings
        self.num_targets = len(targets.identifiers)
        known = _by_query(pairs)
        if settings.encoder == "text":
            tokenizer = encoders.Tokenizer()
            self.read_query = self.read_target = tokenizer
            self.target_features = encoders.tokenize_all(tokenizer, targets.texts)
        else:
            self.read_query = encoders.IdLookup(known)
            self.read_target = encoders.IdLookup(targets.identifiers)
            self.target_features = np.arange(self.num_targets, dtype=np.int32)
        self._num_queries = len(known)
        self.test = self._queries(test, known)
        self.held_out = None if held_out is None else self._queries(held_out, known)
        self._make_examples(pairs, known)

    def towers(self):
        """New towers, from the seed."""
        settings = self.settings
        if settings.encoder == "text":
            return encoders.text_towers(settings.dim, dropout=settings.dropout, seed=settings.seed)
        # One more row for queries that no training pair has.
        return encoders.id_towers(
            self._num_queries + 1, self.num_targets, settings.dim, seed=settings.seed
        )

    def dataset(self):
        """Endless shuffled batches of (features, positives), all of one size."""
        settings = self.settings
        size = len(self._example_query)
        features, query, positives = map(
            tf.constant, (self._query_features, self._example_query, self._positives)
        )
        order = tf.data.Dataset.range(size).shuffle(size, seed=settings.seed).repeat()
        return (
            order.batch(settings.batch, drop_remainder=True)
            .map(
                lambda example: (
                    tf.gather(features, tf.gather(query, example)),
                    tf.gather(positives, example),
                )
            )
            .prefetch(2)
        )

    def evaluate(self, model, queries, encoded_corpus=None):
        """Metrics of queries against all targets, encoded afresh."""
        _, positives, exclude = queries
        if encoded_corpus is None:
            encoded_corpus = model.encode_corpus()
        encoded = self.encode_queries(model, queries)
        return ranking_metrics(positive_ranks(encoded, encoded_corpus, positives, exclude))

    def encode_queries(self, model, queries):
        """float32 NumPy array [queries, dim]."""
        features = queries[0]
        return np.concatenate(
            [
                model.encode_queries(tf.constant(features[start : start + 1024])).numpy()
                for start in range(0, len(features), 1024)
            ]
        )

    def _queries(self, pairs, known):
        """(features, positives, excluded): with ids, the training positives are left out."""
        exclude = None
        positives = pairs.positives
        if self.settings.encoder == "id":
            nothing = np.array([], np.int32)
            exclude = [
                np.setdiff1d(known.get(query, nothing), own)
                for query, own in zip(pairs.queries, positives, strict=True)
            ]
        return self._features(pairs.queries), positives, exclude

    def _features(self, queries):
        if self.settings.encoder == "text":
            return encoders.tokenize_all(self.read_query, queries)
        return self.read_query(tf.constant(queries)).numpy()

    def _make_examples(self, pairs, known):
        """One example for each pair: its query, and the query's positives, its own first."""
        rng = np.random.default_rng(self.settings.seed)
        queries = list(known)
        place = {query: number for number, query in enumerate(queries)}
        self._query_features = self._features(queries)
        own, query = [], []
        for text, positives in zip(pairs.queries, pairs.positives, strict=True):
            own.extend(positives)
            query.extend([place[text]] * len(positives))
        self._example_query = np.array(query, np.int32)
        own = np.array(own, np.int32)
        longest = max(len(rows) for rows in known.values())
        self._positives = np.full((len(own), min(longest, _KNOWN_POSITIVES)), -1, np.int32)
        self._positives[:, 0] = own
        for example in np.flatnonzero([len(known[queries[q]]) > 1 for q in query]):
            others = known[queries[query[example]]]
            others = others[others != own[example]]
            if len(others) >= _KNOWN_POSITIVES:
                others = rng.choice(others, _KNOWN_POSITIVES - 1, replace=False)
            self._positives[example, 1 : len(others) + 1] = others


class _Budget(keras.callbacks.Callback):
    """Keeps `fit` within its budget: learning rate, bar, history, best weights, the end."""

    def __init__(self, model, data, settings, progress):
        super().__init__()
        self._model, self._data, self._settings = model, data, settings
        self._limit = settings.steps
        if settings.steps is None and settings.seconds is None:
            self._limit = math.ceil(_EPOCHS * len(data._example_query) / settings.batch)
        self.steps, self.preparing, self.history = 0, 0.0, []
        self._began = time.perf_counter()
        self._paused = 0.0
        self._ended = None
        self._best = None
        self._progress = progress
        self.bar = None

    @property
    def seconds(self):
        """Wall time of training so far: preparing the miner counts, evaluating does not."""
        return (self._ended or time.perf_counter()) - self._began - self._paused

    @property
    def _spent(self):
        """Share of the budget, 0 to 1."""
        if self._limit is not None:
            return self.steps / self._limit
        return min(1.0, self.seconds / self._settings.seconds)

    def on_train_begin(self, logs=None):
        by_steps = self._limit is not None
        self.bar = tqdm(
            total=self._limit if by_steps else self._settings.seconds,
            desc=self._settings.miner,
            unit="step",
            bar_format=None
            if by_steps
            else "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}",
            disable=not self._progress,
        )

    def on_train_batch_begin(self, batch, logs=None):
        rate = self._settings.learning_rate * max(0.02, 1.0 - self._spent)
        self._model.optimizer.learning_rate.assign(rate)

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        done = self._spent >= 1.0
        if self._limit is not None:
            self.bar.update(1)
        else:
            self.bar.update(min(self.seconds, self._settings.seconds) - self.bar.n)
        if self.steps % 20 == 0:
            rate = self.steps / max(self.seconds, 1e-9)
            self.bar.set_postfix_str(
                f"loss {float(logs['loss']):.3f}, {rate:.1f} steps/s", refresh=False
            )
        if done:
            self._ended = time.perf_counter()
            self._model.stop_training = True
        elif self._spent * _EVALUATIONS >= len(self.history) + 1:
            self._evaluate()

    def on_train_end(self, logs=None):
        if self._data.held_out is not None:
            self._judge()

    def close(self):
        """Ends the clock and the bar."""
        self._ended = self._ended or time.perf_counter()
        if self.bar is not None:
            self.bar.close()

    def restore_best(self):
        """Puts back the weights that were best on the held-out pairs; returns their metrics."""
        if self._best is None:
            return None
        self._model.set_weights(self._best[1])
        return self._best[0]

    def _evaluate(self):
        began = time.perf_counter()
        features, positives, exclude = self._data.test
        some = slice(0, _HISTORY_QUERIES)
        queries = features[some], positives[some], None if exclude is None else exclude[some]
        corpus = self._model.encode_corpus()
        metrics = self._data.evaluate(self._model, queries, corpus)
        self.history.append(
            {"step": self.steps, "seconds": began - self._began - self._paused, "metrics": metrics}
        )
        if self._data.held_out is not None:
            self._judge(corpus)
        self._paused += time.perf_counter() - began

    def _judge(self, corpus=None):
        """Keeps the weights if they are the best yet on the held-out pairs."""
        metrics = self._data.evaluate(self._model, self._data.held_out, corpus)
        if self._best is None or metrics["mrr"] > self._best[0]["mrr"]:
            self._best = metrics, self._model.get_weights()


def _mining_seconds(model, data):
    """Seconds that a step spends mining: drawing, looking up probabilities, keeping the index true.

    A compiled step cannot be timed from within, so the mining of some steps is run by itself. The
    index takes in nothing that it does not hold already.
    """
    features, positives = next(iter(data.dataset()))
    miner = model.miner
    if not miner.built or not miner.num_negatives:
        return 0.0
    queries = tf.stop_gradient(model.encode_queries(features))
    beta = tf.constant(model.beta)
    negatives = tf.zeros([len(positives) * miner.num_negatives], tf.int32)
    rows = tf.concat([positives[:, 0], negatives], axis=0)
    encodings = model.encode_rows(rows)

    @tf.function(jit_compile=True, autograph=False)
    def mine():
        mined, drawn = miner.mine(queries, beta, positives)
        candidates = tf.concat([positives[:, 0], tf.reshape(mined, [-1])], axis=0)
        log_prob = miner.log_prob(candidates, queries, beta, positives, drawn)
        miner.observe(rows, encodings)
        return tf.reduce_logsumexp(log_prob, axis=0)

    mine()
    began = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        mine().numpy()
    return (time.perf_counter() - began) / _TIMED_STEPS


def _by_query(pairs):
    """The rows of all positives of each distinct query, in order of first appearance."""
    known = {}
    for query, rows in zip(pairs.queries, pairs.positives, strict=True):
        known[query] = np.union1d(known[query], rows) if query in known else rows
    return known
