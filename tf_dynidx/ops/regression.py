"""Change regression: what a few re-encoded landmarks say about how every other encoding has moved.

Monath et al. 2023 carry gradient updates over to all targets by a Nystroem low-rank
regression. Here the *change* of the encodings is regressed on the encodings, g <- g + phi(g) A, so
that an encoder that did not move leaves every row as it is, exactly. With the linear kernel
phi(g) = [g, 1] and A is a small matrix of its own: applying it costs no pass over the landmarks.
"""

import tensorflow as tf

# Ridge penalties tried, relative to the mean eigenvalue of the features' second moment. They span
# "trust the landmarks" to "shrink nearly all"; leave-one-out error picks.
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def fit_change(before, after, weights):
    """Ridge regression of the change on the encodings, with the ridge picked by leave-one-out.

    The leave-one-out residual of landmark i is r_i / (1 - h_i), with r_i its residual and h_i its
    leverage (Golub, Heath and Wahba 1979), so that trying a penalty costs one small Cholesky
    factorisation. If no penalty beats "nothing changed" by that measure, the fit is zero.

    Args:
        before: float32 [landmarks, dim], the encodings that the index holds.
        after: float32 [landmarks, dim], the same targets, encoded afresh.
        weights: float32 [landmarks], the share of the movement that each has made since the index
            took it in: 1 for one that was held all the time, 0 for an entry that is to be ignored.

    Returns:
        float32 [dim + 1, dim], the matrix A of `apply_change`; always finite.
    """
    features = _features(before) * weights[:, None]
    change = tf.where(weights[:, None] > 0, after - before, 0.0)
    moment = tf.matmul(features, features, transpose_a=True)
    size = moment.shape[0]
    # All penalties at once, [penalties, ...]: one factorisation to compile, not one each.
    ridges = tf.constant(_RIDGES)[:, None, None] * tf.linalg.trace(moment) / size + 1e-12
    factors = tf.linalg.cholesky(moment + ridges * tf.eye(size))
    target = tf.matmul(features, change, transpose_a=True)
    solutions = tf.linalg.cholesky_solve(factors, _repeat(target))
    whitened = tf.linalg.triangular_solve(factors, _repeat(tf.transpose(features)))
    leverages = tf.minimum(tf.reduce_sum(whitened**2, axis=1), 1.0 - 1e-3)
    residuals = (change - tf.matmul(features, solutions)) / (1.0 - leverages)[:, :, None]
    errors = tf.reduce_sum(residuals**2, axis=[1, 2])
    # A factorisation that failed gives NaN, which is never the smallest.
    errors = tf.where(tf.math.is_finite(errors), errors, float("inf"))
    best = tf.argmin(errors)
    helps = tf.reduce_min(errors) < tf.reduce_sum(change**2)
    return tf.where(helps, tf.gather(solutions, best), 0.0)


def _repeat(matrix):
    return tf.tile(matrix[None], [len(_RIDGES), 1, 1])


def apply_change(rows, matrix, weights=1.0):
    """Moves rows by the fitted change: rows + weights * [rows, 1] A.

    Args:
        rows: float32 [rows, dim].
        matrix: float32 [dim + 1, dim].
        weights: float32 [rows, 1], the share of the movement that each row is behind; or 1.
    """
    return rows + weights * (tf.matmul(rows, matrix[:-1]) + matrix[-1])


def _features(rows):
    return tf.concat([rows, tf.ones_like(rows[:, :1])], axis=1)
