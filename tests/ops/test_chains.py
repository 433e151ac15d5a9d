import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import expected_total_variation, total_variation
from tf_dynidx.ops import chains

TARGET = np.array([0.02, 0.5, 0.3, 0.15, 0.03, 0.0])
PROPOSAL = np.array([0.3, 0.05, 0.25, 0.2, 0.1, 0.1])


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "xla"])
def last_states(request):
    """`chains.last_states` as NumPy, with XLA and without."""
    run = tf.function(chains.last_states, jit_compile=request.param, autograph=False)
    return lambda log_ratios, num_chains, seed=1: run(
        tf.constant(log_ratios, tf.float32), num_chains, tf.constant([seed, 2])
    ).numpy()


def run_chains(last_states, steps, chains_each=50, queries=500):
    """How often chains of so many steps end in each state of a small space, and the proposals."""
    rng = np.random.default_rng(steps)
    proposed = rng.choice(len(TARGET), p=PROPOSAL, size=[queries, steps * chains_each])
    with np.errstate(divide="ignore"):
        log_ratios = (np.log(TARGET) - np.log(PROPOSAL))[proposed] + 7.0  # known up to a constant
    last = last_states(log_ratios, chains_each)
    states = np.take_along_axis(proposed, last, axis=1)
    return np.bincount(states.ravel(), minlength=len(TARGET))


def transition():
    """The chain's matrix of moves: propose independently, accept with min(1, w' / w)."""
    ratio = TARGET / PROPOSAL
    with np.errstate(divide="ignore", invalid="ignore"):
        accept = np.where(ratio[:, None] > 0, np.minimum(1.0, ratio[None] / ratio[:, None]), 1.0)
    moves = PROPOSAL * accept
    return moves + np.diag(1.0 - moves.sum(axis=1))


@pytest.mark.parametrize("steps", [1, 2, 5, 120])
def test_last_states_have_the_distribution_of_so_many_moves(last_states, steps):
    counts = run_chains(last_states, steps)
    expected = PROPOSAL @ np.linalg.matrix_power(transition(), steps - 1)
    chance = expected_total_variation(np.random.default_rng(0), counts.sum(), expected)
    assert total_variation(counts, expected) < 3.0 * chance
    if steps == 120:
        assert total_variation(counts, TARGET) < 3.0 * chance and counts[5] == 0
    else:
        assert total_variation(counts, TARGET) > 10.0 * chance  # not reached yet


def test_chain_runs_over_every_so_many_th_proposal(last_states):
    log_ratios = np.zeros([300, 12])
    log_ratios[:, 6:] = 50.0  # a move to the last two is never refused
    log_ratios[:, 9:] = 100.0
    np.testing.assert_array_equal(last_states(log_ratios, 3), np.tile([9, 10, 11], [300, 1]))


@given(data=st.data())
def test_state_of_no_weight_is_last_only_where_nothing_else_was_proposed(last_states, data):
    weights = st.one_of(st.just(-np.inf), st.floats(-80.0, 80.0, width=32))
    rows = data.draw(st.lists(st.lists(weights, min_size=12, max_size=12), min_size=4, max_size=4))
    log_ratios = np.array(rows, np.float32)
    last = last_states(log_ratios, 3, data.draw(st.integers(0, 999)))
    np.testing.assert_array_equal(last % 3, np.tile(np.arange(3), [4, 1]))
    for row, states in zip(log_ratios, last, strict=True):
        for chain, state in enumerate(states):
            assert np.isfinite(row[state]) or not np.isfinite(row[chain::3]).any()


def test_one_proposal_is_the_last_state(last_states):
    log_ratios = np.array([[0.0, -np.inf, 5.0]])
    np.testing.assert_array_equal(last_states(log_ratios, 3), [[0, 1, 2]])


def test_same_seed_gives_the_same_states_and_another_seed_others(last_states):
    log_ratios = np.random.default_rng(0).normal(size=[50, 200])
    last = last_states(log_ratios, 10)
    np.testing.assert_array_equal(last_states(log_ratios, 10), last)
    assert (last_states(log_ratios, 10, seed=3) != last).mean() > 0.2
