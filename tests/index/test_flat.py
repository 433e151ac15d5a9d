"""An index without a tree: what it answers is exact. Changes: tests/index/test_dynamic_index.py."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import (
    check_holds,
    check_invariants,
    clustered,
    exact_softmax,
    gaussian,
    held,
    log_partition,
    state,
    top_k,
    unit,
)
from tf_dynidx.index import DynamicIndex

DIM, SIZE, BETA = 8, 3000, 20.0
EVERYTHING = tf.range(SIZE)


@pytest.fixture(scope="module")
def rows():
    return clustered(np.random.default_rng(0), SIZE, DIM)


@pytest.fixture(scope="module")
def queries(rows):
    rng = np.random.default_rng(1)
    return unit(rows[rng.integers(SIZE, size=20)] + 0.1 * gaussian(rng, 20, DIM))


@pytest.fixture(scope="module")
def index(rows):
    """Not to be changed."""
    made = DynamicIndex(DIM, SIZE, flat=True)
    made.build(rows)
    return made


def followed(rows, form):
    """An index some rows of which were written back and all corrected, so that doubt differs."""
    made = DynamicIndex(DIM, SIZE, flat=True, form=form, num_landmarks=256, refresh_every=2)
    made.build(rows)
    rng = np.random.default_rng(2)
    now = rows
    for _ in range(4):
        now = unit(now + 0.1 * now @ gaussian(rng, DIM, DIM) + 0.05 * gaussian(rng, SIZE, DIM))
        made.write(EVERYTHING[::7], now[::7])
        made.refresh(lambda landmarks, now=now: tf.gather(now, landmarks))
    return made


def draw_from(index, queries, exclude, copies, draws=8, order=1, **compiled):
    """How often each row was drawn for each query, and the log partition it was told."""

    def draw(*asked):
        return index.draw(*asked, draws, order=order)

    draw = tf.function(draw, autograph=False, reduce_retracing=True, **compiled)
    repeated = (tf.repeat(each, copies, axis=0) for each in (queries, exclude))
    repeated, excluded = repeated
    sample = draw(repeated, tf.constant(BETA), excluded, tf.constant([3, 4]))
    ids = np.split(sample.ids.numpy().ravel(), len(queries))
    counts = np.array([np.bincount(each, minlength=index.capacity) for each in ids])
    return counts, sample.log_partition.numpy()[::copies]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("form, order", [("full", 1), ("lazy", 2)])
def test_draws_are_from_the_softmax_of_the_scores_that_are_told(
    rows, queries, form, order, jit_compile
):
    """After corrections too, when a row counts for more the less is known of it."""
    index = followed(rows, form)
    gone = np.argsort(-queries[0] @ rows.T)[10:14]
    index.remove(gone)
    some, copies = queries[:2], 4000
    scores = index.scores(tf.constant(some), EVERYTHING, BETA, order).numpy().astype(np.float64)
    plain = some @ index.read(EVERYTHING).numpy().T
    lifts = np.delete(scores - plain, gone, axis=1)
    assert lifts.min() > -1e-4 and lifts.max() > 0.05 and lifts.std() > 0.01
    exclude = np.array([[*np.argsort(-scores[0])[:2]], [-1, -1]], np.int32)
    weights = np.exp(BETA * scores)
    weights[:, gone] = 0.0
    weights[0, exclude[0]] = 0.0
    truth = weights / weights.sum(axis=1, keepdims=True)
    counts, partition = draw_from(index, some, exclude, copies, order=order, jit_compile=jit_compile)
    np.testing.assert_allclose(partition, np.log(weights.sum(axis=1)), atol=2e-4)
    assert (counts[truth == 0] == 0).all()
    distance = 0.5 * np.abs(counts / counts.sum(axis=1, keepdims=True) - truth).sum(axis=1)
    chance = 0.5 * np.sqrt(truth / (8 * copies)).sum(axis=1)
    assert (distance < chance).all()
    other = np.exp(BETA * plain)  # predictions taken as they are
    other[:, gone] = other[0, exclude[0]] = 0.0
    other /= other.sum(axis=1, keepdims=True)
    assert (0.5 * np.abs(other - truth).sum(axis=1) > distance).all()


def test_sample_tells_scores_and_probabilities_of_what_it_drew(index, rows, queries):
    exclude = np.array([np.argsort(-query @ rows.T)[:3] for query in queries])
    sample = index.sample(queries, 16, BETA, exclude)
    assert sample.ids.shape == (20, 16) and sample.ids.dtype == tf.int32
    scores = np.einsum("qd,qsd->qs", queries, rows[sample.ids.numpy()])
    np.testing.assert_allclose(sample.scores, scores, atol=1e-5)
    exact = log_partition(queries, rows, BETA, exclude)
    np.testing.assert_allclose(sample.log_partition, exact, rtol=1e-5)
    np.testing.assert_allclose(sample.log_prob, BETA * scores - exact[:, None], atol=1e-3)
    everyone = np.tile(np.arange(SIZE), [2, 1])
    empty = index.sample(queries[:2], 2, BETA, everyone)
    assert (empty.ids.numpy() == -1).all() and np.isneginf(empty.log_prob).all()


def test_chains_come_from_the_softmax_too(index, rows, queries):
    ids = index.sample(np.tile(queries[:1], [4000, 1]), 4, 2.0, method="mh").ids.numpy()
    frequency = np.bincount(ids.ravel(), minlength=SIZE) / ids.size
    truth = exact_softmax(queries[:1], rows, 2.0)[0]
    # Of 16,000 draws from 3,000 rows; a roll of the truth is as far off as another distribution.
    assert np.abs(frequency - truth).sum() < 1.2 * np.sqrt(truth / ids.size).sum()
    assert np.abs(np.roll(frequency, 1) - truth).sum() > 1.5 * np.sqrt(truth / ids.size).sum()


@pytest.mark.parametrize("budget", [None, 10])
def test_searches_and_partitions_are_exact(index, rows, queries, budget):
    exclude = np.array([np.argsort(-query @ rows.T)[[0, 2]] for query in queries])
    scores = queries @ rows.T
    np.put_along_axis(scores, exclude, -np.inf, axis=1)
    expected, order = top_k(scores, 50)
    found = index.search(queries, 50, budget, exclude)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    assert (found[1].numpy() == order).mean() > 0.99
    top = index.sample(queries, 50, BETA, exclude, method="top")
    np.testing.assert_allclose(top.scores, expected, atol=1e-5)
    for each in index.log_partition(queries, BETA):
        np.testing.assert_allclose(each, log_partition(queries, rows, BETA), rtol=1e-5)
    assert index.search_cost(50, budget) >= SIZE and index.sample_cost(2) >= SIZE


def test_rows_take_free_places_in_order_and_stay_there(rows):
    index = DynamicIndex(DIM, SIZE, flat=True)
    index.build(rows[: SIZE - 10], rows=np.arange(SIZE - 1, 9, -1))
    assert index.memory()["rows"] < 1.3 * 4 * SIZE * DIM  # a tree has room to move for as many
    slots = index.tree.slots.numpy()[:SIZE]
    np.testing.assert_array_equal(slots[:9:-1], np.arange(SIZE - 10))
    index.write(EVERYTHING[100:200], -rows[100:200])
    assert index.stats()["moved_rows"] == 100
    assert index.repair() == 0 and index.stats()["moved_rows"] == 0
    index.check()
    np.testing.assert_array_equal(index.tree.slots.numpy()[:SIZE], slots)
    index.remove(np.arange(50, 90))
    index.insert(np.arange(10), rows[:10])
    index.insert(np.arange(60, 90), rows[60:90])
    assert index.size == SIZE - 10
    check_invariants(index)
    full = DynamicIndex(DIM, 100, flat=True)
    full.build(rows[:100])
    full.remove([7])
    full.insert([7], rows[7:8])
    check_holds(full, dict(enumerate(rows[:100])))


def test_restored_index_goes_on_as_the_saved_one(tmp_path, rows, queries):
    saved = followed(rows, "full")
    path = tf.train.Checkpoint(index=saved).save(str(tmp_path / "index"))
    restored = DynamicIndex(DIM, SIZE, flat=True, num_landmarks=256, refresh_every=2)
    tf.train.Checkpoint(index=restored).restore(path).assert_consumed()
    check_holds(restored, held(saved))
    for each in (saved, restored):
        each.correct(each.read(each.landmarks))
    for first, second in zip(state(saved), state(restored), strict=True):
        np.testing.assert_array_equal(first, second)
    drawn = [each.sample(queries, 8, BETA).ids for each in (saved, restored)]
    np.testing.assert_array_equal(*drawn)
