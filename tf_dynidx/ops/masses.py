"""Log masses of tree nodes: estimate and bounds.

The mass of a node c for a query q at inverse temperature beta is sum_{y in c} exp(beta q.y). A node
stores its count n, centre mu (the mean of its members), diagonal variance v and covering radius rho
(the largest distance of a member from mu), and the mass is read off these alone.
"""

import math

import tensorflow as tf


def log_masses(queries, beta, counts, centres, variances, radii):
    """Second-order estimate of the log mass of every node, never outside its bounds.

    log n + beta q.mu + c with c = 1/2 beta^2 sum_i q_i^2 v_i is the cumulant expansion of the log
    mass, cut after the second term, with the covariance taken as diagonal. The term c grows without
    end, as if there were members arbitrarily far out; n members drawn from a Gaussian have none beyond
    sqrt(2 log n) deviations, and for c > log n their log mass is log n + beta q.mu + 2 sqrt(c log n)
    - log n (Derrida's random energy model, Phys. Rev. B 24, 1981, below its freezing temperature).

    Args:
        queries: float32 [queries, dim].
        beta: float32 scalar, the inverse temperature.
        counts: int32 [nodes].
        centres: float32 [nodes, dim].
        variances: float32 [nodes, dim].
        radii: float32 [nodes].

    Returns:
        float32 [queries, nodes]; -inf for an empty node.
    """
    linear, spread = _first_order(queries, beta, counts, centres, radii)
    curvature = 0.5 * beta**2 * tf.matmul(queries**2, variances, transpose_b=True)
    log_counts = tf.math.log(tf.maximum(tf.cast(counts, tf.float32), 1.0))
    frozen = 2.0 * tf.sqrt(curvature * log_counts) - log_counts
    curvature = tf.where(curvature > log_counts, frozen, curvature)
    return linear + tf.minimum(curvature, _log_cosh(spread))


def log_mass_bounds(queries, beta, counts, centres, radii):
    """Lower and upper bound of the log mass of every node.

    With X = q.(y - mu) for a member y drawn uniformly, E[X] = 0 because mu is the mean, and
    |X| <= |q| rho by Cauchy-Schwarz. Jensen's inequality then gives E[exp(beta X)] >= 1, and
    convexity of exp on [-|q| rho, |q| rho] gives E[exp(beta X)] <= cosh(beta |q| rho) (the first
    step of Hoeffding's lemma).

    Args:
        queries, beta, counts, centres, radii: as for `log_masses`.

    Returns:
        (lower, upper), float32 [queries, nodes] each; -inf for an empty node.
    """
    linear, spread = _first_order(queries, beta, counts, centres, radii)
    return linear, linear + _log_cosh(spread)


def _first_order(queries, beta, counts, centres, radii):
    """log n + beta q.mu, and beta |q| rho: both [queries, nodes]."""
    log_counts = tf.math.log(tf.cast(counts, tf.float32))  # log 0 = -inf: an empty node has no mass
    linear = log_counts + beta * tf.matmul(queries, centres, transpose_b=True)
    spread = beta * tf.norm(queries, axis=1, keepdims=True) * radii
    return linear, spread


def _log_cosh(x):
    """log cosh x for x >= 0, without overflow, and never rounded below 0."""
    return tf.maximum(x + tf.math.log1p(tf.exp(-2.0 * x)) - math.log(2.0), 0.0)
