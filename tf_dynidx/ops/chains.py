"""Metropolis-Hastings chains over proposals from the frontier (Monath et al. 2023, section 4)."""

import tensorflow as tf

from tf_dynidx.ops import draws, frontier
from tf_dynidx.ops.membership import is_among
from tf_dynidx.ops.nodes import NEVER

_FEWEST_STEPS = 16  # of a chain


def sample(rows, ids, levels, front, queries, beta, shape, exclude, num_samples, seed, lift_of=None):
    """Draws by one chain each, over proposals from the frontier, and the log partition by the same.

    A proposal is a row of an opened leaf with its exact weight, or an unopened node by its mass and a
    uniform member of it. Chains are as long as the budget allows, and 16 steps at least.

    Args:
        rows, ids, levels, queries, beta, shape, exclude, lift_of: as for
            `tf_dynidx.ops.frontier.pool`.
        front: what `tf_dynidx.ops.frontier.open_nodes` returned.
        num_samples: int.
        seed: int32 [2].

    Returns:
        (ids, scores, log_partition): int32 and float32 [queries, num_samples], the scores beta q.y,
        -inf where nothing could be drawn; float32 [queries].
    """
    seeds = tf.random.split(seed, 4, alg="philox")
    batch = tf.shape(queries)[0]
    member_slots, member_scores = frontier.members(rows, front, queries, beta, shape)
    if lift_of is not None:
        member_scores += beta * lift_of(tf.range(batch), tf.gather(ids, member_slots))
    closed = frontier.closed_nodes(levels, front.rest, beta, shape)
    rest = closed.log_total[:, None]
    log_weights = tf.concat([member_scores, rest], axis=1)
    # Proposals of a chain must be independent of one another: not stratified.
    proposals = num_samples * max(_FEWEST_STEPS, shape.budget // num_samples)
    entry = draws.entries_at(log_weights, draws.uniforms([batch, proposals], seeds[0]))
    points = draws.uniforms([batch, proposals], seeds[1])
    drawn, log_q = frontier.propose(levels, closed, shape, points, seeds[2])
    member = entry < shape.budget
    picked = tf.gather(member_slots, tf.minimum(entry, shape.budget - 1), batch_dims=1)
    slots = tf.where(member, picked, drawn)
    found = tf.gather(ids, slots)
    scores = frontier.dots(queries, rows, slots)
    scores = beta * (scores if lift_of is None else scores + lift_of(tf.range(batch), found))
    absent = (found == NEVER) | is_among(found, exclude) | ~(member | tf.math.is_finite(log_q))
    log_ratios = tf.where(member, 0.0, scores - log_q - rest)
    log_ratios = tf.where(absent, -float("inf"), log_ratios)
    log_partition = (
        tf.reduce_logsumexp(log_weights, axis=1)
        + tf.reduce_logsumexp(log_ratios, axis=1)
        - tf.math.log(float(proposals))
    )
    last = last_states(log_ratios, num_samples, seeds[3])
    drawable = tf.math.is_finite(tf.gather(log_ratios, last, batch_dims=1))
    scores = tf.where(drawable, tf.gather(scores, last, batch_dims=1), -float("inf"))
    return tf.gather(found, last, batch_dims=1), scores, log_partition


def last_states(log_ratios, num_chains, seed):
    """The last state of independence chains over given proposals, for every query.

    A chain starts at its first proposal and moves to the next one with probability min(1, w' / w), w
    being target over proposal density: its stationary distribution is the target (Hastings 1970,
    Biometrika 57).

    Args:
        log_ratios: float32 [queries, proposals], log w of independent proposals up to a constant; -inf
            for one that may not be drawn. Chain c runs over proposals c, c + num_chains, ...
        num_chains: int, divides the number of proposals.
        seed: int32 [2].

    Returns:
        int32 [queries, num_chains], which proposal each chain ends at.
    """
    batch = tf.shape(log_ratios)[0]
    steps = log_ratios.shape[1] // num_chains
    log_ratios = tf.reshape(log_ratios, [batch, steps, num_chains])
    chances = draws.uniforms([batch, steps, num_chains], seed)
    own = tf.range(num_chains)[None]

    def step(number, state, log_ratio):
        proposed = log_ratios[:, number]
        # u < w'/w without the quotient; a chain in a state of weight 0 always leaves it.
        moves = tf.math.log(chances[:, number]) + log_ratio < proposed
        state = tf.where(moves, number * num_chains + own, state)
        return number + 1, state, tf.where(moves, proposed, log_ratio)

    state = tf.tile(own, [batch, 1])
    _, state, _ = tf.while_loop(
        lambda number, *_: number < steps,
        step,
        (tf.constant(1), state, log_ratios[:, 0]),
        maximum_iterations=steps,
    )
    return state
