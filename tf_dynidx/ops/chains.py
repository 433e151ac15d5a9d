"""Metropolis-Hastings chains over proposals from the frontier (Monath et al. 2023, section 4)."""

import tensorflow as tf

from tf_dynidx.ops import draws


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
