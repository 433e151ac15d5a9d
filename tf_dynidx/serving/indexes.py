"""The index inside an export: every row is scored, or those that a tree, now fixed, leads to."""

import tensorflow as tf

from tf_dynidx.index import DynamicIndex
from tf_dynidx.index.fixed_tree import FixedTree, read_rows
from tf_dynidx.ops.parts import in_blocks
from tf_dynidx.ops.search import exact_top_k
from tf_dynidx.serving.table import Table, taken, unpacked

INDEXES = ("exact", "tree")
_FLOATS = 2**26  # numbers that are held at a time to answer a batch: 256 MB
_EXACT_BLOCK = 65_536


class ExactIndex(tf.Module):
    """Scores every row.

    Args:
        table: the rows.
        k: int, the most that is asked for.
    """

    kind = "exact"

    def __init__(self, table: Table, k: int):
        super().__init__()
        # Variables: a graph that holds rows as constants is limited to 2 GB.
        self.rows = _variable(table.rows, "rows")
        self.scales = None if table.scales is None else _variable(table.scales, "scales")
        self._k = k
        self.rows_scored, self.dim = table.rows.shape

    def top_k(self, queries, exclude=None):
        """The k best rows.

        Args:
            queries: float32 [queries, dim].
            exclude: int32 [queries, excluded], rows to be left out, padded with -1; default none.

        Returns:
            (scores, rows): float32 and int32 [queries, k], best first, of equals the earlier row first;
            (-inf, -1) where there are no more.
        """

        def search(queries, exclude=None):
            return exact_top_k(queries, self.rows, self._k, _EXACT_BLOCK, self.scales, exclude)

        arguments = [queries] if exclude is None else [queries, exclude]
        at_a_time = max(1, _FLOATS // min(_EXACT_BLOCK, self.rows_scored))
        found = [(tf.float32, [self._k]), (tf.int32, [self._k])]
        return in_blocks(arguments, at_a_time, search, found)

    def read(self, rows):
        """The encodings of rows, int32 [rows]: float32 [rows, dim]."""
        return read_rows(self.rows, self.scales, rows)


class TreeIndex(tf.Module):
    """Scores the rows of the leaves that are nearest to a query.

    Args:
        table: the rows.
        k: int, the most that is asked for.
        budget: int, rows that are scored for a query, or None: as for `DynamicIndex.search`.
    """

    kind = "tree"

    def __init__(self, table: Table, k: int, budget: int | None):
        super().__init__()
        number, self.dim = table.rows.shape
        built = DynamicIndex(self.dim, number)
        built.build(unpacked(table))
        # In the order of the tree, so that the rows of a leaf lie side by side.
        rows, scales = taken(table, built.tree.ids.numpy())
        self.tree = FixedTree(self.dim, number, tf.as_dtype(rows.dtype), scales is not None)
        self.tree.take(built.tree, rows, scales)
        self._k, self._budget = k, budget
        self.rows_scored = self.tree.rows_scored(k, budget)

    def top_k(self, queries, exclude=None):
        """The k best rows that are found; as `ExactIndex.top_k`."""
        return self.tree.top_k(queries, self._k, self._budget, exclude)

    def read(self, rows):
        """The encodings of rows, int32 [rows]: float32 [rows, dim]."""
        return self.tree.read(rows)


def make_index(kind: str, table: Table, k: int, budget: int | None):
    """An index of one of the kinds `INDEXES`."""
    return ExactIndex(table, k) if kind == "exact" else TreeIndex(table, k, budget)


def stored_table(index) -> Table:
    """The table that an index, as it was loaded from an export, was made of."""
    tree = getattr(index, "tree", None)
    held = index if tree is None else tree
    scales = getattr(held, "scales", None)
    table = Table(held.rows.numpy(), None if scales is None else scales.numpy())
    return table if tree is None else taken(table, tree.slots.variable.numpy())


def _variable(values, name):
    return tf.Variable(values, trainable=False, name=name)
