"""How long the parts of mining take: each by itself, on a state that is put back afterwards."""

import time

import numpy as np
import tensorflow as tf

from tf_dynidx.keras_world import IS_KERAS_3
from tf_dynidx.variables import named_variables

_ROUNDS = 3


class MiningTime:
    """Times what a miner with an index does in a training step.

    A compiled step cannot be timed from within, so each part is run apart, compiled as the step is:

    - "drawing": negatives for a batch, and the probabilities of all its candidates.
    - "writing": encodings of all its candidates, written back with those of rows whose turn it is,
      which are encoded for it.
    - "refreshing": the landmarks encoded again, the correction and the upkeep; divided by the steps
      that passed from one to the next since the last time. 0 for a miner that never refreshes.

    All variables of the miner are copied to the host before and put back after, so that a training
    goes on as if nothing had been timed. What is not seen: work that a step does at the same time, and
    the second encoding of the candidates, where the target tower acts differently in training.
    """

    def __init__(self, model):
        """Compiles nothing yet.

        Args:
            model: `DualEncoder` whose miner has an index.
        """
        self.model, miner, index = model, model.miner, model.miner.index
        jit_compile = bool(model.jit_compile if IS_KERAS_3 else model._jit_compile)

        def draw(queries, positives):
            beta, given = tf.stop_gradient(model.beta), positives[:, 0]
            queries, positives = model.drawing_queries(queries, positives)
            mined, drawn = miner.mine(queries, beta, positives)
            rows = tf.concat([given, tf.reshape(mined, [-1])], axis=0)
            return rows, miner.log_prob(rows, queries, beta, positives, drawn)

        def refresh():
            index.follow(miner.encode_rows(tf.maximum(index.landmarks, 0)))

        # A miner of one's own may have an index and write to it, and refresh it, as it likes.
        write = getattr(miner, "write_back", index.write)
        refresh = getattr(miner, "refresh", refresh)
        self._draw, self._write, self._refresh = (
            tf.function(part, autograph=False, jit_compile=jit_compile)
            for part in (draw, write, refresh)
        )
        self._since = 0, 0  # steps and refreshes, up to the last time

    def seconds_a_step(self, positives):
        """dict from part to float, seconds a step.

        Args:
            positives: int32 NumPy array [batch], rows that the index holds. Their encodings stand in
                for those of queries.
        """
        miner = self.model.miner
        index, refreshes_a_step = miner.index, self._refreshes_a_step()
        variables = named_variables(miner).values()
        before = [variable.numpy() for variable in variables]
        try:
            queries, positives = index.read(positives), tf.constant(positives[:, None], tf.int32)
            rows, _ = self._draw(queries, positives)
            encodings = index.read(rows)
            found = {
                "drawing": self._seconds(self._draw, queries, positives),
                "writing": self._seconds(self._write, rows, encodings),
                "refreshing": 0.0,
            }
            if refreshes_a_step:
                found["refreshing"] = self._seconds(self._refresh) * refreshes_a_step
            return found
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

    def _refreshes_a_step(self):
        """Since the last time: a write-back ends each step, and each refresh."""
        reencoder = self.model.miner.index.reencoder
        refreshes = int(reencoder.refreshes.numpy())
        now = int(reencoder.clock.numpy()) - refreshes, refreshes
        steps, refreshes = np.subtract(now, self._since)
        self._since = now
        return refreshes / steps if steps else 0.0

    def _seconds(self, part, *arguments):
        """Of a call, the median; the first, which compiles, does not count."""
        taken = []
        for _ in range(_ROUNDS + 1):
            started = time.perf_counter()
            part(*arguments)
            _wait()
            taken.append(time.perf_counter() - started)
        return float(np.median(taken[1:]))


def _wait():
    """Until an accelerator is done, which works on after a call has returned."""
    if tf.config.list_logical_devices("GPU"):
        tf.test.experimental.sync_devices()
