"""Doubt: what a row weighs whose encoding is predicted and not known.

A prediction m is the mean of what an encoding y may be by now, and |y - m|^2 is known for rows of the
same age: it is what their predictions turned out to be off by. For an error of that length in any
direction, x = beta |q| |y - m| and nu = dim / 2 - 1,

    log E exp(beta q.y) = beta q.m + log(gamma(nu + 1) (2 / x)^nu I_nu(x)),

the last term of which is x^2 / (2 dim) where x is small. So a row of which little is known is drawn as
often as such rows turn out to be wanted. Scored by its mean alone, which lies the nearer to the origin
the less is known, it would hardly be drawn; by a mean brought back to norm 1, as if it were known.
"""

import tensorflow as tf


def lifts(squared_errors, queries, beta):
    """What is added to the scores q.m of rows, by how far predictions are off.

    To leading order for many dimensions the logarithm above is (dim / 2) (s - 1 - log((1 + s) / 2)),
    where s = sqrt(1 + (2 x / dim)^2) (Abramowitz and Stegun 9.7.7, dim / 2 in the place of nu). That is
    below it by .004 for 64 dimensions and x = 20, by 3 % for 6 dimensions, 10 % for 2.

    Args:
        squared_errors: float32 [kinds], E|y - m|^2 of each kind of rows.
        queries: float32 [queries, dim].
        beta: float32 scalar.

    Returns:
        float32 [queries, kinds], from 0 to |q| |y - m|.
    """
    half = float(queries.shape[1]) / 2.0
    norms = tf.reduce_sum(queries**2, axis=1, keepdims=True)
    square = norms * squared_errors * (beta / half) ** 2
    # s - 1, of which float32 would leave nothing where x is small.
    more = square / (tf.sqrt(1.0 + square) + 1.0)
    return half * (more - tf.math.log1p(0.5 * more)) / beta


def mean_lift(lifts, shares, beta):
    """What is added to the scores of rows, on the average: log of the mean of exp(beta lift) / beta.

    Args:
        lifts: float32 [queries, kinds].
        shares: float32 [kinds], how many rows of each kind there are, up to a factor.
        beta: float32 scalar.

    Returns:
        float32 [queries]; 0 where there are no rows.
    """
    total = tf.reduce_sum(shares)
    weighed = tf.reduce_logsumexp(beta * lifts + tf.math.log(shares / tf.maximum(total, 1e-12)), axis=1)
    return tf.where(total > 0.0, weighed / beta, 0.0)
