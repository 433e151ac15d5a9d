"""Log masses of tree nodes: estimate and bounds.

The mass of a node c for a query q at inverse temperature beta is sum_{y in c} exp(beta q.y). A node
stores its count n, centre mu (the mean of its members), diagonal variance v and covering radius rho
(the largest distance of a member from mu), and the mass is read off these alone. Proofs: docs/tree.md.
"""

import math

import tensorflow as tf

_MOST_UNEVEN = 30.0  # e to this is as good as infinite, and a float32


def project(queries, moments):
    """What a query sees of the nodes' centres and variances.

    Args:
        queries: float32 [queries, dim].
        moments: float32 [nodes, 2 * dim], as in `tf_dynidx.ops.nodes.Level`, or one set of nodes for
            each query: [queries, nodes, 2 * dim].

    Returns:
        (along, across): q.mu and sum_i q_i^2 v_i, float32 [queries, nodes] each.
    """
    if moments.shape.rank == 2:
        centres, variances = tf.split(moments, 2, axis=1)
        return (
            tf.matmul(queries, centres, transpose_b=True),
            tf.matmul(queries**2, variances, transpose_b=True),
        )
    nodes, dim = tf.shape(moments)[1], queries.shape[1]
    pairs = tf.reshape(moments, [-1, nodes, 2, dim])
    # Product and sum, not einsum: XLA then makes one loop of them and of the gather before.
    seen = tf.reduce_sum(pairs * tf.stack([queries, queries**2], axis=1)[:, None], axis=3)
    return seen[:, :, 0], seen[:, :, 1]


def log_masses(along, across, spread, counts, beta):
    """Second-order estimate of the log mass of every node, never outside its bounds.

    log n + beta q.mu + c with c = 1/2 beta^2 sum_i q_i^2 v_i is the cumulant expansion of the log
    mass, cut after the second term, with the covariance taken as diagonal. The term c grows without
    end, as if there were members arbitrarily far out; n members drawn from a Gaussian have none beyond
    sqrt(2 log n) deviations, and for c > log n their log mass is log n + beta q.mu + 2 sqrt(c log n)
    - log n (Derrida's random energy model, Phys. Rev. B 24, 1981, below its freezing temperature).

    Args:
        along, across: float32 [queries, nodes], as from `project`.
        spread: float32 [queries, nodes], beta |q| rho: how far beta q.y may be from beta q.mu.
        counts: int32 [nodes] or [queries, nodes].
        beta: float32 scalar, the inverse temperature.

    Returns:
        float32 [queries, nodes]; -inf for an empty node.
    """
    curvature = 0.5 * beta**2 * across
    log_counts = tf.math.log(tf.maximum(tf.cast(counts, tf.float32), 1.0))
    frozen = 2.0 * tf.sqrt(curvature * log_counts) - log_counts
    curvature = tf.where(curvature > log_counts, frozen, curvature)
    return _first_order(along, counts, beta) + tf.minimum(curvature, _log_cosh(spread))


def log_unevenness(across, beta):
    """How unevenly the members of every node share its mass: log of E[w^2] / E[w]^2.

    For Gaussian exponents it is their variance, which is read off the node's. Among n members it is
    log n at most, but where it is above that the node's mass, too, is known by its order only.

    Args:
        across, beta: as for `log_masses`.

    Returns:
        float32 [queries, nodes].
    """
    return tf.minimum(beta**2 * across, _MOST_UNEVEN)


def log_mass_bounds(along, spread, counts, beta):
    """Lower and upper bound of the log mass of every node.

    With X = q.(y - mu) for a member y drawn uniformly, E[X] = 0 because mu is the mean, and
    |X| <= |q| rho by Cauchy-Schwarz. Jensen's inequality then gives E[exp(beta X)] >= 1, and
    convexity of exp on [-|q| rho, |q| rho] gives E[exp(beta X)] <= cosh(beta |q| rho) (the first
    step of Hoeffding's lemma).

    Args:
        along, spread, counts, beta: as for `log_masses`.

    Returns:
        (lower, upper), float32 [queries, nodes] each; -inf for an empty node.
    """
    linear = _first_order(along, counts, beta)
    return linear, linear + _log_cosh(spread)


def within_two_spreads(log_masses, along, spread, counts, widest, beta):
    """The log masses of a frontier, lowered where its draws could otherwise be off too far.

    A row y that is drawn by picking a node by these masses and a uniform member of it has, with
    x = max over nodes of beta |q| rho, a probability q(y) with |log p(y) - log q(y)| <= 2 x, p being
    the softmax. Masses anywhere within the bounds guarantee 3 x only; holding a node's excess over its
    lower bound to 2 x - x_c - log cosh x, with x_c its own beta |q| rho, brings that to 2 x.

    Args:
        log_masses: float32 [queries, nodes]; -inf marks a node that does not take part.
        along, spread, counts, beta: as for `log_masses`.
        widest: float32 [queries, 1], the largest spread of the frontier's nodes, as from
            `widest_spread`.

    Returns:
        float32 [queries, nodes], nowhere larger than `log_masses`.
    """
    excess = tf.maximum(2.0 * widest - spread - _log_cosh(widest), 0.0)
    return tf.minimum(log_masses, _first_order(along, counts, beta) + excess)


def widest_spread(log_masses, spread):
    """The largest spread of the nodes that take part: float32 [queries, 1]. Args: as above."""
    taking_part = tf.where(tf.math.is_finite(log_masses), spread, 0.0)
    return tf.reduce_max(taking_part, axis=1, keepdims=True)


def _first_order(along, counts, beta):
    """log n + beta q.mu."""
    return tf.math.log(tf.cast(counts, tf.float32)) + beta * along  # log 0 = -inf: nothing there


def _log_cosh(x):
    """log cosh x for x >= 0, without overflow, and never rounded below 0."""
    return tf.maximum(x + tf.math.log1p(tf.exp(-2.0 * x)) - math.log(2.0), 0.0)
