"""The frontier: a partition of all rows into members of opened leaves and whole unopened leaves."""

from typing import NamedTuple

import tensorflow as tf

from tf_dynidx.ops import draws, masses
from tf_dynidx.ops.leaves import NEVER, gather_places
from tf_dynidx.ops.membership import is_among


class Frontier(NamedTuple):
    """What a query sees of the tree.

    Attributes:
        opened: int32 [queries, width], the opened leaves, heaviest first.
        scores: float32 [queries, width * leaf_size], beta q.y of the opened leaves' members; -inf
            for empty slots and excluded rows.
        ids: int32 [queries, width * leaf_size], their row ids.
        rest: float32 [queries, leaves], log mass of the unopened leaves; -inf for the opened.
    """

    opened: tf.Tensor
    scores: tf.Tensor
    ids: tf.Tensor
    rest: tf.Tensor


class Pool(NamedTuple):
    """Weighted rows whose weights add up to an unbiased estimate of the partition function.

    Attributes:
        ids: int32 [queries, entries].
        scores: float32 [queries, entries], beta q.y.
        log_weights: float32 [queries, entries]: the score itself for a row that stands for itself,
            the log importance weight for a row that was drawn to stand for unopened leaves.
    """

    ids: tf.Tensor
    scores: tf.Tensor
    log_weights: tf.Tensor

    @property
    def log_partition(self):
        """float32 [queries]: log sum of exp(beta q.y), estimated."""
        return tf.reduce_logsumexp(self.log_weights, axis=1)


def open_leaves(leaves, queries, beta, width, exclude):
    """Scores the members of the `width` heaviest leaves exactly; keeps the other leaves whole.

    Args:
        leaves: `tf_dynidx.ops.leaves.Leaves`.
        queries: float32 [queries, dim].
        beta: float32 scalar.
        width: int, at most the number of leaves.
        exclude: int32 [queries, excluded], row ids that count as absent; padded with `NEVER`.

    Returns:
        A `Frontier`. An excluded row still counts in the mass of an unopened leaf; `pool` corrects it.
    """
    mass = masses.log_masses(
        queries, beta, leaves.counts, leaves.centres, leaves.variances, leaves.radii
    )
    _, opened = tf.math.top_k(mass, width, sorted=True)
    batch = tf.shape(queries)[0]
    where = tf.stack([tf.repeat(tf.range(batch), width), tf.reshape(opened, [-1])], axis=1)
    rest = tf.tensor_scatter_nd_update(mass, where, tf.fill([batch * width], -float("inf")))

    # Leaf by leaf a block of memory: one contiguous copy each, which is what gathers cost.
    block = tf.cast(tf.gather(leaves.rows, opened), tf.float32)  # [queries, width, leaf_size, dim]
    dots = tf.einsum("qd,qwsd->qws", queries, block)
    size = leaves.ids.shape[1] * width
    ids = tf.reshape(tf.gather(leaves.ids, opened), [-1, size])
    absent = (ids == NEVER) | is_among(ids, exclude)
    scores = tf.where(absent, -float("inf"), beta * tf.reshape(dots, [-1, size]))
    return Frontier(opened, scores, ids, rest)


def pool(leaves, frontier, queries, beta, proposals, exclude, seed):
    """The opened members, and `proposals` rows that stand for the unopened leaves.

    A proposal is a leaf drawn by its estimated mass and a uniform member of it, so its probability
    is q = mass(c) / (R n_c) with R the sum of the masses; scored on the row table it weighs
    exp(beta q.y) / (q * proposals). (Importance sampling: the correction that the Metropolis-Hastings
    chain of Monath et al. 2023 applies one step after the other.)

    Args:
        leaves, queries, beta, exclude: as for `open_leaves`.
        frontier: what `open_leaves` returned.
        proposals: int, how many rows to draw for each query.
        seed: int32 [2].

    Returns:
        A `Pool` of width * leaf_size + proposals entries.
    """
    seeds = tf.random.split(seed, 2, alg="philox")
    leaf = draws.categorical(frontier.rest, proposals, seeds[0])
    count = tf.gather(leaves.counts, leaf)
    uniform = draws.uniforms(tf.shape(leaf), seeds[1])
    slot = tf.minimum(tf.cast(uniform * tf.cast(count, tf.float32), tf.int32), count - 1)
    place = tf.stack([leaf, tf.maximum(slot, 0)], axis=-1)
    vectors = tf.cast(gather_places(leaves.rows, place), tf.float32)  # [queries, proposals, dim]
    ids = gather_places(leaves.ids, place)
    scores = beta * tf.einsum("qd,qpd->qp", queries, vectors)
    log_q = (
        tf.gather(frontier.rest, leaf, batch_dims=1)
        - tf.reduce_logsumexp(frontier.rest, axis=1, keepdims=True)
        - tf.math.log(tf.cast(count, tf.float32))
    )
    # Where nothing is left unopened, the draws are of mass 0 and count as absent.
    absent = (ids == NEVER) | is_among(ids, exclude) | ~tf.math.is_finite(log_q)
    log_weights = tf.where(absent, -float("inf"), scores - log_q - tf.math.log(float(proposals)))
    return Pool(
        tf.concat([frontier.ids, ids], axis=1),
        tf.concat([frontier.scores, tf.where(absent, -float("inf"), scores)], axis=1),
        tf.concat([frontier.scores, log_weights], axis=1),
    )
