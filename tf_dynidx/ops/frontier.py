"""The frontier: a partition of all rows into rows that are read and whole nodes that are not."""

from typing import NamedTuple

import tensorflow as tf

from tf_dynidx.ops import draws, masses
from tf_dynidx.ops.membership import is_among
from tf_dynidx.ops.nodes import NEVER

_NOTHING_LEFT = 1e-7  # an expected squared error below which more proposals are of no use


class Shape(NamedTuple):
    """What a query may look at: plain ints, so that every shape is static.

    Attributes:
        dense: level of the tree all of whose nodes are scored.
        width: nodes that are opened at each level above the leaves.
        budget: rows that are scored.
        fanout: children of a node.
        leaf_size: slots of a leaf.
    """

    dense: int
    width: int
    budget: int
    fanout: int
    leaf_size: int


class Segment(NamedTuple):
    """Unopened nodes of one level.

    Attributes:
        level: int, 0 for leaves.
        ids: int32 [queries, nodes] or [1, nodes].
        counts: int32, as `ids`.
        along, spread: float32 [queries, nodes], as for `tf_dynidx.ops.masses.log_masses`.
        log_masses: float32 [queries, nodes]; -inf for a node that is opened, or empty.
    """

    level: int
    ids: tf.Tensor
    counts: tf.Tensor
    along: tf.Tensor
    spread: tf.Tensor
    log_masses: tf.Tensor


class Frontier(NamedTuple):
    """What a query sees of the tree: rows of opened leaves one by one, and all other nodes whole.

    Attributes:
        leaves: int32 [queries, leaves], candidates for opening, heaviest first.
        ends: int32 [queries, leaves], rows in the candidates up to and including each.
        members: int32 [queries], rows of the opened ones, which are the first few.
        rest: list of `Segment`, the unopened nodes by level.
    """

    leaves: tf.Tensor
    ends: tf.Tensor
    members: tf.Tensor
    rest: list


class Pool(NamedTuple):
    """Weighted rows whose weights add up to an unbiased estimate of the partition function.

    Attributes:
        ids: int32 [queries, budget].
        scores: float32 [queries, budget], beta q.y; -inf where there is no row, or an excluded one.
        log_weights: float32 [queries, budget]: the score itself for a row that stands for itself,
            the log importance weight for a row that was drawn to stand for unopened nodes.
    """

    ids: tf.Tensor
    scores: tf.Tensor
    log_weights: tf.Tensor

    @property
    def log_partition(self):
        """float32 [queries]: log sum of exp(beta q.y), estimated."""
        return tf.reduce_logsumexp(self.log_weights, axis=1)


def open_nodes(levels, queries, beta, shape, keep_proposals):
    """Opens the heaviest nodes level by level, and leaves as far as reading their rows pays.

    All nodes of level `shape.dense` are scored, the `shape.width` heaviest are opened, and so on down
    to the leaves. Of the leaves as many are opened, heaviest first, as the query's own mass profile
    asks for: with R the share of the mass that is left unopened and M the rows of the budget that are
    left to be drawn from there, the error of the mass goes with R^2 / M, and the least of that is
    taken. A peaked softmax opens leaves with nearly all of its budget, a flat one draws.

    Args:
        levels: list of `tf_dynidx.ops.nodes.Level`, from the leaves up.
        queries: float32 [queries, dim].
        beta: float32 scalar.
        shape: `Shape`.
        keep_proposals: int, rows of the budget that leaves may not take.

    Returns:
        A `Frontier`.
    """
    norms = tf.norm(queries, axis=1, keepdims=True)
    batch = tf.shape(queries)[0]
    rest = []
    level = levels[shape.dense]
    ids = tf.range(level.counts.shape[0])[None]
    counts, radii = level.counts[None], level.radii[None]
    along, across = masses.project(queries, level.moments)
    for here in range(shape.dense, -1, -1):
        spread = beta * norms * radii
        mass = masses.log_masses(along, across, spread, counts, beta)
        segment = Segment(here, ids, counts, along, spread, mass)
        if here == 0:
            break
        _, best = tf.math.top_k(mass, min(shape.width, mass.shape[1]))
        rest.append(segment._replace(log_masses=_without(mass, best)))
        opened = _pick(ids, best)
        ids = tf.reshape(
            opened[:, :, None] * shape.fanout + tf.range(shape.fanout),
            [batch, opened.shape[1] * shape.fanout],
        )
        level = levels[here - 1]
        counts, radii = tf.gather(level.counts, ids), tf.gather(level.radii, ids)
        along, across = masses.project(queries, tf.gather(level.moments, ids))

    # Leaves of half as many rows as they have slots use up the budget; emptier ones are few, but where
    # there are few rows at all: these are in the leaves of one node.
    number = min(max(shape.fanout, 2 * shape.budget // shape.leaf_size), mass.shape[1])
    heaviest, best = tf.math.top_k(mass, number)
    leaves = _pick(ids, best)
    ends = tf.cumsum(_pick(counts, best), axis=1)
    everything = tf.concat([each.log_masses for each in [*rest, segment]], axis=1)
    total = tf.reduce_logsumexp(everything, axis=1, keepdims=True)
    unopened = tf.maximum(1.0 - tf.cumsum(tf.exp(heaviest - total), axis=1), 0.0)
    left = shape.budget - ends
    error = tf.where(left > 0, unopened**2 / tf.cast(tf.maximum(left, 1), tf.float32), float("inf"))
    error = tf.where(left >= keep_proposals, error, error + 1e3)
    # The share left comes from estimated masses, in float32: where it is next to nothing, rather open.
    good = error <= tf.maximum(tf.reduce_min(error, axis=1, keepdims=True), _NOTHING_LEFT)
    last = tf.reduce_max(tf.where(good, tf.range(number), 0), axis=1, keepdims=True)
    taken = tf.range(number)[None] <= last
    members = tf.gather(ends, last, batch_dims=1)[:, 0]
    rest.append(segment._replace(log_masses=_without(mass, best, taken)))
    return Frontier(leaves, ends, members, rest)


def pool(rows, ids, levels, frontier, queries, beta, shape, exclude, seed):
    """The rows of the opened leaves, and rows that stand for the unopened nodes, by turns of a budget.

    What the opened leaves leave of the budget goes to proposals: a node drawn by its estimated mass,
    and a uniform member of it, so its probability is q = mass(c) / (R n_c) with R the sum of the
    masses; scored on the row table it weighs exp(beta q.y) / (q * proposals). (Importance sampling: the
    correction that the Metropolis-Hastings chain of Monath et al. 2023 applies one step after the
    other.)

    Args:
        rows: float [slots, dim], variable or tensor.
        ids: int32 [slots], row ids.
        levels, queries, beta, shape: as for `open_nodes`.
        frontier: what `open_nodes` returned.
        exclude: int32 [queries, excluded], row ids that count as absent; padded with `NEVER`.
        seed: int32 [2].

    Returns:
        A `Pool` of `shape.budget` entries.
    """
    batch = tf.shape(queries)[0]
    seeds = tf.random.split(seed, 2, alg="philox")
    position = tf.range(shape.budget)[None]
    member = position < frontier.members[:, None]
    proposals = tf.cast(shape.budget - frontier.members, tf.float32)[:, None]
    stratum = tf.cast(position - frontier.members[:, None], tf.float32)
    points = (stratum + draws.uniforms([batch, shape.budget], seeds[0])) / proposals
    drawn, log_q = propose(
        levels, frontier.rest, beta, shape, tf.clip_by_value(points, 0.0, 1.0), seeds[1]
    )
    slots = tf.where(member, member_slots(frontier, position, shape.leaf_size), drawn)
    found = tf.gather(ids, slots)
    scores = beta * dots(queries, rows, slots)
    absent = (found == NEVER) | is_among(found, exclude) | ~(member | tf.math.is_finite(log_q))
    scores = tf.where(absent, -float("inf"), scores)
    weights = tf.where(member, scores, scores - log_q - tf.math.log(proposals))
    return Pool(found, scores, tf.where(absent, -float("inf"), weights))


def propose(levels, rest, beta, shape, points, seed):
    """Rows drawn from unopened nodes: a node by its mass, and a uniform member of it.

    Args:
        levels, beta, shape: as for `open_nodes`.
        rest: list of `Segment`, the nodes.
        points: float32 [queries, proposals], numbers on [0, 1) that pick the node, all nodes' masses
            being laid end to end.
        seed: int32 [2], picks the members.

    Returns:
        (slots, log_q): int32 and float32 [queries, proposals], the log probability of each draw; not
        finite where nothing is left unopened.
    """
    batch = tf.shape(points)[0]
    log_mass = capped_log_masses(rest, beta)
    entry = draws.entries_at(log_mass, points)
    every = [tf.broadcast_to(each.ids, tf.shape(each.log_masses)) for each in rest]
    node = tf.gather(tf.concat(every, axis=1), entry, batch_dims=1)
    every = [tf.broadcast_to(each.counts, tf.shape(each.log_masses)) for each in rest]
    count = tf.gather(tf.concat(every, axis=1), entry, batch_dims=1)
    log_q = (
        tf.gather(log_mass, entry, batch_dims=1)
        - tf.reduce_logsumexp(log_mass, axis=1, keepdims=True)
        - tf.math.log(tf.cast(count, tf.float32))
    )
    uniform = draws.uniforms([batch, points.shape[1]], seed)
    rank = tf.minimum(tf.cast(uniform * tf.cast(count, tf.float32), tf.int32), count - 1)
    rank = tf.maximum(rank, 0)
    # Down to the leaf that holds the member of that rank. Segments come from the top down.
    end = 0
    for each in rest[:-1]:
        end += each.log_masses.shape[1]
        # Whoever was drawn at this level or above stands at this level now.
        inner = entry < end
        children = tf.reshape(levels[each.level - 1].counts, [-1, shape.fanout])
        # Running sums as a product: XLA compiles tf.cumsum over a short axis to many times the work.
        sums = tf.linalg.band_part(tf.ones([shape.fanout, shape.fanout]), 0, -1)
        ends = tf.matmul(tf.cast(children, tf.float32), sums)
        ends = tf.gather(ends, tf.where(inner, node, 0))
        passed = ends <= tf.cast(rank, tf.float32)[:, :, None]
        child = tf.reduce_sum(tf.cast(passed, tf.int32), axis=2)
        child = tf.minimum(child, shape.fanout - 1)
        before = tf.cast(tf.reduce_max(tf.where(passed, ends, 0.0), axis=2), tf.int32)
        rank = tf.where(inner, rank - before, rank)
        node = tf.where(inner, node * shape.fanout + child, node)
    return node * shape.leaf_size + rank, log_q


def capped_log_masses(rest, beta):
    """The unopened nodes' log masses as draws use them: float32 [queries, nodes], all levels."""
    joined = [
        tf.concat([tf.broadcast_to(each[field], tf.shape(each.log_masses)) for each in rest], axis=1)
        for field in range(2, 6)
    ]
    counts, along, spread, log_masses = joined
    return masses.within_two_spreads(log_masses, along, spread, counts, beta)


def members(rows, frontier, queries, beta, shape):
    """The rows of the opened leaves.

    Args:
        rows, frontier, queries, beta, shape: as for `pool`.

    Returns:
        (slots, scores): int32 and float32 [queries, shape.budget], beta q.y; -inf where there is none.
    """
    position = tf.range(shape.budget)[None]
    slots = member_slots(frontier, position, shape.leaf_size)
    scores = beta * dots(queries, rows, slots)
    return slots, tf.where(position < frontier.members[:, None], scores, -float("inf"))


def partition_bounds(rows, frontier, queries, beta, shape):
    """Lower bound, estimate and upper bound of the log partition function.

    Opened leaves count row by row, the other nodes by `tf_dynidx.ops.masses.log_mass_bounds` and their
    estimated masses.

    Args:
        rows, frontier, queries, beta, shape: as for `pool`.

    Returns:
        (lower, estimate, upper): float32 [queries] each.
    """
    _, scores = members(rows, frontier, queries, beta, shape)
    lower, estimate, upper = [scores], [scores], [scores]
    for each in frontier.rest:
        closed = tf.math.is_finite(each.log_masses)
        least, most = masses.log_mass_bounds(each.along, each.spread, each.counts, beta)
        lower.append(tf.where(closed, least, -float("inf")))
        estimate.append(each.log_masses)
        upper.append(tf.where(closed, most, -float("inf")))
    return tuple(
        tf.reduce_logsumexp(tf.concat(parts, axis=1), axis=1) for parts in (lower, estimate, upper)
    )


def member_slots(frontier, position, leaf_size):
    """Slots of the first rows of the candidate leaves, in their order.

    Args:
        frontier: `Frontier`, of which `leaves` and `ends` are read.
        position: int32 [1, positions], which of their rows.
        leaf_size: int.

    Returns:
        int32 [queries, positions]; a slot that may be empty where there are no more rows.
    """
    batch = tf.shape(frontier.ends)[0]
    position = tf.tile(position, [batch, 1])
    which = draws.entries_up_to(frontier.ends, position)
    which = tf.minimum(which, frontier.ends.shape[1] - 1)
    starts = tf.pad(frontier.ends[:, :-1], [[0, 0], [1, 0]])
    offset = position - tf.gather(starts, which, batch_dims=1)
    leaf = tf.gather(frontier.leaves, which, batch_dims=1)
    return leaf * leaf_size + tf.clip_by_value(offset, 0, leaf_size - 1)


def dots(queries, rows, slots):
    """q.y for rows by slot: float32 [queries, slots]."""
    vectors = tf.cast(tf.gather(rows, slots), tf.float32)
    # Product and sum, not einsum: XLA then makes one loop of them and of the gather.
    return tf.reduce_sum(vectors * queries[:, None, :], axis=2)


def _pick(values, best):
    """values [queries or 1, nodes] at positions [queries, picked]."""
    if values.shape[0] == 1:
        return tf.gather(values[0], best)
    return tf.gather(values, best, batch_dims=1)


def _without(log_masses, positions, taken=None):
    """log_masses with -inf at positions [queries, picked], or at those of them that are taken."""
    shape = tf.shape(positions)
    query = tf.tile(tf.range(shape[0])[:, None], [1, shape[1]])
    where = tf.stack([tf.reshape(query, [-1]), tf.reshape(positions, [-1])], axis=1)
    none = tf.fill([shape[0] * shape[1]], -float("inf"))
    if taken is not None:
        kept = tf.gather(log_masses, positions, batch_dims=1)
        none = tf.where(tf.reshape(taken, [-1]), none, tf.reshape(kept, [-1]))
    return tf.tensor_scatter_nd_update(log_masses, where, none)
