"""`DynamicIndex`: sample from, search and keep true a table of target encodings that moves."""

import functools
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_dynidx.index import build as layout
from tf_dynidx.index import checks, inspection, reencoder
from tf_dynidx.index.flat import Flat
from tf_dynidx.index.integers import Integers
from tf_dynidx.index.placement import PLACEMENTS, check_for_variables, kept, where_kept
from tf_dynidx.index.reencoder import Reencoder
from tf_dynidx.index.shapes import nodes_scored, sample_shape, search_shape
from tf_dynidx.index.tree import CROWDED_GROUP, CROWDED_LEAF, FANOUT, GROUP, LEAF_SIZE, Tree
from tf_dynidx.ops import chains, doubt, draws, frontier, table_draws
from tf_dynidx.ops.in_place import ids_after
from tf_dynidx.ops.nodes import NEVER
from tf_dynidx.ops.search import tree_top_k

_ENOUGH = 1e-3  # squared error of the mass from which on a draw reads no more: 64 draws vary by 1/64
_BOUNDED_AS = 20  # bounds of the partition are those that so many draws would have
_OUTLYING = 0.25  # share of the rows that a build moves anywhere, those farthest from their leaf
_SETTLING_NEAR = 16  # groups whose leaves the rows of a leaf may move to after that; and
_SETTLING_ROUNDS = 2  # how often: each time finds half as many rows in a wrong place again
_UPKEEP_PARTS = 4  # one upkeep reroutes one part in so many of the leaves, in turn
_UPKEEP_ROWS = 512  # or, where it must not go through all rows, so many of those written last
_TOLERANCE = 0.1  # squared relative error from which on all rows had better be encoded again
_FLOATS = 2**27  # numbers that are held at a time to answer queries: 512 MB; and
_FLOATS_SEEN = 16  # of each node and row that a query sees: its score, mass, bounds, ...
_METHODS = ("importance", "mh", "top")
# Lists of rows, leaves or groups of any length are worked off in blocks of one of a few lengths,
# so that nothing is compiled anew for a length not seen before.
_LENGTHS = (16, 1024, 4096)  # of lists of rows or leaves
_GROUPS = (16, 128)  # of lists of groups, of which each is 512 slots
_MANY_CROWDED = 1024  # crowded groups from which on as many are tidied at a time as there may be


class Sample(NamedTuple):
    """Draws from the softmax over all rows, for a batch of queries.

    Attributes:
        ids: int32 [queries, num_samples], row ids, with replacement.
        scores: float32 [queries, num_samples], q.y on the row table, without beta; more for a row that
            is predicted, as `DynamicIndex.sample` says.
        log_prob: float32 [queries, num_samples], log probability of one draw being that row:
            beta score - log_partition.
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

    def __init__(
        self,
        dim,
        capacity,
        dtype="float32",
        seed=0,
        kernel="linear",
        form="auto",
        landmarks="mixed",
        num_landmarks=None,
        refresh_every=None,
        placement="device",
        flat=False,
        name=None,
    ):
        """Makes an empty index.

        Args:
            dim: int, the dimension of the encodings.
            capacity: int, the largest number of rows, at most 2**29. Memory is taken at once: about
                two slots of `dim` numbers a row (one where it is `flat`), and a tenth of that for the
                tree; see `memory`.
            dtype: dtype of the row table: "float32" (default), "float16" or "bfloat16" (half the
                memory; scores are still summed in float32).
            seed: int, seeds every random draw.
            kernel: what the change regression of `correct` is linear in: "linear" (default: the
                encodings themselves; late in training the others did no better), "rbf" or
                "linear+rbf" (the RBF kernel on what the linear one leaves).
            form: "full": a correction moves every row. "lazy": it moves one map that all rows are seen
                through, at a cost that does not grow with them, until `repair` folds it into the rows;
                the linear kernel only. "auto" (default): lazy from a capacity of 250,000 on, where a
                pass over all rows begins to cost more than it gains.
            landmarks: how rows to be encoded again are chosen: "uniform"; "spread", far from those
                there are, as k-means++ seeds; "use", of those written back lately; "mixed" (default),
                a third each. Half of them are replaced at each refresh.
            num_landmarks: int, how many; default 16 (dim + 1), several times the features of the
                regression, and at most `capacity`.
            refresh_every: int, write-backs between refreshes (see `due`); default: chosen from how far
                the landmarks move: about a tenth of an encoding's norm from one to the next, or ten.
            placement: "device" (default): wherever it is made, as any variable. "host": in the memory
                of the host, where it is also asked and kept true, whatever device the caller is on;
                what is drawn or read is copied there. For an accelerator that has better use for its
                memory. Not in what XLA compiles, which is for one device, nor in the scope of a
                strategy of `tf.distribute`.
            flat: bool, whether rows are kept in the order in which they come, and every query looks at
                all of them: draws, searches and partition functions are exact, and there is no tree to
                build and to keep true. Up to some 10^5 rows a draw takes a few times as long as through
                a tree, and no row is missed. Default False.
            name: name of the module.

        Raises:
            ValueError: a size is not a whole number of at least 1, or an argument is another than
                those named.
        """
        super().__init__(name=name)
        self.dim = checks.positive_int("dim", dim)
        self.capacity = checks.positive_int("capacity", capacity)
        if self.capacity > 2**29:
            raise ValueError(f"capacity is at most 2**29. Received: capacity={capacity}")
        row_dtype = checks.row_dtype("dtype", dtype)
        self.seed = checks.seed(seed)
        checks.one_of("placement", placement, PLACEMENTS)
        check_for_variables(placement)
        self.placement, self.flat = placement, checks.flag("flat", flat)
        if num_landmarks is None:
            num_landmarks = reencoder.default_landmarks(self.dim, self.capacity)
        num_landmarks = checks.positive_int("num_landmarks", num_landmarks)
        if num_landmarks > self.capacity:
            raise ValueError(
                "More landmarks than rows. "
                f"Received: num_landmarks={num_landmarks}, capacity={self.capacity}"
            )
        reencoder.check_options(kernel, form, landmarks, refresh_every)
        form = reencoder.resolved_form(form, kernel, self.capacity)
        with kept(placement):
            self.tree = (Flat if self.flat else Tree)(self.dim, self.capacity, row_dtype)
            self.reencoder = Reencoder(
                self.tree, self.seed, kernel, form, landmarks, num_landmarks, refresh_every
            )
            self._calls = Integers(0, "calls")
            self._upkeep = Integers(0, "upkeep")
        self._sample = _compiled(self.draw)
        self._search = _compiled(self._top_k)
        self._bounds = _compiled(self._certify)
        self._insert_block = _compiled(self.tree.insert)
        self._remove_block = _compiled(self.tree.remove)
        self._write_block = _compiled(self.write)
        self._stamp = _compiled(self.reencoder.stamp)
        self._stored = _compiled(self.reencoder.stored)
        self._fold = _compiled(self.reencoder.fold)
        self._refresh_once = _compiled(self.follow)
        self._errors = _compiled(self.reencoder.relative_error)
        self._move_block = _compiled(self.tree.move)
        self._off_centre = _compiled(self.tree.off_centre)
        self._reroute_block = _compiled(self.tree.reroute)
        self._refresh_block = _compiled(self.tree.refresh_groups)
        self._refresh_above = _compiled(self.tree.refresh_above)
        self._tidy = _compiled(self.tree.tidy)

    @property
    def size(self):
        """int, the number of rows held."""
        return int(self.tree.size)

    @property
    def landmarks(self):
        """int32 variable [landmarks], the rows that a refresh encodes again; -1 for a free place."""
        return self.reencoder.landmarks

    @property
    def num_landmarks(self):
        """int, how many landmarks there are."""
        return self.reencoder.num_landmarks

    # Filling and changing.

    @where_kept
    def build(self, embeddings, rows=None, progress=False):
        """Fills the empty index.

        Rows are read a block at a time; beside `embeddings` and the index itself this holds 20 bytes
        a row and some 700 MB.

        Args:
            embeddings: float [rows, dim], finite; a tensor, a NumPy array or a memmap.
            rows: int [rows], their ids; default 0, 1, 2, ...
            progress: bool, whether to show a bar.

        Raises:
            ValueError: the index holds rows already (call `reset` first), there is nothing to build
                from, there are more rows than `capacity`, or an argument is not as described.
        """
        embeddings = checks.table("embeddings", embeddings, self.dim)
        number = len(embeddings)
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
        rows = np.arange(number, dtype=np.int32) if rows is None else rows
        rows = checks.rows("rows", rows, self.capacity)
        if len(rows) != number:
            raise ValueError(
                f"rows and embeddings must agree. Received: {len(rows)} rows, {number} embeddings"
            )
        checks.finite("embeddings", embeddings, self.tree.rows.dtype)
        try:
            if self.flat:
                self._append(rows, embeddings, progress)
            else:
                layout.build(self.tree, rows, embeddings, progress)
                self._settle(progress)
        except BaseException:
            self.tree.clear()  # half an index is none, also when it was interrupted
            raise
        chosen = np.random.default_rng(self.seed).permutation(number)[: self.num_landmarks]
        self.reencoder.start(rows[chosen])

    @where_kept
    def update(self, rows, embeddings):
        """Overwrites rows that the index holds, and refreshes the statistics above them.

        They stay in their leaves, which is right while they move little; `repair` moves them.

        Args:
            rows: int [rows], distinct ids of rows that the index holds.
            embeddings: float [rows, dim], finite.

        Raises:
            ValueError: an argument is not as described; nothing was changed.
        """
        rows, embeddings = self._rows_and_vectors(rows, embeddings)
        self._must_hold(rows, True)
        for block, vectors in _blocks(rows, embeddings):
            self._write_block(block, vectors)
        self._refresh(self._groups_of(rows))
        self._refresh_above()

    @where_kept
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
        for block, vectors in _blocks(rows, embeddings):
            self._stamp(block)
            vectors = self._stored(vectors)
            waiting = block
            while (waiting != NEVER).any():
                accepted = self._insert_block(waiting, vectors).numpy()
                self._refresh(self._groups_of(waiting[accepted]))
                waiting = np.where(accepted, NEVER, waiting)
                self._make_room()
                self._refresh_above()

    @where_kept
    def remove(self, rows):
        """Takes rows out; their ids are free for `insert`.

        Args:
            rows: int [rows], distinct ids of rows that the index holds.

        Raises:
            ValueError: an argument is not as described; nothing was changed.
        """
        rows = checks.rows("rows", rows, self.capacity)
        self._must_hold(rows, True)
        groups = self._groups_of(rows)
        for (block,) in _blocks(rows):
            self._remove_block(block)
        self._refresh(groups)
        self._refresh_above()

    @where_kept
    def reset(self):
        """Empties the index."""
        self.tree.clear()
        self.reencoder.clear()

    @where_kept
    def repair(self, progress=False):
        """Puts every row that was overwritten since the last time where it belongs now.

        It moves to the nearest leaf of the whole tree that has room; then crowded groups of leaves are
        regrouped or halved into empty ones, and the statistics of all that changed are measured anew.
        Time goes with the number of rows that were overwritten.

        Where the index is flat rows stay, and statistics alone are measured.

        Args:
            progress: bool, whether to show a bar.

        Returns:
            int, how many rows changed leaf.
        """
        self._fold()
        rows = np.flatnonzero(self.tree.moved.numpy()[: self.capacity]).astype(np.int32)
        groups, moved = self._groups_of(rows), 0
        with _bar("repairing", len(rows), "row", progress) as bar:
            for (block,) in _blocks(rows):
                moved += int(self._move_block(block))
                bar.update(int((block != NEVER).sum()))
            self._refresh(np.union1d(groups, self._groups_of(rows)))
            self._make_room()
            self._refresh_above()
        return moved

    # Asking.

    @where_kept
    def sample(
        self, queries, num_samples, beta, exclude=None, method="importance", seed=None, budget=None
    ):
        """Draws rows from the softmax over all rows, for each query.

        Once rows have been moved by `correct` or `refresh` they are predictions, and weigh the more the
        less is known of them: exp(beta q.y) is averaged over what an encoding may be, off by as much as
        rows of the same age turned out to be (`tf_dynidx.ops.doubt`). `scores`, `log_prob` and
        `log_partition` are about that. "top" takes predictions as they are.

        "importance" (the default): the heaviest leaves are opened and scored exactly; rows proposed
        from the others are scored and weighted by how likely they were proposed; the draws are taken
        from both by weight (importance resampling). The draws of one query are stratified: each has
        the distribution of an independent draw, and together they vary less.

        "mh": each draw is the last state of a Metropolis-Hastings chain of its own over such proposals
        (Monath et al. 2023, section 4), independent of the others.

        "top": no noise; the rows with the highest scores that a search of the same cost finds.

        Args:
            queries: float [queries, dim], finite.
            num_samples: int, draws a query, at most the number of rows held.
            beta: float > 0, the inverse temperature.
            exclude: int [queries, excluded], row ids that must not be drawn, padded with -1; default
                none.
            method: str, one of the above.
            seed: int [2], for the same draws again; default: the index's own, new at each call.
            budget: int, rows that are scored for a query, at most; default: 25 for each draw. Never
                fewer than 192; of a flat index, all. A row with much of a query's mass can lie in a
                leaf that is not read: the more are read, the fewer are missed, and the longer it takes.

        Returns:
            A `Sample`. For a query with nothing left to draw, all of whose rows are excluded, it holds
            ids -1 of log_prob -inf; so does "top" where it finds fewer rows.

        Raises:
            ValueError: an argument is not as described, there are fewer rows than `num_samples`, or
                the index is empty.
        """
        queries = checks.vectors("queries", queries, self.dim)
        num_samples = checks.positive_int("num_samples", num_samples)
        beta = checks.beta(beta)
        if method not in _METHODS:
            raise ValueError(f"method must be one of {', '.join(_METHODS)}. Received: {method!r}")
        size = self._must_not_be_empty()
        if num_samples > size:
            raise ValueError(
                "More samples than rows: ask for at most as many as the index holds. "
                f"Received: num_samples={num_samples}, {size} rows"
            )
        exclude = self._exclusions(exclude, queries)
        parts = self._parts(queries, exclude, self._seen(num_samples, method, budget))
        seed = self.next_seed() if seed is None else tf.cast(seed, tf.int32)
        seeds = [seed]
        if len(parts) > 1:
            seeds = tf.unstack(tf.random.split(seed, len(parts), alg="philox"))
        sample = _joined(
            self._sample(some, beta, others, own, num_samples, method, budget)
            for (some, others), own in zip(parts, seeds, strict=True)
        )
        found = tf.math.is_finite(sample.log_partition)[:, None] & tf.math.is_finite(sample.scores)
        return sample._replace(
            ids=tf.where(found, sample.ids, NEVER),
            log_prob=tf.where(found, sample.log_prob, -float("inf")),
        )

    @where_kept
    def search(self, queries, k, budget=None, exclude=None):
        """Finds the rows with the largest q.y, approximately: members of the leaves nearest to q.

        Args:
            queries: float [queries, dim], finite.
            k: int, at most the number of rows held.
            budget: int, how many rows are scored exactly for a query: more is slower and finds more.
                Default: 20 sqrt(capacity), at least 1,024 and 4 k. From the number of rows on, and
                of a flat index, the search is exact.
            exclude: int [queries, excluded], row ids to be left out, padded with -1; default none.

        Returns:
            (scores, rows): float32 and int32 [queries, k], best first, of equals the lower id first.
            Scores are exact. Where fewer than k rows are found, the rest is (-inf, -1).

        Raises:
            ValueError: an argument is not as described, or the index is empty.
        """
        queries = checks.vectors("queries", queries, self.dim)
        k = checks.positive_int("k", k)
        size = self._must_not_be_empty()
        if k > size:
            raise ValueError(f"k is at most the number of rows held. Received: k={k}, {size} rows")
        exclude = self._exclusions(exclude, queries)
        return self._search(queries, k, self._search_shape(k, budget), exclude)

    @where_kept
    def log_partition(self, queries, beta):
        """Log of the sum of exp(beta q.y) over all rows, estimated and bounded.

        Args:
            queries: float [queries, dim], finite.
            beta: float > 0.

        Returns:
            (lower, estimate, upper), float32 [queries] each. The bounds hold up to float32 rounding,
            about 1e-5 * (beta |q| |y| + 1); proof in docs/tree.md. Between `write` and the next upkeep
            they need not hold.

        Raises:
            ValueError: an argument is not as described, or the index is empty.
        """
        queries = checks.vectors("queries", queries, self.dim)
        self._must_not_be_empty()
        return self._bounds(queries, checks.beta(beta))

    def sample_cost(self, num_samples, budget=None):
        """Dot products that `sample` takes for a query; a node's centre and variance count one each.

        Args:
            num_samples, budget: as for `sample`.

        Returns:
            int.
        """
        num_samples = checks.positive_int("num_samples", num_samples)
        if self._reads_all(num_samples, "importance", budget):
            return table_draws.products(self._gone_through(), num_samples)
        shape = sample_shape(self.tree, num_samples, budget)
        return 2 * nodes_scored(self.tree, shape) + shape.budget

    def search_cost(self, k, budget=None):
        """Dot products that `search` takes for a query, nodes included.

        Args:
            k, budget: as for `search`.

        Returns:
            int.
        """
        shape = self._search_shape(checks.positive_int("k", k), budget)
        return nodes_scored(self.tree, shape) + min(shape.budget, self.capacity)

    def refresh(self, encode):
        """Encodes the landmarks again and carries their movement over to all rows; for your own loops.

        Args:
            encode: function from int32 [landmarks] row ids to float [landmarks, dim], their encodings
                by the encoder as it is now, in inference mode.

        Raises:
            ValueError: the index is empty, or the encodings are not as described; nothing is changed.
        """
        self._must_not_be_empty()
        # On the caller's device.
        fresh = checks.vectors("encode(rows)", encode(tf.maximum(self.landmarks, 0)), self.dim)
        if len(fresh) != self.num_landmarks:
            raise ValueError(
                f"encode must return one encoding a row. Received: {len(fresh)} for "
                f"{self.num_landmarks} rows"
            )
        self._refresh_once(fresh)

    @where_kept
    def staleness(self, beta=None):
        """How far the index is behind the encoder, from what was written back lately.

        Args:
            beta: float > 0, the inverse temperature that `sampling_error` is for; default: it is left
                out.

        Returns:
            dict: `relative_error`, the mean of |predicted - encoded|^2 / |encoded|^2 over all rows, of
            which those written equally long ago count as equally far off; `largest_relative_error`, of
            what was written back to any group of leaves; `jumps`, how often rows were far off (0.3)
            that had been written within 16 write-backs, after one where they were not: the encoder is
            then another, weights reloaded or a step gone wrong, and the landmarks are due at once;
            `refreshes` so far; `refresh_every`, write-backs from one to the next, as it is now;
            `advice`, "none", or "reencode" where the
            error is above 0.1: encode all rows again, `update` them and `repair`.

            With `beta` also `sampling_error`, the total variation between the softmax over the
            predicted encodings and that over the true ones, for a query of norm 1, if the errors point
            anywhere: 2 Phi(s / 2) - 1 with s = beta |error| / sqrt(dim), the total variation between a
            law and itself tilted by Gaussian noise of deviation s.

        Raises:
            ValueError: beta is not positive and finite.
        """
        overall, by_group = (each.numpy() for each in self._errors())
        known = by_group[np.isfinite(by_group)]
        found = {
            "relative_error": float(overall),
            "largest_relative_error": float(known.max(initial=0.0)),
            "jumps": int(self.reencoder.jumps.numpy()),
            "refreshes": int(self.reencoder.refreshes.numpy()),
            "refresh_every": float(self.reencoder.period.numpy()),
            "advice": "reencode" if overall > _TOLERANCE else "none",
        }
        if beta is not None:
            beta = float(checks.beta(beta))
            norms = self.reencoder.by_group.numpy().sum(axis=0)
            square = float(overall) * norms[1] / max(norms[2], 1.0)
            deviation = beta * math.sqrt(square / self.dim)
            found["sampling_error"] = math.erf(deviation / 2.0 / math.sqrt(2.0))
        return found

    @where_kept
    def stats(self):
        """What the tree looks like: a dict of plain numbers and lists of them by level; see the keys.

        Returns:
            dict: `size`, `capacity`, `levels` (a list, from the leaves up, of dicts of `nodes` in use,
            `places` for nodes, `rows` a node (mean and largest), `children` a node (mean), `radius`
            (median and largest), `variance` (mean over rows of the squared distance from the
            centre)), `dense_level` (all of whose nodes a query scores), `moved_rows` (overwritten
            since the last repair), `landmarks` held, `staleness`, as from the method of that name.
        """
        return inspection.stats(self)

    @where_kept
    def check(self):
        """Verifies every invariant of the tree, row by row.

        Raises:
            RuntimeError: one does not hold; says which. After `write` or `correct` statistics are
                behind until the next upkeep or repair, and this says so.
        """
        inspection.check(self)

    def memory(self):
        """How many bytes live where.

        Returns:
            dict of name to bytes: `rows` (the table), `ids` (ids of slots and slots of ids),
            `statistics` of the nodes, `ages` of the rows, `reencoder` (landmarks, sums over
            observations, errors by group), `total`.
        """
        return inspection.memory(self)

    # Inside a training step: no checks, static shapes.

    @where_kept
    def next_seed(self):
        """int32 [2], a seed not used before; two runs with the same seed get the same ones."""
        count = self._calls.assign_add(1)
        return tf.stack([tf.cast(self.seed + 1, tf.int32), tf.cast(count, tf.int32)])

    @where_kept
    def draw(
        self, queries, beta, exclude, seed, num_samples, method="importance", budget=None, order=1
    ):
        """`sample`, without checks: for use inside a training step.

        Args:
            queries, beta, exclude, seed, num_samples, method, budget: as for `sample`.
            order: int, what rows weigh whose encodings are predicted: 1 (default), the mean of what
                they may weigh, as for `sample`; 2, the root of its mean square. By that what is
                estimated from draws, with their log_prob, varies the least.
        """
        if self._reads_all(num_samples, method, budget):
            return self._draw_from_all(queries, beta, exclude, seed, num_samples, order)
        tree, shape = self.tree, sample_shape(self.tree, num_samples, budget)
        levels = tree.levels
        lifts = self.reencoder.lifts(queries, beta, order)
        queries, shifts = self.reencoder.pulled_back(queries)
        if method == "top":
            if self.flat:
                shape = self._search_shape(num_samples, None)
            scores, ids = tree_top_k(levels, tree.rows, tree.ids, queries, num_samples, shape, exclude)
            log_partition = self._certified(queries, beta)[1]
            log_prob = beta * scores - log_partition[:, None]
            return Sample(ids, scores + shifts[:, None], log_prob, log_partition + beta * shifts)
        tolerance = 0.0 if method == "mh" else _ENOUGH  # chains read all of the budget
        kept, lift = shape.budget // 8, self.reencoder.mean_lift(lifts, beta)
        front = frontier.open_nodes(levels, queries, beta, shape, kept, tolerance, lift)
        lift_of = functools.partial(self.reencoder.lift_of, doubt.of_all_kinds(lifts))
        seen = (tree.rows, tree.ids, levels, front, queries, beta, shape, exclude)
        if method == "mh":
            ids, scores, log_partition = chains.sample(*seen, num_samples, seed, lift_of)
        else:
            seeds = tf.random.split(seed, 2, alg="philox")
            pool = frontier.pool(*seen, seeds[0], lift_of)
            entry = draws.categorical(pool.log_weights, num_samples, seeds[1])
            ids = tf.gather(pool.ids, entry, batch_dims=1)
            scores = tf.gather(pool.scores, entry, batch_dims=1)
            log_partition = pool.log_partition
        log_prob = scores - log_partition[:, None]
        return Sample(ids, scores / beta + shifts[:, None], log_prob, log_partition + beta * shifts)

    @where_kept
    def top_k(self, queries, k, budget=None, exclude=None):
        """`search`, without checks: for use inside a graph.

        Args:
            queries: float32 [queries, dim].
            k, budget: as for `search`.
            exclude: int32 [queries, excluded], row ids to be left out, padded with -1; default none.

        Returns:
            (scores, rows), as `search`.
        """
        return self._top_k(queries, k, self._search_shape(k, budget), exclude)

    @where_kept
    def read(self, rows):
        """The encodings of rows as the index predicts them: float32 [rows, dim]; anything at no row."""
        return self.reencoder.read(rows)

    @where_kept
    def scores(self, queries, rows, beta, order=1):
        """Scores that `draw` draws by: it draws from the softmax of beta times these, over all rows.

        They are q.y, and more for a row whose encoding is predicted: see `sample`.

        Args:
            queries: float32 [queries, dim].
            rows: int32 [rows], scored for every query; or [queries, rows], its own for each.
            beta: float32 scalar.
            order: int, as for `draw`.

        Returns:
            float32 [queries, rows]; anything at no row.
        """
        return self.reencoder.scorer(queries, beta, order)(self.tree.slots_of(rows))

    @where_kept
    def contains(self, rows):
        """Whether the index holds each row: bool of the shape of `rows`."""
        return self.tree.contains(rows)

    @where_kept
    def write(self, rows, embeddings):
        """Writes back encodings, ids that are no row ignored. Statistics follow at the next upkeep.

        What the index had predicted for them is compared with them: that measures it (`staleness`),
        and is an observation for the next `correct`.
        """
        self.reencoder.write(tf.cast(rows, tf.int32), tf.cast(embeddings, tf.float32))

    @where_kept
    def relative_error(self):
        """float32 scalar, the `relative_error` of `staleness`."""
        return self.reencoder.relative_error()[0]

    @where_kept
    def due(self):
        """bool scalar, whether so much was written back that the landmarks are to be encoded again."""
        return self.reencoder.due()

    @where_kept
    def jumped(self):
        """bool scalar, whether the last `write` found another encoder: see `staleness`."""
        return self.reencoder.jumped()

    @where_kept
    def correct(self, fresh):
        """Carries the movement of the landmarks over to every row, by the change regression.

        A row that was written back in the meantime has less to catch up with: it is moved by the share
        of the time since the last correction that has passed since it was written. A regression that
        does not foresee the landmarks it has not seen better than "nothing moved" is not applied.

        Args:
            fresh: float32 [num_landmarks, dim], the rows `landmarks`, encoded afresh; anything at an
                entry of `landmarks` that is -1.
        """
        self.reencoder.correct(fresh)

    @where_kept
    def upkeep(self):
        """Reroutes one part of the leaves, tidies crowded groups, refreshes all statistics.

        In the lazy form, whose corrections leave the stored rows where they are: of the leaves that
        were written to lately, at a cost that goes with their number and that of the nodes. In a flat
        index there is nothing to do.
        """
        if self.flat:
            return
        if self.reencoder.form == "lazy":
            return self._upkeep_of_recent()
        part = tf.math.floormod(self._upkeep, _UPKEEP_PARTS)
        number = self.tree.widths[0]
        leaves = part + tf.range(-(-number // _UPKEEP_PARTS)) * _UPKEEP_PARTS
        # Past the end the scratch leaf stands in: it is empty, and repeating it is harmless.
        self.tree.reroute(tf.minimum(leaves, number))
        self.tree.tidy(max(1, self.tree.num_groups // 64))
        self.tree.refresh()
        self._upkeep.assign_add(1)

    @where_kept
    def follow(self, fresh):
        """`refresh`, given what is encoded and without checks: for use inside a training step.

        Args:
            fresh: as for `correct`.
        """
        self.correct(fresh)
        self.upkeep()

    # Helpers.

    def _upkeep_of_recent(self):
        tree = self.tree
        # After all that a correction reads: the new landmarks are what it reads last.
        recent = ids_after(self.reencoder.landmarks, ids=self.reencoder.recent)
        leaves = reencoder.distinct(tree.slots_of(recent) // LEAF_SIZE)
        tree.refresh_leaves(tf.where(leaves == NEVER, tree.widths[0], leaves))
        start = (self._upkeep * _UPKEEP_ROWS) % recent.shape[0]
        window = tf.range(min(_UPKEEP_ROWS, recent.shape[0]))
        rows = reencoder.distinct(tf.gather(recent, (start + window) % recent.shape[0]))
        before = tree.slots_of(rows) // GROUP
        tree.move(ids_after(before, ids=rows))
        tidied = tree.tidy(_GROUPS[0])
        after = tree.slots_of(rows) // GROUP
        tree.refresh_groups(tf.concat([before, after, tidied], axis=0))
        tree.refresh_above(from_leaves=True)
        self._upkeep.assign_add(1)

    def _reads_all(self, num_samples, method, budget):
        """Whether draws look at every row."""
        shape = sample_shape(self.tree, num_samples, budget)
        return method == "importance" and (self.flat or shape.budget >= self.capacity)

    def _gone_through(self):
        """int, rows, or slots, that a draw goes through that looks at all of them."""
        return self.tree.num_slots if self.flat else self.capacity

    def _seen(self, num_samples, method, budget):
        """int, scores that are held for a query at a time, to draw for it."""
        if self._reads_all(num_samples, method, budget):
            return table_draws.scores_held(self._gone_through(), num_samples)
        shape = sample_shape(self.tree, num_samples, budget)
        return nodes_scored(self.tree, shape) + shape.budget

    def _search_shape(self, k, budget):
        return search_shape(self.tree, k, self.capacity if self.flat else budget)

    def _draw_from_all(self, queries, beta, exclude, seed, num_samples, order):
        """`draw` by looking at every row: exact."""
        tree, score = self.tree, self.reencoder.scorer(queries, beta, order)
        if self.flat:
            # Slots as they lie: rows would be looked up one by one.
            slots_of, excluded, held = tf.identity, tree.slots_of(exclude), tree.occupied
        else:
            # Of a tree's slots many are empty.
            slots_of, excluded, held = tree.slots_of, exclude, tree.contains
        places, log_partition = table_draws.draw(
            lambda places: beta * score(slots_of(places)),
            self._gone_through(),
            excluded,
            num_samples,
            seed,
            held,
        )
        ids, scores = tf.gather(tree.ids, places) if self.flat else places, score(slots_of(places))
        return Sample(ids, scores, beta * scores - log_partition[:, None], log_partition)

    def _top_k(self, queries, k, shape, exclude):
        tree = self.tree
        queries, shifts = self.reencoder.pulled_back(queries)
        scores, ids = tree_top_k(tree.levels, tree.rows, tree.ids, queries, k, shape, exclude)
        return scores + shifts[:, None], ids

    def _certify(self, queries, beta):
        queries, shifts = self.reencoder.pulled_back(queries)
        return tuple(each + beta * shifts for each in self._certified(queries, beta))

    def _certified(self, queries, beta):
        """Bounds of the log partition over what is stored."""
        if self.flat:
            none = tf.fill([tf.shape(queries)[0], 1], NEVER)
            read, size = self.tree.read_slots, self.tree.num_slots
            scores = functools.partial(table_draws.inner_products, read, beta * queries)
            length = table_draws.LARGEST_BLOCK
            masses = table_draws.log_masses(scores, size, none, length, self.tree.occupied)
            exact = tf.reduce_logsumexp(masses, axis=1)
            return exact, exact, exact
        tree, shape = self.tree, sample_shape(self.tree, _BOUNDED_AS)
        front = frontier.open_nodes(tree.levels, queries, beta, shape, 0)
        return frontier.partition_bounds(tree.rows, front, queries, beta, shape)

    def _append(self, rows, embeddings, progress):
        """Fills a flat index, a block at a time."""
        with _bar("copying", len(rows), "row", progress) as bar:
            for block, vectors in _blocks(rows, embeddings):
                self._insert_block(block, vectors)
                bar.update(int((block != NEVER).sum()))
        self._refresh(np.arange(self.tree.num_groups, dtype=np.int32))
        self._refresh_above()

    def _settle(self, progress):
        """Moves rows of a new tree on to nearer leaves: outlying ones anywhere, then all close by."""
        rows = self._outlying()
        self.tree.mark(rows, np.ones(len(rows), bool))
        self.repair(progress)
        groups = np.arange(self.tree.num_groups, dtype=np.int32)
        used = np.flatnonzero(self.tree.counts[0].numpy()).astype(np.int32)
        with _bar("settling", _SETTLING_ROUNDS * len(used), "leaf", progress) as bar:
            for _ in range(_SETTLING_ROUNDS):
                for (block,) in _blocks(used, filler=self.tree.widths[0], lengths=_LENGTHS[:2]):
                    self._reroute_block(block, near=_SETTLING_NEAR)
                    bar.update(int((block != self.tree.widths[0]).sum()))
                self._refresh(groups)
                self._refresh_above()
        self._make_room()
        self._refresh_above()

    def _outlying(self):
        """The rows farthest from the centres of their leaves, where most lie that belong elsewhere."""
        groups = np.arange(self.tree.num_groups, dtype=np.int32)
        filler = self.tree.num_groups
        off = [self._off_centre(each) for (each,) in _blocks(groups, filler=filler, lengths=_GROUPS)]
        off = np.concatenate(off)[: len(groups)].reshape(-1)
        last = len(off) - math.ceil(self.size * _OUTLYING)
        return self.tree.ids.numpy()[: len(off)][np.argpartition(off, last)[last:]]

    def _groups_of(self, rows):
        return np.unique(tf.gather(self.tree.slots, rows).numpy() // GROUP).astype(np.int32)

    def _refresh(self, groups):
        for (block,) in _blocks(groups, filler=self.tree.num_groups, lengths=_GROUPS):
            self._refresh_block(block)

    def _make_room(self):
        """Tidies until no group is crowded that can be helped."""
        left = None
        while True:
            counts = self.tree.counts[0].numpy()[: self.tree.widths[0]].reshape(-1, FANOUT)
            total = counts.sum(axis=1)
            loose = (total <= CROWDED_GROUP) & (counts.max(axis=1) >= CROWDED_LEAF)
            crowded = (total > CROWDED_GROUP) & (total == 0).any()
            before, left = left, int(loose.sum() + crowded.sum())
            # Empty groups may be where no crowded one can reach them.
            if left == 0 or left == before:
                return
            # Of few groups few at a time, for which nothing else has to be traced.
            number = _GROUPS[0] if left < _MANY_CROWDED else _GROUPS[1]
            self._refresh(np.unique(self._tidy(number)))

    def _parts(self, queries, exclude, seen):
        """Queries and exclusions in parts, given how many nodes and rows each query sees."""
        size = max(1, _FLOATS // (_FLOATS_SEEN * seen))
        starts = range(0, max(1, len(queries)), size)
        return [(queries[each : each + size], exclude[each : each + size]) for each in starts]

    def _exclusions(self, exclude, queries):
        if exclude is None:
            return tf.fill([tf.shape(queries)[0], 1], NEVER)
        exclude = tf.convert_to_tensor(exclude)
        if not exclude.dtype.is_integer or exclude.shape.rank != 2 or exclude.shape[0] != len(queries):
            raise ValueError(
                "exclude must be integers of shape [queries, excluded], padded with -1. Received: "
                f"shape {tuple(exclude.shape)}, dtype {exclude.dtype.name} for {len(queries)} queries"
            )
        # No row: before the cast, which would wrap around.
        known = (exclude >= 0) & (exclude < self.capacity)
        return tf.cast(tf.where(known, exclude, tf.constant(NEVER, exclude.dtype)), tf.int32)

    def _rows_and_vectors(self, rows, embeddings):
        rows = checks.rows("rows", rows, self.capacity)
        embeddings = checks.table("embeddings", embeddings, self.dim)
        if len(rows) != len(embeddings):
            raise ValueError(
                "rows and embeddings must agree; nothing was changed. "
                f"Received: {len(rows)} rows, {len(embeddings)} embeddings"
            )
        checks.finite("embeddings", embeddings, self.tree.rows.dtype)
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


def _bar(what, total, unit, progress):
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=not progress)


def _joined(parts):
    """Results for parts of the queries, as one."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    joined = [tf.concat(each, axis=0) for each in zip(*parts, strict=True)]
    return type(parts[0])(*joined) if hasattr(parts[0], "_fields") else tuple(joined)


def _blocks(names, vectors=None, filler=NEVER, lengths=_LENGTHS):
    """Cuts int32 names, and vectors if given, into blocks of one of a few lengths, padded."""
    length = next((each for each in lengths if len(names) <= each), lengths[-1])
    for start in range(0, len(names), length):
        mine = names[start : start + length]
        missing = length - len(mine)
        block = (np.pad(mine, [0, missing], constant_values=filler),)
        if vectors is not None:
            those = np.asarray(vectors[start : start + length], np.float32)
            block += (np.pad(those, [[0, missing], [0, 0]]),)
        yield block


def _compiled(function):
    # No Python control flow on tensors in here: AutoGraph would only slow down the tracing.
    return tf.function(function, reduce_retracing=True, autograph=False)
