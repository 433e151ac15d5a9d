"""The index inside an export: every row is scored, or those that a tree, now fixed, leads to."""

import tensorflow as tf

from tf_dynidx.index import DynamicIndex
from tf_dynidx.ops.frontier import Shape
from tf_dynidx.ops.nodes import Level
from tf_dynidx.ops.parts import in_blocks
from tf_dynidx.ops.search import exact_top_k, rise, tree_top_k
from tf_dynidx.serving.table import Table, taken, unpacked

INDEXES = ("exact", "tree")
_FLOATS = 2**26  # numbers that are held at a time to answer a batch: 256 MB
_EXACT_BLOCK = 65_536
_TOGETHER = 16  # rows of a leaf that a search reads as one; nothing writes to the tables of an export


class _Index(tf.Module):
    """Rows of a table in variables: a graph that holds them as constants is limited to 2 GB."""

    def __init__(self, table: Table):
        super().__init__()
        self.rows = _variable(table.rows, "rows")
        self.scales = None if table.scales is None else _variable(table.scales, "scales")

    def table(self) -> Table:
        """What is stored."""
        return Table(self.rows.numpy(), None if self.scales is None else self.scales.numpy())

    def _read(self, places):
        # From the value: a variable that is gathered from is copied whenever it is read whole again.
        rows = tf.cast(tf.gather(self.rows.value(), places), tf.float32)
        return rows if self.scales is None else rows * tf.gather(self.scales.value(), places)[:, None]


class ExactIndex(_Index):
    """Scores every row.

    Args:
        table: the rows.
        k: int, the most that is asked for.
    """

    kind = "exact"

    def __init__(self, table: Table, k: int):
        super().__init__(table)
        self._k = k
        self.rows_scored = len(table.rows)

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
        return self._read(rows)


class TreeIndex(_Index):
    """Scores the rows of the leaves that are nearest to a query.

    Of the tree it keeps what a search reads, and nothing that is needed to change it.

    Args:
        table: the rows.
        k: int, the most that is asked for.
        budget: int, rows that are scored for a query, or None: as for `DynamicIndex.search`.
    """

    kind = "tree"

    def __init__(self, table: Table, k: int, budget: int | None):
        number, dim = table.rows.shape
        built = DynamicIndex(dim, number)
        built.build(unpacked(table))
        tree = built.tree
        # In the order of the tree, so that the rows of a leaf lie side by side.
        super().__init__(taken(table, tree.ids.numpy()))
        self.ids = _variable(tree.ids, "ids")
        self.slots = _variable(tree.slots[:number], "slots")
        read = tree.levels[: tree.dense + 1]
        self.counts = [_variable(each.counts, "counts") for each in read]
        self.centres = [_variable(each.moments[:, :dim], "centres") for each in read]
        self.rises = [_variable(rise(each.counts, each.moments), "rises") for each in read]
        self._k = k
        shape = built._search_shape(k, budget)
        # As a tuple, since tf.Module would wrap a named one.
        self._shape = tuple(shape)
        self.rows_scored = min(shape.budget, number)

    def top_k(self, queries, exclude=None):
        """The k best rows that are found; as `ExactIndex.top_k`."""
        levels = [Level(c, m, None, None) for c, m in zip(self.counts, self.centres, strict=True)]
        shape = Shape(*self._shape)

        seen = (levels, self.rows, self.ids, queries, self._k, shape, exclude)
        return tree_top_k(*seen, self.scales, self.rises, together=_TOGETHER)

    def read(self, rows):
        """The encodings of rows, int32 [rows]: float32 [rows, dim]."""
        return self._read(tf.gather(self.slots, rows))


def make_index(kind: str, table: Table, k: int, budget: int | None):
    """An index of one of the kinds `INDEXES`."""
    return ExactIndex(table, k) if kind == "exact" else TreeIndex(table, k, budget)


def stored_table(index) -> Table:
    """The table that an index, as it was loaded from an export, was made of."""
    scales = getattr(index, "scales", None)
    table = Table(index.rows.numpy(), None if scales is None else scales.numpy())
    slots = getattr(index, "slots", None)
    return table if slots is None else taken(table, slots.numpy())


def _variable(values, name):
    return tf.Variable(values, trainable=False, name=name)
