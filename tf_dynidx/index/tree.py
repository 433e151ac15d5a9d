"""The tree: rows in leaves of fixed size, nodes over the leaves, and what keeps them true."""

import math

import tensorflow as tf

from tf_dynidx.index.integers import state
from tf_dynidx.ops import grouping, nodes, routing
from tf_dynidx.ops.in_place import do_if
from tf_dynidx.ops.nodes import NEVER, Level

LEAF_SIZE = 32  # slots of a leaf: few enough that its mass is read well off its statistics
FANOUT = 16  # children of an inner node
GROUP = LEAF_SIZE * FANOUT  # slots of a node of level 1, which is what is regrouped at a time
_FILL = 0.55  # rows that the tree is made for, as a share of its slots: the rest is room to move
_FILL_DEEP = 0.5  # the same where there are nodes above level 1, which are not all filled either
_DENSE = 2048  # nodes that a query scores all at once, at least; and
_DENSE_GROWTH = 4  # this many times sqrt(capacity), so that no level below is read too often
CROWDED_LEAF = LEAF_SIZE - 1  # rows from which on the leaf's group is regrouped
_ROUTED_LEAF = CROWDED_LEAF - 1  # rows that rerouting leaves a leaf with, at most: not crowded
_REGROUPED_LEAF = LEAF_SIZE - 3  # rows that a leaf has at most after regrouping
CROWDED_GROUP = FANOUT * _REGROUPED_LEAF  # rows above which a group is halved
_SPARSE_GROUP = GROUP // 20  # rows below which a group is given up and its rows go elsewhere
_NEAR = 4  # groups whose leaves a row may move to
_LLOYD = 5  # k-means iterations of a regrouping
_BLOCK = 256  # groups that are read at a time, where all are


class Tree(tf.Module):
    """Rows of a table in leaves of near neighbours, and levels of nodes over them.

    Leaf i holds the slots 32 i to 32 i + 31, its live rows first; node i of level l + 1 holds the nodes
    16 i to 16 i + 15 of level l: members of a node of any level are contiguous in slots, and no
    pointers are kept. The number of levels follows from the capacity: there are as many as it takes for
    one to have no more nodes than one matrix product scores easily. Every method works on variables in
    place, has static shapes and may be called inside a `tf.function`, compiled by XLA or not.

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
        self.widths, self.dense = self.plan(capacity)
        sizes = with_scratch(self.widths)
        slots = sizes[0] * LEAF_SIZE

        def filled(shape, dtype, name, fill=0):
            return state(tf.fill(shape, tf.cast(fill, dtype)), name)

        self.rows = filled([slots, dim], dtype, "rows")
        self.ids = filled([slots], tf.int32, "ids", NEVER)
        # Slot of each row id; the last entry stands for ids that are not rows.
        self.slots = filled([capacity + 1], tf.int32, "slots", self.num_slots)
        self.counts = [filled([size], tf.int32, f"counts_{i}") for i, size in enumerate(sizes)]
        self.moments = [
            filled([size, 2 * dim], tf.float32, f"moments_{i}") for i, size in enumerate(sizes)
        ]
        self.radii = [filled([size], tf.float32, f"radii_{i}") for i, size in enumerate(sizes)]
        self.representatives = [
            filled([size], tf.int32, f"representatives_{i}") for i, size in enumerate(sizes)
        ]
        # Whether a row has been overwritten since it was last put where it belongs.
        self.moved = filled([capacity + 1], tf.bool, "moved")

    @property
    def levels(self):
        """The nodes, from the leaves up: list of `tf_dynidx.ops.nodes.Level`."""
        fields = zip(self.counts, self.moments, self.radii, self.representatives, strict=True)
        return [Level(*each) for each in fields]

    @property
    def num_slots(self):
        """int, the number of slots for rows, and the first slot of scratch."""
        return self.widths[0] * LEAF_SIZE

    @property
    def num_groups(self):
        """int, the number of nodes of level 1."""
        return self.widths[1]

    @property
    def size(self):
        """int32 scalar, the number of rows held."""
        return tf.reduce_sum(self.counts[-1])

    @staticmethod
    def plan(capacity):
        """Nodes of each level, from the leaves up; and the level that a query scores all of."""
        return plan(capacity)

    # Rows, by id.

    def slots_of(self, ids):
        """Slot of each row id, int32 of the same shape; a scratch slot for an id that is no row."""
        known = (ids >= 0) & (ids < self.capacity)
        return tf.gather(self.slots, tf.where(known, ids, self.capacity))

    def contains(self, ids):
        """Whether each id is a row: bool of the same shape."""
        return self.slots_of(ids) < self.num_slots

    def read(self, ids):
        """The rows of the given ids: float32 [ids, dim]. An id that is no row reads anything."""
        return self.read_slots(self.slots_of(ids))

    def read_slots(self, slots):
        """What slots hold: float32 [slots, dim]. An empty slot reads anything."""
        return tf.cast(tf.gather(self.rows, slots), tf.float32)

    def occupied(self, slots):
        """Whether slots hold a row: bool of the same shape."""
        return tf.gather(self.ids, slots) != NEVER

    def write(self, ids, vectors):
        """Overwrites rows where they are; an id that is no row is ignored.

        The statistics of their leaves are as before until `refresh` is called: estimates stay usable
        meanwhile, bounds do not.
        """
        slots = self.slots_of(ids)
        # Zeros to scratch: its statistics are computed with all others and must stay finite.
        self.write_slots(slots, tf.where(slots[:, None] < self.num_slots, vectors, 0.0))
        self.mark(ids, slots < self.num_slots)

    def write_slots(self, slots, vectors):
        """Overwrites what slots hold."""
        _scatter(self.rows, slots, tf.cast(vectors, self.rows.dtype))

    # Statistics.

    def refresh(self):
        """Recomputes all statistics."""
        leaves, tops = self._measure_all()
        for mine, new in zip((*self.levels[0], *self.levels[1]), (*leaves, *tops), strict=True):
            mine.assign(new)
        self.refresh_above()

    def refresh_groups(self, groups):
        """Recomputes the statistics of some groups and their leaves, measured row by row.

        Args:
            groups: int32 [groups], nodes of level 1, scratch included. Once all are refreshed that have
                changed, call `refresh_above`.
        """
        leaves, tops = self._measure(groups)
        children = _leaves_of(groups)
        for mine, new in zip(self.levels[0], leaves, strict=True):
            _scatter(mine, children, new)
        for mine, new in zip(self.levels[1], tops, strict=True):
            _scatter(mine, groups, new)

    def refresh_leaves(self, leaves):
        """Recomputes the statistics of some leaves, measured row by row. Then call `refresh_above`.

        Args:
            leaves: int32 [leaves], scratch included; repeats are harmless.
        """
        slots = leaves[:, None] * LEAF_SIZE + tf.range(LEAF_SIZE)
        new = nodes.statistics(tf.gather(self.rows, slots), tf.gather(self.ids, slots) != NEVER)
        new = new._replace(representatives=new.representatives + leaves * LEAF_SIZE)
        for mine, value in zip(self.levels[0], new, strict=True):
            _scatter(mine, leaves, value)

    def refresh_above(self, from_leaves=False):
        """Recomputes the statistics of the nodes above level 1 from those of their children.

        Centre and variance exactly; the radius is the least that the children's centres and radii
        guarantee.

        Args:
            from_leaves: bool, whether those of level 1 too.
        """
        for below in range(0 if from_leaves else 1, len(self.widths) - 1):
            self._combine(below)

    def _measure(self, groups):
        """Statistics of groups: `Level`s of their leaves and of themselves, slots counted from 0."""
        number = tf.shape(groups)[0]
        first = groups * GROUP
        slots = first[:, None] + tf.range(GROUP)
        rows, live = tf.gather(self.rows, slots), tf.gather(self.ids, slots) != NEVER
        leaves = nodes.statistics(
            tf.reshape(rows, [-1, LEAF_SIZE, self.dim]), tf.reshape(live, [-1, LEAF_SIZE])
        )
        counts, moments = nodes.combined(
            tf.reshape(leaves.counts, [number, FANOUT]),
            tf.reshape(leaves.moments, [number, FANOUT, 2 * self.dim]),
        )
        radii, representatives = nodes.reach(rows, live, moments[:, : self.dim])
        start = tf.reshape(first[:, None] + tf.range(FANOUT) * LEAF_SIZE, [-1])
        leaves = leaves._replace(representatives=leaves.representatives + start)
        return leaves, Level(counts, moments, radii, representatives + first)

    def _measure_all(self):
        """`_measure` of all groups, some at a time: memory does not grow with the number of rows."""
        total = self.counts[1].shape[0]
        block = min(_BLOCK, total)
        blocks = -(-total // block)
        if blocks == 1:
            return self._measure(tf.range(total))
        # Past the end the last group is measured again, and dropped.
        signature = tuple(
            Level(*(tf.TensorSpec([block * times, *field.shape[1:]], field.dtype) for field in level))
            for level, times in zip(self.levels[:2], (FANOUT, 1), strict=True)
        )
        measured = tf.map_fn(
            lambda start: self._measure(tf.minimum(start + tf.range(block), total - 1)),
            tf.range(blocks) * block,
            fn_output_signature=signature,
            parallel_iterations=1,
        )
        return tuple(
            Level(
                *(
                    tf.reshape(field, [-1, *mine.shape[1:]])[: mine.shape[0]]
                    for field, mine in zip(level, own, strict=True)
                )
            )
            for level, own in zip(measured, self.levels[:2], strict=True)
        )

    def _combine(self, below):
        """Statistics of level `below` + 1 from those of level `below`."""
        parents = self.counts[below + 1].shape[0]
        mine, above = self.levels[below], self.levels[below + 1]
        counts = tf.reshape(mine.counts, [parents, FANOUT])
        moments = tf.reshape(mine.moments, [parents, FANOUT, 2 * self.dim])
        total, combined = nodes.combined(counts, moments)
        away = tf.norm(moments[:, :, : self.dim] - combined[:, None, : self.dim], axis=2)
        reach = away + tf.reshape(mine.radii, [parents, FANOUT])
        live = counts > 0
        nearest = tf.argmin(tf.where(live, away, float("inf")), axis=1, output_type=tf.int32)
        candidates = tf.reshape(mine.representatives, [parents, FANOUT])
        above.counts.assign(total)
        above.moments.assign(combined)
        above.radii.assign(tf.reduce_max(tf.where(live, reach, 0.0), axis=1))
        above.representatives.assign(tf.gather(candidates, nearest, batch_dims=1))

    def off_centre(self, groups):
        """How far rows lie from the centre of their leaf, as the statistics have it.

        Args:
            groups: int32 [groups], nodes of level 1, scratch included.

        Returns:
            float32 [groups, 512], squared distances slot by slot; -1 where there is no row.
        """
        rows, ids = self._contents(groups)
        rows = tf.reshape(tf.cast(rows, tf.float32), [-1, LEAF_SIZE, self.dim])
        leaves = _leaves_of(groups)
        away = tf.reduce_sum((rows - nodes.centres(self.moments[0], leaves)[:, None, :]) ** 2, axis=2)
        return tf.where(ids == NEVER, -1.0, tf.reshape(away, [-1, GROUP]))

    def mark(self, ids, moved):
        """Notes whether rows (int32 [ids]) have moved: bool [ids]. An id that is no row is ignored."""
        known = (ids >= 0) & (ids < self.capacity)
        _scatter(self.moved, tf.where(known, ids, self.capacity), moved)

    def mark_all(self):
        """Notes that all rows have moved."""
        self.moved.assign(self.slots < self.num_slots)

    # Structure.

    def fill(self, groups, rows, ids):
        """Replaces what groups hold; their leaves' live rows come first.

        Args:
            groups: int32 [groups], nodes of level 1, distinct but for scratch.
            rows: float [groups, 512, dim].
            ids: int32 [groups, 512], `NEVER` where there is no row.
        """
        leaves = _leaves_of(groups)
        self._store(
            leaves,
            tf.reshape(rows, [-1, LEAF_SIZE, self.dim]),
            tf.reshape(ids, [-1, LEAF_SIZE]),
        )

    def regroup(self, groups, do=None):
        """Puts the rows of groups into their leaves anew, by k-means. Call `refresh` afterwards.

        Args:
            groups: int32 [groups], nodes of level 1, distinct.
            do: bool [groups], which ones; default all.
        """
        rows, ids = self._contents(groups)
        rows, ids = regrouped(rows, ids)
        if do is not None:
            groups = tf.where(do, groups, self.num_groups)
            ids = tf.where(do[:, None], ids, NEVER)
        self.fill(groups, rows, ids)

    def halve(self, groups, empty, do):
        """Moves half of the rows of groups, cut across the longest direction, into empty ones.

        Rows lie in the order of that direction, as many in a leaf as fit: call `regroup` afterwards.

        Args:
            groups, empty: int32 [groups], distinct nodes of level 1.
            do: bool [groups], which ones.
        """
        rows, ids = self._contents(groups)
        live = ids != NEVER
        direction = grouping.principal_direction(rows, live)
        along = tf.einsum("gsd,gd->gs", tf.cast(rows, tf.float32), direction)
        order = tf.argsort(tf.where(live, along, -float("inf")), axis=1, direction="DESCENDING")
        number = tf.reduce_sum(tf.cast(live, tf.int32), axis=1)[:, None]
        half = number // 2
        for there, first, end in ((groups, tf.zeros_like(half), half), (empty, half, number)):
            place = first + tf.range(GROUP)
            mine = tf.gather(order, tf.minimum(place, GROUP - 1), batch_dims=1)
            kept = do[:, None] & (place < end)
            self.fill(
                tf.where(do, there, self.num_groups),
                tf.gather(rows, mine, batch_dims=1),
                tf.where(kept, tf.gather(ids, mine, batch_dims=1), NEVER),
            )

    def tidy(self, number):
        """Halves crowded groups; regroups the halves and groups with a crowded leaf, up to `number`.

        A crowded group is halved into an empty one under the same node of level 2, where there are
        such nodes and it has one; if not, it stays, and its rows find room elsewhere. Call `refresh`
        afterwards.

        Returns:
            int32 [groups], the groups that were changed; the scratch group stands in for others.
        """
        number = min(max(2, number), self.num_groups)
        counts = tf.reduce_sum(self._leaf_counts(), axis=1)
        region = FANOUT if len(self.widths) > 2 else self.num_groups
        regions = tf.reshape(counts, [-1, region])
        pairs = max(1, number // 2)  # so that all halves are regrouped
        fullest, crowded = tf.math.top_k(counts, pairs)
        mine = crowded // region
        earlier = tf.linalg.band_part(tf.ones([pairs, pairs], tf.int32), -1, 0) - tf.eye(
            pairs, dtype=tf.int32
        )
        same = tf.cast(mine[:, None] == mine[None, :], tf.int32)
        rank = tf.reduce_sum(same * earlier, axis=1)  # of a crowded group among those of its region
        order = tf.argsort(regions, axis=1, stable=True)  # empty ones first
        flat = tf.reshape(order, [-1])
        inside = tf.gather(flat, mine * region + tf.minimum(rank, region - 1))
        empty = mine * region + inside
        free = (rank < region) & (tf.gather(counts, empty) == 0)
        halved = free & (fullest > CROWDED_GROUP)
        do_if(tf.reduce_any(halved), lambda: self.halve(crowded, empty, halved))

        counts = self._leaf_counts()  # as halving has left them
        loosenable = tf.reduce_sum(counts, axis=1) <= CROWDED_GROUP
        largest = tf.where(loosenable, tf.reduce_max(counts, axis=1), 0)
        halves, cut = tf.concat([crowded, empty], axis=0), tf.concat([halved, halved], axis=0)
        first = LEAF_SIZE * tf.cast(cut, tf.int32)  # the halves, before all others
        largest = tf.tensor_scatter_nd_add(largest, halves[:, None], first)
        fullest, groups = tf.math.top_k(largest, number)
        loose = fullest >= CROWDED_LEAF
        do_if(tf.reduce_any(loose), lambda: self.regroup(groups, loose))
        changed = tf.concat([halves, groups], axis=0)
        return tf.where(tf.concat([cut, loose], axis=0), changed, self.num_groups)

    def _leaf_counts(self):
        """Rows of each group's leaves as they are now, whatever the statistics say: [groups, 16]."""
        return tf.reshape(self.counts[0], [-1, FANOUT])[: self.num_groups]

    def reroute(self, leaves, near=_NEAR):
        """Moves rows of the given leaves to a nearer leaf close by, where that has room.

        Close by are the leaves of the groups nearest to the leaf's own centre. A group of very few
        rows gives them all away, so that it is free for another to be halved into. Statistics are read
        as they stand and not changed: call `refresh` afterwards.

        Args:
            leaves: int32 [leaves], distinct but for scratch ones.
            near: int, how many groups count as close by.

        Returns:
            int32 scalar, how many rows moved.
        """
        number = tf.shape(leaves)[0]
        slots = leaves[:, None] * LEAF_SIZE + tf.range(LEAF_SIZE)
        ids = tf.gather(self.ids, slots)
        rows = tf.cast(tf.gather(self.rows, slots), tf.float32)
        centres = nodes.centres(self.moments[0], leaves)
        sparse = tf.gather(self._sparse_groups(), leaves // FANOUT)
        nearby = self._leaves_near(centres, near)
        elsewhere = nearby // FANOUT != leaves[:, None] // FANOUT
        usable = self._usable(nearby) & (nearby != leaves[:, None]) & (elsewhere | ~sparse[:, None])
        there = self._closeness(rows, nearby)  # [leaves, 32, nearby]
        there = tf.where(usable[:, None, :], there, -float("inf"))
        here = self._closeness(rows, leaves[:, None])[:, :, 0]
        here = tf.where(sparse[:, None], -float("inf"), here)
        target = tf.gather(nearby, nodes.first_of_largest(there), batch_dims=1)
        wanted = (ids != NEVER) & (tf.reduce_max(there, axis=2) > here + 1e-6)
        flat = [number * LEAF_SIZE]
        return self._transfer(
            tf.reshape(ids, flat),
            tf.reshape(rows, [-1, self.dim]),
            leaves,
            tf.reshape(target, flat),
            tf.reshape(wanted, flat),
            _ROUTED_LEAF,
        )

    def move(self, ids):
        """Moves single rows to the nearest leaf of the whole tree, where that has room.

        Args:
            ids: int32 [rows], distinct rows of the tree; `NEVER` is ignored.

        Returns:
            int32 scalar, how many rows changed leaf; all count as in place now. Call `refresh`
            afterwards.
        """
        rows = self.read(ids)
        leaves = self.slots_of(ids) // LEAF_SIZE
        target, closeness = self._nearest_with_room(rows)
        here = self._closeness(rows[:, None, :], leaves[:, None])[:, 0, 0]
        wanted = (ids != NEVER) & (closeness > here + 1e-6)
        self.mark(ids, tf.zeros_like(wanted))
        return self._transfer(ids, rows, leaves, target, wanted, LEAF_SIZE)

    def insert(self, ids, vectors):
        """Puts new rows into the nearest leaf that has room. Call `refresh` afterwards.

        Args:
            ids: int32 [rows], distinct and not in the tree; `NEVER` is ignored.
            vectors: float32 [rows, dim].

        Returns:
            bool [rows], which rows found room. The others are not in the tree: tidy and try again.
        """
        target, closeness = self._nearest_with_room(vectors)
        wanted = (ids != NEVER) & (closeness > -float("inf"))
        slot, accepted, _ = nodes.places(target, wanted, self.counts[0], LEAF_SIZE)
        self._enter(ids, vectors, target, slot, accepted)
        return accepted

    def remove(self, ids):
        """Takes rows out. Call `refresh` afterwards.

        Args:
            ids: int32 [rows], rows of the tree; `NEVER` is ignored.
        """
        slots = self.slots_of(ids)
        _scatter(self.ids, slots, tf.fill(tf.shape(ids), NEVER))
        self._point(ids, tf.fill(tf.shape(ids), self.num_slots))
        self._compact(slots // LEAF_SIZE)
        self.mark(ids, tf.zeros_like(ids, tf.bool))

    def clear(self):
        """Forgets all rows."""
        for level in self.levels:
            for variable in level:
                variable.assign(tf.zeros_like(variable))
        self.moved.assign(tf.zeros_like(self.moved))
        self.ids.assign(tf.fill(self.ids.shape, NEVER))
        self.slots.assign(tf.fill(self.slots.shape, self.num_slots))

    # Finding leaves.

    def _leaves_near(self, vectors, near=_NEAR):
        """The leaves of the groups nearest to each vector: int32 [vectors, 16 * near]."""
        groups = routing.nearest_nodes(self.levels, vectors, 1, near, FANOUT, GROUP)
        leaves = groups[:, :, None] * FANOUT + tf.range(FANOUT)
        return tf.reshape(leaves, [tf.shape(vectors)[0], leaves.shape[1] * FANOUT])

    def _usable(self, leaves):
        """Whether rows may be rerouted to leaves: those have rows, and room, and are to be kept."""
        counts = tf.gather(self.counts[0], leaves)
        sparse = tf.gather(self._sparse_groups(), leaves // FANOUT)
        return (counts > 0) & (counts < _ROUTED_LEAF) & ~sparse

    def _sparse_groups(self):
        counts = self.counts[1]
        sparse = counts < _SPARSE_GROUP
        # Somewhere rows must be able to go.
        return sparse & tf.reduce_any(~sparse)

    def _closeness(self, rows, leaves):
        """Larger is nearer: y.mu - |mu|^2 / 2. [n, rows, dim] and [n, leaves]: [n, rows, leaves]."""
        centres = nodes.centres(self.moments[0], leaves)
        half = 0.5 * tf.reduce_sum(centres**2, axis=2)
        return tf.matmul(rows, centres, transpose_b=True) - half[:, None, :]

    def _nearest_with_room(self, vectors):
        """The nearest leaf with room for each vector, and its closeness: int32, float32 [vectors]."""
        leaves = self._leaves_near(vectors)
        counts = tf.gather(self.counts[0], leaves)
        closeness = self._closeness(vectors[:, None, :], leaves)[:, 0]
        # An empty leaf has no centre: it comes after all others.
        closeness = tf.where(counts > 0, closeness, -1e30)
        room = (counts < LEAF_SIZE) & (leaves < self.widths[0])
        closeness = tf.where(room, closeness, -float("inf"))
        best = tf.argmax(closeness, axis=1, output_type=tf.int32)
        return tf.gather(leaves, best, batch_dims=1), tf.reduce_max(closeness, axis=1)

    # Writing.

    def _contents(self, groups):
        slots = groups[:, None] * GROUP + tf.range(GROUP)
        return tf.gather(self.rows, slots), tf.gather(self.ids, slots)

    def _transfer(self, ids, rows, leaves, target, wanted, size):
        """Moves single rows from `leaves`, which hold all of them, to leaves below `size` rows."""
        before = tf.identity(self.counts[0])
        slot, accepted, _ = nodes.places(target, wanted, before, size)
        rank = slot - tf.gather(before, target)
        old = tf.where(accepted, self.slots_of(ids), self.num_slots)
        _scatter(self.ids, old, tf.fill(tf.shape(old), NEVER))
        self._compact(leaves)
        slot = tf.where(accepted, tf.gather(self.counts[0], target) + rank, 0)
        self._enter(ids, rows, target, slot, accepted)
        return tf.reduce_sum(tf.cast(accepted, tf.int32))

    def _compact(self, leaves):
        """Brings the live rows of leaves to the front; the same leaf may be given several times."""
        slots = leaves[:, None] * LEAF_SIZE + tf.range(LEAF_SIZE)
        ids = tf.gather(self.ids, slots)
        order = nodes.keep_first(ids != NEVER)
        rows = tf.gather(self.rows, tf.gather(slots, order, batch_dims=1))
        self._store(leaves, rows, tf.gather(ids, order, batch_dims=1))

    def _store(self, leaves, rows, ids):
        """Replaces the contents of whole leaves; the live rows come first."""
        slots = tf.reshape(leaves[:, None] * LEAF_SIZE + tf.range(LEAF_SIZE), [-1])
        ids = tf.where(leaves[:, None] < self.widths[0], ids, NEVER)
        # Zeros where there is no row: sums over slots may weigh them with zero, but not if infinite.
        rows = tf.where((ids != NEVER)[:, :, None], rows, tf.zeros([], rows.dtype))
        _scatter(self.rows, slots, tf.cast(tf.reshape(rows, [-1, self.dim]), self.rows.dtype))
        held = tf.reduce_sum(tf.cast(ids != NEVER, tf.int32), axis=1)
        ids = tf.reshape(ids, [-1])
        _scatter(self.ids, slots, ids)
        _scatter(self.counts[0], leaves, held)
        self._point(ids, slots)

    def _enter(self, ids, rows, leaves, slots, accepted):
        """Writes single rows into free slots of leaves."""
        leaves = tf.where(accepted, leaves, self.widths[0])
        place = tf.where(accepted, leaves * LEAF_SIZE + slots, self.num_slots)
        rows = tf.where(accepted[:, None], rows, 0.0)
        _scatter(self.rows, place, tf.cast(rows, self.rows.dtype))
        ids = tf.where(accepted, ids, NEVER)
        _scatter(self.ids, place, ids)
        arrived = tf.cast(accepted, tf.int32)
        self.counts[0].scatter_add(tf.IndexedSlices(arrived, leaves))
        self._point(ids, place)

    def _point(self, ids, slots):
        """Notes the slot of each id; `NEVER` keeps pointing to scratch."""
        slots = tf.where(ids == NEVER, self.num_slots, slots)
        _scatter(self.slots, tf.where(ids == NEVER, self.capacity, ids), slots)


@tf.function(autograph=False)  # traced once for all that regroup as many rows, of whatever tree
def regrouped(rows, ids):
    """Rows of groups, put into the groups' leaves by k-means.

    Args:
        rows: float [groups, slots, dim].
        ids: int32 [groups, slots], `NEVER` where there is no row; at most 512 are.

    Returns:
        (rows, ids): [groups, 512, dim] and [groups, 512], 32 slots a leaf, the live ones first.
    """
    live = ids != NEVER
    number = tf.reduce_sum(tf.cast(live, tf.int32), axis=1)
    target = grouping.group(rows, live, FANOUT, _REGROUPED_LEAF, _LLOYD)
    # More rows than fit loosely are left in the order that they come in.
    rank = tf.cumsum(tf.cast(live, tf.int32), axis=1) - 1
    target = tf.where((number <= CROWDED_GROUP)[:, None], target, rank // LEAF_SIZE)
    place = grouping.lay_out(target, live, FANOUT, LEAF_SIZE)
    rows = tf.pad(rows, [[0, 0], [0, 1], [0, 0]])
    ids = tf.pad(ids, [[0, 0], [0, 1]], constant_values=NEVER)
    return tf.gather(rows, place, batch_dims=1), tf.gather(ids, place, batch_dims=1)


def plan(capacity):
    """Nodes of each level, from the leaves up; and the level that a query scores all of."""
    dense = max(_DENSE, _DENSE_GROWTH * math.isqrt(capacity))
    widths = [math.ceil(capacity / (GROUP * _FILL))]
    if widths[0] > dense:
        widths = [math.ceil(capacity / (GROUP * FANOUT * _FILL_DEEP))]
        while widths[-1] > dense:
            widths.append(math.ceil(widths[-1] / FANOUT))
        top = widths[-1]
        widths = [top * FANOUT**below for below in range(len(widths), -1, -1)]
    widths = [widths[0] * FANOUT, *widths]
    return widths, next(level for level, width in enumerate(widths) if width <= dense)


def with_scratch(widths):
    """Places for nodes at each level: one node more at the top, and what is under it, for scratch."""
    return [width + FANOUT ** (len(widths) - 1 - level) for level, width in enumerate(widths)]


def _leaves_of(groups):
    """int32 [16 * groups], the leaves of nodes of level 1, side by side."""
    return tf.reshape(groups[:, None] * FANOUT + tf.range(FANOUT), [-1])


def _scatter(variable, indices, values):
    variable.scatter_update(tf.IndexedSlices(values, indices))
