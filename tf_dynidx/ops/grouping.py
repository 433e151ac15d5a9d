"""Grouping of near neighbours into nodes of limited size: k-means, then an assignment that fits."""

import tensorflow as tf

from tf_dynidx.ops import draws, nodes

_CHOICES = 8  # nearest groups that a row tries before it takes any place


def group(rows, live, groups, size, iterations):
    """Groups the rows of each batch entry by nearness, no group larger than `size`.

    Lloyd's iterations (k-means) from rows that are spread evenly over the order that they come in;
    then every row enters its nearest group that has room, the closest rows first.

    Args:
        rows: float [batch, slots, dim].
        live: bool [batch, slots]; at most groups * size of them.
        groups: int, how many groups to make; where many rows are equal, some may stay empty.
        size: int, the largest number of rows in a group.
        iterations: int, Lloyd's iterations; few do.

    Returns:
        int32 [batch, slots], the group of every live row, anything for the others.
    """
    rows = tf.cast(rows, tf.float32)
    centres = _spread_evenly(rows, live, groups)
    mask = tf.cast(live, tf.float32)

    def better(number, centres):
        nearest = tf.argmax(closeness(rows, centres), axis=2, output_type=tf.int32)
        member = tf.one_hot(nearest, groups, axis=1) * mask[:, None, :]  # [batch, groups, slots]
        count = tf.reduce_sum(member, axis=2, keepdims=True)
        means = tf.matmul(member, rows) / tf.maximum(count, 1.0)
        return number + 1, tf.where(count > 0, means, centres)

    # A loop of the graph, as below: unrolled, it would take seconds to trace and to compile.
    _, centres = tf.while_loop(
        lambda number, _: number < iterations,
        better,
        (tf.constant(0), centres),
        maximum_iterations=iterations,
    )
    near, choices = tf.math.top_k(closeness(rows, centres), min(_CHOICES, groups))
    return assign(nearness(near[:, :, 0], rows), choices, live, groups, size)


def _spread_evenly(rows, live, groups):
    """Live rows at equal distances in the order of slots: [batch, groups, dim]."""
    order = nodes.keep_first(live)
    number = tf.reduce_sum(tf.cast(live, tf.int64), axis=1, keepdims=True)
    # In whole numbers: float32 knows no odd ones above 2**24.
    rank = (2 * tf.range(groups, dtype=tf.int64)[None] + 1) * number // (2 * groups)
    chosen = tf.gather(order, tf.cast(rank, tf.int32), batch_dims=1)
    return tf.gather(rows, chosen, batch_dims=1)


def closeness(rows, centres):
    """Larger is nearer, among centres: y.mu - |mu|^2 / 2, [batch, slots, dim], [batch, groups, dim]."""
    half = 0.5 * tf.reduce_sum(centres**2, axis=2)
    return tf.matmul(rows, centres, transpose_b=True) - half[:, None, :]


def nearness(closest, rows):
    """Larger is nearer, among rows too: -|y - mu|^2 / 2, from each row's largest closeness."""
    return closest - 0.5 * tf.reduce_sum(rows**2, axis=-1)


def assign(near, choices, live, groups, size):
    """Gives every row the first of its choices that has room, the nearest rows first.

    Args:
        near: float32 [batch, slots], larger is nearer: who comes first.
        choices: int32 [batch, slots, choices], groups of the same batch entry, nearest first.
        live: bool [batch, slots]; at most groups * size of them.
        groups, size: int, how many groups there are, and how many rows a group takes.

    Returns:
        int32 [batch, slots], the group of every live row, anything for the others.
    """
    batch, slots, tries = choices.shape
    flat = batch * slots
    first = tf.argsort(tf.where(live, near, -float("inf")), axis=1, direction="DESCENDING")
    choices = tf.reshape(tf.gather(choices, first, batch_dims=1), [flat, tries])
    waiting = tf.reshape(tf.gather(live, first, batch_dims=1), [flat])
    offset = tf.repeat(tf.range(batch) * groups, slots)

    def settle(number, found, waiting, counts):
        target = tf.gather(choices, number, axis=1)
        _, accepted, counts = nodes.places(target + offset, waiting, counts, size)
        return number + 1, tf.where(accepted, target, found), waiting & ~accepted, counts

    _, found, waiting, counts = tf.while_loop(
        lambda number, *_: number < tries,
        settle,
        (tf.constant(0), tf.zeros([flat], tf.int32), waiting, tf.zeros([batch * groups], tf.int32)),
        maximum_iterations=tries,
    )
    # Whoever still waits takes any place, in order.
    room = tf.cumsum(size - tf.reshape(counts, [batch, groups]), axis=1)
    rank = tf.cumsum(tf.cast(tf.reshape(waiting, [batch, slots]), tf.int32), axis=1) - 1
    anywhere = draws.entries_up_to(draws.ladder(room), rank)
    found = tf.where(waiting, tf.reshape(anywhere, [flat]), found)
    back = tf.argsort(first, axis=1)
    return tf.gather(tf.reshape(found, [batch, slots]), back, batch_dims=1)


def lay_out(target, live, groups, size):
    """Slots of rows that have been grouped: group after group, each in `size` slots.

    Args:
        target: int32 [batch, slots], as from `group`.
        live: bool [batch, slots].
        groups, size: int, as for `group`.

    Returns:
        int32 [batch, groups * size]: which slot's row comes there; the number of slots where none does.
    """
    batch, slots = target.shape
    offset = tf.range(batch)[:, None] * groups
    rank, accepted, _ = nodes.places(
        tf.reshape(target + offset, [-1]),
        tf.reshape(live, [-1]),
        tf.zeros([batch * groups], tf.int32),
        size,
    )
    place = tf.reshape(target * size, [-1]) + rank
    place = tf.where(accepted, tf.repeat(tf.range(batch), slots) * groups * size + place, -1)
    # One entry more than there are: what has no place goes there.
    place = tf.where(place < 0, batch * groups * size, place)
    slot = tf.tile(tf.range(slots), [batch])
    start = tf.fill([batch * groups * size + 1], slots)
    laid = tf.tensor_scatter_nd_update(start, place[:, None], slot)
    return tf.reshape(laid[:-1], [batch, groups * size])


def principal_direction(rows, live, iterations=6):
    """The direction along which rows are longest, for each batch entry: float32 [batch, dim].

    The first principal direction, by power iteration from the row that is farthest from the centre;
    few steps do, since any long direction serves to halve a set. Zero where all rows are equal.

    Args:
        rows: float [batch, slots, dim].
        live: bool [batch, slots].
        iterations: int.
    """
    rows = tf.cast(rows, tf.float32)
    weights = tf.cast(live, tf.float32)[:, :, None]
    number = tf.maximum(tf.reduce_sum(weights, axis=1, keepdims=True), 1.0)
    offsets = (rows - tf.reduce_sum(rows * weights, axis=1, keepdims=True) / number) * weights
    # Of length one at most: squares of the squares of small numbers would vanish.
    offsets /= tf.maximum(tf.reduce_max(tf.abs(offsets), axis=[1, 2], keepdims=True), 1e-30)
    farthest = tf.argmax(tf.reduce_sum(offsets**2, axis=2), axis=1)
    direction = tf.gather(offsets, farthest, batch_dims=1)
    for _ in range(iterations):
        along = tf.matmul(offsets, direction[:, :, None])
        direction = tf.matmul(offsets, along, transpose_a=True)[:, :, 0]
        direction = tf.math.l2_normalize(direction, axis=1)
    return direction
