"""`DynamicIndex`: sample from, search and keep true a table of target encodings that moves."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_dynidx.index import checks
from tf_dynidx.index.tree import Tree
from tf_dynidx.ops import draws, frontier, masses, regression
from tf_dynidx.ops.leaves import NEVER

_SETTLING_ROUNDS = 6  # rounds of rerouting after a build; by then few rows still change leaf
_LONG_AGO = -(2**30)  # when rows that were never written were written
_UPKEEP_PARTS = 4  # one upkeep reroutes one part in so many of the leaves, in turn


class Sample(NamedTuple):
    """Draws from the softmax over all rows, for a batch of queries.

    Attributes:
        ids: int32 [queries, num_samples], row ids, with replacement.
        scores: float32 [queries, num_samples], q.y on the row table, without beta.
        log_prob: float32 [queries, num_samples], log probability of one draw being that row:
            beta q.y - log_partition.
        log_partition: float32 [queries], estimate of log sum_y exp(beta q.y) over the rows that are
            not excluded.
    """

    ids: tf.Tensor
    scores: tf.Tensor
    log_prob: tf.Tensor
    log_partition: tf.Tensor


class DynamicIndex(tf.Module):
    """An index of target encodings for softmax sampling and search, kept true while they move.

    Rows are addressed by the caller's ids, 0 to capacity - 1, which stay the same for life. The
    state is in `tf.Variable`s: `tf.train.Checkpoint(index=index)` saves and restores all of it.

    Randomness is stateless: draws depend on `seed`, on how many calls came before, and on nothing else.

    Example:

    >>> import numpy as np, tf_dynidx as tdx
    >>> rng = np.random.default_rng(0)
    >>> rows = rng.normal(size=(1000, 8)).astype("float32")
    >>> index = tdx.DynamicIndex(dim=8, capacity=1000)
    >>> index.build(rows)
    >>> batch = index.sample(rows[:4], num_samples=16, beta=5.0)
    >>> batch.ids.shape
    TensorShape([4, 16])
    """

    def __init__(self, dim, capacity, dtype="float32", seed=0, name=None):
        """Makes an empty index.

        Args:
            dim: int, the dimension of the encodings.
            capacity: int, the largest number of rows, at most 2**30. Memory is taken at once: about
                two slots of `dim` numbers a row.
            dtype: dtype of the row table: "float32" (default), "float16" or "bfloat16" (half the
                memory; scores are still summed in float32).
            seed: int, seeds every random draw.
            name: name of the module.

        Raises:
            ValueError: a size is not a whole number of at least 1, or `dtype` is another.
        """
        super().__init__(name=name)
        self.dim = checks.positive_int("dim", dim)
        self.capacity = checks.positive_int("capacity", capacity)
        if self.capacity > 2**30:
            raise ValueError(f"capacity is at most 2**30. Received: capacity={capacity}")
        try:
            row_dtype = tf.as_dtype(dtype)
        except TypeError:
            row_dtype = None
        if row_dtype not in (tf.float32, tf.float16, tf.bfloat16):
            raise ValueError(f"dtype must be float32, float16 or bfloat16. Received: {dtype!r}")
        self.seed = int(seed)
        self.tree = Tree(self.dim, self.capacity, row_dtype)
        # More landmarks than the regression has inputs, several times over: fewer, and it fits noise.
        self.num_landmarks = min(self.capacity, 8 * (self.dim + 1))
        self.landmarks = tf.Variable(
            tf.fill([self.num_landmarks], NEVER), trainable=False, name="landmarks"
        )
        self._on_sphere = tf.Variable(False, trainable=False, name="on_sphere")
        self._calls = tf.Variable(0, trainable=False, name="calls")
        self._upkeep = tf.Variable(0, trainable=False, name="upkeep")
        # Time is counted in write-backs: when each row was last written, and all were last corrected.
        self._clock = tf.Variable(0, trainable=False, name="clock")
        self._corrected = tf.Variable(0, trainable=False, name="corrected")
        self._written = tf.Variable(
            tf.fill([self.capacity + 1], _LONG_AGO), trainable=False, name="written"
        )
        self._sample = _compiled(self.draw)
        self._search = _compiled(self._top_k)
        self._bounds = _compiled(self._certify)
        self._repair_part = _compiled(self._reroute_part)
        self._tidy = _compiled(self._split_and_refresh)

    @property
    def size(self):
        """int, the number of rows held."""
        return int(self.tree.size)

    # Filling and changing.

    def build(self, embeddings, rows=None, progress=False):
        """Fills the empty index.

        Args:
            embeddings: float [rows, dim], finite.
            rows: int [rows], their ids; default 0, 1, 2, ...
            progress: bool, whether to show a bar.

        Raises:
            ValueError: the index holds rows already (call `reset` first), there is nothing to build
                from, there are more rows than `capacity`, or an argument is not as described.
        """
        embeddings = checks.vectors("embeddings", embeddings, self.dim, self.tree.rows.dtype)
        number = int(embeddings.shape[0])
        if self.size:
            raise ValueError(
                "The index is built already. Call reset() first to build it anew, or update(), "
                f"insert() and remove() to change it. Received: {number} rows for an index of "
                f"{self.size}"
            )
        if number == 0:
            raise ValueError("An index needs at least one row. Received: 0 embeddings")
        if number > self.capacity:
            raise ValueError(
                "More rows than the index has room for: make it with a larger capacity. "
                f"Received: {number} embeddings, capacity {self.capacity}"
            )
        rows = np.arange(number) if rows is None else rows
        rows = checks.rows("rows", rows, self.capacity)
        if len(rows) != number:
            raise ValueError(
                f"rows and embeddings must agree. Received: {len(rows)} rows, {number} embeddings"
            )
        self.tree.build(tf.constant(rows), embeddings)
        self._on_sphere.assign(_all_of_norm_one(embeddings))
        order = tf.argsort(
            tf.random.stateless_uniform([number], [self.seed, 0], alg="philox"), stable=True
        )
        chosen = tf.gather(rows, order[: self.num_landmarks])
        padding = self.num_landmarks - int(chosen.shape[0])
        self.landmarks.assign(tf.pad(chosen, [[0, padding]], constant_values=NEVER))
        rounds = range(_SETTLING_ROUNDS)
        for _ in tqdm(rounds, desc="settling the tree", unit="round", disable=not progress):
            self.repair()

    def update(self, rows, embeddings):
        """Overwrites rows that the index holds, and refreshes the statistics of their leaves.

        Args:
            rows: int [rows], distinct ids of rows that the index holds.
            embeddings: float [rows, dim], finite.

        Raises:
            ValueError: an argument is not as described; nothing was changed.
        """
        rows, embeddings = self._rows_and_vectors(rows, embeddings)
        self._must_hold(rows, True)
        self._on_sphere.assign(self._on_sphere & _all_of_norm_one(embeddings))
        self.write(rows, embeddings)
        self.tree.refresh(self._leaves_of(rows))

    def insert(self, rows, embeddings):
        """Adds rows that the index does not hold, each to the nearest leaf that has room.

        Args:
            rows: int [rows], distinct ids below `capacity` that are free.
            embeddings: float [rows, dim], finite.

        Raises:
            ValueError: an argument is not as described; nothing was changed.
        """
        rows, embeddings = self._rows_and_vectors(rows, embeddings)
        self._must_hold(rows, False)
        self._on_sphere.assign(self._on_sphere & _all_of_norm_one(embeddings))
        self._stamp(rows)
        waiting = tf.constant(rows)
        while not bool(tf.reduce_all(waiting == NEVER)):
            accepted = self.tree.insert(waiting, embeddings)
            waiting = tf.where(accepted, NEVER, waiting)
            self._tidy()

    def remove(self, rows):
        """Takes rows out; their ids are free for `insert`.

        Args:
            rows: int [rows], distinct ids of rows that the index holds.

        Raises:
            ValueError: an argument is not as described; nothing was changed.
        """
        rows = checks.rows("rows", rows, self.capacity)
        self._must_hold(rows, True)
        leaves = self._leaves_of(rows)
        self.tree.remove(tf.constant(rows), leaves)
        self.tree.refresh(leaves)

    def reset(self):
        """Empties the index."""
        self.tree.clear()
        self._written.assign(tf.fill(self._written.shape, _LONG_AGO))
        self.landmarks.assign(tf.fill(self.landmarks.shape, NEVER))

    def repair(self):
        """Moves every row to the nearest leaf close by, splits crowded leaves, refreshes statistics.

        Returns:
            int, how many rows changed leaf.
        """
        moved = sum(int(self._repair_part(part)) for part in tf.range(_UPKEEP_PARTS))
        self._tidy()
        return moved

    # Asking.

    def sample(self, queries, num_samples, beta, exclude=None, seed=None):
        """Draws rows from the softmax over all rows, for each query.

        The heaviest leaves are opened and scored exactly; rows proposed from the others are scored and
        weighted by how likely they were proposed; the draws are taken from both by weight (importance
        resampling). The draws of one query are stratified: each has the distribution of an independent
        draw, and together they vary less.

        Args:
            queries: float [queries, dim], finite.
            num_samples: int, draws a query, at most the number of rows held.
            beta: float > 0, the inverse temperature.
            exclude: int [queries, excluded], row ids that must not be drawn, padded with -1; default
                none.
            seed: int [2], for the same draws again; default: the index's own, new at each call.

        Returns:
            A `Sample`. For a query with nothing left to draw, all of whose rows are excluded, it holds
            ids -1 of log_prob -inf.

        Raises:
            ValueError: an argument is not as described, or the index is empty.
        """
        queries = checks.vectors("queries", queries, self.dim)
        num_samples = checks.positive_int("num_samples", num_samples)
        beta = checks.beta(beta)
        size = self._must_not_be_empty()
        if num_samples > size:
            raise ValueError(
                "More samples than rows: ask for at most as many as the index holds. "
                f"Received: num_samples={num_samples}, {size} rows"
            )
        if exclude is None:
            exclude = tf.fill([tf.shape(queries)[0], 1], NEVER)
        exclude = tf.cast(exclude, tf.int32)
        if exclude.shape.rank != 2 or exclude.shape[0] != queries.shape[0]:
            raise ValueError(
                "exclude must have shape [queries, excluded], padded with -1. "
                f"Received: shape {tuple(exclude.shape)} for {queries.shape[0]} queries"
            )
        seed = self.next_seed() if seed is None else tf.cast(seed, tf.int32)
        sample = self._sample(queries, beta, exclude, seed, num_samples)
        found = tf.math.is_finite(sample.log_partition)[:, None]
        return sample._replace(
            ids=tf.where(found, sample.ids, NEVER),
            log_prob=tf.where(found, sample.log_prob, -float("inf")),
        )

    def search(self, queries, k, leaves=None):
        """Finds the rows with the largest q.y, approximately: members of the leaves nearest to q.

        Args:
            queries: float [queries, dim], finite.
            k: int, at most the number of rows held.
            leaves: int, how many leaves to open: more is slower and finds more. Default: one in
                sixteen, at least 16, and enough to hold k rows; all of them is exact.

        Returns:
            (scores, rows): float32 and int32 [queries, k], best first; where the opened leaves hold
            fewer than k rows, the rest is (-inf, -1).

        Raises:
            ValueError: an argument is not as described, or the index is empty.
        """
        queries = checks.vectors("queries", queries, self.dim)
        k = checks.positive_int("k", k)
        size = self._must_not_be_empty()
        if k > size:
            raise ValueError(f"k is at most the number of rows held. Received: k={k}, {size} rows")
        in_use = int(tf.reduce_sum(tf.cast(self.tree.counts > 0, tf.int32)))
        if leaves is None:
            leaves = max(16, in_use // 16, 2 * k * in_use // size + 1)
        leaves = min(checks.positive_int("leaves", leaves), in_use)
        return self._search(queries, k, leaves)

    def log_partition(self, queries, beta):
        """Log of the sum of exp(beta q.y) over all rows, estimated and bounded.

        Args:
            queries: float [queries, dim], finite.
            beta: float > 0.

        Returns:
            (lower, estimate, upper), float32 [queries] each. The bounds hold up to float32 rounding,
            about 1e-5 * (beta |q| |y| + 1); proof in `tf_dynidx.ops.masses.log_mass_bounds`.

        Raises:
            ValueError: an argument is not as described, or the index is empty.
        """
        queries = checks.vectors("queries", queries, self.dim)
        self._must_not_be_empty()
        return self._bounds(queries, checks.beta(beta))

    # Inside a training step: no checks, static shapes.

    def next_seed(self):
        """int32 [2], a seed not used before; two runs with the same seed get the same ones."""
        count = self._calls.assign_add(1)
        return tf.stack([tf.cast(self.seed + 1, tf.int32), tf.cast(count, tf.int32)])

    def draw(self, queries, beta, exclude, seed, num_samples):
        """`sample`, without checks: for use inside a training step."""
        # Four proposals a draw make resampling close to exact draws; below 64 the estimate of the
        # partition function is noisy whatever the number of draws.
        proposals = max(64, 4 * num_samples)
        width = min(max(16, proposals // 16), self.tree.num_leaves)
        seeds = tf.random.split(seed, 2, alg="philox")
        leaves = self.tree.leaves
        front = frontier.open_leaves(leaves, queries, beta, width, exclude)
        pool = frontier.pool(leaves, front, queries, beta, proposals, exclude, seeds[0])
        entry = draws.categorical(pool.log_weights, num_samples, seeds[1])
        scores = tf.gather(pool.scores, entry, batch_dims=1)
        log_partition = pool.log_partition
        return Sample(
            tf.gather(pool.ids, entry, batch_dims=1),
            scores / beta,
            scores - log_partition[:, None],
            log_partition,
        )

    def write(self, rows, embeddings):
        """Writes back encodings, ids that are no row ignored. Statistics follow at the next upkeep."""
        self.tree.write(rows, embeddings)
        self._stamp(rows)

    def correct(self, fresh):
        """Carries the movement of the landmarks over to every row, by the change regression.

        A row that was written back in the meantime has less to catch up with: it is moved by the share
        of the time since the last correction that has passed since it was written.

        Args:
            fresh: float32 [num_landmarks, dim], the rows `landmarks`, encoded afresh; anything at an
                entry of `landmarks` that is -1.
        """
        known = self.tree.contains(self.landmarks)
        before = tf.where(known[:, None], self.tree.read(self.landmarks), 0.0)
        after = tf.where(known[:, None], tf.cast(fresh, tf.float32), 0.0)
        behind = tf.where(known, self._share_behind(self.landmarks), 0.0)
        matrix = regression.fit_change(before, after, behind)
        rows = tf.cast(tf.reshape(self.tree.rows, [-1, self.dim]), tf.float32)
        behind = self._share_behind(tf.reshape(self.tree.ids, [-1]))
        rows = regression.apply_change(rows, matrix, behind[:, None])
        # A linear map leaves the sphere that unit-norm encodings lie on; they go back to it.
        squares = tf.matmul(rows**2, tf.ones([self.dim, 1]))
        shrink = tf.where(self._on_sphere, tf.math.rsqrt(tf.maximum(squares, 1e-12)), 1.0)
        rows = tf.reshape(rows * shrink, self.tree.rows.shape)
        # Emptied slots stay zero: moved again and again, nothing would keep what they held finite.
        rows = tf.where((self.tree.ids != NEVER)[:, :, None], rows, 0.0)
        self.tree.rows.assign(tf.cast(rows, self.tree.rows.dtype))
        self.write(tf.where(known, self.landmarks, NEVER), after)
        self._corrected.assign(self._clock)

    def upkeep(self):
        """Reroutes one part of the leaves, splits crowded ones, refreshes all statistics."""
        part = tf.math.floormod(self._upkeep, _UPKEEP_PARTS)
        self._reroute_part(part)
        self._upkeep.assign_add(1)
        self._split_and_refresh()

    # Helpers.

    def _stamp(self, rows):
        """Notes that rows are fresh as of now; ids that are no row share one entry."""
        now = self._clock.assign_add(1)
        known = (rows >= 0) & (rows < self.capacity)
        where = tf.where(known, rows, self.capacity)[:, None]
        self._written.scatter_nd_update(where, tf.fill(tf.shape(rows), now))

    def _share_behind(self, rows):
        """Share of the time since the last correction that has passed since each row was written."""
        written = tf.gather(self._written, tf.where(rows < 0, self.capacity, rows))
        period = tf.maximum(self._clock - self._corrected, 1)
        share = tf.cast(self._clock - written, tf.float32) / tf.cast(period, tf.float32)
        return tf.minimum(share, 1.0)

    def _reroute_part(self, part):
        """Reroutes every `_UPKEEP_PARTS`-th leaf, from the given one on."""
        steps = tf.range(-(-self.tree.num_leaves // _UPKEEP_PARTS))
        # Past the end the scratch leaf stands in: it is empty, and repeating it is harmless.
        leaves = tf.minimum(part + steps * _UPKEEP_PARTS, self.tree.num_leaves)
        return self.tree.reroute(leaves)

    def _split_and_refresh(self):
        self.tree.split(max(1, self.tree.num_leaves // 64))
        self.tree.refresh()

    def _top_k(self, queries, k, leaves):
        """Opens `leaves` leaves by centre, a few at a time, and keeps the best k."""
        tree = self.tree
        closeness = tf.matmul(queries, tree.centres, transpose_b=True)
        closeness = tf.where(tree.counts > 0, closeness, -float("inf"))
        _, order = tf.math.top_k(closeness, leaves)
        batch = tf.shape(queries)[0]
        best = tf.fill([batch, k], -float("inf"))
        rows = tf.fill([batch, k], NEVER)
        for start in range(0, leaves, 8):
            opened = order[:, start : start + 8]
            block = tf.cast(tf.gather(tree.rows, opened), tf.float32)
            ids = tf.gather(tree.ids, opened)
            dots = tf.einsum("qd,qwsd->qws", queries, block)
            dots = tf.where(ids == NEVER, -float("inf"), dots)
            flat = [batch, ids.shape[1] * ids.shape[2]]
            best = tf.concat([best, tf.reshape(dots, flat)], axis=1)
            rows = tf.concat([rows, tf.reshape(ids, flat)], axis=1)
            best, kept = tf.math.top_k(best, k)
            rows = tf.gather(rows, kept, batch_dims=1)
        return best, rows

    def _certify(self, queries, beta):
        leaves = self.tree.leaves
        exclude = tf.fill([tf.shape(queries)[0], 1], NEVER)
        front = frontier.open_leaves(leaves, queries, beta, min(16, self.tree.num_leaves), exclude)
        lower, upper = masses.log_mass_bounds(
            queries, beta, leaves.counts, leaves.centres, leaves.radii
        )
        closed = tf.math.is_finite(front.rest)

        def total(rest):
            rest = tf.where(closed, rest, -float("inf"))
            return tf.reduce_logsumexp(tf.concat([front.scores, rest], axis=1), axis=1)

        return total(lower), total(front.rest), total(upper)

    def _rows_and_vectors(self, rows, embeddings):
        rows = checks.rows("rows", rows, self.capacity)
        embeddings = checks.vectors("embeddings", embeddings, self.dim, self.tree.rows.dtype)
        if len(rows) != embeddings.shape[0]:
            raise ValueError(
                "rows and embeddings must agree; nothing was changed. "
                f"Received: {len(rows)} rows, {embeddings.shape[0]} embeddings"
            )
        return rows, embeddings

    def _must_hold(self, rows, held):
        found = self.tree.contains(tf.constant(rows)).numpy()
        if not (found == held).all():
            state, instead = ("not in", "insert") if held else ("already in", "update")
            raise ValueError(
                f"A row is {state} the index: use {instead}() for it; nothing was changed. "
                f"Received: row {rows[found != held][0]}"
            )

    def _must_not_be_empty(self):
        if not tf.executing_eagerly():
            raise RuntimeError(
                "Inside a tf.function call draw(), which checks nothing. Received: a call of an "
                "eager method while tracing"
            )
        size = self.size
        if not size:
            raise ValueError("The index is empty: call build() first. Received: 0 rows")
        return size

    def _leaves_of(self, rows):
        return tf.unique(self.tree.places(tf.constant(rows))[:, 0])[0]


def _all_of_norm_one(vectors):
    return tf.reduce_all(tf.abs(tf.norm(vectors, axis=1) - 1.0) < 1e-3)


def _compiled(function):
    # No Python control flow on tensors in here: AutoGraph would only slow down the tracing.
    return tf.function(function, reduce_retracing=True, autograph=False)
