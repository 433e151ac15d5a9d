"""Doubt: what a row weighs whose encoding is predicted and not known.

A prediction m is the mean of what an encoding y may be by now, and |y - m|^2 is known for rows of the
same age: it is what their predictions turned out to be off by. With that spread evenly over the
directions,

    log E exp(beta q.y) = beta q.m + beta^2 |q|^2 E|y - m|^2 / (2 dim)

to second order in beta. So a row of which little is known is drawn as often as such rows turn out to be
wanted. Scored by its mean alone, which lies the nearer to the origin the less is known, it would hardly
be drawn; by a mean brought back to norm 1, as if it were known.
"""

import tensorflow as tf


def lifts(squared_errors, queries, beta):
    """What is added to the scores q.m of rows, by how far predictions are off.

    Args:
        squared_errors: float32 [kinds], E|y - m|^2 of each kind of rows.
        queries: float32 [queries, dim].
        beta: float32 scalar.

    Returns:
        float32 [queries, kinds], nowhere negative.
    """
    norms = tf.reduce_sum(queries**2, axis=1, keepdims=True)
    return 0.5 * beta * norms * squared_errors / float(queries.shape[1])


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
