"""How much of a tree a query looks at: plain ints, so that every shape is static.

A tree here is a `Tree` or a `FixedTree`, of which `capacity`, `widths` and `dense` are read.
"""

import math

from tf_dynidx.index import checks
from tf_dynidx.index.tree import FANOUT, LEAF_SIZE
from tf_dynidx.ops.frontier import Shape

_LEAST_BUDGET = 192  # rows that a query reads to draw from, however few the draws; and
_BUDGET_PER_DRAW = 25  # this many for each draw, so that resampling comes close to exact draws
_ROWS_PER_NODE = 28  # so that nodes opened at a level (32 dot products each) cost a little more
_LEAST_SEARCH_BUDGET = 1024  # rows that a search reads for each query, at least; and
_SEARCH_GROWTH = 20  # this many times sqrt(capacity); and
_PER_RESULT = 4  # this many for each result


def sample_shape(tree, num_samples, budget=None):
    """What a query looks at to draw: about as many dot products with nodes as with rows.

    Args:
        tree: the tree.
        num_samples: int, draws.
        budget: int, rows that are scored; default: 25 for each draw. Never fewer than 192.

    Returns:
        `Shape`.

    Raises:
        ValueError: the budget is not a whole number of at least 1.
    """
    if budget is None:
        budget = _BUDGET_PER_DRAW * num_samples
    budget = max(_LEAST_BUDGET, checks.positive_int("budget", budget))
    budget = min(budget, max(_LEAST_BUDGET, 2 * tree.capacity))
    return Shape(tree.dense, budget // _ROWS_PER_NODE, budget, FANOUT, LEAF_SIZE)


def search_shape(tree, k, budget=None):
    """What a query looks at to search: the more rows it reads, the better the nodes are picked.

    Args:
        tree: the tree.
        k: int, results.
        budget: int, rows that are scored; default: 20 sqrt(capacity), at least 1,024 and 4 k. From the
            capacity on all of them are.

    Returns:
        `Shape`.

    Raises:
        ValueError: the budget is not a whole number of at least 1.
    """
    if budget is None:
        least = _SEARCH_GROWTH * math.isqrt(tree.capacity)
        budget = max(_LEAST_SEARCH_BUDGET, least, _PER_RESULT * k)
    budget = checks.positive_int("budget", budget)
    if budget >= tree.capacity:
        # Every leaf of every node.
        return Shape(0, 0, tree.widths[0] * LEAF_SIZE, FANOUT, LEAF_SIZE)
    # On real encodings the best share of nodes in all that is scored was .4 at 1 to 2 % of the
    # rows, .15 to .25 at 16 %; among 10^6 clustered ones .5 at .3 %. Never more nodes than rows.
    width = round(budget**0.75 * tree.capacity**0.25 / 77)
    width = max(8, min(width, budget // FANOUT))
    return Shape(tree.dense, width, budget, FANOUT, LEAF_SIZE)


def nodes_scored(tree, shape):
    """int, nodes that a query looks at.

    Args:
        tree: the tree.
        shape: `Shape`.
    """
    total = width = tree.widths[shape.dense]
    for _ in range(shape.dense):
        width = min(shape.width, width) * FANOUT
        total += width
    return total
