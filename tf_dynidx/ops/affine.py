"""Affine maps between the encodings that a table stores and those that it stands for.

If every row x stands for x M + b, then q.(x M + b) = (q M^T).x + q.b: one small product with the query
does for all rows what a pass over them would.
"""

from typing import NamedTuple

import tensorflow as tf

_CONDITION = 3.0  # a map is sound up to so many times the |M| |M^-1| of a rotation (Frobenius norms)
_INVERSE_ERROR = 1e-3  # and as long as M M^-1 is this near to the identity


class Affine(NamedTuple):
    """x -> x M + b.

    Attributes:
        matrix, inverse: float32 [dim, dim], M and M^-1.
        offset: float32 [dim], b.
    """

    matrix: tf.Tensor
    inverse: tf.Tensor
    offset: tf.Tensor


def identity(dim):
    """The map that changes nothing."""
    return Affine(tf.eye(dim), tf.eye(dim), tf.zeros([dim]))


def forward(affine, rows):
    """What stored rows stand for: float32 [rows, dim]."""
    return tf.matmul(rows, affine.matrix) + affine.offset


def backward(affine, vectors):
    """The rows to store for what they are to stand for: float32 [rows, dim]."""
    return tf.matmul(vectors - affine.offset, affine.inverse)


def pulled_back(affine, queries):
    """Queries that score stored rows as the given ones score what they stand for.

    Args:
        affine: `Affine`.
        queries: float32 [queries, dim].

    Returns:
        (queries, shifts): float32 [queries, dim] and [queries], with q.(x M + b) = q'.x + shift.
    """
    shifts = tf.linalg.matvec(queries, affine.offset)
    return tf.matmul(queries, affine.matrix, transpose_b=True), shifts


def followed_by(affine, change):
    """The map, and after it y -> y + [y, 1] A.

    Args:
        affine: `Affine`.
        change: float32 [dim + 1, dim], A, as from `tf_dynidx.ops.regression.fit_change`.

    Returns:
        `Affine`; its inverse is good only if `sound` says so.
    """
    step = tf.eye(change.shape[1]) + change[:-1]
    # By the normal equations: XLA has a Cholesky factorisation everywhere, and the step is near to 1.
    factor = tf.linalg.cholesky(tf.matmul(step, step, transpose_a=True))
    back = tf.linalg.cholesky_solve(factor, tf.transpose(step))
    return Affine(
        tf.matmul(affine.matrix, step),
        tf.matmul(back, affine.inverse),
        tf.linalg.matvec(step, affine.offset, transpose_a=True) + change[-1],
    )


def sound(affine):
    """bool scalar, whether the map can be undone without loss worth speaking of."""
    dim = affine.matrix.shape[0]
    condition = tf.norm(affine.matrix) * tf.norm(affine.inverse)
    error = tf.reduce_max(tf.abs(tf.matmul(affine.matrix, affine.inverse) - tf.eye(dim)))
    return (condition <= _CONDITION * dim) & (error <= _INVERSE_ERROR)  # False for NaN
