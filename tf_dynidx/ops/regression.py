"""Change regression: what a few re-encoded landmarks say about how every other encoding has moved.

Monath et al. 2023 carry gradient updates over to all targets by a Nystroem low-rank
regression. Here the *change* of the encodings is regressed on the encodings, g <- g + f(g), so that an
encoder that did not move leaves every row as it is, exactly. With the linear kernel f(g) = [g, 1] A
with A a small matrix of its own: applying it costs no pass over the landmarks, and it takes in what the
training step has encoded anyway as two sums. With the RBF kernel f(g) = K(g, L) C, over landmarks L.
"""

from typing import NamedTuple

import tensorflow as tf

# Ridge penalties tried, relative to the mean eigenvalue of the features' second moment. They span
# "trust the landmarks" to "shrink nearly all"; leave-one-out error picks.
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_TRUSTED = (0.0, 0.1, 1.0)  # weights of what was observed beside the landmarks, picked likewise
_LEAST_FREEDOM = 1e-3  # 1 - leverage below which a leave-one-out residual is rounding


class Sums(NamedTuple):
    """What the linear regression needs to know of observations beside the landmarks.

    Attributes:
        moment: float32 [dim + 1, dim + 1], sum of f f^T over the observations' weighted features f.
        target: float32 [dim + 1, dim], sum of f times the change.
    """

    moment: tf.Tensor
    target: tf.Tensor


class Rbf(NamedTuple):
    """A fitted f(g) = K(g, centres) coefficients, K(g, l) = exp(-|g - l|^2 / (2 width)).

    Attributes:
        centres, coefficients: float32 [landmarks, dim].
        width: float32 scalar.
    """

    centres: tf.Tensor
    coefficients: tf.Tensor
    width: tf.Tensor


def sums(before, after, weights):
    """`Sums` of observations.

    Args:
        before, after, weights: as for `fit_change`.
    """
    features = _features(before) * weights[:, None]
    change = tf.where(weights[:, None] > 0, after - before, 0.0)
    return Sums(
        tf.matmul(features, features, transpose_a=True), tf.matmul(features, change, transpose_a=True)
    )


def fit_change(before, after, weights, others=None):
    """Ridge regression of the change on the encodings, with the ridge picked by leave-one-out.

    The leave-one-out residual of landmark i is r_i / (1 - h_i), with r_i its residual and h_i its
    leverage (Golub, Heath and Wahba 1979), so that trying a penalty costs one small Cholesky
    factorisation. If no penalty beats "nothing changed" by that measure, the fit is zero. It is the
    landmarks alone that judge: other observations are of rows that the training likes, and how much
    they are trusted is picked with the penalty.

    Args:
        before: float32 [landmarks, dim], the encodings that the index holds.
        after: float32 [landmarks, dim], the same targets, encoded afresh.
        weights: float32 [landmarks], the share of the movement that each has made since the index
            took it in: 1 for one that was held all the time, 0 for an entry that is to be ignored.
        others: `Sums` of further observations; default none.

    Returns:
        float32 [dim + 1, dim], the matrix A of `apply_change`; always finite.
    """
    features = _features(before) * weights[:, None]
    change = tf.where(weights[:, None] > 0, after - before, 0.0)
    moment, target = sums(before, after, weights)
    size = moment.shape[0]
    moments, targets = moment[None], target[None]
    if others is not None:
        trusted = tf.constant(_TRUSTED)[:, None, None]
        moments, targets = moment + trusted * others.moment, target + trusted * others.target
    # All penalties at once, [trusts * penalties, ...]: one factorisation to compile, not one each.
    ridges = tf.constant(_RIDGES)[None, :, None, None]
    scale = tf.linalg.trace(moments)[:, None, None, None] / size
    penalised = moments[:, None] + (ridges * scale + 1e-12) * tf.eye(size)
    factors = tf.linalg.cholesky(tf.reshape(penalised, [-1, size, size]))
    targets = tf.repeat(targets, len(_RIDGES), axis=0)
    solutions = tf.linalg.cholesky_solve(factors, targets)
    columns = tf.tile(tf.transpose(features)[None], [targets.shape[0], 1, 1])
    whitened = tf.linalg.triangular_solve(factors, columns)
    leverages = tf.reduce_sum(whitened**2, axis=1)
    residuals = change - tf.matmul(features, solutions)
    residuals /= tf.maximum(1.0 - leverages, _LEAST_FREEDOM)[:, :, None]
    errors = tf.reduce_sum(residuals**2, axis=[1, 2])
    # A fit that goes through a landmark whatever that does says nothing of what it would miss.
    free = tf.reduce_all(leverages <= 1.0 - _LEAST_FREEDOM, axis=1)
    return _best(solutions, tf.where(free, errors, float("inf")), change)


def fit_rbf(before, after, weights):
    """The same with the RBF kernel, on the landmarks alone.

    The kernel's width is the mean squared distance between two landmarks. With G = K + lambda I, the
    leave-one-out residual is (G^-1 change)_i / (G^-1)_ii.

    Args:
        before, after, weights: as for `fit_change`.

    Returns:
        `Rbf`; its coefficients are zero where no penalty beats "nothing changed".
    """
    change = tf.where(weights[:, None] > 0, after - before, 0.0)
    counted = tf.cast(weights > 0, tf.float32)[:, None]
    number = tf.maximum(tf.reduce_sum(counted), 1.0)
    mean = tf.reduce_sum(counted * before, axis=0) / number
    width = 2.0 * tf.reduce_sum(counted * (before - mean) ** 2) / number
    width = tf.maximum(width, 1e-12)
    kernel = _rbf(before, before, width) * weights[:, None] * weights[None, :]
    size = before.shape[0]
    scale = tf.linalg.trace(kernel) / size
    penalties = tf.constant(_RIDGES)[:, None, None] * scale + 1e-12
    factors = tf.linalg.cholesky(kernel + penalties * tf.eye(size))
    identity = tf.tile(tf.eye(size)[None], [len(_RIDGES), 1, 1])
    inverses = tf.linalg.cholesky_solve(factors, identity)
    solutions = tf.matmul(inverses, tf.tile(change[None], [len(_RIDGES), 1, 1]))
    # A landmark that does not count has no residual to judge by: its change is zero.
    residuals = solutions / tf.linalg.diag_part(inverses)[:, :, None]
    errors = tf.reduce_sum(residuals**2, axis=[1, 2])
    return Rbf(before, _best(weights[:, None] * solutions, errors, change), width)


def apply_change(rows, matrix, weights=1.0):
    """Moves rows by the fitted change: rows + weights * [rows, 1] A.

    Args:
        rows: float32 [rows, dim].
        matrix: float32 [dim + 1, dim].
        weights: float32 [rows, 1], the share of the movement that each row is behind; or 1.
    """
    return rows + weights * (tf.matmul(rows, matrix[:-1]) + matrix[-1])


def apply_rbf(rows, rbf, weights=1.0):
    """Moves rows by the fitted change: rows + weights * K(rows, centres) coefficients.

    Args:
        rows, weights: as for `apply_change`.
        rbf: `Rbf`.
    """
    return rows + weights * tf.matmul(_rbf(rows, rbf.centres, rbf.width), rbf.coefficients)


def _best(solutions, errors, change):
    """The solution of the least error, or zero if none is below that of no change."""
    # A factorisation that failed gives NaN, which is never the smallest.
    errors = tf.where(tf.math.is_finite(errors), errors, float("inf"))
    helps = tf.reduce_min(errors) < tf.reduce_sum(change**2)
    return tf.where(helps, tf.gather(solutions, tf.argmin(errors)), 0.0)


def _features(rows):
    return tf.concat([rows, tf.ones_like(rows[:, :1])], axis=1)


def squared_distances(rows, centres):
    """float32 [rows, centres]; rounding may make one slightly negative."""
    squares = tf.reduce_sum(rows**2, axis=1)[:, None] + tf.reduce_sum(centres**2, axis=1)
    return squares - 2.0 * tf.matmul(rows, centres, transpose_b=True)


def _rbf(rows, centres, width):
    return tf.exp(-0.5 * tf.maximum(squared_distances(rows, centres), 0.0) / width)
