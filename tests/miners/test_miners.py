"""What every miner must do, whatever its method."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import exact_softmax
from tf_dynidx import TargetCorpus
from tf_dynidx.miners import Exact, InBatch, Miner, Tree, Uniform

TARGETS, DIM, BETA = 200, 8, 8.0
MINERS = {
    "tree": lambda **changes: Tree(**{"num_negatives": 2, "refresh_every": 2, **changes}),
    "uniform": lambda **changes: Uniform(**{"num_negatives": 2, **changes}),
    "exact": lambda **changes: Exact(**{"num_negatives": 2, **changes}),
    "in-batch": lambda **changes: InBatch(**{k: v for k, v in changes.items() if k == "seed"}),
}
EXACT_LOG_PROB = ("uniform", "exact")
EXCLUDES_POSITIVES = ("tree", "exact")


class World:
    """A "tower" that reads a table, and a miner over it."""

    def __init__(self, miner, targets=TARGETS):
        rng = np.random.default_rng(0)
        table = rng.normal(size=[targets, DIM])
        self.table = tf.Variable(table / np.linalg.norm(table, axis=1, keepdims=True), dtype=tf.float32)
        self.corpus = TargetCorpus(np.arange(targets))
        self.miner = miner
        miner.build(self.corpus, self.encode_rows, lambda: self.table.numpy())

    def encode_rows(self, rows):
        return tf.gather(self.table, rows)

    def mine(self, queries, positives):
        """(rows, log_prob of all targets)."""
        beta = tf.constant(BETA)
        mined, drawn = self.miner.mine(queries, beta, positives)
        everything = tf.range(self.corpus.size)
        return mined, self.miner.log_prob(everything, queries, beta, positives, drawn)


def some_queries(number, seed=1):
    queries = np.random.default_rng(seed).normal(size=[number, DIM])
    return tf.constant(queries / np.linalg.norm(queries, axis=1, keepdims=True), tf.float32)


@pytest.fixture(params=MINERS)
def name(request):
    return request.param


# Draws


def test_draws_have_the_probability_that_is_told_and_never_impossible_rows(name):
    world = World(MINERS[name]())
    kinds, copies, rounds = 3, 512, 8
    queries = tf.repeat(some_queries(kinds), copies, axis=0)
    # The likeliest targets of each query are its positives, so that they would be drawn if they could.
    likeliest = np.argsort(-(some_queries(kinds).numpy() @ world.table.numpy().T), axis=1)[:, :2]
    positives = np.concatenate([likeliest, np.full([kinds, 1], -1)], axis=1).astype(np.int32)
    positives = tf.constant(np.repeat(positives, copies, axis=0))
    mine = tf.function(world.mine)

    counts, probability = np.zeros([kinds, TARGETS]), np.zeros([kinds, TARGETS])
    for _ in range(rounds):
        mined, log_prob = mine(queries, positives)
        told = np.broadcast_to(np.exp(log_prob), [kinds * copies, TARGETS])
        probability += told.reshape(kinds, copies, TARGETS).mean(axis=1) / rounds
        for kind, rows in enumerate(mined.numpy().reshape(kinds, -1)):
            counts[kind] += np.bincount(rows, minlength=TARGETS)

    draws = rounds * copies * world.miner.num_negatives
    assert np.all(counts[probability == 0] == 0)
    frequency = counts / max(draws, 1)
    # Total variation, and what independent draws would show of it by chance.
    distance = 0.5 * np.abs(frequency - probability).sum(axis=1)
    chance = 0.5 * np.sqrt(probability / max(draws, 1)).sum(axis=1)
    slack = 0.0 if name != "tree" else 0.02  # resampling leaves a bias of order 1 / proposals
    assert np.all(distance <= chance + slack)
    if name in EXCLUDES_POSITIVES:
        assert np.all(np.take_along_axis(counts, likeliest, axis=1) == 0)
        truth = exact_softmax(some_queries(kinds), world.table, BETA, likeliest)
        assert np.all(0.5 * np.abs(frequency - truth).sum(axis=1) <= chance + slack)
        # The bound would catch draws from another distribution.
        assert np.all(0.5 * np.abs(frequency - 1 / TARGETS).sum(axis=1) > 5 * (chance + slack))


@pytest.mark.parametrize("name", EXACT_LOG_PROB)
def test_probabilities_of_all_targets_sum_to_one(name):
    world = World(MINERS[name]())
    positives = tf.constant([[3, 7], [5, -1], [-1, -1]])
    _, log_prob = world.mine(some_queries(3), positives)
    np.testing.assert_allclose(np.exp(log_prob).sum(axis=1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", EXCLUDES_POSITIVES)
def test_probability_of_a_known_positive_is_zero(name):
    world = World(MINERS[name]())
    _, log_prob = world.mine(some_queries(3), tf.constant([[3, 7], [5, -1], [-1, -1]]))
    impossible = np.argwhere(np.isneginf(log_prob.numpy())).tolist()
    assert impossible == [[0, 3], [0, 7], [1, 5]]


def test_exact_spans_blocks_of_which_the_last_is_not_full():
    world = World(Exact(num_negatives=8), targets=2048 + 5)
    queries = tf.repeat(some_queries(1), 200, axis=0)
    positives = tf.constant(np.full([200, 1], 2050), tf.int32)
    mined, log_prob = world.mine(queries, positives)
    expected = exact_softmax(some_queries(1), world.table, BETA, [[2050]])
    np.testing.assert_allclose(np.exp(log_prob)[:1], expected, rtol=1e-3)
    frequency = np.bincount(mined.numpy().ravel(), minlength=2053) / mined.numpy().size
    chance = 0.5 * np.sqrt(expected / mined.numpy().size).sum()
    assert 0.5 * np.abs(frequency - expected).sum() <= chance
    assert frequency[2050] == 0


def test_query_whose_positives_are_all_targets_is_no_error(name):
    world = World(MINERS[name](), targets=6)
    mined, log_prob = world.mine(some_queries(2), tf.constant([[0, 1, 2, 3, 4, 5], [0, *[-1] * 5]]))
    assert mined.shape == [2, world.miner.num_negatives]
    assert not np.isnan(log_prob).any()


# Inside of a step


@pytest.mark.parametrize("jit_compile", [False, True])
def test_step_has_static_shapes_and_is_traced_once(name, jit_compile):
    world = World(MINERS[name]())
    traces = []

    @tf.function(jit_compile=jit_compile)
    def step(queries, positives):
        traces.append(1)
        beta = tf.constant(BETA)
        mined, drawn = world.miner.mine(queries, beta, positives)
        rows = tf.concat([positives[:, 0], tf.reshape(mined, [-1])], axis=0)
        log_prob = world.miner.log_prob(rows, queries, beta, positives, drawn)
        assert mined.shape == [4, world.miner.num_negatives]
        assert log_prob.shape in ([4, rows.shape[0]], [1, rows.shape[0]])
        assert mined.dtype == tf.int32 and log_prob.dtype == tf.float32
        world.miner.observe(rows, tf.gather(world.table, rows))
        return mined, log_prob

    for seed in range(5):  # past a refresh of the tree
        mined, log_prob = step(some_queries(4, seed), tf.constant([[1], [2], [3], [4]]))
    assert len(traces) == 1
    assert np.all((mined.numpy() >= 0) & (mined.numpy() < TARGETS))
    assert not np.isnan(log_prob).any()


def test_draws_are_those_of_the_seed_and_new_at_each_call(name):
    def draws(seed):
        world = World(MINERS[name](seed=seed))
        return [
            world.mine(some_queries(16), tf.fill([16, 1], -1))[0].numpy().tolist() for _ in range(2)
        ]

    first = draws(seed=1)
    assert draws(seed=1) == first
    if name != "in-batch":
        assert draws(seed=2) != first
        assert first[0] != first[1]


@pytest.mark.parametrize(
    "name, full_encodes", [("tree", 1), ("uniform", 0), ("exact", 3), ("in-batch", 0)]
)
def test_full_encodes_are_counted(name, full_encodes):
    world = World(MINERS[name]())
    step = tf.function(world.mine)
    for _ in range(3):
        step(some_queries(2), tf.constant([[1], [2]]))
    assert int(world.miner.full_encodes) == full_encodes


# Making one


def test_configuration_makes_the_same_miner(name):
    changes = {"num_negatives": 5, "seed": 3}
    if name == "tree":
        changes |= {"refresh_every": 7, "dtype": "bfloat16"}
        changes |= {"kernel": "rbf", "form": "full", "landmarks": "use"}
    miner = MINERS[name](**changes)
    config = miner.get_config()
    again = type(miner).from_config(config)
    assert type(again) is type(miner)
    assert again.get_config() == config
    assert not again.built
    assert config["seed"] == 3
    if name != "in-batch":
        assert config == changes


@pytest.mark.parametrize("name", [name for name in MINERS if name != "in-batch"])
def test_as_many_negatives_as_targets_are_mined_and_one_more_is_refused(name):
    world = World(MINERS[name](num_negatives=7), targets=7)
    assert world.mine(some_queries(2), tf.fill([2, 1], -1))[0].shape == [2, 7]
    with pytest.raises(ValueError, match="More negatives than targets.*num_negatives=8, 7 targets"):
        World(MINERS[name](num_negatives=8), targets=7)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2", None])
@pytest.mark.parametrize("miner", [Tree, Uniform, Exact])
def test_number_of_negatives_that_is_none_is_refused(miner, number):
    with pytest.raises(ValueError, match=f"at least 1. Received: num_negatives={number!r}"):
        miner(num_negatives=number)


def test_own_miner_may_leave_observe_out():
    class First(Miner):
        def mine(self, queries, beta, positives):
            return tf.zeros([tf.shape(queries)[0], self.num_negatives], tf.int32), None

        def log_prob(self, rows, queries, beta, positives, drawn):
            return tf.math.log(tf.cast(rows == 0, tf.float32))[None]

    world = World(First(num_negatives=1))
    world.miner.observe(tf.constant([1]), tf.zeros([1, DIM]))
    assert world.mine(some_queries(2), tf.fill([2, 1], -1))[0].numpy().tolist() == [[0], [0]]
    assert world.miner.full_encodes == 0
