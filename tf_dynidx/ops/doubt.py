"""Doubt: what a row is drawn by whose encoding is predicted and not known.

A prediction m is the mean of what an encoding y may be by now, and what the row weighs, exp(beta q.y),
is not known. Draws go by the power mean, of some order r, of what it may weigh:

    q.m + log E exp(r beta q.(y - m)) / (r beta).

Of order 1 that is the expected weight, as near as draws come to the softmax over the true encodings. Of
order 2 it is the root of the mean square, by which what is *estimated* from draws varies the least:
importance sampling of an integrand that is itself random has a variance of the sum of E exp(2 beta q.y)
/ p (Owen, Monte Carlo theory, methods and examples, 9.1, for one that is known). That counts doubt
twice. Scored by its mean alone, which lies the nearer to the origin the less is known, a row would
hardly be drawn; by a mean brought back to norm 1, as if it were known.

How long errors of rows of one age are, and which directions they prefer, is measured. For a query along
which their variance is that of an error in any direction of a space of D dimensions, with x = r beta
|q| |y - m| and nu = D / 2 - 1,

    log E exp(r beta q.(y - m)) = log(gamma(nu + 1) (2 / x)^nu I_nu(x)),

which is x^2 / (2 D) where x is small.
"""

from typing import NamedTuple

import tensorflow as tf

_LEAST = 1e-6  # share of the squared length of errors that goes along any query, at least


class Lifts(NamedTuple):
    """What is added to the scores q.m of rows of several kinds: the products of the two.

    Two numbers for a query and two for a kind of rows, so that the scores of all rows can be lifted
    without a number for every query and kind.

    Attributes:
        by_query: float32 [queries, 2].
        by_kind: float32 [kinds, 2].
    """

    by_query: tf.Tensor
    by_kind: tf.Tensor


def dimensions(errors, queries):
    """In how many dimensions an error in any direction would vary as much along a query: D above.

    Args:
        errors: float32 [dim, dim], sum of (y - m) (y - m)^T over errors, up to a factor.
        queries: float32 [queries, dim].

    Returns:
        float32 [queries], at least 1: |q|^2 tr(errors) / q^T errors q.
    """
    along = tf.reduce_sum(tf.matmul(queries, errors) * queries, axis=1)
    anywhere = tf.reduce_sum(queries**2, axis=1) * tf.linalg.trace(errors)
    # Of none, or for a query of none, any number will do.
    return tf.maximum(anywhere / tf.maximum(along, _LEAST * anywhere + 1e-30), 1.0)


def lifts(squared_errors, dims, queries, beta):
    """`Lifts` of rows, by how far predictions are off.

    `lift` at the largest error and at half of it, and in between by the quadratic through those and
    the 0 of no error, in |y - m|. That is exact where the lift goes with x^2 and where it goes with x,
    at the one end and at the other; off by up to 1 % of the largest lift where x is at most D / 2, by
    4 % anywhere; and it stays between 0 and |q| |y - m|.

    Args:
        squared_errors: float32 [kinds], E|y - m|^2 of each kind of rows.
        dims: float32 [queries], as `dimensions`.
        queries: float32 [queries, dim].
        beta: float32 scalar; r beta for the power mean of order r.
    """
    largest = tf.reduce_max(squared_errors)
    part = tf.sqrt(tf.math.divide_no_nan(squared_errors, largest))
    return Lifts(
        lift(tf.stack([largest, largest / 4.0]), dims, queries, beta),
        tf.stack([part * (2.0 * part - 1.0), 4.0 * part * (1.0 - part)], axis=1),
    )


def of_kinds(lifts, kinds):
    """What is added to the scores of rows.

    Args:
        lifts: `Lifts`.
        kinds: int32 [rows], the kinds of rows that all queries see; or [queries, rows].

    Returns:
        float32 [queries, rows].
    """
    # Not as a matrix product, which would be written out before it is added to anything.
    products = [
        lifts.by_query[:, each, None] * tf.gather(lifts.by_kind[:, each], kinds) for each in range(2)
    ]
    return products[0] + products[1]


def of_all_kinds(lifts):
    """What is added to the scores of rows of each kind: float32 [queries, kinds]."""
    return tf.matmul(lifts.by_query, lifts.by_kind, transpose_b=True)


def lift(squared_errors, dims, queries, beta):
    """What is added to the scores q.m of rows, by how far predictions are off.

    To leading order for many dimensions the logarithm above is (D / 2) (s - 1 - log((1 + s) / 2)),
    where s = sqrt(1 + (2 x / D)^2) (Abramowitz and Stegun 9.7.7, D / 2 in the place of nu). That is
    below it by .004 for 64 dimensions and x = 20, by 3 % for 6 dimensions, 10 % for 2.

    Args:
        squared_errors: float32 [kinds], E|y - m|^2 of each kind of rows.
        dims: float32 [queries], as `dimensions`.
        queries: float32 [queries, dim].
        beta: float32 scalar; r beta for the power mean of order r.

    Returns:
        float32 [queries, kinds], from 0 to |q| |y - m|.
    """
    half = dims[:, None] / 2.0
    norms = tf.reduce_sum(queries**2, axis=1, keepdims=True)
    square = norms * squared_errors * (beta / half) ** 2
    # s - 1, of which float32 would leave nothing where x is small.
    more = square / (tf.sqrt(1.0 + square) + 1.0)
    return half * (more - tf.math.log1p(0.5 * more)) / beta


def mean_lift(lifts, shares, beta):
    """What is added to the scores of rows, on the average: log of the mean of exp(beta lift) / beta.

    Args:
        lifts: `Lifts`.
        shares: float32 [kinds], how many rows of each kind there are, up to a factor.
        beta: float32 scalar.

    Returns:
        float32 [queries]; 0 where there are no rows.
    """
    total = tf.reduce_sum(shares)
    weights = tf.math.log(shares / tf.maximum(total, 1e-12))
    weighed = tf.reduce_logsumexp(beta * of_all_kinds(lifts) + weights, axis=1)
    return tf.where(total > 0.0, weighed / beta, 0.0)
