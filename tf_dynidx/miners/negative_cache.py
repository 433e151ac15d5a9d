"""Negatives drawn from a softmax over cached encodings, of which the oldest are made anew."""

import functools
import math

import numpy as np
import tensorflow as tf

from tf_dynidx.corpus import encode_all
from tf_dynidx.index import checks
from tf_dynidx.index.integers import state
from tf_dynidx.miners.miner import Miner, softmax_draw, softmax_log_prob
from tf_dynidx.miners.turns import in_turn


class NegativeCache(Miner):
    """Draws from the softmax over a cache of encodings, and refreshes the oldest share of it each step.

    Lindgren, Reddi, Guo and Kumar, "Efficient Training of Retrieval Models using Negative Cache"
    (NeurIPS 2021). What a step has encoded of the cache is written back, and counts as young. A cache
    that is smaller than the corpus streams over it: the oldest share makes place for the next targets,
    all of which have their turn before one comes again.

    The authors draw by adding Gumbel noise to all scores and taking the largest; a block by its mass
    and then a target in it is the same distribution. Their loss, stop_gradient(1 - p+) (s- - s+), has
    the gradient of the corrected one with `sharing="none"` of `DualEncoder`, where the cache is fresh;
    in `sharing="batch"` queries see each other's candidates, and the loss corrects for that.

    Memory: cache_size * dim float32 numbers, and 4 bytes a target if it is smaller than the corpus.
    Time: all of the cache is scored at every step.
    """

    def __init__(self, num_negatives=2, cache_size=None, refresh_share=0.004, seed=0, name=None):
        """Makes a miner; `build` fills its cache.

        Args:
            num_negatives: int, draws a query.
            cache_size: int, targets that are cached; default None: all.
            refresh_share: float, the share of the cache that is encoded anew after each step, more
                than 0 and at most 0.5; rounded up to whole targets. Default 0.004: once in 250 steps.
            seed: int, seeds every draw.

        Raises:
            ValueError: an argument is not as described.
        """
        super().__init__(num_negatives, seed, name)
        self.refresh_share = checks.positive_float("refresh_share", refresh_share)
        if self.refresh_share > 0.5:
            raise ValueError(
                f"refresh_share must be at most 0.5. Received: refresh_share={refresh_share!r}"
            )
        if cache_size is not None:
            cache_size = checks.positive_int("cache_size", cache_size)
            if cache_size < max(2, self.num_negatives):
                raise ValueError(
                    "cache_size must be at least 2, and num_negatives. "
                    f"Received: cache_size={cache_size}, num_negatives={num_negatives}"
                )
        self.cache_size = cache_size

    def make_state(self, corpus, encode_corpus):
        self.size = min(self.cache_size or corpus.size, corpus.size)
        self.num_refreshed = min(math.ceil(self.refresh_share * self.size), max(1, self.size // 2))
        self._whole = self.size == corpus.size

        # One place more than there are entries, for what is written to none.
        self.table = state(tf.zeros([self.size + 1, self.dim]), "table")
        self.written = state(tf.zeros([self.size + 1], tf.int32), "written")  # at which step
        self.clock = state(0, "clock")
        if not self._whole:
            rows = in_turn(np.arange(self.size), self.num_targets).astype(np.int32)
            places = np.full(corpus.size, -1, np.int32)
            places[rows] = np.arange(self.size)
            self.rows = state(rows, "rows")  # of each place
            self.places = state(places, "places")  # of each row; -1: not cached
            self.turn = state(tf.constant(self.size, tf.int64), "turn")
        if encode_corpus is None:
            return
        if self._whole:
            encodings = encode_corpus()
        else:
            encode = tf.function(self.encode_rows, autograph=False)
            encodings = encode_all(lambda some: encode(tf.gather(self.rows, some)), self.size)
        self.table.assign(tf.pad(encodings, [[0, 1], [0, 0]]))

    def mine(self, queries, beta, positives):
        read = functools.partial(tf.gather, self.table)
        excluded, number, seed = self._places_of(positives), self.num_negatives, self.next_seed()
        places, log_partition = softmax_draw(read, self.size, queries, beta, excluded, number, seed)
        return (places if self._whole else tf.gather(self.rows, places)), log_partition

    def log_prob(self, rows, queries, beta, positives, drawn):
        places = self._places_of(rows)

        def read(_):
            return tf.gather(self.table, tf.maximum(tf.reshape(places, [-1]), 0))

        log_prob = softmax_log_prob(read, rows, queries, beta, positives, drawn)
        return tf.where(places < 0, -float("inf"), log_prob)

    def own_log_prob(self, rows, queries, beta, positives, drawn):
        return self.log_prob(rows, queries, beta, positives, drawn)

    def observe(self, rows, encodings):
        self.clock.assign_add(1)
        self._write(self._places_of(rows), encodings)
        if self._whole:
            self._refresh()
        else:
            self._stream()

    def _refresh(self):
        """Encodes the oldest anew."""
        oldest = self._oldest(self.written)
        self._write(oldest, self.encode_rows(oldest))

    def _stream(self):
        """Lets the next rows take the places of the oldest; one that is cached keeps its own."""
        turns = self.turn + tf.range(self.num_refreshed, dtype=tf.int64)
        self.turn.assign_add(self.num_refreshed)
        rows = tf.cast(in_turn(turns, self.num_targets), tf.int32)
        here = tf.gather(self.places, rows)
        # What is encoded in its own place is not among the oldest any more.
        where = tf.where(here < 0, self.size, here)[:, None]
        written = tf.tensor_scatter_nd_update(
            tf.identity(self.written), where, tf.fill([self.num_refreshed], self.clock + 1)
        )
        oldest = self._oldest(written)
        out = tf.where(here < 0, tf.gather(self.rows, oldest), rows)
        self.places.scatter_nd_update(out[:, None], tf.fill([self.num_refreshed], -1))
        to = tf.where(here < 0, oldest, here)
        self.places.scatter_nd_update(rows[:, None], to)
        self.rows.scatter_nd_update(to[:, None], rows)
        self._write(to, self.encode_rows(rows))

    def _oldest(self, written):
        """int32 [num_refreshed], the places that were written longest ago."""
        age = tf.cast(self.clock - written[: self.size], tf.float32)  # XLA sorts all for integers
        return tf.math.top_k(age, self.num_refreshed).indices

    def _places_of(self, rows):
        """The place of each row in the cache, -1 for one that is not there or no row."""
        if self._whole:
            return rows
        return tf.where(rows < 0, -1, tf.gather(self.places, tf.maximum(rows, 0)))

    def _write(self, places, encodings):
        where = tf.where(places < 0, self.size, places)[:, None]
        self.table.scatter_nd_update(where, encodings)
        self.written.scatter_nd_update(where, tf.fill([tf.shape(where)[0]], self.clock))

    def get_config(self):
        own = {"cache_size": self.cache_size, "refresh_share": self.refresh_share}
        return super().get_config() | own
