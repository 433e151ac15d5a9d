"""A tree that is searched and not changed: what an export and a layer for serving hold."""

import tensorflow as tf

from tf_dynidx.index.integers import state
from tf_dynidx.index.shapes import search_shape
from tf_dynidx.index.tree import LEAF_SIZE, plan, with_scratch
from tf_dynidx.ops.nodes import NEVER, Level
from tf_dynidx.ops.search import rise, tree_top_k

_TOGETHER = 16  # slots of a leaf that a search reads as one


class FixedTree(tf.Module):
    """Of a tree what a search reads, and nothing that is needed to change it.

    Rows lie in the order of the tree, and those of a leaf are read as a few runs, which takes about
    half the time of reading them one by one. That asks for variables that no operation writes or
    reads entry by entry: TensorFlow copies those whenever they are read whole. So they are read by
    `value()`, and replaced as a whole by `take`.

    Attributes:
        rows: [slots, dim], the row table, in the order of the tree.
        scales: float32 [slots], what rows are to be multiplied by; None where they are not.
        slots: int32 [capacity], the slot of each row id.
    """

    def __init__(self, dim, capacity, dtype=tf.float32, scaled=False, name=None):
        """Makes a tree without rows.

        Args:
            dim: int, the dimension of the encodings.
            capacity: int, the largest number of rows.
            dtype: of the row table: floating, or int8.
            scaled: bool, whether each row has a number that it is to be multiplied by.
        """
        super().__init__(name=name)
        self.dim, self.capacity = dim, capacity
        self.widths, self.dense = plan(capacity)
        sizes = with_scratch(self.widths)
        slots = sizes[0] * LEAF_SIZE
        self.rows = state(tf.zeros([slots, dim], dtype), "rows")
        self.scales = state(tf.zeros([slots]), "scales") if scaled else None
        self.ids = state(tf.fill([slots], NEVER), "ids")
        # The slot of each row id; that of an id that is no row is the first of scratch.
        self.slots = state(tf.fill([capacity], self.widths[0] * LEAF_SIZE), "slots")
        self.counts, self.centres, self.rises = [], [], []
        for level, size in enumerate(sizes[: self.dense + 1]):
            self.counts.append(state(tf.zeros([size], tf.int32), f"counts_{level}"))
            self.centres.append(state(tf.zeros([size, dim]), f"centres_{level}"))
            self.rises.append(state(tf.fill([size], -float("inf")), f"rises_{level}"))

    def take(self, tree, rows=None, scales=None):
        """Takes the rows of a tree, in place of those there were.

        Args:
            tree: `Tree` of the same capacity and dimension.
            rows: [slots, dim], what is stored in the order of its slots; default: what it stores.
            scales: float32 [slots], where rows are scaled.
        """
        self.rows.assign(tree.rows.read_value() if rows is None else rows)
        if self.scales is not None:
            self.scales.assign(scales)
        self.ids.assign(tree.ids)
        self.slots.assign(tree.slots[:-1])
        mine = zip(self.counts, self.centres, self.rises, strict=True)
        for (counts, centres, rises), level in zip(mine, tree.levels, strict=False):
            counts.assign(level.counts)
            centres.assign(level.moments[:, : self.dim])
            rises.assign(rise(level.counts, level.moments))

    def rows_scored(self, k, budget=None):
        """int, rows that a search scores for a query, at most."""
        return min(search_shape(self, k, budget).budget, self.capacity)

    def top_k(self, queries, k, budget=None, exclude=None):
        """The k best rows that are found; as `DynamicIndex.top_k`, but empty slots of a run count, too.

        Args:
            queries: float32 [queries, dim].
            k, budget: as for `DynamicIndex.search`.
            exclude: int32 [queries, excluded], row ids to be left out, padded with -1; default none.

        Returns:
            (scores, rows): float32 and int32 [queries, k], best first, of equals the lower id first;
            (-inf, -1) where there are no more.
        """
        levels = [Level(c, m, None, None) for c, m in zip(self.counts, self.centres, strict=True)]
        return tree_top_k(
            levels,
            self.rows.value(),
            self.ids.variable.value(),
            queries,
            k,
            search_shape(self, k, budget),
            exclude,
            None if self.scales is None else self.scales.value(),
            self.rises,
            together=_TOGETHER,
        )

    def contains(self, ids):
        """Whether each id is that of a row: bool of the same shape."""
        known = (ids >= 0) & (ids < self.capacity)
        return known & (self._slots_of(ids) < self.widths[0] * LEAF_SIZE)

    def read(self, ids):
        """The rows of ids: float32 [ids, dim]; anything for an id that is no row."""
        return read_rows(self.rows, self.scales, self._slots_of(ids))

    def _slots_of(self, ids):
        return tf.gather(self.slots, tf.clip_by_value(ids, 0, self.capacity - 1))


def read_rows(rows, scales, places):
    """What a table stands for at places.

    Args:
        rows: variable [rows, dim].
        scales: variable [rows], what they are to be multiplied by; or None.
        places: int32 [places].

    Returns:
        float32 [places, dim].
    """
    # From the value: a variable that is gathered from is copied whenever it is read whole again.
    found = tf.cast(tf.gather(rows.value(), places), tf.float32)
    return found if scales is None else found * tf.gather(scales.value(), places)[:, None]
