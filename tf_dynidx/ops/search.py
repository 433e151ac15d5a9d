"""The best targets by inner product: exactly, block by block, or approximately, through the tree."""

import tensorflow as tf

from tf_dynidx.ops.frontier import Frontier, children, member_slots, of_children
from tf_dynidx.ops.membership import is_among, without
from tf_dynidx.ops.nodes import NEVER
from tf_dynidx.ops.parts import at_a_time, in_blocks

ROWS_AT_A_TIME = 1024  # rows that a search of the tree scores for each query before it keeps the best


def exact_top_k(queries, embeddings, k, block_size=65_536, scales=None, exclude=None):
    """The k targets with the highest inner product, best first; of equals, the lower row first.

    Scores are held for one block of targets at a time: float32 [queries, max(block_size, k)], not
    [queries, targets].

    Args:
        queries: float32 [queries, dim].
        embeddings: float or int8 [targets, dim], tensor or variable; the number of targets is static.
        k: int, at most the number of targets.
        block_size: int, targets that are scored at a time.
        scales: float32 [targets], what each row is to be multiplied by; default: it stands for itself.
        exclude: int32 [queries, excluded], rows that are left out; padded with `NEVER`; default none.

    Returns:
        (scores, rows): float32 [queries, k] and int32 [queries, k]; (-inf, -1) where there are no more.

    Raises:
        ValueError: If there are fewer than k targets, or if k or block_size is below 1.
    """
    embeddings = tf.convert_to_tensor(embeddings)
    targets = embeddings.shape[0]
    if not 1 <= k <= targets:
        raise ValueError(f"k is from 1 to the number of targets. Received: k={k}, {targets=}")
    if block_size < 1:
        raise ValueError(f"A block holds at least one target. Received: {block_size=}")
    # From k upwards, the first block alone fills the list, which thus never holds a placeholder.
    block_size = min(max(block_size, k), targets)

    def best_of_block(start, size):
        block = tf.cast(tf.slice(embeddings, [start, 0], [size, -1]), tf.float32)
        scores = tf.matmul(queries, block, transpose_b=True)
        if scales is not None:
            scores *= tf.slice(scales, [start], [size])
        if exclude is not None:
            scores = without(scores, exclude - start)
        scores, places = tf.math.top_k(scores, min(k, size))
        return scores, start + places

    def merged(best, later):
        # top_k prefers the earlier of equals, and the rows in `best` are the lower ones.
        scores, places = tf.math.top_k(tf.concat([best[0], later[0]], axis=1), k)
        rows = tf.gather(tf.concat([best[1], later[1]], axis=1), places, batch_dims=1)
        return scores, rows

    best = best_of_block(0, block_size)
    blocks, remainder = divmod(targets, block_size)
    if blocks > 1:
        _, best = tf.while_loop(
            lambda block, best: block < blocks,
            lambda block, best: (
                block + 1,
                merged(best, best_of_block(block * block_size, block_size)),
            ),
            (1, best),
            parallel_iterations=1,  # otherwise several blocks are scored ahead of their turn
        )
    if remainder:
        best = merged(best, best_of_block(blocks * block_size, remainder))
    scores, rows = best
    return scores, rows if exclude is None else tf.where(scores > -float("inf"), rows, NEVER)


def tree_top_k(levels, rows, ids, queries, k, shape, exclude, scales=None, rises=None, together=1):
    """The k rows with the highest inner product among the rows of the leaves nearest to each query.

    All nodes of level `shape.dense` are ranked by the best score to be expected in them, the best
    `shape.width` are opened, and so on down to the leaves, whose rows are scored in that order until
    `shape.budget` of them are.

    Args:
        levels: list of `tf_dynidx.ops.nodes.Level`, from the leaves up, of which counts and moments are
            read; with `rises`, of the moments the centres alone.
        rows: float or int8 [slots, dim], variable or tensor.
        ids: int32 or int64 [slots], row ids.
        queries: float32 [queries, dim].
        k: int.
        shape: `tf_dynidx.ops.frontier.Shape`.
        exclude: int32 [queries, excluded], row ids that are left out, padded with `NEVER`; or None.
        scales: float32 [slots], what each row is to be multiplied by; default: it stands for itself.
        rises: list by level of what `rise` says of all nodes, of a tree that does not change; default:
            it is computed of the nodes that are looked at, which reads twice as much.
        together: int, a divisor of `shape.leaf_size`: slots that are read as one, empty ones or not,
            which is faster than one by one, at more products than rows. Above 1, the tables are not
            variables whose entries are written or read one by one elsewhere: those are copied when
            they are read whole. Default: 1.

    Returns:
        (scores, ids): float32 and int32 [queries, k], best first, of equals the lower id first; (-inf,
        -1) where there are no more.
    """

    def best_keys(queries, *exclude):
        seen = (levels, rows, ids, queries, k, shape, *(exclude or [None]))
        return (_best_keys(*seen, scales, rises, together),)

    arguments = [queries] if exclude is None else [queries, exclude]
    block = at_a_time(ROWS_AT_A_TIME * queries.shape[1])
    return _scores_and_ids(*in_blocks(arguments, block, best_keys, [(tf.int64, [k])]))


def _best_keys(levels, rows, ids, queries, k, shape, exclude, scales, rises, together):
    """What `tree_top_k` finds, as `_keys`: int64 [queries, k], descending."""
    dim = queries.shape[1]
    read = _read_one_by_one if together == 1 else _read_groups
    norms = tf.norm(queries, axis=1, keepdims=True)
    level = levels[shape.dense]
    best_in = tf.matmul(queries, level.moments[:, :dim], transpose_b=True)
    best_in += norms * (rise(level.counts, level.moments) if rises is None else rises[shape.dense])
    nodes = None
    for here in range(shape.dense, -1, -1):
        # Of leaves, twice as many as fill the budget when full.
        number = shape.width if here else 2 * shape.budget // shape.leaf_size + 1
        _, best = tf.math.top_k(best_in, min(number, best_in.shape[1]))
        opened = best if nodes is None else tf.gather(nodes, best, batch_dims=1)
        if here == 0:
            break
        level, known = levels[here - 1], rises and rises[here - 1]

        def expected(owner, nodes, level=level, known=known):
            parents = nodes[:, :1] // shape.fanout
            moments = read(level.moments, parents, shape.fanout)
            if rises is None:
                rising = rise(tf.gather(level.counts, nodes), moments)
            else:
                rising = read(known, parents, shape.fanout)
            along = tf.linalg.matvec(moments[:, :, :dim], tf.gather(queries, owner))
            return (along + tf.gather(norms, owner) * rising,)

        number = tf.fill([tf.shape(opened)[0]], opened.shape[1])
        nodes = _neighbours(opened, shape.fanout)
        (best_in,) = of_children(
            opened, number, shape.fanout, level.moments.shape[1], expected, [tf.float32]
        )
    # From here on in blocks of `together` slots, those of a leaf with rows in them one after the other.
    ends = tf.cumsum(-(-tf.gather(levels[0].counts, opened) // together), axis=1)
    front = Frontier(opened, ends, ends[:, -1], ends[:, -1], [])
    budget = -(-shape.budget // together)
    turns = -(-budget // max(1, ROWS_AT_A_TIME // together))
    blocks = -(-budget // turns)  # all turns alike, so that the last one reads nothing in vain

    def better(start, best):
        position = start + tf.range(blocks)
        places = member_slots(front, start, blocks, shape.leaf_size // together)
        scores = tf.linalg.matvec(tf.cast(read(rows, places, together), tf.float32), queries)
        if scales is not None:
            scores *= read(scales, places, together)
        found = tf.cast(read(ids, places, together), tf.int32)
        there = (position < front.members[:, None]) & (position < budget)
        there = tf.repeat(there, together, axis=1)
        out = ~there | (found == NEVER)
        if exclude is not None:
            out |= is_among(found, exclude)
        keys = tf.where(out, nothing, _keys(scores, found))
        return start + blocks, tf.math.top_k(tf.concat([best, keys], axis=1), k)[0]

    nothing = _keys(tf.constant(-float("inf")), tf.constant(NEVER))
    _, best = tf.while_loop(
        lambda start, best: start < budget,
        better,
        (tf.constant(0), tf.fill([tf.shape(queries)[0], k], nothing)),
        maximum_iterations=turns,
        parallel_iterations=1,
    )
    return best


def _neighbours(groups, size):
    """int32 [queries, groups * size], what is in each of groups of so many neighbours."""
    return tf.reshape(children(groups, size), [-1, groups.shape[1] * size])


def _read_one_by_one(table, groups, size):
    """Entries of a table, [entries] or [entries, dim], by groups of neighbours: [queries, entries]."""
    return tf.gather(table, _neighbours(groups, size))


def _read_groups(table, groups, size):
    """As `_read_one_by_one`, of the value of the table."""
    entry = table.shape[1:]
    found = tf.gather(tf.reshape(table, [-1, size * entry.num_elements()]), groups)
    return tf.reshape(found, [-1, groups.shape[1] * size, *entry])


def _keys(scores, ids):
    """int64 numbers in the order of scores, and of equal scores the lower id larger."""
    bits = tf.bitcast(scores + 0.0, tf.int32)  # -0.0 becomes 0.0
    # The bits of negative floats are in descending order.
    bits = tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, 0x7FFFFFFF), bits)
    return tf.cast(bits, tf.int64) * 2**32 + (2**31 - 1 - tf.cast(ids, tf.int64))


def _scores_and_ids(keys):
    """What `_keys` was made of."""
    bits = tf.cast(tf.bitwise.right_shift(keys, tf.constant(32, tf.int64)), tf.int32)
    ids = 2**31 - 1 - tf.bitwise.bitwise_and(keys, tf.constant(2**32 - 1, tf.int64))
    bits = tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, 0x7FFFFFFF), bits)
    return tf.bitcast(bits, tf.float32), tf.cast(ids, tf.int32)


def rise(counts, moments):
    """How far the best of a node's rows is to be expected above its centre, for a query of norm 1.

    n draws from a Gaussian have their largest near its quantile (n - 3/8) / (n + 1/4) (Blom 1958); its
    variance along the query is taken as the mean over all directions, which costs no dot product.

    Args:
        counts: int32 [..., nodes].
        moments: float32 [..., nodes, 2 dim], as in `tf_dynidx.ops.nodes.Level`.

    Returns:
        float32 [..., nodes]; -inf for a node without rows.
    """
    number = tf.cast(counts, tf.float32)
    quantile = (tf.maximum(number, 1.0) - 0.375) / (tf.maximum(number, 1.0) + 0.25)
    dim = moments.shape[-1] // 2
    deviation = tf.sqrt(tf.reduce_mean(moments[..., dim:], axis=-1))
    return tf.where(counts > 0, deviation * tf.math.ndtri(quantile), -float("inf"))
