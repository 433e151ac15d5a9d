"""Draws from categorical distributions given by log weights."""

import math
from typing import NamedTuple

import tensorflow as tf


def uniforms(shape, seed):
    """Independent uniform numbers on [0, 1): float32 of `shape`, a list or an int32 tensor.

    The same with XLA and without it, as long as the seed is. Of `tf.random.stateless_uniform` only
    the bits are, not the floats that it makes of them (tensorflow issue 117644).
    """
    bits = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )
    return tf.cast(tf.bitwise.right_shift(bits, 8), tf.float32) * 2.0**-24


def stratified_uniforms(rows, num_draws, seed):
    """One uniform number in each of `num_draws` equal parts of [0, 1), for every row.

    Each number by itself is uniform on [0, 1) once its stratum is picked at random, so frequencies
    are those of independent draws, while a set of draws varies less than independent ones do.

    Args:
        rows: int, or int32 scalar.
        num_draws: int.
        seed: int32 [2].

    Returns:
        float32 [rows, num_draws], ascending along the last axis.
    """
    return in_strata(uniforms([rows, num_draws], seed))


def in_strata(numbers):
    """Uniform numbers on [0, 1) moved into equal parts of it, each of a row into the next.

    Args:
        numbers: float32 [rows, numbers].

    Returns:
        float32 [rows, numbers], ascending along the last axis.
    """
    parts = numbers.shape[1]
    return (tf.range(parts, dtype=tf.float32) + numbers) / float(parts)


def categorical(log_weights, num_draws, seed):
    """Stratified draws from softmax(log_weights), for every row.

    Args:
        log_weights: float32 [rows, entries]; -inf marks an entry that is never drawn. A row with no
            finite entry draws entry 0.
        num_draws: int.
        seed: int32 [2].

    Returns:
        int32 [rows, num_draws], in ascending order of entry.
    """
    return entries_at(log_weights, stratified_uniforms(tf.shape(log_weights)[0], num_draws, seed))


def entries_at(log_weights, points):
    """The entry of softmax(log_weights) that each number on [0, 1) falls into, entries laid end to end.

    Args:
        log_weights: float32 [rows, entries]; -inf marks an entry that nothing falls into. In a row
            with no finite entry all fall into entry 0.
        points: float32 [rows, points].

    Returns:
        int32 [rows, points].
    """
    return entries_in(laid_out(log_weights), points)


class Ladder(NamedTuple):
    """Ascending numbers in every row, to be looked up in.

    Attributes:
        steps: list of [rows * blocks, base] tables, the last numbers of ever smaller blocks.
        last: [rows, 1], the last number of each row.
        entries: int, numbers in a row.
    """

    steps: list
    last: tf.Tensor
    entries: int


def ladder(ascending):
    """`Ladder` of float32 or int32 [rows, entries], ascending along the last axis."""
    entries = ascending.shape[1]
    base = max(2, math.ceil(entries ** (1 / 3)))
    base += base**3 < entries  # the root is rounded
    padding = [[0, 0], [0, base**3 - entries]]
    padded = tf.pad(ascending, padding, constant_values=ascending.dtype.max)
    steps = [tf.reshape(padded[:, size - 1 :: size], [-1, base]) for size in (base**2, base, 1)]
    return Ladder(steps, ascending[:, -1:], entries)


def laid_out(log_weights):
    """`Ladder` of the running sums of the weights of every row, up to a factor."""
    top = tf.reduce_max(log_weights, axis=1, keepdims=True)
    weights = tf.exp(log_weights - tf.where(tf.math.is_finite(top), top, 0.0))
    return ladder(tf.cumsum(weights, axis=1))


def entries_in(sums, points, owner=None):
    """As `entries_at`, of what `laid_out` returned.

    Args:
        sums: `Ladder`.
        points: float32 [lists, points].
        owner: int32 [lists], the row of `sums` that each list of points is for; default: its own.
    """
    total = sums.last if owner is None else tf.gather(sums.last, owner)
    # Counting ends up to a point skips entries of weight 0; a point rounded up to the total itself
    # would fall behind the last entry, so it is held just below.
    points = tf.minimum(points * total, total * (1.0 - 1e-6))
    entries = tf.minimum(entries_up_to(sums, points, owner), sums.entries - 1)
    return tf.where(total > 0.0, entries, 0)


def entries_up_to(ascending, points, owner=None):
    """How many numbers of a row are at most each point: int32 [lists, points].

    Three looks at the cube root of the entries each, at the ends of ever smaller blocks: XLA compiles
    tf.searchsorted to a comparison of every point with every entry, which is many times slower.

    Args:
        ascending: `Ladder`.
        points: the same dtype, [lists, points].
        owner: int32 [lists], the row that each list of points is for; default: its own.
    """
    if owner is None:
        owner = tf.range(tf.shape(points)[0])
    base = ascending.steps[0].shape[1]
    looked_at = tf.gather(ascending.steps[0], owner)[:, None, :]
    start = owner[:, None]
    block = start
    for below, step in enumerate(ascending.steps):
        if below:
            looked_at = tf.gather(step, block)
        passed = tf.reduce_sum(tf.cast(looked_at <= points[:, :, None], tf.int32), axis=2)
        # Past the last end there is no further block: padding makes that happen at the last look only.
        last = below == len(ascending.steps) - 1
        block = block * base + tf.minimum(passed, base if last else base - 1)
    return block - start * base**3
