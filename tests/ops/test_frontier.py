import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests.ops.trees import BUILT, small_tree
from tests.reference import clustered, log_partition
from tf_dynidx.ops import draws, frontier, masses

BETA = tf.constant(6.0)
NOBODY = tf.constant([[-1]])
DIM = 4


@pytest.fixture(scope="module", params=[2, 3, 4], ids=["2 levels", "3 levels", "4 levels"])
def small(request):
    return small_tree(request.param, clustered(np.random.default_rng(0), BUILT, DIM, clusters=40))


@pytest.fixture(scope="module")
def deep():
    return small_tree(3, clustered(np.random.default_rng(0), BUILT, DIM, clusters=40))


def some_queries(number, seed=1):
    return np.random.default_rng(seed).normal(size=[number, DIM]).astype(np.float32)


def opened(small, queries, shape, beta=BETA, keep=0, tolerance=0.0, jit_compile=False):
    run = tf.function(
        lambda queries, beta: frontier.open_nodes(small.levels, queries, beta, shape, keep, tolerance),
        jit_compile=jit_compile,
        autograph=False,
    )
    front = run(queries, beta)
    return front._replace(rest=[each._replace(level=int(each.level)) for each in front.rest])


def drawn_pool(
    small,
    queries,
    shape,
    exclude,
    beta=BETA,
    levels=None,
    keep=0,
    tolerance=0.0,
    jit_compile=False,
    seed=(1, 2),
):
    levels = levels or small.levels

    def run(queries, beta, exclude):
        front = frontier.open_nodes(levels, queries, beta, shape, keep, tolerance)
        rows, ids = tf.convert_to_tensor(small.tree.rows), tf.convert_to_tensor(small.tree.ids)
        return frontier.pool(rows, ids, levels, front, queries, beta, shape, exclude, seed)

    return tf.function(run, jit_compile=jit_compile, autograph=False)(queries, beta, exclude)


def slots_below(small, segment, query):
    """The slots of the live rows of a segment's unopened nodes, node by node."""
    ids = np.broadcast_to(segment.ids, segment.log_masses.shape)[query]
    size = 32 * 16**segment.level
    found = []
    for node in ids[np.isfinite(segment.log_masses[query])]:
        slots = np.arange(node * size, (node + 1) * size)
        found.append(slots[small.tree.ids.numpy()[slots] >= 0])
    return found


def members(small, front, query):
    """The slots of the rows of opened leaves."""
    return frontier.member_slots(front, 0, int(front.members[query]), 32)[query].numpy()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rows_of_candidate_leaves_follow_one_another(jit_compile):
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 9, [20, 30])  # some leaves are empty
    leaves = rng.permuted(np.tile(np.arange(50), [20, 1]), axis=1)[:, :30]
    ends = np.cumsum(counts, axis=1)
    front = frontier.Frontier(
        tf.constant(leaves, tf.int32), tf.constant(ends, tf.int32), ends[:, -1], ends[:, -1], []
    )
    slots = tf.function(frontier.member_slots, jit_compile=jit_compile)
    for start in (0, 17, 60):
        found = slots(front, tf.constant(start), 40, 8).numpy()
        for query in range(20):
            each = zip(leaves[query], counts[query], strict=True)
            all_slots = [leaf * 8 + rank for leaf, count in each for rank in range(count)]
            mine = all_slots[start : start + 40]
            np.testing.assert_array_equal(found[query, : len(mine)], mine)
            assert (found[query, len(mine) :] == 0).all()


@pytest.mark.parametrize(
    "width, budget, dense, tolerance, jit_compile",
    [
        (1, 32, None, 0.0, False),
        (2, 100, None, 0.0, True),
        (3, 64, 1, 0.0, False),
        (1, 200, 0, 0.0, False),
        (8, 600, None, 0.1, False),
    ],
)
def test_frontier_covers_every_row_once(small, width, budget, dense, tolerance, jit_compile):
    shape = small.shape(width, budget, dense)
    front = opened(small, some_queries(5), shape, tolerance=tolerance, jit_compile=jit_compile)
    assert [each.level for each in front.rest] == list(range(shape.dense, -1, -1))
    for query in range(5):
        slots = [members(small, front, query)]
        slots += [each for segment in front.rest for each in slots_below(small, segment, query)]
        ids = small.tree.ids.numpy()[np.concatenate(slots)]
        np.testing.assert_array_equal(np.sort(ids), small.held)
        assert 0 < front.members[query] <= budget


@pytest.mark.parametrize("width", [1, 3])
def test_heaviest_nodes_are_opened_at_every_level(small, width):
    queries = some_queries(4)
    front = opened(small, queries, small.shape(width, 100))
    norms = np.linalg.norm(queries, axis=1, keepdims=True)
    for segment in front.rest:
        level = small.levels[segment.level]
        ids = tf.broadcast_to(segment.ids, segment.log_masses.shape)
        counts = tf.gather(level.counts, ids)
        np.testing.assert_array_equal(np.broadcast_to(segment.counts, ids.shape), counts)
        along, across = masses.project(queries, tf.gather(level.moments, ids))
        spread = BETA * norms * tf.gather(level.radii, ids)
        estimate = masses.log_masses(along, across, spread, counts, BETA).numpy()
        for query, mass in enumerate(estimate):
            rest = segment.log_masses[query].numpy()
            closed = np.isfinite(rest)
            np.testing.assert_allclose(rest[closed], mass[closed], atol=1e-4)
            done = ~closed & np.isfinite(mass)
            if segment.level:
                assert done.sum() == min(width, np.isfinite(mass).sum())
            assert done.any()
            assert mass[done].min() >= mass[closed].max(initial=-np.inf) - 1e-4


@pytest.mark.parametrize("beta", [0.5, 6.0, 40.0])
def test_as_many_leaves_are_opened_as_leave_the_least_error(deep, beta):
    queries, budget, keep = some_queries(20), 300, 40
    front = opened(deep, queries, deep.shape(2, budget), tf.constant(beta), keep)
    for query in range(20):
        # The profile: masses of the candidates, opened or not, and of all else.
        leaves, ends = front.leaves[query].numpy(), front.ends[query].numpy()
        level = deep.levels[0]
        along, across = masses.project(queries[query : query + 1], tf.gather(level.moments, leaves))
        spread = beta * np.linalg.norm(queries[query]) * tf.gather(level.radii, leaves)[None]
        counts = tf.gather(level.counts, leaves)
        mass = masses.log_masses(along, across, spread, counts, tf.constant(beta))[0].numpy()
        mass = mass.astype(np.float64)
        taken = np.flatnonzero(ends <= int(front.members[query]))
        finite = [each.log_masses[query].numpy() for each in front.rest]
        everything = np.logaddexp.reduce([*np.concatenate(finite), *mass[taken]])
        left = budget - ends
        share = 1.0 - np.cumsum(np.exp(mass - everything))
        usable = left >= keep
        assert usable[taken[-1]]
        error = np.abs(share) / np.sqrt(np.maximum(left, 1))
        # An error of 3e-4 of the mass is as good as none: then leaves are opened to the end.
        assert error[taken[-1]] <= max(error[usable].min(), 1e-7**0.5) + 1e-5


@pytest.mark.parametrize("beta", [0.5, 6.0, 12.0, 40.0])
def test_no_more_is_read_than_the_tolerance_takes(deep, beta):
    queries, budget, keep, tolerance = some_queries(200), 600, 40, 1e-2
    beta = tf.constant(beta)
    shape = deep.shape(4, budget)
    front = frontier.open_nodes(deep.levels, queries, beta, shape, keep, tolerance)
    read, members = front.read.numpy(), front.members.numpy()
    for query in range(200):
        # What is drawn from: masses of unopened nodes, and how unevenly each is shared.
        rest = rest_noise = 0.0
        for segment in front.rest:
            closed = np.flatnonzero(np.isfinite(segment.log_masses[query]))
            nodes = np.broadcast_to(segment.ids, segment.log_masses.shape)[query, closed]
            mass, noise = weighed(deep.levels[segment.level], nodes, queries[query], beta)
            np.testing.assert_allclose(
                np.log(mass), segment.log_masses.numpy()[query, closed], atol=1e-4
            )
            rest, rest_noise = rest + mass.sum(), rest_noise + noise.sum()
        ends = front.ends[query].numpy()
        mass, noise = weighed(deep.levels[0], front.leaves[query].numpy(), queries[query], beta)
        opened = ends <= members[query]
        total = rest + mass[opened].sum()
        share = np.maximum(total - np.cumsum(mass), 0.0) / total
        noise = rest_noise + noise[opened].sum() - np.cumsum(noise)
        noise = np.maximum(noise / total, share)
        needed = ends + np.maximum(np.ceil(share * noise / tolerance), keep)
        if needed.min() <= budget:
            # Shares are rounded: by a row or so.
            assert abs(read[query] - needed.min()) <= 0.02 * read[query] + 1
            assert members[query] <= read[query] - keep
        else:
            assert read[query] == budget and members[query] <= budget - keep
    assert (read < budget).any()


def weighed(level, nodes, query, beta):
    """Masses of nodes, and masses times unevenness: float64 [nodes] each."""
    along, across = masses.project(query[None], tf.gather(level.moments, nodes))
    spread = beta * np.linalg.norm(query) * tf.gather(level.radii, nodes)[None]
    counts = tf.gather(level.counts, nodes)
    mass = masses.log_masses(along, across, spread, counts, beta)[0].numpy().astype(float)
    return np.exp(mass), np.exp(mass + masses.log_unevenness(across, beta)[0].numpy())


def test_peaked_softmax_opens_more_leaves_than_a_flat_one(small):
    queries = some_queries(20)
    found = {}
    for beta in (0.3, 100.0):
        front = opened(small, queries, small.shape(4, 512), tf.constant(beta), keep=64)
        found[beta] = front.members.numpy()
        assert (found[beta] <= 512 - 64).all()
    assert found[100.0].mean() > 2.0 * found[0.3].mean()


def moved_levels(small):
    """Levels as they are when rows have moved since statistics were measured."""
    rng = np.random.default_rng(5)
    levels = []
    for level in small.levels:
        centres, variances = tf.split(tf.convert_to_tensor(level.moments), 2, axis=1)
        centres += rng.normal(size=centres.shape, scale=0.1)
        moments = tf.concat([centres, 0.5 * variances], axis=1)
        levels.append(level._replace(moments=moments))
    return levels


@pytest.mark.parametrize(
    "excluded, stale, budget, tolerance",
    [(0, False, 96, 0.0), (3, True, 96, 0.0), (3, False, 600, 2e-3)],
    ids=["", "stale", "in turns"],
)
def test_partition_and_every_row_s_weight_are_unbiased(small, excluded, stale, budget, tolerance):
    repeats, buckets = 2000, 30
    query = small.vectors[small.held[5]]
    scores = float(BETA) * small.vectors[small.held].astype(np.float64) @ query
    order = np.argsort(-scores)
    # Of the excluded, some are in opened leaves and some are not.
    gone = small.held[order[[0, 5, 1000][:excluded]]]
    exclude = np.tile(np.append(gone, -1).astype(np.int32), [repeats, 1])
    levels = moved_levels(small) if stale else None
    queries = np.tile(query, [repeats, 1])
    pool = drawn_pool(
        small, queries, small.shape(1, budget), exclude, levels=levels, keep=8, tolerance=tolerance
    )
    kept = np.setdiff1d(small.held, gone)
    weights, ids = np.exp(pool.log_weights.numpy().astype(np.float64)), pool.ids.numpy()
    assert np.isin(ids[weights > 0], kept).all()
    exact = log_partition(query[None], small.vectors[kept], BETA)
    ratio = np.exp(pool.log_partition.numpy() - exact)
    error = ratio.std() / np.sqrt(repeats)
    assert 0 < error < 0.02 and abs(ratio.mean() - 1.0) < 5 * error
    # A weighed row comes with its own score.
    row, column = np.nonzero(weights)
    np.testing.assert_allclose(
        pool.scores.numpy()[row, column],
        float(BETA) * small.vectors[ids[row, column]] @ query,
        rtol=1e-4,
        atol=1e-4,
    )
    # Rows of about the same score together, so many that they have the same mass.
    bucket = np.full(BUILT, -1)
    below = np.cumsum(np.exp(scores[order]))
    bucket[small.held[order]] = np.minimum(buckets * below / below[-1], buckets - 1)
    bucket[gone] = -1
    found = np.zeros([repeats, buckets])
    np.add.at(found, (row, bucket[ids[row, column]]), weights[row, column])
    expected = np.zeros(buckets)
    np.add.at(expected, bucket[small.held[order]][bucket[small.held[order]] >= 0], 0.0)
    for each in range(buckets):
        expected[each] = np.exp(
            float(BETA) * small.vectors[bucket == each].astype(np.float64) @ query
        ).sum()
    error = found.std(axis=0) / np.sqrt(repeats)
    assert (np.abs(found.mean(axis=0) - expected) < 5 * error + 1e-5 * expected).all()


@pytest.mark.parametrize("number, budget", [(6, 128), (70, 600)])
def test_pool_is_the_same_with_xla(deep, number, budget):
    queries, exclude = some_queries(number), tf.tile(NOBODY, [number, 1])
    plain, compiled = (
        drawn_pool(
            deep, queries, deep.shape(2, budget), exclude, keep=8, tolerance=1e-3, jit_compile=jit
        )
        for jit in (False, True)
    )
    # Sums rounded otherwise may move a draw that falls on the border between two nodes.
    assert (plain.ids.numpy() != compiled.ids.numpy()).mean() < 0.01
    np.testing.assert_allclose(plain.log_partition, compiled.log_partition, atol=0.05)


def test_queries_of_all_appetites_are_read_for_as_they_ask(deep):
    queries = some_queries(70) * np.random.default_rng(2).uniform(0.05, 12, [70, 1]).astype(np.float32)
    shape, keep, tolerance = deep.shape(4, 600), 8, 1e-2
    front = frontier.open_nodes(deep.levels, queries, BETA, shape, keep, tolerance)
    pools = [
        drawn_pool(
            deep,
            queries,
            shape,
            tf.tile(NOBODY, [70, 1]),
            keep=keep,
            tolerance=tolerance,
            seed=(1, each),
        )
        for each in range(8)
    ]
    pool = pools[0]
    read, members = front.read.numpy(), front.members.numpy()
    assert read.min() < 200 < 400 < read.max()
    weighed = np.isfinite(pool.log_weights.numpy())
    for query in range(70):
        assert not weighed[query, read[query] :].any() and weighed[query, : members[query]].all()
        slots = frontier.member_slots(front, 0, int(members[query]), 32)[query]
        np.testing.assert_array_equal(
            pool.ids[query, : members[query]], tf.gather(deep.tree.ids, slots)
        )
        scores = float(BETA) * deep.vectors[pool.ids[query].numpy()[weighed[query]]] @ queries[query]
        np.testing.assert_allclose(pool.scores[query].numpy()[weighed[query]], scores, rtol=1e-3)
    exact = log_partition(queries, deep.vectors[deep.held], BETA)
    off = np.abs(np.expm1(pool.log_partition - exact))
    assert np.median(off) < np.sqrt(tolerance)
    # A heavy row that is seldom proposed makes one estimate far too large, but not the mean of eight.
    shares = [np.exp(each.log_partition - exact) for each in pools]
    assert np.abs(np.mean(shares, axis=0) - 1.0).max() < 1.0


def test_partition_is_exact_where_everything_is_opened(small):
    queries = some_queries(3)
    gone = small.held[[0, 7]]
    exclude = np.tile(np.append(gone, -1).astype(np.int32), [3, 1])
    beta = tf.constant(0.5)
    shape = small.shape(600, 5000)
    assert opened(small, queries, shape, beta).members.numpy().tolist() == [len(small.held)] * 3
    pool = drawn_pool(small, queries, shape, exclude, beta)
    rows = small.vectors[np.setdiff1d(small.held, gone)]
    np.testing.assert_allclose(pool.log_partition, log_partition(queries, rows, beta), rtol=1e-5)
    weighed = np.isfinite(pool.log_weights.numpy())
    np.testing.assert_array_equal(pool.log_weights.numpy()[weighed], pool.scores.numpy()[weighed])


@pytest.mark.parametrize("budget", [64, 5000])
def test_nothing_is_left_where_every_row_is_excluded(deep, budget):
    exclude = deep.held[None].astype(np.int32)
    pool = drawn_pool(deep, some_queries(1), deep.shape(20, budget), exclude)
    assert (pool.log_weights.numpy() == -np.inf).all() and pool.log_partition.numpy() == [-np.inf]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rows_are_proposed_as_often_as_they_claim_to_be(small, jit_compile):
    number = 200_000
    shape = small.shape(1, 40)
    beta = tf.constant(2.0)
    front = opened(small, some_queries(1), shape, beta)
    points = draws.uniforms([1, number], tf.constant([7, 8]))

    def propose(rest, points):
        rest = [each._replace(level=own.level) for each, own in zip(rest, front.rest, strict=True)]
        closed = frontier.closed_nodes(small.levels, rest, beta, shape)
        return frontier.propose(small.levels, closed, shape, points, tf.constant([1, 2]))

    run = tf.function(propose, jit_compile=jit_compile, autograph=False)
    rest = front.rest
    slots, log_q = (each.numpy()[0] for each in run(rest, points))
    live = {segment.level: slots_below(small, segment, 0) for segment in rest}
    for level, nodes in live.items():
        # The only node at the top of four levels is opened.
        assert nodes or level == 3
    drawn, first, counts = np.unique(slots, return_index=True, return_counts=True)
    every = np.concatenate([slots for nodes in live.values() for slots in nodes])
    assert np.isin(drawn, every).all()
    # Each row claims one probability, and together they claim no more than there is.
    np.testing.assert_allclose(log_q, log_q[first][np.searchsorted(drawn, slots)], atol=1e-6)
    expected = number * np.exp(log_q[first].astype(np.float64))
    assert expected.sum() <= number * (1 + 1e-4)
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], number - expected[often].sum())
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1] * observed[:-1].sum() / expected[:-1].sum()
    assert len(expected) > 500 and stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-4
    # And by level: the masses that the nodes were drawn by.
    log_mass = frontier.capped_log_masses(rest, beta)[0].numpy().astype(np.float64)
    share = np.exp(log_mass - np.logaddexp.reduce(log_mass))
    start = 0
    for segment in rest:
        end = start + segment.log_masses.shape[1]
        mine = np.concatenate([[-1], *live[segment.level]])
        expected = share[start:end].sum()
        assert abs(np.isin(slots, mine).mean() - expected) < 5 * np.sqrt(expected / number) + 1e-6
        start = end


def test_nothing_is_proposed_where_nothing_is_left(deep):
    shape = deep.shape(600, 5000)
    rest = opened(deep, some_queries(2), shape, tf.constant(0.5)).rest
    closed = frontier.closed_nodes(deep.levels, rest, BETA, shape)
    _, log_q = frontier.propose(deep.levels, closed, shape, tf.fill([2, 9], 0.5), tf.constant([1, 2]))
    assert not np.isfinite(log_q).any()
