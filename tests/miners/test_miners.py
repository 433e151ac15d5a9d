"""What every miner must do, whatever its method."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import binom

from tests.miners.worlds import BETA, DIM, MINERS, TARGETS, World, own_miner, some_queries
from tests.reference import exact_softmax
from tf_dynidx import miners
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import (
    Exact,
    InBatch,
    Miner,
    NegativeCache,
    Popularity,
    Stale,
    Stochastic,
    Tree,
    Uniform,
)
from tf_dynidx.variables import named_variables, read, write

# Draws

KINDS = 3  # of queries
QUERIES = some_queries(KINDS)
# What training has shown: some targets often, and most never.
SHOWN = np.random.default_rng(4).integers(40, size=300).astype(np.int32) ** 2 % TARGETS
EXCLUDES_POSITIVES = ("tree", "flat", "stale", "cache", "exact", "stochastic")
# The hardest of a sample that has every target in it, so that the rank of each is known.
SAMPLED = {"stochastic": {"num_negatives": 100, "num_candidates": 2000}}
# Total variation beyond chance. Tree: resampling leaves a bias of order 1 / proposals. Stochastic:
# ranks are known from a sample.
SLACK = {"tree": 0.02, "stochastic": 0.03}


def softmax(world, positives):
    return exact_softmax(QUERIES, world.table, BETA, positives)


def softmax_of_cached(world, positives):
    uncached = np.setdiff1d(np.arange(TARGETS), world.miner.rows.numpy())
    out = np.concatenate([positives, np.tile(uncached, [KINDS, 1])], axis=1)
    return exact_softmax(QUERIES, world.table, BETA, out)


def uniform(world, positives):
    return np.full([KINDS, TARGETS], 1 / TARGETS)


def popularity(world, positives):
    weights = (np.bincount(SHOWN, minlength=TARGETS) + 1.0) ** 0.75
    return np.tile(weights / weights.sum(), [KINDS, 1])


def hardest_of_a_sample(world, positives):
    """The s-th best of M uniform draws is among the r best targets if at least s of M draws are."""
    draws, kept = world.miner.num_candidates, world.miner.num_negatives
    scores = QUERIES.numpy() @ world.table.numpy().T
    np.put_along_axis(scores, positives, -np.inf, axis=1)
    ranks = np.argsort(np.argsort(-scores, axis=1), axis=1)

    def expected(share):
        return sum(binom.sf(place, draws, share) for place in range(kept))

    found = (expected((ranks + 1) / TARGETS) - expected(ranks / TARGETS)) / kept
    return np.where(np.isneginf(scores), 0.0, found)


def recent(world, positives):
    return np.tile(np.bincount(SHOWN[-64:], minlength=TARGETS) / 64, [KINDS, 1])


def nothing(world, positives):
    return np.zeros([KINDS, TARGETS])


def mixture(first, second):
    def of(world, positives):
        return first * popularity(world, positives) + second * softmax(world, positives)

    return of


TRUTHS = {
    "tree": softmax,
    "flat": softmax,
    "in-batch": nothing,
    "uniform": uniform,
    "popularity": popularity,
    "stochastic": hardest_of_a_sample,
    "stale": softmax,
    "cache": softmax,
    "small cache": softmax_of_cached,
    "exact": softmax,
    "mixed": mixture(0.5, 0.5),
    "weighted": mixture(0.7, 0.3),
    "own": recent,
}


@pytest.fixture(params=MINERS)
def name(request):
    return request.param


def test_draws_have_the_probability_that_is_told_which_is_that_of_the_method(name):
    world = World(MINERS[name](**SAMPLED.get(name, {})))
    # A sample is shared by the batch, so that its draws are independent from call to call only.
    copies, rounds = (1, 400) if name == "stochastic" else (512, 8)
    queries = tf.repeat(QUERIES, copies, axis=0)
    # The likeliest targets of each query are its positives, so that they would be drawn if they could.
    likeliest = np.argsort(-(QUERIES.numpy() @ world.table.numpy().T), axis=1)[:, :2]
    positives = np.concatenate([likeliest, np.full([KINDS, 1], -1)], axis=1).astype(np.int32)
    positives = tf.constant(np.repeat(positives, copies, axis=0))
    for row in SHOWN:
        world.miner.observe_positives(tf.constant([row, 9]), tf.constant([1.0, 0.0]))
    if name == "own":  # which knows no weights within its memory
        world.miner.recent.assign(SHOWN[-64:])
    mine = tf.function(world.mine)

    counts, told = np.zeros([KINDS, TARGETS]), np.zeros([KINDS, TARGETS])
    for _ in range(rounds):
        mined, log_prob = mine(queries, positives)
        probability = np.broadcast_to(np.exp(log_prob), [KINDS * copies, TARGETS])
        told += probability.reshape(KINDS, copies, TARGETS).mean(axis=1) / rounds
        for kind, rows in enumerate(mined.numpy().reshape(KINDS, -1)):
            counts[kind] += np.bincount(rows, minlength=TARGETS)

    draws = rounds * copies * world.miner.num_negatives
    truth = TRUTHS[name](world, likeliest)
    assert np.all(counts[truth == 0] == 0) and np.all(told[truth == 0] < 1e-4)
    frequency = counts / max(draws, 1)
    # Total variation, and what independent draws would show of it by chance.
    chance = 0.5 * np.sqrt(truth / max(draws, 1)).sum(axis=1) + SLACK.get(name, 0.0)
    assert np.all(0.5 * np.abs(frequency - told).sum(axis=1) <= chance)
    assert np.all(0.5 * np.abs(frequency - truth).sum(axis=1) <= chance)
    assert np.all(0.5 * np.abs(told - truth).sum(axis=1) <= max(SLACK.get(name, 0.0), 1e-3))
    if name in EXCLUDES_POSITIVES:
        assert np.all(np.take_along_axis(counts, likeliest, axis=1) == 0)
    if name not in ("uniform", "in-batch"):
        # The bound would catch draws from another distribution.
        assert np.all(0.5 * np.abs(frequency - 1 / TARGETS).sum(axis=1) > 5 * chance)


ESTIMATES = ("tree", "stochastic")  # the partition function, or the ranks


@pytest.mark.parametrize("name", [name for name in MINERS if name not in ("in-batch", *ESTIMATES)])
def test_probabilities_of_all_targets_sum_to_one(name):
    world = World(MINERS[name]())
    _, log_prob = world.mine(some_queries(3), tf.constant([[3, 7], [5, -1], [-1, -1]]))
    np.testing.assert_allclose(np.exp(log_prob).sum(axis=1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", EXCLUDES_POSITIVES)
def test_probability_of_a_known_positive_is_zero(name):
    world = World(MINERS[name]())
    _, log_prob = world.mine(some_queries(3), tf.constant([[3, 7], [5, -1], [-1, -1]]))
    impossible = np.argwhere(np.isneginf(log_prob.numpy())).tolist()
    assert impossible == [[0, 3], [0, 7], [1, 5]]


@pytest.mark.parametrize("name", [name for name in MINERS if name != "in-batch"])
def test_probabilities_of_own_rows_are_among_those_of_all(name):
    """What each query is told of its own draws; the first rows are positives, or not cached."""
    world, queries, beta = World(MINERS[name]()), some_queries(3), tf.constant(BETA)
    positives = tf.constant([[3, 7], [5, -1], [-1, -1]])
    mined, drawn = world.miner.mine(queries, beta, positives)
    rows = tf.concat([[[3], [5], [199]], mined], axis=1)
    everything = world.miner.log_prob(tf.range(TARGETS), queries, beta, positives, drawn)
    expected = np.take_along_axis(np.broadcast_to(everything, [3, TARGETS]), rows.numpy(), axis=1)
    own = world.miner.own_log_prob(rows, queries, beta, positives, drawn)
    assert own.shape == rows.shape
    np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MINERS if name != "in-batch"])
def test_probabilities_of_own_rows_take_no_matrix_of_all(name):
    batch, negatives = 24, 12
    miner = World(MINERS[name](num_negatives=negatives)).miner

    @tf.function
    def own(queries, positives):
        mined, drawn = miner.mine(queries, tf.constant(BETA), positives)
        return miner.own_log_prob(mined, queries, tf.constant(BETA), positives, drawn)

    graph = own.get_concrete_function(some_queries(batch), tf.fill([batch, 1], 5)).graph
    shapes = [each.shape for operation in graph.get_operations() for each in operation.outputs]
    known = [shape.as_list() for shape in shapes if shape.rank is not None]
    assert [batch, negatives] in known
    assert [batch, batch * negatives] not in known and [batch, batch, negatives] not in known


def test_query_whose_positives_are_all_targets_is_no_error(name):
    world = World(MINERS[name](), targets=6)
    mined, log_prob = world.mine(some_queries(2), tf.constant([[0, 1, 2, 3, 4, 5], [0, *[-1] * 5]]))
    assert mined.shape == [2, world.miner.num_negatives]
    assert np.all((mined.numpy() >= 0) & (mined.numpy() < 6))
    assert not np.isnan(log_prob).any()


# Inside of a step


def last_of_five_steps(miner, jit_compile):
    """(rows, log_prob) of the last of some steps, of which one refreshes what is behind."""
    world, traces = World(miner), []

    @tf.function(jit_compile=jit_compile)
    def step(queries, positives):
        traces.append(1)
        mined, log_prob = world.step(queries, positives)
        rows = positives.shape[0] * (1 + miner.num_negatives)
        assert mined.shape == [4, miner.num_negatives]
        assert log_prob.shape in ([4, rows], [1, rows])
        assert mined.dtype == tf.int32 and log_prob.dtype == tf.float32
        return mined, log_prob

    for seed in range(5):
        mined, log_prob = step(some_queries(4, seed), tf.constant([[1], [2], [3], [-1]]))
    assert len(traces) == 1
    assert np.all((mined.numpy() >= 0) & (mined.numpy() < TARGETS))
    assert not np.isnan(log_prob).any()
    assert int(miner.rows_encoded) == int(world.encoded)
    return mined.numpy(), log_prob.numpy()


def test_step_has_static_shapes_and_is_traced_once_and_does_the_same_by_xla(name):
    without, with_xla = (last_of_five_steps(MINERS[name](), each) for each in (False, True))
    if name != "tree":  # which may open other leaves where scores are rounded
        np.testing.assert_array_equal(without[0], with_xla[0])
        np.testing.assert_allclose(without[1], with_xla[1], rtol=1e-4)


def test_draws_are_those_of_the_seed_and_new_at_each_call(name):
    def draws(seed):
        world = World(MINERS[name](seed=seed))
        return [
            world.mine(some_queries(16), tf.fill([16, 1], -1))[0].numpy().tolist() for _ in range(2)
        ]

    first = draws(seed=1)
    assert draws(seed=1) == first
    if name not in ("in-batch", "mixed"):  # a mixture has the seeds of its parts
        assert draws(seed=2) != first
    if name != "in-batch":
        assert first[0] != first[1]


# full_encodes and rows_encoded, after seven steps.
_TREE = 7 + 3 * 16 * (DIM + 1)  # rows whose turn it is, and landmarks at every second step
COUNTS = {
    "tree": (1, TARGETS + _TREE),
    "flat": (1, TARGETS + _TREE),
    "in-batch": (0, 0),
    "uniform": (0, 0),
    "popularity": (0, 0),
    "stochastic": (0, 7 * 64),
    "stale": (3, 3 * TARGETS),
    "cache": (1, TARGETS + 7 * 20),
    "small cache": (0, 50 + 7 * 5),
    "exact": (7, 7 * TARGETS),
    "mixed": (1, TARGETS + 7 * 20),
    "weighted": (1, TARGETS + 7 * 20),
    "own": (0, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_encodings_are_counted(name):
    world = World(MINERS[name]())
    step = tf.function(world.step)
    for _ in range(7):
        step(some_queries(2), tf.constant([[1], [2]]))
    assert (int(world.miner.full_encodes), int(world.miner.rows_encoded)) == COUNTS[name]
    assert int(world.encoded) == COUNTS[name][1]


# State


@pytest.mark.parametrize("name", MINERS)
def test_state_can_be_on_an_accelerator(name):
    """TensorFlow keeps variables of int32 on the host, where a step that XLA compiles has none."""
    miner = World(MINERS[name]()).miner
    assert [variable.name for variable in miner.variables if variable.dtype == tf.int32] == []


def stepped(world, steps):
    """The rows of some more steps, and the log probabilities of the candidates."""
    step = tf.function(world.step)
    return [step(some_queries(4, seed), tf.constant([[1], [2], [3], [4]])) for seed in range(steps)]


def no_encoding(*args):
    raise AssertionError("something was encoded")


# That of the tree: tests/models/test_saving.py.
without_tree = pytest.mark.parametrize("name", [name for name in MINERS if name != "tree"])


@without_tree
def test_state_comes_back_from_a_file_without_encoding(name):
    world = World(MINERS[name]())
    stepped(world, 4)
    file = {}
    write(named_variables(world.miner), file)
    again = MINERS[name]()
    again.build(world.corpus, no_encoding, None, DIM)
    read(named_variables(again), file)
    twin = World(MINERS[name]())
    for variable, value in zip(
        named_variables(twin.miner).values(), named_variables(again).values(), strict=True
    ):
        variable.assign(value)
    for mine, others in zip(stepped(world, 3), stepped(twin, 3), strict=True):
        np.testing.assert_array_equal(mine[0], others[0])
        np.testing.assert_array_equal(mine[1], others[1])


@without_tree
def test_checkpoint_that_was_restored_before_fills_the_state_without_encoding(name, tmp_path):
    world = World(MINERS[name]())
    stepped(world, 4)
    path = tf.train.Checkpoint(miner=world.miner).write(str(tmp_path / "checkpoint"))
    again = MINERS[name]()
    status = tf.train.Checkpoint(miner=again).read(path)
    again.build(world.corpus, world.encode_rows, no_encoding)
    status.assert_consumed()
    found, expected = named_variables(again), named_variables(world.miner)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


# Making one

OPTIONS = [
    (InBatch, {}),
    (Uniform, {"num_negatives": 5}),
    (Exact, {"num_negatives": 5}),
    (Popularity, {"num_negatives": 5, "power": 0.5, "smoothing": 2.0, "counts": [1.0, 0.0, 2.5]}),
    (Stochastic, {"num_negatives": 5, "num_candidates": 7}),
    (Stale, {"num_negatives": 5, "refresh_every": 7}),
    (NegativeCache, {"num_negatives": 5, "cache_size": 9, "refresh_share": 0.25}),
    (
        Tree,
        {
            "num_negatives": 5,
            "refresh_every": 7,
            "dtype": "bfloat16",
            "kernel": "rbf",
            "form": "full",
            "landmarks": "use",
            "budget": 500,
        },
    ),
]


@pytest.mark.parametrize("kind, options", OPTIONS, ids=lambda each: getattr(each, "__name__", ""))
def test_configuration_is_what_a_miner_was_made_with(kind, options):
    options = options | {"seed": 3}
    assert kind(**options).get_config() == options


def test_configuration_makes_the_same_miner(name):
    miner = MINERS[name](num_negatives=5, seed=3)
    config = json.loads(json.dumps(miner.get_config()))
    serialized = json.loads(json.dumps(keras.utils.serialize_keras_object(miner)))
    for again in (type(miner).from_config(config), keras.utils.deserialize_keras_object(serialized)):
        assert type(again) is type(miner)
        assert again.get_config() == miner.get_config()
        assert again.num_negatives == miner.num_negatives
        assert not again.built
    assert config["seed"] == 3
    assert miner.num_negatives == (0 if name == "in-batch" else 5)


@pytest.mark.parametrize("name", [name for name in MINERS if name != "in-batch"])
def test_as_many_negatives_as_targets_are_mined_and_one_more_is_refused(name):
    world = World(MINERS[name](num_negatives=7), targets=7)
    assert world.mine(some_queries(2), tf.fill([2, 1], -1))[0].shape == [2, 7]
    with pytest.raises(ValueError, match="More negatives than targets.*num_negatives=8, 7 targets"):
        World(MINERS[name](num_negatives=8), targets=7)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2", None])
@pytest.mark.parametrize("kind", [kind for kind, _ in OPTIONS if kind is not InBatch])
def test_number_of_negatives_that_is_none_is_refused(kind, number):
    with pytest.raises(ValueError, match=f"at least 1. Received: num_negatives={number!r}"):
        kind(num_negatives=number)


def test_own_miner_needs_to_say_no_more_than_what_it_draws():
    class First(Miner):
        def mine(self, queries, beta, positives):
            return tf.zeros([tf.shape(queries)[0], self.num_negatives], tf.int32), None

        def log_prob(self, rows, queries, beta, positives, drawn):
            return tf.math.log(tf.cast(rows == 0, tf.float32))[None]

    world = World(First(num_negatives=1))
    assert world.step(some_queries(2), tf.fill([2, 1], -1))[0].numpy().tolist() == [[0], [0]]
    assert world.miner.full_encodes == 0 and world.miner.logs() == {}


def test_miner_is_not_more_than_its_state_before_it_is_built():
    for make in MINERS.values():
        miner = make()
        assert not miner.built
        assert miner.full_encodes == miner.rows_encoded == 0


def test_page_shows_the_own_miner_that_is_tested():
    example = pathlib.Path(own_miner.__file__)
    whole = example.read_text("utf-8")
    shown = whole[whole.index("@tf.keras") : whole.index("\n\n\ndef main")]
    page = (example.parents[1] / "docs" / "miners.md").read_text("utf-8")
    assert f"\n\n\n{shown}\n```\n" in page
    assert len(shown.splitlines()) < 35


def test_list_of_miners_is_complete():
    tested = {type(make()).__name__ for make in MINERS.values()}
    assert {*miners.__all__} - {"Miner"} == tested - {"Recent"}
