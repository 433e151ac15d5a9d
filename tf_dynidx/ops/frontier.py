"""The frontier: a partition of all rows into rows that are read and whole nodes that are not."""

from typing import NamedTuple

import tensorflow as tf

from tf_dynidx.ops import draws, masses
from tf_dynidx.ops.membership import is_among
from tf_dynidx.ops.nodes import NEVER, first_of_largest
from tf_dynidx.ops.parts import at_a_time, in_parts

_NOTHING_LEFT = 1e-7  # an expected squared error below which more proposals are of no use
_FEWEST_OPENED = 2  # nodes of a level, whatever their masses say


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
        read: int32 [queries], rows that are to be read, members among them: within the budget.
        rest: list of `Segment`, the unopened nodes by level.
    """

    leaves: tf.Tensor
    ends: tf.Tensor
    members: tf.Tensor
    read: tf.Tensor
    rest: list


class Closed(NamedTuple):
    """What proposals are drawn from: the unopened nodes of all levels, from the top down.

    Attributes:
        segments: list of `Segment`.
        log_masses: float32 [queries, nodes], as draws use them; -inf for a node that is opened.
        log_total: float32 [queries], of all of them.
        laid_out: `tf_dynidx.ops.draws.Ladder`, the masses end to end, up to a factor.
        ends: list of float32 [nodes, fanout] by level from 1 up: rows in each child of a node and those
            before it.
    """

    segments: list
    log_masses: tf.Tensor
    log_total: tf.Tensor
    laid_out: draws.Ladder
    ends: list


class Pool(NamedTuple):
    """Weighted rows whose weights add up to an unbiased estimate of the partition function.

    Attributes:
        ids: int32 [queries, entries].
        scores: float32 [queries, entries], beta q.y; -inf where there is no row, or an excluded one.
        log_weights: float32 [queries, entries]: the score itself for a row that stands for itself,
            the log importance weight for a row that was drawn to stand for unopened nodes.
    """

    ids: tf.Tensor
    scores: tf.Tensor
    log_weights: tf.Tensor

    @property
    def log_partition(self):
        """float32 [queries]: log sum of exp(beta q.y), estimated."""
        return tf.reduce_logsumexp(self.log_weights, axis=1)


def open_nodes(levels, queries, beta, shape, keep_proposals, tolerance=0.0, lift=None):
    """Opens the heaviest nodes level by level, and leaves as far as reading their rows pays.

    All nodes of level `shape.dense` are scored, the `shape.width` heaviest are opened, and so on down
    to the leaves. Of the leaves as many are opened, heaviest first, as the query's own mass profile
    asks for: with R the share of the mass that is left unopened and M the rows that are drawn from
    there, the squared error of the mass goes with R^2 / M, and the least of that is taken. Of its
    budget a peaked softmax opens leaves with nearly all, a flat one draws.

    Where there is a tolerance, no more rows are read than it takes. The squared error is then said
    with a constant, the variance of the weights that rows are drawn with: R sum_c m_c u_c / M, with m_c
    the shares of the unopened nodes and u_c how unevenly the members of each share its mass.

    Args:
        levels: list of `tf_dynidx.ops.nodes.Level`, from the leaves up.
        queries: float32 [queries, dim].
        beta: float32 scalar.
        shape: `Shape`.
        keep_proposals: int, rows of the budget that leaves may not take.
        tolerance: float, squared error of the mass that is as good as none. Default 0: the budget is
            used up.
        lift: float32 [queries], what is added to the scores of rows, on the average; default 0.

    Returns:
        A `Frontier`.
    """
    norms = tf.norm(queries, axis=1, keepdims=True)
    rest, uneven = [], []
    level = levels[shape.dense]
    ids = tf.range(level.counts.shape[0])[None]
    counts, radii = level.counts[None], level.radii[None]
    along, across = masses.project(queries, level.moments)
    for here in range(shape.dense, -1, -1):
        along = along if lift is None else along + lift[:, None]
        spread = beta * norms * radii
        mass = masses.log_masses(along, across, spread, counts, beta)
        segment = Segment(here, ids, counts, along, spread, mass)
        uneven.append(masses.log_unevenness(across, beta))
        if here == 0:
            break
        width = min(shape.width, mass.shape[1])
        heaviest, best = tf.math.top_k(mass, width)
        number = tf.fill([tf.shape(queries)[0]], width)
        if tolerance:
            # Half of what is tolerated: what the leaves of opened nodes leave unopened comes to it.
            share, noise = _unopened([*rest, segment], uneven, heaviest, best)
            drawn = tf.maximum(2.0 * share * noise / tolerance, keep_proposals)
            # A node costs its children: side by side in memory, two vectors each for a row's one.
            cost = drawn + tf.range(1.0, width + 1.0) * shape.fanout
            enough = first_of_largest(-cost) + 1
            within = tf.reduce_min(cost, axis=1) <= shape.budget
            number = tf.where(within, tf.maximum(enough, min(_FEWEST_OPENED, width)), width)
        taken = tf.sequence_mask(number, width)
        rest.append(segment._replace(log_masses=_without(mass, best, taken)))
        level, nodes = levels[here - 1], _pick(ids, best)
        ids = tf.reshape(children(nodes, shape.fanout), [-1, width * shape.fanout])
        counts, radii = tf.gather(level.counts, ids), tf.gather(level.radii, ids)
        counts = tf.where(tf.repeat(taken, shape.fanout, axis=1), counts, 0)

        def project(owner, children, level=level):
            return masses.project(tf.gather(queries, owner), tf.gather(level.moments, children))

        along, across = of_children(
            nodes, number, shape.fanout, level.moments.shape[1], project, [tf.float32] * 2
        )

    # Leaves of half as many rows as they have slots use up the budget; emptier ones are few, but where
    # there are few rows at all: these are in the leaves of one node.
    number = min(max(shape.fanout, 2 * shape.budget // shape.leaf_size), mass.shape[1])
    heaviest, best = tf.math.top_k(mass, number)
    leaves = _pick(ids, best)
    ends = tf.cumsum(_pick(counts, best), axis=1)
    unopened, noise = _unopened([*rest, segment], uneven, heaviest, best)
    left = shape.budget - ends
    error = tf.where(left > 0, unopened**2 / tf.cast(tf.maximum(left, 1), tf.float32), float("inf"))
    error = tf.where(left >= keep_proposals, error, error + 1e3)
    # The share left comes from estimated masses, in float32: where it is next to nothing, rather open.
    good = error <= tf.maximum(tf.reduce_min(error, axis=1, keepdims=True), _NOTHING_LEFT)
    last = tf.reduce_max(tf.where(good, tf.range(number), 0), axis=1, keepdims=True)
    read = tf.fill(tf.shape(last), shape.budget)
    if tolerance:
        needed = tf.minimum(unopened * noise / tolerance, float(shape.budget))
        needed = ends + tf.maximum(tf.cast(tf.math.ceil(needed), tf.int32), keep_proposals)
        least = tf.reduce_min(needed, axis=1, keepdims=True)
        enough = tf.reduce_max(tf.where(needed == least, tf.range(number), 0), axis=1, keepdims=True)
        last = tf.where(least <= shape.budget, enough, last)
        read = tf.minimum(least, shape.budget)
    taken = tf.range(number)[None] <= last
    members = tf.gather(ends, last, batch_dims=1)[:, 0]
    rest.append(segment._replace(log_masses=_without(mass, best, taken)))
    return Frontier(leaves, ends, members, read[:, 0], rest)


def pool(rows, ids, levels, frontier, queries, beta, shape, exclude, seed, lift_of=None):
    """The rows of the opened leaves, and rows that stand for the unopened nodes.

    What the opened leaves leave of what is to be read goes to proposals: a node drawn by its estimated
    mass, and a uniform member of it, so its probability is q = mass(c) / (R n_c) with R the sum of the
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
        lift_of: function from int32 [lists], which query each list is for, and int32 [lists, rows], row
            ids, to float32 [lists, rows], what is added to their scores; default: nothing.

    Returns:
        A `Pool` of `shape.budget` entries or a few more.
    """
    together = shape.leaf_size  # rows that are read as one entry of a query's list
    width = -(-shape.budget // together)
    closed = closed_nodes(levels, frontier.rest, beta, shape)
    opened = member_slots(frontier, 0, width * together, shape.leaf_size)
    opened = tf.reshape(opened, [-1, together])

    def read(owner, place, part):
        members = tf.gather(frontier.members, owner)[:, None]
        last = tf.gather(frontier.read, owner)[:, None]
        position = place[:, None] * together + tf.range(together)
        member = position < members
        proposals = tf.cast(last - members, tf.float32)
        stratum = tf.cast(position - members, tf.float32)
        seeds = tf.random.split(tf.random.fold_in(seed, part, alg="philox"), 2, alg="philox")
        lots = draws.uniforms(tf.shape(position), seeds[0])
        points = tf.clip_by_value((stratum + lots) / proposals, 0.0, 1.0)
        drawn, log_q = propose(levels, closed, shape, points, seeds[1], owner)
        slots = tf.where(member, tf.gather(opened, owner * width + place), drawn)
        found = tf.gather(ids, slots)
        scores = dots(tf.gather(queries, owner), rows, slots)
        scores = beta * (scores if lift_of is None else scores + lift_of(owner, found))
        absent = (found == NEVER) | is_among(found, tf.gather(exclude, owner))
        absent |= ~(member | tf.math.is_finite(log_q)) | (position >= last)
        weights = tf.where(member, scores, scores - log_q - tf.math.log(proposals))
        nothing = -float("inf")
        return found, tf.where(absent, nothing, scores), tf.where(absent, nothing, weights)

    wanted = -(-frontier.read // together)
    found, scores, weights = in_parts(
        wanted,
        width,
        at_a_time(together * queries.shape[1]),
        read,
        [(dtype, [together]) for dtype in (tf.int32, tf.float32, tf.float32)],
    )
    there = tf.sequence_mask(wanted, width)[:, :, None]
    return Pool(
        *(
            tf.reshape(tf.where(there, value, nothing), [-1, width * together])
            for value, nothing in ((found, NEVER), (scores, -float("inf")), (weights, -float("inf")))
        )
    )


def closed_nodes(levels, rest, beta, shape):
    """`Closed`, of what `open_nodes` has left: list of `Segment`."""
    log_masses = capped_log_masses(rest, beta)
    # Running sums as a product: XLA compiles tf.cumsum over a short axis to many times the work.
    sums = tf.linalg.band_part(tf.ones([shape.fanout, shape.fanout]), 0, -1)
    ends = [
        tf.matmul(tf.cast(tf.reshape(level.counts, [-1, shape.fanout]), tf.float32), sums)
        for level in levels[: rest[0].level]
    ]
    log_total = tf.reduce_logsumexp(log_masses, axis=1)
    return Closed(rest, log_masses, log_total, draws.laid_out(log_masses), ends)


def propose(levels, closed, shape, points, seed, owner=None):
    """Rows drawn from unopened nodes: a node by its mass, and a uniform member of it.

    Args:
        levels, shape: as for `open_nodes`.
        closed: `Closed`, the nodes.
        points: float32 [lists, proposals], numbers on [0, 1) that pick the node, all nodes' masses
            being laid end to end.
        seed: int32 [2], picks the members.
        owner: int32 [lists], the query that each list of proposals is for; default: its own.

    Returns:
        (slots, log_q): int32 and float32 [lists, proposals], the log probability of each draw; not
        finite where nothing is left unopened.
    """
    if owner is None:
        owner = tf.range(tf.shape(points)[0])
    nodes = closed.log_masses.shape[1]
    entry = draws.entries_in(closed.laid_out, points, owner)
    log_mass = tf.gather(tf.reshape(closed.log_masses, [-1]), owner[:, None] * nodes + entry)
    node, count, start = tf.zeros_like(entry), tf.zeros_like(entry), 0
    for each in closed.segments:
        width = each.log_masses.shape[1]
        mine = (entry >= start) & (entry < start + width)
        place = tf.where(mine, entry - start, 0)
        if each.ids.shape[0] != 1:
            place += owner[:, None] * width
        named = tf.gather(tf.reshape(each.ids, [-1]), place)
        node = tf.where(mine, named, node)
        count = tf.where(mine, tf.gather(levels[each.level].counts, named), count)
        start += width
    log_q = log_mass - tf.gather(closed.log_total, owner)[:, None]
    log_q -= tf.math.log(tf.cast(count, tf.float32))
    uniform = draws.uniforms(tf.shape(points), seed)
    rank = tf.minimum(tf.cast(uniform * tf.cast(count, tf.float32), tf.int32), count - 1)
    rank = tf.maximum(rank, 0)
    # Down to the leaf that holds the member of that rank. Segments come from the top down.
    end = 0
    for each in closed.segments[:-1]:
        end += each.log_masses.shape[1]
        # Whoever was drawn at this level or above stands at this level now.
        inner = entry < end
        ends = tf.gather(closed.ends[each.level - 1], tf.where(inner, node, 0))
        passed = ends <= tf.cast(rank, tf.float32)[:, :, None]
        child = tf.reduce_sum(tf.cast(passed, tf.int32), axis=2)
        child = tf.minimum(child, shape.fanout - 1)
        before = tf.cast(tf.reduce_max(tf.where(passed, ends, 0.0), axis=2), tf.int32)
        rank = tf.where(inner, rank - before, rank)
        node = tf.where(inner, node * shape.fanout + child, node)
    return node * shape.leaf_size + rank, log_q


def capped_log_masses(rest, beta):
    """The unopened nodes' log masses as draws use them: float32 [queries, nodes], all levels."""
    widest = [masses.widest_spread(each.log_masses, each.spread) for each in rest]
    widest = tf.reduce_max(tf.concat(widest, axis=1), axis=1, keepdims=True)
    capped = [
        masses.within_two_spreads(each.log_masses, each.along, each.spread, each.counts, widest, beta)
        for each in rest
    ]
    return tf.concat(capped, axis=1)


def members(rows, frontier, queries, beta, shape):
    """The rows of the opened leaves.

    Args:
        rows, frontier, queries, beta, shape: as for `pool`.

    Returns:
        (slots, scores): int32 and float32 [queries, shape.budget], beta q.y; -inf where there is none.
    """
    slots = member_slots(frontier, 0, shape.budget, shape.leaf_size)
    scores = beta * dots(queries, rows, slots)
    member = tf.range(shape.budget) < frontier.members[:, None]
    return slots, tf.where(member, scores, -float("inf"))


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


def member_slots(frontier, start, number, leaf_size):
    """Slots of consecutive rows of the candidate leaves, in their order.

    From one row to the next the slot goes up by one, but for a jump where a leaf begins: running sums,
    which cost less than looking up the leaf of each row.

    Args:
        frontier: `Frontier`, of which `leaves` and `ends` are read.
        start: int, or int32 scalar, which of their rows is the first.
        number: int, how many.
        leaf_size: int.

    Returns:
        int32 [queries, number]; any slot where there are no more rows.
    """
    starts = tf.pad(frontier.ends[:, :-1], [[0, 0], [1, 0]])
    offsets = frontier.leaves * leaf_size - starts  # of a leaf's slots over its rows' positions
    jumps = offsets - tf.pad(offsets[:, :-1], [[0, 0], [1, 0]])
    batch = tf.shape(starts)[0]
    # Jumps of earlier leaves meet at the first row; those of later ones behind the last.
    where = tf.clip_by_value(starts - start, 0, number)
    where += tf.range(batch)[:, None] * (number + 1)
    jumps = tf.math.unsorted_segment_sum(jumps, where, batch * (number + 1))
    jumps = tf.reshape(jumps, [-1, number + 1])[:, :number]
    position = start + tf.range(number)
    slots = position + tf.cumsum(jumps, axis=1)
    return tf.where(position < frontier.ends[:, -1:], slots, 0)


def children(nodes, fanout):
    """int32 [..., fanout], the children of each of int32 [...] nodes, which are side by side."""
    return nodes[..., None] * fanout + tf.range(fanout)


def of_children(nodes, number, fanout, floats, work, dtypes):
    """What `work` makes of the children of opened nodes, some at a time.

    Args:
        nodes: int32 [queries, width].
        number: int32 [queries], how many of them are opened, the first few.
        fanout: int.
        floats: int, numbers that are read of each child.
        work: function from int32 [nodes], whose query each is opened for, and int32 [nodes, fanout],
            their children, to a tuple of tensors [nodes, fanout].
        dtypes: list of what `work` returns.

    Returns:
        tuple of tensors [queries, width * fanout]; anything for what is not opened.
    """
    width = nodes.shape[1]
    flat = tf.reshape(nodes, [-1])

    def take(owner, place, part):
        del part
        return work(owner, children(tf.gather(flat, owner * width + place), fanout))

    made = in_parts(
        number, width, at_a_time(fanout * floats), take, [(dtype, [fanout]) for dtype in dtypes]
    )
    return tuple(tf.reshape(each, [-1, width * fanout]) for each in made)


def dots(queries, rows, slots):
    """q.y for rows by slot: float32 [queries, slots]."""
    vectors = tf.cast(tf.gather(rows, slots), tf.float32)
    # Product and sum, not einsum: XLA then makes one loop of them and of the gather.
    return tf.reduce_sum(vectors * queries[:, None, :], axis=2)


def _unopened(segments, uneven, heaviest, best):
    """What is left once nodes of the last segment are opened, the heaviest first.

    Args:
        segments: list of `Segment`, all that is unopened so far.
        uneven: list of float32 [queries, nodes] for each, as `masses.log_unevenness`.
        heaviest, best: float32 and int32 [queries, number], log masses and places of the heaviest nodes
            of the last segment, descending.

    Returns:
        (share, noise): float32 [queries, number], the share R of the mass that is unopened after each,
        and sum_c m_c u_c over it, R at least: R * noise is the variance of a drawn row's weight.
    """
    *above, last = segments
    never = [*(each.log_masses for each in above), _without(last.log_masses, best)]
    log_masses = tf.concat([*never, heaviest], axis=1)
    log_uneven = tf.concat([*uneven, tf.gather(uneven[-1], best, batch_dims=1)], axis=1)
    weights = tf.exp(log_masses - tf.reduce_logsumexp(log_masses, axis=1, keepdims=True))

    def left(values):
        # Summed from the end: as a difference, what is left after a large one would be rounding.
        never, candidates = tf.split(values, [-1, best.shape[1]], axis=1)
        later = tf.cumsum(candidates, axis=1, exclusive=True, reverse=True)
        return tf.reduce_sum(never, axis=1, keepdims=True) + later

    share = left(weights)
    return share, tf.maximum(left(weights * tf.exp(log_uneven)), share)


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
