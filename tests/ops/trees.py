"""Small trees of several levels, over rows that have come and gone."""

from typing import NamedTuple

import numpy as np
import pytest

from tf_dynidx.index import DynamicIndex, tree
from tf_dynidx.ops.frontier import Shape

CAPACITY, BUILT, REMOVED = 5000, 4900, 400
# Nodes that are scored at once, so few that a tree of CAPACITY rows gets so many levels; and its nodes.
DENSE = {2: 20, 3: 4, 4: 1}
WIDTHS = {2: [288, 18], 3: [512, 32, 2], 4: [4096, 256, 16, 1]}


class Small(NamedTuple):
    """A tree and what it holds: its levels, and the vectors of the ids 0 to BUILT - 1, held or not."""

    tree: tree.Tree
    levels: list
    vectors: np.ndarray
    held: np.ndarray  # ids, ascending

    def shape(self, width, budget, dense=None):
        dense = self.tree.dense if dense is None else dense
        return Shape(dense, width, budget, tree.FANOUT, tree.LEAF_SIZE)


def small_tree(levels, vectors):
    """Built from BUILT vectors, of which the first REMOVED are taken out again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_DENSE", DENSE[levels])
        patch.setattr(tree, "_DENSE_GROWTH", 0)
        index = DynamicIndex(vectors.shape[1], CAPACITY)
    assert list(index.tree.widths) == WIDTHS[levels] and index.tree.dense == levels - 1
    index.build(vectors[:BUILT])
    # In order of one coordinate: whole leaves are emptied, and others in part.
    gone = np.argsort(vectors[:BUILT, 0])[:REMOVED].astype(np.int32)
    index.remove(gone)
    index.check()
    return Small(index.tree, index.tree.levels, vectors, np.setdiff1d(np.arange(BUILT), gone))
