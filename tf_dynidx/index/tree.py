"""The tree: rows in leaves of fixed size, and the upkeep of leaves while rows move."""

import math

import tensorflow as tf

from tf_dynidx.ops import leaves as leaf_ops
from tf_dynidx.ops.leaves import NEVER

_FILL = 0.65  # share of a leaf's slots in use after a build: the rest is room for rows to move into
_SPARE = 0.25  # leaves kept empty, as a share of those in use, for splits
_NEIGHBOURS = 32  # leaves that a row may move to in one round: those nearest to its own
_CROWDED = 0.9  # share of slots in use above which a leaf is split
_SPARSE = 0.1  # share of slots in use below which a leaf is emptied into its neighbours


class Tree(tf.Module):
    """Rows of a table, kept in leaves: small groups of near neighbours, each a block of memory.

    One level of nodes over the rows. There are about 8 sqrt(capacity) leaves, so that scoring all of
    them and scoring the members of a few cost about the same. Every method below works on variables
    in place, has static shapes and may be called inside a `tf.function`, compiled by XLA or not.

    Row ids are the caller's: 0 to capacity - 1.
    """

    def __init__(self, dim, capacity, dtype=tf.float32, name=None):
        """Makes an empty tree.

        Args:
            dim: int, the dimension of the encodings.
            capacity: int, the largest number of rows.
            dtype: the dtype of the row table: float32, float16 or bfloat16. Statistics and scores are
                float32 whatever it is.
        """
        super().__init__(name=name)
        self.dim, self.capacity = dim, capacity
        depth = max(0, round(math.log2(8 * math.sqrt(capacity))))
        # Never more leaves than half the rows: a leaf of one row saves nothing.
        depth = min(depth, max(0, int(math.log2(max(1, capacity // 2)))))
        self.leaf_size = 8 * math.ceil(capacity / 2**depth / _FILL / 8)
        self.num_leaves = 2**depth + max(1, math.ceil(_SPARE * 2**depth))
        total = self.num_leaves + 1  # the last one is scratch

        def state(shape, dtype, name, fill=0):
            return tf.Variable(tf.fill(shape, tf.cast(fill, dtype)), trainable=False, name=name)

        self.rows = state([total, self.leaf_size, dim], dtype, "rows")
        self.ids = state([total, self.leaf_size], tf.int32, "ids", NEVER)
        self.counts = state([total], tf.int32, "counts")
        self.centres = state([total, dim], tf.float32, "centres")
        self.variances = state([total, dim], tf.float32, "variances")
        self.radii = state([total], tf.float32, "radii")
        self._scratch = self.num_leaves * self.leaf_size
        # Slot of each row id; the last entry stands for ids that are not rows.
        self.slots = state([capacity + 1], tf.int32, "slots", self._scratch)

    @property
    def leaves(self):
        """The state as `tf_dynidx.ops.leaves.Leaves`."""
        return leaf_ops.Leaves(
            self.rows, self.ids, self.counts, self.centres, self.variances, self.radii
        )

    @property
    def size(self):
        """int32 scalar, the number of rows held."""
        return tf.reduce_sum(self.counts)

    # Rows, by id.

    def places(self, ids):
        """Leaf and slot of each row id: int32 [ids, 2]; a scratch place for an id that is no row."""
        known = (ids >= 0) & (ids < self.capacity)
        slots = tf.gather(self.slots, tf.where(known, ids, self.capacity))
        return tf.stack([slots // self.leaf_size, slots % self.leaf_size], axis=1)

    def contains(self, ids):
        """Whether each id is a row: bool [ids]."""
        return self.places(ids)[:, 0] < self.num_leaves

    def read(self, ids):
        """The rows of the given ids: float32 [ids, dim]. An id that is no row reads anything."""
        return tf.cast(leaf_ops.gather_places(self.rows, self.places(ids)), tf.float32)

    def write(self, ids, vectors):
        """Overwrites rows where they are; an id that is no row is ignored.

        The statistics of their leaves are as before until `refresh` is called: estimates stay usable
        meanwhile, bounds do not.
        """
        places = self.places(ids)
        # Zeros to scratch: its statistics are computed with all others and must stay finite.
        vectors = tf.where(places[:, :1] < self.num_leaves, vectors, 0.0)
        self.rows.scatter_nd_update(places, tf.cast(vectors, self.rows.dtype))

    # Statistics.

    def refresh(self, leaves=None):
        """Recomputes centre, variance and radius of the given leaves (int32 [leaves]), or of all."""
        if leaves is None:
            centres, variances, radii = leaf_ops.statistics(self.rows, self.counts)
            self.centres.assign(centres)
            self.variances.assign(variances)
            self.radii.assign(radii)
            return
        centres, variances, radii = leaf_ops.statistics(
            tf.gather(self.rows, leaves), tf.gather(self.counts, leaves)
        )
        where = leaves[:, None]
        self.centres.scatter_nd_update(where, centres)
        self.variances.scatter_nd_update(where, variances)
        self.radii.scatter_nd_update(where, radii)

    # Structure.

    def build(self, ids, vectors):
        """Lays out rows in an empty tree: halved along the longest direction until they fit leaves.

        Args:
            ids: int32 [rows], distinct.
            vectors: float32 [rows, dim].
        """
        number = int(ids.shape[0])
        per_leaf = (_FILL + 0.1) * self.leaf_size  # so that a full capacity gives 2**depth leaves
        depth = max(0, math.ceil(math.log2(number / per_leaf)))
        width = math.ceil(number / 2**depth)
        # Every leaf gets the same number of places; the few left over hold copies, spread evenly,
        # which go the way of their originals and are dropped at the end.
        extra = 2**depth * width - number
        # In whole numbers: float32 knows no odd ones above 2**24, and would point past the end.
        copies = tf.cast(tf.range(extra, dtype=tf.int64) * number // max(extra, 1), tf.int32)
        members = tf.concat([tf.range(number), copies], axis=0)
        original = tf.concat([tf.ones(number, tf.bool), tf.zeros(extra, tf.bool)], axis=0)
        group = tf.gather(vectors, members)[None]
        members = tf.where(original, tf.gather(ids, members), NEVER)[None]
        for level in range(depth):
            order = leaf_ops.longest_first(group, tf.fill([2**level], group.shape[1]))
            half = [2 ** (level + 1), group.shape[1] // 2]
            group = tf.reshape(tf.gather(group, order, batch_dims=1), [*half, self.dim])
            members = tf.reshape(tf.gather(members, order, batch_dims=1), half)
        order = leaf_ops.keep_first(members != NEVER)
        group = tf.gather(group, order, batch_dims=1)
        members = tf.gather(members, order, batch_dims=1)
        pad = self.leaf_size - width
        self._store(
            tf.range(2**depth),
            tf.pad(group, [[0, 0], [0, pad], [0, 0]]),
            tf.pad(members, [[0, 0], [0, pad]], constant_values=NEVER),
        )
        self.refresh()

    def reroute(self, leaves):
        """Moves rows of the given leaves to a nearer leaf close by, where that has room.

        A leaf of very few rows is emptied, so that its slot is free for a split. Statistics are read
        as they stand and not changed: call `refresh` afterwards.

        Args:
            leaves: int32 [leaves], distinct.

        Returns:
            int32 scalar, how many rows moved.
        """
        rows, ids = tf.gather(self.rows, leaves), tf.gather(self.ids, leaves)
        counts = tf.gather(self.counts, leaves)
        norms = 0.5 * tf.reduce_sum(self.centres**2, axis=1)
        own_centres, own_norms = tf.gather(self.centres, leaves), tf.gather(norms, leaves)
        sparse = tf.cast(_SPARSE * self.leaf_size, tf.int32)
        open_to_all = (self.counts > sparse) & (self.counts < self.leaf_size)
        closeness = tf.matmul(own_centres, self.centres, transpose_b=True) - norms
        own = tf.one_hot(leaves, self.num_leaves + 1, on_value=True, off_value=False)
        closeness = tf.where(open_to_all & ~own, closeness, -float("inf"))
        reach, nearby = tf.math.top_k(closeness, min(_NEIGHBOURS, self.num_leaves))

        vectors = tf.cast(rows, tf.float32)
        there = tf.einsum("lsd,lnd->lsn", vectors, tf.gather(self.centres, nearby))
        there = there - tf.gather(norms, nearby)[:, None, :]
        there = tf.where(tf.math.is_finite(reach)[:, None, :], there, -float("inf"))
        here = tf.einsum("lsd,ld->ls", vectors, own_centres) - own_norms[:, None]
        here = tf.where((counts <= sparse)[:, None], -float("inf"), here)
        target = tf.gather(nearby, tf.argmax(there, axis=2, output_type=tf.int32), batch_dims=1)
        wanted = (ids != NEVER) & (tf.reduce_max(there, axis=2) > here + 1e-6)

        before = tf.convert_to_tensor(self.counts)
        target, wanted = tf.reshape(target, [-1]), tf.reshape(wanted, [-1])
        slot, accepted, _ = leaf_ops.places(target, wanted, before, self.leaf_size)
        rank = slot - tf.gather(before, target)
        gone = tf.reshape(accepted, ids.shape)
        staying = tf.where(gone, NEVER, ids)
        order = leaf_ops.keep_first(staying != NEVER)
        self._store(
            leaves,
            tf.gather(rows, order, batch_dims=1),
            tf.gather(staying, order, batch_dims=1),
        )
        self._enter(
            tf.reshape(ids, [-1]),
            tf.reshape(rows, [-1, self.dim]),
            target,
            tf.gather(self.counts, target) + rank,
            accepted,
        )
        return tf.reduce_sum(tf.cast(accepted, tf.int32))

    def split(self, number):
        """Halves up to `number` crowded leaves into empty ones. Call `refresh` afterwards."""
        live = self.counts[: self.num_leaves]
        number = min(number, self.num_leaves)
        fullest, crowded = tf.math.top_k(live, number)
        emptiest, empty = tf.math.top_k(-live, number)
        do = (fullest >= int(_CROWDED * self.leaf_size)) & (emptiest == 0)
        rows, ids = tf.gather(self.rows, crowded), tf.gather(self.ids, crowded)
        order = leaf_ops.longest_first(rows, fullest)
        rows, ids = tf.gather(rows, order, batch_dims=1), tf.gather(ids, order, batch_dims=1)
        upper = tf.sequence_mask(fullest // 2, self.leaf_size)
        scratch = self.num_leaves
        self._store(tf.where(do, crowded, scratch), rows, tf.where(upper & do[:, None], ids, NEVER))
        lower = tf.where(upper | ~do[:, None], NEVER, ids)
        order = leaf_ops.keep_first(lower != NEVER)
        self._store(
            tf.where(do, empty, scratch),
            tf.gather(rows, order, batch_dims=1),
            tf.gather(lower, order, batch_dims=1),
        )

    def insert(self, ids, vectors):
        """Puts new rows into the nearest leaf that has room. Call `refresh` afterwards.

        Args:
            ids: int32 [rows], distinct and not in the tree; `NEVER` is ignored.
            vectors: float32 [rows, dim].

        Returns:
            bool [rows], which rows found room. The others are not in the tree: split and try again.
        """
        counts = tf.convert_to_tensor(self.counts)
        occupied = (counts > 0) & (counts < self.leaf_size)
        roomy = tf.range(self.num_leaves + 1) < self.num_leaves
        usable = tf.where(tf.reduce_any(occupied), occupied, roomy & (counts < self.leaf_size))
        target = leaf_ops.nearest(vectors, self.centres, usable)
        slot, accepted, _ = leaf_ops.places(target, ids != NEVER, counts, self.leaf_size)
        self._enter(ids, tf.cast(vectors, self.rows.dtype), target, slot, accepted)
        return accepted

    def remove(self, ids, leaves):
        """Takes rows out. Call `refresh` afterwards.

        Args:
            ids: int32 [rows], rows of the tree; `NEVER` is ignored.
            leaves: int32 [leaves], distinct, at least all leaves that hold those rows.
        """
        self.ids.scatter_nd_update(self.places(ids), tf.fill(tf.shape(ids), NEVER))
        known = tf.where(ids < 0, self.capacity, ids)
        self.slots.scatter_nd_update(known[:, None], tf.fill(tf.shape(ids), self._scratch))
        rows, left = tf.gather(self.rows, leaves), tf.gather(self.ids, leaves)
        order = leaf_ops.keep_first(left != NEVER)
        self._store(leaves, tf.gather(rows, order, batch_dims=1), tf.gather(left, order, batch_dims=1))

    def clear(self):
        """Forgets all rows."""
        for variable in (self.counts, self.centres, self.variances, self.radii):
            variable.assign(tf.zeros_like(variable))
        self.ids.assign(tf.fill(self.ids.shape, NEVER))
        self.slots.assign(tf.fill(self.slots.shape, self._scratch))

    def _store(self, leaves, rows, ids):
        """Replaces the contents of whole leaves; the live rows come first."""
        where = leaves[:, None]
        self.rows.scatter_nd_update(where, tf.cast(rows, self.rows.dtype))
        self.ids.scatter_nd_update(where, ids)
        held = tf.reduce_sum(tf.cast(ids != NEVER, tf.int32), axis=1)
        self.counts.scatter_nd_update(where, tf.where(leaves < self.num_leaves, held, 0))
        slots = leaves[:, None] * self.leaf_size + tf.range(self.leaf_size)
        self._point(tf.reshape(ids, [-1]), tf.reshape(slots, [-1]))

    def _enter(self, ids, rows, leaves, slots, accepted):
        """Writes single rows into free slots of leaves."""
        leaves = tf.where(accepted, leaves, self.num_leaves)
        slots = tf.where(accepted, slots, 0)
        place = tf.stack([leaves, slots], axis=1)
        self.rows.scatter_nd_update(place, rows)
        self.ids.scatter_nd_update(place, tf.where(accepted, ids, NEVER))
        arrived = tf.cast(accepted, tf.int32)
        self.counts.scatter_nd_add(leaves[:, None], arrived)
        self._point(tf.where(accepted, ids, NEVER), leaves * self.leaf_size + slots)

    def _point(self, ids, slots):
        """Notes the slot of each id; `NEVER` keeps pointing to scratch."""
        slots = tf.where(ids == NEVER, self._scratch, slots)
        where = tf.where(ids == NEVER, self.capacity, ids)
        self.slots.scatter_nd_update(where[:, None], slots)
