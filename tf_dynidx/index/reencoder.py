"""The re-encoder: what keeps all encodings of a tree true though only a few are encoded again."""

import math

import tensorflow as tf

from tf_dynidx.index import checks
from tf_dynidx.index.integers import state
from tf_dynidx.index.tree import GROUP
from tf_dynidx.ops import affine, doubt, draws, regression
from tf_dynidx.ops.in_place import do_if, ids_after
from tf_dynidx.ops.membership import is_among
from tf_dynidx.ops.nodes import NEVER
from tf_dynidx.ops.table_draws import inner_products

KERNELS = ("linear", "rbf", "linear+rbf")
FORMS = ("full", "lazy")
LANDMARKS = ("uniform", "spread", "use", "mixed")
_LAZY_FROM = 250_000  # rows from which on a pass over all of them costs more than what it corrects
_PER_FEATURE = 16  # landmarks for each feature of the regression: with fewer it fits noise
_RENEWED = 2  # one landmark in so many is replaced at a refresh: the others tell how far rows moved
_CANDIDATES = 8  # rows that are looked at for each new landmark
_RECENT = 16_384  # rows last written that are remembered
_LONG_AGO = -(2**30)  # when rows that were never written were written
_FIRST_PERIOD = 10.0  # write-backs before the first refresh, where the index chooses
_SHORTEST, _LONGEST = 10.0, 500.0  # and between refreshes
_MOVEMENT = 0.01  # squared relative movement that one refresh is to catch up with
_JUMP = 0.3  # squared relative error of rows that were just written, from which the encoder jumped
_JUST = 16  # write-backs that just written rows are behind, at most
_WITNESSES = 32  # such rows that it takes to say so
_AGES = 16  # classes of time since a row was written, each twice as long as the one before
_SURVEYED = 16_384  # slots that are looked at to tell how old rows are
_MEMORY = 0.5  # weight at a refresh of what was measured of the error before it
_BLOCK = 65_536  # rows that are corrected at a time


class Reencoder(tf.Module):
    """Predicts the encodings of all rows from those that are encoded again (Monath et al. 2023, 5).

    Every write-back says how far the prediction was off, which measures the index for nothing and is
    an observation for the regression; landmarks, encoded again at a refresh, judge what is made of it.
    A correction is applied in one of two forms. *Full*: every row is moved. *Lazy*: rows stay, and a
    map from what is stored to what it stands for moves, which costs nothing for a row; queries and
    write-backs go through it (`tf_dynidx.ops.affine`). All bounds hold for what the rows stand for.

    Attributes:
        landmarks: int32 [landmarks], row ids; -1 for a place that is free.
        period: float32, write-backs between two refreshes.
    """

    def __init__(self, tree, seed, kernel, form, landmarks, num_landmarks, refresh_every, name=None):
        """Makes the state for a tree; see `DynamicIndex` for the arguments.

        Args:
            tree: `Tree`.
            seed: int.
            kernel, form, landmarks, num_landmarks, refresh_every: as for `DynamicIndex`, resolved.
        """
        super().__init__(name=name)
        self.tree, self.seed = tree, seed
        self.kernel, self.form, self.choice = kernel, form, landmarks
        self.refresh_every = refresh_every
        self.num_landmarks = num_landmarks
        dim = tree.dim

        self.landmarks = state(tf.fill([num_landmarks], NEVER), "landmarks")
        # Time is counted in write-backs: when each row was last written, and all were last corrected.
        self.clock = state(0, "clock")
        self.corrected = state(0, "corrected")
        self.written = state(tf.fill([tree.capacity + 1], _LONG_AGO), "written")
        self.period = state(float(refresh_every or _FIRST_PERIOD), "period")
        self.refreshes = state(0, "refreshes")
        # Observations since the last correction, in units of one write-back's movement.
        self.moment = state(tf.zeros([dim + 1, dim + 1]), "moment")
        self.target = state(tf.zeros([dim + 1, dim]), "target")
        # Sums of squared error, squared norm and number of what was written, by group and by age.
        self.by_group = state(tf.zeros([tree.counts[1].shape[0], 3]), "by_group")
        self.by_age = state(tf.zeros([_AGES, 3]), "by_age")
        # Sum over what was written of the error's products with itself: which directions errors prefer.
        self.errors = state(tf.zeros([dim, dim]), "errors")
        self.recent = state(tf.fill([min(_RECENT, max(1, tree.capacity))], NEVER), "recent")
        self.recent_end = state(0, "recent_end")
        # Of the write-back before: the error of rows that had just been written. And how often that
        # was large, after one where it was not.
        self.lurch = state(0.0, "lurch")
        self.jumps = state(0, "jumps")
        if form == "lazy":
            start = affine.identity(dim)
            self.matrix = state(start.matrix, "matrix")
            self.inverse = state(start.inverse, "inverse")
            self.offset = state(start.offset, "offset")

    # What stored rows stand for.

    @property
    def map(self):
        """`Affine`, from what the tree stores to what it stands for; None where that is the same."""
        if self.form == "full":
            return None
        return affine.Affine(*(tf.identity(v) for v in (self.matrix, self.inverse, self.offset)))

    def _set_map(self, new):
        for mine, value in zip((self.matrix, self.inverse, self.offset), new, strict=True):
            mine.assign(value)

    def stored(self, vectors):
        """What to store for encodings: float32 [rows, dim]."""
        return vectors if self.form == "full" else affine.backward(self.map, vectors)

    def pulled_back(self, queries):
        """(queries, shifts) for what is stored, as `tf_dynidx.ops.affine.pulled_back`."""
        if self.form == "full":
            return queries, tf.zeros_like(queries[:, 0])
        return affine.pulled_back(self.map, queries)

    def read(self, ids):
        """The encodings of rows as they are predicted to be now: float32 [ids, dim]."""
        rows = self.tree.read(ids)
        return rows if self.form == "full" else affine.forward(self.map, rows)

    # How little is known of rows.

    def lifts(self, queries, beta, order):
        """`doubt.Lifts`: what doubt adds to the scores of rows, by their age.

        Errors of any age are taken to prefer the same directions.

        Args:
            queries: float32 [queries, dim].
            beta: float32 scalar.
            order: int, as for `tf_dynidx.ops.doubt`.
        """
        squared, _, number = tf.unstack(self.by_age, axis=1)
        errors = squared / tf.maximum(number, 1e-12)
        # An age of which nothing was written back: as far off as any.
        errors = tf.where(number > 0.0, errors, tf.reduce_max(tf.where(number > 0.0, errors, 0.0)))
        # What nothing was predicted of stands as it was given.
        errors = tf.where(self.refreshes > 0, errors, 0.0)
        return doubt.lifts(errors, doubt.dimensions(self.errors, queries), queries, order * beta)

    def mean_lift(self, lifts, beta):
        """What doubt adds to the scores of rows, on the average: float32 [queries]."""
        return doubt.mean_lift(lifts, self._share_of_ages(), beta)

    def lift_of(self, by_age, owner, ids):
        """What doubt adds to the scores of rows.

        Args:
            by_age: float32 [queries, ages], what it adds for rows of each age.
            owner: int32 [lists], which query each list of rows is for.
            ids: int32 [lists or 1, rows], row ids; an id that is no row is as old as can be.

        Returns:
            float32 [lists, rows].
        """
        ages = self._ages(self._written(ids))
        return tf.gather(tf.reshape(by_age, [-1]), owner[:, None] * by_age.shape[1] + ages)

    def scorer(self, queries, beta, order):
        """Function from slots to the scores of the rows that they hold, doubt included.

        Args:
            queries: float32 [queries, dim].
            beta: float32 scalar.
            order: int, as for `tf_dynidx.ops.doubt`.

        Returns:
            function from int32 slots, [slots] for all queries or [queries, slots], to float32
            [queries, slots].
        """
        lifts = self.lifts(queries, beta, order)
        stored, shifts = self.pulled_back(queries)

        def scores(slots):
            ages = self._ages(self._written(tf.gather(self.tree.ids, slots)))
            products = inner_products(self.tree.read_slots, stored, slots)
            return products + doubt.of_kinds(lifts, ages) + shifts[:, None]

        return scores

    # Write-back.

    def write(self, ids, fresh):
        """Writes encodings back, and takes in what they say.

        Ids that are no row are ignored, and so are encodings that are not finite.
        """
        finite = tf.reduce_all(tf.math.is_finite(fresh), axis=1)
        ids, fresh = tf.where(finite, ids, NEVER), tf.where(finite[:, None], fresh, 0.0)
        before, written = self.read(ids), self._written(ids)
        self._observe(ids, before, fresh, written)
        ids = ids_after(before, written, ids=ids)
        self.tree.write(ids, self.stored(fresh))
        self.stamp(ids)

    def stamp(self, ids):
        """Notes that rows are fresh as of now; ids that are no row share one entry."""
        now = self.clock.assign_add(1)
        known = (ids >= 0) & (ids < self.tree.capacity)
        where = tf.where(known, ids, self.tree.capacity)
        self.written.scatter_nd_update(where[:, None], tf.fill(tf.shape(ids), now))
        size = self.recent.shape[0]
        ids = tf.where(known, ids, NEVER)[-size:]
        place = (self.recent_end + tf.range(tf.shape(ids)[0])) % size
        self.recent.scatter_nd_update(place[:, None], ids)
        self.recent_end.assign((self.recent_end + tf.shape(ids)[0]) % size)

    def _observe(self, ids, before, fresh, written):
        """Takes in how far rows had moved when they were encoded: an error, and an observation."""
        held = self.tree.contains(ids)
        before = tf.where(held[:, None], before, 0.0)
        after = tf.where(held[:, None], tf.cast(fresh, tf.float32), 0.0)
        off = after - before
        self.errors.assign_add(tf.matmul(off, off, transpose_a=True))
        known = tf.cast(held, tf.float32)
        squares = (tf.reduce_sum(each**2, axis=1) for each in (off, after))
        measured = tf.stack([*squares, known], axis=1)
        groups = self.tree.slots_of(ids) // GROUP
        self.by_group.scatter_add(tf.IndexedSlices(measured, groups))
        ages = tf.one_hot(self._ages(written), _AGES)
        self.by_age.assign_add(tf.matmul(ages, measured, transpose_a=True))
        just = tf.cast(self.clock + 1 - written <= _JUST, tf.float32)
        self._notice_jump(*tf.unstack(tf.linalg.matvec(measured, just, transpose_a=True)))
        # The movement since the row was last known: a landmark's, over more steps, weighs more.
        elapsed = self.clock + 1 - tf.maximum(written, self.corrected)
        weights = known * tf.cast(elapsed, tf.float32)
        seen = regression.sums(before, after, weights)
        self.moment.assign_add(seen.moment)
        self.target.assign_add(seen.target)

    def _notice_jump(self, error, size, number):
        """Tells an encoder that jumps, such as one whose weights were reloaded, from one that trains.

        What training does to an encoding within a few steps is little, also at the very start. Where
        rows that were just written are far off again, all rows are, and the landmarks are due at once.
        """
        lurch = tf.where(number >= _WITNESSES, tf.math.divide_no_nan(error, size), 0.0)
        begins = (lurch > _JUMP) & (self.lurch <= _JUMP)
        self.jumps.assign_add(tf.cast(begins, tf.int32))
        self.lurch.assign(lurch)
        # All that rows are behind by now was this one movement: what came before does not tell of it.
        self.corrected.assign(tf.where(begins, self.clock, self.corrected))
        for variable in (self.moment, self.target):
            variable.assign(tf.where(begins, tf.zeros_like(variable), variable))

    def _written(self, ids):
        known = (ids >= 0) & (ids < self.tree.capacity)
        return tf.gather(self.written, tf.where(known, ids, self.tree.capacity))

    def _ages(self, written):
        """Write-backs since rows were written, as a power of 2: int32, below `_AGES`."""
        age = tf.cast(tf.maximum(self.clock + 1 - written, 1), tf.float32)
        exponent = tf.cast(tf.math.log(age) / math.log(2.0) + 1e-4, tf.int32)
        return tf.minimum(exponent, _AGES - 1)

    def _share_of_ages(self):
        """How many rows are of each age, up to a factor: float32 [ages]."""
        # Rows anywhere in the tree, evenly: as many as tell.
        stride = max(1, self.tree.num_slots // _SURVEYED)
        places = tf.range(0, self.tree.num_slots, stride)
        ids = tf.gather(self.tree.ids, places)
        held = tf.cast(ids != NEVER, tf.float32)
        ages = self._ages(self._written(ids))
        return tf.linalg.matvec(tf.one_hot(ages, _AGES), held, transpose_a=True)

    def _share_behind(self, ids):
        """Share of the time since the last correction that has passed since each row was written."""
        period = tf.maximum(self.clock - self.corrected, 1)
        share = tf.cast(self.clock - self._written(ids), tf.float32) / tf.cast(period, tf.float32)
        return tf.minimum(share, 1.0)

    # Refresh.

    def due(self):
        """bool scalar, whether it is time to encode the landmarks again."""
        return (tf.cast(self.clock - self.corrected, tf.float32) >= self.period) | self.jumped()

    def jumped(self):
        """bool scalar, whether the last write-back found the encoder to be another one."""
        return self.lurch > _JUMP

    def correct(self, fresh):
        """Carries the movement of the landmarks over to every row, by the change regression.

        A row that was written back in the meantime has less to catch up with: it is moved by the share
        of the time since the last correction that has passed since it was written.

        Args:
            fresh: float32 [landmarks, dim], the rows `landmarks`, encoded afresh; anything at an entry
                of `landmarks` that is -1.
        """
        fresh = tf.cast(fresh, tf.float32)
        known = self.tree.contains(self.landmarks)
        known &= tf.reduce_all(tf.math.is_finite(fresh), axis=1)
        before = tf.where(known[:, None], self.read(self.landmarks), 0.0)
        after = tf.where(known[:, None], fresh, 0.0)
        behind = tf.where(known, self._share_behind(self.landmarks), 0.0)
        period = tf.cast(tf.maximum(self.clock - self.corrected, 1), tf.float32)
        matrix, rbf = self._fitted(before, after, behind, period)
        if self.form == "full":
            self._move_rows(matrix, rbf)
        else:
            self._move_map(matrix)
        # A new landmark holds a prediction: what that is off by is no movement of this time.
        exact = known & (self._written(self.landmarks) == self.corrected)
        self._adapt(before, after, exact)
        for measured in (self.by_group, self.by_age, self.errors):
            measured.assign(_MEMORY * measured)
        self.write(tf.where(known, self.landmarks, NEVER), after)
        self.moment.assign(tf.zeros_like(self.moment))
        self.target.assign(tf.zeros_like(self.target))
        self.corrected.assign(self.clock)
        self.refreshes.assign_add(1)
        self._renew()

    def _fitted(self, before, after, behind, period):
        """(matrix, rbf): the linear part, and the RBF part or None."""
        matrix, rbf = tf.zeros([self.tree.dim + 1, self.tree.dim]), None
        if "linear" in self.kernel:
            # An observation over e write-backs saw e / period of the movement.
            others = regression.Sums(self.moment / period**2, self.target / period)
            matrix = regression.fit_change(before, after, behind, others)
            before = regression.apply_change(before, matrix, behind[:, None])
        if "rbf" in self.kernel:
            # What the linear part has left.
            rbf = regression.fit_rbf(before, after, behind)
        return matrix, rbf

    def _move_rows(self, matrix, rbf):
        def moved(rows, ids):
            behind = self._share_behind(ids)[:, None]
            rows = regression.apply_change(rows, matrix, behind)
            return rows if rbf is None else regression.apply_rbf(rows, rbf, behind)

        self._map_rows(moved)
        self.tree.mark_all()

    def _move_map(self, matrix):
        """Lets the map move all rows, and writes those anew that were written since the last time."""
        old = self.map
        new = affine.followed_by(old, matrix)
        ids = distinct(self.recent)
        behind = self._share_behind(ids)[:, None]
        there = affine.forward(old, self.tree.read(ids))
        moved = regression.apply_change(there, matrix, behind)

        def follow():
            self._set_map(new)
            late = tf.where(behind[:, 0] < 1.0, ids, NEVER)
            self.tree.write(late, affine.backward(new, moved))

        def start_again():
            # A map that can hardly be undone is of no use: the rows themselves are moved, once.
            self._fold(
                lambda rows, ids: regression.apply_change(
                    affine.forward(old, rows), matrix, self._share_behind(ids)[:, None]
                )
            )

        sound = affine.sound(new)
        do_if(sound, follow)
        do_if(~sound, start_again)

    def fold(self):
        """Lets every row store what it stands for; the map starts again from nothing."""
        # A SavedModel traces this in either form.
        if self.form == "full":
            return
        old, start = self.map, affine.identity(self.tree.dim)
        moved = tf.reduce_any(old.matrix != start.matrix) | tf.reduce_any(old.offset != start.offset)
        # All rows are copied for it: not after a build, or where nothing was corrected since.
        do_if(moved, lambda: self._fold(lambda rows, ids: affine.forward(old, rows)))

    def _fold(self, moved):
        self._map_rows(moved)
        self._set_map(affine.identity(self.tree.dim))
        self.tree.refresh()

    def _map_rows(self, moved):
        """Replaces all rows in place, a block at a time: memory does not grow with their number."""
        tree = self.tree
        total = tree.rows.shape[0]
        blocks = -(-total // _BLOCK)
        block = -(-total // blocks)

        def move(number):
            # Past the end the last slot comes again, with what it had before.
            slots = tf.minimum(number * block + tf.range(block), total - 1)
            ids = tf.gather(tree.ids, slots)
            after = moved(tree.read_slots(slots), ids)
            # Emptied slots stay zero: moved again and again, nothing would keep what they held finite.
            tree.write_slots(slots, tf.where((ids != NEVER)[:, None], after, 0.0))
            return (number + 1,)

        start = (tf.constant(0),)
        tf.while_loop(lambda number: number < blocks, move, start, parallel_iterations=1)

    def _adapt(self, before, after, exact):
        """Chooses the time to the next refresh, so that about as much moves until then as is wanted."""
        if self.refresh_every:
            return
        exact = tf.cast(exact, tf.float32)
        change = tf.reduce_sum(tf.reduce_sum((after - before) ** 2, axis=1) * exact)
        size = tf.reduce_sum(tf.reduce_sum(after**2, axis=1) * exact)
        wanted = tf.sqrt(_MOVEMENT * size / tf.maximum(change, 1e-12))
        told = (size > 0.0) & tf.math.is_finite(wanted)
        factor = tf.where(told, tf.clip_by_value(wanted, 0.5, 2.0), 1.0)
        self.period.assign(tf.clip_by_value(self.period * factor, _SHORTEST, _LONGEST))

    # Landmarks.

    def start(self, rows):
        """Takes the first landmarks.

        Args:
            rows: int32 NumPy array [up to landmarks], distinct row ids.
        """
        missing = self.num_landmarks - len(rows)
        self.landmarks.assign(
            tf.pad(tf.constant(rows, tf.int32), [[0, missing]], constant_values=NEVER)
        )

    def _renew(self):
        """Replaces half of the landmarks, in turn, so that all of the corpus is looked at in time."""
        number = max(1, self.num_landmarks // _RENEWED)
        place = (self.refreshes * number + tf.range(number)) % self.num_landmarks
        seed = tf.stack([self.seed + 3, self.refreshes])
        uniforms = draws.uniforms([3, number, _CANDIDATES], seed)
        slots = tf.cast(uniforms[0] * float(self.tree.num_slots), tf.int32)
        anywhere = tf.gather(self.tree.ids, tf.minimum(slots, self.tree.num_slots - 1))
        drawn = tf.cast(uniforms[1] * float(self.recent.shape[0]), tf.int32)
        used = tf.gather(self.recent, tf.minimum(drawn, self.recent.shape[0] - 1))
        kinds = LANDMARKS[:3] if self.choice == "mixed" else (self.choice,)
        bounds = [number * each // len(kinds) for each in range(len(kinds) + 1)]
        everyone = anywhere, self._free(anywhere)
        pools = {"uniform": everyone, "spread": everyone, "use": (used, self._free(used))}
        picked = []
        for kind, start, end in zip(kinds, bounds[:-1], bounds[1:], strict=True):
            candidates, keys = (each[start:end] for each in pools[kind])
            if kind == "spread":
                keys += self._far(candidates) + _gumbel(uniforms[2, start:end])
            picked.append(_largest(candidates, keys))
        new = tf.concat(picked, axis=0)
        # Where nothing of the kind is there: nothing written yet, say.
        new = tf.where(new == NEVER, _largest(*everyone), new)
        new = distinct(new)
        old = tf.gather(self.landmarks, place)
        self.landmarks.scatter_nd_update(place[:, None], tf.where(new == NEVER, old, new))

    def _free(self, candidates):
        """0 for a row that may become a landmark, -inf for what is no row or one already."""
        taken = is_among(tf.reshape(candidates, [1, -1]), self.landmarks[None])
        free = self.tree.contains(candidates) & ~tf.reshape(taken, tf.shape(candidates))
        return tf.where(free, 0.0, -float("inf"))

    def _far(self, candidates):
        """Log squared distance of candidates to the nearest landmark, as k-means++ draws by."""
        flat = tf.reshape(candidates, [-1])
        rows, centres = self.read(flat), self.read(self.landmarks)
        squares = regression.squared_distances(rows, centres)
        known = self.tree.contains(self.landmarks)
        nearest = tf.reduce_min(tf.where(known, squares, float("inf")), axis=1)
        nearest = tf.clip_by_value(nearest, 1e-12, 1e12)
        return tf.reshape(tf.math.log(nearest), tf.shape(candidates))

    # How far off the predictions are.

    def relative_error(self):
        """Estimate of the mean of |predicted - encoded|^2 / |encoded|^2 over all rows.

        What a step encodes was often written lately, most rows were not: rows are judged by those of
        the same age. Of the oldest there are the new landmarks, if nothing else.

        Returns:
            (overall, by_group): float32 scalar; float32 [groups], of what was written to each part of
            the tree, NaN where nothing was lately.
        """
        squared, size, number = tf.unstack(self.by_age, axis=1)
        share = tf.where(number > 0, self._share_of_ages(), 0.0)
        error = tf.where(number > 0, squared / tf.maximum(size, 1e-12), 0.0)
        overall = tf.math.divide_no_nan(tf.reduce_sum(error * share), tf.reduce_sum(share))
        squared, size, number = tf.unstack(self.by_group[: self.tree.num_groups], axis=1)
        return overall, tf.where(number > 0, squared / tf.maximum(size, 1e-12), math.nan)

    def clear(self):
        """Forgets all that was learned of rows."""
        self.written.assign(tf.fill(self.written.shape, _LONG_AGO))
        for variable in (self.landmarks, self.recent):
            variable.assign(tf.fill(variable.shape, NEVER))
        sums = self.moment, self.target, self.by_group, self.by_age, self.errors
        for variable in (*sums, self.lurch, self.jumps):
            variable.assign(tf.zeros_like(variable))
        self.corrected.assign(self.clock)
        if self.form == "lazy":
            self._set_map(affine.identity(self.tree.dim))


def check_options(kernel, form, landmarks, refresh_every):
    """Refuses, with ValueError, what `DynamicIndex` does not take for these."""
    if refresh_every is not None:
        checks.positive_int("refresh_every", refresh_every)
    checks.one_of("kernel", kernel, KERNELS)
    checks.one_of("form", form, ("auto", *FORMS))
    checks.one_of("landmarks", landmarks, LANDMARKS)
    if form == "lazy" and kernel != "linear":
        raise ValueError(
            f'The lazy form carries the linear kernel only: use form="full". Received: {kernel=}'
        )


def resolved_form(form, kernel, capacity):
    """The form that "auto" stands for. What is not linear moves every row by itself."""
    if form != "auto":
        return form
    return "lazy" if capacity >= _LAZY_FROM and kernel == "linear" else "full"


def default_landmarks(dim, capacity):
    """int, how many landmarks a regression of that dimension asks for."""
    return min(capacity, _PER_FEATURE * (dim + 1))


def distinct(ids):
    """Ids in descending order, each once: int32 of the same length; `NEVER` in place of repeats."""
    ids = tf.sort(ids, direction="DESCENDING")
    repeated = tf.concat([[False], ids[1:] == ids[:-1]], axis=0)
    return tf.where(repeated, NEVER, ids)


def _largest(candidates, keys):
    """Of each list the candidate of the largest key, `NEVER` if all are -inf: int32 [lists]."""
    best = tf.argmax(keys, axis=1, output_type=tf.int32)
    found = tf.math.is_finite(tf.reduce_max(keys, axis=1))
    return tf.where(found, tf.gather(candidates, best, batch_dims=1), NEVER)


def _gumbel(uniforms):
    return -tf.math.log(-tf.math.log(tf.clip_by_value(uniforms, 1e-7, 1.0 - 1e-7)))
