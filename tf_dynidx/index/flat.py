"""Rows without an order: what stands in for a tree where every query looks at all rows."""

import math

import tensorflow as tf

from tf_dynidx.index.tree import FANOUT, GROUP, LEAF_SIZE, Tree
from tf_dynidx.ops.nodes import NEVER


class Flat(Tree):
    """Rows in slots, in the order in which they come; they stay there.

    Leaves and groups are runs of slots, and there are no more of them than rows fill. Their statistics
    are measured as those of a tree, and tell little: rows that lie side by side have nothing in common.
    """

    @staticmethod
    def plan(capacity):
        groups = math.ceil(capacity / GROUP)
        return [groups * FANOUT, groups], 1

    def insert(self, ids, vectors):
        """Puts new rows into the first free slots. Call `refresh` afterwards.

        Args:
            ids: int32 [rows], distinct and not held; `NEVER` is ignored.
            vectors: float32 [rows, dim].

        Returns:
            bool [rows], which rows found room.
        """
        free = LEAF_SIZE - self.counts[0][: self.widths[0]]
        ends = tf.cumsum(free)
        wanted = ids != NEVER
        place = tf.cumsum(tf.cast(wanted, tf.int32)) - 1  # among all free slots
        leaf = tf.searchsorted(ends, place, side="right")
        accepted = wanted & (leaf < self.widths[0])
        leaf = tf.minimum(leaf, self.widths[0] - 1)
        self._enter(ids, vectors, leaf, LEAF_SIZE - (tf.gather(ends, leaf) - place), accepted)
        return accepted

    def move(self, ids):
        """Leaves rows where they are, which is as good a place as any: int32 scalar, 0."""
        self.mark(ids, tf.zeros_like(ids, tf.bool))
        return tf.constant(0)

    def tidy(self, number):
        """Changes nothing: int32 [3 * number], the scratch group."""
        return tf.fill([3 * number], self.num_groups)
