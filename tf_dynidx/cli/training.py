"""Trains a two-tower model on pairs for the command line, within a budget."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_dynidx import miners
from tf_dynidx.cli import encoders, memory
from tf_dynidx.cli.checkpoint import Checkpoint
from tf_dynidx.cli.data import Pairs, Targets, by_query, digest
from tf_dynidx.cli.settings import BUDGETS, MINERS, Settings
from tf_dynidx.cli.start import stopped_once
from tf_dynidx.corpus import TargetCorpus
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.metrics import positive_ranks, ranking_metrics
from tf_dynidx.models import DualEncoder
from tf_dynidx.ops.in_place import ids_after

_EPOCHS = 10  # where neither steps nor seconds are given
_EVALUATIONS = 10  # points of the history
_HISTORY_QUERIES = 2000  # queries that a point of the history is measured on, at most
_KNOWN_POSITIVES = 32  # positives of a query that are masked, at most: each is compared everywhere
_TIMED_STEPS = 20  # steps of mining that are run by themselves to be timed
_SAMPLE_QUERIES = 256  # that the recall of an export is measured with


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
    checkpoint=None,
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
        checkpoint: folder for the state of the training, written at every point of the history and
            when it is stopped. A call that finds one there, of the same settings and data, goes on
            from it, with the examples that would have come next: where operations are deterministic,
            the weights in the end are those of a training that was not stopped. (The dropout of
            Keras 2 starts anew.) The folder is left where it is.

    Returns:
        A `Trained`. Ctrl-C ends the training early and keeps what has been trained; with a checkpoint
        see below.

    Raises:
        ValueError: a setting out of range, or a checkpoint of another training.
        KeyboardInterrupt: Ctrl-C or SIGTERM, where there is a checkpoint, which then has all that was
            trained.
    """
    settings = settings.filled()
    settings.check(len(targets.identifiers))
    saved = None
    if checkpoint is not None:
        saved = Checkpoint(checkpoint, _run(settings, targets, pairs, test, held_out))
    # Keras seeds whole processes; nothing else here draws from global generators.
    keras.utils.set_random_seed(settings.seed)
    data = _Data(targets, pairs, test, held_out, settings)
    kwargs = {"num_negatives": settings.negatives} if settings.mines else {}
    if settings.reads is not None:
        kwargs["budget"] = settings.reads
    miner = miner or getattr(miners, MINERS[settings.miner])(seed=settings.seed, **kwargs)
    model = DualEncoder(
        *data.towers(),
        TargetCorpus(data.target_features, targets.identifiers),
        miner=miner,
        temperature=settings.temperature,
        sharing=settings.sharing,
        mining_queries=settings.mining_queries,
        warmup_examples=settings.warmup_examples,
        unlabelled_weight=settings.unlabelled_weight,
        seed=settings.seed,
    )
    # Compiled by XLA, on the CPU too: a step of these encoders then takes half the time.
    model.compile(optimizer=keras.optimizers.Adam(settings.learning_rate), jit_compile=True)
    budget = _Budget(model, data, settings, progress, saved)
    callbacks = [budget]
    if watch is not None:
        watch.queries = lambda: data.encode_queries(model, data.test)
        callbacks.append(watch)
    interrupted = False
    with stopped_once() if saved else contextlib.nullcontext():
        try:
            budget.begin()
            if not budget.over:
                model.fit(
                    data.dataset(budget.steps),
                    steps_per_epoch=2**31,
                    shuffle=False,
                    verbose=0,
                    callbacks=callbacks,
                )
            budget.end()
        except KeyboardInterrupt:
            interrupted = True
            budget.save()
            if saved:
                raise
        finally:
            budget.close()
    kept = budget.restore_best()
    metrics = data.evaluate(model, data.test)
    spent = budget.spent()
    budget.history.append({**spent, "metrics": metrics})
    seconds = spent["seconds"]
    full_encodes = int(model.miner.full_encodes)
    used = {
        "process_peak": memory.process_peak(),
        "miner": memory.held_by(model.miner),
        "accelerator_peak": memory.accelerator_peak(),
    }
    report = {
        "miner": settings.miner,
        "steps": spent["step"],
        "seconds": seconds,
        "seconds_mining": min(
            seconds, budget.preparing + budget.mining_steps * _mining_seconds(model, data)
        ),
        "encoder_calls": spent["encoder_calls"],
        "num_targets": len(targets.identifiers),
        "metrics": metrics,
        "history": budget.history,
        "full_encodes": full_encodes,
        "memory": used,
        "accelerator": memory.accelerator(),
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


def _run(settings, targets, pairs, test, held_out):
    """What tells a training from others, for its checkpoint."""
    data = {"targets": targets, "train": pairs, "test": test, "held_out": held_out}
    return {
        "settings": dataclasses.asdict(settings),
        "data": {name: part and digest(part) for name, part in data.items()},
        "keras": 3 if IS_KERAS_3 else 2,
    }


class _Data:
    """The pairs as the towers take them."""

    def __init__(self, targets, pairs, test, held_out, settings):
        self.settings = settings
        self.num_targets = len(targets.identifiers)
        known = by_query(pairs)
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

    def dataset(self, first=0):
        """Endless shuffled batches of (features, positives), all of one size, from the first-th on.

        What a batch holds depends on the seed and its number alone, so that a training that goes on
        gets what would have come next, without going through what came before.
        """
        settings = self.settings
        size = len(self._example_query)
        features, query, positives = map(
            tf.constant, (self._query_features, self._example_query, self._positives)
        )

        def epoch(number):
            seed = tf.stack([tf.constant(settings.seed, tf.int64), number])
            order = tf.random.experimental.stateless_shuffle(tf.range(size), seed, alg="philox")
            return tf.data.Dataset.from_tensor_slices(order)

        epochs, gone = divmod(first * settings.batch, size)
        order = tf.data.Dataset.range(epochs, tf.int64.max).flat_map(epoch).skip(gone)
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


class _Clock:
    """Seconds that are counted only while it runs."""

    def __init__(self, seconds=0.0):
        self._before, self._began = seconds, None

    @property
    def seconds(self):
        running = 0.0 if self._began is None else time.perf_counter() - self._began
        return self._before + running

    def start(self):
        """Goes on counting, if it does not already."""
        if self._began is None:
            self._began = time.perf_counter()

    def stop(self):
        self._before, self._began = self.seconds, None

    @contextlib.contextmanager
    def paused(self):
        running = self._began is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()


class _Budget(keras.callbacks.Callback):
    """Keeps `fit` within its budget: learning rate, bar, history, best weights, checkpoint, the end."""

    def __init__(self, model, data, settings, progress, checkpoint=None):
        super().__init__()
        self._model, self._data, self._settings = model, data, settings
        self._checkpoint, self._progress = checkpoint, progress
        given = [name for name in BUDGETS if getattr(settings, name) is not None]
        self._unit = given[0] if given else "steps"
        self._limit = getattr(settings, self._unit)
        if not given:
            self._limit = math.ceil(_EPOCHS * len(data._example_query) / settings.batch)
        self.steps, self.preparing, self.history = 0, 0.0, []
        self._best = None
        self._points = 0  # of the history, with those that the preparation has skipped
        self._begun = False
        self._clock = _Clock()
        self._clock.start()
        self.bar = None

    def spent(self):
        """What has been used up: dict of step, seconds and encoder_calls.

        Seconds: preparing the miner counts, evaluating does not. Encoder calls: targets encoded, those
        of the steps and those that the miner had encoded besides.
        """
        settings = self._settings
        calls = self.steps * settings.batch + int(self._model.miner.rows_encoded)
        calls += self.mining_steps * (settings.candidates - settings.batch)
        return {"step": self.steps, "seconds": self._clock.seconds, "encoder_calls": calls}

    @property
    def mining_steps(self):
        """int, steps that have mined negatives: all but those of the warm-up."""
        return max(0, self.steps - self._settings.warmup_steps)

    @property
    def _used(self):
        """How much of the limit is used up, no more than it."""
        if self._unit == "steps":
            return self.steps
        return min(self._limit, self.spent()[self._unit])

    @property
    def _share(self):
        """Share of the budget that is used up, 0 to 1."""
        return self._used / self._limit

    @property
    def _due(self):
        """How many points of the history there ought to be by now."""
        return int(self._share * _EVALUATIONS)

    @property
    def over(self):
        """Whether the budget is used up."""
        return self._share >= 1.0

    def begin(self):
        """Prepares the miner, or goes on from the checkpoint."""
        if self._checkpoint is None or self._checkpoint.state is None:
            self._prepare_miner()
            self._points = self._due
        else:
            state = self._checkpoint.state
            weights = self._checkpoint.restore(self._model)
            self.steps = int(self._model.step)
            self.preparing, self.history = state["preparing"], state["history"]
            self._points = state["points"]
            if weights is not None:
                self._best = state["best"], weights
            # What going on costs, to restore and to compile again, is not training: the clock starts
            # with the end of the first step.
            self._clock = _Clock(state["seconds"])
        self._begun = True

    def _prepare_miner(self):
        """Prepares the miner, unless it is or a warm-up comes before."""
        miner = self._model.miner
        if miner.built or self._model.warming_up:
            return
        before = self._clock.seconds
        self._model.prepare_miner(progress=self._progress)
        if miner.num_negatives:
            self.preparing = self._clock.seconds - before

    def save(self):
        """Writes the checkpoint, if there is to be one, and anything to keep."""
        if self._checkpoint is None or not self._begun:
            return
        # A step that was stopped after it was run, but before it was counted here, counts.
        self.steps = int(self._model.step)
        if not self.steps:
            return
        with self._clock.paused():
            metrics, weights = self._best or (None, None)
            state = {
                "seconds": self._clock.seconds,
                "preparing": self.preparing,
                "history": self.history,
                "points": self._points,
                "best": metrics,
            }
            self._checkpoint.write(state, self._model, weights)

    def on_train_begin(self, logs=None):
        by_steps = self._unit == "steps"
        unit = {"steps": "step", "seconds": "s", "encoder_calls": "encoder calls"}[self._unit]
        self.bar = tqdm(
            total=self._limit,
            initial=self._used,
            desc=self._settings.miner,
            unit=unit,
            bar_format=None
            if by_steps
            else f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n:.0f}}/{{total:.0f}} {unit}{{postfix}}",
            disable=not self._progress,
        )
        # A training may have been stopped while it was about to be measured.
        self._evaluate_if_due()

    def on_train_batch_begin(self, batch, logs=None):
        self._prepare_miner()
        rate = self._settings.learning_rate * max(0.02, 1.0 - self._share)
        self._model.optimizer.learning_rate.assign(rate)

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        self._clock.start()
        self.bar.update(self._used - self.bar.n)
        if self.steps % 20 == 0:
            rate = self.steps / max(self._clock.seconds, 1e-9)
            self.bar.set_postfix_str(
                f"loss {float(logs['loss']):.3f}, {rate:.1f} steps/s", refresh=False
            )
        if self.over:
            self._clock.stop()
            self._model.stop_training = True
        else:
            self._evaluate_if_due()

    def end(self):
        """Ends a training that was not stopped."""
        self._clock.stop()
        if self._data.held_out is not None:
            self._judge()
        self.save()

    def close(self):
        """Ends the clock and the bar."""
        self._clock.stop()
        if self.bar is not None:
            self.bar.close()

    def restore_best(self):
        """Puts back the weights that were best on the held-out pairs; returns their metrics."""
        if self._best is None:
            return None
        self._model.set_weights(self._best[1])
        return self._best[0]

    def _evaluate_if_due(self):
        due = self._due
        if due <= self._points:
            return
        with self._clock.paused():
            spent = self.spent()
            features, positives, exclude = self._data.test
            some = slice(0, _HISTORY_QUERIES)
            queries = features[some], positives[some], None if exclude is None else exclude[some]
            corpus = self._model.encode_corpus()
            if self._data.held_out is not None:
                self._judge(corpus)
            metrics = self._data.evaluate(self._model, queries, corpus)
            self.history.append({**spent, "metrics": metrics})
            self._points = due
            self.save()

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
    queries, given = tf.stop_gradient(model.encode_queries(features)), positives[:, 0]
    beta = tf.constant(model.beta)
    queries, positives = model.drawing_queries(queries, positives)
    negatives = tf.zeros([len(positives) * miner.num_negatives], tf.int32)
    rows = tf.concat([given, negatives], axis=0)
    encodings = model.encode_rows(rows)

    @tf.function(jit_compile=True, autograph=False)
    def mine():
        mined, drawn = miner.mine(queries, beta, positives)
        candidates = tf.concat([given, tf.reshape(mined, [-1])], axis=0)
        log_prob = miner.log_prob(candidates, queries, beta, positives, drawn)
        # In a step what is written back was encoded after the draws.
        miner.observe(ids_after(log_prob, ids=rows), encodings)
        return tf.reduce_logsumexp(log_prob, axis=0)

    mine()
    began = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        mine().numpy()
    return (time.perf_counter() - began) / _TIMED_STEPS
