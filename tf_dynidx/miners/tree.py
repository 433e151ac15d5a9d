"""Negatives drawn from the softmax over all targets, through a dynamic tree index."""

import warnings

import tensorflow as tf

from tf_dynidx.index import DynamicIndex, checks, reencoder
from tf_dynidx.index.integers import state
from tf_dynidx.miners.miner import Miner, without_positives
from tf_dynidx.miners.turns import in_turn
from tf_dynidx.ops.in_place import do_if

_FLAT = 250_000  # targets up to which it pays to look at all of them: a pass is a part of a step
# What keeps the index true takes, beside so many rows that steps encode anyway, one row in turn and, if
# the index asks for it, one landmark: an eighth more at most, without a gradient.
_ROWS_A_TURN = _ROWS_A_LANDMARK = 16
_ORDER = 2  # rows are drawn by the root mean square of what they may weigh: the loss is an estimate


class Tree(Miner):
    """Monath et al. 2023: a tree over all targets, kept true while the encoder moves.

    All targets are encoded once, before the first step. From then on the index follows the encoder:
    what a step encodes anyway is written back, and a sixteenth as many rows, whose turn it is, are
    encoded with it; every few steps landmarks are encoded again, as many as a sixteenth of what was
    encoded in between at most, and the change regression carries their movement over to all other rows.

    Up to 250,000 targets negatives are drawn by looking at the whole index, which finds every row that
    has much of a query's mass and needs no tree to be built; beyond, through the tree.

    The index is kept where the corpus is: see the `placement` of `TargetCorpus`.
    """

    def __init__(
        self,
        num_negatives=2,
        refresh_every=None,
        kernel="linear",
        form="auto",
        landmarks="mixed",
        dtype="float32",
        budget=None,
        seed=0,
        name=None,
    ):
        """Makes a miner; `build` makes its index.

        Args:
            num_negatives: int, draws a query. One or two are enough when the batch shares them.
            refresh_every: int, steps between refreshes of the index; default: as the encoder moves, but
                not before steps have encoded 16 rows for each landmark.
            kernel, form, landmarks, dtype: as for `DynamicIndex`.
            budget: int, rows of the index that are scored for a query, at most; default: all up to
                250,000 targets; beyond, 192, or 25 for each draw. With thousands the draws come nearer
                to the softmax: for where encoding takes most of a step, as with a large encoder.
            seed: int, seeds every draw.

        Raises:
            ValueError: an argument is not as described.
        """
        super().__init__(num_negatives, seed, name)
        reencoder.check_options(kernel, form, landmarks, refresh_every)
        self.budget = None if budget is None else checks.positive_int("budget", budget)
        self.refresh_every = refresh_every
        self.kernel, self.form, self.landmarks = kernel, form, landmarks
        # A str, so that it can be written to a file.
        self.dtype = checks.row_dtype("dtype", dtype).name
        self.index = None
        self._warned = False

    def make_state(self, corpus, encode_corpus):
        self.index = DynamicIndex(
            self.dim,
            corpus.size,
            dtype=self.dtype,
            seed=self.seed,
            kernel=self.kernel,
            form=self.form,
            landmarks=self.landmarks,
            refresh_every=self.refresh_every,
            placement=corpus.placement,
            flat=self.budget is None and corpus.size <= _FLAT,
        )
        self.turn = state(tf.constant(0, tf.int64), "turn")
        self.encoded = state(tf.constant(0, tf.int64), "encoded")  # by steps, since the last refresh
        if encode_corpus is not None:
            self.index.build(encode_corpus())

    def mine(self, queries, beta, positives):
        seed, number = self.next_seed(), self.num_negatives
        sample = self.index.draw(
            queries, beta, positives, seed, number, budget=self.budget, order=_ORDER
        )
        # A query whose positives are all targets there are draws an empty slot; the loss masks row 0.
        return tf.maximum(sample.ids, 0), sample.log_partition

    def log_prob(self, rows, queries, beta, positives, drawn):
        log_prob = beta * self.index.scores(queries, rows, beta, _ORDER) - drawn[:, None]
        return without_positives(log_prob, rows[None] if rows.shape.rank == 1 else rows, positives)

    def own_log_prob(self, rows, queries, beta, positives, drawn):
        return self.log_prob(rows, queries, beta, positives, drawn)

    def observe(self, rows, encodings):
        self.write_back(rows, encodings)
        do_if(self._due(), self.refresh)

    def write_back(self, rows, encodings):
        """Writes back what a step has encoded, and rows whose turn it is, which are encoded for it.

        Args:
            rows, encodings: as for `observe`.
        """
        self.encoded.assign_add(tf.size(rows, out_type=tf.int64))
        again = self._next_in_turn(-(-tf.size(rows) // _ROWS_A_TURN))
        encodings = tf.concat([encodings, self.encode_rows(again)], axis=0)
        self.index.write(tf.concat([rows, again], axis=0), encodings)

    def refresh(self):
        """Encodes the landmarks again and corrects all rows by them, as a step does when it is due."""
        self.encoded.assign(0)
        self.index.follow(self.encode_rows(tf.maximum(self.index.landmarks, 0)))

    def _due(self):
        """bool scalar, whether the index asks for its landmarks and steps have earned them."""
        due = self.index.due()
        if self.refresh_every:
            return due
        enough = self.encoded >= _ROWS_A_LANDMARK * self.index.num_landmarks
        return due & (enough | self.index.jumped())

    def _next_in_turn(self, number):
        """int32 [number], rows that are to be encoded again beside those that a step encodes anyway."""
        number = tf.cast(number, tf.int64)
        turns = self.turn.assign_add(number) - number + tf.range(number)
        return tf.cast(in_turn(turns, self.num_targets), tf.int32)

    def logs(self):
        return {"staleness": self.index.relative_error()}

    def look(self):
        """Warns, once, when the encoder has jumped."""
        if self._warned or not self.index.reencoder.jumps.numpy():
            return
        self._warned = True
        warnings.warn(
            "The encoder has jumped: target encodings of the last steps are far from what they were. "
            "Were weights loaded, or was a step far too large? The index refreshes at every step until "
            "it has caught up; callbacks.IndexRefresh(full=True) encodes all targets again. "
            f"Received: {self.index.staleness()}",
            stacklevel=2,
        )

    def get_config(self):
        names = ("refresh_every", "kernel", "form", "landmarks", "dtype", "budget")
        config = {name: getattr(self, name) for name in names}
        return super().get_config() | config
