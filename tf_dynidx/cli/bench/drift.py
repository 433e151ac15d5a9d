"""`tf-dynidx bench drift`: how true an index stays while an encoder trains, and what that costs."""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf

from tf_dynidx import miners
from tf_dynidx.cli import encodings as random_encodings
from tf_dynidx.cli import training
from tf_dynidx.cli.bench import measure
from tf_dynidx.cli.bench.measure import Row
from tf_dynidx.cli.bench.tables import run_parts
from tf_dynidx.corpus import encode_all
from tf_dynidx.index import DynamicIndex
from tf_dynidx.keras_world import keras

QUERIES = 200
SNAPSHOTS = 10
RATES = (1.0, 0.1, 0.01)  # of what a step encodes, the share that is written back
SIZES = (10_000, 100_000, 1_000_000)
DIM = 64
WIDTH = 256  # of the random tower's hidden layer
ROUNDS = 5
_CANDIDATES = 1536  # write-backs of a step: 512 positives and 2 x 512 mined

_TRAINED = "Drift: an encoder trains, and indexes that are kept true in different ways follow it. "
TITLES = {
    "training": f"{_TRAINED}Against the true encodings of all targets: relative squared error, total "
    f"variation of what is drawn from to the fresh softmax (medians over {QUERIES} test queries), the "
    "error that the index itself reports, and write-backs between its refreshes",
    "summary": "Drift, the mean over the snapshots",
    "refresh": "Refresh: what follows the encoder, against encoding all targets anew and building the "
    f"index from that; a random tower of two layers, dimension {DIM}; medians of {ROUNDS} rounds",
    "refresh_slope": "Refresh: slope of log time over log targets",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the benchmark can be told.

    Attributes:
        steps: training steps.
        max_rows: the largest number of random targets.
        seed: seeds data, weights, index and draws.
        report: file for the figures, or None.
        progress: whether to show bars.
    """

    steps: int = 1000
    max_rows: int = 1_000_000
    seed: int = 0
    report: str | None = None
    progress: bool = True


def bench_drift(settings, data):
    """Runs the benchmark, prints its tables and writes the report.

    Args:
        settings: `Settings`.
        data: (targets, pairs, test) to train on, or None: then the cost of a refresh alone.

    Returns:
        int, the exit status, as `run_parts`.
    """
    parts = [refresh_cost(settings)]
    if data is not None:
        parts.insert(0, training_drift(settings, *data))
    return run_parts(TITLES, parts, settings)


# While an encoder trains.


class Follower:
    """An index that is kept true in one way.

    Attributes:
        name: str.
        index: `DynamicIndex`.
    """

    def __init__(self, name, built, rate, nystrom, seed, **options):
        """Takes over what another index was built as.

        Args:
            name: str.
            built: `DynamicIndex`, of the same seed.
            rate: float, share of what a step has encoded that is written back.
            nystrom: bool, whether landmarks are encoded again and their change carried over.
            seed: int.
            **options: of `DynamicIndex`.
        """
        self.name, self.rate, self.nystrom = name, rate, nystrom
        self.index = DynamicIndex(built.dim, built.capacity, seed=seed, **options)
        for mine, theirs in zip(self.index.tree.variables, built.tree.variables, strict=True):
            mine.assign(theirs)
        self.index.landmarks.assign(built.landmarks)
        self._rng = np.random.default_rng([seed, 9])
        self._write = tf.function(self.index.write, autograph=False)
        self._correct = tf.function(self.index.correct, autograph=False)

    def follow(self, rows, encodings, encode):
        """Takes in what a step has encoded, and refreshes where that is due.

        Args:
            rows: int32 [rows].
            encodings: float32 [rows, dim].
            encode: function from int32 [landmarks] to their encodings as they are now.
        """
        if not self.rate and not self.nystrom:
            return
        written = np.where(self._rng.random(len(rows)) < self.rate, rows, -1).astype(np.int32)
        self._write(written, encodings)
        if self.nystrom and bool(self.index.due()):
            self._correct(encode(tf.maximum(self.index.landmarks, 0)))


def followers(encodings, seed):
    """One `Follower` for each way to keep an index true."""
    built = DynamicIndex(encodings.shape[1], len(encodings), seed=seed)
    built.build(encodings)

    def follower(name, rate, nystrom, **options):
        return Follower(name, built, rate, nystrom, seed, **options)

    yield follower("static", 0.0, False)
    for form in ("full", "lazy"):
        yield follower(f"Nystroem only, {form}", 0.0, True, form=form)
    yield follower("Nystroem only, linear+rbf", 0.0, True, form="full", kernel="linear+rbf")
    for rate in RATES:
        yield follower(f"write-back {rate:.0%}", rate, False)
        for form in ("full", "lazy"):
            yield follower(f"both, {rate:.0%}, {form}", rate, True, form=form)


class _Watched(miners.Tree):
    """`Tree` that lets others see what a step has encoded.

    Attributes:
        seen: (rows, encodings) of the last step: int32 [candidates], float32 [candidates, dim].
    """

    def __init__(self, candidates, **kwargs):
        super().__init__(**kwargs)
        self._candidates = candidates

    def build(self, corpus, encode_rows, encode_corpus):
        super().build(corpus, encode_rows, encode_corpus)
        shapes = ([self._candidates], tf.int32), ([self._candidates, self.index.dim], tf.float32)
        self.seen = [tf.Variable(tf.zeros(*each), trainable=False) for each in shapes]

    def observe(self, rows, encodings):
        super().observe(rows, encodings)
        for variable, value in zip(self.seen, (rows, encodings), strict=True):
            variable.assign(value)


def training_drift(settings, targets, pairs, test):
    """Yields the rows of the tables training and summary."""
    rows = []
    training_settings = training.Settings(steps=settings.steps, seed=settings.seed)
    negatives = training_settings.negatives
    miner = _Watched(training_settings.candidates, num_negatives=negatives, seed=settings.seed)

    class Watch(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.all, self.steps = None, 0

        def on_train_batch_begin(self, batch, logs=None):
            if self.all is None:
                encodings = self.model.encode_corpus()
                self.all = list(followers(encodings, settings.seed))
                self.encode = tf.function(self.model.encode_rows, autograph=False)

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            seen = [each.numpy() for each in miner.seen]
            for each in self.all:
                each.follow(*seen, self.encode)
            if self.steps % max(1, settings.steps // SNAPSHOTS) == 0:
                self.compare()

        def compare(self):
            fresh = self.model.encode_corpus()
            queries = self.queries()[:QUERIES]
            beta = 1.0 / self.model.temperature
            exact = _softmax(queries @ fresh.T, beta)
            every_row = tf.range(len(fresh))
            for each in self.all:
                table = each.index.read(every_row).numpy()
                error = np.sum((table - fresh) ** 2, axis=1) / np.sum(fresh**2, axis=1)
                # What the index draws from, doubt about its predictions included.
                drawn = _softmax(each.index.scores(queries, every_row, beta).numpy(), beta)
                off = 0.5 * np.abs(drawn - exact).sum(axis=1)
                reported = each.index.staleness()
                values = {
                    "step": self.steps,
                    "index": each.name,
                    "relative_error": float(error.mean()),
                    "total_variation": float(np.median(off)),
                    "reported_error": reported["relative_error"] if each.rate or each.nystrom else None,
                    "refresh_every": reported["refresh_every"] if each.nystrom else None,
                }
                rows.append(values)

    watch = Watch()
    trained = training.train(
        targets, pairs, test, training_settings, None, settings.progress, miner, watch
    )
    for values in rows:
        yield Row("training", values)
    if trained.interrupted:
        raise KeyboardInterrupt
    for name in dict.fromkeys(values["index"] for values in rows):
        mine = [values for values in rows if values["index"] == name]
        means = {
            column: float(np.mean([values[column] for values in mine]))
            for column in ("relative_error", "total_variation")
        }
        early = [v["relative_error"] for v in mine if v["step"] <= max(500, mine[0]["step"])]
        yield Row(
            "summary",
            {"index": name, "relative_error_to_step_500": float(np.mean(early)), **means},
        )


def _softmax(scores, beta):
    scores = np.exp(beta * (scores - scores.max(axis=1, keepdims=True)))
    return scores / scores.sum(axis=1, keepdims=True)


# What a refresh costs.


def refresh_cost(settings):
    """Yields the rows of the tables refresh and refresh_slope."""
    sizes = [each for each in SIZES if each <= settings.max_rows] or [settings.max_rows]
    times = {form: [] for form in ("full", "lazy")}
    for number in sizes:
        features = random_encodings.clustered(
            number, DIM, 1, settings.seed, progress=settings.progress
        ).targets
        encode, encode_every = _random_encoder(features, settings.seed)
        encodings = encode_every()
        sides = {}
        rng = np.random.default_rng([settings.seed, 10])
        for form in times:
            index = DynamicIndex(DIM, number, seed=settings.seed, form=form, refresh_every=10)
            index.build(encodings, progress=settings.progress)
            write = tf.function(index.write, autograph=False)
            # What ten steps have written back, so that a refresh has that to take into account.
            for _ in range(10):
                rows = rng.integers(0, number, _CANDIDATES).astype(np.int32)
                write(rows, encodings[rows])
            sides[f"refresh, {form}"] = lambda index=index, encode=encode: index.refresh(encode)
        anew = DynamicIndex(DIM, number, seed=settings.seed)

        def rebuild(anew=anew, encode_every=encode_every):
            anew.reset()
            anew.build(encode_every())

        sides["encode all and build"] = rebuild
        taken = measure.alternating(
            sides, ROUNDS, settings.progress, desc=f"refresh at {number:,} targets"
        )
        whole = taken["encode all and build"]
        for name, seconds in taken.items():
            values = {"work": name, "targets": number, "seconds": seconds, "ratio": whole / seconds}
            yield Row("refresh", values)
        for form, mine in times.items():
            mine.append(taken[f"refresh, {form}"])
    if len(sizes) > 1:
        for form, mine in times.items():
            slope = np.polyfit(np.log(sizes), np.log(mine), 1)[0]
            ends = np.log(mine[-1] / mine[-2]) / np.log(sizes[-1] / sizes[-2])
            values = {"form": form, "targets_from": sizes[0], "targets_to": sizes[-1]}
            yield Row("refresh_slope", {**values, "least_squares": slope, "last_decade": ends})


def _random_encoder(features, seed):
    """An encoder that nothing has trained: two layers, back to the unit sphere.

    Args:
        features: float32 [targets, DIM].
        seed: int.

    Returns:
        (encode, encode_every): functions from int32 [rows] to float32 [rows, DIM], and from nothing to
        a NumPy array of all.
    """
    rng = np.random.default_rng([seed, 11])
    shapes = itertools.pairwise((DIM, WIDTH, DIM))
    first, last = (
        tf.constant(rng.normal(size=shape, scale=shape[0] ** -0.5), tf.float32) for shape in shapes
    )
    features, number = tf.constant(features), len(features)

    @tf.function(autograph=False)
    def encode(rows):
        hidden = tf.nn.relu(tf.gather(features, rows) @ first)
        return tf.math.l2_normalize(hidden @ last, axis=1)

    return encode, lambda: encode_all(encode, number, batch=8192)
